//! A request on its way to the provider, and what its answer means for what is kept.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{DATE, HeaderMap};
use http::{Method, Response, StatusCode};
use tokio::time::Instant;

use super::entry::{Epoch, KeptHead, Stored, date};
use super::fill::{Filling, land_useless};
use super::flight::{Landed, Leader};
use super::note::{Note, Why};
use super::place::Place;
use super::semantics::{Head, Semantics, Times, http_date};
use super::serve::{Found, Server, copy_head};
use super::state::count;
use super::validator::{self, Validation};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressRequest, Exchange};
use crate::resilience::Inner;
use crate::resilience::circuit_breaker::FallbackAnswer;
use crate::resilience::verdict::{Class, Verdict};

/// Where a stale answer could stand in, the wait for the provider ends so long before the deadline, so that the app gets it.
const MARGIN: Duration = Duration::from_millis(100);

/// One request that goes on to the provider.
pub(super) struct Journey<S> {
    server: Server<S>,
    method: Method,
    exchange: Arc<Exchange>,
    /// Which member of the credential the answer will be kept under.
    member: usize,
    /// The request's fields as the app sent them.
    asked: HeaderMap,
    place: Place,
    why: Why,
    kept: Option<Arc<Stored>>,
    leader: Option<Leader>,
    epoch: Epoch,
    requested: SystemTime,
    in_background: bool,
}

impl<S: Inner> Journey<S> {
    /// Prepares for a request. The epoch is taken here, before anything is sent.
    pub fn new(
        server: Server<S>,
        request: &EgressRequest,
        place: Place,
        found: Found,
        leader: Option<Leader>,
    ) -> Self {
        let epoch = server.state.epoch(place.url);
        let requested = server.state.now();
        let asked = request.headers.clone();
        let kept = found.kept.map(|(stored, _)| stored);
        let why = found.why;
        Self {
            server,
            method: request.method.clone(),
            exchange: request.exchange.clone(),
            member: request.credential_choice,
            asked,
            place,
            why,
            kept,
            leader,
            epoch,
            requested,
            in_background: false,
        }
    }

    /// Nobody waits for the answer, so nothing stands in for it.
    pub fn in_background(mut self) -> Self {
        self.in_background = true;
        self
    }

    /// Asks the provider.
    pub async fn go(mut self, mut request: EgressRequest) -> Result<Response<Body>, Failure> {
        let validation = self.condition(&mut request.headers);
        let again = (validation != Validation::NotOurs).then(|| copy_head(&request));
        let answer = match self.send(request).await {
            Ok(answer) => answer,
            Err(failure) => return self.failed(failure),
        };
        if answer.status() != StatusCode::NOT_MODIFIED {
            return Ok(self.answered(answer));
        }
        match (self.kept.clone(), again) {
            (Some(kept), _) if validator::confirms(validation, &kept.head.headers, answer.headers()) => {
                Ok(self.confirmed(&kept, answer.headers()))
            }
            // It says what the app has.
            _ if validation == Validation::Both && validator::names_theirs(&self.asked, answer.headers()) => {
                Ok(self.not_modified_for_app(answer))
            }
            // Not about what we have, or not said whose: the app might hold something older.
            (Some(_), Some(again)) => {
                if validation == Validation::Ours {
                    self.forget();
                }
                self.kept = None;
                self.once_more(again).await
            }
            _ => Ok(self.not_modified_for_app(answer)),
        }
    }

    fn condition(&self, headers: &mut HeaderMap) -> Validation {
        match &self.kept {
            Some(kept) if self.method == Method::GET => validator::ask(headers, &kept.head.headers),
            Some(_) | None => Validation::NotOurs,
        }
    }

    /// As the app sent it, without conditions of ours.
    async fn once_more(mut self, mut request: EgressRequest) -> Result<Response<Body>, Failure> {
        request.headers = self.asked.clone();
        match self.send(request).await {
            Ok(answer) if answer.status() == StatusCode::NOT_MODIFIED => {
                Ok(self.not_modified_for_app(answer))
            }
            Ok(answer) => Ok(self.answered(answer)),
            Err(failure) => Err(failure),
        }
    }

