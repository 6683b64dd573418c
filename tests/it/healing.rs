//! After a 401 the credential heals: re-read, or the next of a list, and the request is sent once more.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt;

use super::support::ca::TestCa;
use super::support::client::{Got, Raw, local_get, sample};
use super::support::origin::{HttpOrigin, RawOrigin, Script, Seen, Stream, read_request, text};
use super::support::proxy::Proxy;
use super::world::{HOST, directory, policy, until};

const LIST: &str = "    credential: { bearer: [\"file:{dir}/new\", \"file:{dir}/old\"] }";

/// An origin that accepts one bearer, changeable, and a proxy with the list of `new` and `old`.
struct World {
    proxy: Proxy,
    origin: HttpOrigin,
    accepted: Arc<Mutex<&'static str>>,
}

impl World {
    async fn new(accepted: &'static str, keys: &str) -> Self {
        let ca = TestCa::new();
        let accepted = Arc::new(Mutex::new(accepted));
        let wanted = accepted.clone();
        let origin = HttpOrigin::with(Some(ca.server(&[HOST], &["http/1.1"])), move |seen: Seen| {
            let carries = seen.header("authorization") == Some(&format!("Bearer {}", wanted.lock().unwrap()));
            text(if carries { 200 } else { 401 }, "{}")
        })
        .await;
        let dir = directory(&ca);
        std::fs::write(dir.path().join("new"), "the-new-secret-1").unwrap();
        std::fs::write(dir.path().join("old"), "the-old-secret-1").unwrap();
        let proxy = Proxy::start_in(dir, &policy(origin.address, keys, "")).await;
        Self { proxy, origin, accepted }
    }

    /// What the origin saw, in order.
    fn carried(&self) -> Vec<String> {
        let seen = self.origin.requests();
        seen.iter().map(|one| one.header("authorization").unwrap_or("").replace("Bearer ", "")).collect()
    }

    async fn post(&self, body: &str) -> Got {
        let mut raw = Raw::connect(self.proxy.address()).await;
        raw.send(format!(
            "POST /api/pay HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.proxy.address(),
            body.len()
        ))
        .await;
        raw.answer().await
    }
}

#[tokio::test]
async fn the_next_of_a_list_is_taken_with_the_same_body_and_then_preferred() {
    let world = World::new("the-old-secret-1", LIST).await;
    assert_eq!(world.post("amount=100").await.status, 200);
    assert_eq!(world.carried(), ["the-new-secret-1", "the-old-secret-1"]);
    let seen = world.origin.requests();
    assert_eq!((&seen[0].body[..], &seen[1].body[..]), (&b"amount=100"[..], &b"amount=100"[..]));
    assert_eq!(seen[0].uri, seen[1].uri);

    for _ in 0..3 {
        assert_eq!(world.post("amount=200").await.status, 200);
    }
    assert_eq!(world.carried()[2..], ["the-old-secret-1"; 3], "the one that worked is used first");
    let records = world.proxy.records(4).await;
    assert_eq!((&records[0]["outgate.attempts"], &records[3]["outgate.attempts"]), (&2.into(), &1.into()));
    assert_eq!(records[0]["outgate.retry.reason"], serde_json::json!(["unauthorized"]));
    assert!(records[0]["outgate.credential"].as_str().unwrap().ends_with("/old"), "{}", records[0]);

    // And back: when the old one is switched off, the new one takes over at once.
    *world.accepted.lock().unwrap() = "the-new-secret-1";
    assert_eq!(world.post("amount=300").await.status, 200);
    assert_eq!(world.carried()[5..], ["the-old-secret-1", "the-new-secret-1"]);
    // Each use of the old one is counted; an hour without one has not passed.
    let metrics = world.proxy.metrics();
    let provider = "provider=\"api\"";
    let counted = |event: &str| sample(&metrics, "outgate_credential_overlap_total", &[provider, event]);
    assert_eq!(
        (counted("event=\"old_needed\""), counted("event=\"safe_to_remove\"")),
        (Some(4.0), Some(0.0))
    );
}

/// The provider counts both requests, so both take a token of the rate; of the attempts there is one.
#[tokio::test]
async fn what_is_sent_again_takes_a_rate_token_and_no_attempt() {
    let limit =
        "    retry: { attempts: 1 }\n    limits: [{ name: account, rate: 2/h, burst: 2, on_excess: reject }]";
    let world = World::new("the-old-secret-1", &format!("{LIST}\n{limit}")).await;
    assert_eq!(world.post("amount=100").await.status, 200);
    let got = world.post("amount=200").await;
    assert_eq!((got.status, got.header("outgate-error")), (429, Some("rate_limited")));
    assert_eq!(world.carried(), ["the-new-secret-1", "the-old-secret-1"]);
}

