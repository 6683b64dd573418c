//! A policy is taken whole or not at all, while requests run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outgate::pipeline::reload::ReloadOutcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::capture::Capture;
use super::program::{Program, write_policy};
use super::support::ca::TestCa;
use super::support::client::{Raw, admin, local_get};
use super::support::origin::{HttpOrigin, RawOrigin, Stream, read_request, text};
use super::support::proxy::Proxy;
use super::world::{HOST, answering, directory, policy, start, until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A key that makes another policy of the same meaning for everything a test looks at.
const OTHER: &str = "    headers: { set: { X-Policy: other } }";

async fn world() -> (Proxy, RawOrigin, String) {
    let ca = TestCa::new();
    let server = ca.server(&[HOST, "second.example.test"], &["http/1.1"]);
    let origin = RawOrigin::start(Some(server), answering(|_| Some(OK.to_vec()))).await;
    let text = policy(origin.address, "", "");
    let proxy = Proxy::start_in(directory(&ca), &text).await;
    (proxy, origin, text)
}

fn generation(proxy: &Proxy) -> u64 {
    proxy.app.reloader.current().load().number
}

/// The value of a metric's line.
fn metric(proxy: &Proxy, line: &str) -> u64 {
    let metrics = proxy.metrics();
    let value = metrics.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{line} in:\n{metrics}")).trim().parse().unwrap()
}

#[tokio::test]
async fn a_bad_policy_leaves_the_old_one_in_force_is_counted_and_logged_once() {
    let (log, _guard) = Capture::start(tracing::Level::INFO);
    let (proxy, origin, good) = world().await;
    let logged = || log.text().matches("was not reloaded").count();
    for (round, bad) in
        ["providers: { api: { hots: [x] } }", "version: 2", "{{{", "providers: []"].into_iter().enumerate()
    {
        let before = metric(&proxy, "outgate_policy_reloads_total{result=\"refused\"}");
        for _ in 0..2 {
            assert!(matches!(proxy.reload(bad).await, ReloadOutcome::Refused(_)), "{bad}");
        }
        assert_eq!(logged(), round + 1, "once for each change: {}", log.text());
        let counted = metric(&proxy, "outgate_policy_reloads_total{result=\"refused\"}") - before;
        assert!(counted >= 2, "each refusal is counted: {counted}");
        assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
        assert_eq!(generation(&proxy), 1);
    }
    let path = proxy.policy.display().to_string();
    assert!(log.text().contains(&format!("{path}:")), "with file and line: {}", log.text());
    assert!(matches!(proxy.reload(&good).await, ReloadOutcome::Unchanged));
    assert!(matches!(proxy.reload(&format!("{good}{OTHER}")).await, ReloadOutcome::Applied(2)));
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    assert!(origin.text().contains("x-policy: other"));
    assert_eq!(metric(&proxy, "outgate_policy_generation"), 2);
}

#[tokio::test]
async fn what_needs_a_restart_is_refused_by_name() {
    let (proxy, _, good) = world().await;
    for (name, change) in [
        ("`listeners[0].address` (", "listeners: [{ address: \"127.0.0.1:1\" }]\n".to_owned()),
        ("`admin.address` (", "admin: { address: \"127.0.0.1:2\" }\n".to_owned()),
        (
            "`interception.ca.directory` (",
            "interception: { ca: { directory: \"{dir}/other\" }, bundle: \"{dir}/bundle.pem\" }\n".to_owned(),
        ),
        ("`runtime.drain` (", "runtime: { drain: 1s }\n".to_owned()),
        ("`telemetry.query` (", "telemetry: { query: none }\n".to_owned()),
    ] {
        let outcome = proxy.reload(&format!("{change}{good}{OTHER}")).await;
        let ReloadOutcome::Refused(error) = outcome else { panic!("{name}: {outcome:?}") };
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("restart"), "{name}: {text}");
    }
    let outcome = proxy.reload(&format!("{good}    local: {{ address: \"127.0.0.1:0\" }}\n")).await;
    assert!(matches!(outcome, ReloadOutcome::Refused(_)), "a port of its own needs a restart: {outcome:?}");
    assert_eq!(generation(&proxy), 1);
    assert!(!proxy.dir.path().join("other").exists(), "nothing was made for a policy that was refused");
}

