//! YAML text to located tree: the one module that knows the YAML crate.
//!
//! It reads the parser's events instead of deserializing: so every scalar keeps its spelling and its place, and what a
//! policy must not hold is refused by name. Refused are anchors, aliases, merge keys, tags and directives (`defaults`
//! serves instead, and a reader must not have to expand a file in the head to know what it allows), a key twice, keys that
//! are no strings, several documents, more than [`MAX_DEPTH`] levels and more than [`MAX_NODES`] values. Aliases are never
//! expanded, so no file can grow while it is read.
//!
//! What a plain scalar means is narrower than in YAML: `true` and `false` are booleans; `null`, `~` and nothing are null;
//! the core schema's numbers are numbers; all else is a string, `off`, `no` and `True` included.
//!
//! Messages hold no text of the file: the line may hold a secret.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_yaml::granit_parser::{self, ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::diagnostic::{Diagnostic, Diagnostics};
use super::tree::{Entry, Node, Place, PolicyPath, SourceId, Step, Value};

/// How many maps and lists may stand in each other.
pub const MAX_DEPTH: usize = 32;
/// How many values (keys not counted) one text may hold.
pub const MAX_NODES: usize = 50_000;

/// Reads one text. Every mistake goes to `diagnostics`. The tree is given where the text could be read to its end; without what was
/// refused, such as a key that stands twice.
pub fn parse(text: &str, source: SourceId, diagnostics: &mut Diagnostics) -> Option<Node> {
    let root = match refuse_control_characters(text, source, diagnostics) {
        true => None,
        false => Builder::new(source, diagnostics).read(text),
    };
    root.filter(|root| root.value != Value::Null && !diagnostics.is_full())
}

/// YAML allows no control characters but tab and line breaks (YAML 1.2.2 section 5.1); in a file that is reviewed by
/// people they could hide what it says.
fn refuse_control_characters(text: &str, source: SourceId, diagnostics: &mut Diagnostics) -> bool {
    let bad = |character: char| character.is_control() && !matches!(character, '\t' | '\n' | '\r');
    let Some(offset) = text.find(bad) else { return false };
    let place = place_of_offset(text, offset, source);
    diagnostics.report(place, PolicyPath::root(), "a control character is not allowed in a policy");
    true
}

/// The place of a byte offset, which must lie on a character's border.
pub(super) fn place_of_offset(text: &str, offset: usize, source: SourceId) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.get(line_start..).map_or(0, |line| line.chars().count()) + 1;
    Place { source, line: narrow(line), column: narrow(column) }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A map or list that is still open.
enum Frame {
    Sequence { place: Place, items: Vec<Node> },
    Mapping { place: Place, entries: Vec<Entry>, by_key: HashMap<String, usize>, key: Key },
}

/// The state of an open map: which key the next value belongs to.
enum Key {
    /// The next node is a key.
    Awaited,
    /// The next node is this key's value.
    Read(String, Place),
    /// The next node is the value of a key that was refused, and goes with it.
    Refused,
}

/// What the reading of the next event comes to.
enum Flow {
    Continue,
    Stop,
}

