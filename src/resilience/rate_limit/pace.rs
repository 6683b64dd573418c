//! How fast tokens come back: the arithmetic of one key of a limit, pure.
//!
//! The generic cell rate algorithm by the `governor` crate. A key's whole state is its *debt*: how long it takes until
//! nothing is spent any more (governor's theoretical arrival time, seen from now). It shrinks by itself as time passes;
//! each token adds one `interval`; a token may be taken while the debt is at most `burst - 1` intervals.
//!
//! Of `n` tokens in a half-open window `w` the first and the last are less than `w` apart, and the last needs
//! `(n - burst)` intervals of time since the first; so `n < burst + w / interval`. With `refill = rate - burst + 1` tokens
//! per window (`interval = w / refill`) no window holds more than `rate`.
//!
//! Timers are late by a millisecond or two. A burst absorbs that; without one each late wake-up would lose its lateness for
//! good (a quarter of 200/s). So where the burst is worth less than [`grace`], a token may be taken that much early, and the
//! interval is longer by as much as the proof needs: `interval = (w + grace) / refill`, at most 0.2 % longer.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

/// The longest debt, in nanoseconds: 36500 days. Sums of a few of them fit a `u64`.
pub const MAX_DEBT: u64 = 36_500 * 86_400 * 1_000_000_000;

/// How early a token may be taken where the burst does not absorb late timers: a 500th of the window, at most 4 ms.
fn grace(window: u64) -> u64 {
    (window / 500).min(4_000_000)
}

/// How fast tokens come back, and how many may be taken at once. Times are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    quota: Quota,
    interval: u64,
    grace: u64,
}

impl Pace {
    /// `refill` thousandths of a token come back per `window`, and `burst` may be taken at once. `None` where nothing comes
    /// back or nothing may be taken.
    ///
    /// A burst that would take longer than [`MAX_DEBT`] to come back is cut to what does not.
    pub fn new(window: Duration, refill: u64, burst: u32) -> Option<Self> {
        let window = u64::try_from(window.as_nanos()).unwrap_or(MAX_DEBT).clamp(1, MAX_DEBT);
        if refill == 0 {
            return None;
        }
        let plain = interval(window, refill);
        let burst = u64::from(burst).min((MAX_DEBT / plain).max(1));
        let absorbed = plain.saturating_mul(burst.saturating_sub(1));
        let grace = grace(window).saturating_sub(absorbed);
        let interval = interval(window + grace, refill);
        // Less than an interval, so that never more than the burst are taken in one moment.
        let grace = grace.min(interval - 1);
        let burst = NonZeroU32::new(u32::try_from(burst).unwrap_or(u32::MAX))?;
        let quota = Quota::with_period(Duration::from_nanos(interval))?.allow_burst(burst);
        Some(Self { quota, interval, grace })
    }

    /// Time between two tokens at full use.
    pub fn interval(self) -> u64 {
        self.interval
    }

    /// How many may be taken at once.
    pub fn burst(self) -> u32 {
        self.quota.burst_size().get()
    }

    /// The debt at which nothing is left.
    pub fn full(self) -> u64 {
        self.interval.saturating_mul(u64::from(self.burst()))
    }

    /// Takes a token: the debt after it, or how long it takes until there is one.
    pub fn take(self, debt: u64) -> Result<u64, u64> {
        let state = Debt { now: Cell::new(debt), grace: self.grace };
        let limiter: RateLimiter<NotKeyed, Debt, Moment, NoOpMiddleware<Nanos>> =
            RateLimiter::new(self.quota, state, Moment);
        match limiter.check() {
            Ok(()) => Ok(limiter.into_state_store().now.get()),
            Err(not_until) => Err(not_until.earliest_possible().as_u64()),
        }
    }

    /// How long it takes until a token is there for one who lets `ahead` others take theirs first, each as soon as it can.
    pub fn wait(self, debt: u64, ahead: u64) -> u64 {
        let tolerance = self.full() - self.interval + self.grace;
        debt.saturating_add(self.interval.saturating_mul(ahead)).saturating_sub(tolerance)
    }

    /// How many could be taken right now.
    pub fn remaining(self, debt: u64) -> u64 {
        let tolerance = self.full() - self.interval + self.grace;
        tolerance.checked_sub(debt).map_or(0, |room| room / self.interval + 1).min(u64::from(self.burst()))
    }
}

/// Rounded up: rounding down would let one too many through in a long window.
fn interval(window: u64, refill: u64) -> u64 {
    let interval = (u128::from(window) * 1_000).div_ceil(u128::from(refill));
    u64::try_from(interval).unwrap_or(MAX_DEBT).clamp(1, MAX_DEBT)
}

/// governor's view of one key at one moment.
struct Debt {
    now: Cell<u64>,
    grace: u64,
}

impl StateStore for Debt {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // The grace is taken off before the decision and put back on what follows from it: early, but not for free.
        let off = self.now.get().min(self.grace);
        let (decision, next) = decide(Some(Nanos::new(self.now.get() - off)))?;
        self.now.set(next.as_u64() + off);
        Ok(decision)
    }
}

/// Debts are seen from now, so for governor it is always the same moment; tokio's clock is read once a request, outside.
#[derive(Clone, Copy)]
struct Moment;

impl Clock for Moment {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(0)
    }
}