#[tokio::test]
async fn a_changed_file_is_found_by_itself_however_it_was_changed() {
    let (proxy, _, good) = world().await;
    let path = proxy.policy.clone();
    let present = std::fs::read_to_string(&path).unwrap();
    let variant = |number: usize| format!("{present}    headers: {{ set: {{ X-Policy: v{number} }} }}\n");
    assert!(present.ends_with(&good.replace("{dir}", &proxy.dir.path().to_string_lossy())));

    std::fs::write(&path, variant(1)).unwrap();
    until("written in place", || generation(&proxy) == 2).await;

    let beside = path.with_extension("new");
    std::fs::write(&beside, variant(2)).unwrap();
    std::fs::rename(&beside, &path).unwrap();
    until("renamed over", || generation(&proxy) == 3).await;
    // Whoever watches the file itself is blind after a rename.
    std::fs::write(&path, variant(3)).unwrap();
    until("written after a rename", || generation(&proxy) == 4).await;

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, variant(4)).unwrap();
    until("removed and made again", || generation(&proxy) == 5).await;
}

#[tokio::test]
async fn a_rotated_ca_file_is_a_new_policy() {
    let (right, wrong, files) = (TestCa::new(), TestCa::new(), tempfile::tempdir().unwrap());
    let file = files.path().join("provider-ca.pem");
    std::fs::write(&file, &wrong.pem).unwrap();
    let origin =
        RawOrigin::start(Some(right.server(&[HOST], &["http/1.1"])), answering(|_| Some(OK.to_vec()))).await;
    let text = policy(origin.address, "", "").replace("{dir}/origin.pem", file.to_str().unwrap());
    let proxy = Proxy::start_in(directory(&right), &text).await;
    assert_eq!(local_get(&proxy, "/api/x").await.status, 502);
    assert!(matches!(proxy.reload(&text).await, ReloadOutcome::Unchanged));

    std::fs::write(&file, &right.pem).unwrap();
    until("the new authority is found", || generation(&proxy) == 2).await;
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);

    std::fs::write(&file, "nothing").unwrap();
    assert!(matches!(proxy.reload(&text).await, ReloadOutcome::Refused(_)));
    assert_eq!((local_get(&proxy, "/api/x").await.status, generation(&proxy)), (200, 2));
}

/// Nobody asked for it, so it is no refused reload each time that outgate looks.
#[tokio::test]
async fn a_policy_that_stays_bad_is_counted_once_and_logged_again_after_a_good_one() {
    let (log, _guard) = Capture::start(tracing::Level::INFO);
    let (proxy, _, good) = world().await;
    let refused = || metric(&proxy, "outgate_policy_reloads_total{result=\"refused\"}");
    let logged = || log.text().matches("was not reloaded").count();
    let reloader = &proxy.app.reloader;
    std::fs::write(&proxy.policy, "version: 2").unwrap();
    for _ in 0..5 {
        assert!(matches!(reloader.look().await, ReloadOutcome::Refused(_)));
    }
    assert_eq!((refused(), logged()), (1, 1));
    assert!(matches!(proxy.reload(&good).await, ReloadOutcome::Unchanged));
    std::fs::write(&proxy.policy, "version: 2").unwrap();
    reloader.look().await;
    assert_eq!((refused(), logged()), (2, 2), "the same mistake, made anew");
}

