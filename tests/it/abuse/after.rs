//! The bench of these cases, and what must hold after each of them, whatever its own answer is.
//!
//! Providers: `api` (intercepted, a canary as its bearer token, `/v1/**` only), `open` (plain http, no credential). A
//! sentinel counts connections that nobody may make.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use outgate::pipeline::reload::ReloadOutcome;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::CANARY;
use crate::support::ca::TestCa;
use crate::support::client::{Got, PATIENCE, Raw, admin};
use crate::support::origin::{HttpOrigin, text};
use crate::support::proxy::Proxy;

/// How long the good request after a case may take. The goal is a second; a build machine that runs many tests at once
/// needs more.
const GOOD_WITHIN: Duration = Duration::from_secs(5);
/// What of the canary is public.
const PUBLIC_PREFIX: &str = "sk_live_";

/// Counts connections to an address that nobody may reach.
pub struct Sentinel {
    pub port: u16,
    count: Arc<AtomicUsize>,
}

impl Sentinel {
    /// On every address of this host, IPv4 and IPv6 (IPv4 alone where there is no IPv6).
    pub async fn everywhere() -> Self {
        let listener = match TcpListener::bind("[::]:0").await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind("0.0.0.0:0").await.unwrap(),
        };
        Self::on(listener)
    }

    /// On the address that is bound already.
    pub fn on(listener: TcpListener) -> Self {
        let port = listener.local_addr().unwrap().port();
        let count = Arc::<AtomicUsize>::default();
        let counted = count.clone();
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { port, count }
    }

    pub fn connections(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

/// What a case changes of the bench.
pub struct Setup<'a> {
    /// What the credential's origin offers.
    pub alpn: &'a [&'a str],
    /// Top-level keys of the policy.
    pub top: &'a str,
    /// Further lines of provider `api`, indented by four.
    pub api: &'a str,
    /// Further lines of provider `open`, indented by four.
    pub open: &'a str,
    /// Further providers, indented by two.
    pub providers: &'a str,
    /// Bytes of the credential's file.
    pub secret: &'a [u8],
}

impl Default for Setup<'_> {
    fn default() -> Self {
        let secret = CANARY.as_bytes();
        Self { alpn: &["http/1.1"], top: "", api: "", open: "", providers: "", secret }
    }
}

