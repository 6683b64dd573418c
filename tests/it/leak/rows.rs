//! Tables of providers that are run twice, in process and with the real program, and all that came out of either.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use super::super::capture::Capture;
use super::super::program::{Program, outgate, output};
use super::super::support::proxy::Proxy;
use super::{Search, dial, raw};

/// One provider of a table.
pub struct Row {
    /// What it stands for: a kind of credential, or of a store.
    pub of: &'static str,
    /// Its credential as written. `{dir}` is filled in, and `{store}` with the name of its store.
    pub credential: String,
    /// The store, as written; empty where it names none.
    pub store: String,
    /// Its `upstream`, as written.
    pub upstream: String,
    /// Further lines of its request.
    pub lines: &'static str,
    /// The code of what is wrong with it in `/status`, and then it is answered 503; none where its request is sent. Empty for
    /// what is only found when a request comes.
    pub code: Option<&'static str>,
}

/// What came out of a run.
pub struct Out {
    /// Each thing that somebody could read, and its name.
    pub sinks: Vec<(&'static str, String)>,
    /// `/status`.
    pub status: Value,
}

impl Out {
    pub fn assert_without(&self, secrets: &[&str]) {
        let search = Search::new(secrets);
        for (name, text) in &self.sinks {
            assert!(!text.is_empty(), "{name} is empty");
            search.assert_clean(name, text);
        }
    }
}

/// The policy of a table. A store has the name of its row: `s0`, `s1` ...
pub fn policy(rows: &[Row], dir: &Path) -> String {
    let mut text =
        "telemetry: { query: redacted }\nsecrets:\n  unused: { exec: { command: [/bin/true] } }\n".to_owned();
    for (number, row) in rows.iter().enumerate().filter(|(_, row)| !row.store.is_empty()) {
        text.push_str(&format!("  s{number}: {}\n", row.store));
    }
    text.push_str("providers:\n");
    for (number, row) in rows.iter().enumerate() {
        text.push_str(&format!(
            "  p{number}:\n    hosts: [p{number}.x.test]\n    intercept: always\n    upstream: {}\n    credential: {}\n",
            row.upstream,
            row.credential.replace("{store}", &format!("s{number}")),
        ));
    }
    text.replace("{dir}", &dir.display().to_string())
}

/// Asks for each row, and for the pages of the admin listener; checks that the rows are what they are meant to be, or the
/// search would prove nothing.
async fn ask(proxy: SocketAddr, admin: SocketAddr, rows: &[Row]) -> (String, Value) {
    let received = Mutex::new(Vec::new());
    let mut wrong = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let text = format!(
            "POST /p{number}/echo HTTP/1.1\r\nHost: {proxy}\r\n{}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\nConnection: close\r\n\r\na=1",
            row.lines
        );
        let got = raw(dial(proxy).await, &text, &received).await;
        let expected = if row.code.is_none() { "200" } else { "503" };
        if got.get(9..12) != Some(expected) {
            wrong.push(format!("{number} {} {} {}: {got}", row.of, row.store, row.credential));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut status = Value::Null;
    for path in ["/", "/metrics", "/status"] {
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let got = raw(dial(admin).await, &text, &received).await;
        status = got
            .split_once("\r\n\r\n")
            .and_then(|(_, body)| serde_json::from_str(body).ok())
            .unwrap_or_default();
    }
    (String::from_utf8_lossy(&received.into_inner().unwrap()).into_owned(), status)
}

/// In process, with everything that is logged at all.
pub async fn in_process(rows: &[Row], dir: &Path) -> Out {
    let (log, _guard) = Capture::start(tracing::Level::TRACE);
    let proxy = Proxy::start_in(Arc::new(TempDir::new().unwrap()), &policy(rows, dir)).await;
    let (received, status) = ask(proxy.address(), proxy.admin(), rows).await;
    let sinks = vec![
        ("what the client received", received),
        ("the access log", proxy.log.text(&proxy.app.telemetry)),
        ("the operational log", log.text()),
        ("the metrics", proxy.metrics()),
    ];
    Out { sinks, status }
}

/// The real program, and what its commands tell of the policy.
pub async fn as_program(rows: &[Row], dir: &Path, environment: &[(&str, &str)]) -> Out {
    let own = TempDir::new().unwrap();
    let mut program = Program::start(own.path(), &policy(rows, dir), "trace", environment);
    let (received, status) = ask(program.listener, program.admin, rows).await;
    program.signal("TERM");
    program.wait(std::time::Duration::from_secs(20));
    assert!(program.stderr().contains("secret not read"), "the log is captured: {}", program.stderr());
    let file = own.path().join("proxy.yaml").display().to_string();
    let mut told = String::new();
    let urls = (0..rows.len()).map(|number| format!("/p{number}/echo"));
    let explain =
        urls.map(|url| vec!["explain".to_owned(), "-c".to_owned(), file.clone(), "POST".to_owned(), url]);
    for arguments in explain.chain([vec!["check".to_owned(), "-c".to_owned(), file.clone()]]) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = output(&mut outgate(&arguments));
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        told.push_str(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }
    let mut sinks = vec![
        ("what the client received", received),
        ("standard output", program.stdout()),
        ("standard error", program.stderr()),
        ("what check and explain say", told),
    ];
    // Nothing was written beside the CA and the bundle.
    for entry in std::fs::read_dir(own.path()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        sinks.push(("a file", String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned()));
    }
    Out { sinks, status }
}

/// What `/status` says of a row's secret.
pub fn code_of(status: &Value, number: usize) -> Option<&str> {
    let begin = format!("s{number}:");
    let all = status["secrets"].as_array().unwrap();
    all.iter().find(|one| one["reference"].as_str().unwrap().starts_with(&begin))?["last_error_code"].as_str()
}
