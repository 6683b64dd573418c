//! The injection layer: below it, and only below it, a request holds a secret.
//!
//! Innermost before the provider, so each attempt takes the version of the secret that is current then. On the way back
//! the answer is searched for the credential, because a provider that repeats it would hand it to the app.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::Response;
use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use tokio::time::Instant;
use tower::Service;

use super::bound::Credential;
use super::error::CredentialError;
use super::location::Locations;
use super::member::{Member, Prepared};
use super::rewrite::{Loan, collect};
use super::scrub::{Scrub, scrub_response};
use super::tenants::Credentials;
use crate::message::body::Body;
use crate::message::end::End;
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressParts, EgressRequest, Exchange};
use crate::resilience::{Inner, Pending};

/// Credentials that may end, one after the other, while one attempt waits for a connection.
const MOST_ENDS: usize = 3;
/// When to try again where the credential ended and cannot be replaced within the attempt.
const AGAIN: Duration = Duration::from_secs(1);

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
                let chosen = Chosen::new(credential.account(), choice, member, prepared);
                if chosen.ends.is_some() {
                    return self.clone().send_lasting(request, credential, chosen);
                }
                self.send(request, chosen)
            }
            // A token that has ended or was never there, a tenant who is named for the first time: it is waited for, within the
            // deadline of the request.
            Err(_) if credential.waits() => self.clone().send_later(request, credential),
            Err(error) => ready(missing(&credential, error)),
        }
    }
}

/// What a request carries.
struct Chosen {
    /// Whose credential it is.
    account: u64,
    /// The member's place in the list.
    choice: usize,
    reference: Arc<str>,
    prepared: Arc<Prepared>,
    ends: Option<End>,
}

impl Chosen {
    fn new(account: u64, choice: usize, member: &Member, prepared: Arc<Prepared>) -> Self {
        let (reference, ends) = (member.reference().clone(), member.ends(&prepared));
        Self { account, choice, reference, prepared, ends }
    }
}

/// A request as it was before its credential.
struct Plain {
    path_and_query: PathAndQuery,
    /// Where more was done to it than to write fields and parameters.
    rewritten: Option<(HeaderMap, Kept)>,
}

/// A body that somebody may wrap or replace.
enum Kept {
    Whole(Bytes),
    /// It streams: to be had back as long as it was not begun.
    Lent(Loan),
}

impl Kept {
    fn of(body: &mut Body) -> Self {
        body.at_hand().map_or_else(|| Self::Lent(Loan::of(body)), Self::Whole)
    }

    fn back(self) -> Option<Body> {
        match self {
            Self::Whole(bytes) => Some(Body::full(bytes)),
            Self::Lent(loan) => loan.back(),
        }
    }
}

impl Plain {
    /// What has to be kept. A body that is not touched need not be.
    fn of(request: &mut EgressRequest, prepared: &Prepared) -> Self {
        let rewritten = prepared.per_request.as_ref().map(|_| {
            let parts: &mut EgressParts = request;
            (parts.headers.clone(), Kept::of(&mut parts.body))
        });
        Self { path_and_query: request.path_and_query.clone(), rewritten }
    }

    /// The request as it was; none where its body was begun.
    fn back_in(self, mut request: EgressRequest, own: &Locations) -> Option<EgressRequest> {
        request.path_and_query = self.path_and_query;
        match self.rewritten {
            None => own.strip_headers(&mut request.headers),
            Some((headers, kept)) => (request.headers, request.body) = (headers, kept.back()?),
        }
        Some(request)
    }
}

/// How much of the body is held before the credential is taken.
fn holds(prepared: &Prepared, request: &EgressRequest) -> Option<u64> {
    prepared.per_request.as_ref().and_then(|(work, _)| work.rewriter().holds(request))
}

impl<S: Inner> Inject<S> {
    /// Waits for the credential; and where the body is held, for the body first: the token that was good when the body began
    /// may have ended when it is there.
    fn send_later(self, mut request: EgressRequest, credential: Arc<Credential>) -> Pending {
        Box::pin(async move {
            let mut held = false;
            let chosen = loop {
                let chosen = obtain(&credential, request.credential_choice, &request.exchange).await?;
                match holds(&chosen.prepared, &request).filter(|_| !held) {
                    Some(max) => {
                        let body = collect(std::mem::take(&mut request.body), max).await?;
                        (request.body, held) = (Body::full(body), true);
                    }
                    None => break chosen,
                }
            };
            self.send_lasting(request, credential, chosen).await
        })
    }

    /// Sends a request whose credential ends by itself. One that ended while the request waited for a connection comes back
    /// unsent, and the request goes with the next.
    fn send_lasting(
        mut self,
        mut request: EgressRequest,
        credential: Arc<Credential>,
        mut chosen: Chosen,
    ) -> Pending {
        Box::pin(async move {
            for _ in 0..MOST_ENDS {
                let plain = Plain::of(&mut request, &chosen.prepared);
                let mut failure = match self.send(request, chosen).await {
                    Ok(response) => return Ok(response),
                    Err(failure) => failure,
                };
                let Some(unsent) = failure.handed_back.take() else { return Err(failure) };
                // Who comes back unsent has sent nothing of its body either; else it ends here.
                let Some(plain) = plain.back_in(unsent.into_request(), credential.locations()) else {
                    return Err(failure);
                };
                request = plain;
                chosen = obtain(&credential, request.credential_choice, &request.exchange).await?;
            }
            Err(Failure::not_sent(Fault::Credential).retry_after(AGAIN))
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

    fn send(&mut self, mut request: EgressRequest, chosen: Chosen) -> Pending {
        let Chosen { account, choice, reference, prepared, ends } = chosen;
        if prepared.over_long(&request.path_and_query) {
            return ready(Failure::not_sent(Fault::TargetTooLong));
        }
        let parts: &mut EgressParts = &mut request;
        prepared.inject(&mut parts.headers, &mut parts.path_and_query);
        if self.scrub == Scrub::Full {
            request.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let exchange = request.exchange.clone();
        {
            let mut facts = exchange.facts();
            facts.prepared = Some(reference);
            facts.account = account;
            facts.credential_stamp = prepared.stamp;
            facts.credential_choice = choice;
            facts.credential_ends = ends;
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

/// Waits for the credential, and counts that as time in the queue.
async fn obtain(credential: &Credential, choice: usize, exchange: &Exchange) -> Result<Chosen, Failure> {
    let began = Instant::now();
    let obtained = credential.choose_or_obtain(choice).await;
    exchange.queued(began.elapsed());
    let (choice, member, prepared) = obtained.map_err(|error| missing(credential, error))?;
    Ok(Chosen::new(credential.account(), choice, member, prepared))
}

fn missing(credential: &Credential, error: CredentialError) -> Failure {
    let mut failure = Failure::not_sent(Fault::Credential).because(error);
    failure.retry_after = credential.asked_again_in();
    failure
}

fn ready(failure: Failure) -> Pending {
    Box::pin(std::future::ready(Err(failure)))
}

#[cfg(test)]
mod tests;
