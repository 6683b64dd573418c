//! `quota:` as written in the policy, and as true.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::message::quantity::{Ratio, TimeSpan};
use crate::resilience::mistake::Mistakes;
use crate::resilience::mode::Mode;
use crate::resilience::pointer::Pointer;
use crate::resilience::responses::config::header_name;
use crate::resilience::responses::format::Format;

/// Sets of fields that one provider may send.
const MOST_SETS: usize = 4;
/// The longest queue of one key.
const MOST_QUEUED: u32 = 100_000;
/// The longest name in a field, and the shortest time after which one asks.
const MOST_USED_NAME: usize = 64;
const SHORTEST_ASK: Duration = Duration::from_secs(1);
/// What `bucket` may be.
const BUCKETS: &str =
    "`host`, `route`, `path`, `{ header: X-RateLimit-Resource }`, or `{ field: /model }` of the request";
/// The longest hold.
const LONGEST_HOLD: Duration = Duration::from_secs(31 * 86_400);

/// What is learned from the provider's answers, and kept before it has to say 429.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaConfig {
    /// Whether anything is learned and kept. Default: true.
    pub learn: Option<bool>,
    /// Stop at this many left, until the reset: a number, or a part of the limit such as `10%`. Default: 0.
    pub reserve: Option<ReserveConfig>,
    /// The fields that tell the quota: one set, or a list where the provider counts several things (requests, tokens).
    /// Default: none; the IETF `RateLimit` fields and `Retry-After` are always read.
    pub headers: Option<HeadersConfig>,
    /// What one quota covers, with the credential: `host`, `route`, `path` (the method and the first three segments of the
    /// path), `{ header: X-RateLimit-Resource }`, or `{ field: /model }` of a JSON request. Default: `host`.
    pub bucket: Option<BucketConfig>,
    /// What happens to a request while the quota is held: `wait` or `reject` (429). Default: `wait`.
    pub on_excess: Option<QuotaExcess>,
    /// How long a request may wait; the deadline bounds it too. Default: 5s.
    pub max_wait: Option<TimeSpan>,
    /// How many requests of one key may wait. Default: 1000.
    pub max_queue: Option<u32>,
    /// The longest hold: a reset beyond it is counted and ignored, a wait beyond it is cut. Default: 1h.
    pub max_hold: Option<TimeSpan>,
    /// `shadow`: what would wait or be refused is counted and logged, and passes. Default: `enforce`.
    pub mode: Option<Mode>,
}

/// What happens while a quota is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QuotaExcess {
    /// Requests wait, first in first out.
    #[default]
    Wait,
    /// They are answered with 429 at once.
    Reject,
}

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

/// `bucket:` what one quota covers.
#[derive(Clone, Debug)]
pub enum BucketConfig {
    /// One for each host.
    Host,
    /// One for each route.
    Route,
    /// One for each method and beginning of a path.
    Path,
    /// Named by the answers or by the request itself.
    Named(BucketName),
}

/// What names a bucket; one of the two.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketName {
    /// The field of the answers that names the bucket. Default: none.
    pub header: Option<String>,
    /// The text in the JSON body of the request that names it, as a JSON Pointer through maps (`/model`). It is looked for in the
    /// first 64 KiB, and shown in `/status` and metrics. Without one the request is of the host's bucket. Default: none.
    pub field: Option<String>,
}

impl<'de> Deserialize<'de> for BucketConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BucketVisitor;
        impl<'de> de::Visitor<'de> for BucketVisitor {
            type Value = BucketConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(BUCKETS)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<BucketConfig, E> {
                match text {
                    "host" => Ok(BucketConfig::Host),
                    "route" => Ok(BucketConfig::Route),
                    "path" => Ok(BucketConfig::Path),
                    _ => Err(E::custom(format!("expected {BUCKETS}"))),
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<BucketConfig, A::Error> {
                let name = BucketName::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(BucketConfig::Named(name))
            }
        }
        deserializer.deserialize_any(BucketVisitor)
    }
}

