//! Bodies stream, both ways and between both versions: piece by piece, with back-pressure, to their real end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::program::Program;
use super::support::ca::{TestCa, trusting};
use super::support::client::{Got, PATIENCE, Raw, http2, intercepted, request, tunnel};
use super::support::origin::{Answer, HttpOrigin, RawOrigin, Script, Seen, Stream, read_request, text};
use super::support::proxy::Proxy;
use super::world::{HOST, answering, directory, policy, scripted, start, until};

type Boxed = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A script from an async closure.
fn script<F>(work: impl Fn(Box<dyn Stream>) -> F + Send + Sync + 'static) -> Script
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |stream, _| Box::pin(work(stream)) as Boxed)
}

/// An ordinary origin of a version, and the proxy before it.
async fn http(
    alpn: &[&str],
    handler: impl Fn(Seen) -> Answer + Send + Sync + 'static,
) -> (Proxy, HttpOrigin) {
    let ca = TestCa::new();
    let origin = HttpOrigin::with(Some(ca.server(&[HOST], alpn)), handler).await;
    let proxy = start(&ca, origin.address, "", "").await;
    (proxy, origin)
}

async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), got: &mut Vec<u8>, what: &str) {
    let found = async {
        while !String::from_utf8_lossy(got).contains(what) {
            let read = stream.read_buf(got).await.unwrap();
            assert!(read > 0, "the end before {what:?}: {}", String::from_utf8_lossy(got));
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{what:?} in time"));
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let next = Arc::new(Notify::new());
    let go = next.clone();
    let (proxy, _origin) = scripted(
        script(move |mut stream| {
            let go = go.clone();
            async move {
                read_request(&mut stream).await;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                for number in 0..3 {
                    stream.write_all(format!("9\r\ndata: {number}\n\n\r\n").as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                    go.notified().await;
                }
                stream.write_all(b"0\r\n\r\n").await.unwrap();
                stream.flush().await.unwrap();
                go.notified().await;
            }
        }),
        "",
        "",
    )
    .await;
    // HTTP/1.1 at the local endpoint. The origin sends the next event only when this one has come.
    let mut plain = TcpStream::connect(proxy.address()).await.unwrap();
    let head = format!("GET /api/events HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address());
    plain.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    for number in 0..3 {
        read_until(&mut plain, &mut got, &format!("data: {number}\n\n")).await;
        next.notify_one();
    }
    read_until(&mut plain, &mut got, "0\r\n\r\n").await;
    next.notify_one();

    // HTTP/2 inside an intercepted connection.
    let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
    let uri = format!("https://{HOST}/events");
    let mut response = sender.send_request(request("GET", &uri, None, "")).await.unwrap();
    for number in 0..3 {
        let frame = timeout(PATIENCE, response.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {number}\n\n"));
        next.notify_one();
    }
    assert!(timeout(PATIENCE, response.collect()).await.unwrap().unwrap().to_bytes().is_empty());
}

/// Sends `total` bytes or takes them, as the path says; the request's body is counted.
fn mover(total: u64) -> Script {
    script(move |mut stream| async move {
        let mut buffer = vec![0_u8; 64 * 1024];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let mut taken = 0;
        if head.starts_with(b"POST /upload") {
            while taken < total {
                match stream.read(&mut buffer).await {
                    Ok(read) if read > 0 => taken += read as u64,
                    _ => return,
                }
            }
        }
        let length = if head.starts_with(b"GET /download") { total } else { 0 };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nX-Taken: {taken}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut sent = 0;
        while sent < length {
            let piece = buffer.len().min((length - sent) as usize);
            if stream.write_all(&buffer[..piece]).await.is_err() {
                return;
            }
            sent += piece as u64;
        }
        let _ = stream.shutdown().await;
    })
}

/// 1 GiB each way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_through_interception_need_little_memory() {
    let total = 1 << 30;
    let ca = TestCa::new();
    let listener = silent_mover(&ca, total).await;
    let dir = directory(&ca);
    let program = Program::start(dir.path(), &policy(listener, "", ""), "info", &[]);
    let pem = std::fs::read_to_string(dir.path().join("ca/ca.pem")).unwrap();
    // Warm: TLS both ways, a leaf, a connection.
    let warm = exchange(&program, &pem, "GET /nothing", 0).await;
    assert!(warm.0.starts_with("HTTP/1.1 200"), "{}", warm.0);
    let before = program.resident();
    let down = exchange(&program, &pem, "GET /download", 0).await;
    assert!(down.0.starts_with("HTTP/1.1 200") && down.1 == total, "{} {}", down.0, down.1);
    let after_download = program.resident_peak();
    let up = exchange(&program, &pem, "POST /upload", total).await;
    assert!(up.0.contains(&format!("x-taken: {total}")), "{}", up.0);
    let after = program.resident_peak();
    let grown = |to: u64| to.saturating_sub(before) / 1024;
    assert!(grown(after_download) < 16 * 1024, "the download took {} KiB", grown(after_download));
    assert!(grown(after) < 16 * 1024, "the upload took {} KiB", grown(after));
}

/// As `mover`, over TLS, and what it receives is not kept.
async fn silent_mover(ca: &TestCa, total: u64) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(ca.server(&[HOST], &["http/1.1"]));
    let script = mover(total);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(script(Box::new(stream), 0));
            }
        }
    });
    address
}

