//! FR-01 to FR-27: where one message ends and the next begins, on both sides.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::bench::{
    MALFORMED, Policy, REFUSED, Setup, Taken, Tap, World, assert_answer, closes, find, get, ok, poll_until,
    serves, towards_http2,
};
use crate::support::client::Raw;
use crate::support::origin::RawOrigin;

const OPEN: &str = "http://open.example.test/";

/// A POST to open.example.test with these further lines and this body.
fn post(lines: &str, body: &str) -> String {
    format!("POST {OPEN} HTTP/1.1\r\nHost: open.example.test\r\n{lines}\r\n{body}")
}

/// Each run, on a connection of its own and at each door, is a malformed request: 400, closed, recorded, and nothing complete
/// upstream.
async fn all_malformed(runs: &[(&str, &[u8])]) {
    let world = World::start(Policy::Inj).await;
    let mut expected = Vec::new();
    for (run, bytes) in runs {
        malformed(&mut world.client().await, bytes, run).await;
        // In origin form, at the local endpoint and inside a tunnel.
        let bytes = in_origin_form(bytes);
        malformed(&mut world.client().await, &bytes, run).await;
        malformed(&mut world.intercepted("open.example.test").await, &bytes, run).await;
        expected.extend([(400, "bad_request"), (400, "bad_request"), (200, ""), (400, "bad_request")]);
    }
    for origin in [&world.open, &world.open_tls] {
        assert!(origin.requests().is_empty(), "{:#?}", origin.requests());
    }
    world.after(&expected).await;
}

async fn malformed<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Raw<Tap<S>>, bytes: &[u8], run: &str) {
    client.send(bytes).await;
    let got = client.answer().await;
    assert_answer(&got, MALFORMED, run);
    assert!(closes(&mut client.stream).await, "{run} closes");
    assert_eq!(client.stream.answers(), 1, "{run}");
}

/// The request with `/` instead of the absolute target.
fn in_origin_form(bytes: &[u8]) -> Vec<u8> {
    let Some(at) = find(bytes, OPEN.as_bytes()) else { return bytes.to_vec() };
    [&bytes[..at], b"/", &bytes[at + OPEN.len()..]].concat()
}

#[tokio::test]
async fn fr_01_content_length_and_transfer_encoding() {
    let world = World::start(Policy::Open).await;
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: open.example.test\r\n\r\n";
    for lines in [
        "Content-Length: 56\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 56\r\n",
    ] {
        // The answer that RFC 9112 section 6.1 allows: framed by chunks alone, once, and closed.
        let (mut client, got) = world.sent(post(lines, smuggled)).await;
        assert_eq!(got.status, 200, "{got:?}");
        assert!(closes(&mut client.stream).await, "nothing after such a request is trusted");
        assert_eq!(client.stream.answers(), 1);
    }
    let requests = world.open.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert!(request.all("content-length").is_empty(), "{request:?}");
        assert_eq!(
            (request.all("transfer-encoding"), request.body.as_slice()),
            (vec!["chunked"], &b"0\r\n\r\n"[..])
        );
    }
    world.after(&[(200, ""), (200, "")]).await;
}

#[tokio::test]
async fn fr_02_two_content_lengths() {
    all_malformed(&[("a", post("Content-Length: 5\r\nContent-Length: 6\r\n", "helloX").as_bytes())]).await;
}

