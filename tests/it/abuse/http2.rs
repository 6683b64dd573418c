//! H2-01 to H2-14: HTTP/2 as an attacker writes it, frame by frame; inside an intercepted tunnel, and where it matters on
//! the plain listener too (prior knowledge, local endpoint).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::after::{
    Bench, Program, Setup, assert_covered, assert_no_canary, assert_refused, program, program_with,
};
use super::frames::{
    ACK, ALTSVC, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Fate, GOAWAY, H2,
    HEADERS, PING, PREFACE, PROTOCOL_ERROR, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, Way, block,
    frame, get,
};
use crate::support::ca::{TestCa, trusting};
use crate::support::client::{Raw, intercepted};
use crate::support::origin::{HttpOrigin, RawOrigin, Script, read_request, text};

const NOT_YET: &[(&str, &str)] = &[];

const GET_API: &str = "GET http://api.example.test/v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n";

/// A connection inside an intercepted tunnel, or on the plain listener.
pub async fn open(bench: &Bench, plain: bool) -> (H2, Way) {
    if plain {
        let address = bench.proxy.address();
        let stream = TcpStream::connect(address).await.unwrap();
        (H2::begin(stream, &[]).await, Way::new(address.to_string(), "http", "/api"))
    } else {
        let stream = intercepted(&bench.proxy, "api.example.test", &["h2"]).await;
        (H2::begin(stream, &[]).await, inside())
    }
}

fn inside() -> Way {
    Way::new("api.example.test".to_owned(), "https", "")
}

/// A connection to a program: inside an intercepted tunnel, or on its plain listener by prior knowledge.
async fn begun(program: &Program, plain: bool) -> (H2, Way) {
    if plain {
        let stream = TcpStream::connect(program.address).await.unwrap();
        return (H2::begin(stream, &[]).await, Way::new(program.address.to_string(), "http", "/api"));
    }
    (H2::begin(intercepted_program(program, None).await, &[]).await, inside())
}

/// CONNECT and TLS to a program, with a small receive buffer where the test never reads.
async fn intercepted_program(
    program: &Program,
    receive: Option<u32>,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = receive {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let mut raw = Raw::over(socket.connect(program.address).await.unwrap());
    raw.send("CONNECT api.example.test:443 HTTP/1.1\r\nHost: api.example.test:443\r\n\r\n").await;
    assert_eq!(raw.head().await.status, 200);
    let name = ServerName::try_from("api.example.test").unwrap();
    TlsConnector::from(trusting(&program.ca(), &["h2"])).connect(name, raw.stream).await.unwrap()
}

/// Sends good requests all the while, and counts what was lost.
struct SecondClient {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, usize)>,
}

