//! `github_app`: an installation token of a GitHub App. The app's key signs a JWT of ten minutes, and GitHub gives a token of
//! an hour for it.
//!
//! ```yaml
//! credential:
//!   github_app: { app_id: 123456, installation_id: 7890123, private_key: file:/run/secrets/app.pem }
//! credential:
//!   github_app:
//!     app_id: 123456
//!     installation_id: payments:kv/github#installation
//!     private_key: [payments:kv/github#new, payments:kv/github#old]
//!     api_url: https://github.example.com/api/v3     # GitHub Enterprise Server
//!     repositories: [shop]
//!     permissions: { contents: read, issues: write }
//! ```
//!
//! API: "Create an installation access token for an app" (`POST /app/installations/{id}/access_tokens`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Form, Half, MemberSettings, Part, bearer};
use crate::credential::config::OneOrMany;
use crate::credential::jwt::{self, Algorithm, Claims, SigningKey};
use crate::credential::location::Location;
use crate::credential::token::endpoint::{TokenClient, TokenEndpoint};
use crate::credential::token::{Grant, Input, Inputs, Issued, Token, TokenSettings};
use crate::secret::TokenFault;
use crate::secret::reference::SecretRef;
use crate::secret::stores::server::StoreAddress;

/// Where github.com has its API.
const API: &str = "https://api.github.com";
/// The longest that GitHub takes an app's JWT for.
const JWT_LIFE: Duration = Duration::from_secs(600);
/// How long an installation token lives; a longer life is a wrong clock.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Bounds of what a token may be narrowed to, GitHub's own for repositories.
const MOST: usize = 500;

/// `github_app` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The app's id or client id: `123456`, `plain:Iv23abc`, or a secret reference.
    pub app_id: Id,
    /// The installation's id, likewise.
    pub installation_id: Id,
    /// The app's private key in PEM, as GitHub hands it out; or a list in an overlap, the new one first.
    pub private_key: OneOrMany<SecretRef>,
    /// The API of a GitHub Enterprise Server, such as `https://github.example.com/api/v3`. Default: `https://api.github.com`.
    pub api_url: Option<StoreAddress>,
    /// The repositories that the token is for, by name. Default: all of the installation.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// What the token may do, such as `{ contents: read }`. Default: all that the installation may.
    #[serde(default)]
    pub permissions: BTreeMap<String, Permission>,
    /// How the token is sent: `bearer` (default, for the API) or `basic` (user name `x-access-token`, for git over https).
    #[serde(default)]
    pub sent_as: SentAs,
    /// PEM file of the authorities that the API is trusted by, in place of the system's.
    pub ca: Option<String>,
}

/// How far a permission goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To administer.
    Admin,
}

/// How the token stands in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SentAs {
    /// `Authorization: Bearer`.
    #[default]
    Bearer,
    /// `Authorization: Basic`, with the user name `x-access-token`.
    Basic,
}

