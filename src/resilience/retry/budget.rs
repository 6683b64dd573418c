//! The retry budget of a provider: retries add at most a part of the load that there is anyway, or the retries of a failing
//! provider's clients become what keeps it failing.
//!
//! Kept twice, for the provider as a whole and for each of its hosts: the deposits of a healthy host pay for no retries of one that
//! fails. Hosts have sixteen places by their hash; those that share one are counted together, and two may share one.
//!
//! Each first attempt deposits `ratio` of a retry, each retry withdraws one, and what was deposited is good for ten seconds:
//! a long quiet time cannot save up for a storm. So that single requests may be repeated where there is little traffic,
//! `min_per_second` retries of the provider are granted in each second without a deposit. They count as withdrawn for the host that
//! took them, and not for the provider, where they would be paid for with the deposits of the other hosts.
//!
//! No locks: counters of single seconds, each of which names its second. A deposit is one atomic update.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::FixedState;
use serde::Serialize;
use tokio::time::Instant;

use crate::message::quantity::Ratio;
use crate::message::target::Target;

/// How long a deposit is good for, in seconds.
const WINDOW: u32 = 10;

/// How much load retries may add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BudgetSettings {
    /// Retries per first attempt.
    pub ratio: Ratio,
    /// Retries in a second that need no deposit.
    pub min_per_second: u32,
}

/// So many hosts are counted apart.
const HOSTS: usize = 16;

/// The live budget of one provider, shared by its routes; outlives reloads.
pub struct Budget {
    settings: BudgetSettings,
    started: Instant,
    /// What was granted without a deposit.
    floor: Seconds,
    all: Account,
    hosts: [Account; HOSTS],
    granted: AtomicU64,
    refused: AtomicU64,
}

/// Where a host is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPlace(usize);

impl HostPlace {
    /// The same in every budget.
    pub fn of(target: &Target) -> Self {
        let number = FixedState::default().hash_one((&target.host, target.port));
        Self(number as usize % HOSTS)
    }
}

/// A budget as `/status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BudgetStatus {
    /// Retries that the deposits of the last ten seconds still pay for.
    pub balance: u64,
    /// Retries granted since the start.
    pub granted: u64,
    /// Retries refused since the start.
    pub refused: u64,
}

