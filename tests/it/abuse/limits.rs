//! LM-01 to LM-13: too large, too many, too slow. Timeouts are shortened through `runtime.downstream`, so a deadline of the
//! key (10 s, 60 s) is one second or less here; what is scaled down says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::after::{Bench, Program, Setup, assert_covered, assert_refused, program, program_with};
use crate::support::ca::{TestCa, trusting};
use crate::support::client::{Got, Raw, over_http1, request, tunnel};
use crate::support::origin::{HttpOrigin, RawOrigin, Script};

/// Parts of a case that do not hold yet. (Every case has a test.)
const NOT_YET: &[(&str, &str)] = &[(
    "LM-06 memory",
    "32 MiB for 2000 slow heads is 16 KiB each, and hyper alone makes two buffers of 8 KiB for a connection; it takes 32 KiB",
)];

const GET_OPEN: &str = "GET http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n\r\n";
const HEAD_OPEN: &str = "GET http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n";
const POST_OPEN: &str = "POST http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n";

/// One request that is refused for its size: the answer, and the end of the connection.
async fn too_large(bench: &Bench, bytes: impl AsRef<[u8]>, statuses: &[u16]) -> Got {
    let mut raw = Raw::connect(bench.proxy.address()).await;
    raw.send(bytes).await;
    let got = raw.answer().await;
    assert!(statuses.contains(&got.status), "{got:?}");
    assert!(matches!(got.proxy_error(), None | Some("http_request_error")), "{got:?}");
    assert!(raw.ends().await, "it closes");
    got
}

#[tokio::test]
async fn lm_01_header_section_too_large() {
    let bench = Bench::start(Setup::default()).await;
    too_large(&bench, format!("{HEAD_OPEN}X-A: {}\r\n\r\n", "a".repeat(65_536)), &[431]).await;
    // In many fields.
    too_large(
        &bench,
        format!("{HEAD_OPEN}{}\r\n", format!("X-A: {}\r\n", "a".repeat(1000)).repeat(70)),
        &[431],
    )
    .await;
    // Below the documented number it passes.
    assert_eq!(bench.ask(format!("{HEAD_OPEN}X-A: {}\r\n\r\n", "a".repeat(60_000))).await.status, 200);
    let records = bench.after(3, &[]).await;
    assert_eq!(records[0]["http.response.status_code"], 431);
    assert_eq!(bench.open.requests().len(), 2, "the allowed one, and the good one");
}

#[tokio::test]
async fn lm_02_too_many_fields() {
    // The default is 256 fields; the case is about 100.
    let top = "runtime: { downstream: { max_headers: 100 } }";
    for (top, most) in [(top, 100), ("", 256)] {
        let bench = Bench::start(Setup { top, ..Setup::default() }).await;
        let lines = |count: usize| (0..count).map(|n| format!("X-{n}: 1\r\n")).collect::<String>();
        too_large(&bench, format!("{HEAD_OPEN}{}\r\n", lines(most)), &[431]).await;
        // The Host field counts too; what passes has `Via` in its answer. (The origin has a limit of its own.)
        let got = bench.ask(format!("{HEAD_OPEN}{}\r\n", lines(most - 1))).await;
        assert!(got.headers.contains_key("via"), "{got:?}");
        bench.after(2, &[]).await;
    }
}

#[tokio::test]
async fn lm_03_target_too_long() {
    let bench = Bench::start(Setup::default()).await;
    let target = "a".repeat(65_536);
    let head = format!("GET http://open.example.test/{target} HTTP/1.1\r\nHost: open.example.test\r\n\r\n");
    too_large(&bench, head, &[414, 431]).await;
    bench.after(1, &[]).await;
}

/// P-OPEN with a bound of the body.
async fn bounded() -> Bench {
    Bench::start(Setup { open: "    max_body: 1MiB\n", ..Setup::default() }).await
}