struct Builder<'a> {
    source: SourceId,
    diagnostics: &'a mut Diagnostics,
    frames: Vec<Frame>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn new(source: SourceId, diagnostics: &'a mut Diagnostics) -> Self {
        Self { source, diagnostics, frames: Vec::new(), root: None, documents: 0, nodes: 0 }
    }

    fn read(mut self, text: &str) -> Option<Node> {
        let options = granit_parser::options! {
            strict_indentation: true,
            disallow_directives: true,
            // Both only so that their places are known: they are refused.
            emit_anchor_events: true,
            emit_unresolved_aliases: true,
            emit_comments: false,
            flow_nesting_limit: MAX_DEPTH,
            block_nesting_limit: MAX_DEPTH,
        };
        for event in Parser::new_from_str_with_options(text, options) {
            let flow = match event {
                Ok((event, span)) => self.event(event, span),
                Err(error) => self.syntax_error(&error, text),
            };
            if matches!(flow, Flow::Stop) || self.diagnostics.is_full() {
                return None;
            }
        }
        if self.root.as_ref().is_none_or(|root| root.value == Value::Null) {
            self.refuse(Place::whole(self.source), "the file holds nothing");
        }
        self.root
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Flow {
        let place = self.place(&span.start);
        match event {
            Event::DocumentStart(..) => return self.document(place),
            Event::Scalar(text, style, _, tag) => {
                self.refuse_tag(tag.is_some(), &span);
                return self.scalar(text, style, place);
            }
            Event::SequenceStart(_, _, tag) => {
                self.refuse_tag(tag.is_some(), &span);
                return self.open(Frame::Sequence { place, items: Vec::new() }, place);
            }
            Event::MappingStart(_, _, tag) => {
                self.refuse_tag(tag.is_some(), &span);
                let (entries, by_key) = (Vec::new(), HashMap::new());
                return self.open(Frame::Mapping { place, entries, by_key, key: Key::Awaited }, place);
            }
            Event::SequenceEnd | Event::MappingEnd => return self.close(),
            Event::Anchor(..) => self.refuse_repetition(place, "anchors (`&name`) are not allowed"),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.refuse_repetition(place, "aliases (`*name`) are not allowed");
                return self.leave_out(place);
            }
            // Stream and document ends carry nothing, comments are not emitted; a kind of event that a later version of
            // the parser adds must not pass unseen.
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            _ => self.refuse(place, "this YAML is not understood"),
        }
        Flow::Continue
    }

    fn document(&mut self, place: Place) -> Flow {
        self.documents += 1;
        if self.documents > 1 {
            self.refuse(place, "a second document (`---`) is not allowed");
            return Flow::Stop;
        }
        Flow::Continue
    }

    fn scalar(&mut self, text: Cow<'_, str>, style: ScalarStyle, place: Place) -> Flow {
        let plain = style == ScalarStyle::Plain;
        if plain && text == "<<" && self.awaits_key() {
            self.refuse_repetition(place, "merge keys (`<<`) are not allowed");
        }
        let value = if plain { plain_scalar(text) } else { Value::String(text.into_owned()) };
        self.add(Node { value, place })
    }

    fn awaits_key(&self) -> bool {
        matches!(self.frames.last(), Some(Frame::Mapping { key: Key::Awaited, .. }))
    }

    fn open(&mut self, frame: Frame, place: Place) -> Flow {
        if self.frames.len() >= MAX_DEPTH {
            return self.too_deep(place);
        }
        self.frames.push(frame);
        Flow::Continue
    }

    fn close(&mut self) -> Flow {
        let node = match self.frames.pop() {
            Some(Frame::Sequence { place, items }) => Node { value: Value::Sequence(items), place },
            Some(Frame::Mapping { place, entries, .. }) => Node { value: Value::Mapping(entries), place },
            None => return Flow::Stop,
        };
        self.add(node)
    }

    /// Puts a finished node where it belongs: into the open list or map, as a key or a value, or at the root.
    fn add(&mut self, node: Node) -> Flow {
        if self.awaits_key() {
            self.add_key(node);
            return Flow::Continue;
        }
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            self.refuse(node.place, format!("more than {MAX_NODES} values"));
            return Flow::Stop;
        }
        match self.frames.last_mut() {
            None => self.root = Some(node),
            Some(Frame::Sequence { items, .. }) => items.push(node),
            Some(Frame::Mapping { entries, by_key, key, .. }) => {
                if let Key::Read(name, key_place) = std::mem::replace(key, Key::Awaited) {
                    by_key.insert(name.clone(), entries.len());
                    entries.push(Entry { key: name, key_place, value: node });
                }
            }
        }
        Flow::Continue
    }

    /// Leaves a refused value out, and its key with it: what is not known is not judged.
    fn leave_out(&mut self, place: Place) -> Flow {
        match self.frames.last_mut() {
            Some(Frame::Mapping { key, .. }) if !matches!(key, Key::Awaited) => {
                *key = Key::Awaited;
                Flow::Continue
            }
            Some(Frame::Sequence { .. }) => Flow::Continue,
            Some(Frame::Mapping { .. }) | None => self.add(Node { value: Value::Null, place }),
        }
    }

    fn add_key(&mut self, node: Node) {
        let place = node.place;
        let Value::String(name) = node.value else {
            self.refuse_with(place, "a key must be a string", "put it in quotes");
            return self.set_key(Key::Refused);
        };
        match self.first_place(&name) {
            None => self.set_key(Key::Read(name, place)),
            Some(first) => {
                let path = self.path().key(name);
                let message = format!("this key stands here twice, first in line {}", first.line);
                self.diagnostics.report(place, path, message);
                self.set_key(Key::Refused);
            }
        }
    }

    fn first_place(&self, name: &str) -> Option<Place> {
        let Some(Frame::Mapping { entries, by_key, .. }) = self.frames.last() else { return None };
        by_key.get(name).and_then(|index| entries.get(*index)).map(|entry| entry.key_place)
    }

    fn set_key(&mut self, next: Key) {
        if let Some(Frame::Mapping { key, .. }) = self.frames.last_mut() {
            *key = next;
        }
    }

    /// The path of the node that is read next; the map's own where that is a key.
    fn path(&self) -> PolicyPath {
        let steps = self.frames.iter().filter_map(|frame| match frame {
            Frame::Sequence { items, .. } => Some(Step::Index(items.len())),
            Frame::Mapping { key: Key::Read(name, _), .. } => Some(Step::Key(name.clone())),
            Frame::Mapping { .. } => None,
        });
        PolicyPath::from_steps(steps.collect())
    }

    fn refuse_tag(&mut self, tagged: bool, span: &Span) {
        if tagged {
            let place = self.place(span.tag_start.as_ref().unwrap_or(&span.start));
            self.refuse_with(place, "tags (`!name`) are not allowed", "write the value without the tag");
        }
    }

    fn refuse_repetition(&mut self, place: Place, message: &str) {
        self.refuse_with(place, message, "what several providers share goes under `defaults`");
    }

    fn too_deep(&mut self, place: Place) -> Flow {
        self.diagnostics.report(
            place,
            PolicyPath::root(),
            format!("more than {MAX_DEPTH} levels in each other"),
        );
        Flow::Stop
    }

    fn syntax_error(&mut self, error: &ScanError, text: &str) -> Flow {
        let mut place = self.place(error.marker());
        if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
            return self.too_deep(place);
        }
        let (message, hint) = explain(error.kind());
        if hint == Some(USE_SPACES) {
            // The parser has read past the tabs when it complains.
            let before = error.marker().byte_offset().and_then(|offset| text.get(..offset)).unwrap_or("");
            let tabs = before.len() - before.trim_end_matches('\t').len();
            place.column = place.column.saturating_sub(narrow(tabs)).max(1);
        }
        let mistake = Diagnostic::new(Some(place), PolicyPath::root(), message);
        self.diagnostics.push(match hint {
            Some(hint) => mistake.hint(hint),
            None => mistake,
        });
        Flow::Stop
    }

    fn refuse(&mut self, place: Place, message: impl Into<String>) {
        let path = self.path();
        self.diagnostics.report(place, path, message);
    }

    fn refuse_with(&mut self, place: Place, message: &str, hint: &str) {
        let path = self.path();
        self.diagnostics.push(Diagnostic::new(Some(place), path, message).hint(hint));
    }

    fn place(&self, marker: &Marker) -> Place {
        Place { source: self.source, line: narrow(marker.line()), column: narrow(marker.col() + 1) }
    }
}

