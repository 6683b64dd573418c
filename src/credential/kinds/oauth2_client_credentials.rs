//! `oauth2_client_credentials`: a token from the provider's own token endpoint, for the client itself (RFC 6749 section
//! 4.4), sent as `Authorization: Bearer`.
//!
//! ```yaml
//! credential:
//!   oauth2_client_credentials:
//!     token_url: https://login.example.com/oauth2/token
//!     client_id: plain:0oa1example
//!     client_secret: [payments:kv/idp#new, payments:kv/idp#old]
//!     scopes: [read, write]
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::future::BoxFuture;
use http::HeaderMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::basic::HalfConfig;
use super::{Half, MemberSettings, bearer};
use crate::credential::config::OneOrMany;
use crate::credential::token::endpoint::{Form, TokenClient, TokenEndpoint, client_basic};
use crate::credential::token::{Grant, Input, Inputs, Issued, Token, TokenSettings};
use crate::secret::TokenFault;
use crate::secret::reference::SecretRef;
use crate::secret::stores::server::StoreAddress;

/// `oauth2_client_credentials` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The token endpoint: `https`, or `http` on loopback.
    pub token_url: StoreAddress,
    /// The client's id: a secret reference, or `plain:<text>`.
    pub client_id: HalfConfig,
    /// The client's secret; or a list in an overlap, the new one first.
    pub client_secret: OneOrMany<SecretRef>,
    /// What the token shall be good for. Default: what the provider gives.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Who the token is for (`audience`), where the provider asks for it.
    pub audience: Option<String>,
    /// How id and secret are sent: `basic` (in a header, default) or `post` (in the form).
    #[serde(default)]
    pub auth_style: AuthStyle,
    /// Further fields of the form, such as `resource`; no secrets.
    #[serde(default)]
    pub extra: BTreeMap<String, String>,
    /// PEM file of the authorities that the endpoint is trusted by, in place of the system's.
    pub ca: Option<String>,
}

/// How a client says who it is (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthStyle {
    /// `Authorization: Basic`.
    #[default]
    Basic,
    /// `client_id` and `client_secret` in the form.
    Post,
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    endpoint: TokenEndpoint,
    client_id: Half,
    client_secret: Vec<SecretRef>,
    scope: Option<String>,
    audience: Option<String>,
    auth_style: AuthStyle,
    extra: Vec<(String, String)>,
}

/// Fields of the form that have keys of their own here.
const OWN: [&str; 5] = ["grant_type", "client_id", "client_secret", "scope", "audience"];

impl Config {
    /// The one member of this credential, or what is wrong with it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn member(&self, directory: &Path) -> Result<MemberSettings, String> {
        let settings = self.compile(directory)?;
        let from = settings.endpoint.shown();
        let token =
            Token::new("oauth2_client_credentials", &from, TokenSettings::Oauth2ClientCredentials(settings));
        Ok(MemberSettings {
            tokens: vec![token.clone()],
            ..MemberSettings::of(bearer::parts(token.reference))
        })
    }

    fn compile(&self, directory: &Path) -> Result<Settings, String> {
        let endpoint = TokenEndpoint::compile(&self.token_url, self.ca.as_deref(), directory)
            .map_err(|what| format!("`token_url`: {what}"))?;
        if let Some(own) = self.extra.keys().find(|name| OWN.contains(&name.as_str())) {
            return Err(format!("`extra` holds `{own}`, which has a key of its own"));
        }
        Ok(Settings {
            endpoint,
            client_id: self.client_id.half(),
            client_secret: self.client_secret.0.clone(),
            scope: (!self.scopes.is_empty()).then(|| self.scopes.join(" ")),
            audience: self.audience.clone(),
            auth_style: self.auth_style,
            extra: self.extra.clone().into_iter().collect(),
        })
    }
}

impl Grant for Settings {
    fn inputs(&self) -> Vec<Input> {
        let secret = Input::text(self.client_secret.clone());
        match &self.client_id {
            Half::Secret(id) => vec![secret, Input::text(vec![id.clone()])],
            Half::Plain(_) => vec![secret],
        }
    }

    fn endpoint(&self) -> Option<&TokenEndpoint> {
        Some(&self.endpoint)
    }

    fn issue<'a>(
        &'a self,
        inputs: &'a Inputs<'a>,
        client: &'a TokenClient,
    ) -> BoxFuture<'a, Result<Issued, TokenFault>> {
        Box::pin(async move {
            let secret = inputs.get(0).await?;
            let id = match &self.client_id {
                Half::Plain(text) => text.as_bytes().to_vec(),
                Half::Secret(_) => inputs.get(1).await?.value.expose().to_vec(),
            };
            let mut form = Form::grant("client_credentials")
                .maybe("scope", self.scope.as_deref())
                .maybe("audience", self.audience.as_deref());
            for (name, value) in &self.extra {
                form = form.field(name, value.as_bytes());
            }
            let mut headers = HeaderMap::new();
            match self.auth_style {
                AuthStyle::Basic => headers.extend([client_basic(&id, secret.value.expose())?]),
                AuthStyle::Post => {
                    form = form.field("client_id", &id).field("client_secret", secret.value.expose());
                }
            }
            client.post(form, headers, true).await?.issued(None)
        })
    }
}
