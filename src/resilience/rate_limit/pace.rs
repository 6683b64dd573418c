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
//! good (a quarter of 200/s). So where the burst is worth less than that, a token may be taken that much early, and the
//! interval is longer by as much as the proof needs: `interval = (w + grace) / refill`, at most 0.2 % longer.
//!
//! **Another pace.** What a key can take at once, `(burst * interval + grace - debt) / interval` tokens, is its *room*. Between two
//! moments goes less than the room of the first, what comes back meanwhile, and what the room grew by where the pace changed. So:
//!
//! - Where the burst shrinks, the room shrinks with it (the debt stays, in tokens). Where it grows, the room does not: what is
//!   new of it comes as tokens come back. Then no window holds more than the largest of its rates, however often they change.
//! - Where the rate grows as well, the room may grow by so much at once, if the pace did not change before in the same
//!   window: before the change less than the old rate went, and after it nothing is added any more.

use std::cell::Cell;
use std::num::{NonZeroU32, NonZeroU64};
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
    window: u64,
    refill: u64,
    interval: u64,
    grace: u64,
}

impl Pace {
    /// The pace of [`steady`](Self::steady); `None` where nothing comes back or nothing may be taken.
    pub fn new(window: Duration, refill: u64, burst: u32) -> Option<Self> {
        Some(Self::steady(window, NonZeroU64::new(refill)?, NonZeroU32::new(burst)?))
    }

    /// `refill` thousandths of a token come back per `window`, and `burst` may be taken at once.
    ///
    /// A burst that would take longer than [`MAX_DEBT`] to come back is cut to what does not.
    pub fn steady(window: Duration, refill: NonZeroU64, burst: NonZeroU32) -> Self {
        let window = u64::try_from(window.as_nanos()).unwrap_or(MAX_DEBT).clamp(1, MAX_DEBT);
        let plain = interval(window, refill);
        let most = u32::try_from(MAX_DEBT / plain).unwrap_or(u32::MAX);
        let burst = burst.min(NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN));
        let absorbed = plain.saturating_mul(u64::from(burst.get() - 1));
        // Less than an interval, so that never more than the burst are taken in one moment.
        let grace = grace(window).saturating_sub(absorbed).min(plain - 1);
        let interval = interval(window + grace, refill);
        // `with_period` refuses zero, which an interval never is.
        let one = Quota::with_period(Duration::from_nanos(interval));
        let quota = one.unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(burst);
        Self { quota, window, refill: refill.get(), interval, grace }
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

    /// The debt of a key that goes on under this pace, after it owed `debt` under `old`; `rested`: for at least a window.
    ///
    /// Where both rates are for the same time, no window across the change holds more than the larger one. Else no
    /// time is the rate's own, and the same share of the burst is spent as was before.
    pub fn taken_over(self, old: Self, debt: u64, rested: bool) -> u64 {
        if self.window == old.window {
            return self.following(old, debt, if rested { (self.rate() - old.rate()).max(0) } else { 0 });
        }
        let share = (u128::from(debt) * u128::from(self.full())).div_ceil(old.full().into());
        u64::try_from(share).unwrap_or(u64::MAX).min(self.full())
    }

    /// The debt of a key after `debt` under `old`, where its room may grow by at most so many thousandths of a token (not
    /// negative): the same in tokens, or as much more as keeps to that.
    pub fn following(self, old: Self, debt: u64, growth: i128) -> u64 {
        if growth < self.wider(old) {
            return self.with_room_of(old, debt, growth);
        }
        let debt = (u128::from(debt) * u128::from(self.interval)).div_ceil(old.interval.into());
        u64::try_from(debt).unwrap_or(MAX_DEBT).min(MAX_DEBT)
    }

    /// The debt at which this pace leaves the room that `old` leaves at `debt`, and `more` thousandths of a token besides.
    pub fn with_room_of(self, old: Self, debt: u64, more: i128) -> u64 {
        let own = i128::from(self.interval);
        let room = (old.most_room() - i128::from(debt)) * own;
        let room = room.div_euclid(old.interval.into()) + (more * own).div_euclid(1_000);
        u64::try_from((self.most_room() - room).max(0)).unwrap_or(u64::MAX).min(MAX_DEBT)
    }

