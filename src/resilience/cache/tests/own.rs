//! What RFC 9111 leaves to us: whose an answer is, failures, renewal, waiting for one another, and bounds.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body as HttpBody, Frame, SizeHint};
use proptest::prelude::*;

use super::*;
use crate::message::body::BodyError;
use crate::resilience::cache::Invalidate;
use crate::resilience::cache::entry::Slot;
use crate::resilience::cache::semantics::{Head, Semantics, Times};
use crate::resilience::verdict::Class;

const FRESH: Lines<'static> = &[("cache-control", "max-age=60")];
const SHORT: Lines<'static> = &[("cache-control", "max-age=10")];

fn verdict(class: Class) -> Option<Verdict> {
    Some(Verdict { class, acted: class.acted(), wait: None })
}

// --- whose an answer is ---

#[tokio::test(start_paused = true)]
async fn nobody_gets_the_answer_of_another() {
    type Change = fn(&mut EgressRequest);
    let changes: [Change; 6] = [
        |_| {},
        |request| request.tenant = Some("acme".into()),
        |request| request.tenant = Some("umbrella".into()),
        |request| request.credential_choice = 1,
        |request| drop(request.headers.insert("x-api-key", HeaderValue::from_static("mine"))),
        |request| drop(request.headers.insert("private-token", HeaderValue::from_static("mine"))),
    ];
    let rig = Rig::new("{}");
    let asked = |change: Change| {
        let mut request = request(Method::GET, "/v1/items", &[]);
        change(&mut request);
        rig.send(request)
    };
    for change in changes {
        rig.origin.reply(Reply::ok(FRESH, "one"));
        assert!(!asked(change).await.unwrap().is_hit());
    }
    for change in changes {
        assert!(asked(change).await.unwrap().is_hit());
    }
    rig.version.store(2, Ordering::Relaxed);
    rig.origin.reply(Reply::ok(FRESH, "two"));
    assert_eq!(rig.get(&[]).await.body, "two", "a new version of the secret");
}

#[tokio::test(start_paused = true)]
async fn what_another_member_brought_is_not_kept_under_the_first() {
    for (credential, kept) in [(None, true), (Some("env:A"), true), (Some("env:B"), false)] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply { credential, ..Reply::ok(FRESH, "one") });
        rig.origin.reply(Reply::ok(&[], "two"));
        rig.get(&[]).await;
        assert_eq!(rig.get(&[]).await.is_hit(), kept, "{credential:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_not_there_refuses_a_hit_unless_stale_answers_may_stand_in() {
    for (config, served) in [(r#"{"stale_if_error": "off"}"#, false), ("{}", true)] {
        let rig = Rig::new(config);
        rig.origin.reply(Reply::ok(FRESH, "one"));
        rig.get(&[]).await;
        rig.available.store(false, Ordering::Relaxed);
        for _ in 0..2 {
            rig.origin.reply(Reply::failing(Fault::Credential));
            let got = rig.send(request(Method::GET, "/v1/items", &[])).await;
            match got {
                Ok(got) => assert!(served && got.is_hit(), "{config}: {}", got.note()),
                Err(failure) => assert!(!served && failure.fault == Fault::Credential, "{config}"),
            }
            pass(61).await;
        }
        assert_eq!(rig.origin.requests(), if served { 1 } else { 3 }, "{config}");
    }
}

// --- what is kept ---

#[tokio::test(start_paused = true)]
async fn only_answers_to_the_question_are_kept() {
    use Class::*;
    for (class, answer, kept) in [
        (Success, FRESH, true),
        (Final, FRESH, true),
        (Final, &[("etag", "\"a\"")][..], false),
        (Throttle, FRESH, false),
        (Quota, FRESH, false),
        (Concurrency, FRESH, false),
        (Overload, FRESH, false),
        (Conflict, FRESH, false),
        (Unavailable, FRESH, false),
        (Unauthorized, FRESH, false),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply { verdict: verdict(class), ..Reply::ok(answer, "one") });
        rig.get(&[]).await;
        assert_eq!(rig.state.status().stored, u64::from(kept), "{class}");
        assert_eq!(rig.state.status().not_storable, u64::from(!kept), "{class}");
    }
}

