//! The policy as true: what `compile` makes of what was typed. Values only; nothing here runs.
//!
//! Everything that a request needs to know is prepared here once: names are shared, header edits are parsed, hosts stand
//! in maps. Settings that decide about live state are `Eq + Hash`, so that a reload can tell what stayed the same.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::layers::LayerSettings;
use super::pattern::{HostMap, PathPattern};
use super::schema::{LogFormat, LogOutput, QueryConfig, Unmatched, Workers};
use super::tenant_pattern::TenantPattern;
use super::tree::{Node, Place, PolicyPath, Sources};
use crate::credential::kinds::MemberSettings;
use crate::credential::scrub::Scrub;
use crate::message::target::{Host, Target};
use crate::resilience::fleet::FleetSettings;
use crate::secret::reference::SecretRef;
use crate::secret::{StoreConfig, ValueRules};
use crate::upstream::settings::UpstreamSettings;

/// A whole policy.
pub struct CompiledPolicy {
    /// What needs a restart.
    pub fixed: Fixed,
    /// Secret stores by name.
    pub stores: Vec<(String, StoreConfig)>,
    /// What happens to hosts that no provider names.
    pub unmatched: Unmatched,
    /// How hosts that no provider names are dialled, where `unmatched: tunnel` lets them.
    pub unmatched_upstream: UpstreamKey,
    /// How pods share limits.
    pub fleet: Option<Fleet>,
    /// The providers, by name.
    pub providers: Vec<Arc<Provider>>,
    /// Providers by host, for forward and CONNECT.
    pub hosts: HostMap<usize>,
    /// Providers by host at the local endpoint, `<name>.localhost` included.
    pub local_hosts: HostMap<usize>,
    /// Providers by the first segment of their prefix at the local endpoint, longest prefix first.
    pub local_paths: HashMap<String, Vec<(String, usize)>>,
    /// Every secret the policy names, and the tokens that outgate gets itself.
    pub secrets: Vec<SecretUse>,
    /// Hash of the text it was made of, and of the files that are part of it (`upstream.tls.ca`).
    pub hash: String,
    /// Those files; a change of one is a change of the policy.
    pub files: Vec<PathBuf>,
    /// What a careful reader should know though nothing is wrong, such as a listener open to the network.
    pub warnings: Vec<String>,
    /// The merged text, for `explain`.
    pub source: Source,
}

/// A secret that a policy uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretUse {
    /// Its reference; a made one where outgate gets it itself.
    pub reference: SecretRef,
    /// Which bytes it may hold.
    pub rules: ValueRules,
    /// Whether readiness waits for it.
    pub required: bool,
}

/// How pods share limits, and where the URL of their Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// What is shared, and what holds without it.
    pub settings: FleetSettings,
    /// Reference of the URL.
    pub url: SecretRef,
}

/// Where values come from.
pub struct Source {
    /// The tree of the policy as written.
    pub tree: Node,
    /// Names of its files.
    pub sources: Sources,
}

/// Settings that a reload cannot change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Where apps connect to.
    pub listeners: Vec<Listener>,
    /// Metrics, health, status.
    pub admin: Admin,
    /// The CA.
    pub interception: Interception,
    /// Bounds of the process.
    pub runtime: Runtime,
    /// Logs.
    pub telemetry: Telemetry,
}

impl Fixed {
    /// Names of the sections in which `self` differs from `other`.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let sections = [
            ("listeners", self.listeners == other.listeners),
            ("admin", self.admin == other.admin),
            ("interception", self.interception == other.interception),
            ("runtime", self.runtime == other.runtime),
            ("telemetry", self.telemetry == other.telemetry),
        ];
        sections.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket, made with mode 0600.
    Unix(PathBuf),
    /// A socket that systemd hands over under this name.
    Systemd(String),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: ListenAddress,
    /// Which doors it opens.
    pub doors: Doors,
    /// It may be open to the network without a token.
    pub expose: bool,
    /// It takes redirected connections, and opens no door.
    pub transparent: bool,
    /// The tokens it knows; where there are none, everyone who can connect may use it.
    pub tokens: Option<ListenerTokens>,
    /// Further names of the local endpoint.
    pub hosts: Vec<Host>,
    /// A provider's own `local.address`: everything here goes to it.
    pub provider: Option<Arc<str>>,
}