impl JsonSchema for BucketConfig {
    fn schema_name() -> Cow<'static, str> {
        "QuotaBucket".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = generator.subschema_for::<BucketName>();
        json_schema!({ "anyOf": [{ "enum": ["host", "route", "path"] }, name] })
    }
}

/// The quota of a route, as true.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QuotaSettings {
    /// Whether anything is learned and kept; if not, the route needs no such layer.
    pub learn: bool,
    /// What is kept back.
    pub reserve: ReserveConfig,
    /// The fields that tell the quota, besides the IETF's.
    pub fields: Vec<FieldSet>,
    /// What one quota covers.
    pub bucket: Bucket,
    /// What happens while it is held.
    pub on_excess: QuotaExcess,
    /// How long a request may wait.
    pub max_wait: Duration,
    /// How many requests of one key may wait.
    pub max_queue: u32,
    /// The longest hold.
    pub max_hold: Duration,
    /// Whether refusals are real.
    pub mode: Mode,
}

impl Default for QuotaSettings {
    /// What a provider has when the policy says nothing.
    fn default() -> Self {
        Self {
            learn: true,
            reserve: ReserveConfig::Count(0),
            fields: Vec::new(),
            bucket: Bucket::Host,
            on_excess: QuotaExcess::Wait,
            max_wait: Duration::from_secs(5),
            max_queue: 1000,
            max_hold: Duration::from_secs(3600),
            mode: Mode::Enforce,
        }
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
            LeftField::Remaining { name, .. } => write!(f, "{name}")?,
            LeftField::Used { name, of: None } => write!(f, "{name} (used of limit)")?,
            LeftField::Used { name, of: Some(of) } => write!(f, "{name} (used of limit of {of})")?,
        }
        match &self.reset {
            ResetField::Told(name, format) => write!(f, ", {name} ({})", format.as_str()),
            ResetField::AskAfter(span) => write!(f, ", asking after {}s", span.as_secs_f64()),
        }
    }
}

/// What one quota covers, as true.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// One for each host.
    Host,
    /// One for each route.
    Route,
    /// One for each method and beginning of a path.
    Path,
    /// Named by a field of the answers.
    Header(HeaderName),
    /// Named by a text in the JSON body of the request.
    Field(Pointer),
}

impl fmt::Display for ReserveConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Share(share) => write!(f, "{share}"),
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Route => f.write_str("route"),
            Self::Path => f.write_str("path"),
            Self::Header(name) => write!(f, "header {name}"),
            Self::Field(pointer) => write!(f, "field {} of the request", pointer.as_str()),
        }
    }
}

impl QuotaConfig {
    /// Checks what was written and fills in the defaults; places of mistakes are below `quota`.
    pub fn compile(&self, mistakes: &mut Mistakes) -> QuotaSettings {
        let defaults = QuotaSettings::default();
        let settings = QuotaSettings {
            learn: self.learn.unwrap_or(defaults.learn),
            reserve: self.reserve.unwrap_or(defaults.reserve),
            fields: self.headers.as_ref().map(|headers| headers.compile(mistakes)).unwrap_or_default(),
            bucket: self.bucket.as_ref().map_or(Bucket::Host, |bucket| bucket.compile(mistakes)),
            on_excess: self.on_excess.unwrap_or_default(),
            max_wait: self.max_wait.map_or(defaults.max_wait, Duration::from),
            max_queue: self.max_queue.unwrap_or(defaults.max_queue),
            max_hold: self.max_hold.map_or(defaults.max_hold, Duration::from),
            mode: self.mode.unwrap_or_default(),
        };
        settings.check(mistakes);
        settings
    }
}

