//! One mistake on its way out of serde: what is wrong, where, and in which words.
//!
//! A value is shown only where it cannot be a secret: not where the path speaks of credentials, secrets, tokens, passwords
//! or keys, not when it is longer than [`LONGEST_SHOWN`], and not when it holds an `@` (a URL with a password). Messages
//! of the types themselves are searched for such values.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use super::walk::{Cursor, identity};
use crate::policy::diagnostic::{Diagnostic, suggest};
use crate::policy::tree::{Entry, Node, Place, PolicyPath, Step, Value};

/// The longest value that a message shows, in characters.
const LONGEST_SHOWN: usize = 40;
/// An unknown key under a credential may be the secret itself (`bearer: {sk_live_...}`, a template gone wrong); no key of
/// ours there has so many characters.
const SHORTEST_PASTED: usize = 28;
/// How many names a hint lists.
const MOST_LISTED: usize = 16;
/// A key that contains one of these words may stand above a secret.
const SECRET_WORDS: [&str; 8] =
    ["credential", "secret", "token", "password", "passphrase", "key", "auth", "cookie"];

/// A mistake; boxed, because serde carries it in every `Result`.
#[derive(Debug)]
pub(super) struct Fault(Box<Inner>);

#[derive(Debug)]
struct Inner {
    what: What,
    site: Option<Site>,
}

/// What is wrong, before it is known where.
#[derive(Debug)]
enum What {
    /// Another kind of value was wanted, in the type's words.
    Expected(String),
    UnknownKey(&'static [&'static str]),
    UnknownVariant(&'static [&'static str]),
    Missing(&'static str),
    /// Our own words and a hint; they repeat no value.
    Ours(&'static str, String),
    /// A type's words, which may repeat what the type was given.
    Custom(String),
}

/// Where a mistake is, and what is to be left out because of it.
#[derive(Debug)]
pub(super) struct Site {
    /// `None` where the mistake only follows from something that was left out before.
    pub(super) diagnostic: Option<Diagnostic>,
    /// The identity of the node to leave out.
    pub(super) prune: usize,
}

impl Fault {
    fn new(what: What) -> Self {
        Self(Box::new(Inner { what, site: None }))
    }

    /// Another kind of value was wanted.
    pub(super) fn expected(expected: &dyn Expected) -> Self {
        Self::new(What::Expected(expected.to_string()))
    }

    /// In our own words; they must hold no value.
    pub(super) fn with_hint(message: &'static str, hint: impl Into<String>) -> Self {
        Self::new(What::Ours(message, hint.into()))
    }

    /// An enum's map that holds no key.
    pub(super) fn no_variant(variants: &'static [&'static str]) -> Self {
        Self::with_hint("expected a map with one key, found an empty one", one_of(variants))
    }

    pub(super) fn into_site(self) -> Option<Site> {
        self.0.site
    }

    /// Blames a value, unless something inside it was blamed already.
    pub(super) fn at_value(mut self, cursor: &Cursor<'_, '_>) -> Self {
        if self.0.site.is_none() {
            let path = cursor.path();
            let place = match self.0.what {
                // The line that names the map tells more than the first line inside it.
                What::Missing(_) => cursor.key_place().unwrap_or(cursor.node().place),
                _ => cursor.node().place,
            };
            let told = !self.follows_from_pruning(cursor);
            let diagnostic = told.then(|| self.diagnostic(path, place, cursor.node(), false));
            self.0.site = Some(Site { diagnostic, prune: identity(cursor.node()) });
        }
        self
    }

    /// Blames a key of the map at `cursor`.
    pub(super) fn at_key(mut self, cursor: &Cursor<'_, '_>, entry: &Entry) -> Self {
        if self.0.site.is_none() {
            let parent = cursor.path();
            let pasted = speaks_of_secrets(&parent) && entry.key.chars().count() >= SHORTEST_PASTED;
            let path = parent.key(if pasted { "…" } else { &entry.key });
            let diagnostic = Some(self.diagnostic(path, entry.key_place, &entry.value, true));
            self.0.site = Some(Site { diagnostic, prune: identity(&entry.value) });
        }
        self
    }

    fn follows_from_pruning(&self, cursor: &Cursor<'_, '_>) -> bool {
        match self.0.what {
            What::Missing(name) => {
                cursor.pruned_keys().any(|key| key == name || suggest(key, [name]).is_some())
            }
            _ => cursor.has_pruned(),
        }
    }

    fn diagnostic(&self, path: PolicyPath, place: Place, node: &Node, on_key: bool) -> Diagnostic {
        let (message, hint) = match &self.0.what {
            What::Expected(expected) if on_key => (format!("this key is not {}", in_words(expected)), None),
            What::Expected(expected) => {
                let message = format!("expected {}, found {}", in_words(expected), found(&path, node));
                (message, conversion_hint(expected, node).map(str::to_owned))
            }
            What::UnknownKey(expected) => ("unknown key".to_owned(), meant(last_key(&path), expected)),
            What::UnknownVariant(expected) if on_key => {
                ("unknown key".to_owned(), meant(last_key(&path), expected))
            }
            What::UnknownVariant(expected) => {
                (format!("unknown value: {}", found(&path, node)), meant(node.as_str(), expected))
            }
            What::Missing(name) => (format!("missing key `{name}`"), None),
            What::Ours(message, hint) => ((*message).to_owned(), Some(hint.clone())),
            What::Custom(message) => (without_secrets(message, &path, node), None),
        };
        Diagnostic { place: Some(place), path, message, hint }
    }
}

