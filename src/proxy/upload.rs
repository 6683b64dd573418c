//! The app's request body on its way in: counted, bounded, and blamed on the app when it stalls or breaks.
//!
//! What is timed is the wait for the app, not the time that the provider takes. A body whose length was announced must
//! bring `LEAST` bytes in every body timeout of waiting, or one byte now and then could hold a request for hours. One
//! without a length may be a stream of rare messages: there every byte counts.
//!
//! Where the policy has placeholders, each piece is searched for those of other providers before it goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::socket::Activity;
use crate::message::body::{Body, BodyError, Side};
use crate::message::headers::allowed_in_trailers;
use crate::message::request::Exchange;
use crate::pipeline::route_stack::RouteStack;

/// Bytes that an announced body must bring in one body timeout.
const LEAST: usize = 1024;
/// Longest trailer section in bytes; more is refused.
const MAX_TRAILERS: usize = 16 * 1024;

/// Wraps the body of a request to `route`. The connection is told when it has been read to its end.
pub fn upload(
    incoming: Incoming,
    exchange: Arc<Exchange>,
    route: Arc<RouteStack>,
    activity: &Arc<Activity>,
    body_timeout: Duration,
) -> Body {
    let body = Body::incoming(incoming, Side::Downstream);
    if body.is_end_stream() {
        return body;
    }
    Body::boxed(Upload {
        least: if body.exact_length().is_some() { LEAST } else { 1 },
        body,
        exchange,
        route,
        activity: activity.clone(),
        patience: Patience { bound: body_timeout, ..Patience::default() },
        before: Vec::new(),
    })
}

struct Upload {
    body: Body,
    exchange: Arc<Exchange>,
    route: Arc<RouteStack>,
    activity: Arc<Activity>,
    /// Bytes that make up for the waiting so far.
    least: usize,
    patience: Patience,
    /// The end of what went by, in which a placeholder may have begun.
    before: Vec<u8>,
}

/// How long the app has been waited for since it last brought enough.
#[derive(Default)]
struct Patience {
    bound: Duration,
    waited: Duration,
    brought: usize,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// The app brought this many bytes.
    fn brought(&mut self, bytes: usize, least: usize) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        self.brought += bytes;
        if self.brought >= least {
            (self.waited, self.brought) = (Duration::ZERO, 0);
        }
    }

    /// Ready when the app has been waited for too long.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            let due = now + self.bound.saturating_sub(self.waited);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(due),
                None => self.timer = Some(Box::pin(sleep_until(due))),
            }
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl Upload {
    fn taken(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.trailers(frame),
        };
        self.patience.brought(data.len(), self.least);
        let total =
            self.exchange.uploaded.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
        if self.route.max_body.is_some_and(|bound| total > bound) {
            return Err(BodyError::TooLarge);
        }
        self.route.check_body(&mut self.before, &data).map_err(BodyError::Forbidden)?;
        Ok(Frame::data(data))
    }

    /// Trailers never frame, route or authenticate, and never carry a twin of the credential, or a placeholder.
    fn trailers(&self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let Ok(mut trailers) = frame.into_trailers() else { return Ok(Frame::data(Bytes::new())) };
        let size: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if size > MAX_TRAILERS {
            return Err(BodyError::TrailersTooLarge);
        }
        self.route.check_trailers(&trailers).map_err(BodyError::Forbidden)?;
        let refused: Vec<_> = trailers
            .keys()
            .filter(|name| !allowed_in_trailers(name) || self.route.owns_header(name))
            .cloned()
            .collect();
        for name in refused {
            trailers.remove(name);
        }
        Ok(Frame::trailers(trailers))
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
            if frame.is_none() || self.body.is_end_stream() {
                self.activity.set_unread(false);
            }
            return Poll::Ready(frame.map(|frame| frame.and_then(|frame| self.taken(frame))));
        }
        // The answer is on its way: a two-way stream may be silent on this side, and `timeouts.idle` bounds the other.
        if self.exchange.is_answered() {
            return Poll::Pending;
        }
        ready!(self.patience.poll_end(cx));
        Poll::Ready(Some(Err(BodyError::DownstreamStalled)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, timeout};

    use super::*;

    const BOUND: Duration = Duration::from_secs(30);

    /// Waits `gap` for each of the pieces; whether patience ended before the last.
    async fn ends(least: usize, piece: usize, gap: Duration, pieces: usize) -> bool {
        let mut patience = Patience { bound: BOUND, ..Patience::default() };
        for _ in 0..pieces {
            if timeout(gap, poll_fn(|cx| patience.poll_end(cx))).await.is_ok() {
                return true;
            }
            patience.brought(piece, least);
        }
        false
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_not_enough_for_an_announced_body() {
        assert!(ends(LEAST, 1, Duration::from_secs(5), 10).await);
        assert!(!ends(LEAST, LEAST, Duration::from_secs(29), 100).await);
        assert!(!ends(LEAST, 200, Duration::from_secs(4), 100).await);
        // A stream of rare messages has no length.
        assert!(!ends(1, 1, Duration::from_secs(29), 100).await);
        assert!(ends(1, 1, Duration::from_secs(31), 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_provider_takes_its_time_for_is_not_counted() {
        let mut patience = Patience { bound: BOUND, ..Patience::default() };
        for _ in 0..100 {
            patience.brought(1, LEAST);
            advance(Duration::from_secs(20)).await;
        }
        assert!(timeout(BOUND / 2, poll_fn(|cx| patience.poll_end(cx))).await.is_err());
    }
}
