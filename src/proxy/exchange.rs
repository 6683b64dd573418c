//! One request and its answer: judged, cleaned, sent through its route's stack, and handed back.
//!
//! Every door ends here. The generation is taken once; the record that was opened by `dispatch` goes along and ends with the
//! answer's body.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE, VIA};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::context::{ConnectionContext, Proxy};
use super::download::Download;
use super::links::LocalForm;
use super::respond::{respond, sent, stamp};
use super::socket::ActivityGuard;
use super::upgrade::{self, WEBSOCKET};
use super::upload::upload;
use crate::message::body::Body;
use crate::message::headers::{OUTGATE_TIMEOUT, clean_request, clean_response, wants_websocket};
use crate::message::record::Record;
use crate::message::request::{EgressRequest, Exchange};
use crate::pipeline::error::EgressError;
use crate::pipeline::generation::Admission;
use crate::telemetry::TraceParent;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A request that a door has judged.
pub struct Judged {
    /// Where it goes, and through which stack.
    pub admission: Admission,
    /// Path and query as they go to the provider.
    pub path_and_query: PathAndQuery,
    /// At the local endpoint: how to write the provider's own links.
    pub local: Option<LocalForm>,
}

/// Sends a judged request and makes the answer.
pub async fn exchange(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    parts: Parts,
    incoming: Incoming,
    judged: Judged,
    mut record: Record,
    active: ActivityGuard,
) -> Response<Body> {
    let head =
        Head { method: parts.method.clone(), version: parts.version, host: parts.headers.get(HOST).cloned() };
    match attempt(proxy, parts, incoming, &judged, &mut record).await {
        Ok((response, client)) => answer(proxy, context, response, client, &head, judged, record, active),
        Err(error) => refuse(proxy, context, &error, &head.method, record, active),
    }
}

/// What the answer needs to know of the request's head.
struct Head {
    method: Method,
    version: http::Version,
    host: Option<HeaderValue>,
}

async fn attempt(
    proxy: &Arc<Proxy>,
    mut parts: Parts,
    incoming: Incoming,
    judged: &Judged,
    record: &mut Record,
) -> Result<(Response<Body>, Option<OnUpgrade>), EgressError> {
    let route = &judged.admission.route;
    record.routed(&route.provider, &route.name, &route.metrics);
    check_length(&parts.headers, route.max_body)?;
    let deadline = deadline(&parts.headers, route.deadline)?;
    let websocket = wants_websocket(&parts.method, parts.version, &parts.headers);
    let client = if websocket { parts.extensions.remove::<OnUpgrade>() } else { None };

    clean_request(&mut parts.headers);
    let path_and_query = route.prepare(&mut parts.headers, judged.path_and_query.clone());
    parts.headers.append(VIA, proxy.pseudonym.member(parts.version));
    trace(&mut parts.headers, record);
    parts.headers.remove(HOST);
    if websocket {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    }

    let exchange = Arc::new(Exchange::new(Some(record.started() + deadline)));
    record.follow(exchange.clone());
    let body = upload(incoming, exchange.clone(), route.clone(), proxy.bounds.body);
    let request = EgressRequest {
        method: parts.method,
        target: judged.admission.target.clone(),
        path_and_query,
        headers: parts.headers,
        body,
        upgrade: websocket,
        credential_choice: 0,
        exchange,
    };
    let response = route.send(request).await?;
    Ok((response, client))
}

/// An announced body that is too long is refused before a byte of it is read.
fn check_length(headers: &HeaderMap, bound: Option<u64>) -> Result<(), EgressError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match (announced, bound) {
        (Some(length), Some(bound)) if length > bound => Err(EgressError::PayloadTooLarge),
        _ => Ok(()),
    }
}

/// The route's deadline, or a shorter one that the app asked for.
fn deadline(headers: &HeaderMap, own: Duration) -> Result<Duration, EgressError> {
    let mut deadline = own;
    if let Some(value) = headers.get(OUTGATE_TIMEOUT) {
        let wanted = value
            .to_str()
            .ok()
            .and_then(|text| humantime::parse_duration(text).ok())
            .filter(|d| !d.is_zero());
        let Some(wanted) = wanted else {
            return Err(EgressError::BadRequest("Outgate-Timeout is not a duration such as `3s` or `250ms`"));
        };
        deadline = deadline.min(wanted);
    }
    if let Some(wanted) = headers.get(GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.as_bytes())) {
        deadline = deadline.min(wanted);
    }
    Ok(deadline)
}

