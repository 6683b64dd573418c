//! Every wait has an end, and the answer says which: status, code, the timeout's name in the title, the flag of the record,
//! and whether the request may have acted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::support::ca::TestCa;
use super::support::client::{Got, PATIENCE, Raw, http2, intercepted, request, tunnel};
use super::support::origin::{Script, Stream, read_request};
use super::support::proxy::Proxy;
use super::world::{HOST, scripted, start};

/// A script from an async closure.
fn script<F>(work: impl Fn(Box<dyn Stream>) -> F + Send + Sync + 'static) -> Script
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |stream, _| Box::pin(work(stream)) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>)
}

/// Reads the request, and never answers.
fn silent() -> Script {
    script(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.read(&mut [0]).await;
    })
}

/// What the app must be told.
struct Expected {
    status: u16,
    code: &'static str,
    proxy_status: &'static str,
    title: &'static str,
    flag: &'static str,
    sent: &'static str,
}

async fn assert_told(what: &str, proxy: &Proxy, got: &Got, expected: &Expected) {
    let problem: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(got.status, expected.status, "{what}: {problem}");
    assert_eq!(got.header("outgate-error"), Some(expected.code), "{what}");
    assert_eq!(got.proxy_error(), Some(expected.proxy_status), "{what}");
    assert_eq!(got.header("outgate-sent"), Some(expected.sent), "{what}");
    assert_eq!(
        (&problem["status"], &problem["code"]),
        (&expected.status.into(), &expected.code.into()),
        "{what}"
    );
    assert!(problem["title"].as_str().unwrap().contains(expected.title), "{what}: {problem}");
    let records = proxy.records(1).await;
    let record = records.last().unwrap();
    assert_eq!(record["http.response.status_code"], expected.status, "{what}");
    assert_eq!(record["outgate.flag"], expected.flag, "{what}: {record}");
    assert_eq!(record["outgate.sent"], expected.sent, "{what}: {record}");
    assert_eq!(record["error.type"], expected.code, "{what}: {record}");
}

async fn get(proxy: &Proxy, fields: &str) -> Got {
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", proxy.address())).await;
    raw.answer().await
}

const UT: Expected = Expected {
    status: 504,
    code: "upstream_timeout",
    proxy_status: "http_response_timeout",
    title: "",
    flag: "UT",
    sent: "maybe",
};

#[tokio::test]
async fn the_provider_does_not_accept() {
    // A backlog that is full: what comes next gets no answer to its SYN.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        filling.push(stream);
        assert!(filling.len() < 50, "the backlog has an end");
    }
    let proxy = start(&TestCa::new(), address, "    timeouts: { connect: 200ms }", "").await;
    let started = Instant::now();
    let got = get(&proxy, "").await;
    let expected = Expected {
        code: "upstream_connect_timeout",
        proxy_status: "connection_timeout",
        title: "`timeouts.connect`",
        flag: "UF",
        sent: "no",
        ..UT
    };
    assert_told("connect", &proxy, &got, &expected).await;
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn the_provider_does_not_shake_hands() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let proxy = start(&TestCa::new(), address, "    timeouts: { tls: 200ms }", "").await;
    let got = get(&proxy, "").await;
    let expected = Expected { proxy_status: "connection_timeout", title: "`timeouts.tls`", sent: "no", ..UT };
    assert_told("tls", &proxy, &got, &expected).await;
}

#[tokio::test]
async fn the_provider_does_not_answer() {
    for (keys, fields, title) in [
        ("    timeouts: { response: 200ms }", "", "`timeouts.response`"),
        ("    timeouts: { deadline: 200ms }", "", "`timeouts.deadline`"),
        ("    timeouts: { total: 200ms }", "", "`timeouts.total`"),
        ("", "Outgate-Timeout: 200ms\r\n", "deadline"),
        ("", "grpc-timeout: 200m\r\n", "deadline"),
        // The app may shorten its deadline and not make it longer.
        ("    timeouts: { deadline: 200ms }", "Outgate-Timeout: 1h\r\n", "`timeouts.deadline`"),
    ] {
        let (proxy, origin) = scripted(silent(), keys, "").await;
        let started = Instant::now();
        let got = get(&proxy, fields).await;
        let took = started.elapsed();
        assert!(
            took >= Duration::from_millis(200) && took < Duration::from_secs(5),
            "{keys} {fields} {took:?}"
        );
        assert_told(&format!("{keys} {fields}"), &proxy, &got, &Expected { title, ..UT }).await;
        let text = origin.text().to_ascii_lowercase();
        assert!(text.contains("get /x") && !text.contains("outgate-timeout"), "{text}");
    }
}

