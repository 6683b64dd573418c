//! One compiled policy with its running stacks. Immutable; swapped whole; taken once per request.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::Method;

use super::error::{DeniedBy, EgressError};
use super::route_stack::RouteStack;
use super::shared::Shared;
use super::tunnel::TunnelPermit;
use crate::credential::Location;
use crate::credential::kinds::MemberSettings;
use crate::credential::kinds::placeholder::known::Known;
use crate::message::target::{Host, Scheme, Target};
use crate::policy::compiled::{CompiledPolicy, Provider};
use crate::policy::decide::{ConnectDecision, LocalDecision, Refusal};
use crate::policy::pattern::PathFault;
use crate::policy::preset;
use crate::policy::schema::QueryConfig;
use crate::resilience::fleet::Fleet;
use crate::telemetry::{KeyShapes, QueryMode, Redaction, RouteMetrics};
use crate::upstream::{Upstream, UpstreamError};

/// A compiled policy and its stacks.
pub struct Generation {
    /// 1, 2, 3 ... since the process started.
    pub number: u64,
    policy: CompiledPolicy,
    providers: Vec<LiveProvider>,
    unmatched: Arc<Upstream>,
    unmatched_metrics: Arc<RouteMetrics>,
    redaction: Arc<Redaction>,
}

struct LiveProvider {
    upstream: Arc<Upstream>,
    routes: Vec<Arc<RouteStack>>,
    tunnel_metrics: Arc<RouteMetrics>,
}

/// A request that may be sent: where to, and through which stack.
pub struct Admission {
    /// Where it goes.
    pub target: Target,
    /// The route's stack.
    pub route: Arc<RouteStack>,
    /// Denials that are only tried out (`mode: shadow`), for the record.
    pub shadowed: Vec<Arc<str>>,
    upstream: Arc<Upstream>,
}

impl Admission {
    /// Judges where a redirected client was on its way to; says whether the target's host resolves to it.
    pub async fn judge_original(
        &self,
        original: SocketAddr,
    ) -> Result<Option<bool>, crate::message::failure::Failure> {
        self.upstream.judge_original(&self.target.host, original).await
    }
}

/// What becomes of a CONNECT that is allowed.
pub enum ConnectAdmission {
    /// TLS is intercepted. The requests inside are judged one by one.
    Intercept(InterceptPermit),
    /// Bytes are copied.
    Tunnel(TunnelPermit),
}

/// An interception that the policy allows.
pub struct InterceptPermit {
    /// Provider.
    pub provider: Arc<str>,
    upstream: Arc<Upstream>,
    host: Host,
    port: u16,
}

impl InterceptPermit {
    /// Resolves the name and judges its addresses, so that a CONNECT to a forbidden address is refused at once.
    pub async fn check(&self) -> Result<(), crate::message::failure::Failure> {
        self.upstream.check(&self.host, self.port).await
    }

    /// Judges where a redirected client was on its way to; says whether the host resolves to it.
    pub async fn judge_original(
        &self,
        original: SocketAddr,
    ) -> Result<Option<bool>, crate::message::failure::Failure> {
        self.upstream.judge_original(&self.host, original).await
    }
}

/// The name under which tunnels stand in metrics.
const TUNNEL: &str = "tunnel";

impl Generation {
    /// Builds the stacks of a policy over the shared state.
    pub fn build(number: u64, policy: CompiledPolicy, shared: &Shared) -> Result<Self, UpstreamError> {
        let mode = match policy.fixed.telemetry.query {
            QueryConfig::None => QueryMode::None,
            QueryConfig::Keys => QueryMode::Keys,
            QueryConfig::Redacted => QueryMode::Redacted,
        };
        let mut providers = Vec::with_capacity(policy.providers.len());
        for provider in &policy.providers {
            // Pools first: a policy that cannot be built must not touch what is counted and learned.
            shared.upstream(&provider.upstream)?;
        }
        let unmatched = shared.upstream(&policy.unmatched_upstream)?;
        let fleet = shared.layers.join(&policy, &shared.secrets);
        let routes = policy.providers.iter().flat_map(|provider| &provider.routes);
        let known = Known::new(routes.flat_map(|route| &route.settings.credential));
        let around =
            Around { generation: number, shared, fleet: fleet.as_ref(), placeholders: known.as_ref() };
        for provider in &policy.providers {
            providers.push(LiveProvider::build(provider, mode, &around)?);
        }
        let unmatched_metrics = shared.telemetry.metrics.route("unmatched", TUNNEL);
        let redaction = Arc::new(union_redaction(mode, &policy));
        Ok(Self { number, policy, providers, unmatched, unmatched_metrics, redaction })
    }

