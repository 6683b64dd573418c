//! `google_service_account`: a token for a Google API, from the JSON key of a service account.
//!
//! By default an access token from Google's token endpoint, for a JWT that the key signs (RFC 7523). With
//! `self_signed: true` the JWT itself is the token, and nobody is asked: for the APIs that take one, which most of
//! `*.googleapis.com` do (AIP-4111).
//!
//! ```yaml
//! credential:
//!   google_service_account:
//!     key: file:/run/secrets/google.json
//!     scopes: ["https://www.googleapis.com/auth/cloud-platform"]
//! credential:
//!   google_service_account: { key: "file:/run/secrets/google.json", self_signed: true, audience: "https://pubsub.googleapis.com/" }
//! ```
//!
//! The key says where its tokens come from (`token_uri`). It is believed only where that is Google over https; another
//! endpoint has to stand in the policy (`token_url`), because whoever changes a key must not thereby choose where
//! assertions go.

use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{MemberSettings, bearer};
use crate::credential::config::OneOrMany;
use crate::credential::jwt::{self, Algorithm, Claims, SigningKey};
use crate::credential::token::endpoint::{TokenClient, TokenEndpoint, TokenUrl};
use crate::credential::token::{Grant, Input, Inputs, Issued, Token, TokenSettings};
use crate::message::target::Scheme;
use crate::secret::TokenFault;
use crate::secret::form::Form;
use crate::secret::reference::SecretRef;
use crate::secret::stores::document::Document;

/// What a key's `token_uri` is, unless the key is very old.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
/// RFC 7523 section 2.1.
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// The longest that Google takes a JWT for.
const LIFE: Duration = Duration::from_secs(3600);
/// How far back [`Claims::lasting`] begins the life of a JWT.
const BEGUN: Duration = Duration::from_secs(60);

/// `google_service_account` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The service account's key, as Google hands it out: JSON. Or a list in an overlap, the new one first.
    pub key: OneOrMany<SecretRef>,
    /// What the token shall be good for, such as `https://www.googleapis.com/auth/cloud-platform`. Needed, save for a
    /// self-signed one with `audience`.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The user on whose behalf the account acts (domain-wide delegation). Default: itself.
    pub subject: Option<String>,
    /// Whether the JWT that the key signs is itself the token, so that no endpoint is asked. Default: false.
    #[serde(default)]
    pub self_signed: bool,
    /// Of a self-signed token, in place of `scopes`: the API that it is for, such as `https://pubsub.googleapis.com/`.
    pub audience: Option<String>,
    /// The token endpoint. Default: the key's own `token_uri`, which must be Google's.
    pub token_url: Option<TokenUrl>,
    /// PEM file of the authorities that the endpoint is trusted by, in place of the system's.
    pub ca: Option<String>,
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    key: Vec<SecretRef>,
    scope: Option<String>,
    subject: Option<String>,
    way: Way,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Way {
    SelfSigned {
        audience: Option<String>,
    },
    /// `named`: the policy says which endpoint, and the key's own does not count.
    Exchanged {
        endpoint: TokenEndpoint,
        named: bool,
    },
}

impl Config {
    /// The members of this credential: one; or of self-signed tokens one for each key, since it is the API that refuses them.
    ///
    /// # Errors
    /// What is wrong.
    pub fn members(&self, directory: &Path) -> Result<Vec<MemberSettings>, String> {
        let settings = self.compile(directory)?;
        let member = |settings: Settings, from: &str| {
            let settings = TokenSettings::GoogleServiceAccount(settings);
            bearer::of_token(Token::new("google_service_account", from, settings))
        };
        match &settings.way {
            Way::Exchanged { endpoint, .. } => {
                let from = endpoint.shown();
                Ok(vec![member(settings, &from)])
            }
            Way::SelfSigned { .. } => {
                let alone = |key: &SecretRef| Settings { key: vec![key.clone()], ..settings.clone() };
                Ok(settings.key.iter().map(|key| member(alone(key), "")).collect())
            }
        }
    }

    fn compile(&self, directory: &Path) -> Result<Settings, String> {
        Ok(Settings {
            key: self.key.0.clone(),
            scope: (!self.scopes.is_empty()).then(|| self.scopes.join(" ")),
            subject: self.subject.clone(),
            way: if self.self_signed { self.self_signed()? } else { self.exchanged(directory)? },
        })
    }

    fn self_signed(&self) -> Result<Way, String> {
        let beside = [
            ("subject", self.subject.is_some()),
            ("token_url", self.token_url.is_some()),
            ("ca", self.ca.is_some()),
        ];
        if let Some((name, _)) = beside.into_iter().find(|(_, written)| *written) {
            return Err(format!(
                "`{name}` needs a token endpoint, and with `self_signed: true` none is asked"
            ));
        }
        if self.audience.is_some() != self.scopes.is_empty() {
            return Err(
                "with `self_signed: true` either `audience` or `scopes` says what it is for".to_owned()
            );
        }
        Ok(Way::SelfSigned { audience: self.audience.clone() })
    }