impl SecondClient {
    fn start(address: std::net::SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut sent, mut good) = (0, 0);
            while !stopped.load(Ordering::SeqCst) || sent == 0 {
                let mut raw = Raw::connect(address).await;
                raw.send("GET http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n\r\n").await;
                sent += 1;
                good += usize::from(raw.answer().await.status == 200);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (sent, good)
        });
        Self { stop, task }
    }

    /// How many it sent; all were answered.
    async fn lost_nothing(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let (sent, good) = self.task.await.unwrap();
        assert_eq!(sent, good, "the second client lost requests");
        sent
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_01_rapid_reset() {
    for plain in [false, true] {
        let bench = Bench::start(Setup::default()).await;
        let second = SecondClient::start(bench.proxy.address());
        let (h2, way) = open(&bench, plain).await;
        let flooded = h2
            .flood(10_000, move |n| {
                let stream = u32::try_from(2 * n + 1).unwrap();
                [get(stream, &way, "/v1/x"), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
            })
            .await;
        second.lost_nothing().await;
        assert!(matches!(flooded.goaway, None | Some(ENHANCE_YOUR_CALM)), "{flooded:?}");
        let seen = bench.api.requests().len();
        assert!(seen <= 200, "the provider saw {seen} requests (plain: {plain})");
        let own = |record: &&serde_json::Value| record["url.path"] != "/second" && record["url.path"] != "/";
        let records = bench.after_some(&[]).await.iter().filter(own).count();
        assert!(records < 1000, "closed before 1000 resets, {records} requests were begun");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_01_rapid_reset_one_by_one() {
    // Each request is seen by the provider before it is reset, so that no queue of outgate ever grows.
    let ca = TestCa::new();
    let (origin, begun, _) = holding(&ca).await;
    let api = HttpOrigin { address: origin.address, seen: Arc::default() };
    let bench = Bench::with(Setup::default(), &ca, api).await;
    let (mut h2, way) = open(&bench, false).await;
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut resets = 0;
    while h2.try_send(&get(2 * resets + 1, &way, "/v1/slow")).await {
        while begun.load(Ordering::SeqCst) <= resets as usize && !ended(&mut h2).await {
            assert!(Instant::now() < deadline, "after {resets} resets");
        }
        if !h2.try_send(&frame(RST_STREAM, 0, 2 * resets + 1, &CANCEL.to_be_bytes())).await {
            break;
        }
        resets += 1;
        assert!(resets < 200, "{resets} requests were begun and reset");
    }
    bench.after_some(&[]).await;
}

async fn ended(h2: &mut H2) -> bool {
    match h2.soon(Duration::from_millis(1)).await {
        Some(None) => true,
        Some(Some(frame)) => frame.kind == GOAWAY,
        None => false,
    }
}

/// An origin that takes requests and never answers; how many began, and how many are waiting now.
async fn holding(ca: &TestCa) -> (RawOrigin, Arc<AtomicUsize>, Arc<Waiting>) {
    let (begun, waiting) = (Arc::<AtomicUsize>::default(), Arc::<Waiting>::default());
    let (count, held) = (begun.clone(), waiting.clone());
    let script: Script = Arc::new(move |mut stream, _| {
        let (count, held) = (count.clone(), held.clone());
        Box::pin(async move {
            if read_request(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                let now = held.now.fetch_add(1, Ordering::SeqCst) + 1;
                held.most.fetch_max(now, Ordering::SeqCst);
                let mut rest = [0_u8; 64];
                while matches!(stream.read(&mut rest).await, Ok(read) if read > 0) {}
                held.now.fetch_sub(1, Ordering::SeqCst);
            }
        })
    });
    let origin = RawOrigin::start(Some(ca.server(&["api.example.test"], &["http/1.1"])), script).await;
    (origin, begun, waiting)
}

#[derive(Default)]
struct Waiting {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A program, warm: the intercepted way was used once. Returns its resident memory.
async fn warm(more: &str) -> (Program, HttpOrigin, HttpOrigin, u64) {
    let top = format!("runtime: {{ downstream: {{ write_timeout: 1s, body_timeout: 2s }} }}\n{more}");
    let (program, api, open) = program(Setup { top: &top, ..Setup::default() }, &[]).await;
    let rss = warmed(&program).await;
    (program, api, open, rss)
}

async fn warmed(program: &Program) -> u64 {
    for _ in 0..3 {
        let mut h2 = H2::begin(intercepted_program(program, None).await, &[]).await;
        h2.send(&get(1, &inside(), "/v1/x")).await;
        assert_eq!(h2.fate(1).await, Fate::Status(200));
    }
    program.rss()
}

async fn grew_less(program: &mut Program, before: u64, mib: u64) {
    let peak = program.peak().max(program.rss());
    assert!(peak < before + mib * 1024, "resident memory went from {before} to {peak} KiB");
    program.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_02_continuation_flood() {
    continuations(false).await;
    continuations(true).await;
}

async fn continuations(plain: bool) {
    let (mut program, _api, _open, before) = warm("").await;
    let second = SecondClient::start(program.address);
    let (mut h2, way) = begun(&program, plain).await;
    let piece = block(&[(b"x-flood", &vec![b'a'; 16_000])]);
    let first = block(&way.fields("GET", "/v1/x", &[]));
    h2.send(&frame(HEADERS, END_STREAM, 1, &first)).await;
    let mut sent = 0;
    // Read after each, so that what is sent is what was taken, give or take the sockets' buffers.
    while h2.try_send(&frame(CONTINUATION, 0, 1, &piece)).await && !ended(&mut h2).await {
        sent += piece.len();
        assert!(sent < 64 << 20, "64 MiB were taken");
    }
    assert!(sent < 2 << 20, "{sent} bytes were taken");
    second.lost_nothing().await;
    grew_less(&mut program, before, 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_03_ping_flood_without_reading() {
    pings(false).await;
    pings(true).await;
}

async fn pings(plain: bool) {
    let (mut program, _api, _open, before) = warm("").await;
    let second = SecondClient::start(program.address);
    let mut h2 = if plain {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        H2::over(socket.connect(program.address).await.unwrap())
    } else {
        H2::over(intercepted_program(&program, Some(4096)).await)
    };
    h2.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    // 100000 and more: until the buffers between are full, and then until the write deadline.
    let ping = frame(PING, 0, 0, &[7; 8]).repeat(1000);
    let mut sent = 0;
    while h2.try_send(&ping).await {
        sent += 1000;
        assert!(sent < 5_000_000, "five million pings were taken");
    }
    second.lost_nothing().await;
    grew_less(&mut program, before, 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_04_empty_data_flood() {
    empty_data(false).await;
    empty_data(true).await;
}

async fn empty_data(plain: bool) {
    let (mut program, _api, _open, before) = warm("").await;
    let second = SecondClient::start(program.address);
    let (mut h2, way) = begun(&program, plain).await;
    h2.send(&frame(HEADERS, END_HEADERS, 1, &block(&way.fields("POST", "/v1/x", &[])))).await;
    let flooded = h2.flood(1000, |_| frame(DATA, 0, 1, &[]).repeat(1000)).await;
    assert!(flooded.written < 1_000_000 * 9, "{flooded:?}");
    second.lost_nothing().await;
    grew_less(&mut program, before, 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_05_making_the_server_send_resets() {
    resets(false).await;
    resets(true).await;
}

async fn resets(plain_listener: bool) {
    let ca = TestCa::new();
    let (origin, _, waiting) = holding(&ca).await;
    let plain = HttpOrigin::start(None).await;
    let mut program = program_with(&Setup::default(), &ca, origin.address, plain.address, &[]).await;
    program.holds().await;
    let before = program.rss();
    let second = SecondClient::start(program.address);
    let (h2, way) = begun(&program, plain_listener).await;
    let flooded = h2
        .flood(2000, move |n| {
            let stream = u32::try_from(2 * n + 1).unwrap();
            [get(stream, &way, "/v1/slow"), frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes())].concat()
        })
        .await;
    second.lost_nothing().await;
    assert!(matches!(flooded.goaway, None | Some(ENHANCE_YOUR_CALM | PROTOCOL_ERROR)), "{flooded:?}");
    assert!(waiting.most.load(Ordering::SeqCst) <= 200, "never above the limit of streams");
    let deadline = Instant::now() + Duration::from_secs(3);
    while waiting.now.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < deadline, "the work of reset streams goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The first handshakes with the provider are part of it here.
    grew_less(&mut program, before, 16).await;
}

/// A field whose name or value no field may have: the HTTP library cannot even hold it, and ends the connection with
/// PROTOCOL_ERROR, as RFC 9113 section 5.4.1 lets it ("MAY choose to treat a stream error as a connection error").
async fn refused_by_the_library(fields: impl Fn(&Way) -> Vec<u8>, what: &str) {
    for plain in [false, true] {
        let bench = Bench::start(Setup::default()).await;
        let (mut h2, way) = open(&bench, plain).await;
        h2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&way))).await;
        let fate = h2.fate(1).await;
        assert_eq!(fate, Fate::GoAway(PROTOCOL_ERROR), "{what} (plain: {plain})");
        assert_eq!(h2.last_word().await, None, "{what}: and the connection ends");
        assert!(bench.api.requests().is_empty(), "{what}");
        bench.after_some(&[]).await;
    }
}

/// One malformed stream: refused on its own, nothing goes upstream, the connection goes on.
async fn refused_alone(fields: impl Fn(&Way) -> Vec<u8>, what: &str) {
    for plain in [false, true] {
        let bench = Bench::start(Setup::default()).await;
        let (mut h2, way) = open(&bench, plain).await;
        h2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&way))).await;
        let fate = h2.fate(1).await;
        assert!(
            matches!(fate, Fate::Reset(PROTOCOL_ERROR) | Fate::Status(400)),
            "{what} (plain: {plain}): {fate:?}"
        );
        h2.send(&get(3, &way, "/v1/good")).await;
        assert!(matches!(h2.fate(3).await, Fate::Status(200)), "{what}: the connection goes on");
        let paths: Vec<String> = bench.api.requests().iter().map(|seen| seen.uri.path().to_owned()).collect();
        assert_eq!(paths, ["/v1/good"], "{what}");
        bench.after_some(&[]).await;
    }
}

#[tokio::test]
async fn h2_06_fields_that_http2_forbids() {
    let all: &[(&[u8], &[u8])] = &[
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"gzip"),
        (b"keep-alive", b"5"),
        (b"proxy-connection", b"x"),
        (b"upgrade", b"foo"),
        (b"x-a", b" leading space"),
        (b"x-a", b"trailing space "),
        (b"x-a", b"\ttab"),
    ];
    for (name, value) in all {
        let what = format!("{:?}: {:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        refused_alone(|way| block(&way.fields("GET", "/v1/bad", &[(name, value)])), &what).await;
    }
    for name in [&b"X-Upper"[..], b"", b"x a", b"x:a", b"x-a: 1\r\nx-b"] {
        let what = String::from_utf8_lossy(name).into_owned();
        refused_by_the_library(|way| block(&way.fields("GET", "/v1/bad", &[(name, b"1")])), &what).await;
    }
}

#[tokio::test]
async fn h2_07_line_breaks_inside_a_field_value() {
    for value in [
        &b"1\r\nAuthorization: Bearer attacker"[..],
        b"1\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.example.test\r\n\r\n",
        b"1\x00",
        b"1\n2",
        b"1\r2",
        b"\x1b[2J",
    ] {
        let what = String::from_utf8_lossy(value).into_owned();
        refused_by_the_library(|way| block(&way.fields("GET", "/v1/bad", &[(b"x-a", value)])), &what).await;
    }
    for path in ["/v1/bad HTTP/1.1\r\nX: 1", "/v1/a b", "/v1/\x00"] {
        refused_alone(|way| block(&way.fields("GET", path, &[])), path).await;
    }
}

#[tokio::test]
async fn h2_08_length_that_does_not_match_the_data_frames() {
    for (length, body) in [(&b"5"[..], 10), (b"10", 5), (b"5, 5", 5), (b"+5", 5)] {
        for plain in [false, true] {
            let bench = Bench::start(Setup::default()).await;
            let (mut h2, way) = open(&bench, plain).await;
            let head = block(&way.fields("POST", "/v1/bad", &[(b"content-length", length)]));
            h2.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
            h2.send(&frame(DATA, END_STREAM, 1, &vec![b'x'; body])).await;
            let fate = h2.fate(1).await;
            assert!(matches!(fate, Fate::Reset(PROTOCOL_ERROR) | Fate::Status(400)), "{length:?}: {fate:?}");
            h2.send(&get(3, &way, "/v1/good")).await;
            assert_eq!(h2.fate(3).await, Fate::Status(200));
            let seen = bench.api.requests();
            assert!(
                seen.iter().all(|seen| seen.uri.path() == "/v1/good"),
                "never a complete request: {seen:?}"
            );
            bench.after_some(&[]).await;
        }
    }
}

#[tokio::test]
async fn h2_08_a_length_of_zero_with_bytes_behind_it() {
    // The request is whole with its head, so an answer may come first; but the bytes go nowhere.
    for plain in [false, true] {
        let bench = Bench::start(Setup::default()).await;
        let (mut h2, way) = open(&bench, plain).await;
        let head = block(&way.fields("POST", "/v1/x", &[(b"content-length", b"0")]));
        h2.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        h2.send(&frame(DATA, END_STREAM, 1, b"GET / HTTP/1.1\r\n\r\n")).await;
        let fate = h2.fate(1).await;
        assert!(matches!(fate, Fate::Reset(PROTOCOL_ERROR) | Fate::Status(400 | 200)), "{fate:?}");
        bench.after_some(&[]).await;
        for seen in bench.api.requests() {
            assert_eq!((seen.uri.path(), seen.body.len()), ("/v1/x", 0));
        }
    }
}

#[tokio::test]
async fn h2_09_pseudo_header_mistakes() {
    type Change = fn(&mut Vec<(&[u8], &[u8])>);
    let changes: &[(&str, Change)] = &[
        (":path twice", |fields| fields.push((b":path", b"/v1/other"))),
        (":authority after a regular field", |fields| {
            let authority = fields.remove(2);
            fields.push((b"x-a", b"1"));
            fields.push(authority);
        }),
        ("no :method", |fields| {
            fields.remove(0);
        }),
        ("no :scheme", |fields| {
            fields.remove(1);
        }),
        ("no :path", |fields| {
            fields.remove(3);
        }),
        (":path empty", |fields| fields[3].1 = b""),
        (":status in a request", |fields| fields.insert(0, (b":status", b"200"))),
        ("two :authority", |fields| fields.insert(2, (b":authority", b"open.example.test"))),
        (":authority with user information", |fields| fields[2].1 = b"u@api.example.test"),
    ];
    for (what, change) in changes {
        refused_alone(
            |way| {
                let mut fields = way.fields("GET", "/v1/bad", &[]);
                change(&mut fields);
                block(&fields)
            },
            what,
        )
        .await;
    }
    let library: &[(&str, Change)] = &[
        ("unknown :foo", |fields| fields.insert(0, (b":foo", b"1"))),
        (":method empty", |fields| fields[0].1 = b""),
    ];
    for (what, change) in library {
        refused_by_the_library(
            |way| {
                let mut fields = way.fields("GET", "/v1/bad", &[]);
                change(&mut fields);
                block(&fields)
            },
            what,
        )
        .await;
    }
}

#[tokio::test]
async fn h2_10_stream_identifier_abuse() {
    type Bytes = fn(&Way) -> Vec<u8>;
    let runs: &[(&str, Bytes)] = &[
        ("HEADERS on stream 2", |way| get(2, way, "/v1/bad")),
        ("stream 5, then 3", |way| [get(5, way, "/v1/first"), get(3, way, "/v1/bad")].concat()),
        ("DATA on stream 0", |_| frame(DATA, 0, 0, b"x")),
        ("HEADERS on stream 0", |way| get(0, way, "/v1/bad")),
        ("DATA on an idle stream", |_| frame(DATA, 0, 7, b"x")),
        ("RST_STREAM on an idle stream", |_| frame(RST_STREAM, 0, 7, &CANCEL.to_be_bytes())),
        ("CONTINUATION out of the blue", |_| frame(CONTINUATION, END_HEADERS, 1, b"")),
        ("a push from a client", |way| {
            frame(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                &[&[0, 0, 0, 2], &block(&way.fields("GET", "/v1/bad", &[]))[..]].concat(),
            )
        }),
    ];
    for (what, bytes) in runs {
        for plain in [false, true] {
            let bench = Bench::start(Setup::default()).await;
            let (mut h2, way) = open(&bench, plain).await;
            h2.send(&bytes(&way)).await;
            // PROTOCOL_ERROR, or STREAM_CLOSED (5) where RFC 9113 section 5.1 lets both.
            let word = h2.last_word().await;
            assert!(matches!(word, Some(PROTOCOL_ERROR | 5)), "{what} (plain: {plain}): {word:?}");
            let seen = bench.api.requests();
            assert!(seen.iter().all(|seen| seen.uri.path() == "/v1/first"), "{what}: {seen:?}");
            bench.after_some(&[]).await;
        }
    }
}

#[tokio::test]
async fn h2_10_second_head_on_an_open_stream() {
    for plain in [false, true] {
        let bench = Bench::start(Setup::default()).await;
        let (mut h2, way) = open(&bench, plain).await;
        let head = block(&way.fields("POST", "/v1/bad", &[]));
        h2.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        h2.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        let fate = h2.fate(1).await;
        // A malformed message is an error of its stream (RFC 9113 section 8.1.1); ending the connection is right too.
        assert!(
            matches!(fate, Fate::Reset(PROTOCOL_ERROR) | Fate::Status(400) | Fate::GoAway(PROTOCOL_ERROR)),
            "{fate:?}"
        );
        assert!(bench.api.requests().is_empty(), "never a complete request");
        drop(h2);
        bench.after_some(&[]).await;
    }
}

/// An origin that speaks frames: takes the first request, sends `answer(stream)`, and keeps the connection.
async fn speaking(ca: &TestCa, answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> RawOrigin {
    let answer = Arc::new(answer);
    let script: Script = Arc::new(move |mut stream, _| {
        let answer = answer.clone();
        Box::pin(async move {
            let mut preface = [0_u8; PREFACE.len()];
            if stream.read_exact(&mut preface).await.is_err() {
                return;
            }
            let mut h2 = H2::over(stream);
            h2.send(&[frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat()).await;
            while let Some(frame) = h2.next().await {
                if frame.kind == HEADERS && !h2.try_send(&answer(frame.stream)).await {
                    return;
                }
            }
        })
    });
    RawOrigin::start(Some(ca.server(&["api.example.test"], &["h2"])), script).await
}

/// `:status: 200`, indexed.
const STATUS_200: &[u8] = &[0x88];

async fn bench_over(ca: &TestCa, origin: &RawOrigin) -> Bench {
    let api = HttpOrigin { address: origin.address, seen: Arc::default() };
    Bench::with(Setup::default(), ca, api).await
}

#[tokio::test]
async fn h2_11_server_push_from_the_upstream() {
    let ca = TestCa::new();
    let origin = speaking(&ca, |stream| {
        let pushed = block(&[
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", b"api.example.test"),
            (b":path", b"/v1/secret"),
        ]);
        [
            frame(PUSH_PROMISE, END_HEADERS, stream, &[&[0, 0, 0, 2], &pushed[..]].concat()),
            frame(HEADERS, END_HEADERS, 2, STATUS_200),
            frame(DATA, END_STREAM, 2, b"PUSHED"),
        ]
        .concat()
    })
    .await;
    let bench = bench_over(&ca, &origin).await;
    let mut raw = Raw::connect(bench.proxy.address()).await;
    raw.send(GET_API).await;
    let got = raw.answer().await;
    assert_refused("a push", &got, 502, "http_protocol_error");
    assert!(!got.text().contains("PUSHED"));
    assert!(raw.stays().await);
    // What outgate announced: SETTINGS_ENABLE_PUSH (2) = 0.
    let received = origin.received.lock().unwrap().clone();
    assert_eq!(&received[..PREFACE.len()], PREFACE);
    let settings = &received[PREFACE.len()..];
    let length = usize::from(settings[2]);
    assert!(settings[9..9 + length].chunks(6).any(|one| one == [0, 2, 0, 0, 0, 0]), "{settings:?}");
    bench.after(1, &[&format!("{got:?}")]).await;
}

#[tokio::test]
async fn h2_12_upstream_sends_a_huge_header_list() {
    let ca = TestCa::new();
    let fields: Vec<u8> = [STATUS_200.to_vec(), block(&[(b"x-a", &[b'a'; 1000][..])]).repeat(1000)].concat();
    let http2 = speaking(&ca, move |stream| {
        let mut frames = Vec::new();
        let pieces: Vec<&[u8]> = fields.chunks(16_000).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let flags = if index + 1 == pieces.len() { END_HEADERS } else { 0 };
            let kind = if index == 0 { HEADERS } else { CONTINUATION };
            frames.extend(frame(kind, flags, stream, piece));
        }
        frames
    })
    .await;
    let head =
        format!("HTTP/1.1 200 OK\r\n{}\r\n", format!("X-A: {}\r\n", "a".repeat(1000)).repeat(1000)).leak();
    let http1 =
        RawOrigin::answering(Some(ca.server(&["api.example.test"], &["http/1.1"])), head.as_bytes()).await;
    for origin in [&http2, &http1] {
        let bench = bench_over(&ca, origin).await;
        let mut raw = Raw::connect(bench.proxy.address()).await;
        raw.send(GET_API).await;
        let got = raw.answer().await;
        assert_eq!(got.status, 502, "{got:?}");
        let error = got.proxy_error().unwrap();
        assert!(["http_response_header_section_size", "http_protocol_error"].contains(&error), "{got:?}");
        assert!(raw.stays().await);
        bench.after(1, &[&format!("{got:?}")]).await;
    }
}

/// The goal is 4 MiB an attempt; here are a hundred of them, one after the other and ten at once.
#[tokio::test(flavor = "multi_thread")]
async fn h2_12_a_huge_header_list_costs_no_memory() {
    let ca = TestCa::new();
    let head =
        format!("HTTP/1.1 200 OK\r\n{}\r\n", format!("X-A: {}\r\n", "a".repeat(1000)).repeat(1000)).leak();
    let origin =
        RawOrigin::answering(Some(ca.server(&["api.example.test"], &["http/1.1"])), head.as_bytes()).await;
    let plain = HttpOrigin::start(None).await;
    let setup = Setup { api: "    retry: off\n", ..Setup::default() };
    let mut program = program_with(&setup, &ca, origin.address, plain.address, &[]).await;
    program.holds().await;
    let ask = || async {
        let mut raw = Raw::connect(program.address).await;
        raw.send(GET_API).await;
        assert_eq!(raw.answer().await.status, 502);
    };
    // The first handshake with a provider is dear, and none of this.
    ask().await;
    let before = program.rss();
    for _ in 0..10 {
        futures_util::future::join_all((0..10).map(|_| ask())).await;
    }
    let peak = program.peak().max(program.rss());
    assert!(peak < before + 10 * 4 * 1024, "resident memory went from {before} to {peak} KiB");
    program.holds().await;
}

#[tokio::test]
async fn sx_10_alternative_services_in_frames_are_ignored() {
    let ca = TestCa::new();
    let origin = speaking(&ca, |stream| {
        let value = b"h2=\"evil.example.test:443\"";
        let of_origin = [&[0, 24][..], b"https://api.example.test", value].concat();
        [
            frame(ALTSVC, 0, 0, &of_origin),
            frame(ALTSVC, 0, stream, &[&[0, 0][..], value].concat()),
            frame(HEADERS, END_HEADERS | END_STREAM, stream, STATUS_200),
        ]
        .concat()
    })
    .await;
    let bench = bench_over(&ca, &origin).await;
    for _ in 0..2 {
        let got = bench.ask(GET_API).await;
        assert_eq!(got.status, 200, "{got:?}");
        assert!(!format!("{got:?}").contains("evil"));
    }
    assert!(bench.proxy.names.questions().is_empty());
    assert_eq!(origin.connections(), 1, "and the connection is kept");
    bench.after(2, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_13_slow_reading_on_many_streams() {
    let ca = TestCa::new();
    let large = "x".repeat(1 << 20);
    let tls = Some(ca.server(&["api.example.test"], &["http/1.1"]));
    let api = HttpOrigin::with(tls, move |_| text(200, &large)).await;
    let plain = HttpOrigin::start(None).await;
    let setup =
        Setup { top: "runtime: { downstream: { write_timeout: 1s, idle_timeout: 3s } }", ..Setup::default() };
    let mut program = program_with(&setup, &ca, api.address, plain.address, &[]).await;
    let before = warmed(&program).await;
    let second = SecondClient::start(program.address);
    // SETTINGS_INITIAL_WINDOW_SIZE (4) = 0.
    let mut h2 = H2::begin(intercepted_program(&program, None).await, &[0, 4, 0, 0, 0, 0]).await;
    let way = inside();
    for n in 0..100 {
        h2.send(&get(2 * n + 1, &way, "/v1/1MiB")).await;
    }
    let began = Instant::now();
    let mut turn = Instant::now();
    loop {
        if matches!(h2.soon(Duration::from_millis(50)).await, Some(None)) {
            break;
        }
        // One byte of window per stream now and then does not renew the deadline.
        if turn.elapsed() > Duration::from_millis(500) {
            turn = Instant::now();
            let windows: Vec<u8> =
                (0..100).flat_map(|n| frame(WINDOW_UPDATE, 0, 2 * n + 1, &1_u32.to_be_bytes())).collect();
            if !h2.try_send(&windows).await {
                break;
            }
        }
        assert!(began.elapsed() < Duration::from_secs(10), "it is still open");
    }
    second.lost_nothing().await;
    grew_less(&mut program, before, 16).await;
}

/// Not the windows but the socket is shut here: what streams have buffered towards it is what they cost.
#[tokio::test(flavor = "multi_thread")]
async fn h2_13_wide_windows_and_a_socket_that_is_not_read() {
    let ca = TestCa::new();
    let (origin, _) = super::limits::endless().await;
    let top = "runtime: { downstream: { write_timeout: 2s } }\ndefaults: { upstream: { pool: { max_connections: 300 } } }";
    let setup = Setup { top, ..Setup::default() };
    let mut program = program_with(&setup, &ca, origin.address, origin.address, &[]).await;
    program.holds().await;
    let before = program.rss();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(program.address).await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE (4) = 2^31 - 1, and the connection's window as wide.
    let mut h2 = H2::over(stream);
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    let window = frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes());
    h2.send(&[PREFACE, &settings, &frame(SETTINGS, ACK, 0, &[]), &window].concat()).await;
    let offered = h2.next().await.expect("settings");
    let streams = (offered.payload.chunks(6))
        .find_map(|setting| setting.strip_prefix(&[0, 3]))
        .map(|value| u32::from_be_bytes(value.try_into().unwrap()))
        .expect("a limit of streams");
    let way = Way::new(program.address.to_string(), "http", "/open");
    for n in 0..streams {
        h2.send(&get(2 * n + 1, &way, "/endless")).await;
    }
    let mut peak = before;
    let began = Instant::now();
    // Until outgate gives the connection up; the kernel tells by refusing a write.
    while h2.try_send(&frame(PING, 0, 0, &[0; 8])).await {
        peak = peak.max(program.rss());
        assert!(began.elapsed() < Duration::from_secs(15), "it is still open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (grown, most) = (peak - before, 1024 + u64::from(streams) * 160);
    assert!(grown < most, "{streams} streams: {grown} of {most} KiB");
    program.holds().await;
}

#[tokio::test]
async fn h2_14_preface_on_a_plaintext_listener() {
    let bench = Bench::start(Setup::default()).await;
    // HTTP/2 by prior knowledge is offered here.
    let mut h2 = H2::over(TcpStream::connect(bench.proxy.address()).await.unwrap());
    h2.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await;
    assert_eq!(h2.next().await.unwrap().kind, SETTINGS);
    drop(h2);
    // What only begins like it is an HTTP/1 request with a version that nobody speaks.
    for wrong in ["PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI * HTTP/2.0\r\nHost: open.example.test\r\n\r\n"] {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        raw.send(wrong).await;
        let got = raw.answer_or_end().await;
        assert!(got.as_ref().is_none_or(|got| got.status == 400 || got.status == 505), "{got:?}");
        assert!(raw.ends().await);
    }
    // Inside a tunnel that agreed on HTTP/1.1 it is no request either.
    let mut raw = Raw::over(intercepted(&bench.proxy, "api.example.test", &["http/1.1"]).await);
    raw.send(PREFACE).await;
    let got = raw.answer_or_end().await;
    assert!(got.as_ref().is_none_or(|got| got.status == 400 || got.status == 505), "{got:?}");
    assert!(raw.ends().await);
    bench.after_some(&[]).await;
    assert!(bench.api.requests().is_empty());
    assert_no_canary("open", &format!("{:?}", bench.open.requests()));
}

#[test]
fn every_case_of_this_group_is_tested_or_listed() {
    assert_covered("H2", 14, include_str!("http2.rs"), NOT_YET);
}
