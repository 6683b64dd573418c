//! Bounds and numbers: size, sweeping, what no field may break.

use proptest::prelude::*;

use super::*;
use crate::resilience::cache::Invalidate;
use crate::resilience::cache::entry::Slot;
use crate::resilience::cache::semantics::{Head, Semantics, Times};

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
