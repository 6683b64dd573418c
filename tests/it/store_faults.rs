//! A store of which one path fails in every way there is, at the start and later: its other paths go on, and so do the
//! providers that need them. A table over all stores behind HTTP, with each of their logins.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, stream};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::leak::stores::{SERVERS, login, value};
use super::support::client::{admin, local_get};
use super::support::origin::{HttpOrigin, RawOrigin, Script, Stream, read_request, text};
use super::support::proxy::Proxy;

/// What becomes of the path that fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Closes,
    Says500,
    Says404,
    Garbage,
    NotHttp,
    /// A value that cannot stand in a header.
    Holds(&'static str),
    Hangs,
}

/// Each with the codes by which `/status` may tell it.
const FAULTS: [(Fault, &[&str]); 10] = [
    (Fault::Closes, &["store_unreachable"]),
    (Fault::Says500, &["store_status"]),
    // A refusal of AWS has its meaning in its body.
    (Fault::Says404, &["not_found", "store_status"]),
    (Fault::Garbage, &["store_garbled"]),
    (Fault::NotHttp, &["store_unreachable"]),
    (Fault::Holds("a\nX: 1"), &["malformed"]),
    (Fault::Holds("a\r"), &["malformed"]),
    (Fault::Holds("a\0b"), &["malformed"]),
    (Fault::Holds("schl\u{fc}ssel"), &["malformed"]),
    (Fault::Hangs, &["store_timeout", "timed_out"]),
];

/// The servers of all stores in one.
struct Server {
    origin: RawOrigin,
    fault: Arc<Mutex<Fault>>,
    /// Which version of the values it gives.
    version: Arc<AtomicUsize>,
}

