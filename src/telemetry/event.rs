//! One finished exchange, as a plain struct: all that an access-log line says and the metrics count.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Flag, RequestId, RouteMetrics, TraceId};

/// The way by which a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// A request in absolute form: `GET http://host/`.
    Forward,
    /// `CONNECT` itself, where it was answered before a tunnel or an interception began.
    Connect,
    /// A request inside a TLS connection that outgate terminated.
    Intercept,
    /// A request to the local endpoint.
    Local,
    /// A blind tunnel; its body sizes are the bytes copied.
    Tunnel,
    /// A connection that was redirected here: a request on it, intercepted or not, or the blind tunnel that it became.
    Transparent,
    /// None: the cache renews a stale answer in the background.
    Renewal,
}

impl Door {
    /// The name in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Connect => "connect",
            Self::Intercept => "intercept",
            Self::Local => "local",
            Self::Tunnel => "tunnel",
            Self::Transparent => "transparent",
            Self::Renewal => "renewal",
        }
    }
}

/// The version of HTTP, as `network.protocol.version` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl HttpVersion {
    /// `1.0`, `1.1` or `2`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
        }
    }
}

impl From<http::Version> for HttpVersion {
    fn from(version: http::Version) -> Self {
        match version {
            http::Version::HTTP_2 => Self::Http2,
            http::Version::HTTP_10 | http::Version::HTTP_09 => Self::Http10,
            _ => Self::Http11,
        }
    }
}

/// Who sent the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A TCP peer.
    Address(SocketAddr),
    /// A process at the other end of a unix socket, which has no address.
    Unix,
}

/// Where a redirected connection was meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The address and port that the client dialled.
    pub address: SocketAddr,
    /// Whether it is among the addresses that outgate resolved the host to; `None` where that was not compared. Names that
    /// differ by resolver (CDNs) make this false in good faith, so it is noted and nothing more.
    pub resolved: Option<bool>,
}

/// Whether the request may have acted at the provider, where outgate answered by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing reached the provider, or it said that it did nothing.
    No,
    /// It may have acted.
    Maybe,
}

impl Sent {
    /// `no` or `maybe`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Maybe => "maybe",
        }
    }
}

/// Where the time of an exchange went. The phases of the last attempt; `None`: there was no such phase (a reused connection
/// has no `dns`, `connect` and `tls`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the request's head to the end of the answer's body.
    pub total: Duration,
    /// Waits for limits, quota, concurrency and backoff, all attempts together.
    pub queue: Option<Duration>,
    /// Resolving the name.
    pub dns: Option<Duration>,
    /// The TCP handshake.
    pub connect: Option<Duration>,
    /// The TLS handshake.
    pub tls: Option<Duration>,
    /// From the request's last byte sent to the answer's head.
    pub first_byte: Option<Duration>,
    /// From the answer's head to the end of its body.
    pub body: Option<Duration>,
}

/// One finished exchange. Absent values are left out of the log line.
///
/// No field may hold a credential: `path` and `query` are already redacted, `credential` is a reference (`env:STRIPE_KEY`), and
/// `error_detail` is made of our own words and names.
#[derive(Clone, Debug)]
pub struct RequestEvent {
    /// When the request's head had been read.
    pub time: SystemTime,
    /// The id the client got as `Outgate-Request-Id`.
    pub request_id: RequestId,
    /// The trace this request belongs to.
    pub trace_id: Option<TraceId>,
    /// How the request came in.
    pub door: Door,
    /// The listener it came to, by address or path.
    pub listener: Arc<str>,
    /// Who sent it.
    pub client: Option<Client>,
    /// Of a redirected connection: where it was meant to go.
    pub original: Option<Original>,
    /// The method; `None` where the head could not be read.
    pub method: Option<http::Method>,
    /// `http` or `https`; `None` for tunnels.
    pub scheme: Option<&'static str>,
    /// The host it was meant for, normalised, without port and userinfo.
    pub host: Option<Arc<str>>,
    /// The port it was meant for.
    pub port: Option<u16>,
    /// The path, redacted.
    pub path: Option<String>,
    /// The query, redacted, without `?`.
    pub query: Option<String>,
    /// The version spoken with the client.
    pub downstream_version: Option<HttpVersion>,
    /// The version spoken with the upstream.
    pub upstream_version: Option<HttpVersion>,
    /// The status the client got; `None` if it got none.
    pub status: Option<u16>,
    /// Bytes of the request's body, as received.
    pub request_bytes: u64,
    /// Bytes of the answer's body, as sent to the client.
    pub response_bytes: u64,
    /// Where the time went.
    pub timings: Timings,
    /// The provider's name.
    pub provider: Option<Arc<str>>,
    /// The route's name.
    pub route: Option<Arc<str>>,
    /// How often the request was sent upstream, or was tried to.
    pub attempts: u32,
    /// For each attempt that was judged: why it was made again (a class of the policy, such as `throttle`), or why not
    /// (`not_repeated:may_have_acted`). Closed words. Empty where the first attempt succeeded.
    pub retry_reasons: Vec<&'static str>,
    /// What shadow mode let pass: `limit:account`, `breaker`, `deny:refunds`.
    pub shadowed: Vec<Arc<str>>,
    /// Why outgate answered by itself, or how this ended.
    pub flag: Option<Flag>,
    /// The stable code of the error, as the client got it in `Outgate-Error`.
    pub error: Option<&'static str>,
    /// The error with its causes, for the log only.
    pub error_detail: Option<String>,
    /// The generation of the policy that decided.
    pub generation: u64,
    /// The reference of the credential that went with the request.
    pub credential: Option<Arc<str>>,
    /// The upstream's address, as dialed.
    pub upstream: Option<SocketAddr>,
    /// Whether the upstream connection had served a request before.
    pub connection_reused: Option<bool>,
    /// How often the answer repeated the credential, and it was masked.
    pub scrubbed: u64,
    /// Whether the request may have acted, where outgate answered by itself.
    pub sent: Option<Sent>,
    /// The protocol the connection was upgraded to, such as `websocket`.
    pub upgrade: Option<&'static str>,
    /// The counters of the route, resolved when its policy was compiled; `None`: those of requests without a provider.
    pub metrics: Option<Arc<RouteMetrics>>,
}

impl RequestEvent {
    /// An event of `now` that says nothing more yet.
    pub fn new(request_id: RequestId, door: Door, listener: Arc<str>, now: SystemTime) -> Self {
        Self {
            time: now,
            request_id,
            trace_id: None,
            door,
            listener,
            client: None,
            original: None,
            method: None,
            scheme: None,
            host: None,
            port: None,
            path: None,
            query: None,
            downstream_version: None,
            upstream_version: None,
            status: None,
            request_bytes: 0,
            response_bytes: 0,
            timings: Timings::default(),
            provider: None,
            route: None,
            attempts: 0,
            retry_reasons: Vec::new(),
            shadowed: Vec::new(),
            flag: None,
            error: None,
            error_detail: None,
            generation: 0,
            credential: None,
            upstream: None,
            connection_reused: None,
            scrubbed: 0,
            sent: None,
            upgrade: None,
            metrics: None,
        }
    }
}