#[tokio::test]
async fn a_deadline_before_anything_was_sent_says_so() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = start(&TestCa::new(), silent.local_addr().unwrap(), "", "").await;
    let got = get(&proxy, "Outgate-Timeout: 200ms\r\n").await;
    assert_told("deadline", &proxy, &got, &Expected { title: "deadline", sent: "no", ..UT }).await;
    let bad = get(&proxy, "Outgate-Timeout: soon\r\n").await;
    assert_eq!((bad.status, bad.header("outgate-error")), (400, Some("bad_request")));
}

#[tokio::test]
async fn the_provider_takes_no_byte_of_the_body() {
    let takes_nothing = script(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let (proxy, _origin) = scripted(takes_nothing, "    timeouts: { idle: 300ms }", "").await;
    let (mut read, mut write) = TcpStream::connect(proxy.address()).await.unwrap().into_split();
    let head =
        format!("POST /api/x HTTP/1.1\r\nHost: {}\r\nContent-Length: 500000000\r\n\r\n", proxy.address());
    write.write_all(head.as_bytes()).await.unwrap();
    let upload = tokio::spawn(async move {
        let piece = vec![b'x'; 64 * 1024];
        while write.write_all(&piece).await.is_ok() {}
    });
    let mut got = Vec::new();
    // The provider's reading nothing does not hold the app's connection.
    let started = Instant::now();
    let _ = timeout(PATIENCE, read.read_to_end(&mut got)).await.expect("the connection ends");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let text = String::from_utf8_lossy(&got);
    assert!(text.starts_with("HTTP/1.1 504") && text.contains("`timeouts.idle`"), "{text}");
    assert!(text.contains("outgate-sent: maybe"));
    assert_eq!(proxy.records(1).await[0]["outgate.flag"], "UT");
    upload.abort();
}

#[tokio::test]
async fn an_answer_that_stops_or_lasts_too_long_is_cut() {
    for (keys, dribbles) in
        [("    timeouts: { idle: 300ms }", false), ("    timeouts: { total: 400ms }", true)]
    {
        let slow = script(move |mut stream| async move {
            read_request(&mut stream).await;
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegin";
            stream.write_all(head).await.unwrap();
            stream.flush().await.unwrap();
            while dribbles && stream.write_all(b"x").await.is_ok() && stream.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = stream.read(&mut [0]).await;
        });
        let (proxy, _origin) = scripted(slow, keys, "").await;
        let started = Instant::now();
        let got = get(&proxy, "").await;
        assert!(got.status == 200 && got.body.starts_with(b"begin") && got.body.len() < 1000);
        assert!(
            started.elapsed() >= Duration::from_millis(290) && started.elapsed() < Duration::from_secs(5)
        );
        let record = &proxy.records(1).await[0];
        assert_eq!(
            (&record["outgate.flag"], &record["http.response.status_code"]),
            (&"UT".into(), &200.into())
        );

        let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
        let response =
            sender.send_request(request("GET", &format!("https://{HOST}/x"), None, "")).await.unwrap();
        let end = timeout(PATIENCE, http_body_util::BodyExt::collect(response)).await.unwrap();
        assert!(end.is_err(), "the stream is reset");
    }
}

#[tokio::test]
async fn a_body_that_moves_outlives_idle_and_response() {
    let slow = script(|mut stream| async move {
        read_request(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
        stream.write_all(head).await.unwrap();
        for _ in 0..10 {
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let _ = stream.read(&mut [0]).await;
    });
    let (proxy, _origin) =
        scripted(slow, "    timeouts: { idle: 600ms, response: 600ms, deadline: 700ms }", "").await;
    let got = get(&proxy, "").await;
    assert_eq!((got.status, got.text().as_str()), (200, "xxxxxxxxxx"));
}

#[tokio::test]
async fn the_app_stops_in_the_middle_of_its_body() {
    let bounds = "runtime: { downstream: { body_timeout: 300ms } }";
    let (proxy, origin) = scripted(silent(), "", bounds).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("POST /api/x HTTP/1.1\r\nHost: {}\r\nContent-Length: 10\r\n\r\nhalf", proxy.address()))
        .await;
    let got = raw.answer().await;
    let expected = Expected {
        status: 408,
        code: "request_timeout",
        proxy_status: "http_request_error",
        title: "`runtime.downstream.body_timeout`",
        flag: "DT",
        sent: "maybe",
    };
    assert_told("body_timeout", &proxy, &got, &expected).await;
    assert!(raw.ends().await, "a body in doubt closes");
    assert!(!origin.text().contains("halfhalf"));
}

#[tokio::test]
async fn a_slow_head_ends_and_a_patient_client_does_not() {
    let ok = super::world::answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()));
    let bounds = "runtime: { downstream: { header_timeout: 300ms, idle_timeout: 1500ms } }";
    let (proxy, _origin) = scripted(ok, "", bounds).await;
    let get = format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address());
    // A byte now and then does not renew the head's clock.
    let mut slow = Raw::connect(proxy.address()).await;
    let started = Instant::now();
    let mut ended = false;
    for byte in get.as_bytes().iter().cycle().take(40) {
        if slow.stream.write_all(&[*byte]).await.is_err() {
            ended = true;
            break;
        }
        if let Ok(end) = timeout(Duration::from_millis(50), slow.stream.read(&mut [0])).await {
            ended = matches!(end, Ok(0) | Err(_));
            break;
        }
    }
    assert!(ended, "a slow head is not waited for");
    assert!(started.elapsed() >= Duration::from_millis(250) && started.elapsed() < Duration::from_secs(2));
    let records = proxy.records(1).await;
    assert_eq!(records[0]["outgate.flag"], "DT", "{}", records[0]);
    assert!(records[0]["http.response.status_code"].is_null(), "{}", records[0]);

    // Between requests the idle clock runs, and not the head's.
    let mut patient = Raw::connect(proxy.address()).await;
    patient.send(&get).await;
    assert_eq!(patient.answer().await.status, 200);
    tokio::time::sleep(Duration::from_millis(600)).await;
    patient.send(&get).await;
    assert_eq!(patient.answer().await.status, 200);
    let idle = Instant::now();
    assert!(patient.ends().await);
    let took = idle.elapsed();
    assert!(took >= Duration::from_millis(1400) && took < Duration::from_secs(4), "{took:?}");
    // A connection on which nothing ever comes ends too, and leaves no record.
    let mut silent = Raw::connect(proxy.address()).await;
    assert!(silent.ends().await);
    assert_eq!(proxy.records(3).await.len(), 3);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_dropped() {
    let endless = script(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
        let piece = vec![0_u8; 64 * 1024];
        while stream.write_all(&piece).await.is_ok() {}
    });
    let bounds = "runtime: { downstream: { write_timeout: 400ms } }";
    let (proxy, _origin) = scripted(endless, "", bounds).await;
    let mut plain = Raw::connect(proxy.address()).await;
    plain.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
    let record = &proxy.records(1).await[0];
    assert!(record["outgate.flag"] == "DC", "{record}");
    // An HTTP/2 stream whose window stays shut, on a connection that is read.
    let mut sender = http2(intercepted(&proxy, HOST, &["h2"]).await).await;
    let response = sender.send_request(request("GET", &format!("https://{HOST}/x"), None, "")).await.unwrap();
    let records = proxy.records(3).await;
    assert!(records[2]["outgate.flag"] == "DC", "{}", records[2]);
    drop((plain, response));
}

