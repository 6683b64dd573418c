//! The answer's body on its way to the app: counted, and followed to its end, so that the record can be emitted then.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::socket::ActivityGuard;
use super::stalls::Progress;
use crate::message::body::{Body, BodyError};
use crate::message::headers::allowed_in_trailers;
use crate::message::record::Record;
use crate::telemetry::Flag;

/// A body that ends its record.
pub struct Download {
    body: Body,
    record: Record,
    progress: Option<Progress>,
    _active: ActivityGuard,
}

impl Download {
    /// Follows `body` for `record`. `progress` is watched where a stream of its own can stall (HTTP/2).
    pub fn new(body: Body, record: Record, active: ActivityGuard, progress: Option<Progress>) -> Self {
        Self { body, record, progress, _active: active }
    }

    fn failed(&mut self, error: &BodyError) {
        let flag = match error {
            BodyError::UpstreamCut(_) => Flag::UpstreamReset,
            BodyError::UpstreamIdle | BodyError::Total => Flag::UpstreamTimeout,
            BodyError::DownstreamGone(_) => Flag::DownstreamGone,
            BodyError::DownstreamMalformed(_)
            | BodyError::DownstreamFraming(_)
            | BodyError::TrailersTooLarge
            | BodyError::TooLarge => Flag::DownstreamProtocol,
            BodyError::Forbidden(_) => Flag::Denied,
            // Of uploads alone; an answer's body that says so is a bug.
            BodyError::Superseded => Flag::Internal,
            BodyError::DownstreamStalled => Flag::DownstreamTimeout,
        };
        self.record.flag(flag);
        self.record.event.error_detail.get_or_insert_with(|| error.to_string());
        self.record.finish();
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(progress) = &self.progress {
            progress.asked();
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.record.finish(),
            Some(Err(error)) => self.failed(error),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.record.event.response_bytes += data.len() as u64;
                    if let Some(progress) = &self.progress {
                        progress.offered(data.len());
                    }
                }
                if self.body.is_end_stream() {
                    self.record.finish();
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map(without_refused_trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // hyper does not poll a body that has nothing (HEAD, 204, an empty answer).
        if self.body.is_end_stream() {
            self.record.finish();
        }
    }
}

fn without_refused_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(kept(trailers)),
        Err(frame) => frame,
    }
}

fn kept(mut trailers: HeaderMap) -> HeaderMap {
    let refused: Vec<_> = trailers.keys().filter(|name| !allowed_in_trailers(name)).cloned().collect();
    for name in refused {
        trailers.remove(name);
    }
    trailers
}
