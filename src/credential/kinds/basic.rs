//! `basic`: `Authorization: Basic base64(username:password)` (RFC 7617). Each half is a secret reference; a user name that
//! is no secret may be given as `plain:<text>`, and an absent half is empty.
//!
//! ```yaml
//! credential: { basic: { username: env:STRIPE_KEY } }
//! credential: { basic: { username: "plain:AC0123", password: env:TWILIO_TOKEN } }
//! ```

use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Form, Half, Part};
use crate::credential::location::Location;
use crate::secret::reference::SecretRef;

/// `basic` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The user name: a secret reference, or `plain:<text>` where it is no secret. Default: empty.
    #[serde(default)]
    pub username: HalfConfig,
    /// The password, likewise. Default: empty.
    #[serde(default)]
    pub password: HalfConfig,
}

/// A secret reference, or `plain:<text>`.
#[derive(Clone, Debug, Default)]
pub struct HalfConfig(Option<Half>);

impl<'de> Deserialize<'de> for HalfConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Some(plain) = text.strip_prefix("plain:") {
            if plain.contains(':') || plain.bytes().any(|byte| byte.is_ascii_control()) {
                return Err(serde::de::Error::custom(
                    "a user name holds neither `:` nor control characters (RFC 7617)",
                ));
            }
            return Ok(Self(Some(Half::Plain(plain.to_owned()))));
        }
        let reference = text.parse::<SecretRef>().map_err(serde::de::Error::custom)?;
        Ok(Self(Some(Half::Secret(reference))))
    }
}

impl JsonSchema for HalfConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "BasicHalf".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "a secret reference, or `plain:<text>` for what is no secret" })
    }
}

impl HalfConfig {
    /// What it says; nothing where it is absent.
    #[must_use]
    pub fn half(&self) -> Half {
        self.0.clone().unwrap_or_else(|| Half::Plain(String::new()))
    }
}

impl Config {
    /// The parts of this credential, or nothing if it names no secret at all.
    pub fn parts(&self) -> Option<Vec<Part>> {
        let (username, password) = (self.username.half(), self.password.half());
        if matches!((&username, &password), (Half::Plain(_), Half::Plain(_))) {
            return None;
        }
        Some(vec![Part {
            location: Location::Header(AUTHORIZATION),
            form: Form::Basic { username, password },
        }])
    }
}
