//! The request body as the connection takes it: tells the exchange how the upload goes, and remembers why it broke.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::message::body::{Body, BodyError};
use crate::message::failure::Fault;
use crate::message::request::Exchange;

use super::error::body_fault;

/// Why an upload broke. HTTP/2 reports it as a reset of its own, which says nothing about whose fault it was.
#[derive(Clone, Default)]
pub struct Broken(Option<Arc<OnceLock<Fault>>>);

impl Broken {
    /// The fault, where the upload broke.
    pub fn fault(&self) -> Option<Fault> {
        self.0.as_ref()?.get().copied()
    }
}

/// A request body on its way out. Length and end are those of the body inside: hyper frames the message by them.
pub struct UploadBody {
    body: Body,
    exchange: Arc<Exchange>,
    broken: Broken,
}

impl UploadBody {
    /// Wraps a body.
    pub fn new(body: Body, exchange: Arc<Exchange>) -> Self {
        let broken = if body.is_end_stream() { Broken(None) } else { Broken(Some(Arc::default())) };
        Self { body, exchange, broken }
    }

    /// The body as it was wrapped.
    pub fn into_inner(self) -> Body {
        self.body
    }

    /// Where the cause of a break can be read later.
    pub fn broken(&self) -> Broken {
        self.broken.clone()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.body.is_end_stream()
    }

    fn note(&self, polled: &Poll<Option<Result<Frame<Bytes>, BodyError>>>) {
        let upload = self.exchange.upload();
        match polled {
            Poll::Pending => upload.starved(),
            Poll::Ready(Some(Ok(_))) if !self.body.is_end_stream() => upload.taken(),
            Poll::Ready(Some(Ok(_)) | None) => upload.finished(),
            Poll::Ready(Some(Err(error))) => {
                if let Some(broken) = &self.broken.0 {
                    broken.get_or_init(|| body_fault(error));
                }
            }
        }
    }
}

impl HttpBody for UploadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.note(&polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
