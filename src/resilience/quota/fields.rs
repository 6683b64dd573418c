//! What an answer's head says of the quota: the fields that the policy names, and the IETF's.
//!
//! | form | fields |
//! | --- | --- |
//! | draft-ietf-httpapi-ratelimit-headers-10 | `RateLimit: "default";r=50;t=30`, `RateLimit-Policy: "default";q=100;w=60` |
//! | its drafts 3 to 7 | `RateLimit: limit=100, remaining=50, reset=30` |
//! | the older triple | `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset` (seconds from now) |
//!
//! What cannot be meant is left out and counted: negative or endless numbers, resets beyond `max_hold`, long texts.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::config::{FieldSet, LeftField, ResetField};
use crate::resilience::responses::format::{self, Clock, Format, Span};

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Longer texts are not read: of one number, and of a whole `RateLimit` field.
const MOST_NUMBER: usize = 64;
const MOST_FIELD: usize = 1024;
/// Items of a `RateLimit` field that are read.
const MOST_ITEMS: usize = 4;
/// Lines of it that are read: a list may be split over several (RFC 9110 section 5.3).
const MOST_LINES: usize = 4;
/// A number above it is no count of requests, nor of tokens.
const MOST_COUNT: u64 = 1_000_000_000_000;

/// One meter as an answer tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading<'a> {
    /// Its name: of the field, or of the policy.
    pub(super) name: &'a str,
    pub(super) remaining: u64,
    pub(super) limit: Option<u64>,
    pub(super) reset: Span,
}

/// All meters of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Readings<'a> {
    pub(super) list: Vec<Reading<'a>>,
    /// Values that could not be meant.
    pub(super) absurd: u32,
}

/// Reads the head of an answer.
pub(super) fn read<'a>(sets: &'a [FieldSet], headers: &'a HeaderMap, max_hold: Duration) -> Readings<'a> {
    let mut readings = Readings::default();
    for set in sets {
        readings.named(set, headers, max_hold);
    }
    // A set of the policy that names the IETF's fields says how they are meant.
    if !sets.iter().any(|set| set.field().as_str().starts_with("ratelimit")) {
        readings.ietf(headers, max_hold);
    }
    readings
}

impl<'a> Readings<'a> {
    fn named(&mut self, set: &'a FieldSet, headers: &HeaderMap, max_hold: Duration) {
        let Some(told) = text(headers, set.field()) else { return };
        let (remaining, limit) = match &set.left {
            LeftField::Remaining { limit, .. } => {
                let limit = limit.as_ref().and_then(|name| text(headers, name));
                (count(told), limit.map(count))
            }
            LeftField::Used { of, .. } => {
                if told.len() > MOST_FIELD {
                    self.absurd += 1;
                    return;
                }
                // A field that tells of other things only tells nothing of this one.
                let Some(text) = used_text(told, of.as_deref()) else { return };
                let (used, limit) = used_of_limit(text).unzip();
                let left = limit.zip(used).map(|(limit, used): (u64, u64)| limit.saturating_sub(used));
                (left, limit.map(Some))
            }
        };
        self.add(set.name(), remaining, limit, reset(set, headers), max_hold);
    }

    fn ietf(&mut self, headers: &'a HeaderMap, max_hold: Duration) {
        if !headers.contains_key(&RATELIMIT) {
            let remaining = text(headers, &RATELIMIT_REMAINING);
            if remaining.is_some() {
                let limit = text(headers, &RATELIMIT_LIMIT);
                let reset = text(headers, &RATELIMIT_RESET);
                self.seconds("ratelimit", remaining, limit, reset, max_hold);
            }
            return;
        }
        for field in lines(headers, RATELIMIT) {
            if field.len() > MOST_FIELD {
                self.absurd += 1;
            } else if items(field).any(|item| member(item).0 == "remaining") {
                let value = |name: &str| {
                    items(field).map(member).find(|(key, _)| *key == name).map(|(_, value)| value)
                };
                self.seconds("ratelimit", value("remaining"), value("limit"), value("reset"), max_hold);
            } else {
                for item in items(field).take(MOST_ITEMS) {
                    self.item(item, headers, max_hold);
                }
            }
        }
    }