const USE_SPACES: &str = "YAML wants spaces";

/// The parser's words are for people who write parsers; the frequent mistakes get our own.
fn explain(kind: &ErrorKind) -> (String, Option<&'static str>) {
    use ErrorKind as Kind;
    match kind {
        Kind::TabNotAllowed
        | Kind::TabInBlockIndentation
        | Kind::TabInIndentation
        | Kind::TabInPlainScalar
        | Kind::TabAtBlockScalarStart => ("a tab stands here".to_owned(), Some(USE_SPACES)),
        Kind::DirectiveDisallowed => ("directives (`%NAME`) are not allowed".to_owned(), None),
        Kind::UnclosedQuotedScalar => ("a quote is opened here and not closed".to_owned(), None),
        Kind::InvalidQuotedScalarIndent => (
            "a text in quotes goes on here without indentation".to_owned(),
            Some("is a quote left open above?"),
        ),
        Kind::UnclosedFlowCollection { open } => (format!("`{open}` is opened here and not closed"), None),
        Kind::MappingValueNotAllowed => (
            "a `:` stands where no key may stand".to_owned(),
            Some("indent it as the keys around it, or put a value with `: ` in quotes"),
        ),
        Kind::ExpectedBlockMappingKey | Kind::InvalidIndentation => (
            "a key was expected here".to_owned(),
            Some("look at the indentation of this line and the one before"),
        ),
        Kind::SimpleKeyExpected | Kind::InvalidSimpleKey => {
            ("a key without `:`".to_owned(), Some("write `key: value`"))
        }
        // No kind carries text of the file but `Custom`, which the parser itself does not make.
        Kind::Custom(_) => ("this is not YAML".to_owned(), None),
        other => (format!("this is not YAML: {other}"), None),
    }
}

/// A plain scalar's meaning.
fn plain_scalar(text: Cow<'_, str>) -> Value {
    match &*text {
        "" | "~" | "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        word if is_number(word) => Value::Number(text.into_owned()),
        _ => Value::String(text.into_owned()),
    }
}

