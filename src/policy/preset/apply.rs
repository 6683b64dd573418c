//! The policy with its presets: what each provider has from its preset, and its credential as a kind.

use std::collections::BTreeMap;

use super::fill::{Filling, Fillings, fill, in_text, text_of};
use super::header::{Meaning, Parameter};
use super::removal::Removal;
use super::{Preset, names, text, title};
use crate::policy::diagnostic::{Diagnostic, Diagnostics, suggest};
use crate::policy::tree::{Entry, Node, PolicyPath, Sources, Value};

/// What a provider has from its preset.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The preset's name.
    pub name: String,
    /// Keys of a provider, parameters filled in; no routes.
    pub base: Node,
    /// Routes, likewise.
    pub routes: Vec<Node>,
    /// How the credential may be written, where the provider wants one and the policy gives none.
    pub credential_hint: Option<String>,
    /// Samples stand for parameters that are missing or wrong, which was told: so that what else is wrong with the provider is told
    /// with it. Nobody may use what it comes to.
    pub of_samples: bool,
}

/// What the presets of a policy come to.
#[derive(Clone, Debug, Default)]
pub struct Presets {
    /// By the name of the provider; none where its preset cannot be used, which was told.
    providers: BTreeMap<String, Option<Applied>>,
}

impl Presets {
    /// What a provider has; `Err` where it was refused.
    pub fn of(&self, provider: &str) -> Result<Option<&Applied>, Refused> {
        match self.providers.get(provider) {
            None => Ok(None),
            Some(Some(applied)) => Ok(Some(applied)),
            Some(None) => Err(Refused),
        }
    }
}

/// The provider's preset cannot be used; it was told why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The policy's tree with every credential of a preset as a kind, and what each provider has from its preset. The texts of
/// the presets are added to `sources`.
pub fn apply(tree: &Node, sources: &mut Sources, mistakes: &mut Diagnostics) -> (Node, Presets) {
    let mut tree = tree.clone();
    let mut presets = Presets::default();
    let defaults = tree.get("defaults").cloned();
    let Value::Mapping(top) = &mut tree.value else { return (tree, presets) };
    let Some(providers) = top.iter_mut().find(|entry| entry.key == "providers") else {
        return (tree, presets);
    };
    let Value::Mapping(providers) = &mut providers.value.value else { return (tree, presets) };
    for provider in providers {
        let path = PolicyPath::root().key("providers").key(provider.key.clone());
        let written = |entry: &&Entry| !matches!(entry.value.value, Value::Null);
        let Some(named) = provider.value.entry("preset").filter(written) else { continue };
        // What is no text is told when the whole is decoded.
        let defaults = defaults.as_ref();
        let applied =
            Provider { path: &path, named, value: &provider.value, defaults, sources, mistakes }.apply();
        let (own, credentials, applied) = match applied {
            Some((own, credentials, applied)) => (own, Some(credentials), Some(applied)),
            None => (provider.value.clone(), None, None),
        };
        presets.providers.insert(provider.key.clone(), applied);
        provider.value = rewritten(&own, credentials.as_ref());
    }
    (tree, presets)
}

/// The credentials of a provider and of its routes by number; those that cannot be used are left out.
struct Credentials {
    own: Option<Node>,
    routes: Vec<Option<Node>>,
}

/// The provider with its credentials as kinds; without any, where its preset cannot be used.
fn rewritten(provider: &Node, credentials: Option<&Credentials>) -> Node {
    let mut node = replaced(provider, credentials.and_then(|credentials| credentials.own.as_ref()));
    if let Value::Mapping(entries) = &mut node.value
        && let Some(routes) = entries.iter_mut().find(|entry| entry.key == "routes")
        && let Value::Sequence(items) = &mut routes.value.value
    {
        for (index, item) in items.iter_mut().enumerate() {
            *item = replaced(item, credentials.and_then(|all| all.routes.get(index)?.as_ref()));
        }
    }
    node
}

fn replaced(node: &Node, credential: Option<&Node>) -> Node {
    let Value::Mapping(entries) = &node.value else { return node.clone() };
    let entries = entries.iter().filter_map(|entry| match entry.key.as_str() {
        "credential" => credential.map(|value| Entry { value: value.clone(), ..entry.clone() }),
        _ => Some(entry.clone()),
    });
    Node { value: Value::Mapping(entries.collect()), place: node.place }
}

