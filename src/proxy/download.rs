//! The answer's body on its way to the app: counted, and followed to its end, so that the record can be emitted then.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

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
    /// An error that waits for what was offered before it to go out.
    held: Option<Held>,
    _active: ActivityGuard,
}

struct Held {
    error: BodyError,
    until: Option<Pin<Box<Sleep>>>,
}

/// How long an error of a stream waits. The connection is a task of its own in HTTP/2, which nothing here hears of.
const HELD_FOR: Duration = Duration::from_millis(20);

impl Download {
    /// Follows `body` for `record`. `progress` is watched where a stream of its own can stall (HTTP/2).
    pub fn new(body: Body, record: Record, active: ActivityGuard, progress: Option<Progress>) -> Self {
        Self { body, record, progress, held: None, _active: active }
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

    /// Holds an error back for one turn of the connection. hyper ends a connection (HTTP/1) or a stream (HTTP/2) the moment it
    /// hears of one, and throws away what it has not written yet: the answer's head where the body broke at once, and the app
    /// would not even know that there was an answer.
    fn hold(&mut self, error: BodyError, cx: &Context<'_>) {
        self.failed(&error);
        let until = self.progress.is_some().then(|| Box::pin(tokio::time::sleep(HELD_FOR)));
        self.held = Some(Held { error, until });
        cx.waker().wake_by_ref();
    }

    /// What was held, when its time has come.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<BodyError>> {
        if let Some(Held { until: Some(until), .. }) = &mut self.held {
            std::task::ready!(until.as_mut().poll(cx));
        }
        Poll::Ready(self.held.take().map(|held| held.error))
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
        if let Some(error) = std::task::ready!(self.poll_held(cx)) {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => {
                self.record.finish();
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                self.hold(error, cx);
                return Poll::Pending;
            }
            Some(Ok(frame)) => frame,
        };
        if let Some(data) = frame.data_ref() {
            self.record.event.response_bytes += data.len() as u64;
            if let Some(progress) = &self.progress {
                progress.offered(data.len());
            }
        }
        if self.body.is_end_stream() {
            self.record.finish();
        }
        Poll::Ready(Some(Ok(without_refused_trailers(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
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