/// An id: a number, `plain:<text>`, or a secret reference.
#[derive(Clone, Debug)]
pub struct Id(Half);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, `plain:<text>`, or a secret reference")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Id, E> {
                Ok(Id(Half::Plain(number.to_string())))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Id, E> {
                u64::try_from(number)
                    .map_err(|_| E::custom("an id is not negative"))
                    .and_then(|id| self.visit_u64(id))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
                let plain = text.strip_prefix("plain:").or_else(|| digits(text).then_some(text));
                match plain {
                    Some(plain) if is_id(plain) => Ok(Id(Half::Plain(plain.to_owned()))),
                    Some(_) => Err(E::custom("an id is 1 to 64 letters, digits, `_` or `-`")),
                    None => Ok(Id(Half::Secret(text.parse().map_err(E::custom)?))),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Id {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GithubId".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["integer", "string"], "description": "a number, `plain:<text>`, or a secret reference" })
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    endpoint: TokenEndpoint,
    app: Half,
    installation: Half,
    private_key: Vec<SecretRef>,
    /// What the token is narrowed to: the JSON that is posted.
    body: String,
}

impl Config {
    /// The one member of this credential, or what is wrong with it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn member(&self, directory: &Path) -> Result<MemberSettings, String> {
        let settings = self.compile(directory)?;
        let from = settings.endpoint.shown();
        let token = Token::new("github_app", &from, TokenSettings::GithubApp(settings));
        let secret = token.reference.clone();
        let parts = match self.sent_as {
            SentAs::Bearer => bearer::parts(secret),
            SentAs::Basic => {
                let username = Half::Plain("x-access-token".to_owned());
                let form = Form::Basic { username, password: Half::Secret(secret) };
                vec![Part { location: Location::Header(AUTHORIZATION), form }]
            }
        };
        Ok(MemberSettings { tokens: vec![token], ..MemberSettings::of(parts) })
    }

    fn compile(&self, directory: &Path) -> Result<Settings, String> {
        let url = match &self.api_url {
            Some(url) => url.clone(),
            None => API.parse()?,
        };
        if url.target.host.as_str() == "github.com" {
            return Err("`api_url`: the API of github.com is at https://api.github.com".to_owned());
        }
        let endpoint = TokenEndpoint::compile(&url, self.ca.as_deref(), directory)
            .map_err(|what| format!("`api_url`: {what}"))?;
        if matches!(&self.installation_id.0, Half::Plain(id) if !digits(id)) {
            return Err("`installation_id` is a number".to_owned());
        }
        if self.repositories.len() > MOST || self.permissions.len() > MOST {
            return Err(format!("at most {MOST} repositories, and as many permissions"));
        }
        // GitHub takes names without their owner, and would answer 422 to every request for a token.
        if self.repositories.iter().any(|name| !is_repository(name)) {
            return Err("`repositories`: names without their owner, such as `shop`".to_owned());
        }
        Ok(Settings {
            endpoint,
            app: self.app_id.0.clone(),
            installation: self.installation_id.0.clone(),
            private_key: self.private_key.0.clone(),
            body: self.narrowed().to_string(),
        })
    }

    fn narrowed(&self) -> serde_json::Value {
        let mut body = json!({});
        if !self.repositories.is_empty() {
            body["repositories"] = json!(self.repositories);
        }
        if !self.permissions.is_empty() {
            let word = |permission: &Permission| match permission {
                Permission::Read => "read",
                Permission::Write => "write",
                Permission::Admin => "admin",
            };
            let words: BTreeMap<_, _> =
                self.permissions.iter().map(|(name, how)| (name, word(how))).collect();
            body["permissions"] = json!(words);
        }
        body
    }
}

fn is_repository(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

impl Settings {
    /// The app's JWT as a field of the request for a token.
    async fn authorization(&self, app: &str, inputs: &Inputs<'_>) -> Result<HeaderValue, TokenFault> {
        let key = SigningKey::read(Algorithm::Rs256, inputs.get(0).await?.value.expose())?;
        let claims = Claims::lasting(SystemTime::now(), JWT_LIFE).text("iss", app);
        let jwt = jwt::sign(&jwt::Header::new(None), &claims, &key)?;
        let text = Zeroizing::new([b"Bearer ", jwt.as_bytes()].concat());
        let value = HeaderValue::from_maybe_shared(Bytes::from_owner(text));
        let mut value = value.map_err(|_| TokenFault::Key("it does not sign"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn headers(&self, app: &str, inputs: &Inputs<'_>) -> Result<HeaderMap, TokenFault> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, self.authorization(app, inputs).await?);
        headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers
            .insert(HeaderName::from_static("x-github-api-version"), HeaderValue::from_static("2022-11-28"));
        // GitHub refuses requests without one.
        headers.insert(USER_AGENT, HeaderValue::from_static("outgate"));
        Ok(headers)
    }

    /// An id, where it is a secret: the next of the inputs behind the key.
    async fn id(half: &Half, at: usize, inputs: &Inputs<'_>) -> Result<String, TokenFault> {
        let text = match half {
            Half::Plain(text) => return Ok(text.clone()),
            Half::Secret(_) => inputs.get(at).await?,
        };
        let text = std::str::from_utf8(text.value.expose()).ok().filter(|text| is_id(text));
        text.map(str::to_owned).ok_or(TokenFault::Key("an id of the app is not 1 to 64 letters or digits"))
    }
}

impl Grant for Settings {
    fn inputs(&self) -> Vec<Input> {
        let ids = [&self.app, &self.installation].into_iter().filter_map(|half| half.secret());
        let ids = ids.map(|reference| Input::text(vec![reference.clone()]));
        std::iter::once(Input::key(self.private_key.clone())).chain(ids).collect()
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
            let app = Self::id(&self.app, 1, inputs).await?;
            let second = 1 + usize::from(self.app.secret().is_some());
            let installation = Self::id(&self.installation, second, inputs).await?;
            if !digits(&installation) {
                return Err(TokenFault::Key("the id of the installation is not a number"));
            }
            let headers = self.headers(&app, inputs).await?;
            let path = format!("/app/installations/{installation}/access_tokens");
            let body = self.body.as_bytes().to_vec().into();
            let issued =
                client.post_json(&path, headers, body).await?.issued_as("token", Some(TOKEN_LIFE))?;
            Ok(Issued { life: issued.life.map(|life| life.min(TOKEN_LIFE)), ..issued })
        })
    }
}

#[cfg(test)]
mod tests;
