//! `basic`: `Authorization: Basic base64(username:password)` (RFC 7617). Each half is a secret reference; a user name that
//! is no secret may be given as `plain:<text>`, and an absent half is empty.
//!
//! ```yaml
//! credential: { basic: { username: env:STRIPE_KEY } }
//! credential: { basic: { username: "plain:AC0123", password: env:TWILIO_TOKEN } }
//! credential: { basic: { username: "plain:AC0123", password: [env:NEW_TOKEN, env:OLD_TOKEN] } }
//! ```

use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use serde::Deserialize;

use super::values::{self, ValueSettings, ValuesConfig};
use super::{Form, Half, Part};
use crate::credential::location::Location;
use crate::secret::reference::SecretRef;

/// `basic` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The user name: a secret reference, a list of them in an overlap (the new one first), or `plain:<text>` where it is no
    /// secret. Default: empty.
    #[serde(default)]
    pub username: ValuesConfig,
    /// The password, likewise. Default: empty.
    #[serde(default)]
    pub password: ValuesConfig,
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
    /// The parts of each member of the overlap; `Err` if it names no secret at all.
    pub fn alternatives(&self) -> Result<Vec<Vec<Part>>, String> {
        let part = |pair: Vec<ValueSettings>| {
            let mut halves = pair.into_iter().map(ValueSettings::into_half);
            let mut half = || halves.next().unwrap_or(Half::Plain(String::new()));
            let form = Form::Basic { username: half(), password: half() };
            vec![Part { location: Location::Header(AUTHORIZATION), form }]
        };
        Ok(values::alternatives(&[&self.username, &self.password])?.into_iter().map(part).collect())
    }
}