/// `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, section Requests).
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Passes the trace on, or begins one.
fn trace(headers: &mut HeaderMap, record: &mut Record) {
    let known = headers.get(TRACEPARENT).and_then(|value| TraceParent::parse(value.as_bytes()));
    let parent = known.unwrap_or_else(|| {
        let made = TraceParent::new_root(false);
        if let Ok(value) = HeaderValue::from_str(made.text().as_str()) {
            headers.insert(TRACEPARENT, value);
        }
        made
    });
    record.event.trace_id = Some(parent.trace_id());
}

#[expect(
    clippy::too_many_arguments,
    reason = "the answer is where everything of an exchange comes together, once"
)]
fn answer(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    mut response: Response<Body>,
    client: Option<OnUpgrade>,
    head: &Head,
    judged: Judged,
    mut record: Record,
    active: ActivityGuard,
) -> Response<Body> {
    let version = response.version();
    clean_response(response.headers_mut());
    if let Some(local) = &judged.local {
        local.rewrite(response.headers_mut(), head.host.as_ref());
    }
    response.headers_mut().append(VIA, proxy.pseudonym.member(version));
    stamp(response.headers_mut(), &record.event.request_id);
    *response.version_mut() = head.version;
    record.answered(response.status().as_u16());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let idle = judged.admission.route.upgrade_idle;
        return upgrade::switch(proxy, response, client, idle, record, active);
    }
    if proxy.drain.is_cancelled() && head.version != http::Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let progress = context.stalls.as_ref().map(super::stalls::Stalls::watch);
    response.map(|body| Body::boxed(Download::new(body, record, active, progress)))
}

/// Makes outgate's own answer, and notes it in the record.
pub fn refuse(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    error: &EgressError,
    method: &Method,
    mut record: Record,
    active: ActivityGuard,
) -> Response<Body> {
    let answer = error.answer();
    record.flag(answer.flag);
    record.event.error = Some(answer.code);
    record.event.error_detail = error.detail();
    record.event.sent = Some(sent(error));
    record.answered(answer.status.as_u16());
    let http1 = context.stalls.is_none();
    // A client that asks for another host inside a tunnel has taken the wrong connection: it must not try again on it.
    let wrong_tunnel = context.intercepted.is_some() && matches!(error, EgressError::Misdirected(_));
    let close = error.closes() || wrong_tunnel || proxy.drain.is_cancelled() || *method == Method::CONNECT;
    let close = http1 && close;
    let response = respond(error, &record.event.request_id, close);
    if *method == Method::HEAD {
        record.finish();
        return response.map(|_| Body::empty());
    }
    response.map(|body| Body::boxed(Download::new(body, record, active, None)))
}

/// The moment at which a connection gives up waiting for the first bytes inside a tunnel.
pub fn handshake_deadline(proxy: &Proxy) -> Instant {
    Instant::now() + proxy.bounds.handshake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_can_only_shorten_their_deadline() {
        let own = Duration::from_secs(120);
        let with = |name: &HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            deadline(&headers, own).map_err(|error| error.answer().status.as_u16())
        };
        assert_eq!(with(&OUTGATE_TIMEOUT, "3s"), Ok(Duration::from_secs(3)));
        assert_eq!(with(&OUTGATE_TIMEOUT, "250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(with(&OUTGATE_TIMEOUT, "1h"), Ok(own));
        assert_eq!(with(&OUTGATE_TIMEOUT, "soon"), Err(400));
        assert_eq!(with(&OUTGATE_TIMEOUT, "0s"), Err(400));
        assert_eq!(with(&GRPC_TIMEOUT, "1500m"), Ok(Duration::from_millis(1500)));
        assert_eq!(with(&GRPC_TIMEOUT, "99999999H"), Ok(own));
        assert_eq!(with(&GRPC_TIMEOUT, "x"), Ok(own));
    }
}
