//! The layer: which requests the cache serves, and what it does with the others.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{AUTHORIZATION, COOKIE, HeaderName, IF_MATCH, IF_UNMODIFIED_SINCE, RANGE};
use http::{Method, Response};
use http_body::Body as _;
use tower::Service;

use super::config::CacheSettings;
use super::directives::Directives;
use super::invalidate::{is_safe, unsafe_call};
use super::note::{Note, Why};
use super::renewal::Renewals;
use super::serve::Server;
use super::state::{ResponseCache, count};
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::resilience::key::KeySource;
use crate::resilience::{Inner, Pending};

/// What is asked of the credential of a tenant, or of the one there is.
pub type OfTenant<T> = Arc<dyn Fn(Option<&str>) -> T + Send + Sync>;

/// What the cache of one route knows about it.
#[derive(Clone)]
pub struct RouteCache {
    /// The route's own settings; sizes are those of the state.
    pub settings: CacheSettings,
    /// Names the credential.
    pub source: KeySource,
    /// Fields of requests that the policy writes: another policy may write another owner's.
    pub written: Vec<HeaderName>,
    /// The version of the credential's secrets, the last known one while they are unavailable.
    pub version: OfTenant<u64>,
    /// Whether the credential could be sent now.
    pub available: OfTenant<bool>,
    /// Where renewals in the background are written down.
    pub renewals: Option<Renewals>,
}

/// Answers from what is kept.
#[derive(Clone)]
pub struct Cache<S> {
    inner: S,
    state: Arc<ResponseCache>,
    route: Arc<RouteCache>,
}

impl<S> Cache<S> {
    /// Puts the cache around `inner`.
    pub fn new(inner: S, state: Arc<ResponseCache>, route: RouteCache) -> Self {
        Self { inner, state, route: Arc::new(route) }
    }
}

impl<S: Inner> Service<EgressRequest> for Cache<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        if request.upgrade {
            return Box::pin(self.inner.call(request));
        }
        let mut inner = self.inner.clone();
        let state = self.state.clone();
        if !is_safe(&request.method) {
            return Box::pin(async move {
                let answer = unsafe_call(&mut inner, &state, request).await?;
                Ok(noted(answer, Why::Method))
            });
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Box::pin(async move { Ok(noted(inner.call(request).await?, Why::Method)) });
        }
        if passes_by(&request) {
            count(&state.counters.bypassed);
            return Box::pin(async move { Ok(noted(inner.call(request).await?, Why::Bypass)) });
        }
        Box::pin(Server { inner, state, route: self.route.clone() }.serve(request))
    }
}

/// Says in an answer's head why its request was forwarded.
pub(super) fn noted(mut answer: Response<Body>, why: Why) -> Response<Body> {
    Note::forwarded(why).append_to(answer.headers_mut());
    answer
}

/// Requests that the cache does not serve: parts of an answer, conditions that only the provider can judge, content, and
/// those that bring a session of their own.
fn passes_by(request: &EgressRequest) -> bool {
    const FIELDS: [HeaderName; 5] = [AUTHORIZATION, COOKIE, RANGE, IF_MATCH, IF_UNMODIFIED_SINCE];
    let headers = &request.headers;
    FIELDS.iter().any(|name| headers.contains_key(name))
        || !request.body.is_end_stream()
        || Directives::of(headers).has("no-store")
}
