//! The admin listener: metrics, health, status, reload and breakers by hand. Apart from the data listeners, and without a route that returns a
//! secret.
//!
//! | path | what | who |
//! | --- | --- | --- |
//! | `/healthz` | the process lives; depends on no store and no provider | everyone |
//! | `/readyz` | listeners bound, policy loaded, bundle written, secrets tried | everyone |
//! | `/metrics` | OpenMetrics text | everyone |
//! | `/status` | providers, generation, secret references with version and age, pools (JSON) | loopback, or the token |
//! | `/` | the same as a page of links | loopback, or the token |
//! | `POST /reload` | reads the policy file again | loopback, or the token |
//! | `POST /quit` | drains and ends the process | unix socket, or the token; loopback where `admin.quit` says so |
//! | `POST /breakers/<provider>/open`, `closed`, `auto` | forces a provider's circuit breakers | unix socket, or the token |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use crate::message::body::Body;
use crate::message::target::Authority;
use crate::pipeline::reload::{ReloadOutcome, Reloader};
use crate::pipeline::shared::Shared;
use crate::proxy::context::TokenCheck;
use crate::proxy::respond::PROXY_STATUS;
use crate::proxy::socket::SocketTimeouts;
use crate::resilience::circuit_breaker::Forced;
use crate::telemetry::Metrics;
use crate::tls::leaf_cache::LeafCache;

pub mod status;

/// What the admin listener needs.
pub struct Admin {
    /// Shared state, for status.
    pub shared: Arc<Shared>,
    /// For POST /reload.
    pub reloader: Arc<Reloader>,
    /// Leaves, for status.
    pub leaves: Arc<LeafCache>,
    /// Whether outgate is ready.
    pub ready: Arc<std::sync::atomic::AtomicBool>,
    /// Every secret was tried once.
    pub settled: std::sync::atomic::AtomicBool,
    /// The token, where one is configured.
    pub token: Option<TokenCheck>,
    /// `POST /quit` is for everyone on loopback.
    pub free_to_quit: bool,
    /// Cancelled by `POST /quit`.
    pub quit: CancellationToken,
}

impl Admin {
    /// At the start every secret has to be tried; later a reload that brings a slow one must not take readiness away, and
    /// only those that are `required` count.
    fn secrets_are_there(&self) -> bool {
        if !self.settled.load(Ordering::Relaxed) {
            let ready = self.shared.secrets.ready();
            self.settled.store(ready, Ordering::Relaxed);
            return ready;
        }
        self.shared.secrets.status().iter().all(|secret| !secret.required || secret.version.is_some())
    }
}

/// How one admin socket was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A unix socket, whose file says who may open it.
    Socket,
    /// Loopback: the app may be there too.
    Near,
    /// Any other address.
    Far,
    /// Health and metrics only, whoever asks.
    HealthOnly,
}

/// Admin clients are scrapers, probes and people.
const TIMEOUTS: SocketTimeouts = SocketTimeouts {
    header: std::time::Duration::from_secs(5),
    idle: std::time::Duration::from_secs(120),
    write: std::time::Duration::from_secs(10),
};

/// Connections of the admin listener at a time; more wait in the backlog.
const CONNECTIONS: usize = 64;

/// Serves admin requests until cancelled.
#[expect(
    clippy::disallowed_methods,
    reason = "admin connections end with the listener's cancellation; draining does not wait for scrapers"
)]
pub async fn run(
    listener: crate::proxy::listener::Listener,
    admin: Arc<Admin>,
    health_only: bool,
    cancel: CancellationToken,
) {
    let permits = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept_raw(TIMEOUTS) => accepted,
            () = cancel.cancelled() => return,
        };
        let (io, reach) = match accepted {
            Ok((io, address)) => (io, reach(address, health_only)),
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let (admin, cancel) = (admin.clone(), cancel.clone());
        tokio::spawn(async move {
            let activity = io.activity();
            let service = service_fn(move |request| {
                let (admin, active) = (admin.clone(), activity.begin());
                async move {
                    let response = serve(&admin, reach, request).await;
                    drop(active);
                    Ok::<_, Infallible>(response)
                }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(None).max_headers(100);
            let connection = builder.serve_connection(TokioIo::new(io), service);
            tokio::select! {
                _ = connection => {}
                () = cancel.cancelled() => {}
            }
            drop(permit);
        });
    }
}

fn reach(own: Option<SocketAddr>, health_only: bool) -> Reach {
    match own {
        _ if health_only => Reach::HealthOnly,
        None => Reach::Socket,
        Some(address) if address.ip().to_canonical().is_loopback() => Reach::Near,
        Some(_) => Reach::Far,
    }
}

async fn serve(admin: &Admin, reach: Reach, request: Request<Incoming>) -> Response<Body> {
    if let Err(status) = permit(admin, reach, &request) {
        return refused(status);
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => text(StatusCode::OK, "ok\n"),
        (&Method::GET | &Method::HEAD, "/readyz") => readiness(admin),
        (&Method::GET, "/metrics") => metrics(&admin.shared.telemetry.metrics),
        (&Method::GET, "/status") => json(StatusCode::OK, &status::status(admin)),
        (&Method::GET, "/") => page(),
        (&Method::POST, "/reload") => reload(admin).await,
        (&Method::POST, "/quit") => {
            tracing::info!("asked to end by POST /quit");
            admin.quit.cancel();
            text(StatusCode::ACCEPTED, "draining\n")
        }
        (&Method::POST, path) if path.starts_with(BREAKERS) => force_breaker(admin, &path[BREAKERS.len()..]),
        (_, "/healthz" | "/readyz" | "/metrics" | "/status" | "/" | "/reload" | "/quit") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")
        }
        _ => text(StatusCode::NOT_FOUND, "not found; try /status, /metrics, /healthz, /readyz\n"),
    }
}

fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// Names are checked against DNS rebinding, sites against web pages, and the token where one is needed.
fn permit(admin: &Admin, reach: Reach, request: &Request<Incoming>) -> Result<(), StatusCode> {
    let path = request.uri().path();
    if is_open(path) {
        return Ok(());
    }
    if reach == Reach::HealthOnly {
        return Err(StatusCode::NOT_FOUND);
    }
    let has_token = carries_token(admin, request);
    if reach == Reach::Far && !has_token {
        return Err(StatusCode::UNAUTHORIZED);
    }
    if matches!(reach, Reach::Near | Reach::Socket) && !names_loopback(request) {
        return Err(StatusCode::MISDIRECTED_REQUEST);
    }
    if from_another_site(request) {
        return Err(StatusCode::FORBIDDEN);
    }
    // The app shares the loopback; what it may see there is decided by the token, where there is one. Reading the same file
    // again changes nothing that the file does not say.
    let free = path == "/reload" || (path == "/quit" && admin.free_to_quit);
    if admin.token.is_some() && !has_token && !free {
        return Err(StatusCode::UNAUTHORIZED);
    }
    // What changes more than that needs the token, or a socket that the app cannot open.
    if (path.starts_with(BREAKERS) || path == "/quit") && !free && !has_token && reach != Reach::Socket {
        return Err(StatusCode::UNAUTHORIZED);
    }
    Ok(())
}

fn carries_token(admin: &Admin, request: &Request<Incoming>) -> bool {
    let Some(check) = &admin.token else { return false };
    let value = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    value.len() > 7 && value[..7].eq_ignore_ascii_case(b"bearer ") && check(value[7..].trim_ascii())
}

fn names_loopback(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(HOST).and_then(|host| host.to_str().ok()) else {
        return request.version() == http::Version::HTTP_10;
    };
    Authority::parse(host).is_ok_and(|authority| match authority.host.ip() {
        Some(ip) => ip.to_canonical().is_loopback(),
        None => authority.host.as_str() == "localhost",
    })
}

fn from_another_site(request: &Request<Incoming>) -> bool {
    const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    match request.headers().get(SEC_FETCH_SITE) {
        Some(site) => site != "same-origin" && site != "none",
        None => request.headers().contains_key(ORIGIN),
    }
}

fn readiness(admin: &Admin) -> Response<Body> {
    if admin.ready.load(Ordering::Acquire) && admin.secrets_are_there() {
        return text(StatusCode::OK, "ready\n");
    }
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        "not ready: a secret that is `required` has not been read, or outgate is stopping\n",
    )
}

fn metrics(metrics: &Metrics) -> Response<Body> {
    let mut response = text(StatusCode::OK, metrics.encode());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(Metrics::CONTENT_TYPE));
    response
}

async fn reload(admin: &Admin) -> Response<Body> {
    let (status, body) = match admin.reloader.reload().await {
        ReloadOutcome::Applied(generation) => {
            (StatusCode::OK, serde_json::json!({ "result": "applied", "generation": generation }))
        }
        ReloadOutcome::Unchanged => {
            let generation = admin.reloader.current().load().number;
            (StatusCode::OK, serde_json::json!({ "result": "unchanged", "generation": generation }))
        }
        ReloadOutcome::Refused(error) => {
            let generation = admin.reloader.current().load().number;
            let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
            (
                StatusCode::UNPROCESSABLE_ENTITY,
                serde_json::json!({ "result": "refused", "generation": generation, "mistakes": lines }),
            )
        }
    };
    json(status, &body)
}

/// `POST /breakers/<provider>/open | closed | auto`: forces the breakers of a provider, or lets them decide again.
const BREAKERS: &str = "/breakers/";

fn force_breaker(admin: &Admin, rest: &str) -> Response<Body> {
    let (provider, forced) = match rest.split_once('/') {
        Some((provider, "open")) => (provider, Some(Forced::Open)),
        Some((provider, "closed")) => (provider, Some(Forced::Closed)),
        Some((provider, "auto")) => (provider, None),
        Some(_) | None => {
            return text(StatusCode::NOT_FOUND, "expected /breakers/<provider>/open, closed or auto\n");
        }
    };
    if admin.shared.layers.force_breakers(provider, forced) == 0 {
        return text(StatusCode::NOT_FOUND, "no provider of this name has a breaker\n");
    }
    json(StatusCode::OK, &serde_json::json!({ "provider": provider, "forced": forced.map(Forced::as_str) }))
}

fn page() -> Response<Body> {
    let mut response = text(StatusCode::OK, include_str!("page.html"));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    headers.insert(http::header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

fn refused(status: StatusCode) -> Response<Body> {
    let reason = match status {
        StatusCode::UNAUTHORIZED => "this wants the admin token: `Authorization: Bearer ...`\n",
        StatusCode::MISDIRECTED_REQUEST => "the admin listener does not answer to this name\n",
        StatusCode::FORBIDDEN => "the admin listener takes no requests from web pages\n",
        _ => "not found\n",
    };
    let mut response = text(status, reason);
    let because = HeaderValue::from_static("outgate; error=http_request_error; details=\"denied\"");
    response.headers_mut().insert(PROXY_STATUS, because);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn text(status: StatusCode, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = text(status, format!("{value:#}\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
