//! The records of what no app asked for: answers that the cache renews in the background.

use std::sync::Arc;

use http::header::HeaderName;
use tokio_util::sync::CancellationToken;

use super::error::EgressError;
use crate::message::failure::{Failure, Progress};
use crate::message::record::Record;
use crate::message::request::EgressRequest;
use crate::resilience::cache::Renewals;
use crate::telemetry::{Door, Redaction, RouteMetrics, Sent, Telemetry, TraceParent, new_request_id};

/// What a renewal has in place of a listener.
const NO_LISTENER: &str = "none";
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Whose renewals they are.
pub(super) struct Origin {
    pub generation: u64,
    pub provider: Arc<str>,
    pub route: Arc<str>,
    pub redaction: Arc<Redaction>,
    pub metrics: Arc<RouteMetrics>,
}

/// How the renewals of one route are written down.
pub(super) fn renewals(telemetry: Arc<Telemetry>, origin: Origin) -> Renewals {
    // No client can go away from one: what is dropped before its end was ended by outgate.
    let ended = CancellationToken::new();
    ended.cancel();
    let listener: Arc<str> = NO_LISTENER.into();
    let open = move |request: &EgressRequest| {
        let mut record = Record::open(&telemetry, &ended, new_request_id(), Door::Renewal, listener.clone());
        record.routed(&origin.provider, &origin.route, &origin.metrics);
        let event = &mut record.event;
        let trace = request.headers.get(TRACEPARENT).and_then(|value| TraceParent::parse(value.as_bytes()));
        event.trace_id = trace.map(|parent| parent.trace_id());
        event.generation = origin.generation;
        event.method = Some(origin.redaction.method(&request.method));
        event.scheme = Some(request.target.scheme.as_str());
        event.host = Some(request.target.host.shared());
        event.port = Some(request.target.port);
        event.path = Some(origin.redaction.path(request.path_and_query.path()).into_owned());
        event.query = request.path_and_query.query().and_then(|query| origin.redaction.query(query));
        record
    };
    Renewals { open: Arc::new(open), failed }
}

fn failed(record: &mut Record, failure: Failure) {
    let sent = if failure.progress == Progress::NotSent { Sent::No } else { Sent::Maybe };
    let error = EgressError::from(failure);
    let answer = error.answer();
    record.flag(answer.flag);
    record.event.error = Some(answer.code);
    record.event.error_detail = error.detail();
    record.event.sent = Some(sent);
}
