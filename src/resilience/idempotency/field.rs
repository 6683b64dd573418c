//! The key as a field of a JSON text: found where the app has written one, and written where it has not. Pure.
//!
//! What parsers could read in two ways counts as no key, and nothing is written into it: a field that stands there twice, one
//! in other letter case, a text that is not JSON to its last byte.

use std::ops::Range;

use crate::message::json::{Broken, Scan, is_twin, quote};
use crate::resilience::pointer::{Pointer, Step, index};

/// What a text has at the place of the key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A key, in each element where the pointer goes through a list.
    Own,
    /// None at these places, and a place for it at each; the others have one.
    Gaps(Vec<Gap>),
}

/// A place for a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// What the key takes the place of; nothing where it is added.
    at: Range<usize>,
    shape: Shape,
}

#[derive(Debug, PartialEq, Eq)]
enum Shape {
    /// The value of a field that is there, `null` or blank.
    Value,
    /// The only member of an object that is empty.
    Only,
    /// A further member, behind the last.
    Further,
}

/// Not read, or not in one way only.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unclear;

impl From<Broken> for Unclear {
    fn from(_: Broken) -> Self {
        Self
    }
}

/// Looks for the key in `text`.
///
/// # Errors
/// The text has no such place, or it is not clear what stands there.
pub(super) fn find(text: &[u8], field: &Pointer) -> Result<Found, Unclear> {
    let mut search = Search { scan: Scan::new(text)?, own: false, gaps: Vec::new() };
    search.walk(field.steps(), 0)?;
    search.scan.end()?;
    match search {
        Search { gaps, .. } if !gaps.is_empty() => Ok(Found::Gaps(gaps)),
        Search { own: true, .. } => Ok(Found::Own),
        Search { .. } => Err(Unclear),
    }
}

/// How long `text` will be with keys of `key` bytes in all gaps.
pub(super) fn filled_length(text: &[u8], gaps: &[Gap], name: &str, key: usize) -> usize {
    let name = quoted(name).len();
    let added = |gap: &Gap| match gap.shape {
        Shape::Value => key + 2,
        Shape::Only => name + key + 3,
        Shape::Further => name + key + 4,
    };
    let lost: usize = gaps.iter().map(|gap| gap.at.len()).sum();
    text.len() + gaps.iter().map(added).sum::<usize>() - lost
}

/// The text with a key of its own in each gap; every other byte stays.
///
/// # Errors
/// What `make` says.
pub(super) fn fill<E>(
    text: &[u8],
    gaps: &[Gap],
    name: &str,
    mut make: impl FnMut() -> Result<String, E>,
) -> Result<Vec<u8>, E> {
    let name = quoted(name);
    let mut out = Vec::with_capacity(text.len());
    let mut done = 0;
    for gap in gaps {
        out.extend_from_slice(&text[done..gap.at.start]);
        if gap.shape == Shape::Further {
            out.push(b',');
        }
        if gap.shape != Shape::Value {
            out.extend_from_slice(&name);
            out.push(b':');
        }
        quote(make()?.as_bytes(), &mut out);
        done = gap.at.end;
    }
    out.extend_from_slice(&text[done..]);
    Ok(out)
}

fn quoted(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    quote(name.as_bytes(), &mut out);
    out
}

struct Search<'a> {
    scan: Scan<'a>,
    /// A key was found.
    own: bool,
    gaps: Vec<Gap>,
}

