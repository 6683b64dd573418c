//! Renewal in the background.

use super::*;

#[tokio::test(start_paused = true)]
async fn stale_while_revalidate() {
    for (what, config, answer, pass_, again, served) in [
        ("as the answer says", "{}", "max-age=10, stale-while-revalidate=30", 39, "", true),
        ("and no longer", "{}", "max-age=10, stale-while-revalidate=30", 41, "", false),
        ("as the policy says", r#"{"stale_while_revalidate": "1m"}"#, "max-age=10", 69, "", true),
        (
            "the answer goes before it",
            r#"{"stale_while_revalidate": "1m"}"#,
            "max-age=10, stale-while-revalidate=5",
            20,
            "",
            false,
        ),
        (
            "never",
            r#"{"stale_while_revalidate": "0s"}"#,
            "max-age=10, stale-while-revalidate=30",
            20,
            "",
            false,
        ),
        ("not said by anybody", "{}", "max-age=10", 11, "", false),
        ("must-revalidate", "{}", "max-age=10, must-revalidate, stale-while-revalidate=30", 20, "", false),
        ("the request wants a new one", "{}", "max-age=10, stale-while-revalidate=30", 20, "no-cache", false),
    ] {
        let rig = Rig::new(config);
        rig.origin.reply(Reply::ok(&[("cache-control", answer)], "one"));
        rig.origin.reply(Reply::ok(FRESH, "two").after(3));
        rig.get(&[]).await;
        pass(pass_).await;
        let lines = [("cache-control", again)];
        let lines = if again.is_empty() { &lines[..0] } else { &lines[..] };
        let started = Instant::now();
        let got = rig.get(lines).await;
        assert_eq!(got.is_hit(), served, "{what}: {}", got.note());
        assert_eq!(started.elapsed().is_zero(), served, "{what}");
        if served {
            assert!(rig.get(lines).await.is_hit(), "{what}: while it is being renewed");
            pass(4).await;
            let renewed = rig.get(&[]).await;
            assert_eq!((renewed.body.as_str(), renewed.is_hit()), ("two", true), "{what}");
            assert_eq!(rig.state.status().stale_served, 2);
        }
        assert_eq!(rig.origin.requests(), 2, "{what}: once");
        assert_eq!(rig.state.flights.count(), 0, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_validates_and_leaves_the_conditions_of_the_app_alone() {
    let rig = Rig::new(r#"{"stale_while_revalidate": "1m"}"#);
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10"), ("etag", "\"a\"")], "one"));
    rig.origin.reply(Reply::with(304, &[("etag", "\"a\"")], ""));
    rig.get(&[]).await;
    pass(20).await;
    assert_eq!(rig.ask(Method::HEAD, "/v1/items", &[("if-none-match", "\"b\"")]).await.status, 200);
    pass(1).await;
    let seen = rig.origin.seen();
    assert_eq!(
        (&seen[1].method, seen[1].headers.get("if-none-match").unwrap()),
        (&Method::GET, &HeaderValue::from_static("\"a\""))
    );
    assert_eq!(rig.get(&[]).await.note(), "hit; ttl=9");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_or_hangs_ends_and_is_tried_again() {
    let rig = Rig::new(r#"{"stale_while_revalidate": "1h"}"#);
    rig.origin.reply(Reply::ok(SHORT, "one"));
    rig.get(&[]).await;
    pass(20).await;
    rig.origin.reply(Reply::failing(Fault::Reset));
    rig.origin.reply(Reply::ok(FRESH, "late").after(1000));
    rig.origin.reply(Reply::ok(FRESH, "two"));
    for _ in 0..3 {
        assert_eq!(rig.get(&[]).await.body, "one");
        pass(61).await;
    }
    assert_eq!(rig.get(&[]).await.body, "two", "stale again by now");
    assert_eq!(rig.state.background.available_permits(), 15, "of the renewal that was just begun");
    pass(61).await;
    assert_eq!((rig.state.flights.count(), rig.state.background.available_permits()), (0, 16));
}

#[tokio::test(start_paused = true)]
async fn few_answers_are_renewed_at_a_time() {
    let rig = Rig::new(r#"{"stale_while_revalidate": "1h"}"#);
    let paths: Vec<String> = (0..20).map(|number| format!("/v1/items/{number}")).collect();
    for path in &paths {
        rig.origin.reply(Reply::ok(SHORT, "one"));
        rig.ask(Method::GET, path, &[]).await;
    }
    pass(20).await;
    for path in &paths {
        rig.origin.reply(Reply::ok(FRESH, "two").after(5));
        assert!(rig.ask(Method::GET, path, &[]).await.is_hit());
    }
    pass(1).await;
    assert_eq!(rig.origin.requests(), 20 + 16);
    pass(10).await;
    assert_eq!(rig.state.background.available_permits(), 16);
}
