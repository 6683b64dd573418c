//! What stands between a judged request and the provider: deadline, cache, retries, breaker, quota, limits, timeouts; and the
//! order in which they stand.
//!
//! Every layer is a `tower::Service` over fixed types and generic over its inner service alone. [`wrap`] is the one place
//! that says which layer stands where, with a reason per line. A layer that a route does not need is not in its stack.
//!
//! The whole order is: deadline > cache > name of the quota > retry and healing with the replay body > breaker: look > learned quota > rate
//! limits > concurrency > quota: again > breaker: take > judgement of the answer > attempt timeouts.

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use tower::Service;

use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;

pub mod cache;
pub mod circuit_breaker;
pub mod concurrency;
pub mod deadline;
pub mod fleet;
mod held;
pub mod idempotency;
pub mod key;
pub mod mistake;
pub mod mode;
pub mod pointer;
pub mod quota;
pub mod rate_limit;
pub mod replay;
pub mod responses;
pub mod retry;
pub mod timeout;
pub mod verdict;

use cache::{ResponseCache, RouteCache};
use circuit_breaker::Breakers;
use concurrency::Permits;
use idempotency::IdempotencySettings;
use key::KeySource;
use quota::{NameBucket, Quota, QuotaLayer, QuotaSettings, Recheck};
use rate_limit::{Limiter, RateLimit};
use responses::{Judge, Table};
use retry::{Budget, Heal, RetrySettings};
use timeout::AttemptTimeouts;

/// The future of every layer that waits.
pub type Pending = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

/// A route's stack, erased once. One boxed future a request and no copy of the stack on the heap: measured against
/// `tower::util::BoxCloneSyncService`, which boxes both the clone and the mapped future.
#[derive(Clone)]
pub struct RouteService(Arc<dyn Serve>);

trait Serve: Send + Sync {
    fn serve(&self, request: EgressRequest) -> Pending;
}

impl<S: Inner<Future = Pending>> Serve for S {
    fn serve(&self, request: EgressRequest) -> Pending {
        self.clone().call(request)
    }
}

impl Service<EgressRequest> for RouteService {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        self.0.serve(request)
    }
}

/// A layer whose future is a type of its own.
#[derive(Clone)]
struct Boxing<S>(S);

impl<S: Inner<Future: 'static>> Serve for Boxing<S> {
    fn serve(&self, request: EgressRequest) -> Pending {
        Box::pin(self.0.clone().call(request))
    }
}

impl RouteService {
    fn boxing(stack: impl Inner<Future: 'static>) -> Self {
        Self(Arc::new(Boxing(stack)))
    }

    fn new(stack: impl Inner<Future = Pending>) -> Self {
        Self(Arc::new(stack))
    }

    /// Sends a request through the stack.
    pub fn send(&self, request: EgressRequest) -> Pending {
        self.0.serve(request)
    }
}

/// Shorthand for what every layer wraps.
pub trait Inner:
    Service<EgressRequest, Response = Response<Body>, Error = Failure, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Inner for S where
    S: Service<EgressRequest, Response = Response<Body>, Error = Failure, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// What a route's stack is made of. What is absent is not in the stack.
#[derive(Clone)]
pub struct Layers {
    /// What counted state is keyed by.
    pub keys: KeySource,
    /// Timeouts of each attempt.
    pub attempt: AttemptTimeouts,
    /// What answers mean.
    pub responses: Arc<Table>,
    /// An answer to some route of the provider may pause all buckets of a host, and one of the provider's quotas covers less.
    pub pauses_hosts: bool,
    /// When a request is sent again, and the budget of the provider for it.
    pub retry: Option<(RetrySettings, Arc<Budget>)>,
    /// The credential's way to heal after a 401, where it has one.
    pub heal: Option<Arc<dyn Heal>>,
    /// Keys by which the provider knows a request again.
    pub idempotency: Option<IdempotencySettings>,
    /// The breakers of the provider's hosts, and the name under which shadow mode notes them.
    pub breaker: Option<(Arc<Breakers>, Option<Arc<str>>)>,
    /// What was learned of the provider's quota, and the name under which shadow mode notes it.
    pub quota: Option<(Arc<Quota>, QuotaSettings, Option<Arc<str>>)>,
    /// Rate limits; all of them must admit.
    pub limits: Vec<Arc<Limiter>>,
    /// What one request takes of the limits that count cost.
    pub cost: NonZeroU32,
    /// Answers that are kept.
    pub cache: Option<(Arc<ResponseCache>, RouteCache)>,
    /// Caches of the provider's other routes: what this route changes there is no longer true.
    pub invalidates: Vec<Arc<ResponseCache>>,
    /// Permits of requests at a time, and the name under which shadow mode notes them.
    pub concurrency: Option<(Arc<Permits>, Option<Arc<str>>)>,
    /// The whole provider is tried out.
    pub shadow: bool,
}

