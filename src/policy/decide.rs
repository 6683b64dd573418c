//! The decision about one request: which provider, which route, or why not. Pure; the proxy and `outgate explain` ask the
//! same functions, so what `explain` says is what happens.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;

use super::compiled::{CompiledPolicy, Provider, Route};
use super::pattern::{PathFault, PathPattern, canonical_path, may_climb};
use super::schema::Unmatched;
use crate::message::target::{Host, Scheme, Target};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No provider has this host and port at this door, and `unmatched` does not let it through.
    NoProvider,
    /// The app asked for TLS, and the provider is configured for plain http.
    Downgrade,
    /// A route denies it, with this reason.
    Denied {
        /// The provider.
        provider: Arc<str>,
        /// The route.
        route: Arc<str>,
        /// The policy author's words.
        reason: String,
    },
    /// TRACE and TRACK are never forwarded: the answer would repeat the credential.
    Trace,
    /// The path can be read in two ways.
    Path(PathFault),
    /// At the local endpoint: the provider has wildcards only, and the request names none of the hosts they stand for.
    NoHostNamed {
        /// The provider.
        provider: Arc<str>,
        /// Its prefix at the local endpoint.
        prefix: String,
    },
}

/// A request that may go to a provider.
pub struct Chosen<'a> {
    /// Index of the provider in the policy.
    pub provider: usize,
    /// Index of the route in the provider.
    pub route: usize,
    /// The route.
    pub settings: &'a Arc<Route>,
    /// Denials before it that are only tried out, as `deny:<route>`.
    pub shadowed: Vec<Arc<str>>,
}

/// What becomes of a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectDecision {
    /// TLS is intercepted for this provider.
    Intercept(usize),
    /// Bytes are copied for this provider; `opaque` lets any through.
    Tunnel(usize),
    /// Bytes are copied though no provider names the host.
    Unmatched,
}

/// Where a request of the local endpoint goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDecision<'a> {
    /// Index of the provider.
    pub provider: usize,
    /// Where it goes; [`CompiledPolicy::local_target`] says why it is nowhere.
    pub target: Option<Target>,
    /// The path without the prefix.
    pub path: &'a str,
    /// The prefix that was taken off, for what is written back into `Location`; empty where the host decided.
    pub prefix: Cow<'a, str>,
}

impl CompiledPolicy {
    /// The provider of an absolute target. `port` is as the app wrote it.
    pub fn forward(
        &self,
        scheme: Scheme,
        host: &Host,
        port: Option<u16>,
    ) -> Result<(usize, Target), Refusal> {
        let found = self
            .hosts_for(host, scheme, port, |provider| provider.doors.forward)
            .ok_or(Refusal::NoProvider)?;
        let own = self.providers[found.0].upstream.settings.scheme;
        if scheme == Scheme::Https && own == Scheme::Http {
            return Err(Refusal::Downgrade);
        }
        Ok(found)
    }

    /// What becomes of `CONNECT host:port`.
    pub fn connect(&self, host: &Host, port: u16) -> Result<ConnectDecision, Refusal> {
        match self.hosts.get(host.as_str(), port) {
            Some(index) if self.providers[*index].doors.connect => {
                let provider = &self.providers[*index];
                if let Some(refusal) = provider.denies_all() {
                    return Err(refusal);
                }
                let intercept = provider.intercept.intercept;
                // The app speaks TLS in there, and outgate would go on in plain http.
                if intercept && provider.upstream.settings.scheme == Scheme::Http {
                    return Err(Refusal::Downgrade);
                }
                Ok(if intercept {
                    ConnectDecision::Intercept(*index)
                } else {
                    ConnectDecision::Tunnel(*index)
                })
            }
            Some(_) => Err(Refusal::NoProvider),
            None if self.unmatched == Unmatched::Tunnel && port == 443 => Ok(ConnectDecision::Unmatched),
            None => Err(Refusal::NoProvider),
        }
    }

