//! What draining does with what is open: it ends in time, and its record says that outgate ended it.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::program::{Program, ended_with};
use super::support::client::{PATIENCE, Raw, tunnel};
use super::support::origin::read_request;
use super::support::proxy::Proxy;
use super::world::{HOST, scripted, until};

/// An origin that takes bytes and repeats them, for ever.
async fn echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// A proxy whose provider is a blind tunnel (with `keys`) or intercepted.
async fn tunnelling(keys: &str, drain: &str) -> Proxy {
    let origin = echo().await;
    Proxy::start(&format!(
        "runtime: {{ drain: {drain} }}\nproviders:\n  api:\n    hosts: [{HOST}]\n    upstream: {{ connect_to: \"{origin}\" }}\n    {keys}\n"
    ))
    .await
}

#[tokio::test]
async fn a_client_that_opened_a_tunnel_and_says_nothing_holds_nothing_up() {
    for keys in ["intercept: never", "intercept: always"] {
        let proxy = tunnelling(keys, "20s").await;
        let silent = tunnel(&proxy, &format!("{HOST}:443")).await;
        let began = Instant::now();
        assert!(proxy.app.shutdown().await, "{keys}: all of it finished by itself");
        assert!(began.elapsed() < Duration::from_secs(4), "{keys}: {:?}", began.elapsed());
        let records = proxy.records(1).await;
        assert_eq!((records.len(), &records[0]["outgate.flag"]), (1, &"DR".into()), "{keys}: {}", records[0]);
        drop(silent);
    }
}

#[tokio::test]
async fn what_the_drain_time_ends_is_flagged_so() {
    // A tunnel in which bytes moved.
    let proxy = tunnelling("intercept: never\n    opaque: true", "300ms").await;
    let mut raw = tunnel(&proxy, &format!("{HOST}:443")).await;
    raw.send("x").await;
    assert_eq!(tokio::time::timeout(PATIENCE, raw.stream.read_u8()).await.unwrap().unwrap(), b'x');
    assert!(!proxy.app.shutdown().await, "it does not finish by itself");
    let records = proxy.records(1).await;
    assert_eq!(records[0]["outgate.flag"], "DR", "{}", records[0]);
    assert!(raw.ends().await);

    // An answer that does not end, and a request that has none.
    for head in ["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", ""] {
        let script = std::sync::Arc::new(move |mut stream: Box<dyn super::support::origin::Stream>, _| {
            Box::pin(async move {
                read_request(&mut stream).await;
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
        });
        let (proxy, origin) = scripted(script, "", "runtime: { drain: 300ms }").await;
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
        until("it runs", || origin.text().contains("\r\n\r\n")).await;
        if !head.is_empty() {
            let mut got = Vec::new();
            while !got.ends_with(b"hello") {
                got.push(tokio::time::timeout(PATIENCE, raw.stream.read_u8()).await.unwrap().unwrap());
            }
        }
        assert!(!proxy.app.shutdown().await);
        let records = proxy.records(1).await;
        assert_eq!(
            (records.len(), &records[0]["outgate.flag"]),
            (1, &"DR".into()),
            "{head:?}: {}",
            records[0]
        );
        assert!(raw.ends().await);
    }
}

#[tokio::test]
async fn tunnels_are_in_flight_as_long_as_they_are_open() {
    let proxy = tunnelling("intercept: never\n    opaque: true", "1s").await;
    let in_flight = || {
        let metrics = proxy.metrics();
        let line =
            metrics.lines().find(|line| line.starts_with("outgate_requests_in_flight{provider=\"api\""));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    assert_eq!(in_flight(), 0.0);
    let mut open = Vec::new();
    for count in 1..=3 {
        let mut raw: Raw<TcpStream> = tunnel(&proxy, &format!("{HOST}:443")).await;
        raw.send("x").await;
        assert_eq!(raw.stream.read_u8().await.unwrap(), b'x');
        open.push(raw);
        assert_eq!(in_flight(), f64::from(count));
    }
    open.clear();
    until("all of them have ended", || in_flight() == 0.0).await;
    assert_eq!(proxy.records(3).await.len(), 3);
}

/// The real end of the process: the lines of tunnels whose app does not close are written before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_the_end_cuts_has_its_line() {
    const TUNNELS: usize = 8;
    let origin = echo().await;
    let dir = tempfile::tempdir().unwrap();
    let policy = format!(
        "runtime: {{ drain: 200ms }}\nproviders:\n  api:\n    hosts: [{HOST}]\n    upstream: {{ connect_to: \"{origin}\" }}\n    intercept: never\n    opaque: true\n"
    );
    let mut program = Program::start(dir.path(), &policy, "info", &[]);
    let mut open = Vec::new();
    for _ in 0..TUNNELS {
        let mut raw = Raw::connect(program.listener).await;
        raw.send(format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n")).await;
        assert_eq!(raw.head().await.status, 200);
        raw.send("x").await;
        assert_eq!(tokio::time::timeout(PATIENCE, raw.stream.read_u8()).await.unwrap().unwrap(), b'x');
        open.push(raw);
    }
    program.signal("TERM");
    // The apps keep their side open all the while.
    let status = tokio::task::block_in_place(|| program.wait(PATIENCE));
    assert!(ended_with(status, 0), "{status:?}");
    until("the output is read", || program.stdout().matches("\"outgate.flag\":\"DR\"").count() == TUNNELS)
        .await;
    drop(open);
}
