//! Kept-alive connections at rest: given back to HTTP when their next byte comes, and never in the middle of a request.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::support::client::{Raw, intercepted};
use super::support::origin::read_request;
use super::support::proxy::Proxy;
use super::world::{HOST, answering, scripted, until};

fn resting(proxy: &Proxy) -> u32 {
    let metrics = proxy.metrics();
    let rows = metrics.lines().filter(|line| line.starts_with("outgate_downstream_connections_resting{"));
    rows.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u32).sum()
}

/// Several requests on one connection, which rests before each but the first.
async fn serve_between_rests(
    proxy: &Proxy,
    mut raw: Raw<impl AsyncRead + AsyncWrite + Unpin>,
    path: &str,
    host: &str,
) {
    let get = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    raw.send(&get).await;
    assert_eq!(raw.answer().await.status, 200);
    for turn in 0..2 {
        until("it rests", || resting(proxy) == 1).await;
        // Byte by byte, then two requests in one write.
        for byte in get.bytes() {
            raw.send([byte]).await;
        }
        assert_eq!(raw.answer().await.text(), "hello", "{turn}");
        raw.send(get.repeat(2)).await;
        assert_eq!((raw.answer().await.status, raw.answer().await.status), (200, 200), "{turn}");
        let post = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nabc");
        raw.send(post).await;
        raw.send("de").await;
        assert_eq!(raw.answer().await.status, 200, "{turn}");
    }
    until("it rests", || resting(proxy) == 1).await;
}

#[tokio::test]
async fn a_connection_that_rests_is_served_again() {
    let hello = || answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec()));
    let (proxy, _origin) = scripted(hello(), "", "").await;
    let raw = Raw::connect(proxy.address()).await;
    serve_between_rests(&proxy, raw, "/api/x", &proxy.address().to_string()).await;
    // The connection is gone, and its rest with it.
    until("nothing rests", || resting(&proxy) == 0).await;

    let raw = Raw::over(intercepted(&proxy, HOST, &["http/1.1"]).await);
    serve_between_rests(&proxy, raw, "/x", HOST).await;
    until("nothing rests", || resting(&proxy) == 0).await;
}

#[tokio::test]
async fn a_drain_ends_what_rests_at_once() {
    let hello = answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec()));
    let (proxy, _origin) = scripted(hello, "", "runtime: { drain: 20s }").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
    assert_eq!(raw.answer().await.status, 200);
    until("it rests", || resting(&proxy) == 1).await;
    let began = Instant::now();
    let (ended, finished) = tokio::join!(raw.ends(), proxy.app.shutdown());
    assert!(ended && finished && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// The answer is whole before the upload is. What the app sends after a silence belongs to that upload, whatever it looks like.
#[tokio::test]
async fn what_follows_an_unread_body_is_no_request() {
    let script: super::support::origin::Script = std::sync::Arc::new(|mut stream, _| {
        Box::pin(async move {
            // The head and the first bytes of the body.
            let mut some = [0_u8; 4096];
            let _ = stream.read(&mut some).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            let _ = stream.flush().await;
            let _ = read_request(&mut stream).await;
        })
    });
    let (proxy, origin) = scripted(script, "", "").await;
    let host = proxy.address();
    let smuggled = format!("GET /api/smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut raw = Raw::connect(host).await;
    let length = 3 + smuggled.len();
    raw.send(format!("POST /api/x HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\nabc")).await;
    assert_eq!(raw.answer().await.status, 200);
    // Longer than it takes to come to rest: that nothing happens cannot be waited for otherwise.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert_eq!(resting(&proxy), 0);
    let _ = raw.stream.write_all(smuggled.as_bytes()).await;
    assert!(raw.ends().await || raw.stays().await);
    assert_eq!(proxy.records(1).await.len(), 1);
    assert!(!origin.text().contains("GET /smuggled"), "{}", origin.text());
}