#[tokio::test(start_paused = true)]
async fn default_ttl_is_for_answers_that_say_nothing() {
    for (what, status, answer, pass_, hit) in [
        ("nothing said", 200, &[][..], 299, true),
        ("and no longer", 200, &[], 300, false),
        ("in place of a guess", 200, &[("last-modified", "Tue, 15 Nov 2022 11:00:00 GMT")], 299, true),
        ("not against max-age", 200, SHORT, 11, false),
        ("not against Expires", 200, &[("expires", "0")], 1, false),
        ("not against no-cache", 200, &[("cache-control", "no-cache")], 1, false),
        ("not against no-store", 200, &[("cache-control", "no-store")], 1, false),
        ("with private", 200, &[("cache-control", "private")], 299, true),
        ("a lasting redirect", 308, &[], 299, true),
        ("not an error", 404, &[], 1, false),
        ("not a passing redirect", 302, &[], 1, false),
    ] {
        let rig = Rig::new(r#"{"default_ttl": "5m"}"#);
        rig.origin.reply(Reply::with(status, answer, "one"));
        rig.origin.reply(Reply::ok(&[], "two"));
        rig.get(&[]).await;
        pass(pass_).await;
        assert_eq!(rig.get(&[]).await.is_hit(), hit, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_answer_that_is_not_kept_puts_an_end_to_the_old_one() {
    for (what, reply, ended) in [
        ("gone", Reply::with(404, &[], ""), true),
        ("forbidden", Reply { verdict: verdict(Class::Final), ..Reply::with(403, &[], "") }, true),
        ("not to be kept", Reply::ok(&[("cache-control", "no-store")], ""), true),
        ("a throttle", Reply { verdict: verdict(Class::Throttle), ..Reply::with(429, &[], "") }, false),
        (
            "a refused credential",
            Reply { verdict: verdict(Class::Unauthorized), ..Reply::with(401, &[], "") },
            false,
        ),
        ("a failure", Reply::failing(Fault::Reset), false),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(SHORT, "one"));
        rig.get(&[]).await;
        pass(20).await;
        rig.origin.reply(reply);
        rig.get(&[]).await;
        let then = rig.send(request(Method::GET, "/v1/items", &[])).await;
        assert_eq!(then.is_err(), ended, "{what}: whether the old answer still stands in for a failure");
    }
}

// --- failures ---

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

// --- renewal in the background ---

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

// --- waiting for one another ---

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

// --- keeping while streaming ---

/// A body of given pieces.
struct Pieces {
    pieces: VecDeque<Result<Frame<Bytes>, BodyError>>,
    length: Option<u64>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.pieces.pop_front())
    }
    fn is_end_stream(&self) -> bool {
        self.length.is_some() && self.pieces.is_empty()
    }
    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn pieces(length: Option<u64>, pieces: Vec<Result<Frame<Bytes>, BodyError>>) -> Body {
    Body::boxed(Pieces { pieces: pieces.into(), length })
}

fn data(length: usize) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(vec![b'x'; length].into()))
}