fn last_key(path: &PolicyPath) -> Option<&str> {
    match path.steps().last() {
        Some(Step::Key(key)) => Some(key),
        _ => None,
    }
}

fn meant(word: Option<&str>, expected: &'static [&'static str]) -> Option<String> {
    let near = word.and_then(|word| suggest(word, expected.iter().copied()));
    Some(near.map_or_else(|| one_of(expected), |near| format!("did you mean `{near}`?")))
}

fn one_of(names: &[&str]) -> String {
    if names.is_empty() {
        return "nothing may stand here".to_owned();
    }
    let listed: Vec<String> = names.iter().take(MOST_LISTED).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > MOST_LISTED { " ..." } else { "" };
    format!("possible here: {}{more}", listed.join(", "))
}

/// serde's and std's names of what they expect, for people who do not write Rust.
fn in_words(expected: &str) -> String {
    let words = match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" | "u128" => "a whole number, 0 or above",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a string" | "a borrowed string" | "path string" => "a text",
        "a sequence" => "a list",
        "a map" => "a map of keys",
        "unit" => "nothing",
        other if other.starts_with("a nonzero") => "a whole number, 1 or above",
        other if other.starts_with("struct ") => "a map of keys",
        other if other == "enum" || other.starts_with("enum ") => "a word, or a map with one key",
        other => other,
    };
    words.to_owned()
}

fn conversion_hint(expected: &str, node: &Node) -> Option<&'static str> {
    let wants_map = expected == "a map" || expected.starts_with("struct ");
    match &node.value {
        Value::Number(_) | Value::Bool(_) if in_words(expected) == "a text" => Some("put it in quotes"),
        Value::Null if wants_map => Some("an empty map is written `{}`"),
        Value::String(word) if expected == "a boolean" => match word.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some("write `true`"),
            "false" | "no" | "off" | "n" => Some("write `false`"),
            _ => None,
        },
        Value::String(_) | Value::Sequence(_) => None,
        Value::Mapping(_) if expected == "a sequence" => Some("begin each element with `- `"),
        _ => None,
    }
}

/// What stands at a node, with its value only where that cannot be a secret.
fn found(path: &PolicyPath, node: &Node) -> String {
    let secret = speaks_of_secrets(path);
    match &node.value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(text) if secret || hides(text) => "a number".to_owned(),
        Value::Number(text) => format!("the number {text}"),
        Value::String(text) if text.is_empty() => "an empty text".to_owned(),
        Value::String(text) if secret || hides(text) => "a text".to_owned(),
        Value::String(text) => format!("the text `{text}`"),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a map".to_owned(),
    }
}

fn hides(text: &str) -> bool {
    text.contains('@') || text.chars().count() > LONGEST_SHOWN
}

fn speaks_of_secrets(path: &PolicyPath) -> bool {
    path.steps().iter().any(|step| matches!(step, Step::Key(key) if is_secret_word(key)))
}

fn is_secret_word(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| key.contains(word))
}

/// Shorter values are not looked for in messages: they would blot out parts of words, and guard nothing.
const SHORTEST_BLOTTED: usize = 3;

/// The message of a type, which may repeat what it was given, without the values that may be secret.
fn without_secrets(message: &str, path: &PolicyPath, node: &Node) -> String {
    let mut message = message.to_owned();
    blot(&mut message, node, speaks_of_secrets(path));
    message
}

fn blot(message: &mut String, node: &Node, secret: bool) {
    match &node.value {
        Value::Number(text) | Value::String(text) if secret || hides(text) => {
            // `escape_debug`, because a type may print its input with `{:?}`.
            for form in [text.clone(), text.escape_debug().to_string()] {
                if form.len() >= SHORTEST_BLOTTED && message.contains(&form) {
                    *message = message.replace(&form, "…");
                }
            }
        }
        Value::Sequence(items) => items.iter().for_each(|item| blot(message, item, secret)),
        Value::Mapping(entries) => {
            entries
                .iter()
                .for_each(|entry| blot(message, &entry.value, secret || is_secret_word(&entry.key)));
        }
        _ => {}
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(What::Custom(message.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::expected(expected)
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::expected(expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {length} elements"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::UnknownVariant(expected))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::UnknownKey(expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(What::Missing(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::custom(format_args!("`{field}` stands here twice, under two names"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.site {
            Some(Site { diagnostic: Some(diagnostic), .. }) => f.write_str(&diagnostic.message),
            _ => f.write_str("not valid"),
        }
    }
}

impl std::error::Error for Fault {}
