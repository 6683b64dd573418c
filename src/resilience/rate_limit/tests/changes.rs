//! Shadow mode, and limits whose numbers change under those who wait.

use super::*;

#[tokio::test(start_paused = true)]
async fn shadow_lets_everything_pass_at_once_and_says_so() {
    for provider_in_shadow in [false, true] {
        let (provider, calls) = provider();
        let mode = if provider_in_shadow { Mode::Enforce } else { Mode::Shadow };
        let limit = limiter(LimitSettings { mode, ..settings("1/s", 1) });
        let source = KeySource::default();
        let layer = RateLimit::new(provider, vec![limit.clone()], source, provider_in_shadow);
        let mut told = Vec::new();
        for _ in 0..3 {
            let request = request();
            let exchange = request.exchange.clone();
            layer.clone().call(request).await.unwrap();
            told.push(exchange.facts().shadowed.iter().map(|what| what.to_string()).collect::<Vec<_>>());
        }
        assert_eq!(told, [vec![], vec!["limit:account".to_owned()], vec!["limit:account".to_owned()]]);
        assert_eq!(millis(&calls), [0, 0, 0]);
        let status = limit.status();
        assert_eq!((status.admitted, status.shadowed, status.refused), (1, 2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_limiter_keeps_what_is_spent_and_who_waits() {
    let (inner, calls) = provider();
    let old = limiter(settings("10/s", 10));
    let before = layer(inner.clone(), &[&old]);
    for _ in 0..5 {
        before.clone().call(request()).await.unwrap();
    }
    let new = Arc::new(Limiter::new(settings("20/s", 20), Tokens::Own).adopt(&old));
    // Made, but not in force: the reload may still fail.
    assert_eq!(old.status().remaining, 5);
    let after = RateLimit::new(inner.clone(), vec![new.clone()], KeySource::default(), false);
    after.clone().call(request()).await.unwrap();
    // Five were left, and ten more a second are at hand at once.
    assert_eq!((new.status().remaining, old.status().remaining), (14, 14));
    // The old generation spends the same tokens, and its waiters obey the new pace.
    for _ in 0..14 {
        before.clone().call(request()).await.unwrap();
    }
    let waiting = tokio::spawn(before.clone().call(of("old")));
    settle().await;
    let faster = Arc::new(Limiter::new(settings("1000/s", 10), Tokens::Own).adopt(&new));
    let fast = RateLimit::new(inner.clone(), vec![faster.clone()], KeySource::default(), false);
    let behind = tokio::spawn(fast.clone().call(of("new")));
    waiting.await.unwrap().unwrap();
    behind.await.unwrap().unwrap();
    assert_eq!(tenants(&calls)[20..], ["old", "new"]);
    assert!(millis(&calls)[21] <= 15, "{:?}", millis(&calls));
    assert_eq!(faster.status().admitted, 22);
    for other in [
        LimitSettings { per: Per::Route, ..settings("1/s", 1) },
        LimitSettings { unit: Unit::Cost, ..settings("1/s", 1) },
    ] {
        let other = Limiter::new(other, Tokens::Own).adopt(&faster);
        assert_eq!((other.status().admitted, other.status().keys), (0, 0), "{other:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_shrinks_under_those_who_wait_keeps_its_word_to_none_longer_than_max_wait() {
    let (provider, _) = provider();
    let old = limiter(settings("10/s", 1));
    let before = layer(provider.clone(), &[&old]);
    let waiting: Vec<_> = (0..4).map(|number| tokio::spawn(before.clone().call(of(number)))).collect();
    settle().await;
    let new = Arc::new(Limiter::new(settings("1/m", 1), Tokens::Own).adopt(&old));
    let started = Instant::now();
    assert!(layer(provider, &[&new]).call(request()).await.is_err());
    let mut answers = Vec::new();
    for task in waiting {
        answers.push(task.await.unwrap().map_err(|failure| failure.fault).map(|_| ()));
    }
    let late = Err(Fault::RateLimited);
    assert_eq!(answers, [Ok(()), late, late, late]);
    assert!(near(started.elapsed(), Duration::from_secs(5)), "{:?}", started.elapsed());
    assert_eq!(new.status().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_more_than_a_smaller_burst_holds_does_not_block_the_line() {
    let (provider, calls) = provider();
    let cost = |limit: &Arc<Limiter>, cost: u32| {
        let source = KeySource { route: "r".into(), ..KeySource::default() };
        let cost = NonZeroU32::new(cost).unwrap();
        RateLimit::costing(provider.clone(), vec![limit.clone()], source, false, cost)
    };
    let units = |rate, burst| LimitSettings { unit: Unit::Cost, ..settings(rate, burst) };
    let old = limiter(units("100/s", 50));
    cost(&old, 50).call(of("first")).await.unwrap();
    let dear: Vec<_> = (0..2).map(|number| tokio::spawn(cost(&old, 50).call(of(number)))).collect();
    settle().await;
    let new = Arc::new(Limiter::new(units("100/s", 10), Tokens::Own).adopt(&old));
    let cheap = tokio::spawn(cost(&new, 1).call(of("cheap")));
    for task in dear.into_iter().chain([cheap]) {
        task.await.unwrap().unwrap();
    }
    assert_eq!(tenants(&calls), ["first", "0", "1", "cheap"]);
    // 91 a second come back, first what the larger burst had let go, and each of the dear takes the ten that there can be.
    assert!(millis(&calls)[3] < 700, "{:?}", millis(&calls));
    assert_eq!(new.status().waiting, 0);
}
