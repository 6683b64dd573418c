//! WebSocket: handed through where both sides agree, and nothing else is an upgrade.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::support::CANARY;
use super::support::client::{PATIENCE, Raw, intercepted};
use super::support::origin::{RawOrigin, Script, Stream, read_request};
use super::support::proxy::Proxy;
use super::world::{HOST, scripted};

const HANDSHAKE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";

/// Answers the handshake with `answer`, then repeats what comes, and says `bye` after the client's end.
fn origin(answer: String) -> Script {
    Arc::new(move |mut stream: Box<dyn Stream>, _| {
        let answer = answer.clone();
        Box::pin(async move {
            read_request(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let mut buffer = [0_u8; 1024];
            while let Ok(read) = stream.read(&mut buffer).await {
                if read == 0 {
                    let _ = stream.write_all(b"bye").await;
                    break;
                }
                stream.write_all(&buffer[..read]).await.unwrap();
                stream.flush().await.unwrap();
            }
            let _ = stream.shutdown().await;
        }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    })
}

async fn exactly(stream: &mut (impl AsyncRead + Unpin), wanted: &str) {
    let mut got = vec![0_u8; wanted.len()];
    timeout(PATIENCE, stream.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&got), wanted);
}

/// Bytes both ways, then half-close.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut raw: Raw<S>, head: &str) {
    raw.send(head).await;
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        got.push(timeout(PATIENCE, raw.stream.read_u8()).await.unwrap().unwrap());
    }
    let text = String::from_utf8(got).unwrap().to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 101 "), "{text}");
    for field in ["upgrade: websocket\r\n", "connection: upgrade\r\n", "sec-websocket-protocol: chat\r\n"] {
        assert_eq!(text.matches(field).count(), 1, "{field} in {text}");
    }
    assert!(
        text.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=")
            && text.contains("outgate-request-id")
    );
    // What came with the head is not lost.
    exactly(&mut raw.stream, "first").await;
    for message in ["hello", "again"] {
        raw.send(message).await;
        exactly(&mut raw.stream, message).await;
    }
    raw.stream.shutdown().await.unwrap();
    exactly(&mut raw.stream, "bye").await;
    assert_eq!(timeout(PATIENCE, raw.stream.read(&mut [0])).await.unwrap().unwrap_or(0), 0, "the end");
}

fn assert_handshake(origin: &RawOrigin) {
    let text = origin.text();
    let head = text.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
    for field in ["upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13"] {
        assert_eq!(head.matches(field).count(), 1, "{field} in {head}");
    }
    assert!(text.contains(&format!("Bearer {CANARY}")) && text.contains("dGhlIHNhbXBsZSBub25jZQ=="));
}

#[tokio::test]
async fn through_the_local_endpoint() {
    let (proxy, origin) = scripted(origin(format!("{SWITCH}first")), "", "").await;
    let head = format!("GET /api/ws HTTP/1.1\r\nHost: {}\r\n{HANDSHAKE}", proxy.address());
    talk(Raw::connect(proxy.address()).await, &head).await;
    assert_handshake(&origin);
    let records = proxy.records(1).await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["http.response.status_code"], 101);
    assert_eq!(records[0]["outgate.upgrade"], "websocket");
    assert_eq!(records[0]["http.request.body.size"], 10);
    assert_eq!(records[0]["http.response.body.size"], 18);
    assert!(records[0]["outgate.flag"].is_null(), "{}", records[0]);
}

#[tokio::test]
async fn through_interception() {
    let (proxy, origin) = scripted(origin(format!("{SWITCH}first")), "", "").await;
    let head = format!("GET /ws HTTP/1.1\r\nHost: {HOST}\r\n{HANDSHAKE}");
    talk(Raw::over(intercepted(&proxy, HOST, &["http/1.1"]).await), &head).await;
    assert_handshake(&origin);
    let records = proxy.records(2).await;
    assert_eq!((records.len(), &records[1]["outgate.door"]), (2, &"intercept".into()));
    assert_eq!(records[1]["outgate.upgrade"], "websocket");
}

