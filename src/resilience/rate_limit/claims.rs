//! What one request wants of the limits of its route: a token of each, all taken at the same moment.
//!
//! A token taken early and held while the next limit makes the request wait would let requests bunch up behind that limit and
//! break the first one's window when they are sent. So a request holds *places* while it waits, and takes all tokens at once
//! when it is first in every line and every limit has one.
//!
//! Lines are joined in an order that is the same for all requests, so none waits for another in a circle; narrow limits (per
//! tenant, credential, route) come first, so one tenant that waits for its own limit does not hold up the others.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::lease::Taken;
use super::limiter::{Counts, Limiter};
use super::settings::OnExcess;
use super::store::{NoPlace, Place, Turn, Who};
use crate::message::failure::{Failure, Fault, Progress};
use crate::message::request::{EgressRequest, Exchange};
use crate::resilience::FOREVER;
use crate::resilience::key::KeySource;

/// How late a token may be that was promised in time, before its request gives up: timers and busy threads.
const LATE: Duration = Duration::from_millis(50);

/// How long a request waits for the first share of the fleet's limit where it would else be refused at once: that share is
/// asked for with the request, and mostly there after a few milliseconds (a call may take 100 ms).
const FIRST_SHARE: Duration = Duration::from_millis(150);

/// The limits of a route, in the order in which they are asked, and what its keys are made of.
pub(super) struct Limits {
    all: Vec<Arc<Limiter>>,
    /// The first so many are enforced; the rest is tried out.
    enforced: usize,
    source: KeySource,
    cost: NonZeroU32,
}

impl Limits {
    /// Orders them; with `shadow` none is enforced.
    pub fn new(mut all: Vec<Arc<Limiter>>, source: KeySource, shadow: bool) -> Self {
        let tried = |limit: &Limiter| shadow || limit.settings().mode.is_shadow();
        all.sort_by_key(|limit| (tried(limit), limit.rank()));
        let enforced = all.iter().filter(|limit| !tried(limit)).count();
        Self { all, enforced, source, cost: NonZeroU32::MIN }
    }

    /// The same, of a route whose requests cost so much.
    pub fn costing(self, cost: NonZeroU32) -> Self {
        Self { cost, ..self }
    }
}

/// The claim on one limit.
struct Claim {
    who: Who,
    place: Option<Place>,
    taken: Option<Taken>,
    waited: bool,
}

/// The claims of one request. Dropping them gives up places, and gives back tokens that provably were not used.
pub(super) struct Claims {
    limits: Arc<Limits>,
    // Most routes have one limit: no list is made for it.
    first: Claim,
    more: Vec<Claim>,
    exchange: Arc<Exchange>,
}

impl Claims {
    /// Claims that hold nothing yet; `None` where there is no limit.
    pub fn new(limits: &Arc<Limits>, request: &EgressRequest) -> Option<Self> {
        let mut claims = limits.all.iter().map(|limit| Claim {
            who: limit.who(&limits.source, request, limits.cost),
            place: None,
            taken: None,
            waited: false,
        });
        let (first, more) = (claims.next()?, claims.collect());
        Some(Self { limits: limits.clone(), first, more, exchange: request.exchange.clone() })
    }

    /// Takes a token of each limit, if each has one now. `Err` with the first that has none.
    pub fn admit_at_once(&mut self) -> Result<(), usize> {
        self.take_all()?;
        self.admitted();
        Ok(())
    }

    /// Waits for what is `missing`, where the limits say so, and takes a token of each.
    pub async fn admit(&mut self, missing: usize) -> Result<(), Failure> {
        self.wait_for_all(missing).await?;
        self.admitted();
        Ok(())
    }

    fn admitted(&mut self) {
        self.try_out();
        for index in 0..self.limits.enforced {
            let (limit, claim) = self.at(index);
            Counts::count(&limit.counts().admitted);
            if claim.waited {
                Counts::count(&limit.counts().waited);
            }
        }
    }

    /// What became of the request: tokens are spent, unless nothing was sent because of outgate itself.
    pub fn settle<T>(&mut self, outcome: &Result<T, Failure>) {
        match outcome {
            Err(failure) if was_held_back(failure) => self.give_back(self.limits.all.len()),
            _ => self.spend(),
        }
    }

