//! An app that was given a key by mistake may write it anywhere. The values of secrets in use are in no line of the access log.

use std::sync::Arc;

use crate::support::client::{Raw, local_request};
use crate::support::origin::{HttpOrigin, text};
use crate::support::proxy::Proxy;

/// No shape that any preset knows, and characters that encoders escape.
const KEY: &str = "wjalrxut/nfemi^k7mdeng+bpxrficyexamplekey";

#[tokio::test]
async fn a_secret_in_use_is_masked_wherever_it_stands() {
    let origin = HttpOrigin::with(None, |_| text(200, "{}")).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("key"), KEY).unwrap();
    let provider = |name: &str, credential: &str| {
        format!(
            "  {name}:\n    hosts: [{name}.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {credential}\n",
            origin.address
        )
    };
    let api = provider("api", "{ bearer: \"file:{dir}/key\" }");
    let other = provider("other", "none");
    let policy = format!("telemetry: {{ query: redacted }}\nproviders:\n{api}{other}");
    let proxy = Proxy::start_in(Arc::new(directory), &policy).await;
    let escaped = percent_encoding::utf8_percent_encode(KEY, percent_encoding::NON_ALPHANUMERIC).to_string();
    let base64 = "d2phbHJ4dXQvbmZlbWlea";
    let asks = [
        ("GET", format!("/api/x/{escaped}")),
        ("GET", format!("/api/x?a={escaped}")),
        ("GET", format!("/api/x?{escaped}=1")),
        ("GET", format!("/other/x/{escaped}/y")),
        ("GET", format!("/other/x/{}", escaped.to_lowercase())),
        ("GET", format!("/nobody/{escaped}")),
    ];
    for (method, path) in &asks {
        local_request(proxy.address(), method, path, "", "").await;
    }
    let records = proxy.records(asks.len()).await;
    for (record, (_, path)) in records.iter().zip(&asks) {
        let line = record.to_string().to_lowercase();
        assert!(!line.contains("wjalrxut") && !line.contains(&base64.to_lowercase()), "{path}: {line}");
        assert!(line.contains("***"), "{path}: {line}");
    }
}

/// Of a key that is a token, also where a host or a method stands; another value is masked from the moment that it is read.
#[tokio::test]
async fn also_in_hosts_and_methods_and_after_it_changed() {
    let origin = HttpOrigin::with(None, |_| text(200, "{}")).await;
    let directory = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(directory.path().join("key"), "the-first-value-0001").unwrap();
    let policy = format!(
        "providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {{ bearer: \"file:{{dir}}/key\" }}\n",
        origin.address
    );
    let proxy = Proxy::start_in(directory.clone(), &policy).await;
    let mut written = 0;
    for value in ["the-first-value-0001", "the-second-value-02"] {
        std::fs::write(directory.path().join("key"), value).unwrap();
        let (sent, begun) = (format!("Bearer {value}"), std::time::Instant::now());
        loop {
            written += 1;
            local_request(proxy.address(), "GET", "/api/x", "", "").await;
            if origin.requests().last().unwrap().header("authorization") == Some(&*sent) {
                break;
            }
            assert!(begun.elapsed().as_secs() < 30, "{value} is not used");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        for head in [
            format!("GET http://{value}.example.test/ HTTP/1.1\r\nHost: {value}.example.test\r\n\r\n"),
            format!("{value} /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address()),
            format!("CONNECT {value}.example.test:443 HTTP/1.1\r\nHost: {value}.example.test:443\r\n\r\n"),
        ] {
            let mut raw = Raw::connect(proxy.address()).await;
            raw.send(head).await;
            raw.head().await;
            written += 1;
        }
        let records = proxy.records(written).await;
        for record in &records[written - 3..] {
            let line = record.to_string();
            assert!(!line.contains(value) && line.contains("***"), "{line}");
        }
    }
}