    /// `"default";r=50;t=30`, with its policy where there is one of the same name.
    fn item(&mut self, item: &'a str, headers: &HeaderMap, max_hold: Duration) {
        let name = name(item);
        let policies = lines(headers, RATELIMIT_POLICY).filter(|line| line.len() <= MOST_FIELD);
        let policy = policies.flat_map(items).find(|policy| self::name(policy) == name);
        let of_policy = |key| policy.and_then(|policy| parameter(policy, key));
        // Bytes of content and concurrent requests are no quota of requests.
        if of_policy("qu").is_some_and(|unit| unit.trim_matches('"') != "requests") {
            return;
        }
        let Some(remaining) = parameter(item, "r") else { return };
        // Without a time to the reset the window's length is the longest that it can take.
        let Some(reset) = parameter(item, "t").or_else(|| of_policy("w")) else { return };
        self.seconds(name, Some(remaining), of_policy("q"), Some(reset), max_hold);
    }

    fn seconds(
        &mut self,
        name: &'a str,
        remaining: Option<&str>,
        limit: Option<&str>,
        reset: Option<&str>,
        max_hold: Duration,
    ) {
        let reset = reset.and_then(|text| format::read(Format::DeltaS, text, NO_CLOCK));
        self.add(name, remaining.and_then(count), limit.map(count), reset, max_hold);
    }

    fn add(
        &mut self,
        name: &'a str,
        remaining: Option<u64>,
        limit: Option<Option<u64>>,
        reset: Option<Span>,
        max_hold: Duration,
    ) {
        if name.len() > MOST_NUMBER {
            self.absurd += 1;
            return;
        }
        let limit = match limit {
            // A limit of nothing contradicts the answer that carries it.
            Some(None | Some(0)) => {
                self.absurd += 1;
                None
            }
            Some(limit) => limit,
            None => None,
        };
        match (remaining, reset) {
            (Some(remaining), Some(reset)) if reset.least <= max_hold => {
                let remaining = limit.map_or(remaining, |limit| remaining.min(limit));
                self.list.push(Reading { name, remaining, limit, reset });
            }
            _ => self.absurd += 1,
        }
    }
}

fn reset(set: &FieldSet, headers: &HeaderMap) -> Option<Span> {
    match &set.reset {
        ResetField::Told(name, format) => {
            let clock = if format.is_absolute() { Clock::of(headers) } else { NO_CLOCK };
            format::read(*format, text(headers, name)?, clock)
        }
        ResetField::AskAfter(span) => Some(Span { least: *span, step: Duration::ZERO }),
    }
}

/// `18/5000` of `api-usage=18/5000; per-app=17/250(app=x)`, where the name is given; else the field as it is.
fn used_text<'a>(field: &'a str, name: Option<&str>) -> Option<&'a str> {
    let Some(name) = name else { return Some(field) };
    field.split([';', ',']).map(member).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// `18/5000`; what stands in brackets behind it is a remark.
fn used_of_limit(text: &str) -> Option<(u64, u64)> {
    let (used, limit) = text.split_once('/')?;
    let limit = limit.split('(').next().unwrap_or_default();
    // A limit of nothing contradicts the answer that carries it.
    count(used).zip(count(limit).filter(|limit| *limit > 0))
}

/// For formats that need no clock.
const NO_CLOCK: Clock = Clock::exact(std::time::SystemTime::UNIX_EPOCH);

