//! One request over one connection: the head as the protocol wants it, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use crate::message::body::Body;
use crate::message::failure::{Failure, Fault, Progress};
use crate::message::request::{EgressParts, EgressRequest, Exchange, Leave};
use crate::message::target::{Scheme, Target};
use crate::telemetry::HttpVersion;

use super::answer;
use super::connector::Purpose;
use super::error::{exchange_fault, is_late_refusal};
use super::pool::{Http1Lease, Http2Lease, Lease, Made, Origin};
use super::upload::{Broken, UploadBody};

/// How long making the connection took.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// The name.
    pub dns: Option<Duration>,
    /// TCP.
    pub connect: Duration,
    /// TLS.
    pub tls: Option<Duration>,
}

/// What came of a request on one connection.
#[allow(clippy::large_enum_variant, reason = "moved once, and never kept")]
pub enum Outcome {
    /// The head of an answer.
    Answered(Response<Body>),
    /// No answer.
    Failed(Failure),
    /// The pooled connection was closed before anything was written; the request is whole.
    Stale(Outgoing),
}

/// A request on its way, independent of the protocol that will carry it.
pub struct Outgoing {
    method: Method,
    headers: HeaderMap,
    body: UploadBody,
    route: Route,
}

/// What stays here while hyper has the request.
pub struct Route {
    /// Where it goes.
    pub target: Target,
    path: PathAndQuery,
    upgrade: bool,
    credential_choice: usize,
    tenant: Option<Arc<str>>,
    leave: Option<Leave>,
    /// What the layers tell one another about it.
    pub exchange: Arc<Exchange>,
}

impl Route {
    /// What kind of connection it needs.
    pub fn purpose(&self) -> Purpose {
        if self.upgrade { Purpose::Upgrade } else { Purpose::Ordinary }
    }
}

impl Outgoing {
    /// Takes a request apart.
    pub fn new(request: EgressRequest) -> Self {
        let EgressParts {
            method,
            target,
            path_and_query: path,
            mut headers,
            body,
            upgrade,
            credential_choice,
            tenant,
            leave,
            exchange,
        } = request.into_parts();
        let body = UploadBody::new(body, exchange.clone());
        frame(&mut headers, &body);
        let route = Route { target, path, upgrade, credential_choice, tenant, leave, exchange };
        Self { method, headers, body, route }
    }

    /// Puts it together again, to be handed back: nothing of it was sent.
    pub fn into_unsent(self) -> EgressRequest {
        let Self { method, headers, body, route } = self;
        let Route { target, path, upgrade, credential_choice, tenant, leave, exchange } = route;
        EgressRequest::from(EgressParts {
            method,
            target,
            path_and_query: path,
            headers,
            body: body.into_inner(),
            upgrade,
            credential_choice,
            tenant,
            leave,
            exchange,
        })
    }

    /// What stays here while it is sent.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Sends it over a connection.
    pub async fn over(self, lease: Lease, timings: Option<Timings>, scheme: Scheme) -> Outcome {
        match lease {
            Lease::Http1(lease) => self.over_http1(lease, timings).await,
            Lease::Http2(lease) => self.over_http2(lease, timings, scheme).await,
        }
    }

    async fn over_http1(self, mut lease: Http1Lease, timings: Option<Timings>) -> Outcome {
        let fresh = lease.fresh;
        let Some((origin, made, sender, written)) = lease.begin() else {
            return Outcome::Failed(Failure::not_sent(Fault::Internal));
        };
        note(&self.route.exchange, made, timings, HttpVersion::Http11);
        let (broken, empty) = (self.body.broken(), self.body.is_empty());
        let (request, route) = self.into_http1(origin);
        let handed = Handed::over(&route.exchange);
        let before = written.bytes();
        let answer = sender.try_send_request(request);
        if empty {
            route.exchange.upload().finished();
        }
        match answer.await {
            Ok(response) => answered(response, Lease::Http1(lease), &route, broken),
            Err(error) => {
                let sent = if written.bytes() == before { Progress::NotSent } else { Progress::Sent };
                failed(error, route, &broken, sent, (fresh, made), handed)
            }
        }
    }

    async fn over_http2(self, mut lease: Http2Lease, timings: Option<Timings>, scheme: Scheme) -> Outcome {
        let fresh = lease.fresh;
        let (origin, made, sender) = lease.begin();
        note(&self.route.exchange, made, timings, HttpVersion::Http2);
        let (broken, empty) = (self.body.broken(), self.body.is_empty());
        let (request, route) = match self.into_http2(origin, scheme) {
            Ok(whole) => whole,
            Err(error) => return Outcome::Failed(Failure::not_sent(Fault::Internal).because(error)),
        };
        let handed = Handed::over(&route.exchange);
        let answer = sender.try_send_request(request);
        if empty {
            route.exchange.upload().finished();
        }
        match answer.await {
            Ok(response) => answered(response, Lease::Http2(lease), &route, broken),
            Err(error) => {
                let outcome = failed(error, route, &broken, Progress::Sent, (fresh, made), handed);
                match &outcome {
                    // Closed, going away, or refusing: the next request gets another connection.
                    Outcome::Stale(_) => lease.retire(),
                    Outcome::Failed(failure) if failure.progress == Progress::NotSent => lease.retire(),
                    Outcome::Failed(_) | Outcome::Answered(_) => {}
                }
                outcome
            }
        }
    }

