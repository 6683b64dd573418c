//! Every door, once: what the app sends, what the provider sees, what the app gets, and the one record it leaves.

use super::support::CANARY;
use super::support::ca::TestCa;
use super::support::client::{Raw, http2, intercepted, intercepted_trusting, local_get, over_http1, request};
use super::support::origin::HttpOrigin;
use super::support::proxy::Proxy;

struct World {
    proxy: Proxy,
    origin: HttpOrigin,
    ca: TestCa,
}

async fn world(alpn: &[&str], more: &str) -> World {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&["api.example.test", "blind.example.test"], alpn))).await;
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("origin.pem"), &ca.pem).unwrap();
    std::fs::write(dir.path().join("secret"), CANARY).unwrap();
    let policy = format!(
        "providers:
  api:
    hosts: [api.example.test]
    upstream: {{ connect_to: \"{origin}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}
    credential: {{ bearer: \"file:{{dir}}/secret\" }}
  blind:
    hosts: [blind.example.test]
    upstream: {{ connect_to: \"{origin}\" }}
{more}",
        origin = origin.address
    );
    let proxy = Proxy::start_in(dir, &policy).await;
    World { proxy, origin, ca }
}

fn assert_injected(world: &World, path: &str) {
    let seen = world.origin.only();
    assert_eq!(seen.uri.path(), path);
    assert_eq!(seen.header("authorization"), Some(format!("Bearer {CANARY}").as_str()));
    assert!(seen.headers.contains_key("via"));
}

#[tokio::test]
async fn the_local_endpoint_injects() {
    let world = world(&["http/1.1"], "").await;
    let got = local_get(&world.proxy, "/api/v1/charges?limit=3").await;
    assert_eq!((got.status, got.text().as_str()), (200, "{\"ok\":true}"));
    assert!(got.header("outgate-request-id").is_some());
    assert_injected(&world, "/v1/charges");
    assert_eq!(world.origin.only().uri.query(), Some("limit=3"));
    let records = world.proxy.records(1).await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["outgate.door"], "local");
    assert_eq!(records[0]["outgate.provider"], "api");
    assert_eq!(records[0]["http.response.status_code"], 200);
}

/// A client with proxy variables set sends the local endpoint's URLs as it sends all others.
#[tokio::test]
async fn the_local_endpoint_is_known_in_absolute_form() {
    let world = world(&["http/1.1"], "").await;
    let port = world.proxy.address().port();
    for (count, url) in
        [format!("http://127.0.0.1:{port}/api/v1/x"), format!("http://api.localhost:{port}/v1/x")]
            .iter()
            .enumerate()
    {
        let mut raw = Raw::connect(world.proxy.address()).await;
        let host = url.split('/').nth(2).unwrap();
        raw.send(format!("GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let got = raw.answer().await;
        assert_eq!(got.status, 200, "{url}: {}", got.text());
        let record = &world.proxy.records(count + 1).await[count];
        assert_eq!(
            (&record["outgate.door"], &record["outgate.provider"]),
            (&"local".into(), &"api".into()),
            "{url}: {record}"
        );
    }
    // Another port is another server's.
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send("GET http://api.localhost:1/v1/x HTTP/1.1\r\nHost: api.localhost:1\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 403);
}

#[tokio::test]
async fn plain_http_through_the_proxy_goes_out_over_tls() {
    let world = world(&["http/1.1"], "").await;
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send("GET http://api.example.test/v1/x HTTP/1.1\r\nHost: api.example.test\r\nAuthorization: Bearer app\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
    assert_injected(&world, "/v1/x");
    assert_eq!(world.proxy.records(1).await[0]["outgate.door"], "forward");
}

#[tokio::test]
async fn connect_is_intercepted_with_either_version_on_either_side() {
    for upstream in [&["http/1.1"][..], &["h2", "http/1.1"]] {
        let world1 = world(upstream, "").await;
        let stream = intercepted(&world1.proxy, "api.example.test", &["http/1.1"]).await;
        let got = over_http1(stream, request("POST", "/v1/x", Some("api.example.test"), "body")).await;
        assert_eq!(got.status, 200);
        assert_injected(&world1, "/v1/x");
        assert_eq!(world1.origin.only().body, "body");
        let records = world1.proxy.records(2).await;
        assert_eq!(
            (&records[0]["outgate.door"], &records[1]["outgate.door"]),
            (&"connect".into(), &"intercept".into())
        );

        let world2 = world(upstream, "").await;
        let stream = intercepted(&world2.proxy, "api.example.test", &["h2"]).await;
        let mut sender = http2(stream).await;
        let response = sender
            .send_request(request("POST", "https://api.example.test/v1/x", None, "body"))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_injected(&world2, "/v1/x");
    }
}

#[tokio::test]
async fn a_provider_without_credential_is_a_blind_tunnel() {
    let world = world(&["http/1.1"], "").await;
    // The app sees the provider's own certificate.
    let stream =
        intercepted_trusting(&world.proxy, "blind.example.test", 443, &world.ca.pem, &["http/1.1"]).await;
    let got = over_http1(stream, request("GET", "/secret/path", Some("blind.example.test"), "")).await;
    assert_eq!(got.status, 200);
    let seen = world.origin.only();
    assert!(!seen.headers.contains_key("via") && !seen.headers.contains_key("authorization"));
    let records = world.proxy.records(1).await;
    assert_eq!(records[0]["outgate.door"], "tunnel");
    assert!(records[0]["http.response.body.size"].as_u64().unwrap() > 500);
    assert!(!records[0].to_string().contains("/secret/path"));
}

#[tokio::test]
async fn what_no_provider_names_is_denied_without_a_question_to_dns() {
    let world = world(&["http/1.1"], "").await;
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send("GET http://evil.example.test/ HTTP/1.1\r\nHost: evil.example.test\r\n\r\n").await;
    let got = raw.answer().await;
    assert_eq!((got.status, got.proxy_error()), (403, Some("http_request_denied")));
    assert_eq!(got.header("outgate-error"), Some("denied"));
    raw.send("CONNECT evil.example.test:443 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 403);
    assert!(raw.ends().await, "a refused CONNECT closes");
    assert!(world.proxy.names.questions().is_empty());
    assert!(world.origin.requests().is_empty());
}

/// HTTP/2 clients may send cookies in crumbs; an HTTP/1.1 provider must get one field (RFC 9113 section 8.2.3).
#[tokio::test]
async fn cookie_crumbs_are_joined_for_http1() {
    let world = world(&["http/1.1"], "").await;
    let mut sender = http2(intercepted(&world.proxy, "api.example.test", &["h2"]).await).await;
    let mut crumbs = request("GET", "https://api.example.test/v1/x", None, "");
    crumbs.headers_mut().append("cookie", "a=1".parse().unwrap());
    crumbs.headers_mut().append("cookie", "b=2".parse().unwrap());
    assert_eq!(sender.send_request(crumbs).await.unwrap().status(), 200);
    let seen = world.origin.only();
    let cookies: Vec<_> = seen.headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1; b=2"]);
}

/// Two accounts at one provider: its host name alone means the one that has it at the other doors too, in whatever order
/// they stand in the file.
#[tokio::test]
async fn a_host_alone_means_the_main_account() {
    let main = HttpOrigin::start(None).await;
    let second = HttpOrigin::start(None).await;
    let policy = format!(
        "providers:
  second:
    hosts: [pay.example.test]
    doors: [local]
    upstream: {{ scheme: http, connect_to: \"{}\" }}
  main:
    hosts: [pay.example.test]
    upstream: {{ scheme: http, connect_to: \"{}\" }}
",
        second.address, main.address
    );
    let proxy = Proxy::start(&policy).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /v1/charges HTTP/1.1\r\nHost: pay.example.test\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
    assert_eq!((main.requests().len(), second.requests().len()), (1, 0));
    assert_eq!(local_get(&proxy, "/second/v1/charges").await.status, 200);
    assert_eq!(second.requests().len(), 1);
}

/// A connection on which nothing was ever asked does not hold up the end.
#[tokio::test]
async fn a_silent_connection_holds_up_no_drain() {
    let world = world(&["http/1.1"], "").await;
    let _silent = Raw::connect(world.proxy.address()).await;
    assert_eq!(local_get(&world.proxy, "/api/v1/x").await.status, 200);
    let started = std::time::Instant::now();
    assert!(world.proxy.app.shutdown().await, "everything finished by itself");
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}
