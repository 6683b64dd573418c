//! The injection layer: below it, and only below it, a request holds a secret.
//!
//! Innermost before the provider, so each attempt takes the version of the secret that is current then. On the way back
//! the answer is searched for the credential, because a provider that repeats it would hand it to the app.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use http::header::{ACCEPT_ENCODING, HeaderValue};
use tower::Service;

use super::bound::Credential;
use super::scrub::{Scrub, scrub_response};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::resilience::{Inner, Pending};

/// Injects a credential.
#[derive(Clone)]
pub struct Inject<S> {
    inner: S,
    credential: Arc<Credential>,
    scrub: Scrub,
}

impl<S> Inject<S> {
    /// Puts the injection around the provider.
    pub fn new(inner: S, credential: Arc<Credential>, scrub: Scrub) -> Self {
        Self { inner, credential, scrub }
    }
}

impl<S: Inner> Service<EgressRequest> for Inject<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: EgressRequest) -> Pending {
        let (choice, member, prepared) = match self.credential.choose(request.credential_choice) {
            Ok(chosen) => chosen,
            Err(error) => {
                let mut failure = Failure::not_sent(Fault::Credential).because(error);
                failure.retry_after = self.credential.asked_again_in();
                return ready(failure);
            }
        };
        if prepared.over_long(&request.path_and_query) {
            return ready(Failure::not_sent(Fault::TargetTooLong));
        }
        prepared.inject(&mut request.headers, &mut request.path_and_query);
        if self.scrub == Scrub::Full {
            request.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let exchange = request.exchange.clone();
        {
            let mut facts = exchange.facts();
            facts.prepared = Some(member.reference().clone());
            facts.credential_stamp = prepared.stamp;
            facts.credential_choice = choice;
        }
        let scrub = self.scrub;
        let call = self.inner.call(request);
        Box::pin(async move {
            let response = call.await?;
            match (&prepared.scrubber, scrub) {
                (None, _) | (_, Scrub::Off) => Ok(response),
                (Some(scrubber), Scrub::Standard | Scrub::Full) => {
                    scrub_response(response, scrubber.clone(), scrub, exchange)
                }
            }
        })
    }
}

fn ready(failure: Failure) -> Pending {
    Box::pin(std::future::ready(Err(failure)))
}
