//! Four pods in one process against a real server that is killed and started again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bucket::{Bucket, fullest};
use super::server::Server;
use crate::resilience::fleet::spend::Limit;
use crate::resilience::fleet::{Fleet, FleetMode, FleetSettings, OnOutage, Spec, run};

const LIMIT: Spec = Spec { rate: 200, burst: 4, window: Duration::from_secs(1) };

struct Pods {
    fleets: Vec<Arc<Fleet<Bucket>>>,
    leases: Vec<Arc<Bucket>>,
    tasks: JoinSet<()>,
    cancel: CancellationToken,
    /// The worst sum of costs above the budget, sampled each millisecond or two.
    over: Arc<Mutex<u64>>,
    /// The longest time between two such samples.
    stalled: Arc<Mutex<Duration>>,
}

fn settings(on_outage: OnOutage) -> FleetSettings {
    FleetSettings { url: "env:REDIS_URL".into(), prefix: "test".into(), on_outage, assume_pods: 4 }
}

impl Pods {
    fn start(server: &Server, on_outage: OnOutage, rates: &'static [f64]) -> Self {
        let (mut tasks, cancel) = (JoinSet::new(), CancellationToken::new());
        let fleets: Vec<_> = (0..rates.len())
            .map(|place| {
                let url = server.url();
                let source = Arc::new(move || Some(zeroize::Zeroizing::new(url.clone())));
                Fleet::<Bucket>::of(&settings(on_outage), source, &format!("pod-{place}"))
            })
            .collect();
        let limits: Vec<Arc<Limit>> = fleets.iter().map(|fleet| fleet.limit("p/l", LIMIT)).collect();
        let leases: Vec<_> =
            fleets.iter().zip(&limits).map(|(fleet, limit)| fleet.lease_of(limit, &[])).collect();
        for fleet in &fleets {
            tasks.spawn(run(fleet.clone(), cancel.clone()));
        }
        let over = Arc::new(Mutex::new(0));
        let stalled = Arc::new(Mutex::new(Duration::ZERO));
        tasks.spawn(load(leases.clone(), rates, over.clone(), stalled.clone(), cancel.clone()));
        Self { fleets, leases, tasks, cancel, over, stalled }
    }

