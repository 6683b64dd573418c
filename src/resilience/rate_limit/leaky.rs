//! A bucket whose leak and size change while it is spent: the arithmetic of one lease, pure.
//!
//! Of several such buckets goes, in a window, less than what their bursts and refills cost together, if that sum (see
//! [`share`](crate::resilience::fleet)) is kept at every moment and no burst is paid for with a refill that the same window
//! has seen leak out. So what is new of a burst is at hand at once only as far as the whole cost of the bucket has grown,
//! over the most that it was in the last window; and not at all where more bursts are out than the limit has (`at_once`). The
//! rest of it comes with the refill. See [`pace`](super::pace) for rooms.

use std::time::Duration;

use super::pace::{MAX_DEBT, Pace};

/// One token, in the unit in which refills are counted.
const TOKEN: u64 = 1_000;

/// What one pod may spend of one key of a limit, and has spent. Times are nanoseconds from a start of the holder's own.
#[derive(Clone, Copy, Debug)]
pub struct LeakyBucket {
    window: Duration,
    refill: u64,
    burst: u32,
    /// `None` = a rate of zero: nothing is let through, and nothing comes back.
    pace: Option<Pace>,
    /// The pace in which `debt` is counted; stays when the rate becomes zero.
    counted: Option<Pace>,
    debt: u64,
    as_of: u64,
    /// The most that it cost not longer ago than a window before the second, or more than that.
    most: (u64, u64),
}

impl LeakyBucket {
    /// A bucket of nothing, of a limit whose rate is per `window`.
    pub fn empty(window: Duration) -> Self {
        let (refill, burst, pace, counted) = (0, 0, None, None);
        Self { window, refill, burst, pace, counted, debt: 0, as_of: 0, most: (0, 0) }
    }

    /// Lets time pass; it never runs backwards.
    pub fn settle(&mut self, now: u64) {
        if self.pace.is_some() {
            self.debt = self.debt.saturating_sub(now.saturating_sub(self.as_of));
        }
        self.as_of = self.as_of.max(now);
    }

    /// From the moment on to which it is settled `refill` thousandths of a token come back per window, and `burst` tokens may be
    /// taken at once. What was spent stays spent. False where nothing changed.
    pub fn set(&mut self, refill: u64, burst: u32, at_once: bool) -> bool {
        if (self.refill, self.burst) == (refill, burst) {
            return false;
        }
        let at_hand = if at_once { self.dearer(refill, burst) } else { 0 };
        let had = self.burst;
        (self.refill, self.burst) = (refill, burst);
        self.pace = Pace::new(self.window, refill, burst);
        let Some(pace) = self.pace else { return true };
        let counted = self.counted.replace(pace);
        self.debt = match counted {
            // What a rate of zero took away of the burst comes anew, as any other.
            Some(old) if had == 0 => {
                let gone = i128::from(old.burst()) * i128::from(TOKEN);
                pace.with_room_of(old, self.debt, at_hand.min(wide(pace)) - gone)
            }
            Some(old) => pace.following(old, self.debt, at_hand),
            None => pace.full() - part(pace, at_hand.min(wide(pace))),
        };
        true
    }

    /// By how many thousandths of a token it costs more, with these numbers, than it ever did in the last window.
    fn dearer(&mut self, refill: u64, burst: u32) -> i128 {
        let cost = |refill: u64, burst: u32| refill.saturating_add(u64::from(burst) * TOKEN);
        let (most, until) = self.most;
        let recent = self.as_of.saturating_sub(until) < nanos(self.window);
        let most = cost(self.refill, self.burst).max(if recent { most } else { 0 });
        self.most = (most, self.as_of);
        i128::from(cost(refill, burst).saturating_sub(most))
    }

    /// Takes a token, or says in how many nanoseconds there is one; `None`: not before the numbers change.
    pub fn take(&mut self) -> Result<(), Option<u64>> {
        self.debt = self.pace.ok_or(None)?.take(self.debt).map_err(Some)?;
        Ok(())
    }

    /// Gives back what takes so long to come back.
    pub fn give_back(&mut self, nanos: u64) {
        self.debt = self.debt.saturating_sub(nanos);
    }

