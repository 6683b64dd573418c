//! The way of one GET or HEAD through the cache: look, wait for another's answer, ask the provider, keep.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Response};
use tokio::time::Instant;

use super::directives::Directives;
use super::entry::{Slot, Stored};
use super::flight::{Landed, Leader, Role};
use super::forward::Journey;
use super::layer::{RouteCache, noted};
use super::note::{Note, Why};
use super::place::Place;
use super::semantics::Suits;
use super::state::{ResponseCache, count};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressParts, EgressRequest, Exchange};
use crate::resilience::Inner;

/// The longest wait for another's answer; half of what is left until the deadline if that is less.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one request.
#[derive(Clone)]
pub(super) struct Server<S> {
    pub inner: S,
    pub state: Arc<ResponseCache>,
    pub route: Arc<RouteCache>,
}

/// What a look at the kept answers found.
pub(super) struct Found {
    pub slot: Option<Arc<Slot>>,
    pub kept: Option<(Arc<Stored>, Suits)>,
    pub why: Why,
}

/// What the request itself wants of caches (RFC 9111 section 5.2.1).
struct Wants {
    only_if_cached: bool,
    /// It asks for more than a fresh answer.
    more: bool,
}

impl Wants {
    fn of(headers: &HeaderMap) -> Self {
        let directives = Directives::of(headers);
        let more = ["no-cache", "max-age", "min-fresh"].iter().any(|name| directives.has(name));
        Self { only_if_cached: directives.has("only-if-cached"), more }
    }
}

/// What came of waiting for another's answer.
enum Turn {
    Served(Response<Body>),
    Leads(Leader),
    Alone,
}

impl<S: Inner> Server<S> {
    /// The answer to a request, from the cache or from the provider.
    pub async fn serve(mut self, mut request: EgressRequest) -> Result<Response<Body>, Failure> {
        let is_available = (self.route.available)(request.tenant.as_deref());
        if !is_available && self.route.settings.stale_if_error.is_none() {
            count(&self.state.counters.bypassed);
            return Ok(noted(self.inner.call(request).await?, Why::Bypass));
        }
        let version = (self.route.version)(request.tenant.as_deref());
        let place = Place::of(&request, &self.route.source, &self.route.written, version);
        let mut found = self.look(place, &request.headers);
        let wants = Wants::of(&request.headers);
        let at_once = if is_available {
            self.at_once(&request, place, &found, &wants)
        } else {
            self.without_credential(&request, &found)
        };
        if let Some(answer) = at_once {
            return Ok(answer);
        }
        if wants.only_if_cached {
            // RFC 9111 section 5.2.1.7. `Cache-Status` says the same again on the answer that is made of it.
            return Err(Failure::not_sent(Fault::OnlyIfCached));
        }
        let leader = match self.wait(&mut request, place, &mut found, &wants).await {
            Turn::Served(answer) => return Ok(answer),
            Turn::Leads(leader) => Some(leader),
            Turn::Alone => None,
        };
        count(&self.state.counters.misses);
        Journey::new(self, &request, place, found, leader).go(request).await
    }

    fn look(&self, place: Place, asked: &HeaderMap) -> Found {
        let slot = self.state.slot(&place);
        let now = self.state.now();
        let (kept, others) = slot.as_ref().map_or((None, false), |slot| slot.select(asked, now));
        let why = match &kept {
            Some((stored, _)) if stored.head.semantics.is_stale(now) => Why::Stale,
            Some(_) => Why::Request,
            None if others => Why::VaryMiss,
            None => Why::UriMiss,
        };
        Found { slot, kept, why }
    }

    /// The answer that can be given without waiting for anybody.
    fn at_once(
        &self,
        request: &EgressRequest,
        place: Place,
        found: &Found,
        wants: &Wants,
    ) -> Option<Response<Body>> {
        let (stored, suits) = found.kept.as_ref()?;
        let semantics = &stored.head.semantics;
        let now = self.state.now();
        match suits {
            Suits::Fresh => {}
            Suits::Stale if !wants.more && semantics.is_usable_meanwhile(&self.route.settings, now) => {
                self.renew(request, place, found);
            }
            Suits::Stale | Suits::Other => return None,
        }
        Some(self.hit(request, stored, Note::HIT))
    }

