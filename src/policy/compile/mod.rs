//! From what was typed to what is true: merges defaults, preset, provider and route, fills in built-in values, checks everything
//! that one key alone cannot tell, and reports all mistakes at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compiled::{CompiledPolicy, Fleet, SecretUse, Source};
use super::decode::{decode, salvage};
use super::diagnostic::{Diagnostic, Diagnostics, Rejection};
use super::load::{Fnv1a, LoadedPolicy};
use super::preset::{self, apply::Presets};
use super::schema::{PolicyConfig, ProviderConfig, Unmatched};
use super::tree::{Node, Place, PolicyPath};
use crate::credential::kinds::KeepSettings;
use crate::resilience::mistake::Mistakes;
use crate::secret::reference::{self, ENV, FILE, STORE_NAME, SecretRef, is_store_name};
use crate::secret::{StoreConfig, ValueRules};

mod credential;
mod fixed;
mod hosts;
mod layers;
mod listeners;
mod provider;
mod route;
#[cfg(test)]
mod tests;
mod upstream;

/// What the parts of the compiler share: where mistakes go, and which secrets were named.
struct Compiler<'a> {
    tree: &'a Node,
    presets: Presets,
    directory: PathBuf,
    mistakes: Diagnostics,
    warnings: Vec<String>,
    secrets: Vec<SecretUse>,
    stores: Vec<(String, StoreConfig)>,
    /// Where tokens keep what rotates, each with the token and the path of its credential.
    kept: Vec<(KeepSettings, SecretRef, PolicyPath)>,
    /// Refresh tokens, each with the token that is got with it, whether it rotates, and the path of its credential.
    seeds: Vec<(SecretRef, SecretRef, bool, PolicyPath)>,
    /// Files whose content is part of the policy, and their content.
    files: Vec<(PathBuf, Arc<[u8]>)>,
    /// The policy has a fleet.
    fleet: bool,
    /// Every key was of its type. If not, what is left is looked at for further mistakes, and never run.
    typed: bool,
    /// How many of the mistakes are about the types of values.
    of_types: usize,
}

impl Compiler<'_> {
    /// Reports a mistake at a path of the policy as written; where nothing is written there, at the nearest parent.
    fn mistake(&mut self, path: &PolicyPath, message: impl Into<String>) {
        let place = nearest(self.tree, path);
        self.mistakes.push(Diagnostic::new(place, path.clone(), message));
    }

    /// Whether a list has no items as it was written, before those of a wrong type were left out.
    fn is_written_empty(&self, path: &PolicyPath) -> bool {
        self.tree.at(path).is_none_or(|node| node.items().is_empty())
    }

    /// The same, with what would be right.
    fn mistake_with(&mut self, path: &PolicyPath, message: impl Into<String>, hint: impl Into<String>) {
        let place = nearest(self.tree, path);
        self.mistakes.push(Diagnostic::new(place, path.clone(), message).hint(hint));
    }

    /// Decodes what was merged. Its parts were decoded before, so only a contradiction between them is news; where they had
    /// mistakes of their own, those are not told again.
    fn decode_merged(&mut self, node: &Node, path: &PolicyPath) -> Option<ProviderConfig> {
        if self.typed {
            return decode(node, path, &mut self.mistakes);
        }
        salvage(node, path, &mut Diagnostics::new())
    }

    /// Notes that a secret is used at a path, and checks that its store exists.
    fn uses_secret(&mut self, path: &PolicyPath, reference: &SecretRef, required: bool) {
        self.uses_secret_under(path, reference, required, ValueRules::HeaderSafe);
    }

    /// The same for a secret whose bytes are judged by other rules.
    fn uses_secret_under(
        &mut self,
        path: &PolicyPath,
        reference: &SecretRef,
        required: bool,
        rules: ValueRules,
    ) {
        if reference.is_per_tenant() {
            self.mistake(path, reference::NOT_A_TENANTS);
            return;
        }
        self.uses_secret_of(path, reference, required, rules);
    }

    /// The same where `{tenant}` may stand in it: in a credential.
    fn uses_secret_of(
        &mut self,
        path: &PolicyPath,
        reference: &SecretRef,
        required: bool,
        rules: ValueRules,
    ) {
        let store = reference.store();
        let known = store == "env"
            || store == "file"
            || reference.is_made()
            || self.stores.iter().any(|(name, _)| name == store);
        if !known {
            self.mistake_with(
                path,
                format!("there is no secret store named `{store}`"),
                "`env:NAME` and `file:/path` always exist; other stores stand under `secrets`",
            );
            return;
        }
        let same = |seen: &&mut SecretUse| seen.reference == *reference && seen.rules == rules;
        match self.secrets.iter_mut().find(same) {
            Some(seen) => seen.required |= required,
            None => self.secrets.push(SecretUse { reference: reference.clone(), rules, required }),
        }
    }

    /// A path of the policy, relative to the directory of the policy.
    fn file(&self, text: &str) -> PathBuf {
        if Path::new(text).is_absolute() { PathBuf::from(text) } else { self.directory.join(text) }
    }
}

/// The place of the node at `path`, or of the nearest parent that exists.
fn nearest(tree: &Node, path: &PolicyPath) -> Option<Place> {
    let mut steps = path.steps().to_vec();
    loop {
        let here = PolicyPath::from_steps(steps.clone());
        if let Some(node) = tree.at(&here) {
            return Some(node.place);
        }
        steps.pop()?;
    }
}

