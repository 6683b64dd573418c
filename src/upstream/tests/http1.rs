//! HTTP/1.1: reuse, caps, what ends a connection, and answers that must not be believed.

use std::sync::Mutex;

use http::HeaderValue;
use http_body_util::StreamBody;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::message::body::BodyError;
use crate::message::end::End;
use crate::message::failure::{Fault, Progress};
use crate::telemetry::HttpVersion;
use crate::upstream::settings::PoolSettings;

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn pooled(max_connections: usize, idle_timeout: Duration) -> UpstreamSettings {
    UpstreamSettings { pool: PoolSettings { max_connections, idle_timeout }, ..settings(Scheme::Http) }
}

#[tokio::test]
async fn a_connection_is_used_again_and_the_facts_say_so() {
    let origin = Origin::saying(OK).await;
    let upstream = plain();
    for round in 0..5 {
        let request = get(&origin, "/");
        let exchange = request.exchange.clone();
        assert_eq!(fetch(&upstream, request).await.unwrap(), (200, Bytes::from("ok")));
        let facts = exchange.facts().clone();
        assert_eq!(facts.reused, Some(round > 0));
        assert_eq!(facts.connect.is_some(), round == 0);
        assert_eq!(facts.dns.is_some(), round == 0);
        assert_eq!(facts.tls, None);
        assert_eq!(facts.peer, Some(origin.address));
        assert_eq!(facts.upstream_version, Some(HttpVersion::Http11));
        assert!(exchange.upload().is_complete() && facts.first_byte.is_some());
        eventually("the connection comes back", || upstream.stats().idle == 1).await;
    }
    assert_eq!(origin.accepted(), 1);
    let stats = upstream.stats();
    assert_eq!((stats.open, stats.idle, stats.waiting, stats.dials_ok), (1, 1, 0, 1));
}

#[tokio::test]
async fn the_head_is_origin_form_with_a_host_and_one_length() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heads = seen.clone();
    let origin = Origin::new(move |mut stream, _| {
        let heads = heads.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                if head.starts_with("POST") {
                    stream.read_exact(&mut [0; 3]).await.unwrap();
                }
                heads.lock().unwrap().push(head.to_lowercase());
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let upstream = plain();
    fetch(&upstream, get(&origin, "/a/%2e%2e?b=c%20d")).await.unwrap();
    let mut post = get(&origin, "/p");
    post.method = Method::POST;
    post.body = Body::full("abc");
    // What the app said about another body must not frame this one.
    post.headers.insert("content-length", HeaderValue::from_static("30"));
    fetch(&upstream, post).await.unwrap();
    let port = origin.address.port();
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0], format!("get /a/%2e%2e?b=c%20d http/1.1\r\nhost: api.test:{port}\r\n\r\n"));
    assert!(seen[1].contains("content-length: 3\r\n") && !seen[1].contains("chunked"), "{}", seen[1]);
}

