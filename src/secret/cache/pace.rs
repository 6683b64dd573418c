//! How often stores are asked for what they do not have. A store that works and says "there is none" does not fail, so its
//! client does not hold such questions back.
//!
//! - The policy's secrets that are not there are asked for again by the clock at most ten times a minute of each store, however
//!   many they are: each of n waits 6 s times n at least. Nobody else waits for that.
//! - Names of tenants come from apps, which can invent them. Of each store, [`AT_ONCE`] reads of tenants' secrets without a value
//!   may fail at once, and then one every [`APART`]; with those under way ([`READS_AT_ONCE`], and as many that tokens wait for) that
//!   is 60 in any minute. Until then further ones fail without being asked for. A good read makes up for a failed one: tenants that are there, however many, are
//!   held up by few that are not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::lines::READS_AT_ONCE;

/// Reads of unknown tenants that may fail at once.
pub(super) const AT_ONCE: u32 = 20;
/// The time in which one more may.
pub(super) const APART: Duration = Duration::from_secs(3);
/// The time that each missing secret of a store adds to the wait of all of them.
const EACH: Duration = Duration::from_secs(6);

/// So often in [`WINDOW`] those that are missing are asked for again, whatever their waits came to.
const AGAIN: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// The pace of each store, by its name.
#[derive(Default)]
pub(super) struct Pace(Mutex<BTreeMap<String, OfStore>>);

struct OfStore {
    /// Secrets of the policy that are not there.
    missing: u32,
    /// When some of them were asked for again, the last [`AGAIN`] times.
    again: VecDeque<Instant>,
    /// Failed reads of tenants that are left, in parts of one; below 0 where reads failed that were under way.
    left: f64,
    at: Instant,
    /// Places of reads that tokens wait for.
    places: Arc<Semaphore>,
}

impl Default for OfStore {
    fn default() -> Self {
        Self {
            missing: 0,
            again: VecDeque::new(),
            left: f64::from(AT_ONCE),
            at: Instant::now(),
            places: Arc::new(Semaphore::new(READS_AT_ONCE)),
        }
    }
}

impl OfStore {
    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at);
        self.left = (self.left + since.div_duration_f64(APART)).min(f64::from(AT_ONCE));
        self.at = now;
    }
}

impl Pace {
    /// Whether a tenant's secret without a value may be asked for.
    pub(super) fn may_ask(&self, store: &str, now: Instant) -> bool {
        let mut stores = self.lock();
        let Some(of) = stores.get_mut(store) else { return true };
        of.refill(now);
        of.left >= 1.0
    }

    /// A place for a read that a token waits for, as soon as there is one; it stands in no line.
    pub(super) async fn place(&self, store: &str) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.lock().entry(store.to_owned()).or_default().places);
        places.acquire_owned().await.ok()
    }

    /// It was, and there is still none; or there is one.
    pub(super) fn asked(&self, store: &str, good: bool, now: Instant) {
        let mut stores = self.lock();
        let of = stores.entry(store.to_owned()).or_default();
        of.refill(now);
        of.left = if good { (of.left + 1.0).min(f64::from(AT_ONCE)) } else { of.left - 1.0 };
    }

    /// One more secret of the policy is not there, as long as what is returned lives.
    pub(super) fn missing(self: &Arc<Self>, store: &str) -> Missing {
        self.lock().entry(store.to_owned()).or_default().missing += 1;
        Missing { pace: Arc::clone(self), store: store.to_owned() }
    }

    /// Whether one that is missing may be asked for again.
    ///
    /// # Errors
    /// When it may.
    pub(super) fn ask_again(&self, store: &str, now: Instant) -> Result<(), Instant> {
        let mut stores = self.lock();
        let again = &mut stores.entry(store.to_owned()).or_default().again;
        if let Some(first) = again.front().filter(|_| again.len() >= AGAIN)
            && *first + WINDOW > now
        {
            return Err(*first + WINDOW);
        }
        if again.len() >= AGAIN {
            again.pop_front();
        }
        again.push_back(now);
        Ok(())
    }

    /// Forgets stores that are not there any more.
    pub(super) fn retain(&self, is_store: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| is_store(name));
    }

    /// Locked for moments, never over an await.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, OfStore>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A secret of the policy that is not there.
pub(super) struct Missing {
    pace: Arc<Pace>,
    store: String,
}

impl Missing {
    /// The least time until it is asked for again.
    pub(super) fn wait(&self) -> Duration {
        EACH * self.pace.lock().get(&self.store).map_or(0, |of| of.missing)
    }
}

impl Drop for Missing {
    fn drop(&mut self) {
        if let Some(of) = self.pace.lock().get_mut(&self.store) {
            of.missing = of.missing.saturating_sub(1);
        }
    }
}
