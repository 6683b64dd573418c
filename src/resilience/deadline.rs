//! The deadline: until a head is handed to the app, all attempts, queues and waits together take no longer.
//!
//! Outermost, because it covers everything the app waits for. The value is computed once per exchange (policy, or shorter
//! by the app's `Outgate-Timeout` or `grpc-timeout`) and stands in [`Exchange::deadline`](crate::message::request::Exchange).

use std::task::{Context, Poll};

use http::Response;
use tower::Service;

use super::{Inner, Pending};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;

/// Ends a call at its exchange's deadline.
#[derive(Clone)]
pub struct Deadline<S> {
    inner: S,
}

impl<S> Deadline<S> {
    /// Puts the deadline around `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: Inner> Service<EgressRequest> for Deadline<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        let exchange = request.exchange.clone();
        let call = self.inner.call(request);
        Box::pin(async move {
            let Some(deadline) = exchange.deadline else { return call.await };
            match tokio::time::timeout_at(deadline, call).await {
                Ok(answer) => answer,
                Err(_) if exchange.may_have_acted() => Err(exchange.complete(Failure::sent(Fault::Deadline))),
                Err(_) => Err(Failure::not_sent(Fault::Deadline)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::message::failure::Progress;
    use crate::resilience::timeout::tests::{request_with, stuck};

    #[tokio::test(start_paused = true)]
    async fn nothing_outlives_the_deadline() {
        let started = Instant::now();
        let request = request_with(Body::empty(), Some(started + Duration::from_secs(3)));
        let failure = Deadline::new(stuck(false)).call(request).await.err().unwrap();
        assert_eq!((failure.fault, failure.progress), (Fault::Deadline, Progress::NotSent));
        assert_eq!(started.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_may_have_acted() {
        let request = request_with(Body::empty(), Some(Instant::now() + Duration::from_secs(3)));
        let failure = Deadline::new(stuck(true)).call(request).await.err().unwrap();
        assert_eq!((failure.fault, failure.progress), (Fault::Deadline, Progress::Sent));
    }
}
