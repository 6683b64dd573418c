//! The way to the provider: client certificates, a corporate proxy, names that are not answered, and what breaks inside.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outgate::app::{App, Overrides};
use outgate::pipeline::reload::read;
use outgate::upstream::resolver::Resolver;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::support::ca::TestCa;
use super::support::client::{Raw, intercepted, local_get, over_http1, request};
use super::support::log::Log;
use super::support::origin::{HttpOrigin, RawOrigin};
use super::support::proxy::Proxy;
use super::world::{HOST, answering, directory, policy, start};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_client_certificate_is_shown_and_its_rotation_is_seen() {
    let (ca, clients) = (TestCa::new(), TestCa::new());
    let server = ca.server_for_clients(&[HOST], &["http/1.1"], &clients.pem);
    let origin = RawOrigin::start(Some(server), answering(|_| Some(OK.to_vec()))).await;
    let dir = directory(&ca);
    let write = |pair: (String, String)| {
        std::fs::write(dir.path().join("client.pem"), pair.0).unwrap();
        std::fs::write(dir.path().join("client.key"), pair.1).unwrap();
    };
    // Signed by somebody whom the provider does not know.
    write(TestCa::new().client("stranger"));
    let text = policy(origin.address, "", "").replace(
        "origin.pem\" }",
        "origin.pem\", client_certificate: \"file:{dir}/client.pem\", client_key: \"file:{dir}/client.key\" }",
    );
    let proxy = Proxy::start_in(dir.clone(), &text).await;
    let got = local_get(&proxy, "/api/x").await;
    assert_eq!(got.status, 502, "{got:?}");
    assert!(!origin.text().contains("Bearer"), "nothing reached it");
    write(clients.client("outgate"));
    let deadline = std::time::Instant::now() + Duration::from_secs(8);
    while local_get(&proxy, "/api/x").await.status != 200 {
        assert!(std::time::Instant::now() < deadline, "the new certificate is read");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let got =
        over_http1(intercepted(&proxy, HOST, &["http/1.1"]).await, request("GET", "/y", Some(HOST), ""));
    assert_eq!(got.await.status, 200);
}

#[tokio::test]
async fn a_client_certificate_that_is_not_there_is_a_missing_credential() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let text = policy(origin.address, "", "").replace(
        "origin.pem\" }",
        "origin.pem\", client_certificate: \"file:{dir}/none.pem\", client_key: \"file:{dir}/none.key\" }",
    );
    let proxy = Proxy::start_in(directory(&ca), &text).await;
    let got = local_get(&proxy, "/api/x").await;
    assert_eq!((got.status, got.header("outgate-error")), (503, Some("credential_unavailable")));
    assert!(origin.requests().is_empty());
}

/// A corporate proxy: takes CONNECT with the right password, and connects to `origin` whatever it was asked for. Keeps the
/// heads that it got.
async fn corporate(origin: std::net::SocketAddr, password: &str) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let (log, wanted) = (heads.clone(), format!("Basic {}", STANDARD.encode(password)));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (log, wanted) = (log.clone(), wanted.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                log.lock().unwrap().push(head.clone());
                if !head.contains(&wanted) {
                    let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
                    let _ = stream.write_all(refusal.as_bytes()).await;
                    return;
                }
                let mut there = TcpStream::connect(origin).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut there).await;
            });
        }
    });
    (port, heads)
}

