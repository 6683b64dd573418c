//! The layer: a permit around each attempt, until the body of its answer ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tower::Service;

use super::permits::{Held, Permits};
use crate::message::body::{Body, BodyError};
use crate::message::failure::Failure;
use crate::message::request::{EgressRequest, Exchange};
use crate::resilience::{Inner, Pending};

/// Bounds how many attempts run at a time.
#[derive(Clone)]
pub struct Concurrency<S> {
    inner: S,
    permits: Arc<Permits>,
    shadow: Option<Arc<str>>,
}

impl<S> Concurrency<S> {
    /// Puts the bound around `inner`. `shadow` is the label under which shadow mode notes what would wait or be refused.
    pub fn new(inner: S, permits: Arc<Permits>, shadow: Option<Arc<str>>) -> Self {
        Self { inner, permits, shadow }
    }
}

impl<S: Inner> Service<EgressRequest> for Concurrency<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        let held = match (self.permits.try_enter(), &self.shadow) {
            (Some(held), _) => held,
            (None, Some(label)) => {
                let_pass(&self.permits, &request.exchange, label);
                return Box::pin(self.inner.call(request));
            }
            (None, None) => {
                let (mut inner, permits) = (self.inner.clone(), self.permits.clone());
                return Box::pin(async move {
                    let held = permits.enter(&request.exchange).await?;
                    Ok(until_end(inner.call(request).await?, held))
                });
            }
        };
        let call = self.inner.call(request);
        Box::pin(async move { Ok(until_end(call.await?, held)) })
    }
}

/// Shadow mode: the request passes, without a permit. A request that has several attempts is counted once.
fn let_pass(permits: &Permits, exchange: &Exchange, label: &Arc<str>) {
    let known = exchange.facts().shadowed.contains(label);
    if !known {
        exchange.shadowed(label);
        permits.let_pass();
    }
}

/// Ties the permit to the body, where there is one to come.
fn until_end(response: Response<Body>, held: Held) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS || response.body().is_end_stream() {
        return response;
    }
    response.map(|body| Body::boxed(HeldBody { body, held: Some(held) }))
}

/// A body that gives a permit back at its end.
struct HeldBody {
    body: Body,
    held: Option<Held>,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // hyper does not ask again after the frame with which a body of known length ends.
        let ended = !matches!(frame, Some(Ok(_))) || self.body.is_end_stream();
        if ended {
            self.held = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
