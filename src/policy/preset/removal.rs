//! What an app sends elsewhere than where the credential goes.
//!
//! A preset's `headers.remove` and `query.remove` name the fields and the parameters where an SDK may put its key. They go
//! wherever outgate brings a credential: on the provider, and on a route with one of its own. Without a credential of
//! outgate's, and with a placeholder, the app's key is the one that counts, and stays. A policy's own lists add to the preset's,
//! and what `defaults` take out of all requests is taken out whoever else has a list.

use crate::policy::tree::{Entry, Node, Value};

/// What a preset removes, section by section, and whether it goes on the provider.
pub(super) struct Removal {
    sections: [Section; 2],
    brings: bool,
}

/// The lists of one section that lie below a policy's provider.
struct Section {
    name: &'static str,
    /// The preset's.
    preset: Vec<Node>,
    /// Those for all providers.
    defaults: Vec<Node>,
}

impl Removal {
    /// Of a preset's keys, of what the policy writes of all providers, and of this one.
    pub(super) fn of(base: &Node, defaults: Option<&Node>, provider: &Node) -> Self {
        let brings = provider.get(CREDENTIAL).is_some_and(is_brought);
        let sections = SECTIONS.map(|name| {
            let list = |node: &Node| removed(node, name).unwrap_or_default().to_vec();
            Section { name, preset: list(base), defaults: defaults.map(list).unwrap_or_default() }
        });
        Self { sections, brings }
    }

    /// Leaves the preset's lists alone, where the provider has no credential.
    pub(super) fn in_base(&self, base: &mut Node) {
        let Value::Mapping(keys) = &mut base.value else { return };
        for entry in keys.iter_mut().filter(|entry| SECTIONS.contains(&&*entry.key) && !self.brings) {
            if let Value::Mapping(edits) = &mut entry.value.value {
                edits.retain(|edit| edit.key != REMOVE);
            }
        }
    }

    /// What the policy writes, with the lists below where its own would take their place, and where a route differs from its
    /// provider.
    pub(super) fn in_own(&self, provider: &Node) -> Node {
        let sections =
            self.sections.iter().filter(|below| !below.preset.is_empty() || !below.defaults.is_empty());
        sections.fold(provider.clone(), |node, below| Listed { below, brings: self.brings }.in_own(&node))
    }
}

/// The lists of one section, for a provider.
struct Listed<'a> {
    below: &'a Section,
    brings: bool,
}

impl Listed<'_> {
    fn in_own(&self, provider: &Node) -> Node {
        let own = removed(provider, self.below.name);
        let mut node = own.map_or_else(|| provider.clone(), |own| self.with(provider, own, self.brings));
        let Value::Mapping(keys) = &mut node.value else { return node };
        let Some(routes) = keys.iter_mut().find(|entry| entry.key == ROUTES) else { return node };
        let Value::Sequence(routes) = &mut routes.value.value else { return node };
        for route in routes {
            let brings = route.get(CREDENTIAL).map_or(self.brings, is_brought);
            let written = removed(route, self.below.name);
            if brings != self.brings || written.is_some() {
                let list = written.or(own).unwrap_or_default().to_vec();
                *route = self.with(route, &list, brings);
            }
        }
        node
    }

    /// The node with a list of its own: what the policy writes here and for all, and the preset's names where a credential is
    /// brought.
    fn with(&self, node: &Node, own: &[Node], brings: bool) -> Node {
        let mut list = own.to_vec();
        for name in self.below.defaults.iter().chain(self.below.preset.iter().filter(|_| brings)) {
            if !list.iter().any(|one| same(one, name)) {
                list.push(name.clone());
            }
        }
        let list = Value::Sequence(list);
        put(node, self.below.name, |section| {
            let empty = Node { value: Value::Mapping(Vec::new()), place: node.place };
            let section = section.cloned().unwrap_or(empty);
            // `headers: off` stays what it is, and a mistake is told when the whole is decoded.
            if !matches!(section.value, Value::Mapping(_)) {
                return section;
            }
            put(&section, REMOVE, |old| Node {
                value: list.clone(),
                place: old.map_or(section.place, |old| old.place),
            })
        })
    }
}

const CREDENTIAL: &str = "credential";
const SECTIONS: [&str; 2] = ["headers", "query"];
const REMOVE: &str = "remove";
const ROUTES: &str = "routes";

/// Whether a credential has a place of its own: a placeholder is where the app puts it.
fn is_brought(credential: &Node) -> bool {
    credential.as_str() != Some("none") && credential.get("placeholder").is_none()
}

/// The list under `remove` of a section.
fn removed<'a>(node: &'a Node, section: &str) -> Option<&'a [Node]> {
    match &node.get(section)?.get(REMOVE)?.value {
        Value::Sequence(list) => Some(list),
        _ => None,
    }
}

/// Whether two names are of one field or parameter.
fn same(a: &Node, b: &Node) -> bool {
    a.as_str().zip(b.as_str()).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
}

/// The mapping with the value of one key made anew; it stands at the end where there was none.
fn put(node: &Node, key: &str, value: impl FnOnce(Option<&Node>) -> Node) -> Node {
    let mut entries = node.entries().to_vec();
    match entries.iter_mut().find(|entry| entry.key == key) {
        Some(entry) => entry.value = value(Some(&entry.value)),
        None => entries.push(Entry { key: key.to_owned(), key_place: node.place, value: value(None) }),
    }
    Node { value: Value::Mapping(entries), place: node.place }
}