impl Setup<'_> {
    /// The policy; `{dir}` is filled in by whoever starts it.
    pub fn policy(&self, api: std::net::SocketAddr, open: std::net::SocketAddr) -> String {
        format!(
            "{top}
providers:
  api:
    hosts: [api.example.test]
    upstream: {{ connect_to: \"{api}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}
    credential: {{ bearer: \"file:{{dir}}/secret\" }}
    routes:
      - match: {{ methods: [GET, POST], path: \"/v1/**\" }}
      - match: {{}}
        deny: \"only /v1\"
{more_api}
  open:
    hosts: [open.example.test]
    upstream: {{ scheme: http, connect_to: \"{open}\" }}
{more_open}
{providers}
",
            top = self.top,
            more_api = self.api,
            more_open = self.open,
            providers = self.providers,
        )
    }

    fn fill(&self, ca: &TestCa) -> Arc<TempDir> {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("origin.pem"), &ca.pem).unwrap();
        std::fs::write(dir.path().join("secret"), self.secret).unwrap();
        dir
    }
}

/// A proxy with an origin for the credential, one without, and sentinels.
pub struct Bench {
    pub proxy: Proxy,
    pub api: HttpOrigin,
    pub open: HttpOrigin,
    pub evil: Sentinel,
    pub policy: String,
    answered: AtomicUsize,
}

impl Bench {
    pub async fn start(setup: Setup<'_>) -> Self {
        let ca = TestCa::new();
        let tls = Some(ca.server(&["api.example.test"], setup.alpn));
        Self::with(setup, &ca, HttpOrigin::with(tls, |_| text(200, "{\"ok\":true}")).await).await
    }

    /// With an origin of the case's own for the credential.
    pub async fn with(setup: Setup<'_>, ca: &TestCa, api: HttpOrigin) -> Self {
        let open = HttpOrigin::start(None).await;
        let policy = setup.policy(api.address, open.address);
        let proxy = Proxy::start_in(setup.fill(ca), &policy).await;
        let evil = Sentinel::everywhere().await;
        Self { proxy, api, open, evil, policy, answered: AtomicUsize::new(0) }
    }

    /// A request on a connection of its own.
    pub async fn ask(&self, bytes: impl AsRef<[u8]>) -> Got {
        let mut raw = Raw::connect(self.proxy.address()).await;
        raw.send(bytes).await;
        raw.answer().await
    }

    /// A good request, as another client would send it.
    pub async fn good(&self) -> Got {
        self.answered.fetch_add(1, Ordering::SeqCst);
        good(&self.proxy).await
    }

    /// Reloads with the text of `change` of the policy.
    pub async fn reload(&self, change: impl Fn(&str) -> String) -> ReloadOutcome {
        self.proxy.reload(&change(&self.policy)).await
    }

    /// What must hold after every case. `answered` is how many records the case makes; `clients` is what clients read.
    /// Returns those records.
    pub async fn after(&self, answered: usize, clients: &[&str]) -> Vec<Value> {
        let before = self.answered.fetch_add(answered, Ordering::SeqCst);
        let records = self.proxy.records(before + answered).await;
        assert_eq!(records.len(), before + answered, "one record per answered request: {records:#?}");
        assert_eq!(self.good().await.status, 200);
        holds(&self.proxy, &[&self.evil], clients).await;
        let all = self.proxy.records(before + answered + 1).await;
        assert_eq!(all.len(), before + answered + 1, "{all:#?}");
        records[before..].to_vec()
    }

    /// The same where the number of records depends on when a connection was ended: waits until no record comes any more,
    /// and returns all of them.
    pub async fn after_some(&self, clients: &[&str]) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        let (mut count, mut since) = (usize::MAX, Instant::now());
        let records = loop {
            let records = self.proxy.records(0).await;
            if records.len() != count {
                (count, since) = (records.len(), Instant::now());
            } else if since.elapsed() > Duration::from_millis(200) {
                break records;
            }
            assert!(Instant::now() < deadline, "records go on coming");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        self.answered.store(records.len(), Ordering::SeqCst);
        self.after(0, clients).await;
        records
    }
}

/// A good request on a connection of its own.
pub async fn good(proxy: &Proxy) -> Got {
    let answer = async {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET http://open.example.test/second HTTP/1.1\r\nHost: open.example.test\r\n\r\n").await;
        raw.answer().await
    };
    tokio::time::timeout(GOOD_WITHIN, answer).await.expect("a good request is answered in time")
}

/// Invariants 1 to 4 of the key: sentinels, the canary, alive without a bug, refusals with their reason.
pub async fn holds(proxy: &Proxy, sentinels: &[&Sentinel], clients: &[&str]) {
    for sentinel in sentinels {
        assert_eq!(sentinel.connections(), 0, "a sentinel was reached");
    }
    for text in clients {
        assert_no_canary("a client", text);
    }
    let log = proxy.log.text(&proxy.app.telemetry);
    assert_no_canary("the log", &log);
    let metrics = proxy.metrics();
    assert_no_canary("the metrics", &metrics);
    assert!(metrics.contains("outgate_internal_errors_total 0"), "a bug was counted: {metrics}");
    assert_no_canary("/status", &format!("{:?}", admin(proxy, "GET", "/status").await));
    for line in log.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let status = record["http.response.status_code"].as_u64().unwrap_or(200);
        let is_own = !record["error.type"].is_null();
        assert!(
            !is_own || (status >= 400 && record["outgate.flag"].is_string()),
            "a refusal says why: {record}"
        );
    }
}

/// No piece of eight bytes of the canary after its public prefix, plain or in base64.
pub fn assert_no_canary(place: &str, text: &str) {
    let secret = &CANARY[PUBLIC_PREFIX.len()..];
    for piece in secret.as_bytes().windows(8) {
        let piece = std::str::from_utf8(piece).unwrap();
        assert!(!text.contains(piece), "{place} holds a piece of the canary: {text}");
    }
    for shift in 0..3 {
        let shifted = format!("{}{CANARY}", &"xx"[..shift]);
        let encoded = STANDARD_NO_PAD.encode(shifted);
        let core = &encoded[4..encoded.len() - 4];
        assert!(!text.contains(core), "{place} holds the canary in base64: {text}");
    }
}

/// Asserts an answer of outgate itself.
pub fn assert_refused(what: &str, got: &Got, status: u16, error: &str) {
    assert_eq!(got.status, status, "{what}: {got:?}");
    assert_eq!(got.proxy_error(), Some(error), "{what}: {got:?}");
}

/// A 400, by us or by the HTTP library (whose answers have none of our fields).
pub fn assert_malformed(what: &str, got: &Got) {
    assert_eq!(got.status, 400, "{what}: {got:?}");
    assert!(matches!(got.proxy_error(), None | Some("http_request_error")), "{what}: {got:?}");
}

/// The program itself, for what only a process of its own can show: memory, environment, exit codes.
pub struct Program {
    child: Child,
    pub address: std::net::SocketAddr,
    pub dir: Arc<TempDir>,
}

impl Program {
    /// Runs a policy with these variables added; waits until it says that it is ready.
    pub async fn start(dir: Arc<TempDir>, policy: &str, variables: &[(&str, &str)]) -> Self {
        let path = Self::write(dir.path(), policy);
        let log = std::fs::File::create(dir.path().join("stderr")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["run", "--config"]).arg(&path).current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        for (name, value) in variables {
            command.env(name, value);
        }
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let address = loop {
            let text = std::fs::read_to_string(dir.path().join("stderr")).unwrap();
            if let Some(found) = ready_at(&text) {
                break found;
            }
            assert!(child.try_wait().unwrap().is_none(), "it ended: {text}");
            assert!(Instant::now() < deadline, "not ready: {text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        Self { child, address, dir }
    }

    /// Writes a policy with listeners on free ports, and `{dir}` filled in.
    pub fn write(dir: &Path, policy: &str) -> std::path::PathBuf {
        let path = dir.join("proxy.yaml");
        let text = format!(
            "version: 1
listeners: [{{ address: \"127.0.0.1:0\" }}]
admin: {{ address: \"127.0.0.1:0\" }}
interception: {{ ca: {{ directory: \"{{dir}}/ca\" }}, bundle: \"{{dir}}/bundle.pem\" }}
telemetry: {{ access_log: {{ output: {{ file: \"{{dir}}/access.log\" }} }} }}
{policy}"
        );
        std::fs::write(&path, text.replace("{dir}", &dir.to_string_lossy())).unwrap();
        path
    }

    /// The access log so far.
    pub fn records(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default()
    }

    /// What it said of its own work.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    /// PEM of its CA.
    pub fn ca(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("ca/ca.pem")).unwrap()
    }

    /// Resident memory in KiB.
    pub fn rss(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that was ever resident, in KiB.
    pub fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Still there, answers, printed no panic and nothing of the canary.
    pub async fn holds(&mut self) {
        let answer = async {
            let mut raw = Raw::connect(self.address).await;
            raw.send("GET http://open.example.test/second HTTP/1.1\r\nHost: open.example.test\r\n\r\n").await;
            raw.answer().await
        };
        let got = tokio::time::timeout(GOOD_WITHIN, answer).await.expect("a good request is answered");
        assert_eq!(got.status, 200, "{got:?}");
        assert!(self.child.try_wait().unwrap().is_none(), "it ended");
        let stderr = self.stderr();
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert_no_canary("stderr", &stderr);
        assert_no_canary("the log", &self.records());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready_at(stderr: &str) -> Option<std::net::SocketAddr> {
    let line = stderr.lines().find(|line| line.contains("outgate is ready"))?;
    let (_, rest) = line.split_once("listeners=")?;
    rest.trim_start_matches('"').split(['"', ' ']).next()?.parse().ok()
}

/// A program with the same two origins as [`Bench`].
pub async fn program(setup: Setup<'_>, variables: &[(&str, &str)]) -> (Program, HttpOrigin, HttpOrigin) {
    let ca = TestCa::new();
    let api = HttpOrigin::start(Some(ca.server(&["api.example.test"], setup.alpn))).await;
    let open = HttpOrigin::start(None).await;
    let program = program_with(&setup, &ca, api.address, open.address, variables).await;
    (program, api, open)
}

/// A program with origins of the case's own.
pub async fn program_with(
    setup: &Setup<'_>,
    ca: &TestCa,
    api: std::net::SocketAddr,
    open: std::net::SocketAddr,
    variables: &[(&str, &str)],
) -> Program {
    Program::start(setup.fill(ca), &setup.policy(api, open), variables).await
}

/// Every id of a group has a test in `source` (its name begins with the id) or stands in the list with a reason, and a
/// listed one is printed.
pub fn assert_covered(group: &str, count: usize, source: &str, not_yet: &[(&str, &str)]) {
    for (id, reason) in not_yet {
        println!("{id} not yet: {reason}");
    }
    for number in 1..=count {
        let test = format!("async fn {}_{number:02}_", group.to_ascii_lowercase());
        let id = format!("{group}-{number:02}");
        let is_listed = not_yet.iter().any(|(listed, _)| *listed == id);
        assert!(source.contains(&test) || is_listed, "{id} is neither tested nor listed");
    }
}