    /// Polls until it is so.
    #[track_caller]
    fn until(&self, what: &'static str, so: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        async move {
            while !so(self) {
                let states: Vec<_> = self.fleets.iter().map(|fleet| fleet.status()).collect();
                assert!(Instant::now() < deadline, "not {what}: {states:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    fn all(&self, mode: FleetMode) -> bool {
        self.fleets.iter().all(|fleet| fleet.status().mode == mode)
    }

    async fn stop(mut self) -> Vec<Arc<Bucket>> {
        self.cancel.cancel();
        while self.tasks.join_next().await.is_some() {}
        let taken: Vec<_> = self.leases.iter().map(|lease| lease.taken()).collect();
        assert_eq!(*self.over.lock().unwrap(), 0, "leases exceeded the budget");
        assert!(fullest(&taken, LIMIT.window) <= 200, "{}", fullest(&taken, LIMIT.window));
        self.leases
    }
}

/// Requests come at these rates, and go as leases let them; the sum of leases is looked at all the time.
async fn load(
    leases: Vec<Arc<Bucket>>,
    rates: &[f64],
    over: Arc<Mutex<u64>>,
    stalled: Arc<Mutex<Duration>>,
    cancel: CancellationToken,
) {
    let begun = Instant::now();
    let mut last = begun;
    let mut arrived = vec![0_u64; rates.len()];
    while !cancel.is_cancelled() {
        let cost: u64 = leases.iter().map(|lease| lease.cost()).sum();
        raise(&over, cost.saturating_sub(LIMIT.budget()));
        raise(&stalled, last.elapsed());
        last = Instant::now();
        for ((lease, rate), arrived) in leases.iter().zip(rates).zip(&mut arrived) {
            let all = (begun.elapsed().as_secs_f64() * rate) as u64;
            lease.arrive(all - *arrived, 1_000);
            *arrived = all;
            lease.serve();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn raise<T: Ord + Copy>(worst: &Mutex<T>, seen: T) {
    let mut worst = worst.lock().unwrap();
    *worst = seen.max(*worst);
}

const SKEWED: &[f64] = &[360.0, 13.3, 13.3, 13.3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skewed_pods_share_a_limit_through_the_death_of_redis() {
    let mut server = Server::start().await;
    let pods = Pods::start(&server, OnOutage::LocalShare, SKEWED);
    // By what is leased; how much of it is used at which load stands in `sim`, where timers are not late.
    let full = |pods: &Pods| {
        let leased: u64 = pods.leases.iter().map(|lease| lease.cost()).sum();
        leased >= LIMIT.budget() * 98 / 100 && pods.leases[0].cost() > LIMIT.budget() * 3 / 4
    };
    pods.until("in full use", full).await;
    assert!(pods.fleets.iter().all(|fleet| fleet.status().pods == 4));
    server.kill();
    pods.until("on local shares", |pods| pods.all(FleetMode::LocalShare)).await;
    let share = LIMIT.local(4, 0).cost();
    pods.until("each at its share", |pods| pods.leases.iter().all(|lease| lease.cost() == share)).await;
    server.restart().await;
    let back = Instant::now();
    *pods.stalled.lock().unwrap() = Duration::ZERO;
    pods.until("in full use again", full).await;
    // Where the machine itself stood still for half of what a call may take, its time says nothing about the fleet.
    let stalled = *pods.stalled.lock().unwrap() > Duration::from_millis(50);
    assert!(stalled || back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
    let leases = pods.stop().await;
    // What was leased is handed back.
    assert!(leases.iter().all(|lease| crate::resilience::fleet::Spend::current(&**lease).refill == 0));
    let mut redis = server.connect().await.unwrap();
    let there: u32 = redis::cmd("ZCARD").arg("{test}:pods").query_async(&mut redis).await.unwrap();
    assert_eq!(there, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_is_as_good_as_gone_and_late_calls_do_no_harm() {
    let server = Server::start().await;
    let pods = Pods::start(&server, OnOutage::LocalShare, SKEWED);
    pods.until("leased", |pods| pods.all(FleetMode::Leased) && pods.leases[0].cost() > 130_000).await;
    server.freeze(true);
    pods.until("on local shares", |pods| pods.all(FleetMode::LocalShare)).await;
    // Calls and connections that pods gave up are still waiting in its socket.
    server.freeze(false);
    pods.until("leased again", |pods| pods.all(FleetMode::Leased) && pods.leases[0].cost() > 130_000).await;
    pods.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_and_closed_do_as_they_say() {
    for (on_outage, mode, cost) in
        [(OnOutage::Open, FleetMode::Open, LIMIT.budget()), (OnOutage::Closed, FleetMode::Closed, 1_000)]
    {
        let mut server = Server::start().await;
        let mut pods = Pods::start(&server, on_outage, &[300.0]);
        pods.until("leased", |pods| pods.all(FleetMode::Leased) && pods.leases[0].cost() > 190_000).await;
        server.kill();
        pods.until("in its mode", |pods| pods.all(mode)).await;
        let so = |pods: &Pods| match on_outage {
            OnOutage::Closed => pods.leases[0].cost() <= cost * 4,
            _ => pods.leases[0].cost() == cost,
        };
        pods.until("as it says", so).await;
        server.restart().await;
        pods.until("leased", |pods| pods.all(FleetMode::Leased) && pods.leases[0].cost() > 190_000).await;
        pods.cancel.cancel();
        while pods.tasks.join_next().await.is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_reaches_the_other_pods() {
    let server = Server::start().await;
    let pods = Pods::start(&server, OnOutage::LocalShare, &[0.0, 0.0]);
    pods.until("connected", |pods| pods.fleets.iter().all(|fleet| fleet.status().connected)).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    for (place, fleet) in pods.fleets.iter().enumerate() {
        let heard = heard.clone();
        fleet.on_pause(Arc::new(move |name, pause| {
            heard.lock().unwrap().push((place, name.to_owned(), pause))
        }));
    }
    let told = Instant::now();
    pods.fleets[0].pause("stripe|env:KEY|api.stripe.com", Duration::from_secs(30));
    pods.until("heard", |_| !heard.lock().unwrap().is_empty()).await;
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
    let (place, name, pause) = heard.lock().unwrap()[0].clone();
    assert_eq!((place, name.as_str()), (1, "stripe|env:KEY|api.stripe.com"));
    assert!((Duration::from_secs(28)..=Duration::from_secs(30)).contains(&pause), "{pause:?}");
    // The other may hear of it before the answer to who told it is here.
    pods.until("told", |pods| pods.fleets[0].status().pauses_told == 1).await;
    pods.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_tenants_are_leased_when_they_are_wanted() {
    let server = Server::start().await;
    let pods = Pods::start(&server, OnOutage::LocalShare, &[0.0]);
    pods.until("settled", |pods| pods.all(FleetMode::Leased)).await;
    let limit = pods.fleets[0].limit("p/tenants", LIMIT);
    // More than one call of the script.
    let keys: Vec<_> =
        (0..300).map(|tenant| pods.fleets[0].lease_of(&limit, &["tenant", &tenant.to_string()])).collect();
    keys.iter().for_each(|key| key.arrive(1, 10));
    let asked = Instant::now();
    pods.until("leased", |_| keys.iter().all(|key| key.cost() > 0)).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let again = pods.fleets[0].lease_of(&limit, &["tenant", "7"]);
    assert!(Arc::ptr_eq(&again, &keys[7]));
    assert_eq!(pods.fleets[0].status().tracked, 301);
    drop((keys, again));
    pods.until("forgotten", |pods| pods.fleets[0].status().tracked == 1).await;
    pods.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_starts_without_redis_takes_the_assumed_share() {
    let mut server = Server::start().await;
    server.kill();
    let pods = Pods::start(&server, OnOutage::LocalShare, &[300.0]);
    pods.until("at its share", |pods| pods.leases[0].cost() == LIMIT.local(4, 0).cost()).await;
    assert_eq!(pods.fleets[0].status().last_contact_ms, None);
    server.restart().await;
    pods.until("at the whole limit", |pods| pods.leases[0].cost() > 190_000).await;
    pods.stop().await;
}
