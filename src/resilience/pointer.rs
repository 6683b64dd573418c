//! JSON Pointers (RFC 6901) into a document, with one addition: `*` stands for each element of a list, because providers put
//! what matters into lists (`/errors/*/type`).

use serde_json::Value;

/// A pointer, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pointer {
    text: Box<str>,
    steps: Box<[Step]>,
}

/// One step of a pointer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A key, or the number of an element.
    Named(Box<str>),
    /// Each element.
    Each,
}

impl Pointer {
    /// Empty, or each step behind a slash, with `~` only in `~0` and `~1` (RFC 6901 section 3). Nothing for other texts.
    pub fn parse(text: &str) -> Option<Self> {
        let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if !escapes || !(text.is_empty() || text.starts_with('/')) {
            return None;
        }
        let steps = text.split('/').skip(1).map(|step| match step {
            "*" => Step::Each,
            named => Step::Named(named.replace("~1", "/").replace("~0", "~").into()),
        });
        Some(Self { text: text.into(), steps: steps.collect() })
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its steps, from the document down.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The keys on the way, where it goes through maps alone and leads to one place; nothing where a list is on the way, or for
    /// the whole document.
    pub fn keys(&self) -> Option<Vec<&str>> {
        let keys = self.steps.iter().map(|step| match step {
            Step::Named(name) => Some(&**name),
            Step::Each => None,
        });
        keys.collect::<Option<Vec<_>>>().filter(|keys| !keys.is_empty())
    }

    /// Whether the document must be a map: the first step is a key, and no number of an element.
    pub fn begins_in_map(&self) -> bool {
        matches!(self.steps.first(), Some(Step::Named(name)) if index(name).is_none())
    }

    /// Whether something that it points at fits.
    pub fn any(&self, document: &Value, fits: &mut dyn FnMut(&Value) -> bool) -> bool {
        walk(&self.steps, document, fits)
    }
}

fn walk(steps: &[Step], value: &Value, fits: &mut dyn FnMut(&Value) -> bool) -> bool {
    let Some((step, rest)) = steps.split_first() else { return fits(value) };
    match (step, value) {
        (Step::Each, Value::Array(items)) => items.iter().any(|item| walk(rest, item, fits)),
        (Step::Named(name), Value::Object(map)) => {
            map.get(&**name).is_some_and(|value| walk(rest, value, fits))
        }
        (Step::Named(name), Value::Array(items)) => {
            let item = index(name).and_then(|index| items.get(index));
            item.is_some_and(|value| walk(rest, value, fits))
        }
        _ => false,
    }
}

/// The number of an element: digits without a leading zero (RFC 6901 section 4).
pub fn index(text: &str) -> Option<usize> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_they_point_at() {
        let document = serde_json::json!({
            "errors": [{ "type": "A" }, { "type": "B", "*": 1 }], "a/b": { "~": 1 }, "empty": [], "key": "k",
        });
        for (pointer, value, found) in [
            ("/key", "k", true),
            ("/errors/*/type", "B", true),
            ("/errors/*/type", "*", true),
            ("/errors/1/type", "B", true),
            ("/errors/01/type", "B", false),
            ("/errors/2/type", "*", false),
            ("/errors/*/*", "*", false),
            ("/a~1b/~0", "*", true),
            ("/empty/*", "*", false),
            ("/nothing", "*", false),
            ("/key/*", "*", false),
            ("", "*", true),
        ] {
            let parsed = Pointer::parse(pointer).unwrap();
            let mut fits = |at: &Value| value == "*" || at == value;
            assert_eq!(parsed.any(&document, &mut fits), found, "{pointer}");
        }
        for (text, keys) in
            [("/a~1b/~0", Some(vec!["a/b", "~"])), ("", None), ("/errors/*", None), ("/", Some(vec![""]))]
        {
            assert_eq!(Pointer::parse(text).unwrap().keys(), keys, "{text}");
        }
        for (text, map) in [("/a/0", true), ("/0/a", false), ("/*/a", false), ("/01", true), ("", false)] {
            assert_eq!(Pointer::parse(text).unwrap().begins_in_map(), map, "{text}");
        }
        for text in ["key", "/a~2", "~", "/~"] {
            assert_eq!(Pointer::parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn without_stars_it_is_the_usual_pointer(pointer in "(/[ab01~]{0,3}){0,3}") {
            let document = serde_json::json!({ "a": { "b": [1, 2], "": 0 }, "b": [[1], { "a": 3 }], "": 4, "~": 5 });
            if let Some(parsed) = Pointer::parse(&pointer) {
                let mut found = None;
                parsed.any(&document, &mut |value: &Value| { found = Some(value.clone()); true });
                proptest::prop_assert_eq!(found.as_ref(), document.pointer(&pointer));
            }
        }
    }
}