    /// Where a request in origin form goes, by path prefix. `path` is without query.
    pub fn local_by_path<'a>(&'a self, path: &'a str) -> Option<LocalDecision<'a>> {
        let rest = path.strip_prefix('/')?;
        let first = rest.split('/').next()?;
        let list = self.local_paths.get(first.split('@').next()?)?;
        list.iter().find_map(|(prefix, index)| self.under_prefix(path, prefix, *index))
    }

    fn under_prefix<'a>(&'a self, path: &'a str, prefix: &str, index: usize) -> Option<LocalDecision<'a>> {
        let provider = &self.providers[index];
        let rest = path.strip_prefix(prefix)?;
        if rest.is_empty() || rest.starts_with('/') {
            let taken = &path[..prefix.len()];
            return Some(LocalDecision {
                provider: index,
                target: provider.first.clone(),
                path: rest,
                prefix: taken.into(),
            });
        }
        let named = rest.strip_prefix('@')?;
        let (authority, rest) = named.split_at(named.find('/').unwrap_or(named.len()));
        let target = provider.target_named(authority)?;
        let taken = &path[..prefix.len() + 1 + authority.len()];
        Some(LocalDecision { provider: index, target: Some(target), path: rest, prefix: taken.into() })
    }

    /// Where a request in origin form goes, by its `Host`.
    pub fn local_by_host<'a>(
        &'a self,
        host: &Host,
        port: Option<u16>,
        path: &'a str,
    ) -> Option<LocalDecision<'a>> {
        // Port 0 of the table is a name that belongs to outgate itself, whatever port it listens on.
        if let Some(index) = self.local_hosts.get(host.as_str(), 0) {
            let target = self.providers[*index].first.clone();
            return Some(LocalDecision { provider: *index, target, path, prefix: "".into() });
        }
        let (index, target) = [Scheme::Https, Scheme::Http].into_iter().find_map(|scheme| {
            let port = port.unwrap_or(scheme.default_port());
            let index = *self.local_hosts.get(host.as_str(), port)?;
            let provider = &self.providers[index];
            (provider.upstream.settings.scheme == scheme || port != scheme.default_port()).then(|| {
                (index, Target { scheme: provider.upstream.settings.scheme, host: host.clone(), port })
            })
        })?;
        Some(LocalDecision { provider: index, target: Some(target), path, prefix: "".into() })
    }

    /// Whether a provider has this host at the local endpoint, whatever port that listens on.
    pub fn is_local_host(&self, host: &Host) -> bool {
        self.local_hosts.get(host.as_str(), 0).is_some()
    }

    /// Where a request at the local endpoint goes. A provider of wildcards has no first host that it could mean.
    pub fn local_target<'a>(&self, local: &'a LocalDecision<'_>) -> Result<&'a Target, Refusal> {
        let provider = &self.providers[local.provider];
        local.target.as_ref().ok_or_else(|| Refusal::NoHostNamed {
            provider: provider.name.clone(),
            prefix: provider.local_path.clone(),
        })
    }

    /// The provider with this name.
    pub fn provider_named(&self, name: &str) -> Option<usize> {
        self.providers.iter().position(|provider| &*provider.name == name)
    }

    /// The scheme's own port, when the app wrote none, stands for the provider's: `http://api.stripe.com` goes to 443.
    fn hosts_for(
        &self,
        host: &Host,
        scheme: Scheme,
        port: Option<u16>,
        open: impl Fn(&Provider) -> bool,
    ) -> Option<(usize, Target)> {
        let candidates = match port {
            Some(port) if port != scheme.default_port() => [Some(port), None],
            Some(_) | None => [Some(scheme.default_port()), Some(Scheme::Https.default_port())],
        };
        candidates.into_iter().flatten().find_map(|port| {
            let index = *self.hosts.get(host.as_str(), port)?;
            let provider = &self.providers[index];
            open(provider).then(|| {
                (index, Target { scheme: provider.upstream.settings.scheme, host: host.clone(), port })
            })
        })
    }

    /// The route of a request to a provider. `path` is without query.
    pub fn route(&self, provider: usize, method: &Method, path: &str) -> Result<Chosen<'_>, Refusal> {
        if method == Method::TRACE || method.as_str().eq_ignore_ascii_case("track") {
            return Err(Refusal::Trace);
        }
        let settings = &self.providers[provider];
        let canonical = match canonical_path(path) {
            Ok(canonical) => Some(canonical),
            Err(fault) if settings.canonical_paths => return Err(Refusal::Path(fault)),
            // Where the provider may read another path than the one that is written, what holds for none holds.
            Err(_) => (!may_climb(path)).then_some(Cow::Borrowed(path)),
        };
        let mut shadowed = Vec::new();
        for (index, route) in settings.routes.iter().enumerate() {
            if !route.covers(method, canonical.as_deref()) {
                continue;
            }
            match (&route.deny, &route.shadow) {
                (None, _) => return Ok(Chosen { provider, route: index, settings: route, shadowed }),
                // A denial that is tried out: the next route that matches decides.
                (Some(_), Some(label)) => shadowed.push(label.clone()),
                (Some(reason), None) => {
                    let (provider, route) = (settings.name.clone(), route.name.clone());
                    return Err(Refusal::Denied { provider, route, reason: reason.clone() });
                }
            }
        }
        Err(Refusal::NoProvider)
    }
}

