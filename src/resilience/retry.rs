//! The attempt loop. Today it heals: after an answer of class `unauthorized` the credential is re-read, or the next member
//! of a list is taken, and the request is sent once more, under the ground that a 401 proves that nothing was done.
//!
//! Limits: one healing per request, and only where the body can be sent again. A second 401 goes to the app.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Response, StatusCode};
use tower::Service;

use super::replay::Replay;
use super::{Inner, Pending};
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;

/// What a credential can do about an `unauthorized` answer.
pub trait Heal: Send + Sync {
    /// Which member of the credential a request takes first.
    fn preferred(&self) -> usize;

    /// After `tried` was refused: which member to take now, or nothing if there is no other and re-reading changed nothing.
    /// `stamp` is the preparation that the refused attempt carried (`Facts::credential_stamp`).
    fn heal(&self, tried: usize, stamp: u64) -> BoxFuture<'_, Option<usize>>;

    /// The member was accepted after another had been refused.
    fn worked(&self, choice: usize);
}

/// `retry.reason` of a request that was sent again with another credential.
pub const REASON_UNAUTHORIZED: &str = "unauthorized";

/// The attempt loop of one route.
#[derive(Clone)]
pub struct Retry<S> {
    inner: S,
    heal: Arc<dyn Heal>,
    replay_buffer: usize,
}

impl<S> Retry<S> {
    /// Puts the loop around `inner`.
    pub fn new(inner: S, heal: Arc<dyn Heal>, replay_buffer: usize) -> Self {
        Self { inner, heal, replay_buffer }
    }
}

impl<S: Inner> Service<EgressRequest> for Retry<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: EgressRequest) -> Pending {
        let mut inner = self.inner.clone();
        let heal = self.heal.clone();
        let body = std::mem::replace(&mut request.body, Body::empty());
        let replay = Replay::new(body, self.replay_buffer);
        Box::pin(async move {
            let choice = heal.preferred();
            let mut again = copy_head(&request);
            request.credential_choice = choice;
            request.body = replay.attempt().unwrap_or_else(Body::empty);
            let answer = inner.call(request).await?;
            if answer.status() != StatusCode::UNAUTHORIZED || !replay.can_repeat() {
                return Ok(answer);
            }
            let stamp = again.exchange.facts().credential_stamp;
            let Some(next) = heal.heal(choice, stamp).await else { return Ok(answer) };
            // An upload that is still under way holds the body; without it there is nothing to send again.
            let Some(body) = replay.attempt() else { return Ok(answer) };
            again.exchange.facts().retry_reason = Some(REASON_UNAUTHORIZED);
            again.credential_choice = next;
            again.body = body;
            drop(answer);
            let answer = inner.call(again).await?;
            if answer.status() != StatusCode::UNAUTHORIZED {
                heal.worked(next);
            }
            Ok(answer)
        })
    }
}

/// The request without its body, for a second attempt.
fn copy_head(request: &EgressRequest) -> EgressRequest {
    EgressRequest {
        method: request.method.clone(),
        target: request.target.clone(),
        path_and_query: request.path_and_query.clone(),
        headers: request.headers.clone(),
        body: Body::empty(),
        upgrade: request.upgrade,
        credential_choice: request.credential_choice,
        tenant: request.tenant.clone(),
        exchange: request.exchange.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt;
    use tower::service_fn;

    use super::*;
    use crate::resilience::timeout::tests::request_with;

    #[derive(Default)]
    struct Members {
        next: Option<usize>,
        asked: AtomicUsize,
        worked: Mutex<Vec<usize>>,
    }

    impl Heal for Members {
        fn preferred(&self) -> usize {
            0
        }
        fn heal(&self, _: usize, _: u64) -> BoxFuture<'_, Option<usize>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::ready(self.next))
        }
        fn worked(&self, choice: usize) {
            self.worked.lock().unwrap().push(choice);
        }
    }

    type Seen = Arc<Mutex<Vec<(usize, String)>>>;

    /// A provider that accepts only the given member and records what it got.
    fn provider(accepts: usize) -> (impl Inner, Seen) {
        let seen: Seen = Arc::default();
        let log = seen.clone();
        let service = service_fn(move |request: EgressRequest| {
            let log = log.clone();
            async move {
                let choice = request.credential_choice;
                let body = request.body.collect().await.unwrap().to_bytes();
                log.lock().unwrap().push((choice, String::from_utf8(body.to_vec()).unwrap()));
                let status = if choice == accepts { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
                let mut response = Response::new(Body::empty());
                *response.status_mut() = status;
                Ok::<_, Failure>(response)
            }
        });
        (service, seen)
    }

    #[tokio::test]
    async fn the_next_member_is_taken_after_a_401_with_the_same_body() {
        let members = Arc::new(Members { next: Some(1), ..Members::default() });
        let (service, seen) = provider(1);
        let mut retry = Retry::new(service, members.clone(), 64);
        let answer = retry.call(request_with(Body::full("pay"), None)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(*seen.lock().unwrap(), [(0, "pay".to_owned()), (1, "pay".to_owned())]);
        assert_eq!(*members.worked.lock().unwrap(), [1]);
    }

    #[tokio::test]
    async fn a_second_401_goes_to_the_app() {
        let members = Arc::new(Members { next: Some(1), ..Members::default() });
        let (service, seen) = provider(7);
        let answer =
            Retry::new(service, members.clone(), 64).call(request_with(Body::empty(), None)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(seen.lock().unwrap().len(), 2);
        assert!(members.worked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_body_that_is_gone_is_not_sent_again() {
        let members = Arc::new(Members { next: Some(1), ..Members::default() });
        let (service, seen) = provider(1);
        let answer = Retry::new(service, members.clone(), 2)
            .call(request_with(Body::full("long"), None))
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(seen.lock().unwrap().len(), 1);
        assert_eq!(members.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn without_another_member_the_401_is_the_answer() {
        let members = Arc::new(Members::default());
        let (service, seen) = provider(1);
        let answer =
            Retry::new(service, members, 64).call(request_with(Body::full("x"), None)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(seen.lock().unwrap().len(), 1);
    }
}