/// One request on an intercepted connection of its own; returns the head, and how long the body was.
async fn exchange(program: &Program, pem: &str, line: &str, upload: u64) -> (String, u64) {
    let mut stream = TcpStream::connect(program.listener).await.unwrap();
    stream
        .write_all(format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        got.push(stream.read_u8().await.unwrap());
    }
    let name = rustls::pki_types::ServerName::try_from(HOST).unwrap();
    let mut stream = TlsConnector::from(trusting(pem, &["http/1.1"])).connect(name, stream).await.unwrap();
    let head = format!("{line} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {upload}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    while sent < upload {
        let length = piece.len().min((upload - sent) as usize);
        stream.write_all(&piece[..length]).await.unwrap();
        sent += length as u64;
    }
    stream.flush().await.unwrap();
    let mut buffer = vec![0_u8; 64 * 1024];
    let (mut head, mut body) = (Vec::new(), 0);
    let mut length = None;
    while length.is_none_or(|length| body < length) {
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "the end: {}", String::from_utf8_lossy(&head));
        if length.is_some() {
            body += read as u64;
            continue;
        }
        head.extend_from_slice(&buffer[..read]);
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            body = (head.len() - end - 4) as u64;
            head.truncate(end);
            let text = String::from_utf8_lossy(&head);
            length = Some(
                text.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap().parse().unwrap(),
            );
        }
    }
    (String::from_utf8(head).unwrap(), body)
}

