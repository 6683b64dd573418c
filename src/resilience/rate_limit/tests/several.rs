//! Several limits of one request, costs, and keys apart.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_dear_request_takes_its_cost_of_the_limits_that_count_it() {
    let (provider, calls) = provider();
    let units = limiter(LimitSettings { unit: Unit::Cost, ..settings("110/s", 11) });
    let requests = limiter(settings("100/s", 10));
    let layer = &|cost: u32| {
        let limits = vec![units.clone(), requests.clone()];
        let source = KeySource { route: "r".into(), ..KeySource::default() };
        RateLimit::costing(provider.clone(), limits, source, false, NonZeroU32::new(cost).unwrap())
    };
    // 11 at once, then 100 units a second: the dear one waits for five, and the cheap one behind it for its own.
    let costs = [5, 5, 6, 1];
    let answers = join_all(costs.map(|cost| async move { layer(cost).call(of(cost)).await })).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(tenants(&calls), ["5", "5", "6", "1"]);
    for ((at, _), expected) in calls.lock().unwrap().iter().zip([0, 0, 50, 60]) {
        assert!(near(*at, Duration::from_millis(expected)), "{at:?}, not {expected} ms");
    }
    assert_eq!(requests.status().admitted, 4);
    // What was not sent is given back, all of it.
    sleep(Duration::from_secs(1)).await;
    let unsent = service_fn(|_: EgressRequest| async {
        Err::<Response<Body>, _>(Failure::not_sent(Fault::BreakerOpen))
    });
    let source = KeySource { route: "r".into(), ..KeySource::default() };
    let cost = NonZeroU32::new(11).unwrap();
    let mut held_back = RateLimit::costing(unsent, vec![units.clone()], source, false, cost);
    assert!(held_back.call(request()).await.is_err());
    assert_eq!(units.status().remaining, 11);
}

/// Of several limits the slowest says when, whichever refused first.
#[tokio::test(start_paused = true)]
async fn of_several_limits_the_last_to_let_it_through_says_when() {
    for order in [[0, 1], [1, 0]] {
        let (provider, _) = provider();
        let reject = |rate: &str| LimitSettings { on_excess: OnExcess::Reject, ..settings(rate, 1) };
        let limits = [limiter(reject("1/m")), limiter(reject("1/4s"))];
        let layer = layer(provider, &order.map(|at: usize| &limits[at]));
        layer.clone().call(request()).await.unwrap();
        let failure = layer.clone().call(request()).await.err().unwrap();
        let after = failure.retry_after.unwrap();
        assert_eq!(after, Duration::from_secs(60));
        advance(after - Duration::from_nanos(1)).await;
        assert!(layer.clone().call(request()).await.is_err());
        advance(Duration::from_nanos(1)).await;
        layer.clone().call(request()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_tokens_and_its_own_queue() {
    let (provider, calls) = provider();
    let limit = limiter(LimitSettings { per: Per::Tenant, ..settings("1/s", 1) });
    let layer = layer(provider, &[&limit]);
    let requests = ["a", "a", "b", "a", "b"].map(|tenant| layer.clone().call(of(tenant)));
    assert!(join_all(requests).await.iter().all(Result::is_ok));
    assert_eq!(tenants(&calls), ["a", "b", "a", "b", "a"]);
    assert_eq!((limit.status().keys, limit.status().remaining), (2, 0));
    sleep(Duration::from_secs(3)).await;
    limit.sweep();
    assert_eq!(limit.status().keys, 0);
}

#[tokio::test(start_paused = true)]
async fn all_limits_must_admit_and_take_at_the_same_moment() {
    let (provider, calls) = provider();
    let fast = limiter(settings("10/s", 2));
    let slow = limiter(settings("3/s", 3));
    let layer = layer(provider, &[&fast, &slow]);
    let answers = join_all((0..6).map(|number| layer.clone().call(of(number)))).await;
    assert!(answers.iter().all(Result::is_ok));
    let expected: Vec<_> = (0..6).map(|number: u32| number.to_string()).collect();
    assert_eq!(tenants(&calls), expected);
    let times = millis(&calls);
    // Two by the burst of the first; one by its rate; then one a second by the second.
    for (at, expected) in times.iter().zip([0, 0, 111, 1000, 2000, 3000]) {
        assert!(at.abs_diff(expected) <= 5, "{times:?}");
    }
    // What waits for the second limit holds no token of the first.
    assert_eq!(fast.status().admitted, 6);
    sleep(Duration::from_millis(200)).await;
    assert_eq!((fast.status().remaining, fast.status().waiting), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_one_limit_costs_nothing_of_the_others() {
    let (provider, _) = provider();
    let wide = limiter(settings("10/s", 10));
    let narrow = limiter(LimitSettings { on_excess: OnExcess::Reject, ..settings("1/m", 1) });
    let layer = layer(provider, &[&wide, &narrow]);
    layer.clone().call(request()).await.unwrap();
    for _ in 0..20 {
        assert!(layer.clone().call(request()).await.is_err());
    }
    assert_eq!(wide.status().remaining, 9);
    assert_eq!((wide.status().admitted, wide.status().refused, narrow.status().refused), (1, 0, 20));
}

#[tokio::test(start_paused = true)]
async fn what_will_be_refused_later_does_not_wait_before() {
    let (provider, _) = provider();
    let first = limiter(LimitSettings { per: Per::Tenant, ..settings("1/s", 1) });
    for then in [
        LimitSettings { on_excess: OnExcess::Reject, ..settings("1/m", 1) },
        LimitSettings { max_wait: Duration::from_secs(4), ..settings("1/m", 1) },
    ] {
        let layer = layer(provider.clone(), &[&first, &limiter(then)]);
        layer.clone().call(request()).await.unwrap();
        let started = Instant::now();
        let failure = layer.clone().call(request()).await.err().unwrap();
        assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::ZERO));
        assert!(failure.retry_after.unwrap() > Duration::from_secs(59));
        advance(Duration::from_secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_waits_for_its_own_limit_does_not_hold_up_the_others() {
    let (provider, calls) = provider();
    let account = limiter(settings("100/s", 1));
    let tenant = limiter(LimitSettings { per: Per::Tenant, ..settings("1/s", 1) });
    let layer = layer(provider, &[&account, &tenant]);
    let requests = ["a", "a", "a", "b", "c"].map(|tenant| layer.clone().call(of(tenant)));
    assert!(join_all(requests).await.iter().all(Result::is_ok));
    assert_eq!(tenants(&calls), ["a", "b", "c", "a", "a"]);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_kept_while_a_later_limit_refuses_and_order_of_the_list_does_not_matter() {
    let (provider, calls) = provider();
    let (one, two) = (limiter(settings("50/s", 1)), limiter(settings("40/s", 3)));
    let (there, back) = (layer(provider.clone(), &[&one, &two]), layer(provider, &[&two, &one]));
    let requests =
        (0..60).map(|number| if number % 2 == 0 { &there } else { &back }.clone().call(of(number)));
    assert!(join_all(requests).await.iter().all(Result::is_ok));
    let expected: Vec<_> = (0..60).map(|number: u32| number.to_string()).collect();
    assert_eq!(tenants(&calls), expected);
    assert_eq!((one.status().waiting, two.status().waiting), (0, 0));
}
