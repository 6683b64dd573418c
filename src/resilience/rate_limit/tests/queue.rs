//! Who waits, in which order, for how long, and what the refused are told.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_exceeds_the_rate_waits_its_turn() {
    let (provider, calls) = provider();
    let limit = limiter(settings("10/s", 2));
    let layer = layer(provider, &[&limit]);
    let requests: Vec<_> = (0..12).map(of).collect();
    let exchanges: Vec<_> = requests.iter().map(|request| request.exchange.clone()).collect();
    let answers = join_all(requests.into_iter().map(|request| layer.clone().call(request))).await;
    assert!(answers.iter().all(Result::is_ok));
    let expected: Vec<_> = (0..12).map(|number: u32| number.to_string()).collect();
    assert_eq!(tenants(&calls), expected);
    // Two at once, then 9 each second.
    for (number, (at, _)) in calls.lock().unwrap().iter().enumerate() {
        let waited = Duration::from_secs(1) * u32::try_from(number.saturating_sub(1)).unwrap() / 9;
        assert!(near(*at, waited), "{number}: {at:?}, not {waited:?}");
        let queue = exchanges[number].facts().queue.unwrap_or_default();
        assert!(near(queue, waited), "{number}: {queue:?}, not {waited:?}");
    }
    let status = limit.status();
    assert_eq!((status.admitted, status.waited, status.refused, status.waiting), (12, 10, 0, 0));
}

/// Looks once whether it is ready.
async fn ready<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_ready())).await
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake_who_waits_though_a_token_is_there() {
    let (provider, _) = provider();
    let limit = limiter(settings("10/s", 2));
    let layer = layer(provider, &[&limit]);
    let [mut one, mut two, mut three, mut four] = [1, 2, 3, 4].map(|number| layer.clone().call(of(number)));
    assert!(ready(&mut one).await && ready(&mut two).await && !ready(&mut three).await);
    advance(Duration::from_millis(150)).await;
    assert!(!ready(&mut four).await);
    assert!(ready(&mut three).await);
    advance(Duration::from_millis(100)).await;
    assert!(ready(&mut four).await);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_leaves_nothing_behind() {
    let (provider, calls) = provider();
    let limit = limiter(settings("10/s", 1));
    let layer = layer(provider, &[&limit]);
    let waiting: Vec<_> = (0..6).map(|number| tokio::spawn(layer.clone().call(of(number)))).collect();
    settle().await;
    assert_eq!(limit.status().waiting, 5);
    // The first in line, one in the middle, the last.
    for gone in [1, 3, 5] {
        waiting[gone].abort();
    }
    settle().await;
    assert_eq!(limit.status().waiting, 2);
    for task in waiting {
        let _ = task.await;
    }
    assert_eq!(tenants(&calls), ["0", "2", "4"]);
    let times = millis(&calls);
    assert!(times[1] <= 105 && times[2] <= 206, "{times:?}");
    assert_eq!(limit.status().admitted, 3);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_would_be_too_long_is_refused_at_once() {
    let (provider, calls) = provider();
    let limit = limiter(LimitSettings { max_wait: Duration::from_millis(950), ..settings("2/s", 1) });
    let layer = layer(provider, &[&limit]);
    layer.clone().call(request()).await.unwrap();
    let waiting = tokio::spawn(layer.clone().call(request()));
    settle().await;
    let started = Instant::now();
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::ZERO));
    let after = failure.retry_after.unwrap();
    assert!(near(after, Duration::from_secs(1)), "{after:?}");
    // Exact: who comes back then is admitted at once, and a moment before it is not.
    waiting.await.unwrap().unwrap();
    let state = failure.limit.unwrap();
    assert_eq!((state.name.as_ref(), state.quota, state.window), ("account", 2, Duration::from_secs(1)));
    assert_eq!((state.remaining, state.reset), (0, after));
    tokio::time::sleep_until(started + after).await;
    let before = Instant::now();
    layer.clone().call(request()).await.unwrap();
    assert_eq!((Instant::now(), calls.lock().unwrap().len()), (before, 3));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_bounds_the_wait() {
    let (provider, _) = provider();
    let limit = limiter(settings("1/s", 1));
    let layer = layer(provider, &[&limit]);
    layer.clone().call(request()).await.unwrap();
    let started = Instant::now();
    let hasty = request_with(Body::empty(), Some(started + Duration::from_millis(900)));
    let failure = layer.clone().call(hasty).await.err().unwrap();
    assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::ZERO));
    let patient = request_with(Body::empty(), Some(started + Duration::from_millis(1100)));
    assert!(layer.clone().call(patient).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let (provider, _) = provider();
    let limit = limiter(LimitSettings { max_queue: 2, ..settings("1/s", 1) });
    let layer = layer(provider, &[&limit]);
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(layer.clone().call(request()))).collect();
    settle().await;
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!(failure.fault, Fault::QueueFull);
    assert!(near(failure.retry_after.unwrap(), Duration::from_secs(3)), "{:?}", failure.retry_after);
    for task in waiting {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!((limit.status().refused, limit.status().admitted), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn reject_says_exactly_when() {
    let (provider, calls) = provider();
    let limit = limiter(LimitSettings { on_excess: OnExcess::Reject, ..settings("5/m", 1) });
    let layer = layer(provider, &[&limit]);
    for _ in 0..20 {
        if let Err(failure) = layer.clone().call(request()).await {
            assert_eq!(failure.fault, Fault::RateLimited);
            let after = failure.retry_after.unwrap();
            // One nanosecond early is too early; at the time it is admitted.
            advance(after - Duration::from_nanos(1)).await;
            assert!(layer.clone().call(request()).await.is_err());
            advance(Duration::from_nanos(1)).await;
            layer.clone().call(request()).await.unwrap();
        }
    }
    let times = millis(&calls);
    assert_eq!(times.len(), 20);
    for pair in times.windows(6) {
        assert!(pair[5] - pair[0] >= 60_000, "{times:?}");
    }
}

/// Real threads and timers: no wake-up is lost, whoever leaves whenever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_forgotten_in_a_crowd() {
    let (provider, calls) = provider();
    let all = limiter(settings("4000/s", 20));
    let each = limiter(LimitSettings { per: Per::Tenant, ..settings("2000/s", 5) });
    let layer = layer(provider, &[&all, &each]);
    let tasks: Vec<_> = (0..600).map(|number| tokio::spawn(layer.clone().call(of(number % 3)))).collect();
    for task in tasks.iter().skip(1).step_by(3) {
        tokio::task::yield_now().await;
        task.abort();
    }
    let mut answered = 0;
    for task in tasks {
        let outcome = tokio::time::timeout(Duration::from_secs(20), task).await.expect("still waits");
        answered += usize::from(outcome.is_ok_and(|answer| answer.is_ok()));
    }
    assert!(answered >= 400, "{answered}");
    assert!(calls.lock().unwrap().len() >= answered);
    assert_eq!((all.status().waiting, each.status().waiting), (0, 0));
}