/// Waits until a counter stands still, and returns where.
async fn standstill(counter: &AtomicU64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut last = counter.load(Ordering::Relaxed);
    let mut since = Instant::now();
    while last == 0 || since.elapsed() < Duration::from_millis(400) {
        assert!(Instant::now() < deadline, "it goes on: {last}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = counter.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

const HUGE: u64 = 512 * 1024 * 1024;
/// What kernels hold for two connections, and outgate's own buffers.
const HELD: u64 = 32 * 1024 * 1024;

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_origin() {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let (proxy, _origin) = scripted(
        script(move |mut stream| {
            let counter = counter.clone();
            async move {
                read_request(&mut stream).await;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {HUGE}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                let piece = vec![0_u8; 64 * 1024];
                while stream.write_all(&piece).await.is_ok() {
                    counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            }
        }),
        "",
        "",
    )
    .await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
    assert!(standstill(&sent).await < HELD);
    drop(raw);
    sent.store(0, Ordering::Relaxed);
    // HTTP/2: the connection is read, the stream is not.
    let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
    let response = sender.send_request(request("GET", &format!("https://{HOST}/x"), None, "")).await.unwrap();
    assert!(standstill(&sent).await < HELD);
    drop(response);
}

#[tokio::test]
async fn an_origin_that_does_not_read_stops_the_client() {
    let hold = Arc::new(Notify::new());
    let held = hold.clone();
    let (proxy, _origin) = scripted(
        script(move |mut stream| {
            let held = held.clone();
            async move {
                let _ = stream.read_u8().await;
                held.notified().await;
            }
        }),
        "",
        "",
    )
    .await;
    let (_read, mut write) = TcpStream::connect(proxy.address()).await.unwrap().into_split();
    let head = format!("POST /api/x HTTP/1.1\r\nHost: {}\r\nContent-Length: {HUGE}\r\n\r\n", proxy.address());
    write.write_all(head.as_bytes()).await.unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let upload = tokio::spawn(async move {
        let piece = vec![0_u8; 64 * 1024];
        while write.write_all(&piece).await.is_ok() {
            counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    });
    assert!(standstill(&sent).await < HELD);
    upload.abort();
    hold.notify_one();
}

#[tokio::test]
async fn an_early_answer_to_an_upload_reaches_the_client() {
    for reads_on in [false, true] {
        let (proxy, _origin) = scripted(
            script(move |mut stream| async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let answer =
                    b"HTTP/1.1 413 Too Large\r\nContent-Length: 7\r\nConnection: close\r\n\r\ntoo big";
                stream.write_all(answer).await.unwrap();
                stream.flush().await.unwrap();
                if reads_on {
                    // Takes the rest, as RFC 9112 section 9.6 wants.
                    let mut buffer = [0_u8; 65536];
                    while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
                } else {
                    let _ = stream.shutdown().await;
                    std::future::pending::<()>().await;
                }
            }),
            "",
            "",
        )
        .await;
        let (mut read, mut write) = TcpStream::connect(proxy.address()).await.unwrap().into_split();
        let head =
            format!("POST /api/x HTTP/1.1\r\nHost: {}\r\nContent-Length: 50000000\r\n\r\n", proxy.address());
        write.write_all(head.as_bytes()).await.unwrap();
        let upload = tokio::spawn(async move {
            let piece = vec![b'x'; 16 * 1024];
            while write.write_all(&piece).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        let mut got = Vec::new();
        read_until(&mut read, &mut got, "too big").await;
        let text = String::from_utf8_lossy(&got);
        assert!(text.starts_with("HTTP/1.1 413") && !text.contains("outgate-error"), "{text}");
        upload.abort();
        let record = &proxy.records(1).await[0];
        assert_eq!(record["http.response.status_code"], 413, "{record}");
    }
}

#[tokio::test]
async fn continue_is_said_only_when_the_upstream_takes_the_body() {
    let (proxy, origin) = scripted(
        answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())),
        "    max_body: 1KiB\n    routes: [ { match: { path: /denied }, deny: \"not this\" } ]",
        "",
    )
    .await;
    let post = |path: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n",
            proxy.address()
        )
    };
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(post("/api/x", 4)).await;
    assert_eq!(raw.head().await.status, 100);
    raw.send("body").await;
    let got = raw.answer().await;
    assert_eq!((got.status, got.text().as_str()), (200, "ok"));
    assert!(origin.text().contains("\r\n\r\nbody"));

    for (path, length, status) in [("/api/denied", 4, 403), ("/nobody/x", 4, 403), ("/api/x", 2000, 413)] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(post(path, length)).await;
        let got = raw.head().await;
        assert_eq!(got.status, status, "{path}: no 100 before it");
    }
    // The provider cannot be reached: the body is not asked for.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let ca = TestCa::new();
    let proxy = start(&ca, closed, "", "").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(post("/api/x", 4).replace(&origin.address.to_string(), "")).await;
    assert_eq!(raw.head().await.status, 502);
}

/// What the issue asks for and cannot be had, with the reason; each is watched by a test, so that it goes from here when
/// it changes.
const NOT_YET: &[(&str, &str)] = &[(
    "Content-Length of a 304 to an HTTP/1.1 client",
    "hyper's server writes none in a 304; RFC 9110 section 8.6 says MAY, and nothing follows the head either way",
)];

#[tokio::test]
async fn answers_without_body_keep_their_length_where_that_is_legal() {
    for alpn in ["http/1.1", "h2"] {
        let ca = TestCa::new();
        // By hand for HTTP/1.1, because hyper's server has an opinion on these fields.
        let by_hand = answering(|request| {
            let (status, length) = match request.split(' ').nth(1)? {
                "/204" => ("204 No Content", ""),
                "/304" => ("304 Not Modified", "Content-Length: 1234\r\n"),
                _ if request.starts_with("HEAD") => ("200 OK", "Content-Length: 1234\r\n"),
                _ => ("200 OK", "Content-Length: 0\r\n"),
            };
            Some(format!("HTTP/1.1 {status}\r\nETag: \"v1\"\r\n{length}\r\n").into_bytes())
        });
        let by_hyper = |seen: Seen| {
            let status = if seen.uri.path() == "/x" { 200 } else { seen.uri.path()[1..].parse().unwrap() };
            let mut answer = text(status, "");
            if status == 304 || seen.method == "HEAD" {
                answer.headers_mut().insert("content-length", 1234.into());
            }
            answer.headers_mut().insert("etag", "\"v1\"".parse().unwrap());
            answer
        };
        let server = Some(ca.server(&[HOST], &[alpn]));
        let address = match alpn {
            "h2" => HttpOrigin::with(server, by_hyper).await.address,
            _ => RawOrigin::start(server, by_hand).await.address,
        };
        let proxy = start(&ca, address, "", "").await;
        let mut raw = Raw::connect(proxy.address()).await;
        for (method, path, status, length) in [
            ("HEAD", "/x", 200, Some("1234")),
            ("GET", "/204", 204, None),
            // See NOT_YET.
            ("GET", "/304", 304, None),
            ("GET", "/x", 200, Some("0")),
        ] {
            raw.send(format!("{method} /api{path} HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
            let got = raw.head().await;
            assert_eq!(
                (got.status, got.header("content-length")),
                (status, length),
                "{alpn} {method} {path}"
            );
            assert_eq!(got.header("etag"), Some("\"v1\""));
            assert_eq!(got.header("transfer-encoding"), None);
        }
        // Downstream HTTP/2.
        let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
        for (method, path, status, length) in
            [("HEAD", "x", 200, Some("1234")), ("GET", "204", 204, None), ("GET", "304", 304, Some("1234"))]
        {
            let uri = format!("https://{HOST}/{path}");
            let got = Got::read(sender.send_request(request(method, &uri, None, "")).await.unwrap()).await;
            assert_eq!(
                (got.status, got.header("content-length")),
                (status, length),
                "{alpn} {method} {path}"
            );
            assert!(got.body.is_empty());
        }
        let records = proxy.records(8).await;
        assert_eq!(records.len(), 8);
        assert!(records.iter().all(|record| record["outgate.flag"].is_null()), "{records:#?}");
    }
    for (what, why) in NOT_YET {
        println!("not yet: {what}: {why}");
    }
    assert_eq!(NOT_YET.len(), 1);
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// An answer of two pieces and trailers, as gRPC sends it.
fn with_trailers(seen: &Seen) -> Answer {
    let echoed = seen.trailers.as_ref().and_then(|sent| sent.get("x-checksum").cloned());
    let mut last = trailers(&[("grpc-status", "0"), ("grpc-message", "fine")]);
    if let Some(value) = echoed {
        last.insert("x-echo", value);
    }
    let frames = [
        Ok(Frame::data(Bytes::from_static(b"piece1"))),
        Ok(Frame::data(Bytes::from_static(b"piece2"))),
        Ok(Frame::trailers(last)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    Response::builder()
        .header("content-type", "application/grpc")
        .header("trailer", "grpc-status, grpc-message, x-echo")
        .body(BodyExt::boxed(body))
        .unwrap()
}

#[tokio::test]
async fn trailers_pass_both_ways_between_all_versions() {
    for upstream in [&["http/1.1"][..], &["h2"]] {
        let (proxy, origin) = http(upstream, |seen| with_trailers(&seen)).await;
        // HTTP/1.1.
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!(
            "POST /api/x HTTP/1.1\r\nHost: {}\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-checksum, authorization, content-length\r\n\r\n4\r\nbody\r\n0\r\nX-Checksum: abc\r\nAuthorization: Bearer twin\r\nContent-Length: 5\r\n\r\n",
            proxy.address()
        ))
        .await;
        let got = raw.answer().await;
        assert_eq!((got.status, got.text().as_str()), (200, "piece1piece2"), "{upstream:?}");
        let last = got.trailers.expect("trailers");
        assert_eq!(last["grpc-status"], "0", "{upstream:?}");
        assert_eq!(last["x-echo"], "abc", "{upstream:?}");
        let sent = origin.only().trailers.expect("trailers of the request");
        assert_eq!(sent.len(), 1, "no framing and no twin of the credential: {sent:?}");

        // HTTP/2, with a request that has trailers of its own.
        let stream = intercepted(&proxy, HOST, &["h2"]).await;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let frames: [Result<_, std::convert::Infallible>; 2] = [
            Ok(Frame::data(Bytes::from_static(b"body"))),
            Ok(Frame::trailers(trailers(&[("x-checksum", "def"), ("authorization", "Bearer twin")]))),
        ];
        let request = Request::post(format!("https://{HOST}/pkg.Service/Method"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("trailer", "x-checksum")
            .body(StreamBody::new(futures_util::stream::iter(frames)))
            .unwrap();
        let got = Got::read(sender.send_request(request).await.unwrap()).await;
        assert_eq!((got.status, got.text().as_str()), (200, "piece1piece2"), "{upstream:?}");
        let last = got.trailers.expect("trailers");
        assert!(last["grpc-status"] == "0" && last["grpc-message"] == "fine");
        assert_eq!(last["x-echo"], "def", "{upstream:?}");
        let seen = origin.requests();
        assert_eq!(seen[1].trailers.as_ref().map(HeaderMap::len), Some(1));
        assert_eq!(seen[1].header("te"), Some("trailers"), "{upstream:?}");
    }
}

#[tokio::test]
async fn both_versions_on_both_sides() {
    for upstream in [&["http/1.1"][..], &["h2"]] {
        for downstream in ["http/1.1", "h2"] {
            let (proxy, origin) = http(upstream, |seen| text(200, &format!("{:?}", seen.version))).await;
            let stream = intercepted(&proxy, HOST, &[downstream]).await;
            let got = if downstream == "h2" {
                let mut sender = http2(stream).await;
                let uri = format!("https://{HOST}/x?a=1");
                Got::read(sender.send_request(request("PUT", &uri, None, "body")).await.unwrap()).await
            } else {
                super::support::client::over_http1(stream, request("PUT", "/x?a=1", Some(HOST), "body")).await
            };
            let version = if upstream == ["h2"] { "HTTP/2.0" } else { "HTTP/1.1" };
            assert_eq!((got.status, got.text().as_str()), (200, version), "{downstream} to {upstream:?}");
            let seen = origin.only();
            assert_eq!(
                (seen.uri.path(), seen.uri.query(), &seen.body[..]),
                ("/x", Some("a=1"), &b"body"[..])
            );
            let host =
                seen.header("host").map(str::to_owned).or(seen.uri.authority().map(ToString::to_string));
            assert_eq!(host.as_deref(), Some(HOST));
            let record = &proxy.records(2).await[1];
            let expected =
                (if downstream == "h2" { "2" } else { "1.1" }, if upstream == ["h2"] { "2" } else { "1.1" });
            assert_eq!(record["network.protocol.version"], expected.0);
            assert_eq!(record["outgate.upstream.protocol"], expected.1);
        }
    }
}

#[tokio::test]
async fn half_close_in_a_blind_tunnel() {
    let ca = TestCa::new();
    let echo = script(|mut stream| async move {
        // Answers only when the client has said that it is done.
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        stream.write_all(format!("got {got}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let origin = RawOrigin::start(None, echo).await;
    let keys = "    credential: none\n    intercept: never\n    opaque: true";
    let proxy = start(&ca, origin.address, keys, "").await;
    let mut raw = tunnel(&proxy, &format!("{HOST}:443")).await;
    raw.send("question").await;
    raw.stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, raw.stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "got question");
    let record = &proxy.records(1).await[0];
    assert_eq!(
        (&record["outgate.door"], &record["outgate.flag"]),
        (&"tunnel".into(), &serde_json::Value::Null)
    );
    assert_eq!(record["http.request.body.size"], 8);
    assert_eq!(record["http.response.body.size"], 12);
}

#[tokio::test]
async fn as_many_fields_as_the_bound_and_not_one_more() {
    {
        let (proxy, origin) =
            scripted(answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())), "", "")
                .await;
        let head = |count: usize| {
            let fields: String = (1..count).map(|number| format!("X-{number}: v\r\n")).collect();
            format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", proxy.address())
        };
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(head(256)).await;
        assert_eq!(raw.answer().await.status, 200);
        assert!(origin.text().contains("x-255: v\r\n"));
        raw.send(head(257)).await;
        assert_eq!(raw.answer().await.status, 431);
        assert!(raw.ends().await);
        let records = proxy.records(2).await;
        assert_eq!((records.len(), &records[1]["http.response.status_code"]), (2, &431.into()));
        assert_eq!(origin.text().matches("GET /x").count(), 1);
    }
    // HTTP/2: of a name that is repeated each value counts. The connection goes on.
    let (proxy, origin) =
        scripted(answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())), "", "")
            .await;
    let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
    for (count, status) in [(256, 200), (257, 431), (1000, 431), (1, 200)] {
        let mut request = request("GET", &format!("https://{HOST}/x"), None, "");
        for number in 0..count {
            let name = http::HeaderName::try_from(format!("x-{}", number % 250)).unwrap();
            request.headers_mut().append(name, http::HeaderValue::from_static("v"));
        }
        let got = Got::read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(got.status, status, "{count}: {got:?}");
        assert_eq!(got.proxy_error(), (status == 431).then_some("http_request_error"));
    }
    assert_eq!(origin.text().matches("GET /x").count(), 2);
    assert_eq!(proxy.records(5).await.len(), 5);
}

#[tokio::test]
async fn connect_by_http_1_0_without_host() {
    let (proxy, origin) = http(&["http/1.1"], |_| text(200, "ok")).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("CONNECT {HOST}:443 HTTP/1.0\r\n\r\n")).await;
    assert_eq!(raw.head().await.status, 200);
    let name = rustls::pki_types::ServerName::try_from(HOST).unwrap();
    let connector = TlsConnector::from(trusting(&proxy.ca(), &["http/1.1"]));
    let stream = connector.connect(name, raw.stream).await.unwrap();
    let got = super::support::client::over_http1(stream, request("GET", "/x", Some(HOST), "")).await;
    assert_eq!(got.status, 200);
    assert_eq!(origin.only().uri.path(), "/x");
}

/// An origin that counts how many of its connections have ended while it works on their request.
fn abandoned(answers: &'static [u8]) -> (Script, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (arrived, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (one, two) = (arrived.clone(), ended.clone());
    let work = script(move |mut stream| {
        let (arrived, ended) = (one.clone(), two.clone());
        async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(answers).await;
            let _ = stream.flush().await;
            arrived.fetch_add(1, Ordering::SeqCst);
            let mut byte = [0_u8; 1];
            let _ = stream.read(&mut byte).await;
            ended.fetch_add(1, Ordering::SeqCst);
        }
    });
    (work, arrived, ended)
}

#[tokio::test]
async fn a_client_that_goes_cancels_the_upstream_request_within_a_second() {
    for answers in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin"] {
        let (work, arrived, ended) = abandoned(answers);
        let (proxy, _origin) = scripted(work, "", "").await;
        for (round, door) in ["local", "intercept", "intercept"].into_iter().enumerate() {
            let gone = match round {
                0 => {
                    let mut raw = Raw::connect(proxy.address()).await;
                    raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
                    until("it is being served", || arrived.load(Ordering::SeqCst) == 1).await;
                    drop(raw);
                    Instant::now()
                }
                1 => {
                    let mut raw = Raw::over(intercepted(&proxy, HOST, &["http/1.1"]).await);
                    raw.send(format!("GET /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
                    until("it is being served", || arrived.load(Ordering::SeqCst) == 2).await;
                    drop(raw);
                    Instant::now()
                }
                _ => {
                    // One stream is reset; the connection stays.
                    let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
                    let uri = format!("https://{HOST}/x");
                    let call = tokio::spawn(sender.send_request(request("GET", &uri, None, "")));
                    until("it is being served", || arrived.load(Ordering::SeqCst) == 3).await;
                    call.abort();
                    drop(call.await);
                    Instant::now()
                }
            };
            until("the origin sees the end", || ended.load(Ordering::SeqCst) == round + 1).await;
            assert!(gone.elapsed() < Duration::from_secs(1), "{door}: {:?}", gone.elapsed());
        }
        let records: Vec<_> =
            proxy.records(5).await.into_iter().filter(|record| record["outgate.door"] != "connect").collect();
        assert_eq!(records.len(), 3);
        for record in records {
            assert_eq!(record["outgate.flag"], "DC", "{record}");
        }
    }
}

#[tokio::test]
async fn a_cut_answer_is_visibly_cut() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n",
    ] {
        let work = script(move |mut stream| async move {
            read_request(&mut stream).await;
            stream.write_all(answer).await.unwrap();
            let _ = stream.shutdown().await;
        });
        let (proxy, _origin) = scripted(work, "", "").await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let head = format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address());
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut got)).await.unwrap();
        let text = String::from_utf8_lossy(&got);
        assert!(text.contains("begin") && !text.ends_with("0\r\n\r\n"), "{text}");

        let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
        let uri = format!("https://{HOST}/x");
        let response = sender.send_request(request("GET", &uri, None, "")).await.unwrap();
        assert!(timeout(PATIENCE, response.collect()).await.unwrap().is_err(), "RST_STREAM");
        let records = proxy.records(3).await;
        assert_eq!((&records[0]["outgate.flag"], &records[2]["outgate.flag"]), (&"UC".into(), &"UC".into()));
    }
}

