//! What a connection knows: the proxy it belongs to, the listener it came to, who is at the other end, and, inside an
//! intercepted tunnel, for which host it was opened.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::Clock;
use http::HeaderValue;
use http::header::{AUTHORIZATION, PROXY_AUTHORIZATION};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::original::{OriginalDestination, Redirected};
use super::socket::{Activity, SocketTimeouts};
use super::transparent::OwnTunnels;
use crate::message::target::Host;
use crate::pipeline::generation::Generation;
use crate::telemetry::{Client, ListenerMetrics, Telemetry};
use crate::tls::leaf_cache::LeafCache;

/// Bounds of the app's side.
#[derive(Clone, Copy, Debug)]
pub struct DownstreamBounds {
    /// Timeouts of the socket.
    pub socket: SocketTimeouts,
    /// TLS handshake of an intercepted connection, and the first bytes of a tunnel.
    pub handshake: Duration,
    /// Between bytes of a request body.
    pub body: Duration,
    /// Header fields.
    pub max_headers: usize,
    /// Bytes of a head.
    pub max_header_bytes: usize,
}

/// The data plane: what all connections share.
pub struct Proxy {
    /// The newest generation.
    pub generation: Arc<ArcSwap<Generation>>,
    /// Log and metrics.
    pub telemetry: Arc<Telemetry>,
    /// Leaves of interception.
    pub leaves: Arc<LeafCache>,
    /// Bounds.
    pub bounds: DownstreamBounds,
    /// Name of this process in `Via`; unique, so that two chained outgates do not take one another for a loop.
    pub pseudonym: Pseudonym,
    /// Cancelled when no new work is taken.
    pub drain: CancellationToken,
    /// Cancelled when the time to finish is over.
    pub abort: CancellationToken,
    /// All connections, tunnels and upgraded connections.
    pub tasks: TaskTracker,
    /// Whether new work is refused because a bound of the process is near.
    pub overload: Arc<super::overload::Overload>,
    /// Asks where a redirected connection was meant to go.
    pub original: OriginalDestination,
    /// Tunnels that outgate itself has dialled.
    pub own_tunnels: Arc<OwnTunnels>,
    /// Slows down who guesses tokens.
    pub guesses: Guesses,
    /// Requests, tunnels and upgraded connections that run.
    pub work: Arc<super::work::Work>,
}

/// `Via` members, prepared.
pub struct Pseudonym {
    /// The name alone.
    pub name: String,
    /// For messages received as HTTP/1.0, 1.1 and 2.
    pub via: [HeaderValue; 3],
}

impl Pseudonym {
    /// A new name of 64 random bits.
    pub fn new() -> Self {
        let name = format!("outgate-{:016x}", fastrand::u64(..));
        let member = |version: &str| {
            HeaderValue::try_from(format!("{version} {name}"))
                .unwrap_or(HeaderValue::from_static("1.1 outgate"))
        };
        let via = [member("1.0"), member("1.1"), member("2")];
        Self { name, via }
    }

    /// The member for a message of this version.
    pub fn member(&self, version: http::Version) -> HeaderValue {
        let index = match version {
            http::Version::HTTP_10 | http::Version::HTTP_09 => 0,
            http::Version::HTTP_2 => 2,
            _ => 1,
        };
        self.via[index].clone()
    }
}

impl Default for Pseudonym {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a token is the listener's; compares in constant time. It stands for a secret that this row cannot see.
pub type TokenCheck = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Whose token it is, if it is one of the listener's; compares in constant time.
pub type TokenOwner = Arc<dyn Fn(&[u8]) -> Option<Owner> + Send + Sync>;

/// The owner of a listener's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Every client that is no tenant.
    Anyone,
    /// A tenant of the policy.
    Tenant(Arc<str>),
}

/// A listener, as its connections see it.
pub struct ListenerContext {
    /// Its address, for logs.
    pub name: Arc<str>,
    /// Its TCP port.
    pub port: Option<u16>,
    /// Absolute-form requests are taken.
    pub forward: bool,
    /// CONNECT is taken.
    pub connect: bool,
    /// The local endpoint is here.
    pub local: bool,
    /// It takes redirected connections, and nothing else.
    pub transparent: bool,
    /// Names by which the local endpoint may be called, apart from loopback.
    pub hosts: Vec<Host>,
    /// A provider's own port.
    pub provider: Option<Arc<str>>,
    /// The tokens it knows; without any it asks for none.
    pub tokens: Option<TokenOwner>,
    /// Connection counters.
    pub metrics: Arc<ListenerMetrics>,
}

impl ListenerContext {
    /// Whether the name is one of outgate's own.
    pub fn is_own_name(&self, host: &Host) -> bool {
        match host.ip() {
            Some(ip) => ip.to_canonical().is_loopback() || self.hosts.contains(host),
            None => host.as_str() == "localhost" || self.hosts.contains(host),
        }
    }
}