    fn exchanged(&self, directory: &Path) -> Result<Way, String> {
        if self.audience.is_some() {
            return Err(
                "`audience` is of self-signed tokens: add `self_signed: true`, or name `scopes`".to_owned()
            );
        }
        if self.scopes.is_empty() {
            return Err("missing key `scopes`: what the token shall be good for".to_owned());
        }
        let url = match &self.token_url {
            Some(url) => url.clone(),
            None => TOKEN_URI.parse()?,
        };
        let endpoint = TokenEndpoint::compile(&url, self.ca.as_deref(), directory)
            .map_err(|what| format!("`token_url`: {what}"))?;
        Ok(Way::Exchanged { endpoint, named: self.token_url.is_some() })
    }
}

/// What is needed of a key's JSON. No `Debug`: the document holds the key.
struct AccountKey(Document);

impl AccountKey {
    fn parse(json: &[u8]) -> Result<Self, TokenFault> {
        let document = Document::parse(json).map_err(|_| TokenFault::Key("it is not JSON"))?;
        match document.text(&["type"]) {
            Some("service_account") => Ok(Self(document)),
            _ => Err(TokenFault::Key("it is not of a service account (`type`)")),
        }
    }

    fn email(&self) -> Result<&str, TokenFault> {
        self.0.text(&["client_email"]).ok_or(TokenFault::Key("it has no `client_email`"))
    }

    fn sign(&self, claims: &Claims) -> Result<zeroize::Zeroizing<String>, TokenFault> {
        let pem = self.0.text(&["private_key"]).ok_or(TokenFault::Key("it has no `private_key`"))?;
        let key = SigningKey::read(Algorithm::Rs256, pem.as_bytes())?;
        jwt::sign(&jwt::Header::new(self.0.text(&["private_key_id"])), claims, &key)
    }

    /// Where its tokens come from, if that is Google.
    fn token_uri(&self) -> Result<TokenUrl, TokenFault> {
        let text = self.0.text(&["token_uri"]).unwrap_or(TOKEN_URI);
        let url: TokenUrl = text.parse().map_err(|_| TokenFault::Key("its `token_uri` is not a URL"))?;
        let host = url.target.host.as_str();
        let google = host == "accounts.google.com" || host.ends_with(".googleapis.com");
        if google && url.target.scheme == Scheme::Https && url.target.port == 443 {
            Ok(url)
        } else {
            Err(TokenFault::Key(
                "its `token_uri` is not one of Google's: name it as `token_url` in the policy",
            ))
        }
    }
}

impl Settings {
    fn self_signed(&self, key: &AccountKey, audience: Option<&str>) -> Result<Issued, TokenFault> {
        let email = key.email()?;
        let claims = Claims::lasting(SystemTime::now(), LIFE).text("iss", email).text("sub", email);
        let claims = match (audience, &self.scope) {
            (Some(audience), _) => claims.text("aud", audience),
            (None, scope) => claims.text("scope", scope.as_deref().unwrap_or_default()),
        };
        let token = key.sign(&claims)?;
        Ok(Issued { token: token.as_bytes().to_vec().into(), life: Some(LIFE - BEGUN) })
    }

    async fn exchanged(
        &self,
        key: &AccountKey,
        (endpoint, named): (&TokenEndpoint, bool),
        client: &TokenClient,
    ) -> Result<Issued, TokenFault> {
        let url = if named { endpoint.url.clone() } else { key.token_uri()? };
        let claims = Claims::lasting(SystemTime::now(), LIFE)
            .text("iss", key.email()?)
            .text("aud", &format!("{}{}", url.target, url.path))
            .text("scope", self.scope.as_deref().unwrap_or_default());
        let claims = match &self.subject {
            Some(subject) => claims.text("sub", subject),
            None => claims,
        };
        let form = Form::grant(GRANT).field("assertion", key.sign(&claims)?.as_bytes());
        client.post_to(&url, form).await?.issued(Some(LIFE))
    }
}

impl Grant for Settings {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::key(self.key.clone())]
    }

    fn endpoint(&self) -> Option<&TokenEndpoint> {
        match &self.way {
            Way::SelfSigned { .. } => None,
            Way::Exchanged { endpoint, .. } => Some(endpoint),
        }
    }

    fn issue<'a>(
        &'a self,
        inputs: &'a Inputs<'a>,
        client: &'a TokenClient,
    ) -> BoxFuture<'a, Result<Issued, TokenFault>> {
        Box::pin(async move {
            let key = AccountKey::parse(inputs.get(0).await?.value.expose())?;
            match &self.way {
                Way::SelfSigned { audience } => self.self_signed(&key, audience.as_deref()),
                Way::Exchanged { endpoint, named } => self.exchanged(&key, (endpoint, *named), client).await,
            }
        })
    }
}

#[cfg(test)]
mod tests;