#[tokio::test]
async fn the_first_bytes_of_a_tunnel_are_waited_for_and_silence_ends_it() {
    let bounds = "runtime: { downstream: { tls_handshake_timeout: 300ms } }";
    for keys in ["", "    credential: none\n    intercept: never"] {
        let (proxy, origin) = scripted(silent(), keys, bounds).await;
        let mut raw = tunnel(&proxy, &format!("{HOST}:443")).await;
        assert!(raw.ends().await);
        let record = &proxy.records(1).await[0];
        assert_eq!(record["outgate.flag"], "DT", "{record}");
        assert_eq!(origin.connections(), 0, "nothing was dialled for it");
    }
    let keys =
        "    credential: none\n    intercept: never\n    opaque: true\n    timeouts: { upgrade_idle: 300ms }";
    let (proxy, _origin) = scripted(silent(), keys, bounds).await;
    let mut raw = tunnel(&proxy, &format!("{HOST}:443")).await;
    raw.send("x").await;
    assert!(raw.ends().await);
    assert_eq!(proxy.records(1).await[0]["outgate.flag"], "UT");
}

/// Timeouts that no test here reaches, with the reason.
const NOT_YET: &[(&str, &str)] = &[(
    "upstream_dns_timeout",
    "the scripted resolver answers at once; that a resolver hangs is tested in `upstream/tests/reach.rs`",
)];

#[test]
fn every_timeout_is_tested_or_listed() {
    let tested = [
        "connect",
        "tls",
        "response",
        "idle",
        "upgrade_idle",
        "deadline",
        "total",
        "Outgate-Timeout",
        "grpc-timeout",
        "header_timeout",
        "tls_handshake_timeout",
        "idle_timeout",
        "body_timeout",
        "write_timeout",
    ];
    let source = include_str!("timeouts.rs");
    for name in tested {
        assert!(source.contains(&format!("{name}: ")), "{name} is set by no test");
    }
    for (what, why) in NOT_YET {
        println!("not yet: {what}: {why}");
    }
    assert_eq!((tested.len(), NOT_YET.len()), (14, 1));
}