fn lines(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).iter().take(MOST_LINES).map(|value| value.to_str().unwrap_or("?"))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    // What is not ASCII is there, and cannot be read.
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// A count: whole or with a fraction, which is cut. Old drafts have the policies behind a comma: `100, 100;w=60`.
fn count(text: &str) -> Option<u64> {
    let first = text.split([',', ';']).next().unwrap_or_default().trim();
    let (whole, fraction) = first.split_once('.').unwrap_or((first, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if first.len() > MOST_NUMBER || !digits(whole) || !digits(fraction) {
        return None;
    }
    whole.parse().ok().filter(|count| *count <= MOST_COUNT)
}

/// Splits at a separator that stands outside of quotes (RFC 9651 section 3.3.3).
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |c: char| {
        let was_escaped = escaped;
        escaped = quoted && c == '\\' && !was_escaped;
        if c == '"' && !was_escaped {
            quoted = !quoted;
        }
        c == separator && !quoted
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn items(field: &str) -> impl Iterator<Item = &str> {
    split(field, ',')
}

/// `"default"` of `"default";r=50`; older drafts have a token without quotes.
fn name(item: &str) -> &str {
    split(item, ';').next().unwrap_or_default().trim_matches('"')
}

fn parameter<'a>(item: &'a str, key: &str) -> Option<&'a str> {
    split(item, ';').skip(1).map(member).find(|(name, _)| *name == key).map(|(_, value)| value)
}

fn member(text: &str) -> (&str, &str) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.trim(), value.trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (http::HeaderName::from_static(name), value.parse().unwrap())
        };
        fields.iter().map(pair).collect()
    }

    fn set(format: Format) -> FieldSet {
        FieldSet {
            left: LeftField::Remaining {
                name: "x-remaining".parse().unwrap(),
                limit: Some("x-limit".parse().unwrap()),
            },
            reset: ResetField::Told("x-reset".parse().unwrap(), format),
        }
    }

    fn used(of: Option<&str>) -> FieldSet {
        FieldSet {
            left: LeftField::Used { name: "x-used".parse().unwrap(), of: of.map(Into::into) },
            reset: ResetField::AskAfter(Duration::from_secs(300)),
        }
    }

    type Told = Vec<(String, u64, Option<u64>, u64)>;

    fn told(sets: &[FieldSet], fields: &[(&'static str, &str)]) -> (Told, u32) {
        let headers = headers(fields);
        let readings = read(sets, &headers, HOUR);
        let told = readings.list.iter().map(|reading| {
            (reading.name.to_owned(), reading.remaining, reading.limit, reading.reset.least.as_secs())
        });
        (told.collect(), readings.absurd)
    }

    #[test]
    fn the_ietf_fields_in_all_their_forms() {
        let one = |name: &str, remaining, limit, reset| vec![(name.to_owned(), remaining, limit, reset)];
        for (fields, expected) in [
            (vec![("ratelimit", r#""default";r=50;t=30"#)], one("default", 50, None, 30)),
            (
                vec![("ratelimit", "default;r=50;t=30"), ("ratelimit-policy", r#""default";q=100;w=60"#)],
                one("default", 50, Some(100), 30),
            ),
            (
                vec![
                    ("ratelimit", r#""burst";r=5"#),
                    ("ratelimit-policy", r#""day";q=9;w=9, "burst";w=10;q=7"#),
                ],
                one("burst", 5, Some(7), 10),
            ),
            (vec![("ratelimit", r#""a,b;c\"d";r=1;t=2"#)], one(r#"a,b;c\"d"#, 1, None, 2)),
            (vec![("ratelimit", "limit=100, remaining=50, reset=30")], one("ratelimit", 50, Some(100), 30)),
            (
                vec![
                    ("ratelimit-limit", "100, 100;w=60"),
                    ("ratelimit-remaining", "0"),
                    ("ratelimit-reset", "7"),
                ],
                one("ratelimit", 0, Some(100), 7),
            ),
        ] {
            assert_eq!(told(&[], &fields), (expected, 0), "{fields:?}");
        }
        let fields = [
            ("ratelimit", r#""minute";r=5;t=10, "day";r=900;t=3000"#),
            ("ratelimit-policy", r#""minute";q=10;w=60;pk=:cHsdsRa894==:, "day";q=1000;w=86400"#),
        ];
        assert_eq!(told(&[], &fields).0.len(), 2);
        // A list may be split over lines.
        let fields = [
            ("ratelimit", r#""minute";r=50;t=20"#),
            ("ratelimit", r#""day";r=0;t=20"#),
            ("ratelimit-policy", r#""minute";q=60;w=60"#),
            ("ratelimit-policy", r#""day";q=1000;w=86400"#),
        ];
        let both = vec![("minute".to_owned(), 50, Some(60), 20), ("day".to_owned(), 0, Some(1000), 20)];
        assert_eq!(told(&[], &fields), (both, 0));
        let bytes =
            [("ratelimit", r#""b";r=5;t=10"#), ("ratelimit-policy", r#""b";q=10;w=60;qu="content-bytes""#)];
        assert_eq!(told(&[], &bytes), (vec![], 0));
    }

    #[test]
    fn named_fields_with_their_format() {
        let fields = [
            ("x-remaining", "42"),
            ("x-limit", "60"),
            ("x-reset", "1767225630"),
            ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ];
        assert_eq!(
            told(&[set(Format::EpochS)], &fields),
            (vec![("x-remaining".to_owned(), 42, Some(60), 30)], 0)
        );
        let fields = [("x-remaining", "80"), ("x-limit", "60"), ("x-reset", "6m0s")];
        assert_eq!(
            told(&[set(Format::Duration)], &fields),
            (vec![("x-remaining".to_owned(), 60, Some(60), 360)], 0)
        );
    }

    #[test]
    fn how_many_were_used_of_how_many() {
        let long = format!("api-usage=1/{}", "9".repeat(2_000));
        for (of, field, expected) in [
            (None, "18/5000", Ok(Some((4982, Some(5000))))),
            (None, " 18 / 5000 ", Ok(Some((4982, Some(5000))))),
            (None, "5001/5000", Ok(Some((0, Some(5000))))),
            (Some("api-usage"), "api-usage=18/5000", Ok(Some((4982, Some(5000))))),
            (
                Some("api-usage"),
                "api-usage=25/5000; per-app-api-usage=17/250(appName=sample-app)",
                Ok(Some((4975, Some(5000)))),
            ),
            (
                Some("per-app"),
                "api-usage=25/5000, per-app=17/250(appName=sample)",
                Ok(Some((233, Some(250)))),
            ),
            (Some("other"), "api-usage=18/5000", Ok(None)),
            (Some("api-usage"), "x-api-usage=18/5000", Ok(None)),
            (None, "api-usage=18/5000", Err(1)),
            (Some("api-usage"), "api-usage=18", Err(1)),
            (Some("api-usage"), "api-usage=-1/5000", Err(1)),
            (Some("api-usage"), "api-usage=/", Err(1)),
            (Some("api-usage"), "api-usage=1/0", Err(1)),
            (Some("api-usage"), long.as_str(), Err(1)),
        ] {
            let told = told(&[used(of)], &[("x-used", field)]);
            let name = of.unwrap_or("x-used").to_owned();
            let readings = match expected {
                Ok(reading) => reading.map(|(left, limit)| (name, left, limit, 300)).into_iter().collect(),
                Err(_) => vec![],
            };
            assert_eq!(told.0, readings, "{field:.60}");
            if let Err(absurd) = expected {
                assert_eq!(told.1, absurd, "{field:.60}");
            }
        }
    }

    #[test]
    fn absurd_values_are_left_out_and_counted() {
        let long = "9".repeat(10 * 1024);
        for (remaining, limit, reset, readings, absurd) in [
            ("-1", "60", "30", 0, 1),
            ("NaN", "60", "30", 0, 1),
            ("inf", "60", "30", 0, 1),
            ("99999999999999999999999", "60", "30", 0, 1),
            (long.as_str(), "60", "30", 0, 1),
            ("5", "60", "-1", 0, 1),
            ("5", "60", "", 0, 1),
            ("5", "60", "3601", 0, 1),
            ("5", "60", &long, 0, 1),
            ("5", "0", "30", 1, 1),
            ("5", "many", "30", 1, 1),
            ("5.9", "60", "30", 1, 0),
        ] {
            let fields = [("x-remaining", remaining), ("x-limit", limit), ("x-reset", reset)];
            let (list, counted) = told(&[set(Format::DeltaS)], &fields);
            assert_eq!((list.len(), counted), (readings, absurd), "{remaining:.9} {limit} {reset:.9}");
        }
        assert_eq!(told(&[], &[("ratelimit", &long)]), (vec![], 1));
        assert_eq!(told(&[], &[("ratelimit", "garbage")]), (vec![], 0));
        assert_eq!(told(&[], &[("ratelimit", r#""a";r=-5;t=1"#)]), (vec![], 1));
    }

    proptest! {
        #[test]
        fn no_field_makes_it_panic(text in "[-a-z0-9=;,\"\\\\:. ]{0,80}", other in "[ -~]{0,80}") {
            let sets = [set(Format::DeltaS), used(None), used(Some("a"))];
            for name in ["x-used", "ratelimit", "ratelimit-policy", "ratelimit-remaining", "x-remaining"] {
                let headers = headers(&[(name, &text), ("ratelimit-reset", &other), ("x-reset", &other)]);
                let readings = read(&sets, &headers, HOUR);
                prop_assert!(readings.list.iter().all(|reading| reading.reset.least <= HOUR));
            }
        }
    }
}
