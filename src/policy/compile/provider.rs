//! Providers: hosts, upstream, doors, the decision to intercept, and their place at the local endpoint.

use std::sync::Arc;

use super::Compiler;
use super::upstream::Addresses;
use crate::credential::CredentialConfig;
use crate::credential::kinds::header::header_name;
use crate::message::target::{Host, Scheme, Target};
use crate::policy::compiled::{Doors, InterceptDecision, Provider, Tenant, TenantFrom};
use crate::policy::merge::{merge, merge_preset};
use crate::policy::pattern::{HostMap, HostPattern};
use crate::policy::preset::apply::Applied;
use crate::policy::schema::{Intercept, PolicyConfig, ProviderConfig, TenantFromConfig};
use crate::policy::tenant_pattern::TenantPattern;
use crate::policy::tree::{Entry, Node, PolicyPath, Value};

/// Keys of a provider that need to see the request: written anywhere, they make `intercept: auto` intercept.
const SEE_THE_REQUEST: [&str; 17] = [
    "headers",
    "query",
    "max_body",
    "tenant",
    "limits",
    "concurrency",
    "quota",
    "responses",
    "retry",
    "idempotency",
    "breaker",
    "cache",
    "redact",
    "scrub",
    "paths",
    "routes",
    "mode",
];
/// Timeouts that a blind tunnel cannot keep.
const SEE_THE_REQUEST_TIMEOUTS: [&str; 4] = ["response", "idle", "deadline", "total"];

/// What is written for a provider, lowest first: `defaults`, the preset, its own.
pub(super) struct Texts<'a> {
    /// What lies below the provider's own keys.
    pub lower: Node,
    /// Its preset.
    pub preset: Option<&'a Applied>,
    /// Its own keys.
    pub own: &'a Node,
    /// All together, with its own routes alone.
    pub merged: Node,
}

impl<'a> Texts<'a> {
    fn of(defaults: &Node, preset: Option<&'a Applied>, own: &'a Node) -> Self {
        let lower = preset.map_or_else(|| defaults.clone(), |preset| merge_preset(defaults, &preset.base));
        let merged = merge(&lower, own);
        Self { lower, preset, own, merged }
    }
}

