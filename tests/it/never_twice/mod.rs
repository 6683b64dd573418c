//! Never twice: an origin that performs an effect for each request and is cut at random points, over HTTP/1.1 and HTTP/2.
//! However it breaks, no logical POST has more than one effect, except where the same idempotency key went with each.
//!
//! Seeded: a failure prints the seed; `OUTGATE_TEST_SEED` runs it again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::support::ca::TestCa;
use super::support::client::Raw;
use super::support::origin::read_request;
use super::support::proxy::Proxy;
use super::world::directory;

/// Logical POSTs in all, half of them over each version.
const POSTS: usize = 10_000;
/// Apps that post at the same time.
const APPS: usize = 48;

/// What the origin did: for each logical POST the keys that came with each of its effects.
#[derive(Default)]
struct Effects(Mutex<HashMap<String, Vec<Option<String>>>>);

impl Effects {
    fn perform(&self, order: &str, key: Option<String>) {
        self.0.lock().unwrap().entry(order.to_owned()).or_default().push(key);
    }
}

/// Where an exchange breaks, or how it ends.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    CutBeforeReading,
    CutAfterHead,
    CutAfterEffect,
    CutInTheAnswersHead,
    CutInTheAnswersBody,
    ResetAfterEffect,
    Silent,
    Refused(u16),
    FailedAfterEffect(u16),
}

struct Dice(Mutex<fastrand::Rng>);

impl Dice {
    fn fate(&self) -> Fate {
        let mut random = self.0.lock().unwrap();
        match random.u32(0..100) {
            0..=39 => Fate::Answered,
            40..=47 => Fate::CutBeforeReading,
            48..=54 => Fate::CutAfterHead,
            55..=63 => Fate::CutAfterEffect,
            64..=67 => Fate::CutInTheAnswersHead,
            68..=72 => Fate::CutInTheAnswersBody,
            73..=77 => Fate::ResetAfterEffect,
            78 => Fate::Silent,
            79..=86 => Fate::Refused(429),
            87..=91 => Fate::FailedAfterEffect(503),
            92..=95 => Fate::FailedAfterEffect(500),
            _ => Fate::FailedAfterEffect(502),
        }
    }
}

struct World {
    effects: Effects,
    dice: Dice,
    requests: AtomicUsize,
}