#[tokio::test]
async fn lm_04_body_above_the_limit_announced() {
    let bench = bounded().await;
    // No byte of the body is sent: it is answered before.
    let got = too_large(&bench, format!("{POST_OPEN}Content-Length: 1048577\r\n\r\n"), &[413]).await;
    assert_refused("announced", &got, 413, "http_request_error");
    assert_eq!(got.header("outgate-sent"), Some("no"));
    let got = too_large(
        &bench,
        format!("{POST_OPEN}Content-Length: 1048577\r\nExpect: 100-continue\r\n\r\n"),
        &[413],
    )
    .await;
    assert_eq!(got.status, 413, "and no 100 before it");
    assert!(bench.open.requests().is_empty(), "nothing is dialled");
    bench.after(2, &[]).await;
    let whole = format!("{POST_OPEN}Content-Length: 1048576\r\n\r\n{}", "x".repeat(1 << 20));
    assert_eq!(bench.ask(whole).await.status, 200, "exactly the limit passes");
    bench.after(1, &[]).await;
}

#[tokio::test]
async fn lm_05_body_above_the_limit_chunked() {
    let bench = bounded().await;
    let raw_origin = RawOrigin::start(
        None,
        Arc::new(|mut stream, _| {
            Box::pin(async move {
                let mut buffer = vec![0; 64 * 1024];
                while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
            })
        }),
    )
    .await;
    bench.reload(|policy| {
        format!(
            "{policy}  raw:\n    hosts: [raw.example.test]\n    max_body: 1MiB\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n",
            raw_origin.address
        )
    })
    .await;
    for host in ["open", "raw"] {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        raw.send(format!(
            "POST http://{host}.example.test/ HTTP/1.1\r\nHost: {host}.example.test\r\nTransfer-Encoding: chunked\r\n\r\n"
        ))
        .await;
        let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
        for _ in 0..32 {
            // The answer may come, and the connection end, before all of it is sent.
            if raw.stream.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = raw.stream.write_all(b"0\r\n\r\n").await;
        let got = raw.answer().await;
        assert_refused(host, &got, 413, "http_request_error");
        assert!(raw.ends().await);
    }
    assert!(bench.open.requests().is_empty(), "never a complete shorter request");
    assert!(!raw_origin.text().contains("\r\n0\r\n"), "no last chunk");
    bench.after(2, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lm_06_slow_head() {
    // 10 s in the key, 1 s here.
    const CONNECTIONS: usize = 2000;
    let setup = Setup { top: "runtime: { downstream: { header_timeout: 1s } }", ..Setup::default() };
    let (mut program, _api, _open) = program(setup, &[]).await;
    program.holds().await;
    let before = program.rss();
    let mut slow = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let address = program.address;
        slow.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("{HEAD_OPEN}X-A: ").as_bytes()).await.unwrap();
            let began = Instant::now();
            // One byte now and then does not renew the deadline.
            let mut buffer = [0_u8; 1024];
            loop {
                match tokio::time::timeout(Duration::from_millis(200), stream.read(&mut buffer)).await {
                    Ok(Ok(0) | Err(_)) => return began.elapsed(),
                    Ok(Ok(_)) => assert!(buffer.starts_with(b"HTTP/1.1 408")),
                    Err(_) => drop(stream.write_all(b"a").await),
                }
                assert!(began.elapsed() < Duration::from_secs(10), "it is still open");
            }
        });
    }
    let mut good = 0;
    let mut peak = before;
    while !slow.is_empty() {
        let began = Instant::now();
        let mut raw = Raw::connect(program.address).await;
        raw.send(GET_OPEN).await;
        assert_eq!(raw.answer().await.status, 200);
        // The goal is 100 ms at the 99th percentile; a machine that runs other tests gets more.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        good += 1;
        peak = peak.max(program.rss());
        while let Some(ended) = slow.try_join_next() {
            assert!(ended.unwrap() >= Duration::from_millis(500), "not before the deadline");
        }
    }
    assert!(good > 0);
    // The goal of the key is 32 MiB: see NOT_YET.
    assert!(peak < before + 2000 * 40, "40 KiB each: from {before} to {peak} KiB");
    program.holds().await;
}