/// The app must know that there was an answer: a POST that seems to have got none is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_body_breaks_at_once_keeps_its_head() {
    for answer in [
        &b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n"[..],
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\nzz\r\n",
    ] {
        let work = script(move |mut stream| async move {
            read_request(&mut stream).await;
            stream.write_all(answer).await.unwrap();
            let _ = stream.shutdown().await;
        });
        let (proxy, _origin) = scripted(work, "    retry: off", "").await;
        let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
        for round in 0..10 {
            let mut raw = Raw::connect(proxy.address()).await;
            let head =
                format!("POST /api/x HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n", proxy.address());
            raw.send(&head).await;
            let mut got = Vec::new();
            let _ = timeout(PATIENCE, raw.stream.read_to_end(&mut got)).await.unwrap();
            let text = String::from_utf8_lossy(&got);
            assert!(text.starts_with("HTTP/1.1 201 Created\r\n"), "{round}: {text:?}");
            assert!(!text.ends_with("0\r\n\r\n"), "it is visibly cut: {text}");
            assert_eq!(text.contains("begin"), String::from_utf8_lossy(answer).contains("begin"), "{text}");

            let uri = format!("https://{HOST}/x");
            let response = sender.send_request(request("POST", &uri, None, "")).await.unwrap();
            assert_eq!(response.status(), 201, "{round}");
            assert!(timeout(PATIENCE, response.collect()).await.unwrap().is_err(), "RST_STREAM");
        }
    }
}

/// The bounds of a stream and of its connection are small; what is moved through them is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_over_http2_arrive_whole_both_ways_on_many_streams() {
    const SIZE: usize = 8 * 1024 * 1024;
    let (proxy, _origin) = http(&["h2"], |seen| match seen.method {
        http::Method::POST => text(200, &seen.body.len().to_string()),
        _ => text(200, &"x".repeat(SIZE)),
    })
    .await;
    let stream = intercepted(&proxy, HOST, &["h2"]).await;
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1 << 24).initial_connection_window_size(1 << 24);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = Bytes::from(vec![b'x'; SIZE]);
    let mut running = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (mut sender, body) = (sender.clone(), body.clone());
        running.spawn(async move {
            let (method, body) = if number % 2 == 0 { ("POST", body) } else { ("GET", Bytes::new()) };
            let request = Request::builder()
                .method(method)
                .uri(format!("https://{HOST}/x"))
                .body(http_body_util::Full::new(body))
                .unwrap();
            let got = Got::read(sender.send_request(request).await.unwrap()).await;
            if method == "POST" { got.text() == SIZE.to_string() } else { got.body.len() == SIZE }
        });
    }
    while let Some(whole) = running.join_next().await {
        assert!(whole.unwrap());
    }
}
