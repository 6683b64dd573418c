//! The HTTP client of stores and token endpoints: one request, one answer, both short.
//!
//! It goes the way that every request to a provider goes ([`Upstream`]: resolver, address guard, TLS, pool), and adds what
//! a caller that waits for a whole answer needs:
//!
//! - one deadline for everything, retries included; a body of at most 1 MiB, in memory that is wiped;
//! - redirects are never followed: they would carry a token to wherever the answer says;
//! - up to three tries, with backoff and jitter, of what may be repeated and failed in transport, with a 5xx or a 429;
//! - a peer that fails is asked at most ten times a minute ([`MAX_FAILURES`]), and so is everything of it that fails while the
//!   rest is good; in between, the last failure is the answer. What is good the caller says ([`Verdict`]): a refusal, or
//!   garbage in a 200, is a failure. Clients that ask the same peers count together ([`Peers`]);
//! - errors without text of the peer, so that an answer that repeats a secret cannot bring it into a log.
//!
//! **Addresses.** The address of a store is written by the platform, not by the app; so private addresses and loopback are
//! allowed. Metadata services are not, save for a client that is made to ask one ([`AddressRules`] of its settings), and
//! outgate's own listeners never are.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::RETRY_AFTER;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use zeroize::Zeroizing;

use self::failures::{Running, lock};
use self::peers::Counted;
pub use self::peers::Peers;
pub use self::verdict::Verdict;
use super::SecretBytes;
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault, Progress};
use crate::message::request::{EgressParts, EgressRequest, Exchange};
use crate::message::target::{Scheme, Target};
use crate::upstream::guard::{AddressRange, AddressRules};
use crate::upstream::settings::{HttpVersion, PoolSettings, TlsSettings, UpstreamSettings};
use crate::upstream::{Upstream, UpstreamEnv, UpstreamError};

mod failures;
mod peers;
mod verdict;

/// Bytes that the body of an answer may have.
pub const MAX_BODY: usize = 1024 * 1024;
/// Failed requests within [`WINDOW`], after which what fails is not asked, and where nothing succeeded in between, nothing is.
pub const MAX_FAILURES: usize = 10;
/// The time in which failures are counted.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Requests at once; further ones wait.
const MAX_CONCURRENT: usize = 4;
/// Tries of one request, the first included.
const TRIES: u32 = 3;
/// For so long a question that must not be repeated waits for others; the rest of its time is its answer's.
const WAIT_FOR_OTHERS: Duration = Duration::from_secs(5);
/// Wait before the second try, half to one and a half of it; twice that before the third.
const BACKOFF: Duration = Duration::from_millis(150);

/// What a client is made of.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Its name in metrics, such as `secrets.payments`.
    pub name: Arc<str>,
    /// How its peers are spoken to.
    pub scheme: Scheme,
    /// PEM of the authorities that are trusted in place of the system's.
    pub ca: Option<Arc<[u8]>>,
    /// Bound of resolving and connecting together, and again of the TLS handshake.
    pub connect: Duration,
    /// Bound of one call of [`HttpClient::send`].
    pub total: Duration,
    /// Which addresses may be dialled.
    pub addresses: AddressRules,
}

/// Every address but those of metadata services: for peers that the platform configures.
#[must_use]
pub fn configured_addresses() -> AddressRules {
    let all = ["0.0.0.0/0", "::/0"].iter().filter_map(|net| net.parse::<AddressRange>().ok());
    AddressRules { allow_private: all.collect(), allow_metadata: Vec::new() }
}

/// A request. Its body is wiped when the last copy goes.
pub struct HttpCall {
    /// The method.
    pub method: Method,
    /// Where it goes.
    pub target: Target,
    /// Path and query, percent-encoded; starts with `/`.
    pub path: String,
    /// Fields; values that are secrets are marked sensitive by the caller.
    pub headers: HeaderMap,
    /// The body.
    pub body: SecretBytes,
    /// Whether it may be sent again though it may have been acted on: GET, and logins.
    pub repeat: bool,
    /// What it asks for, where its path does not tell: failures are counted by it.
    pub subject: Option<String>,
}

impl HttpCall {
    /// A GET, which may be repeated.
    #[must_use]
    pub fn get(target: &Target, path: String) -> Self {
        Self {
            method: Method::GET,
            target: target.clone(),
            path,
            headers: HeaderMap::new(),
            body: SecretBytes::default(),
            repeat: true,
            subject: None,
        }
    }

