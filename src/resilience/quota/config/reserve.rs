//! How much of a quota is kept back.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::message::quantity::Ratio;

/// `reserve:` a number or a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReserveConfig {
    /// So many.
    Count(u64),
    /// A part of the limit.
    Share(Ratio),
}

impl<'de> Deserialize<'de> for ReserveConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReserveVisitor;
        impl de::Visitor<'_> for ReserveVisitor {
            type Value = ReserveConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number that is not negative, or a part of the limit such as `10%`")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<ReserveConfig, E> {
                Ok(ReserveConfig::Count(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ReserveConfig, E> {
                Ratio::from_str(text).map(ReserveConfig::Share).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(ReserveVisitor)
    }
}

impl JsonSchema for ReserveConfig {
    fn schema_name() -> Cow<'static, str> {
        "QuotaReserve".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let ratio = generator.subschema_for::<Ratio>();
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 0 }, ratio] })
    }
}

impl fmt::Display for ReserveConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Share(share) => write!(f, "{share}"),
        }
    }
}
