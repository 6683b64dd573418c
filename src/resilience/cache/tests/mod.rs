//! The cache as a layer, on paused time: RFC 9111 by section (`rfc9111`), fields as peers really write them (`spelling`), and in
//! the other files what RFC 9111 leaves to us.

mod bounds;
mod coalescing;
mod failures;
mod keeping;
mod ownership;
mod renewal;
mod rfc9111;
mod spelling;
mod streaming;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{Service, service_fn};

use super::state::Clock;
use super::{Cache, CacheConfig, ResponseCache, RouteCache};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::resilience::key::KeySource;
use crate::resilience::mistake::Mistakes;
use crate::resilience::timeout::tests::request_with;
use crate::resilience::verdict::{Class, Verdict};

/// When every test begins.
pub(super) const BEGIN: &str = "Tue, 15 Nov 2022 12:00:00 GMT";

pub(super) type Lines<'a> = &'a [(&'a str, &'a str)];

pub(super) const FRESH: Lines<'static> = &[("cache-control", "max-age=60")];
pub(super) const SHORT: Lines<'static> = &[("cache-control", "max-age=10")];

pub(super) fn verdict(class: Class) -> Option<Verdict> {
    Some(Verdict { class, acted: class.acted(), wait: None })
}

pub(super) fn map(lines: Lines<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// What the provider does with one request.
pub(super) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    pub verdict: Option<Verdict>,
    pub after: Duration,
    pub fault: Option<Fault>,
    /// The reference of the credential that the attempt carried.
    pub credential: Option<&'static str>,
}

impl Reply {
    pub fn ok(lines: Lines<'_>, body: &'static str) -> Self {
        Self::with(200, lines, body)
    }

    pub fn with(status: u16, lines: Lines<'_>, body: &'static str) -> Self {
        Self {
            status,
            headers: map(lines),
            body: Body::full(body),
            verdict: None,
            after: Duration::ZERO,
            fault: None,
            credential: None,
        }
    }

    pub fn failing(fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::ok(&[], "") }
    }

    pub fn after(self, seconds: u64) -> Self {
        Self { after: Duration::from_secs(seconds), ..self }
    }

    pub fn streaming(self, body: Body) -> Self {
        Self { body, ..self }
    }
}

/// A request as the provider saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub method: Method,
    pub headers: HeaderMap,
}

/// A provider that plays a list of replies, and refuses connections when the list is at its end.
#[derive(Clone, Default)]
pub(super) struct Origin {
    replies: Arc<Mutex<VecDeque<Reply>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Origin {
    pub fn reply(&self, reply: Reply) {
        self.replies.lock().unwrap().push_back(reply);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn service(&self) -> BoxCloneSyncService<EgressRequest, Response<Body>, Failure> {
        let origin = self.clone();
        BoxCloneSyncService::new(service_fn(move |request: EgressRequest| {
            let origin = origin.clone();
            async move {
                let seen = Seen { method: request.method.clone(), headers: request.headers.clone() };
                origin.seen.lock().unwrap().push(seen);
                let reply = origin.replies.lock().unwrap().pop_front();
                let reply = reply.unwrap_or_else(|| Reply::failing(Fault::ConnectRefused));
                request.exchange.facts().credential = reply.credential.map(Into::into);
                tokio::time::sleep(reply.after).await;
                if let Some(fault) = reply.fault {
                    return Err(Failure::not_sent(fault));
                }
                let mut response = Response::new(reply.body);
                *response.status_mut() = StatusCode::from_u16(reply.status).unwrap();
                *response.headers_mut() = reply.headers;
                if let Some(verdict) = reply.verdict {
                    verdict.note(&mut response);
                }
                Ok(response)
            }
        }))
    }
}

/// What the app got.
#[derive(Debug)]
pub(super) struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Got {
    /// Our member of `Cache-Status`, without its name.
    pub fn note(&self) -> String {
        let last = self.headers.get_all("cache-status").iter().next_back().expect("no Cache-Status");
        last.to_str().unwrap().trim_start_matches("outgate; ").to_owned()
    }

    pub fn is_hit(&self) -> bool {
        self.note().starts_with("hit")
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A cache before a provider.
#[derive(Clone)]
pub(super) struct Rig {
    pub cache: Cache<BoxCloneSyncService<EgressRequest, Response<Body>, Failure>>,
    pub state: Arc<ResponseCache>,
    pub origin: Origin,
    pub version: Arc<AtomicU64>,
    pub available: Arc<AtomicBool>,
}

impl Rig {
    /// With the settings of a policy, as JSON.
    pub fn new(config: &str) -> Self {
        let config: CacheConfig = serde_json::from_str(config).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = config.compile(&mut mistakes);
        assert_eq!(mistakes.into_vec(), []);
        let clock = Clock::at(httpdate::parse_http_date(BEGIN).unwrap());
        let spawn = Arc::new(|task| drop(tokio::spawn(task)));
        let state = Arc::new(ResponseCache::with_clock(&settings, spawn, clock));
        let origin = Origin::default();
        let (version, available) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(true)));
        let (of_version, of_available) = (version.clone(), available.clone());
        let route = RouteCache {
            written: vec![HeaderName::from_static("x-region")],
            settings,
            source: KeySource { route: "r".into(), credential: ["env:A".into(), "env:B".into()].into() },
            version: Arc::new(move |_| of_version.load(Ordering::Relaxed)),
            available: Arc::new(move |_| of_available.load(Ordering::Relaxed)),
            renewals: None,
        };
        let cache = Cache::new(origin.service(), state.clone(), route);
        Self { cache, state, origin, version, available }
    }

    pub async fn call(&self, request: EgressRequest) -> Result<Response<Body>, Failure> {
        self.cache.clone().call(request).await
    }

    pub async fn send(&self, request: EgressRequest) -> Result<Got, Failure> {
        let (head, body) = self.call(request).await?.into_parts();
        let body = body.collect().await.expect("the body was cut").to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Ok(Got { status: head.status.as_u16(), headers: head.headers, body })
    }

    pub async fn ask(&self, method: Method, path: &str, lines: Lines<'_>) -> Got {
        self.send(request(method, path, lines)).await.unwrap()
    }

    pub async fn get(&self, lines: Lines<'_>) -> Got {
        self.ask(Method::GET, "/v1/items", lines).await
    }
}

pub(super) fn request(method: Method, path: &str, lines: Lines<'_>) -> EgressRequest {
    let mut request = request_with(Body::empty(), None);
    request.method = method;
    request.path_and_query = path.parse().unwrap();
    request.headers = map(lines);
    request
}

pub(super) fn get_until(deadline: Duration) -> EgressRequest {
    let mut request = request_with(Body::empty(), Some(Instant::now() + deadline));
    request.method = Method::GET;
    request.path_and_query = "/v1/items".parse().unwrap();
    request
}

pub(super) async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// A body fed by a test; an error cuts it.
pub(super) fn fed() -> (tokio::sync::mpsc::Sender<Bytes>, Body) {
    crate::resilience::timeout::tests::channel()
}

pub(super) fn date(seconds: i64) -> String {
    let begin = httpdate::parse_http_date(BEGIN).unwrap();
    let span = Duration::from_secs(seconds.unsigned_abs());
    let at: SystemTime = if seconds < 0 { begin - span } else { begin + span };
    httpdate::fmt_http_date(at)
}
