//! Written limits over the whole proxy: what an app is told that comes too soon, and how long it waits.

use super::support::client::{admin, local_request, sample};
use super::support::origin::{HttpOrigin, text};
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