/// One connection.
pub struct ConnectionContext {
    /// Where it came in.
    pub listener: Arc<ListenerContext>,
    /// Who is at the other end.
    pub client: Client,
    /// What the socket is told.
    pub activity: Arc<Activity>,
    /// It was redirected here.
    pub redirected: Option<Redirected>,
    /// Inside an intercepted tunnel: the CONNECT target; of a redirected one, its SNI and the port that was dialled.
    pub intercepted: Option<(Host, u16)>,
    /// Inside an intercepted tunnel: the tenant whose token came with the CONNECT.
    pub proven_tenant: Option<Arc<str>>,
    /// It came when outgate was near one of its bounds: its requests are new work, refused as long as that lasts.
    pub late: bool,
    /// Watches streams that take nothing; HTTP/2 only.
    pub stalls: Option<super::stalls::Stalls>,
    /// The connection's place among `max_connections`; kept by tunnels and upgraded connections too.
    pub place: Arc<super::listener::Place>,
    /// Counts streams that the client resets; looked at in HTTP/2 only.
    pub resets: super::resets::Resets,
}

/// Wrong tokens per peer: ten at once, then one in a second; who goes on is answered late.
pub struct Guesses {
    limiter: Limiter,
}

type Limiter = governor::RateLimiter<
    std::net::IpAddr,
    governor::state::keyed::DashMapStateStore<std::net::IpAddr>,
    TokioClock,
    governor::middleware::NoOpMiddleware<governor::nanos::Nanos>,
>;

/// How late.
const SLOWED: Duration = Duration::from_secs(1);

impl Guesses {
    /// No guesses yet.
    pub fn new() -> Self {
        let quota = governor::Quota::per_second(std::num::NonZeroU32::MIN)
            .allow_burst(std::num::NonZeroU32::new(10).unwrap_or(std::num::NonZeroU32::MIN));
        Self { limiter: governor::RateLimiter::dashmap_with_clock(quota, TokioClock::default()) }
    }

    /// A peer sent a wrong token; returns when it may be told so.
    pub async fn wrong(&self, client: Client) {
        let Client::Address(address) = client else { return };
        // Keys are peers that were wrong lately; the map is swept before it can grow.
        if self.limiter.len() > 10_000 {
            self.limiter.retain_recent();
        }
        if self.limiter.check_key(&address.ip()).is_err() {
            tokio::time::sleep(SLOWED).await;
        }
    }
}

impl Default for Guesses {
    fn default() -> Self {
        Self::new()
    }
}

/// governor's clock over tokio's: paused time in tests, and no drift of its own.
#[derive(Clone)]
pub struct TokioClock {
    started: Instant,
}

impl Default for TokioClock {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for TokioClock {
    type Instant = governor::nanos::Nanos;

    fn now(&self) -> Self::Instant {
        governor::nanos::Nanos::from(self.started.elapsed())
    }
}

/// Whose token the request carries: `Proxy-Authorization`, Basic (as either half) or Bearer. At the local
/// endpoint, where SDKs cannot send that, the token may not stand elsewhere: `Authorization` belongs to the provider.
pub fn owner_of_token(headers: &http::HeaderMap, owner: &TokenOwner) -> Option<Owner> {
    debug_assert_ne!(PROXY_AUTHORIZATION, AUTHORIZATION);
    let bytes = headers.get(PROXY_AUTHORIZATION)?.as_bytes();
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = (&bytes[..space], bytes[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return owner(rest);
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, rest);
    let pair = pair.map(zeroize::Zeroizing::new).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    let as_user = || if pair.len() == colon + 1 { owner(&pair[..colon]) } else { None };
    owner(&pair[colon + 1..]).or_else(as_user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_where_clients_put_them() {
        let tenant = || Owner::Tenant("acme".into());
        let of: TokenOwner = Arc::new(move |token| match token {
            b"secret" => Some(Owner::Anyone),
            b"of-acme" => Some(tenant()),
            _ => None,
        });
        let owner = |value: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert(PROXY_AUTHORIZATION, value.parse().unwrap());
            owner_of_token(&headers, &of)
        };
        let carries = |value: &str| owner(value) == Some(Owner::Anyone);
        assert_eq!(owner("Bearer of-acme"), Some(Owner::Tenant("acme".into())));
        assert_eq!(owner("Basic YWNtZTpvZi1hY21l"), Some(Owner::Tenant("acme".into()))); // acme:of-acme
        assert!(carries("Bearer secret"));
        assert!(carries("basic eDpzZWNyZXQ=")); // x:secret
        assert!(carries("Basic c2VjcmV0Og==")); // secret:
        assert!(!carries("Basic c2VjcmV0Ong=")); // secret:x
        assert!(!carries("Bearer wrong"));
        assert!(!carries("Bearer"));
        assert!(!carries("Digest secret"));
        assert_eq!(owner_of_token(&http::HeaderMap::new(), &of), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_is_slowed() {
        let guesses = Guesses::new();
        let peer = Client::Address("127.0.0.1:9".parse().unwrap());
        let started = Instant::now();
        for _ in 0..10 {
            guesses.wrong(peer).await;
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
        for _ in 0..5 {
            guesses.wrong(peer).await;
        }
        assert!(started.elapsed() >= Duration::from_secs(2));
        let other = Client::Address("127.0.0.2:9".parse().unwrap());
        let before = Instant::now();
        guesses.wrong(other).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
