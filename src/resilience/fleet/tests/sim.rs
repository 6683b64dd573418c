//! Four pods and a Redis that is slow, loses answers, dies and comes back empty: in virtual time, a millisecond a step.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::bucket::{Bucket, fullest};
use super::ledger::Ledger;
use crate::resilience::fleet::OnOutage;
use crate::resilience::fleet::book::Book;
use crate::resilience::fleet::script::{Answer, Head, LEASE, Part, Report};
use crate::resilience::fleet::share::Spec;
use crate::resilience::fleet::spend::Limit;

/// A call on its way.
struct Call {
    reports: Vec<Report>,
    number: u64,
    knew: u32,
    heard: u64,
    part: Part,
    sent: Instant,
    arrives: u64,
    answer: Option<(u64, Answer)>,
    lost: bool,
    follows: bool,
}

struct Pod {
    name: String,
    book: Book<Bucket>,
    lease: Arc<Bucket>,
    per_second: f64,
    credit: f64,
    next: u64,
    number: u64,
    call: Option<Call>,
    retry: u64,
}

struct Fleet {
    limit: Spec,
    shared: Arc<Limit>,
    pods: Vec<Pod>,
    redis: Ledger,
    /// Nobody can reach it: what is sent waits.
    away: bool,
    /// Calls that their pods gave up and that may still come.
    strays: Vec<(String, Call)>,
    millis: u64,
    random: fastrand::Rng,
    /// Of a hundred answers so many do not come.
    loss: u8,
    /// The sum of leases over the budget, at worst.
    over: u64,
}

const START: u64 = 1_000_000;

impl Fleet {
    fn new(limit: Spec, rates: &[f64], seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let shared = Arc::new(Limit::new("p/l".to_owned(), limit));
        let pods = rates.iter().enumerate().map(|(place, per_second)| {
            let mut book = Book::new(OnOutage::LocalShare, u32::try_from(rates.len()).unwrap());
            let (lease, _) = book.lease(&"p/l".into(), &shared, false, Instant::now());
            Pod {
                name: format!("pod-{place}"),
                book,
                lease,
                per_second: *per_second,
                credit: 0.0,
                next: START + random.u64(0..250),
                number: 0,
                call: None,
                retry: 50,
            }
        });
        let pods = pods.collect();
        Self {
            limit,
            shared,
            pods,
            redis: Ledger::default(),
            away: false,
            strays: Vec::new(),
            millis: START,
            random,
            loss: 0,
            over: 0,
        }
    }

    async fn run(&mut self, time: Duration) {
        for _ in 0..time.as_millis() {
            tokio::time::advance(Duration::from_millis(1)).await;
            self.millis += 1;
            self.step();
        }
    }

    fn step(&mut self) {
        let now = Instant::now();
        let millis = self.millis;
        let mut strays = std::mem::take(&mut self.strays);
        strays.retain_mut(|(name, call)| {
            let due = call.arrives <= millis && !self.away;
            if due {
                call_redis(&mut self.redis, millis, name, call);
            }
            !due
        });
        self.strays = strays;
        for pod in &mut self.pods {
            pod.credit += pod.per_second / 1_000.0;
            let whole = pod.credit.floor();
            pod.credit -= whole;
            pod.lease.arrive(whole as u64, 1_000);
            if millis.is_multiple_of(20) && pod.book.tick(now) {
                pod.next = pod.next.min(millis);
            }
            pod.lease.serve();
            match &mut pod.call {
                None if pod.next <= millis => {
                    let ids = pod.book.candidates(true);
                    let reports = pod.book.plan(&ids, now);
                    // Never two in a row: a pod that alone hears nothing for a whole lease cannot be known to the others.
                    let lost = pod.retry == 50 && self.random.u8(0..100) < self.loss;
                    pod.call = Some(pod.call(reports, now, millis + self.random.u64(1..20), lost, true));
                }
                None => {}
                Some(call) => {
                    if call.answer.is_none() && call.arrives <= millis && !self.away {
                        call_redis(&mut self.redis, millis, &pod.name, call);
                        let back = millis + self.random.u64(0..20);
                        call.answer =
                            call.answer.take().filter(|_| !call.lost).map(|(_, answer)| (back, answer));
                        call.arrives = u64::MAX;
                    }
                    if call.answer.as_ref().is_some_and(|(at, _)| *at <= millis) {
                        let call = pod.call.take().unwrap();
                        let (_, answer) = call.answer.unwrap();
                        let left = pod.book.apply(&call.reports, &answer, call.sent, true);
                        (pod.retry, pod.next) = (50, millis + self.random.u64(200..250));
                        if call.follows && !left.is_empty() {
                            let arrives = millis + self.random.u64(1..20);
                            pod.call = Some(pod.call(left, now, arrives, false, false));
                        }
                    } else if now - call.sent >= Duration::from_millis(100) {
                        let call = pod.call.take().unwrap();
                        if call.arrives != u64::MAX {
                            // What was given up on its way still comes.
                            self.strays.push((pod.name.clone(), call));
                        }
                        pod.book.failed(now);
                        pod.next = millis + pod.retry * self.random.u64(75..125) / 100;
                        pod.retry = (pod.retry * 2).min(400);
                    }
                }
            }
        }
        let cost: u64 = self.pods.iter().map(|pod| pod.lease.cost()).sum();
        self.over = self.over.max(cost.saturating_sub(self.limit.budget()));
    }

