//! Values in place of `${name}`, in the text of a preset.
//!
//! What mentions a name that has no value goes: the element of the list in which it stands, or else the key. A value that
//! the policy wrote keeps its place there, so that a mistake in it is told where it was made.

use std::collections::BTreeMap;

use crate::policy::tree::{Entry, Node, Value};

/// What stands for a name.
#[derive(Clone, Debug)]
pub(super) enum Filling {
    /// A text; the place is the preset's.
    Text(String),
    /// Elements of a list.
    Many(Vec<String>),
    /// What the policy wrote, with its place.
    Written(Node),
    /// No value: what mentions the name is left out.
    Nothing,
}

/// Values by name.
pub(super) type Fillings = BTreeMap<String, Filling>;

/// What became of a node.
enum Filled {
    One(Node),
    Many(Vec<Node>),
    Gone,
}

/// The node with its names filled in; none where it mentions a name without value.
pub(super) fn fill(node: &Node, fillings: &Fillings) -> Option<Node> {
    match filled(node, fillings, false) {
        Filled::One(node) => Some(node),
        // A list has no place where one value stands; a test reads every preset with every value.
        Filled::Many(_) | Filled::Gone => None,
    }
}

fn filled(node: &Node, fillings: &Fillings, in_list: bool) -> Filled {
    let at = |value| Filled::One(Node { value, place: node.place });
    match &node.value {
        Value::String(text) => scalar(node, text, fillings),
        Value::Sequence(items) => {
            let items = items.iter().flat_map(|item| match filled(item, fillings, true) {
                Filled::One(item) => vec![item],
                Filled::Many(items) => items,
                Filled::Gone => Vec::new(),
            });
            at(Value::Sequence(items.collect()))
        }
        Value::Mapping(entries) => {
            let mut kept = Vec::new();
            for entry in entries {
                match filled(&entry.value, fillings, in_list) {
                    Filled::One(value) => kept.push(Entry { value, ..entry.clone() }),
                    Filled::Many(_) | Filled::Gone if in_list => return Filled::Gone,
                    Filled::Many(_) | Filled::Gone => {}
                }
            }
            at(Value::Mapping(kept))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Filled::One(node.clone()),
    }
}

fn scalar(node: &Node, text: &str, fillings: &Fillings) -> Filled {
    let own = |text: String| Node { value: Value::String(text), place: node.place };
    if let Some(filling) = whole(text).and_then(|name| fillings.get(name)) {
        return match filling {
            Filling::Text(text) => Filled::One(own(text.clone())),
            Filling::Many(texts) => Filled::Many(texts.iter().cloned().map(own).collect()),
            Filling::Written(written) => Filled::One(written.clone()),
            Filling::Nothing => Filled::Gone,
        };
    }
    let mut place = node.place;
    let filled = in_text(text, |name| match fillings.get(name)? {
        Filling::Text(text) => Some(text.clone()),
        Filling::Written(written) => {
            place = written.place;
            text_of(written).map(str::to_owned)
        }
        Filling::Many(_) | Filling::Nothing => None,
    });
    filled.map_or(Filled::Gone, |text| Filled::One(Node { value: Value::String(text), place }))
}

/// The name, where the text is nothing but `${name}`.
pub(super) fn whole(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').filter(|name| !name.contains(['$', '{', '}']))
}

/// The text with each `${name}` replaced; none where one of them has no value.
pub(super) fn in_text(text: &str, mut value: impl FnMut(&str) -> Option<String>) -> Option<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}')?;
        filled.push_str(before);
        filled.push_str(&value(name)?);
        rest = after;
    }
    filled.push_str(rest);
    Some(filled)
}

/// The text of a string or number.
pub(super) fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::String(text) | Value::Number(text) => Some(text),
        Value::Null | Value::Bool(_) | Value::Sequence(_) | Value::Mapping(_) => None,
    }
}

/// The names that a node mentions, in the order of reading, each with whether it stands alone.
pub(super) fn mentioned(node: &Node) -> Vec<(String, bool)> {
    let mut found: Vec<(String, bool)> = Vec::new();
    let mut note = |name: &str, alone: bool| {
        if !found.iter().any(|(known, _)| known == name) {
            found.push((name.to_owned(), alone));
        }
    };
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        match &node.value {
            Value::String(text) => {
                let _ = in_text(text, |name| {
                    note(name, whole(text).is_some());
                    Some(String::new())
                });
            }
            Value::Sequence(items) => open.extend(items.iter().rev()),
            Value::Mapping(entries) => open.extend(entries.iter().rev().map(|entry| &entry.value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    found
}
