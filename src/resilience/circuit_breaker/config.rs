//! `breaker:` as written in the policy.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};

use super::settings::{BreakerSettings, ErrorRate, Fallback, Rules, StaticAnswer};
use crate::message::headers::OWN_PREFIX;
use crate::message::quantity::{Ratio, TimeSpan};
use crate::resilience::mistake::Mistakes;
use crate::resilience::mode::Mode;

/// When a provider's host is left alone because it fails.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakerConfig {
    /// Opens after so many failures in a row. Default: 5.
    pub failures: Option<u32>,
    /// Opens at this part of failures; `off` (or null): only failures in a row count. Default: half of at least 20 requests in 30s.
    #[serde(default, deserialize_with = "switch")]
    pub error_rate: Option<ErrorRateSwitch>,
    /// How long it stays open the first time. Default: 30s.
    pub open_for: Option<TimeSpan>,
    /// How long it stays open at most: the time doubles while probes fail, and a `Retry-After` of the provider sets it. Default: 5m.
    pub max_open_for: Option<TimeSpan>,
    /// How it is tried out whether the provider is well again.
    pub half_open: Option<HalfOpenConfig>,
    /// What is answered while it is open: `{ status, headers, body }`, or `stale` (what the cache has, however old; needs `cache.stale_if_error`). Default: null, the app is told `breaker_open`.
    pub fallback: Option<FallbackConfig>,
    /// `shadow`: only counts and logs what it would refuse. Default: `enforce`.
    pub mode: Option<Mode>,
}

/// Failures as a part of what was asked lately.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorRateConfig {
    /// The part at which the breaker opens. Default: 50%.
    pub threshold: Option<Ratio>,
    /// How far back requests count, from 1s to 1h. Default: 30s.
    pub window: Option<TimeSpan>,
    /// Fewer requests in the window say nothing. Default: 20.
    pub min_requests: Option<u32>,
}

/// `error_rate:` a map, or `off`.
#[derive(Clone, Debug)]
pub enum ErrorRateSwitch {
    /// Not looked at.
    Off,
    /// Looked at.
    On(ErrorRateConfig),
}

/// How a half-open breaker tries the provider out.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HalfOpenConfig {
    /// How many requests run at a time. Default: 1.
    pub probes: Option<u32>,
    /// How many of them must succeed before it closes. Default: 2.
    pub successes: Option<u32>,
}

/// `fallback:` a map, or `stale`.
#[derive(Clone, Debug)]
pub enum FallbackConfig {
    /// A stored answer.
    Stale,
    /// Always the same.
    Static(StaticAnswerConfig),
}

/// An answer that is written in the policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticAnswerConfig {
    /// Its status, 200 to 599. Default: 503.
    pub status: Option<u16>,
    /// Its fields. Default: none.
    pub headers: Option<BTreeMap<String, String>>,
    /// Its body, at most 64 KiB. Default: empty.
    pub body: Option<String>,
}

/// Null is `off` here: an `Option` alone could not tell it from a key that is not there, whose default is on.
fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ErrorRateSwitch>, D::Error> {
    ErrorRateSwitch::deserialize(deserializer).map(Some)
}

