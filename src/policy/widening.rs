//! What a new policy allows that the old one did not: listed by `check --against` and in the log of a reload, so that nobody
//! widens access without seeing it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::compiled::{CompiledPolicy, Provider, Route, TenantFrom};
use super::schema::Unmatched;
use super::tenant_pattern::TenantPattern;
use crate::credential::kinds::MemberSettings;
use crate::credential::scrub::Scrub;
use crate::message::target::Scheme;
use crate::upstream::settings::{MinTls, ProxyResolve, UpstreamProxy};

/// Every change from `old` to `new` that widens access, one line each.
pub fn widenings(old: &CompiledPolicy, new: &CompiledPolicy) -> Vec<String> {
    let mut wider = Vec::new();
    if old.unmatched == Unmatched::Deny && new.unmatched == Unmatched::Tunnel {
        wider.push("`unmatched` is `tunnel` now: CONNECT to port 443 of any host goes through".to_owned());
    }
    addresses(old, new, &mut wider);
    upstream_proxy(old, new, &mut wider);
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

/// The corporate proxy is where everything goes, and what goes around it.
fn upstream_proxy(old: &CompiledPolicy, new: &CompiledPolicy, wider: &mut Vec<String>) {
    let proxy = |policy: &CompiledPolicy| policy.unmatched_upstream.settings.upstream_proxy.clone();
    let (before, after) = (proxy(old), proxy(new));
    let place = |proxy: &UpstreamProxy| format!("{}:{}", proxy.host, proxy.port);
    match (&before, &after) {
        (Some(_), None) => {
            wider.push("`addresses.upstream_proxy` is gone: providers are dialled directly now".to_owned())
        }
        (was, Some(now)) if was.as_ref().is_none_or(|was| place(was) != place(now)) => {
            wider.push(format!(
                "connections go through the proxy {} now (`addresses.upstream_proxy`)",
                place(now)
            ));
        }
        _ => {}
    }
    let Some(now) = after else { return };
    let was = before.as_deref();
    if now.resolve == ProxyResolve::Proxy && was.is_none_or(|was| was.resolve != ProxyResolve::Proxy) {
        wider.push("the proxy resolves names now: the address rules cannot be kept (`addresses.upstream_proxy.resolve`)".to_owned());
    }
    if let Some(was) = was
        && now.no_proxy.iter().any(|bypass| !was.no_proxy.contains(bypass))
    {
        wider.push("more hosts go around the proxy now (`addresses.upstream_proxy.no_proxy`)".to_owned());
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
    if old.tenant.as_ref().is_some_and(|was| was.required)
        && new.tenant.as_ref().is_none_or(|now| !now.required)
    {
        wider.push(format!("provider `{name}` no longer wants a tenant"));
    }
    let proven =
        |provider: &Provider| provider.tenant.as_ref().is_some_and(|tenant| tenant.from == TenantFrom::Token);
    if proven(old) && !proven(new) {
        wider.push(format!("provider `{name}` no longer wants its tenant proven by a token"));
    }
    if let (Some(was), Some(now)) = (names(old), names(new))
        && now.admits_more_than(was)
    {
        wider.push(format!(
            "provider `{name}` takes names of tenants that it did not take (`tenant.pattern`)"
        ));
    }
    upstream(old, new, wider);
    denials(old, new, wider);
    order(old, new, wider);
    settings(old, new, wider);
    credentials(old, new, wider);
}

/// What tenants may be called, where a header names them.
fn names(provider: &Provider) -> Option<&TenantPattern> {
    match &provider.tenant.as_ref()?.from {
        TenantFrom::Header(_, pattern) => Some(pattern),
        TenantFrom::Token => None,
    }
}

/// Where requests go, and who is believed to be the provider.
fn upstream(old: &Provider, new: &Provider, wider: &mut Vec<String>) {
    let name = &new.name;
    let (old, new) = (&old.upstream.settings, &new.upstream.settings);
    match new.connect_to {
        Some(address) if old.connect_to != new.connect_to => {
            wider.push(format!("provider `{name}` is dialled at {address} now (`upstream.connect_to`)"));
        }
        None if old.connect_to.is_some() => {
            wider.push(format!("provider `{name}` is dialled where its name resolves to now"));
        }
        Some(_) | None => {}
    }
    if old.tls.ca != new.tls.ca {
        let whom =
            if new.tls.ca.is_some() { "the authorities of another file" } else { "the system's authorities" };
        wider.push(format!("provider `{name}` may be vouched for by {whom} now (`upstream.tls.ca`)"));
    }
    if old.tls.min_version == MinTls::Tls13 && new.tls.min_version == MinTls::Tls12 {
        wider.push(format!(
            "provider `{name}` may be spoken to with TLS 1.2 now (`upstream.tls.min_version`)"
        ));
    }
}

/// Whether two routes are for the same requests.
fn same(a: &Route, b: &Route) -> bool {
    a.methods == b.methods && a.pattern == b.pattern && a.within == b.within
}

/// Whether requests on it are refused: in shadow mode they pass.
fn refuses(route: &Route) -> bool {
    route.deny.is_some() && route.shadow.is_none()
}

/// The first matching route decides, so one that allows must not come before one that denies unseen.
fn order(old: &Provider, new: &Provider, wider: &mut Vec<String>) {
    let place =
        |route: &Route| old.routes.iter().position(|was| same(was, route) && refuses(was) == refuses(route));
    for (index, allowed) in new.routes.iter().enumerate().filter(|(_, route)| !refuses(route)) {
        let Some(stood) = place(allowed) else { continue };
        for denied in new.routes[index + 1..].iter().filter(|route| refuses(route)) {
            if place(denied).is_some_and(|before| before < stood) {
                wider.push(format!(
                    "provider `{}`: route `{}` stands before the denied route `{}` now",
                    new.name, allowed.name, denied.name
                ));
            }
        }
    }
}

/// What bounds the requests that pass.
fn settings(old: &Provider, new: &Provider, wider: &mut Vec<String>) {
    let searched = |scrub: Scrub| match scrub {
        Scrub::Off => 0,
        Scrub::Standard => 1,
        Scrub::Full => 2,
    };
    for route in new.routes.iter().filter(|route| !refuses(route)) {
        // What a new route is for fell to the provider itself before, or to a route that is compared on its own.
        let was = old.routes.iter().find(|was| same(was, route) && !refuses(was)).or(old.routes.last());
        let Some(was) = was else { continue };
        let (before, after) = (&was.settings, &route.settings);
        if searched(after.scrub) < searched(before.scrub) {
            wider.push(format!(
                "provider `{}`: answers on route `{}` are searched less for the credential (`scrub`)",
                new.name, route.name
            ));
        }
        if before.max_body.is_some_and(|bound| after.max_body.is_none_or(|now| now > bound)) {
            wider.push(format!(
                "provider `{}`: requests on route `{}` may be larger (`max_body`)",
                new.name, route.name
            ));
        }
    }
}

fn denials(old: &Provider, new: &Provider, wider: &mut Vec<String>) {
    for route in old.routes.iter().filter(|route| refuses(route)) {
        let still = new.routes.iter().find(|now| same(now, route));
        if still.is_none_or(|now| !refuses(now)) {
            wider.push(format!("provider `{}`: route `{}` is no longer denied", new.name, route.name));
        }
    }
    // A route that lets through what a later route denies narrows that denial.
    let has_denial = new.routes.iter().any(|route| refuses(route));
    // What a preset fills in below a route is allowed with the route.
    let own = |route: &&Arc<Route>| route.within.is_none() && &*route.name != "default";
    for route in new.routes.iter().filter(|route| has_denial && !refuses(route)).filter(own) {
        if !old.routes.iter().any(|known| !refuses(known) && same(known, route)) {
            wider.push(format!("provider `{}`: route `{}` is allowed now", new.name, route.name));
        }
    }
}

fn credentials(old: &Provider, new: &Provider, wider: &mut Vec<String>) {
    let references = |provider: &Provider| -> BTreeSet<String> {
        provider
            .routes
            .iter()
            .flat_map(|route| route.settings.credential.iter().flat_map(MemberSettings::uses))
            .map(|used| used.reference)
            .chain(
                provider
                    .upstream
                    .identities
                    .iter()
                    .flat_map(|(certificate, key)| [certificate.clone(), key.clone()]),
            )
            .map(|reference| reference.to_string())
            .collect()
    };
    let before = references(old);
    for reference in references(new).into_iter().filter(|reference| !before.contains(reference)) {
        wider.push(format!("provider `{}` uses the secret {reference} now", new.name));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::compile::compile;
    use crate::policy::load::load;
    use crate::tls::{Authority, CaSource};

    fn policy(directory: &Path, text: &str) -> CompiledPolicy {
        let path = directory.join("proxy.yaml");
        std::fs::write(&path, format!("version: 1\n{text}\n")).unwrap();
        compile(load(&path).unwrap(), directory).unwrap_or_else(|error| panic!("{}", error.render(false)))
    }

    fn provider(keys: &str) -> String {
        format!("providers:\n  a: {{ hosts: [a.example.com], {keys} }}")
    }

    /// Rows: before, after, and what is told; backwards, nothing of it is.
    #[test]
    fn each_way_to_widen_is_told_and_its_way_back_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let routes = |text: &str| provider(&format!("routes: [{text}]"));
        let (admin, get) =
            ("{ match: { path: \"/admin/**\" }, deny: \"no\" }", "{ match: { methods: [GET] } }");
        let proxy = |keys: &str| format!("addresses: {{ upstream_proxy: {{ {keys} }} }}");
        let rows = [
            (provider("upstream: { tls: { min_version: \"1.3\" } }"), provider(""), "TLS 1.2"),
            (provider("scrub: full"), provider("scrub: standard"), "route `default` are searched less"),
            (provider(""), provider("scrub: off"), "searched less"),
            (provider(""), routes("{ match: { path: /x }, scrub: off }"), "searched less"),
            (provider("max_body: 1KiB"), provider("max_body: 2KiB"), "may be larger"),
            (provider("max_body: 1KiB"), provider(""), "may be larger"),
            (
                provider("tenant: { header: X-T, required: true }"),
                provider("tenant: { header: X-T, required: false }"),
                "no longer wants a tenant",
            ),
            (
                provider("tenant: { header: X-T, pattern: \"acct_[0-9]{16}\" }"),
                provider("tenant: { header: X-T, pattern: \"acct_[0-9a-f]{16}\" }"),
                "takes names of tenants",
            ),
            (
                provider("tenant: { header: X-T, pattern: \"acct_[0-9]{16}\" }"),
                provider("tenant: { header: X-T }"),
                "(`tenant.pattern`)",
            ),
            (
                routes(&format!("{admin}, {get}")),
                routes(&format!("{get}, {admin}")),
                "stands before the denied",
            ),
            (
                provider(&format!("routes: [{admin}]")),
                provider(&format!("mode: shadow, routes: [{admin}]")),
                "is no longer denied",
            ),
            (
                proxy("url: \"http://p.corp:3128\""),
                proxy("url: \"http://p.corp:3128\", resolve: proxy"),
                "resolves names",
            ),
            (
                proxy("url: \"http://p.corp:3128\""),
                proxy("url: \"http://p.corp:3128\", no_proxy: [a.example.com]"),
                "around the proxy",
            ),
        ];
        for (before, after, told) in rows {
            let (old, new) = (policy(directory.path(), &before), policy(directory.path(), &after));
            let count = |lines: Vec<String>| lines.iter().filter(|line| line.contains(told)).count();
            assert_eq!(count(widenings(&old, &new)), 1, "{before} -> {after}: {:?}", widenings(&old, &new));
            assert_eq!(count(widenings(&new, &old)), 0, "{after} -> {before}");
            assert_eq!(widenings(&old, &old), Vec::<String>::new());
        }
    }

    /// Elsewhere is never nowhere: both directions are told.
    #[test]
    fn another_destination_or_another_authority_is_told_both_ways() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            Authority::load_or_create(&CaSource::Directory(directory.path().join(name))).unwrap();
        }
        let upstream = |keys: &str| provider(&format!("upstream: {{ {keys} }}"));
        let rows = [
            (provider(""), upstream("connect_to: \"127.0.0.1:8443\""), "is dialled"),
            (
                upstream("connect_to: \"127.0.0.1:1\""),
                upstream("connect_to: \"127.0.0.1:2\""),
                "is dialled at",
            ),
            (provider(""), upstream("tls: { ca: one/ca.pem }"), "vouched for"),
            (upstream("tls: { ca: one/ca.pem }"), upstream("tls: { ca: two/ca.pem }"), "vouched for"),
            (
                String::new(),
                "addresses: { upstream_proxy: { url: \"http://p:1\" } }".to_owned(),
                "upstream_proxy`",
            ),
        ];
        for (before, after, told) in rows {
            let (old, new) = (policy(directory.path(), &before), policy(directory.path(), &after));
            for lines in [widenings(&old, &new), widenings(&new, &old)] {
                assert!(lines.len() == 1 && lines[0].contains(told), "{before} -> {after}: {lines:?}");
            }
        }
    }
}
