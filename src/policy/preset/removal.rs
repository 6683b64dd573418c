//! What an app sends elsewhere than where the credential goes.
//!
//! A preset's `headers.remove` and `query.remove` name the fields and the parameters where an SDK may put its key. They go
//! wherever outgate brings a credential: on the provider, and on a route with one of its own. Without a credential of
//! outgate's, and with a placeholder, the app's key is the one that counts, and stays. A policy's own lists add to the preset's.

use crate::policy::tree::{Entry, Node, Value};

/// What a preset removes, section by section, and whether it goes on the provider.
pub(super) struct Removal {
    sections: [(&'static str, Vec<Node>); 2],
    brings: bool,
}

impl Removal {
    /// Of a preset's keys and what the policy writes of the provider.
    pub(super) fn of(base: &Node, provider: &Node) -> Self {
        let brings = provider.get(CREDENTIAL).is_some_and(is_brought);
        let sections = SECTIONS.map(|section| (section, removed(base, section).unwrap_or_default().to_vec()));
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

    /// What the policy writes, with the preset's lists where its own would take their place, and where a route differs from
    /// its provider.
    pub(super) fn in_own(&self, provider: &Node) -> Node {
        let sections = self.sections.iter().filter(|(_, names)| !names.is_empty());
        sections.fold(provider.clone(), |node, (section, names)| {
            Listed { section, names, brings: self.brings }.in_own(&node)
        })
    }
}

/// The preset's list of one section.
struct Listed<'a> {
    section: &'a str,
    names: &'a [Node],
    brings: bool,
}

impl Listed<'_> {
    fn in_own(&self, provider: &Node) -> Node {
        let own = removed(provider, self.section);
        let mut node = match own {
            Some(own) if self.brings => self.with(provider, own, true),
            _ => provider.clone(),
        };
        let Value::Mapping(keys) = &mut node.value else { return node };
        let Some(routes) = keys.iter_mut().find(|entry| entry.key == ROUTES) else { return node };
        let Value::Sequence(routes) = &mut routes.value.value else { return node };
        for route in routes {
            let brings = route.get(CREDENTIAL).map_or(self.brings, is_brought);
            let written = removed(route, self.section);
            if brings != self.brings || written.is_some() {
                let list = written.or(own).unwrap_or_default().to_vec();
                *route = self.with(route, &list, brings);
            }
        }
        node
    }

    /// The node with a list of its own: what the policy writes, and the preset's names where a credential is brought.
    fn with(&self, node: &Node, own: &[Node], brings: bool) -> Node {
        let more = self.names.iter().filter(|name| brings && !own.iter().any(|one| same(one, name)));
        let list = Value::Sequence(own.iter().chain(more).cloned().collect());
        put(node, self.section, |section| {
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
