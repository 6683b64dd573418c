//! The layer: each attempt takes a token of each limit before it goes on, because the provider counts attempts.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use tower::Service;

use super::claims::{Claims, Limits};
use super::limiter::Limiter;
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::resilience::key::KeySource;
use crate::resilience::{Inner, Pending};

/// Keeps the rate limits of one route.
#[derive(Clone)]
pub struct RateLimit<S> {
    inner: S,
    // One count for the copy of the stack that each request makes.
    limits: Arc<Limits>,
}

impl<S> RateLimit<S> {
    /// Puts the limits around `inner`; all must admit a request. With `shadow` (the provider's `mode`) none is enforced.
    pub fn new(inner: S, limits: Vec<Arc<Limiter>>, source: KeySource, shadow: bool) -> Self {
        Self::costing(inner, limits, source, shadow, NonZeroU32::MIN)
    }

    /// The same, of a route whose requests cost so much of the limits that count cost.
    pub fn costing(
        inner: S,
        limits: Vec<Arc<Limiter>>,
        source: KeySource,
        shadow: bool,
        cost: NonZeroU32,
    ) -> Self {
        Self { inner, limits: Arc::new(Limits::new(limits, source, shadow).costing(cost)) }
    }
}

impl<S: Inner> Service<EgressRequest> for RateLimit<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        let Some(mut claims) = Claims::new(&self.limits, &request) else {
            return Box::pin(self.inner.call(request));
        };
        // Mostly there is a token for it; the future of the wait is large, and would be moved for each request.
        let Err(missing) = claims.admit_at_once() else {
            let call = self.inner.call(request);
            return Box::pin(async move {
                let outcome = call.await;
                claims.settle(&outcome);
                outcome
            });
        };
        let mut inner = self.inner.clone();
        Box::pin(async move {
            claims.admit(missing).await?;
            let outcome = inner.call(request).await;
            claims.settle(&outcome);
            outcome
        })
    }
}