    /// The refill and the burst that hold now.
    pub fn current(&self) -> (u64, u32) {
        (self.refill, self.burst)
    }

    /// The pace that holds now, where there is one, and the debt.
    pub fn level(&self) -> (Option<Pace>, u64) {
        (self.pace, self.debt)
    }

    /// The moment to which it is settled.
    pub fn as_of(&self) -> u64 {
        self.as_of
    }

    /// Time between two tokens, now or before the rate became zero.
    pub fn interval(&self) -> u64 {
        self.counted.map_or(1, Pace::interval)
    }

    /// The burst that still has to be counted: the one of now, or what was spent under an older, larger one and has not come
    /// back.
    pub fn held_burst(&self) -> u32 {
        let spent = self.debt.div_ceil(self.interval());
        self.burst.max(u32::try_from(spent).unwrap_or(u32::MAX))
    }
}

/// The burst, in thousandths of a token.
fn wide(pace: Pace) -> i128 {
    i128::from(pace.burst()) * i128::from(TOKEN)
}

/// Thousandths of a token as the time in which they come back.
fn part(pace: Pace, thousandths: i128) -> u64 {
    let nanos = u128::try_from(thousandths).unwrap_or(0) * u128::from(pace.interval()) / u128::from(TOKEN);
    u64::try_from(nanos).unwrap_or(MAX_DEBT).min(pace.full())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn take_all(bucket: &mut LeakyBucket) -> usize {
        std::iter::from_fn(|| bucket.take().ok()).count()
    }

    proptest! {
        /// Whatever becomes of refill and burst: of one bucket goes no more in a window than the most it costs.
        #[test]
        fn no_window_holds_more_than_the_most_it_costs(budget in 2u64..60, at_once: bool, seed: u64) {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bucket = LeakyBucket::empty(Duration::from_secs(1));
            let (mut now, mut went) = (0, Vec::new());
            for _ in 0..2_000 {
                now += [SECOND / 400, SECOND / 90, SECOND / 90, random.u64(..=SECOND / 2)][random.usize(..4)];
                bucket.settle(now);
                if random.u8(..30) == 0 {
                    let burst = random.u64(..budget);
                    let rest = (budget - burst) * TOKEN;
                    let refill = if random.bool() { rest } else { random.u64(..=rest) };
                    bucket.set(refill, burst as u32, at_once);
                }
                went.extend(std::iter::repeat_n(now, take_all(&mut bucket)));
            }
            let fullest = went.iter().enumerate().map(|(first, start)| {
                went[first..].iter().take_while(|at| **at < start + SECOND).count()
            });
            // Less than it costs.
            prop_assert!(fullest.max() < Some(budget as usize));
        }
    }

    #[test]
    fn a_burst_is_at_hand_as_far_as_it_was_paid_for() {
        let mut bucket = LeakyBucket::empty(Duration::from_secs(1));
        assert!(bucket.set(91_000, 10, true));
        assert_eq!(take_all(&mut bucket), 10);
        // Refill that becomes burst: it comes.
        bucket.settle(2 * SECOND);
        assert!(bucket.set(81_000, 20, true) && !bucket.set(81_000, 20, true));
        assert_eq!(take_all(&mut bucket), 10);
        bucket.settle(4 * SECOND);
        assert_eq!(take_all(&mut bucket), 20);
        // More of both.
        bucket.settle(6 * SECOND);
        bucket.set(90_000, 25, true);
        assert_eq!(take_all(&mut bucket), 25);
        // Nothing of it at once where others have the burst already; and first comes what was spent.
        bucket.settle(8 * SECOND);
        assert_eq!((bucket.held_burst(), take_all(&mut bucket)), (25, 25));
        bucket.set(0, 0, true);
        bucket.settle(10 * SECOND);
        bucket.set(50_000, 1, false);
        // Rounded up.
        assert_eq!((take_all(&mut bucket), bucket.held_burst()), (0, 27));
        let Err(Some(wait)) = bucket.take() else { panic!("a token") };
        assert!((25 * SECOND / 50..=27 * SECOND / 50).contains(&wait), "{wait}");
    }
}
