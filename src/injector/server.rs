//! The webhook as a process: two listeners, and an end in good order.
//!
//! | listener | what |
//! | --- | --- |
//! | `--listen`, TLS, HTTP/1.1 and HTTP/2 | `POST /mutate` |
//! | `--health`, plain HTTP/1.1 | `/healthz`, `/readyz`, `/metrics` |
//!
//! At the end it is no longer ready but serves on, until the Service has heard of that; then it takes no new connections, and what runs
//! finishes.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Webhook, text};
use super::live::{Files, Live, LiveError};
use super::metrics::Metrics;
use super::peer::{Peer, Peers};
use super::place::{Place, Places};
use crate::message::body::Body;

/// Connections at a time, of all addresses; for one more a silent one is closed. Of one address there are at most
/// [`peer::CONNECTIONS`](super::peer).
const CONNECTIONS: usize = 512;
/// The same, of scrapers and probes. Who holds them all must not keep the kubelet from asking whether this process lives.
const HEALTH_CONNECTIONS: usize = 32;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection of HTTP/1.1 waits for a whole head, between requests too.
const HEAD: Duration = Duration::from_secs(30);
/// How long a connection may take for its first request, its head included. The API server connects because it has one.
const FIRST: Duration = Duration::from_secs(5);
/// How long it may be without one after that.
const IDLE: Duration = Duration::from_secs(120);
/// How often a silent connection of HTTP/2 is asked whether it lives, and how long it may be silent then.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// A connection is closed after this long, in good order: so after a roll-out the API server finds the new pods.
const AGE: Duration = Duration::from_secs(600);
/// How long running requests may take at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// The same for a connection without one: time for a word of goodbye.
const FIRST_END: Duration = Duration::from_millis(100);

