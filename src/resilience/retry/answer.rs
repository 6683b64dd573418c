//! Answers at the end of an attempt: thrown away, or handed on with what the app's SDK has to know.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::timeout;

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
/// the middle becomes a failure that can say so. A long or endless one is handed on as it comes.
///
/// # Errors
///
/// The answer was cut, or its body did not come in time.
pub(super) async fn guarded(
    mut answer: Response<Body>,
    hint: &(HeaderName, HeaderValue),
) -> Result<Response<Body>, Failure> {
    if looks_repeatable(answer.status()) {
        answer.headers_mut().insert(hint.0.clone(), hint.1.clone());
    }
    match answer.body().exact_length() {
        Some(1..=SHORT) => {}
        Some(_) | None => return Ok(answer),
    }
    let (head, mut body) = answer.into_parts();
    let mut whole = Whole::default();
    while let Some(frame) = body.frame().await {
        whole.keep(frame.map_err(cut)?);
    }
    Ok(Response::from_parts(head, Body::boxed(whole)))
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
        | BodyError::DownstreamStalled
        | BodyError::TrailersTooLarge
        | BodyError::TooLarge
        | BodyError::Superseded => Fault::Internal,
    };
    let mut failure = Failure::sent(fault).because(error);
    failure.progress = Progress::HeadReceived;
    failure
}

/// A body that is here.
#[derive(Default)]
struct Whole {
    pieces: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    left: u64,
}

impl Whole {
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

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.pieces.pop_front() {
            self.left -= data.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