/// As the kubelet does it: `file -> ..data/file`, `..data -> ..<time>`, and the second link is swapped.
fn config_map(dir: &Path, name: &str, version: usize, content: &str) {
    let at = dir.join(format!("..v{version}"));
    std::fs::create_dir(&at).unwrap();
    std::fs::write(at.join(name), content).unwrap();
    let next = dir.join("..data_tmp");
    std::os::unix::fs::symlink(format!("..v{version}"), &next).unwrap();
    std::fs::rename(&next, dir.join("..data")).unwrap();
    if version == 1 {
        std::os::unix::fs::symlink(format!("..data/{name}"), dir.join(name)).unwrap();
    } else {
        std::fs::remove_dir_all(dir.join(format!("..v{}", version - 1))).unwrap();
    }
}

#[tokio::test]
async fn a_config_map_is_followed_through_its_links() {
    let (proxy, _, _) = world().await;
    let present = std::fs::read_to_string(&proxy.policy).unwrap();
    let variant = |number: usize| format!("{present}    headers: {{ set: {{ X-Policy: v{number} }} }}\n");
    let mounted = tempfile::tempdir().unwrap();
    config_map(mounted.path(), "proxy.yaml", 1, &variant(1));
    let path = mounted.path().join("proxy.yaml");
    let policy = outgate::pipeline::reload::read(&path).unwrap();
    let app = outgate::app::App::start(path, policy, outgate::app::Overrides::default()).await.unwrap();
    for version in 2..5 {
        config_map(mounted.path(), "proxy.yaml", version, &variant(version));
        let wanted = version as u64;
        until("the swap is seen", || app.reloader.current().load().number == wanted).await;
    }
}

#[tokio::test]
async fn reload_by_signal_and_by_the_admin_listener() {
    let dir = tempfile::tempdir().unwrap();
    let policy = "providers:\n  api: { hosts: [a.example.test] }\n";
    let program = Program::start(dir.path(), policy, "info", &[]);
    write_policy(dir.path(), "providers:\n  api: { hosts: [b.example.test] }\n");
    // At once: faster than the watch would be. Whichever comes first, the other finds nothing new.
    program.signal("HUP");
    until("SIGHUP", || program.stderr().contains("the policy was reloaded")).await;

    write_policy(dir.path(), "providers:\n  api: { hots: [c.example.test] }\n");
    let refused = post_reload(&program).await;
    assert!(refused.starts_with("HTTP/1.1 422"), "{refused}");
    assert!(refused.contains("\"refused\"") && refused.contains("did you mean `hosts`"), "{refused}");
    write_policy(dir.path(), "providers:\n  api: { hosts: [c.example.test] }\n");
    let applied = post_reload(&program).await;
    assert!(applied.starts_with("HTTP/1.1 200") && applied.contains("\"generation\": 3"), "{applied}");
    let again = post_reload(&program).await;
    assert!(again.contains("\"unchanged\""), "{again}");
}

