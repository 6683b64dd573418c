//! Credentials that are work for each request: fields of bodies, dummies that are replaced, signatures, client certificates.
//! Real clients, both protocols, two doors; and what was sent is judged at the origin.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Version};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;

use super::support::CANARY;
use super::support::ca::TestCa;
use super::support::client::{Got, Raw, http2, intercepted, local_request, over_http1, request};
use super::support::origin::{HttpOrigin, RawOrigin, Seen, text};
use super::support::proxy::Proxy;
use super::world::{HOST, answering, directory, policy, scripted, until};

const JSON: &str = "Content-Type: application/json\r\n";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";
const BODY: &str = "    credential: { body: { field: api_key, value: \"file:{dir}/secret\" } }";

/// An origin that takes everything and keeps it, and the proxy before it.
struct World {
    proxy: Proxy,
    origin: HttpOrigin,
}

impl World {
    async fn new(keys: &str) -> Self {
        Self::answering(keys, &["http/1.1"], |_| 200).await
    }

    async fn answering(
        keys: &str,
        alpn: &[&str],
        status: impl Fn(&Seen) -> u16 + Send + Sync + 'static,
    ) -> Self {
        let ca = TestCa::new();
        let tls = Some(ca.server(&[HOST], alpn));
        let origin = HttpOrigin::with(tls, move |seen| text(status(&seen), "{}")).await;
        let dir = directory(&ca);
        std::fs::write(dir.path().join("new"), "the-new-secret-1").unwrap();
        std::fs::write(dir.path().join("old"), "the-old-secret-1").unwrap();
        let proxy = Proxy::start_in(dir, &policy(origin.address, keys, "")).await;
        Self { proxy, origin }
    }

    async fn post(&self, lines: &str, body: &str) -> Got {
        local_request(self.proxy.address(), "POST", "/api/x", lines, body).await
    }

    /// What the origin got as the body of its last request.
    fn last_body(&self) -> String {
        String::from_utf8(self.origin.requests().last().unwrap().body.to_vec()).unwrap()
    }
}