impl Server {
    async fn start(fault: Fault) -> Self {
        let (fault, version) = (Arc::new(Mutex::new(fault)), Arc::new(AtomicUsize::new(1)));
        let (now, number) = (fault.clone(), version.clone());
        let script: Script = Arc::new(move |mut stream: Box<dyn Stream>, _| {
            let (fault, version) = (now.clone(), number.clone());
            Box::pin(async move {
                while let Some(request) = read_request(&mut stream).await {
                    let fails = *fault.lock().unwrap();
                    let version = version.load(Ordering::SeqCst);
                    let answer = match answer(&request, fails, version) {
                        Some(answer) => answer,
                        None if fails == Fault::Hangs => std::future::pending().await,
                        None => break,
                    };
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
                let _ = stream.shutdown().await;
            })
        });
        Self { origin: RawOrigin::start(None, script).await, fault, version }
    }
}

fn answer(request: &str, fault: Fault, version: usize) -> Option<String> {
    let path = request.split(' ').nth(1)?;
    let with = |status: u16, body: &str| {
        Some(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    };
    if let Some(login) = login(path, request) {
        return with(200, &login);
    }
    // A watch of Kubernetes is not allowed: then it is polled.
    if path.contains("watch=") {
        return with(403, "{}");
    }
    let good = value(path, request, &format!("value-{version}"));
    if !request.contains("fails") {
        return with(200, &good);
    }
    match fault {
        Fault::None => with(200, &good),
        Fault::Says500 => with(500, "{}"),
        Fault::Says404 => with(404, "{}"),
        Fault::Garbage => with(200, "<html>"),
        Fault::NotHttp => Some("what is that\r\n\r\n".to_owned()),
        Fault::Holds(text) => with(200, &value(path, request, text)),
        Fault::Closes | Fault::Hangs => None,
    }
}

/// A running outgate with three providers for each store: `g<n>` needs the path that is good, `f<n>` the one that fails, and
/// `d<n>` the same of a server that nobody listens at.
struct World {
    proxy: Proxy,
    origin: HttpOrigin,
    server: Server,
}

impl World {
    async fn start(fault: Fault) -> Self {
        let server = Server::start(fault).await;
        let origin = HttpOrigin::with(None, |_| text(200, "{}")).await;
        let dir = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("login"), "a-login-secret").unwrap();
        let profile = "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = a-key\n";
        std::fs::write(dir.path().join("profile"), profile).unwrap();
        let url = format!("http://{}", server.origin.address);
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (mut policy, mut providers) = ("secrets:\n".to_owned(), "providers:\n".to_owned());
        for (number, (_, store, path, _)) in SERVERS.iter().enumerate() {
            let times = "refresh: 1s, timeouts: { total: 4s }, address:";
            let store = store.replacen("address:", times, 1);
            policy.push_str(&format!("  s{number}: {}\n", store.replace("{url}", &url)));
            policy
                .push_str(&format!("  t{number}: {}\n", store.replace("{url}", &format!("http://{nobody}"))));
            for (name, store, secret) in [("g", "s", "good"), ("f", "s", "fails"), ("d", "t", "down")] {
                providers.push_str(&format!(
                    "  {name}{number}:\n    hosts: [{name}{number}.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {{ bearer: \"{store}{number}:{}\" }}\n",
                    origin.address,
                    path.replace('x', secret),
                ));
            }
        }
        let proxy = Proxy::start_in(dir, &format!("{policy}{providers}")).await;
        Self { proxy, origin, server }
    }

    /// The status of a request to each provider of these, and the value that it carried.
    async fn ask(&self, name: &str) -> Vec<(u16, String)> {
        let mut all = Vec::new();
        for number in 0..SERVERS.len() {
            let got = local_get(&self.proxy, &format!("/{name}{number}/x")).await;
            let host = format!("{name}{number}.x.test");
            let seen = self.origin.requests().into_iter().rfind(|seen| seen.header("host") == Some(&*host));
            let carried = seen.and_then(|seen| Some(seen.header("authorization")?.to_owned()));
            all.push((got.status, carried.unwrap_or_default()));
        }
        all
    }

    /// What `/status` says of the secret of each store with this name.
    async fn secrets(&self, secret: &str) -> Vec<Value> {
        let status: Value = serde_json::from_str(&admin(&self.proxy, "GET", "/status").await.text()).unwrap();
        let of = |number: usize| {
            let begin = format!("s{number}:");
            let all = status["secrets"].as_array().unwrap().iter();
            let mut own = all.filter(|one| {
                let reference = one["reference"].as_str().unwrap();
                reference.starts_with(&begin) && reference.contains(secret)
            });
            own.next().unwrap().clone()
        };
        (0..SERVERS.len()).map(of).collect()
    }

    /// Waits until `holds` is true of the secret of every store.
    async fn until(&self, secret: &str, what: &str, holds: impl Fn(&Value) -> bool) {
        let began = std::time::Instant::now();
        loop {
            let now = self.secrets(secret).await;
            if now.iter().all(&holds) {
                return;
            }
            assert!(began.elapsed() < std::time::Duration::from_secs(20), "{what}: {now:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// Whether every store tells the failure by one of these codes.
fn all_told(secrets: &[Value], codes: &[&str], fault: Fault) {
    for (secret, (kind, ..)) in secrets.iter().zip(SERVERS) {
        let code = secret["last_error_code"].as_str().unwrap_or_default();
        assert!(codes.contains(&code), "{fault:?} {kind}: {secret}");
    }
}

async fn at_start(fault: Fault, codes: &'static [&'static str]) {
    let world = World::start(fault).await;
    for ((status, carried), (kind, ..)) in world.ask("g").await.into_iter().zip(SERVERS) {
        assert_eq!((status, &*carried), (200, "Bearer value-1"), "{fault:?} {kind}");
    }
    for name in ["f", "d"] {
        for ((status, carried), (kind, ..)) in world.ask(name).await.into_iter().zip(SERVERS) {
            assert_eq!((status, &*carried), (503, ""), "{fault:?} {name} {kind}");
        }
    }
    all_told(&world.secrets("fails").await, codes, fault);
    // The good one is read on, too.
    world.server.version.store(2, Ordering::SeqCst);
    world.until("good", "the good path is read again", |secret| secret["version"].as_u64() >= Some(2)).await;
    for ((status, carried), (kind, ..)) in world.ask("g").await.into_iter().zip(SERVERS) {
        assert_eq!((status, &*carried), (200, "Bearer value-2"), "{fault:?} {kind}");
    }
}

async fn at_refresh(fault: Fault, codes: &'static [&'static str]) {
    let world = World::start(Fault::None).await;
    for name in ["g", "f"] {
        assert_eq!(world.ask(name).await, vec![(200, "Bearer value-1".to_owned()); SERVERS.len()]);
    }
    *world.server.fault.lock().unwrap() = fault;
    world.server.version.store(2, Ordering::SeqCst);
    world.until("fails", "the fault is met", |secret| secret["state"] == "stale").await;
    world.until("good", "the good path is read again", |secret| secret["version"].as_u64() >= Some(2)).await;
    all_told(&world.secrets("fails").await, codes, fault);
    for ((status, carried), (kind, ..)) in world.ask("g").await.into_iter().zip(SERVERS) {
        assert_eq!((status, &*carried), (200, "Bearer value-2"), "{fault:?} {kind}");
    }
    // The last good value stays in use.
    for ((status, carried), (kind, ..)) in world.ask("f").await.into_iter().zip(SERVERS) {
        assert_eq!((status, &*carried), (200, "Bearer value-1"), "{fault:?} {kind}");
    }
}

/// Every fault; a few at a time, because each has a machine's worth of stores.
async fn few_at_once<F: Future<Output = ()>>(test: impl Fn(Fault, &'static [&'static str]) -> F) {
    stream::iter(FAULTS).for_each_concurrent(3, |(fault, codes)| test(fault, codes)).await;
}

#[tokio::test]
async fn a_path_that_fails_at_the_start_takes_no_other_with_it() {
    few_at_once(at_start).await;
}

#[tokio::test]
async fn a_path_that_fails_at_a_refresh_keeps_its_value_and_takes_no_other_with_it() {
    few_at_once(at_refresh).await;
}
