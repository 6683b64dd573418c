//! Four pods, each a process of its own, that share one limit through a real Redis, which is killed and comes back.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::program::Program;
use super::support::client::{PATIENCE, Raw, local_request};
use super::support::log::{fullest_of, let_go};
use super::support::origin::{HttpOrigin, RawOrigin, read_request};

/// A Redis without persistence on a free port; killed when it is dropped.
pub struct Redis {
    port: u16,
    child: Option<Child>,
}

impl Redis {
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut redis = Self { port, child: None };
        redis.restart().await;
        redis
    }

    /// Starts it, empty; returns when it answers.
    async fn restart(&mut self) {
        let child = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--port",
                &self.port.to_string(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while !self.answers().await {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn answers(&self) -> bool {
        let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await else {
            return false;
        };
        let mut answer = [0; 5];
        stream.write_all(b"PING\r\n").await.is_ok()
            && stream.read_exact(&mut answer).await.is_ok()
            && &answer == b"+PONG"
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

const LIMIT: usize = 200;
/// The limit by which the machine is measured: about what the first pod is leased.
const CONTROL: usize = 157;
/// So many a second of the limit must be in use.
const NEARLY: f64 = 196.0;
const SECOND: Duration = Duration::from_secs(1);
/// What each pod is asked for in a second: the first gets nine of ten.
const SKEWED: [f64; 4] = [360.0, 13.3, 13.3, 13.3];

/// An origin that writes down when each request came. It has a thread of its own, since what it writes is the measure.
struct Watch {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Instant>>>,
}

impl Watch {
    fn start() -> Self {
        let seen = Arc::<Mutex<Vec<Instant>>>::default();
        let book = seen.clone();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let script: super::support::origin::Script = Arc::new(move |mut stream, _| {
                    let book = book.clone();
                    Box::pin(async move {
                        while read_request(&mut stream).await.is_some() {
                            book.lock().unwrap().push(Instant::now());
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                            if stream.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    })
                });
                let origin = RawOrigin::start(None, script).await;
                tell.send(origin.address).unwrap();
                std::future::pending::<()>().await;
            });
        });
        Self { address: told.recv().unwrap(), seen }
    }

    fn between(&self, from: Instant, to: Instant) -> Vec<Instant> {
        self.seen.lock().unwrap().iter().copied().filter(|at| (from..to).contains(at)).collect()
    }

    /// How many came in the window that ends now.
    fn last(&self, window: Duration) -> usize {
        let now = Instant::now();
        self.between(now - window, now).len()
    }
}

/// The most that any window of this length holds.
fn fullest(seen: &[Instant], window: Duration) -> usize {
    let mut first = 0;
    (0..seen.len())
        .map(|last| {
            while seen[last] - seen[first] >= window {
                first += 1;
            }
            last + 1 - first
        })
        .max()
        .unwrap_or(0)
}

fn policy(origin: SocketAddr, control: SocketAddr) -> String {
    format!(
        "fleet: {{ redis: {{ url: \"env:REDIS_URL\" }}, on_outage: local_share, assume_pods: 4 }}
providers:
  api:
    hosts: [api.example.test]
    upstream: {{ scheme: http, connect_to: \"{origin}\" }}
    retry: off
    limits: [{{ name: account, rate: {LIMIT}/s, burst: 4, scope: fleet, on_excess: wait, max_wait: 1s }}]
  control:
    hosts: [control.example.test]
    upstream: {{ scheme: http, connect_to: \"{control}\" }}
    retry: off
    limits: [{{ name: account, rate: {CONTROL}/s, burst: 1, on_excess: wait, max_wait: 1s }}]
  far:
    hosts: [far.example.test]
    upstream: {{ scheme: http, connect_to: \"{origin}\" }}
    retry: off
    limits: [{{ name: account, rate: 100000/s, scope: fleet, on_excess: wait }}]
  free:
    hosts: [free.example.test]
    upstream: {{ scheme: http, connect_to: \"{origin}\" }}
    retry: off
"
    )
}

fn pod(origin: SocketAddr, control: SocketAddr, redis: &Redis) -> (tempfile::TempDir, Program) {
    let dir = tempfile::tempdir().unwrap();
    let program =
        Program::start(dir.path(), &policy(origin, control), "info", &[("REDIS_URL", &redis.url())]);
    (dir, program)
}

/// Requests at an even rate, whatever becomes of them, over connections that are used again.
async fn load(address: SocketAddr, provider: &'static str, per_second: f64) {
    let idle = Arc::<Mutex<Vec<Raw>>>::default();
    let mut asked = JoinSet::new();
    let mut due = tokio::time::Instant::now();
    loop {
        due += Duration::from_secs_f64(1.0 / per_second);
        tokio::time::sleep_until(due).await;
        let idle = idle.clone();
        asked.spawn(async move {
            let waiting = idle.lock().unwrap().pop();
            let mut raw = match waiting {
                Some(raw) => raw,
                None => Raw::connect(address).await,
            };
            raw.send(format!("GET /{provider}/x HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
            if raw.answer_or_end().await.is_some() {
                idle.lock().unwrap().push(raw);
            }
        });
        while asked.try_join_next().is_some() {}
    }
}

async fn status(pod: &Program) -> Value {
    let got = local_request(pod.admin, "GET", "/status", "", "").await;
    serde_json::from_slice(&got.body).unwrap()
}

/// Polls until all pods say this of the fleet.
async fn all(pods: &[(tempfile::TempDir, Program)], what: &str, so: impl Fn(&Value) -> bool) -> Instant {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut states = Vec::new();
        for (_, pod) in pods {
            states.push(status(pod).await["fleet"].clone());
        }
        if states.iter().all(&so) {
            return Instant::now();
        }
        assert!(Instant::now() < deadline, "not {what}: {states:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What of a window was used, and what the machine itself took away.
///
/// A limit without burst loses a token whenever a timer comes late, shared or not, and a busy machine's timers come late. So a
/// control runs beside it in the same process and the same window: a limit of the pod's own, as fast as the pod's lease, of
/// which 99.8 % are used where timers come in time. What the control lost, the lease may have lost as well, and not more.
#[derive(Clone, Copy, Debug)]
struct Use {
    used: f64,
    lost: f64,
}

impl Use {
    /// Of the window of so many seconds that ends now, by the second.
    fn of(watch: &Watch, control: &Watch, window: Duration) -> Self {
        let seconds = window.as_secs_f64();
        let (used, control) = (watch.last(window) as f64 / seconds, control.last(window) as f64 / seconds);
        Self { used, lost: (CONTROL as f64 * 0.998 - control).max(0.0) }
    }

    /// Nothing can be said of a time in which the machine did less than half of what it was asked for.
    fn tells(self) -> bool {
        self.lost < CONTROL as f64 / 2.0
    }

    /// Where a window begins and ends adds or takes one of each stream: `edge` a second.
    fn is_full(self, edge: f64) -> bool {
        self.tells() && self.used + self.lost + edge >= NEARLY
    }
}

/// Kills Redis and starts it again. Leases are there again and in full use within three seconds; false if the machine did not
/// let this be seen.
async fn outage(
    redis: &mut Redis,
    watch: &Watch,
    control: &Watch,
    pods: &[(tempfile::TempDir, Program)],
    outages: &mut Vec<(Instant, Instant)>,
) -> bool {
    redis.kill();
    let killed = Instant::now();
    let shared = all(pods, "on local shares", |fleet| fleet["mode"] == "local_share").await;
    tokio::time::sleep_until((shared + 3 * SECOND).into()).await;
    let without = watch.between(shared, shared + 3 * SECOND).len();
    println!("without: local shares after {:?}, then {:.1}/s", shared - killed, without as f64 / 3.0);

    redis.restart().await;
    let back = Instant::now();
    let seen = loop {
        // Full use is seen a second after it began.
        let found = Use::of(watch, control, SECOND);
        if found.is_full(2.0) {
            println!("back: {found:?} in the second that ended {:?} after Redis answered", back.elapsed());
            break true;
        }
        if back.elapsed() > 4 * SECOND {
            println!("back: {found:?} in the fourth second after Redis answered");
            assert!(!found.tells(), "not in full use three seconds after Redis answered: {found:?}");
            break false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    outages.push((killed - SECOND, Instant::now()));
    all(pods, "leased again", |fleet| fleet["mode"] == "leased").await;
    // A quarter for the pod that wants more, and what the others want.
    assert!(without > 3 * 60, "{without}");
    seen
}

/// Polls until a window of this length that lies after `since` holds nearly the limit.
async fn full(watch: &Watch, control: &Watch, since: Instant, window: Duration) -> f64 {
    let deadline = Instant::now() + window + Duration::from_secs(30);
    let mut best: Option<Use> = None;
    loop {
        if since.elapsed() >= window {
            let found = Use::of(watch, control, window);
            if found.is_full(0.0) {
                println!("{found:?} a second in {window:?}");
                return found.used;
            }
            best = [best, Some(found)]
                .into_iter()
                .flatten()
                .max_by(|one, two| (one.used + one.lost).total_cmp(&(two.used + two.lost)));
        }
        assert!(Instant::now() < deadline, "at most {best:?} a second in {window:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the machine for itself: `make test` runs it alone"]
async fn four_pods_keep_one_limit_through_the_death_of_redis_and_use_it() {
    let mut redis = Redis::start().await;
    let (watch, control) = (Watch::start(), Watch::start());
    let pods: Vec<_> = (0..4).map(|_| pod(watch.address, control.address, &redis)).collect();
    let begun = Instant::now();
    let mut loads = JoinSet::new();
    for ((_, pod), rate) in pods.iter().zip(SKEWED) {
        loads.spawn(load(pod.listener, "api", rate));
    }
    loads.spawn(load(pods[0].1.listener, "control", 1.2 * CONTROL as f64));
    all(&pods, "leased", |fleet| fleet["connected"] == true && fleet["pods"] == 4).await;
    let leased = Instant::now();
    let used = full(&watch, &control, leased, 10 * SECOND).await;
    println!("with Redis: {used:.1}/s over 10 s, after {:?}", leased.elapsed());

    // The machine may be too busy in just that second to say anything: then once more, and in the end it is an error.
    let mut outages = Vec::new();
    while !outage(&mut redis, &watch, &control, &pods, &mut outages).await {
        assert!(outages.len() < 4, "the machine was too busy to see whether full use came back");
    }
    let used = full(&watch, &control, Instant::now(), 5 * SECOND).await;
    println!("back: {used:.1}/s over 5 s");

    let end = Instant::now();
    loads.shutdown().await;
    let seen = watch.between(begun, end);
    let most = fullest(&seen, SECOND);
    for (from, to) in outages {
        println!("around the outage: {}", fullest(&watch.between(from, to), SECOND));
    }
    let records: Vec<Value> = pods
        .iter()
        .flat_map(|(_, pod)| {
            pod.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>()
        })
        .filter(|record: &Value| record["outgate.provider"] == "api" && record["outgate.attempts"] != 0)
        .collect();
    let moments: Vec<_> = records.iter().map(let_go).collect();
    let let_go = fullest_of(moments, 998.0);
    println!("fullest second: {most} of {} at the origin, {let_go} of {} let go", seen.len(), records.len());
    // Late on their way, requests come closer together than they were let go; over ten seconds that is nothing.
    assert!(let_go <= LIMIT, "{let_go} in a second");
    assert!(fullest(&seen, 10 * SECOND) <= 10 * LIMIT, "{}", fullest(&seen, 10 * SECOND));
}

/// What outgate itself took for a request, in milliseconds: without the provider's time and without the way of the body.
fn own_time(record: &Value) -> f64 {
    let phase = |name: &str| record["duration"][name].as_f64().unwrap_or(0.0);
    let rest = ["dns", "connect", "tls", "first_byte", "body"].into_iter().map(phase).sum::<f64>();
    phase("total") - rest
}

/// In their order, without the first ones, which lease and connect.
fn own_times(records: &[Value], provider: &str) -> Vec<f64> {
    let own = records.iter().filter(|record| record["outgate.provider"] == provider).skip(50);
    own.map(own_time).collect()
}

/// So many thousandths of them took no longer than this.
fn quantile(times: &[f64], thousandths: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() * thousandths / 1_000]
}

/// What the limit adds to a quantile: the median of what it adds in blocks of some hundred requests, so that a stall of the
/// machine, which falls into some blocks and on one of the two, is not taken for the limit's.
fn added(far: &[f64], free: &[f64], thousandths: usize) -> f64 {
    let blocks = far.chunks_exact(BLOCK).zip(free.chunks_exact(BLOCK));
    let mut added: Vec<f64> =
        blocks.map(|(far, free)| quantile(far, thousandths) - quantile(free, thousandths)).collect();
    added.sort_by(f64::total_cmp);
    added[added.len() / 2]
}

/// Requests in a block.
const BLOCK: usize = 400;

/// The limiter's own time where nothing waits: a limit that is far above the load, against no limit. By turns, and by what
/// outgate took itself, so that client, provider and a busy machine weigh on both alike. What the limiter takes without
/// anything around it is measured in `resilience::rate_limit`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the machine for itself: `make test` runs it alone"]
async fn a_limit_far_above_the_load_adds_less_than_a_millisecond_to_all_but_one_in_a_hundred() {
    const ROUNDS: usize = 11 * BLOCK + 50;
    let redis = Redis::start().await;
    let origin = HttpOrigin::start(None).await;
    let pods = [pod(origin.address, origin.address, &redis)];
    all(&pods, "leased", |fleet| fleet["connected"] == true && fleet["mode"] == "leased").await;
    let address = pods[0].1.listener;
    let mut raw = Raw::connect(address).await;
    for round in 0..2 * ROUNDS {
        let provider = ["far", "free"][round % 2];
        raw.send(format!("GET /{provider}/x HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
        assert_eq!(raw.answer().await.status, 200);
    }
    let deadline = Instant::now() + PATIENCE;
    let records = loop {
        let stdout = pods[0].1.stdout();
        let records: Vec<Value> = stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if records.len() >= 2 * ROUNDS {
            break records;
        }
        assert!(Instant::now() < deadline, "{} records", records.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let (far, free) = (own_times(&records, "far"), own_times(&records, "free"));
    for part in [500, 900, 990, 999] {
        let (limited, plain) = (quantile(&far, part), quantile(&free, part));
        println!("{:.1} %: {limited:.3} ms, without a limit {plain:.3} ms", part as f64 / 10.0);
    }
    let (median, most) = (added(&far, &free, 500), added(&far, &free, 990));
    println!("added: {median:.3} ms in the middle, {most:.3} ms to all but one in a hundred");
    assert!(median < 0.2, "{median} ms");
    assert!(most < 1.0, "{most} ms");
}
