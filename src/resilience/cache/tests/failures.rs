//! Stale answers that stand in for a provider that fails.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in_for_a_failure() {
    for (fault, bridged) in [
        (Fault::Dns, true),
        (Fault::ConnectRefused, true),
        (Fault::ConnectTimeout, true),
        (Fault::Reset, true),
        (Fault::ResponseTimeout, true),
        (Fault::BreakerOpen, true),
        (Fault::Credential, true),
        (Fault::ConcurrencyLimit, true),
        (Fault::RateLimited, false),
        (Fault::QuotaHeld, false),
        (Fault::AddressDenied, false),
        (Fault::TlsCertificate, false),
        (Fault::DownstreamGone, false),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(SHORT, "one"));
        rig.get(&[]).await;
        pass(20).await;
        rig.origin.reply(Reply::failing(fault));
        match rig.send(request(Method::GET, "/v1/items", &[])).await {
            Ok(got) => {
                assert!(bridged, "{fault:?}");
                assert_eq!(got.note(), "fwd=stale; ttl=-10; detail=stale-if-error");
                assert_eq!((got.status, got.body.as_str(), got.field("age")), (200, "one", Some("20")));
                assert_eq!(rig.state.status().stale_served, 1);
            }
            Err(failure) => assert!(!bridged && failure.fault == fault, "{fault:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in_for_an_answer_that_is_a_failure() {
    for (status, class, bridged) in [
        (500, Class::Success, true),
        (502, Class::Unavailable, true),
        (503, Class::Unavailable, true),
        (504, Class::Unavailable, true),
        (200, Class::Unavailable, true),
        (529, Class::Overload, true),
        (501, Class::Success, false),
        (429, Class::Throttle, false),
        (404, Class::Final, false),
        (401, Class::Unauthorized, false),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(SHORT, "one"));
        rig.get(&[]).await;
        pass(20).await;
        rig.origin.reply(Reply { verdict: verdict(class), ..Reply::with(status, &[], "failed") });
        let got = rig.get(&[]).await;
        assert_eq!(got.body == "one", bridged, "{status} {class}");
        let expected = format!("fwd=stale; fwd-status={status}; ttl=-10; detail=stale-if-error");
        assert!(!bridged || got.note() == expected, "{}", got.note());
    }
}

#[tokio::test(start_paused = true)]
async fn how_long_a_stale_answer_may_stand_in() {
    for (what, config, answer, pass_, again, served) in [
        ("an hour", "{}", "max-age=10", 3609, "", true),
        ("and no longer", "{}", "max-age=10", 3611, "", false),
        ("as the policy says", r#"{"stale_if_error": "1m"}"#, "max-age=10", 71, "", false),
        ("off", r#"{"stale_if_error": "off"}"#, "max-age=10, stale-if-error=600", 20, "", false),
        ("shorter by the answer", "{}", "max-age=10, stale-if-error=60", 71, "", false),
        ("within what the answer says", "{}", "max-age=10, stale-if-error=60", 69, "", true),
        ("never longer by the answer", "{}", "max-age=10, stale-if-error=86400", 3611, "", false),
        ("must-revalidate", "{}", "max-age=10, must-revalidate", 20, "", false),
        ("no-cache", "{}", "no-cache", 20, "", false),
        ("an answer without a lifetime", "{}", "private", 20, "", true),
        ("though the request wants a new one", "{}", "max-age=10", 20, "no-cache", true),
        ("even while it is fresh", "{}", "max-age=60", 20, "no-cache", true),
        ("not where the request wants nothing of us", "{}", "max-age=10", 20, "no-store", false),
    ] {
        let rig = Rig::new(config);
        rig.origin.reply(Reply::ok(&[("cache-control", answer)], "one"));
        rig.get(&[]).await;
        pass(pass_).await;
        let lines = [("cache-control", again)];
        let lines = if again.is_empty() { &lines[..0] } else { &lines[..] };
        let got = rig.send(request(Method::GET, "/v1/items", lines)).await;
        assert_eq!(got.is_ok(), served, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_is_waited_for_almost_until_the_deadline() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(SHORT, "one"));
    rig.get(&[]).await;
    pass(20).await;
    rig.origin.reply(Reply::ok(&[], "late").after(100));
    let started = Instant::now();
    let got = rig.send(get_until(Duration::from_secs(3))).await.unwrap();
    assert_eq!(got.body, "one");
    assert_eq!(started.elapsed(), Duration::from_millis(2900));
}