#[tokio::test]
async fn a_get_with_a_body_of_unknown_length_keeps_it() {
    let (sent, received) = tokio::sync::oneshot::channel();
    let sent = Arc::new(Mutex::new(Some(sent)));
    let origin = Origin::new(move |mut stream, _| {
        let sent = sent.clone();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            let mut body = vec![0; 13];
            stream.read_exact(&mut body).await.unwrap();
            stream.write_all(OK).await.unwrap();
            sent.lock().unwrap().take().unwrap().send((head, body)).unwrap();
        }
    })
    .await;
    let mut request = get(&origin, "/search");
    let frame = Ok::<_, BodyError>(http_body::Frame::data(Bytes::from("abc")));
    request.body = Body::boxed(StreamBody::new(futures_util::stream::iter([frame])));
    fetch(&plain(), request).await.unwrap();
    let (head, body) = received.await.unwrap();
    assert!(head.to_lowercase().contains("transfer-encoding: chunked"));
    assert_eq!(body, b"3\r\nabc\r\n0\r\n\r\n"[..13]);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_is_replaced() {
    let origin = Origin::new(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let upstream = plain();
    for round in 1..=3 {
        assert_eq!(fetch(&upstream, get(&origin, "/")).await.unwrap().0, 200);
        eventually("the end is noticed", || upstream.stats().open == 0).await;
        assert_eq!(origin.accepted(), round);
    }
}

#[tokio::test]
async fn idle_connections_are_closed_after_their_time() {
    let origin = Origin::saying(OK).await;
    let upstream = upstream(pooled(10, Duration::from_millis(20)));
    fetch(&upstream, get(&origin, "/")).await.unwrap();
    eventually("the sweeper closes it", || upstream.stats().open == 0).await;
    fetch(&upstream, get(&origin, "/")).await.unwrap();
    assert_eq!(origin.accepted(), 2);
}

/// An origin that answers a request when the gate lets it, and keeps the order in which they came.
async fn gated() -> (Origin, Arc<Semaphore>, Arc<Mutex<Vec<String>>>) {
    let (gate, order) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (opened, seen) = (gate.clone(), order.clone());
    let origin = Origin::new(move |mut stream, _| {
        let (opened, seen) = (opened.clone(), seen.clone());
        async move {
            while let Some(head) = read_head(&mut stream).await {
                seen.lock().unwrap().push(head.split(' ').nth(1).unwrap().to_owned());
                opened.acquire().await.unwrap().forget();
                if stream.write_all(OK).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, gate, order)
}

#[tokio::test]
async fn the_cap_holds_and_the_line_is_served_in_order() {
    let (origin, gate, order) = gated().await;
    let upstream = upstream(pooled(1, Duration::from_secs(60)));
    let mut running = Vec::new();
    for path in ["/1", "/2", "/3", "/4"] {
        let (upstream_, request) = (upstream.clone(), get(&origin, path));
        running.push(tokio::spawn(async move { fetch(&upstream_, request).await.unwrap().0 }));
        let expected = running.len() - 1;
        eventually("it waits in line", || upstream.stats().waiting == expected).await;
    }
    // Who gives up leaves the line, and takes nobody's turn.
    running.remove(2).abort();
    eventually("it leaves the line", || upstream.stats().waiting == 2).await;
    gate.add_permits(3);
    for one in running {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert_eq!(*order.lock().unwrap(), ["/1", "/2", "/4"]);
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn a_request_that_is_given_up_frees_its_place() {
    let (origin, gate, _) = gated().await;
    let upstream = upstream(pooled(1, Duration::from_secs(60)));
    let (upstream_, request) = (upstream.clone(), get(&origin, "/1"));
    let first = tokio::spawn(async move { fetch(&upstream_, request).await.map(|_| ()) });
    eventually("it is sent", || origin.accepted() == 1).await;
    first.abort();
    eventually("its connection is closed", || upstream.stats().open == 0).await;
    gate.add_permits(2);
    assert_eq!(fetch(&upstream, get(&origin, "/2")).await.unwrap().0, 200);
}

#[tokio::test]
async fn the_wait_for_a_connection_is_bounded() {
    let (origin, _gate, _) = gated().await;
    let mut settings = pooled(1, Duration::from_secs(60));
    settings.connect_timeout = Duration::from_millis(50);
    let upstream = upstream(settings);
    let (upstream_, request) = (upstream.clone(), get(&origin, "/1"));
    tokio::spawn(async move { fetch(&upstream_, request).await.map(|_| ()) });
    eventually("it is sent", || origin.accepted() == 1).await;
    let failure = upstream.send(get(&origin, "/2")).await.map(|_| ()).unwrap_err();
    assert_eq!((failure.fault, failure.progress), (Fault::ConnectionLimit, Progress::NotSent));
    assert_eq!(upstream.stats().waiting, 0);
}

/// FR-25: what comes after an answer belongs to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_nobody_asked_for_reach_nobody() {
    let origin = Origin::saying(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    )
    .await;
    let upstream = plain();
    for _ in 0..20 {
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let (upstream, request) = (upstream.clone(), get(&origin, "/"));
                tokio::spawn(async move { fetch(&upstream, request).await })
            })
            .collect();
        for client in clients {
            assert_eq!(client.await.unwrap().unwrap().1, "ok");
        }
    }
    assert_eq!(origin.accepted(), 2000);
}

#[tokio::test]
async fn ambiguous_and_malformed_answers() {
    let failing: [(&[u8], Fault); 9] = [
        // FR-24
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\nokEXTRA", Fault::Protocol),
        // FR-26
        (b"HTTP/1.1 200 OK\r\nX-A: 1\rX-B: 2\r\nContent-Length: 0\r\n\r\n", Fault::Protocol),
        (b"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 0\r\n\r\n", Fault::Protocol),
        (b"HTTP/1.1 200 OK\r\nX-A: a\r\n folded\r\nContent-Length: 0\r\n\r\n", Fault::Protocol),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", Fault::Protocol),
        (b"SSH-2.0-OpenSSH_9\r\n", Fault::Protocol),
        // FR-27
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\nraw",
            Fault::Upgrade,
        ),
        (b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nraw", Fault::Upgrade),
        (b"HTTP/1.1 2", Fault::Reset),
    ];
    for (answer, fault) in failing {
        let origin = Origin::new(move |mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(answer).await.unwrap();
        })
        .await;
        let upstream = plain();
        let failure = upstream.send(get(&origin, "/")).await.map(|_| ()).unwrap_err();
        let text = String::from_utf8_lossy(answer);
        assert_eq!(failure.fault, fault, "{text}");
        assert!(failure.progress >= Progress::Sent, "{text}");
        eventually("the connection is closed", || upstream.stats().open == 0).await;
    }
}

/// FR-23
#[tokio::test]
async fn an_answer_with_both_framing_fields_ends_its_connection() {
    let origin = Origin::saying(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\n",
    )
    .await;
    let upstream = plain();
    for round in 1..=3 {
        let answer = upstream.send(get(&origin, "/")).await.unwrap();
        assert!(!answer.headers().contains_key("content-length"));
        assert_eq!(collect(answer).await, (200, Bytes::new()));
        eventually("the connection is closed", || upstream.stats().open == 0).await;
        assert_eq!(origin.accepted(), round);
    }
}

#[tokio::test]
async fn heads_that_are_too_large() {
    let long: &'static str = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(70_000)).leak();
    let many: &'static str = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: a\r\n".repeat(400)).leak();
    for answer in [long, many] {
        let origin = Origin::saying(answer.as_bytes()).await;
        let failure = plain().send(get(&origin, "/")).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.fault, Fault::HeadTooLarge);
    }
    let large: &'static str =
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", "x: a\r\n".repeat(250)).leak();
    let origin = Origin::saying(large.as_bytes()).await;
    assert_eq!(fetch(&plain(), get(&origin, "/")).await.unwrap().0, 200);
}

fn endless(length: usize) -> Body {
    let frames = std::iter::repeat_with(|| {
        Ok::<_, BodyError>(http_body::Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))
    });
    Body::boxed(StreamBody::new(futures_util::stream::iter(frames.take(length / (16 * 1024)))))
}

