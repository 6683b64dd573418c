//! `oauth2_refresh_token`: an access token for a refresh token that a user's consent gave once (RFC 6749 section 6), sent
//! as `Authorization: Bearer`.
//!
//! ```yaml
//! credential:
//!   oauth2_refresh_token:
//!     token_url: https://slack.com/api/oauth.v2.access
//!     client_id: plain:4711.0815
//!     client_secret: env:SLACK_CLIENT_SECRET
//!     auth_style: post
//!     refresh_token: file:/run/secrets/slack-refresh
//!     rotates: true                                    # each use gives a new one, so that must be kept:
//!     store: { file: /var/lib/outgate/slack-grant }    # one pod; several: { vault: ... } or { redis: ... }
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{MemberSettings, bearer};
use crate::credential::config::OneOrMany;
use crate::credential::per_key::PerKey;
use crate::credential::token::client::{AuthStyle, ClientAuth, ClientKeyConfig, IdConfig, Written};
use crate::credential::token::endpoint::{TokenAnswer, TokenClient, TokenEndpoint, TokenUrl};
use crate::credential::token::rotation::{Exchange, KeepConfig, KeepSettings};
use crate::credential::token::{Extra, Grant, Input, Inputs, Issued, Token, TokenSettings};
use crate::message::quantity::TimeSpan;
use crate::secret::TokenFault;
use crate::secret::form::Form;
use crate::secret::reference::SecretRef;

/// `oauth2_refresh_token` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The token endpoint: `https`, or `http` on loopback.
    pub token_url: TokenUrl,
    /// The client's id: a secret reference, or `plain:<text>`.
    pub client_id: IdConfig,
    /// The client's secret; or a list in an overlap, the new one first. Default: none, for a public client.
    pub client_secret: Option<OneOrMany<SecretRef>>,
    /// How the client proves itself: `basic`, `post`, `json` or `private_key_jwt`. Default: `basic` where there is a secret.
    pub auth_style: Option<AuthStyle>,
    /// The key of `private_key_jwt`.
    pub client_key: Option<ClientKeyConfig>,
    /// The refresh token; or a list in an overlap, the new one first (not where it rotates).
    pub refresh_token: OneOrMany<SecretRef>,
    /// Whether each use gives a new refresh token and ends the old one. Default: no.
    #[serde(default)]
    pub rotates: bool,
    /// Where the newest refresh token is kept; needed by `rotates: true`.
    pub store: Option<KeepConfig>,
    /// What the token shall be good for; less than what was consented to. Default: all of that.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Further fields of the form; no secrets.
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
    refresh_token: Vec<SecretRef>,
    keep: Option<KeepSettings>,
    extra: Extra,
    lifetime: Option<Duration>,
    /// Tells what an access token is asked for with, the same in each process of this policy.
    mark: String,
}

