//! The fields that tell a quota: how many are left, and when there are more.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::message::quantity::TimeSpan;
use crate::resilience::mistake::Mistakes;
use crate::resilience::responses::config::header_name;
use crate::resilience::responses::format::Format;

/// Sets of fields that one provider may send.
const MOST_SETS: usize = 4;

/// The longest name in a field, and the shortest time after which one asks.
const MOST_USED_NAME: usize = 64;
const SHORTEST_ASK: Duration = Duration::from_secs(1);

/// One set of fields.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FieldSetConfig {
    /// How many are left. Required, or `used_of_limit`.
    pub remaining: Option<String>,
    /// How many there are in all. Default: not known.
    pub limit: Option<String>,
    /// A field that tells both at once, as how many were used of how many: `18/5000`. Default: none.
    pub used_of_limit: Option<String>,
    /// The name before it, where that field tells several things: `api-usage` of `api-usage=18/5000; per-app=17/250`. Default:
    /// none; then the field holds `18/5000` alone.
    pub used_name: Option<String>,
    /// When there are more. Required, or `ask_after`.
    pub reset: Option<String>,
    /// How `reset` is written; never guessed. Required with `reset`.
    pub reset_format: Option<Format>,
    /// Where the provider does not tell when there are more: how long after the last answer one request asks. Default: none.
    pub ask_after: Option<TimeSpan>,
}

/// `headers:` one set or a list of sets.
#[derive(Clone, Debug)]
pub struct HeadersConfig {
    sets: Vec<FieldSetConfig>,
    listed: bool,
}

impl<'de> Deserialize<'de> for HeadersConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeadersVisitor;
        impl<'de> de::Visitor<'de> for HeadersVisitor {
            type Value = HeadersConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`{ remaining, limit, reset, reset_format }`, or a list of them")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<HeadersConfig, A::Error> {
                let set = FieldSetConfig::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(HeadersConfig { sets: vec![set], listed: false })
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<HeadersConfig, A::Error> {
                let sets = Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))?;
                Ok(HeadersConfig { sets, listed: true })
            }
        }
        deserializer.deserialize_any(HeadersVisitor)
    }
}

impl JsonSchema for HeadersConfig {
    fn schema_name() -> Cow<'static, str> {
        "QuotaHeaders".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let set = generator.subschema_for::<FieldSetConfig>();
        json_schema!({ "anyOf": [set, { "type": "array", "items": set, "minItems": 1, "maxItems": MOST_SETS }] })
    }
}

/// One set of fields, as true.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldSet {
    /// How many are left.
    pub left: LeftField,
    /// When there are more.
    pub reset: ResetField,
}

/// What tells how many are left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeftField {
    /// A field with the number.
    Remaining {
        /// Its name.
        name: HeaderName,
        /// The field with how many there are in all.
        limit: Option<HeaderName>,
    },
    /// A field with how many were used of how many.
    Used {
        /// Its name.
        name: HeaderName,
        /// The name before the two numbers.
        of: Option<Box<str>>,
    },
}

/// What tells when there are more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResetField {
    /// A field, and how it is written.
    Told(HeaderName, Format),
    /// Nothing: one asks after so long.
    AskAfter(Duration),
}

impl FieldSet {
    /// What the meter is called: the field, or the name in it.
    pub fn name(&self) -> &str {
        match &self.left {
            LeftField::Used { of: Some(of), .. } => of,
            _ => self.field().as_str(),
        }
    }

    /// The field that tells how many are left.
    pub fn field(&self) -> &HeaderName {
        match &self.left {
            LeftField::Remaining { name, .. } | LeftField::Used { name, .. } => name,
        }
    }
}

impl fmt::Display for FieldSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.left {
            LeftField::Remaining { name, limit: None } => write!(f, "{name}")?,
            LeftField::Remaining { name, limit: Some(limit) } => write!(f, "{name} of {limit}")?,
            LeftField::Used { name, of: None } => write!(f, "{name} (used of limit)")?,
            LeftField::Used { name, of: Some(of) } => write!(f, "{name} (used of limit of {of})")?,
        }
        match &self.reset {
            ResetField::Told(name, format) => write!(f, ", {name} ({})", format.as_str()),
            ResetField::AskAfter(span) => write!(f, ", asking after {}s", span.as_secs_f64()),
        }
    }
}

