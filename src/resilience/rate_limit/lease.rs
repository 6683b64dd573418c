//! The part of a fleet's limit that this pod may spend now: set from outside, obeyed at once.
//!
//! What is leased is a *rate*, not tokens: nothing has to be fetched while a request waits. The level (what was spent and
//! has not come back) is kept in tokens across changes of the rate, so a pod is a leaky bucket whose leak varies
//! ([`LeakyBucket`]). The sum over pods therefore keeps a limit as long as the leases do, at every moment.
//!
//! Uses [`LeakyBucket`] and [`Pace`] beside it and nothing else of this folder. The locks are held for a few instructions, never across an await.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::leaky::LeakyBucket;
use super::pace::Pace;

/// Where the leases of a limit's keys come from.
pub trait Leases: Send + Sync {
    /// The lease of the key that these names make: none for a limit that counts everything together, else the tenant, the
    /// route, or the credential's reference and the tenant. The same names give the same lease as long as anyone holds it.
    ///
    /// Called once for each key that is new, with a lock held: must be quick, and must not call back.
    fn lease(&self, names: &[&str]) -> Arc<RateLease>;
}

/// What one pod may spend of one key of a limit. Begins with nothing: requests wait until [`set`](Self::set) is called.
pub struct RateLease {
    epoch: Instant,
    level: Mutex<Level>,
    changed: Notify,
    asked: AtomicU64,
    waiting: AtomicU64,
}

struct Level {
    bucket: LeakyBucket,
    /// Counts changes of the lease, so that a token of an older one is not given back into this one.
    edition: u64,
    /// Sum of what was given back, in time.
    given: u64,
}

/// What was taken, as far as is needed to give it back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// The moment at which this token and all before it would have come back.
    pub after: u64,
    /// What had been given back until then.
    pub given: u64,
    /// Of which pace it was.
    pub edition: u64,
    /// How many tokens it is.
    pub tokens: NonZeroU32,
}