/// What the injector is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address of the webhook.
    pub listen: SocketAddr,
    /// Address of health and metrics.
    pub health: SocketAddr,
    /// Certificate, key and template.
    pub files: Files,
    /// How long it serves on when it is told to end.
    pub linger: Duration,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file.
    #[error(transparent)]
    Files(#[from] LiveError),
    /// An address.
    #[error("{address} cannot be listened on: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A running injector.
pub struct Injector {
    /// Address of the webhook.
    pub listen: SocketAddr,
    /// Address of health and metrics.
    pub health: SocketAddr,
    linger: Duration,
    ready: Arc<AtomicBool>,
    tasks: TaskTracker,
    drain: CancellationToken,
    background: CancellationToken,
}

impl Injector {
    /// Reads the files, binds both addresses, and serves.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new());
        let live = Arc::new(Live::read(settings.files, metrics.clone())?);
        let (listener, listen) = bind(settings.listen).await?;
        let (health_listener, health) = bind(settings.health).await?;
        let ready = Arc::new(AtomicBool::new(true));
        let (drain, background) = (CancellationToken::new(), CancellationToken::new());
        let (tasks, aside) = (TaskTracker::new(), TaskTracker::new());
        let webhook = Arc::new(Webhook::new(live.clone(), metrics.clone()));
        tasks.spawn(serve(listener, live.clone(), webhook, tasks.clone(), drain.clone()));
        aside.spawn(live.watch(background.clone()));
        let health_state = Arc::new(Health { ready: ready.clone(), metrics });
        aside.spawn(serve_health(health_listener, health_state, aside.clone(), background.clone()));
        Ok(Self { listen, health, linger: settings.linger, ready, tasks, drain, background })
    }

    /// Ends: no longer ready, serving on for a while, then finishing what runs. Returns whether all of it finished by itself.
    pub async fn shutdown(&self) -> bool {
        self.ready.store(false, Ordering::Release);
        tokio::time::sleep(self.linger).await;
        self.drain.cancel();
        self.tasks.close();
        let finished = tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_ok();
        self.background.cancel();
        finished
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// The next connection; errors of accepting (no descriptors, mostly) pass by themselves.
async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => return (stream, address.ip()),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(
    listener: TcpListener,
    live: Arc<Live>,
    webhook: Arc<Webhook>,
    tasks: TaskTracker,
    drain: CancellationToken,
) {
    let places = Places::new(CONNECTIONS);
    let peers = Peers::default();
    loop {
        let (stream, address) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = drain.cancelled() => return,
        };
        let Some((peer, share)) = peers.admit(address) else {
            tracing::debug!(%address, "an address has too many connections");
            continue;
        };
        let place = tokio::select! {
            place = places.take(address) => place,
            () = drain.cancelled() => return,
        };
        let Some(place) = place else { return };
        let acceptor = TlsAcceptor::from(live.tls());
        let (webhook, drain) = (webhook.clone(), drain.clone());
        tasks.spawn(async move {
            let place = Arc::new(place);
            let _ = stream.set_nodelay(true);
            let handshake = tokio::select! {
                handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => handshake,
                () = place.wanted() => return,
                () = drain.cancelled() => return,
            };
            match handshake {
                Ok(Ok(stream)) => {
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    connection(stream, h2, webhook, peer, place, drain).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                Err(_) => tracing::debug!("a handshake took too long"),
            }
            drop(share);
        });
    }
}

/// One connection of the API server, up to its end, its age or the drain, or until its place is wanted for another.
async fn connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    h2: bool,
    webhook: Arc<Webhook>,
    peer: Arc<Peer>,
    place: Arc<Place>,
    drain: CancellationToken,
) {
    let requests = Arc::new(AtomicU64::new(0));
    let (counted, of_requests) = (requests.clone(), place.clone());
    let service = service_fn(move |request| {
        let (webhook, peer, running) = (webhook.clone(), peer.clone(), of_requests.runs());
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let answer = webhook.answer(request, &peer).await;
            drop(running);
            Ok::<_, Infallible>(answer)
        }
    });
    let over = async {
        let drained = tokio::select! {
            () = drain.cancelled() => true,
            () = silent(&requests) => true,
            () = tokio::time::sleep(AGE) => true,
            () = place.wanted() => false,
        };
        match requests.load(Ordering::Relaxed) {
            // Nobody is there to hear a goodbye, and somebody waits for the place.
            0 if !drained => Duration::ZERO,
            0 => FIRST_END,
            _ if !drained => FIRST_END,
            _ => DRAIN,
        }
    };
    let io = TokioIo::new(io);
    // The same twice, because the two kinds of connections have no trait in common.
    if h2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING.0).keep_alive_timeout(PING.1);
        builder.max_concurrent_streams(64).max_header_list_size(16 * 1024);
        builder.initial_stream_window_size(64 * 1024).initial_connection_window_size(64 * 1024);
        let mut connection = pin!(builder.serve_connection(io, service));
        tokio::select! {
            _ = connection.as_mut() => {}
            time = over => {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(time, connection).await;
            }
        }
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_headers(100);
        let mut connection = pin!(builder.serve_connection(io, service));
        tokio::select! {
            _ = connection.as_mut() => {}
            time = over => {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(time, connection).await;
            }
        }
    }
}

/// Ends when a connection has had no request for too long. A request takes less than [`IDLE`], so none runs then.
async fn silent(requests: &AtomicU64) {
    tokio::time::sleep(FIRST).await;
    let mut before = 0;
    loop {
        let now = requests.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
        tokio::time::sleep(IDLE).await;
    }
}

/// What the second listener tells.
struct Health {
    ready: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Health {
    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.ready.load(Ordering::Acquire) => text(StatusCode::OK, "ready\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: it is ending\n"),
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics.encode());
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(Metrics::CONTENT_TYPE));
                response
            }
            _ => text(StatusCode::NOT_FOUND, "not found; try /metrics, /healthz, /readyz\n"),
        }
    }
}

async fn serve_health(
    listener: TcpListener,
    health: Arc<Health>,
    tasks: TaskTracker,
    cancel: CancellationToken,
) {
    let places = Places::new(HEALTH_CONNECTIONS);
    loop {
        let (stream, address) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = cancel.cancelled() => return,
        };
        let Some(place) = places.take(address).await else { return };
        let (health, cancel) = (health.clone(), cancel.clone());
        tasks.spawn(async move {
            let service = service_fn(move |request| {
                let answer = health.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_headers(100);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                () = place.wanted() => {}
                () = cancel.cancelled() => {}
            }
        });
    }
}
