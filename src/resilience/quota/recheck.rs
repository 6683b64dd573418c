//! The second look at a quota, behind the waits for limits and permits.

use std::task::{Context, Poll};

use futures_util::future::ready;
use http::Response;
use tower::Service;

use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressRequest, Leave};
use crate::resilience::{Inner, Pending};

/// Stands behind the waits for limits and permits: what queued there before the provider throttled, or before it told that
/// nothing is left, goes back to wait for its quota, and what it had taken meanwhile is given back.
#[derive(Clone)]
pub struct Recheck<S> {
    inner: S,
}

impl<S> Recheck<S> {
    /// Puts the second look around `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: Inner<Future = Pending>> Service<EgressRequest> for Recheck<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        if request.leave.as_ref().is_none_or(Leave::holds) {
            return self.inner.call(request);
        }
        Box::pin(ready(Err(Failure::not_sent(Fault::QuotaHeld).handing_back(request))))
    }
}