    /// Origin form, with `Host`.
    fn into_http1(mut self, origin: &Origin) -> (Request<UploadBody>, Route) {
        join_cookies(&mut self.headers);
        self.headers.insert(HOST, origin.host_header.clone());
        if self.route.upgrade {
            self.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            self.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        } else if self.headers.contains_key(TE) {
            // RFC 9110 section 10.1.4.
            self.headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        if http_body::Body::size_hint(&self.body).exact().is_none() {
            // hyper would send GET and HEAD without their body otherwise.
            self.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let uri = Uri::from(self.route.path.clone());
        self.into_request(uri, Version::HTTP_11)
    }

    /// Absolute, which hyper turns into pseudo-header fields.
    fn into_http2(
        mut self,
        origin: &Origin,
        scheme: Scheme,
    ) -> Result<(Request<UploadBody>, Route), http::uri::InvalidUriParts> {
        for name in [HOST, CONNECTION, UPGRADE, TRANSFER_ENCODING] {
            self.headers.remove(name);
        }
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(match scheme {
            Scheme::Http => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
        });
        parts.authority = Some(origin.authority.clone());
        parts.path_and_query = Some(self.route.path.clone());
        let uri = Uri::from_parts(parts)?;
        Ok(self.into_request(uri, Version::HTTP_2))
    }

    fn into_request(self, uri: Uri, version: Version) -> (Request<UploadBody>, Route) {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = self.headers;
        (request, self.route)
    }

    fn recovered(request: Request<UploadBody>, route: Route) -> Self {
        let (parts, body) = request.into_parts();
        let mut headers = parts.headers;
        for name in [HOST, CONNECTION, UPGRADE, TRANSFER_ENCODING] {
            headers.remove(name);
        }
        Self { method: parts.method, headers, body, route }
    }
}

/// HTTP/2 may cut cookies into several fields; HTTP/1.1 knows one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

/// The length is stated by the body alone; a field that says something else would be trusted by hyper.
fn frame(headers: &mut HeaderMap, body: &UploadBody) {
    let Some(stated) = headers.get(CONTENT_LENGTH) else { return };
    let stated = stated.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    match http_body::Body::size_hint(body).exact() {
        Some(length) if stated == Some(length) => {}
        Some(length) => {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        None => {
            headers.remove(CONTENT_LENGTH);
        }
    }
}

fn note(exchange: &Exchange, made: Made, timings: Option<Timings>, protocol: HttpVersion) {
    let mut facts = exchange.facts();
    facts.dns = timings.and_then(|timings| timings.dns);
    facts.connect = timings.map(|timings| timings.connect);
    facts.tls = timings.and_then(|timings| timings.tls);
    facts.peer = Some(made.peer);
    facts.reused = Some(timings.is_none());
    facts.upstream_version = Some(protocol);
    if facts.prepared.is_none() {
        // The certificate is all that it carries.
        facts.credential_stamp = made.version;
    }
}

fn answered(response: Response<Incoming>, lease: Lease, route: &Route, broken: Broken) -> Outcome {
    let upload = route.exchange.upload();
    if upload.is_complete() {
        route.exchange.facts().first_byte = Some(upload.last_taken().elapsed());
    }
    match answer::receive(response, lease, route.upgrade, broken) {
        Ok(response) => Outcome::Answered(response),
        Err(failure) => Outcome::Failed(failure),
    }
}

fn failed(
    mut error: TrySendError<Request<UploadBody>>,
    route: Route,
    broken: &Broken,
    sent: Progress,
    (fresh, made): (bool, Made),
    handed: Handed,
) -> Outcome {
    let request = error.take_message();
    let error = error.into_error();
    let mut failure = match &request {
        Some(_) => exchange_fault(error, Progress::NotSent),
        None if fresh && made.version > 0 && is_late_refusal(&error) => {
            Failure::not_sent(Fault::TlsAlert).because(error)
        }
        None => exchange_fault(error, sent),
    };
    if failure.progress == Progress::NotSent {
        handed.back(&route.exchange);
    }
    if let Some(fault) = broken.fault() {
        failure.fault = fault;
    }
    match request {
        Some(request) if !fresh => Outcome::Stale(Outgoing::recovered(request, route)),
        Some(_) | None => Outcome::Failed(failure),
    }
}

/// Tells the exchange that the request is with a connection. What an earlier attempt may have done stays true when this
/// one comes back.
struct Handed {
    already: bool,
}

impl Handed {
    fn over(exchange: &Exchange) -> Self {
        let already = exchange.may_have_acted();
        exchange.handed_over();
        Self { already }
    }

    fn back(self, exchange: &Exchange) {
        if !self.already {
            exchange.taken_back();
        }
    }
}