#[tokio::test(start_paused = true)]
async fn what_ends_whole_is_kept_and_nothing_else() {
    let trailers = || Ok(Frame::trailers(map(&[("x-sum", "1")])));
    for (what, body, kept) in [
        ("whole", pieces(None, vec![data(500), data(500)]), true),
        ("of known length", pieces(Some(1000), vec![data(500), data(500)]), true),
        ("none", Body::empty(), true),
        ("at the bound", pieces(None, vec![data(1024)]), true),
        ("beyond the bound", pieces(None, vec![data(1024), data(1)]), false),
        ("known to be beyond it", pieces(Some(1025), vec![data(1025)]), false),
        ("cut", pieces(None, vec![data(500), Err(BodyError::UpstreamIdle)]), false),
        ("trailers", pieces(None, vec![data(500), trailers()]), false),
    ] {
        let rig = Rig::new(r#"{"max_size": "64KiB", "max_entry": "1KiB"}"#);
        rig.origin.reply(Reply::ok(FRESH, "").streaming(body));
        let answer = rig.call(request(Method::GET, "/v1/items", &[])).await.unwrap();
        let mut body = answer.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            length += frame.data_ref().map_or(0, Bytes::len);
        }
        rig.origin.reply(Reply::ok(&[], "two"));
        let second = rig.get(&[]).await;
        assert_eq!(second.is_hit(), kept, "{what}");
        assert!(!kept || second.body.len() == length, "{what}");
        drop(body);
        assert_eq!(rig.state.filling(), 0, "{what}");
        assert_eq!(rig.state.flights.count(), 0, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_knows_the_length_need_not_ask_for_the_end() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(FRESH, "").streaming(pieces(Some(3), vec![data(3)])));
    let answer = rig.call(request(Method::GET, "/v1/items", &[])).await.unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    assert!(rig.get(&[]).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn the_app_does_not_wait_for_the_copy_and_an_app_that_leaves_keeps_nothing() {
    let rig = Rig::new("{}");
    let (sender, body) = fed();
    rig.origin.reply(Reply::ok(FRESH, "").streaming(body));
    let mut answer = rig.call(request(Method::GET, "/v1/items", &[])).await.unwrap();
    sender.send("one".into()).await.unwrap();
    assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    assert_eq!(rig.state.filling(), 3);
    drop(answer);
    assert_eq!(rig.state.filling(), 0);
    rig.origin.reply(Reply::ok(&[], "two"));
    assert_eq!(rig.get(&[]).await.body, "two");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_being_read_hold_no_more_than_the_cache() {
    let rig = Rig::new(r#"{"max_size": "2KiB", "max_entry": "1KiB"}"#);
    let mut bodies = Vec::new();
    for number in 0..10 {
        rig.origin.reply(Reply::ok(FRESH, "").streaming(pieces(None, vec![data(1000), data(1)])));
        let path = format!("/v1/items/{number}");
        let mut body = rig.call(request(Method::GET, &path, &[])).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        assert!(rig.state.filling() <= 2048);
        bodies.push(body);
    }
    assert_eq!(rig.state.filling(), 2000);
    drop(bodies);
    assert_eq!(rig.state.filling(), 0);
}

// --- bounds and numbers ---

#[tokio::test(start_paused = true)]
async fn the_cache_stays_within_its_size() {
    let rig = Rig::new(r#"{"max_size": "64KiB", "max_entry": "4KiB"}"#);
    for number in 0..500 {
        rig.origin.reply(Reply::ok(FRESH, "").streaming(Body::full(vec![b'x'; 3000])));
        rig.ask(Method::GET, &format!("/v1/items/{number}"), &[]).await;
    }
    let status = rig.state.status();
    assert!(status.bytes <= 64 << 10, "{status:?}");
    assert!(status.entries >= 10, "{status:?}");
    assert!(status.evicted >= 480, "{status:?}");
    assert_eq!((status.stored, status.misses, status.hits), (500, 500, 0));
    assert!(rig.state.urls() <= 1025 + 500);
}

#[tokio::test(start_paused = true)]
async fn urls_that_nothing_is_kept_for_are_swept() {
    let rig = Rig::new("{}");
    for number in 0..5000 {
        rig.origin.reply(Reply::ok(&[("cache-control", "no-store")], "one"));
        rig.ask(Method::GET, &format!("/v1/items/{number}"), &[]).await;
    }
    assert!(rig.state.urls() <= 1025, "{}", rig.state.urls());
}

#[tokio::test(start_paused = true)]
async fn a_slot_weighs_at_least_what_it_holds() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(FRESH, "").streaming(Body::full(vec![b'x'; 100_000])));
    rig.get(&[]).await;
    let bytes = rig.state.status().bytes;
    assert!((100_000..110_000).contains(&bytes), "{bytes}");
    assert!(Slot::default().weight() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_hit_makes_no_attempt_and_the_status_says_so() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(FRESH, "one"));
    rig.get(&[]).await;
    let hit = request(Method::GET, "/v1/items", &[]);
    let exchange = hit.exchange.clone();
    rig.send(hit).await.unwrap();
    let facts = exchange.facts().clone();
    assert_eq!((facts.attempts, facts.queue), (0, None));
    let status = serde_json::to_value(rig.state.status()).unwrap();
    assert_eq!(
        (&status["hits"], &status["misses"], &status["hit_ratio"]),
        (&1.into(), &1.into(), &0.5.into())
    );
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_not_touched() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::with(101, &[], ""));
    let mut upgrade = request(Method::GET, "/v1/items", &[]);
    upgrade.upgrade = true;
    let got = rig.send(upgrade).await.unwrap();
    assert!(got.headers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_route_without_a_cache_makes_invalid_what_another_keeps() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(FRESH, "one"));
    rig.get(&[]).await;
    let mut other = Invalidate::new(rig.origin.service(), rig.state.clone());
    rig.origin.reply(Reply::ok(FRESH, "read"));
    other.call(request(Method::GET, "/v1/items", &[])).await.unwrap();
    assert!(rig.get(&[]).await.is_hit());
    rig.origin.reply(Reply::ok(&[], "written"));
    let answer = other.call(request(Method::PUT, "/v1/items", &[])).await.unwrap();
    assert!(answer.headers().is_empty());
    rig.origin.reply(Reply::ok(&[], "two"));
    assert_eq!(rig.get(&[]).await.body, "two");
    assert_eq!(rig.state.status().invalidated, 1);
}

fn field() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
    let names = prop::sample::select(vec![
        "cache-control",
        "expires",
        "date",
        "age",
        "vary",
        "etag",
        "last-modified",
        "pragma",
        "warning",
        "if-none-match",
        "if-modified-since",
        "content-length",
    ]);
    let words = prop::sample::select(vec![
        "max-age=",
        "no-cache",
        "no-store",
        "max-stale",
        "min-fresh=",
        "must-revalidate",
        "*",
        ",",
        "\"",
        "=",
        "W/",
        "18446744073709551615",
        "-1",
        "0",
        "NaN",
        "60",
        "accept",
        BEGIN,
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "stale-if-error=",
        "stale-while-revalidate=",
    ]);
    let texts = prop_oneof![
        prop::collection::vec(words, 0..6).prop_map(|words| words.concat().into_bytes()),
        prop::collection::vec(prop_oneof![0x20_u8..0x7f, 0x80_u8..=0xff], 0..40),
    ];
    (names, texts).prop_filter_map("a value", |(name, text)| {
        Some((HeaderName::from_static(name), HeaderValue::from_bytes(&text).ok()?))
    })
}

fn head() -> impl Strategy<Value = HeaderMap> {
    prop::collection::vec(field(), 0..8).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        headers
    })
}

proptest! {
    #[test]
    fn no_field_makes_it_panic_and_what_is_forbidden_is_not_kept(
        asked in head(), again in head(), answer in head(), later in 0_u64..4_000_000_000,
    ) {
        let received = httpdate::parse_http_date(BEGIN).unwrap();
        let times = Times { requested: received, received };
        let mut mistakes = Mistakes::default();
        let settings = CacheConfig::default().compile(&mut mistakes);
        let judged = Semantics::judge(
            &asked,
            &Head { status: StatusCode::OK, headers: &answer, class: Class::Success },
            &settings,
            times,
        );
        let Some(judged) = judged else { return Ok(()) };
        let forbids = |headers: &HeaderMap| {
            let members = headers.get_all("cache-control").iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
            members.into_iter().any(|member| member == b"no-store")
        };
        let quoted = answer.get_all("cache-control").iter().any(|value| value.as_bytes().contains(&b'"'));
        prop_assert!(quoted || !forbids(&answer));
        let now = received + Duration::from_secs(later);
        judged.suits(&again, now);
        judged.ttl(now);
        judged.is_usable_on_error(&settings, now);
        judged.is_usable_meanwhile(&settings, now);
    }
}