impl Search<'_> {
    /// Follows the pointer into the value that begins here.
    fn walk(&mut self, steps: &[Step], depth: usize) -> Result<(), Unclear> {
        match (steps, self.scan.peek()) {
            ([], _) => self.key(depth),
            ([Step::Named(name), below @ ..], Some(b'{')) => self.object(name, below, depth),
            ([step, below @ ..], Some(b'[')) => self.list(step, below, depth),
            _ => Err(Unclear),
        }
    }

    fn object(&mut self, name: &str, below: &[Step], depth: usize) -> Result<(), Unclear> {
        self.scan.enter(b'{')?;
        let (open, mut found, mut last) = (self.scan.at(), false, None);
        while let Some((_, key)) = self.scan.member(last.is_none())? {
            if !is_twin(&key, name) {
                self.scan.value(depth)?;
            } else if found || key != name {
                return Err(Unclear);
            } else {
                found = true;
                self.walk(below, Scan::deeper(depth)?)?;
            }
            last = Some(self.scan.at());
        }
        match (found, below, last) {
            (true, ..) => {}
            // What the key would stand in is the app's to send.
            (false, [_, ..], _) => return Err(Unclear),
            (false, [], None) => self.gaps.push(Gap { at: open..open, shape: Shape::Only }),
            (false, [], Some(last)) => self.gaps.push(Gap { at: last..last, shape: Shape::Further }),
        }
        Ok(())
    }

    fn list(&mut self, step: &Step, below: &[Step], depth: usize) -> Result<(), Unclear> {
        let wanted = match step {
            Step::Each => None,
            Step::Named(name) => Some(index(name).ok_or(Unclear)?),
        };
        self.scan.enter(b'[')?;
        let (mut at, mut found) = (0, false);
        while self.scan.element(at == 0)? {
            if wanted.is_none_or(|wanted| wanted == at) {
                found = true;
                self.walk(below, Scan::deeper(depth)?)?;
            } else {
                self.scan.value(depth)?;
            }
            at += 1;
        }
        if found { Ok(()) } else { Err(Unclear) }
    }

    /// The value of the field itself: a text or a number is a key; nothing, or a blank text, is none.
    fn key(&mut self, depth: usize) -> Result<(), Unclear> {
        let start = self.scan.at();
        let value = self.scan.value(depth)?;
        let blank = match value.first() {
            Some(b'"') => {
                let text: String = serde_json::from_slice(value).map_err(|_| Unclear)?;
                text.trim().is_empty()
            }
            Some(b'-' | b'0'..=b'9') => false,
            Some(b'n') => true,
            _ => return Err(Unclear),
        };
        if blank {
            self.gaps.push(Gap { at: start..self.scan.at(), shape: Shape::Value });
        } else {
            self.own = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// `own`, the text with keys `K1`, `K2` and so on, or nothing where it is not clear.
    fn written(field: &str, text: &str) -> Option<String> {
        let pointer = Pointer::parse(field).unwrap();
        let gaps = match find(text.as_bytes(), &pointer).ok()? {
            Found::Own => return Some("own".to_owned()),
            Found::Gaps(gaps) => gaps,
        };
        let name = field.rsplit('/').next().unwrap();
        let mut made = 0;
        let filled = fill(text.as_bytes(), &gaps, name, || -> Result<String, ()> {
            made += 1;
            Ok(format!("K{made}"))
        });
        let filled = String::from_utf8(filled.unwrap()).unwrap();
        assert_eq!(filled_length(text.as_bytes(), &gaps, name, 2), filled.len(), "{text}");
        Some(filled)
    }

    #[test]
    fn a_key_is_written_where_there_is_none_and_nothing_else_changes() {
        for (field, before, after) in [
            ("/k", "{}", r#"{"k":"K1"}"#),
            ("/k", " {\n}\r\n", " {\"k\":\"K1\"\n}\r\n"),
            ("/k", r#"{"a": 1.50e+2 , "b":[ ] }"#, r#"{"a": 1.50e+2 , "b":[ ],"k":"K1" }"#),
            ("/k", r#"{"a":1,"a":2}"#, r#"{"a":1,"a":2,"k":"K1"}"#),
            ("/k", r#"{"k": null}"#, r#"{"k": "K1"}"#),
            ("/k", r#"{"k":"","z":0}"#, r#"{"k":"K1","z":0}"#),
            ("/k", r#"{"k":" \t"}"#, r#"{"k":"K1"}"#),
            ("/k", r#"{"a":{"k":"inner"}}"#, r#"{"a":{"k":"inner"},"k":"K1"}"#),
            ("/a/k", r#"{"a":{},"k":"outer"}"#, r#"{"a":{"k":"K1"},"k":"outer"}"#),
            ("/$k", r#"{"ks":1}"#, r#"{"ks":1,"$k":"K1"}"#),
            ("/e/*/k", r#"{"e":[{},{"a":1}]}"#, r#"{"e":[{"k":"K1"},{"a":1,"k":"K2"}]}"#),
            ("/e/*/k", r#"{"e":[{"k":"own"},{"a":1}]}"#, r#"{"e":[{"k":"own"},{"a":1,"k":"K1"}]}"#),
            ("/*/p/k", r#"[{"p":{"a":1}}, {"p":{"k":""}}]"#, r#"[{"p":{"a":1,"k":"K1"}}, {"p":{"k":"K2"}}]"#),
            ("/e/1/k", r#"{"e":[{},{}]}"#, r#"{"e":[{},{"k":"K1"}]}"#),
        ] {
            assert_eq!(written(field, before).as_deref(), Some(after), "{field} {before}");
        }
    }

    #[test]
    fn the_apps_own_key_is_one_and_what_is_not_clear_is_none() {
        for (field, text, found) in [
            ("/k", r#"{"k":"x"}"#, Some("own")),
            ("/k", r#"{"k":7}"#, Some("own")),
            ("/k", r#"{"\u006b":"x"}"#, Some("own")),
            ("/e/*/k", r#"{"e":[{"k":"a"},{"k":"b"}]}"#, Some("own")),
            ("/ks/*", r#"{"ks":["a","b"]}"#, Some("own")),
            ("/e/0/k", r#"{"e":[{"k":"a"},7]}"#, Some("own")),
            // Twice, or in other letter case: parsers differ.
            ("/k", r#"{"k":"x","k":"y"}"#, None),
            ("/k", r#"{"k":"x","k":"x"}"#, None),
            ("/k", r#"{"k":"x","K":"y"}"#, None),
            ("/k", r#"{"K":"y"}"#, None),
            ("/k", r#"{"k":"x","\u006b":""}"#, None),
            ("/k", r#"{"k\u0000":"x"}"#, None),
            ("/a/k", r#"{"a":{"k":"x"},"a":{}}"#, None),
            ("/a/k", r#"{"A":{"k":"x"}}"#, None),
            // No key, and nothing that one could take the place of.
            ("/k", r#"{"k":true}"#, None),
            ("/k", r#"{"k":{}}"#, None),
            ("/k", r#"{"k":["x"]}"#, None),
            // No place for it.
            ("/a/k", r#"{}"#, None),
            ("/a/k", r#"{"a":null}"#, None),
            ("/k", "[]", None),
            ("/k", "[{}]", None),
            ("/k", "7", None),
            ("/k", "\"k\"", None),
            ("/k", "", None),
            ("/k", " ", None),
            ("/e/*/k", r#"{"e":[]}"#, None),
            ("/e/*/k", r#"{"e":{}}"#, None),
            ("/e/*/k", r#"{"e":[{},7]}"#, None),
            ("/e/7/k", r#"{"e":[{}]}"#, None),
            ("/e/x/k", r#"{"e":[{}]}"#, None),
            // Not JSON to the last byte.
            ("/k", "k=x", None),
            ("/k", r#"{"k":"x"} {}"#, None),
            ("/k", r#"{"k":"x","#, None),
            ("/k", r#"{"a":1,}"#, None),
            ("/k", r#"{"k":"\ud800"}"#, None),
            ("/k", "\u{feff}{}", None),
            ("/k", "{\"a\":1}\n{\"a\":2}", None),
        ] {
            assert_eq!(written(field, text).as_deref(), found, "{field} {text}");
        }
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(written("/k", &deep), None);
        assert_eq!(find(b"{\"a\":\"\xff\"}", &Pointer::parse("/k").unwrap()), Err(Unclear));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_key_and_the_rest_as_before(
            elements in prop::collection::vec(prop::collection::btree_map("[a-c]{1,2}", any::<i32>(), 0..4), 1..5),
            pretty in any::<bool>(),
        ) {
            let before = serde_json::json!({ "e": elements });
            let text = if pretty { serde_json::to_string_pretty(&before) } else { serde_json::to_string(&before) };
            let after = written("/e/*/k", &text.unwrap()).unwrap();
            prop_assert_eq!(written("/e/*/k", &after), Some("own".to_owned()));
            let mut read: Value = serde_json::from_str(&after).unwrap();
            for (at, element) in read["e"].as_array_mut().unwrap().iter_mut().enumerate() {
                let key = element.as_object_mut().unwrap().remove("k");
                prop_assert_eq!(key, Some(Value::from(format!("K{}", at + 1))));
            }
            prop_assert_eq!(read, before);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(text in prop::collection::vec(any::<u8>(), 0..64)) {
            if find(&text, &Pointer::parse("/k").unwrap()).is_ok() {
                prop_assert!(serde_json::from_slice::<Value>(&text).is_ok());
            }
        }
    }
}