    async fn send(&mut self, request: EgressRequest) -> Result<Response<Body>, Failure> {
        let exchange = self.exchange.clone();
        let stands_in = self.stand_in().is_some();
        let call = self.server.inner.call(request);
        let Some(deadline) = exchange.deadline.filter(|_| stands_in) else { return call.await };
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout_at(deadline - MARGIN.min(left / 10), call).await {
            Ok(answer) => answer,
            Err(_) if exchange.may_have_acted() => Err(exchange.complete(Failure::sent(Fault::Deadline))),
            Err(_) => Err(Failure::not_sent(Fault::Deadline)),
        }
    }

    /// The kept answer that may stand in for a failure.
    fn stand_in(&self) -> Option<&Arc<Stored>> {
        let settings = &self.server.route.settings;
        let now = self.server.state.now();
        self.kept
            .as_ref()
            .filter(|kept| !self.in_background && kept.head.semantics.is_usable_on_error(settings, now))
    }

    fn failed(self, failure: Failure) -> Result<Response<Body>, Failure> {
        match self.stand_in() {
            Some(kept) if is_bridged(failure.fault) => Ok(self.instead(kept, None)),
            Some(_) | None => Err(failure),
        }
    }

    /// The stale answer in place of a failure.
    fn instead(&self, kept: &Stored, status: Option<StatusCode>) -> Response<Body> {
        let state = &self.server.state;
        count(&state.counters.stale_served);
        let note = Note {
            forwarded_status: status.map(|status| status.as_u16()),
            detail: Some("stale-if-error"),
            ..Note::forwarded(self.why)
        };
        kept.answer(&self.method, &self.asked, state.now(), note)
    }

    fn answered(mut self, mut answer: Response<Body>) -> Response<Body> {
        // outgate's own words while a breaker is open: nothing of the provider's to keep, or to learn from.
        if answer.extensions().get::<FallbackAnswer>().is_some() {
            count(&self.server.state.counters.not_storable);
            Note::forwarded(self.why).append_to(answer.headers_mut());
            return answer;
        }
        let class = Verdict::of(&answer).class;
        let status = answer.status();
        let failed = class.trips() && !status.is_client_error();
        let is_failure = failed || matches!(status.as_u16(), 500 | 502 | 503 | 504);
        if let Some(kept) = self.stand_in().filter(|_| is_failure) {
            return self.instead(kept, Some(status));
        }
        if self.method == Method::HEAD {
            return self.answered_head(answer);
        }
        let received = self.server.state.now();
        date(answer.headers_mut(), received);
        if let Some(semantics) = self.judged(status, answer.headers(), class, received)
            && Filling::may_fit(&self.server.state, answer.body())
        {
            return self.keep(answer, semantics, received);
        }
        count(&self.server.state.counters.not_storable);
        // An answer to the question that must not be kept is still newer than the one that is.
        if matches!(class, Class::Success | Class::Final) && status.as_u16() < 500 {
            self.forget();
            land_useless(&self.server.state, self.place, self.leader.take());
        }
        Note::forwarded(self.why).append_to(answer.headers_mut());
        answer
    }

    fn judged(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        class: Class,
        received: SystemTime,
    ) -> Option<Semantics> {
        if !self.is_of_named_member() {
            return None;
        }
        let times = Times { requested: self.requested, received };
        Semantics::judge(&self.asked, &Head { status, headers, class }, &self.server.route.settings, times)
    }

    /// Whether the attempt carried the member of the credential under whose name its answer would be kept: healing may have
    /// taken another.
    fn is_of_named_member(&self) -> bool {
        let members = &self.server.route.source.credential;
        let facts = self.exchange.facts();
        let carried =
            facts.credential.as_ref().and_then(|sent| members.iter().position(|member| member == sent));
        carried.is_none_or(|carried| carried == self.member)
    }

    /// Keeps the answer as it streams by.
    fn keep(self, mut answer: Response<Body>, semantics: Semantics, now: SystemTime) -> Response<Body> {
        let Self { server, asked, place, why, mut leader, epoch, .. } = self;
        if !semantics.is_ever_fresh() {
            land_useless(&server.state, place, leader.take());
        }
        let note = Note { stored: true, ttl: Some(semantics.ttl(now)), ..Note::forwarded(why) };
        let head = KeptHead::new((answer.status(), answer.version()), answer.headers(), semantics, epoch);
        note.append_to(answer.headers_mut());
        let filling = Filling { state: server.state, place, asked, head, leader };
        answer.map(|body| filling.body(body))
    }

