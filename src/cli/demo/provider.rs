//! The API behind outgate: HTTP/1.1 and HTTP/2 over TLS, on loopback. It knows the real key, answers 401 without it, and
//! echoes what it got, with every credential masked. At one host it has moods: see [`super::moods`].

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::moods::{IDEMPOTENCY_KEY, Moods, Reply, SHOP_HOST};
use super::{DemoError, spawn};

/// The host whose requests want the real key.
pub const API_HOST: &str = "api.demo.example";
/// The host that is reached through a blind tunnel, with a key of the app's own.
pub const BLIND_HOST: &str = "blind.demo.example";
/// The path whose answer repeats the key, as careless debug endpoints do.
pub const CARELESS_PATH: &str = "/debug";

/// Requests that are remembered until somebody looks.
const REMEMBERED: usize = 64;

/// One request, as the provider saw it. No `Debug`: it holds the credential.
pub struct Seen {
    /// Method, path and version.
    pub request_line: String,
    /// Its fields; the credential's value is masked.
    pub fields: Vec<String>,
    /// `Authorization` as it came, to be compared and never to be printed.
    pub authorization: Vec<u8>,
    /// Whether it bore the real key.
    pub real_key: bool,
    /// `Idempotency-Key`, where there was one.
    pub idempotency_key: Option<String>,
    /// When it came.
    pub at: Instant,
    /// What came of it, where the provider was in a mood.
    pub mood: Option<String>,
}

/// The provider does not answer.
#[derive(Debug, thiserror::Error)]
#[error("the provider breaks off")]
struct BreaksOff;

/// The running provider.
pub struct Provider {
    /// Where it listens.
    pub address: SocketAddr,
    log: Arc<Log>,
}

struct Log {
    key: String,
    seen: Mutex<VecDeque<Seen>>,
    connections: AtomicUsize,
    moods: Moods,
}

impl Provider {
    /// Listens on a port of loopback, and serves until the process ends.
    pub async fn start(mut tls: ServerConfig, key: String) -> Result<Self, DemoError> {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(DemoError::io("provider"))?;
        let address = listener.local_addr().map_err(DemoError::io("provider"))?;
        let (seen, connections, moods) = (Mutex::default(), AtomicUsize::new(0), Moods::default());
        let log = Arc::new(Log { key, seen, connections, moods });
        spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), log.clone()));
        Ok(Self { address, log })
    }

    /// The requests since the last call, the oldest first.
    pub fn take_seen(&self) -> Vec<Seen> {
        self.log.seen.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.log.connections.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, log: Arc<Log>) {
    while let Ok((stream, _)) = listener.accept().await {
        log.connections.fetch_add(1, Ordering::Relaxed);
        spawn(serve(stream, tls.clone(), log.clone()));
    }
}

/// Serves one connection; what breaks it is seen by whoever is at its other end.
async fn serve(stream: TcpStream, tls: TlsAcceptor, log: Arc<Log>) {
    // Small frames are not held back until the last ones are acknowledged: that would cost 40 ms.
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else { return };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let service = service_fn(move |request| answer(log.clone(), request));
    let _ = if http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
    };
}

async fn answer(log: Arc<Log>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, BreaksOff> {
    let (parts, mut body) = request.into_parts();
    while let Some(Ok(_)) = body.frame().await {}
    let given = parts.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let real_key = given.strip_prefix(b"Bearer ") == Some(log.key.as_bytes());
    let host = host(&parts);
    let key = parts.headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok());
    // Who has no key does not change its mood.
    let reply = (host == SHOP_HOST && real_key).then(|| log.moods.reply(parts.uri.path(), key)).flatten();
    log.remember(Seen {
        request_line: format!("{} {} {}", parts.method, parts.uri.path(), version(parts.version)),
        fields: fields(&parts.headers, &host, real_key),
        authorization: given.to_vec(),
        real_key,
        idempotency_key: key.map(str::to_owned),
        at: Instant::now(),
        mood: reply.as_ref().map(Reply::summary),
    });
    if let Some(reply) = reply {
        return moody(reply).await;
    }
    if matches!(&*host, API_HOST | SHOP_HOST) && !real_key {
        return Ok(respond(StatusCode::UNAUTHORIZED, &json!({ "error": "this key opens nothing here" })));
    }
    if parts.uri.path() == CARELESS_PATH {
        return Ok(careless(given));
    }
    let echo = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "host": host,
        "authorization": masked(given, real_key),
    });
    Ok(respond(StatusCode::OK, &echo))
}

async fn moody(reply: Reply) -> Result<Response<Full<Bytes>>, BreaksOff> {
    match reply {
        Reply::BreaksOff { .. } => Err(BreaksOff),
        Reply::Answer { status, field, body, after } => {
            tokio::time::sleep(after).await;
            let mut response = respond(status, &body);
            if let Some((name, value)) = field {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            Ok(response)
        }
    }
}

impl Log {
    fn remember(&self, request: Seen) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() == REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(request);
    }
}

/// The key as it came, in a field and in the body.
fn careless(given: &[u8]) -> Response<Full<Bytes>> {
    let text = String::from_utf8_lossy(given);
    let mut response = respond(StatusCode::OK, &json!({ "you_sent": { "authorization": text } }));
    if let Ok(value) = HeaderValue::from_bytes(given) {
        response.headers_mut().insert("x-debug-authorization", value);
    }
    response
}

fn respond(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// HTTP/2 has no `Host` field as a rule, but `:authority`.
fn host(parts: &Parts) -> String {
    let field =
        || parts.headers.get(HOST).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    parts.uri.authority().map(|authority| authority.as_str().to_owned()).or_else(field).unwrap_or_default()
}

fn fields(headers: &HeaderMap, host: &str, real_key: bool) -> Vec<String> {
    let of_value = |name: &http::HeaderName, value: &HeaderValue| match *name {
        AUTHORIZATION => masked(value.as_bytes(), real_key),
        _ => String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    let (mut first, mut others) = (vec![format!("host: {host}")], Vec::new());
    for (name, value) in headers.iter().filter(|(name, _)| *name != HOST) {
        let field = format!("{name}: {}", of_value(name, value));
        // What this is all about stands at the top.
        if *name == AUTHORIZATION { first.push(field) } else { others.push(field) }
    }
    first.append(&mut others);
    first
}

/// Says of a credential what may be said: its scheme, its length, and whether it is the real one.
fn masked(value: &[u8], real_key: bool) -> String {
    let text = String::from_utf8_lossy(value);
    let Some((scheme, key)) = text.split_once(' ') else { return "none".to_owned() };
    let what = if real_key { "the real key" } else { "not the real key" };
    format!("{scheme} ****** ({} bytes, {what})", key.len())
}

/// As it stands in a request line.
pub fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_credential_is_shown() {
        let cases = [
            (&b"Bearer abcdef"[..], true, "Bearer ****** (6 bytes, the real key)"),
            (b"Bearer abcd", false, "Bearer ****** (4 bytes, not the real key)"),
            (b"abcdef", false, "none"),
            (b"", false, "none"),
        ];
        for (value, real, expected) in cases {
            assert_eq!(masked(value, real), expected);
        }
    }
}