/// The provider is done first, and takes what the client still sends.
#[tokio::test]
async fn the_provider_may_close_its_half_first() {
    let said = Arc::new(std::sync::Mutex::new(Vec::new()));
    for door in ["local", "intercept", "tunnel"] {
        let heard = said.clone();
        let half = Arc::new(move |mut stream: Box<dyn Stream>, _| {
            let heard = heard.clone();
            Box::pin(async move {
                read_request(&mut stream).await;
                stream.write_all(format!("{SWITCH}bye").as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                heard.lock().unwrap().push(String::from_utf8(rest).unwrap());
            }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
        });
        let (proxy, _origin) = if door == "tunnel" {
            let ca = super::support::ca::TestCa::new();
            let origin = RawOrigin::start(None, half).await;
            let keys = "    credential: none\n    intercept: never\n    opaque: true";
            (super::world::start(&ca, origin.address, keys, "").await, origin)
        } else {
            scripted(half, "", "").await
        };
        let head = format!("GET /api/ws HTTP/1.1\r\nHost: {}\r\n{HANDSHAKE}", proxy.address());
        let inside = format!("GET /ws HTTP/1.1\r\nHost: {HOST}\r\n{HANDSHAKE}");
        match door {
            "local" => after_the_end(Raw::connect(proxy.address()).await, &head).await,
            "tunnel" => {
                after_the_end(super::support::client::tunnel(&proxy, &format!("{HOST}:443")).await, &inside)
                    .await;
            }
            _ => after_the_end(Raw::over(intercepted(&proxy, HOST, &["http/1.1"]).await), &inside).await,
        }
        super::world::until("the provider heard it", || !said.lock().unwrap().is_empty()).await;
        assert_eq!(said.lock().unwrap().pop().unwrap(), "one more thing", "{door}");
        let records = proxy.records(if door == "intercept" { 2 } else { 1 }).await;
        assert!(records.last().unwrap()["outgate.flag"].is_null(), "{door}: {records:#?}");
    }
}

/// Reads to the end of what comes, and only then says the rest.
async fn after_the_end<S: AsyncRead + AsyncWrite + Unpin>(mut raw: Raw<S>, head: &str) {
    raw.send(head).await;
    let mut got = Vec::new();
    timeout(PATIENCE, raw.stream.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got.ends_with(b"bye"));
    raw.send("one more thing").await;
    raw.stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn silence_ends_it() {
    let (proxy, _origin) =
        scripted(origin(format!("{SWITCH}first")), "    timeouts: { upgrade_idle: 200ms }", "").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET /api/ws HTTP/1.1\r\nHost: {}\r\n{HANDSHAKE}", proxy.address())).await;
    assert_eq!(raw.head().await.status, 101);
    assert!(raw.ends().await);
    assert_eq!(proxy.records(1).await[0]["outgate.flag"], "UT");
}

async fn ask(proxy: &Proxy, head: &str) -> super::support::client::Got {
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET /api/ws HTTP/1.1\r\nHost: {}\r\n{head}", proxy.address())).await;
    raw.answer().await
}

#[tokio::test]
async fn a_refusal_of_the_provider_passes_as_it_is() {
    let answer = "HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\nX-Why: version\r\n\r\nbad key";
    let (proxy, _origin) = scripted(origin(answer.to_owned()), "", "").await;
    let got = ask(&proxy, HANDSHAKE).await;
    assert_eq!((got.status, got.text().as_str(), got.header("x-why")), (400, "bad key", Some("version")));
    assert_eq!(got.header("outgate-error"), None);
    assert_eq!(proxy.records(1).await[0]["http.response.status_code"], 400);
}

#[tokio::test]
async fn a_switch_unasked_or_to_something_else_is_502() {
    for (answer, head) in [
        (SWITCH.to_owned(), "\r\n"),
        (SWITCH.replace("websocket", "h2c"), HANDSHAKE),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n".to_owned(), HANDSHAKE),
    ] {
        let (proxy, _origin) = scripted(origin(answer.clone()), "", "").await;
        let got = ask(&proxy, head).await;
        assert_eq!((got.status, got.header("outgate-error")), (502, Some("upstream_protocol")), "{answer}");
        assert_eq!(got.header("outgate-sent"), Some("maybe"));
        let record = &proxy.records(1).await[0];
        assert_eq!(
            (&record["outgate.flag"], &record["outgate.upgrade"]),
            (&"UPE".into(), &serde_json::Value::Null)
        );
    }
}

#[tokio::test]
async fn no_other_upgrade_is_forwarded() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned();
    for head in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
        "Upgrade: websocket\r\n\r\n",
    ] {
        let (proxy, origin) = scripted(origin(answer.clone()), "", "").await;
        assert_eq!(ask(&proxy, head).await.status, 200, "{head}");
        let text = origin.text().to_ascii_lowercase();
        assert!(!text.contains("upgrade") && !text.contains("http2-settings"), "{text}");
    }
}

#[tokio::test]
async fn a_provider_that_prefers_http_2_is_asked_by_http_1() {
    let ca = super::support::ca::TestCa::new();
    let server = ca.server(&[HOST], &["h2", "http/1.1"]);
    let origin = RawOrigin::start(Some(server), origin(format!("{SWITCH}first"))).await;
    let proxy = super::world::start(&ca, origin.address, "", "").await;
    let head = format!("GET /api/ws HTTP/1.1\r\nHost: {}\r\n{HANDSHAKE}", proxy.address());
    talk(Raw::connect(proxy.address()).await, &head).await;
    assert_handshake(&origin);
}