/// Whether YAML's core schema (YAML 1.2.2 section 10.3.2) reads the word as a number.
fn is_number(word: &str) -> bool {
    let all =
        |digits: &str, radix: u32| !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    if let Some(digits) = word.strip_prefix("0o") {
        return all(digits, 8);
    }
    if let Some(digits) = word.strip_prefix("0x") {
        return all(digits, 16);
    }
    if matches!(word, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let unsigned = word.strip_prefix(['-', '+']).unwrap_or(word);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return true;
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| all(exponent, 10))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::policy::diagnostic::Rejection;
    use crate::policy::tree::Sources;

    fn read(text: &str) -> Result<Node, String> {
        let mut sources = Sources::new();
        let source = sources.add("p.yaml");
        let mut diagnostics = Diagnostics::new();
        match parse(text, source, &mut diagnostics) {
            Some(node) if diagnostics.is_empty() => Ok(node),
            _ => Err(Rejection::new(diagnostics, sources).render(false)),
        }
    }

    #[test]
    fn scalars_mean_what_they_look_like() {
        let string = |text: &str| Value::String(text.to_owned());
        let number = |text: &str| Value::Number(text.to_owned());
        for (text, value) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("null", Value::Null),
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
            ("True", string("True")),
            ("off", string("off")),
            ("no", string("no")),
            ("yes", string("yes")),
            ("y", string("y")),
            ("Null", string("Null")),
            ("10", number("10")),
            ("-10", number("-10")),
            ("+1.5e-3", number("+1.5e-3")),
            ("010", number("010")),
            ("0o17", number("0o17")),
            ("0xFF", number("0xFF")),
            ("1.", number("1.")),
            (".5", number(".5")),
            (".inf", number(".inf")),
            (".nan", number(".nan")),
            (".", string(".")),
            ("1e", string("1e")),
            ("e5", string("e5")),
            ("0x", string("0x")),
            ("1_000", string("1_000")),
            ("1.2.3", string("1.2.3")),
            ("10s", string("10s")),
            ("12:30:45", string("12:30:45")),
            ("2026-11-21", string("2026-11-21")),
            ("\"10\"", string("10")),
            ("'true'", string("true")),
            ("\"\"", string("")),
            ("\"null\"", string("null")),
            ("|\n  text\n", string("text\n")),
            (">-\n  a\n  b\n", string("a b")),
        ] {
            assert!(read(&format!("k: {text}\n")).unwrap().get("k").unwrap().value == value, "{text:?}");
        }
    }

    #[test]
    fn places_are_exact() {
        let text =
            "version: 1\nproviders:\n  stripe:\n    hosts: [a.test, \"b.test\"]\n    ü: {x:   y}\n  - \n";
        let tree = read(text.trim_end_matches("  - \n")).unwrap();
        for (steps, line, column) in [
            (vec!["version"], 1, 10),
            (vec!["providers"], 3, 3),
            (vec!["providers", "stripe"], 4, 5),
            (vec!["providers", "stripe", "hosts"], 4, 12),
            (vec!["providers", "stripe", "ü"], 5, 8),
            (vec!["providers", "stripe", "ü", "x"], 5, 14),
        ] {
            let path = PolicyPath::from_steps(steps.iter().map(|key| Step::Key((*key).to_owned())).collect());
            let place = tree.at(&path).unwrap().place;
            assert_eq!((place.line, place.column), (line, column), "{path}");
        }
        let hosts = tree.get("providers").unwrap().get("stripe").unwrap().get("hosts").unwrap();
        assert_eq!(hosts.items().iter().map(|item| item.place.column).collect::<Vec<_>>(), [13, 21]);
        let key = tree.get("providers").unwrap().entry("stripe").unwrap().key_place;
        assert_eq!((key.line, key.column), (3, 3));
        let windows = read("a: 1\r\nb:\r\n  c: 2\r\n").unwrap();
        assert_eq!(windows.get("b").unwrap().get("c").unwrap().place.line, 3);
    }

    #[test]
    fn what_a_policy_must_not_hold_is_refused_by_place() {
        for (text, told) in [
            ("a: 1\nb: &x 2\n", "p.yaml:2:4: anchors (`&name`) are not allowed\n"),
            ("a: &x {b: 1}\n", "p.yaml:1:4: a: anchors (`&name`) are not allowed\n"),
            ("a: *x\n", "p.yaml:1:4: a: aliases (`*name`) are not allowed\n"),
            ("l:\n  - a\n  - *x\n", "p.yaml:3:5: l[1]: aliases (`*name`) are not allowed\n"),
            ("a:\n  <<: {b: 1}\n", "p.yaml:2:3: a: merge keys (`<<`) are not allowed\n"),
            ("a: !!str 1\n", "p.yaml:1:4: a: tags (`!name`) are not allowed\n"),
            ("a: !env X\n", "p.yaml:1:4: a: tags (`!name`) are not allowed\n"),
            ("a: !x [1]\n", "p.yaml:1:4: a: tags (`!name`) are not allowed\n"),
            ("!x\na: 1\n", "p.yaml:1:1: tags (`!name`) are not allowed\n"),
            ("a: 1\nb: 2\na: 3\n", "p.yaml:3:1: a: this key stands here twice, first in line 1\n"),
            ("p:\n  s: {h: 1, h: 2}\n", "p.yaml:2:13: p.s.h: this key stands here twice, first in line 2\n"),
            ("l: [{a: 1, \"a\": 2}]\n", "p.yaml:1:12: l[0].a: this key stands here twice, first in line 1\n"),
            ("1: a\n", "p.yaml:1:1: a key must be a string\n"),
            ("true: a\n", "p.yaml:1:1: a key must be a string\n"),
            ("? [a]\n: b\n", "p.yaml:1:3: a key must be a string\n"),
            ("? {a: 1}\n: b\n", "p.yaml:1:3: a key must be a string\n"),
            (": b\n", "p.yaml:1:1: a key must be a string\n"),
            ("a: 1\n---\nb: 2\n", "p.yaml:2:1: a second document (`---`) is not allowed\n"),
            ("%YAML 1.1\n---\na: 1\n", "p.yaml:1:1: directives (`%NAME`) are not allowed\n"),
            ("a:\n\tb: 1\n", "p.yaml:2:1: a tab stands here\n"),
            ("a: \"x", "p.yaml:1:4: a quote is opened here and not closed\n"),
            ("a: \"x\nb: 1\n", "p.yaml:2:1: a text in quotes goes on here without indentation\n"),
            ("a: [1, 2\n", "p.yaml:1:4: `[` is opened here and not closed\n"),
            ("a: b: c\n", "p.yaml:1:5: a `:` stands where no key may stand\n"),
            ("a: 1\n  b: 2\n", "p.yaml:2:4: a `:` stands where no key may stand\n"),
            ("a: \"\u{7}\"\n", "p.yaml:1:5: a control character is not allowed in a policy\n"),
            ("", "p.yaml: the file holds nothing\n"),
            ("# only this\n\n", "p.yaml: the file holds nothing\n"),
            ("---\n", "p.yaml: the file holds nothing\n"),
            ("~\n", "p.yaml: the file holds nothing\n"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(told), "{text:?}\n{error}");
        }
    }

    #[test]
    fn all_mistakes_that_leave_the_text_readable_are_told_at_once() {
        let error = read("a: &x 1\nb: *x\nc: !t 2\na: 3\n5: 6\n").unwrap_err();
        assert_eq!(error.lines().filter(|line| line.starts_with("p.yaml:")).count(), 5, "{error}");
    }

    #[test]
    fn a_syntax_error_quotes_nothing() {
        for text in
            ["token: \"sk_canary\n", "sk_canary\nb: 1\n", "a: [sk_canary\n", "a: {k: \"sk_canary\\q\"\n"]
        {
            let error = read(text).unwrap_err();
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&nested(MAX_DEPTH)).is_ok());
        assert!(read(&nested(MAX_DEPTH + 1)).unwrap_err().contains("1:33: more than 32 levels"));
        let block: String = (0..=MAX_DEPTH).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert!(read(&block).unwrap_err().contains("more than 32 levels"));
        let mixed = format!("{}{}", "- ".repeat(20), nested(20));
        assert!(read(&mixed).unwrap_err().contains("more than 32 levels"));
    }

    #[test]
    fn bombs_are_refused_at_once() {
        let laughs: String = std::iter::once("a0: &a0 [lol]\n".to_owned())
            .chain(
                (1..60).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "))),
            )
            .collect();
        let list = format!("a: [{}]", "1,".repeat(MAX_NODES));
        let keys: String = (0..60_000).map(|n| format!("k{n}: 1\n")).collect();
        for text in [
            "[".repeat(200_000),
            "{".repeat(200_000),
            "- ".repeat(100_000),
            "? ".repeat(100_000),
            laughs,
            list,
            keys,
        ] {
            let start = Instant::now();
            assert!(read(&text).is_err());
            // Generous, for a machine that does other things; without the bounds these take minutes or the stack.
            assert!(start.elapsed() < Duration::from_secs(5));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a-c:,?!&*#%@`|>'\"\\[\\]{} \\n\\t0-9<~.]{0,80}") {
            let _ = read(&text);
        }
    }
}
