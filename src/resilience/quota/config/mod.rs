//! `quota:` as written in the policy, and as true.

mod bucket;
mod field_set;
mod reserve;
mod template;

pub use bucket::{Bucket, BucketConfig};
pub use field_set::{FieldSet, HeadersConfig, LeftField, ResetField};
pub use reserve::ReserveConfig;

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::quantity::{Ratio, TimeSpan};
use crate::resilience::mistake::Mistakes;
use crate::resilience::mode::Mode;

/// The longest queue of one key.
const MOST_QUEUED: u32 = 100_000;
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
    /// path), `{ header: X-RateLimit-Resource }`, `{ field: /model }` of a JSON request, or templates of paths
    /// (`{ paths: ["/users/*/{part}"] }`). Default: `host`.
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
            ("bucket: { header: X-A, field: /model }", "not by two"),
            ("bucket: {}", "nothing says"),
            ("bucket: { paths: [/a], field: /model }", "not by two"),
            ("bucket: { paths: [] }", "one to 64"),
            ("bucket: { paths: [/a, a] }", "begins with"),
            ("bucket: { paths: ['/v*'] }", "a segment is"),
            ("bucket: { paths: ['/a/{x}', '/a/{y}'] }", "in the list already"),
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