    /// A POST that may be repeated: a login or a renewal.
    #[must_use]
    pub fn login(target: &Target, path: String, body: SecretBytes) -> Self {
        Self { method: Method::POST, body, ..Self::get(target, path) }
    }

    /// Under which name its failures are counted: versions of one path, which its query tells, are one.
    fn subject(&self) -> &str {
        let path = || self.path.split('?').next().unwrap_or_default();
        self.subject.as_deref().unwrap_or_else(path)
    }
}

/// A whole answer. Answers with a 5xx or a 429 are [`HttpError::Status`].
pub struct HttpAnswer {
    /// The status.
    pub status: StatusCode,
    /// Its fields, hop-by-hop ones taken out.
    pub headers: HeaderMap,
    /// Its body, at most [`MAX_BODY`] bytes.
    pub body: SecretBytes,
    /// What the caller makes of it. To say nothing is to say that the peer failed.
    pub verdict: Verdict,
}

/// Why no usable answer came. Holds no text of the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// It was not reached, or the connection broke.
    #[error("was not reached: {}", describe(*.0))]
    Failed(Fault),
    /// No whole answer came in time.
    #[error("did not answer in time")]
    TimedOut,
    /// The answer is too large.
    #[error("answered with more than {MAX_BODY} bytes")]
    TooLarge,
    /// It is overloaded or broken.
    #[error("answered HTTP {0}")]
    Status(u16),
    /// The answer is not what its API promises, or a refusal that is told in a 200.
    #[error("answered something else than its API promises")]
    Garbled,
    /// What was to be sent is not a request; a path with characters that it cannot have.
    #[error("cannot be asked for that: it does not fit into a URL")]
    Request,
    /// It was not asked, because it failed too often of late: how it failed last.
    #[error("is left alone for now: of late it {0}")]
    Held(Box<HttpError>),
}

impl HttpError {
    /// A short stable text for `/status`, metrics and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Failed(_) => "store_unreachable",
            Self::TimedOut => "store_timeout",
            Self::TooLarge => "too_large",
            Self::Status(401 | 403) => "store_denied",
            Self::Status(_) => "store_status",
            Self::Garbled => "store_garbled",
            Self::Request => "bad_reference",
            Self::Held(last) => last.code(),
        }
    }

    /// How the peer failed, now or the last time that it was asked.
    #[must_use]
    pub fn last(&self) -> &Self {
        match self {
            Self::Held(last) => last.last(),
            asked => asked,
        }
    }

    /// Whether the peer was not asked.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }
}

fn describe(fault: Fault) -> &'static str {
    match fault {
        Fault::AddressDenied => "its address is one of a metadata service",
        Fault::OwnListener => "its address is outgate's own",
        Fault::Dns | Fault::DnsTimeout => "its name was not resolved",
        Fault::ConnectRefused => "connection refused",
        Fault::ConnectTimeout | Fault::TlsTimeout => "connecting took too long",
        Fault::TlsCertificate => "its certificate is not valid for its host, or of an unknown authority",
        Fault::TlsAlert | Fault::TlsProtocol => "the TLS handshake failed",
        Fault::Protocol | Fault::HeadTooLarge => "its answer is not HTTP, or its head is too large",
        Fault::Reset => "the connection was closed",
        _ => "the connection failed",
    }
}

/// Sends short requests to peers that the platform configured.
pub struct HttpClient {
    upstream: Arc<Upstream>,
    total: Duration,
    permits: Semaphore,
    counted: Counted,
}

impl HttpClient {
    /// A client; it connects when it is first used.
    ///
    /// # Errors
    /// The certificate authorities cannot be used.
    pub fn new(settings: ClientSettings, env: &Arc<UpstreamEnv>) -> Result<Self, UpstreamError> {
        Self::for_streams(settings, MAX_CONCURRENT, env)
    }

