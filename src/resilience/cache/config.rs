//! `cache:` as written in the policy, and as true.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::message::quantity::{ByteSize, TimeSpan};
use crate::resilience::mistake::Mistakes;

/// Answers that are kept and used again (RFC 9111, a private cache).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Memory for kept answers, heads included. Default: 64MiB.
    pub max_size: Option<ByteSize>,
    /// The longest body that is kept. Default: 1MiB, or `max_size` where that is less.
    pub max_entry: Option<ByteSize>,
    /// How long an answer is fresh that does not say so itself. Default: null (a tenth of the time since its
    /// `Last-Modified`, at most a day; without one it is never fresh).
    pub default_ttl: Option<TimeSpan>,
    /// How long after it went stale an answer may still be used while the provider fails; an answer's own `stale-if-error`
    /// can shorten it. `off` or null: never. Default: 1h.
    #[serde(default)]
    pub stale_if_error: StaleIfError,
    /// How long after it went stale an answer is still used at once, and renewed in the background, where the answer has no
    /// `stale-while-revalidate` of its own. `0s`: never, not even where it has. Default: null (only where it has).
    pub stale_while_revalidate: Option<TimeSpan>,
    /// Whether identical requests wait for one answer. Default: true.
    pub coalesce: Option<bool>,
}

/// `stale_if_error:` a duration, `off` or null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaleIfError {
    /// Not written: one hour.
    #[default]
    Unset,
    /// Never.
    Off,
    /// So long.
    For(TimeSpan),
}

const EXPECTED: &str = "a duration such as `1h`, or `off`";

