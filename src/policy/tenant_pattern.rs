//! `tenant.pattern`: what a tenant's name looks like.
//!
//! A small part of the language of regular expressions, judged as a whole: characters, classes (`[A-Za-z0-9_]`), and how often
//! each may stand (`{16}`, `{1,64}`, `?`, `+`, `*`). The time that it takes is bounded by the length of the pattern times that of the
//! name squared; both are bounded.
//!
//! ```yaml
//! tenant: { header: X-Tenant, required: true, pattern: "acct_[0-9A-Za-z]{16}" }
//! ```

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::str::FromStr;

/// Bytes that a name may have.
pub const MAX_NAME: usize = 128;
/// Characters and classes that a pattern may have.
const MAX_PIECES: usize = 32;
/// Steps in which two patterns are compared.
const MAX_COMPARED: usize = 5_000;

/// In which pieces a name can stand, and how many characters each of them has taken.
type Reached = BTreeSet<(usize, usize)>;

/// A pattern, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantPattern(Vec<Piece>);

/// One character or class, and how often it may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// The ASCII characters, one bit each.
    class: u128,
    least: usize,
    most: usize,
}

const fn bit(byte: u8) -> u128 {
    1 << (byte & 127)
}

/// All characters from `first` to `last`.
const fn span(first: u8, last: u8) -> u128 {
    let (mut all, mut at) = (0, first);
    while at <= last {
        all |= bit(at);
        at += 1;
    }
    all
}

/// What may stand in a secret reference and change nothing there.
const PLAIN: u128 =
    span(b'A', b'Z') | span(b'a', b'z') | span(b'0', b'9') | bit(b'.') | bit(b'_') | bit(b'-');

impl Default for TenantPattern {
    fn default() -> Self {
        Self(vec![Piece { class: PLAIN, least: 1, most: MAX_NAME }])
    }
}

impl TenantPattern {
    /// Whether it is a name. `.`, and what holds `..`, is none whatever the pattern says: a name may stand in a path.
    #[must_use]
    pub fn admits(&self, name: &str) -> bool {
        if name.is_empty() || name.len() > MAX_NAME || name == "." || name.contains("..") {
            return false;
        }
        let name = name.as_bytes();
        // How many bytes from the begin the pieces so far can have taken.
        let mut reached = [false; MAX_NAME + 1];
        reached[0] = true;
        for piece in &self.0 {
            reached = piece.step(name, &reached);
        }
        reached[name.len()]
    }

    /// Whether it may admit a name that `other` does not; said of two also where that is too long to be found out.
    #[must_use]
    pub fn admits_more_than(&self, other: &Self) -> bool {
        let letters = self.letters(other);
        let first = (self.first(), other.first());
        let mut seen = HashSet::from([first.clone()]);
        let mut line = VecDeque::from([(first, 0)]);
        while let Some(((ours, theirs), length)) = line.pop_front() {
            if length > 0 && self.is_whole(&ours) && !other.is_whole(&theirs) {
                return true;
            }
            if length == MAX_NAME {
                continue;
            }
            for letter in &letters {
                let next = (self.after(&ours, *letter), other.after(&theirs, *letter));
                if next.0.is_empty() || !seen.insert(next.clone()) {
                    continue;
                }
                if seen.len() > MAX_COMPARED {
                    return true;
                }
                line.push_back((next, length + 1));
            }
        }
        false
    }

    /// One character of each kind that pieces of the two tell apart, as its bit.
    fn letters(&self, other: &Self) -> Vec<u128> {
        let mut kinds = HashMap::new();
        for letter in (0..128).map(|byte| 1_u128 << byte) {
            let all = self.0.iter().chain(&other.0);
            let kind: Vec<bool> = all.map(|piece| piece.class & letter != 0).collect();
            kinds.entry(kind).or_insert(letter);
        }
        kinds.into_values().collect()
    }

    /// Where a name can stand that has not begun.
    fn first(&self) -> Reached {
        let mut reached = Reached::new();
        self.reach(0, 0, &mut reached);
        reached
    }

