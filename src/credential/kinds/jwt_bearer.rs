//! `jwt_bearer`: a JWT that outgate signs is exchanged for a token (RFC 7523 section 2.1), or without `token_url` is the
//! token itself; sent as `Authorization: Bearer`.
//!
//! ```yaml
//! credential:
//!   jwt_bearer:
//!     token_url: https://login.salesforce.com/services/oauth2/token
//!     key: file:/run/secrets/salesforce.pem
//!     issuer: plain:3MVG9example
//!     subject: plain:integration@example.com
//!     audience: https://login.salesforce.com
//!     lifetime: 2h
//! ---
//! credential:                              # the JWT itself, with its application in a claim of its own (Vonage)
//!   jwt_bearer:
//!     key: file:/run/secrets/vonage.pem
//!     issuer: env:VONAGE_APPLICATION
//!     issuer_claim: application_id
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Half, MemberSettings, bearer};
use crate::credential::config::OneOrMany;
use crate::credential::jwt::{self, Algorithm, Claims, Header, SigningKey};
use crate::credential::per_key::PerKey;
use crate::credential::token::client::{AuthStyle, ClientAuth, ClientKeyConfig, IdConfig, Written};
use crate::credential::token::endpoint::{TokenClient, TokenEndpoint, TokenUrl};
use crate::credential::token::{Extra, Grant, Input, Inputs, Issued, Token, TokenSettings};
use crate::message::quantity::TimeSpan;
use crate::secret::TokenFault;
use crate::secret::form::Form;
use crate::secret::reference::SecretRef;

/// RFC 7523 section 2.1.
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// What a JWT lasts where nothing is said.
const ASSERTION: Duration = Duration::from_secs(300);
/// What a JWT may last at most; peers refuse more.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What a JWT must last at least: it says that it was issued a minute ago.
const SHORTEST: Duration = Duration::from_secs(120);

/// `jwt_bearer` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The token endpoint: `https`, or `http` on loopback. Default: none; then the JWT itself is the token.
    pub token_url: Option<TokenUrl>,
    /// The private key: PEM (PKCS#8, PKCS#1, SEC1), not encrypted; or a list in an overlap, the new one first.
    pub key: OneOrMany<SecretRef>,
    /// RS256, PS256, ES256, EdDSA, or HS256 with the secret itself as the key. Default: RS256.
    pub algorithm: Option<Algorithm>,
    /// The id by which the provider finds the key (`kid`); or a list with one for each of `key`.
    pub key_id: Option<PerKey<String>>,
    /// Who signs (`iss`): a secret reference, or `plain:<text>`. Required with `token_url`.
    pub issuer: Option<IdConfig>,
    /// The claim in which the issuer stands, where the JWT itself is the token: `application_id` (Vonage). Default: `iss`.
    pub issuer_claim: Option<String>,
    /// Who it is about (`sub`), likewise. Default: not said.
    pub subject: Option<IdConfig>,
    /// Who it is for (`aud`). Default: the token endpoint's URL. Without `token_url` it is required, unless the issuer stands in a
    /// claim of its own.
    pub audience: Option<String>,
    /// Further claims, such as `scope`; no secrets.
    #[serde(default)]
    pub claims: BTreeMap<String, String>,
    /// From the JWT's `iat`, a minute ago, to its `exp`: 2m to 24h. Default: 5m.
    pub assertion_lifetime: Option<TimeSpan>,
    /// What the token shall be good for (`scope` of the form). Default: what the provider gives.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The client's id, where the provider wants a client besides the JWT; or a list with one for each of `client_secret` or of the
    /// keys.
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
    /// How long a token lives where the provider does not say (Salesforce). Default: until it is refused.
    pub lifetime: Option<TimeSpan>,
    /// PEM file of the authorities that the endpoint is trusted by, in place of the system's.
    pub ca: Option<String>,
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    exchange: Option<Exchange>,
    key: Vec<SecretRef>,
    algorithm: Algorithm,
    /// One for each key, or none.
    key_id: Vec<String>,
    issuer: Option<Half>,
    issuer_claim: String,
    subject: Option<Half>,
    audience: Option<String>,
    claims: Vec<(String, String)>,
    lasts: Duration,
}

/// What happens to the JWT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Exchange {
    endpoint: TokenEndpoint,
    client: ClientAuth,
    extra: Extra,
    lifetime: Option<Duration>,
}

