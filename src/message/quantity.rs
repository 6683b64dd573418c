//! Quantities as people write them in a policy: `10s`, `64KiB`, `100/15m`, `20%`.
//!
//! One number and one unit, without spaces or fractions (`1500ms`, not `1.5s`; ratios may have a fraction). A number
//! without unit is refused, because seconds and milliseconds look alike. Zero is a quantity; whether it makes sense is for
//! the owner of the key to say. The upper bounds keep sums with them from overflowing.
//!
//! Each type reads its text form only ([`std::str::FromStr`], `Deserialize`), prints it ([`std::fmt::Display`],
//! `Serialize`) and describes it (`JsonSchema`), so that one place knows each form.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Why a text is no quantity. Static words, which do not repeat the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityFault {
    /// Not a duration.
    #[error("expected a whole number and a unit (`ms`, `s`, `m`, `h` or `d`), such as `10s`")]
    TimeSpan,
    /// A duration above [`TimeSpan::MAX`].
    #[error("a duration can have at most 36500 days")]
    LongSpan,
    /// Not a size.
    #[error("expected a whole number and a unit (`B`, `KiB`, `MiB`, `GiB` or `TiB`), such as `64KiB`")]
    ByteSize,
    /// A decimal unit, which some read as 1000 and some as 1024.
    #[error("sizes have binary units: `KiB`, `MiB`, `GiB` or `TiB`")]
    DecimalUnit,
    /// A size above `u64`.
    #[error("this size is too large")]
    LargeSize,
    /// Not a rate.
    #[error("expected a number per time, such as `100/s` or `100/15m`")]
    Rate,
    /// A rate per no time.
    #[error("a rate is per some time, not per none")]
    RatePerNothing,
    /// Not a ratio.
    #[error("expected a percentage, such as `20%` or `0.5%`")]
    Ratio,
}

/// The leading digits and the rest; `None` where there is no digit or the number exceeds `u64`.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// A duration: `250ms`, `10s`, `5m`, `1h`, `1d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeSpan(Duration);

/// Milliseconds of the units, the largest first.
const SPAN_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl TimeSpan {
    /// The longest: 36500 days. A later point in time can still be computed.
    pub const MAX: Self = Self(Duration::from_secs(36_500 * 86_400));

    /// From milliseconds; what exceeds [`TimeSpan::MAX`] becomes it.
    pub const fn from_millis(millis: u64) -> Self {
        let span = Duration::from_millis(millis);
        if span.as_millis() > Self::MAX.0.as_millis() { Self::MAX } else { Self(span) }
    }

    /// From seconds; what exceeds [`TimeSpan::MAX`] becomes it.
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1_000))
    }

    /// The duration; whole milliseconds.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Whether it is no time at all.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<TimeSpan> for Duration {
    fn from(span: TimeSpan) -> Self {
        span.0
    }
}

impl FromStr for TimeSpan {
    type Err = QuantityFault;

    fn from_str(text: &str) -> Result<Self, QuantityFault> {
        let (number, unit) = split_number(text).ok_or(QuantityFault::TimeSpan)?;
        let unit = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or(QuantityFault::TimeSpan)?;
        let millis = number.checked_mul(unit.1).ok_or(QuantityFault::LongSpan)?;
        let span = Duration::from_millis(millis);
        if span > Self::MAX.0 { Err(QuantityFault::LongSpan) } else { Ok(Self(span)) }
    }
}

impl fmt::Display for TimeSpan {
    /// In the largest unit that divides it: `90s`, `2m`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        let (name, size) =
            SPAN_UNITS.into_iter().find(|(_, size)| millis.is_multiple_of(*size)).unwrap_or(("ms", 1));
        write!(f, "{}{name}", millis / size)
    }
}

