//! Timeouts of one attempt: time to the head of the answer, idle time of either body, total time.
//!
//! A timeout around the call alone would never stop a stuck stream, or would kill a healthy long one; so the time to the
//! head is counted from the last request byte that was sent, while the body still moves `idle` bounds it, and the answer's
//! body carries its own idle clock. Waiting for the *app* to send its body is not the provider's fault and is bounded by
//! `runtime.downstream.body_timeout`. Both clocks run only while a connection has the request: what comes before (pool,
//! name, TCP, TLS) has bounds of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::Service;

use super::{FOREVER, Inner, Pending};
use crate::message::body::{Body, BodyError};
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressRequest, Exchange, Upload};

/// The timeouts of an attempt, as compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptTimeouts {
    /// From the last request byte sent to the head of the answer.
    pub response: Duration,
    /// Between bytes of a body, either way.
    pub idle: Duration,
    /// The whole exchange, the answer's body included.
    pub total: Option<Duration>,
}

/// Bounds one attempt.
#[derive(Clone)]
pub struct Timeout<S> {
    inner: S,
    timeouts: AttemptTimeouts,
}

impl<S> Timeout<S> {
    /// Puts the timeouts around `inner`.
    pub fn new(inner: S, timeouts: AttemptTimeouts) -> Self {
        Self { inner, timeouts }
    }
}

impl<S: Inner> Service<EgressRequest> for Timeout<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        let exchange = request.exchange.clone();
        let timeouts = self.timeouts;
        exchange.upload().restart();
        let call = self.inner.call(request);
        Box::pin(async move {
            let end = timeouts.total.map(|total| exchange.upload().started() + total);
            let response = until_head(call, &exchange, timeouts, end).await?;
            if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                return Ok(response);
            }
            Ok(response.map(|body| bounded(body, timeouts.idle, end)))
        })
    }
}

/// Waits for the head, and looks now and then at how the upload goes. The timer is set to the next moment at which
/// something could be overdue, so a call that is answered in time costs one timer and no wake-up.
async fn until_head(
    call: impl Future<Output = Result<Response<Body>, Failure>>,
    exchange: &Arc<Exchange>,
    timeouts: AttemptTimeouts,
    end: Option<Instant>,
) -> Result<Response<Body>, Failure> {
    tokio::pin!(call);
    let timer = sleep_until(next_look(exchange.upload(), timeouts, end));
    tokio::pin!(timer);
    loop {
        tokio::select! {
            biased;
            answer = &mut call => return answer,
            () = &mut timer => {}
        }
        let (due, fault) = overdue(exchange.upload(), timeouts, end);
        if due <= Instant::now() {
            let sent = exchange.may_have_acted();
            return Err(if sent { Failure::sent(fault) } else { Failure::not_sent(fault) });
        }
        timer.as_mut().reset(next_look(exchange.upload(), timeouts, end));
    }
}

/// When to look again: nobody wakes this up when the request is handed over, or when the upload ends, and from then on
/// another clock counts.
fn next_look(upload: &Upload, timeouts: AttemptTimeouts, end: Option<Instant>) -> Instant {
    let (due, _) = overdue(upload, timeouts, end);
    if upload.is_complete() { due } else { due.min(Instant::now() + timeouts.response.min(timeouts.idle)) }
}

/// When the attempt is overdue if nothing moves until then, and with which fault.
fn overdue(upload: &Upload, timeouts: AttemptTimeouts, end: Option<Instant>) -> (Instant, Fault) {
    let (due, fault) = if !upload.is_handed_over() {
        (Instant::now() + FOREVER, Fault::IdleTimeout)
    } else if upload.is_complete() {
        (upload.last_taken() + timeouts.response, Fault::ResponseTimeout)
    } else if upload.is_starved() {
        (Instant::now() + timeouts.idle, Fault::IdleTimeout)
    } else {
        (upload.last_taken() + timeouts.idle, Fault::IdleTimeout)
    };
    match end {
        Some(end) if end <= due => (end, Fault::Total),
        Some(_) | None => (due, fault),
    }
}

fn bounded(body: Body, idle: Duration, end: Option<Instant>) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::boxed(BoundedBody { body, idle, end, armed: false, timer: None })
}

