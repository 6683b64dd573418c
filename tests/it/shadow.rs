//! `mode: shadow`: what would be refused or would wait passes, is counted, and its record names it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::support::client::{local_request, sample};
use super::support::origin::{HttpOrigin, RawOrigin, Seen, read_request, text};
use super::support::proxy::Proxy;

fn provider(name: &str, origin: SocketAddr, keys: &str) -> String {
    format!(
        "  {name}:
    hosts: [{name}.example.test]
    upstream: {{ scheme: http, connect_to: \"{origin}\" }}
    retry: off
{keys}"
    )
}

/// An origin with a quota that is used up, and a path that fails.
async fn origin() -> HttpOrigin {
    HttpOrigin::with(None, |seen: Seen| {
        let mut answer = text(if seen.uri.path() == "/fails" { 503 } else { 200 }, "{}");
        if seen.uri.path() == "/used-up" {
            let quota = "\"default\";r=0;t=600".parse().unwrap();
            answer.headers_mut().insert("ratelimit", quota);
        }
        answer
    })
    .await
}

/// Asks these paths one after the other; what each record says of shadow mode, with the status.
async fn ask(proxy: &Proxy, paths: &[&str]) -> Vec<(u64, Value)> {
    for path in paths {
        local_request(proxy.address(), "GET", path, "", "").await;
    }
    let records = proxy.records(paths.len()).await;
    records
        .iter()
        .map(|record| {
            assert!(record["error.type"].is_null() && record["outgate.flag"].is_null(), "{record}");
            (record["http.response.status_code"].as_u64().unwrap(), record["outgate.shadow"].clone())
        })
        .collect()
}

/// The same for the provider as a whole and for the one thing alone.
const LIMIT: [&str; 2] = [
    "    mode: shadow\n    limits: [{ name: account, rate: 1/h, on_excess: reject }]\n",
    "    limits: [{ name: account, rate: 1/h, mode: shadow }]\n",
];
const QUOTA: [&str; 2] =
    ["    mode: shadow\n    quota: { on_excess: reject }\n", "    quota: { mode: shadow }\n"];
const BREAKER: [&str; 2] =
    ["    mode: shadow\n    breaker: { failures: 1 }\n", "    breaker: { failures: 1, mode: shadow }\n"];

#[tokio::test]
async fn a_limit_lets_pass_what_it_would_refuse_and_what_would_wait() {
    for keys in LIMIT {
        let origin = origin().await;
        let proxy = Proxy::start(&format!("providers:\n{}", provider("api", origin.address, keys))).await;
        let told = ask(&proxy, &["/api/1", "/api/2", "/api/3"]).await;
        assert_eq!(
            told,
            [(200, Value::Null), (200, json!(["limit:account"])), (200, json!(["limit:account"]))]
        );
        assert_eq!(origin.requests().len(), 3);
        let decisions = |decision| {
            let labels = ["limit=\"account\"", decision];
            sample(&proxy.metrics(), "outgate_limit_decisions_total", &labels)
        };
        assert_eq!(decisions("decision=\"shadowed\""), Some(2.0), "{keys}");
        assert_eq!(decisions("decision=\"refused\""), Some(0.0), "{keys}");
        assert_eq!(decisions("decision=\"waited\""), Some(0.0), "{keys}");
    }
}

#[tokio::test]
async fn a_quota_that_is_used_up_lets_pass() {
    for keys in QUOTA {
        let origin = origin().await;
        let proxy = Proxy::start(&format!("providers:\n{}", provider("api", origin.address, keys))).await;
        let told = ask(&proxy, &["/api/used-up", "/api/more"]).await;
        assert_eq!(told, [(200, Value::Null), (200, json!(["quota"]))], "{keys}");
        let labels = ["provider=\"api\"", "decision=\"shadowed\""];
        assert_eq!(sample(&proxy.metrics(), "outgate_quota_decisions_total", &labels), Some(1.0), "{keys}");
    }
}

#[tokio::test]
async fn a_breaker_that_is_open_lets_pass() {
    for keys in BREAKER {
        let origin = origin().await;
        let proxy = Proxy::start(&format!("providers:\n{}", provider("api", origin.address, keys))).await;
        let told = ask(&proxy, &["/api/fails", "/api/1", "/api/2"]).await;
        assert_eq!(
            told,
            [(503, Value::Null), (200, json!(["breaker"])), (200, json!(["breaker"]))],
            "{keys}"
        );
        let metrics = proxy.metrics();
        let events = |event| sample(&metrics, "outgate_breaker_events_total", &["provider=\"api\"", event]);
        assert_eq!(events("event=\"shadowed\""), Some(2.0), "{keys}");
        assert_eq!(
            (events("event=\"opened\""), events("event=\"refused\"")),
            (Some(1.0), Some(0.0)),
            "{keys}"
        );
    }
}

#[tokio::test]
async fn a_concurrency_bound_lets_pass() {
    for keys in [
        "    mode: shadow\n    concurrency: { max: 1, max_wait: 1ms }\n",
        "    concurrency: { max: 1, max_wait: 1m, mode: shadow }\n",
    ] {
        let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, wait) = (asked.clone(), go.clone());
        // The first is held until the second was answered.
        let origin = RawOrigin::start(
            None,
            Arc::new(move |mut stream, number| {
                let (told, wait) = (told.clone(), wait.clone());
                Box::pin(async move {
                    use tokio::io::AsyncWriteExt;
                    if read_request(&mut stream).await.is_none() {
                        return;
                    }
                    if number == 0 {
                        told.notify_one();
                        wait.notified().await;
                    }
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                        .await;
                })
            }),
        )
        .await;
        let proxy = Proxy::start(&format!("providers:\n{}", provider("api", origin.address, keys))).await;
        let first = tokio::spawn({
            let address = proxy.address();
            async move { local_request(address, "GET", "/api/first", "", "").await }
        });
        asked.notified().await;
        assert_eq!(local_request(proxy.address(), "GET", "/api/second", "", "").await.status, 200);
        go.notify_one();
        assert_eq!(first.await.unwrap().status, 200);
        let records = proxy.records(2).await;
        let of = |path: &str| records.iter().find(|record| record["url.path"] == path).unwrap();
        assert_eq!(of("/api/second")["outgate.shadow"], json!(["concurrency"]), "{keys}");
        assert_eq!(of("/api/first")["outgate.shadow"], Value::Null, "{keys}");
        let labels = ["provider=\"api\"", "decision=\"shadowed\""];
        let shadowed = sample(&proxy.metrics(), "outgate_concurrency_decisions_total", &labels);
        assert_eq!(shadowed, Some(1.0), "{keys}");
    }
}

#[tokio::test]
async fn a_route_that_denies_lets_pass_and_the_next_route_decides() {
    let route = |mode: &str| {
        format!(
            "    routes:
      - {{ name: refunds, match: {{ path: \"/refunds/**\" }}, deny: \"not here\"{mode} }}
      - {{ name: others, match: {{}} }}
"
        )
    };
    for (provider_mode, route_mode) in [("    mode: shadow\n", ""), ("", ", mode: shadow")] {
        let origin = origin().await;
        let keys = format!("{provider_mode}{}", route(route_mode));
        let proxy = Proxy::start(&format!("providers:\n{}", provider("api", origin.address, &keys))).await;
        let told = ask(&proxy, &["/api/refunds/1", "/api/charges"]).await;
        assert_eq!(told, [(200, json!(["deny:refunds"])), (200, Value::Null)], "{keys}");
        assert_eq!(proxy.records(2).await[0]["outgate.route"], "others");
        let shadowed = sample(&proxy.metrics(), "outgate_shadowed_total", &["what=\"deny:refunds\""]);
        assert_eq!(shadowed, Some(1.0), "{keys}: {}", proxy.metrics());
    }
    // What is enforced still is, for a provider beside it.
    let origin = origin().await;
    let proxy = Proxy::start(&format!("providers:\n{}", provider("api", origin.address, &route("")))).await;
    assert_eq!(local_request(proxy.address(), "GET", "/api/refunds/1", "", "").await.status, 403);
    assert!(origin.requests().is_empty());
}

/// One request may meet all of them; and what shadow mode does not cover is refused as ever.
#[tokio::test]
async fn everything_at_once_is_named_and_an_unknown_host_stays_denied() {
    let origin = origin().await;
    let keys = "    mode: shadow
    limits: [{ name: account, rate: 1/h, on_excess: reject }]
    breaker: { failures: 1 }
    routes:
      - { name: fails, match: { path: \"/fails\" }, deny: \"no\" }
      - { name: rest, match: {} }
";
    let proxy = Proxy::start(&format!("providers:\n{}", provider("api", origin.address, keys))).await;
    let begun = std::time::Instant::now();
    let told = ask(&proxy, &["/api/used-up", "/api/fails", "/api/fails"]).await;
    assert_eq!(told[0], (200, Value::Null));
    let mut labels: Vec<_> =
        told[2].1.as_array().unwrap().iter().map(|label| label.as_str().unwrap().to_owned()).collect();
    labels.sort_unstable();
    assert_eq!(
        (told[2].0, labels),
        (503, ["breaker", "deny:fails", "limit:account", "quota"].map(str::to_owned).to_vec())
    );
    assert!(begun.elapsed() < Duration::from_secs(5), "nothing waited");
    let metrics = proxy.metrics();
    let counted = |what: &str| {
        let labels = ["provider=\"api\"", &format!("what=\"{what}\"")];
        sample(&metrics, "outgate_shadowed_total", &labels)
    };
    let expected = [("breaker", 1.0), ("deny:fails", 2.0), ("limit:account", 2.0), ("quota", 2.0)];
    for (what, count) in expected {
        assert_eq!(counted(what), Some(count), "{what}");
    }
    let denied = local_request(proxy.address(), "GET", "/nobody/x", "", "").await;
    assert_eq!((denied.status, denied.header("outgate-error")), (403, Some("denied")));
}