    /// The provider says that what is kept is still right: it is fresh again, and the answer.
    fn confirmed(mut self, kept: &Arc<Stored>, not_modified: &HeaderMap) -> Response<Body> {
        let state = self.server.state.clone();
        let now = state.now();
        count(&state.counters.revalidated);
        let mut headers = validator::updated(&kept.head.headers, not_modified);
        if !not_modified.contains_key(DATE) {
            headers.insert(DATE, http_date(now));
        }
        let is_kept = |semantics: &Option<Semantics>| semantics.is_some() && self.epoch.lasts();
        let judged = self.judged(kept.head.status, &headers, Class::Success, now);
        let is_kept = is_kept(&judged);
        let semantics = judged.unwrap_or_else(|| kept.head.semantics.clone());
        let is_ever_fresh = semantics.is_ever_fresh();
        let leader = self.leader.take();
        let (why, place, method) = (self.why, self.place, self.method.clone());
        let head = KeptHead::new((kept.head.status, kept.head.version), &headers, semantics, self.epoch);
        let renewed = Arc::new(Stored { head, body: kept.body.clone() });
        if is_kept {
            state.keep(place, renewed.clone(), &self.asked);
        } else {
            state.forget(place, kept);
        }
        if is_kept && is_ever_fresh {
            leader.map(|leader| leader.land(Landed::Kept));
        } else {
            land_useless(&state, place, leader);
        }
        let note = Note { forwarded_status: Some(304), ..Note::forwarded(why) };
        renewed.answer(&method, &self.asked, now, note)
    }

    /// A 304 that answers the app's own condition.
    fn not_modified_for_app(mut self, mut answer: Response<Body>) -> Response<Body> {
        if let Some(leader) = self.leader.take() {
            leader.land(Landed::Useless);
        }
        Note::forwarded(self.why).append_to(answer.headers_mut());
        answer
    }

    /// A HEAD keeps nothing, and shows when what is kept is out of date (RFC 9111 section 4.3.5).
    fn answered_head(self, mut answer: Response<Body>) -> Response<Body> {
        if let Some(kept) = &self.kept
            && answer.status() == StatusCode::OK
            && validator::differ(&kept.head.headers, answer.headers())
        {
            self.forget();
        }
        Note::forwarded(self.why).append_to(answer.headers_mut());
        answer
    }

    fn forget(&self) {
        if let Some(kept) = &self.kept {
            self.server.state.forget(self.place, kept);
        }
    }
}

/// Whether a stale answer may stand in for a failure: what would be a 5xx for which the provider, the way to it, or a secret
/// store is the cause. Not a refusal of the policy, not the app's own doing, and not a certificate that is wrong: somebody
/// else may stand at the provider's address, and that must not go unseen.
const fn is_bridged(fault: Fault) -> bool {
    match fault {
        Fault::Dns
        | Fault::DnsTimeout
        | Fault::ConnectRefused
        | Fault::ConnectUnroutable
        | Fault::Connect
        | Fault::ConnectTimeout
        | Fault::UpstreamProxy
        | Fault::TlsAlert
        | Fault::TlsProtocol
        | Fault::TlsTimeout
        | Fault::QueueFull
        | Fault::ConcurrencyLimit
        | Fault::BreakerOpen
        | Fault::ConnectionLimit
        | Fault::Reset
        | Fault::Protocol
        | Fault::HeadTooLarge
        | Fault::Withheld
        | Fault::ResponseTimeout
        | Fault::IdleTimeout
        | Fault::Deadline
        | Fault::Total
        | Fault::Credential => true,
        Fault::AddressDenied
        | Fault::OwnListener
        | Fault::TlsCertificate
        | Fault::RateLimited
        | Fault::QuotaHeld
        | Fault::OnlyIfCached
        | Fault::Upgrade
        | Fault::TargetTooLong
        | Fault::Unfit(_)
        | Fault::BodyTooLargeToRewrite
        | Fault::Forbidden(_)
        | Fault::DownstreamGone
        | Fault::DownstreamMalformed
        | Fault::DownstreamStalled
        | Fault::BodyTooLarge
        | Fault::Internal => false,
    }
}
