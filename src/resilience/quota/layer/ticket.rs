//! What a request has of its quota: a pass while it is on its way, which comes back exactly once.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response};
use tokio::time::Instant;

use super::{MOST_RECALLS, Named, Route, UNTOLD};
use crate::message::body::Body;
use crate::message::failure::{Failure, Progress};
use crate::message::request::{EgressRequest, Exchange, Leave, Number};
use crate::resilience::key::Key;
use crate::resilience::quota::entry::Entry;
use crate::resilience::quota::fields;
use crate::resilience::quota::key_state::{Answer, Pass};
use crate::resilience::quota::state::{HostPause, count};
use crate::resilience::verdict::{Verdict, WholeHost};

/// A request that was let through. Gives its place back if it is dropped without an answer.
pub(super) struct Ticket {
    pub(super) route: Arc<Route>,
    pub(super) entry: Arc<Entry>,
    pub(super) named: Option<Named>,
    pub(super) pass: Option<Pass>,
    pub(super) exchange: Arc<Exchange>,
    /// The leave that a layer further out has given.
    pub(super) outer: Option<Arc<Leave>>,
    /// How often it came back, because its leave was taken back.
    pub(super) recalls: u32,
    /// The number of the first pass that was taken back: it stays ahead of those who came later.
    pub(super) first_pass: Option<u64>,
    /// What a request that came back had further in.
    pub(super) further_in: Option<Number>,
}

impl Ticket {
    /// Waits for a pass. Returns what is left of `patience`, which counts for all waits of a request together.
    pub(super) async fn wait(&mut self, patience: Duration) -> Result<Duration, Failure> {
        let started = Instant::now();
        let pass = self.route.wait(&self.entry, &self.exchange, started, patience, self.first_pass).await;
        let waited = started.elapsed();
        self.exchange.queued(waited);
        self.pass = Some(pass?);
        count(&self.route.quota.counters.waited, 1);
        Ok(patience.saturating_sub(waited))
    }

    /// What the request is asked about again behind its other waits. Shadow mode holds nobody.
    pub(super) fn leave(&self) -> Option<Leave> {
        let asked = self.route.rechecked && self.route.shadow.is_none() && self.recalls < MOST_RECALLS;
        match self.pass.as_ref().filter(|_| asked) {
            Some(pass) => {
                let number = self.first_pass.unwrap_or(pass.seq());
                let leave = self.entry.leave(pass, number, self.outer.clone());
                Some(leave.with_number(self.further_in.clone()))
            }
            None => self.outer.as_deref().cloned(),
        }
    }

    /// The same as [`Ticket::settle`]; or, where it came back unsent, the request, and another pass for it if there is one. What a
    /// layer further out has called back is that one's.
    pub(super) fn settle_or_back(
        &mut self,
        mut outcome: Result<Response<Body>, Failure>,
    ) -> Result<Result<Response<Body>, Failure>, EgressRequest> {
        if self.outer.as_ref().is_some_and(|outer| !outer.holds()) {
            return Ok(self.settle(outcome));
        }
        let Some(unsent) = outcome.as_mut().err().and_then(|failure| failure.handed_back.take()) else {
            return Ok(self.settle(outcome));
        };
        self.recalls += 1;
        count(&self.route.quota.counters.recalled, 1);
        self.first_pass = self.first_pass.or(self.pass.map(|pass| pass.seq()));
        self.give_back(false);
        self.pass = self.route.pass_at_once(&self.entry, &self.exchange, Instant::now(), self.first_pass);
        let request = unsent.into_request();
        self.further_in = request.leave.as_ref().map(Leave::number);
        Err(request)
    }

    /// Learns from what the request came to.
    pub(super) fn settle(
        &mut self,
        outcome: Result<Response<Body>, Failure>,
    ) -> Result<Response<Body>, Failure> {
        match &outcome {
            Ok(answer) => self.answered(answer),
            Err(failure) => self.give_back(failure.progress != Progress::NotSent),
        }
        outcome
    }

    fn answered(&mut self, answer: &Response<Body>) {
        let route = self.route.clone();
        let settings = &route.settings;
        if route.wide {
            // A wait of nothing is one that was rounded down.
            let told = || Verdict::of(answer).wait.filter(|wait| !wait.is_zero());
            let pause = WholeHost::is_on(answer).then(|| match told() {
                Some(wait) => HostPause { length: wait.min(settings.max_hold), told: true },
                None => HostPause { length: UNTOLD.min(settings.max_hold), told: false },
            });
            if let Some(pass) = self.pass.take() {
                route.quota.answered_for_all(&self.entry, pass, pause);
            }
            return;
        }
        let learned = Answer {
            verdict: Verdict::of(answer),
            readings: fields::read(&settings.fields, answer.headers(), settings.max_hold),
            max_hold: settings.max_hold,
        };
        if let Some(entry) = self.other_entry(answer.headers()) {
            self.give_back(false);
            let pass = entry.force(Instant::now());
            route.quota.answered(&entry, pass, &learned, settings.reserve);
        } else if let Some(pass) = self.pass.take() {
            route.quota.answered(&self.entry, pass, &learned, settings.reserve);
        }
    }

    /// The entry of the bucket that the answer names, where it is not the one that was guessed.
    fn other_entry(&self, headers: &HeaderMap) -> Option<Arc<Entry>> {
        let named = self.named.as_ref()?;
        let Some(bucket) = self.route.quota.buckets.learn(named.place, headers.get(&named.field)?) else {
            count(&self.route.quota.counters.absurd, 1);
            return None;
        };
        if named.bucket.as_ref() == Some(&bucket) {
            return None;
        }
        let tenant = named.tenant.as_deref().unwrap_or_default();
        let names = [&*self.entry.names.credential, tenant, &named.host, "bucket", &bucket];
        Some(self.route.entry(Key::of(&names), names, Instant::now()))
    }

    fn give_back(&mut self, counted: bool) {
        if let Some(pass) = self.pass.take() {
            self.entry.lost(Instant::now(), pass, counted);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.give_back(self.exchange.may_have_acted());
    }
}