pin_project! {
    /// A body that fails when no byte comes for `idle`, or when `end` has come.
    struct BoundedBody {
        #[pin]
        body: Body,
        idle: Duration,
        end: Option<Instant>,
        armed: bool,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.project();
        if let Poll::Ready(frame) = this.body.poll_frame(cx) {
            *this.armed = false;
            if this.end.is_some_and(|end| end <= Instant::now()) {
                return Poll::Ready(Some(Err(BodyError::Total)));
            }
            return Poll::Ready(frame);
        }
        let due = (Instant::now() + *this.idle).min(this.end.unwrap_or_else(|| Instant::now() + FOREVER));
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if !*this.armed {
            *this.armed = true;
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        let total = this.end.is_some_and(|end| end <= Instant::now());
        Poll::Ready(Some(Err(if total { BodyError::Total } else { BodyError::UpstreamIdle })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use http_body_util::BodyExt;
    use tower::service_fn;

    use super::*;
    use crate::message::request::EgressParts;
    use crate::message::target::{Host, Scheme, Target};

    pub(crate) fn request_with(body: Body, deadline: Option<Instant>) -> EgressRequest {
        EgressRequest::from(EgressParts {
            method: http::Method::POST,
            target: Target { scheme: Scheme::Https, host: Host::parse("api.example").unwrap(), port: 443 },
            path_and_query: "/v1".parse().unwrap(),
            headers: http::HeaderMap::new(),
            body,
            upgrade: false,
            credential_choice: 0,
            tenant: None,
            leave: None,
            exchange: Arc::new(Exchange::new(deadline)),
        })
    }

    /// A provider that never answers; `sent` says whether the request reached it.
    pub(crate) fn stuck(sent: bool) -> impl Inner {
        service_fn(move |request: EgressRequest| async move {
            if sent {
                request.exchange.handed_over();
                request.exchange.upload().finished();
            }
            std::future::pending::<Result<Response<Body>, Failure>>().await
        })
    }

    const TIMEOUTS: AttemptTimeouts =
        AttemptTimeouts { response: Duration::from_secs(60), idle: Duration::from_secs(10), total: None };

    #[tokio::test(start_paused = true)]
    async fn the_head_is_waited_for_from_the_last_byte_sent() {
        let started = Instant::now();
        let slow = service_fn(|request: EgressRequest| async move {
            request.exchange.handed_over();
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(8)).await;
                request.exchange.upload().taken();
            }
            request.exchange.upload().finished();
            std::future::pending::<Result<Response<Body>, Failure>>().await
        });
        let failure =
            Timeout::new(slow, TIMEOUTS).call(request_with(Body::empty(), None)).await.err().unwrap();
        assert_eq!(failure.fault, Fault::ResponseTimeout);
        assert_eq!(started.elapsed(), Duration::from_secs(4 * 8 + 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_must_come_sooner_than_idle_ends_is_not_waited_for_longer() {
        let started = Instant::now();
        let timeouts = AttemptTimeouts { response: Duration::from_secs(2), ..TIMEOUTS };
        let silent = service_fn(|request: EgressRequest| async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            request.exchange.handed_over();
            request.exchange.upload().finished();
            std::future::pending::<Result<Response<Body>, Failure>>().await
        });
        let failure =
            Timeout::new(silent, timeouts).call(request_with(Body::empty(), None)).await.err().unwrap();
        assert_eq!(failure.fault, Fault::ResponseTimeout);
        assert_eq!(started.elapsed(), Duration::from_secs(3 + 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_takes_nothing_is_idle_and_a_slow_app_is_not_its_fault() {
        let started = Instant::now();
        let takes_nothing = service_fn(|request: EgressRequest| async move {
            request.exchange.handed_over();
            std::future::pending::<Result<Response<Body>, Failure>>().await
        });
        let failure = Timeout::new(takes_nothing, TIMEOUTS)
            .call(request_with(Body::empty(), None))
            .await
            .err()
            .unwrap();
        assert_eq!(failure.fault, Fault::IdleTimeout);
        assert_eq!(started.elapsed(), TIMEOUTS.idle);

        let starved = service_fn(|request: EgressRequest| async move {
            request.exchange.handed_over();
            request.exchange.upload().starved();
            tokio::time::sleep(Duration::from_secs(100)).await;
            Ok::<_, Failure>(Response::new(Body::empty()))
        });
        assert!(Timeout::new(starved, TIMEOUTS).call(request_with(Body::empty(), None)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_way_to_a_connection_is_not_idle_time() {
        // Longer than `idle`, with a body and without: pool, TCP and TLS have bounds of their own.
        let slow_to_connect = service_fn(|request: EgressRequest| async move {
            tokio::time::sleep(TIMEOUTS.idle * 7 / 2).await;
            request.exchange.handed_over();
            std::future::pending::<Result<Response<Body>, Failure>>().await
        });
        let started = Instant::now();
        let failure = Timeout::new(slow_to_connect, TIMEOUTS)
            .call(request_with(Body::full("x"), None))
            .await
            .err()
            .unwrap();
        assert_eq!((failure.fault, started.elapsed()), (Fault::IdleTimeout, TIMEOUTS.idle * 9 / 2));
        // `total` counts there too.
        let total = Some(TIMEOUTS.idle * 2);
        let started = Instant::now();
        let failure = Timeout::new(stuck(false), AttemptTimeouts { total, ..TIMEOUTS })
            .call(request_with(Body::empty(), None))
            .await
            .err()
            .unwrap();
        assert_eq!((failure.fault, Some(started.elapsed())), (Fault::Total, total));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_ends_and_one_that_moves_lives() {
        let (sender, body) = channel();
        let mut body = bounded(body, Duration::from_secs(10), None);
        tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                sender.send(Bytes::from_static(b"x")).await.unwrap();
            }
            std::future::pending::<()>().await;
            drop(sender);
        });
        let started = Instant::now();
        for _ in 0..5 {
            body.frame().await.unwrap().unwrap();
        }
        assert!(matches!(body.frame().await, Some(Err(BodyError::UpstreamIdle))));
        assert_eq!(started.elapsed(), Duration::from_secs(5 * 9 + 10));
    }

    #[tokio::test(start_paused = true)]
    async fn total_ends_what_still_moves() {
        let (sender, body) = channel();
        let mut body = bounded(body, Duration::from_secs(10), Some(Instant::now() + Duration::from_secs(20)));
        tokio::spawn(async move {
            while sender.send(Bytes::from_static(b"x")).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        });
        let started = Instant::now();
        let last = loop {
            if let Err(error) = body.frame().await.unwrap() {
                break error;
            }
        };
        assert!(matches!(last, BodyError::Total));
        assert_eq!(started.elapsed(), Duration::from_secs(20));
    }

    /// A body fed by a test.
    pub(crate) fn channel() -> (tokio::sync::mpsc::Sender<Bytes>, Body) {
        struct Channel(tokio::sync::mpsc::Receiver<Bytes>);
        impl HttpBody for Channel {
            type Data = Bytes;
            type Error = BodyError;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
                self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        (sender, Body::boxed(Channel(receiver)))
    }
}
