//! The loop itself.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use tower::Service;

use super::Heal;
use super::budget::Budget;
use super::course::Course;
use super::decide::Outcome;
use super::settings::RetrySettings;
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::resilience::idempotency::{IdempotencySettings, Keyed};
use crate::resilience::{Inner, Pending};

/// The attempt loop of one route.
#[derive(Clone)]
pub struct Retry<S> {
    inner: S,
    plan: Arc<Plan>,
}

/// What all requests of a route have in common.
pub(super) struct Plan {
    pub(super) settings: Option<RetrySettings>,
    pub(super) heal: Option<Arc<dyn Heal>>,
    pub(super) idempotency: Option<IdempotencySettings>,
    pub(super) budget: Option<Arc<Budget>>,
    pub(super) replay_buffer: usize,
}

impl<S> Retry<S> {
    /// Puts the loop around `inner`. Without settings (`retry: off`) it only heals; without `heal` it only repeats.
    /// `replay_buffer` is the number of bytes of a request body that are kept to be sent again.
    pub fn new(
        inner: S,
        settings: Option<RetrySettings>,
        heal: Option<Arc<dyn Heal>>,
        idempotency: Option<IdempotencySettings>,
        budget: Option<Arc<Budget>>,
        replay_buffer: usize,
    ) -> Self {
        Self { inner, plan: Arc::new(Plan { settings, heal, idempotency, budget, replay_buffer }) }
    }
}

impl<S: Inner> Service<EgressRequest> for Retry<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        Box::pin(run(self.inner.clone(), self.plan.clone(), request))
    }
}

/// All attempts of one request. Most need one, and nothing afterwards: what may follow is a future of its own, because a
/// large one would be moved for each request.
async fn run(
    mut inner: impl Inner,
    plan: Arc<Plan>,
    mut request: EgressRequest,
) -> Result<Response<Body>, Failure> {
    let keyed = match &plan.idempotency {
        Some(_) => Box::pin(plan.key(&mut request)).await?,
        None => Keyed::No,
    };
    let mut course = Course::begin(plan, &mut request, keyed);
    let (copy, call) = course.attempt(&mut inner, request);
    let outcome = call.await;
    let ended = course.ended(&outcome);
    if course.is_over(ended) {
        return outcome;
    }
    Box::pin(more(inner, course, copy, outcome, ended)).await
}

/// What follows an attempt.
async fn more(
    mut inner: impl Inner,
    mut course: Course,
    mut copy: Option<EgressRequest>,
    mut outcome: Result<Response<Body>, Failure>,
    mut ended: Outcome,
) -> Result<Response<Body>, Failure> {
    loop {
        let Some((mut request, step)) = copy.zip(course.next(ended).await) else {
            return course.finish(outcome, ended).await;
        };
        course.wait(outcome, step.after).await;
        request.body = step.body;
        let call;
        (copy, call) = course.attempt(&mut inner, request);
        outcome = call.await;
        ended = course.ended(&outcome);
    }
}

impl Plan {
    async fn key(&self, request: &mut EgressRequest) -> Result<Keyed, Failure> {
        match &self.idempotency {
            Some(idempotency) => idempotency.provide(request, self.replay_buffer).await,
            None => Ok(Keyed::No),
        }
    }

    /// Whether the key of the provider stands in bodies.
    pub(super) fn keys_in_bodies(&self) -> bool {
        self.idempotency.as_ref().is_some_and(|keys| keys.field.is_some())
    }

    pub(super) fn may_repeat(&self) -> bool {
        self.heal.is_some() || self.settings.as_ref().is_some_and(|settings| settings.attempts > 1)
    }
}
