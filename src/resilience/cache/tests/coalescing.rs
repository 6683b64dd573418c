//! Identical requests wait for one another.

use super::*;

impl Rig {
    /// Requests at the same time; their answers in order.
    async fn together(&self, count: usize, lines: Lines<'_>) -> Vec<Result<Got, Failure>> {
        let all = (0..count).map(|_| self.send(request(Method::GET, "/v1/items", lines)));
        futures_util::future::join_all(all).await
    }
}

#[tokio::test(start_paused = true)]
async fn identical_requests_wait_for_one_answer() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(FRESH, "one").after(2));
    let all = rig.together(500, &[]).await;
    assert_eq!(rig.origin.requests(), 1);
    let collapsed = all.iter().filter(|got| {
        let got = got.as_ref().unwrap();
        assert_eq!(got.body, "one");
        got.note() == "fwd=uri-miss; collapsed; ttl=58"
    });
    assert_eq!(collapsed.count(), 499);
    let status = rig.state.status();
    assert_eq!((status.coalesced, status.misses, status.hit_ratio), (499, 1, 499.0 / 500.0));
    assert_eq!(rig.state.flights.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_queue_time() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(FRESH, "one").after(2));
    let leader = tokio::spawn({
        let rig = rig.clone();
        async move { rig.get(&[]).await }
    });
    tokio::task::yield_now().await;
    let follower = request(Method::GET, "/v1/items", &[]);
    let exchange = follower.exchange.clone();
    rig.send(follower).await.unwrap();
    leader.await.unwrap();
    assert_eq!(exchange.facts().queue, Some(Duration::from_secs(2)));
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_validated_once_for_all_who_ask() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10"), ("etag", "\"a\"")], "one"));
    rig.get(&[]).await;
    pass(20).await;
    rig.origin.reply(Reply::with(304, &[("etag", "\"a\"")], "").after(1));
    for got in rig.together(10, &[]).await {
        assert_eq!(got.unwrap().body, "one");
    }
    assert_eq!(rig.origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_of_no_use_to_others_is_waited_for_once_and_then_no_more() {
    for answer in [&[("cache-control", "no-store")][..], &[("cache-control", "no-cache")], &[]] {
        let rig = Rig::new("{}");
        for _ in 0..20 {
            rig.origin.reply(Reply::ok(answer, "own").after(1));
        }
        let started = Instant::now();
        for got in rig.together(10, &[]).await {
            assert_eq!(got.unwrap().body, "own");
        }
        assert_eq!((rig.origin.requests(), started.elapsed()), (10, Duration::from_secs(2)), "{answer:?}");
        rig.together(10, &[]).await;
        assert_eq!((rig.origin.requests(), started.elapsed()), (20, Duration::from_secs(3)), "{answer:?}");
        // Until there is one that is.
        rig.origin.reply(Reply::ok(FRESH, "one").after(1));
        rig.get(&[]).await;
        pass(61).await;
        rig.origin.reply(Reply::ok(FRESH, "two").after(1));
        rig.together(10, &[]).await;
        assert_eq!(rig.origin.requests(), 22, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_those_who_wait_leads_when_the_leader_fails() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::failing(Fault::Reset).after(1));
    rig.origin.reply(Reply { verdict: verdict(Class::Throttle), ..Reply::with(429, &[], "").after(1) });
    rig.origin.reply(Reply::ok(FRESH, "one").after(1));
    let all = rig.together(10, &[]).await;
    assert_eq!(rig.origin.requests(), 3);
    assert_eq!(all.iter().filter(|got| got.as_ref().is_ok_and(|got| got.body == "one")).count(), 8);
}

#[tokio::test(start_paused = true)]
async fn one_of_those_who_wait_leads_when_the_leader_goes_away() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(FRESH, "lost").after(100));
    rig.origin.reply(Reply::ok(FRESH, "one"));
    let mut leader = Box::pin(rig.get(&[]));
    assert!(futures_util::poll!(&mut leader).is_pending());
    let mut follower = Box::pin(rig.get(&[]));
    assert!(futures_util::poll!(&mut follower).is_pending());
    drop(leader);
    assert_eq!(follower.await.body, "one");
    assert_eq!(rig.state.flights.count(), 0);

    // The same while the body is under way.
    let rig = Rig::new("{}");
    let (_sender, body) = fed();
    rig.origin.reply(Reply::ok(FRESH, "").streaming(body));
    rig.origin.reply(Reply::ok(FRESH, "one"));
    let answer = rig.call(request(Method::GET, "/v1/items", &[])).await.unwrap();
    let mut follower = Box::pin(rig.get(&[]));
    assert!(futures_util::poll!(&mut follower).is_pending());
    drop(answer);
    assert_eq!(follower.await.body, "one");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_another_for_long() {
    for (deadline, waited) in [(100, 5), (4, 2)] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(FRESH, "late").after(60));
        rig.origin.reply(Reply::ok(FRESH, "own"));
        let mut leader = Box::pin(rig.get(&[]));
        assert!(futures_util::poll!(&mut leader).is_pending());
        let started = Instant::now();
        let got = rig.send(get_until(Duration::from_secs(deadline))).await.unwrap();
        assert_eq!((got.body.as_str(), started.elapsed()), ("own", Duration::from_secs(waited)));
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_wait_does_not() {
    for (what, config, lines) in [
        ("coalesce: false", r#"{"coalesce": false}"#, &[][..]),
        ("a new answer is wanted", "{}", &[("cache-control", "no-cache")]),
        ("passes by", "{}", &[("cookie", "a=b")]),
    ] {
        let rig = Rig::new(config);
        for _ in 0..3 {
            rig.origin.reply(Reply::ok(FRESH, "own").after(1));
        }
        let started = Instant::now();
        rig.together(3, lines).await;
        assert_eq!((rig.origin.requests(), started.elapsed()), (3, Duration::from_secs(1)), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_for_other_variants_do_not_wait_for_each_other() {
    let rig = Rig::new("{}");
    for _ in 0..2 {
        rig.origin.reply(Reply::ok(FRESH, "own").after(1));
    }
    let started = Instant::now();
    let one = rig.get(&[("accept", "a")]);
    let other = rig.get(&[("accept", "b")]);
    tokio::join!(one, other);
    assert_eq!((rig.origin.requests(), started.elapsed()), (2, Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn too_many_do_not_wait() {
    let rig = Rig::new("{}");
    for _ in 0..11 {
        rig.origin.reply(Reply::ok(FRESH, "one").after(1));
    }
    rig.together(1011, &[]).await;
    assert_eq!(rig.origin.requests(), 11);
}
