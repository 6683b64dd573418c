//! What kinds write that may be a secret, public text, or an overlap of secrets.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::value::{SeqAccessDeserializer, StrDeserializer};
use serde::de::{SeqAccess, Visitor};

use super::basic::HalfConfig;
use super::{Half, Used};
use crate::credential::config::OneOrMany;
use crate::credential::rewrite::Secrets;
use crate::secret::ValueRules;
use crate::secret::reference::SecretRef;

/// A secret reference, a list of them in an overlap (new, old), or `plain:<text>`.
#[derive(Clone, Debug)]
pub struct ValuesConfig(Vec<Half>);

impl<'de> Deserialize<'de> for ValuesConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = ValuesConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret reference such as `env:KEY`, a list of them, or `plain:<text>`")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let half = HalfConfig::deserialize(StrDeserializer::new(text))?.half();
                Ok(ValuesConfig(vec![half]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                let list = OneOrMany::<SecretRef>::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(ValuesConfig(list.0.into_iter().map(Half::Secret).collect()))
            }
        }
        deserializer.deserialize_any(Values)
    }
}

impl Default for ValuesConfig {
    /// The empty text.
    fn default() -> Self {
        Self(vec![Half::Plain(String::new())])
    }
}

impl JsonSchema for ValuesConfig {
    fn schema_name() -> Cow<'static, str> {
        "SecretOrPlain".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let references = generator.subschema_for::<OneOrMany<SecretRef>>();
        json_schema!({
            "description": "a secret reference, a list of them in an overlap (the new one first), or `plain:<text>` for what is no secret",
            "anyOf": [references, { "type": "string", "pattern": "^plain:" }],
        })
    }
}

/// One alternative of it, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ValueSettings(Half);

impl ValueSettings {
    /// A secret, or a token that outgate gets itself.
    #[must_use]
    pub fn secret(reference: SecretRef) -> Self {
        Self(Half::Secret(reference))
    }

    /// The secret or the text.
    #[must_use]
    pub fn into_half(self) -> Half {
        self.0
    }

    /// The secret it is, if it is one.
    #[must_use]
    pub fn used(&self) -> Option<Used> {
        match &self.0 {
            Half::Secret(reference) => {
                Some(Used { reference: reference.clone(), rules: ValueRules::HeaderSafe })
            }
            Half::Plain(_) => None,
        }
    }

    /// What it is now. `position` counts the secrets, in the order of [`ValueSettings::used`].
    pub fn bytes<'a>(&'a self, secrets: &'a Secrets, position: &mut usize) -> &'a [u8] {
        match &self.0 {
            Half::Plain(text) => text.as_bytes(),
            Half::Secret(_) => {
                *position += 1;
                secrets.get(*position - 1)
            }
        }
    }
}

/// The alternatives of several values that belong together: the first of each, the second of each; where one has no more,
/// its last.
///
/// # Errors
/// None of them is a secret.
pub fn alternatives(values: &[&ValuesConfig]) -> Result<Vec<Vec<ValueSettings>>, String> {
    if values.iter().all(|value| value.0.iter().all(|half| matches!(half, Half::Plain(_)))) {
        return Err("names no secret".to_owned());
    }
    let most = values.iter().map(|value| value.0.len()).max().unwrap_or(0);
    let one = |choice: usize| {
        values
            .iter()
            .filter_map(|value| value.0.get(choice.min(value.0.len() - 1)).cloned())
            .map(ValueSettings)
            .collect()
    };
    Ok((0..most).map(one).collect())
}