    /// The kept answer where the credential is not there to ask for another.
    fn without_credential(&self, request: &EgressRequest, found: &Found) -> Option<Response<Body>> {
        let (stored, suits) = found.kept.as_ref()?;
        let stands_in = stored.head.semantics.is_usable_on_error(&self.route.settings, self.state.now());
        let note = Note { detail: Some("credential-unavailable"), ..Note::HIT };
        (*suits == Suits::Fresh || stands_in).then(|| self.hit(request, stored, note))
    }

    fn hit(&self, request: &EgressRequest, stored: &Stored, note: Note) -> Response<Body> {
        let now = self.state.now();
        count(&self.state.counters.hits);
        if stored.head.semantics.is_stale(now) {
            count(&self.state.counters.stale_served);
        }
        stored.answer(&request.method, &request.headers, now, note)
    }

    /// Waits for the answer to an identical request, if there is one under way. (`&mut`: a body cannot be shared between
    /// threads, so neither can a reference to its request.)
    async fn wait(
        &self,
        request: &mut EgressRequest,
        place: Place,
        found: &mut Found,
        wants: &Wants,
    ) -> Turn {
        let never_fresh =
            found.kept.as_ref().is_some_and(|(stored, _)| !stored.head.semantics.is_ever_fresh());
        let useless = found.slot.as_ref().is_some_and(|slot| slot.useless_to_wait);
        if !self.route.settings.coalesce
            || request.method != Method::GET
            || wants.more
            || never_fresh
            || useless
        {
            return Turn::Alone;
        }
        let key = place.flight(&request.headers, &selecting(found));
        let until = patience(&request.exchange);
        loop {
            let follower = match self.state.flights.join(key) {
                Role::Alone => return Turn::Alone,
                // What another leader kept between our look and now is there already.
                Role::Leads(leader) => {
                    *found = self.look(place, &request.headers);
                    return match self.at_once(request, place, found, wants) {
                        Some(answer) => {
                            leader.land(Landed::Kept);
                            Turn::Served(answer)
                        }
                        None => Turn::Leads(leader),
                    };
                }
                Role::Follows(follower) => follower,
            };
            let since = Instant::now();
            let landed = follower.wait(until).await;
            request.exchange.queued(since.elapsed());
            match landed {
                Some(Landed::Kept) => return self.collapsed(request, place, found),
                Some(Landed::Abandoned) if Instant::now() < until => {}
                Some(Landed::Useless | Landed::Abandoned) | None => return Turn::Alone,
            }
        }
    }

    /// The answer that was waited for, if it is one to this request too.
    fn collapsed(&self, request: &EgressRequest, place: Place, found: &mut Found) -> Turn {
        let why = found.why;
        *found = self.look(place, &request.headers);
        match &found.kept {
            Some((stored, Suits::Fresh)) => {
                count(&self.state.counters.coalesced);
                let note = Note { collapsed: true, ..Note::forwarded(why) };
                let now = self.state.now();
                Turn::Served(stored.answer(&request.method, &request.headers, now, note))
            }
            Some(_) | None => Turn::Alone,
        }
    }
}

/// Fields by which what is kept was selected; empty where nothing is.
pub(super) fn selecting(found: &Found) -> Vec<http::HeaderName> {
    found.slot.as_ref().map(|slot| slot.selecting()).unwrap_or_default()
}

/// Until when to wait for another's answer.
fn patience(exchange: &Exchange) -> Instant {
    let now = Instant::now();
    let left = exchange.deadline.map_or(PATIENCE, |deadline| deadline.saturating_duration_since(now) / 2);
    now + PATIENCE.min(left)
}

/// The request without its body: none that comes here has one.
pub(super) fn copy_head(request: &EgressRequest) -> EgressRequest {
    EgressRequest::from(EgressParts {
        method: request.method.clone(),
        target: request.target.clone(),
        path_and_query: request.path_and_query.clone(),
        headers: request.headers.clone(),
        body: Body::empty(),
        upgrade: false,
        credential_choice: request.credential_choice,
        tenant: request.tenant.clone(),
        leave: None,
        exchange: request.exchange.clone(),
    })
}