async fn post_reload(program: &Program) -> String {
    let mut stream = tokio::net::TcpStream::connect(program.admin).await.unwrap();
    stream.write_all(b"POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_running_request_ends_on_its_generation() {
    let ca = TestCa::new();
    let release = Arc::new(tokio::sync::Notify::new());
    let (arrived, go) = (Arc::new(AtomicUsize::new(0)), release.clone());
    let seen = arrived.clone();
    let script = Arc::new(move |mut stream: Box<dyn Stream>, _| {
        let (go, seen) = (go.clone(), seen.clone());
        Box::pin(async move {
            while read_request(&mut stream).await.is_some() {
                if seen.fetch_add(1, Ordering::SeqCst) == 0 {
                    go.notified().await;
                }
                stream.write_all(OK).await.unwrap();
                stream.flush().await.unwrap();
            }
        }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    });
    let origin = RawOrigin::start(Some(ca.server(&[HOST], &["http/1.1"])), script).await;
    let good = policy(origin.address, "", "");
    let proxy = Proxy::start_in(directory(&ca), &good).await;
    let mut slow = Raw::connect(proxy.address()).await;
    slow.send(format!("GET /api/slow HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
    until("the request is there", || arrived.load(Ordering::SeqCst) == 1).await;
    // The new policy has no such provider at all.
    let other = "providers:\n  other: { hosts: [other.example.test] }\n";
    assert!(matches!(proxy.reload(other).await, ReloadOutcome::Applied(2)));
    let denied = local_get(&proxy, "/api/x").await;
    assert_eq!(denied.status, 403);
    release.notify_one();
    let got = slow.answer().await;
    assert_eq!((got.status, got.text().as_str()), (200, "ok"));
    // The same connection, and now the new policy.
    slow.send(format!("GET /api/slow HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
    assert_eq!(slow.answer().await.status, 403);
    let records = proxy.records(3).await;
    let of = |status: u64| {
        let mut found = records.iter().filter(|record| record["http.response.status_code"] == status);
        found.next().unwrap()["outgate.generation"].as_u64().unwrap()
    };
    assert_eq!((of(200), of(403)), (1, 2));
}

#[tokio::test]
async fn pools_of_unchanged_providers_survive() {
    let ca = TestCa::new();
    let server = ca.server(&[HOST, "second.example.test"], &["http/1.1"]);
    let origin = RawOrigin::start(Some(server), answering(|_| Some(OK.to_vec()))).await;
    let with = |idle: &str, header: &str| {
        format!(
            "{}  second:\n    hosts: [second.example.test]\n    headers: {{ set: {{ X-A: \"{header}\" }} }}\n    upstream: {{ connect_to: \"{}\", tls: {{ ca: \"{{dir}}/origin.pem\" }}, pool: {{ idle_timeout: {idle} }} }}\n",
            policy(origin.address, "", ""),
            origin.address
        )
    };
    let proxy = Proxy::start_in(directory(&ca), &with("60s", "1")).await;
    assert_eq!(local_get(&proxy, "/api/1").await.status, 200);
    assert_eq!(local_get(&proxy, "/second/1").await.status, 200);
    assert_eq!(origin.connections(), 2);

    assert!(matches!(proxy.reload(&with("50s", "1")).await, ReloadOutcome::Applied(2)));
    assert_eq!(local_get(&proxy, "/api/2").await.status, 200);
    assert_eq!(origin.connections(), 2, "nothing about `api` has changed");
    assert_eq!(local_get(&proxy, "/second/2").await.status, 200);
    assert_eq!(origin.connections(), 3, "the upstream of `second` has");

    // What is not about the upstream leaves the connections alone.
    assert!(matches!(proxy.reload(&with("50s", "2")).await, ReloadOutcome::Applied(3)));
    assert_eq!(local_get(&proxy, "/second/3").await.status, 200);
    assert_eq!(origin.connections(), 3);
    let records = proxy.records(5).await;
    let reused: Vec<_> = records.iter().map(|record| record["outgate.upstream.reused"].clone()).collect();
    assert_eq!(reused, [false, false, true, false, true]);
}

#[tokio::test]
async fn a_rotated_secret_reaches_the_next_request_however_it_was_changed() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let dir = directory(&ca);
    let mounted = dir.path().join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    config_map(&mounted, "key", 1, "first-version-of-it");
    let keys = "    credential: { header: [ { name: X-Plain, value: \"file:{dir}/secret\" }, { name: X-Linked, value: \"file:{dir}/mounted/key\" } ] }";
    let proxy = Proxy::start_in(dir.clone(), &policy(origin.address, keys, "")).await;
    let carried = async |header: &str, value: &str| {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
            if origin.requests().last().unwrap().header(header) == Some(value) {
                return;
            }
            assert!(Instant::now() < deadline, "{header}: {value}");
        }
    };
    let secret = dir.path().join("secret");
    carried("x-linked", "first-version-of-it").await;
    std::fs::write(&secret, "written-in-place\n").unwrap();
    carried("x-plain", "written-in-place").await;
    std::fs::write(dir.path().join("new"), "renamed-over-it").unwrap();
    std::fs::rename(dir.path().join("new"), &secret).unwrap();
    carried("x-plain", "renamed-over-it").await;
    for version in 2..4 {
        let value = format!("version-{version}-by-a-link");
        config_map(&mounted, "key", version, &value);
        carried("x-linked", &value).await;
    }
    // A value that may not be sent does not take the place of a good one.
    std::fs::write(&secret, "bad\r\nvalue: x").unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !admin(&proxy, "GET", "/status").await.text().contains("\"stale\"") {
        assert!(Instant::now() < deadline, "the bad value is noticed");
    }
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    assert_eq!(origin.requests().last().unwrap().header("x-plain"), Some("renamed-over-it"));
}

/// Eight clients in a closed loop, two policies by turns: no request is lost, and each is judged by one policy alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reloads_under_load_lose_no_request() {
    let _machine = crate::support::the_machine().await;
    let ca = TestCa::new();
    let server = ca.server(&[HOST], &["http/1.1"]);
    let origin = HttpOrigin::with(Some(server), |seen| {
        let same = seen.header("x-first").is_some() && seen.header("x-first") == seen.header("x-second");
        text(if same { 200 } else { 500 }, "{}")
    })
    .await;
    let version = |name: &str| {
        policy(
            origin.address,
            &format!("    headers: {{ set: {{ X-First: {name}, X-Second: {name} }} }}"),
            "",
        )
    };
    let (one, two) = (version("one"), version("two"));
    let proxy = Arc::new(Proxy::start_in(directory(&ca), &one).await);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (address, stop) = (proxy.address(), stop.clone());
            tokio::spawn(async move {
                let mut raw = Raw::connect(address).await;
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
                    let got = raw.answer().await;
                    assert_eq!(got.status, 200, "{got:?}");
                    done += 1;
                }
                done
            })
        })
        .collect();
    let started = Instant::now();
    let mut applied = 0;
    for round in 0..1000 {
        match proxy.reload(if round % 2 == 0 { &two } else { &one }).await {
            ReloadOutcome::Applied(_) => applied += 1,
            // The watch was faster.
            ReloadOutcome::Unchanged => {}
            ReloadOutcome::Refused(error) => panic!("{error}"),
        }
    }
    let took = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut requests = 0;
    for client in clients {
        requests += client.await.unwrap();
    }
    assert!(applied > 900, "{applied}");
    assert!(requests > 200, "there was load: {requests}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let records = proxy.records(requests).await;
    assert_eq!(records.len(), requests);
    assert!(records.iter().all(|record| record["http.response.status_code"] == 200));
    let generations: std::collections::HashSet<u64> =
        records.iter().map(|record| record["outgate.generation"].as_u64().unwrap()).collect();
    assert!(generations.len() > 10, "{generations:?}");
    assert_eq!(admin(&proxy, "GET", "/readyz").await.status, 200);
}

#[tokio::test]
async fn a_new_provider_is_there_with_the_reload_that_brings_it() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let proxy = start(&ca, origin.address, "", "").await;
    assert_eq!(local_get(&proxy, "/renamed/x").await.status, 403);
    std::fs::write(proxy.dir.path().join("fresh"), "a-secret-of-its-own").unwrap();
    let renamed = policy(origin.address, "    credential: { bearer: \"file:{dir}/fresh\" }", "");
    assert!(matches!(
        proxy.reload(&renamed.replace("  api:", "  renamed:")).await,
        ReloadOutcome::Applied(2)
    ));
    // Its secret was read before it took the first request.
    assert_eq!(local_get(&proxy, "/renamed/x").await.status, 200);
    assert_eq!(origin.only().header("authorization"), Some("Bearer a-secret-of-its-own"));
    assert_eq!(local_get(&proxy, "/api/x").await.status, 403);
}
