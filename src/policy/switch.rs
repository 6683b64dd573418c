//! A layer's settings, or `off`: the word removes what `defaults`, a preset or the provider gave.
//!
//! ```yaml
//! defaults: { retry: { attempts: 5 } }
//! providers:
//!   stripe: { hosts: [api.stripe.com], retry: off }
//! ```

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, de};

/// Settings, or `off`.
#[derive(Clone, Debug)]
pub enum Switch<T> {
    /// Not there, whatever lies below.
    Off,
    /// There, with these settings.
    On(T),
}

impl<T> Switch<T> {
    /// The settings, where there are any.
    pub fn on(&self) -> Option<&T> {
        match self {
            Self::Off => None,
            Self::On(settings) => Some(settings),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SwitchVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for SwitchVisitor<T> {
            type Value = Switch<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`off`, or its settings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Switch<T>, E> {
                if text == "off" {
                    Ok(Switch::Off)
                } else {
                    Err(E::custom("expected `off`, or its settings"))
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Switch<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Switch::On)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Switch<T>, A::Error> {
                T::deserialize(SeqAccessDeserializer::new(list)).map(Switch::On)
            }
        }
        deserializer.deserialize_any(SwitchVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Switch<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrOff", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let settings = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [{ "const": "off" }, settings] })
    }
}
