//! Written limits over the whole proxy: what an app is told that comes too soon, and how long it waits.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::support::client::{admin, local_request, sample};
use super::support::origin::{HttpOrigin, RawOrigin, read_request, text};
use super::support::proxy::Proxy;

async fn limited(keys: &str) -> (HttpOrigin, Proxy) {
    let origin = HttpOrigin::with(None, |_| text(200, "{}")).await;
    let proxy = Proxy::start(&format!(
        "providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n{keys}",
        origin.address
    ))
    .await;
    (origin, proxy)
}

/// Ten a minute, two at once: nine come back in a minute, so the next in seven seconds at the most.
#[tokio::test]
async fn what_is_refused_says_when_and_how_much() {
    let limits = "    limits: [{ name: account, rate: 10/m, burst: 2, on_excess: reject }]\n";
    let (origin, proxy) = limited(limits).await;
    for status in [200, 200] {
        assert_eq!(local_request(proxy.address(), "GET", "/api/x", "", "").await.status, status);
    }
    let got = local_request(proxy.address(), "POST", "/api/x", "", "{}").await;
    assert_eq!((got.status, got.header("outgate-error")), (429, Some("rate_limited")));
    assert_eq!(got.header("outgate-sent"), Some("no"));
    let wait: u64 = got.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=7).contains(&wait), "{wait}");
    assert_eq!(got.header("ratelimit-policy"), Some("\"account\";q=10;w=60"));
    assert_eq!(got.header("ratelimit"), Some(&*format!("\"account\";r=0;t={wait}")));
    assert_eq!(origin.requests().len(), 2);
    let record = proxy.records(3).await.remove(2);
    assert_eq!((&record["outgate.flag"], &record["error.type"]), (&"RL".into(), &"rate_limited".into()));
    assert!(record["network.peer.address"].is_null() && record["outgate.sent"] == "no", "{record}");
    let refused = ["limit=\"account\"", "decision=\"refused\""];
    assert_eq!(sample(&proxy.metrics(), "outgate_limit_decisions_total", &refused), Some(1.0));
}

/// What a route costs is taken at once, of the limit that counts cost and of no other.
#[tokio::test]
async fn a_route_takes_what_it_costs() {
    let keys = "    limits: [{ name: units, rate: 100/h, burst: 10, unit: cost, on_excess: reject }, { name: calls, rate: 50/h, burst: 5, on_excess: reject }]
    routes:
      - { name: dear, match: { path: /dear }, cost: 8 }
";
    let (origin, proxy) = limited(keys).await;
    let mut told = Vec::new();
    for path in ["/dear", "/dear", "/cheap", "/cheap", "/cheap", "/dear"] {
        let got = local_request(proxy.address(), "GET", &format!("/api{path}"), "", "").await;
        told.push((got.status, got.header("ratelimit").map(str::to_owned)));
    }
    let statuses: Vec<u16> = told.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 429, 200, 200, 429, 429]);
    assert!(told[1].1.as_deref().unwrap().starts_with("\"units\";r=2;t="), "{:?}", told[1]);
    assert_eq!(origin.requests().len(), 3);
    let status: serde_json::Value =
        serde_json::from_str(&admin(&proxy, "GET", "/status").await.text()).unwrap();
    let limits = status["providers"][0]["layers"]["limits"].as_array().unwrap();
    let of = |name: &str| limits.iter().find(|limit| limit["name"] == name).unwrap().clone();
    // What was refused for its cost took no call.
    assert_eq!((&of("units")["remaining"], &of("calls")["remaining"]), (&0.into(), &2.into()), "{limits:?}");
}

/// The level of a limit by tenant is that of the tenant who has the least left, and no tenant is named.
#[tokio::test]
async fn the_fullest_key_is_the_level_of_a_limit() {
    let keys = "    tenant: { header: X-Tenant }
    limits: [{ name: each, rate: 100/h, burst: 5, per: tenant, on_excess: reject }]
";
    let (_, proxy) = limited(keys).await;
    let level = |proxy: &Proxy| sample(&proxy.metrics(), "outgate_limit_remaining", &["limit=\"each\""]);
    assert_eq!(level(&proxy), Some(5.0));
    for tenant in ["acme", "globex", "acme", "acme"] {
        let header = format!("X-Tenant: {tenant}\r\n");
        assert_eq!(local_request(proxy.address(), "GET", "/api/x", &header, "").await.status, 200);
    }
    assert_eq!(level(&proxy), Some(2.0));
    let text = admin(&proxy, "GET", "/status").await.text();
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["providers"][0]["layers"]["limits"][0]["remaining"], 2);
    assert!(!text.contains("acme") && !proxy.metrics().contains("acme"));
}

/// What a provider says and cannot mean is counted, whichever layer would use it.
#[tokio::test]
async fn waits_that_cannot_be_meant_are_counted() {
    for (wait, absurd) in [("-5", 1.0), ("NaN", 1.0), ("99999999999999999999", 1.0), ("1", 0.0)] {
        let origin = HttpOrigin::with(None, move |_| {
            let mut answer = text(429, "{}");
            answer.headers_mut().insert("retry-after", wait.parse().unwrap());
            answer
        })
        .await;
        let proxy = Proxy::start(&format!(
            "providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n    quota: off\n    retry: off\n",
            origin.address
        ))
        .await;
        assert_eq!(local_request(proxy.address(), "GET", "/api/x", "", "").await.status, 429);
        let counted = sample(&proxy.metrics(), "outgate_judged_total", &["event=\"absurd_wait\""]);
        assert_eq!(counted, Some(absurd), "{wait}");
        let status: serde_json::Value =
            serde_json::from_str(&admin(&proxy, "GET", "/status").await.text()).unwrap();
        assert_eq!(status["providers"][0]["layers"]["judged"]["absurd_waits"], absurd as u64);
    }
}

