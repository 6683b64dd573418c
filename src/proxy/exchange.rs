//! One request and its answer: judged, cleaned, sent through its route's stack, and handed back.
//!
//! Every door ends here. The generation is taken once; the record that was opened by `dispatch` goes along and ends with the
//! answer's body.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, VIA};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::context::{ConnectionContext, Proxy};
use super::dispatch::Arrival;
use super::download::Download;
use super::links::LocalForm;
use super::respond::{respond, sent, stamp};
use super::socket::ActivityGuard;
use super::upgrade;
use super::upload::upload;
use crate::message::body::Body;
use crate::message::headers::{OUTGATE_TIMEOUT, clean_request, wants_websocket};
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
    mut arrival: Box<Arrival>,
    judged: Judged,
) -> Response<Body> {
    let host = judged.local.as_ref().and_then(|_| called_by(&arrival.parts));
    let sent = match outgoing(proxy, context, &mut arrival, &judged) {
        Ok((request, client)) => match judged.admission.route.send(request).await {
            Ok(response) => Ok((response, client)),
            Err(failure) => Err(EgressError::from(failure)),
        },
        Err(error) => Err(error),
    };
    match sent {
        Ok((response, client)) => answer(proxy, context, response, client, host.as_ref(), judged, *arrival),
        Err(error) => {
            let Arrival { parts, record, active, .. } = *arrival;
            refuse(proxy, context, &error, &parts.method, record, active)
        }
    }
}

/// The name by which the app called outgate: `:authority`, or `Host`.
fn called_by(parts: &http::request::Parts) -> Option<HeaderValue> {
    match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => parts.headers.get(HOST).cloned(),
    }
}

/// The request as it goes to the route's stack, and the app's side of an upgrade that it asks for.
fn outgoing(
    proxy: &Arc<Proxy>,
    context: &ConnectionContext,
    arrival: &mut Arrival,
    judged: &Judged,
) -> Result<(EgressRequest, Option<OnUpgrade>), EgressError> {
    let route = &judged.admission.route;
    arrival.record.routed(&route.provider, &route.name, &route.metrics);
    note_path(&mut arrival.record, judged);
    let parts = &mut arrival.parts;
    check_length(&parts.headers, route.max_body)?;
    let deadline = deadline(&parts.headers, route.deadline)?;
    let websocket = wants_websocket(&parts.method, parts.version, &parts.headers);
    let client = if websocket { parts.extensions.remove::<OnUpgrade>() } else { None };

    let mut headers = std::mem::take(&mut parts.headers);
    clean_request(&mut headers);
    route.check_placeholders(&headers, &judged.path_and_query)?;
    let tenant = route.tenant(&mut headers, arrival.proven_tenant.as_ref())?;
    let path_and_query = route.prepare(&mut headers, judged.path_and_query.clone());
    headers.append(VIA, proxy.pseudonym.member(parts.version));
    trace(&mut headers, &mut arrival.record);
    headers.remove(HOST);

    let exchange = Arc::new(Exchange::new(Some(arrival.record.started() + deadline)));
    judged.admission.shadowed.iter().for_each(|label| exchange.shadowed(label));
    arrival.record.follow(exchange.clone());
    let body = match arrival.incoming.take() {
        Some(incoming) => {
            upload(incoming, exchange.clone(), route.clone(), &context.activity, proxy.bounds.body)
        }
        None => Body::empty(),
    };
    let request = EgressRequest {
        method: parts.method.clone(),
        target: judged.admission.target.clone(),
        path_and_query,
        headers,
        body,
        upgrade: websocket,
        credential_choice: 0,
        tenant,
        leave: None,
        exchange,
    };
    Ok((request, client))
}

/// The path as it was asked for, masked by the provider's own rules; at the local endpoint they hold behind the prefix.
fn note_path(record: &mut Record, judged: &Judged) {
    let redaction = &judged.admission.route.redaction;
    let path = redaction.path(judged.path_and_query.path());
    let prefix = judged.local.as_ref().and_then(|local| local.prefix.as_deref());
    record.event.path = Some(match prefix {
        Some(prefix) => format!("{prefix}{path}"),
        None => path.into_owned(),
    });
    record.event.query = judged.path_and_query.query().and_then(|query| redaction.query(query));
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

fn answer(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    mut response: Response<Body>,
    client: Option<OnUpgrade>,
    host: Option<&HeaderValue>,
    judged: Judged,
    arrival: Arrival,
) -> Response<Body> {
    let Arrival { parts, mut record, active, .. } = arrival;
    let version = response.version();
    if let Some(local) = &judged.local {
        local.rewrite(response.headers_mut(), host);
    }
    response.headers_mut().append(VIA, proxy.pseudonym.member(version));
    stamp(response.headers_mut(), &record.event.request_id);
    *response.version_mut() = parts.version;
    record.answered(response.status().as_u16());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let idle = judged.admission.route.upgrade_idle;
        return upgrade::switch(proxy, context, response, client, idle, record, active);
    }
    if proxy.drain.is_cancelled() && parts.version != http::Version::HTTP_2 {
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

/// How long a handshake may still take when outgate drains.
const HANDSHAKE_IN_DRAIN: Duration = Duration::from_secs(1);

/// What a handshake comes to, or nothing where outgate drains and it does not come to an end soon: a client that opened a
/// tunnel and says nothing in it holds nothing up.
pub async fn unless_drained<T>(proxy: &Proxy, handshake: impl Future<Output = T>) -> Option<T> {
    let over = async {
        tokio::select! {
            () = proxy.abort.cancelled() => {}
            () = async {
                proxy.drain.cancelled().await;
                tokio::time::sleep(HANDSHAKE_IN_DRAIN).await;
            } => {}
        }
    };
    tokio::select! {
        biased;
        done = handshake => Some(done),
        () = over => None,
    }
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