#[tokio::test]
async fn an_early_answer_reaches_the_client_though_the_upload_was_cut() {
    for _ in 0..20 {
        let origin = Origin::new(|mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            let head = b"HTTP/1.1 413 Too Large\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n";
            stream.write_all(head).await.unwrap();
            stream.write_all(&[b'n'; 100_000]).await.unwrap();
            // Dropped with the upload unread: the kernel resets the connection.
        })
        .await;
        let mut request = get(&origin, "/upload");
        request.method = Method::POST;
        request.body = endless(64 << 20);
        let upstream = plain();
        let (status, body) = fetch(&upstream, request).await.unwrap();
        assert_eq!((status, body.len()), (413, 100_000));
        eventually("the connection is closed", || upstream.stats().open == 0).await;
    }
}

#[tokio::test]
async fn a_body_that_breaks_is_the_apps_fault() {
    let origin = Origin::new(|mut stream, _| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    })
    .await;
    for (error, fault) in
        [(BodyError::TooLarge, Fault::BodyTooLarge), (BodyError::DownstreamStalled, Fault::DownstreamStalled)]
    {
        let mut request = get(&origin, "/upload");
        request.method = Method::POST;
        let frames = [Ok(http_body::Frame::data(Bytes::from("abc"))), Err(error)];
        request.body = Body::boxed(StreamBody::new(futures_util::stream::iter(frames)));
        let failure = plain().send(request).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.fault, fault);
    }
}