/// The wait is told apart, and is no time of the provider's.
#[tokio::test]
async fn what_waits_is_told_as_queue_time() {
    let (_, proxy) = limited("    limits: [{ name: account, rate: 10/30s, burst: 1 }]\n").await;
    for _ in 0..2 {
        assert_eq!(local_request(proxy.address(), "GET", "/api/x", "", "").await.status, 200);
    }
    let queues: Vec<f64> = proxy
        .records(2)
        .await
        .iter()
        .map(|record| record["duration"]["queue"].as_f64().unwrap_or(0.0))
        .collect();
    // It comes back in three seconds.
    assert!(queues[0] == 0.0 && queues[1] > 50.0, "{queues:?}");
}

/// The key is outgate's own, so a 429 with its `Retry-After` would have the app send the same payment again under another one.
#[tokio::test]
async fn an_attempt_that_finds_no_room_is_no_invitation_to_do_again_what_may_have_been_done() {
    let limits = "limits: [{ name: account, rate: 1/h, burst: 1, on_excess: reject }]";
    let keys = "idempotency: { header: Idempotency-Key, methods: [POST], add: true }";
    // It takes the payment, and breaks; or answers more than is kept for later.
    let long =
        format!("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 70000\r\n\r\n{}", "x".repeat(70_000));
    for (answer, code) in [("", "upstream_reset"), (long.leak(), "rate_limited")] {
        let origin = RawOrigin::answering(None, answer.as_bytes()).await;
        let proxy = Proxy::start(&format!(
            "providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n    {limits}\n    {keys}\n",
            origin.address
        ))
        .await;
        let got =
            local_request(proxy.address(), "POST", "/api/pay", "content-type: application/json\r\n", "{}")
                .await;
        assert_eq!((got.status, got.header("outgate-error")), (502, Some(code)));
        assert_eq!((got.header("outgate-sent"), got.header("retry-after")), (Some("maybe"), None));
        assert_eq!(got.header("ratelimit"), None);
        let record = proxy.records(1).await.remove(0);
        assert_eq!(
            record["outgate.retry.reason"].as_array().unwrap().last().unwrap(),
            "not_repeated:refused_by_outgate"
        );
        // Nothing was sent before this one.
        let got = local_request(proxy.address(), "POST", "/api/pay", "", "{}").await;
        assert_eq!((got.status, got.header("outgate-sent")), (429, Some("no")));
        assert!(got.header("retry-after").is_some());
        assert_eq!(origin.connections(), 1);
    }
}

/// The provider takes the payment and breaks, and then asks to come again: under another key that would be a second payment.
#[tokio::test]
async fn no_refusal_of_the_provider_invites_to_do_again_what_may_have_been_done() {
    let keys = "idempotency: { header: Idempotency-Key, methods: [POST], add: true }";
    let hint = "retry: { hint: { header: x-should-retry } }";
    let apps = "Idempotency-Key: app-1\r\n";
    for (own, more, status, code, told) in [
        ("", "", 502, Some("upstream_reset"), (Some("maybe"), None, None)),
        ("", hint, 429, None, (None, Some("100"), Some("false"))),
        (apps, "", 429, None, (None, Some("100"), None)),
    ] {
        let origin = RawOrigin::start(
            None,
            Arc::new(|mut stream, number| {
                Box::pin(async move {
                    if read_request(&mut stream).await.is_some() && number > 0 {
                        let answer = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 100\r\ncontent-length: 2\r\n\r\n{}";
                        stream.write_all(answer).await.unwrap();
                    }
                    let _ = stream.shutdown().await;
                })
            }),
        )
        .await;
        let proxy = Proxy::start(&format!(
            "providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n    {keys}\n    {more}\n",
            origin.address
        ))
        .await;
        let got = local_request(proxy.address(), "POST", "/api/pay", own, "{}").await;
        assert_eq!((got.status, got.header("outgate-error")), (status, code));
        let fields = ["outgate-sent", "retry-after", "x-should-retry"].map(|name| got.header(name));
        assert_eq!(fields, [told.0, told.1, told.2]);
        let record = proxy.records(1).await.remove(0);
        assert_eq!(
            record["outgate.retry.reason"],
            serde_json::json!(["reset", "not_repeated:retry_after"]),
            "{record}"
        );
        assert_eq!(origin.connections(), 2);
    }
}

/// An answer may have acted as well as a failure.
#[tokio::test]
async fn a_provider_that_fails_all_attempts_of_a_keyed_request_does_not_invite_either() {
    let origin = HttpOrigin::with(None, |_| text(503, "{}")).await;
    let proxy = Proxy::start(&format!(
        "providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n    idempotency: {{}}\n    retry: {{ backoff: {{ base: 1ms }} }}\n",
        origin.address
    ))
    .await;
    let got = local_request(proxy.address(), "POST", "/api/pay", "", "{}").await;
    assert_eq!((got.status, got.header("outgate-error")), (502, Some("upstream_failed")));
    assert_eq!((got.header("outgate-sent"), got.header("retry-after")), (Some("maybe"), None));
    let keys: Vec<_> = origin.requests().iter().map(|seen| seen.headers["idempotency-key"].clone()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let record = proxy.records(1).await.remove(0);
    assert_eq!(
        (&record["outgate.flag"], &record["outgate.sent"]),
        (&"URX".into(), &"maybe".into()),
        "{record}"
    );
    assert_eq!(
        record["outgate.retry.reason"],
        serde_json::json!(["unavailable", "unavailable", "not_repeated:attempts"])
    );
}