impl Config {
    /// The one member of this credential, or what is wrong with it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn member(&self, directory: &Path) -> Result<MemberSettings, String> {
        let settings = self.compile(directory)?;
        let from = settings.endpoint.shown();
        let settings = TokenSettings::Oauth2RefreshToken(Box::new(settings));
        Ok(bearer::of_token(Token::new("oauth2_refresh_token", &from, settings)))
    }

    fn compile(&self, directory: &Path) -> Result<Settings, String> {
        let endpoint = TokenEndpoint::compile(&self.token_url, self.ca.as_deref(), directory)
            .map_err(|what| format!("`token_url`: {what}"))?;
        let client = Written {
            // A refresh token is one client's.
            id: Some(PerKey::one(self.client_id.0.clone())),
            secret: self.client_secret.as_ref(),
            key: self.client_key.as_ref(),
            style: self.auth_style,
        };
        let keep = match (self.rotates, &self.store, self.refresh_token.0.as_slice()) {
            (false, None, _) => None,
            (false, Some(_), _) => {
                return Err("`store` is for a refresh token that `rotates: true`".to_owned());
            }
            (true, None, _) => {
                return Err("a refresh token that rotates must be kept, or it is lost with the process: `store: { file: ... }` \
                     for one pod, `{ vault: ... }` or `{ redis: ... }` for several"
                    .to_owned());
            }
            // The old one was used up long ago; to use it again ends the grant at many providers.
            (true, Some(_), [_, _, ..]) => {
                return Err(
                    "a refresh token that rotates is one: with a list the old one would be used twice"
                        .to_owned(),
                );
            }
            // One place would be written over by one tenant after the other, and their refresh tokens lost.
            (true, Some(_), [seed]) if seed.is_per_tenant() => {
                return Err(
                    "a refresh token that rotates is kept in one place: `{tenant}` in it is not supported"
                        .to_owned(),
                );
            }
            (true, Some(store), [seed]) => {
                let owner = format!("{} {:?} {seed}", endpoint.url_text(), self.client_id);
                Some(store.compile(directory, &owner)?)
            }
            (true, Some(_), []) => return Err("`refresh_token` names no secret".to_owned()),
        };
        if let (Some(KeepSettings::File(path)), Some(seed)) = (&keep, self.refresh_token.0.first())
            && seed.store() == "file"
            && *path == directory.join(seed.path())
        {
            return Err("`store.file` is the file of `refresh_token`, which is not written".to_owned());
        }
        let extra = Extra::compile(&self.extra)?
            .with("scope", (!self.scopes.is_empty()).then(|| self.scopes.join(" ")))?;
        let asked = format!("{} {:?} {extra:?}", endpoint.url_text(), self.client_id);
        let mark = digest(&SHA256, asked.as_bytes());
        Ok(Settings {
            client: client.compile(&endpoint, false)?,
            endpoint,
            refresh_token: self.refresh_token.0.clone(),
            keep,
            extra,
            mark: mark.as_ref().iter().take(12).map(|byte| format!("{byte:02x}")).collect(),
            lifetime: self.lifetime.map(TimeSpan::duration),
        })
    }
}

impl Settings {
    /// Tells what an access token is asked for with, the same in each process of this policy.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }
}

impl Grant for Settings {
    fn inputs(&self) -> Vec<Input> {
        let own = [Input::text(self.refresh_token.clone())].into_iter();
        let keep = self.keep.as_ref().and_then(KeepSettings::input);
        self.client.inputs().into_iter().chain(own).chain(keep).collect()
    }

    fn endpoint(&self) -> Option<&TokenEndpoint> {
        Some(&self.endpoint)
    }

    fn keep(&self) -> Option<&KeepSettings> {
        self.keep.as_ref()
    }

    fn seeds(&self) -> &[SecretRef] {
        &self.refresh_token
    }

    fn issue<'a>(
        &'a self,
        inputs: &'a Inputs<'a>,
        client: &'a TokenClient,
    ) -> BoxFuture<'a, Result<Issued, TokenFault>> {
        Box::pin(async move {
            let first = self.client.inputs().len();
            let seed = inputs.get(first).await?;
            let exchange = Refresh { settings: self, inputs, client };
            match &self.keep {
                None => inputs.state().fixed(seed.value.expose(), &exchange).await,
                Some(keep) => {
                    let shelf = keep.open(inputs, first + 1).await?;
                    inputs.state().rotating(seed.value.expose(), &shelf, &exchange).await
                }
            }
        })
    }
}

/// One request for an access token.
struct Refresh<'a> {
    settings: &'a Settings,
    inputs: &'a Inputs<'a>,
    client: &'a TokenClient,
}

impl Exchange for Refresh<'_> {
    fn ask<'a>(&'a self, refresh_token: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
        Box::pin(async move {
            let form = Form::grant("refresh_token").field("refresh_token", refresh_token);
            let form = self.settings.extra.add_to(form);
            let (form, headers) = self.settings.client.sign_in(self.inputs, form).await?;
            // Where it rotates, a second request would use up what the first one may have used up already.
            self.client.post(form, headers, self.settings.keep.is_none()).await
        })
    }

    fn lifetime(&self) -> Option<Duration> {
        self.settings.lifetime
    }

    fn mark(&self) -> &str {
        self.settings.mark()
    }
}
