//! The one body type of the path, in both directions.
//!
//! Bodies stream: nothing here collects. A body knows its exact length when the peer declared one, because hyper frames
//! the outgoing message from `size_hint`, never from a header that was received.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The app's connection or stream went away in the middle of the upload.
    #[error("the client went away")]
    DownstreamGone(#[source] hyper::Error),
    /// The app's body is not framed as its head says (`aws-chunked`).
    #[error("the client's body is malformed: {0}")]
    DownstreamFraming(&'static str),
    /// The app's body could not be parsed (chunk sizes, trailers, a length that does not match).
    #[error("the client's body is malformed")]
    DownstreamMalformed(#[source] hyper::Error),
    /// No byte of the upload came for `runtime.downstream.body_timeout`.
    #[error("the client's body stalled")]
    DownstreamStalled,
    /// The app's trailer section is too large.
    #[error("the client's trailers are too large")]
    TrailersTooLarge,
    /// The app's body or trailer section holds what may not be sent; the text tells the app what.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The upload is longer than the provider's `max_body`.
    #[error("the client's body is larger than `max_body`")]
    TooLarge,
    /// The provider's connection or stream broke in the middle of the answer.
    #[error("the provider's answer was cut")]
    UpstreamCut(#[source] hyper::Error),
    /// No byte of the answer came for `timeouts.idle`.
    #[error("no byte of the provider's answer came in time (`timeouts.idle`)")]
    UpstreamIdle,
    /// The next attempt has taken the upload over: this one must never be completed.
    #[error("the request is being sent again")]
    Superseded,
    /// The exchange took longer than `timeouts.total`.
    #[error("the exchange took longer than `timeouts.total`")]
    Total,
}

/// A request or response body. Empty and short bodies cost no allocation; everything else is streamed.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Option<Bytes>),
    Incoming(Incoming, Side),
    Boxed(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>),
}

/// Which peer an incoming body comes from; it decides who is to blame when it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The app.
    Downstream,
    /// The provider.
    Upstream,
}

impl Body {
    /// No body at all.
    pub fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// A body that is already here, for outgate's own answers.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(Some(bytes))) }
    }

    /// A body that streams in from one of the peers.
    pub fn incoming(incoming: Incoming, side: Side) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Self(Kind::Incoming(incoming, side)) }
    }

    /// A body wrapped by a layer.
    pub fn boxed(body: impl HttpBody<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self(Kind::Boxed(Box::pin(body)))
    }

    /// The whole of it, where it is already here; nothing where it streams.
    pub fn at_hand(&self) -> Option<Bytes> {
        match &self.0 {
            Kind::Empty => Some(Bytes::new()),
            Kind::Full(bytes) => Some(bytes.clone().unwrap_or_default()),
            Kind::Incoming(..) | Kind::Boxed(_) => None,
        }
    }

    /// The exact length in bytes, where it is known before the body is read.
    pub fn exact_length(&self) -> Option<u64> {
        self.size_hint().exact()
    }
}

/// Sorts a hyper error of an incoming body by whose fault it is.
fn blame(error: hyper::Error, side: Side) -> BodyError {
    match side {
        Side::Upstream => BodyError::UpstreamCut(error),
        Side::Downstream if error.is_parse() || is_invalid_input(&error) => {
            BodyError::DownstreamMalformed(error)
        }
        Side::Downstream => BodyError::DownstreamGone(error),
    }
}

/// hyper reports bad chunk framing as an I/O error of kind `InvalidInput` or `InvalidData` inside a body error, and an
/// h2 stream whose length does not match as a protocol error.
fn is_invalid_input(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return matches!(io.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData);
        }
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return h2.is_library() && h2.reason() == Some(h2::Reason::PROTOCOL_ERROR);
        }
        source = cause.source();
    }
    false
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Incoming(incoming, side) => {
                let side = *side;
                Pin::new(incoming).poll_frame(cx).map_err(|error| blame(error, side))
            }
            Kind::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Incoming(incoming, _) => incoming.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Incoming(incoming, _) => incoming.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn short_bodies_know_their_length() {
        assert_eq!(Body::empty().exact_length(), Some(0));
        assert!(Body::full("").is_end_stream());
        let body = Body::full("abc");
        assert_eq!(body.exact_length(), Some(3));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
    }
}