/// References of the tokens of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerTokens {
    /// Of whoever is no tenant.
    pub plain: Option<SecretRef>,
    /// Of tenants, by name.
    pub tenants: Vec<(Arc<str>, SecretRef)>,
}

/// A set of doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doors {
    /// Absolute-form requests.
    pub forward: bool,
    /// CONNECT.
    pub connect: bool,
    /// The local endpoint.
    pub local: bool,
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where.
    pub address: ListenAddress,
    /// Reference of its token.
    pub token: Option<SecretRef>,
    /// Health and metrics only.
    pub health_address: Option<SocketAddr>,
    /// `POST /quit` needs no token on loopback.
    pub quit: bool,
}

/// The CA of interception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interception {
    /// Where it is.
    pub ca: Ca,
    /// Where the bundle is written.
    pub bundle: PathBuf,
    /// Where the truststore for Java is written, if one is wanted.
    pub truststore: Option<PathBuf>,
}

/// Where the CA is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ca {
    /// Made here on first run.
    Directory(PathBuf),
    /// Given.
    Files {
        /// PEM of the certificate.
        certificate: PathBuf,
        /// PEM of the key.
        key: PathBuf,
    },
}

/// Bounds of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Worker threads.
    pub workers: Workers,
    /// Connections at a time.
    pub max_connections: usize,
    /// Time to finish after SIGTERM.
    pub drain: Duration,
    /// Time to serve on after SIGTERM, before the drain; may be zero.
    pub linger: Duration,
    /// Rest that ends it early.
    pub linger_idle: Duration,
    /// Bounds of the app's side.
    pub downstream: Downstream,
}

/// Bounds of the app's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downstream {
    /// From the first byte of a head to its end.
    pub header_timeout: Duration,
    /// TLS handshake, and the first bytes of a tunnel.
    pub tls_handshake_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// Between bytes of a request body.
    pub body_timeout: Duration,
    /// Between bytes of an answer that the app takes.
    pub write_timeout: Duration,
    /// Header fields.
    pub max_headers: usize,
    /// Bytes of a head.
    pub max_header_bytes: usize,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Form of a line.
    pub format: LogFormat,
    /// Where lines go.
    pub output: LogOutput,
    /// What of a query is logged.
    pub query: QueryConfig,
}

/// What a pool is made of, and which secrets it takes its certificate and proxy password from. Equal keys keep their
/// connections over a reload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamKey {
    /// Settings of the upstream.
    pub settings: UpstreamSettings,
    /// Client certificates with their keys, the new one first; none is none.
    pub identities: Vec<(SecretRef, SecretRef)>,
    /// `user:password` of the corporate proxy.
    pub proxy_auth: Option<SecretRef>,
}

/// One provider.
#[derive(Debug)]
pub struct Provider {
    /// Its name.
    pub name: Arc<str>,
    /// Its place in the policy.
    pub path: PolicyPath,
    /// Where its name is written.
    pub place: Place,
    /// Where a request of the local endpoint goes that names no host; none where every host is a wildcard.
    pub first: Option<Target>,
    /// All hosts, as written, for `explain` and the local endpoint's `@host`.
    pub own_hosts: HostMap<()>,
    /// Hosts in their normal form, for people.
    pub host_names: Vec<String>,
    /// The name of its preset.
    pub preset: Option<String>,
    /// How it is reached.
    pub upstream: UpstreamKey,
    /// Doors by which its hosts are found.
    pub doors: Doors,
    /// Whether TLS is intercepted, and which key decides.
    pub intercept: InterceptDecision,
    /// Of a blind tunnel: any bytes may pass.
    pub opaque: bool,
    /// Prefix at the local endpoint, with the leading slash.
    pub local_path: String,
    /// Host name at the local endpoint.
    pub local_host: Host,
    /// Whether ambiguous paths are refused: some route has a path, and `paths` is not `raw`.
    pub canonical_paths: bool,
    /// Its routes in order; the last one is the provider itself, and matches everything.
    pub routes: Vec<Arc<Route>>,
    /// What names a request's tenant, and whether it must be named.
    pub tenant: Option<Tenant>,
    /// Query parameters masked in logs, and path patterns.
    pub redact_query: Vec<String>,
    /// Path patterns in which `*` segments are masked.
    pub redact_path: Vec<String>,
    /// The merged text, for `explain`: where each value comes from.
    pub effective: Node,
}

