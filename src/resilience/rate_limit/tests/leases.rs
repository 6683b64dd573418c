//! Limits of the fleet: tokens that are leased.

use super::*;

/// One lease for every key, set by the test.
struct Fixed(Arc<RateLease>);

impl Leases for Fixed {
    fn lease(&self, names: &[&str]) -> Arc<RateLease> {
        assert!(names.is_empty());
        self.0.clone()
    }
}

fn leased(settings: LimitSettings) -> (Arc<Limiter>, Arc<RateLease>) {
    let lease = Arc::new(RateLease::new(settings.rate.per()));
    (Arc::new(Limiter::new(settings, Tokens::Leased(Arc::new(Fixed(lease.clone()))))), lease)
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_share_waits_until_it_has_one() {
    let (provider, calls) = provider();
    let (limit, lease) = leased(settings("200/s", 4));
    let layer = layer(provider, &[&limit]);
    let waiting: Vec<_> = (0..3).map(|number| tokio::spawn(layer.clone().call(of(number)))).collect();
    settle().await;
    assert_eq!((lease.demand(), lease.waiting(), limit.status().waiting), (3, 3, 3));
    advance(Duration::from_millis(200)).await;
    lease.set(10_000, 1, true);
    settle().await;
    assert_eq!((calls.lock().unwrap().len(), lease.waiting()), (1, 2));
    // A larger share is used at once.
    lease.set(100_000, 1, true);
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    let times = millis(&calls);
    assert!(times[0] == 200 && times[2] <= 225, "{times:?}");
    assert_eq!((lease.demand(), lease.waiting(), limit.status().remaining), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_rejects_waits_a_moment_for_the_first_share_and_for_nothing_else() {
    let rejecting = LimitSettings { on_excess: OnExcess::Reject, ..settings("200/s", 4) };
    let (provider, calls) = provider();
    let (limit, lease) = leased(rejecting.clone());
    let layer = layer(provider, &[&limit]);
    let started = Instant::now();
    let first = tokio::spawn(layer.clone().call(request()));
    settle().await;
    assert_eq!((calls.lock().unwrap().len(), lease.waiting()), (0, 1));
    advance(Duration::from_millis(30)).await;
    lease.set(10_000, 1, true);
    first.await.unwrap().unwrap();
    assert_eq!((started.elapsed(), lease.waiting()), (Duration::from_millis(30), 0));
    // There is a share, and it is used up.
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::from_millis(30)));

    let (limit, lease) = leased(LimitSettings { max_queue: 2, ..rejecting });
    let layer = super::layer(self::provider().0, &[&limit]);
    let started = Instant::now();
    let calls = (0..3).map(|_| layer.clone().call(request()));
    let refused = futures_util::future::join_all(calls).await;
    assert!(
        refused
            .iter()
            .all(|outcome| outcome.as_ref().is_err_and(|failure| failure.fault == Fault::RateLimited))
    );
    assert!(near(started.elapsed(), Duration::from_millis(150)), "{:?}", started.elapsed());
    assert_eq!((lease.waiting(), limit.status().refused), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn without_a_share_nobody_waits_longer_than_max_wait() {
    let (provider, _) = provider();
    let (limit, lease) = leased(settings("200/s", 4));
    let layer = layer(provider, &[&limit]);
    let started = Instant::now();
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!(failure.fault, Fault::RateLimited);
    assert!(near(started.elapsed(), Duration::from_secs(5)), "{:?}", started.elapsed());
    assert_eq!(failure.retry_after, Some(Duration::from_secs(1)));
    assert_eq!((lease.waiting(), limit.status().waiting, limit.status().refused), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_even_the_whole_limit_could_not_serve_in_time_is_refused_at_once() {
    let (provider, _) = provider();
    let (limit, _lease) = leased(LimitSettings { max_wait: Duration::from_secs(1), ..settings("2/s", 1) });
    let layer = layer(provider, &[&limit]);
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(layer.clone().call(request()))).collect();
    settle().await;
    let started = Instant::now();
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::ZERO));
    for task in waiting {
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_fleet_limit_asks_for_its_leases_again() {
    let (provider, _) = provider();
    let (old, first) = leased(settings("10/s", 1));
    first.set(10_000, 1, true);
    layer(provider.clone(), &[&old]).call(request()).await.unwrap();
    let second = Arc::new(RateLease::new(Duration::from_secs(1)));
    second.set(20_000, 2, true);
    let tokens = Tokens::Leased(Arc::new(Fixed(second.clone())));
    let shared = LimitSettings { scope: Scope::Fleet, ..settings("20/s", 2) };
    // Another scope, as `leased` above has the default one: nothing is taken over.
    assert_eq!(Limiter::new(shared, tokens.clone()).adopt(&old).status().admitted, 0);
    let new = Arc::new(Limiter::new(settings("20/s", 2), tokens).adopt(&old));
    layer(provider.clone(), &[&new]).call(request()).await.unwrap();
    // The old generation goes by the new leases, too.
    layer(provider, &[&old]).call(request()).await.unwrap();
    assert_eq!((first.demand(), second.demand(), new.status().admitted), (1, 2, 3));
}

/// The limiter by itself, with nothing to wait for: leased, one key for four threads. The whole call is measured, and
/// not what it adds, so nothing is compensated.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_of_a_lease_costs_all_but_one_in_a_hundred_less_than_a_millisecond() {
    const CALLS: usize = 20_000;
    let (limit, lease) = leased(settings("1000000/s", 100_000));
    lease.set(900_000_000, 100_000, true);
    let threads = (0..4).map(|_| {
        let service = service_fn(|_: EgressRequest| std::future::ready(Ok(Response::new(Body::empty()))));
        let mut layer = layer(service, &[&limit]);
        tokio::spawn(async move {
            let mut took = Vec::with_capacity(CALLS);
            for number in 0..CALLS {
                let request = of(number);
                let started = std::time::Instant::now();
                layer.call(request).await.unwrap();
                took.push(started.elapsed());
            }
            took
        })
    });
    let mut took: Vec<_> = join_all(threads).await.into_iter().flat_map(Result::unwrap).collect();
    took.sort_unstable();
    let at = |part: usize| took[took.len() * part / 100];
    println!("half within {:?}, 99 % within {:?}", at(50), at(99));
    assert!(at(99) < Duration::from_millis(1), "{:?}", at(99));
    assert_eq!(limit.status().waited, 0, "nothing waited");
}