    /// Everything this generation uses of the shared state, to drop the rest.
    pub fn retain(&self, shared: &Shared) {
        let mut upstreams: Vec<crate::policy::compiled::UpstreamKey> =
            self.policy.providers.iter().map(|provider| provider.upstream.clone()).collect();
        upstreams.push(self.policy.unmatched_upstream.clone());
        let credentials: Vec<_> = self
            .policy
            .providers
            .iter()
            .flat_map(|provider| {
                provider.routes.iter().map(|route| (provider.name.clone(), route.settings.credential.clone()))
            })
            .collect();
        shared.retain(&upstreams, &credentials);
        shared.layers.retain(&self.policy);
    }

    /// The policy, for status and reload.
    pub fn policy(&self) -> &CompiledPolicy {
        &self.policy
    }

    /// What of a URL is logged where no route is known.
    pub fn redaction(&self) -> &Arc<Redaction> {
        &self.redaction
    }

    /// Judges a request in absolute form.
    pub fn admit_forward(
        &self,
        method: &Method,
        scheme: Scheme,
        host: &Host,
        port: Option<u16>,
        path: &str,
    ) -> Result<Admission, EgressError> {
        let (provider, target) = self.policy.forward(scheme, host, port).map_err(refused)?;
        self.admit(provider, target, method, path)
    }

    /// Judges a request inside an intercepted connection. The decision is taken anew for every request.
    pub fn admit_intercepted(
        &self,
        method: &Method,
        host: &Host,
        port: u16,
        path: &str,
    ) -> Result<Admission, EgressError> {
        match self.policy.connect(host, port).map_err(refused)? {
            ConnectDecision::Intercept(provider) => {
                let scheme = self.policy.providers[provider].upstream.settings.scheme;
                self.admit(provider, Target { scheme, host: host.clone(), port }, method, path)
            }
            ConnectDecision::Tunnel(_) | ConnectDecision::Unmatched => {
                Err(EgressError::denied("the policy no longer intercepts this host; connect again"))
            }
        }
    }

    /// Finds where a request at the local endpoint goes, by its path prefix.
    pub fn local_by_path<'a>(&'a self, path: &'a str) -> Option<LocalDecision<'a>> {
        self.policy.local_by_path(path)
    }

    /// Finds where a request at the local endpoint goes, by its `Host`.
    pub fn local_by_host<'a>(
        &'a self,
        host: &Host,
        port: Option<u16>,
        path: &'a str,
    ) -> Option<LocalDecision<'a>> {
        self.policy.local_by_host(host, port, path)
    }

    /// The decision of a provider's own port.
    pub fn local_of_provider<'a>(&'a self, name: &str, path: &'a str) -> Option<LocalDecision<'a>> {
        let provider = self.policy.provider_named(name)?;
        let target = self.policy.providers[provider].first.clone();
        Some(LocalDecision { provider, target, path, prefix: "".into() })
    }

    /// Where a request at the local endpoint goes.
    pub fn local_target<'a>(&self, local: &'a LocalDecision<'_>) -> Result<&'a Target, EgressError> {
        self.policy.local_target(local).map_err(refused)
    }

    /// Judges a request at the local endpoint.
    pub fn admit_local(
        &self,
        local: &LocalDecision<'_>,
        method: &Method,
        path: &str,
    ) -> Result<Admission, EgressError> {
        self.admit(local.provider, self.local_target(local)?.clone(), method, path)
    }

    /// The target of an absolute URL that an answer points at, if it is one of the same provider's hosts; for rewriting.
    pub fn is_same_provider(
        &self,
        provider: usize,
        scheme: Scheme,
        host: &Host,
        port: Option<u16>,
    ) -> Option<Target> {
        let settings = self.policy.providers.get(provider)?;
        let port = port.unwrap_or(scheme.default_port());
        settings.own_hosts.get(host.as_str(), port)?;
        Some(Target { scheme, host: host.clone(), port })
    }

    /// Whether the target is the provider's first host: its local form needs no `@host`.
    pub fn is_first_host(&self, provider: usize, target: &Target) -> bool {
        self.policy.providers.get(provider).is_some_and(|settings| settings.first.as_ref() == Some(target))
    }

    /// Judges a CONNECT.
    pub fn admit_connect(&self, host: &Host, port: u16) -> Result<ConnectAdmission, EgressError> {
        let tunnel = |provider: Option<usize>| {
            let settings = provider.map(|index| &self.policy.providers[index]);
            let live = provider.map(|index| &self.providers[index]);
            TunnelPermit {
                provider: settings.map(|settings| settings.name.clone()),
                opaque: settings.is_some_and(|settings| settings.opaque),
                upgrade_idle: settings.map_or(Duration::from_secs(3600), |settings| upgrade_idle(settings)),
                metrics: live
                    .map_or_else(|| self.unmatched_metrics.clone(), |live| live.tunnel_metrics.clone()),
                upstream: live.map_or_else(|| self.unmatched.clone(), |live| live.upstream.clone()),
                host: host.clone(),
                port,
            }
        };
        Ok(match self.policy.connect(host, port).map_err(refused)? {
            ConnectDecision::Intercept(provider) => ConnectAdmission::Intercept(InterceptPermit {
                provider: self.policy.providers[provider].name.clone(),
                upstream: self.providers[provider].upstream.clone(),
                host: host.clone(),
                port,
            }),
            ConnectDecision::Tunnel(provider) => ConnectAdmission::Tunnel(tunnel(Some(provider))),
            ConnectDecision::Unmatched => ConnectAdmission::Tunnel(tunnel(None)),
        })
    }

    /// A denial names its route in the record.
    fn refused_by_route(&self, provider: usize, refusal: Refusal) -> EgressError {
        let mut error = refused(refusal.clone());
        if let (Refusal::Denied { route, .. }, EgressError::Denied { by, .. }) = (&refusal, &mut error) {
            let stack = self.providers[provider].routes.iter().find(|stack| stack.name == *route);
            *by = stack.map(|stack| DeniedBy {
                provider: stack.provider.clone(),
                route: stack.name.clone(),
                metrics: stack.metrics.clone(),
            });
        }
        error
    }

    fn admit(
        &self,
        provider: usize,
        target: Target,
        method: &Method,
        path: &str,
    ) -> Result<Admission, EgressError> {
        let chosen = match self.policy.route(provider, method, path) {
            Ok(chosen) => chosen,
            Err(refusal) => return Err(self.refused_by_route(provider, refusal)),
        };
        let route = self.providers[provider].routes[chosen.route].clone();
        let upstream = self.providers[provider].upstream.clone();
        Ok(Admission { target, route, shadowed: chosen.shadowed, upstream })
    }
}