/// Where a request names its tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// What names it.
    pub from: TenantFrom,
    /// A request that names none is refused.
    pub required: bool,
}

/// What names the tenant of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantFrom {
    /// A header, which is taken out of the request, and what a name looks like.
    Header(HeaderName, TenantPattern),
    /// The token that the client sends to the listener.
    Token,
}

/// Whether TLS is intercepted, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterceptDecision {
    /// Whether it is.
    pub intercept: bool,
    /// The key that decides, such as `providers.stripe.credential`, or `intercept`.
    pub because: String,
}

/// One route with everything it has from its provider filled in.
#[derive(Debug)]
pub struct Route {
    /// Name in logs and metrics.
    pub name: Arc<str>,
    /// Where it is written, for `explain`.
    pub path: PolicyPath,
    /// Its place.
    pub place: Place,
    /// Methods it is for; none = all.
    pub methods: Option<Vec<Method>>,
    /// Path it is for; none = all.
    pub pattern: Option<PathPattern>,
    /// The preset's route that fills in what the policy leaves open; it matches only where that does too.
    pub within: Option<Within>,
    /// Refuses with this reason.
    pub deny: Option<String>,
    /// What it refuses is noted under this name, and passes.
    pub shadow: Option<Arc<str>>,
    /// What a request on it gets.
    pub settings: RouteSettings,
    /// The merged text of this route, for `explain`: where each value comes from.
    pub effective: Node,
    /// Where the provider's hint on repetitions stands, if that text says `retry: off` over it.
    pub hint_place: Option<Place>,
}

/// A preset's route below a route of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Within {
    /// Its name in the preset.
    pub name: Arc<str>,
    /// Methods it is for; none = all.
    pub methods: Option<Vec<Method>>,
    /// Path it is for; none = all.
    pub pattern: Option<PathPattern>,
}

/// What a request on a route gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSettings {
    /// Members of the credential, in order of preference; empty = none.
    pub credential: Vec<MemberSettings>,
    /// How far answers are searched for it.
    pub scrub: Scrub,
    /// Changes of request headers.
    pub headers: HeaderEdits,
    /// Query parameters that are taken out, by name.
    pub query_remove: Vec<String>,
    /// Largest request body in bytes.
    pub max_body: Option<u64>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What stands between the judged request and the provider.
    pub layers: LayerSettings,
}

/// Timeouts of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// Last request byte to head.
    pub response: Duration,
    /// Between bytes.
    pub idle: Duration,
    /// Silence in tunnels.
    pub upgrade_idle: Duration,
    /// Until a head.
    pub deadline: Duration,
    /// The whole exchange.
    pub total: Option<Duration>,
}

/// Changes of request headers, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeaderEdits {
    /// Written whatever the app sent.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Written where the app sent none.
    pub default: Vec<(HeaderName, HeaderValue)>,
    /// Removed.
    pub remove: Vec<HeaderName>,
}

impl HeaderEdits {
    /// Applies the changes: remove, then defaults, then set.
    pub fn apply(&self, headers: &mut http::HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.default {
            if !headers.contains_key(name) {
                headers.insert(name.clone(), value.clone());
            }
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
    }
}
