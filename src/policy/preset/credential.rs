//! From `credential: { secret: env:STRIPE_KEY }` to a kind: the preset knows the place of the secret.
//!
//! A policy may write the parts of the usual way at once, or name a way and give it its parts (a way with one part takes it
//! without a name), or write a kind in full as without a preset:
//!
//! ```yaml
//! credential: { secret: env:SLACK_TOKEN }                                  # the usual way
//! credential: { rotating: { client_id: env:ID, client_secret: env:S, refresh_token: "file:/run/t" } }
//! credential: { bearer: env:SLACK_TOKEN }                                  # a kind
//! ```

use super::Preset;
use super::fill::{Filling, Fillings, fill, mentioned};
use super::pattern::Pattern;
use crate::credential::CredentialConfig;
use crate::policy::diagnostic::{Diagnostic, suggest};
use crate::policy::tree::{Entry, Node, PolicyPath, Value};

/// The kinds of credential of the policy. What begins with one is written in full.
pub(super) const KINDS: &[&str] = CredentialConfig::KINDS;

/// The key beside the kind.
const REQUIRED: &str = "required";

/// A part of a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    /// It is a secret reference, or what else the kind takes there; if not, it is a text that goes into another.
    pub(super) whole: bool,
    pub(super) optional: bool,
    /// What a text must look like.
    pub(super) pattern: Option<Pattern>,
}

impl Preset {
    /// The parts of a way: what its text mentions and is no parameter.
    pub(super) fn parts(&self, way: &Entry) -> Vec<Part> {
        let inputs = self.header.credentials.get(&way.key).map(|way| &way.inputs);
        let is = way.value.get("is").map(mentioned).unwrap_or_default();
        is.into_iter()
            .filter(|(name, _)| !self.header.parameters.contains_key(name))
            .map(|(name, whole)| {
                let input = inputs.and_then(|inputs| inputs.get(&name));
                let optional = input.is_some_and(|input| input.optional);
                let pattern = input.and_then(|input| input.pattern.clone());
                Part { name, whole: whole && pattern.is_none(), optional, pattern }
            })
            .collect()
    }

    /// The credential as written, with a kind in place of a way; what is a kind already stays.
    ///
    /// # Errors
    /// What is wrong with it, at its place in the policy.
    pub(super) fn credential(
        &self,
        written: &Node,
        parameters: &Fillings,
        path: &PolicyPath,
    ) -> Result<Node, Box<Diagnostic>> {
        let entries = written.entries();
        let own: Vec<&Entry> = entries.iter().filter(|entry| entry.key != REQUIRED).collect();
        let is_kind = |entry: &&Entry| KINDS.contains(&entry.key.as_str());
        let Some(usual) = self.credentials.first() else { return Ok(written.clone()) };
        if own.is_empty() || own.iter().any(is_kind) {
            return Ok(written.clone());
        }
        let named = match own.as_slice() {
            [entry] => self.credentials.iter().find(|way| way.key == entry.key).map(|way| (way, *entry)),
            _ => None,
        };
        let mut kind = match named {
            Some((way, entry)) => {
                let given = self.given(way, entry);
                self.as_kind(
                    way,
                    &given.iter().collect::<Vec<_>>(),
                    written,
                    parameters,
                    &path.key(&way.key),
                )?
            }
            None => self.as_kind(usual, &own, written, parameters, path)?,
        };
        kind.extend(entries.iter().filter(|entry| entry.key == REQUIRED).cloned());
        Ok(Node { value: Value::Mapping(kind), place: written.place })
    }

    /// The parts given to a way that was named: a map, or the one part that it has.
    fn given(&self, way: &Entry, entry: &Entry) -> Vec<Entry> {
        let needed: Vec<Part> = self.parts(way).into_iter().filter(|part| !part.optional).collect();
        match (&entry.value.value, needed.as_slice()) {
            (Value::Mapping(parts), _) => parts.clone(),
            (_, [only]) => vec![Entry { key: only.name.clone(), ..entry.clone() }],
            _ => Vec::new(),
        }
    }

