//! What of a new policy needs a restart: the keys of the sections that a process lives with, by name and place.

use super::compiled::CompiledPolicy;
use super::diagnostic::render_place;
use super::tree::{Node, PolicyPath, Value};

/// The keys in which `new` differs from `old` and that no reload can change, each as `path (file:line:column)`. Empty where a reload
/// is enough.
pub fn differences(new: &CompiledPolicy, old: &CompiledPolicy) -> Vec<String> {
    let mut found = Vec::new();
    for section in new.fixed.differing(&old.fixed) {
        let path = PolicyPath::root().key(section);
        let before = found.len();
        compare(new.source.tree.at(&path), old.source.tree.at(&path), &path, new, &mut found);
        if found.len() == before {
            // It comes of another section, such as a provider's own `local.address`.
            found.push(format!("`{path}`"));
        }
    }
    found
}

/// Goes down to the keys that differ, so that not a whole section is named for one of them.
fn compare(
    new: Option<&Node>,
    old: Option<&Node>,
    path: &PolicyPath,
    policy: &CompiledPolicy,
    found: &mut Vec<String>,
) {
    let (value, other) = (new.map(|node| &node.value), old.map(|node| &node.value));
    match (value, other) {
        (None, None) => {}
        (Some(Value::Mapping(_)) | None, Some(Value::Mapping(_))) | (Some(Value::Mapping(_)), None) => {
            for key in keys(new, old) {
                let (new, old) = (new.and_then(|node| node.get(key)), old.and_then(|node| node.get(key)));
                compare(new, old, &path.key(key), policy, found);
            }
        }
        (Some(Value::Sequence(_)) | None, Some(Value::Sequence(_))) | (Some(Value::Sequence(_)), None) => {
            let (new, old) = (new.map_or(&[][..], Node::items), old.map_or(&[][..], Node::items));
            for index in 0..new.len().max(old.len()) {
                compare(new.get(index), old.get(index), &path.index(index), policy, found);
            }
        }
        (None, Some(_)) => found.push(format!("`{path}` (taken out)")),
        (Some(value), other) => {
            if let (Some(node), true) = (new, other != Some(value)) {
                found.push(format!("`{path}` ({})", render_place(node.place, &policy.source.sources)));
            }
        }
    }
}

/// The keys of two maps, each once: those of the first in its order, then what only the second has.
fn keys<'a>(new: Option<&'a Node>, old: Option<&'a Node>) -> Vec<&'a str> {
    let (new, old) = (new.map_or(&[][..], Node::entries), old.map_or(&[][..], Node::entries));
    let gone = old.iter().filter(|entry| new.iter().all(|other| other.key != entry.key));
    new.iter().chain(gone).map(|entry| &*entry.key).collect()
}
