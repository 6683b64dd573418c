//! The response cache over real sockets: what the app gets, what the provider is asked, and what the record says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::support::client::{Got, local_request, sample};
use super::support::origin::{Answer, HttpOrigin, Seen, text};
use super::support::proxy::Proxy;

/// An answer with these fields.
fn answer(status: u16, body: &str, fields: &[(&'static str, &str)]) -> Answer {
    let mut answer = text(status, body);
    for (name, value) in fields {
        answer.headers_mut().insert(*name, value.parse().unwrap());
    }
    answer
}

async fn get(proxy: &Proxy, path: &str) -> Got {
    local_request(proxy.address(), "GET", path, "", "").await
}

fn policy(origin: &HttpOrigin, keys: &str) -> String {
    format!(
        "providers:
  api:
    hosts: [api.example.test]
    upstream: {{ scheme: http, connect_to: \"{}\" }}
{keys}",
        origin.address
    )
}

fn status(got: &Got) -> &str {
    got.header("cache-status").unwrap_or_default()
}

#[tokio::test]
async fn a_hit_has_its_age_says_so_and_has_a_record_without_an_attempt() {
    let origin = HttpOrigin::with(None, |_| answer(200, "one", &[("cache-control", "max-age=60")])).await;
    let proxy = Proxy::start(&policy(&origin, "    cache: {}\n")).await;
    let first = get(&proxy, "/api/things").await;
    assert_eq!((first.status, first.header("age")), (200, None));
    assert_eq!(status(&first), "outgate; fwd=uri-miss; stored; ttl=60", "{first:?}");
    let second = get(&proxy, "/api/things").await;
    assert_eq!((second.status, second.text().as_str()), (200, "one"));
    let age: u64 = second.header("age").expect("a hit has an Age").parse().unwrap();
    assert!(age <= 5, "{age}");
    assert!(status(&second).starts_with("outgate; hit; ttl="), "{second:?}");
    assert!(second.header("outgate-request-id").is_some());
    assert_ne!(second.header("outgate-request-id"), first.header("outgate-request-id"));
    assert_eq!(second.header("outgate-error"), None);
    // Another URL is another answer.
    get(&proxy, "/api/things?page=2").await;
    assert_eq!(origin.requests().len(), 2);

    let records = proxy.records(3).await;
    let (miss, hit) = (&records[0], &records[1]);
    assert_eq!((miss["outgate.attempts"].as_u64(), hit["outgate.attempts"].as_u64()), (Some(1), Some(0)));
    assert_eq!(
        (hit["http.response.status_code"].as_u64(), hit["http.response.body.size"].as_u64()),
        (Some(200), Some(3))
    );
    assert_eq!((&hit["outgate.provider"], &hit["url.path"]), (&"api".into(), &"/api/things".into()));
    assert!(hit["network.peer.address"].is_null() && miss["network.peer.address"].is_string(), "{hit}");
    assert!(hit["outgate.flag"].is_null() && hit["error.type"].is_null(), "{hit}");
    assert!(hit["duration"]["first_byte"].is_null() && hit["duration"]["connect"].is_null(), "{hit}");
    let metrics = proxy.metrics();
    assert_eq!(sample(&metrics, "outgate_cache_events_total", &["event=\"hit\""]), Some(1.0));
    assert_eq!(sample(&metrics, "outgate_cache_entries", &["provider=\"api\""]), Some(2.0));
}

/// A hit takes neither a token nor a permit, and a 304 leaves the learned quota as it was, as GitHub counts.
#[tokio::test]
async fn a_revalidation_by_etag_costs_the_provider_no_quota() {
    let left = Arc::new(AtomicUsize::new(5));
    let counted = left.clone();
    let origin = HttpOrigin::with(None, move |seen: Seen| {
        let is_known = seen.header("if-none-match") == Some("\"v1\"");
        if !is_known {
            counted.fetch_sub(1, Ordering::SeqCst);
        }
        let left = counted.load(Ordering::SeqCst).to_string();
        let quota = [
            ("cache-control", "max-age=0, private"),
            ("etag", "\"v1\""),
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", left.as_str()),
            ("x-ratelimit-reset", "3000"),
        ];
        if is_known { answer(304, "", &quota) } else { answer(200, "one", &quota) }
    })
    .await;
    let quota = "    quota: { on_excess: reject, headers: { remaining: X-RateLimit-Remaining, limit: X-RateLimit-Limit, reset: X-RateLimit-Reset, reset_format: delta_s } }\n";
    let proxy = Proxy::start(&policy(&origin, &format!("    cache: {{}}\n{quota}"))).await;
    for round in 0..20 {
        let got = get(&proxy, "/api/repos").await;
        assert_eq!((got.status, got.text().as_str()), (200, "one"), "{round}: {got:?}");
        if round > 0 {
            assert!(status(&got).contains("fwd=stale; fwd-status=304"), "{round}: {got:?}");
        }
    }
    assert_eq!(left.load(Ordering::SeqCst), 4, "only the first was counted");
    assert_eq!(origin.requests().len(), 20);
    let metrics = proxy.metrics();
    assert_eq!(sample(&metrics, "outgate_cache_events_total", &["event=\"revalidated\""]), Some(19.0));
    assert_eq!(sample(&metrics, "outgate_quota_decisions_total", &["decision=\"refused\""]), Some(0.0));
    assert_eq!(sample(&metrics, "outgate_quota_remaining", &["provider=\"api\""]), Some(4.0));
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_a_provider_that_is_down() {
    let down = Arc::new(AtomicBool::new(false));
    let is_down = down.clone();
    let origin = HttpOrigin::with(None, move |_| {
        let fresh = [("cache-control", "max-age=0"), ("etag", "\"v1\"")];
        if is_down.load(Ordering::SeqCst) { text(503, "down") } else { answer(200, "one", &fresh) }
    })
    .await;
    let keys = "    cache: { stale_if_error: 1h }\n    retry: off\n";
    let proxy = Proxy::start(&policy(&origin, keys)).await;
    assert_eq!(get(&proxy, "/api/things").await.text(), "one");
    down.store(true, Ordering::SeqCst);
    let got = get(&proxy, "/api/things").await;
    assert_eq!((got.status, got.text().as_str()), (200, "one"), "{got:?}");
    assert!(got.header("age").is_some() && status(&got).contains("fwd=stale"), "{got:?}");
    assert_eq!(get(&proxy, "/api/never-seen").await.status, 503, "what was never kept cannot stand in");

    // The address stays the provider's own: only what answers there is gone.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let moved = policy(&origin, keys).replace(&origin.address.to_string(), &gone.to_string());
    assert!(matches!(proxy.reload(&moved).await, outgate::pipeline::reload::ReloadOutcome::Applied(2)));
    let got = get(&proxy, "/api/things").await;
    assert_eq!((got.status, got.text().as_str()), (200, "one"), "{got:?}");
    assert_eq!(get(&proxy, "/api/never-seen").await.status, 502);
    let metrics = proxy.metrics();
    assert_eq!(sample(&metrics, "outgate_cache_events_total", &["event=\"stale_served\""]), Some(2.0));
    for record in &proxy.records(5).await[1..] {
        let status = record["http.response.status_code"].as_u64();
        assert_eq!(record["outgate.attempts"].as_u64(), Some(1), "{record}");
        assert_eq!(status == Some(200), record["url.path"] == "/api/things", "{record}");
    }
}

#[tokio::test]
async fn a_post_makes_what_is_kept_for_its_url_invalid() {
    let written = Arc::new(AtomicUsize::new(0));
    let writes = written.clone();
    let origin = HttpOrigin::with(None, move |seen: Seen| {
        if seen.method == "POST" && seen.uri.path() == "/things" {
            writes.fetch_add(1, Ordering::SeqCst);
        }
        let body = writes.load(Ordering::SeqCst).to_string();
        answer(
            if seen.uri.path() == "/refused" { 422 } else { 200 },
            &body,
            &[("cache-control", "max-age=60")],
        )
    })
    .await;
    let proxy = Proxy::start(&policy(&origin, "    cache: {}\n")).await;
    assert_eq!(get(&proxy, "/api/things").await.text(), "0");
    let post = |path: &'static str| local_request(proxy.address(), "POST", path, "", "x");
    // Another URL's is not touched.
    assert_eq!(post("/api/others").await.status, 200);
    assert_eq!(get(&proxy, "/api/things").await.text(), "0");
    assert_eq!(post("/api/refused").await.status, 422);
    assert_eq!(post("/api/things").await.status, 200);
    let fresh = get(&proxy, "/api/things").await;
    assert_eq!(fresh.text(), "1", "{fresh:?}");
    assert_eq!(get(&proxy, "/api/things").await.text(), "1");
    assert_eq!(origin.requests().len(), 5, "two reads and three writes");
    let metrics = proxy.metrics();
    assert_eq!(sample(&metrics, "outgate_cache_events_total", &["event=\"invalidated\""]), Some(1.0));
}

/// Owners of one URL: two credentials, and the app's own token. None reads the answer of another.
#[tokio::test]
async fn answers_are_kept_apart_by_credential() {
    let origin = HttpOrigin::with(None, |seen: Seen| {
        let own = seen.header("x-app-token").unwrap_or("none").to_owned();
        let body = format!("{} {own}", seen.header("authorization").unwrap_or("none"));
        answer(200, &body, &[("cache-control", "max-age=60")])
    })
    .await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("one"), "credential-one").unwrap();
    std::fs::write(dir.path().join("two"), "credential-two").unwrap();
    let provider = |name: &str| {
        format!(
            "  {name}:
    hosts: [api.example.test]
    doors: [local]
    upstream: {{ scheme: http, plaintext_credential: allow, connect_to: \"{}\" }}
    credential: {{ bearer: \"file:{{dir}}/{name}\" }}
    scrub: off
    cache: {{}}
",
            origin.address
        )
    };
    let text = format!("providers:\n{}{}", provider("one"), provider("two"));
    let proxy = Proxy::start_in(dir.clone(), &text).await;
    for round in 0..2 {
        assert_eq!(get(&proxy, "/one/me").await.text(), "Bearer credential-one none", "{round}");
        assert_eq!(get(&proxy, "/two/me").await.text(), "Bearer credential-two none", "{round}");
        let own = local_request(proxy.address(), "GET", "/one/me", "X-App-Token: own\r\n", "").await;
        assert_eq!(own.text(), "Bearer credential-one own", "{round}");
    }
    assert_eq!(origin.requests().len(), 3, "each owner asked once");
    // A new version of the secret is another owner too: the account behind it may be another.
    std::fs::write(dir.path().join("one"), "credential-new").unwrap();
    let deadline = std::time::Instant::now() + super::support::client::PATIENCE;
    while get(&proxy, "/one/me").await.text() != "Bearer credential-new none" {
        assert!(std::time::Instant::now() < deadline, "the old account's answer is still given");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn only_if_cached_without_a_kept_answer_is_outgates_own_answer() {
    let origin = HttpOrigin::with(None, |_| answer(200, "one", &[])).await;
    let proxy = Proxy::start(&policy(&origin, "    cache: {}\n")).await;
    let only = "Cache-Control: only-if-cached\r\n";
    let got = local_request(proxy.address(), "GET", "/api/things", only, "").await;
    assert_eq!((got.status, got.header("outgate-error")), (504, Some("not_cached")));
    assert_eq!(got.header("outgate-sent"), Some("no"));
    assert_eq!(status(&got), "outgate; detail=only-if-cached");
    let records = proxy.records(1).await;
    assert_eq!(
        (&records[0]["outgate.flag"], &records[0]["error.type"]),
        (&"NC".into(), &"not_cached".into())
    );
    assert!(origin.requests().is_empty());
}

/// The record of a renewal in the background, as people read it; and one of a renewal that fails.
#[tokio::test]
async fn a_renewal_in_the_background_has_a_record() {
    let fails = Arc::new(AtomicBool::new(false));
    let down = fails.clone();
    let stale: &[(&str, &str)] =
        &[("cache-control", "max-age=0, stale-while-revalidate=600"), ("etag", "\"a\"")];
    let origin = HttpOrigin::with(None, move |_| match down.load(Ordering::SeqCst) {
        true => answer(503, "no", &[]),
        false => answer(200, "one", stale),
    })
    .await;
    let proxy = Proxy::start(&policy(&origin, "    retry: off\n    cache: {}\n")).await;
    assert!(status(&get(&proxy, "/api/things?page=2").await).contains("fwd=uri-miss"));
    let mut seen = String::new();
    for (outcome, records) in [("renewed", 3), ("not renewed", 5)] {
        assert!(status(&get(&proxy, "/api/things?page=2").await).contains("hit"), "{outcome}");
        let records = proxy.records(records).await;
        let mut record = records.iter().rfind(|record| record["outgate.door"] == "renewal").unwrap().clone();
        super::records::redact(&mut record);
        let text = serde_json::to_string_pretty(&record).unwrap();
        seen.push_str(&format!("== {outcome}\n{text}\n"));
        fails.store(true, Ordering::SeqCst);
    }
    insta::assert_snapshot!("renewals", seen);
    let events = |event: &str| {
        sample(&proxy.metrics(), "outgate_cache_events_total", &[&format!("event=\"{event}\"")])
    };
    assert_eq!((events("renewed"), events("not_renewed")), (Some(1.0), Some(1.0)));
}