    /// A client whose answers stay open, `most` of them at once ([`HttpClient::open`]).
    ///
    /// # Errors
    /// The certificate authorities cannot be used.
    pub fn for_streams(
        settings: ClientSettings,
        most: usize,
        env: &Arc<UpstreamEnv>,
    ) -> Result<Self, UpstreamError> {
        let ClientSettings { name, scheme, ca, connect, total, addresses } = settings;
        let settings = UpstreamSettings {
            scheme,
            tls: TlsSettings { ca, ..TlsSettings::default() },
            http: HttpVersion::Http1,
            pool: PoolSettings { max_connections: most, ..PoolSettings::default() },
            connect_timeout: connect,
            tls_timeout: connect,
            ..UpstreamSettings::new(name, Arc::new(addresses))
        };
        let upstream = Upstream::new(settings, Arc::clone(env), None, None)?;
        let permits = Semaphore::new(most);
        Ok(Self { upstream, total, permits, counted: Counted::Alone(Arc::default()) })
    }

    /// The same client, which counts failures together with all others of `peers`.
    #[must_use]
    pub fn counting_in(self, peers: &Arc<Peers>) -> Self {
        Self { counted: Counted::Together(Arc::clone(peers)), ..self }
    }

    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// No usable answer within the client's time; or the peer failed [`MAX_FAILURES`] times in the last minute, and the error
    /// is that of the last failure.
    pub async fn send(&self, call: HttpCall) -> Result<HttpAnswer, HttpError> {
        let deadline = Instant::now() + self.total;
        let call = Call::of(call)?;
        let mut asked = None;
        for tried in 1..=TRIES {
            let missed = match self.attempt(&call, deadline).await {
                Ok(answer) => return Ok(answer),
                // A try that was not made says less than the one before.
                Err(missed) if missed.error.is_held() => return Err(asked.unwrap_or(missed.error)),
                Err(missed) => missed,
            };
            let wait = missed.after.unwrap_or_default().max(backoff(tried, fastrand::f64()));
            let again = tried < TRIES && (call.call.repeat && missed.passes || missed.unsent);
            if !again || Instant::now() + wait >= deadline {
                return Err(missed.error);
            }
            asked = Some(missed.error);
            sleep(wait).await;
        }
        Err(HttpError::TimedOut)
    }

    /// Sends a request once, and gives its answer while it comes: whoever reads it bounds it. The head must be there within the
    /// client's time. A refusal but 410 counts as a failure.
    ///
    /// # Errors
    /// As [`HttpClient::send`].
    pub async fn open(&self, call: HttpCall) -> Result<Response<Body>, HttpError> {
        let deadline = Instant::now() + self.total;
        let call = Call::of(call)?;
        let running = self.begin(&call, deadline).await?;
        let opened = match timeout_at(deadline, self.upstream.send(call.request(deadline))).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(failure)) => Err(Missed::from(failure).error),
            Err(_) => Err(HttpError::TimedOut),
        };
        match &opened {
            Ok(response) if response.status().is_success() || response.status() == StatusCode::GONE => {
                running.works();
            }
            Ok(response) => running.failed(HttpError::Status(response.status().as_u16())),
            Err(error) => running.failed(error.clone()),
        }
        opened
    }

    /// The last failure of a peer, where nothing was good since.
    #[must_use]
    pub fn fails(&self, target: &Target) -> Option<HttpError> {
        lock(&self.counted.of(target)).fails()
    }

    /// Begins a question, as soon as others show whether the peer works where nobody knows.
    async fn begin(&self, call: &Call, deadline: Instant) -> Result<Running, HttpError> {
        let failures = self.counted.of(&call.call.target);
        let repeat = call.call.repeat;
        let until = if repeat { deadline } else { deadline.min(Instant::now() + WAIT_FOR_OTHERS) };
        // It was not asked, so nothing is used up.
        let late =
            || if repeat { HttpError::TimedOut } else { HttpError::Held(Box::new(HttpError::TimedOut)) };
        loop {
            let ended = lock(&failures).ended();
            let mut ended = std::pin::pin!(ended.notified());
            // Before the look: an end between the two is not missed.
            ended.as_mut().enable();
            if let Some(running) = Running::begin(&failures, call.call.subject())? {
                return Ok(running);
            }
            timeout_at(until, ended).await.map_err(|_| late())?;
        }
    }

    async fn attempt(&self, call: &Call, deadline: Instant) -> Result<HttpAnswer, Missed> {
        let Ok(Ok(_permit)) = timeout_at(deadline, self.permits.acquire()).await else {
            return Err(Missed::for_good(HttpError::TimedOut));
        };
        let running = self.begin(call, deadline).await.map_err(Missed::for_good)?;
        let answer = timeout_at(deadline, self.exchange(call.request(deadline))).await;
        match answer.unwrap_or(Err(Missed::for_good(HttpError::TimedOut))) {
            Ok((status, headers, body)) => {
                Ok(HttpAnswer { status, headers, body, verdict: Verdict::on(status, running) })
            }
            Err(missed) => {
                running.failed(missed.error.clone());
                Err(missed)
            }
        }
    }

    async fn exchange(&self, request: EgressRequest) -> Result<(StatusCode, HeaderMap, SecretBytes), Missed> {
        let response = self.upstream.send(request).await.map_err(Missed::from)?;
        let (head, body) = response.into_parts();
        if head.status.is_server_error() || head.status == StatusCode::TOO_MANY_REQUESTS {
            let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let after = after.map(Duration::from_secs);
            let error = HttpError::Status(head.status.as_u16());
            return Err(Missed { error, passes: true, unsent: false, after });
        }
        let response = Response::new(body);
        let body = read(response.into_body()).await?;
        Ok((head.status, head.headers, body))
    }
}

