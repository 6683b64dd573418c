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
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{MemberSettings, bearer};
use crate::credential::config::OneOrMany;
use crate::credential::per_key::PerKey;
use crate::credential::token::client::{AuthStyle, ClientAuth, ClientKeyConfig, IdConfig, Written};
use crate::credential::token::endpoint::{TokenClient, TokenEndpoint, TokenUrl};
use crate::credential::token::{Extra, Grant, Input, Inputs, Issued, Token, TokenSettings};
use crate::message::quantity::TimeSpan;
use crate::secret::TokenFault;
use crate::secret::form::Form;
use crate::secret::reference::SecretRef;

/// `oauth2_client_credentials` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The token endpoint: `https`, or `http` on loopback.
    pub token_url: TokenUrl,
    /// The client's id: a secret reference, or `plain:<text>`; or a list with one for each of `client_secret` or of the keys.
    pub client_id: PerKey<IdConfig>,
    /// The client's secret; or a list in an overlap, the new one first.
    pub client_secret: Option<OneOrMany<SecretRef>>,
    /// How the client proves itself: `basic` (secret in a header, default), `post` (secret in the form), `json` (the same as JSON) or
    /// `private_key_jwt` (`client_key` in place of the secret).
    pub auth_style: Option<AuthStyle>,
    /// The key of `private_key_jwt`.
    pub client_key: Option<ClientKeyConfig>,
    /// What the token shall be good for. Default: what the provider gives.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Who the token is for (`audience`), where the provider asks for it.
    pub audience: Option<String>,
    /// Further fields of the form, such as `resource`; no secrets.
    #[serde(default)]
    pub extra: BTreeMap<String, String>,
    /// How long a token lives where the provider does not say (Salesforce). Default: until it is refused.
    pub lifetime: Option<TimeSpan>,
    /// PEM file of the authorities that the endpoint is trusted by, in place of the system's.
    pub ca: Option<String>,
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    endpoint: TokenEndpoint,
    client: ClientAuth,
    extra: Extra,
    lifetime: Option<Duration>,
}

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
        Ok(bearer::of_token(token))
    }

    fn compile(&self, directory: &Path) -> Result<Settings, String> {
        let endpoint = TokenEndpoint::compile(&self.token_url, self.ca.as_deref(), directory)
            .map_err(|what| format!("`token_url`: {what}"))?;
        let client = Written {
            id: PerKey::written(Some(&self.client_id)),
            secret: self.client_secret.as_ref(),
            key: self.client_key.as_ref(),
            style: self.auth_style,
        };
        let extra = Extra::compile(&self.extra)?
            .with("scope", (!self.scopes.is_empty()).then(|| self.scopes.join(" ")))?
            .with("audience", self.audience.clone())?;
        Ok(Settings {
            client: client.compile(&endpoint, true)?,
            endpoint,
            extra,
            lifetime: self.lifetime.map(TimeSpan::duration),
        })
    }
}

impl Grant for Settings {
    fn inputs(&self) -> Vec<Input> {
        self.client.inputs()
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
            let form = self.extra.add_to(Form::grant("client_credentials"));
            let (form, headers) = self.client.sign_in(inputs, form).await?;
            client.post(form, headers, true).await?.issued(self.lifetime)
        })
    }
}