/// A provider that names a preset.
struct Provider<'a> {
    path: &'a PolicyPath,
    named: &'a Entry,
    value: &'a Node,
    /// What the policy writes for all providers.
    defaults: Option<&'a Node>,
    sources: &'a mut Sources,
    mistakes: &'a mut Diagnostics,
}

impl Provider<'_> {
    /// What the policy writes with what the preset removes, its credentials as kinds, and what it has from the preset.
    fn apply(mut self) -> Option<(Node, Credentials, Applied)> {
        let name = self.named.value.as_str()?;
        let Some(text) = text(name) else {
            let hint = match suggest(name, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "`outgate presets` lists them".to_owned(),
            };
            let told = Diagnostic::new(
                Some(self.named.value.place),
                self.path.key("preset"),
                "there is no such preset",
            );
            self.mistakes.push(told.hint(hint));
            return None;
        };
        let source = self.sources.add(title(name));
        let preset = Preset::read(text, source, self.mistakes)?;
        let before = self.mistakes.len();
        let fillings = self.parameters(&preset);
        let of_samples = self.mistakes.len() > before;
        let mut base = fill(&preset.base, &fillings)?;
        let removal = Removal::of(&base, self.defaults, self.value);
        removal.in_base(&mut base);
        let routes = preset.routes.iter().filter_map(|route| fill(route, &fillings)).collect();
        let credentials = self.credentials(&preset, &fillings);
        let wants = self.value.get("credential").is_none();
        let credential_hint =
            preset.credential_forms(false).first().filter(|_| wants).map(|(form, _)| format!("`{form}`"));
        let own = removal.in_own(self.value);
        Some((own, credentials, Applied { name: name.to_owned(), base, routes, credential_hint, of_samples }))
    }

    fn credentials(&mut self, preset: &Preset, fillings: &Fillings) -> Credentials {
        let own = self.value.get("credential").cloned();
        let own = own.and_then(|node| self.credential(preset, &node, fillings, &self.path.key("credential")));
        let routes = self.value.get("routes").map(Node::items).unwrap_or_default();
        let routes = routes
            .iter()
            .enumerate()
            .map(|(index, route)| {
                let path = self.path.key("routes").index(index).key("credential");
                self.credential(preset, route.get("credential")?, fillings, &path)
            })
            .collect();
        Credentials { own, routes }
    }

    fn credential(
        &mut self,
        preset: &Preset,
        written: &Node,
        fillings: &Fillings,
        path: &PolicyPath,
    ) -> Option<Node> {
        match preset.credential(written, fillings, path) {
            Ok(kind) => Some(kind),
            Err(told) => {
                self.mistakes.push(*told);
                None
            }
        }
    }

    /// The values of the preset's parameters; a sample where one is wrong or missing, which is told.
    fn parameters(&mut self, preset: &Preset) -> Fillings {
        let parameters = &preset.header.parameters;
        let with = self.value.get("with").filter(|node| !matches!(node.value, Value::Null));
        let path = self.path.key("with");
        for entry in with.map(Node::entries).unwrap_or_default() {
            if !parameters.contains_key(&entry.key) {
                let hint = known_parameters(parameters, &entry.key);
                let at = path.key(entry.key.clone());
                let told = Diagnostic::new(Some(entry.key_place), at, "the preset has no such parameter");
                self.mistakes.push(told.hint(hint));
            }
        }
        let mut words = BTreeMap::new();
        for (name, parameter) in parameters {
            match with.and_then(|with| with.get(name)) {
                Some(given) => match text_of(given).filter(|text| parameter.allows(text)) {
                    Some(text) => {
                        words.insert(name.as_str(), text.to_owned());
                    }
                    None => {
                        let hint = parameter.looks_like();
                        self.tell(Some(given), &path.key(name), "not a value of this parameter", hint);
                        words.extend(parameter.any_value().map(|word| (name.as_str(), word)));
                    }
                },
                None if parameter.required => {
                    let sample = parameter.sample.as_deref().unwrap_or("...");
                    let message = format!("the preset needs `{name}`: {}", parameter.description);
                    self.tell(with, &path, &message, format!("`with: {{ {name}: {sample} }}`"));
                    words.extend(parameter.any_value().map(|word| (name.as_str(), word)));
                }
                None => {
                    words.extend(parameter.default.clone().map(|word| (name.as_str(), word)));
                }
            }
        }
        for (name, parameter) in parameters {
            let followed = parameter.follows.as_deref().and_then(|other| words.get(other)).cloned();
            if let (false, Some(word)) = (words.contains_key(name.as_str()), followed) {
                words.insert(name, word);
            }
        }
        self.meanings(parameters, &words)
    }

    /// What the words mean. A meaning may name other parameters, which then must have a value.
    fn meanings(
        &mut self,
        parameters: &BTreeMap<String, Parameter>,
        words: &BTreeMap<&str, String>,
    ) -> Fillings {
        let mut fillings = Fillings::new();
        for (name, parameter) in parameters {
            let (word, meaning) = match words.get(name.as_str()) {
                Some(word) => (word.as_str(), parameter.values.get(word).or(parameter.is.as_ref())),
                None if parameter.absent.is_some() => ("", parameter.absent.as_ref()),
                None => {
                    fillings.insert(name.clone(), Filling::Nothing);
                    continue;
                }
            };
            let mut missing = None;
            let mut meant = |text: &String| {
                in_text(text, |other| {
                    let value = words.get(other).cloned();
                    if value.is_none() {
                        missing = Some(other.to_owned());
                    }
                    value.or_else(|| parameters.get(other)?.any_value())
                })
            };
            let filling = match meaning {
                None => Some(Filling::Text(word.to_owned())),
                Some(Meaning::One(text)) => meant(text).map(Filling::Text),
                Some(Meaning::Many(texts)) => {
                    texts.iter().map(&mut meant).collect::<Option<_>>().map(Filling::Many)
                }
            };
            if let Some(other) = missing {
                let about =
                    parameters.get(&other).map(|parameter| parameter.description.clone()).unwrap_or_default();
                let sample =
                    parameters.get(&other).and_then(|parameter| parameter.sample.clone()).unwrap_or_default();
                let message = format!("`{name}: {word}` needs `{other}`: {about}");
                let with = self.value.get("with");
                self.tell(with, &self.path.key("with"), &message, format!("`with: {{ {other}: {sample} }}`"));
            }
            fillings.insert(name.clone(), filling.unwrap_or(Filling::Nothing));
        }
        fillings
    }

    /// Tells a mistake at a node of the policy, or where it should stand.
    fn tell(&mut self, at: Option<&Node>, path: &PolicyPath, message: &str, hint: String) {
        let place = at.map_or(self.named.value.place, |node| node.place);
        self.mistakes.push(Diagnostic::new(Some(place), path.clone(), message).hint(hint));
    }
}