/// Default of `retry.replay_buffer`: 64 KiB.
pub const REPLAY_BUFFER: usize = 64 * 1024;

/// Builds the stack of one route around the credential layer. THE order of the layers, from the inside out. Each is erased
/// as it is put on: a stack of eight layers that may each be absent would else be a type for each combination.
pub fn wrap(layers: Layers, credential: impl Inner) -> RouteService {
    // Innermost: each attempt has its own timeouts, so a second attempt does not inherit what the first used up.
    let mut stack = RouteService::new(timeout::Timeout::new(credential, layers.attempt));
    // Around the attempt's timeouts, so that they bound a look into the body; inside all that act on the verdict.
    stack = RouteService::new(Judge::new(stack, layers.responses));
    // After the waits: what queued before the breaker opened does not rush a dead provider, and a probe's place is taken only
    // now. Refused here, token and permit go back.
    if let Some((breakers, shadow)) = &layers.breaker {
        stack = RouteService::boxing(circuit_breaker::Take::new(stack, breakers.clone(), shadow.clone()));
    }
    // Beside it: nor does what queued before the provider throttled. Outside of the probe's place, which is for who is sent.
    let waits = layers.concurrency.is_some() || !layers.limits.is_empty();
    let rechecked = waits && layers.quota.as_ref().is_some_and(|(_, settings, _)| settings.learn);
    if rechecked {
        stack = RouteService::new(Recheck::new(stack));
    }
    // Inside the rate limits, so that a permit is never held through their waits; held until the answer's body ends.
    if let Some((permits, shadow)) = layers.concurrency {
        stack = RouteService::new(concurrency::Concurrency::new(stack, permits, shadow));
    }
    // Each attempt takes a token, because the provider counts attempts. The wait for it is not upstream time.
    if !layers.limits.is_empty() {
        stack = RouteService::new(RateLimit::costing(
            stack,
            layers.limits,
            layers.keys.clone(),
            layers.shadow,
            layers.cost,
        ));
    }
    let named = layers.quota.as_ref().and_then(|(quota, settings, _)| NameBucket::field(quota, settings));
    // Outside the limits: a quota that is held spends none of their tokens.
    if let Some((quota, settings, shadow)) = layers.quota {
        // Also where the bucket is the host's own: it does not hear of what holds those of other routes.
        let wide = layers.pauses_hosts && settings.learn;
        let wide = wide.then(|| (quota.clone(), settings.clone(), shadow.clone()));
        let keys = layers.keys.clone();
        stack = RouteService::new(QuotaLayer::new(stack, quota, settings, keys, shadow, rechecked));
        // Around it: a bucket is waited for when the host as a whole may be asked again.
        if let Some((quota, settings, shadow)) = wide {
            let keys = layers.keys.clone();
            stack = RouteService::new(QuotaLayer::wide(stack, quota, settings, keys, shadow, rechecked));
        }
    }
    // An open breaker refuses before a token is spent, and before anything waits.
    if let Some((breakers, shadow)) = layers.breaker {
        stack = RouteService::new(circuit_breaker::Look::new(stack, breakers, shadow));
    }
    // Outside the attempt timeouts and inside the deadline: it counts for what the app waits for. The replay buffer exists
    // only where something can be sent again. What is sent once may want its key all the same.
    if layers.retry.is_some() || layers.heal.is_some() || layers.idempotency.is_some() {
        let replay_buffer =
            layers.retry.as_ref().map_or(REPLAY_BUFFER, |(settings, _)| settings.replay_buffer);
        let (settings, budget) = layers.retry.unzip();
        stack = RouteService::new(retry::Retry::new(
            stack,
            settings,
            layers.heal,
            layers.idempotency,
            budget,
            replay_buffer,
        ));
    }
    // Outside the attempts: what names the quota is looked for once, before the replay buffer has the body.
    if let Some((quota, field)) = named {
        stack = RouteService::new(NameBucket::new(stack, quota, field));
    }
    // Outside the attempts: a hit costs no quota, no token and no permit.
    for cache in layers.invalidates {
        stack = RouteService::new(cache::Invalidate::new(stack, cache));
    }
    if let Some((cache, route)) = layers.cache {
        stack = RouteService::new(cache::Cache::new(stack, cache, route));
    }
    // Outermost: everything the app waits for counts, queues and attempts together.
    RouteService::new(deadline::Deadline::new(stack))
}

/// A duration that never passes, for arithmetic on optional timeouts: 30 years.
pub(crate) const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