#[tokio::test]
async fn a_connection_that_ends_without_an_answer_may_have_acted() {
    let origin = Origin::new(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
    })
    .await;
    let request = get(&origin, "/");
    let exchange = request.exchange.clone();
    let failure = plain().send(request).await.map(|_| ()).unwrap_err();
    assert_eq!((failure.fault, failure.progress), (Fault::Reset, Progress::Sent));
    assert!(exchange.may_have_acted());
}

#[tokio::test]
async fn an_upgrade_has_a_connection_of_its_own() {
    let origin = Origin::new(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            if head.to_lowercase().contains("upgrade: websocket") {
                let agreed = b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n";
                stream.write_all(agreed).await.unwrap();
                let mut ping = [0; 4];
                stream.read_exact(&mut ping).await.unwrap();
                stream.write_all(&ping).await.unwrap();
                return;
            }
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let upstream = upstream(pooled(1, Duration::from_secs(60)));
    fetch(&upstream, get(&origin, "/")).await.unwrap();
    eventually("it comes back", || upstream.stats().idle == 1).await;
    // The idle connection gives way, since the cap is one.
    let mut request = get(&origin, "/ws");
    request.upgrade = true;
    let answer = upstream.send(request).await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut socket = hyper_util::rt::TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    assert_eq!((upstream.stats().open, upstream.stats().idle), (1, 0));
    socket.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    socket.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    drop(socket);
    eventually("its place is free", || upstream.stats().open == 0).await;
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn dropping_the_upstream_closes_what_is_idle_and_lets_the_rest_finish() {
    let closed = Arc::new(Notify::new());
    let told = closed.clone();
    let origin = Origin::new(move |mut stream, _| {
        let told = told.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(OK).await.unwrap();
            }
            told.notify_one();
        }
    })
    .await;
    let upstream = plain();
    let answer = upstream.send(get(&origin, "/")).await.unwrap();
    drop(upstream);
    assert_eq!(collect(answer).await.1, "ok");
    tokio::time::timeout(Duration::from_secs(5), closed.notified()).await.unwrap();
}

