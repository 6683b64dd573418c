//! What a parameter may look like: literal characters and classes, each with how often. `[a-z0-9][a-z0-9-]{0,62}` is a
//! label of a host name. There is no dot that means anything else than a dot, no alternative and no group: what goes into a
//! host must be readable at a glance.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// The most repetitions of one part.
const MOST: usize = 512;

/// A pattern; it stands for the whole value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    chars: Chars,
    least: usize,
    most: usize,
}

/// A set of ASCII characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chars(u128);

/// A text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pattern: characters, `[a-z0-9-]` and `{{1,63}}`")]
pub struct PatternFault;

impl Chars {
    /// What stands between the brackets: characters, and ranges as `a-z`. A `-` at the end is itself.
    pub fn parse(text: &str) -> Result<Self, PatternFault> {
        let bytes = text.as_bytes();
        let mut set = 0_u128;
        let mut at = 0;
        while let Some(&from) = bytes.get(at) {
            let to = match (bytes.get(at + 1), bytes.get(at + 2)) {
                (Some(b'-'), Some(&to)) => {
                    at += 2;
                    to
                }
                _ => from,
            };
            if !to.is_ascii_graphic() || !from.is_ascii_graphic() || from > to {
                return Err(PatternFault);
            }
            set |= (from..=to).fold(0, |set, byte| set | 1 << byte);
            at += 1;
        }
        if set == 0 { Err(PatternFault) } else { Ok(Self(set)) }
    }

    /// Whether the character is one of them.
    pub fn contains(self, byte: u8) -> bool {
        byte.is_ascii() && self.0 >> byte & 1 == 1
    }

    /// The set as bits: bit n for the ASCII character n.
    pub fn bits(self) -> u128 {
        self.0
    }
}

impl Pattern {
    /// Whether the whole value is as the pattern says.
    pub fn matches(&self, value: &str) -> bool {
        matches(&self.parts, value.as_bytes())
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Takes as much as it can, and gives back where the rest then does not fit. Patterns are ours and have a few parts.
fn matches(parts: &[Part], value: &[u8]) -> bool {
    let Some((part, rest)) = parts.split_first() else { return value.is_empty() };
    let run = value.iter().take(part.most).take_while(|byte| part.chars.contains(**byte)).count();
    (part.least..=run).rev().any(|taken| matches(rest, &value[taken..]))
}

impl FromStr for Pattern {
    type Err = PatternFault;

    fn from_str(text: &str) -> Result<Self, PatternFault> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let chars = match rest.strip_prefix('[') {
                Some(inner) => {
                    let (set, after) = inner.split_once(']').ok_or(PatternFault)?;
                    rest = after;
                    Chars::parse(set)?
                }
                None => {
                    rest = &rest[first.len_utf8()..];
                    if !first.is_ascii_graphic() || "{}()*+?|\\^$".contains(first) {
                        return Err(PatternFault);
                    }
                    Chars(1 << (first as u32))
                }
            };
            let (least, most) = match rest.strip_prefix('{') {
                Some(inner) => {
                    let (times, after) = inner.split_once('}').ok_or(PatternFault)?;
                    rest = after;
                    times_of(times)?
                }
                None => (1, 1),
            };
            parts.push(Part { chars, least, most });
        }
        if parts.is_empty() { Err(PatternFault) } else { Ok(Self { text: text.to_owned(), parts }) }
    }
}

/// `3`, or `0,62`.
fn times_of(text: &str) -> Result<(usize, usize), PatternFault> {
    let number = |text: &str| text.parse::<usize>().map_err(|_| PatternFault);
    let (least, most) = match text.split_once(',') {
        Some((least, most)) => (number(least)?, number(most)?),
        None => (number(text)?, number(text)?),
    };
    if least > most || most == 0 || most > MOST { Err(PatternFault) } else { Ok((least, most)) }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_and_what_does_not() {
        for (pattern, yes, no) in [
            (
                "[a-z0-9][a-z0-9-]{0,62}",
                &["a", "acme", "a-1", "0"][..],
                &["", "-a", "a.b", "a/b", "A", "ä", "a b"][..],
            ),
            ("us[0-9]{1,2}", &["us1", "us21"], &["us", "us123", "eu1", "us1.evil.test"]),
            (
                "[a-z]{2}-[a-z]{3,12}-[0-9]",
                &["eu-west-1", "ap-southeast-2"],
                &["eu-west-", "eu--1", "eu-west-1x"],
            ),
            ("[a-z.]{3,9}x", &["a.bx", "xxxx"], &["x", "abcabcabcabcx", "a.b"]),
            ("[0-9a-f-]{4}", &["12-f"], &["12-g", "12345"]),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            for value in yes {
                assert!(parsed.matches(value), "{pattern} {value}");
            }
            for value in no {
                assert!(!parsed.matches(value), "{pattern} {value}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern() {
        for text in [
            "", "[", "[]", "[z-a]", "a{", "a{2,1}", "a{0}", "a{x}", "a+", ".*", "(a)", "a|b", "ä", "[a b]",
            "a{999}",
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(PatternFault), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_value_of_a_label_leaves_it(value in "[-a-z0-9./:@%A-Z]{0,70}") {
            let label: Pattern = "[a-z0-9][a-z0-9-]{0,62}".parse().unwrap();
            if label.matches(&value) {
                proptest::prop_assert!(!value.contains(['.', '/', ':', '@', '%']) && (1..=63).contains(&value.len()));
            }
        }
    }
}