#[tokio::test]
async fn lm_07_slow_body() {
    // A byte every 5 s, and 60 s at most, in the key; a byte every 100 ms, and the bound of 500 ms, here.
    let top = "runtime: { downstream: { body_timeout: 500ms } }";
    let bench = Bench::start(Setup { top, ..Setup::default() }).await;
    let upstream = RawOrigin::start(
        None,
        Arc::new(|mut stream, _| {
            Box::pin(async move {
                let mut buffer = [0_u8; 1024];
                while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
            })
        }),
    )
    .await;
    bench
        .reload(|policy| {
            format!(
                "{policy}  raw:\n    hosts: [raw.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n",
                upstream.address
            )
        })
        .await;
    for dribble in [false, true] {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        raw.send("POST http://raw.example.test/ HTTP/1.1\r\nHost: raw.example.test\r\nContent-Length: 1048576\r\n\r\nx")
            .await;
        let began = Instant::now();
        let mut head = vec![0_u8; 12];
        loop {
            match tokio::time::timeout(Duration::from_millis(100), raw.stream.read_exact(&mut head)).await {
                Ok(read) => {
                    read.expect("an answer");
                    break;
                }
                Err(_) if dribble => drop(raw.stream.write_all(b"x").await),
                Err(_) => {}
            }
            assert!(began.elapsed() < Duration::from_secs(4), "dribble: {dribble}: it goes on");
        }
        assert_eq!(head, b"HTTP/1.1 408", "dribble: {dribble}");
        assert!(raw.ends().await);
    }
    assert_eq!(upstream.connections(), 2, "it is not sent again");
    let records = bench.after(2, &[]).await;
    assert!(records.iter().all(|record| record["outgate.attempts"] == 1), "{records:#?}");
}

/// An origin that sends a body without end as long as somebody takes it; how much it got rid of.
pub async fn endless() -> (RawOrigin, Arc<AtomicUsize>) {
    let sent = Arc::<AtomicUsize>::default();
    let count = sent.clone();
    let script: Script = Arc::new(move |mut stream, _| {
        let count = count.clone();
        Box::pin(async move {
            let Some(request) = crate::support::origin::read_request(&mut stream).await else { return };
            if request.starts_with("GET /second") {
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                    .await;
                return;
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 100 << 20);
            let _ = stream.write_all(head.as_bytes()).await;
            let piece = vec![b'x'; 64 * 1024];
            for _ in 0..1600 {
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
                count.fetch_add(piece.len(), Ordering::SeqCst);
            }
        })
    });
    (RawOrigin::start(None, script).await, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn lm_08_client_that_stops_reading() {
    const CLIENTS: usize = 100;
    let ca = TestCa::new();
    let (origin, sent) = endless().await;
    let top = "runtime: { downstream: { write_timeout: 2s } }\ndefaults: { upstream: { pool: { max_connections: 200 } } }";
    let setup = Setup { top, ..Setup::default() };
    let mut program = program_with(&setup, &ca, origin.address, origin.address, &[]).await;
    program.holds().await;
    let before = program.rss();
    let mut clients = JoinSet::new();
    let began = Instant::now();
    for _ in 0..CLIENTS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(program.address).await.unwrap();
        stream.write_all(GET_OPEN.as_bytes()).await.unwrap();
        clients.spawn(async move {
            // Nothing is read until outgate has given up; the kernel tells by refusing a write.
            while stream.write_all(b"\0").await.is_ok() {
                assert!(began.elapsed() < Duration::from_secs(15), "it is still open");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            began.elapsed()
        });
    }
    let mut peak = before;
    while !clients.is_empty() {
        peak = peak.max(program.rss());
        while let Some(ended) = clients.try_join_next() {
            assert!(ended.unwrap() > Duration::from_millis(1500), "not before the write deadline");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(peak < before + 100 * 256, "from {before} to {peak} KiB");
    // The upstream sockets were left unread: of 10 GiB only what fits into the sockets' buffers left the origin.
    assert!(sent.load(Ordering::SeqCst) < CLIENTS * (16 << 20), "{sent:?}");
    program.holds().await;
}

/// A ClientHello as its handshake message, and the connection that wrote it.
fn client_hello(config: Arc<rustls::ClientConfig>) -> (rustls::ClientConnection, Vec<u8>) {
    let name = rustls::pki_types::ServerName::try_from("api.example.test").unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut wire = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut wire).unwrap();
    }
    let mut message = Vec::new();
    while !wire.is_empty() {
        assert_eq!(wire[0], 22, "a handshake record");
        let length = usize::from(u16::from_be_bytes([wire[3], wire[4]]));
        message.extend(&wire[5..5 + length]);
        wire.drain(..5 + length);
    }
    (connection, message)
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|piece| {
            [&[22, 3, 1][..], &u16::try_from(piece.len()).unwrap().to_be_bytes(), piece].concat()
        })
        .collect()
}

/// Goes on with the handshake; whether it completed. An alert is the other good end.
async fn handshake(connection: &mut rustls::ClientConnection, stream: &mut TcpStream) -> bool {
    let mut buffer = vec![0_u8; 16 * 1024];
    loop {
        let mut out = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut out).unwrap();
        }
        stream.write_all(&out).await.unwrap();
        if !connection.is_handshaking() {
            return true;
        }
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap();
        let Ok(read) = read else { return false };
        if read == 0 {
            return false;
        }
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() {
            connection.read_tls(&mut bytes).unwrap();
            if connection.process_new_packets().is_err() {
                return false;
            }
        }
    }
}