    /// By how many thousandths of a token the room of a key that owes nothing is larger than under `old`.
    fn wider(self, old: Self) -> i128 {
        let late = |pace: Self| i128::from(pace.grace) * 1_000 / i128::from(pace.interval);
        (i128::from(self.burst()) - i128::from(old.burst())) * 1_000 + late(self) - late(old)
    }

    /// Thousandths of a token that a window may hold.
    fn rate(self) -> i128 {
        i128::from(self.refill) + (i128::from(self.burst()) - 1) * 1_000
    }

    /// The window, in nanoseconds.
    pub fn window(self) -> u64 {
        self.window
    }

    /// The room of a key that owes nothing, in time.
    fn most_room(self) -> i128 {
        i128::from(self.full()) + i128::from(self.grace)
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

    /// Takes so many at once, as if they were taken one by one in this moment; none where not all are there.
    pub fn take_many(self, debt: u64, tokens: NonZeroU32) -> Result<u64, u64> {
        self.take(debt.saturating_add(self.interval.saturating_mul(u64::from(tokens.get() - 1))))
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
fn interval(window: u64, refill: NonZeroU64) -> u64 {
    let interval = (u128::from(window) * 1_000).div_ceil(u128::from(refill.get()));
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(rate: u32, window: Duration, burst: u32) -> Pace {
        Pace::new(window, u64::from(rate - burst + 1) * 1_000, burst).unwrap()
    }

    /// Moments at which tokens were taken, of moments at which they were asked for.
    fn admitted(pace: Pace, asked: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut clear_at = 0u64;
        let mut taken = Vec::new();
        for now in asked {
            if let Ok(debt) = pace.take(clear_at.saturating_sub(now)) {
                clear_at = now + debt;
                taken.push(now);
            }
        }
        taken
    }

    /// The most that any half-open window holds.
    fn fullest(taken: &[u64], window: u64) -> usize {
        let mut first = 0;
        (0..taken.len())
            .map(|last| {
                while taken[last] - taken[first] >= window {
                    first += 1;
                }
                last - first + 1
            })
            .max()
            .unwrap_or(0)
    }

    /// Rate, burst and window; small bursts often, for these have a grace.
    fn limits() -> impl Strategy<Value = (u32, u32, u64)> {
        let rate = prop_oneof![1u32..20, 1u32..300, 300u32..2_000];
        let burst = prop_oneof![Just(1u32), 1u32..4, 1u32..300];
        let window = prop_oneof![Just(10u64), Just(1_000), Just(60_000), 10u64..100_000];
        (rate, burst, window).prop_map(|(rate, burst, millis)| (rate, burst.min(rate), millis * 1_000_000))
    }

    proptest! {
        #[test]
        fn many_at_once_are_as_many_one_by_one((rate, burst, window) in limits(), many in 1u32..20, debt: u64) {
            let pace = whole(rate, Duration::from_nanos(window), burst);
            let debt = debt % (2 * pace.full());
            let one_by_one = (0..many).try_fold(debt, |debt, _| pace.take(debt));
            let at_once = pace.take_many(debt, NonZeroU32::new(many).unwrap());
            prop_assert_eq!(at_once.ok(), one_by_one.ok());
            if let (Err(wait), true) = (at_once, many <= burst) {
                prop_assert_eq!(wait, pace.wait(debt, u64::from(many - 1)));
                prop_assert!(pace.take_many(debt - wait, NonZeroU32::new(many).unwrap()).is_ok());
            }
        }

        #[test]
        fn no_window_holds_more_than_the_rate((rate, burst, window) in limits(), seed: u64) {
            let pace = whole(rate, Duration::from_nanos(window), burst);
            let mut random = fastrand::Rng::with_seed(seed);
            // Crowds, trickles and pauses, on the scale of the limit's own interval.
            let mut now = 0;
            let asked: Vec<_> = (0..4 * rate as usize + 50).map(|_| {
                now += match random.u8(..8) {
                    0..=3 => 0,
                    4..=5 => random.u64(..=pace.interval()),
                    6 => pace.interval(),
                    _ => random.u64(..=window / 2),
                };
                now
            }).collect();
            let taken = admitted(pace, asked);
            prop_assert!(fullest(&taken, window) <= rate as usize);
        }

        #[test]
        fn at_full_use_the_refill_is_used((rate, burst, window) in limits()) {
            let pace = whole(rate, Duration::from_nanos(window), burst);
            let refill = u64::from(rate - burst + 1);
            let (mut clear_at, mut now) = (0u64, 0u64);
            let mut taken = Vec::new();
            while now < 10 * window {
                match pace.take(clear_at.saturating_sub(now)) {
                    Ok(debt) => { clear_at = now + debt; taken.push(now); }
                    Err(wait) => now += wait,
                }
            }
            // Less at most what the grace costs.
            prop_assert!(taken.len() as u64 * 1_000 >= 10 * refill * 998, "{} of {refill}", taken.len());
            prop_assert!(fullest(&taken, window) <= rate as usize);
            let from_rest = taken.iter().filter(|at| **at < window).count() as u64;
            prop_assert!(from_rest * 1_000 >= refill * 998, "{from_rest} of {refill}");
        }

        #[test]
        fn what_is_told_is_what_happens((rate, burst, window) in limits(), ahead in 0u64..20, part in 0u64..=1_000) {
            let pace = whole(rate, Duration::from_nanos(window), burst);
            let mut debt = u64::try_from(u128::from(pace.full()) * u128::from(part) / 1_000).unwrap();
            let told = pace.wait(debt, ahead);
            let remaining = pace.remaining(debt);
            let (mut now, mut at_once) = (0, 0);
            for taken in 0..=ahead {
                if taken == ahead {
                    prop_assert_eq!(now + pace.take(debt).err().unwrap_or(0), told);
                }
                if let Err(wait) = pace.take(debt) {
                    if wait > 0 { debt = debt.saturating_sub(wait); }
                    now += wait;
                }
                at_once += u64::from(now == 0);
                debt = pace.take(debt).unwrap();
            }
            prop_assert_eq!(at_once, remaining.min(ahead + 1));
        }

        #[test]
        fn no_numbers_make_it_panic(window: u64, refill: u64, burst: u32, debt in 0..=MAX_DEBT, ahead: u64) {
            let Some(pace) = Pace::new(Duration::from_nanos(window), refill, burst) else { return Ok(()) };
            let _ = (pace.take(debt), pace.take(0), pace.wait(debt, ahead), pace.remaining(debt));
            prop_assert!(pace.full() <= 2 * MAX_DEBT);
        }
    }

    #[test]
    fn late_timers_lose_nothing() {
        // A queue at full use, where each wake-up is 1 to 2 ms late.
        for (rate, burst) in [(200, 1), (200, 4), (20, 1), (400, 1)] {
            let pace = whole(rate, Duration::from_secs(1), burst);
            let (mut clear_at, mut now, mut taken) = (0u64, 0u64, 0u32);
            while now < 10_000_000_000 {
                match pace.take(clear_at.saturating_sub(now)) {
                    Ok(debt) => (clear_at, taken) = (now + debt, taken + 1),
                    Err(wait) => now += wait + 1_000_000 + u64::from(taken % 1_000) * 1_000,
                }
            }
            assert!(taken >= 10 * (rate - burst + 1) * 997 / 1_000, "{taken} of {rate}/s with burst {burst}");
        }
    }

    #[test]
    fn the_burst_is_what_goes_at_once() {
        for (rate, burst) in [(1, 1), (1_000_000, 1), (100, 10), (5, 5)] {
            let pace = whole(rate, Duration::from_secs(1), burst);
            assert_eq!(admitted(pace, [0; 50]).len(), burst.min(50) as usize, "{rate} {burst}");
        }
        assert_eq!(Pace::new(Duration::from_secs(1), 0, 1), None);
        assert_eq!(Pace::new(Duration::from_secs(1), 1, 0), None);
    }
}
