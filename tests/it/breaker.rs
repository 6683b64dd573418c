//! The circuit breaker under load: a provider that dies while the limiter's queue is full, and comes back; the breaker by
//! hand; and what it answers instead.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outgate::pipeline::reload::ReloadOutcome;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::support::client::{Got, PATIENCE, Raw, admin, local_request, sample};
use super::support::log::{fullest_of, let_go};
use super::support::origin::{HttpOrigin, RawOrigin, read_request, text};
use super::support::proxy::Proxy;

/// How a provider is dead.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// It answers 503.
    Unavailable,
    /// It closes each connection as soon as it has read a request.
    Closes,
}

/// Whether outgate tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retries {
    Off,
    /// Three attempts at 20 ms and more, of which the budget refuses none.
    On,
}

/// A provider that can die, and writes down when each request came.
struct Mortal {
    origin: RawOrigin,
    is_dead: Arc<AtomicBool>,
    /// When each request came, and whether it was served.
    seen: Arc<Mutex<Vec<(Instant, bool)>>>,
}

impl Mortal {
    async fn start(death: Death) -> Self {
        let (is_dead, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<(Instant, bool)>>>::default());
        let (dead, book) = (is_dead.clone(), seen.clone());
        let script: super::support::origin::Script = Arc::new(move |mut stream, _| {
            let (dead, book) = (dead.clone(), book.clone());
            Box::pin(async move {
                while read_request(&mut stream).await.is_some() {
                    let lives = !dead.load(Ordering::SeqCst);
                    book.lock().unwrap().push((Instant::now(), lives));
                    let answer: &[u8] = match (lives, death) {
                        (true, _) => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                        (false, Death::Unavailable) => {
                            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndead"
                        }
                        (false, Death::Closes) => return,
                    };
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            })
        });
        Self { origin: RawOrigin::start(None, script).await, is_dead, seen }
    }

    fn dies(&self, dead: bool) -> Instant {
        self.is_dead.store(dead, Ordering::SeqCst);
        Instant::now()
    }

    fn since(&self, since: Instant) -> Vec<(Instant, bool)> {
        self.seen.lock().unwrap().iter().copied().filter(|(at, _)| *at >= since).collect()
    }
}

/// Requests at an even rate, whatever becomes of them, until it is dropped.
async fn load(address: SocketAddr, per_second: u32) {
    let mut asked = JoinSet::new();
    let mut due = tokio::time::Instant::now();
    loop {
        due += Duration::from_secs(1) / per_second;
        tokio::time::sleep_until(due).await;
        asked.spawn(async move {
            let mut raw = Raw::connect(address).await;
            raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).await;
            let _ = raw.answer_or_end().await;
        });
        while asked.try_join_next().is_some() {}
    }
}

/// Polls until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) -> Instant {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Instant::now()
}