    async fn wait_for_all(&mut self, mut missing: usize) -> Result<(), Failure> {
        let waiting = Waiting { exchange: self.exchange.clone(), since: Instant::now() };
        self.foresee(waiting.since)?;
        loop {
            if self.on_excess(missing) == OnExcess::Reject && !self.first_share(missing, waiting.since).await
            {
                return Err(self.refuse(missing, Fault::RateLimited));
            }
            // Also those that have a token now: their lines are held while waiting in a later one.
            for index in 0..=missing {
                if self.on_excess(index) == OnExcess::Wait {
                    self.wait_for(index, waiting.since).await?;
                }
            }
            match self.take_all() {
                Ok(()) => return Ok(()),
                Err(next) => missing = next,
            }
        }
    }

    /// Waits for the first share of a limit that refuses at once. The share that this pod could take without asking may be in
    /// use elsewhere; and a 429 would blame the app for nothing. False where there is a share, and it is used up.
    async fn first_share(&mut self, index: usize, since: Instant) -> bool {
        let deadline = self.exchange.deadline;
        let (limit, claim) = self.at(index);
        let most = u64::from(limit.settings().max_queue);
        let Some(lease) = claim.who.lease.clone().filter(|lease| !lease.has_share()) else { return false };
        if lease.waiting() >= most {
            return false;
        }
        claim.waited = true;
        let until = since + FIRST_SHARE;
        lease.share_by(deadline.map_or(until, |deadline| deadline.min(until))).await
    }

    /// Refuses at once what would wait for one of the limits for too long, though its turn in another line comes first. Who
    /// will join that line from another one meanwhile is not foreseen: such a request is refused when it gets there.
    fn foresee(&mut self, since: Instant) -> Result<(), Failure> {
        for index in 0..self.limits.enforced {
            let left = self.end(index, since).saturating_duration_since(since);
            let (limit, claim) = self.at(index);
            // A lease may grow at any moment.
            if limit.settings().on_excess == OnExcess::Reject || claim.who.lease.is_some() {
                continue;
            }
            let wait = limit.store().level(&claim.who, None).wait;
            if wait.is_some_and(|wait| Duration::from_nanos(wait) > left) {
                return Err(self.refuse(index, Fault::RateLimited));
            }
        }
        Ok(())
    }

    /// Waits until it is first in the line of one limit, and that has a token.
    async fn wait_for(&mut self, index: usize, since: Instant) -> Result<(), Failure> {
        let end = self.end(index, since);
        if self.at(index).1.place.is_none() {
            self.join(index, end)?;
        }
        let deadline = self.exchange.deadline;
        let (_, claim) = self.at(index);
        let Some(place) = &claim.place else { return Ok(()) };
        claim.waited |= place.turn() != Turn::Now;
        let promised = place.expected + LATE;
        let end = end.max(deadline.map_or(promised, |deadline| promised.min(deadline)));
        if place.wait_until(end).await { Ok(()) } else { Err(self.refuse(index, Fault::RateLimited)) }
    }

    fn join(&mut self, index: usize, end: Instant) -> Result<(), Failure> {
        let left = end.saturating_duration_since(Instant::now());
        let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
        let (limit, claim) = self.at(index);
        let most = limit.settings().max_queue as usize;
        match limit.store().join(&claim.who, limit.edition(), most, left) {
            Ok(place) => {
                claim.place = Some(place);
                Ok(())
            }
            Err(NoPlace::Full) => Err(self.refuse(index, Fault::QueueFull)),
            Err(NoPlace::TooLong) => Err(self.refuse(index, Fault::RateLimited)),
        }
    }

    /// When it gives up.
    fn end(&self, index: usize, since: Instant) -> Instant {
        let end = since + self.limits.all[index].settings().max_wait;
        self.exchange.deadline.map_or(end, |deadline| deadline.min(end))
    }

    /// A token of each enforced limit, or none; then the first that has none.
    fn take_all(&mut self) -> Result<(), usize> {
        for index in 0..self.limits.enforced {
            if !self.take(index) {
                self.give_back(index);
                return Err(index);
            }
        }
        // Only now, so that whoever is refused by a later limit keeps its place in the lines before.
        for index in 0..self.limits.enforced {
            self.at(index).1.place = None;
        }
        Ok(())
    }

