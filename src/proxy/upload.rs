//! The app's request body on its way in: counted, bounded, and blamed on the app when it stalls or breaks.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::message::body::{Body, BodyError, Side};
use crate::message::headers::allowed_in_trailers;
use crate::message::request::Exchange;
use crate::pipeline::route_stack::RouteStack;

/// Wraps the body of a request to `route`.
pub fn upload(
    incoming: Incoming,
    exchange: Arc<Exchange>,
    route: Arc<RouteStack>,
    body_timeout: Duration,
) -> Body {
    let body = Body::incoming(incoming, Side::Downstream);
    if body.is_end_stream() {
        return body;
    }
    Body::boxed(Upload { body, exchange, route, body_timeout, armed: false, timer: None })
}

struct Upload {
    body: Body,
    exchange: Arc<Exchange>,
    route: Arc<RouteStack>,
    body_timeout: Duration,
    armed: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    fn taken(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return Ok(self.trailers(frame)),
        };
        let total =
            self.exchange.uploaded.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
        if self.route.max_body.is_some_and(|bound| total > bound) {
            return Err(BodyError::TooLarge);
        }
        Ok(Frame::data(data))
    }

    /// Trailers never frame, route or authenticate, and never carry a twin of the credential.
    fn trailers(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Ok(mut trailers) = frame.into_trailers() else { return Frame::data(Bytes::new()) };
        let refused: Vec<_> = trailers
            .keys()
            .filter(|name| !allowed_in_trailers(name) || self.route.owns_header(name))
            .cloned()
            .collect();
        for name in refused {
            trailers.remove(name);
        }
        Frame::trailers(trailers)
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.armed = false;
            return Poll::Ready(frame.map(|frame| frame.and_then(|frame| self.taken(frame))));
        }
        let due = Instant::now() + self.body_timeout;
        let armed = std::mem::replace(&mut self.armed, true);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if !armed {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyError::DownstreamStalled)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
