//! `apple`: a JWT that outgate signs with a key of an Apple developer account (ES256, the `.p8` file).
//!
//! - `service: sign_in` (default): the client secret of Sign in with Apple. It is written into the field `client_secret` of
//!   the forms that the app posts to `/auth/token` and `/auth/revoke`; `client_id`, `code` and the rest stay the app's. What is posted
//!   without a form is refused, as with [`body`]; other requests, such as `GET /auth/keys`, go out without it.
//! - `service: app_store_connect`: the token of the App Store Connect API, sent as `Authorization: Bearer`.
//!
//! ```yaml
//! credential:
//!   apple:
//!     team_id: TEAM123456
//!     client_id: com.example.web
//!     key_id: KEY1234567
//!     private_key: file:/run/secrets/AuthKey.p8
//! credential:
//!   apple:
//!     service: app_store_connect
//!     issuer_id: 57246542-96fe-1a63-e053-0824d011072a
//!     key_id: 2X9R4HXF34
//!     private_key: file:/run/secrets/AuthKey.p8
//! ```
//!
//! Apple takes a client secret for up to six months, and a token of App Store Connect for twenty minutes. Both are made
//! here for fifteen, so that one that gets out is soon over; making one costs a signature.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{MemberSettings, PerRequest, bearer, body};
use crate::credential::config::OneOrMany;
use crate::credential::jwt::{self, Algorithm, Claims, SigningKey};
use crate::credential::per_key::PerKey;
use crate::credential::token::endpoint::{TokenClient, TokenEndpoint};
use crate::credential::token::{Grant, Input, Inputs, Issued, Token, TokenSettings};
use crate::secret::TokenFault;
use crate::secret::reference::SecretRef;

/// How long a JWT lives, its beginning in the past included.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// How far back [`Claims::lasting`] begins the life of a JWT.
const BEGUN: Duration = Duration::from_secs(60);
/// Where Sign in with Apple is.
const SIGN_IN: &str = "https://appleid.apple.com";
/// Who a token of the App Store Connect API is for.
const APP_STORE_CONNECT: &str = "appstoreconnect-v1";

/// `apple` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the JWT is for: `sign_in` (default) or `app_store_connect`.
    #[serde(default)]
    pub service: Service,
    /// The key's id, as Apple shows it beside the key; or a list with one for each of `private_key`.
    pub key_id: PerKey<String>,
    /// The key in PEM (`.p8`); or a list in an overlap, the new one first.
    pub private_key: OneOrMany<SecretRef>,
    /// The team's id; of `sign_in`.
    pub team_id: Option<String>,
    /// The id of the app or service that users sign in to; of `sign_in`.
    pub client_id: Option<String>,
    /// The issuer's id; of `app_store_connect`, and only of a team's key. A key of one person has none.
    pub issuer_id: Option<String>,
}

/// What a JWT is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Sign in with Apple: a client secret.
    #[default]
    SignIn,
    /// App Store Connect: a bearer token.
    AppStoreConnect,
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    key_id: String,
    private_key: SecretRef,
    claims: Vec<(&'static str, String)>,
}

impl Config {
    /// The members of this credential: one for each key.
    ///
    /// # Errors
    /// What is wrong.
    pub fn members(&self) -> Result<Vec<MemberSettings>, String> {
        let claims = match self.service {
            Service::SignIn => self.sign_in()?,
            Service::AppStoreConnect => self.app_store_connect()?,
        };
        let ids = self.key_id.each("key_id", self.private_key.0.len())?;
        ids.iter().try_for_each(|id| is_public("key_id", id))?;
        let settings = ids.into_iter().zip(self.private_key.0.iter().cloned());
        Ok(settings
            .map(|(key_id, private_key)| {
                self.member(Settings { key_id, private_key, claims: claims.clone() })
            })
            .collect())
    }

    fn member(&self, settings: Settings) -> MemberSettings {
        let token = Token::new("apple", "", TokenSettings::Apple(settings));
        let reference = token.reference.clone();
        let member = match self.service {
            Service::SignIn => MemberSettings::per_request(PerRequest::Body(body::Settings::posted(
                "client_secret",
                reference,
            ))),
            Service::AppStoreConnect => MemberSettings::of(bearer::parts(reference)),
        };
        MemberSettings { tokens: vec![token], ..member }
    }

    /// "Creating a client secret" of Apple's documentation.
    fn sign_in(&self) -> Result<Vec<(&'static str, String)>, String> {
        self.has_no("issuer_id", &self.issuer_id)?;
        let team = self.needs("team_id", &self.team_id)?;
        let client = self.needs("client_id", &self.client_id)?;
        Ok(vec![("iss", team), ("sub", client), ("aud", SIGN_IN.to_owned())])
    }

    /// "Generating tokens for API requests" of Apple's documentation.
    fn app_store_connect(&self) -> Result<Vec<(&'static str, String)>, String> {
        self.has_no("team_id", &self.team_id)?;
        self.has_no("client_id", &self.client_id)?;
        let who = match &self.issuer_id {
            Some(_) => ("iss", self.needs("issuer_id", &self.issuer_id)?),
            None => ("sub", "user".to_owned()),
        };
        Ok(vec![who, ("aud", APP_STORE_CONNECT.to_owned())])
    }

    fn needs(&self, name: &str, value: &Option<String>) -> Result<String, String> {
        let value = value.clone().ok_or_else(|| format!("missing key `{name}`"))?;
        is_public(name, &value)?;
        Ok(value)
    }

    fn has_no(&self, name: &str, value: &Option<String>) -> Result<(), String> {
        match value {
            Some(_) => Err(format!("`{name}` is not used with this `service`")),
            None => Ok(()),
        }
    }
}

/// Ids of Apple are letters, digits, dots and hyphens: what does not look so is most likely a reference or a key.
fn is_public(name: &str, value: &str) -> Result<(), String> {
    let good = (1..=255).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if good { Ok(()) } else { Err(format!("`{name}` is an id as Apple shows it, and no secret reference")) }
}

impl Grant for Settings {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::key(vec![self.private_key.clone()])]
    }

    fn endpoint(&self) -> Option<&TokenEndpoint> {
        None
    }

    fn issue<'a>(
        &'a self,
        inputs: &'a Inputs<'a>,
        _: &'a TokenClient,
    ) -> BoxFuture<'a, Result<Issued, TokenFault>> {
        Box::pin(async move {
            let key = SigningKey::read(Algorithm::Es256, inputs.get(0).await?.value.expose())?;
            let lasting = Claims::lasting(SystemTime::now(), LIFE);
            let claims = self.claims.iter().fold(lasting, |claims, (name, value)| claims.text(name, value));
            let token = jwt::sign(&jwt::Header::new(Some(&self.key_id)), &claims, &key)?;
            Ok(Issued { token: token.as_bytes().to_vec().into(), life: Some(LIFE - BEGUN) })
        })
    }
}

#[cfg(test)]
mod tests;