    fn take(&mut self, index: usize) -> bool {
        let (limit, claim) = self.at(index);
        claim.taken = limit.store().take(&mut claim.who, limit.edition(), claim.place.as_ref()).ok();
        claim.taken.is_some()
    }

    /// Limits in shadow mode are asked last, and have their say in the log only.
    fn try_out(&mut self) {
        for index in self.limits.enforced..self.limits.all.len() {
            let taken = self.take(index);
            let limit = &self.limits.all[index];
            if taken {
                Counts::count(&limit.counts().admitted);
            } else {
                Counts::count(&limit.counts().shadowed);
                self.exchange.shadowed(limit.label());
            }
        }
    }

    /// The refusal, by the limit that lets the request through last: before that it would be refused again.
    fn refuse(&mut self, index: usize, fault: Fault) -> Failure {
        let mut slowest = (self.wait(index), index);
        for other in (0..self.limits.enforced).filter(|other| *other != index) {
            let wait = self.wait(other);
            // Without a wait: a share of the fleet's that is not known yet.
            if wait > slowest.0 && slowest.0.is_some() {
                slowest = (wait, other);
            }
        }
        let (limit, claim) = self.at(slowest.1);
        limit.refuse(fault, &claim.who, claim.place.as_ref())
    }

    /// Nanoseconds until this limit would let the request through, as far as it is known.
    fn wait(&mut self, index: usize) -> Option<u64> {
        let (limit, claim) = self.at(index);
        limit.store().level(&claim.who, claim.place.as_ref()).wait
    }

    fn give_back(&mut self, before: usize) {
        for index in 0..before {
            let (limit, claim) = self.at(index);
            if let Some(taken) = claim.taken.take() {
                limit.store().give_back(&claim.who, taken);
            }
        }
    }

    fn spend(&mut self) {
        self.first.taken = None;
        for claim in &mut self.more {
            claim.taken = None;
        }
    }

    fn on_excess(&self, index: usize) -> OnExcess {
        self.limits.all[index].settings().on_excess
    }

    /// A limit, and the claim on it.
    fn at(&mut self, index: usize) -> (&Limiter, &mut Claim) {
        let claim = match index {
            0 => &mut self.first,
            _ => &mut self.more[index - 1],
        };
        (&self.limits.all[index], claim)
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        // The request was cancelled. What an earlier attempt sent counts as sent here too, and so does a connection that was
        // being made, as one that failed does: then nothing is given back.
        if !self.exchange.has_called() {
            self.give_back(self.limits.all.len());
        }
    }
}

impl Place {
    /// Waits until this is the first in line and there is a token; false if that is not so at `end`.
    async fn wait_until(&self, end: Instant) -> bool {
        loop {
            // Before the look, so that no change is missed between the look and the wait.
            let changed = self.lease().map(|lease| lease.changed());
            let (turn, now) = (self.turn(), Instant::now());
            let soon = match turn {
                Turn::Now => return true,
                Turn::In(Some(wait)) => now + Duration::from_nanos(wait).min(FOREVER),
                Turn::In(None) | Turn::Behind => end,
            };
            if now >= end {
                return false;
            }
            let first = turn != Turn::Behind;
            tokio::select! {
                () = self.woken.notified() => {}
                () = sleep_until(soon.min(end)) => {}
                // Only the first in line looks at what a changed lease means; the others would all wake for nothing.
                () = async { match changed { Some(changed) => changed.await, None => std::future::pending().await } }, if first => {}
            }
        }
    }
}

/// Counts the time of a wait, however it ends.
struct Waiting {
    exchange: Arc<Exchange>,
    since: Instant,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.exchange.queued(self.since.elapsed());
    }
}

/// Whether outgate itself kept the request from being sent, before anything went towards the provider. An attempt to connect
/// that failed is not given back: a provider that is down is not to be called faster than the limit either.
fn was_held_back(failure: &Failure) -> bool {
    failure.progress == Progress::NotSent
        && matches!(
            failure.fault,
            Fault::AddressDenied
                | Fault::OwnListener
                | Fault::RateLimited
                | Fault::QuotaHeld
                | Fault::QueueFull
                | Fault::ConcurrencyLimit
                | Fault::BreakerOpen
                | Fault::ConnectionLimit
                | Fault::Credential
                | Fault::TargetTooLong
                | Fault::Unfit(_)
                | Fault::BodyTooLargeToRewrite
                | Fault::Forbidden(_)
        )
}
