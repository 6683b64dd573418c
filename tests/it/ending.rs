//! How the process ends beside an app that ends too: `POST /quit`, and serving on until nothing runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::program::{Program, ended_with, outgate, output, write_policy};
use super::support::ca::TestCa;
use super::support::client::{Raw, local_request};
use super::support::origin::{RawOrigin, Stream, read_request};
use super::world::{HOST, directory, policy, until};

const PLAIN: &str = "providers:\n  api: { hosts: [api.example.test] }\n";

/// An origin that answers `/api/held` when told to, and everything else at once.
async fn origin(ca: &TestCa) -> (RawOrigin, Arc<AtomicUsize>, Arc<tokio::sync::Semaphore>) {
    let (go, arrived) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (wait, count) = (go.clone(), arrived.clone());
    let script = Arc::new(move |mut stream: Box<dyn Stream>, _| {
        let (wait, count) = (wait.clone(), count.clone());
        Box::pin(async move {
            while let Some(request) = read_request(&mut stream).await {
                count.fetch_add(1, Ordering::SeqCst);
                if request.contains("/held") {
                    wait.acquire().await.unwrap().forget();
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
                let _ = stream.flush().await;
            }
        }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    });
    (RawOrigin::start(Some(ca.server(&[HOST], &["http/1.1"])), script).await, arrived, go)
}

fn start_with(settings: &[&str], policy: &str) -> (Program, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = write_policy(dir.path(), policy);
    let mut command = outgate(&["run", "--config", &path]);
    command.env("OUTGATE_SET", settings.join("\n"));
    (Program::started(command), dir)
}

#[tokio::test]
async fn quit_wants_leave() {
    let (mut program, _dir) = start_with(&["runtime.drain=5s"], PLAIN);
    let got = local_request(program.admin, "POST", "/quit", "", "").await;
    assert_eq!(got.status, 401, "the policy does not allow it: {got:?}");
    assert_eq!(local_request(program.admin, "GET", "/healthz", "", "").await.status, 200);
    program.signal("TERM");
    assert!(ended_with(program.wait(Duration::from_secs(10)), 0));
}

#[tokio::test]
async fn quit_ends_the_process_and_every_wait() {
    let settings = ["admin.quit=true", "runtime.linger=60s", "runtime.linger_idle=60s"];
    for terminate_first in [false, true] {
        let (mut program, _dir) = start_with(&settings, PLAIN);
        let ask = async |method: &str, line: &str| {
            local_request(program.admin, method, "/quit", line, "").await.status
        };
        assert_eq!(ask("GET", "").await, 405);
        assert_eq!(ask("POST", "Origin: https://evil.example\r\n").await, 403, "not for web pages");
        if terminate_first {
            program.signal("TERM");
            until("it serves on", || program.stderr().contains("serving on")).await;
        }
        assert_eq!(ask("POST", "").await, 202);
        assert!(ended_with(program.wait(Duration::from_secs(10)), 0));
    }
}

#[tokio::test]
async fn the_app_finds_its_way_out_until_nothing_runs() {
    const IDLE: Duration = Duration::from_millis(700);
    let ca = TestCa::new();
    let (origin, arrived, go) = origin(&ca).await;
    let dir = directory(&ca);
    let top = "runtime: { linger: 60s, linger_idle: 700ms, drain: 5s }\n";
    let mut program = Program::start(dir.path(), &policy(origin.address, "", top), "info", &[]);
    // A connection that is only kept must not count as work.
    let mut kept = Raw::connect(program.listener).await;
    kept.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    assert_eq!(kept.answer().await.status, 200);
    let mut held = Raw::connect(program.listener).await;
    held.send(format!("GET /api/held HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    until("it runs", || arrived.load(Ordering::SeqCst) == 2).await;

    program.signal("TERM");
    until("it serves on", || program.stderr().contains("serving on")).await;
    // The app was told to end too, and has something left to say: on a new connection.
    assert_eq!(local_request(program.listener, "GET", "/api/last", "", "").await.status, 200);
    tokio::time::sleep(2 * IDLE).await;
    assert!(!program.stderr().contains("draining"), "a request runs: {}", program.stderr());
    go.add_permits(1);
    assert_eq!(held.answer().await.status, 200);
    let ended = Instant::now();
    assert!(ended_with(program.wait(Duration::from_secs(10)), 0));
    assert!(ended.elapsed() >= IDLE - Duration::from_millis(100), "{:?}", ended.elapsed());
}

#[tokio::test]
async fn probe_waits_for_one_that_is_still_to_start() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = write_policy(dir.path(), PLAIN);
    let address = free.to_string();
    let probe = ["probe", "--path", "/readyz", "--address", &address];
    assert_eq!(output(&mut outgate(&probe)).status.code(), Some(1), "nobody is there");
    let waiting = outgate(&[&probe[..], &["--wait", "30"]].concat()).spawn().unwrap();
    let begun = Instant::now();
    let mut command = outgate(&["run", "--config", &path, "--set", &format!("admin.address={free}")]);
    command.env_remove("OUTGATE_SET");
    let _program = Program::started(command);
    assert!(waiting.wait_with_output().unwrap().status.success());
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_setting_that_is_none_is_a_wrong_argument() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_policy(dir.path(), PLAIN);
    for (setting, code, wanted) in [
        ("providers.api.hosts=[evil.example]", 2, "the rest belongs into the policy"),
        ("admin.health_adress=0.0.0.0:1", 3, "health_address"),
    ] {
        for command in [
            &mut outgate(&["check", "--config", &path, "--set", setting]),
            outgate(&["check", "--config", &path]).env("OUTGATE_SET", setting),
        ] {
            let got = output(command);
            let told = String::from_utf8_lossy(&got.stderr).into_owned();
            assert_eq!(got.status.code(), Some(code), "{told}");
            assert!(told.contains(wanted), "{told}");
        }
    }
}

/// A flag does not take the place of the whole variable: each key is set by the one that names it, and by the flag where both do.
#[tokio::test]
async fn settings_of_the_variable_stay_beside_those_of_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_policy(dir.path(), PLAIN);
    let of_variable =
        ["interception.bundle=/of-the-variable.pem", "listeners=[{address: \"127.0.0.1:1\"}]"].join("\n");
    let mut command = outgate(&[
        "env",
        "--config",
        &path,
        "--format",
        "json",
        "--set",
        "listeners=[{address: \"127.0.0.1:2\"}]",
    ]);
    let got = output(command.env("OUTGATE_SET", of_variable));
    let told = String::from_utf8_lossy(&got.stdout).into_owned();
    assert!(told.contains(r#""SSL_CERT_FILE": "/of-the-variable.pem""#), "{told}");
    assert!(told.contains(r#""HTTPS_PROXY": "http://127.0.0.1:2""#), "{told}");
}
