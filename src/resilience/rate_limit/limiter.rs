//! One limit of the policy, alive: its settings, and the store that outlives them.

use std::cmp::Reverse;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::lease::Leases;
use super::settings::{LimitSettings, OnExcess, Unit};
use super::slots::Id;
use super::store::{Edition, Place, Store, Who};
use crate::message::failure::{Failure, Fault, LimitState};
use crate::message::request::EgressRequest;
use crate::resilience::key::{Key, KeySource, Per};

/// How long to stay away where no share of the fleet's limit is there: the fleet shares out again by then.
const NEXT_SHARE: Duration = Duration::from_secs(1);

/// Where tokens come from.
#[derive(Clone)]
pub enum Tokens {
    /// The pod has the rate for itself.
    Own,
    /// All pods share it: each key has what is leased.
    Leased(Arc<dyn Leases>),
}

/// The limiter of one limit: shared by all routes that it holds for, and by all generations.
pub struct Limiter {
    settings: LimitSettings,
    /// `limit:<name>`, what shadow mode writes to the log.
    label: Arc<str>,
    state: Arc<State>,
    edition: Edition,
}

/// What outlives a reload.
struct State {
    store: Arc<Store>,
    /// Limiters are asked in an order that is the same for all routes; see `claims`.
    order: u64,
    counts: Counts,
}

/// What has happened so far.
#[derive(Default)]
pub(super) struct Counts {
    pub admitted: AtomicU64,
    pub waited: AtomicU64,
    pub refused: AtomicU64,
    pub shadowed: AtomicU64,
}

impl Counts {
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

static MADE: AtomicU64 = AtomicU64::new(0);

impl Limiter {
    /// A limiter of which nothing is spent. `tokens` are leased for `scope: fleet`.
    pub fn new(settings: LimitSettings, tokens: Tokens) -> Self {
        let pace = settings.pace();
        let store = Arc::new(Store::new(pace));
        let source = match tokens {
            Tokens::Own => None,
            Tokens::Leased(source) => Some(source),
        };
        let edition = store.edition(pace, source);
        let order = MADE.fetch_add(1, Ordering::Relaxed);
        let label = format!("limit:{}", settings.name).into();
        let state = Arc::new(State { store, order, counts: Counts::default() });
        Self { settings, label, state, edition }
    }

    /// The same, going on from the limiter that had its name before: what was spent stays spent (see
    /// [`Pace::taken_over`](super::pace::Pace::taken_over)), who waits goes on waiting in the same queue, and requests that
    /// still go by the old settings take from the same tokens. In force at the first request under the new settings, so a reload that fails changes nothing.
    ///
    /// A limit that counts by something else than before, or is shared by others than before, starts anew.
    pub fn adopt(mut self, old: &Self) -> Self {
        let counts = |of: &LimitSettings| (of.unit, of.per, of.scope);
        if counts(&self.settings) == counts(&old.settings) {
            self.edition = old.state.store.edition(self.edition.pace, self.edition.source);
            self.state = old.state.clone();
        }
        self
    }

    /// What it was made of.
    pub fn settings(&self) -> &LimitSettings {
        &self.settings
    }

    /// Drops keys of which nothing is spent; for a timer (each minute). Otherwise it is done when a table has doubled.
    pub fn sweep(&self) {
        self.state.store.sweep();
    }

    /// How it stands; cheap.
    pub fn status(&self) -> LimitStatus {
        let (store, counts) = (&self.state.store, &self.state.counts);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let remaining = match (self.settings.per, &self.edition.source) {
            (Per::Provider, None) => store.level(&Store::own(Id::from(Key::ALL)), None).remaining,
            (Per::Provider, Some(_)) => store.lease(Id::from(Key::ALL)).map_or(0, |lease| lease.remaining()),
            (Per::Credential | Per::Tenant | Per::Route, _) => {
                store.fewest().unwrap_or(self.settings.burst.into())
            }
        };
        LimitStatus {
            name: self.settings.name.to_string(),
            rate: self.settings.rate.to_string(),
            burst: self.settings.burst,
            keys: store.keys(),
            waiting: get(&store.waiting),
            admitted: get(&counts.admitted),
            waited: get(&counts.waited),
            refused: get(&counts.refused),
            shadowed: get(&counts.shadowed),
            overflowed: get(&store.overflowed),
            remaining,
        }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.state.store
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.state.counts
    }

    pub(super) fn label(&self) -> &Arc<str> {
        &self.label
    }

    pub(super) fn edition(&self) -> &Edition {
        &self.edition
    }

    /// Where it stands among others: what refuses at once comes before what makes wait; narrow limits before those that count
    /// everything together; later ones before earlier ones (a route's own before its provider's).
    pub(super) fn rank(&self) -> (bool, bool, Reverse<u64>) {
        let waits = self.settings.on_excess == OnExcess::Wait;
        (waits, self.settings.per == Per::Provider, Reverse(self.state.order))
    }

    /// Whose tokens a request takes, and how many. Leased ones are taken one by one: such a limit counts requests.
    pub(super) fn who(&self, source: &KeySource, request: &EgressRequest, cost: NonZeroU32) -> Who {
        let id = Id::from(source.key(self.settings.per, request));
        if self.edition.source.is_none() {
            return Store::own_many(id, self.settings.tokens(cost));
        }
        let tenant = request.tenant.as_deref().unwrap_or_default();
        let lease = |names: &[&str]| self.state.store.leased(id, names, &self.edition);
        let who = match self.settings.per {
            Per::Provider => lease(&[]),
            Per::Route => lease(&[&source.route]),
            Per::Tenant => lease(&[tenant]),
            Per::Credential => lease(&source.credential_names(request)),
        };
        if let Some(lease) = &who.lease {
            lease.ask();
        }
        who
    }

    /// The refusal of a request, with what it takes to be admitted.
    pub(super) fn refuse(&self, fault: Fault, who: &Who, place: Option<&Place>) -> Failure {
        Counts::count(&self.state.counts.refused);
        let level = self.state.store.level(who, place);
        let after = level.wait.map_or(NEXT_SHARE, Duration::from_nanos);
        Failure::not_sent(fault).retry_after(after).limit(LimitState {
            name: self.settings.name.clone(),
            quota: self.settings.rate.count().into(),
            unit: match self.settings.unit {
                Unit::Requests => None,
                Unit::Cost => Some("cost"),
            },
            window: self.settings.rate.per(),
            remaining: level.remaining,
            reset: after,
        })
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Limiter").field(&self.settings).finish()
    }
}

/// What `/status` and `/metrics` show of a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitStatus {
    /// Its name in the policy.
    pub name: String,
    /// Its rate as written.
    pub rate: String,
    /// Its burst.
    pub burst: u32,
    /// Keys that are kept now.
    pub keys: usize,
    /// Requests that wait now.
    pub waiting: u64,
    /// Requests it let through.
    pub admitted: u64,
    /// Of those, how many had to wait.
    pub waited: u64,
    /// Requests it refused.
    pub refused: u64,
    /// Requests that it would have delayed or refused, but for shadow mode.
    pub shadowed: u64,
    /// Requests whose key found no room, and that were counted together.
    pub overflowed: u64,
    /// Tokens that could be taken now, of the key that has the fewest.
    pub remaining: u64,
}
