//! How providers write "in so long": the formats of reset and wait fields.
//!
//! `X-RateLimit-Reset` is an epoch at one provider, seconds from now at the next and a timestamp at a third, so the format
//! is named in the policy and never guessed from the value. Reading is pure and never panics: what is negative, not a
//! number, too long or not ASCII is nothing; what is huge is [`MAX_SPAN`]; what passed a short while ago is zero.

use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::Deserialize;

/// The longest span that is told apart: a year. Longer ones become it.
pub const MAX_SPAN: Duration = Duration::from_secs(366 * 86_400);

/// How long ago a point in time may lie and still mean "now": longer ago it is absurd.
const MAX_PAST: Duration = Duration::from_secs(3600);

/// Longer texts are not read.
const MAX_TEXT: usize = 64;

/// How a reset or a wait is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Seconds since 1970: `1767225600`.
    EpochS,
    /// Milliseconds since 1970: `1767225600000`.
    EpochMs,
    /// Seconds from now: `30`, `1.5`.
    DeltaS,
    /// Milliseconds from now: `1500`.
    DeltaMs,
    /// A timestamp with its offset (RFC 3339; seconds may be missing): `2026-01-01T00:00:00Z`.
    Iso8601,
    /// A date as HTTP writes it (RFC 9110 section 5.6.7): `Thu, 01 Jan 2026 00:00:00 GMT`.
    HttpDate,
    /// A duration with units, as Go and OpenAI write it: `6m0s`, `1.5s`, `120ms`.
    Duration,
}

impl Format {
    /// The word of the policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EpochS => "epoch_s",
            Self::EpochMs => "epoch_ms",
            Self::DeltaS => "delta_s",
            Self::DeltaMs => "delta_ms",
            Self::Iso8601 => "iso8601",
            Self::HttpDate => "http_date",
            Self::Duration => "duration",
        }
    }

    /// Whether it names a point in time, which is read against a clock.
    pub const fn is_absolute(self) -> bool {
        matches!(self, Self::EpochS | Self::EpochMs | Self::Iso8601 | Self::HttpDate)
    }
}

/// The time that an answer was written at, as well as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The time.
    pub now: SystemTime,
    /// How coarse it is: one second for a `Date` field.
    pub step: Duration,
}

impl Clock {
    /// A clock without a step.
    pub const fn exact(now: SystemTime) -> Self {
        Self { now, step: Duration::ZERO }
    }

    /// The clock of an answer: its own `Date` if that can be read, so that the provider's clock may be wrong, or else this
    /// machine's.
    pub fn of(headers: &http::HeaderMap) -> Self {
        let date = headers.get(http::header::DATE).and_then(|value| value.to_str().ok());
        match date.and_then(|text| httpdate::parse_http_date(text).ok()) {
            Some(now) => Self { now, step: Duration::from_secs(1) },
            None => Self::exact(SystemTime::now()),
        }
    }
}

/// A span as read: it is over between `least` and `least + step` from now, because providers round, some up and some down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What was written.
    pub least: Duration,
    /// How coarsely it was written.
    pub step: Duration,
}

/// How long from `now`; nothing where the text cannot mean that. At most [`MAX_SPAN`].
pub fn parse(format: Format, text: &str, now: SystemTime) -> Option<Duration> {
    read(format, text, Clock::exact(now)).map(|span| span.least)
}

/// The same, with how coarse it is.
pub fn read(format: Format, text: &str, clock: Clock) -> Option<Span> {
    if text.len() > MAX_TEXT || !text.is_ascii() {
        return None;
    }
    let text = text.trim();
    match format {
        Format::DeltaS => decimal(text).map(|number| number.times(SECOND)),
        Format::DeltaMs => decimal(text).map(|number| number.times(MILLISECOND)),
        Format::EpochS => decimal(text).and_then(|number| since_epoch(number.times(SECOND), clock)),
        Format::EpochMs => decimal(text).and_then(|number| since_epoch(number.times(MILLISECOND), clock)),
        Format::Iso8601 => timestamp(text).and_then(|span| since_epoch(span, clock)),
        Format::HttpDate => http_date(text).and_then(|span| since_epoch(span, clock)),
        Format::Duration => with_units(text),
    }
    .map(|span| Span { least: span.least.min(MAX_SPAN), step: span.step })
}

