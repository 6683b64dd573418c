//! Answers at the end of an attempt: set aside, or handed on with what the app's SDK has to know.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use crate::message::body::{Body, BodyError};
use crate::message::failure::{Failure, Fault, Progress};
use crate::resilience::held::Held;

/// Bytes of an answer that are read for the sake of its connection, or held back for the sake of its request.
const SHORT: u64 = 64 * 1024;
/// How long an answer is read that nobody is likely to see.
const PATIENCE: Duration = Duration::from_millis(100);

/// What the provider's hint says: `true` or `false`; anything else says nothing.
pub(super) fn hint(headers: &HeaderMap, name: &HeaderName) -> Option<bool> {
    let value = headers.get(name)?.as_bytes().trim_ascii();
    if value.eq_ignore_ascii_case(b"true") {
        Some(true)
    } else if value.eq_ignore_ascii_case(b"false") {
        Some(false)
    } else {
        None
    }
}

/// The answer of an attempt after which another one follows. A short one is read whole, for two reasons: its connection can
/// be used again, and if outgate itself refuses the other attempt, it is still the provider's last word. One that is long, or
/// does not come in time, is thrown away. Nothing of the old attempt (a permit, a connection) is held from then on.
pub(super) async fn set_aside(answer: Response<Body>) -> Option<Response<Body>> {
    let (head, body) = answer.into_parts();
    if body.exact_length().is_some_and(|length| length > SHORT) {
        return None;
    }
    let mut held = Held::new(body);
    let read = timeout(PATIENCE, held.read(SHORT)).await;
    (matches!(read, Ok(Ok(()))) && held.is_here()).then(|| Response::from_parts(head, Body::boxed(held)))
}

/// The answer to a request that must not be sent again, neither here nor by the app's SDK. An answer that would make the SDK
/// try again says that it must not; and a short one is read whole before its head is handed on, so that one that is cut in
/// the middle becomes a failure that can say so. One that turns out to be longer, or that is not whole at `deadline`, is
/// handed on as far as it is here, and the rest as it comes; so is at once what is known to be long, or is a stream.
///
/// # Errors
///
/// The answer was cut, or its body stalled.
pub(super) async fn guarded(
    mut answer: Response<Body>,
    hint: &(HeaderName, HeaderValue),
    deadline: Option<Instant>,
) -> Result<Response<Body>, Failure> {
    // What the provider itself asks for is no reason to do what outgate has refused.
    if looks_repeatable(answer.status()) || self::hint(answer.headers(), &hint.0) == Some(true) {
        answer.headers_mut().insert(hint.0.clone(), hint.1.clone());
    }
    if !is_held(&answer) {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    let mut held = Held::new(body);
    let reading = held.read(SHORT);
    let read = match deadline {
        // The provider has answered in time: a deadline for heads does not cut its body.
        Some(deadline) => timeout_at(deadline, reading).await.unwrap_or(Ok(())),
        None => reading.await,
    };
    read.map_err(cut)?;
    Ok(Response::from_parts(head, Body::boxed(held)))
}

fn is_held(answer: &Response<Body>) -> bool {
    match answer.body().exact_length() {
        Some(length) => (1..=SHORT).contains(&length),
        None => is_document(answer.status(), answer.headers()),
    }
}

/// Whether an answer of unknown length is of use only as a whole, so that nobody waits for its parts. Of what succeeded that
/// is said by a few types; a list of streams would never be complete, and a stream that is held back is broken. What failed
/// is short, whatever it is.
fn is_document(status: StatusCode, headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "text/event-stream" || essence.starts_with("application/grpc") {
        return false;
    }
    if status.is_client_error() || status.is_server_error() {
        return true;
    }
    match essence.as_str() {
        "application/json" | "application/xml" | "text/xml" | "application/x-www-form-urlencoded" => true,
        // A document after another.
        "application/stream+json" => false,
        other => other.ends_with("+json") || other.ends_with("+xml"),
    }
}

/// Statuses after which SDKs send a request again by themselves.
pub(super) fn looks_repeatable(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429)
}

fn cut(error: BodyError) -> Failure {
    let fault = match error {
        BodyError::UpstreamCut(_) => Fault::Reset,
        BodyError::UpstreamIdle => Fault::IdleTimeout,
        BodyError::Total => Fault::Total,
        // Errors of uploads; an answer that has one is a bug.
        BodyError::DownstreamGone(_)
        | BodyError::DownstreamMalformed(_)
        | BodyError::DownstreamFraming(_)
        | BodyError::DownstreamStalled
        | BodyError::TrailersTooLarge
        | BodyError::Forbidden(_)
        | BodyError::TooLarge
        | BodyError::Superseded => Fault::Internal,
    };
    let mut failure = Failure::sent(fault).because(error);
    failure.progress = Progress::HeadReceived;
    failure
}
