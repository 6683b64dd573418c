//! What a new policy allows that the old one did not: listed by `check --against` and in the log of a reload, so that nobody
//! widens access without seeing it.

use std::collections::BTreeSet;

use super::compiled::{CompiledPolicy, Provider, Route};
use super::schema::Unmatched;
use crate::message::target::Scheme;

/// Every change from `old` to `new` that widens access, one line each.
pub fn widenings(old: &CompiledPolicy, new: &CompiledPolicy) -> Vec<String> {
    let mut wider = Vec::new();
    if old.unmatched == Unmatched::Deny && new.unmatched == Unmatched::Tunnel {
        wider.push("`unmatched` is `tunnel` now: CONNECT to port 443 of any host goes through".to_owned());
    }
    addresses(old, new, &mut wider);
    for provider in &new.providers {
        match old.providers.iter().find(|known| known.name == provider.name) {
            None => {
                wider.push(format!("provider `{}` is new: {}", provider.name, provider.host_names.join(", ")))
            }
            Some(known) => compare(known, provider, &mut wider),
        }
    }
    wider
}

fn addresses(old: &CompiledPolicy, new: &CompiledPolicy, wider: &mut Vec<String>) {
    let (before, after) =
        (&old.unmatched_upstream.settings.addresses, &new.unmatched_upstream.settings.addresses);
    for range in after.allow_private.iter().filter(|range| !before.allow_private.contains(range)) {
        wider.push(format!("`addresses.allow_private` has {range} now"));
    }
    for range in after.allow_metadata.iter().filter(|range| !before.allow_metadata.contains(range)) {
        wider.push(format!("`addresses.allow_metadata` has {range} now"));
    }
}

fn compare(old: &Provider, new: &Provider, wider: &mut Vec<String>) {
    let name = &new.name;
    let before: BTreeSet<&String> = old.host_names.iter().collect();
    for host in new.host_names.iter().filter(|host| !before.contains(host)) {
        wider.push(format!("provider `{name}` has host {host} now"));
    }
    for (door, had, has) in [
        ("forward", old.doors.forward, new.doors.forward),
        ("connect", old.doors.connect, new.doors.connect),
        ("local", old.doors.local, new.doors.local),
    ] {
        if has && !had {
            wider.push(format!("provider `{name}` is open at the door `{door}` now"));
        }
    }
    if old.intercept.intercept && !new.intercept.intercept && new.doors.connect {
        wider.push(format!(
            "provider `{name}` is a blind tunnel now: its requests are no longer judged one by one"
        ));
    }
    if new.opaque && !old.opaque && !new.intercept.intercept {
        wider.push(format!("provider `{name}` lets any bytes through its tunnel now"));
    }
    if new.upstream.settings.scheme == Scheme::Http && old.upstream.settings.scheme == Scheme::Https {
        wider.push(format!("provider `{name}` is spoken to in plain http now"));
    }
    if !new.canonical_paths && old.canonical_paths {
        wider.push(format!("provider `{name}` no longer refuses ambiguous paths"));
    }
    denials(old, new, wider);
    credentials(old, new, wider);
}

fn denials(old: &Provider, new: &Provider, wider: &mut Vec<String>) {
    let same = |a: &Route, b: &Route| a.methods == b.methods && a.pattern == b.pattern;
    for route in old.routes.iter().filter(|route| route.deny.is_some()) {
        let still = new.routes.iter().find(|now| same(now, route));
        if still.is_none_or(|now| now.deny.is_none()) {
            wider.push(format!("provider `{}`: route `{}` is no longer denied", new.name, route.name));
        }
    }
    // A route that lets through what a later route denies narrows that denial.
    let has_denial = new.routes.iter().any(|route| route.deny.is_some());
    for route in
        new.routes.iter().filter(|route| has_denial && route.deny.is_none() && &*route.name != "default")
    {
        if !old.routes.iter().any(|known| known.deny.is_none() && same(known, route)) {
            wider.push(format!("provider `{}`: route `{}` is allowed now", new.name, route.name));
        }
    }
}

fn credentials(old: &Provider, new: &Provider, wider: &mut Vec<String>) {
    let references = |provider: &Provider| -> BTreeSet<String> {
        provider
            .routes
            .iter()
            .flat_map(|route| route.settings.credential.iter().flatten())
            .flat_map(|part| part.secrets().map(ToString::to_string).collect::<Vec<_>>())
            .collect()
    };
    let before = references(old);
    for reference in references(new).into_iter().filter(|reference| !before.contains(reference)) {
        wider.push(format!("provider `{}` uses the secret {reference} now", new.name));
    }
}
