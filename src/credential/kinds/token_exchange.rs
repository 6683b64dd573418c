//! `token_exchange`: a token that is there already, such as the one that Kubernetes projects into the pod, is exchanged for
//! one of the provider (RFC 8693); sent as `Authorization: Bearer`.
//!
//! ```yaml
//! credential:
//!   token_exchange:
//!     token_url: https://sts.example.com/v1/token
//!     subject_token: file:/var/run/secrets/tokens/sts
//!     audience: //sts.example.com/pools/main
//!     scopes: [payments]
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

/// RFC 8693 section 2.1.
const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// What a token is where nothing is said: tokens of pods are JWTs (RFC 8693 section 3).
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// `token_exchange` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The token endpoint: `https`, or `http` on loopback.
    pub token_url: TokenUrl,
    /// The token that is exchanged; or a list in an overlap, the new one first. A file is read again when it changes.
    pub subject_token: OneOrMany<SecretRef>,
    /// What it is: a URI of RFC 8693 section 3. Default: `urn:ietf:params:oauth:token-type:jwt`.
    pub subject_token_type: Option<String>,
    /// The token of the one who acts for the subject. Default: none.
    pub actor_token: Option<SecretRef>,
    /// What that is. Default: `urn:ietf:params:oauth:token-type:jwt`.
    pub actor_token_type: Option<String>,
    /// What shall be issued, likewise. Default: what the provider gives.
    pub requested_token_type: Option<String>,
    /// The URL of the service that the token is for.
    pub resource: Option<String>,
    /// The name of the service that the token is for.
    pub audience: Option<String>,
    /// What the token shall be good for. Default: what the provider gives.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The client's id, where the provider wants a client; or a list with one for each of `client_secret` or of the keys.
    pub client_id: Option<PerKey<IdConfig>>,
    /// The client's secret; or a list in an overlap.
    pub client_secret: Option<OneOrMany<SecretRef>>,
    /// How the client proves itself: `basic`, `post`, `json` or `private_key_jwt`. Default: `basic` where there is a secret.
    pub auth_style: Option<AuthStyle>,
    /// The key of `private_key_jwt`.
    pub client_key: Option<ClientKeyConfig>,
    /// Further fields of the form; no secrets.
    #[serde(default)]
    pub extra: BTreeMap<String, String>,
    /// How long a token lives where the provider does not say. Default: until it is refused.
    pub lifetime: Option<TimeSpan>,
    /// PEM file of the authorities that the endpoint is trusted by, in place of the system's.
    pub ca: Option<String>,
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    endpoint: TokenEndpoint,
    client: ClientAuth,
    subject: Vec<SecretRef>,
    actor: Option<SecretRef>,
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
        Ok(bearer::of_token(Token::new("token_exchange", &from, TokenSettings::TokenExchange(settings))))
    }

    fn compile(&self, directory: &Path) -> Result<Settings, String> {
        let endpoint = TokenEndpoint::compile(&self.token_url, self.ca.as_deref(), directory)
            .map_err(|what| format!("`token_url`: {what}"))?;
        if self.actor_token.is_none() && self.actor_token_type.is_some() {
            return Err("`actor_token_type` needs `actor_token`".to_owned());
        }
        let client = Written {
            id: PerKey::written(self.client_id.as_ref()),
            secret: self.client_secret.as_ref(),
            key: self.client_key.as_ref(),
            style: self.auth_style,
        };
        let kind = |kind: &Option<String>| kind.clone().unwrap_or_else(|| JWT.to_owned());
        let actor_type = self.actor_token.as_ref().map(|_| kind(&self.actor_token_type));
        let extra = Extra::compile(&self.extra)?
            .with("subject_token_type", Some(kind(&self.subject_token_type)))?
            .with("actor_token_type", actor_type)?
            .with("requested_token_type", self.requested_token_type.clone())?
            .with("resource", self.resource.clone())?
            .with("audience", self.audience.clone())?
            .with("scope", (!self.scopes.is_empty()).then(|| self.scopes.join(" ")))?;
        Ok(Settings {
            client: client.compile(&endpoint, false)?,
            endpoint,
            subject: self.subject_token.0.clone(),
            actor: self.actor_token.clone(),
            extra,
            lifetime: self.lifetime.map(TimeSpan::duration),
        })
    }
}

impl Grant for Settings {
    fn inputs(&self) -> Vec<Input> {
        let actor = self.actor.iter().map(|actor| Input::text(vec![actor.clone()]));
        let own = [Input::text(self.subject.clone())].into_iter().chain(actor);
        self.client.inputs().into_iter().chain(own).collect()
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
            let first = self.client.inputs().len();
            let subject = inputs.get(first).await?;
            let mut form =
                self.extra.add_to(Form::grant(GRANT)).field("subject_token", subject.value.expose());
            if self.actor.is_some() {
                form = form.field("actor_token", inputs.get(first + 1).await?.value.expose());
            }
            let (form, headers) = self.client.sign_in(inputs, form).await?;
            client.post(form, headers, true).await?.issued(self.lifetime)
        })
    }
}