/// A number of bytes: `512B`, `64KiB`, `1MiB`, `4GiB`, `1TiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    /// From bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The bytes, for lengths in memory; what does not fit becomes `usize::MAX`.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = QuantityFault;

    fn from_str(text: &str) -> Result<Self, QuantityFault> {
        let (number, unit) = split_number(text).ok_or(QuantityFault::ByteSize)?;
        let Some((_, size)) = SIZE_UNITS.into_iter().find(|(name, _)| *name == unit) else {
            let decimal = matches!(
                unit.to_ascii_lowercase().as_str(),
                "k" | "m" | "g" | "t" | "kb" | "mb" | "gb" | "tb"
            );
            return Err(if decimal { QuantityFault::DecimalUnit } else { QuantityFault::ByteSize });
        };
        number.checked_mul(size).map(Self).ok_or(QuantityFault::LargeSize)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that divides it: `1536KiB`, `2MiB`, `0B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |size: u64| self.0 >= size && self.0.is_multiple_of(size);
        let (name, size) = SIZE_UNITS.into_iter().find(|(_, size)| fits(*size)).unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / size)
    }
}

/// So many per some time: `100/s`, `5/m`, `1000/h`, `100/15m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    count: u32,
    per: TimeSpan,
}

impl Rate {
    /// So many per `per`; `None` where that is no time.
    pub fn new(count: u32, per: TimeSpan) -> Option<Self> {
        (!per.is_zero()).then_some(Self { count, per })
    }

    /// How many.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// In which time; never zero.
    pub const fn per(self) -> Duration {
        self.per.duration()
    }
}

impl FromStr for Rate {
    type Err = QuantityFault;

    fn from_str(text: &str) -> Result<Self, QuantityFault> {
        let (count, per) = text.split_once('/').ok_or(QuantityFault::Rate)?;
        let (count, rest) = split_number(count).ok_or(QuantityFault::Rate)?;
        if !rest.is_empty() {
            return Err(QuantityFault::Rate);
        }
        let bare_unit = SPAN_UNITS
            .iter()
            .find(|(name, _)| *name == per)
            .map(|(_, millis)| TimeSpan::from_millis(*millis));
        let per = match bare_unit {
            Some(per) => per,
            None => per.parse().map_err(|fault| match fault {
                QuantityFault::LongSpan => fault,
                _ => QuantityFault::Rate,
            })?,
        };
        let count = u32::try_from(count).map_err(|_| QuantityFault::Rate)?;
        Self::new(count, per).ok_or(QuantityFault::RatePerNothing)
    }
}

impl fmt::Display for Rate {
    /// `100/s`; `100/15m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = self.per.to_string();
        let unit = per.strip_prefix('1').filter(|unit| !unit.starts_with(|c: char| c.is_ascii_digit()));
        write!(f, "{}/{}", self.count, unit.unwrap_or(&per))
    }
}

/// A part of a whole: `20%`, `0.5%`. Kept in millionths, so that equal texts are equal values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ratio {
    millionths: u32,
}

impl Ratio {
    /// From whole percent; what exceeds `u32` millionths becomes the most.
    pub const fn from_percent(percent: u32) -> Self {
        Self { millionths: percent.saturating_mul(10_000) }
    }

    /// As a fraction: 0.2 for `20%`.
    pub fn as_f64(self) -> f64 {
        f64::from(self.millionths) / 1_000_000.0
    }

    /// In millionths: 200000 for `20%`.
    pub const fn millionths(self) -> u32 {
        self.millionths
    }
}

impl FromStr for Ratio {
    type Err = QuantityFault;

    fn from_str(text: &str) -> Result<Self, QuantityFault> {
        let number = text.strip_suffix('%').ok_or(QuantityFault::Ratio)?;
        let (whole, fraction) = number.split_once('.').map_or((number, None), |(a, b)| (a, Some(b)));
        let (whole, rest) = split_number(whole).ok_or(QuantityFault::Ratio)?;
        let fraction = fraction.map_or(Some(0), ten_thousandths);
        let millionths = fraction
            .filter(|_| rest.is_empty())
            .and_then(|fraction| whole.checked_mul(10_000)?.checked_add(fraction))
            .and_then(|millionths| u32::try_from(millionths).ok());
        Ok(Self { millionths: millionths.ok_or(QuantityFault::Ratio)? })
    }
}