impl<'de> Deserialize<'de> for StaleIfError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> de::Visitor<'de> for Seen {
            type Value = StaleIfError;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_unit<E: de::Error>(self) -> Result<StaleIfError, E> {
                Ok(StaleIfError::Off)
            }

            fn visit_none<E: de::Error>(self) -> Result<StaleIfError, E> {
                Ok(StaleIfError::Off)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<StaleIfError, D::Error> {
                deserializer.deserialize_any(self)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StaleIfError, E> {
                match text {
                    "off" => Ok(StaleIfError::Off),
                    "never" | "none" | "no" | "false" => Err(E::custom("write `off` for never")),
                    _ => text.parse().map(StaleIfError::For).map_err(E::custom),
                }
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

impl JsonSchema for StaleIfError {
    fn schema_name() -> Cow<'static, str> {
        "StaleIfError".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let span = generator.subschema_for::<TimeSpan>();
        json_schema!({ "anyOf": [span, { "const": "off" }, { "type": "null" }] })
    }
}

/// A cache as compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheSettings {
    /// Memory for kept answers, in bytes.
    pub max_size: u64,
    /// The longest body that is kept, in bytes; at most `max_size`.
    pub max_entry: u64,
    /// How long an answer is fresh that does not say so itself.
    pub default_ttl: Option<Duration>,
    /// How long past its freshness an answer may stand in for a failure; none = never.
    pub stale_if_error: Option<Duration>,
    /// How long past its freshness an answer is used while it is renewed, where it does not say so itself; zero = never.
    pub stale_while_revalidate: Option<Duration>,
    /// Whether identical requests wait for one answer.
    pub coalesce: bool,
}

const MIB: u64 = 1 << 20;
const DEFAULT_SIZE: u64 = 64 * MIB;
const DEFAULT_ENTRY: u64 = MIB;
const DEFAULT_STALE_IF_ERROR: Duration = Duration::from_secs(3600);
/// It lives in memory, next to an app.
const LARGEST: u64 = 64 << 30;
/// Eight variants of a URL weigh less than the 4 GiB that one key can weigh.
const LARGEST_ENTRY: u64 = 256 * MIB;
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl CacheConfig {
    /// The settings; every wrong value is told.
    pub fn compile(&self, mistakes: &mut Mistakes) -> CacheSettings {
        let (max_size, max_entry) = self.sizes(mistakes);
        let default_ttl = self.default_ttl.map(TimeSpan::duration);
        if default_ttl.is_some_and(|ttl| ttl.is_zero()) {
            let hint = "leave it out: then only what says so itself is fresh";
            mistakes.hint("default_ttl", "no time at all", hint);
        }
        let stale_if_error = match self.stale_if_error {
            StaleIfError::Unset => Some(DEFAULT_STALE_IF_ERROR),
            StaleIfError::Off => None,
            StaleIfError::For(span) => Some(span.duration()),
        };
        if stale_if_error.is_some_and(|bound| bound.is_zero()) {
            mistakes.hint("stale_if_error", "no time at all", "write `off`");
        }
        let stale_while_revalidate = self.stale_while_revalidate.map(TimeSpan::duration);
        let spans = [
            ("default_ttl", default_ttl),
            ("stale_if_error", stale_if_error),
            ("stale_while_revalidate", stale_while_revalidate),
        ];
        for (key, span) in spans {
            if span.is_some_and(|span| span > LONGEST) {
                mistakes.hint(key, "longer than a year", "at most `365d`");
            }
        }
        CacheSettings {
            max_size,
            max_entry,
            default_ttl,
            stale_if_error,
            stale_while_revalidate,
            coalesce: self.coalesce.unwrap_or(true),
        }
    }

    fn sizes(&self, mistakes: &mut Mistakes) -> (u64, u64) {
        let max_size = self.max_size.map_or(DEFAULT_SIZE, ByteSize::bytes);
        let max_entry = self.max_entry.map_or(DEFAULT_ENTRY.min(max_size), ByteSize::bytes);
        if max_size == 0 {
            mistakes.hint("max_size", "nothing could be kept", "write `cache: off`");
        } else if max_size > LARGEST {
            mistakes.hint("max_size", "this cache lives in memory", "at most `64GiB`");
        }
        if self.max_entry.is_some_and(|size| size.bytes() == 0) {
            mistakes.hint("max_entry", "nothing could be kept", "write `cache: off`");
        } else if max_entry > LARGEST_ENTRY {
            mistakes.hint("max_entry", "such a body is better streamed", "at most `256MiB`");
        } else if max_entry > max_size {
            mistakes.add("max_entry", "an entry cannot be larger than the whole cache (`max_size`)");
        }
        (max_size, max_entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(json: &str) -> (CacheSettings, Vec<String>) {
        let config: CacheConfig = serde_json::from_str(json).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = config.compile(&mut mistakes);
        let told = mistakes.into_vec().into_iter().map(|mistake| format!("{:?}", mistake.at)).collect();
        (settings, told)
    }

    #[test]
    fn an_empty_map_takes_the_values_of_the_contract() {
        let (settings, mistakes) = compiled("{}");
        assert!(mistakes.is_empty());
        let expected = CacheSettings {
            max_size: 64 << 20,
            max_entry: 1 << 20,
            default_ttl: None,
            stale_if_error: Some(Duration::from_secs(3600)),
            stale_while_revalidate: None,
            coalesce: true,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn stale_if_error_can_be_off() {
        for (json, bound) in [
            (r#"{"stale_if_error": null}"#, None),
            (r#"{"stale_if_error": "off"}"#, None),
            (r#"{"stale_if_error": "5m"}"#, Some(Duration::from_secs(300))),
        ] {
            assert_eq!(compiled(json).0.stale_if_error, bound, "{json}");
        }
        let never = serde_json::from_str::<CacheConfig>(r#"{"stale_if_error": "never"}"#).unwrap_err();
        assert!(never.to_string().contains("write `off`"), "{never}");
        assert!(serde_json::from_str::<CacheConfig>(r#"{"stale_if_error": 3600}"#).is_err());
        assert!(serde_json::from_str::<CacheConfig>(r#"{"ttl": "1h"}"#).is_err());
    }

    #[test]
    fn every_wrong_value_is_told() {
        for (json, places) in [
            (r#"{"max_size": "0B", "max_entry": "1B"}"#, vec!["max_size", "max_entry"]),
            (r#"{"max_entry": "0B"}"#, vec!["max_entry"]),
            (r#"{"max_size": "1MiB", "max_entry": "2MiB"}"#, vec!["max_entry"]),
            (r#"{"max_size": "1TiB", "max_entry": "1GiB"}"#, vec!["max_size", "max_entry"]),
            (r#"{"default_ttl": "0s", "stale_if_error": "0s"}"#, vec!["default_ttl", "stale_if_error"]),
            (
                r#"{"default_ttl": "366d", "stale_if_error": "366d", "stale_while_revalidate": "366d"}"#,
                vec!["default_ttl", "stale_if_error", "stale_while_revalidate"],
            ),
            (r#"{"max_size": "64KiB"}"#, vec![]),
            (r#"{"stale_while_revalidate": "0s"}"#, vec![]),
        ] {
            let (_, told) = compiled(json);
            let expected: Vec<_> = places.iter().map(|place| format!("[Key({place:?})]")).collect();
            assert_eq!(told, expected, "{json}");
        }
        assert_eq!(compiled(r#"{"max_size": "64KiB"}"#).0.max_entry, 64 << 10);
    }
}