#[tokio::test]
async fn lm_09_fragmented_client_hello() {
    let bench = Bench::start(Setup::default()).await;
    // Sixty names of 255 bytes pad the message to 16 KiB.
    let padding: Vec<Vec<u8>> = (0..60).map(|n: u8| vec![b'a' + n % 26; 255]).collect();
    let mut padded = (*trusting(&bench.proxy.ca(), &["http/1.1"])).clone();
    padded.alpn_protocols.extend(padding);
    let plain = trusting(&bench.proxy.ca(), &["http/1.1"]);
    for (what, config, size, segments) in [
        ("whole", plain.clone(), 16 * 1024, false),
        ("one byte a record", plain.clone(), 1, false),
        ("one byte a segment", plain.clone(), 16 * 1024, true),
        ("one byte a record and a segment", plain, 1, true),
        ("16 KiB over three records", Arc::new(padded), 6 * 1024, false),
    ] {
        let (mut connection, message) = client_hello(config);
        let mut stream = tunnel(&bench.proxy, "api.example.test:443").await.stream;
        let wire = records(&message, size);
        if segments {
            for byte in &wire {
                if stream.write_all(std::slice::from_ref(byte)).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        } else {
            let _ = stream.write_all(&wire).await;
        }
        let completed = handshake(&mut connection, &mut stream).await;
        println!("LM-09 {what}: {}", if completed { "completed" } else { "refused" });
        if size > 1 {
            assert!(completed, "{what}");
        }
    }
    bench.after_some(&[]).await;
}

/// CONNECT and a ClientHello for `host`; returns the status of CONNECT once the first byte of the answer inside is there.
async fn mint(program: std::net::SocketAddr, host: String, config: Arc<rustls::ClientConfig>) -> u16 {
    let mut raw = Raw::connect(program).await;
    raw.send(format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n")).await;
    let got = raw.head().await;
    if got.status != 200 {
        return got.status;
    }
    let name = rustls::pki_types::ServerName::try_from(host).unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut wire = Vec::new();
    connection.write_tls(&mut wire).unwrap();
    raw.send(&wire).await;
    let mut first = [0_u8; 1];
    raw.stream.read_exact(&mut first).await.unwrap();
    assert_eq!(first[0], 22, "a ServerHello");
    200
}

async fn scrape(program: &Program) -> String {
    let stderr = program.stderr();
    let (_, rest) = stderr.split_once("admin=").unwrap();
    let address = rest.trim_start_matches('"').split(['"', ' ', '\n']).next().unwrap();
    let mut raw = Raw::connect(address.parse().unwrap()).await;
    raw.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    raw.answer().await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn lm_10_certificate_minting_under_pressure() {
    // 20000 names of each kind in the key; 1500, which is more than the cache holds, and 1000 here.
    let providers = "  wild:
    hosts: [\"*.wild.example.test\"]
    intercept: always
    upstream: { connect_to: \"127.0.0.1:1\" }
";
    let (mut program, _api, _open) = program(Setup { providers, ..Setup::default() }, &[]).await;
    let config = trusting(&program.ca(), &["http/1.1"]);
    assert_eq!(mint(program.address, "warm.wild.example.test".to_owned(), config.clone()).await, 200);
    program.holds().await;
    let before = program.rss();
    let mut running = JoinSet::new();
    let mut peak = before;
    for number in 0..2500 {
        let allowed = number % 5 < 3;
        let host = if allowed {
            format!("r{number}.wild.example.test")
        } else {
            format!("r{number}.other.example.test")
        };
        let (address, config) = (program.address, config.clone());
        running.spawn(async move {
            assert_eq!(mint(address, host, config).await, if allowed { 200 } else { 403 });
        });
        if running.len() >= 16 {
            running.join_next().await.unwrap().unwrap();
        }
        if number % 100 == 0 {
            let began = Instant::now();
            let mut raw = Raw::connect(program.address).await;
            raw.send(GET_OPEN).await;
            assert_eq!(raw.answer().await.status, 200);
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            peak = peak.max(program.rss());
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    peak = peak.max(program.rss());
    let metrics = scrape(&program).await;
    let entries = metrics.lines().find(|line| line.starts_with("outgate_leaf_cache_entries ")).unwrap();
    let entries: usize = entries.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((1..=1024).contains(&entries), "{entries}");
    assert!(peak < before + 32 * 1024, "from {before} to {peak} KiB");
    program.holds().await;
}

#[tokio::test]
async fn lm_11_trailer_section_too_large() {
    let bench = Bench::start(Setup::default()).await;
    let large = format!("X-T: {}\r\n", "t".repeat(1000)).repeat(17);
    let many: String = (0..2000).map(|n| format!("{n:04}: 1\r\n")).collect();
    for trailers in [large, many] {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        raw.send(format!(
            "{POST_OPEN}Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nhi\r\n0\r\n{trailers}\r\n"
        ))
        .await;
        let got = raw.answer_or_end().await;
        assert!(got.as_ref().is_none_or(|got| [431, 400].contains(&got.status)), "{got:?}");
        assert!(raw.ends().await);
    }
    assert!(bench.open.requests().is_empty(), "never a complete request");
    bench.after_some(&[]).await;
}

#[tokio::test]
async fn lm_12_more_clients_than_the_limit() {
    // 256 connections and 300 clients in the key; 64 and 75 here.
    let bench = Bench::start(Setup { top: "runtime: { max_connections: 64 }", ..Setup::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..75 {
        clients.push(Raw::connect(bench.proxy.address()).await);
    }
    // An early connection is served.
    clients[10].send(GET_OPEN).await;
    let got = clients[10].answer().await;
    assert_eq!(got.status, 200, "{got:?}");
    // One above 80 % of the bound is refused, or waits.
    clients[60].send(GET_OPEN).await;
    let got = clients[60].answer().await;
    assert_refused("above 80 %", &got, 503, "proxy_internal_response");
    assert!(clients[60].ends().await);
    // One above the bound waits in the backlog.
    clients[74].send(GET_OPEN).await;
    assert!(clients[74].stays().await, "it waits");
    // When many close, it gets in.
    let mut last = clients.pop().unwrap();
    let began = Instant::now();
    drop(clients);
    let got = last.answer_or_end().await;
    assert!(got.as_ref().is_none_or(|got| [200, 503].contains(&got.status)), "{got:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    bench.after_some(&[]).await;
}

#[tokio::test]
async fn lm_12_as_many_as_close_get_in() {
    let bench = Bench::start(Setup { top: "runtime: { max_connections: 64 }", ..Setup::default() }).await;
    let mut early = Vec::new();
    for _ in 0..64 {
        early.push(Raw::connect(bench.proxy.address()).await);
    }
    // The last of them has been accepted when it is answered.
    early[63].send(GET_OPEN).await;
    assert_eq!(early[63].answer().await.status, 503);
    let mut late = Vec::new();
    for _ in 0..10 {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        raw.send(GET_OPEN).await;
        late.push(raw);
    }
    // Thirty close, so fewer than 70 % are left and new work is taken.
    let began = Instant::now();
    early.drain(..30);
    for mut raw in late {
        let got = raw.answer().await;
        assert!(got.status == 200 || got.status == 503, "{got:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop(early);
    bench.after_some(&[]).await;
}

#[tokio::test]
async fn lm_13_idle_keep_alive() {
    // 60 s in the key, 300 ms here.
    let idle = Duration::from_millis(300);
    let top = "runtime: { downstream: { idle_timeout: 300ms } }";
    let bench = Bench::start(Setup { top, ..Setup::default() }).await;
    for requests in [1, 2, 5] {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        for _ in 0..requests {
            raw.send(GET_OPEN).await;
            assert_eq!(raw.answer().await.status, 200);
        }
        let began = Instant::now();
        assert!(raw.ends().await);
        let took = began.elapsed();
        assert!(took > idle / 2 && took < Duration::from_secs(5), "after {requests} requests: {took:?}");
    }
    // A connection on which nothing was ever sent ends too.
    let mut silent = Raw::connect(bench.proxy.address()).await;
    assert!(silent.ends().await);

    // A request at the very limit is answered whole, or sees a clean close.
    let mut turns = JoinSet::new();
    for early in 0..40 {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        turns.spawn(async move {
            raw.send(GET_OPEN).await;
            assert_eq!(raw.answer().await.status, 200);
            // This is what the case is about, not a wait for something.
            tokio::time::sleep(Duration::from_millis(280 + early)).await;
            let mut bytes = Vec::new();
            let asked = GET_OPEN.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
            if raw.stream.write_all(asked.as_bytes()).await.is_err() {
                return false;
            }
            let _ = raw.stream.read_to_end(&mut bytes).await;
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.is_empty() || text.ends_with("\r\n\r\n{\"ok\":true}"), "half an answer: {text}");
            !text.is_empty()
        });
    }
    while let Some(turn) = turns.join_next().await {
        turn.unwrap();
    }
    bench.after_some(&[]).await;
}

#[tokio::test]
async fn lm_13_a_slow_answer_is_not_idleness() {
    let slow = RawOrigin::start(
        None,
        Arc::new(|mut stream, _| {
            Box::pin(async move {
                while crate::support::origin::read_request(&mut stream).await.is_some() {
                    // The provider takes three times the idle limit.
                    tokio::time::sleep(Duration::from_millis(900)).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                }
            })
        }),
    )
    .await;
    let top = "runtime: { downstream: { idle_timeout: 300ms } }";
    let bench = Bench::start(Setup { top, ..Setup::default() }).await;
    bench
        .reload(|policy| {
            format!(
                "{policy}  slow:\n    hosts: [slow.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n",
                slow.address
            )
        })
        .await;
    let mut raw = Raw::connect(bench.proxy.address()).await;
    for _ in 0..2 {
        raw.send("GET http://slow.example.test/ HTTP/1.1\r\nHost: slow.example.test\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
        assert!(raw.stays().await, "the limit counts from the end of the answer");
    }
    assert!(raw.ends().await);
    bench.after(2, &[]).await;
}

#[tokio::test]
async fn the_intercepted_way_has_the_same_limits() {
    let bench = Bench::start(Setup { api: "    max_body: 1MiB\n", ..Setup::default() }).await;
    let stream = crate::support::client::intercepted(&bench.proxy, "api.example.test", &["http/1.1"]).await;
    let mut raw = Raw::over(stream);
    raw.send(format!("GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\nX-A: {}\r\n\r\n", "a".repeat(65_536)))
        .await;
    assert_eq!(raw.answer().await.status, 431);
    assert!(raw.ends().await);
    let stream = crate::support::client::intercepted(&bench.proxy, "api.example.test", &["http/1.1"]).await;
    let mut raw = Raw::over(stream);
    raw.send("POST /v1/x HTTP/1.1\r\nHost: api.example.test\r\nContent-Length: 1048577\r\n\r\n").await;
    assert_refused("inside", &raw.answer().await, 413, "http_request_error");
    assert!(raw.ends().await);
    let stream = crate::support::client::intercepted(&bench.proxy, "api.example.test", &["http/1.1"]).await;
    assert_eq!(over_http1(stream, request("GET", "/v1/x", Some("api.example.test"), "")).await.status, 200);
    bench.after_some(&[]).await;
    let _: &HttpOrigin = &bench.api;
}

#[test]
fn every_case_of_this_group_is_tested_or_listed() {
    assert_covered("LM", 13, include_str!("limits.rs"), NOT_YET);
}
