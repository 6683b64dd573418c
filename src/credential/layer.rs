//! The injection layer: below it, and only below it, a request holds a secret.
//!
//! Innermost before the provider, so each attempt takes the version of the secret that is current then. On the way back
//! the answer is searched for the credential, because a provider that repeats it would hand it to the app.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::Response;
use http::header::{ACCEPT_ENCODING, HeaderValue};
use tokio::time::Instant;
use tower::Service;

use super::bound::Credential;
use super::error::CredentialError;
use super::member::Prepared;
use super::rewrite::collect;
use super::scrub::{Scrub, scrub_response};
use super::tenants::Credentials;
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::resilience::{Inner, Pending};

/// Injects a credential.
#[derive(Clone)]
pub struct Inject<S> {
    inner: S,
    credentials: Arc<Credentials>,
    scrub: Scrub,
}

impl<S> Inject<S> {
    /// Puts the injection around the provider.
    pub fn new(inner: S, credentials: Arc<Credentials>, scrub: Scrub) -> Self {
        Self { inner, credentials, scrub }
    }
}

impl<S: Inner> Service<EgressRequest> for Inject<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        let credential = match self.credentials.of(request.tenant.as_deref()) {
            Ok(credential) => credential,
            Err(error) => return ready(Failure::not_sent(Fault::Credential).because(error)),
        };
        match credential.choose(request.credential_choice) {
            Ok((choice, member, prepared)) => {
                if holds(&prepared, &request).is_some() {
                    return self.clone().send_later(request, credential);
                }
                let reference = member.reference().clone();
                self.send(request, choice, reference, prepared)
            }
            // A token that has ended or was never there, a tenant who is named for the first time: it is waited for, within the
            // deadline of the request.
            Err(_) if credential.waits() => self.clone().send_later(request, credential),
            Err(error) => ready(missing(&credential, error)),
        }
    }
}

/// How much of the body is held before the credential is taken.
fn holds(prepared: &Prepared, request: &EgressRequest) -> Option<u64> {
    prepared.per_request.as_ref().and_then(|(work, _)| work.rewriter().holds(request))
}

impl<S: Inner> Inject<S> {
    /// Waits for the credential; and where the body is held, for the body first: the token that was good when the body began
    /// may have ended when it is there.
    fn send_later(mut self, mut request: EgressRequest, credential: Arc<Credential>) -> Pending {
        Box::pin(async move {
            let mut held = false;
            let (choice, reference, prepared) = loop {
                let began = Instant::now();
                let obtained = credential.choose_or_obtain(request.credential_choice).await;
                request.exchange.queued(began.elapsed());
                let (choice, member, prepared) = obtained.map_err(|error| missing(&credential, error))?;
                match holds(&prepared, &request).filter(|_| !held) {
                    Some(max) => {
                        let body = collect(std::mem::take(&mut request.body), max).await?;
                        (request.body, held) = (Body::full(body), true);
                    }
                    None => break (choice, member.reference().clone(), prepared),
                }
            };
            self.send(request, choice, reference, prepared).await
        })
    }

    /// Does what there is to do for each request, and sends it.
    fn rewritten(&self, request: EgressRequest, prepared: Arc<Prepared>) -> Pending {
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let Some((work, secrets)) = &prepared.per_request else { return inner.call(request).await };
            let request = work.rewriter().rewrite(request, secrets).await?;
            inner.call(request).await
        })
    }

    fn send(
        &mut self,
        mut request: EgressRequest,
        choice: usize,
        reference: Arc<str>,
        prepared: Arc<Prepared>,
    ) -> Pending {
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
            facts.prepared = Some(reference);
            facts.credential_stamp = prepared.stamp;
            facts.credential_choice = choice;
        }
        let scrub = self.scrub;
        let call = match &prepared.per_request {
            None => Either::Left(self.inner.call(request)),
            Some(_) => Either::Right(self.rewritten(request, prepared.clone())),
        };
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

fn missing(credential: &Credential, error: CredentialError) -> Failure {
    let mut failure = Failure::not_sent(Fault::Credential).because(error);
    failure.retry_after = credential.asked_again_in();
    failure
}

fn ready(failure: Failure) -> Pending {
    Box::pin(std::future::ready(Err(failure)))
}