impl QuotaSettings {
    fn check(&self, mistakes: &mut Mistakes) {
        if matches!(self.reserve, ReserveConfig::Share(share) if share >= Ratio::from_percent(100)) {
            let hint = "less than 100%, such as `10%`";
            mistakes.hint("reserve", "the reserve is the whole limit: nothing would be sent", hint);
        }
        if self.max_hold.is_zero() || self.max_hold > LONGEST_HOLD {
            mistakes.hint("max_hold", "not a hold that makes sense", "more than 0s and at most 31d");
        }
        if self.on_excess == QuotaExcess::Wait {
            let hint = "`on_excess: reject` refuses at once";
            if self.max_wait.is_zero() {
                mistakes.hint("max_wait", "waiting for no time is refusing", hint);
            }
            if self.max_queue == 0 {
                mistakes.hint("max_queue", "nothing can wait in an empty queue", hint);
            }
        }
        let longest = self.fields.iter().filter_map(|set| match set.reset {
            ResetField::AskAfter(span) => Some(span),
            ResetField::Told(..) => None,
        });
        if longest.max().is_some_and(|span| span > self.max_hold) {
            let hint = "a longer `max_hold`, or a shorter `ask_after`";
            mistakes.hint("max_hold", "`ask_after` holds for longer than that", hint);
        }
        if self.max_queue > MOST_QUEUED {
            mistakes.add("max_queue", format!("at most {MOST_QUEUED}"));
        }
    }
}

