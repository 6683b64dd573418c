//! Routes: what each has of its own, and what it has from its provider.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::Compiler;
use super::layers::Written;
use crate::credential::CredentialConfig;
use crate::credential::kinds::header::header_name;
use crate::credential::kinds::{KeepSettings, MemberSettings};
use crate::message::quantity::TimeSpan;
use crate::policy::compiled::{HeaderEdits, Route, RouteSettings, Timeouts};
use crate::policy::merge::merge;
use crate::policy::pattern::PathPattern;
use crate::policy::schema::{HeadersConfig, MatchConfig, ProviderConfig, RouteConfig, TimeoutsConfig};
use crate::policy::tenant_pattern::TenantPattern;
use crate::policy::tree::{Entry, Node, Place, PolicyPath, Value};
use crate::secret::StoreConfig;

/// Keys of a provider that a route cannot have, so they do not stand in its merged text.
const PROVIDER_ONLY: [&str; 11] = [
    "hosts",
    "upstream",
    "doors",
    "intercept",
    "opaque",
    "local",
    "routes",
    "preset",
    "with",
    "redact",
    "paths",
];

impl Compiler<'_> {
    /// The routes of a provider in order, and last the provider itself.
    pub(super) fn routes(
        &mut self,
        config: &ProviderConfig,
        (merged, defaults): (&Node, &Node),
        path: &PolicyPath,
        place: Place,
    ) -> Vec<Arc<Route>> {
        let base = without(merged, &PROVIDER_ONLY);
        // First, so that what is wrong with the provider is told by its own path.
        let own = self.settings(config, Written { effective: &base, own: None, below: &[defaults] }, path);
        let mut routes = Vec::new();
        let written: Vec<Node> = merged.get("routes").map(|node| node.items().to_vec()).unwrap_or_default();
        for (index, (route, node)) in config.routes.iter().flatten().zip(&written).enumerate() {
            if let Some(route) =
                self.route((route, node), &[&base, defaults], config, &path.key("routes").index(index))
            {
                routes.push(Arc::new(route));
            }
        }
        self.check_route_names(&routes);
        if let Some(settings) = own {
            routes.push(Arc::new(Route {
                name: "default".into(),
                path: path.clone(),
                place,
                methods: None,
                pattern: None,
                deny: None,
                shadow: None,
                settings,
                effective: base,
            }));
        }
        routes
    }

    fn check_route_names(&mut self, routes: &[Arc<Route>]) {
        for (index, route) in routes.iter().enumerate() {
            if routes[..index]
                .iter()
                .any(|earlier| earlier.pattern == route.pattern && earlier.methods == route.methods)
            {
                self.mistake(
                    &route.path,
                    "an earlier route has the same methods and path: this one is never reached",
                );
            } else if *route.name == *"default"
                || routes[..index].iter().any(|earlier| earlier.name == route.name)
            {
                // Limits, breakers and metrics of a route go by its name.
                self.mistake_with(
                    &route.path.key("name"),
                    "another route of this provider has the same name",
                    "a name of its own; `default` is what no route matches",
                );
            }
        }
    }

    /// `below` is what the route is laid over, the nearest first.
    fn route(
        &mut self,
        (config, node): (&RouteConfig, &Node),
        below: &[&Node],
        provider: &ProviderConfig,
        path: &PolicyPath,
    ) -> Option<Route> {
        let Some(matching) = &config.matching else {
            self.mistake_with(
                path,
                "missing key `match`",
                "`match: { methods: [POST], path: \"/v1/**\" }`, or `match: {}` for all",
            );
            return None;
        };
        let methods = self.methods(matching, &path.key("match").key("methods"));
        let pattern = self.pattern(matching, &path.key("match").key("path"))?;
        let own = without(node, &["match", "deny", "name"]);
        let effective = merge(below.first()?, &own);
        let merged = self.decode_merged(&effective, path)?;
        self.check_identity(provider.credential.as_ref(), merged.credential.as_ref(), path);
        if config
            .timeouts
            .as_ref()
            .is_some_and(|timeouts| timeouts.connect.is_some() || timeouts.tls.is_some())
        {
            self.mistake(
                &path.key("timeouts"),
                "`connect` and `tls` belong to the provider: its routes share connections",
            );
        }
        let name = match &config.name {
            Some(name)
                if (1..=64).contains(&name.len())
                    && name.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'"') =>
            {
                name.clone()
            }
            Some(_) => {
                self.mistake(
                    &path.key("name"),
                    "a route's name has 1 to 64 printable characters without space",
                );
                return None;
            }
            None => derived_name(methods.as_deref(), matching.path.as_deref()),
        };
        let written = Written { effective: &effective, own: Some((node, &name)), below };
        let settings = self.settings(&merged, written, path)?;
        let shadow = merged.mode.unwrap_or_default().is_shadow();
        Some(Route {
            shadow: (shadow && config.deny.is_some()).then(|| format!("deny:{name}").into()),
            name: name.into(),
            path: path.clone(),
            place: node.place,
            methods,
            pattern,
            deny: config.deny.clone(),
            settings,
            effective,
        })
    }

    /// A client certificate is shown by connections, which the routes of a provider share.
    fn check_identity(
        &mut self,
        provider: Option<&CredentialConfig>,
        route: Option<&CredentialConfig>,
        path: &PolicyPath,
    ) {
        let of = |config: Option<&CredentialConfig>| {
            let (certificate, key) = config?.identity()?;
            Some((certificate.clone(), key.clone()))
        };
        match (of(provider), of(route)) {
            (own, Some(other)) if own.as_ref() != Some(&other) => self.mistake_with(
                &path.key("credential"),
                "a client certificate belongs to the provider: its routes share connections",
                "`mtls` as the provider's credential, or another provider with `doors: [local]`",
            ),
            (Some(_), None) => self.warnings.push(format!(
                "{path}.credential: the provider's client certificate is shown on this route too: its routes share connections"
            )),
            _ => {}
        }
    }

    fn methods(&mut self, matching: &MatchConfig, path: &PolicyPath) -> Option<Vec<Method>> {
        let names = matching.methods.as_ref()?;
        if names.is_empty() {
            self.mistake(path, "no method: leave the key out for all");
        }
        let mut methods = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let at = path.index(index);
            match Method::from_bytes(name.as_bytes()) {
                Ok(method) if *name == name.to_ascii_uppercase() => methods.push(method),
                Ok(_) => self.mistake_with(
                    &at,
                    "methods are written in capitals",
                    format!("`{}`", name.to_ascii_uppercase()),
                ),
                Err(_) => self.mistake(&at, "not a method"),
            }
        }
        Some(methods)
    }

    /// The pattern, where there is one; nothing at all where it is wrong.
    fn pattern(&mut self, matching: &MatchConfig, path: &PolicyPath) -> Option<Option<PathPattern>> {
        let Some(text) = matching.path.as_ref() else { return Some(None) };
        match PathPattern::parse(text) {
            Ok(pattern) => Some(Some(pattern)),
            Err(error) => {
                self.mistake(path, error.to_string());
                None
            }
        }
    }

    fn settings(
        &mut self,
        config: &ProviderConfig,
        written: Written<'_>,
        path: &PolicyPath,
    ) -> Option<RouteSettings> {
        let credential = self.credential(config, &path.key("credential"))?;
        Some(RouteSettings {
            credential,
            scrub: config.scrub.unwrap_or_default(),
            headers: self.headers(config.headers.as_ref(), &path.key("headers")),
            max_body: config.max_body.map(|size| size.bytes()),
            timeouts: self.timeouts(config.timeouts.as_ref(), &path.key("timeouts")),
            layers: self.layers(config, written, path),
        })
    }

    fn credential(&mut self, provider: &ProviderConfig, path: &PolicyPath) -> Option<Vec<MemberSettings>> {
        let Some(config) = &provider.credential else { return Some(Vec::new()) };
        match config.members(&self.directory) {
            Ok(members) => {
                if members.iter().any(MemberSettings::is_per_tenant) {
                    self.check_tenants(provider, config.required, path);
                    if members.iter().any(|member| member.kept().next().is_some()) {
                        // One place for all: a tenant would get another's token.
                        self.mistake(path, "a refresh token that rotates cannot be a tenant's: its `store` is one place for all tenants");
                    }
                }
                for used in members.iter().flat_map(MemberSettings::uses) {
                    // What a token is got with is wanted with the token.
                    self.uses_secret_of(path, &used.reference, config.required, used.rules);
                }
                for keep in members.iter().flat_map(MemberSettings::kept) {
                    self.check_kept(keep, path);
                }
                Some(members)
            }
            Err(message) => {
                self.mistake(path, message);
                None
            }
        }
    }

    /// Whether every request says whose secret it wants, by a name that may stand in a reference.
    fn check_tenants(&mut self, provider: &ProviderConfig, required: bool, path: &PolicyPath) {
        let tenant = provider.tenant.as_ref();
        if tenant.and_then(|tenant| tenant.required) != Some(true) {
            self.mistake_with(
                path,
                "`{tenant}` stands in a secret reference, and not every request names its tenant",
                "`tenant: { header: X-Tenant, required: true }` at the provider",
            );
        }
        let pattern = tenant.and_then(|tenant| tenant.pattern.as_deref()?.parse::<TenantPattern>().ok());
        if pattern.is_some_and(|pattern| !pattern.is_plain()) {
            self.mistake_with(
                path,
                "`{tenant}` stands in a secret reference, and `tenant.pattern` lets characters pass that may not stand there",
                "only letters, digits, `.`, `_` and `-` in the pattern",
            );
        }
        if required {
            self.mistake(
                &path.key("required"),
                "secrets of tenants are read when a tenant is named: readiness cannot wait for them",
            );
        }
    }

    /// A place where a rotating refresh token is kept: all pods that share the grant must reach it, and it must be writable.
    fn check_kept(&mut self, keep: &KeepSettings, path: &PolicyPath) {
        if self.fleet && !keep.is_shared() {
            self.mistake_with(
                path,
                "the policy has a `fleet`, and this refresh token rotates in a file: each pod would end the tokens of the others",
                "`store: { vault: \"<store>:<path>\" }` or `store: { redis: { url: \"env:REDIS_URL\" } }`",
            );
        }
        let Some(reference) = keep.written() else { return };
        let store = self.stores.iter().find(|(name, _)| name == reference.store());
        if !matches!(store, Some((_, StoreConfig::Vault(_)))) {
            self.mistake_with(
                path,
                format!(
                    "`store.vault` needs a store of the kind `vault`, and `{}` is none",
                    reference.store()
                ),
                "a store under `secrets` such as `payments: { vault: { address: ... } }`",
            );
        }
    }

    fn timeouts(&mut self, config: Option<&TimeoutsConfig>, path: &PolicyPath) -> Timeouts {
        let config = config.cloned().unwrap_or_default();
        let mut span = |span: Option<TimeSpan>, seconds: u64, key: &str| {
            self.span(span, Duration::from_secs(seconds), &path.key(key))
        };
        Timeouts {
            response: span(config.response, 60, "response"),
            idle: span(config.idle, 60, "idle"),
            upgrade_idle: span(config.upgrade_idle, 3600, "upgrade_idle"),
            deadline: span(config.deadline, 120, "deadline"),
            total: config.total.map(|total| span(Some(total), 0, "total")),
        }
    }

    fn headers(&mut self, config: Option<&HeadersConfig>, path: &PolicyPath) -> HeaderEdits {
        let Some(config) = config else { return HeaderEdits::default() };
        let mut edits = HeaderEdits {
            set: self.header_lines(config.set.as_ref(), &path.key("set")),
            default: self.header_lines(config.default.as_ref(), &path.key("default")),
            remove: Vec::new(),
        };
        for (index, name) in config.remove.iter().flatten().enumerate() {
            match header_name(name) {
                Ok(name) => edits.remove.push(name),
                Err(message) => self.mistake(&path.key("remove").index(index), message),
            }
        }
        edits
    }

    fn header_lines(
        &mut self,
        lines: Option<&BTreeMap<String, String>>,
        path: &PolicyPath,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut parsed = Vec::new();
        for (name, value) in lines.into_iter().flatten() {
            let at = path.key(name.clone());
            // Content types are the one framing-like field that a policy may have to set.
            let name = if name.eq_ignore_ascii_case("content-type") {
                Ok(http::header::CONTENT_TYPE)
            } else {
                header_name(name)
            };
            match (name, HeaderValue::from_str(value)) {
                (Ok(name), Ok(value)) => parsed.push((name, value)),
                (Err(message), _) => self.mistake(&at, message),
                (Ok(_), Err(_)) => self.mistake(&at, "not a header value: printable ASCII only"),
            }
        }
        parsed
    }
}

fn derived_name(methods: Option<&[Method]>, path: Option<&str>) -> String {
    let methods = methods.map(|methods| methods.iter().map(Method::as_str).collect::<Vec<_>>().join(","));
    match (methods, path) {
        (Some(methods), Some(path)) => format!("{methods} {path}"),
        (Some(methods), None) => methods,
        (None, Some(path)) => path.to_owned(),
        (None, None) => "*".to_owned(),
    }
}

/// A mapping without some of its keys.
fn without(node: &Node, keys: &[&str]) -> Node {
    let entries: Vec<Entry> =
        node.entries().iter().filter(|entry| !keys.contains(&entry.key.as_str())).cloned().collect();
    Node { value: Value::Mapping(entries), place: node.place }
}