fn known_parameters(parameters: &BTreeMap<String, Parameter>, word: &str) -> String {
    let names = || parameters.keys().map(String::as_str);
    match suggest(word, names()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if parameters.is_empty() => "it has none".to_owned(),
        None => format!(
            "possible here: {}",
            names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        ),
    }
}

impl Parameter {
    /// Whether the value may be given.
    pub fn allows(&self, value: &str) -> bool {
        match &self.pattern {
            Some(pattern) => pattern.matches(value),
            None => self.values.contains_key(value),
        }
    }

    /// Some value that may be given.
    fn any_value(&self) -> Option<String> {
        let word = self.default.as_ref().or(self.sample.as_ref()).or_else(|| self.values.keys().next());
        word.cloned()
    }

    /// What a value looks like, for people.
    pub fn looks_like(&self) -> String {
        match (&self.pattern, &self.sample) {
            (Some(pattern), Some(sample)) => {
                format!("it looks like `{}`, such as `{sample}`", pattern.as_str())
            }
            (Some(pattern), None) => format!("it looks like `{}`", pattern.as_str()),
            (None, _) => {
                let words: Vec<String> = self.values.keys().map(|word| format!("`{word}`")).collect();
                format!("possible here: {}", words.join(", "))
            }
        }
    }
}