    fn went(&self, since: Instant) -> usize {
        self.pods.iter().flat_map(|pod| pod.lease.taken()).filter(|at| *at >= since).count()
    }

    #[track_caller]
    fn assert_kept(&self, what: &str) {
        assert_eq!(self.over, 0, "{what}: leases exceeded the budget");
        let taken: Vec<_> = self.pods.iter().map(|pod| pod.lease.taken()).collect();
        let most = fullest(&taken, self.limit.window);
        assert!(most <= self.limit.rate as usize, "{what}: {most} in one window");
    }
}

impl Pod {
    fn call(&mut self, reports: Vec<Report>, sent: Instant, arrives: u64, lost: bool, follows: bool) -> Call {
        self.number += 1;
        let (number, knew, heard) = (self.number, self.book.knew(), self.book.contact.now);
        Call { reports, number, knew, heard, part: Part::Last, sent, arrives, answer: None, lost, follows }
    }
}

fn call_redis(redis: &mut Ledger, millis: u64, pod: &str, call: &mut Call) {
    let (number, knew, part) = (call.number, call.knew, call.part);
    let head = Head { prefix: "t", pod, number, knew, part, heard: call.heard, pauses: &[] };
    call.answer = redis.call(millis, &head, &call.reports).map(|answer| (millis, answer));
}

fn spec(rate: u32, burst: u32) -> Spec {
    Spec { rate, burst, window: Duration::from_secs(1) }
}

fn skewed(all: f64) -> [f64; 4] {
    [all * 0.9, all / 30.0, all / 30.0, all / 30.0]
}

#[tokio::test(start_paused = true)]
async fn a_skewed_load_uses_nearly_all_and_never_more() {
    // The limit of a single pod is 197/s at saturation (the burst counts once in each window).
    for (seed, all) in [(1, 220.0), (2, 400.0), (3, 2_000.0), (4, 10_000.0)] {
        let mut fleet = Fleet::new(spec(200, 4), &skewed(all), seed);
        fleet.run(Duration::from_secs(4)).await;
        let since = Instant::now();
        fleet.run(Duration::from_secs(10)).await;
        let went = fleet.went(since);
        assert!((1_960..=2_000).contains(&went), "{all}/s: {went}");
        fleet.assert_kept("");
    }
}

#[tokio::test(start_paused = true)]
async fn the_load_moves_and_the_shares_follow() {
    let mut fleet = Fleet::new(spec(200, 4), &skewed(400.0), 5);
    fleet.run(Duration::from_secs(4)).await;
    for place in [1, 2, 3, 0] {
        for (at, pod) in fleet.pods.iter_mut().enumerate() {
            pod.per_second = if at == place { 360.0 } else { 13.3 };
        }
        fleet.run(Duration::from_secs(1)).await;
        let since = Instant::now();
        fleet.run(Duration::from_secs(2)).await;
        let went = fleet.went(since);
        assert!(went >= 2 * 186, "pod {place}: {went}");
    }
    fleet.assert_kept("");
}

