//! Answers at the end of an attempt: thrown away, or handed on with what the app's SDK has to know.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::message::body::{Body, BodyError};
use crate::message::failure::{Failure, Fault, Progress};

/// Bytes of an answer that are read for the sake of its connection, or held back for the sake of its request.
const SHORT: u64 = 64 * 1024;
/// How long an answer is read that nobody will see.
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

/// Throws an answer away. A short rest is read first, because a connection in the middle of an answer cannot be used again.
pub(super) async fn discard(answer: Response<Body>) {
    let mut body = answer.into_body();
    if body.is_end_stream() || body.exact_length().is_some_and(|length| length > SHORT) {
        return;
    }
    let _ = timeout(PATIENCE, async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > SHORT {
                break;
            }
        }
    })
    .await;
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
    if looks_repeatable(answer.status()) {
        answer.headers_mut().insert(hint.0.clone(), hint.1.clone());
    }
    if !is_held(&answer) {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    let held = Held::gather(body, deadline).await.map_err(cut)?;
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
fn looks_repeatable(status: StatusCode) -> bool {
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
        | BodyError::TooLarge
        | BodyError::Superseded => Fault::Internal,
    };
    let mut failure = Failure::sent(fault).because(error);
    failure.progress = Progress::HeadReceived;
    failure
}

/// A body whose beginning is here, or all of it.
struct Held {
    pieces: VecDeque<Bytes>,
    /// Bytes in `pieces`.
    left: u64,
    /// Its length was stated in its head.
    stated: bool,
    /// What is still to come.
    rest: Option<Body>,
    trailers: Option<HeaderMap>,
}

impl Held {
    /// Reads until the end, or until more than a short answer is here, or until `deadline`.
    async fn gather(mut body: Body, deadline: Option<Instant>) -> Result<Self, BodyError> {
        let stated = body.exact_length().is_some();
        let mut held = Self { pieces: VecDeque::new(), left: 0, stated, rest: None, trailers: None };
        let reading = held.read(&mut body);
        let whole = match deadline {
            // The provider has answered in time: a deadline for heads does not cut its body.
            Some(deadline) => timeout_at(deadline, reading).await.unwrap_or(Ok(false)),
            None => reading.await,
        };
        if !whole? {
            held.rest = Some(body);
        }
        Ok(held)
    }

    /// Whether it came to the end.
    async fn read(&mut self, body: &mut Body) -> Result<bool, BodyError> {
        while self.left <= SHORT {
            match body.frame().await {
                Some(frame) => self.keep(frame?),
                None => return Ok(true),
            }
        }
        Ok(false)
    }

    fn keep(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => {
                self.left += data.len() as u64;
                self.pieces.push_back(data);
            }
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.pieces.pop_front() {
            self.left -= data.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(rest) = &mut self.rest {
            return Pin::new(rest).poll_frame(cx);
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.rest.as_ref().is_none_or(HttpBody::is_end_stream);
        self.pieces.is_empty() && self.trailers.is_none() && ended
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + self.left);
        // With a length instead of chunks, HTTP/1.1 would have no place for trailers.
        if let Some(upper) = rest.upper().filter(|_| self.stated || self.trailers.is_none()) {
            hint.set_upper(upper + self.left);
        }
        hint
    }
}