impl Compiler<'_> {
    pub(super) fn providers(&mut self, config: &PolicyConfig, addresses: &Addresses) -> Vec<Arc<Provider>> {
        let root = PolicyPath::root();
        let empty = Node { value: Value::Mapping(Vec::new()), place: self.tree.place };
        let defaults =
            self.tree.get("defaults").filter(|node| !matches!(node.value, Value::Null)).unwrap_or(&empty);
        self.check_defaults(config.defaults.as_ref(), &root.key("defaults"));
        let Some(section) = self.tree.get("providers") else {
            if config.unmatched.unwrap_or_default() == crate::policy::schema::Unmatched::Deny {
                self.warnings.push("no provider is defined: every request is denied".to_owned());
            }
            return Vec::new();
        };
        let entries: Vec<&Entry> = section.entries().iter().collect();
        let presets = self.presets.clone();
        let mut providers = Vec::new();
        for entry in entries {
            let path = root.key("providers").key(entry.key.clone());
            // One whose preset was refused has been told, and lacks what it would have from it.
            let Ok(preset) = presets.of(&entry.key) else { continue };
            let text = Texts::of(defaults, preset, &entry.value);
            let provider = self.provider(entry, &text, &path, addresses);
            // What a sample came to has hosts that nobody meant, and only what is wrong with the rest was asked for.
            if preset.is_none_or(|preset| !preset.of_samples) {
                providers.extend(provider.map(Arc::new));
            }
        }
        providers
    }

    fn check_defaults(&mut self, defaults: Option<&ProviderConfig>, path: &PolicyPath) {
        let Some(defaults) = defaults else { return };
        for (key, written) in [
            ("preset", defaults.preset.is_some()),
            ("with", defaults.with.is_some()),
            ("hosts", defaults.hosts.is_some()),
            ("routes", defaults.routes.is_some()),
            ("local", defaults.local.is_some()),
        ] {
            if written {
                self.mistake(&path.key(key), format!("`{key}` belongs to one provider and has no default"));
            }
        }
    }

    fn provider(
        &mut self,
        entry: &Entry,
        text: &Texts<'_>,
        path: &PolicyPath,
        addresses: &Addresses,
    ) -> Option<Provider> {
        let merged = &text.merged;
        if !is_name(&entry.key) {
            self.mistake_with(
                path,
                "not a provider name",
                "1 to 63 of a-z, 0-9 and `-`; it stands in paths, labels and logs",
            );
            return None;
        }
        // The parts were checked when the file was read; merged they can still disagree, such as a map over a word.
        let config = self.decode_merged(merged, path)?;
        if config.with.is_some() && text.preset.is_none() {
            self.mistake_with(
                &path.key("with"),
                "parameters of a preset, and none is named",
                "`preset: zendesk`",
            );
        }
        let name: Arc<str> = entry.key.as_str().into();
        let (upstream, plaintext_credential) = self.upstream(&name, &config, path, addresses);
        let scheme = upstream.settings.scheme;
        let own_hosts = self.own_hosts(&config, scheme, path);
        let routes = self.routes(&config, text, path, entry.key_place);
        self.check_in_vain(text.own, &routes, path);
        let shows_certificate = config.credential.as_ref().is_some_and(CredentialConfig::is_certificate);
        let has_credential =
            shows_certificate || routes.iter().any(|route| !route.settings.credential.is_empty());
        if shows_certificate && scheme == Scheme::Http {
            self.mistake(
                &path.key("credential"),
                "a client certificate needs TLS, and `upstream.scheme` is `http`",
            );
        } else if has_credential && scheme == Scheme::Http && !plaintext_credential {
            let hint = "`upstream.scheme: https`, or `upstream.plaintext_credential: allow` if you accept that anyone on the way can read it";
            self.mistake_with(&path.key("upstream"), "a credential would be sent over plain http", hint);
        }
        let doors = self.doors(config.doors.as_deref(), &path.key("doors"));
        let intercept = decide_intercept(&config, merged, has_credential, path);
        self.check_tunnel(&config, &intercept, doors, path);
        if has_credential && !intercept.intercept && doors.connect {
            self.warnings.push(format!(
                "{path}: `intercept: never` makes CONNECT a blind tunnel, so the credential is injected at the other doors only"
            ));
        }
        self.warn_of_defaults(entry, &config, &intercept, has_credential, text.preset);
        let (local_path, local_host) = self.local(&config, &name, path)?;
        let (first, own_hosts, host_names) = own_hosts?;
        let redact = config.redact.clone().unwrap_or_default();
        let canonical_paths = config.paths.unwrap_or_default() == crate::policy::schema::Paths::Canonical
            && routes
                .iter()
                .any(|route| route.pattern.is_some() || (route.within.is_some() && route.deny.is_some()));
        self.warn_of_missing_credential(text, &config, path);
        Some(Provider {
            name,
            preset: text.preset.map(|preset| preset.name.clone()),
            path: path.clone(),
            place: entry.key_place,
            first,
            own_hosts,
            host_names,
            upstream,
            doors,
            intercept,
            opaque: config.opaque.unwrap_or(false),
            local_path,
            local_host,
            canonical_paths,
            routes,
            tenant: self.tenant(&config, &path.key("tenant")),
            redact_query: redact.query.unwrap_or_default(),
            redact_path: redact.path.unwrap_or_default(),
            effective: text.merged.clone(),
        })
    }

    /// A preset knows where the credential goes; without one the app's own goes out as it is.
    fn warn_of_missing_credential(&mut self, text: &Texts<'_>, config: &ProviderConfig, path: &PolicyPath) {
        let Some(hint) = text.preset.and_then(|preset| preset.credential_hint.as_ref()) else { return };
        let somewhere = config.routes.iter().flatten().any(|route| route.credential.is_some());
        if config.credential.is_none() && !somewhere {
            self.warnings.push(format!(
                "{path}: no credential: requests go out as the app sends them; {hint}, or `credential: none`"
            ));
        }
    }

    fn tenant(&mut self, config: &ProviderConfig, path: &PolicyPath) -> Option<Tenant> {
        let tenant = config.tenant.as_ref()?;
        let required = tenant.required.unwrap_or(false);
        if tenant.from == Some(TenantFromConfig::Token) {
            for (key, there) in [("header", tenant.header.is_some()), ("pattern", tenant.pattern.is_some())] {
                if there {
                    self.mistake(
                        &path.key(key),
                        "has no meaning with `from: token`: the listener's `auth.tenants` names the tenants",
                    );
                }
            }
            return Some(Tenant { from: TenantFrom::Token, required });
        }
        let Some(name) = &tenant.header else {
            self.mistake_with(path, "missing key `header`", "`tenant: { header: X-Tenant, required: true }`");
            return None;
        };
        let pattern = match tenant
            .pattern
            .as_deref()
            .map(str::parse::<TenantPattern>)
            .unwrap_or_else(|| Ok(TenantPattern::default()))
        {
            Ok(pattern) => Some(pattern),
            Err(message) => {
                self.mistake(&path.key("pattern"), message);
                None
            }
        };
        match header_name(name) {
            Ok(header) => {
                pattern.map(|pattern| Tenant { from: TenantFrom::Header(header, pattern), required })
            }
            Err(message) => {
                self.mistake(&path.key("header"), message);
                None
            }
        }
    }

    /// Through a blind tunnel nothing is judged: a route that denies would be a lock on an open door.
    fn check_tunnel(
        &mut self,
        config: &ProviderConfig,
        decision: &InterceptDecision,
        doors: Doors,
        path: &PolicyPath,
    ) {
        if config.opaque == Some(true) && (decision.intercept || !doors.connect) {
            let because = if decision.intercept { decision.because.clone() } else { format!("{path}.doors") };
            self.warnings.push(format!(
                "{path}.opaque: does nothing: CONNECT is no blind tunnel here (because of `{because}`)"
            ));
        }
        if decision.intercept || !doors.connect {
            return;
        }
        if config.routes.as_ref().is_some_and(|routes| !routes.is_empty()) {
            self.mistake_with(
                &path.key("intercept"),
                "`never` makes CONNECT a blind tunnel, in which no route is judged",
                "leave `intercept` out, or take `connect` out of `doors`",
            );
        }
        for (key, written) in [
            ("max_body", config.max_body.is_some()),
            ("headers", config.headers.is_some()),
            ("query", config.query.is_some()),
        ] {
            if written {
                self.warnings
                    .push(format!("{path}.{key}: does nothing for CONNECT, which is a blind tunnel here"));
            }
        }
    }

    /// A key in `defaults` can make every provider without credential an intercepted one; nobody should find that out from
    /// a certificate error.
    fn warn_of_defaults(
        &mut self,
        entry: &Entry,
        config: &ProviderConfig,
        decision: &InterceptDecision,
        has_credential: bool,
        preset: Option<&Applied>,
    ) {
        if !decision.intercept || has_credential || config.intercept.unwrap_or_default() != Intercept::Auto {
            return;
        }
        let prefix = format!("providers.{}.", entry.key);
        let Some(key) = decision.because.strip_prefix(&prefix) else { return };
        // What a preset writes is written for this provider.
        let own = [Some(&entry.value), preset.map(|preset| &preset.base)];
        let find = |node| key.split('.').try_fold(node, |node: &Node, key| node.get(key));
        if !own.into_iter().flatten().any(|node| find(node).is_some()) {
            self.warnings.push(format!(
                "providers.{}: TLS is intercepted because of `defaults.{key}`; `intercept: never` keeps it a blind tunnel",
                entry.key
            ));
        }
    }

    fn own_hosts(
        &mut self,
        config: &ProviderConfig,
        scheme: Scheme,
        path: &PolicyPath,
    ) -> Option<(Option<Target>, HostMap<()>, Vec<String>)> {
        const EXAMPLE: &str = "the host names of the provider's API, such as `hosts: [api.example.com]`";
        let Some(hosts) = &config.hosts else {
            self.mistake_with(path, "missing key `hosts`", EXAMPLE);
            return None;
        };
        if hosts.is_empty() {
            // Items of a wrong type were left out, and told of.
            if self.is_written_empty(&path.key("hosts")) {
                self.mistake_with(&path.key("hosts"), "an empty list", EXAMPLE);
            }
            return None;
        }
        let mut map = HostMap::default();
        let mut names = Vec::new();
        let mut first = None;
        for (index, text) in hosts.iter().enumerate() {
            let at = path.key("hosts").index(index);
            let pattern = match HostPattern::parse(text) {
                Ok(pattern) => pattern,
                Err(error) => {
                    self.mistake(&at, error.to_string());
                    // It keeps its place, so that the others are told by theirs.
                    names.push(text.clone());
                    continue;
                }
            };
            let port = pattern.port().unwrap_or(scheme.default_port());
            names.push(pattern.to_string());
            if map.insert(&pattern, port, ()).is_err() {
                self.mistake(&at, "this host is named twice");
            }
            if first.is_none() {
                first = pattern.exact_host().map(|host| Target { scheme, host, port });
            }
        }
        Some((first, map, names))
    }

    fn local(&mut self, config: &ProviderConfig, name: &str, path: &PolicyPath) -> Option<(String, Host)> {
        let local = config.local.clone().unwrap_or_default();
        let at = path.key("local");
        let prefix = local.path.unwrap_or_else(|| format!("/{name}"));
        let plain = |segment: &str| {
            !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b))
        };
        let good = prefix.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain))
            && !prefix.split('/').any(|s| s == "." || s == "..");
        if !good {
            self.mistake_with(
                &at.key("path"),
                "not a path prefix",
                "such as `/stripe`: letters, digits and `-_.~` between slashes",
            );
            return None;
        }
        let host = local.host.unwrap_or_else(|| format!("{name}.localhost"));
        match Host::parse(&host) {
            Ok(host) => Some((prefix, host)),
            Err(fault) => {
                self.mistake(&at.key("host"), fault.to_string());
                None
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Whether TLS is intercepted, and which key says so.
fn decide_intercept(
    config: &ProviderConfig,
    merged: &Node,
    has_credential: bool,
    path: &PolicyPath,
) -> InterceptDecision {
    let because =
        |intercept, because: PolicyPath| InterceptDecision { intercept, because: because.to_string() };
    match config.intercept.unwrap_or_default() {
        Intercept::Always => return because(true, path.key("intercept")),
        Intercept::Never => return because(false, path.key("intercept")),
        Intercept::Auto => {}
    }
    if has_credential {
        return because(true, path.key("credential"));
    }
    let tls = merged.get("upstream").and_then(|upstream| upstream.get("tls"));
    if is_written(tls.and_then(|tls| tls.get("client_certificate"))) {
        return because(true, path.key("upstream").key("tls").key("client_certificate"));
    }
    if let Some(key) = SEE_THE_REQUEST.iter().find(|key| is_written(merged.get(key))) {
        return because(true, path.key(*key));
    }
    let timeouts = merged.get("timeouts");
    if let Some(key) =
        SEE_THE_REQUEST_TIMEOUTS.iter().find(|key| is_written(timeouts.and_then(|node| node.get(key))))
    {
        return because(true, path.key("timeouts").key(*key));
    }
    because(false, path.clone())
}

fn is_written(node: Option<&Node>) -> bool {
    node.is_some_and(|node| !matches!(node.value, Value::Null))
}

impl Doors {
    /// Whether the provider's hosts are found anywhere but at the local endpoint.
    pub fn beyond_local(self) -> bool {
        self.forward || self.connect
    }
}