#[tokio::test(start_paused = true)]
async fn redis_goes_and_comes_back_as_it_was_or_empty() {
    for seed in 0..80 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut fleet = Fleet::new(spec(200, 4), &skewed(400.0), seed);
        fleet.run(Duration::from_secs(4)).await;
        for _ in 0..2 {
            fleet.away = true;
            let longest = if random.bool() { 700 } else { 4_000 };
            fleet.run(Duration::from_millis(random.u64(50..longest))).await;
            fleet.away = false;
            if random.bool() {
                fleet.redis = Ledger::default();
            }
            if random.bool() {
                // Not only held up: lost.
                fleet.strays.clear();
            }
            fleet.run(Duration::from_secs(3)).await;
            let since = Instant::now();
            fleet.run(Duration::from_secs(2)).await;
            let went = fleet.went(since);
            assert!(went >= 2 * 193, "seed {seed}: {went}");
        }
        fleet.assert_kept(&format!("seed {seed}"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_pods_of_a_fleet_begin_at_once() {
    let mut fleet = Fleet::new(spec(200, 4), &[400.0; 4], 12);
    fleet.redis.old = true;
    fleet.run(Duration::from_secs(1)).await;
    assert!(fleet.went(Instant::now() - Duration::from_secs(1)) > 120);
    fleet.assert_kept("");
    // After a restart, or where pods were in touch before, nothing grows for a second.
    let mut fleet = Fleet::new(spec(200, 4), &[400.0; 4], 12);
    fleet.run(Duration::from_secs(1)).await;
    assert_eq!(fleet.went(Instant::now() - Duration::from_secs(1)), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_lost_cost_use_and_never_the_limit() {
    for seed in 0..20 {
        let mut fleet = Fleet::new(spec(200, 4), &skewed(400.0), seed);
        fleet.loss = 15;
        fleet.run(Duration::from_secs(20)).await;
        fleet.assert_kept("");
        assert!(fleet.went(Instant::now() - Duration::from_secs(10)) > 1_200, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn small_and_slow_limits_are_kept_too() {
    // The last figure: what goes in a minute at least. A limit of a burst below the pods pays for bursts with refill.
    for (seed, rate, burst, least) in
        [(1, 1, 1, 30), (2, 2, 1, 60), (3, 3, 1, 90), (4, 5, 1, 120), (5, 10, 5, 320), (6, 20, 20, 70)]
    {
        let mut fleet = Fleet::new(spec(rate, burst), &[30.0, 20.0, 40.0, 25.0], seed);
        fleet.run(Duration::from_secs(60)).await;
        fleet.assert_kept("");
        let each: Vec<_> = fleet.pods.iter().map(|pod| pod.lease.taken().len()).collect();
        assert!(each.iter().all(|went| *went >= 3), "{rate}/s: {each:?}");
        assert!(each.iter().sum::<usize>() >= least, "{rate}/s: {each:?}");
        fleet.away = true;
        fleet.run(Duration::from_secs(5)).await;
        (fleet.away, fleet.redis) = (false, Ledger::default());
        fleet.run(Duration::from_secs(10)).await;
        fleet.assert_kept("");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_joins_gets_its_share_and_one_that_dies_leaves_it() {
    let mut fleet = Fleet::new(spec(200, 4), &[400.0, 400.0, 400.0, 400.0], 11);
    // One is not there yet: it neither reports nor is asked.
    let last = fleet.pods.pop().unwrap();
    fleet.run(Duration::from_secs(5)).await;
    let next = fleet.millis;
    fleet.pods.push(Pod { next, ..last });
    fleet.run(Duration::from_secs(1)).await;
    assert!(fleet.pods[3].lease.cost() > 45_000, "{}", fleet.pods[3].lease.cost());
    let dead = fleet.pods.remove(0);
    let went_before = dead.lease.taken();
    fleet.run(Duration::from_secs(2)).await;
    let since = Instant::now();
    fleet.run(Duration::from_secs(1)).await;
    assert!(fleet.went(since) >= 193, "{}", fleet.went(since));
    fleet.pods.push(dead);
    assert_eq!(fleet.pods[3].lease.taken(), went_before);
    assert!(fleet.millis - next > LEASE.as_millis() as u64);
    let taken: Vec<_> = fleet.pods.iter().map(|pod| pod.lease.taken()).collect();
    assert!(fullest(&taken, Duration::from_secs(1)) <= 200);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_wakes_up_or_another_burst_lets_no_window_hold_more() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (rate, burst) = (random.u32(2..60), random.u32(1..4));
        let mut fleet = Fleet::new(spec(rate, burst.min(rate)), &[0.0; 4], seed);
        let busy = f64::from(rate) * 3.0;
        fleet.pods[0].per_second = busy;
        fleet.run(Duration::from_secs(4)).await;
        for _ in 0..6 {
            for pod in &mut fleet.pods {
                pod.per_second = if random.bool() { busy } else { 0.0 };
            }
            fleet.run(Duration::from_millis(random.u64(500..15_000))).await;
            let burst = random.u32(1..=rate);
            fleet.shared.change(Spec { burst, ..spec(rate, 1) });
            fleet.run(Duration::from_millis(random.u64(200..3_000))).await;
        }
        let taken: Vec<_> = fleet.pods.iter().map(|pod| pod.lease.taken()).collect();
        let most = fullest(&taken, Duration::from_secs(1));
        assert!(most <= rate as usize, "seed {seed}: {most} of {rate} in one window");
    }
}