impl Provider {
    /// A refusal, where every route that can be reached denies: then no request inside a connection could be served, and its
    /// name is not even resolved.
    fn denies_all(&self) -> Option<Refusal> {
        let catches_all = |route: &&Arc<Route>| {
            route.methods.is_none()
                && route.pattern.is_none()
                && route.within.is_none()
                && route.shadow.is_none()
        };
        let last = self.routes.iter().find(catches_all)?;
        let reason = last.deny.clone()?;
        let before = self.routes.iter().take_while(|route| !Arc::ptr_eq(route, last));
        let all = before.into_iter().all(|route| route.deny.is_some());
        all.then(|| Refusal::Denied { provider: self.name.clone(), route: last.name.clone(), reason })
    }

    /// The target of `@host[:port]` at the local endpoint, where the host is the provider's.
    pub fn target_named(&self, authority: &str) -> Option<Target> {
        let authority = crate::message::target::Authority::parse(authority).ok()?;
        let port = authority.port.unwrap_or(self.upstream.settings.scheme.default_port());
        self.own_hosts.get(authority.host.as_str(), port)?;
        Some(Target { scheme: self.upstream.settings.scheme, host: authority.host, port })
    }
}

impl Route {
    /// No path: one that can be read in several ways.
    fn covers(&self, method: &Method, canonical: Option<&str>) -> bool {
        let within = self.within.as_ref();
        covers(self.methods.as_deref(), self.pattern.as_ref(), method, canonical)
            && within
                .is_none_or(|own| covers(own.methods.as_deref(), own.pattern.as_ref(), method, canonical))
    }
}

fn covers(
    methods: Option<&[Method]>,
    pattern: Option<&PathPattern>,
    method: &Method,
    canonical: Option<&str>,
) -> bool {
    methods.is_none_or(|methods| methods.contains(method))
        && pattern.is_none_or(|pattern| canonical.is_some_and(|canonical| pattern.matches(canonical)))
}

impl Refusal {
    /// The line that the app's developer reads.
    pub fn title(&self) -> Cow<'static, str> {
        match self {
            Self::NoProvider => "no provider of the policy has this host and port at this door".into(),
            Self::Downgrade => "the request wants TLS, and the policy sends this host plain http".into(),
            Self::Denied { provider, route, reason } => {
                format!("{provider}: route `{route}` denies: {reason}").into()
            }
            Self::Trace => "TRACE and TRACK are never forwarded".into(),
            Self::Path(fault) => fault.to_string().into(),
            Self::NoHostNamed { provider, prefix } => {
                format!("{provider} has wildcard hosts only: name the host, as in `{prefix}@<host>/...`")
                    .into()
            }
        }
    }
}