#[tokio::test]
async fn with_a_member_that_cannot_be_read_the_refused_one_is_not_sent_again() {
    let list = "    credential: { bearer: [\"file:{dir}/absent\", \"file:{dir}/new\", \"file:{dir}/old\"] }";
    let world = World::new("the-old-secret-1", list).await;
    assert_eq!(world.post("amount=100").await.status, 200);
    assert_eq!(world.carried(), ["the-new-secret-1", "the-old-secret-1"]);
}

#[tokio::test]
async fn a_chunked_body_is_sent_again_too() {
    let world = World::new("the-old-secret-1", LIST).await;
    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send(format!(
        "POST /api/pay HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        world.proxy.address()
    ))
    .await;
    for piece in ["amount", "=", "100"] {
        raw.send(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
    }
    raw.send("0\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
    let bodies: Vec<_> = world.origin.requests().iter().map(|seen| seen.body.clone()).collect();
    assert_eq!(bodies, ["amount=100", "amount=100"]);
}

#[tokio::test]
async fn a_second_401_goes_to_the_app() {
    let world = World::new("neither", LIST).await;
    let got = world.post("x").await;
    assert_eq!((got.status, got.header("outgate-error")), (401, None));
    assert_eq!(world.carried(), ["the-new-secret-1", "the-old-secret-1"]);
    assert_eq!(world.post("x").await.status, 401);
    // No preference was won.
    assert_eq!(world.carried()[2], "the-new-secret-1");
}

#[tokio::test]
async fn a_file_that_was_rotated_just_before_is_read_again() {
    let world = World::new("the-new-secret-2", "    credential: { bearer: \"file:{dir}/new\" }").await;
    // Written and used in one breath: the watch cannot have been faster each time, and if it was, one attempt is enough.
    std::fs::write(world.proxy.dir.path().join("new"), "the-new-secret-2").unwrap();
    let got = local_get(&world.proxy, "/api/x").await;
    assert_eq!(got.status, 200, "{:?}", world.carried());
    assert_eq!(world.carried().last().unwrap(), "the-new-secret-2");
    assert!(world.carried().len() <= 2);
}

#[tokio::test]
async fn re_reading_happens_at_most_once_in_thirty_seconds() {
    let world = World::new("nothing", "    credential: { bearer: \"file:{dir}/new\" }").await;
    for _ in 0..5 {
        assert_eq!(local_get(&world.proxy, "/api/x").await.status, 401);
    }
    // The value was the same, so nothing was sent again.
    assert_eq!(world.carried().len(), 5);
}

#[tokio::test]
async fn what_the_buffer_cannot_hold_is_not_sent_again() {
    for keys in [format!("{LIST}\n    retry: {{ replay_buffer: 1KiB }}"), LIST.to_owned()] {
        let world = World::new("the-old-secret-1", &keys).await;
        let bound = if keys.contains("replay_buffer") { 1024 } else { 64 * 1024 };
        assert_eq!(world.post(&"x".repeat(bound + 1)).await.status, 401);
        assert_eq!(world.carried(), ["the-new-secret-1"]);
        assert_eq!(world.post(&"x".repeat(bound)).await.status, 200);
        assert_eq!(world.carried().len(), 3);
        let lengths: Vec<_> = world.origin.requests().iter().map(|seen| seen.body.len()).collect();
        assert_eq!(lengths, [bound + 1, bound, bound]);
    }
}

#[tokio::test]
async fn a_post_is_not_sent_twice_when_the_connection_breaks() {
    for keys in [LIST, "    credential: { bearer: \"file:{dir}/new\" }"] {
        // On a new connection, and on a kept one: the first answer leaves it open, the second request finds it closing.
        for broken in [0, 1] {
            let ca = TestCa::new();
            let count = Arc::new(AtomicUsize::new(0));
            let requests = count.clone();
            let script = Arc::new(move |mut stream: Box<dyn Stream>, _| {
                let requests = requests.clone();
                Box::pin(async move {
                    while read_request(&mut stream).await.is_some() {
                        if requests.fetch_add(1, Ordering::SeqCst) == broken {
                            return;
                        }
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
                        let _ = tokio::io::AsyncWriteExt::flush(&mut stream).await;
                    }
                }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
            });
            let origin = RawOrigin::start(Some(ca.server(&[HOST], &["http/1.1"])), script).await;
            let dir = directory(&ca);
            std::fs::write(dir.path().join("new"), "the-new-secret-1").unwrap();
            std::fs::write(dir.path().join("old"), "the-old-secret-1").unwrap();
            let proxy = Proxy::start_in(dir, &policy(origin.address, keys, "")).await;
            let mut raw = Raw::connect(proxy.address()).await;
            for number in 0..=broken {
                raw.send(format!(
                    "POST /api/pay HTTP/1.1\r\nHost: {}\r\nContent-Length: 3\r\n\r\npay",
                    proxy.address()
                ))
                .await;
                let got = raw.answer().await;
                if number == broken {
                    assert_eq!((got.status, got.header("outgate-error")), (502, Some("upstream_reset")));
                    assert_eq!(got.header("outgate-sent"), Some("maybe"));
                } else {
                    assert_eq!(got.status, 200);
                }
            }
            let records = proxy.records(broken + 1).await;
            assert_eq!(records[broken]["outgate.flag"], "UC");
            until("what was sent has arrived", || count.load(Ordering::SeqCst) > broken).await;
            assert_eq!(count.load(Ordering::SeqCst), broken + 1, "sent once");
        }
    }
}

/// What an origin saw of uploads: each body up to where it ended, and whether it ended well.
type Uploads = Arc<Mutex<Vec<(String, bool)>>>;

/// An origin that refuses everything but the old secret as soon as the first piece of a body is there, and goes on reading.
async fn hasty_origin(ca: &TestCa, version: &'static str, uploads: Uploads) -> RawOrigin {
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let uploads = uploads.clone();
        async move {
            let accepted = request.headers()["authorization"] == "Bearer the-old-secret-1";
            let mut body = request.into_body();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            let reading = async move {
                let mut whole = first.to_vec();
                let well = loop {
                    match body.frame().await {
                        Some(Ok(frame)) => whole.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                        Some(Err(_)) => break false,
                        None => break true,
                    }
                };
                uploads.lock().unwrap().push((String::from_utf8(whole).unwrap(), well));
            };
            if accepted {
                reading.await;
            } else {
                tokio::spawn(reading);
            }
            Ok::<_, std::convert::Infallible>(text(if accepted { 200 } else { 401 }, "{}"))
        }
    });
    let script: Script = Arc::new(move |stream, _| {
        let (stream, service) = (hyper_util::rt::TokioIo::new(stream), service.clone());
        Box::pin(async move {
            let _ = if version == "h2" {
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                builder.serve_connection(stream, service).await
            } else {
                hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
            };
        })
    });
    RawOrigin::start(Some(ca.server(&[HOST], &[version])), script).await
}

#[tokio::test]
async fn an_upload_that_was_answered_early_goes_on_with_the_next_credential_and_never_ends_at_the_first() {
    for version in ["http/1.1", "h2"] {
        let ca = TestCa::new();
        let uploads = Uploads::default();
        let origin = hasty_origin(&ca, version, uploads.clone()).await;
        let dir = directory(&ca);
        std::fs::write(dir.path().join("new"), "the-new-secret-1").unwrap();
        std::fs::write(dir.path().join("old"), "the-old-secret-1").unwrap();
        let proxy = Proxy::start_in(dir, &policy(origin.address, LIST, "")).await;
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!(
            "POST /api/pay HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none \r\n",
            proxy.address()
        ))
        .await;
        // The first attempt ends before the app goes on, and it ends badly.
        until("the first upload has ended", || !uploads.lock().unwrap().is_empty()).await;
        assert_eq!(uploads.lock().unwrap()[0], ("one ".to_owned(), false), "{version}");
        raw.send("3\r\ntwo\r\n0\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200, "{version}");
        assert_eq!(uploads.lock().unwrap()[1..], [("one two".to_owned(), true)], "{version}");
    }
}

/// Every kind that writes a secret takes a list in an overlap.
#[tokio::test]
async fn basic_header_and_query_have_an_overlap_too() {
    let list = "[\"file:{dir}/new\", \"file:{dir}/old\"]";
    for (keys, new, old) in [
        (
            format!("basic: {{ username: \"plain:u\", password: {list} }}"),
            "Basic dTp0aGUtbmV3LXNlY3JldC0x",
            "Basic dTp0aGUtb2xkLXNlY3JldC0x",
        ),
        (
            format!("header: {{ name: Authorization, value: {list}, format: \"Key {{secret}}\" }}"),
            "Key the-new-secret-1",
            "Key the-old-secret-1",
        ),
        (format!("query: {{ name: key, value: {list} }}"), "key=the-new-secret-1", "key=the-old-secret-1"),
    ] {
        let ca = TestCa::new();
        let accepted = old.to_owned();
        let origin = HttpOrigin::with(Some(ca.server(&[HOST], &["http/1.1"])), move |seen: Seen| {
            let carried = seen.header("authorization").or(seen.uri.query()).unwrap_or_default();
            text(if carried == accepted { 200 } else { 401 }, "{}")
        })
        .await;
        let dir = directory(&ca);
        std::fs::write(dir.path().join("new"), "the-new-secret-1").unwrap();
        std::fs::write(dir.path().join("old"), "the-old-secret-1").unwrap();
        let keys = format!("    credential: {{ {keys} }}");
        let proxy = Proxy::start_in(dir, &policy(origin.address, &keys, "")).await;
        assert_eq!(local_get(&proxy, "/api/x").await.status, 200, "{keys}");
        let seen = origin.requests();
        let carried: Vec<&str> = seen
            .iter()
            .map(|one| one.header("authorization").or(one.uri.query()).unwrap_or_default())
            .collect();
        assert_eq!(carried, [new, old], "{keys}");
    }
}