#[tokio::test]
async fn a_field_of_json_and_form_is_written_and_the_rest_stays() {
    let world = World::new(BODY).await;
    for (lines, sent, expected) in [
        (
            JSON,
            r#"{ "event":"a", "n":1.50 }"#,
            format!(r#"{{ "event":"a", "n":1.50,"api_key":"{CANARY}" }}"#),
        ),
        (JSON, r#"{"api_key":"app","a":1,"api_key":"app"}"#, format!(r#"{{"api_key":"{CANARY}","a":1}}"#)),
        (JSON, r#"{"\u0061pi_key":"app","API_KEY":"app"}"#, format!(r#"{{"api_key":"{CANARY}"}}"#)),
        (JSON, "", format!(r#"{{"api_key":"{CANARY}"}}"#)),
        (FORM, "a=%2f+x;b&api%5fkey=app&c", format!("a=%2f+x;b&c&api_key={CANARY}")),
        (FORM, "", format!("api_key={CANARY}")),
    ] {
        let got = world.post(lines, sent).await;
        assert_eq!(got.status, 200, "{sent}: {}", got.text());
        assert_eq!(world.last_body(), expected);
        let seen = world.origin.requests().pop().unwrap();
        assert_eq!(seen.header("content-length").unwrap(), expected.len().to_string());
        assert_eq!(seen.header("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn the_fields_twin_in_the_query_is_removed_and_masked_in_the_log() {
    let world = World::new(BODY).await;
    for (lines, body) in [(FORM, "api_key=app&a=1"), (JSON, r#"{"a":1}"#)] {
        let path = "/api/x?api_key=app-sent-0001&b=2&API%5Fkey[]=app-sent-0002&api.key=app-sent-0003";
        assert_eq!(local_request(world.proxy.address(), "POST", path, lines, body).await.status, 200);
        assert_eq!(world.origin.requests().last().unwrap().uri.to_string(), "/x?b=2");
        assert!(world.last_body().contains(CANARY) && !world.last_body().contains("app&"));
    }
    let records = world.proxy.records(2).await;
    assert!(records.iter().all(|record| !record.to_string().contains("app-sent-")), "{records:?}");
}

#[tokio::test]
async fn both_protocols_and_both_doors_carry_it_and_a_length_is_not_needed() {
    let world = World::answering(BODY, &["h2", "http/1.1"], |_| 200).await;
    let expected = format!(r#"{{"a":1,"api_key":"{CANARY}"}}"#);

    // Chunked, with a trailer and an expectation, at the local endpoint.
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send(format!(
        "POST /api/x HTTP/1.1\r\nHost: {}\r\n{JSON}Expect: 100-continue\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n",
        world.proxy.address()
    ))
    .await;
    assert_eq!(raw.head().await.status, 100);
    raw.send("3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\nX-End: api_key\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
    let seen = world.origin.requests().pop().unwrap();
    assert_eq!((&seen.body[..], seen.trailers), (expected.as_bytes(), None));

    // Intercepted, HTTP/1.1 and HTTP/2.
    let ask = |uri: &str, host: Option<&str>| {
        let mut ask = request("POST", uri, host, r#"{"a":1}"#);
        ask.headers_mut().insert("content-type", "application/json".parse().unwrap());
        ask
    };
    let stream = intercepted(&world.proxy, HOST, &["http/1.1"]).await;
    assert_eq!(over_http1(stream, ask("/x", Some(HOST))).await.status, 200);
    let mut sender = http2(intercepted(&world.proxy, HOST, &["h2"]).await).await;
    let ask = ask(&format!("https://{HOST}/x"), None);
    assert_eq!(sender.send_request(ask).await.unwrap().status(), 200);
    let seen = world.origin.requests();
    assert_eq!(seen.len(), 3);
    for one in &seen[1..] {
        assert_eq!((&one.body[..], one.version), (expected.as_bytes(), Version::HTTP_2));
        assert_eq!(one.header("content-length").unwrap(), expected.len().to_string());
    }
}

#[tokio::test]
async fn several_fields_and_objects_are_written() {
    let world = World::new(
        "    credential: { body: { fields: [{ field: client_id, value: \"plain:me\" }, { field: auth.secret, value: \"file:{dir}/secret\" }] } }",
    )
    .await;
    assert_eq!(world.post(JSON, r#"{"auth":{"secret":"app","x":1},"client_id":2}"#).await.status, 200);
    assert_eq!(world.last_body(), format!(r#"{{"auth":{{"secret":"{CANARY}","x":1}},"client_id":"me"}}"#));
}

#[tokio::test]
async fn a_body_that_cannot_carry_it_is_refused_and_nothing_is_sent() {
    let world = World::new(BODY).await;
    let deep = format!(r#"{{"a":{}"#, "[".repeat(20_000));
    for (lines, sent) in [
        ("", "a=1"),
        ("Content-Type: text/plain\r\n", "{}"),
        ("Content-Type: multipart/form-data; boundary=b\r\n", "--b--"),
        ("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", "{}"),
        ("Content-Type: application/json; charset=utf-16\r\n", "{}"),
        ("Content-Type: application/json\r\nContent-Type: text/plain\r\n", "{}"),
        (JSON, "[1]"),
        (JSON, "{} {}"),
        (JSON, "\u{feff}{}"),
        (JSON, r#"{"a":1,}"#),
        (JSON, r#"{"api_key\ud800":1}"#),
        (JSON, &deep),
    ] {
        let got = world.post(lines, sent).await;
        let shown = &sent[..sent.len().min(40)];
        assert_eq!((got.status, got.header("outgate-error")), (400, Some("bad_request")), "{lines}{shown}");
        assert!(got.text().contains("credential goes into"), "{}", got.text());
        assert_eq!(got.header("outgate-sent"), Some("no"), "{shown}");
    }
    assert!(world.origin.requests().is_empty());
    let got = local_request(world.proxy.address(), "GET", "/api/x", "", "").await;
    assert_eq!(got.status, 400);
    assert!(world.origin.requests().is_empty());
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_within_bounded_memory() {
    let world = World::new(BODY).await;
    // Announced: refused before a byte is read.
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send(format!(
        "POST /api/x HTTP/1.1\r\nHost: {}\r\n{JSON}Content-Length: 104857600\r\n\r\n{{\"a\":",
        world.proxy.address()
    ))
    .await;
    let got = raw.answer().await;
    assert_eq!((got.status, got.header("outgate-error")), (413, Some("payload_too_large")));
    assert!(got.text().contains("`max`"), "{}", got.text());
    // In chunks: refused as soon as it is too long, and no more of it is taken than sockets hold.
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send(format!(
        "POST /api/x HTTP/1.1\r\nHost: {}\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n",
        world.proxy.address()
    ))
    .await;
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut taken = 0_u64;
    while taken < 100 * 1024 * 1024 {
        match tokio::time::timeout(Duration::from_secs(2), raw.stream.write_all(chunk.as_bytes())).await {
            Ok(Ok(())) => taken += 0x10000,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    assert!(taken < 64 * 1024 * 1024, "{taken} bytes were taken");
    assert!(world.origin.requests().is_empty());
    let record = &world.proxy.records(2).await[1];
    assert_eq!(record["error.type"], "payload_too_large", "{record}");
}

#[tokio::test]
async fn the_body_that_is_sent_again_is_the_apps_written_anew() {
    const OVERLAP: &str =
        "    credential: { body: { field: api_key, value: [\"file:{dir}/new\", \"file:{dir}/old\"] } }";
    let world = World::answering(OVERLAP, &["http/1.1"], |seen| {
        let body = String::from_utf8_lossy(&seen.body);
        if body.contains("the-old-secret-1") { 200 } else { 401 }
    })
    .await;
    assert_eq!(world.post(JSON, r#"{"a":1}"#).await.status, 200);
    let seen = world.origin.requests();
    let bodies: Vec<_> = seen.iter().map(|one| String::from_utf8_lossy(&one.body).into_owned()).collect();
    assert_eq!(
        bodies,
        [r#"{"a":1,"api_key":"the-new-secret-1"}"#, r#"{"a":1,"api_key":"the-old-secret-1"}"#]
    );

    let count = AtomicUsize::new(0);
    let world = World::answering(BODY, &["http/1.1"], move |_| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 { 429 } else { 200 }
    })
    .await;
    assert_eq!(world.post(FORM, "a=1").await.status, 200);
    let seen = world.origin.requests();
    assert_eq!((seen.len(), &seen[0].body), (2, &seen[1].body));
    assert_eq!(&seen[1].body[..], format!("a=1&api_key={CANARY}").as_bytes());
}

#[tokio::test]
async fn digests_of_the_apps_body_do_not_go_with_another_one() {
    let world = World::new(BODY).await;
    let lines = format!("{JSON}Content-MD5: x\r\nDigest: sha-256=x\r\nContent-Digest: x\r\n");
    assert_eq!(world.post(&lines, "{}").await.status, 200);
    let seen = world.origin.only();
    assert!(["content-md5", "digest", "content-digest"].iter().all(|name| seen.header(name).is_none()));
}

#[tokio::test]
async fn a_secret_that_is_missing_or_refused_bytes_of_is_never_sent() {
    let world = World::new("    credential: { body: { field: k, value: \"file:{dir}/nothing\" } }").await;
    let got = world.post(JSON, "{}").await;
    assert_eq!((got.status, got.header("outgate-error")), (503, Some("credential_unavailable")));
    assert!(world.origin.requests().is_empty());
}

const DUMMY: &str = "app-placeholder-0001";

fn placeholder(places: &str) -> String {
    format!(
        "    credential: {{ placeholder: {{ token: {DUMMY}, value: \"file:{{dir}}/secret\", in: [{places}] }} }}"
    )
}

#[tokio::test]
async fn a_dummy_is_replaced_in_every_named_place() {
    let world = World::new(&placeholder("header, query, path, body")).await;
    let address = world.proxy.address();
    let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
    let lines = format!("Authorization: {}\r\nX-Api-Key: {DUMMY}\r\n{JSON}", basic(&format!("{DUMMY}:")));
    let path = format!("/api/bot{DUMMY}/%61pp-placeholder-0001?key={DUMMY}&x=1");
    let got = local_request(address, "POST", &path, &lines, &format!(r#"{{"k":"{DUMMY}"}}"#)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let seen = world.origin.only();
    // The canary is made of letters, digits, `_` and `-`, so it reads the same everywhere.
    assert_eq!(seen.uri.to_string(), format!("/bot{CANARY}/{CANARY}?key={CANARY}&x=1"));
    assert_eq!(seen.header("authorization").unwrap(), basic(&format!("{CANARY}:")));
    assert_eq!(seen.header("x-api-key"), Some(CANARY));
    assert_eq!(&seen.body[..], format!(r#"{{"k":"{CANARY}"}}"#).as_bytes());
    // The log has the dummy, and not the secret.
    let record = world.proxy.records(1).await[0].to_string();
    assert!(record.contains(DUMMY) && !record.contains(CANARY), "{record}");
    // Without the dummy it goes as it is.
    assert_eq!(local_request(address, "GET", "/api/public", "", "").await.status, 200);
    // A body of another kind streams by, however long.
    let long = "x".repeat(300_000);
    let got = local_request(address, "POST", "/api/x", "Content-Type: image/png\r\n", &long).await;
    assert_eq!((got.status, world.last_body().len()), (200, long.len()));
    let got = local_request(address, "POST", "/api/x", JSON, &long).await;
    assert_eq!(got.status, 413);
}

#[tokio::test]
async fn a_dummy_at_another_place_or_provider_is_refused_and_logged() {
    let other = "\n  other:\n    hosts: [other.example.test]\n    credential: { bearer: \"file:{dir}/secret\" }\n  open:\n    hosts: [open.example.test]\n    intercept: always";
    let routes = "\n    routes:\n      - match: { path: \"/none/**\" }\n        credential: none";
    let world = World::new(&format!("{}{routes}{other}", placeholder("header"))).await;
    let address = world.proxy.address();
    let header = format!("X-Api-Key: {DUMMY}\r\n");
    let basic = format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{DUMMY}:")));
    let encoded = format!("/api/a?k={}", DUMMY.replace('-', "%2D"));
    for (path, lines) in [
        (format!("/api/{DUMMY}"), ""),
        (format!("/api/a?k={DUMMY}"), ""),
        (encoded, ""),
        ("/api/none/a".to_owned(), header.as_str()),
        ("/other/a".to_owned(), header.as_str()),
        ("/other/a".to_owned(), basic.as_str()),
        (format!("/open/a?{DUMMY}"), ""),
        ("/open/a".to_owned(), header.as_str()),
    ] {
        let got = local_request(address, "GET", &path, lines, "").await;
        assert_eq!((got.status, got.header("outgate-error")), (403, Some("denied")), "{path} {lines}");
        assert!(got.text().contains("placeholder"), "{}", got.text());
    }
    let records = world.proxy.records(8).await;
    assert!(records.iter().all(|record| record["error.type"] == "denied"), "{records:?}");
    assert!(world.origin.requests().is_empty() && world.proxy.names.questions().is_empty());
    assert_eq!(local_request(address, "GET", "/api/a", &header, "").await.status, 200);
    assert_eq!(world.origin.only().header("x-api-key"), Some(CANARY));
}

#[tokio::test]
async fn a_dummy_that_is_percent_encoded_in_a_cookie_is_refused_elsewhere() {
    let routes = "\n    routes:\n      - match: { path: \"/none/**\" }\n        credential: none";
    let world = World::new(&format!("{}{routes}", placeholder("header"))).await;
    let cookie = format!("Cookie: a=%20; session={}\r\n", DUMMY.replace('-', "%2D"));
    let got = local_request(world.proxy.address(), "GET", "/api/none/x", &cookie, "").await;
    assert_eq!((got.status, got.header("outgate-error")), (403, Some("denied")));
    assert!(world.origin.requests().is_empty());
    // At its own provider it is not replaced, and no harm.
    assert_eq!(local_request(world.proxy.address(), "GET", "/api/x", &cookie, "").await.status, 200);
    assert!(!world.origin.only().header("cookie").unwrap().contains(CANARY));
}

#[tokio::test]
async fn a_dummy_in_a_trailer_section_breaks_the_request_off_before_it_goes_out() {
    let encoded = DUMMY.replace('-', "%2D");
    let routes = "\n    routes:\n      - match: { path: \"/none/**\" }\n        credential: none";
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let world = World::answering(&format!("{}{routes}", placeholder("header")), alpn, |_| 200).await;
        let send = async |path: &str, trailer: &str| {
            let mut raw = Raw::connect(world.proxy.address()).await;
            raw.send(format!(
                "POST {path} HTTP/1.1\r\nHost: {}\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n4\r\nbody\r\n0\r\nX-End: {trailer}\r\n\r\n",
                world.proxy.address()
            ))
            .await;
            raw.answer().await
        };
        // Of its own provider too: in a trailer section nothing is replaced.
        for (path, trailer) in [("/api/none/x", DUMMY), ("/api/none/x", &*encoded), ("/api/x", DUMMY)] {
            let got = send(path, trailer).await;
            assert_eq!((got.status, got.header("outgate-error")), (403, Some("denied")), "{path} {alpn:?}");
            assert!(got.text().contains("placeholder"), "{}", got.text());
        }
        // HTTP/2.
        let stream = intercepted(&world.proxy, HOST, &["h2"]).await;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let trailers = [("x-end".parse().unwrap(), DUMMY.parse().unwrap())].into_iter().collect();
        let frames: [Result<_, std::convert::Infallible>; 2] =
            [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
        let ask = Request::post(format!("https://{HOST}/none/x"))
            .header("te", "trailers")
            .body(StreamBody::new(futures_util::stream::iter(frames)))
            .unwrap();
        assert_eq!(Got::read(sender.send_request(ask).await.unwrap()).await.status, 403);
        // One of them is the tunnel's.
        let records = world.proxy.records(5).await;
        let denied = records.iter().filter(|record| record["error.type"] == "denied").count();
        assert_eq!(denied, 4, "{records:?}");
        assert!(world.origin.requests().is_empty(), "no request came to its end");
        assert_eq!(send("/api/none/x", "app-placeholder-000").await.status, 200);
        assert_eq!(world.origin.only().trailers.unwrap()["x-end"], "app-placeholder-000");
    }
}

#[tokio::test]
async fn a_dummy_in_the_body_for_another_provider_breaks_the_request_off() {
    let routes = "\n    routes:\n      - match: { path: \"/none/**\" }\n        credential: none";
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let world = World::answering(&format!("{}{routes}", placeholder("header")), alpn, |_| 200).await;
        let address = world.proxy.address();
        let long = "x".repeat(200_000);
        for (lines, body) in [
            (JSON, format!("{{\"key\":\"{DUMMY}\"}}")),
            (FORM, format!("a=b&key={DUMMY}")),
            ("Content-Type: image/png\r\n", format!("{long}{DUMMY}{long}")),
        ] {
            let got = local_request(address, "POST", "/api/none/x", lines, &body).await;
            assert_eq!((got.status, got.header("outgate-error")), (403, Some("denied")), "{lines} {alpn:?}");
            assert!(got.text().contains("placeholder"), "{}", got.text());
        }
        // In two pieces, of which the first is on its way already.
        let mut raw = Raw::connect(address).await;
        let (one, two) = DUMMY.split_at(9);
        raw.send(format!(
            "POST /api/none/x HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{one}\r\n",
            one.len()
        ))
        .await;
        raw.send(format!("{:x}\r\n{two}\r\n0\r\n\r\n", two.len())).await;
        assert_eq!(raw.answer().await.status, 403, "{alpn:?}");
        let records = world.proxy.records(4).await;
        assert!(records.iter().all(|record| record["error.type"] == "denied"), "{records:?}");
        assert!(world.origin.requests().is_empty(), "no request came to its end");
        // At its own provider it is no stranger, whatever places it names; nor is what only begins like one.
        for (path, text) in [("/api/x", DUMMY), ("/api/none/x", &DUMMY[1..])] {
            let body = format!("{{\"text\":\"{text}\"}}");
            assert_eq!(local_request(address, "POST", path, JSON, &body).await.status, 200, "{path}");
            assert_eq!(world.last_body(), body);
        }
    }
}

#[tokio::test]
async fn an_answer_that_repeats_the_secret_is_masked_for_every_kind() {
    for (keys, lines, body) in [
        (BODY.to_owned(), JSON.to_owned(), "{}".to_owned()),
        (placeholder("body"), JSON.to_owned(), format!(r#"{{"k":"{DUMMY}"}}"#)),
        (placeholder("header"), format!("X-K: {DUMMY}\r\n"), String::new()),
    ] {
        let script = answering(|request| {
            let echo = format!("{request}\n");
            Some(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{echo}", echo.len()).into_bytes())
        });
        let (proxy, origin) = scripted(script, &keys, "").await;
        let got = local_request(proxy.address(), "POST", "/api/x", &lines, &body).await;
        assert!(origin.text().contains(CANARY), "{}", origin.text());
        assert!(got.status == 200 && !got.text().contains(CANARY), "{}", got.text());
    }
}

const HMAC: &str = r#"    credential:
      hmac:
        key: "file:{dir}/secret"
        key_id: "plain:me"
        key_id_in: { header: X-Key }
        timestamp: { header: X-Time }
        nonce: { header: X-Nonce }
        content: "{timestamp}\n{nonce}\n{method}\n{host}\n{target}\n{body}"
        encoding: base64
        signature: { header: Authorization, format: "HMAC {key_id}:{signature}" }"#;

fn signed_right(seen: &Seen) -> bool {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, CANARY.as_bytes());
    let field = |name: &str| seen.header(name).unwrap_or_default();
    let target = seen.uri.path_and_query().unwrap();
    let mut content =
        format!("{}\n{}\n{}\n{HOST}\n{target}\n", field("x-time"), field("x-nonce"), seen.method)
            .into_bytes();
    content.extend_from_slice(&seen.body);
    let signature = STANDARD.encode(aws_lc_rs::hmac::sign(&key, &content).as_ref());
    field("authorization") == format!("HMAC me:{signature}") && field("x-key") == "me"
}

#[tokio::test]
async fn every_attempt_is_signed_anew_and_the_apps_own_signature_is_gone() {
    let count = Arc::new(AtomicUsize::new(0));
    let (number, first) = (count.clone(), [429, 200]);
    let world = World::answering(HMAC, &["http/1.1"], move |seen| {
        assert!(seen.headers.get_all("authorization").iter().count() == 1);
        if signed_right(seen) { first[number.fetch_add(1, Ordering::SeqCst).min(1)] } else { 500 }
    })
    .await;
    let lines = "Authorization: app\r\nX-Time: 1\r\nX_Nonce: 2\r\nX-Nonce: 3\r\n";
    let got = local_request(world.proxy.address(), "POST", "/api/p?q=%2f", lines, "body").await;
    assert_eq!(got.status, 200);
    let seen = world.origin.requests();
    assert_eq!(seen.len(), 2);
    assert_ne!(seen[0].header("x-nonce"), seen[1].header("x-nonce"));
    assert!(seen.iter().all(|one| signed_right(one) && one.header("x_nonce").is_none()));
    let long = "x".repeat(70_000);
    assert_eq!(local_request(world.proxy.address(), "POST", "/api/p", "", &long).await.status, 413);
}

#[tokio::test]
async fn a_signature_over_a_digest_of_the_apps_lets_the_body_stream() {
    let keys = r#"    credential: { hmac: { key: "file:{dir}/secret", content: "{header:Content-Digest}", signature: { header: X-Sig } } }"#;
    let world = World::new(keys).await;
    let long = "x".repeat(300_000);
    let got = world.post("Content-Digest: sha-256=:abc=:\r\n", &long).await;
    assert_eq!((got.status, world.last_body().len()), (200, long.len()));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, CANARY.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, b"sha-256=:abc=:");
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(world.origin.only().header("x-sig"), Some(hex.as_str()));
}

const MTLS: &str =
    "    credential: { mtls: { certificate: \"file:{dir}/client.pem\", key: \"file:{dir}/client.key\" } }";

fn write_client(dir: &std::path::Path, (certificate, key): (String, String)) {
    std::fs::write(dir.join("client.key.tmp"), key).unwrap();
    std::fs::write(dir.join("client.pem.tmp"), certificate).unwrap();
    std::fs::rename(dir.join("client.key.tmp"), dir.join("client.key")).unwrap();
    std::fs::rename(dir.join("client.pem.tmp"), dir.join("client.pem")).unwrap();
}

#[tokio::test]
async fn the_client_certificate_is_a_credential_that_comes_and_rotates_mid_run() {
    let (ca, clients) = (TestCa::new(), TestCa::new());
    let tls = ca.server_for_clients(&[HOST], &["http/1.1"], &clients.pem);
    let origin = RawOrigin::start(
        Some(tls),
        answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())),
    )
    .await;
    let dir = directory(&ca);
    let proxy = Proxy::start_in(dir.clone(), &policy(origin.address, MTLS, "")).await;
    let get = || local_request(proxy.address(), "GET", "/api/x", "", "");
    let got = get().await;
    assert_eq!((got.status, got.header("outgate-error")), (503, Some("credential_unavailable")));
    assert!(origin.text().is_empty(), "nothing was sent");

    write_client(dir.path(), clients.client("one"));
    let until_served = async {
        while get().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), until_served)
        .await
        .expect("the certificate is read when it comes");
    // The connection of a request may come back to its pool a moment after its answer.
    let until_kept = async {
        loop {
            let before = origin.connections();
            assert_eq!(get().await.status, 200);
            if origin.connections() == before {
                return before;
            }
        }
    };
    let before =
        tokio::time::timeout(Duration::from_secs(15), until_kept).await.expect("the connection is kept");

    // Another one: its connections are others.
    write_client(dir.path(), clients.client("two"));
    let until_rotated = async {
        while origin.connections() == before {
            // Between the two reads certificate and key do not belong together.
            assert!([200, 503].contains(&get().await.status));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), until_rotated).await.expect("the new certificate is shown");

    // One that the provider does not know.
    write_client(dir.path(), TestCa::new().client("stranger"));
    let until_refused = async {
        while get().await.status == 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), until_refused).await.expect("the pool is keyed by it");
}

#[tokio::test]
async fn an_intercepted_request_shows_the_certificate_of_the_policy() {
    let (ca, clients) = (TestCa::new(), TestCa::new());
    let tls = ca.server_for_clients(&[HOST], &["h2"], &clients.pem);
    let origin = HttpOrigin::with(Some(tls), |_| text(200, "{}")).await;
    let dir = directory(&ca);
    write_client(dir.path(), clients.client("one"));
    let proxy = Proxy::start_in(dir, &policy(origin.address, MTLS, "")).await;
    let stream = intercepted(&proxy, HOST, &["http/1.1"]).await;
    let ask = Request::builder().uri("/x").header("host", HOST).body(Full::new(Bytes::new())).unwrap();
    assert_eq!(over_http1(stream, ask).await.status, 200);
    assert_eq!(origin.only().version, Version::HTTP_2);
    until("the record is there", || !proxy.log.records(&proxy.app.telemetry).is_empty()).await;
}

#[tokio::test]
async fn the_secret_of_a_held_body_is_the_one_that_is_current_when_the_body_is_there() {
    const HMAC: &str = "    credential: { hmac: { key: \"file:{dir}/new\", content: \"{body}\", signature: { header: X-Signature } } }";
    const FIELD: &str = "    credential: { body: { field: api_key, value: \"file:{dir}/new\" } }";
    for keys in [FIELD, HMAC] {
        let world = World::new(keys).await;
        let mut raw = Raw::connect(world.proxy.address()).await;
        raw.send(format!(
            "POST /api/x HTTP/1.1\r\nHost: {}\r\n{JSON}Content-Length: 7\r\n\r\n{{\"a",
            world.proxy.address()
        ))
        .await;
        // While the body is on its way, its secret is rotated.
        until("the request has begun", || {
            world.proxy.metrics().contains("outgate_requests_in_flight{provider=\"api\"} 1")
        })
        .await;
        std::fs::write(world.proxy.dir.path().join("new"), "rotated-meanwhile").unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !status_of(&world.proxy, "/new").await {
            assert!(std::time::Instant::now() < deadline, "the change is not seen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        raw.send("\":1}").await;
        assert_eq!(raw.answer().await.status, 200);
        let seen = world.origin.only();
        let expected = if keys == FIELD {
            assert_eq!(world.last_body(), r#"{"a":1,"api_key":"rotated-meanwhile"}"#);
            continue;
        } else {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"rotated-meanwhile");
            let tag = aws_lc_rs::hmac::sign(&key, br#"{"a":1}"#);
            tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(seen.header("x-signature"), Some(expected.as_str()));
    }
}

/// Whether the second version of the file is in use.
async fn status_of(proxy: &Proxy, file: &str) -> bool {
    let status = super::support::client::admin(proxy, "GET", "/status").await.text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .any(|secret| secret["reference"].as_str().unwrap().ends_with(file) && secret["version"] == 2)
}