/// The usual claim of who signs (RFC 7519 section 4.1.1).
const ISSUER: &str = "iss";
/// The longest name of a claim.
const LONGEST_CLAIM: usize = 64;

/// Claims that have keys of their own here, or are outgate's.
const OWN: [&str; 6] = [ISSUER, "sub", "aud", "iat", "exp", "jti"];

impl Config {
    /// The members of this credential: one; or where the JWT itself is the token, one for each key. An endpoint that refuses a
    /// key says so when the token is got; a provider only when it is used.
    ///
    /// # Errors
    /// What is wrong.
    pub fn members(&self, directory: &Path) -> Result<Vec<MemberSettings>, String> {
        let settings = self.compile(directory)?;
        let member = |settings: Settings, from: &str| {
            bearer::of_token(Token::new("jwt_bearer", from, TokenSettings::JwtBearer(Box::new(settings))))
        };
        if let Some(exchange) = &settings.exchange {
            let from = exchange.endpoint.shown();
            return Ok(vec![member(settings, &from)]);
        }
        let from = settings.whom().trim_start_matches("https://").to_owned();
        let alone = |at: usize| {
            let (key, key_id) = (vec![settings.key[at].clone()], settings.key_id.get(at).cloned());
            Settings { key, key_id: key_id.into_iter().collect(), ..settings.clone() }
        };
        Ok((0..settings.key.len()).map(|at| member(alone(at), &from)).collect())
    }

    fn compile(&self, directory: &Path) -> Result<Settings, String> {
        let exchange = self.token_url.as_ref().map(|url| self.exchange(url, directory)).transpose()?;
        match exchange {
            Some(_) => self.check_exchanged()?,
            None => self.check_alone()?,
        }
        let issuer_claim = self.issuer_claim()?;
        if let Some(own) =
            self.claims.keys().find(|name| OWN.contains(&name.as_str()) || **name == issuer_claim)
        {
            return Err(format!(
                "`claims` holds `{own}`, which is written by a key of its own or by outgate"
            ));
        }
        let lasts = self.assertion_lifetime.map_or(ASSERTION, TimeSpan::duration);
        if !(SHORTEST..=LONGEST).contains(&lasts) {
            return Err("`assertion_lifetime` is 2m to 24h".to_owned());
        }
        let audience = self.audience.clone().or_else(|| Some(exchange.as_ref()?.endpoint.url_text()));
        if audience.is_none() && issuer_claim == ISSUER {
            return Err("without `token_url` the JWT names its `audience`".to_owned());
        }
        Ok(Settings {
            audience,
            issuer_claim,
            exchange,
            key: self.key.0.clone(),
            algorithm: self.algorithm.unwrap_or_default(),
            key_id: self
                .key_id
                .as_ref()
                .map_or(Ok(Vec::new()), |ids| ids.each("key_id", self.key.0.len()))?,
            issuer: self.issuer.as_ref().map(|issuer| issuer.0.clone()),
            subject: self.subject.as_ref().map(|subject| subject.0.clone()),
            claims: self.claims.clone().into_iter().collect(),
            lasts,
        })
    }

    fn exchange(&self, url: &TokenUrl, directory: &Path) -> Result<Exchange, String> {
        let endpoint = TokenEndpoint::compile(url, self.ca.as_deref(), directory)
            .map_err(|what| format!("`token_url`: {what}"))?;
        let client = Written {
            id: PerKey::written(self.client_id.as_ref()),
            secret: self.client_secret.as_ref(),
            key: self.client_key.as_ref(),
            style: self.auth_style,
        };
        Ok(Exchange {
            client: client.compile(&endpoint, false)?,
            endpoint,
            extra: Extra::compile(&self.extra)?
                .with("scope", (!self.scopes.is_empty()).then(|| self.scopes.join(" ")))?,
            lifetime: self.lifetime.map(TimeSpan::duration),
        })
    }

    /// The claim of who signs.
    fn issuer_claim(&self) -> Result<String, String> {
        let Some(name) = &self.issuer_claim else { return Ok(ISSUER.to_owned()) };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:/".contains(&byte);
        if name.is_empty() || name.len() > LONGEST_CLAIM || !name.bytes().all(fits) {
            return Err("`issuer_claim` is the name of a claim, such as `application_id`".to_owned());
        }
        if self.issuer.is_none() {
            return Err("`issuer_claim` says where the `issuer` stands, which is missing".to_owned());
        }
        if name != ISSUER && OWN.contains(&name.as_str()) {
            return Err(format!(
                "`issuer_claim` is `{name}`, which is written by a key of its own or by outgate"
            ));
        }
        Ok(name.clone())
    }