#[tokio::test]
async fn a_corporate_proxy_is_chained_with_its_password_and_sees_no_credential() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let (port, heads) = corporate(origin.address, "user:the-corporate-password").await;
    let dir = directory(&ca);
    std::fs::write(dir.path().join("corporate"), "user:the-corporate-password").unwrap();
    let provider =
        policy(origin.address, "", "").replace(&format!("connect_to: \"{}\", ", origin.address), "");
    let chained = |resolve: &str| {
        format!(
            "addresses: {{ upstream_proxy: {{ url: \"http://127.0.0.1:{port}\", auth: \"file:{{dir}}/corporate\", resolve: {resolve} }} }}\n{provider}"
        )
    };
    let proxy = Proxy::start_in(dir.clone(), &chained("local")).await;
    proxy.names.set(HOST, &["93.184.215.14"]);
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    // The address that was checked is the one that is asked for, and the name where the proxy resolves.
    proxy.reload(&chained("proxy")).await;
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    {
        let heads = heads.lock().unwrap();
        assert!(heads[0].starts_with("CONNECT 93.184.215.14:443 HTTP/1.1\r\n"), "{heads:?}");
        assert!(heads[1].starts_with(&format!("CONNECT {HOST}:443 HTTP/1.1\r\n")), "{heads:?}");
        assert!(heads.iter().all(|head| !head.contains("Bearer") && !head.contains(super::support::CANARY)));
    }
    assert_eq!(origin.requests().len(), 2);
    assert!(origin.requests()[0].header("proxy-authorization").is_none());

    // The wrong password: the provider is not reached, and neither secret is told.
    std::fs::write(dir.path().join("corporate"), "user:another-password").unwrap();
    let proxy = Proxy::start_in(dir, &chained("local")).await;
    proxy.names.set(HOST, &["93.184.215.14"]);
    let got = local_get(&proxy, "/api/x").await;
    assert_eq!((got.status, got.header("outgate-error")), (502, Some("upstream_connect")), "{got:?}");
    assert_eq!(proxy.records(1).await[0]["outgate.flag"], "UF");
    assert!(!proxy.log.text(&proxy.app.telemetry).contains("another-password"));
}

#[tokio::test]
async fn a_name_that_is_not_answered_in_time_is_a_dns_timeout() {
    let dir = directory(&TestCa::new());
    let path = dir.path().join("proxy.yaml");
    let text = format!(
        "version: 1\nlisteners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\ninterception: {{ ca: {{ directory: ca }}, bundle: bundle.pem }}\nproviders:\n  api: {{ hosts: [{HOST}], timeouts: {{ connect: 300ms }}, retry: off }}\n"
    );
    std::fs::write(&path, text).unwrap();
    let log = Log::default();
    let resolver = Resolver::with_lookup(Box::new(|_| Box::pin(std::future::pending())));
    let overrides = Overrides { resolver: Some(resolver), log: Some(log.output()), ..Overrides::default() };
    let app = App::start(path.clone(), read(&path).unwrap(), overrides).await.unwrap();
    let mut raw = Raw::connect(app.listeners[0]).await;
    raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", app.listeners[0])).await;
    let got = raw.answer().await;
    assert_eq!(
        (got.status, got.header("outgate-error"), got.proxy_error(), got.header("outgate-sent")),
        (504, Some("upstream_dns_timeout"), Some("dns_timeout"), Some("no"))
    );
    let records = log.wait_for(&app.telemetry, 1).await;
    assert_eq!((&records[0]["outgate.flag"], records.len()), (&"DF".into(), 1), "{}", records[0]);
    // Before the 200 of a CONNECT as well.
    let mut raw = Raw::connect(app.listeners[0]).await;
    raw.send(format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n")).await;
    assert_eq!(raw.answer().await.status, 504);
}

/// The resolver is asked inside the innermost layer of a route's stack, and a bug may stand anywhere.
#[tokio::test]
async fn a_panic_in_a_layer_costs_its_request_and_nothing_else() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let (port, address) = (origin.address.port(), origin.address.ip());
    let text = format!(
        "addresses: {{ allow_private: [127.0.0.0/8] }}\nproviders:\n  api:\n    hosts: [\"{HOST}:{port}\", \"bug.example.test\"]\n    upstream: {{ tls: {{ ca: \"{{dir}}/origin.pem\" }} }}\n    credential: {{ bearer: \"file:{{dir}}/secret\" }}\n"
    );
    let proxy = Proxy::start_resolving(directory(&ca), &text, move |name| {
        assert!(!name.starts_with("bug"), "it breaks on purpose");
        Ok(vec![address])
    })
    .await;
    let mut raw = Raw::connect(proxy.address()).await;
    for (path, status) in [("/api/x", 200), ("/api@bug.example.test/x", 500), ("/api/x", 200)] {
        if status == 200 {
            assert_eq!(local_get(&proxy, path).await.status, status);
            continue;
        }
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
        let got = raw.answer().await;
        assert_eq!(
            (got.status, got.header("outgate-error"), got.proxy_error()),
            (500, Some("internal"), Some("proxy_internal_error")),
            "{got:?}"
        );
        assert!(!got.text().contains("purpose"), "what the panic says is not for the app");
        assert!(raw.ends().await, "and the connection dies");
    }
    let records = proxy.records(3).await;
    assert_eq!(records.len(), 3, "one each: {records:#?}");
    assert_eq!(
        (&records[1]["outgate.flag"], &records[1]["http.response.status_code"]),
        (&"IE".into(), &500.into())
    );
    let metrics = proxy.metrics();
    let mut in_flight = metrics.lines().filter(|line| line.starts_with("outgate_requests_in_flight{"));
    assert!(in_flight.all(|line| line.ends_with(" 0.0") || line.ends_with("} 0.0")), "{metrics}");
}

