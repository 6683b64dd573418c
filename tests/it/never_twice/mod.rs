//! Never twice: an origin that performs an effect for each request and is cut at random points, over HTTP/1.1 and HTTP/2.
//! However it breaks, no logical POST has more than one effect, except where the same idempotency key went with each.
//!
//! Seeded: a failure prints the seed; `OUTGATE_TEST_SEED` runs it again.

mod goaway;
mod origin;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use self::origin::{World, origins};
use super::support::ca::TestCa;
use super::support::client::Raw;
use super::support::origin::read_request;
use super::support::proxy::Proxy;
use super::world::directory;

/// Logical POSTs in all, half of them over each version.
const POSTS: usize = 10_000;
/// Apps that post at the same time.
const APPS: usize = 48;

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
    let head = format!(
        "POST /{provider}/pay/{order} HTTP/1.1\r\nHost: {proxy}\r\nConnection: close\r\n{key}Content-Length: {}\r\n\r\n",
        order.len()
    );
    // Some bodies come in two pieces, so that what is answered early is answered while there is more to come.
    let (at_once, later) = if order.ends_with('5') { order.split_at(3) } else { (order, "") };
    raw.send(head + at_once).await;
    if !later.is_empty() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        // Whoever was answered already may be gone.
        let _ = raw.stream.write_all(later.as_bytes()).await;
    }
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
    let world = Arc::new(World::new(seed));
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

    let effects = world.effects();
    let mut repeated = 0;
    for (order, keys) in &effects {
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
    let met = world.met();
    println!(
        "{done} of {POSTS} were answered 200, {repeated} repeated under one key; fates that were met: {met:?}"
    );
    // The test must have tested something: retries happened, with keys and (of refusals) without.
    assert!(repeated > 200, "seed {seed}: only {repeated} were repeated under a key");
    assert!(done > POSTS * 4 / 10, "seed {seed}: only {done} came through");
    for fate in origin::every_fate() {
        let met = met.get(&fate).copied().unwrap_or_default();
        assert!(met >= 10, "seed {seed}: {fate:?} was met {met} times");
    }
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
