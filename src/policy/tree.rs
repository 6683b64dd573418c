//! The located tree: what a policy file says, with the place of every value, before anything is known about its meaning.
//!
//! Merging ([`super::merge`]) and decoding ([`super::decode`]) work on this tree, so that a mistake found late, in a value
//! that came from a preset or from `defaults`, still names the line it was written on.
//!
//! A tree may hold a secret that somebody wrote into the file by mistake. Its `Debug` form therefore shows the shape and
//! the places, and never a scalar.

use std::fmt::{self, Write as _};

/// Which of the read texts a value came from: an index into [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u32);

/// The names of the texts that were read, in the order of reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    names: Vec<String>,
}

impl Sources {
    /// No text read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text under the name it shall have in messages: a file as given on the command line, or `preset stripe`.
    pub fn add(&mut self, name: impl Into<String>) -> SourceId {
        let id = SourceId(u32::try_from(self.names.len()).unwrap_or(u32::MAX));
        self.names.push(name.into());
        id
    }

    /// The name of a text; `?` for an id of another table.
    pub fn name(&self, id: SourceId) -> &str {
        self.names.get(id.0 as usize).map_or("?", String::as_str)
    }

    /// How many texts were read.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether no text was read yet.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// Where a value begins. Lines and columns count from 1, columns in characters. Line 0 stands for the text as a whole,
/// where no line is to blame (a file that cannot be read).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The text.
    pub source: SourceId,
    /// The line, from 1; 0 for the whole text.
    pub line: u32,
    /// The column in characters, from 1; 0 for the whole text.
    pub column: u32,
}

impl Place {
    /// The text as a whole.
    pub fn whole(source: SourceId) -> Self {
        Self { source, line: 0, column: 0 }
    }
}

/// A value and where it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    /// What was written.
    pub value: Value,
    /// Where the value begins.
    pub place: Place,
}

/// What a policy file can say. Numbers keep their spelling: only the type that wants one knows whether `010` or `1e3` is
/// meant for it.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`, and no other word.
    Bool(bool),
    /// A number as written.
    Number(String),
    /// Any other scalar, and everything in quotes.
    String(String),
    /// A list.
    Sequence(Vec<Node>),
    /// A map in the order of writing; its keys are unique.
    Mapping(Vec<Entry>),
}

/// One key of a map with its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key begins.
    pub key_place: Place,
    /// What it holds.
    pub value: Node,
}

impl Node {
    /// The value under a key; `None` too where the node is no map.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of a key: its value and the place of the key itself.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The entries of a map; none where the node is no map.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// Whether a value at this place is this one or lies below it.
    pub fn holds(&self, place: Place) -> bool {
        self.place == place
            || self.items().iter().any(|item| item.holds(place))
            || self.entries().iter().any(|entry| entry.value.holds(place))
    }

    /// The elements of a list; none where the node is no list.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The text of a string node (never of a number).
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The node at a path below this one.
    pub fn at(&self, path: &PolicyPath) -> Option<&Node> {
        path.steps.iter().try_fold(self, |node, step| match step {
            Step::Key(key) => node.get(key),
            Step::Index(index) => node.items().get(*index),
        })
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} {:?}", self.place.line, self.place.column, self.value)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(_) => f.write_str("bool"),
            Self::Number(_) => f.write_str("number"),
            Self::String(text) => write!(f, "string of {} bytes", text.len()),
            Self::Sequence(items) => f.debug_list().entries(items).finish(),
            Self::Mapping(entries) => {
                f.debug_map().entries(entries.iter().map(|entry| (&entry.key, &entry.value))).finish()
            }
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:?}", self.key, self.value)
    }
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Into a map.
    Key(String),
    /// Into a list, from 0.
    Index(usize),
}

/// The way from the root of a policy to a value. Prints as `providers.stripe.hosts[1]`; keys with other characters than
/// letters, digits, `_` and `-` print in quotes, with escapes, so that no key can fake a message or steer a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyPath {
    steps: Vec<Step>,
}

impl PolicyPath {
    /// The root: the whole policy.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path made of these steps.
    pub fn from_steps(steps: Vec<Step>) -> Self {
        Self { steps }
    }

    /// The path of a key below this one.
    #[must_use]
    pub fn key(&self, key: impl Into<String>) -> Self {
        self.with(Step::Key(key.into()))
    }

    /// The path of a list's element below this one.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.steps.clone();
        steps.push(step);
        Self { steps }
    }

    /// The steps from the root.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.steps.is_empty()
    }
}

/// A key longer than this is cut in messages: no name is so long, but a pasted secret is.
const LONGEST_KEY: usize = 40;

impl fmt::Display for PolicyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.steps.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if position > 0 {
                        f.write_char('.')?;
                    }
                    write_key(f, key)?;
                }
            }
        }
        Ok(())
    }
}

fn write_key(f: &mut fmt::Formatter<'_>, key: &str) -> fmt::Result {
    if key.chars().count() > LONGEST_KEY {
        let head: String = key.chars().take(8).collect();
        return write!(f, "\"{}…\"", head.escape_debug());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(plain) {
        f.write_str(key)
    } else {
        write!(f, "\"{}\"", key.escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        let place = Place { source: Sources::new().add("proxy.yaml"), line: 1, column: 1 };
        Node { value, place }
    }

    fn map(key: &str, value: Node) -> Node {
        let key_place = value.place;
        node(Value::Mapping(vec![Entry { key: key.to_owned(), key_place, value }]))
    }

    #[test]
    fn paths_print_as_people_write_them() {
        let long = "k".repeat(41);
        for (path, printed) in [
            (PolicyPath::root(), ""),
            (
                PolicyPath::root().key("providers").key("stripe").key("hosts").index(1),
                "providers.stripe.hosts[1]",
            ),
            (PolicyPath::root().key("internal-geo").key("max_body"), "internal-geo.max_body"),
            (PolicyPath::root().key("json").key("/ok"), "json.\"/ok\""),
            (PolicyPath::root().key("a.b"), "\"a.b\""),
            (PolicyPath::root().key(""), "\"\""),
            (PolicyPath::root().key("\u{1b}[31m\n"), "\"\\u{1b}[31m\\n\""),
            (PolicyPath::root().key(long), "\"kkkkkkkk…\""),
            (PolicyPath::root().index(0).index(2), "[0][2]"),
        ] {
            assert_eq!(path.to_string(), printed);
        }
    }

    #[test]
    fn values_are_found_by_path() {
        let tree = map("hosts", node(Value::Sequence(vec![node(Value::Null), node(Value::Bool(true))])));
        let path = PolicyPath::root().key("hosts").index(1);
        assert_eq!(tree.at(&path).map(|found| &found.value), Some(&Value::Bool(true)));
        assert_eq!(tree.at(&PolicyPath::root().key("hosts").index(2)), None);
        assert_eq!(tree.at(&PolicyPath::root().index(0)), None);
        assert_eq!(tree.at(&PolicyPath::root()), Some(&tree));
    }

    #[test]
    fn debug_shows_no_scalar() {
        let tree = map("bearer", node(Value::String("sk_live_canary".to_owned())));
        let number = map("pin", node(Value::Number("4711".to_owned())));
        let text = format!("{tree:?} {number:?} {:?}", tree.entries());
        assert!(text.contains("bearer") && !text.contains("canary") && !text.contains("4711"), "{text}");
    }

    #[test]
    fn a_foreign_source_id_does_not_panic() {
        let mut sources = Sources::new();
        let id = sources.add("a.yaml");
        assert_eq!(sources.name(id), "a.yaml");
        assert_eq!(Sources::new().name(id), "?");
    }
}