impl Budget {
    /// A budget into which nothing was paid yet.
    pub fn new(settings: BudgetSettings) -> Self {
        Self {
            settings,
            started: Instant::now(),
            floor: Seconds::default(),
            all: Account::default(),
            hosts: Default::default(),
            granted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// A first attempt is made, to this host.
    pub fn deposit(&self, host: HostPlace) {
        let now = self.now();
        for account in [&self.all, &self.hosts[host.0]] {
            account.firsts.add_below(now, u64::MAX);
        }
    }

    /// A retry wants to be made, to this host; says whether it may.
    pub fn withdraw(&self, host: HostPlace) -> bool {
        let (now, host) = (self.now(), &self.hosts[host.0]);
        let granted = if self.floor.add_below(now, u64::from(self.settings.min_per_second)) {
            host.retries.add_below(now, u64::MAX)
        } else {
            // Where the provider refuses what its host would grant, the host has counted one too many: on the safe side.
            host.withdraw(self.settings, now) && self.all.withdraw(self.settings, now)
        };
        let counter = if granted { &self.granted } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        granted
    }

    /// How it stands now, for the provider as a whole.
    pub fn status(&self) -> BudgetStatus {
        let now = self.now();
        let spent = self.all.spent_before(now) + self.all.retries.count(now);
        BudgetStatus {
            balance: self.all.deposited(self.settings, now).saturating_sub(spent),
            granted: self.granted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn now(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// What was paid in and drawn, of the provider or of one host.
#[derive(Default)]
struct Account {
    firsts: Seconds,
    retries: Seconds,
}

impl Account {
    fn withdraw(&self, settings: BudgetSettings, now: u32) -> bool {
        let left = self.deposited(settings, now).saturating_sub(self.spent_before(now));
        self.retries.add_below(now, left)
    }

    /// Whole retries that the deposits of the present second and of the nine before pay for.
    fn deposited(&self, settings: BudgetSettings, now: u32) -> u64 {
        let firsts = self.firsts.count(now) + self.firsts.count_before(now, WINDOW - 1);
        firsts.saturating_mul(u64::from(settings.ratio.millionths())) / 1_000_000
    }

    /// Retries of the ten seconds before the present one: the oldest counts whole, so that no ten seconds hold more.
    fn spent_before(&self, now: u32) -> u64 {
        self.retries.count_before(now, WINDOW)
    }
}

/// Counts of the latest seconds: each the number of its second (high half) and a count (low half).
#[derive(Default)]
struct Seconds([AtomicU64; 16]);

impl Seconds {
    fn slot(&self, second: u32) -> &AtomicU64 {
        &self.0[(second % 16) as usize]
    }

    fn count(&self, second: u32) -> u64 {
        count_of(self.slot(second).load(Ordering::Relaxed), second).into()
    }

    /// The sum of `many` seconds before this one.
    fn count_before(&self, second: u32, many: u32) -> u64 {
        (second.saturating_sub(many)..second).map(|earlier| self.count(earlier)).sum()
    }

    /// Adds one to a second if its count stays within `bound`: never more than that, however many try at once.
    fn add_below(&self, second: u32, bound: u64) -> bool {
        let added = self.slot(second).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let count = count_of(packed, second);
            (u64::from(count) < bound).then_some(u64::from(second) << 32 | u64::from(count.saturating_add(1)))
        });
        added.is_ok()
    }
}

/// The count, if it belongs to this second; what an earlier one left does not count.
fn count_of(packed: u64, second: u32) -> u32 {
    if (packed >> 32) as u32 == second { packed as u32 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::message::target::{Host, Scheme};

    fn budget(percent: u32, min_per_second: u32) -> Budget {
        Budget::new(BudgetSettings { ratio: Ratio::from_percent(percent), min_per_second })
    }

    fn host(number: usize) -> HostPlace {
        let host = Host::parse(&format!("h{number}.example.com")).unwrap();
        HostPlace::of(&Target { scheme: Scheme::Https, host, port: 443 })
    }

    fn withdrawn(budget: &Budget, wanted: usize) -> usize {
        (0..wanted).filter(|_| budget.withdraw(host(0))).count()
    }

    async fn pass(millis: u64) {
        tokio::time::advance(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_fifth_of_the_first_attempts() {
        let budget = budget(20, 0);
        assert!(!budget.withdraw(host(0)));
        (0..100).for_each(|_| budget.deposit(host(0)));
        assert_eq!(budget.status(), BudgetStatus { balance: 20, granted: 0, refused: 1 });
        assert_eq!(withdrawn(&budget, 50), 20);
        assert_eq!(budget.status(), BudgetStatus { balance: 0, granted: 20, refused: 31 });
    }

    #[tokio::test(start_paused = true)]
    async fn deposits_are_forgotten() {
        let budget = budget(20, 0);
        (0..100).for_each(|_| budget.deposit(host(0)));
        pass(9_900).await;
        assert_eq!(budget.status().balance, 20);
        pass(100).await;
        assert_eq!(budget.status().balance, 0);
        assert!(!budget.withdraw(host(0)));
        pass(3_600_000).await;
        budget.deposit(host(0));
        assert_eq!(budget.status().balance, 0, "one deposit is a fifth of a retry");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_each_second_need_no_deposit() {
        let budget = budget(20, 3);
        for _ in 0..5 {
            assert_eq!(withdrawn(&budget, 10), 3);
            pass(1000).await;
        }
        // They count as withdrawn, those of this second too: of the 20 that these deposits pay for, 18 are spent.
        (0..100).for_each(|_| budget.deposit(host(0)));
        assert_eq!(withdrawn(&budget, 10), 3 + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn under_a_storm_no_ten_seconds_hold_more_than_the_share_and_the_floor() {
        let budget = budget(20, 3);
        let mut granted = Vec::new();
        for tenth in 0..600 {
            // 100 requests a second; from the 20th second on each of them fails and wants two retries.
            for _ in 0..10 {
                budget.deposit(host(0));
                let wanted = if tenth >= 200 { 2 } else { 0 };
                granted.extend(std::iter::repeat_n(tenth, withdrawn(&budget, wanted)));
            }
            pass(100).await;
        }
        for from in 0..500 {
            let in_window = granted.iter().filter(|at| (from..from + 100).contains(*at)).count();
            assert!(in_window <= 200 + 30, "{in_window} from {from}");
        }
        assert!(granted.len() >= 40 * 19, "{}", granted.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_fails_does_not_live_on_what_another_one_is_asked() {
        let budget = budget(20, 0);
        let (healthy, failing) = (host(0), host(1));
        assert_ne!(healthy, failing, "counted apart");
        (0..1000).for_each(|_| budget.deposit(healthy));
        (0..50).for_each(|_| budget.deposit(failing));
        assert_eq!((0..200).filter(|_| budget.withdraw(failing)).count(), 10, "a fifth of its own");
        assert_eq!((0..500).filter(|_| budget.withdraw(healthy)).count(), 200);
        assert_eq!(budget.status().balance, 0, "a fifth of both together");
    }

    #[tokio::test(start_paused = true)]
    async fn what_failing_hosts_have_without_a_deposit_costs_a_healthy_one_nothing() {
        let (healthy, failing) = (host(0), host(1));
        let other = (2..).map(host).find(|place| ![healthy, failing].contains(place)).unwrap();
        for failing in [&[failing][..], &[failing, other]] {
            let budget = budget(20, 3);
            let (mut of_failing, mut of_healthy) = (0, 0);
            for _ in 0..30 {
                for place in failing {
                    (0..6).for_each(|_| budget.deposit(*place));
                    of_failing += (0..6).filter(|_| budget.withdraw(*place)).count();
                }
                (0..5).for_each(|_| budget.deposit(healthy));
                of_healthy += (0..5).filter(|_| budget.withdraw(healthy)).count();
                pass(1000).await;
            }
            // A fifth of 150; the oldest second counts whole, so a little less.
            assert!((25..=30).contains(&of_healthy), "{of_healthy} beside {}", failing.len());
            // Those have what needs no deposit, and a fifth of their own.
            let most = 3 * 30 + 36 * failing.len();
            assert!((3 * 30..=most).contains(&of_failing), "{of_failing} of {}", failing.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_hosts_have_no_more_than_the_provider() {
        let budget = budget(20, 3);
        let granted = (0..100).filter(|number| budget.withdraw(host(*number))).count();
        assert_eq!(granted, 3, "the floor is the provider's");
    }

    #[tokio::test]
    async fn many_threads_get_no_more_than_there_is() {
        let budget = Arc::new(budget(50, 0));
        (0..1000).for_each(|_| budget.deposit(host(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let budget = budget.clone();
                std::thread::spawn(move || withdrawn(&budget, 1000))
            })
            .collect();
        let granted: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(granted <= 500, "{granted}");
        assert_eq!(budget.status().granted, granted as u64);
    }
}