/// `Retry-After`: seconds, also with a fraction, or a date (RFC 9110 section 10.2.3).
pub fn retry_after(text: &str, clock: Clock) -> Option<Duration> {
    let format = if text.trim_start().starts_with(|c: char| c.is_ascii_digit()) {
        Format::DeltaS
    } else {
        Format::HttpDate
    };
    read(format, text, clock).map(|span| span.least)
}

const NANOS: u128 = 1_000_000_000;
const SECOND: u128 = NANOS;
const MILLISECOND: u128 = 1_000_000;

/// A number that is not negative, in units of 10^-9, with the unit of its last digit.
#[derive(Clone, Copy)]
struct Decimal {
    nanos: u128,
    last: u128,
}

impl Decimal {
    /// So many of a unit of `nanos` nanoseconds.
    fn times(self, nanos: u128) -> Span {
        Span { least: from_nanos(self.nanos * nanos / NANOS), step: from_nanos(self.last * nanos / NANOS) }
    }
}

fn from_nanos(nanos: u128) -> Duration {
    // Far above every clamp, and far below what overflows.
    let nanos = nanos.min(u128::from(u64::MAX) * SECOND);
    let seconds = u64::try_from(nanos / NANOS).unwrap_or(u64::MAX);
    Duration::new(seconds, u32::try_from(nanos % NANOS).unwrap_or(0))
}

/// Digits with an optional fraction; more than 15 digits mean "huge". No sign, no exponent, no `inf`.
fn decimal(text: &str) -> Option<Decimal> {
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(a, b)| (a, Some(b)));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || fraction.is_some_and(|fraction| !digits(fraction)) {
        return None;
    }
    let whole = if whole.len() > 15 { 10_u128.pow(15) } else { whole.parse().ok()? };
    let (mut nanos, mut last) = (whole * NANOS, NANOS);
    for digit in fraction.unwrap_or_default().bytes().take(9) {
        last /= 10;
        nanos += u128::from(digit - b'0') * last;
    }
    Some(Decimal { nanos, last })
}

/// From the clock to a point in time, given as the span since 1970.
fn since_epoch(point: Span, clock: Clock) -> Option<Span> {
    let now = clock.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let step = point.step.max(clock.step);
    match point.least.checked_sub(now) {
        Some(least) => Some(Span { least, step }),
        None if now - point.least <= MAX_PAST => Some(Span { least: Duration::ZERO, step }),
        None => None,
    }
}

fn http_date(text: &str) -> Option<Span> {
    let point = httpdate::parse_http_date(text).ok()?;
    let least = point.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Span { least, step: Duration::from_secs(1) })
}

/// `6m0s`: numbers, each with its unit.
fn with_units(text: &str) -> Option<Span> {
    if text == "0" {
        return Some(Span { least: Duration::ZERO, step: Duration::from_secs(1) });
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    let mut step = MAX_SPAN;
    while !rest.is_empty() || sum.is_zero() && step == MAX_SPAN {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = decimal(&rest[..end])?;
        rest = &rest[end..];
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let part = number.times(unit(&rest[..end])?);
        rest = &rest[end..];
        sum = sum.saturating_add(part.least);
        step = step.min(part.step);
    }
    Some(Span { least: sum, step })
}

/// Nanoseconds of a unit.
fn unit(name: &str) -> Option<u128> {
    Some(match name {
        "d" => 86_400 * SECOND,
        "h" => 3_600 * SECOND,
        "m" => 60 * SECOND,
        "s" => SECOND,
        "ms" => MILLISECOND,
        "us" => 1_000,
        "ns" => 1,
        _ => return None,
    })
}

/// A timestamp with its offset from UTC, as the span since 1970. Jira leaves the seconds out.
fn timestamp(text: &str) -> Option<Span> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let (time, offset) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let at = time.rfind(['+', '-'])?;
            (&time[..at], offset_seconds(&time[at..])?)
        }
    };
    let days = days_since_epoch(date)?;
    let (clock, seconds) = match time.rsplit_once(':')? {
        (clock, seconds) if clock.contains(':') => (clock, Some(decimal(seconds)?)),
        _ => (time, None),
    };
    let (hour, minute) = clock.split_once(':')?;
    let (hour, minute) = (number(hour, 2)?, number(minute, 2)?);
    let seconds = seconds.unwrap_or(Decimal { nanos: 0, last: 60 * NANOS }).times(SECOND);
    if hour > 23 || minute > 59 || seconds.least >= Duration::from_secs(61) {
        return None;
    }
    let whole = days * 86_400 + hour * 3_600 + minute * 60 - offset;
    let least = Duration::from_secs(u64::try_from(whole).ok()?) + seconds.least;
    Some(Span { least, step: seconds.step })
}

