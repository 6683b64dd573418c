//! Who gets how much of a shared limit: the arithmetic, pure.
//!
//! A limit of `rate` per window has a *budget* of `rate + 1`. A lease of a refill and a burst costs `refill + burst` of it.
//! As long as the costs of all leases sum up to at most the budget, no window of the rate's length holds more than the rate:
//! of what several leaky buckets let through in a half-open window each bucket can hold its burst at the end, and less than
//! its refill leaked out meanwhile; so the sum is *less* than the budget, and being whole, at most the rate.
//!
//! Shares are max-min fair: who wants little gets that, and the rest is split evenly among who wants more. What nobody wants
//! is spread thinly, and a quarter of it stays free, so that a pod that begins to want something gets it from its first call.

use std::time::Duration;

/// One token, in the unit in which refills are counted.
pub const TOKEN: u64 = 1_000;

/// A limit that pods share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// How many a window may hold in all.
    pub rate: u32,
    /// How many may go at once in all; from 1 to `rate`.
    pub burst: u32,
    /// The window.
    pub window: Duration,
}

/// What one pod may spend: a refill in thousandths of a token per window, and a burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Thousandths of a token per window.
    pub refill: u64,
    /// Tokens at once.
    pub burst: u32,
}

impl Grant {
    /// Nothing at all.
    pub const NONE: Self = Self { refill: 0, burst: 0 };

    /// What it costs of the budget.
    pub fn cost(self) -> u64 {
        self.refill + u64::from(self.burst) * TOKEN
    }

    /// The smaller of both, part by part. Nothing where a part of it is nothing.
    pub fn min(self, other: Self) -> Self {
        let (refill, burst) = (self.refill.min(other.refill), self.burst.min(other.burst));
        if refill == 0 || burst == 0 { Self::NONE } else { Self { refill, burst } }
    }
}

impl Spec {
    /// What the leases of all pods may cost together, in thousandths of a token.
    pub fn budget(self) -> u64 {
        (u64::from(self.rate) + 1) * TOKEN
    }

    /// The whole limit for one pod.
    pub fn whole(self) -> Grant {
        let burst = u64::from(self.burst) * TOKEN;
        Grant { refill: self.budget().saturating_sub(burst), burst: self.burst }
    }

    /// The share of one of `pods` that cannot hear of one another; `held` is the burst that this one still has to pay off.
    ///
    /// Nothing where the limit is so small that a window cannot hold one request of each. Where the old burst alone is worth
    /// nearly the whole share, a sixteenth is left as refill, since without any it would never be paid off.
    pub fn local(self, pods: u32, held: u32) -> Grant {
        let pods = pods.max(1);
        let share = self.budget() / u64::from(pods);
        let fitting = u32::try_from(share.saturating_sub(1) / TOKEN).unwrap_or(u32::MAX);
        let burst = (self.burst / pods).max(1).min(fitting);
        if burst == 0 {
            return Grant::NONE;
        }
        let counted = u64::from(burst.max(held)) * TOKEN;
        let least = if held > burst { (share / 16).max(1) } else { 0 };
        Grant { refill: share.saturating_sub(counted).max(least), burst }
    }

    /// How long a pod keeps its turn where a limit is too small for all at once: six tokens, at least 3 s. It costs the time
    /// of a token and two reports to hand a turn on.
    pub fn turn(self) -> Duration {
        let tokens = (self.whole().refill / TOKEN).max(1);
        let six = self.window.saturating_mul(6) / u32::try_from(tokens).unwrap_or(u32::MAX);
        six.max(Duration::from_secs(3))
    }

    /// How many bursts of one there are for so many pods that want something, and whether it is in turns that they have them.
    fn slots(self, wanting: u64) -> (u64, bool) {
        let burst = u64::from(self.burst).max(1);
        let in_turns = wanting > burst.max(u64::from(self.rate.saturating_add(1) / 2));
        (if in_turns { burst } else { burst.max(wanting) }, in_turns)
    }

    /// Whether the limit's own burst is enough for so many. Where it is not, each further one is paid for with refill, which
    /// others may have spent in this window already.
    pub fn has_bursts_for(self, wanting: u64) -> bool {
        self.slots(wanting).0 == u64::from(self.burst).max(1)
    }