fn field(request: &str, name: &str) -> Option<String> {
    request.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

async fn http1(world: Arc<World>, mut stream: TcpStream) {
    loop {
        let fate = world.dice.fate();
        if let Fate::CutBeforeReading = fate {
            // A request may be on its way already, or may come to a connection that is closed.
            let _ = stream.readable().await;
            return;
        }
        if let Fate::CutAfterHead = fate {
            let mut some = [0_u8; 20];
            let _ = stream.read(&mut some).await;
            return;
        }
        let Some(request) = read_request(&mut stream).await else { return };
        world.requests.fetch_add(1, Ordering::Relaxed);
        let order = request.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned();
        if let Fate::Refused(status) = fate {
            let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\nRetry-After: 0\r\n\r\nno");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        world.effects.perform(&order, field(&request, "idempotency-key"));
        let status = match fate {
            Fate::FailedAfterEffect(status) => status,
            _ => 200,
        };
        let answer = format!("HTTP/1.1 {status} Done\r\nContent-Length: 4\r\n\r\ndone");
        let cut = match fate {
            Fate::CutAfterEffect => Some(0),
            Fate::CutInTheAnswersHead => Some(12),
            Fate::CutInTheAnswersBody => Some(answer.len() - 2),
            _ => None,
        };
        match (fate, cut) {
            (Fate::Silent, _) => {
                // Until the proxy gives up.
                let _ = stream.read(&mut [0_u8; 1]).await;
                return;
            }
            (Fate::ResetAfterEffect, _) => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            (_, Some(cut)) => {
                let _ = stream.write_all(&answer.as_bytes()[..cut]).await;
                return;
            }
            (_, None) => {
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn http2(world: Arc<World>, stream: tokio_rustls::server::TlsStream<TcpStream>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let (cut, mut cuts) = tokio::sync::mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            // Dropping the connection breaks every stream on it.
            _ = cuts.recv() => return,
        };
        let Some(Ok((request, mut respond))) = accepted else { return };
        let (world, cut) = (world.clone(), cut.clone());
        tokio::spawn(async move {
            let fate = world.dice.fate();
            if let Fate::CutBeforeReading = fate {
                // RFC 9113 section 8.7: not processed at all.
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                return;
            }
            if let Fate::CutAfterHead = fate {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
                return;
            }
            let (head, mut body) = request.into_parts();
            let mut order = Vec::new();
            while let Some(data) = body.data().await {
                // A request that was cut is none: nothing is done for it.
                let Ok(data) = data else { return };
                let _ = body.flow_control().release_capacity(data.len());
                order.extend_from_slice(&data);
            }
            assert!(!order.is_empty(), "a whole request has a body");
            world.requests.fetch_add(1, Ordering::Relaxed);
            let answer = |status: u16| http::Response::builder().status(status).body(()).unwrap();
            if let Fate::Refused(status) = fate {
                let mut refusal = answer(status);
                refusal.headers_mut().insert("retry-after", "0".parse().unwrap());
                let _ = respond.send_response(refusal, true);
                return;
            }
            let key = head.headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
            world.effects.perform(std::str::from_utf8(&order).unwrap(), key);
            match fate {
                Fate::CutAfterEffect => {
                    let _ = cut.send(()).await;
                }
                Fate::ResetAfterEffect => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                Fate::CutInTheAnswersHead => respond.send_reset(h2::Reason::CANCEL),
                Fate::CutInTheAnswersBody => {
                    if let Ok(mut stream) = respond.send_response(answer(200), false) {
                        let _ = stream.send_data(Bytes::from_static(b"do"), false);
                        stream.send_reset(h2::Reason::INTERNAL_ERROR);
                    }
                }
                Fate::Silent => {
                    let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                }
                Fate::FailedAfterEffect(status) => {
                    let _ = respond.send_response(answer(status), true);
                }
                Fate::Answered | Fate::CutBeforeReading | Fate::CutAfterHead | Fate::Refused(_) => {
                    if let Ok(mut stream) = respond.send_response(answer(200), false) {
                        let _ = stream.send_data(Bytes::from_static(b"done"), true);
                    }
                }
            }
        });
    }
}

async fn origins(world: &Arc<World>, ca: &TestCa) -> (SocketAddr, SocketAddr) {
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = (plain.local_addr().unwrap(), secure.local_addr().unwrap());
    let one = world.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = plain.accept().await {
            tokio::spawn(http1(one.clone(), stream));
        }
    });
    let (two, tls) = (world.clone(), TlsAcceptor::from(ca.server(&["two.example.test"], &["h2"])));
    tokio::spawn(async move {
        while let Ok((stream, _)) = secure.accept().await {
            let (world, tls) = (two.clone(), tls.clone());
            tokio::spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    http2(world, stream).await;
                }
            });
        }
    });
    addresses
}

/// Two providers a version: one that knows no keys, one that honours them.
fn policy(one: SocketAddr, two: SocketAddr) -> String {
    let upstream = [
        format!("{{ scheme: http, connect_to: \"{one}\" }}"),
        format!("{{ connect_to: \"{two}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}"),
    ];
    let mut text = String::from(
        "defaults:\n  timeouts: { response: 300ms }\n  retry: { attempts: 4, backoff: { base: 1ms, max: 5ms }, budget: { ratio: 100%, min_per_second: 1000 } }\n  quota: off\nproviders:\n",
    );
    for (host, upstream) in ["one", "two"].iter().zip(&upstream) {
        for (name, idempotency) in
            [("plain", "off"), ("keyed", "{ header: Idempotency-Key, methods: [POST], add: true }")]
        {
            text.push_str(&format!(
                "  {host}-{name}:\n    hosts: [{host}.example.test]\n    doors: [local]\n    upstream: {upstream}\n    idempotency: {idempotency}\n"
            ));
        }
    }
    text
}