impl<'de> Deserialize<'de> for ErrorRateSwitch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = ErrorRateSwitch;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`off`, or a map of `threshold`, `window` and `min_requests`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ErrorRateSwitch, E> {
                let wrong = "expected `off`, or a map of `threshold`, `window` and `min_requests`";
                if text == "off" { Ok(ErrorRateSwitch::Off) } else { Err(E::custom(wrong)) }
            }
            fn visit_unit<E: de::Error>(self) -> Result<ErrorRateSwitch, E> {
                Ok(ErrorRateSwitch::Off)
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<ErrorRateSwitch, A::Error> {
                ErrorRateConfig::deserialize(MapAccessDeserializer::new(map)).map(ErrorRateSwitch::On)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ErrorRateSwitch {
    fn schema_name() -> Cow<'static, str> {
        "ErrorRateSwitch".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": "off" }, generator.subschema_for::<ErrorRateConfig>()] })
    }
}

impl<'de> Deserialize<'de> for FallbackConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = FallbackConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`stale`, or a map of `status`, `headers` and `body`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<FallbackConfig, E> {
                let wrong = "expected `stale`, or a map of `status`, `headers` and `body`";
                if text == "stale" { Ok(FallbackConfig::Stale) } else { Err(E::custom(wrong)) }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<FallbackConfig, A::Error> {
                StaticAnswerConfig::deserialize(MapAccessDeserializer::new(map)).map(FallbackConfig::Static)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for FallbackConfig {
    fn schema_name() -> Cow<'static, str> {
        "FallbackConfig".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": "stale" }, generator.subschema_for::<StaticAnswerConfig>()] })
    }
}

/// The most of any count of a breaker; more is a slip of the keyboard.
const MOST: u32 = 1_000_000;
/// Longer than a day is no breaker but a route that is denied.
const LONGEST_OPEN: TimeSpan = TimeSpan::from_secs(86_400);
const WINDOWS: (TimeSpan, TimeSpan) = (TimeSpan::from_secs(1), TimeSpan::from_secs(3600));
const LARGEST_BODY: usize = 64 * 1024;

/// Fields that hyper or outgate writes, or that speak about one connection (RFC 9110 section 7.6.1). A client that follows
/// `Alt-Svc` leaves the proxy.
const NOT_OURS: [&str; 12] = [
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "alt-svc",
    "proxy-status",
];

impl BreakerConfig {
    /// What is true of it. Every mistake is told; a wrong value has its default in the settings.
    pub fn compile(&self, mistakes: &mut Mistakes) -> BreakerSettings {
        let (open_for, max_open_for) = self.open_times(mistakes);
        let half_open = self.half_open.clone().unwrap_or_default();
        let rules = Rules {
            failures: count("failures", self.failures, 5, mistakes),
            error_rate: self.compile_error_rate(mistakes),
            open_for,
            max_open_for,
            probes: count("half_open.probes", half_open.probes, 1, mistakes),
            successes: count("half_open.successes", half_open.successes, 2, mistakes),
        };
        let fallback = match &self.fallback {
            None => Fallback::None,
            Some(FallbackConfig::Stale) => Fallback::Stale,
            Some(FallbackConfig::Static(answer)) => Fallback::Static(Arc::new(answer.compile(mistakes))),
        };
        BreakerSettings { rules, fallback, shadow: self.mode.unwrap_or_default() == Mode::Shadow }
    }

    fn open_times(&self, mistakes: &mut Mistakes) -> (Duration, Duration) {
        let usual = TimeSpan::from_secs(300);
        let open_for = self.open_for.unwrap_or(TimeSpan::from_secs(30));
        // An `open_for` above the usual bound, without a bound of its own, is meant as it stands.
        let max = self.max_open_for.unwrap_or(usual.max(open_for));
        if open_for.is_zero() {
            mistakes.hint("open_for", "a breaker that opens for no time is not open", "for example `30s`");
        }
        for (at, time) in [("open_for", self.open_for), ("max_open_for", self.max_open_for)] {
            if time.is_some_and(|time| time > LONGEST_OPEN) {
                mistakes.hint(
                    at,
                    "a breaker is open for at most a day",
                    "deny the route to leave it for good",
                );
            }
        }
        if max < open_for {
            let message = format!("`max_open_for` ({max}) is shorter than `open_for` ({open_for})");
            mistakes.add(if self.max_open_for.is_some() { "max_open_for" } else { "open_for" }, message);
        }
        (open_for.duration(), max.max(open_for).duration())
    }

    fn compile_error_rate(&self, mistakes: &mut Mistakes) -> Option<ErrorRate> {
        let config = match &self.error_rate {
            None => ErrorRateConfig::default(),
            Some(ErrorRateSwitch::On(config)) => config.clone(),
            Some(ErrorRateSwitch::Off) => return None,
        };
        let threshold = config.threshold.unwrap_or(Ratio::from_percent(50));
        if threshold == Ratio::default() || threshold > Ratio::from_percent(100) {
            let message = format!("a threshold is above 0% and at most 100%, and this is {threshold}");
            mistakes.hint(
                "error_rate.threshold",
                message,
                "`error_rate: off` leaves it to failures in a row",
            );
        }
        let window = config.window.unwrap_or(TimeSpan::from_secs(30));
        if window < WINDOWS.0 || window > WINDOWS.1 {
            let message = format!("a window is from {} to {}, and this is {window}", WINDOWS.0, WINDOWS.1);
            mistakes.add("error_rate.window", message);
        }
        let min_requests = count("error_rate.min_requests", config.min_requests, 20, mistakes);
        Some(ErrorRate { threshold, window: window.duration(), min_requests })
    }
}

fn count(at: &str, value: Option<u32>, default: u32, mistakes: &mut Mistakes) -> u32 {
    match value {
        None => default,
        Some(value @ 1..=MOST) => value,
        Some(value) => {
            let message = format!("expected a number from 1 to {MOST}, and this is {value}");
            mistakes.hint(at, message, format!("the default is {default}"));
            default
        }
    }
}

impl StaticAnswerConfig {
    fn compile(&self, mistakes: &mut Mistakes) -> StaticAnswer {
        let body = self.body.clone().unwrap_or_default();
        if body.len() > LARGEST_BODY {
            mistakes.add("fallback.body", "the body of a fallback has at most 64 KiB");
        }
        let status = self.compile_status(&body, mistakes);
        let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
        for (name, value) in self.headers.iter().flatten() {
            let Some(field) = compile_field(name, value, mistakes) else { continue };
            if headers.iter().any(|(known, _)| *known == field.0) {
                mistakes.add("fallback.headers", format!("`{}` stands here twice", field.0));
            }
            headers.push(field);
        }
        StaticAnswer { status, headers, body: Bytes::from(body) }
    }

    fn compile_status(&self, body: &str, mistakes: &mut Mistakes) -> StatusCode {
        let number = self.status.unwrap_or(503);
        let status = StatusCode::from_u16(number).ok().filter(|_| (200..=599).contains(&number));
        if status.is_none() {
            mistakes.add("fallback.status", format!("a status is from 200 to 599, and this is {number}"));
        }
        if matches!(number, 204 | 205 | 304) && !body.is_empty() {
            mistakes.add("fallback.body", format!("an answer with status {number} has no body"));
        }
        status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// The place of a mistake is the map: a field's name may have a dot, which would read as another step.
fn compile_field(name: &str, value: &str, mistakes: &mut Mistakes) -> Option<(HeaderName, HeaderValue)> {
    let Ok(field) = HeaderName::from_bytes(name.as_bytes()) else {
        mistakes.add("fallback.headers", format!("{name:?} is no name of a header field"));
        return None;
    };
    if NOT_OURS.contains(&field.as_str()) || field.as_str().starts_with(OWN_PREFIX) {
        mistakes.add("fallback.headers", format!("`{field}` is written by outgate itself"));
        return None;
    }
    match HeaderValue::from_str(value) {
        Ok(value) => Some((field, value)),
        Err(_) => {
            mistakes.add("fallback.headers", format!("the value of `{field}` holds a control character"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::mistake::Step;

    fn compile(json: &str) -> (BreakerSettings, Vec<(String, String)>) {
        let config: BreakerConfig = serde_json::from_str(json).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = config.compile(&mut mistakes);
        let told = mistakes.into_vec().into_iter().map(|mistake| {
            let steps = mistake.at.iter().map(|step| match step {
                Step::Key(key) => key.to_string(),
                Step::Index(index) => index.to_string(),
            });
            (steps.collect::<Vec<_>>().join("."), mistake.message.into_owned())
        });
        (settings, told.collect())
    }

    #[test]
    fn an_empty_breaker_has_the_documented_defaults() {
        let (settings, mistakes) = compile("{}");
        assert!(mistakes.is_empty());
        let rate = ErrorRate {
            threshold: Ratio::from_percent(50),
            window: Duration::from_secs(30),
            min_requests: 20,
        };
        let rules = Rules {
            failures: 5,
            error_rate: Some(rate),
            open_for: Duration::from_secs(30),
            max_open_for: Duration::from_secs(300),
            probes: 1,
            successes: 2,
        };
        assert_eq!(settings, BreakerSettings { rules, fallback: Fallback::None, shadow: false });
    }

    #[test]
    fn the_error_rate_can_be_switched_off_and_a_fallback_be_named() {
        for json in [r#"{"error_rate":null}"#, r#"{"error_rate":"off"}"#] {
            assert_eq!(compile(json).0.rules.error_rate, None, "{json}");
        }
        assert_eq!(compile(r#"{"fallback":null}"#).0.fallback, Fallback::None);
        assert_eq!(compile(r#"{"fallback":"stale"}"#).0.fallback, Fallback::Stale);
        assert!(compile(r#"{"mode":"shadow"}"#).0.shadow);
        let json = r#"{"fallback":{"status":200,"headers":{"Content-Type":"text/plain"},"body":"x"}}"#;
        let Fallback::Static(answer) = compile(json).0.fallback else { panic!("not static") };
        let response = answer.response();
        assert_eq!((response.status().as_u16(), response.body().exact_length()), (200, Some(1)));
        assert_eq!(response.headers()["content-type"], "text/plain");
    }

    #[test]
    fn a_long_open_time_alone_raises_its_bound() {
        let (settings, mistakes) = compile(r#"{"open_for":"10m"}"#);
        assert!(mistakes.is_empty());
        assert_eq!(settings.rules.max_open_for, Duration::from_secs(600));
    }

    #[test]
    fn mistakes() {
        for (json, at, words) in [
            (r#"{"failures":0}"#, "failures", "from 1 to"),
            (r#"{"error_rate":{"threshold":"0%"}}"#, "error_rate.threshold", "this is 0%"),
            (r#"{"error_rate":{"threshold":"101%"}}"#, "error_rate.threshold", "at most 100%"),
            (r#"{"error_rate":{"window":"10ms"}}"#, "error_rate.window", "from 1s to 1h"),
            (r#"{"error_rate":{"window":"2h"}}"#, "error_rate.window", "from 1s to 1h"),
            (r#"{"error_rate":{"min_requests":0}}"#, "error_rate.min_requests", "from 1 to"),
            (r#"{"open_for":"0s"}"#, "open_for", "no time"),
            (r#"{"open_for":"2d"}"#, "open_for", "at most a day"),
            (r#"{"max_open_for":"10s"}"#, "max_open_for", "shorter than `open_for` (30s)"),
            (r#"{"half_open":{"probes":0}}"#, "half_open.probes", "from 1 to"),
            (r#"{"half_open":{"successes":0}}"#, "half_open.successes", "from 1 to"),
            (r#"{"fallback":{"status":199}}"#, "fallback.status", "from 200 to 599"),
            (r#"{"fallback":{"status":600}}"#, "fallback.status", "from 200 to 599"),
            (r#"{"fallback":{"status":204,"body":"x"}}"#, "fallback.body", "no body"),
            (r#"{"fallback":{"headers":{"Content-Length":"3"}}}"#, "fallback.headers", "`content-length`"),
            (r#"{"fallback":{"headers":{"Transfer-Encoding":"x"}}}"#, "fallback.headers", "`transfer-"),
            (r#"{"fallback":{"headers":{"Connection":"close"}}}"#, "fallback.headers", "`connection`"),
            (r#"{"fallback":{"headers":{"Outgate-Error":"x"}}}"#, "fallback.headers", "`outgate-error`"),
            (r#"{"fallback":{"headers":{"X-A":"a\nb"}}}"#, "fallback.headers", "control character"),
            (r#"{"fallback":{"headers":{"a b":"x"}}}"#, "fallback.headers", "no name"),
            (r#"{"fallback":{"headers":{"X-A":"1","x-a":"2"}}}"#, "fallback.headers", "twice"),
        ] {
            let (_, mistakes) = compile(json);
            assert_eq!(mistakes.len(), 1, "{json}: {mistakes:?}");
            assert_eq!(mistakes[0].0, at, "{json}");
            assert!(mistakes[0].1.contains(words), "{json}: {}", mistakes[0].1);
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let json = r#"{"failures":0,"half_open":{"probes":0},"fallback":{"status":1,"headers":{"te":"x"}}}"#;
        assert_eq!(compile(json).1.len(), 4);
    }

    #[test]
    fn words_and_keys_that_do_not_exist_are_refused() {
        for json in [
            r#"{"fallback":"fresh"}"#,
            r#"{"error_rate":"on"}"#,
            r#"{"error_rate":{"treshold":"1%"}}"#,
            r#"{"fallback":{"code":200}}"#,
            r#"{"mode":"dry"}"#,
            r#"{"failure":5}"#,
        ] {
            assert!(serde_json::from_str::<BreakerConfig>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_schema_knows_the_words() {
        let schema = serde_json::to_string(&schemars::schema_for!(BreakerConfig)).unwrap();
        assert!(schema.contains("\"stale\"") && schema.contains("\"off\""), "{schema}");
    }
}
