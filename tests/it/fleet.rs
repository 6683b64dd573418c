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
struct Redis {
    port: u16,
    child: Option<Child>,
}

impl Redis {
    async fn start() -> Self {
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

    fn url(&self) -> String {
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
/// Where the machine does less of that, nothing can be said of that time.
const QUIET: f64 = 0.95;
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

/// Of the limit of 200/s, what must be in use. The figures that are printed say what is really reached and how soon; what is
/// asserted leaves room for machines that are shared, because a test that fails by chance says nothing.
const NEARLY: f64 = 180.0;

/// What part of its own limit a pod could use, of what timers in time would let it.
fn machine(control: &Watch, window: Duration) -> f64 {
    (control.last(window) as f64 / (CONTROL as f64 * 0.998 * window.as_secs_f64())).min(1.0)
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
        let (used, machine) = (watch.last(SECOND), machine(control, SECOND));
        // Where a second begins and ends adds or takes one of each stream.
        if machine >= QUIET && used as f64 + 2.0 >= NEARLY * machine {
            println!(
                "back: {used} in the second that ended {:?} after Redis answered ({machine:.3})",
                back.elapsed()
            );
            break true;
        }
        if back.elapsed() > 10 * SECOND {
            println!("back: {used} in the tenth second after Redis answered ({machine:.3})");
            assert!(machine < QUIET, "not in full use ten seconds after Redis answered");
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
///
/// A pod whose timers are late cannot use a limit without burst, shared or not. So the machine is measured in the same
/// window: a limit of the pod's own that is as fast as its lease, of which 99.8 % are used where timers come in time.
async fn full(watch: &Watch, control: &Watch, since: Instant, window: Duration) -> (Instant, usize) {
    let seconds = window.as_secs_f64();
    let deadline = Instant::now() + window + Duration::from_secs(30);
    let mut seen = Vec::new();
    loop {
        if since.elapsed() >= window {
            let machine = machine(control, window);
            let used = watch.last(window);
            seen.push((used as f64 / seconds, machine));
            if machine >= QUIET && used as f64 >= NEARLY * seconds * machine {
                println!(
                    "{:.1}/s in {window:?}, where the machine can do {:.2} %",
                    used as f64 / seconds,
                    machine * 100.0
                );
                return (Instant::now(), used);
            }
        }
        let best = seen.iter().copied().max_by(|one, two| one.0.total_cmp(&two.0));
        assert!(
            Instant::now() < deadline,
            "at most {best:?} a second in {window:?}, by what the machine can do"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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
    let (_, used) = full(&watch, &control, leased, 10 * SECOND).await;
    println!("with Redis: {:.1}/s over 10 s, after {:?}", used as f64 / 10.0, leased.elapsed());

    // The machine may be too busy in just that second to say anything: then once more, and in the end it is an error.
    let mut outages = Vec::new();
    while !outage(&mut redis, &watch, &control, &pods, &mut outages).await {
        assert!(outages.len() < 4, "the machine was too busy to see whether full use came back");
    }
    let (_, used) = full(&watch, &control, Instant::now(), 5 * SECOND).await;
    println!("back: {:.1}/s over 5 s", used as f64 / 5.0);

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

/// The limiter's own time where nothing waits: a limit that is far above the load, against no limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_far_above_the_load_costs_next_to_nothing() {
    const ROUNDS: usize = 1_500;
    let redis = Redis::start().await;
    let origin = HttpOrigin::start(None).await;
    let pods = [pod(origin.address, origin.address, &redis)];
    all(&pods, "leased", |fleet| fleet["connected"] == true && fleet["mode"] == "leased").await;
    let address = pods[0].1.listener;
    let mut raw = Raw::connect(address).await;
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..2 * ROUNDS {
        let provider = ["far", "free"][round % 2];
        let begun = Instant::now();
        raw.send(format!("GET /{provider}/x HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
        assert_eq!(raw.answer().await.status, 200);
        // The first ones lease and connect.
        if round >= 100 {
            times[round % 2].push(begun.elapsed());
        }
    }
    let [far, free] = times.map(|mut times| {
        times.sort_unstable();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    });
    println!("limited: p50 {:?} p99 {:?}; free: p50 {:?} p99 {:?}", far.0, far.1, free.0, free.1);
    let mut queued: Vec<f64> = pods[0]
        .1
        .stdout()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|record| record["outgate.provider"] == "far")
        .map(|record| record["duration"]["queue"].as_f64().unwrap_or(0.0))
        .skip(50)
        .collect();
    queued.sort_by(f64::total_cmp);
    println!("{} records; queue p99 {:.3} ms", queued.len(), queued[queued.len() * 99 / 100]);
    // Nothing waited. The difference of two tails of a shared machine says little, so its bound is loose.
    assert!(queued[queued.len() * 99 / 100] < 1.0, "{:?}", queued.last());
    assert!(far.0 < free.0 + Duration::from_millis(1), "p50: {:?} against {:?}", far.0, free.0);
    assert!(far.1 < free.1 + Duration::from_millis(20), "p99: {:?} against {:?}", far.1, free.1);
}
