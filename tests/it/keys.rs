//! Idempotency keys that are written into bodies: real clients, both protocols, and what the origin got.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::Version;
use serde_json::Value;

use super::support::CANARY;
use super::support::ca::TestCa;
use super::support::client::{Raw, http2, intercepted, local_request, over_http1, request};
use super::support::origin::{HttpOrigin, Seen, text};
use super::support::proxy::Proxy;
use super::world::{HOST, directory, policy};

const JSON: &str = "Content-Type: application/json\r\n";
const KEYS: &str = "    idempotency: { field: /k }\n    retry: { replay_buffer: 1KiB, backoff: { base: 1ms, max: 1ms } }\n    breaker: off";

/// An origin that acts and answers every other request with 503, and the proxy before it.
struct World {
    proxy: Proxy,
    origin: HttpOrigin,
}

impl World {
    async fn new(keys: &str, alpn: &[&str]) -> Self {
        let ca = TestCa::new();
        let asked = AtomicUsize::new(0);
        let origin = HttpOrigin::with(Some(ca.server(&[HOST], alpn)), move |_: Seen| {
            let down = asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            text(if down { 503 } else { 200 }, "{}")
        })
        .await;
        let proxy = Proxy::start_in(directory(&ca), &policy(origin.address, keys, "")).await;
        Self { proxy, origin }
    }

    /// The last two requests are one and the same, with a key, and their lengths are right; its body without the key.
    fn repeated(&self) -> Value {
        let seen = self.origin.requests();
        let [.., one, two] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(one.body, two.body);
        for one in [one, two] {
            assert_eq!(one.header("content-length").unwrap(), one.body.len().to_string());
            assert_eq!(one.header("transfer-encoding"), None);
        }
        let mut body: Value = serde_json::from_slice(&one.body).unwrap();
        let key = body.as_object_mut().unwrap().remove("k").unwrap();
        assert_eq!(key.as_str().unwrap().len(), 36);
        body
    }
}

#[tokio::test]
async fn both_protocols_carry_the_same_key_on_each_attempt() {
    for alpn in [&["http/1.1"][..], &["h2", "http/1.1"]] {
        let world = World::new(KEYS, alpn).await;
        let ask = |uri: &str, host: Option<&str>| {
            let mut ask = request("POST", uri, host, r#"{"a":1}"#);
            ask.headers_mut().insert("content-type", "application/json".parse().unwrap());
            ask.headers_mut().insert("content-md5", "mZFLkyvTelC5g8XnyQrpOw==".parse().unwrap());
            ask
        };
        let stream = intercepted(&world.proxy, HOST, &["http/1.1"]).await;
        assert_eq!(over_http1(stream, ask("/x", Some(HOST))).await.status, 200);
        assert_eq!(world.repeated(), serde_json::json!({ "a": 1 }));
        let mut sender = http2(intercepted(&world.proxy, HOST, &["h2"]).await).await;
        let answer = sender.send_request(ask(&format!("https://{HOST}/x"), None)).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(world.repeated(), serde_json::json!({ "a": 1 }));
        let seen = world.origin.requests();
        assert_eq!(seen.len(), 4);
        assert_ne!(seen[0].body, seen[2].body, "a request has a key of its own");
        let spoken = if alpn.len() == 1 { Version::HTTP_11 } else { Version::HTTP_2 };
        assert!(seen.iter().all(|one| one.version == spoken && one.header("content-md5").is_none()));
    }
}

/// The app has no key to send it again under, also where outgate itself sends once.
#[tokio::test]
async fn a_key_is_made_without_retries_too() {
    for retry in ["off", "{ attempts: 1 }"] {
        let keys = format!(
            "    idempotency: {{ header: Idempotency-Key, add: true }}\n    retry: {retry}\n    breaker: off"
        );
        let world = World::new(&keys, &["http/1.1"]).await;
        let stream = intercepted(&world.proxy, HOST, &["http/1.1"]).await;
        assert_eq!(over_http1(stream, request("POST", "/x", Some(HOST), "{}")).await.status, 503);
        let seen = world.origin.requests();
        let [only] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(only.header("idempotency-key").unwrap().len(), 36, "retry: {retry}");
    }
}

#[tokio::test]
async fn a_chunked_upload_is_held_and_one_that_is_too_long_streams_unchanged() {
    let world = World::new(KEYS, &["http/1.1"]).await;
    let address = world.proxy.address();
    let head = format!(
        "POST /api/x HTTP/1.1\r\nHost: {address}\r\n{JSON}Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut raw = Raw::connect(address).await;
    raw.send(&head).await;
    assert_eq!(raw.head().await.status, 100);
    raw.send("3\r\n{\"a\r\n").await;
    raw.send("4\r\n\":1}\r\n0\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
    assert_eq!(world.repeated(), serde_json::json!({ "a": 1 }));

    // Longer than the buffer, by a little with the key: neither is written into, nor repeated.
    for length in [1_000, 2_000] {
        let body = format!(r#"{{"a":"{}"}}"#, "x".repeat(length));
        let before = world.origin.requests().len();
        raw.send(&head).await;
        assert_eq!(raw.head().await.status, 100);
        for piece in body.as_bytes().chunks(700) {
            raw.send(format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap())).await;
        }
        raw.send("0\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 503, "{length}");
        let seen = world.origin.requests();
        assert_eq!((seen.len(), &seen[before].body[..]), (before + 1, body.as_bytes()));
        // Every other request succeeds.
        assert_eq!(local_request(address, "GET", "/api/x", "", "").await.status, 200);
    }
}

#[tokio::test]
async fn what_is_no_object_goes_on_as_it_came_and_is_not_repeated() {
    let world = World::new(KEYS, &["http/1.1"]).await;
    let address = world.proxy.address();
    for (lines, body) in [
        (JSON, "[1]"),
        (JSON, r#"{"k":"a","k":"b"}"#),
        (JSON, r#"{"a":1"#),
        ("Content-Type: application/x-www-form-urlencoded\r\n", "a=1"),
        ("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", "{}"),
        ("", "{}"),
    ] {
        let before = world.origin.requests().len();
        assert_eq!(local_request(address, "POST", "/api/x", lines, body).await.status, 503, "{body}");
        let seen = world.origin.requests();
        assert_eq!((seen.len(), &seen[before].body[..]), (before + 1, body.as_bytes()), "{lines}");
        assert_eq!(local_request(address, "GET", "/api/x", "", "").await.status, 200);
    }
    // The app's own key stays, and makes a repetition safe.
    let body = r#"{"k":"own"}"#;
    assert_eq!(local_request(address, "POST", "/api/x", JSON, body).await.status, 200);
    let seen = world.origin.requests();
    assert!(seen[seen.len() - 2..].iter().all(|one| one.body == body));
}

#[tokio::test]
async fn a_credential_in_the_same_body_stands_beside_the_key() {
    let keys =
        format!("{KEYS}\n    credential: {{ body: {{ field: api_key, value: \"file:{{dir}}/secret\" }} }}");
    let world = World::new(&keys, &["http/1.1"]).await;
    let sent = r#"{"a":1,"api_key":"dummy"}"#;
    assert_eq!(local_request(world.proxy.address(), "POST", "/api/x", JSON, sent).await.status, 200);
    assert_eq!(world.repeated(), serde_json::json!({ "a": 1, "api_key": CANARY }));
}
