//! The program as an operator meets it: its end, its next start, its exit codes, and the environment it gives to apps.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::program::{Program, ended_with, outgate, output, write_policy};
use super::support::ca::{TestCa, trusting};
use super::support::client::{Got, Raw, http2, request};
use super::support::origin::{HttpOrigin, RawOrigin, Stream, read_request};
use super::world::{HOST, directory, policy, until};

const PLAIN: &str = "providers:\n  api: { hosts: [api.example.test] }\n";

/// An origin that holds each request until it is told to go on.
async fn holding(ca: &TestCa, go: &Arc<tokio::sync::Semaphore>) -> (RawOrigin, Arc<AtomicUsize>) {
    let (go, arrived) = (go.clone(), Arc::new(AtomicUsize::new(0)));
    let count = arrived.clone();
    let script = Arc::new(move |mut stream: Box<dyn Stream>, _| {
        let (go, count) = (go.clone(), count.clone());
        Box::pin(async move {
            while read_request(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                go.acquire().await.unwrap().forget();
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
                let _ = stream.flush().await;
            }
        }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    });
    (RawOrigin::start(Some(ca.server(&[HOST], &["http/1.1"])), script).await, arrived)
}

#[tokio::test]
async fn sigterm_drains() {
    let ca = TestCa::new();
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let (origin, arrived) = holding(&ca, &go).await;
    let dir = directory(&ca);
    let mut program =
        Program::start(dir.path(), &policy(origin.address, "", "runtime: { drain: 5s }\n"), "info", &[]);
    // A request by HTTP/1.1, one by HTTP/2 inside an interception, and two connections that are idle.
    let mut plain = Raw::connect(program.listener).await;
    plain.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    let mut tunnel = Raw::connect(program.listener).await;
    tunnel.send(format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n")).await;
    assert_eq!(tunnel.head().await.status, 200);
    let pem = std::fs::read_to_string(dir.path().join("ca/ca.pem")).unwrap();
    let name = rustls::pki_types::ServerName::try_from(HOST).unwrap();
    let stream = TlsConnector::from(trusting(&pem, &["h2"])).connect(name, tunnel.stream).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let uri = format!("https://{HOST}/x");
    let second = tokio::spawn(sender.send_request(request("GET", &uri, None, "")));
    let mut idle = Raw::connect(program.listener).await;
    idle.send(format!("GET /nobody HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    assert_eq!(idle.answer().await.status, 403);
    until("both are being served", || arrived.load(Ordering::SeqCst) == 2).await;

    program.signal("TERM");
    assert!(idle.ends().await, "an idle connection is closed at once");
    until("no new connection", || std::net::TcpStream::connect(program.listener).is_err()).await;
    assert!(
        super::program::outgate(&["probe", "--address", &program.admin.to_string(), "--path", "/healthz"])
            .status()
            .unwrap()
            .success(),
        "alive until the end"
    );
    assert!(
        !super::program::outgate(&["probe", "--address", &program.admin.to_string(), "--path", "/readyz"])
            .status()
            .unwrap()
            .success(),
        "and not ready"
    );
    go.add_permits(2);
    let got = plain.answer().await;
    assert_eq!((got.status, got.text().as_str(), got.header("connection")), (200, "done", Some("close")));
    let got = Got::read(second.await.unwrap().unwrap()).await;
    assert_eq!((got.status, got.text().as_str()), (200, "done"));
    // GOAWAY: the connection ends by itself, without an error.
    assert!(tokio::time::timeout(Duration::from_secs(5), connection).await.unwrap().unwrap().is_ok());
    let status = program.wait(Duration::from_secs(6));
    assert!(ended_with(status, 0), "{status:?}");
    assert_eq!(program.stdout().lines().count(), 4, "all records are written: {}", program.stdout());
}

#[tokio::test]
async fn what_does_not_end_is_ended() {
    let ca = TestCa::new();
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let (origin, arrived) = holding(&ca, &go).await;
    let dir = directory(&ca);
    let mut program =
        Program::start(dir.path(), &policy(origin.address, "", "runtime: { drain: 1s }\n"), "info", &[]);
    let mut plain = Raw::connect(program.listener).await;
    plain.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    until("it is being served", || arrived.load(Ordering::SeqCst) == 1).await;
    let started = Instant::now();
    program.signal("TERM");
    let status = program.wait(Duration::from_secs(5));
    assert!(ended_with(status, 0), "{status:?}");
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_millis(2200), "{took:?}");
    assert!(plain.ends().await);
    assert_eq!(program.stdout().lines().count(), 1, "it has its record: {}", program.stdout());

    // A second signal ends at once.
    let mut program =
        Program::start(dir.path(), &policy(origin.address, "", "runtime: { drain: 60s }\n"), "info", &[]);
    let mut plain = Raw::connect(program.listener).await;
    plain.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    until("it is being served", || arrived.load(Ordering::SeqCst) == 2).await;
    program.signal("INT");
    until("it drains", || program.stderr().contains("draining")).await;
    program.signal("INT");
    program.wait(Duration::from_secs(3));
}

#[tokio::test]
async fn killed_at_any_moment_it_starts_again() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let dir = directory(&ca);
    let text = policy(
        origin.address,
        "",
        "listeners: [{ address: \"unix:{dir}/proxy.sock\" }]\nadmin: { address: \"unix:{dir}/admin.sock\" }\n",
    );
    let path = write_policy(dir.path(), &text);
    let mut fingerprints = Vec::new();
    for delay in [0, 2, 5, 10, 20, 40, 80] {
        let mut child = outgate(&["run", "--config", &path])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for _ in 0..2 {
        let mut program = Program::start(dir.path(), &text, "info", &[]);
        let mut stream = UnixStream::connect(dir.path().join("proxy.sock")).await.unwrap();
        stream
            .write_all(b"GET /api/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert!(got.starts_with("HTTP/1.1 200"), "{got}");
        fingerprints.push(std::fs::read(dir.path().join("ca/ca.pem")).unwrap());
        program.signal("KILL");
        program.wait(Duration::from_secs(3));
        assert!(dir.path().join("proxy.sock").exists(), "what a killed process leaves");
    }
    assert_eq!(fingerprints[0], fingerprints[1], "the CA stays");
    let left: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .chain(std::fs::read_dir(dir.path().join("ca")).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in &left {
        let known = [
            "proxy.yaml",
            "origin.pem",
            "secret",
            "ca",
            "bundle.pem",
            "ca.pem",
            "ca.key",
            "proxy.sock",
            "admin.sock",
        ];
        assert!(known.contains(&name.as_str()) || name.starts_with('.') || name.contains("lock"), "{left:?}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner_alone_and_goes_with_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "listeners: [{{ address: \"unix:{{dir}}/p.sock\" }}]\nadmin: {{ address: \"unix:{{dir}}/a.sock\" }}\n{PLAIN}"
    );
    let mut program = Program::start(dir.path(), &text, "info", &[]);
    for name in ["p.sock", "a.sock"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let address = format!("unix:{}/a.sock", dir.path().display());
    assert!(outgate(&["probe", "--address", &address]).status().unwrap().success());
    // Somebody else listens there: the second does not take it away.
    let second = output(&mut outgate(&["run", "--config", &dir.path().join("proxy.yaml").to_string_lossy()]));
    assert!(ended_with(second.status, 1), "{second:?}");
    assert!(outgate(&["probe", "--address", &address]).status().unwrap().success());
    program.signal("TERM");
    assert!(ended_with(program.wait(Duration::from_secs(5)), 0));
    assert!(!dir.path().join("p.sock").exists() && !dir.path().join("a.sock").exists());
}

#[tokio::test]
async fn exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let good = write_policy(
        dir.path(),
        "providers:\n  api:\n    hosts: [api.example.test]\n    routes: [ { match: { path: /no }, deny: \"never\" } ]\n",
    );
    let bad = dir.path().join("bad.yaml").to_string_lossy().into_owned();
    std::fs::write(&bad, "version: 1\nproviders:\n  api: { hots: [x], unknown: 1 }\n").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = dir.path().join("taken.yaml").to_string_lossy().into_owned();
    let text = std::fs::read_to_string(&good).unwrap();
    std::fs::write(&taken, text.replacen("127.0.0.1:0", &busy.local_addr().unwrap().to_string(), 1)).unwrap();
    for (arguments, code) in [
        (vec!["check", "--config", &good], 0),
        (vec!["check", "--config", &bad], 3),
        (vec!["check", "--config", "/nowhere/proxy.yaml"], 3),
        (vec!["run", "--config", &bad], 3),
        (vec!["run", "--config", &taken], 1),
        (vec!["run", "--config", &good, "--log", "a=b=c"], 1),
        (vec!["explain", "--config", &good, "GET", "https://api.example.test/x"], 0),
        (vec!["explain", "--config", &good, "GET", "https://api.example.test/no"], 4),
        (vec!["explain", "--config", &good, "GET", "https://evil.example.test/"], 4),
        (vec!["explain", "--config", &bad, "GET", "https://api.example.test/x"], 3),
        (vec!["env", "--config", &bad], 3),
        (vec!["exec", "--config", &bad, "--", "true"], 3),
        (vec!["probe", "--address", &closed], 1),
        (vec!["nonsense"], 2),
        (vec!["run", "--nonsense"], 2),
        (vec!["--version"], 0),
        (vec!["--help"], 0),
        (vec!["schema"], 0),
        (vec!["completions", "bash"], 0),
        (vec!["completions", "zsh"], 0),
        (vec!["completions", "fish"], 0),
    ] {
        let got = output(outgate(&arguments).current_dir(dir.path()));
        let errors = String::from_utf8_lossy(&got.stderr).into_owned();
        assert!(ended_with(got.status, code), "{arguments:?}: {:?} {errors}", got.status);
        assert_eq!(got.stdout.is_empty(), ![0, 4].contains(&code), "{arguments:?}: output where it belongs");
        assert!(!got.stdout.contains(&0x1b) && !errors.contains('\u{1b}'), "{arguments:?}: plain when piped");
        if arguments.contains(&bad.as_str()) {
            assert!(
                errors.contains(&format!("{bad}:3:")) && errors.contains("did you mean `hosts`"),
                "{errors}"
            );
            assert!(errors.contains("unknown"), "all mistakes at once: {errors}");
        }
    }
    let version = output(&mut outgate(&["--version"]));
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        format!("outgate {}\n", env!("CARGO_PKG_VERSION"))
    );
}

const VARIABLES: [&str; 18] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
    "no_proxy",
    "NODE_USE_ENV_PROXY",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "GIT_SSL_CAINFO",
    "DENO_CERT",
    "CARGO_HTTP_CAINFO",
    "PIP_CERT",
];

#[tokio::test]
async fn the_environment_of_an_app() {
    let dir = tempfile::Builder::new().prefix("it's a ").tempdir().unwrap();
    let path = write_policy(dir.path(), &format!("listeners: [{{ address: \"127.0.0.1:3199\" }}]\n{PLAIN}"));
    let bundle = dir.path().join("bundle.pem").to_string_lossy().into_owned();
    let run = |arguments: &[&str]| {
        let got = output(&mut outgate(arguments));
        assert!(got.status.success(), "{got:?}");
        String::from_utf8(got.stdout).unwrap()
    };
    let json: serde_json::Value =
        serde_json::from_str(&run(&["env", "--config", &path, "--format", "json"])).unwrap();
    assert_eq!(json.as_object().unwrap().len(), VARIABLES.len());
    for name in VARIABLES {
        let value = json[name].as_str().unwrap_or_else(|| panic!("{name}"));
        match name.to_lowercase().as_str() {
            "https_proxy" | "http_proxy" => assert_eq!(value, "http://127.0.0.1:3199"),
            "no_proxy" => {
                assert!(value.contains("localhost") && value.contains("127.0.0.1") && value.contains("::1"))
            }
            "node_use_env_proxy" => assert_eq!(value, "1"),
            _ => assert_eq!(value, bundle, "{name}"),
        }
    }
    // What a shell makes of it is the same.
    let shell = run(&["env", "--config", &path]);
    let got = output(Command::new("sh").args(["-c", &format!("{shell}\nprintf '%s' \"$SSL_CERT_FILE\"")]));
    assert_eq!(String::from_utf8(got.stdout).unwrap(), bundle);
    assert!(
        run(&["env", "--config", &path, "--format", "dotenv"])
            .contains("\nHTTP_PROXY=http://127.0.0.1:3199\n")
    );
    assert!(
        run(&["env", "--config", &path, "--format", "docker"])
            .contains("--env HTTP_PROXY=http://127.0.0.1:3199\n")
    );

    // `exec` gives it to a command, and hands its exit code back.
    let got = output(&mut outgate(&[
        "exec",
        "--config",
        &path,
        "--",
        "sh",
        "-c",
        "printf '%s' \"$PIP_CERT $https_proxy\"; exit 7",
    ]));
    assert!(ended_with(got.status, 7));
    assert_eq!(String::from_utf8(got.stdout).unwrap(), format!("{bundle} http://127.0.0.1:3199"));
    let got = output(&mut outgate(&["exec", "--config", &path, "--", "no-such-command-here"]));
    assert!(!got.status.success() && !got.stderr.is_empty());
}

#[tokio::test]
async fn the_ca_is_made_once_and_shown_without_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_policy(dir.path(), PLAIN);
    let got = output(&mut outgate(&["ca", "init", "--config", &path]));
    assert!(got.status.success(), "{got:?}");
    let pem = std::fs::read_to_string(dir.path().join("ca/ca.pem")).unwrap();
    let mode = std::fs::metadata(dir.path().join("ca/ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(std::fs::read_to_string(dir.path().join("bundle.pem")).unwrap().contains(pem.trim()));
    for _ in 0..2 {
        let exported = output(&mut outgate(&["ca", "export", "--config", &path]));
        let text = String::from_utf8(exported.stdout).unwrap();
        assert_eq!(text.trim(), pem.trim());
        assert!(!text.contains("PRIVATE"));
        assert!(output(&mut outgate(&["ca", "init", "--config", &path])).status.success());
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("ca/ca.pem")).unwrap(), pem);
    // A key that others may read is refused.
    std::fs::set_permissions(dir.path().join("ca/ca.key"), PermissionsExt::from_mode(0o644)).unwrap();
    let got = output(&mut outgate(&["run", "--config", &path]));
    assert!(ended_with(got.status, 1), "{got:?}");
    assert!(String::from_utf8_lossy(&got.stderr).contains("ca.key"), "{got:?}");
}

#[tokio::test]
async fn sx_12_no_proxy_variable_of_the_environment_has_an_effect() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let caught = Arc::new(AtomicUsize::new(0));
    let count = caught.clone();
    let url = format!("http://{}", trap.local_addr().unwrap());
    tokio::spawn(async move {
        while trap.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let dir = directory(&ca);
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let environment: Vec<(&str, &str)> = names.iter().map(|name| (*name, url.as_str())).collect();
    let program = Program::start(dir.path(), &policy(origin.address, "", ""), "info", &environment);
    let mut raw = Raw::connect(program.listener).await;
    raw.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    assert_eq!(raw.answer().await.status, 200);
    assert_eq!((origin.requests().len(), caught.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test]
async fn http_2_by_prior_knowledge_at_the_local_endpoint() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let dir = directory(&ca);
    let program = Program::start(dir.path(), &policy(origin.address, "", ""), "info", &[]);
    let mut sender = http2(TcpStream::connect(program.listener).await.unwrap()).await;
    let uri = format!("http://{}/api/x", program.listener);
    let got = Got::read(sender.send_request(request("GET", &uri, None, "")).await.unwrap()).await;
    assert_eq!(got.status, 200);
}
