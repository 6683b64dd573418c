//! Redirected connections, with a scripted answer to where they were meant to go: what the app sends, what the provider sees,
//! and the one record that each leaves. The kernel's own redirection is shown in `tests/packaging/test_redirect.py`.

use std::sync::{Arc, Mutex};

use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::support::CANARY;
use super::support::ca::{TestCa, trusting};
use super::support::client::{Raw, http2, over_http1, request};
use super::support::origin::HttpOrigin;
use super::support::proxy::{Dialled, Proxy};

/// Where the app thinks that it connects.
const PUBLIC: &str = "93.184.215.14";

struct World {
    proxy: Proxy,
    origin: HttpOrigin,
    ca: TestCa,
    dialled: Dialled,
}

async fn world(alpn: &[&str]) -> World {
    world_with(alpn, "").await
}

async fn world_with(alpn: &[&str], more: &str) -> World {
    let ca = TestCa::new();
    let names = ["api.example.test", "blind.example.test", "named.example.test"];
    let origin = HttpOrigin::start(Some(ca.server(&names, alpn))).await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("origin.pem"), &ca.pem).unwrap();
    std::fs::write(dir.path().join("secret"), CANARY).unwrap();
    let policy = format!(
        "addresses: {{ allow_private: [\"127.0.0.1:{port}\"] }}
providers:
  api:
    hosts: [api.example.test]
    upstream: {{ connect_to: \"{origin}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}
    credential: {{ bearer: \"file:{{dir}}/secret\" }}
    routes: [{{ match: {{ path: /forbidden }}, deny: \"not this one\" }}]
  blind:
    hosts: [blind.example.test]
    upstream: {{ connect_to: \"{origin}\" }}
  named:
    hosts: [\"named.example.test:{port}\"]
    upstream: {{ tls: {{ ca: \"{{dir}}/origin.pem\" }} }}
    credential: {{ bearer: \"file:{{dir}}/secret\" }}
{more}",
        origin = origin.address,
        port = origin.address.port(),
    );
    let dialled: Dialled = Arc::new(Mutex::new(Some(format!("{PUBLIC}:443").parse().unwrap())));
    let proxy = Proxy::start_redirected(dir, &policy, &dialled).await;
    World { proxy, origin, ca, dialled }
}

impl World {
    fn dial(&self, address: &str) {
        *self.dialled.lock().unwrap() = Some(address.parse().unwrap());
    }

    async fn tls(&self, name: &str, pem: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.proxy.address()).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(trusting(pem, alpn)).connect(name, stream).await
    }

    async fn trusted(&self, name: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
        self.tls(name, &self.proxy.ca(), alpn).await.unwrap()
    }

    /// The only record of this test.
    async fn record(&self) -> Value {
        let records = self.proxy.records(1).await;
        assert_eq!(records.len(), 1, "{records:?}");
        records[0].clone()
    }

    fn assert_injected(&self, path: &str) {
        let seen = self.origin.only();
        assert_eq!(seen.uri.path(), path);
        assert_eq!(seen.header("authorization"), Some(format!("Bearer {CANARY}").as_str()));
    }
}

/// The alert with which a refused client learns of it.
fn alert_of(error: std::io::Error) -> rustls::AlertDescription {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn tls_is_intercepted_by_its_server_name_with_either_version() {
    for alpn in ["http/1.1", "h2"] {
        let world = world(&["http/1.1"]).await;
        let stream = world.trusted("api.example.test", &[alpn]).await;
        let sent = request("POST", "https://api.example.test/v1/x", None, "body");
        let status = if alpn == "h2" {
            http2(stream).await.send_request(sent).await.unwrap().status().as_u16()
        } else {
            over_http1(stream, request("POST", "/v1/x", Some("api.example.test"), "body")).await.status
        };
        assert_eq!(status, 200, "{alpn}");
        world.assert_injected("/v1/x");
        let record = world.record().await;
        assert_eq!(record["outgate.door"], "transparent", "one record, and none of the connection");
        assert_eq!(
            (&record["server.address"], &record["server.port"]),
            (&"api.example.test".into(), &443.into())
        );
        assert_eq!(record["outgate.original.address"], PUBLIC);
        assert_eq!(record["outgate.provider"], "api");
        assert_eq!(record["http.response.status_code"], 200);
        assert!(!world.proxy.names.questions().iter().any(|name| name == PUBLIC));
    }
}

#[tokio::test]
async fn requests_inside_are_judged_one_by_one() {
    let world = world(&["http/1.1"]).await;
    let stream = world.trusted("api.example.test", &["http/1.1"]).await;
    let mut raw = Raw::over(stream);
    raw.send("GET /forbidden HTTP/1.1\r\nHost: api.example.test\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 403);
    raw.send("GET /v1/x HTTP/1.1\r\nHost: blind.example.test\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 421, "another host than the server name, as in a CONNECT");
    let records = world.proxy.records(2).await;
    assert!(records.iter().all(|record| record["outgate.door"] == "transparent"));
    assert!(world.origin.requests().is_empty());
}

#[tokio::test]
async fn what_a_connect_would_tunnel_is_tunnelled() {
    let world = world(&["http/1.1"]).await;
    // The app sees the provider's own certificate.
    let stream = world.tls("blind.example.test", &world.ca.pem, &["http/1.1"]).await.unwrap();
    let got = over_http1(stream, request("GET", "/secret/path", Some("blind.example.test"), "")).await;
    assert_eq!(got.status, 200);
    assert!(!world.origin.only().headers.contains_key("via"));
    let record = world.record().await;
    assert_eq!(
        (&record["outgate.door"], &record["outgate.provider"]),
        (&"transparent".into(), &"blind".into())
    );
    assert!(record["http.response.body.size"].as_u64().unwrap() > 500);
    assert_eq!(record.get("http.response.status_code"), None);
    assert_eq!(record.get("outgate.flag"), None);
}

#[tokio::test]
async fn plain_http_is_judged_by_its_host_request_by_request() {
    let world = world(&["http/1.1"]).await;
    world.dial(&format!("{PUBLIC}:80"));
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send("GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\nAuthorization: Bearer app\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
    world.assert_injected("/v1/x");
    raw.send("GET /v1/x HTTP/1.1\r\nHost: evil.example.test\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 403);
    raw.send("GET http://api.example.test/v1/x HTTP/1.1\r\nHost: evil.example.test\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 421, "two names");
    raw.send("CONNECT api.example.test:443 HTTP/1.1\r\nHost: api.example.test:443\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 400, "a proxy is what this is not");
    let records = world.proxy.records(4).await;
    assert_eq!(records.len(), 4);
    assert!(records.iter().all(|record| record["outgate.door"] == "transparent"), "{records:?}");
    assert_eq!(records[0]["server.port"], 80);
    assert_eq!(records[0]["url.scheme"], "http");
    assert_eq!(world.origin.requests().len(), 1);
}

#[tokio::test]
async fn plain_http2_is_served_too() {
    let world = world(&["http/1.1"]).await;
    world.dial(&format!("{PUBLIC}:80"));
    let stream = TcpStream::connect(world.proxy.address()).await.unwrap();
    let mut sender = http2(stream).await;
    let response =
        sender.send_request(request("GET", "http://api.example.test/v1/x", None, "")).await.unwrap();
    assert_eq!(response.status(), 200);
    world.assert_injected("/v1/x");
    assert_eq!(world.record().await["outgate.door"], "transparent");
}

#[tokio::test]
async fn without_a_name_that_the_policy_has_nothing_is_dialled_or_asked() {
    for (name, detail) in [
        ("evil.example.test", "no provider of the policy"),
        // An address as server name is none (RFC 6066).
        ("192.0.2.1", "names no host"),
    ] {
        let world = world(&["http/1.1"]).await;
        let error = world.tls(name, &world.proxy.ca(), &["h2"]).await.unwrap_err();
        assert_eq!(alert_of(error), rustls::AlertDescription::AccessDenied, "{name}");
        let record = world.record().await;
        assert_eq!((&record["outgate.flag"], &record["error.type"]), (&"NR".into(), &"denied".into()));
        assert!(record["outgate.error.detail"].as_str().unwrap().contains(detail), "{record}");
        assert_eq!(record["outgate.sent"], "no");
        assert!(world.proxy.names.questions().is_empty());
        assert!(world.origin.requests().is_empty());
    }
}

#[tokio::test]
async fn who_dials_the_listener_itself_is_refused() {
    let world = world(&["http/1.1"]).await;
    *world.dialled.lock().unwrap() = None;
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send("GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n").await;
    assert!(raw.answer_or_end().await.is_none(), "closed without an answer");
    let record = world.record().await;
    assert_eq!((&record["outgate.flag"], &record["outgate.door"]), (&"NR".into(), &"transparent".into()));
    assert!(record["outgate.error.detail"].as_str().unwrap().contains("redirected connections only"));
    assert!(world.origin.requests().is_empty());
}

/// The address that was dialled is never dialled from here; but it has to be one that the policy would have allowed.
#[tokio::test]
async fn the_original_address_is_a_check() {
    let world = world(&["http/1.1"]).await;
    let port = world.origin.address.port();
    world.proxy.names.set("named.example.test", &["127.0.0.1"]);
    for (address, resolved) in [(format!("127.0.0.1:{port}"), true), (format!("{PUBLIC}:{port}"), false)] {
        world.dial(&address);
        let stream = world.trusted("named.example.test", &["http/1.1"]).await;
        let host = format!("named.example.test:{port}");
        let got = over_http1(stream, request("GET", "/v1/y", Some(&host), "")).await;
        assert_eq!(got.status, 200, "{address}: {got:?}");
        let mut raw = Raw::connect(world.proxy.address()).await;
        raw.send(format!("GET /v1/y HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(raw.answer().await.status, 200, "{address}");
        let count = world.origin.requests().len();
        let records = world.proxy.records(count).await;
        assert_eq!(records[count - 1]["outgate.original.resolved"], resolved, "{address}");
    }
    let before = world.origin.requests().len();
    for address in
        [format!("10.0.0.9:{port}"), format!("169.254.169.254:{port}"), format!("[fd00::1]:{port}")]
    {
        world.dial(&address);
        let error = world.tls("named.example.test", &world.proxy.ca(), &["http/1.1"]).await.unwrap_err();
        assert_eq!(alert_of(error), rustls::AlertDescription::AccessDenied, "{address}");
        let mut raw = Raw::connect(world.proxy.address()).await;
        raw.send(format!("GET /v1/y HTTP/1.1\r\nHost: named.example.test:{port}\r\n\r\n")).await;
        let got = raw.answer().await;
        assert_eq!((got.status, got.header("outgate-error")), (403, Some("address_denied")), "{address}");
    }
    let records = world.proxy.records(before + 6).await;
    for record in &records[before..] {
        assert_eq!(record["outgate.flag"], "AD", "{record}");
        assert!(record["outgate.error.detail"].as_str().unwrap().contains("the app had dialled"), "{record}");
    }
    assert_eq!(world.origin.requests().len(), before);
}

/// Where the policy says where the host is, a private address is as good as any; a metadata service is not.
#[tokio::test]
async fn connect_to_lets_no_metadata_service_pass() {
    let world = world(&["http/1.1"]).await;
    world.dial("10.0.0.9:443");
    let stream = world.trusted("api.example.test", &["http/1.1"]).await;
    assert_eq!(over_http1(stream, request("GET", "/v1/z", Some("api.example.test"), "")).await.status, 200);
    world.assert_injected("/v1/z");
    for address in ["169.254.169.254:443", "[fd00:ec2::254]:443", "[::ffff:169.254.169.254]:443"] {
        world.dial(address);
        for name in ["api.example.test", "blind.example.test"] {
            let error = world.tls(name, &world.proxy.ca(), &["http/1.1"]).await.unwrap_err();
            assert_eq!(alert_of(error), rustls::AlertDescription::AccessDenied, "{address} {name}");
        }
    }
    let records = world.proxy.records(7).await;
    for record in &records[1..] {
        assert_eq!(record["outgate.flag"], "AD", "{record}");
    }
    assert_eq!(world.origin.requests().len(), 1);
}

#[tokio::test]
async fn first_bytes_are_bounded_in_time() {
    let world =
        world_with(&["http/1.1"], "runtime: { downstream: { tls_handshake_timeout: 200ms } }\n").await;
    let mut silent = TcpStream::connect(world.proxy.address()).await.unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    let mut slow = TcpStream::connect(world.proxy.address()).await.unwrap();
    slow.write_all(&[0x16, 3, 1, 2]).await.unwrap();
    slow.read_to_end(&mut rest).await.unwrap();
    let records = world.proxy.records(2).await;
    for record in &records {
        assert_eq!((&record["outgate.flag"], &record["outgate.door"]), (&"DT".into(), &"transparent".into()));
    }
    // Who closes without a word has asked for nothing.
    drop(TcpStream::connect(world.proxy.address()).await.unwrap());
    let mut odd = Raw::connect(world.proxy.address()).await;
    odd.send([0x16, 9, 9, 9]).await;
    assert!(odd.ends().await);
    let records = world.proxy.records(3).await;
    assert_eq!((records.len(), &records[2]["outgate.flag"]), (3, &"DPE".into()));
}

/// What is neither TLS nor HTTP has no name to be judged by.
#[tokio::test]
async fn other_protocols_are_refused() {
    let world = world(&["http/1.1"]).await;
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send("SSH-2.0-OpenSSH_9.2\r\n").await;
    assert_eq!(raw.answer().await.status, 400);
    let record = world.record().await;
    assert_eq!((&record["outgate.flag"], &record["outgate.door"]), (&"DPE".into(), &"transparent".into()));
    assert_eq!(record["outgate.original.address"], PUBLIC);
}

/// The handshake fails where the app does not trust outgate: one record says so.
#[tokio::test]
async fn an_app_without_trust_leaves_a_record() {
    let world = world(&["http/1.1"]).await;
    world.tls("api.example.test", &world.ca.pem, &["http/1.1"]).await.unwrap_err();
    let record = world.record().await;
    assert_eq!(
        (&record["outgate.flag"], &record["server.address"]),
        (&"DPE".into(), &"api.example.test".into())
    );
}