#[tokio::test]
async fn a_credential_that_was_not_sent_is_not_in_the_record() {
    // The provider's certificate is of another authority, so the handshake fails and nothing goes out.
    let origin = HttpOrigin::start(Some(TestCa::new().server(&[HOST], &["http/1.1"]))).await;
    let proxy = start(&TestCa::new(), origin.address, "", "").await;
    assert_eq!(local_get(&proxy, "/api/x").await.status, 502);
    let record = &proxy.records(1).await[0];
    assert_eq!(record["outgate.flag"], "US");
    assert!(record["outgate.credential"].is_null(), "{record}");

    let ca = TestCa::new();
    let origin = RawOrigin::start(Some(ca.server(&[HOST], &["http/1.1"])), answering(|_| None)).await;
    let proxy = start(&ca, origin.address, "    retry: off\n", "").await;
    assert_eq!(local_get(&proxy, "/api/x").await.status, 502);
    let record = &proxy.records(1).await[0];
    assert!(
        record["outgate.credential"].as_str().is_some_and(|reference| reference.starts_with("file:")),
        "{record}"
    );
}

#[tokio::test]
async fn refusals_that_time_helps_say_when() {
    let ca = TestCa::new();
    let slow = RawOrigin::start(
        Some(ca.server(&[HOST], &["http/1.1"])),
        Arc::new(|mut stream, _| {
            Box::pin(async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            })
        }),
    )
    .await;
    let text = policy(slow.address, "    timeouts: { connect: 200ms }\n    retry: off\n", "")
        .replace("connect_to:", "pool: { max_connections: 1 }, connect_to:");
    let proxy = Proxy::start_in(directory(&ca), &text).await;
    let mut first = Raw::connect(proxy.address()).await;
    first.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
    super::world::until("it has the connection", || slow.text().contains("GET /x")).await;
    let got = local_get(&proxy, "/api/y").await;
    assert_eq!((got.status, got.proxy_error()), (503, Some("connection_limit_reached")), "{got:?}");
    assert_eq!(got.header("retry-after"), Some("1"));

    // A secret that is not there yet: its store is asked again 6 to 7.5 s after it failed, then 12 to 15. One that can never come has no time.
    for (reference, helps) in [("file:{dir}/none", true), ("env:OUTGATE_TEST_NEVER_SET", false)] {
        let keys = format!("    credential: {{ bearer: \"{reference}\" }}\n");
        let proxy = start(&ca, slow.address, &keys, "").await;
        let got = local_get(&proxy, "/api/x").await;
        assert_eq!((got.status, got.header("outgate-error")), (503, Some("credential_unavailable")));
        let after = got.header("retry-after").map(|text| text.parse::<u64>().unwrap());
        assert_eq!(after.is_some_and(|seconds| (1..=15).contains(&seconds)), helps, "{reference}: {after:?}");
    }
}