/// Compiles a loaded policy. `directory` is what relative paths of the policy are relative to.
pub fn compile(mut loaded: LoadedPolicy, directory: &Path) -> Result<CompiledPolicy, Rejection> {
    let mut mistakes = std::mem::take(&mut loaded.mistakes);
    let of_text = mistakes.len();
    let (tree, presets) = preset::apply::apply(&loaded.tree, &mut loaded.sources, &mut mistakes);
    let applied = mistakes.len() == of_text;
    let mut compiler = Compiler {
        tree: &tree,
        presets,
        directory: directory.to_path_buf(),
        mistakes,
        warnings: Vec::new(),
        secrets: Vec::new(),
        stores: Vec::new(),
        kept: Vec::new(),
        seeds: Vec::new(),
        files: Vec::new(),
        fleet: tree.get("fleet").is_some_and(|node| !matches!(node.value, super::tree::Value::Null)),
        typed: true,
        of_types: 0,
    };
    let before = compiler.mistakes.len();
    let config = salvage::<PolicyConfig>(&tree, &PolicyPath::root(), &mut compiler.mistakes);
    compiler.typed = applied && compiler.mistakes.len() == before;
    compiler.of_types = compiler.mistakes.len();
    // One that cannot be read is a mistake by itself, and not the lack of one.
    let fleet = config.as_ref().and_then(|config| config.fleet.as_ref());
    compiler.fleet = fleet.map_or(compiler.fleet, |fleet| fleet.on().is_some());
    let parts = config.map(|config| compiler.parts(&config));
    let Compiler { mistakes, warnings, secrets, stores, files, .. } = compiler;
    match parts {
        Some(Some(parts)) if mistakes.is_empty() => Ok(CompiledPolicy {
            fixed: parts.fixed,
            stores,
            unmatched: parts.unmatched,
            unmatched_upstream: parts.unmatched_upstream,
            fleet: parts.fleet,
            providers: parts.providers,
            hosts: parts.tables.hosts,
            local_hosts: parts.tables.local_hosts,
            local_paths: parts.tables.local_paths,
            secrets,
            hash: hash_of(loaded.hash, &files),
            files: files.into_iter().map(|(file, _)| file).collect(),
            warnings,
            source: Source { tree, sources: loaded.sources },
        }),
        _ => Err(Rejection::new(mistakes, loaded.sources)),
    }
}

/// The hash of the text, and of the files that belong to it.
fn hash_of(text: String, files: &[(PathBuf, Arc<[u8]>)]) -> String {
    if files.is_empty() {
        return text;
    }
    let mut hash = Fnv1a::default();
    hash.add(text.as_bytes());
    for (_, content) in files {
        hash.add(&(content.len() as u64).to_le_bytes());
        hash.add(content);
    }
    hash.hex()
}

/// What the sections compile to.
struct Parts {
    fixed: super::compiled::Fixed,
    unmatched: Unmatched,
    unmatched_upstream: super::compiled::UpstreamKey,
    providers: Vec<Arc<super::compiled::Provider>>,
    tables: hosts::Tables,
    fleet: Option<Fleet>,
}

impl Compiler<'_> {
    fn check_stores(&mut self) {
        for (name, store) in self.stores.clone() {
            let path = PolicyPath::root().key("secrets").key(&name);
            if !is_store_name(&name) || matches!(&*name, ENV | FILE) {
                self.mistake(&path, STORE_NAME);
            }
            for (key, text) in store.mistakes(&self.directory) {
                let path = path.key(store.kind());
                self.mistake(
                    &key.split('.').filter(|key| !key.is_empty()).fold(path, |path, key| path.key(key)),
                    text,
                );
            }
        }
    }

    fn parts(&mut self, config: &PolicyConfig) -> Option<Parts> {
        let root = PolicyPath::root();
        match config.version {
            Some(1) => {}
            Some(_) => self.mistake(&root.key("version"), "this outgate knows version 1"),
            None => self.mistake_with(&root, "missing key `version`", "begin the policy with `version: 1`"),
        }
        self.stores =
            config.secrets.iter().flatten().map(|(name, store)| (name.clone(), store.clone())).collect();
        self.check_stores();
        let fleet = self.fleet_settings(config);
        let addresses = self.addresses(config);
        let providers = self.providers(config, &addresses);
        self.warn_of_unseen_placeholders(&providers, config.unmatched.unwrap_or_default());
        let fixed = self.fixed(config, &providers);
        let tables = self.tables(&providers);
        let unmatched_upstream = self.unmatched_upstream(&addresses);
        Some(Parts {
            fixed: fixed?,
            unmatched: config.unmatched.unwrap_or_default(),
            unmatched_upstream,
            providers,
            tables,
            fleet,
        })
    }

    fn fleet_settings(&mut self, config: &PolicyConfig) -> Option<Fleet> {
        let fleet = config.fleet.as_ref()?.on()?;
        let path = PolicyPath::root().key("fleet");
        let mut mistakes = Mistakes::default();
        let settings = fleet.compile(&mut mistakes);
        let wrong = mistakes.into_vec();
        for mistake in &wrong {
            let at = layers::below(&path, mistake);
            match &mistake.hint {
                Some(hint) => self.mistake_with(&at, &*mistake.message, &**hint),
                None => self.mistake(&at, &*mistake.message),
            }
        }
        if !wrong.is_empty() {
            return None;
        }
        let at = path.key("redis").key("url");
        match settings.url.parse::<SecretRef>() {
            Ok(url) => {
                self.uses_secret(&at, &url, false);
                Some(Fleet { settings, url })
            }
            Err(error) => {
                self.mistake(&at, error.to_string());
                None
            }
        }
    }
}