#[tokio::test]
async fn a_request_whose_credential_ended_in_the_line_comes_back_unsent() {
    let (answers, answered) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (permits, heads) = (answers.clone(), answered.clone());
    let origin = Origin::new(move |mut stream, _| {
        let (permits, heads) = (permits.clone(), heads.clone());
        async move {
            while read_head(&mut stream).await.is_some() {
                heads.fetch_add(1, Ordering::SeqCst);
                permits.acquire().await.unwrap().forget();
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let upstream = upstream(pooled(1, Duration::from_secs(60)));
    let late = request(Scheme::Http, origin.address.port(), "/late");
    let exchange = late.exchange.clone();
    let first = tokio::spawn({
        let (upstream, request) = (upstream.clone(), get(&origin, "/first"));
        async move { fetch(&upstream, request).await }
    });
    eventually("the first is there", || answered.load(Ordering::SeqCst) == 1).await;
    exchange.facts().credential_ends = Some(End::at(Instant::now() + Duration::from_secs(3600)));
    let second = tokio::spawn({
        let upstream = upstream.clone();
        async move { fetch(&upstream, late).await }
    });
    eventually("the second is in line", || upstream.stats().waiting == 1).await;
    // What was good when it came to the line is over when its turn comes.
    exchange.facts().credential_ends = Some(End::at(Instant::now()));
    answers.add_permits(1);
    first.await.unwrap().unwrap();
    let mut failure = second.await.unwrap().err().unwrap();
    assert_eq!((failure.fault, failure.progress), (Fault::Credential, Progress::NotSent));
    assert!(failure.retry_after.is_some() && !exchange.may_have_acted());
    let facts = exchange.facts().clone();
    assert_eq!((facts.attempts, facts.credential), (0, None));
    assert_eq!(answered.load(Ordering::SeqCst), 1);
    // The connection was not used for it, and serves the same request with another credential.
    let again = failure.handed_back.take().unwrap().into_request();
    assert_eq!(again.path_and_query, "/late");
    exchange.facts().credential_ends = None;
    answers.add_permits(1);
    assert_eq!(fetch(&upstream, again).await.unwrap().0, 200);
    assert_eq!((exchange.facts().attempts, origin.accepted()), (1, 1));
}

/// The provider closes a pooled connection in the moment in which a request takes it, and the credential ends while the next
/// connection is made.
#[tokio::test]
async fn a_request_whose_credential_ended_behind_a_stale_connection_comes_back_unsent() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut ours = tokio::net::UnixStream::from_std(ours).unwrap();
    let ((go, going), (done, gone)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let server = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        stream.write_all(OK).unwrap();
        going.recv().unwrap();
        drop(stream);
        theirs.write_all(b"x").unwrap();
        done.send(()).unwrap();
    });
    let mut late = request(Scheme::Http, port, "/late");
    (late.tenant, late.credential_choice) = (Some("acme".into()), 1);
    late.body = Body::boxed(Body::full("it streams"));
    let (exchange, ends, dials) = (late.exchange.clone(), late.exchange.clone(), AtomicUsize::new(0));
    let env = Arc::new(UpstreamEnv {
        metrics: Arc::new(crate::telemetry::Metrics::new()),
        resolver: Resolver::scripted(Arc::new(move |_| {
            if dials.fetch_add(1, Ordering::SeqCst) == 1 {
                ends.facts().credential_ends = Some(End::at(Instant::now()));
            }
            Ok(vec!["127.0.0.1".parse().unwrap()])
        })),
        roots: Arc::new(RootCertStore::empty()),
        own_listeners: ArcSwap::from_pointee(OwnListeners::default()),
    });
    let upstream = Upstream::new(pooled(1, Duration::from_secs(60)), env, None, None).unwrap();
    assert_eq!(fetch(&upstream, request(Scheme::Http, port, "/first")).await.unwrap().0, 200);
    eventually("its connection is idle", || upstream.stats().idle == 1).await;
    go.send(()).unwrap();
    // Blocks the runtime: so it sees in one turn that the connection was closed and that this test goes on, and the test is first.
    gone.recv().unwrap();
    ours.read_u8().await.unwrap();
    let mut failure = upstream.send(late).await.err().unwrap();
    assert_eq!((failure.fault, failure.progress), (Fault::Credential, Progress::NotSent));
    assert_eq!(exchange.facts().reused, Some(true), "the connection of the first had it");
    assert!(failure.retry_after.is_some() && !exchange.may_have_acted());
    assert_eq!(exchange.facts().attempts, 0);
    let again = failure.handed_back.take().unwrap().into_request();
    assert_eq!((&*again.path_and_query.to_string(), again.credential_choice), ("/late", 1));
    assert_eq!((again.tenant.as_deref(), again.headers.is_empty()), (Some("acme"), true));
    assert_eq!(again.into_parts().body.collect().await.unwrap().to_bytes(), "it streams");
}