/// One to four digits after the point, as ten-thousandths.
fn ten_thousandths(digits: &str) -> Option<u64> {
    let valid = (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if valid { format!("{digits:0<4}").parse().ok() } else { None }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.millionths / 10_000, self.millionths % 10_000);
        if fraction == 0 {
            return write!(f, "{whole}%");
        }
        let digits = format!("{fraction:04}");
        write!(f, "{whole}.{}%", digits.trim_end_matches('0'))
    }
}

/// serde and schemars for a type with a text form.
macro_rules! text_form {
    ($type:ident, $name:literal, $expecting:literal, $pattern:literal, $example:literal) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Seen;
                impl serde::de::Visitor<'_> for Seen {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Seen)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "description": $expecting,
                    "pattern": $pattern,
                    "examples": [$example],
                })
            }
        }
    };
}

text_form!(TimeSpan, "Duration", "a duration such as `10s`", "^[0-9]+(ms|s|m|h|d)$", "10s");
text_form!(ByteSize, "Size", "a size such as `64KiB`", "^[0-9]+(B|KiB|MiB|GiB|TiB)$", "64KiB");
text_form!(Rate, "Rate", "a rate such as `100/s`", "^[0-9]+/([0-9]+)?(ms|s|m|h|d)$", "100/15m");
text_form!(Ratio, "Ratio", "a percentage such as `20%`", r"^[0-9]+(\.[0-9]{1,4})?%$", "20%");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans() {
        for (text, millis, printed) in [
            ("250ms", 250, "250ms"),
            ("10s", 10_000, "10s"),
            ("5m", 300_000, "5m"),
            ("2h", 7_200_000, "2h"),
            ("1d", 86_400_000, "1d"),
            ("90s", 90_000, "90s"),
            ("120s", 120_000, "2m"),
            ("1500ms", 1_500, "1500ms"),
            ("0s", 0, "0s"),
            ("0ms", 0, "0s"),
            ("36500d", 36_500 * 86_400_000, "36500d"),
        ] {
            let span: TimeSpan = text.parse().unwrap();
            assert_eq!(span.duration(), Duration::from_millis(millis), "{text}");
            assert_eq!(span.to_string(), printed, "{text}");
        }
        for text in
            ["", "10", "s", "1.5s", "10 s", " 10s", "10S", "10sec", "1h30m", "-1s", "+1s", "١s", "1M", "10µs"]
        {
            assert_eq!(text.parse::<TimeSpan>(), Err(QuantityFault::TimeSpan), "{text}");
        }
        for text in ["36501d", "18446744073709551615ms", "18446744073709551615d"] {
            assert_eq!(text.parse::<TimeSpan>(), Err(QuantityFault::LongSpan), "{text}");
        }
        assert_eq!(TimeSpan::from_secs(u64::MAX), TimeSpan::MAX);
    }

    #[test]
    fn sizes() {
        for (text, bytes, printed) in [
            ("512B", 512, "512B"),
            ("64KiB", 65_536, "64KiB"),
            ("1MiB", 1 << 20, "1MiB"),
            ("4GiB", 4 << 30, "4GiB"),
            ("1TiB", 1 << 40, "1TiB"),
            ("1536KiB", 1536 << 10, "1536KiB"),
            ("1024B", 1024, "1KiB"),
            ("0B", 0, "0B"),
            ("0MiB", 0, "0B"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, printed), "{text}");
        }
        for (text, fault) in [
            ("64", QuantityFault::ByteSize),
            ("", QuantityFault::ByteSize),
            ("KiB", QuantityFault::ByteSize),
            ("1.5MiB", QuantityFault::ByteSize),
            ("64kib", QuantityFault::ByteSize),
            ("64KB", QuantityFault::DecimalUnit),
            ("64k", QuantityFault::DecimalUnit),
            ("1G", QuantityFault::DecimalUnit),
            ("16777216TiB", QuantityFault::LargeSize),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Err(fault), "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, count, per, printed) in [
            ("100/s", 100, 1_000, "100/s"),
            ("5/m", 5, 60_000, "5/m"),
            ("1/h", 1, 3_600_000, "1/h"),
            ("9/d", 9, 86_400_000, "9/d"),
            ("100/15m", 100, 900_000, "100/15m"),
            ("100/1s", 100, 1_000, "100/s"),
            ("7/10s", 7, 10_000, "7/10s"),
            ("0/s", 0, 1_000, "0/s"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.count(), rate.per()), (count, Duration::from_millis(per)), "{text}");
            assert_eq!(rate.to_string(), printed, "{text}");
        }
        for text in
            ["100", "100/", "/s", "100/sec", "100 / s", "1.5/s", "-1/s", "100/s/m", "4294967296/s", "1k/s"]
        {
            assert_eq!(text.parse::<Rate>(), Err(QuantityFault::Rate), "{text}");
        }
        assert_eq!("100/0s".parse::<Rate>(), Err(QuantityFault::RatePerNothing));
        assert_eq!("100/99999d".parse::<Rate>(), Err(QuantityFault::LongSpan));
    }

    #[test]
    fn ratios() {
        for (text, millionths, printed) in [
            ("20%", 200_000, "20%"),
            ("0%", 0, "0%"),
            ("100%", 1_000_000, "100%"),
            ("0.5%", 5_000, "0.5%"),
            ("12.0001%", 120_001, "12.0001%"),
            ("12.50%", 125_000, "12.5%"),
            ("250%", 2_500_000, "250%"),
        ] {
            let ratio: Ratio = text.parse().unwrap();
            assert_eq!((ratio.millionths(), ratio.to_string().as_str()), (millionths, printed), "{text}");
        }
        for text in
            ["20", "0.2", "%", "-1%", "1,5%", ".5%", "5.%", "1.23456%", "20 %", "1e2%", "429497%", "1%%"]
        {
            assert_eq!(text.parse::<Ratio>(), Err(QuantityFault::Ratio), "{text}");
        }
        assert!((Ratio::from_percent(20).as_f64() - 0.2).abs() < f64::EPSILON);
    }

    #[test]
    fn json_has_the_text_form_only() {
        assert_eq!(serde_json::from_str::<TimeSpan>("\"10s\"").unwrap(), TimeSpan::from_secs(10));
        assert_eq!(serde_json::to_string(&Ratio::from_percent(20)).unwrap(), "\"20%\"");
        let error = serde_json::from_str::<TimeSpan>("10").unwrap_err().to_string();
        assert!(error.contains("expected a duration such as `10s`"), "{error}");
        let error = serde_json::from_str::<ByteSize>("\"canary\"").unwrap_err().to_string();
        assert!(!error.contains("canary"), "{error}");
        let schema = schemars::schema_for!(Rate);
        assert_eq!(schema.get("type"), Some(&"string".into()));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(number in 0u64..1_000_000_000_000, count: u32, millionths: u32) {
            let span = TimeSpan::from_millis(number);
            prop_assert_eq!(span.to_string().parse(), Ok(span));
            let size = ByteSize::from_bytes(number);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            if let Some(rate) = Rate::new(count, span) {
                prop_assert_eq!(rate.to_string().parse(), Ok(rate));
            }
            let ratio = Ratio { millionths };
            prop_assert_eq!(ratio.to_string().parse(), Ok(ratio));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-zA-Z/%.µ]{0,24}") {
            let _ = (text.parse::<TimeSpan>(), text.parse::<ByteSize>(), text.parse::<Rate>(), text.parse::<Ratio>());
        }
    }
}