    /// What an exchange wants of the JWT (RFC 7523 section 3).
    fn check_exchanged(&self) -> Result<(), String> {
        if self.issuer.is_none() {
            return Err("with `token_url` the JWT names its `issuer`".to_owned());
        }
        if self.issuer_claim.is_some() {
            return Err("with `token_url` the issuer stands in `iss`: no `issuer_claim`".to_owned());
        }
        Ok(())
    }

    /// Keys that say something of an exchange, where there is none; and a JWT that says of nobody that it is his.
    fn check_alone(&self) -> Result<(), String> {
        if self.issuer.is_none() && self.subject.is_none() && self.claims.is_empty() {
            return Err("the JWT says of nobody that it is his: `issuer`, `subject` or `claims`".to_owned());
        }
        let keys = [
            ("scopes", !self.scopes.is_empty()),
            ("client_id", self.client_id.is_some()),
            ("client_secret", self.client_secret.is_some()),
            ("auth_style", self.auth_style.is_some()),
            ("client_key", self.client_key.is_some()),
            ("extra", !self.extra.is_empty()),
            ("lifetime", self.lifetime.is_some()),
            ("ca", self.ca.is_some()),
        ];
        match keys.into_iter().find(|(_, set)| *set) {
            Some((key, _)) => {
                Err(format!("`{key}` needs `token_url`: without that the JWT itself is the token"))
            }
            None => Ok(()),
        }
    }
}

impl Settings {
    /// In a few words, whom a JWT is for that is the token itself.
    fn whom(&self) -> &str {
        self.audience.as_deref().unwrap_or(&self.issuer_claim)
    }

    /// How many inputs stand before those of the JWT.
    fn first(&self) -> usize {
        self.exchange.as_ref().map_or(0, |exchange| exchange.client.inputs().len())
    }

    async fn sign(&self, inputs: &Inputs<'_>) -> Result<Zeroizing<String>, TokenFault> {
        let first = self.first();
        let key = inputs.get(first).await?;
        let key = SigningKey::read(self.algorithm, key.value.expose())?;
        let mut claims = Claims::lasting(SystemTime::now(), self.lasts).unique()?;
        if let Some(issuer) = &self.issuer {
            claims = claims.text(&self.issuer_claim, &IdConfig::text(issuer, inputs, first + 1).await?);
        }
        if let Some(audience) = &self.audience {
            claims = claims.text("aud", audience);
        }
        if let Some(subject) = &self.subject {
            let at = first + 1 + usize::from(matches!(self.issuer, Some(Half::Secret(_))));
            claims = claims.text("sub", &IdConfig::text(subject, inputs, at).await?);
        }
        for (name, value) in &self.claims {
            claims = claims.text(name, value);
        }
        jwt::sign(&Header::new(inputs.beside(&self.key_id).map(String::as_str)), &claims, &key)
    }
}

impl Grant for Settings {
    fn inputs(&self) -> Vec<Input> {
        let client = self.exchange.as_ref().map(|exchange| exchange.client.inputs()).unwrap_or_default();
        let ids = [self.issuer.as_ref(), self.subject.as_ref()].into_iter().flatten();
        let own = [Input::key(self.key.clone())].into_iter().chain(ids.filter_map(IdConfig::input));
        client.into_iter().chain(own).collect()
    }

    fn endpoint(&self) -> Option<&TokenEndpoint> {
        self.exchange.as_ref().map(|exchange| &exchange.endpoint)
    }

    fn issue<'a>(
        &'a self,
        inputs: &'a Inputs<'a>,
        client: &'a TokenClient,
    ) -> BoxFuture<'a, Result<Issued, TokenFault>> {
        Box::pin(async move {
            let jwt = self.sign(inputs).await?;
            let Some(exchange) = &self.exchange else {
                let life = self.lasts.saturating_sub(jwt::ISSUED_BEFORE);
                return Ok(Issued { token: jwt.as_bytes().to_vec().into(), life: Some(life) });
            };
            let form = exchange.extra.add_to(Form::grant(GRANT)).field("assertion", jwt.as_bytes());
            let (form, headers) = exchange.client.sign_in(inputs, form).await?;
            client.post(form, headers, true).await?.issued(exchange.lifetime)
        })
    }
}