impl RateLease {
    /// A lease of nothing, of a limit whose rate is per `window`.
    pub fn new(window: Duration) -> Self {
        let level = Level { bucket: LeakyBucket::empty(window), edition: 0, given: 0 };
        Self {
            epoch: Instant::now(),
            level: Mutex::new(level),
            changed: Notify::new(),
            asked: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }

    /// What may be spent from now on: `refill` thousandths of a token come back per window (the rate of the policy is
    /// `refill + burst - 1`), and `burst` tokens may be taken at once. Zero of either lets nothing through.
    ///
    /// Obeyed at once, and wakes those who wait. What was spent stays spent, in tokens; what is new of the burst is there at once
    /// where that is said, and as far as it can be (see [`LeakyBucket`]), else it comes with the refill.
    pub fn set(&self, refill: u64, burst: u32, at_once: bool) {
        let mut level = self.settled();
        if level.bucket.set(refill, burst, at_once) {
            level.edition += 1;
            drop(level);
            self.changed.notify_waiters();
        }
    }

    /// The refill and the burst that hold now.
    pub fn current(&self) -> (u64, u32) {
        self.settled().bucket.current()
    }

    /// The burst that still has to be counted for this pod: the one it has, or what it spent under an older, larger one and
    /// has not come back. Only what exceeds this can be given to others without more than the limit in one window.
    pub fn held_burst(&self) -> u32 {
        self.settled().bucket.held_burst()
    }

    /// Requests that asked for a token since the last call; each counts once, however long it waits.
    pub fn demand(&self) -> u64 {
        self.asked.swap(0, Ordering::Relaxed)
    }

    /// Requests that wait for a token now.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A request wants a token.
    pub(super) fn ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// One more waits, or one fewer.
    pub(super) fn wait(&self, more: bool) {
        if more {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Ready at the next change after this call.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Whether anything is leased.
    pub(super) fn has_share(&self) -> bool {
        self.now().0.is_some()
    }

    /// Waits until something is leased; false where that is not so at `end`.
    pub(super) async fn share_by(&self, end: Instant) -> bool {
        let _waiting = Waiting::begin(self);
        loop {
            // Before the look, so that no change is missed between the look and the wait.
            let changed = self.changed();
            if self.has_share() {
                return true;
            }
            if tokio::time::timeout_at(end, changed).await.is_err() {
                return self.has_share();
            }
        }
    }

    /// The pace that holds now, where there is one, and the debt.
    pub(super) fn now(&self) -> (Option<Pace>, u64) {
        self.settled().bucket.level()
    }

    /// Tokens that could be taken now.
    pub(super) fn remaining(&self) -> u64 {
        let (pace, debt) = self.now();
        pace.map_or(0, |pace| pace.remaining(debt))
    }

    /// Takes a token, or says in how many nanoseconds there is one; `None`: not before the lease changes.
    pub(super) fn take(&self) -> Result<Taken, Option<u64>> {
        let mut level = self.settled();
        level.bucket.take()?;
        let after = level.bucket.as_of() + level.bucket.level().1;
        Ok(Taken { after, given: level.given, edition: level.edition, tokens: NonZeroU32::MIN })
    }

    /// Gives back what of a token has not come back by itself. See `store` for why that is safe.
    pub(super) fn give_back(&self, taken: Taken) {
        let mut level = self.settled();
        if level.edition == taken.edition {
            let since = level.given - taken.given;
            let bucket = &mut level.bucket;
            let rest =
                taken.after.saturating_sub(since).saturating_sub(bucket.as_of()).min(bucket.interval());
            bucket.give_back(rest);
            level.given += rest;
        }
    }

    /// The level as it is at this moment.
    fn settled(&self) -> MutexGuard<'_, Level> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        // Read with the lock held, so that time never runs backwards between two who take.
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        level.bucket.settle(now);
        level
    }
}

/// Counts one that waits, however that ends.
struct Waiting<'a>(&'a RateLease);

impl<'a> Waiting<'a> {
    fn begin(lease: &'a RateLease) -> Self {
        lease.wait(true);
        Self(lease)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.wait(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(lease: &RateLease) -> u32 {
        std::iter::from_fn(|| lease.take().ok()).map(|_| 1).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_leased_at_first_and_changes_are_obeyed_at_once() {
        let lease = RateLease::new(Duration::from_secs(1));
        assert_eq!(lease.take().err(), Some(None));
        lease.set(10_000, 4, true);
        assert_eq!((take_all(&lease), lease.current()), (4, (10_000, 4)));
        lease.set(0, 4, true);
        tokio::time::advance(Duration::from_secs(60)).await;
        lease.set(1_000, 4, true);
        // Nothing came back while the rate was zero.
        let Err(Some(wait)) = lease.take() else { panic!("a token") };
        assert_eq!(wait, 1_000_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_spent_of_a_larger_burst_still_counts() {
        let lease = RateLease::new(Duration::from_secs(1));
        lease.set(10_000, 8, true);
        assert_eq!(take_all(&lease), 8);
        lease.set(10_000, 1, true);
        assert_eq!(lease.held_burst(), 8);
        tokio::time::advance(Duration::from_millis(450)).await;
        assert_eq!(lease.held_burst(), 4);
        assert!(lease.take().is_err());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((lease.held_burst(), take_all(&lease)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn rates_that_move_between_pods_keep_the_sum() {
        // Two pods share 100/s with a burst of 4 (refill 97); the share moves to and fro.
        let pods = [RateLease::new(Duration::from_secs(1)), RateLease::new(Duration::from_secs(1))];
        let started = Instant::now();
        let mut taken = Vec::new();
        let mut random = fastrand::Rng::with_seed(7);
        for step in 0..4_000 {
            if step % 200 == 0 {
                let share = random.u64(..=97);
                for (pod, share) in pods.iter().zip([share, 97 - share]) {
                    // A burst of 1 each; so at most `⌊share⌋ + 1` plus what leaked under other shares.
                    pod.set(share * 1_000, 1, true);
                }
            }
            tokio::time::advance(Duration::from_millis(1)).await;
            for pod in &pods {
                taken.extend(std::iter::repeat_n(started.elapsed(), take_all(pod) as usize));
            }
        }
        let fullest = taken
            .iter()
            .map(|from| {
                taken.iter().filter(|at| (*from..*from + Duration::from_secs(1)).contains(*at)).count()
            })
            .max();
        assert!(fullest <= Some(100), "{fullest:?}");
        assert!(taken.len() > 4 * 90, "{}", taken.len());
    }

    #[tokio::test(start_paused = true)]
    async fn demand_is_told_once() {
        let lease = RateLease::new(Duration::from_secs(1));
        lease.ask();
        lease.ask();
        lease.wait(true);
        assert_eq!((lease.demand(), lease.demand(), lease.waiting()), (2, 0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_goes_back_into_its_own_lease_only() {
        let lease = RateLease::new(Duration::from_secs(1));
        lease.set(10_000, 1, true);
        let taken = lease.take().unwrap();
        lease.give_back(taken);
        let taken = lease.take().unwrap();
        lease.set(20_000, 1, true);
        lease.give_back(taken);
        assert!(lease.take().is_err());
    }
}