    /// Where it can stand a character later.
    fn after(&self, before: &Reached, letter: u128) -> Reached {
        let mut reached = Reached::new();
        for (at, taken) in before {
            if let Some(piece) = self.0.get(*at)
                && *taken < piece.most
                && piece.class & letter != 0
            {
                self.reach(*at, taken + 1, &mut reached);
            }
        }
        reached
    }

    fn reach(&self, at: usize, taken: usize, reached: &mut Reached) {
        reached.insert((at, taken));
        if let Some(piece) = self.0.get(at)
            && taken >= piece.least
        {
            self.reach(at + 1, 0, reached);
        }
    }

    fn is_whole(&self, reached: &Reached) -> bool {
        reached.contains(&(self.0.len(), 0))
    }

    /// Whether all its characters may stand in a secret reference.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.0.iter().all(|piece| piece.class & !PLAIN == 0)
    }
}

impl Piece {
    fn step(&self, name: &[u8], before: &[bool; MAX_NAME + 1]) -> [bool; MAX_NAME + 1] {
        let mut after = [false; MAX_NAME + 1];
        for start in (0..=name.len()).filter(|start| before[*start]) {
            let run = name[start..]
                .iter()
                .take_while(|byte| byte.is_ascii() && self.class & bit(**byte) != 0)
                .count();
            let most = run.min(self.most);
            if self.least <= most {
                after[start + self.least..=start + most].fill(true);
            }
        }
        after
    }
}

const FORM: &str =
    "expected characters, classes such as `[A-Za-z0-9_]`, and how often: `{16}`, `{1,64}`, `?`, `+`, `*`";

impl FromStr for TenantPattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rest = text.as_bytes();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let class = class(&mut rest)?;
            let (least, most) = times(&mut rest)?;
            pieces.push(Piece { class, least, most });
        }
        if pieces.is_empty() || pieces.len() > MAX_PIECES {
            return Err("a pattern has 1 to 32 characters or classes");
        }
        Ok(Self(pieces))
    }
}

fn class(rest: &mut &[u8]) -> Result<u128, &'static str> {
    match rest {
        [b'[', after @ ..] => {
            let end = after.iter().position(|byte| *byte == b']').ok_or(FORM)?;
            let inside = &after[..end];
            *rest = &after[end + 1..];
            members(inside)
        }
        [one, after @ ..] if is_literal(*one) => {
            *rest = after;
            Ok(bit(*one))
        }
        _ => Err(FORM),
    }
}

/// Characters that mean themselves: not those that mean something in other expressions and are not known here.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_graphic() && !br"\[](){}|^$?+*.".contains(&byte)
}

fn members(mut inside: &[u8]) -> Result<u128, &'static str> {
    let is_member = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'^' | b'[');
    let mut class = 0;
    loop {
        match inside {
            [] => break,
            [first, b'-', last, after @ ..] if is_member(*first) && is_member(*last) && first <= last => {
                class |= span(*first, *last);
                inside = after;
            }
            [_, b'-', _, ..] => return Err(FORM),
            [one, after @ ..] if is_member(*one) => {
                class |= bit(*one);
                inside = after;
            }
            _ => return Err(FORM),
        }
    }
    if class == 0 { Err(FORM) } else { Ok(class) }
}

fn times(rest: &mut &[u8]) -> Result<(usize, usize), &'static str> {
    let (times, after) = match rest {
        [b'?', after @ ..] => ((0, 1), after),
        [b'+', after @ ..] => ((1, MAX_NAME), after),
        [b'*', after @ ..] => ((0, MAX_NAME), after),
        [b'{', after @ ..] => {
            let end = after.iter().position(|byte| *byte == b'}').ok_or(FORM)?;
            (counts(&after[..end])?, &after[end + 1..])
        }
        _ => ((1, 1), &**rest),
    };
    *rest = after;
    Ok(times)
}

