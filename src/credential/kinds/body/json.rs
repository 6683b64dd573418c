//! Writes one field into a JSON text, and leaves every other byte of it as it is.
//!
//! Read strictly, by [`crate::message::json`]: what parsers read in different ways is how a value of the app's could win at the
//! provider. A second key of the same name, one spelled `\u0061pi_key`, one in capitals (Go matches those), one that ends at
//! a NUL: all of these go.

use std::ops::Range;

use zeroize::Zeroizing;

use crate::message::json::{Broken, Scan, is_twin, quote};

/// More of one name are no mistake.
const MOST: usize = 64;

const MALFORMED: &str = "the credential goes into the body, and the body is not valid JSON";
const BOM: &str =
    "the credential goes into the body, and the JSON begins with a byte order mark (RFC 8259 section 8.1)";
const NOT_OBJECT: &str = "the credential goes into a field of the body, and the JSON is no object there";
const TWICE: &str = "the JSON names the object that the credential goes into twice, or in other letter case";
const DEEP: &str = "the credential goes into the body, and the JSON is nested too deeply";
const MANY: &str = "the JSON names the credential's field too often";

/// A part of a text, and what takes its place.
type Edit = (Range<usize>, Zeroizing<Vec<u8>>);

/// The text with `value` at `path`, and only there. Objects on the way that are missing are made. An empty text counts as
/// an empty object. `value` is ASCII.
///
/// # Errors
/// What is wrong with the text, for the app.
pub fn set(text: &[u8], path: &[String], value: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    if text.is_empty() {
        return set(b"{}", path, value);
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(BOM);
    }
    let mut scan = Scan::new(text)?;
    let mut edits = Vec::new();
    if scan.peek() != Some(b'{') {
        // Whatever it is: a text that is malformed is told so.
        scan.value(0)?;
        scan.end()?;
        return Err(NOT_OBJECT);
    }
    edit_object(&mut scan, path, value, 0, &mut edits)?;
    scan.end()?;
    Ok(apply(text, &edits))
}

impl From<Broken> for &'static str {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Malformed => MALFORMED,
            Broken::Deep => DEEP,
        }
    }
}

fn apply(text: &[u8], edits: &[Edit]) -> Zeroizing<Vec<u8>> {
    let added: usize = edits.iter().map(|(_, new)| new.len()).sum();
    // Never grown, so that no piece of the credential stays behind in memory that was given back.
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() + added));
    let mut done = 0;
    for (range, new) in edits {
        out.extend_from_slice(&text[done..range.start]);
        out.extend_from_slice(new);
        done = range.end;
    }
    out.extend_from_slice(&text[done..]);
    out
}

/// `"a":{"b":"value"}` for a path of `a`, `b`.
fn member(path: &[String], value: &[u8]) -> Zeroizing<Vec<u8>> {
    let names: usize = path.iter().map(|name| 6 * name.len() + 6).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(names + 2 * value.len() + 2));
    for (depth, name) in path.iter().enumerate() {
        if depth > 0 {
            out.push(b'{');
        }
        quote(name.as_bytes(), &mut out);
        out.push(b':');
    }
    quote(value, &mut out);
    out.extend(std::iter::repeat_n(b'}', path.len().saturating_sub(1)));
    out
}