/// What the stacks of a generation have in common while they are built.
pub(super) struct Around<'a> {
    /// Its number.
    pub(super) generation: u64,
    /// State that outlives the generation.
    pub(super) shared: &'a Shared,
    /// The store that pods share.
    pub(super) fleet: Option<&'a Arc<Fleet>>,
    /// All placeholders of the policy.
    pub(super) placeholders: Option<&'a Arc<Known>>,
}

impl LiveProvider {
    fn build(provider: &Arc<Provider>, mode: QueryMode, around: &Around<'_>) -> Result<Self, UpstreamError> {
        let shared = around.shared;
        let upstream = shared.upstream(&provider.upstream)?;
        // The credential's own parameter is a secret wherever it stands, also where the app sent one of its own.
        let mut names = provider.redact_query.clone();
        let members = provider.routes.iter().flat_map(|route| &route.settings.credential);
        for location in members.flat_map(MemberSettings::locations) {
            if let Location::Query(name) = location {
                names.push(name);
            }
        }
        let redaction = Redaction::new(mode, &names, &provider.redact_path).with_keys(key_shapes());
        let redaction = Arc::new(redaction);
        let routes = provider
            .routes
            .iter()
            .map(|route| Arc::new(RouteStack::build(provider, route, &upstream, &redaction, around)))
            .collect();
        let tunnel_metrics = shared.telemetry.metrics.route(&provider.name, TUNNEL);
        Ok(Self { upstream, routes, tunnel_metrics })
    }
}

/// What is masked where no route is known, such as in a refused request: everything that any provider masks, also behind
/// its prefix of the local endpoint.
fn union_redaction(mode: QueryMode, policy: &CompiledPolicy) -> Redaction {
    let providers = &policy.providers;
    let names: Vec<&String> = providers.iter().flat_map(|provider| &provider.redact_query).collect();
    let paths: Vec<String> = providers
        .iter()
        .flat_map(|provider| provider.redact_path.iter().map(move |path| (provider, path)))
        .flat_map(|(provider, path)| [path.clone(), format!("{}{path}", provider.local_path)])
        .collect();
    Redaction::new(mode, &names, &paths).with_keys(key_shapes())
}

/// What the keys of all providers look like that outgate knows, made once.
fn key_shapes() -> Arc<KeyShapes> {
    static SHAPES: LazyLock<Arc<KeyShapes>> =
        LazyLock::new(|| Arc::new(KeyShapes::new(preset::keys::shapes())));
    SHAPES.clone()
}

fn upgrade_idle(provider: &Provider) -> Duration {
    provider.routes.last().map_or(Duration::from_secs(3600), |route| route.settings.timeouts.upgrade_idle)
}

fn refused(refusal: Refusal) -> EgressError {
    match refusal {
        Refusal::Path(fault) => EgressError::Path(path_title(fault)),
        Refusal::NoProvider
        | Refusal::Downgrade
        | Refusal::Denied { .. }
        | Refusal::Trace
        | Refusal::NoHostNamed { .. } => EgressError::denied(refusal.title()),
    }
}

fn path_title(_: PathFault) -> &'static str {
    "the path can be read in two ways: dot segments, empty segments, encoded slashes and NUL are refused"
}