    /// What the pod at place `me` shall have, given what each pod wants (thousandths per window; zero = nothing for now).
    ///
    /// Bursts first, because who has none cannot send: one for each that wants something (each beyond the limit's own burst
    /// costs as much refill). Where that would cost more than half of the limit, `turn` says whose turn it is.
    /// Then one for those that want nothing, so that their first request need not wait; the rest evenly.
    pub fn share(self, wants: &[u64], me: usize, turn: u64) -> Grant {
        let Some(&mine) = wants.get(me) else { return Grant::NONE };
        let wanting = wants.iter().filter(|want| **want > 0).count() as u64;
        let (slots, in_turns) = self.slots(wanting);
        let idle = wants.len() as u64 - wanting;
        let idle_served = idle.min(slots.saturating_sub(wanting));
        let refill = self.budget().saturating_sub(slots * TOKEN);
        let floor = (refill / 2_000).max(1);
        let before = wants[..me].iter().filter(|want| (**want > 0) == (mine > 0)).count() as u64;
        if mine == 0 {
            return if before < idle_served { Grant { refill: floor, burst: 1 } } else { Grant::NONE };
        }
        let extra = slots.saturating_sub(wanting + idle_served);
        let burst = 1 + extra / wanting + u64::from(before < extra % wanting);
        let refill = refill.saturating_sub(floor * idle_served);
        let refill = if !in_turns {
            fill(wants.iter().copied(), mine, refill)
        } else if on_turn(before, wanting, slots, turn) {
            let wants = wants.iter().copied().filter(|want| *want > 0).enumerate();
            let served = wants.filter(|(place, _)| on_turn(*place as u64, wanting, slots, turn));
            fill(served.map(|(_, want)| want), mine, refill)
        } else {
            0
        };
        let burst = u32::try_from(burst).unwrap_or(u32::MAX);
        if refill == 0 { Grant::NONE } else { Grant { refill, burst } }
    }
}

/// Whether the place (of those that want something) is among the `slots` whose turn it is.
fn on_turn(place: u64, wanting: u64, slots: u64, turn: u64) -> bool {
    let first = (turn % wanting) * (slots % wanting) % wanting;
    (place + wanting - first) % wanting < slots
}