/// `+02:00` or `-0530` in seconds.
fn offset_seconds(text: &str) -> Option<i64> {
    let (sign, text) = text.split_at_checked(1)?;
    let (hours, minutes) = match text.split_once(':') {
        Some(parts) => parts,
        None => text.split_at_checked(2)?,
    };
    let seconds = number(hours, 2)? * 3_600 + number(minutes, 2)? * 60;
    Some(if sign == "-" { -seconds } else { seconds })
}

/// Days from 1970-01-01 to a date, by the civil calendar.
fn days_since_epoch(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let (year, month, day) =
        (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March here, so that the leap day is the last one (Howard Hinnant, "days_from_civil").
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    Some(era * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - 719_468)
}

fn number(text: &str, digits: usize) -> Option<i64> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Format::{DeltaMs, DeltaS, Duration, EpochMs, EpochS, HttpDate, Iso8601};
    use super::*;

    /// 2026-01-01T00:00:00Z.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_767_225_600)
    }

    #[test]
    fn each_format_as_its_providers_write_it() {
        for (format, text, millis, step) in [
            (DeltaS, "30", 30_000, 1_000),
            (DeltaS, " 1.5 ", 1_500, 100),
            (DeltaS, "0", 0, 1_000),
            (DeltaMs, "1500", 1_500, 1),
            (DeltaMs, "0.5", 0, 0),
            (EpochS, "1767225660", 60_000, 1_000),
            (EpochS, "1767225600.250", 250, 1),
            (EpochS, "1767225590", 0, 1_000),
            (EpochMs, "1767225600750", 750, 1),
            (Iso8601, "2026-01-01T00:01:00Z", 60_000, 1_000),
            (Iso8601, "2026-01-01T00:01Z", 60_000, 60_000),
            (Iso8601, "2026-01-01T02:00:01.500+02:00", 1_500, 1),
            (Iso8601, "2025-12-31T19:00:10-0500", 10_000, 1_000),
            (HttpDate, "Thu, 01 Jan 2026 00:00:05 GMT", 5_000, 1_000),
            (Duration, "6m0s", 360_000, 1_000),
            (Duration, "1.5s", 1_500, 100),
            (Duration, "120ms", 120, 1),
            (Duration, "1h2m3.5s", 3_723_500, 100),
            (Duration, "0s", 0, 1_000),
            (Duration, "0", 0, 1_000),
        ] {
            let span = read(format, text, Clock::exact(now()));
            let expected = Span {
                least: std::time::Duration::from_millis(millis),
                step: std::time::Duration::from_millis(step),
            };
            match span {
                // Steps below a millisecond are fine as they are.
                Some(span) if step == 0 => assert!(span.step < std::time::Duration::from_millis(1), "{text}"),
                span => assert_eq!(span, Some(expected), "{format:?} {text}"),
            }
        }
    }

    #[test]
    fn leap_days_and_other_eras() {
        for (text, seconds) in [
            ("2028-02-29T12:00:00Z", 1_835_438_400),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("1970-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(timestamp(text).unwrap().least.as_secs(), seconds, "{text}");
        }
    }

    #[test]
    fn absurd_values_are_nothing_or_clamped() {
        let long = "9".repeat(10 * 1024);
        for format in [EpochS, EpochMs, DeltaS, DeltaMs, Iso8601, HttpDate, Duration] {
            for text in [
                "", "-1", "+1", "NaN", "inf", "1e9", "0x10", "١", "soon", "1,5", ".", "1.", ".5", "s", "5 s",
                &long,
            ] {
                assert_eq!(parse(format, text, now()), None, "{format:?} {text:.20}");
            }
        }
        for (format, text) in [
            (DeltaS, "99999999999999999999999999"),
            (EpochS, "9999999999"),
            (EpochMs, "999999999999999999999"),
            (Iso8601, "9999-12-31T23:59:59Z"),
            (HttpDate, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (Duration, "99999999999h"),
        ] {
            assert_eq!(parse(format, text, now()), Some(MAX_SPAN), "{format:?} {text}");
        }
        // A day ago is not now; neither are milliseconds where seconds were announced the other way round.
        for (format, text) in [
            (EpochS, "1767139200"),
            (EpochS, "60"),
            (EpochMs, "1767225660"),
            (Iso8601, "2025-12-30T00:00:00Z"),
            (Iso8601, "2026-01-01T00:00:00"),
            (Iso8601, "2026-13-01T00:00:00Z"),
            (Iso8601, "0000-01-01T00:00:00Z"),
            (HttpDate, "Tue, 30 Dec 2025 00:00:00 GMT"),
        ] {
            assert_eq!(parse(format, text, now()), None, "{format:?} {text}");
        }
        assert_eq!(parse(Duration, "30", now()), None, "a bare number is no duration");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let clock = Clock::exact(now());
        let seconds = std::time::Duration::from_secs_f64;
        assert_eq!(retry_after("120", clock), Some(seconds(120.0)));
        assert_eq!(retry_after("0.25", clock), Some(seconds(0.25)));
        assert_eq!(retry_after("Thu, 01 Jan 2026 00:00:05 GMT", clock), Some(seconds(5.0)));
        assert_eq!(retry_after("-5", clock), None);
    }

    #[test]
    fn the_providers_clock_may_be_wrong() {
        let mut headers = http::HeaderMap::new();
        headers.insert("date", "Wed, 01 Jan 2020 00:00:00 GMT".parse().unwrap());
        let span = read(EpochS, "1577836830", Clock::of(&headers)).unwrap();
        assert_eq!(span.least, std::time::Duration::from_secs(30));
        assert_eq!(span.step, std::time::Duration::from_secs(1));
    }

    const ALL: [Format; 7] = [EpochS, EpochMs, DeltaS, DeltaMs, Iso8601, HttpDate, Duration];

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_no_span_is_beyond_the_bound(bytes: Vec<u8>, seconds in 0u64..1 << 40) {
            let text = String::from_utf8_lossy(&bytes);
            let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            for format in ALL {
                prop_assert!(parse(format, &text, now).is_none_or(|span| span <= MAX_SPAN));
            }
        }

        #[test]
        fn nor_do_texts_that_look_right(text in "[-+0-9TZhms:. ]{0,30}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9.]{0,12})?(Z|[+-][0-9:]{0,6})") {
            for format in ALL {
                prop_assert!(parse(format, &text, now()).is_none_or(|span| span <= MAX_SPAN));
            }
        }

        #[test]
        fn what_is_written_is_read(millis in 0u64..366 * 86_400_000) {
            let span = std::time::Duration::from_millis(millis);
            let number = millis.to_string();
            prop_assert_eq!(parse(DeltaMs, &number, now()), Some(span));
            let text = humantime::format_rfc3339_millis(now() + span).to_string();
            prop_assert_eq!(parse(Iso8601, &text, now()), Some(span));
            let text = format!("{}m{}s{}ms", millis / 60_000, millis / 1000 % 60, millis % 1000);
            prop_assert_eq!(parse(Duration, &text, now()), Some(span));
        }
    }
}
