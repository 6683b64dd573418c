//! Located trees to typed values, all mistakes at once.
//!
//! serde stops at the first mistake. Here the mistake is told with its exact path and place, the node that caused it is
//! left out, and the rest is decoded again, until nothing more is wrong. What follows only from something being left out
//! (a key is missing because its value was refused) is not told.
//!
//! Wire types are plain serde types with `deny_unknown_fields`, and externally tagged enums (`vault: {...}`, or a bare
//! word for a variant without settings). A value that may be a word or a map has a hand-written visitor over
//! `deserialize_any`. A number is never taken where a string is wanted; a type that takes both asks for any.
//!
//! ```yaml
//! retry: { atempts: 3 }    # unknown key; did you mean `attempts`?
//! timeouts: { connect: 2 } # expected a duration such as `10s`, found the number 2
//! ```
//!
//! No message repeats a value that may be a secret: see `fault.rs`.

mod access;
mod fault;
mod walk;

use std::collections::HashSet;

use serde::de::DeserializeOwned;

use super::diagnostic::{Diagnostic, Diagnostics, MAX_DIAGNOSTICS};
use super::tree::{Node, PolicyPath};
use walk::{Cursor, Shared};

/// How often a tree is decoded again. Each told mistake can cost one round, and one for each level above it.
const MAX_ROUNDS: usize = MAX_DIAGNOSTICS * 4;

/// Decodes a tree whose root stands at `base` in the policy. Every mistake goes to `diagnostics`; a value is given only
/// where there was none.
pub fn decode<T: DeserializeOwned>(
    node: &Node,
    base: &PolicyPath,
    diagnostics: &mut Diagnostics,
) -> Option<T> {
    let (value, whole) = rounds(node, base, diagnostics);
    value.filter(|_| whole)
}

/// As [`decode`], but gives what is left when the refused parts are taken out. That is for looking for further mistakes
/// in it, and never to be run: a route that denies may be what was taken out.
pub fn salvage<T: DeserializeOwned>(
    node: &Node,
    base: &PolicyPath,
    diagnostics: &mut Diagnostics,
) -> Option<T> {
    rounds(node, base, diagnostics).0
}

/// The value, and whether it is the whole tree's.
fn rounds<T: DeserializeOwned>(
    node: &Node,
    base: &PolicyPath,
    diagnostics: &mut Diagnostics,
) -> (Option<T>, bool) {
    let mut pruned = HashSet::new();
    for _ in 0..MAX_ROUNDS {
        let shared = Shared { base, pruned: &pruned };
        let cursor = Cursor::root(node, &shared);
        let fault = match T::deserialize(cursor) {
            Ok(value) => return (Some(value), pruned.is_empty()),
            Err(fault) => fault.at_value(&cursor),
        };
        let Some(site) = fault.into_site() else { break };
        if let Some(diagnostic) = site.diagnostic {
            diagnostics.push(diagnostic);
        }
        if site.prune == walk::identity(node) || !pruned.insert(site.prune) || diagnostics.is_full() {
            break;
        }
    }
    // Whatever ends the rounds early, a refused tree must not look like one without mistakes.
    if diagnostics.is_empty() {
        diagnostics.push(Diagnostic::new(Some(node.place), base.clone(), "cannot be read"));
    }
    (None, false)
}

#[cfg(test)]
mod tests;
