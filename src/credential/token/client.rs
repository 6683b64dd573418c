//! How a client says who it is to a token endpoint: not at all but by name, with a secret in a header or in the form
//! (RFC 6749 section 2.3.1), or with a JWT that it signs (RFC 7523 section 2.2, `private_key_jwt`).
//!
//! ```yaml
//! client_id: plain:0oa1example
//! client_secret: env:CLIENT_SECRET          # basic, or with `auth_style: post` in the form
//! ---
//! client_id: plain:0oa1example
//! auth_style: private_key_jwt
//! client_key: { key: file:/run/secrets/client.pem, algorithm: RS256, key_id: "2026-01" }
//! ---
//! client_key: { key: [file:/run/secrets/new.pem, file:/run/secrets/old.pem], key_id: ["2026-06", "2026-01"] }
//! ```

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::endpoint::{TokenEndpoint, client_basic};
use super::{Input, Inputs};
use crate::credential::config::OneOrMany;
use crate::credential::jwt::{self, Algorithm, Claims, Header, SigningKey};
use crate::credential::kinds::Half;
use crate::credential::per_key::PerKey;
use crate::secret::TokenFault;
use crate::secret::form::Form;
use crate::secret::reference::SecretRef;

/// What an assertion lasts, from its `iat` on. Peers take five minutes; some take no more.
const ASSERTION: Duration = Duration::from_secs(300);
/// RFC 7523 section 2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How a client says who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthStyle {
    /// `Authorization: Basic`.
    #[default]
    Basic,
    /// `client_id` and `client_secret` in the form.
    Post,
    /// The same in one object of JSON, for endpoints that take no form (Square, Atlassian).
    Json,
    /// A JWT that the client signs with `client_key`; a secret never leaves outgate.
    PrivateKeyJwt,
}

/// The key that a client signs with.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientKeyConfig {
    /// The private key: PEM (PKCS#8, PKCS#1, SEC1), not encrypted; or a list in an overlap, the new one first.
    pub key: OneOrMany<SecretRef>,
    /// RS256, PS256, ES256, EdDSA; or HS256, whose key is the client's secret. Default: RS256.
    pub algorithm: Option<Algorithm>,
    /// The id by which the provider finds the key (`kid`); or a list with one for each of `key`.
    pub key_id: Option<PerKey<String>>,
    /// SHA-256 of the certificate in base64url (`x5t#S256`), where the provider finds the key by that (Entra ID); or a list with
    /// one for each of `key`.
    pub thumbprint: Option<PerKey<String>>,
    /// Who the JWT is for (`aud`). Default: the token endpoint's URL.
    pub audience: Option<String>,
}

/// A name that is no secret by itself: `plain:<text>`, or a secret reference.
#[derive(Clone, Debug)]
pub struct IdConfig(pub Half);

impl<'de> Deserialize<'de> for IdConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix("plain:") {
            Some(plain) if plain.is_empty() || plain.chars().any(char::is_control) => {
                Err(D::Error::custom("what stands behind `plain:` is empty or holds a control character"))
            }
            Some(plain) => Ok(Self(Half::Plain(plain.to_owned()))),
            None => Ok(Self(Half::Secret(text.parse().map_err(D::Error::custom)?))),
        }
    }
}

impl JsonSchema for IdConfig {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PublicId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "`plain:<text>`, or a secret reference",
        })
    }
}

impl IdConfig {
    /// The input of this name, where it is a reference.
    #[must_use]
    pub fn input(half: &Half) -> Option<Input> {
        Self::input_of(std::slice::from_ref(half))
    }

    /// The input of a name for each key, where they are references: all of them, or none.
    fn input_of(halves: &[Half]) -> Option<Input> {
        let references: Vec<_> = halves.iter().filter_map(Half::secret).cloned().collect();
        (!references.is_empty()).then(|| Input::text(references))
    }

    /// The name; `at` is the place of its input, if it is a reference.
    ///
    /// # Errors
    /// The secret is not there.
    pub async fn text(half: &Half, inputs: &Inputs<'_>, at: usize) -> Result<Zeroizing<String>, TokenFault> {
        match half {
            Half::Plain(text) => Ok(Zeroizing::new(text.clone())),
            Half::Secret(_) => {
                let version = inputs.get(at).await?;
                // The rules of its input let nothing pass but ASCII.
                Ok(Zeroizing::new(String::from_utf8_lossy(version.value.expose()).into_owned()))
            }
        }
    }
}

impl PerKey<IdConfig> {
    /// The names as they are written, for [`Written`].
    #[must_use]
    pub fn written(one: Option<&Self>) -> Option<PerKey<Half>> {
        one.map(|ids| ids.map(|id| id.0.clone()))
    }
}

/// What a policy says of a client; each kind has these keys.
pub struct Written<'a> {
    /// `client_id`.
    pub id: Option<PerKey<Half>>,
    /// `client_secret`.
    pub secret: Option<&'a OneOrMany<SecretRef>>,
    /// `client_key`.
    pub key: Option<&'a ClientKeyConfig>,
    /// `auth_style`.
    pub style: Option<AuthStyle>,
}