/// A call, ready to be made again.
struct Call {
    call: HttpCall,
    path: PathAndQuery,
    body: Bytes,
}

impl Call {
    fn of(mut call: HttpCall) -> Result<Self, HttpError> {
        let path = PathAndQuery::try_from(call.path.as_str()).map_err(|_| HttpError::Request)?;
        let body = Bytes::from_owner(std::mem::take(&mut call.body));
        Ok(Self { call, path, body })
    }

    fn request(&self, deadline: Instant) -> EgressRequest {
        EgressRequest::from(EgressParts {
            method: self.call.method.clone(),
            target: self.call.target.clone(),
            path_and_query: self.path.clone(),
            headers: self.call.headers.clone(),
            body: Body::full(self.body.clone()),
            upgrade: false,
            credential_choice: 0,
            tenant: None,
            leave: None,
            exchange: Arc::new(Exchange::new(Some(deadline))),
        })
    }
}

/// An attempt without a usable answer.
struct Missed {
    error: HttpError,
    /// It may be gone the next time.
    passes: bool,
    /// The peer saw nothing of the request.
    unsent: bool,
    /// How long the peer wants to be left alone.
    after: Option<Duration>,
}

impl Missed {
    fn for_good(error: HttpError) -> Self {
        Self { error, passes: false, unsent: false, after: None }
    }
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        // A certificate does not become valid, nor an address another one, within a second.
        let passes = !matches!(
            failure.fault,
            Fault::AddressDenied | Fault::OwnListener | Fault::TlsCertificate | Fault::Internal
        );
        let unsent = passes && failure.progress == Progress::NotSent;
        Self { error: HttpError::Failed(failure.fault), passes, unsent, after: None }
    }
}

/// The body, in memory that is wiped: when a vector grows by itself, a copy stays behind.
async fn read(body: Body) -> Result<SecretBytes, Missed> {
    let cut = || Missed { error: HttpError::Failed(Fault::Reset), passes: true, unsent: false, after: None };
    let length = body.exact_length().and_then(|length| usize::try_from(length).ok());
    if length.is_some_and(|length| length > MAX_BODY) {
        return Err(Missed::for_good(HttpError::TooLarge));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.unwrap_or(4096)));
    let mut body = std::pin::pin!(body);
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let Ok(mut data) = frame.map_err(|_| cut())?.into_data() else { continue };
        if bytes.len() + data.remaining() > MAX_BODY {
            return Err(Missed::for_good(HttpError::TooLarge));
        }
        if bytes.capacity() - bytes.len() < data.remaining() {
            let mut larger = Vec::with_capacity((bytes.len() + data.remaining()) * 2);
            larger.extend_from_slice(&bytes);
            bytes = Zeroizing::new(larger);
        }
        while data.has_remaining() {
            let piece = data.chunk();
            bytes.extend_from_slice(piece);
            let length = piece.len();
            data.advance(length);
        }
    }
    Ok(bytes)
}

/// Wait after `tried` tries. `random` is in 0..1.
fn backoff(tried: u32, random: f64) -> Duration {
    (BACKOFF * 2_u32.saturating_pow(tried.saturating_sub(1))).mul_f64(0.5 + random)
}

#[cfg(test)]
mod tests;