#[tokio::test]
async fn fr_03_equal_content_lengths() {
    all_malformed(&[("b", post("Content-Length: 5, 5\r\n", "hello").as_bytes())]).await;
    // Two equal lines are one statement for hyper: forwarded once, with one length.
    let world = World::start(Policy::Open).await;
    let (_client, got) = world.sent(post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")).await;
    assert_eq!(got.status, 200);
    let request = world.open.only();
    assert_eq!((request.all("content-length"), request.body.as_slice()), (vec!["5"], &b"hello"[..]));
    world.after(&[(200, "")]).await;
}

#[tokio::test]
async fn fr_04_content_length_that_is_no_length() {
    all_malformed(&[
        ("a", post("Content-Length: +5\r\n", "hello").as_bytes()),
        ("b", post("Content-Length: -1\r\n", "hello").as_bytes()),
        ("c", post("Content-Length: 18446744073709551616\r\n", "hello").as_bytes()),
        ("empty", post("Content-Length: \r\n", "hello").as_bytes()),
        ("hex", post("Content-Length: 0x5\r\n", "hello").as_bytes()),
        ("space", post("Content-Length: 5 5\r\n", "hello").as_bytes()),
        ("point", post("Content-Length: 5.0\r\n", "hello").as_bytes()),
    ])
    .await;
}

#[tokio::test]
async fn fr_05_last_coding_is_not_chunked() {
    all_malformed(&[
        ("a", post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n").as_bytes()),
        ("b", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n").as_bytes()),
        ("c", post("Transfer-Encoding: identity\r\n", "0\r\n\r\n").as_bytes()),
        ("empty", post("Transfer-Encoding: \r\n", "0\r\n\r\n").as_bytes()),
        ("parameter", post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n").as_bytes()),
        ("quoted", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n").as_bytes()),
        ("behind", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n").as_bytes()),
        ("comma", post("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n").as_bytes()),
    ])
    .await;
}

#[tokio::test]
async fn fr_06_chunked_twice() {
    all_malformed(&[
        ("one field", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n").as_bytes()),
        ("two", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n").as_bytes()),
    ])
    .await;
}

#[tokio::test]
async fn fr_07_whitespace_around_transfer_encoding() {
    let first = format!(
        "POST {OPEN} HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: open.example.test\r\n\r\n0\r\n\r\n"
    );
    all_malformed(&[
        ("a", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n").as_bytes()),
        ("b", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n").as_bytes()),
        ("c", post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n").as_bytes()),
        ("d", first.as_bytes()),
    ])
    .await;
}

#[tokio::test]
async fn fr_08_transfer_encoding_in_http_1_0() {
    let request = post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0");
    all_malformed(&[("a", request.as_bytes())]).await;
}

#[tokio::test]
async fn fr_09_bare_line_feeds() {
    let world = World::start(Policy::Open).await;
    let (_client, got) = world.sent(get(OPEN, "open.example.test").replace("\r\n", "\n")).await;
    assert_eq!(got.status, 200);
    let heard = world.open.heard();
    let bytes = &heard[0].bytes;
    let bare = (0..bytes.len()).find(|at| bytes[*at] == b'\n' && (*at == 0 || bytes[*at - 1] != b'\r'));
    assert_eq!(bare, None, "every line ends in CRLF: {}", String::from_utf8_lossy(bytes));
    world.after(&[(200, "")]).await;
}

#[tokio::test]
async fn fr_10_control_bytes_in_a_value() {
    let with = |line: &str| format!("GET {OPEN} HTTP/1.1\r\nHost: open.example.test\r\n{line}\r\n\r\n");
    all_malformed(&[
        ("a", with("X-A: one\rTransfer-Encoding: chunked").as_bytes()),
        ("b", with("X-A: v\0alue").as_bytes()),
        ("c", with("X-A: v\x1b[31m").as_bytes()),
        ("delete", with("X-A: v\x7f").as_bytes()),
    ])
    .await;
}

#[tokio::test]
async fn fr_11_illegal_field_names() {
    let with = |line: &[u8]| {
        [format!("GET {OPEN} HTTP/1.1\r\nHost: open.example.test\r\n").as_bytes(), line, b"\r\n\r\n"].concat()
    };
    all_malformed(&[
        ("a", &with(b"Foo Bar: x")),
        ("b", &with(b"X(y): 1")),
        ("c", &with(b"\xeffoo: 1")),
        ("empty", &with(b": 1")),
    ])
    .await;
}

#[tokio::test]
async fn fr_12_malformed_chunk_sizes() {
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let world = World::start(Policy::Open).await;
    let runs = [
        ("a", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("b", chunked("FFFFFFFFFFFFFFFF1\r\nhello")),
        ("c", chunked("5\r\nhelloXX0\r\n\r\n")),
        ("d", chunked("\r\n\r\n")),
        ("sign", chunked("+5\r\nhello\r\n0\r\n\r\n")),
        ("minus", chunked("-5\r\nhello\r\n0\r\n\r\n")),
        ("bare line feeds", chunked("5\nhello\n0\n\n")),
        ("a bare line feed in an extension", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n")),
        ("a bare line feed behind the data", chunked("5\r\nhello\n0\r\n\r\n")),
    ];
    for (run, bytes) in &runs {
        let (mut client, got) = world.sent(bytes).await;
        assert_answer(&got, MALFORMED, run);
        assert!(closes(&mut client.stream).await, "{run} closes");
    }
    // What had been forwarded already is seen to be broken: no last chunk, and the end.
    world.open.all_ended().await;
    assert!(world.open.requests().is_empty(), "{:#?}", world.open.requests());
    world.after(&vec![(400, "bad_request"); runs.len()]).await;
}

#[tokio::test]
async fn fr_12_malformed_chunks_towards_http2() {
    let (world, origin) = towards_http2().await;
    let head = "POST http://h2.example.test/ HTTP/1.1\r\nHost: h2.example.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in ["5\r\nhelloXX0\r\n\r\n", "5\r\nhello\r\n0x0\r\n\r\n"] {
        let (mut client, got) = world.sent(format!("{head}{body}")).await;
        assert_answer(&got, MALFORMED, body);
        assert!(closes(&mut client.stream).await);
    }
    assert!(origin.requests().is_empty(), "the stream is reset, not ended");
    let (_client, got) = world.sent(format!("{head}5\r\nhello\r\n0\r\n\r\n")).await;
    assert_eq!(got.status, 200);
    assert_eq!((origin.only().body, origin.requests()[0].version), ("hello".into(), http::Version::HTTP_2));
    world.after(&[(400, "bad_request"), (400, "bad_request"), (200, "")]).await;
}

#[tokio::test]
async fn fr_12_body_cut_by_the_client() {
    let world = World::start(Policy::Open).await;
    for (lines, body) in
        [("Content-Length: 10\r\n", "hello"), ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n")]
    {
        let mut client = world.client().await;
        client.send(post(lines, body)).await;
        client.stream.shutdown().await.unwrap();
        assert!(closes(&mut client.stream).await);
        assert!(find(&client.stream.seen(), b" 200 ").is_none());
    }
    poll_until("both reach the origin", || world.open.heard().len() == 2).await;
    world.open.all_ended().await;
    assert!(world.open.requests().is_empty(), "what is cut is seen to be cut: {:?}", world.open.requests());
    world.after(&[(400, "bad_request"); 2]).await;
}

#[tokio::test]
async fn fr_13_chunk_extensions_as_a_flood() {
    let world = World::start(Policy::Open).await;
    let flood = format!("1;{}\r\nZ\r\n", "a".repeat(1024)).repeat(40) + "0\r\n\r\n";
    let (mut client, got) = world.sent(post("Transfer-Encoding: chunked\r\n", &flood)).await;
    assert_answer(&got, MALFORMED, "flood");
    assert!(closes(&mut client.stream).await);
    world.open.all_ended().await;
    assert!(world.open.requests().is_empty());
    for heard in world.open.heard() {
        assert!(find(&heard.bytes, b"aaaa").is_none(), "no extension reaches the origin");
        let passed = heard.bytes.iter().filter(|byte| **byte == b'Z').count();
        assert!(passed <= 16, "{passed} chunks were read, of 1 KiB of extension each");
    }
    world.after(&[(400, "bad_request")]).await;
}

#[tokio::test]
async fn fr_14_framing_and_routing_fields_in_trailers() {
    let world = World::start(Policy::Open).await;
    let body = "5\r\nhello\r\n0\r\nContent-Length: 0\r\nHost: evil.example.test\r\n\r\n";
    let lines = "Transfer-Encoding: chunked\r\nTrailer: Content-Length, Host\r\n";
    let (mut client, got) = world.sent(post(lines, body)).await;
    assert_eq!(got.status, 200, "{got:?}");
    let request = world.open.only();
    assert!(request.all("content-length").is_empty(), "{request:?}");
    assert_eq!(request.all("host"), ["open.example.test"]);
    assert_eq!(request.body, b"5\r\nhello\r\n0\r\n\r\n", "{request:?}");
    assert!(serves(&mut client, OPEN, "open.example.test").await);
    world.after(&[(200, ""), (200, "")]).await;
}

#[tokio::test]
async fn fr_14_trailers_towards_http2() {
    let (world, origin) = towards_http2().await;
    let head = "POST http://h2.example.test/ HTTP/1.1\r\nHost: h2.example.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
    let trailers = "X-Sum: 1\r\nContent-Length: 0\r\nHost: evil.example.test\r\nAuthorization: Bearer x\r\nTransfer-Encoding: gzip\r\n";
    let (_client, got) = world.sent(format!("{head}5\r\nhello\r\n0\r\n{trailers}\r\n")).await;
    assert_eq!(got.status, 200, "{got:?}");
    let seen = origin.only();
    assert_eq!(seen.body, "hello");
    assert_eq!(seen.uri.authority().unwrap(), "h2.example.test");
    assert!(!seen.headers.contains_key("authorization") && !seen.headers.contains_key("content-length"));
    let names: Vec<_> =
        seen.trailers.iter().flat_map(http::HeaderMap::keys).map(|name| name.as_str()).collect();
    assert_eq!(names, ["x-sum"], "what neither frames nor routes nor authenticates");
    world.after(&[(200, "")]).await;
}

#[tokio::test]
async fn fr_15_get_with_a_body_like_a_request() {
    let world = World::start(Policy::Open).await;
    let body = "GET /smuggled HTTP/1.1\r\nHost: open.example.test\r\n\r\n";
    let request = format!(
        "GET http://open.example.test/a HTTP/1.1\r\nHost: open.example.test\r\nContent-Length: 51\r\n\r\n{body}"
    );
    let (mut client, got) = world.sent(request).await;
    assert_eq!(got.status, 200);
    let request = world.open.only();
    assert_eq!((request.line(), request.all("content-length")), ("GET /a HTTP/1.1", vec!["51"]));
    assert_eq!(request.body, body.as_bytes());
    assert!(serves(&mut client, OPEN, "open.example.test").await);
    // The client cannot have the framing taken away.
    for (lines, sent) in [
        ("Connection: Content-Length\r\nContent-Length: 51\r\n", body.to_owned()),
        (
            "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
            format!("33\r\n{body}\r\n0\r\n\r\n"),
        ),
    ] {
        client.send(format!("GET {OPEN} HTTP/1.1\r\nHost: open.example.test\r\n{lines}\r\n{sent}")).await;
        assert_eq!(client.answer().await.status, 200);
        let request = world.open.requests().pop().unwrap();
        assert_eq!(request.body, sent.as_bytes(), "{request:?}");
        assert_eq!(request.all("content-length").len() + request.all("transfer-encoding").len(), 1);
    }
    world.after(&[(200, ""); 4]).await;
}

#[tokio::test]
async fn fr_16_upgrade_to_h2c() {
    let upgrade =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
    let request = format!("GET {OPEN} HTTP/1.1\r\nHost: open.example.test\r\n{upgrade}\r\n");
    let world = World::start(Policy::Open).await;
    let (mut client, got) = world.sent(&request).await;
    assert_eq!(got.status, 200);
    let seen = world.open.only();
    for field in ["upgrade", "http2-settings", "connection"] {
        assert!(seen.all(field).is_empty(), "{field}: {seen:?}");
    }
    assert!(serves(&mut client, OPEN, "open.example.test").await);
    world.after(&[(200, ""), (200, "")]).await;

    // An origin that switches anyway.
    let world =
        World::answering(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
            .await;
    let (mut client, got) = world.sent(&request).await;
    assert_answer(&got, (502, "http_upgrade_failed"), "101");
    assert!(serves(&mut client, "http://alive.example.test/", "alive.example.test").await);
    world.open.all_ended().await;
    world.after(&[(502, "upstream_protocol")]).await;
}

#[tokio::test]
async fn fr_16_behind_an_upgrade_that_is_not_granted() {
    let world = World::start(Policy::One).await;
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let both =
        format!("GET http://open.example.test/v1/x HTTP/1.1\r\nHost: open.example.test\r\n{websocket}\r\n")
            + &get("http://open.example.test/smuggled", "open.example.test");
    let (mut client, got) = world.sent(both).await;
    assert_eq!((got.status, got.text().as_str()), (200, "open"));
    // The origin said no, so what follows is another request, with a decision of its own.
    assert_answer(&client.answer().await, REFUSED, "behind");
    world.open.all_ended().await;
    assert_eq!(world.open.only().line(), "GET /v1/x HTTP/1.1");
    world.after(&[(200, ""), (403, "denied")]).await;
}

#[tokio::test]
async fn fr_17_expect_on_a_refused_request() {
    let world = World::start(Policy::One).await;
    let head = "POST http://evil.example.test/ HTTP/1.1\r\nHost: evil.example.test\r\nContent-Length: 51\r\nExpect: 100-continue\r\n\r\n";
    let (mut client, got) = world.sent(head).await;
    assert_answer(&got, REFUSED, "expect");
    // The late body is never read as a request, whether or not it can still be written.
    let _ = client.stream.write_all(b"GET /smuggled HTTP/1.1\r\nHost: open.example.test\r\n\r\n").await;
    assert!(closes(&mut client.stream).await);
    assert_eq!(client.stream.answers(), 1, "no 100, and no second answer");
    assert!(world.open.heard().is_empty());
    world.after(&[(403, "denied")]).await;
}

#[tokio::test]
async fn fr_18_unknown_expectation() {
    let world = World::start(Policy::Open).await;
    let (mut client, got) = world
        .sent(format!("GET {OPEN} HTTP/1.1\r\nHost: open.example.test\r\nExpect: 200-maybe\r\n\r\n"))
        .await;
    assert_answer(&got, (417, "http_request_error"), "expectation");
    assert!(serves(&mut client, OPEN, "open.example.test").await, "the connection stays");
    // With a body on its way it does not: those bytes are never read as a request.
    let head = post("Content-Length: 51\r\nExpect: 200-maybe\r\n", "");
    let (mut client, got) = world.sent(head).await;
    assert_answer(&got, (417, "http_request_error"), "with a body");
    let _ = client.stream.write_all(b"GET /smuggled HTTP/1.1\r\nHost: open.example.test\r\n\r\n").await;
    assert!(closes(&mut client.stream).await);
    assert_eq!(client.stream.answers(), 1);
    world.after(&[(417, "expectation_failed"), (200, ""), (417, "expectation_failed")]).await;
}

#[tokio::test]
async fn fr_19_pipelined_behind_a_refusal() {
    let world = World::start(Policy::One).await;
    let both = get("http://evil.example.test/", "evil.example.test")
        + &get("http://open.example.test/second", "open.example.test");
    let (mut client, got) = world.sent(both).await;
    assert_answer(&got, REFUSED, "first");
    let second = client.answer_or_end().await;
    let served = second.is_some();
    if let Some(second) = second {
        assert_eq!((second.status, second.text().as_str()), (200, "open"));
        assert_eq!(world.open.only().line(), "GET /second HTTP/1.1");
    }
    let expected = [(403, "denied"), (200, "")];
    world.after(&expected[..1 + usize::from(served)]).await;
}

#[tokio::test]
async fn fr_19_malformed_behind_another() {
    let world = World::start(Policy::One).await;
    let bad = "GET http://open.example.test/smuggled HTTP/1.1\r\nHost : open.example.test\r\n\r\n";
    for (host, status) in [("open.example.test", 200), ("evil.example.test", 403)] {
        let (mut client, got) = world.sent(get(&format!("http://{host}/"), host) + bad).await;
        assert_eq!(got.status, status);
        assert_answer(&client.answer().await, MALFORMED, host);
        assert!(closes(&mut client.stream).await);
    }
    assert_eq!(world.open.requests().len(), 1);
    let bad = (400, "bad_request");
    world.after(&[(200, ""), bad, (403, "denied"), bad]).await;
}

#[tokio::test]
async fn fr_20_early_refusal_with_the_body_unread() {
    let world = World::start(Policy::One).await;
    let smuggled = get("http://open.example.test/smuggled", "open.example.test");
    let mut request =
        b"POST http://evil.example.test/ HTTP/1.1\r\nHost: evil.example.test\r\nContent-Length: 1048576\r\n\r\n".to_vec();
    let head = request.len();
    request.extend_from_slice(smuggled.as_bytes());
    request.resize(head + 1_048_576, 0);
    let mut client = world.client().await;
    // Written while the answer is read: outgate need not take the whole body.
    let _ = client.stream.write_all(&request).await;
    let got = client.answer().await;
    assert_answer(&got, REFUSED, "early");
    assert!(closes(&mut client.stream).await);
    assert_eq!(client.stream.answers(), 1);
    // The same in chunks that do not end.
    let head = "POST http://evil.example.test/ HTTP/1.1\r\nHost: evil.example.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (mut client, got) = world.sent(format!("{head}ffff\r\n{smuggled}")).await;
    assert_answer(&got, REFUSED, "chunks");
    let _ = client.stream.write_all(smuggled.as_bytes()).await;
    assert!(closes(&mut client.stream).await);
    assert_eq!(client.stream.answers(), 1);
    assert!(world.open.heard().is_empty());
    world.after(&[(403, "denied"), (403, "denied")]).await;
}

#[tokio::test]
async fn fr_21_versions() {
    let with = |version: &str| format!("GET {OPEN} {version}\r\nHost: open.example.test\r\n\r\n");
    all_malformed(&[
        ("a", b"GET /\r\n"),
        ("b", with("HTTP/3.7").as_bytes()),
        ("c", with("http/1.1").as_bytes()),
        ("HTTP/2.0", with("HTTP/2.0").as_bytes()),
    ])
    .await;
}

#[tokio::test]
async fn fr_22_method_tokens() {
    all_malformed(&[
        ("a", b"G=\":<>(e),[T];?\" http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n\r\n"),
        ("b", b"GET\thttp://open.example.test/\tHTTP/1.1\r\nHost: open.example.test\r\n\r\n"),
    ])
    .await;
    // One that is merely unknown is the policy's to judge.
    let world = World::start(Policy::Open).await;
    let (mut client, got) = world.sent(get(OPEN, "open.example.test").replace("GET", "QUERY")).await;
    assert_answer(&got, REFUSED, "QUERY");
    assert!(serves(&mut client, OPEN, "open.example.test").await);
    assert_eq!(world.open.requests().len(), 1);
    world.after(&[(403, "denied"), (200, "")]).await;
}

#[tokio::test]
async fn fr_23_answer_with_both_framings() {
    let world = World::answering(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\nHTTP/1.1 200 SPLIT\r\nX: 1\r\n\r\n",
    )
    .await;
    let (mut client, got) = world.sent(get(OPEN, "open.example.test")).await;
    assert_eq!((got.status, got.body.len(), got.header("content-length")), (200, 0, None), "{got:?}");
    // Another request never meets what was left over.
    client.send(get(OPEN, "open.example.test")).await;
    let got = client.answer().await;
    assert_eq!((got.status, got.body.len()), (200, 0));
    world.open.all_ended().await;
    let heard = world.open.heard();
    assert_eq!(heard.len(), 2, "the connection is never used again");
    assert!(find(&client.stream.seen(), b"SPLIT").is_none());
    assert!(serves(&mut client, "http://alive.example.test/", "alive.example.test").await);
    world.after(&[(200, ""), (200, "")]).await;
}

#[tokio::test]
async fn fr_23_nothing_left_over_and_still_not_used_again() {
    let world = World::answering(
        b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    )
    .await;
    let mut client = world.client().await;
    for number in 1..=2 {
        client.send(get(OPEN, "open.example.test")).await;
        let got = client.answer().await;
        assert_eq!((got.status, got.text().as_str(), got.header("content-length")), (200, "ok", None));
        world.open.all_ended().await;
        assert_eq!(world.open.heard().len(), number);
    }
    world.after(&[(200, ""), (200, "")]).await;
}

#[tokio::test]
async fn fr_23_codings_that_nobody_asked_for() {
    let runs: [&[u8]; 5] = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ];
    for answer in runs {
        let world = World::answering(answer).await;
        broken_answer(&world, &String::from_utf8_lossy(answer)).await;
        world.after(&[(502, "upstream_protocol")]).await;
    }
}

#[tokio::test]
async fn fr_24_answer_with_two_lengths() {
    let world =
        World::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\nokEXTRA").await;
    broken_answer(&world, "two lengths").await;
    world.after(&[(502, "upstream_protocol")]).await;
}

/// The provider's answer is refused, its connection ends, the client's stays.
async fn broken_answer(world: &World, what: &str) {
    let (mut client, got) = world.sent(get(OPEN, "open.example.test")).await;
    assert_answer(&got, (502, "http_protocol_error"), what);
    world.open.all_ended().await;
    assert!(serves(&mut client, "http://alive.example.test/", "alive.example.test").await, "{what}");
}

#[tokio::test]
async fn fr_25_bytes_nobody_asked_for() {
    let poisoned = [ok("ok"), ok("poison")].concat();
    let reply = Arc::new(
        move |request: &Taken| {
            if request.line().starts_with("GET /b ") { ok("fresh") } else { poisoned.clone() }
        },
    );
    let world = World::with(Policy::Open, Setup { reply: Some(reply), ..Setup::default() }).await;
    let clients: Vec<_> = (0..100).map(|_| pair_of_requests(&world)).collect();
    futures_join(clients).await;
    world.after(&vec![(200, ""); 200]).await;
}

#[tokio::test]
async fn fr_25_bodies_where_there_is_none() {
    let reply = Arc::new(|request: &Taken| match request.line().split(' ').nth(1).unwrap() {
        "/204" => b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison".to_vec(),
        "/head" => ok("poison"),
        _ => ok("fresh"),
    });
    let world = World::with(Policy::Open, Setup { reply: Some(reply), ..Setup::default() }).await;
    let mut client = world.client().await;
    for (method, path) in [("HEAD", "head"), ("GET", "204"), ("GET", "304")] {
        client
            .send(
                get(&format!("http://open.example.test/{path}"), "open.example.test").replace("GET", method),
            )
            .await;
        let status = client.head().await.status;
        assert!([200, 204, 304].contains(&status), "{path}: {status}");
        client.send(get("http://open.example.test/b", "open.example.test")).await;
        let got = client.answer().await;
        assert_eq!((got.status, got.text().as_str()), (200, "fresh"), "{path}");
    }
    assert!(find(&client.stream.seen(), b"poison").is_none());
    world.after(&[(200, ""), (200, ""), (204, ""), (200, ""), (304, ""), (200, "")]).await;
}

async fn pair_of_requests(world: &World) {
    let mut client = world.client().await;
    for (path, body) in [("a", "ok"), ("b", "fresh")] {
        client.send(get(&format!("http://open.example.test/{path}"), "open.example.test")).await;
        let got = client.answer().await;
        assert_eq!((got.status, got.text().as_str()), (200, body), "{path}");
    }
    assert!(find(&client.stream.seen(), b"poison").is_none());
}

/// Runs all of them at once.
async fn futures_join(futures: Vec<impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test]
async fn fr_26_malformed_answers() {
    let runs: [(&str, &[u8]); 6] = [
        ("a", b"HTTP/1.1 200 OK\r\nX-A: 1\rX-B: 2\r\nContent-Length: 0\r\n\r\n"),
        ("b", b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n"),
        ("c", b"HTTP/1.1 200 OK\r\nX-A: a\r\n folded\r\nContent-Length: 0\r\n\r\n"),
        ("d", b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
        ("e", b"SSH-2.0-OpenSSH_9\r\n"),
        ("f", b"HTTP/1.1 200 OK\r\nX-A: a\x1b[31m\r\nContent-Length: 0\r\n\r\n"),
    ];
    for (run, answer) in runs {
        let world = World::answering(answer).await;
        broken_answer(&world, run).await;
        world.after(&[(502, "upstream_protocol")]).await;
    }
}

#[tokio::test]
async fn fr_26_cut_answers_are_passed_on_as_cut() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n",
    ] {
        let origin = RawOrigin::answering(None, answer).await;
        let providers = format!(
            "  cut:\n    hosts: [cut.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n",
            origin.address
        );
        let world = World::with(Policy::Open, Setup { providers, ..Setup::default() }).await;
        let (mut client, got) = world.sent(get("http://cut.example.test/", "cut.example.test")).await;
        assert_eq!((got.status, got.text().as_str()), (200, "hello"));
        assert!(closes(&mut client.stream).await, "a short length or no last chunk, and the end");
        let seen = client.stream.seen();
        assert!(!seen.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&seen));
        world.after(&[(200, "UC")]).await;
    }
}

#[tokio::test]
async fn fr_27_switching_unasked() {
    let world = World::answering(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\nrawbytes",
    )
    .await;
    let (mut client, got) = world.sent(get(OPEN, "open.example.test")).await;
    assert_answer(&got, (502, "http_upgrade_failed"), "101");
    world.open.all_ended().await;
    assert!(find(&client.stream.seen(), b"rawbytes").is_none());
    assert!(serves(&mut client, "http://alive.example.test/", "alive.example.test").await);
    // Nor where another protocol than the one that was asked for is switched to.
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let request = format!("GET {OPEN} HTTP/1.1\r\nHost: open.example.test\r\n{websocket}\r\n");
    let (client, got) = world.sent(request).await;
    assert_answer(&got, (502, "http_upgrade_failed"), "another protocol");
    world.open.all_ended().await;
    assert!(find(&client.stream.seen(), b"rawbytes").is_none());
    world.after(&[(502, "upstream_protocol"), (502, "upstream_protocol")]).await;
}