impl HeadersConfig {
    pub(super) fn compile(&self, mistakes: &mut Mistakes) -> Vec<FieldSet> {
        if self.sets.is_empty() || self.sets.len() > MOST_SETS {
            mistakes.add("headers", format!("one to {MOST_SETS} sets of fields"));
        }
        let mut compiled: Vec<FieldSet> = Vec::new();
        for (place, set) in self.sets.iter().enumerate() {
            let at = if self.listed { format!("headers.{place}") } else { "headers".to_owned() };
            let Some(set) = set.compile(&at, mistakes) else { continue };
            if compiled.iter().any(|other| other.name() == set.name()) {
                let key = if self.sets[place].remaining.is_some() { "remaining" } else { "used_of_limit" };
                mistakes.add(&format!("{at}.{key}"), "this field is in the list already");
            }
            compiled.push(set);
        }
        compiled
    }
}

impl FieldSetConfig {
    fn compile(&self, at: &str, mistakes: &mut Mistakes) -> Option<FieldSet> {
        let mut name = |key: &str, value: &Option<String>| {
            value.as_deref().and_then(|name| header_name(name, &format!("{at}.{key}"), mistakes))
        };
        let remaining = name("remaining", &self.remaining);
        let limit = name("limit", &self.limit);
        let used = name("used_of_limit", &self.used_of_limit);
        let reset = name("reset", &self.reset);
        self.check_left(at, mistakes);
        self.check_reset(at, mistakes);
        let named: Vec<_> = [&remaining, &limit, &used, &reset].into_iter().flatten().collect();
        if named.iter().enumerate().any(|(place, name)| named[..place].contains(name)) {
            mistakes.add(at, "one field cannot mean two things");
        }
        let left = match (remaining, used) {
            (Some(name), None) => LeftField::Remaining { name, limit },
            (None, Some(name)) => LeftField::Used { name, of: self.used_name.as_deref().map(Into::into) },
            _ => return None,
        };
        let reset = match self.ask_after {
            Some(span) => ResetField::AskAfter(span.duration()),
            None => ResetField::Told(reset?, self.reset_format?),
        };
        Some(FieldSet { left, reset })
    }

    fn check_left(&self, at: &str, mistakes: &mut Mistakes) {
        let at = |key: &str| format!("{at}.{key}");
        match (&self.remaining, &self.used_of_limit) {
            (None, None) => {
                let hint = "a wait that comes with a refusal alone stands in `responses`, as `wait`";
                mistakes.hint(&at("remaining"), "the field that says how many are left is missing", hint);
            }
            (Some(_), Some(_)) => {
                let message = "what is left is told by `remaining` or by `used_of_limit`, not by both";
                mistakes.hint(&at("used_of_limit"), message, "a list of two sets, where it is two things");
            }
            (None, Some(_)) if self.limit.is_some() => {
                mistakes.add(&at("limit"), "`used_of_limit` tells the limit itself");
            }
            _ => {}
        }
        let Some(name) = &self.used_name else { return };
        if self.used_of_limit.is_none() {
            mistakes.add(&at("used_name"), "`used_name` is a name in the field `used_of_limit`");
        }
        let fits = |byte: u8| byte.is_ascii_graphic() && !b"=,;\"".contains(&byte);
        if name.is_empty() || name.len() > MOST_USED_NAME || !name.bytes().all(fits) {
            let hint = "what stands before `=`, such as `api-usage`";
            mistakes.hint(&at("used_name"), "not a name in a field", hint);
        }
    }

    fn check_reset(&self, at: &str, mistakes: &mut Mistakes) {
        let at = |key: &str| format!("{at}.{key}");
        if let Some(span) = self.ask_after {
            for (key, said) in
                [("reset", self.reset.is_some()), ("reset_format", self.reset_format.is_some())]
            {
                if said {
                    mistakes.add(&at(key), "`ask_after` is for a provider that tells no reset");
                }
            }
            if span.duration() < SHORTEST_ASK {
                mistakes.hint(&at("ask_after"), "asking all the time is no hold", "1s or more");
            }
            return;
        }
        if self.reset.is_none() {
            let hint = "`ask_after: 5m`, where the provider does not tell it";
            mistakes.hint(&at("reset"), "the field that says when there are more is missing", hint);
        }
        if self.reset_format.is_none() && (self.reset.is_some() || self.used_of_limit.is_none()) {
            let hint = "epoch_s, epoch_ms, delta_s, delta_ms, iso8601, http_date or duration";
            mistakes.hint(&at("reset_format"), "the format of a reset is never guessed", hint);
        }
    }
}
