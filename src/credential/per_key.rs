//! What stands beside a key and belongs to it: its id, its thumbprint, the name of the client it is of.
//!
//! ```yaml
//! key: [file:/run/secrets/new.pem, file:/run/secrets/old.pem]
//! key_id: ["2026-06", "2026-01"]          # or one, for both
//! ```

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, SeqAccess, Visitor};

use super::config::{MOST, collect};

/// One for all keys of a list, or a list with one for each.
#[derive(Clone, Debug)]
pub struct PerKey<T>(Vec<T>);

impl<T> PerKey<T> {
    /// The same one for all keys.
    #[must_use]
    pub fn one(value: T) -> Self {
        Self(vec![value])
    }

    /// The same with other values.
    #[must_use]
    pub fn map<U>(&self, other: impl Fn(&T) -> U) -> PerKey<U> {
        PerKey(self.0.iter().map(other).collect())
    }
}

impl<T: Clone> PerKey<T> {
    /// One for each of `keys` keys. `name` is its key in the policy.
    ///
    /// # Errors
    /// It is a list of another length.
    pub fn each(&self, name: &str, keys: usize) -> Result<Vec<T>, String> {
        match &*self.0 {
            [one] => Ok(vec![one.clone(); keys]),
            all if all.len() == keys => Ok(all.to_vec()),
            all => Err(format!(
                "`{name}` is a list of {}, and of keys there are {keys}: write one for all of them, or one for each in their order",
                all.len()
            )),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for PerKey<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrList<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrList<T> {
            type Value = PerKey<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one text for all keys, or a list with one for each")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<PerKey<T>, E> {
                T::deserialize(text.into_deserializer()).map(|one| PerKey(vec![one]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<PerKey<T>, A::Error> {
                collect(list).map(PerKey)
            }
        }
        deserializer.deserialize_any(OneOrList(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for PerKey<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("PerKey_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": MOST }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_for_all_or_one_for_each() {
        let each = |text: &str, keys| {
            let written: PerKey<String> = serde_yaml::from_str(text).unwrap();
            written.each("key_id", keys)
        };
        assert_eq!(each("a", 1).unwrap(), ["a"]);
        assert_eq!(each("a", 3).unwrap(), ["a", "a", "a"]);
        assert_eq!(each("[a]", 2).unwrap(), ["a", "a"]);
        assert_eq!(each("[a, b]", 2).unwrap(), ["a", "b"]);
        for (text, keys) in [("[a, b]", 1), ("[a, b]", 3)] {
            let message = each(text, keys).unwrap_err();
            assert!(message.starts_with("`key_id` is a list of 2, and of keys there are "), "{message}");
        }
        for text in ["[]", "{}", "[[a]]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]"] {
            assert!(serde_yaml::from_str::<PerKey<String>>(text).is_err(), "{text}");
        }
    }
}
