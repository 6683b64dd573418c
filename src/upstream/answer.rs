//! The provider's answer: checked, cleaned, and tied to the connection that it comes from.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::message::body::{Body, BodyError, Side};
use crate::message::failure::{Failure, Fault, Progress};
use crate::message::headers::clean_response;

use super::pool::Lease;
use super::upload::Broken;

/// What becomes of the connection after the answer.
enum After {
    /// HTTP/1.1: it goes back to the pool.
    Reuse(Lease),
    /// It is closed (HTTP/1.1), or only its stream was used (HTTP/2).
    Drop(#[allow(dead_code, reason = "held for its drop alone")] Lease),
}

impl After {
    fn finish(self) {
        match self {
            Self::Reuse(Lease::Http1(lease)) => lease.finish(),
            Self::Reuse(Lease::Http2(_)) | Self::Drop(_) => {}
        }
    }
}

/// Turns what hyper received into what the layers see. `upgrade` = the request asked to become a WebSocket; `broken` says
/// whether the upload, which may still be on its way, broke.
pub fn receive(
    response: Response<Incoming>,
    lease: Lease,
    upgrade: bool,
    broken: Broken,
) -> Result<Response<Body>, Failure> {
    let (mut head, incoming) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !(upgrade && agrees(&head.headers)) {
        let mut failure = Failure::sent(Fault::Upgrade).because("an upgrade that was not asked for");
        failure.progress = Progress::HeadReceived;
        return Err(failure);
    }
    if !is_plainly_coded(&head.headers) {
        let mut failure = Failure::sent(Fault::Protocol).because("a transfer coding that was not asked for");
        failure.progress = Progress::HeadReceived;
        return Err(failure);
    }
    // Both framing fields: hyper followed the chunks, but what comes after them is anybody's guess.
    let ambiguous = clean_response(&mut head.headers);
    let after = if ambiguous || upgrade { After::Drop(lease) } else { After::Reuse(lease) };
    let body = Body::incoming(incoming, Side::Upstream);
    if body.is_end_stream() {
        after.finish();
        return Ok(Response::from_parts(head, Body::empty()));
    }
    Ok(Response::from_parts(head, Body::boxed(AnswerBody { body, broken, after: Some(after) })))
}

/// Whether the transfer coding, if any, is exactly `chunked`. hyper takes the chunks off and leaves the rest, or reads to the
/// end of the connection; the client would get coded bytes as the content (RFC 9112 section 6.1).
fn is_plainly_coded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

fn agrees(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The body of an answer. At its end the connection goes back; dropped before, or broken, the connection is closed.
struct AnswerBody {
    body: Body,
    broken: Broken,
    after: Option<After>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Err(_))) => {
                drop(self.after.take());
                return polled.map_err(|error| blamed(error, self.broken.fault()));
            }
            Poll::Ready(None) => finish(&mut self.after),
            Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => finish(&mut self.after),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer is also cut where the app breaks its upload: the connection, or the stream, has no other end. That is not the
/// provider's doing.
fn blamed(error: BodyError, upload: Option<Fault>) -> BodyError {
    match (error, upload) {
        (BodyError::UpstreamCut(error), Some(Fault::DownstreamGone)) => BodyError::DownstreamGone(error),
        (BodyError::UpstreamCut(error), Some(Fault::DownstreamMalformed)) => {
            BodyError::DownstreamMalformed(error)
        }
        (BodyError::UpstreamCut(_), Some(Fault::DownstreamStalled)) => BodyError::DownstreamStalled,
        (BodyError::UpstreamCut(_), Some(Fault::BodyTooLarge)) => BodyError::TooLarge,
        (BodyError::UpstreamCut(_), Some(Fault::Forbidden(what))) => BodyError::Forbidden(what),
        (error, _) => error,
    }
}

fn finish(after: &mut Option<After>) {
    if let Some(after) = after.take() {
        after.finish();
    }
}