fn counts(inside: &[u8]) -> Result<(usize, usize), &'static str> {
    let text = std::str::from_utf8(inside).map_err(|_| FORM)?;
    let number = |text: &str| text.parse::<usize>().map_err(|_| FORM);
    let (least, most) = match text.split_once(',') {
        None => (number(text)?, number(text)?),
        Some((least, "")) => (number(least)?, MAX_NAME),
        Some((least, most)) => (number(least)?, number(most)?),
    };
    if least > most || most > MAX_NAME {
        return Err("a name has at most 128 characters");
    }
    Ok((least, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_a_whole() {
        let long = "a".repeat(128);
        let table: &[(&str, &[&str], &[&str])] = &[
            (
                "[A-Za-z0-9._-]{1,128}",
                &["acme", "Acme-2_x.eu", "-", &long],
                &["", "a/b", "a b", "é", "..", "a..b", "."],
            ),
            (
                "acct_[0-9A-Za-z]{16}",
                &["acct_0123456789abcdEF"],
                &["acct_0123456789abcdE", "xacct_0123456789abcdEF", "acct_0123456789abcdEFg"],
            ),
            ("[a-z]+-?[0-9]*", &["a", "ab-1", "a1", "a-"], &["-1", "1", "A1", "a-b"]),
            ("[a-z]*[a-z]*[a-z]*b", &["b", "aab"], &["aaa"]),
            ("[0-9]{4,}", &["1234", "123456"], &["123"]),
            ("[]", &[], &[]),
        ];
        for (text, good, bad) in &table[..5] {
            let pattern: TenantPattern = text.parse().unwrap();
            assert!(good.iter().all(|name| pattern.admits(name)), "{text}");
            for name in *bad {
                assert!(!pattern.admits(name), "{text} {name}");
            }
        }
        let default = TenantPattern::default();
        assert_eq!("[A-Za-z0-9._-]{1,128}".parse(), Ok(default.clone()));
        assert!(default.is_plain() && !default.admits(&"a".repeat(129)));
        for name in ["..", ".", "a/../b", "../a", "a\\b", "a%2e", "a\0", "a\n", "\u{2024}\u{2024}"] {
            assert!(!default.admits(name), "{name:?}");
            assert!(
                !"[!-~]{1,128}".parse::<TenantPattern>().unwrap().admits(name)
                    || name.contains(['/', '\\', '%']),
                "{name:?}"
            );
        }
    }

    #[test]
    fn a_pattern_that_admits_more_is_told_from_one_that_admits_less() {
        let table = [
            // pattern, other; whether the first admits more, whether the second does
            ("[A-Za-z0-9._-]{1,128}", "acct_[0-9]{16}", true, false),
            ("acct_[0-9a-f]{16}", "acct_[0-9]{16}", true, false),
            ("acct_[0-9]{8,16}", "acct_[0-9]{8}", true, false),
            ("[a-z]+", "[a-z][a-z]*", false, false),
            ("[a-c]{1,4}", "[abc]?[a-c]{0,3}", false, false),
            ("[a-z]{1,4}", "[A-Z]{1,4}", true, true),
            ("[a-z]*[a-z]*[a-z]*b", "[a-z]+", false, true),
            ("a{128}", "a{127}", true, true),
        ];
        for (one, other, more, less) in table {
            let (first, second): (TenantPattern, TenantPattern) =
                (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(first.admits_more_than(&second), more, "{one} {other}");
            assert_eq!(second.admits_more_than(&first), less, "{other} {one}");
            assert!(!first.admits_more_than(&first), "{one}");
        }
        // What is too long to be found out is taken for more, within a moment.
        let long: TenantPattern = "[ab]*a[ab]{12}[ab]*b[ab]{12}".parse().unwrap();
        assert!(long.admits_more_than(&"[ab]*b[ab]{12}[ab]*a[ab]{12}".parse().unwrap()));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            "",
            "[",
            "[]",
            "a{",
            "a{2,1}",
            "a{129}",
            "a{x}",
            "(a|b)",
            "a.b",
            "^a$",
            "\\d+",
            "[^a]",
            "[z-a]",
            "*",
            "a b",
            "é",
            &"a".repeat(33),
        ] {
            assert!(text.parse::<TenantPattern>().is_err(), "{text}");
        }
        assert!(!"[a-z@]+".parse::<TenantPattern>().unwrap().is_plain());
        assert!("[a-z.]+".parse::<TenantPattern>().unwrap().is_plain());
    }
}
