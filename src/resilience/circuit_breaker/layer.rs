//! The two layers of the breaker. See the module's own words for why there are two.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::{Either, Ready, ready as at_once};
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::Service;

use super::breaker::{Broken, Running};
use super::hosts::{Breakers, Refusal};
use super::outcome::{Outcome, body_blames_provider};
use super::settings::Fallback;
use crate::message::body::{Body, BodyError};
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressRequest, Exchange};
use crate::resilience::{Inner, Pending};

type Answer = Result<Response<Body>, Failure>;

/// Stands in the extensions of an answer that is the static fallback, and not the provider's: it is no answer to be kept or
/// learned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FallbackAnswer;

fn refused(refusal: Refusal) -> Failure {
    let failure = Failure::not_sent(Fault::BreakerOpen);
    match refusal.after {
        Some(after) => failure.retry_after(after),
        None => failure,
    }
}

/// Notes what shadow mode lets pass; a request is counted once, though it meets two layers and has several attempts.
fn let_pass(breakers: &Breakers, exchange: &Exchange, label: &Arc<str>) {
    let known = exchange.facts().shadowed.contains(label);
    if !known {
        exchange.shadowed(label);
        count(&breakers.counters().shadowed);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Refuses before anything is spent while the breaker is open, and gives the static fallback for every refusal, its own and
/// that of [`Take`]: so the layers between the two see a refusal as a request that was not sent, and give back what they took.
#[derive(Clone)]
pub struct Look<S> {
    inner: S,
    breakers: Arc<Breakers>,
    shadow: Option<Arc<str>>,
}

impl<S> Look<S> {
    /// Puts the outer half of the breaker around `inner`. `shadow` is the label under which shadow mode notes refusals.
    pub fn new(inner: S, breakers: Arc<Breakers>, shadow: Option<Arc<str>>) -> Self {
        Self { inner, breakers, shadow }
    }
}

impl<S: Inner<Future = Pending>> Service<EgressRequest> for Look<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        match (self.breakers.look(&request.target), &self.shadow) {
            (Err(refusal), None) => {
                count(&self.breakers.counters().refused);
                return Box::pin(at_once(instead(&self.breakers, &request.exchange, refused(refusal))));
            }
            (Err(_), Some(label)) => let_pass(&self.breakers, &request.exchange, label),
            (Ok(()), _) => {}
        }
        // Most have none, and then there is nothing to be done with the answer.
        if !self.breakers.has_static_fallback() {
            return self.inner.call(request);
        }
        let (breakers, exchange) = (self.breakers.clone(), request.exchange.clone());
        let call = self.inner.call(request);
        Box::pin(async move { call.await.or_else(|failure| instead(&breakers, &exchange, failure)) })
    }
}

/// The static fallback for an open breaker, or the failure. With `stale` the cache outside sees the refusal, and does what it can.
/// Where an attempt before this one may have acted, the app must hear that, and no soothing answer.
fn instead(breakers: &Breakers, exchange: &Exchange, failure: Failure) -> Answer {
    match &breakers.settings().fallback {
        Fallback::Static(answer) if failure.fault == Fault::BreakerOpen && !exchange.acted_earlier() => {
            count(&breakers.counters().fallbacks);
            let mut response = answer.response();
            response.extensions_mut().insert(FallbackAnswer);
            Ok(response)
        }
        Fallback::Static(_) | Fallback::None | Fallback::Stale => Err(failure),
    }
}

/// Looks again when a request's turn has come, takes a probe's place where the breaker is half-open, and tells the breaker
/// how the request ended.
#[derive(Clone)]
pub struct Take<S> {
    inner: S,
    breakers: Arc<Breakers>,
    shadow: Option<Arc<str>>,
}

impl<S> Take<S> {
    /// Puts the inner half of the breaker around `inner`. `shadow` is the label under which shadow mode notes refusals.
    pub fn new(inner: S, breakers: Arc<Breakers>, shadow: Option<Arc<str>>) -> Self {
        Self { inner, breakers, shadow }
    }
}

impl<S: Inner> Service<EgressRequest> for Take<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Either<Ready<Answer>, TakeFuture<S::Future>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Self::Future {
        let running = match (self.breakers.take(&request.target), &self.shadow) {
            (Ok(running), _) => running,
            (Err(_), Some(label)) => {
                let_pass(&self.breakers, &request.exchange, label);
                None
            }
            (Err(refusal), None) => {
                count(&self.breakers.counters().refused);
                return Either::Left(at_once(Err(refused(refusal))));
            }
        };
        Either::Right(TakeFuture { answer: self.inner.call(request), running })
    }
}

pin_project! {
    /// The future of [`Take`]. Dropped before its end it gives a probe's place back.
    pub struct TakeFuture<F> {
        #[pin]
        answer: F,
        running: Option<Running>,
    }
}

impl<F: Future<Output = Answer>> Future for TakeFuture<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx));
        let broken = this.running.take().and_then(|running| running.finish(Outcome::of(&answer)));
        Poll::Ready(match (answer, broken) {
            (Ok(response), Some(broken)) if may_break(&response) => {
                Ok(response.map(|body| Body::boxed(WatchedBody { body, broken: Some(broken) })))
            }
            (answer, _) => answer,
        })
    }
}

/// Whether a body is still to come. That of a 101 is not HTTP any more.
fn may_break(response: &Response<Body>) -> bool {
    response.status() != StatusCode::SWITCHING_PROTOCOLS && !response.body().is_end_stream()
}

/// A body that tells the breaker when it breaks off.
struct WatchedBody {
    body: Body,
    broken: Option<Broken>,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Err(error)) if body_blames_provider(error) => {
                if let Some(broken) = self.broken.take() {
                    broken.tell();
                }
            }
            Some(Err(_) | Ok(_)) | None => {}
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