fn policy(origin: SocketAddr, keys: &str) -> String {
    format!(
        "providers:
  api:
    hosts: [api.example.test]
    upstream: {{ scheme: http, connect_to: \"{origin}\" }}
    retry: off
{keys}"
    )
}

fn events(proxy: &Proxy, event: &str) -> usize {
    let labels = ["provider=\"api\"", &format!("event=\"{event}\"")];
    sample(&proxy.metrics(), "outgate_breaker_events_total", &labels).unwrap_or(0.0) as usize
}

async fn get(proxy: &Proxy, path: &str) -> Got {
    local_request(proxy.address(), "GET", path, "", "").await
}

const RATE: usize = 50;
const QUEUE: f64 = 60.0;
const OPEN_FOR: Duration = Duration::from_millis(500);
const FAILURES: usize = 5;

async fn dies_and_recovers(death: Death, retries: Retries) {
    let mortal = Mortal::start(death).await;
    let keys = format!(
        "    limits: [{{ name: account, rate: {RATE}/s, burst: 5, on_excess: wait, max_wait: 5s, max_queue: {QUEUE} }}]
    breaker: {{ failures: {FAILURES}, error_rate: off, open_for: 500ms, max_open_for: 500ms, half_open: {{ probes: 1, successes: 2 }} }}
"
    );
    let text = policy(mortal.origin.address, &keys);
    let eager = "    retry: { attempts: 3, backoff: { base: 20ms }, budget: { ratio: 100%, min_per_second: 1000 } }\n";
    let text = if retries == Retries::On { text.replace("    retry: off\n", eager) } else { text };
    let proxy = Proxy::start(&text).await;
    let load = tokio::spawn(load(proxy.address(), 150));
    let waiting = || sample(&proxy.metrics(), "outgate_limit_waiting", &["limit=\"account\""]);
    until("the queue is full", || waiting() == Some(QUEUE)).await;

    let died = mortal.dies(true);
    let opened = until("open", || events(&proxy, "opened") > 0).await;
    // The first opening, and one for each probe that failed: the answer to the last one is known, too.
    until("some probes have failed", || events(&proxy, "opened") >= 5).await;
    let recovered = mortal.dies(false);
    let probes = events(&proxy, "probe");
    let closed = until("closed", || events(&proxy, "closed") > 0).await;
    assert!(opened < recovered && recovered < closed);

    // Those that opened it, what was on its way at that moment, and the probes, of which the first comes after `OPEN_FOR`.
    let dead: Vec<_> =
        mortal.since(died).into_iter().filter(|(at, lives)| *at < recovered && !lives).collect();
    let opening = dead.iter().filter(|(at, _)| *at <= opened + OPEN_FOR / 2).count();
    let open: Vec<_> = dead[opening..].to_vec();
    // What the limiter lets go between the failure that opens it at the provider, and in the proxy.
    let noticed = opened.saturating_duration_since(dead[FAILURES - 1].0);
    let under_way = 3 + (noticed.as_secs_f64() * RATE as f64) as usize;
    println!(
        "{death:?}, retries {retries:?}: {opening} until it opened, noticed after {noticed:?}, {} while it was open ({probes} probes in {:?}); first success after {:?}",
        open.len(),
        recovered - opened,
        mortal.since(recovered).iter().find(|(_, lives)| *lives).map(|(at, _)| *at - recovered),
    );
    assert!((FAILURES..=FAILURES + under_way).contains(&opening), "{opening}");
    assert!(open.len() <= probes, "{} requests, {probes} probes", open.len());
    let most = (recovered - opened).as_millis() / OPEN_FOR.as_millis() + 1;
    assert!(open.len() as u128 <= most, "{} in {:?}", open.len(), recovered - opened);
    for pair in open.windows(2) {
        // A probe may come late, and the next one then seems early.
        assert!(pair[1].0 - pair[0].0 >= OPEN_FOR.mul_f64(0.8), "{:?}", pair[1].0 - pair[0].0);
    }

    // Recovered within one probe interval, a request of the load and the machine's own delays on top.
    let first = mortal.since(recovered).into_iter().find(|(_, lives)| *lives).unwrap().0;
    assert!(first - recovered <= OPEN_FOR + Duration::from_millis(250), "{:?}", first - recovered);

    let repeated = sample(&proxy.metrics(), "outgate_retries_total", &["result=\"granted\""]).unwrap_or(0.0);
    assert_eq!(repeated > 0.0, retries == Retries::On, "{repeated} retries");

    // No herd: what waits goes at the limiter's pace.
    until("two seconds went by", || closed.elapsed() > Duration::from_secs(2)).await;
    load.abort();
    let after = mortal.since(recovered);
    let records = proxy.records(0).await;
    // A record tells one moment, so those with several attempts, which fell into the death, are counted at the origin alone.
    let served = |record: &&serde_json::Value| record["outgate.attempts"] == 1;
    let moments: Vec<_> = records.iter().filter(served).map(let_go).collect();
    // The whole time, the queue that waited out the breaker included; less what the log's time is rounded by.
    let most = fullest_of(moments, 998.0);
    println!("{death:?}: {} in {:?} afterwards, fullest second {most}", after.len(), recovered.elapsed());
    // What is let go is exact without retries; with them a record says too little of when.
    assert!(most <= RATE || retries == Retries::On, "{most}");
    let seen: Vec<_> =
        mortal.since(died).iter().map(|(at, _)| (*at - died).as_secs_f64() * 1_000.0).collect();
    let at_origin = fullest_of(seen, 1_000.0);
    assert!(at_origin <= RATE * 6 / 5, "{at_origin}: a fifth is for the machine's own delays");
    assert!(after.len() > RATE, "it is used again: {}", after.len());
    assert_eq!(
        (events(&proxy, "opened"), events(&proxy, "closed")),
        (probes + 1, 1),
        "each failed probe opens it again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the machine for itself: `make test` runs it alone"]
async fn a_provider_that_answers_503_under_a_full_queue_is_probed_and_no_more() {
    dies_and_recovers(Death::Unavailable, Retries::Off).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the machine for itself: `make test` runs it alone"]
async fn retries_probe_a_provider_that_answers_503_no_more_often() {
    dies_and_recovers(Death::Unavailable, Retries::On).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the machine for itself: `make test` runs it alone"]
async fn retries_probe_a_provider_that_closes_connections_no_more_often() {
    dies_and_recovers(Death::Closes, Retries::On).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the machine for itself: `make test` runs it alone"]
async fn a_provider_that_closes_connections_under_a_full_queue_is_probed_and_no_more() {
    dies_and_recovers(Death::Closes, Retries::Off).await;
}

/// Sends a request to an admin listener that is a unix socket.
async fn at_socket(path: &std::path::Path, request: &str) -> Got {
    let mut raw = Raw::over(UnixStream::connect(path).await.unwrap());
    raw.send(format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await;
    raw.answer().await
}

/// What is forced holds, whatever the provider does; then the breaker decides again.
async fn is_forced_by(proxy: &Proxy, force: impl AsyncFn(&str) -> Got) {
    assert_eq!(get(proxy, "/api/x").await.status, 200);
    let got = force("open").await;
    assert_eq!((got.status, got.text().contains("\"forced\": \"open\"")), (200, true), "{got:?}");
    let got = get(proxy, "/api/x").await;
    assert_eq!((got.status, got.header("outgate-error")), (503, Some("breaker_open")));
    assert_eq!(got.header("outgate-sent"), Some("no"));
    assert_eq!(force("closed").await.status, 200);
    // `failures: 1`: it would open.
    for _ in 0..3 {
        let got = get(proxy, "/api/fails").await;
        assert_eq!((got.status, got.header("outgate-error")), (503, None), "{got:?}");
    }
    assert_eq!(force("auto").await.status, 200);
    get(proxy, "/api/fails").await;
    let got = get(proxy, "/api/x").await;
    assert_eq!((got.status, got.header("outgate-error")), (503, Some("breaker_open")));
    let wait: u64 = got.header("retry-after").expect("when the next probe may go").parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(force("ajar").await.status, 404);
}

async fn failing() -> HttpOrigin {
    HttpOrigin::with(None, |seen| text(if seen.uri.path() == "/fails" { 503 } else { 200 }, "{}")).await
}

#[tokio::test]
async fn it_is_forced_over_a_unix_socket() {
    let origin = failing().await;
    let keys = "    breaker: { failures: 1, open_for: 1m }\n";
    let top = "admin: { address: \"unix:{dir}/admin.sock\" }\n";
    let proxy = Proxy::start(&format!("{top}{}", policy(origin.address, keys))).await;
    let socket = proxy.dir.path().join("admin.sock");
    is_forced_by(&proxy, async |state| at_socket(&socket, &format!("POST /breakers/api/{state}")).await)
        .await;
    assert_eq!(at_socket(&socket, "POST /breakers/nobody/open").await.status, 404);
    assert_ne!(at_socket(&socket, "GET /breakers/api/open").await.status, 200);
}

#[tokio::test]
async fn what_is_forced_is_the_providers_and_shows_in_the_metrics() {
    let origin = failing().await;
    let top = "admin: { address: \"unix:{dir}/admin.sock\" }\n";
    let of = |keys: &str| format!("{top}{}", policy(origin.address, keys));
    let provider = of("    breaker: { failures: 1, open_for: 1m }\n");
    let route =
        of("    routes: [{ name: own, match: { path: /x }, breaker: { failures: 1, open_for: 1m } }]\n");
    let proxy = Proxy::start(&provider).await;
    let socket = proxy.dir.path().join("admin.sock");
    let force = async |state: &str| at_socket(&socket, &format!("POST /breakers/api/{state}")).await.status;
    let gauge = |name: &str, owner: &str| {
        sample(&proxy.metrics(), name, &["provider=\"api\"", &format!("owner=\"{owner}\"")])
    };
    assert_eq!(get(&proxy, "/api/x").await.status, 200);
    assert_eq!(
        (gauge("outgate_breaker_state", ""), gauge("outgate_breaker_forced", "")),
        (Some(0.0), Some(0.0))
    );
    assert_eq!(force("open").await, 200);
    assert_eq!(
        (gauge("outgate_breaker_state", ""), gauge("outgate_breaker_forced", "")),
        (Some(2.0), Some(2.0))
    );
    // Another owner after a reload, and none for a while: what was forced by hand holds.
    for (text, status) in [(&route, 503), (&of(""), 200), (&route, 503), (&provider, 503)] {
        assert!(matches!(proxy.reload(text).await, ReloadOutcome::Applied(_)));
        let got = get(&proxy, "/api/x").await;
        assert_eq!(got.status, status, "{text}");
    }
    assert_eq!(force("closed").await, 200);
    assert_eq!(gauge("outgate_breaker_forced", ""), Some(1.0));
    assert_eq!(force("auto").await, 200);
    assert!(matches!(proxy.reload(&route).await, ReloadOutcome::Applied(_)));
    assert_eq!(get(&proxy, "/api/x").await.status, 200);
    assert_eq!(gauge("outgate_breaker_forced", "own"), Some(0.0));
}

#[tokio::test]
async fn it_is_forced_over_loopback_with_the_token_and_not_without() {
    let origin = failing().await;
    let keys = "    breaker: { failures: 1, open_for: 1m }\n";
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("token"), "a-token-for-the-admin-listener").unwrap();
    let top = "admin: { address: \"127.0.0.1:0\", token: \"file:{dir}/token\" }\n";
    let proxy = Proxy::start_in(dir, &format!("{top}{}", policy(origin.address, keys))).await;
    let ask = async |state: &str, token: &str| {
        let line = format!("Authorization: Bearer {token}\r\n");
        local_request(proxy.admin(), "POST", &format!("/breakers/api/{state}"), &line, "").await
    };
    for state in ["open", "closed", "auto"] {
        assert_eq!(admin(&proxy, "POST", &format!("/breakers/api/{state}")).await.status, 401);
        assert_eq!(ask(state, "another-token").await.status, 401);
    }
    assert_eq!(get(&proxy, "/api/x").await.status, 200, "nothing was forced");
    is_forced_by(&proxy, async |state| ask(state, "a-token-for-the-admin-listener").await).await;
}

#[tokio::test]
async fn nobody_forces_it_over_loopback_where_there_is_no_token() {
    let origin = failing().await;
    let proxy = Proxy::start(&policy(origin.address, "    breaker: { failures: 1 }\n")).await;
    for state in ["open", "closed", "auto"] {
        assert_eq!(admin(&proxy, "POST", &format!("/breakers/api/{state}")).await.status, 401, "{state}");
    }
    assert_eq!(get(&proxy, "/api/x").await.status, 200);
}

#[tokio::test]
async fn an_open_breaker_survives_a_reload_that_edits_a_number() {
    let origin = failing().await;
    let keys = |open_for: &str| format!("    breaker: {{ failures: 1, open_for: {open_for} }}\n");
    let proxy = Proxy::start(&policy(origin.address, &keys("10m"))).await;
    get(&proxy, "/api/fails").await;
    assert_eq!(get(&proxy, "/api/x").await.header("outgate-error"), Some("breaker_open"));
    let outcome = proxy.reload(&policy(origin.address, &keys("20m"))).await;
    assert!(matches!(outcome, ReloadOutcome::Applied(2)), "{outcome:?}");
    let got = get(&proxy, "/api/x").await;
    assert_eq!((got.status, got.header("outgate-error")), (503, Some("breaker_open")));
    let wait: u64 = got.header("retry-after").unwrap().parse().unwrap();
    assert!((500..=600).contains(&wait), "it opened for ten minutes: {wait}");
    assert_eq!((events(&proxy, "opened"), origin.requests().len()), (1, 1));
    let records = proxy.records(3).await;
    assert_eq!(
        (&records[1]["outgate.generation"], &records[2]["outgate.generation"]),
        (&1.into(), &2.into())
    );
    // A provider that has none any more is asked again.
    let outcome = proxy.reload(&policy(origin.address, "")).await;
    assert!(matches!(outcome, ReloadOutcome::Applied(3)), "{outcome:?}");
    assert_eq!(get(&proxy, "/api/x").await.status, 200);
}

#[tokio::test]
async fn a_static_fallback_is_what_the_app_gets_and_the_record_says_why() {
    let origin = failing().await;
    let keys = "    breaker: { failures: 1, open_for: 1m, fallback: { status: 200, headers: { Content-Type: application/json, X-Fallback: static }, body: \"[]\" } }\n";
    let proxy = Proxy::start(&policy(origin.address, keys)).await;
    assert_eq!(get(&proxy, "/api/fails").await.status, 503);
    let got = get(&proxy, "/api/x").await;
    assert_eq!((got.status, got.text().as_str()), (200, "[]"), "{got:?}");
    assert_eq!(
        (got.header("content-type"), got.header("x-fallback")),
        (Some("application/json"), Some("static"))
    );
    assert!(got.header("outgate-request-id").is_some());
    let records = proxy.records(2).await;
    let record = &records[1];
    assert_eq!(
        (&record["outgate.flag"], &record["error.type"]),
        (&"UO".into(), &"breaker_open".into()),
        "{record}"
    );
    assert_eq!((&record["http.response.status_code"], &record["outgate.attempts"]), (&200.into(), &0.into()));
    assert!(records[0]["outgate.flag"].is_null(), "{}", records[0]);
    assert_eq!((events(&proxy, "fallback"), origin.requests().len()), (1, 1));
    let labels = ["code_class=\"2xx\"", "flag=\"UO\""];
    assert_eq!(sample(&proxy.metrics(), "outgate_requests_total", &labels), Some(1.0));
}

#[tokio::test]
async fn the_stale_fallback_gives_what_the_cache_has() {
    let origin = HttpOrigin::with(None, |seen| {
        let mut answer = text(if seen.uri.path() == "/fails" { 503 } else { 200 }, "kept");
        answer.headers_mut().insert("cache-control", "max-age=0".parse().unwrap());
        answer.headers_mut().insert("etag", "\"v1\"".parse().unwrap());
        answer
    })
    .await;
    let keys =
        "    breaker: { failures: 1, open_for: 1m, fallback: stale }\n    cache: { stale_if_error: 1h }\n";
    let proxy = Proxy::start(&policy(origin.address, keys)).await;
    assert_eq!(get(&proxy, "/api/things").await.text(), "kept");
    assert_eq!(get(&proxy, "/api/fails").await.status, 503);
    let got = get(&proxy, "/api/things").await;
    assert_eq!((got.status, got.text().as_str()), (200, "kept"), "{got:?}");
    assert!(got.header("age").is_some(), "{got:?}");
    println!("{:?}", got.header("cache-status"));
    let none = get(&proxy, "/api/others").await;
    assert_eq!((none.status, none.header("outgate-error")), (503, Some("breaker_open")), "{none:?}");
    assert_eq!(origin.requests().len(), 2, "nothing is asked while it is open");
    let records = proxy.records(4).await;
    println!("{}", records[2]);
    assert_eq!(records[2]["outgate.attempts"], 0);
    assert_eq!(
        (&records[3]["outgate.flag"], &records[3]["error.type"]),
        (&"UO".into(), &"breaker_open".into())
    );
    assert_eq!(
        sample(&proxy.metrics(), "outgate_cache_events_total", &["event=\"stale_served\""]),
        Some(1.0)
    );
}