impl HeadersConfig {
    fn compile(&self, mistakes: &mut Mistakes) -> Vec<FieldSet> {
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

impl BucketConfig {
    fn compile(&self, mistakes: &mut Mistakes) -> Bucket {
        match self {
            Self::Host => Bucket::Host,
            Self::Route => Bucket::Route,
            Self::Path => Bucket::Path,
            Self::Named(name) => name.compile(mistakes).unwrap_or(Bucket::Host),
        }
    }
}

impl BucketName {
    fn compile(&self, mistakes: &mut Mistakes) -> Option<Bucket> {
        match (&self.header, &self.field) {
            (Some(name), None) => header_name(name, "bucket.header", mistakes).map(Bucket::Header),
            (None, Some(text)) => {
                let pointer = Pointer::parse(text).filter(|pointer| pointer.keys().is_some());
                if pointer.is_none() {
                    let message = "not a JSON Pointer (RFC 6901) that leads through maps to one place";
                    mistakes.hint("bucket.field", message, "such as `/model`");
                }
                pointer.map(Bucket::Field)
            }
            (header, _) => {
                let both = "a bucket is named by the answers or by the request, not by both";
                let none = "nothing says what names the bucket";
                let message = if header.is_some() { both } else { none };
                mistakes.hint("bucket", message, "`header` or `field`");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(yaml: &str) -> (QuotaSettings, Vec<String>) {
        let config: QuotaConfig = serde_yaml::from_str(yaml).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = config.compile(&mut mistakes);
        (settings, mistakes.into_vec().into_iter().map(|mistake| mistake.message.into_owned()).collect())
    }

    #[test]
    fn everything_and_nothing() {
        assert_eq!(compiled("{}"), (QuotaSettings::default(), vec![]));
        let (settings, mistakes) = compiled(
            "
learn: true
reserve: 10%
headers:
  - { remaining: x-ratelimit-remaining-requests, limit: x-ratelimit-limit-requests, reset: x-ratelimit-reset-requests, reset_format: duration }
  - { remaining: x-ratelimit-remaining-tokens, reset: x-ratelimit-reset-tokens, reset_format: duration }
bucket: { header: X-RateLimit-Resource }
on_excess: reject
max_wait: 1s
max_queue: 5
max_hold: 10m
mode: shadow
",
        );
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(settings.fields.len(), 2);
        let (used, mistakes) = compiled(
            "headers: [{ used_of_limit: A, used_name: x, ask_after: 5m }, { used_of_limit: A, used_name: y, reset: B, reset_format: delta_s }]",
        );
        assert_eq!(mistakes, [""; 0]);
        let shown: Vec<_> = used.fields.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            ["a (used of limit of x), asking after 300s", "a (used of limit of y), b (delta_s)"]
        );
        assert!(matches!(settings.bucket, Bucket::Header(_)));
        assert!(settings.mode.is_shadow());
    }

    #[test]
    fn every_key_has_a_description() {
        let schema = schemars::schema_for!(QuotaConfig);
        let properties = schema.get("properties").and_then(|value| value.as_object()).unwrap();
        assert_eq!(properties.len(), 9);
        assert!(properties.values().all(|property| property.get("description").is_some()), "{properties:?}");
    }

    #[test]
    fn mistakes_are_told() {
        for (yaml, message) in [
            ("reserve: 100%", "the whole limit"),
            ("max_hold: 0s", "not a hold"),
            ("max_hold: 32d", "not a hold"),
            ("max_wait: 0s", "waiting for no time"),
            ("max_queue: 0", "empty queue"),
            ("max_queue: 1000000", "at most 100000"),
            ("headers: { remaining: a, reset: b }", "never guessed"),
            ("headers: { reset: b, reset_format: delta_s }", "how many are left"),
            ("headers: { remaining: b, reset_format: delta_s }", "when there are more"),
            ("headers: { remaining: a, reset: a, reset_format: delta_s }", "two things"),
            ("headers: []", "one to 4 sets"),
            ("headers: { used_of_limit: a }", "when there are more"),
            ("headers: { used_of_limit: a, reset: b }", "never guessed"),
            ("headers: { used_of_limit: a, remaining: b, ask_after: 1m }", "not by both"),
            ("headers: { used_of_limit: a, limit: b, ask_after: 1m }", "tells the limit itself"),
            ("headers: { used_of_limit: 'a b', ask_after: 1m }", "not the name"),
            ("headers: { used_of_limit: a, used_name: 'x=y', ask_after: 1m }", "not a name in a field"),
            ("headers: { used_of_limit: a, used_name: '', ask_after: 1m }", "not a name in a field"),
            ("headers: { remaining: a, used_name: x, ask_after: 1m }", "a name in the field"),
            ("headers: { remaining: a, reset: b, ask_after: 1m }", "tells no reset"),
            ("headers: { remaining: a, reset_format: delta_s, ask_after: 1m }", "tells no reset"),
            ("headers: { remaining: a, ask_after: 0s }", "asking all the time"),
            ("{ max_hold: 1m, headers: { remaining: a, ask_after: 2m } }", "holds for longer"),
            (
                "headers: [{ used_of_limit: a, ask_after: 1m }, { used_of_limit: a, ask_after: 2m }]",
                "in the list already",
            ),
            ("headers: { remaining: 'a b', reset: b, reset_format: delta_s }", "not the name"),
            ("bucket: { header: 'a b' }", "not the name"),
            ("bucket: { field: model }", "not a JSON Pointer"),
            ("bucket: { field: '' }", "not a JSON Pointer"),
            ("bucket: { field: '/messages/*/role' }", "not a JSON Pointer"),
            ("bucket: { header: X-A, field: /model }", "not by both"),
            ("bucket: {}", "nothing says"),
        ] {
            let (_, mistakes) = compiled(yaml);
            assert!(mistakes.iter().any(|mistake| mistake.contains(message)), "{yaml}: {mistakes:?}");
        }
        for yaml in [
            "reserve: -1",
            "reserve: 1.5",
            "reserve: ten",
            "bucket: all",
            "bucket: { fields: /model }",
            "headers: x",
            "learn: 1",
            "burst: 1",
        ] {
            assert!(serde_yaml::from_str::<QuotaConfig>(yaml).is_err(), "{yaml}");
        }
        assert_eq!(compiled("{ on_excess: reject, max_wait: 0s, max_queue: 0 }").1, [""; 0]);
    }
}
