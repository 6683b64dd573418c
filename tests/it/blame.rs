//! Whose fault it was that an exchange ended before its end: the record says so by its flag.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::support::ca::TestCa;
use super::support::client::{PATIENCE, Raw, tunnel};
use super::support::origin::{Answer, RawOrigin, Script, Stream};
use super::support::proxy::Proxy;
use super::world::{HOST, scripted, start};

/// An origin that says hello, and resets the connection when it is asked to, or reads on.
async fn resetting(resets: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {
                    stream.write_all(b"hello").await.unwrap();
                    if resets {
                        stream.set_zero_linger().unwrap();
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_tunnel_that_breaks_is_blamed_on_the_side_that_broke() {
    for (provider_resets, flag) in [(false, "DC"), (true, "UC")] {
        let origin = resetting(provider_resets).await;
        let policy = format!(
            "providers:\n  api:\n    hosts: [{HOST}]\n    upstream: {{ connect_to: \"{origin}\" }}\n    intercept: never\n    opaque: true\n"
        );
        let proxy = Proxy::start(&policy).await;
        let mut raw = tunnel(&proxy, &format!("{HOST}:443")).await;
        raw.send("x").await;
        let mut hello = [0; 5];
        timeout(PATIENCE, raw.stream.read_exact(&mut hello)).await.unwrap().unwrap();
        if provider_resets {
            assert!(raw.ends().await);
        } else {
            raw.stream.set_zero_linger().unwrap();
        }
        drop(raw);
        let records = proxy.records(1).await;
        assert_eq!(records[0]["outgate.flag"], flag, "{}", records[0]);
    }
}

#[tokio::test]
async fn a_websocket_that_the_app_resets_is_not_the_providers_fault() {
    let echo: Script = Arc::new(|mut stream: Box<dyn Stream>, _| {
        Box::pin(async move {
            super::support::origin::read_request(&mut stream).await;
            let head =
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
    });
    let (proxy, _origin) = scripted(echo, "", "").await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let head = format!(
        "GET /api/ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        proxy.address()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"hello") {
        got.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    stream.set_zero_linger().unwrap();
    drop(stream);
    let records = proxy.records(1).await;
    assert_eq!(records[0]["outgate.flag"], "DC", "{}", records[0]);
}

/// Answers before the upload has ended, and goes on answering for ever.
fn early() -> Script {
    Arc::new(|mut stream: Box<dyn Stream>, _| {
        Box::pin(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
    })
}

/// The same over HTTP/2.
async fn early_http2(ca: &TestCa) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(ca.server(&[HOST], &["h2"]));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async {
                tokio::spawn(request.into_body().collect());
                let hello = http_body::Frame::data(Bytes::from_static(b"hello"));
                let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(hello)]);
                let body =
                    StreamBody::new(futures_util::StreamExt::chain(stream, futures_util::stream::pending()));
                Ok::<Answer, std::io::Error>(http::Response::new(BodyExt::boxed(body)))
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let builder = hyper::server::conn::http2::Builder::new(executor);
            tokio::spawn(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
        }
    });
    address
}

/// Stands for a chunk that goes beyond `max_body`.
const TOO_LONG: &str = "too long";
/// Rows: what the app sends after the head of the answer has come, and the flag.
const FAULTS: [(&str, &str); 2] = [("zz\r\n", "DPE"), (TOO_LONG, "DPE")];

#[tokio::test]
async fn an_upload_that_breaks_behind_the_answers_head_is_the_apps_fault() {
    for http2 in [false, true] {
        for (rest, flag) in FAULTS {
            let ca = TestCa::new();
            let origin = if http2 {
                early_http2(&ca).await
            } else {
                RawOrigin::start(Some(ca.server(&[HOST], &["http/1.1"])), early()).await.address
            };
            let proxy = start(&ca, origin, "    max_body: 1KiB\n", "").await;
            let mut raw = Raw::connect(proxy.address()).await;
            let head = format!(
                "POST /api/ HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
                proxy.address()
            );
            raw.send(head).await;
            let mut got = Vec::new();
            while !got.ends_with(b"hello\r\n") {
                got.push(timeout(PATIENCE, raw.stream.read_u8()).await.unwrap().unwrap());
            }
            let too_long = format!("500\r\n{}\r\n", "x".repeat(0x500));
            raw.send(if rest == TOO_LONG { &too_long } else { rest }).await;
            assert!(raw.ends().await, "the answer is cut");
            let records = proxy.records(1).await;
            assert_eq!(records[0]["outgate.flag"], flag, "http2: {http2}, {rest:?}: {}", records[0]);
        }
    }
}