/// Reads the object that begins here, and notes what has to change in it.
fn edit_object(
    scan: &mut Scan<'_>,
    path: &[String],
    value: &[u8],
    depth: usize,
    edits: &mut Vec<Edit>,
) -> Result<(), &'static str> {
    let [name, below @ ..] = path else { return Err(NOT_OBJECT) };
    scan.enter(b'{')?;
    let (open, mut found, mut last) = (scan.at(), 0, None);
    while let Some((start, key)) = scan.member(last.is_none())? {
        let ours = is_twin(&key, name);
        if ours && !below.is_empty() {
            if found > 0 || key != *name {
                return Err(TWICE);
            }
            if scan.peek() != Some(b'{') {
                return Err(NOT_OBJECT);
            }
            edit_object(scan, below, value, Scan::deeper(depth)?, edits)?;
        } else {
            scan.value(depth)?;
        }
        if ours {
            found += 1;
            if found > MOST {
                return Err(MANY);
            }
            if below.is_empty() {
                edits.push(match (found, last) {
                    (1, _) | (_, None) => (start..scan.at(), member(path, value)),
                    // With the comma before it.
                    (_, Some(last)) => (last..scan.at(), Zeroizing::default()),
                });
            }
        }
        last = Some(scan.at());
    }
    if found == 0 {
        let new = member(path, value);
        edits.push(match last {
            None => (open..open, new),
            Some(last) => (last..last, Zeroizing::new([b",", new.as_slice()].concat())),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::message::json::DEEPEST;

    fn path(dotted: &str) -> Vec<String> {
        dotted.split('.').map(str::to_owned).collect()
    }

    fn try_set(text: &str, dotted: &str) -> Result<String, &'static str> {
        set(text.as_bytes(), &path(dotted), b"KEY").map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn every_other_byte_stays_as_it_is() {
        for (before, field, after) in [
            ("", "k", r#"{"k":"KEY"}"#),
            ("{}", "k", r#"{"k":"KEY"}"#),
            (" {\n}\r\n", "k", " {\"k\":\"KEY\"\n}\r\n"),
            (r#"{"a": 1.50e+2 , "b":[ ]}"#, "k", r#"{"a": 1.50e+2 , "b":[ ],"k":"KEY"}"#),
            (r#"{"k":"app","a":1}"#, "k", r#"{"k":"KEY","a":1}"#),
            (r#"{"a":1,"k":{"x":[1]}}"#, "k", r#"{"a":1,"k":"KEY"}"#),
            (r#"{"k":1, "a":"\u0000\/", "k" : 2}"#, "k", r#"{"k":"KEY", "a":"\u0000\/"}"#),
            (r#"{"k":1,"k":2,"k":3}"#, "k", r#"{"k":"KEY"}"#),
            (r#"{"k":1,"k":2,"a":3,"K":4,"b":5}"#, "k", r#"{"k":"KEY","a":3,"b":5}"#),
            (r#"{"a":{"k":1}}"#, "k", r#"{"a":{"k":1},"k":"KEY"}"#),
            (r#"{"a":{"k":1,"z":2},"k":3}"#, "a.k", r#"{"a":{"k":"KEY","z":2},"k":3}"#),
            (r#"{"x":1}"#, "a.b.k", r#"{"x":1,"a":{"b":{"k":"KEY"}}}"#),
            (r#"{"a":{}}"#, "a.b.k", r#"{"a":{"b":{"k":"KEY"}}}"#),
        ] {
            assert_eq!(try_set(before, field).as_deref(), Ok(after), "{before}");
        }
    }

    #[test]
    fn every_spelling_of_the_name_goes() {
        for twin in [
            r"api_key",
            r"\u0061pi_key",
            r"API_KEY",
            r"Api_Key",
            r"api_\u212Aey",
            r"api_key\u0000",
            r"api_key\u0000x",
            "api_\u{212A}ey",
        ] {
            let text = format!(r#"{{"{twin}":"app","a":1,"{twin}":"app"}}"#);
            assert_eq!(try_set(&text, "api_key").as_deref(), Ok(r#"{"api_key":"KEY","a":1}"#), "{twin}");
        }
        let text = r#"{"secret":1,"\u017fecret":2,"SECRET":3,"secrets":4}"#;
        assert_eq!(try_set(text, "secret").as_deref(), Ok(r#"{"secret":"KEY","secrets":4}"#));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (text, why) in [
            ("\u{feff}{}", BOM),
            ("[]", NOT_OBJECT),
            ("null", NOT_OBJECT),
            ("\"x\" y", MALFORMED),
            ("{} {}", MALFORMED),
            ("{}x", MALFORMED),
            ("{,}", MALFORMED),
            (r#"{"a":1,}"#, MALFORMED),
            (r#"{"a":1 "b":2}"#, MALFORMED),
            (r#"{"a" 1}"#, MALFORMED),
            (r"{'a':1}", MALFORMED),
            (r"{a:1}", MALFORMED),
            (r#"{"a":01}"#, MALFORMED),
            (r#"{"a":1.}"#, MALFORMED),
            (r#"{"a":NaN}"#, MALFORMED),
            (r#"{"a":+1}"#, MALFORMED),
            (r#"{"a":"\x"}"#, MALFORMED),
            (r#"{"a":"\u12g4"}"#, MALFORMED),
            ("{\"a\":\"\n\"}", MALFORMED),
            (r#"{"api_key\ud800":1}"#, MALFORMED),
            (r#"{/*"*/"a":1}"#, MALFORMED),
            (r#"{"a":1"#, MALFORMED),
            (r#"{"a":"x"#, MALFORMED),
            ("   ", MALFORMED),
        ] {
            assert_eq!(try_set(text, "k"), Err(why), "{text}");
        }
        assert_eq!(set(b"{\"a\":\"\xff\"}", &path("k"), b"KEY").err(), Some(MALFORMED));
        for (text, why) in [
            (r#"{"auth":{},"auth":{}}"#, TWICE),
            (r#"{"Auth":{}}"#, TWICE),
            (r#"{"auth":{},"AUTH":{"k":1}}"#, TWICE),
            (r#"{"auth":null}"#, NOT_OBJECT),
            (r#"{"auth":[{"k":1}]}"#, NOT_OBJECT),
        ] {
            assert_eq!(try_set(text, "auth.k"), Err(why), "{text}");
        }
    }

    #[test]
    fn depth_and_duplicates_are_bounded() {
        let nested = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(try_set(&nested(DEEPEST), "k").is_ok());
        assert_eq!(try_set(&nested(DEEPEST + 1), "k"), Err(DEEP));
        assert_eq!(try_set(&nested(500_000), "k"), Err(DEEP));
        let open = format!(r#"{{"a":{}"#, r#"{"a":"#.repeat(500_000));
        assert_eq!(try_set(&open, "k"), Err(DEEP));
        let many = vec![r#""k":1"#; MOST + 1].join(",");
        assert_eq!(try_set(&format!("{{{many}}}"), "k"), Err(MANY));
    }

    #[test]
    fn a_value_is_escaped() {
        let out = set(b"{}", &path("k"), br#"a"b\c"#).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), json!({ "k": "a\"b\\c" }));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[a-cA-C\"\\\\é]{0,3}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn valid_json_becomes_what_it_says(
            members in prop::collection::btree_map("[a-cA-C\"\\\\é]{0,3}", any_json(), 0..8),
            pretty in any::<bool>(),
        ) {
            let members = Value::Object(members.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&members) } else { serde_json::to_string(&members) };
            let text = text.unwrap();
            let after = set(text.as_bytes(), &path("ab"), b"KEY").unwrap();
            // Numbers as the parser reads them, which may be one digit off.
            let mut expected: Value = serde_json::from_str(&text).unwrap();
            let object = expected.as_object_mut().unwrap();
            object.retain(|key, _| !key.eq_ignore_ascii_case("ab"));
            object.insert("ab".into(), json!("KEY"));
            prop_assert_eq!(serde_json::from_slice::<Value>(&after).unwrap(), expected);
        }

        #[test]
        fn anything_else_is_refused_and_never_a_panic(text in prop::collection::vec(any::<u8>(), 0..64)) {
            if set(&text, &path("k"), b"KEY").is_ok() && !text.is_empty() {
                prop_assert!(serde_json::from_slice::<Value>(&text).is_ok());
            }
        }
    }
}
