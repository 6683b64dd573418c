//! What stands between a judged request and the provider: deadlines, healing, timeouts; and the order in which they stand.
//!
//! Every layer is a `tower::Service` over fixed types and generic over its inner service alone. [`wrap`] is the one place
//! that says which layer stands where, with a reason per line. A layer that a route does not need is not in its stack.
//!
//! The whole order of the product is: deadline > cache > replay body > retry and healing > breaker: look > rate limit and
//! quota > concurrency > breaker: take > attempt timeouts. What is not built yet is refused in the policy by name.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;

pub mod cache;
pub mod deadline;
pub mod key;
pub mod mistake;
pub mod replay;
pub mod retry;
pub mod timeout;
pub mod verdict;

use retry::Heal;
use timeout::AttemptTimeouts;

/// The future of every layer that waits.
pub type Pending = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

/// A route's stack, erased once.
pub type RouteService = BoxCloneSyncService<EgressRequest, Response<Body>, Failure>;

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

/// What a route's stack is made of.
#[derive(Clone)]
pub struct Layers {
    /// Timeouts of each attempt.
    pub attempt: AttemptTimeouts,
    /// How many bytes of a request body are kept to be sent again (`retry.replay_buffer`).
    pub replay_buffer: usize,
    /// The credential's way to heal after a 401, where it has one.
    pub heal: Option<Arc<dyn Heal>>,
}

/// Default of `retry.replay_buffer`: 64 KiB.
pub const REPLAY_BUFFER: usize = 64 * 1024;

/// Builds the stack of one route around the credential layer. THE order of the layers; from the outside in.
pub fn wrap(layers: Layers, credential: impl Inner) -> RouteService {
    // Innermost here: each attempt has its own timeouts, so a second attempt does not inherit what the first used up.
    let attempt = timeout::Timeout::new(credential, layers.attempt);
    match layers.heal {
        // Healing stands outside the attempt timeouts and inside the deadline: it counts for what the app waits for.
        // Its replay buffer exists only where something can be sent again.
        Some(heal) => {
            let retry = retry::Retry::new(attempt, heal, layers.replay_buffer);
            RouteService::new(deadline::Deadline::new(retry))
        }
        None => RouteService::new(deadline::Deadline::new(attempt)),
    }
}

/// A duration that never passes, for arithmetic on optional timeouts: 30 years.
pub(crate) const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