    fn as_kind(
        &self,
        way: &Entry,
        given: &[&Entry],
        written: &Node,
        parameters: &Fillings,
        path: &PolicyPath,
    ) -> Result<Vec<Entry>, Box<Diagnostic>> {
        let parts = self.parts(way);
        if let Some(extra) = given.iter().find(|entry| !parts.iter().any(|part| part.name == entry.key)) {
            return Err(self.unknown(way, &parts, extra, path));
        }
        let mut fillings = parameters.clone();
        for part in &parts {
            let filling = match given.iter().find(|entry| entry.key == part.name) {
                Some(entry) => part.filling(entry, path)?,
                None if part.optional => Filling::Nothing,
                None => return Err(self.missing(way, part, written, path)),
            };
            fillings.insert(part.name.clone(), filling);
        }
        let is = way.value.get("is").and_then(|is| fill(is, &fillings));
        // The kind stands where the policy wrote the credential: a mistake of the whole is told there.
        let preset = way.key_place.source;
        let at = |entry: &Entry| {
            let own = entry.value.place.source == preset;
            let place = if own { written.place } else { entry.value.place };
            Entry { key_place: written.place, value: Node { place, ..entry.value.clone() }, ..entry.clone() }
        };
        Ok(is.as_ref().map(|is| is.entries().iter().map(at).collect()).unwrap_or_default())
    }

    fn missing(&self, way: &Entry, part: &Part, written: &Node, path: &PolicyPath) -> Box<Diagnostic> {
        let message = format!("missing key `{}`", part.name);
        Box::new(Diagnostic::new(Some(written.place), path.clone(), message).hint(self.written_as(way)))
    }

    fn unknown(&self, way: &Entry, parts: &[Part], extra: &Entry, path: &PolicyPath) -> Box<Diagnostic> {
        // A way beside other keys is not a word mistaken: only one way can be written.
        let known = parts.iter().map(|part| part.name.as_str()).chain(self.ways());
        let known = known.filter(|name| *name != extra.key);
        let hint = match suggest(&extra.key, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => self.written_as(way),
        };
        let diagnostic = Diagnostic::new(Some(extra.key_place), path.key(extra.key.clone()), "unknown key");
        Box::new(diagnostic.hint(hint))
    }

    /// How the credential may be written, each way with what it is, for hints and documents; with `all`, those parts as well
    /// that need not be given.
    pub fn credential_forms(&self, all: bool) -> Vec<(String, String)> {
        let form = |way: &Entry| {
            let about =
                self.header.credentials.get(&way.key).map(|way| way.about.clone()).unwrap_or_default();
            (self.form(way, all), about)
        };
        self.credentials.iter().map(form).collect()
    }

    fn form(&self, way: &Entry, all: bool) -> String {
        let usual = self.credentials.first().is_some_and(|usual| usual.key == way.key);
        let parts: Vec<String> = self
            .parts(way)
            .iter()
            .filter(|part| all || !part.optional)
            .map(|part| format!("{}: {}", part.name, part.sample()))
            .collect();
        match parts.as_slice() {
            parts if usual => format!("credential: {{ {} }}", parts.join(", ")),
            [one] => {
                let value = one.split_once(": ").map(|(_, value)| value).unwrap_or_default();
                format!("credential: {{ {}: {value} }}", way.key)
            }
            parts => format!("credential: {{ {}: {{ {} }} }}", way.key, parts.join(", ")),
        }
    }

    fn written_as(&self, way: &Entry) -> String {
        let mut hint = format!("`{}`", self.form(way, false));
        let others: Vec<String> =
            self.ways().filter(|name| *name != way.key).map(|name| format!("`{name}`")).collect();
        if !others.is_empty() {
            hint.push_str(&format!("; other ways: {}", others.join(", ")));
        }
        hint
    }
}

/// The part that says where a refresh token that rotates is kept.
const STORE: &str = "store";

impl Part {
    /// What a policy writes there, as an example.
    pub(super) fn sample(&self) -> &'static str {
        match self.whole {
            true if self.name == STORE => "{ file: PATH }",
            true => "env:NAME",
            false => "text",
        }
    }

    fn filling(&self, entry: &Entry, path: &PolicyPath) -> Result<Filling, Box<Diagnostic>> {
        if self.whole {
            return Ok(Filling::Written(entry.value.clone()));
        }
        let plain = |text: &str| {
            !text.is_empty()
                && text.len() <= 256
                && text.bytes().all(|b| b.is_ascii_graphic())
                && !text.contains("${")
        };
        let fits = |text: &str| self.pattern.as_ref().is_none_or(|pattern| pattern.matches(text));
        match super::fill::text_of(&entry.value) {
            Some(text) if plain(text) && fits(text) => Ok(Filling::Written(entry.value.clone())),
            // Not repeated: somebody may have taken it for the place of the secret.
            _ => {
                let message = match &self.pattern {
                    Some(pattern) => format!("expected a text that looks like `{}`", pattern.as_str()),
                    None => "expected a text of 1 to 256 printable ASCII characters without space".to_owned(),
                };
                Err(Box::new(Diagnostic::new(Some(entry.value.place), path.key(entry.key.clone()), message)))
            }
        }
    }
}