/// How a client says who it is, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientAuth {
    /// One for each of what it proves itself with; none for a client without a name.
    id: Vec<Half>,
    proof: Proof,
    /// What is posted is JSON.
    json: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Proof {
    /// A public client, or none.
    None,
    Basic(Vec<SecretRef>),
    Post(Vec<SecretRef>),
    Jwt(Assertion),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Assertion {
    key: Vec<SecretRef>,
    algorithm: Algorithm,
    /// Fields of the header, each with a value for each key.
    header: Vec<(&'static str, Vec<String>)>,
    audience: String,
}

impl Written<'_> {
    /// The client. `secret_needed`: whether the grant is for confidential clients alone.
    ///
    /// # Errors
    /// What is wrong or missing.
    pub fn compile(self, endpoint: &TokenEndpoint, secret_needed: bool) -> Result<ClientAuth, String> {
        let proof = match (self.style, self.secret, self.key) {
            (Some(AuthStyle::PrivateKeyJwt), None, Some(key)) => Proof::Jwt(key.compile(endpoint)?),
            (Some(AuthStyle::PrivateKeyJwt), Some(_), _) => {
                return Err(
                    "`auth_style: private_key_jwt` takes `client_key` in place of `client_secret`".into()
                );
            }
            (Some(AuthStyle::PrivateKeyJwt), None, None) => {
                return Err("`auth_style: private_key_jwt` needs `client_key`".into());
            }
            (_, _, Some(_)) => return Err("`client_key` is for `auth_style: private_key_jwt`".into()),
            (Some(AuthStyle::Post | AuthStyle::Json), Some(secret), None) => Proof::Post(secret.0.clone()),
            (_, Some(secret), None) => Proof::Basic(secret.0.clone()),
            (_, None, None) if secret_needed => {
                return Err("a client of this grant proves itself: `client_secret` is missing".into());
            }
            (_, None, None) => Proof::None,
        };
        let id = self.id.map_or(Ok(Vec::new()), |id| id.each("client_id", proof.keys()))?;
        if id.is_empty() && (secret_needed || proof != Proof::None) {
            return Err("`client_id` is missing".into());
        }
        if id.iter().any(|one| one.secret().is_some() != id[0].secret().is_some()) {
            return Err("`client_id` is a list of secrets, or of `plain:<text>`, and not of both".into());
        }
        Ok(ClientAuth { id, proof, json: self.style == Some(AuthStyle::Json) })
    }
}

impl Proof {
    /// How many there are of what the client proves itself with.
    fn keys(&self) -> usize {
        match self {
            Self::None => 1,
            Self::Basic(secrets) | Self::Post(secrets) => secrets.len(),
            Self::Jwt(assertion) => assertion.key.len(),
        }
    }
}

impl ClientKeyConfig {
    fn compile(&self, endpoint: &TokenEndpoint) -> Result<Assertion, String> {
        let mut header = Vec::new();
        for (field, name, values) in [
            ("kid", "client_key.key_id", &self.key_id),
            ("x5t#S256", "client_key.thumbprint", &self.thumbprint),
        ] {
            if let Some(values) = values {
                header.push((field, values.each(name, self.key.0.len())?));
            }
        }
        Ok(Assertion {
            key: self.key.0.clone(),
            algorithm: self.algorithm.unwrap_or_default(),
            header,
            audience: self.audience.clone().unwrap_or_else(|| endpoint.url_text()),
        })
    }
}

impl ClientAuth {
    /// The secrets it needs; they stand before those of the grant.
    #[must_use]
    pub fn inputs(&self) -> Vec<Input> {
        let proof = match &self.proof {
            Proof::None => None,
            Proof::Basic(secret) | Proof::Post(secret) => Some(Input::text(secret.clone())),
            Proof::Jwt(assertion) => Some(Input::key(assertion.key.clone())),
        };
        proof.into_iter().chain(IdConfig::input_of(&self.id)).collect()
    }

    /// Adds what says who the client is to a form and its fields.
    ///
    /// # Errors
    /// A secret is not there, or cannot be used.
    pub async fn sign_in(&self, inputs: &Inputs<'_>, form: Form) -> Result<(Form, HeaderMap), TokenFault> {
        let mut headers = HeaderMap::new();
        let form = if self.json { form.as_json() } else { form };
        let Some(id) = inputs.beside(&self.id) else { return Ok((form, headers)) };
        let id = IdConfig::text(id, inputs, usize::from(self.proof != Proof::None)).await?;
        let form = match &self.proof {
            Proof::None => form.field("client_id", id.as_bytes()),
            Proof::Basic(_) => {
                let secret = inputs.get(0).await?;
                headers.extend([client_basic(id.as_bytes(), secret.value.expose())?]);
                form
            }
            Proof::Post(_) => {
                let secret = inputs.get(0).await?;
                form.field("client_id", id.as_bytes()).field("client_secret", secret.value.expose())
            }
            Proof::Jwt(assertion) => {
                let key = inputs.get(0).await?;
                let jwt = assertion.sign(&id, inputs, key.value.expose())?;
                form.field("client_id", id.as_bytes())
                    .field("client_assertion_type", ASSERTION_TYPE.as_bytes())
                    .field("client_assertion", jwt.as_bytes())
            }
        };
        Ok((form, headers))
    }
}

impl Assertion {
    fn sign(&self, id: &str, inputs: &Inputs<'_>, key: &[u8]) -> Result<Zeroizing<String>, TokenFault> {
        let key = SigningKey::read(self.algorithm, key)?;
        let mut header = Header::new(None);
        for (name, values) in &self.header {
            if let Some(value) = inputs.beside(values) {
                header = header.field(name, value);
            }
        }
        let claims = Claims::lasting(SystemTime::now(), ASSERTION)
            .text("iss", id)
            .text("sub", id)
            .text("aud", &self.audience)
            .unique()?;
        jwt::sign(&header, &claims, &key)
    }
}