/// One logical POST: what an app that does not retry by itself gets.
async fn post(proxy: SocketAddr, provider: &str, order: &str, key: Option<&str>) -> Option<u16> {
    let mut raw = Raw::connect(proxy).await;
    let key = key.map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
    raw.send(format!(
        "POST /{provider}/pay HTTP/1.1\r\nHost: {proxy}\r\nConnection: close\r\n{key}Content-Length: {}\r\n\r\n{order}",
        order.len()
    ))
    .await;
    raw.answer_or_end().await.map(|got| got.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the machine and the descriptors of a process for itself: `make test` runs it alone"]
async fn ten_thousand_posts_act_once() {
    let seed = std::env::var("OUTGATE_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("OUTGATE_TEST_SEED={seed}");
    let ca = TestCa::new();
    let world = Arc::new(World {
        effects: Effects::default(),
        dice: Dice(Mutex::new(fastrand::Rng::with_seed(seed))),
        requests: AtomicUsize::new(0),
    });
    let (one, two) = origins(&world, &ca).await;
    let proxy = Proxy::start_in(directory(&ca), &policy(one, two)).await;
    let (address, next) = (proxy.address(), Arc::new(AtomicUsize::new(0)));
    let mut apps = JoinSet::new();
    for _ in 0..APPS {
        let next = next.clone();
        apps.spawn(async move {
            let mut done = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= POSTS {
                    return done;
                }
                let provider = ["one-plain", "two-plain", "one-keyed", "two-keyed"][number % 4];
                // Every eighth app that talks to a provider with keys brings a key of its own.
                let own = (number % 32 >= 30).then(|| format!("own-{number}"));
                if post(address, provider, &format!("{provider}-{number}"), own.as_deref()).await == Some(200)
                {
                    done += 1;
                }
            }
        });
    }
    let done: usize = apps.join_all().await.into_iter().sum();

    let effects = world.effects.0.lock().unwrap();
    let mut repeated = 0;
    for (order, keys) in effects.iter() {
        if keys.len() == 1 {
            continue;
        }
        repeated += 1;
        assert!(order.contains("keyed"), "seed {seed}: {order} acted {} times without a key", keys.len());
        let first = keys[0].as_ref().unwrap_or_else(|| panic!("seed {seed}: {order} went without a key"));
        assert!(keys.iter().all(|key| key.as_ref() == Some(first)), "seed {seed}: {order} had {keys:?}");
        let number = order.rsplit('-').next().unwrap();
        if first.starts_with("own-") {
            assert_eq!(*first, format!("own-{number}"), "seed {seed}: the app's own key is kept");
        }
    }
    let requests = world.requests.load(Ordering::Relaxed);
    println!("{done} of {POSTS} were answered 200, {requests} requests, {repeated} repeated under one key");
    // The test must have tested something: retries happened, with keys and (of refusals) without.
    assert!(repeated > 200, "seed {seed}: only {repeated} were repeated under a key");
    assert!(done > POSTS * 4 / 10, "seed {seed}: only {done} came through");
}

/// Where outgate repeats nothing, the app's SDK would: it has to hear of what may have acted all the same.
#[tokio::test]
async fn without_retries_the_app_is_told_all_the_same() {
    let script: super::support::origin::Script = Arc::new(|mut stream, _| {
        Box::pin(async move {
            while let Some(request) = read_request(&mut stream).await {
                let answer: &[u8] = match request.split(' ').nth(1).unwrap_or_default() {
                    "/busy" => b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno",
                    "/limit" => b"HTTP/1.1 429 Slow\r\nContent-Length: 2\r\n\r\nno",
                    "/cut" => b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
                    _ => b"",
                };
                let _ = stream.write_all(answer).await;
                if answer.is_empty() || answer.ends_with(b"ok") {
                    return;
                }
            }
        })
    });
    let origin = super::support::origin::RawOrigin::start(None, script).await;
    let proxy = Proxy::start(&format!(
        "defaults: {{ retry: {{ hint: {{ header: X-Should-Retry }} }}, quota: off }}
providers:
  api:
    hosts: [api.example.test]
    upstream: {{ scheme: http, connect_to: \"{}\" }}
    retry: off
    routes: [{{ match: {{ path: /routed }}, retry: off }}, {{ match: {{ path: /silenced }}, retry: {{ hint: null }} }}]
",
        origin.address
    ))
    .await;
    // Method, path, then status, `Outgate-Sent` and the hint.
    for (method, path, expected) in [
        ("POST", "/reset", (502, Some("maybe"), Some("false"))),
        ("POST", "/routed", (502, Some("maybe"), Some("false"))),
        // The answer is cut behind its head, which is held back for that.
        ("POST", "/cut", (502, Some("maybe"), Some("false"))),
        ("POST", "/busy", (503, None, Some("false"))),
        // It proves that nothing was done.
        ("POST", "/limit", (429, None, None)),
        // The app can repeat it without harm.
        ("GET", "/reset", (502, Some("maybe"), None)),
        ("POST", "/silenced", (502, Some("maybe"), None)),
    ] {
        let mut raw = Raw::connect(proxy.address()).await;
        let address = proxy.address();
        raw.send(format!("{method} /api{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"))
            .await;
        let got = raw.answer().await;
        let told = (got.status, got.header("outgate-sent"), got.header("x-should-retry"));
        assert_eq!(told, expected, "{method} {path}");
    }
    let attempts: Vec<_> =
        proxy.records(7).await.iter().map(|record| record["outgate.attempts"].as_u64()).collect();
    assert_eq!(attempts[..6], [Some(1); 6]);
}