/// The part of `refill` for one that wants `mine`, among all `wants` (its own included).
fn fill(wants: impl Iterator<Item = u64>, mine: u64, refill: u64) -> u64 {
    let mut wants: Vec<u64> = wants.filter(|want| *want > 0).collect();
    let count = (wants.len() as u64).max(1);
    let all = wants.iter().fold(0_u64, |sum, want| sum.saturating_add(*want));
    if all <= refill {
        return mine + (refill - all) / 4 * 3 / count;
    }
    // The level up to which everyone is served: found by serving the modest ones first.
    wants.sort_unstable();
    let mut left = refill;
    for (served, want) in wants.iter().enumerate() {
        let level = left / (count - served as u64);
        if *want >= level {
            return mine.min(level);
        }
        left -= want;
    }
    mine
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(rate: u32, burst: u32) -> Spec {
        Spec { rate, burst, window: Duration::from_secs(1) }
    }

    fn all(spec: Spec, wants: &[u64], turn: u64) -> Vec<Grant> {
        (0..wants.len()).map(|me| spec.share(wants, me, turn)).collect()
    }

    fn cost(grants: &[Grant]) -> u64 {
        grants.iter().map(|grant| grant.cost()).sum()
    }

    #[test]
    fn the_limit_of_the_issue() {
        let limit = spec(200, 4);
        // Nine tenths at one pod, twice as much as is allowed: the others have what they want, the one has the rest.
        let grants = all(limit, &[360_000, 13_000, 13_000, 13_000], 0);
        assert_eq!(grants[1], Grant { refill: 13_000, burst: 1 });
        assert_eq!(grants[0], Grant { refill: 197_000 - 39_000, burst: 1 });
        // Everyone wants more than there is: a quarter each.
        assert!(all(limit, &[u64::MAX / 8; 4], 0).iter().all(|grant| grant.refill == 49_250));
        // Nobody else wants anything: nearly all, but each of the others can send a first request.
        let grants = all(limit, &[900_000, 0, 0, 0], 0);
        assert!(grants[0].refill > 196_000, "{grants:?}");
        assert!(grants[1..].iter().all(|grant| grant.burst == 1 && grant.refill > 0), "{grants:?}");
        // Alone: the limit as the policy says it.
        assert_eq!(all(limit, &[900_000], 0), [limit.whole()]);
        assert_eq!(limit.local(4, 0), Grant { refill: 49_250, burst: 1 });
    }

    #[test]
    fn what_nobody_wants_is_spread_and_a_quarter_of_it_stays_free() {
        let limit = spec(100, 10);
        let grants = all(limit, &[10_000, 1_000], 0);
        assert_eq!(grants[0].refill - grants[1].refill, 9_000);
        assert_eq!(limit.budget() - cost(&grants), 80_000 / 4);
    }

    #[test]
    fn a_limit_too_small_for_all_goes_round() {
        for (rate, pods) in [(1, 2), (1, 3), (2, 3), (3, 7), (5, 4)] {
            let mut served = vec![0; pods];
            for turn in 0..pods as u64 * 4 {
                let grants = all(spec(rate, 1), &vec![50_000; pods], turn);
                assert!(cost(&grants) <= spec(rate, 1).budget());
                for (pod, grant) in grants.iter().enumerate() {
                    served[pod] += u32::from(grant.burst > 0);
                }
            }
            assert!(served.iter().all(|turns| *turns > 0), "{rate}: {served:?}");
        }
        // In an outage nobody can say whose turn it is.
        assert_eq!(spec(1, 1).local(2, 0), Grant::NONE);
        assert!(spec(2, 1).local(2, 0).refill > 0);
    }

    #[test]
    fn an_old_burst_is_paid_off_before_the_share_is_whole() {
        let limit = Spec { rate: 100, burst: 10, window: Duration::from_secs(3600) };
        assert_eq!(limit.local(4, 0), Grant { refill: 23_250, burst: 2 });
        assert_eq!(limit.local(4, 10), Grant { refill: 15_250, burst: 2 });
        assert_eq!(limit.local(4, 60), Grant { refill: 25_250 / 16, burst: 2 });
    }

    proptest! {
        #[test]
        fn shares_never_cost_more_than_the_budget(
            rate in 1_u32..5_000,
            part in 1_u32..=100,
            wants in proptest::collection::vec(prop_oneof![Just(0), 1_u64..2_000_000], 1..24),
            turn: u64,
        ) {
            let limit = spec(rate, (rate * part / 100).max(1));
            let grants = all(limit, &wants, turn);
            prop_assert!(cost(&grants) <= limit.budget(), "{grants:?}");
            for (want, grant) in wants.iter().zip(&grants) {
                prop_assert_eq!(grant.burst == 0, grant.refill == 0);
                // Nobody who is served has less than an even share or what it wants.
                let bursts: u64 = grants.iter().map(|grant| u64::from(grant.burst)).sum();
                let even = (limit.budget() - bursts.max(limit.burst.into()) * TOKEN) / wants.len() as u64;
                prop_assert!(*want == 0 || grant.burst == 0 || grant.refill + 1 >= even * 99 / 100 || grant.refill >= *want);
            }
            // Where more is wanted than there is, nothing is left over.
            let busy = wants.iter().all(|want| *want > limit.budget());
            prop_assert!(!busy || cost(&grants) + wants.len() as u64 >= limit.budget(), "{grants:?}");
        }

        #[test]
        fn local_shares_never_cost_more_than_the_budget(rate in 1_u32..5_000, part in 1_u32..=100, pods in 1_u32..200) {
            let limit = spec(rate, (rate * part / 100).max(1));
            let grant = limit.local(pods, 0);
            prop_assert!(grant.cost() * u64::from(pods) <= limit.budget());
            prop_assert_eq!(grant.burst == 0, rate < pods);
        }
    }
}
