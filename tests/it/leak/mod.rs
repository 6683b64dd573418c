//! No secret in any sink: canaries go through every failing path, and then everything that left the process is searched for
//! any piece of eight bytes of any of them, as it is, in base64, percent-encoded and in hex.
//!
//! The same scenes run twice: in process with file stores and the JSON log, and against the real program with secrets in
//! the environment and the text log, at log level `trace`. So do the tables of every kind of credential (`kinds`) and of
//! every store (`stores`), which fail when one is added without a row.

mod kinds;
mod rows;
pub mod stores;
mod values;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::capture::Capture;
use super::program::Program;
use super::support::ca::{TestCa, trusting};
use super::support::client::{PATIENCE, http2, request};
use super::support::origin::{RawOrigin, Stream, read_request};
use super::support::proxy::Proxy;
use super::world::{answering, until};

/// Secrets by the place they go to. None has an eight-byte piece that could stand anywhere by chance.
const BEARER: &str = "Zq7vXw2LmN9pRt4KbY8cHd3F";
const PASSWORD: &str = "pW+5jQ/8sG=hU1nE6xA0zOo";
const HEADER: &str = "f9Kc2Vb7Tn4Xm1Ls8Qd5Wj3R";
const QUERY: &str = "aB/3dE+6gH&9jK=2mN%5pQ8r";
const OLD: &str = "oldU7yT6rE5wQ4aS3dF2gH1j";
const REJECTED: &str = "rJ4cT8bD2fG6hK0lM3nP7qS9";
const LITERAL: &str = "lT1eR5aL9wX3yZ7vB2nM6kP0";
const SENT_BY_APP: &str = "aPp5eNt1qU9eRy3sEc7rEt2k";
const ALL: [&str; 8] = [BEARER, PASSWORD, HEADER, QUERY, OLD, REJECTED, LITERAL, SENT_BY_APP];

const HOST: &str = "api.x.test";

/// Every spelling of every piece.
fn spellings(secret: &str) -> Vec<(String, &'static str)> {
    let mut all = Vec::new();
    for piece in secret.as_bytes().windows(8) {
        all.push((String::from_utf8(piece.to_vec()).unwrap(), "as it is"));
        let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
        all.push((hex.to_uppercase(), "upper hex"));
        all.push((hex, "hex"));
        let escaped: String = piece.iter().map(|byte| format!("%{byte:02X}")).collect();
        all.push((escaped.to_lowercase(), "percent"));
        all.push((escaped, "percent"));
        let usual = percent_encoding::utf8_percent_encode(
            std::str::from_utf8(piece).unwrap(),
            percent_encoding::NON_ALPHANUMERIC,
        );
        all.push((usual.to_string(), "percent"));
        for shift in 0..3 {
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let padded = [&[0_u8; 2][..shift], piece].concat();
                let encoded = engine.encode(&padded);
                let (skip, keep) = ([0, 2, 3][shift], padded.len() * 8 / 6);
                all.push((encoded[skip..keep].to_owned(), "base64"));
            }
        }
    }
    all
}

/// Fails where a piece of a canary stands in the text.
fn assert_clean(sink: &str, text: &str) {
    assert_without(&ALL, sink, text);
}

pub fn assert_without(secrets: &[&str], sink: &str, text: &str) {
    Search::new(secrets).assert_clean(sink, text);
}

/// Looks for every spelling of every piece of some canaries.
struct Search {
    search: aho_corasick::AhoCorasick,
    /// By number of the pattern: the canary's, and the form.
    found: Vec<(usize, &'static str)>,
}

impl Search {
    fn new(secrets: &[&str]) -> Self {
        let (mut patterns, mut found) = (Vec::new(), Vec::new());
        for (number, secret) in secrets.iter().enumerate() {
            for (spelling, form) in spellings(secret) {
                patterns.push(spelling);
                found.push((number, form));
            }
        }
        Self { search: aho_corasick::AhoCorasick::new(&patterns).unwrap(), found }
    }

    /// Fails where a piece of a canary stands in the text.
    fn assert_clean(&self, sink: &str, text: &str) {
        let Some(hit) = self.search.find(text) else { return };
        let (number, form) = self.found[hit.pattern().as_usize()];
        let before = String::from_utf8_lossy(&text.as_bytes()[hit.start().saturating_sub(300)..hit.start()]);
        panic!("{sink} holds a piece of canary {number} ({form}): ...{before}");
    }
}

#[test]
fn the_search_finds_what_it_looks_for() {
    let holds = |text: &str| std::panic::catch_unwind(|| assert_clean("", text)).is_err();
    let piece = &BEARER[3..11];
    assert!(holds(&format!("x{piece}y")));
    assert!(holds(&STANDARD.encode(format!("user:{PASSWORD}"))));
    assert!(holds(&STANDARD.encode(format!("a{BEARER}"))) && holds(&STANDARD.encode(format!("ab{BEARER}"))));
    assert!(holds(&piece.bytes().map(|byte| format!("{byte:02x}")).collect::<String>()));
    assert!(!holds("nothing here"));
}

/// The credential as it arrived: the value of the field or parameter, and the secret in it.
fn injected(request: &str) -> Option<String> {
    let line = |name: &str| {
        request.lines().find_map(|line| {
            let (field, value) = line.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let query = request.split_once("key=").map(|(_, rest)| rest.split([' ', '&']).next().unwrap().to_owned());
    line("authorization").or_else(|| line("x-api-key")).or(query)
}

/// An origin that repeats the credential wherever an answer has room for it.
fn hostile(request: &str) -> Option<Vec<u8>> {
    let value = injected(request).unwrap_or_default();
    let secret = value.rsplit(' ').next().unwrap_or_default();
    let encoded: Vec<String> =
        (0..3).map(|shift| STANDARD.encode(format!("{}{secret}", &"ab"[..shift]))).collect();
    let body = format!("{request}\n{secret}{secret} {} {value}", encoded.join(" "));
    let length = body.len();
    let path = request.split(' ').nth(1)?.split('?').next()?.to_owned();
    let answer = match path.rsplit('/').next()? {
        "401" => format!(
            "HTTP/1.1 401 {value}\r\nWWW-Authenticate: Bearer error=\"{secret}\"\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
        "500" => {
            format!("HTTP/1.1 500 {secret}\r\nX-Echo: {value}\r\nContent-Length: {length}\r\n\r\n{body}")
        }
        "echo" => format!(
            "HTTP/1.1 200 OK {secret}\r\nSet-Cookie: k={secret}\r\nLocation: https://{HOST}/x?key={secret}\r\nLink: <https://{HOST}/y?k={secret}>; rel=next\r\nX-Echo: {value}\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
        "trailers" => {
            let mut text =
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-echo\r\n\r\n".to_owned();
            // Pieces of seven bytes: hits go over the borders of chunks.
            for piece in body.as_bytes().chunks(7) {
                text.push_str(&format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece)));
            }
            text.push_str(&format!("0\r\nX-Echo: {value}\r\nX-Plain: {secret}\r\n\r\n"));
            text
        }
        "garbage" => format!("HTTP/1.1 200 OK\r\nX-Bad name {secret}: {value}\r\n\r\n{secret}"),
        "no-http" => format!("{value}\r\n\r\n"),
        "switch" => {
            format!("HTTP/1.1 101 {secret}\r\nUpgrade: {secret}\r\nConnection: upgrade\r\n\r\n{secret}")
        }
        "two-lengths" => {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\nX: {secret}\r\n\r\n{secret}"
            )
        }
        "cut" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", length + 100),
        "reset" => return None,
        _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
    };
    let closes = matches!(path.rsplit('/').next()?, "garbage" | "no-http" | "two-lengths" | "cut" | "switch");
    Some(if closes { [answer.as_bytes(), CLOSE].concat() } else { answer.into_bytes() })
}

/// Marks an answer after which the origin closes; never sent.
const CLOSE: &[u8] = b"\0close";

fn script() -> super::support::origin::Script {
    Arc::new(|mut stream: Box<dyn Stream>, _| {
        Box::pin(async move {
            while let Some(request) = read_request(&mut stream).await {
                let Some(answer) = hostile(&request) else { break };
                let closes = answer.ends_with(CLOSE);
                let sent = if closes { &answer[..answer.len() - CLOSE.len()] } else { &answer[..] };
                // In two writes, in the middle of wherever that is.
                let (first, second) = sent.split_at(sent.len() / 2);
                if stream.write_all(first).await.is_err() || stream.flush().await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
                if stream.write_all(second).await.is_err() || stream.flush().await.is_err() || closes {
                    break;
                }
            }
            let _ = stream.shutdown().await;
        })
    })
}

/// The origins, and the policy of all providers. `{dir}` and the references are filled in by each run.
struct Scene {
    origin: RawOrigin,
    other: RawOrigin,
    refused: SocketAddr,
    mute: SocketAddr,
    _mute: TcpListener,
    ca: TestCa,
}

impl Scene {
    async fn new() -> Self {
        let ca = TestCa::new();
        let names: Vec<String> = PROVIDERS.iter().map(|name| format!("{name}.x.test")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let origin = RawOrigin::start(Some(ca.server(&names, &["http/1.1"])), script()).await;
        // Another CA: the handshake fails.
        let other = RawOrigin::start(
            Some(TestCa::new().server(&["untrusted.x.test"], &["http/1.1"])),
            answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec())),
        )
        .await;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = closed.local_addr().unwrap();
        drop(closed);
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mute = silent.local_addr().unwrap();
        Self { origin, other, refused, mute, _mute: silent, ca }
    }

    /// `store` writes the reference of a secret by its name.
    fn policy(&self, store: impl Fn(&str) -> String, telemetry: &str) -> String {
        let (bearer, password, header, query, old, bad) = (
            store("BEARER"),
            store("PASSWORD"),
            store("HEADER"),
            store("QUERY"),
            store("OLD"),
            store("REJECTED"),
        );
        let provider = |name: &str, address: SocketAddr, credential: &str| {
            format!(
                "  {name}:\n    hosts: [{name}.x.test]\n    upstream: {{ connect_to: \"{address}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}\n    timeouts: {{ tls: 300ms, response: 1s }}\n    credential: {credential}\n"
            )
        };
        let origin = self.origin.address;
        let mut text = format!("{telemetry}\nproviders:\n");
        for (name, address, credential) in [
            ("api", origin, format!("{{ bearer: \"{bearer}\" }}")),
            (
                "basic",
                origin,
                format!("{{ basic: {{ username: \"plain:acct\", password: \"{password}\" }} }}"),
            ),
            ("header", origin, format!("{{ header: {{ name: X-Api-Key, value: \"{header}\" }} }}")),
            (
                "format",
                origin,
                format!(
                    "{{ header: {{ name: Authorization, value: \"{header}\", format: \"Key {{secret}}\" }} }}"
                ),
            ),
            ("query", origin, format!("{{ query: {{ name: key, value: \"{query}\" }} }}")),
            ("body", origin, format!("{{ body: {{ field: key, value: \"{query}\" }} }}")),
            (
                "dummy",
                origin,
                format!("{{ placeholder: {{ token: {DUMMY}, value: \"{header}\", in: [header] }} }}"),
            ),
            (
                "hmac",
                origin,
                format!(
                    "{{ hmac: {{ key: \"{header}\", content: \"{{target}}{{body}}\", signature: {{ header: X-Api-Key }} }} }}"
                ),
            ),
            ("list", origin, format!("{{ bearer: [\"{bearer}\", \"{old}\"] }}")),
            ("refused", self.refused, format!("{{ bearer: \"{bearer}\" }}")),
            ("untrusted", self.other.address, format!("{{ bearer: \"{bearer}\" }}")),
            ("mute", self.mute, format!("{{ query: {{ name: key, value: \"{query}\" }} }}")),
            ("bad", origin, format!("{{ bearer: \"{bad}\" }}")),
            ("missing", origin, format!("{{ bearer: \"{}\" }}", store("MISSING"))),
        ] {
            text.push_str(&provider(name, address, &credential));
        }
        text
    }
}

const PATHS: [&str; 11] =
    ["ok", "401", "500", "echo", "trailers", "garbage", "no-http", "switch", "two-lengths", "cut", "reset"];
const PROVIDERS: [&str; 14] = [
    "api",
    "basic",
    "header",
    "format",
    "query",
    "body",
    "dummy",
    "hmac",
    "list",
    "refused",
    "untrusted",
    "mute",
    "bad",
    "missing",
];

/// What the app holds in place of a key. No canary.
const DUMMY: &str = "placeholder-000001";

/// Sends bytes and keeps every byte that comes back.
async fn raw(stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &str, received: &Mutex<Vec<u8>>) -> String {
    let mut stream = stream;
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut got = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut got)).await.expect("the connection ends");
    received.lock().unwrap().extend_from_slice(&got);
    String::from_utf8_lossy(&got).into_owned()
}

async fn dial(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

async fn inside(proxy: SocketAddr, pem: &str, alpn: &[&str]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut stream = dial(proxy).await;
    let head = format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        got.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
    let name = rustls::pki_types::ServerName::try_from(HOST).unwrap();
    TlsConnector::from(trusting(pem, alpn)).connect(name, stream).await.unwrap()
}

/// Every path of every provider, by each door; returns all that the client got.
async fn play(proxy: SocketAddr, admin: SocketAddr, ca: &str) -> Vec<u8> {
    let received = Mutex::new(Vec::new());
    let mut statuses = Vec::new();
    for provider in PROVIDERS {
        for path in PATHS {
            // A provider that cannot be reached has one way to fail.
            if provider == "mute" && path != "ok" {
                continue;
            }
            let dummy = if provider == "dummy" { format!("X-Api-Key: {DUMMY}\r\n") } else { String::new() };
            let text = format!(
                "POST /{provider}/v1/{path}?token={SENT_BY_APP} HTTP/1.1\r\nHost: {proxy}\r\nX-Secret: {SENT_BY_APP}\r\n{dummy}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\nConnection: close\r\n\r\na=1"
            );
            let got = raw(dial(proxy).await, &text, &received).await;
            statuses.push(format!("{provider}/{path} {}", got.get(9..12).unwrap_or("none")));
        }
    }
    for path in PATHS {
        let text = format!("GET /v1/{path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        raw(inside(proxy, ca, &["http/1.1"]).await, &text, &received).await;
        let mut sender = http2(inside(proxy, ca, &["h2"]).await).await;
        let uri = format!("https://{HOST}/v1/{path}");
        match sender.send_request(request("GET", &uri, None, "")).await {
            Ok(mut response) => {
                let mut note = format!("{:?}", response.headers());
                while let Some(Ok(frame)) = response.frame().await {
                    note.push_str(&format!("{:?}", frame.trailers_ref()));
                    received
                        .lock()
                        .unwrap()
                        .extend_from_slice(frame.data_ref().unwrap_or(&bytes::Bytes::new()));
                }
                received.lock().unwrap().extend_from_slice(note.as_bytes());
            }
            Err(error) => received.lock().unwrap().extend_from_slice(error.to_string().as_bytes()),
        }
        let text =
            format!("GET http://{HOST}/v1/{path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        raw(dial(proxy).await, &text, &received).await;
    }
    for path in ["/", "/status", "/metrics", "/healthz", "/readyz", "/nothing"] {
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        raw(dial(admin).await, &text, &received).await;
    }
    // The scenes are what they are meant to be: otherwise the search proves nothing.
    for expected in [
        "api/ok 200",
        "api/401 401",
        "api/500 500",
        "api/echo 200",
        "api/garbage 502",
        "api/reset 502",
        "query/echo 200",
        "list/401 401",
        "refused/ok 502",
        "untrusted/ok 502",
        "mute/ok 504",
        "bad/ok 503",
        "missing/ok 503",
        "basic/echo 200",
        "format/trailers 200",
        "api/switch 502",
        "body/echo 200",
        "body/401 401",
        "dummy/echo 200",
        "dummy/trailers 200",
        "hmac/ok 200",
    ] {
        assert!(statuses.iter().any(|one| one == expected), "{expected}: {statuses:?}");
    }
    received.into_inner().unwrap()
}

/// Reloads of policies that hold a literal secret, or are broken beside one.
fn literal_policies(good: &str) -> Vec<String> {
    let extra = |credential: &str| {
        format!("{good}\n  literal:\n    hosts: [l.x.test]\n    credential: {credential}\n")
    };
    vec![
        extra(&format!("{{ bearer: {LITERAL} }}")),
        extra(&format!("{{ bearer: \"sk_live_{LITERAL}\" }}")),
        extra(&format!("{{ bearer: \"hunter:{LITERAL}\" }}")),
        extra(&format!("{{ bearer: [\"env:A\", {LITERAL}] }}")),
        extra(&format!("{{ basic: {{ username: {LITERAL}, password: {LITERAL} }} }}")),
        extra(&format!("{{ header: {{ name: X-Key, value: \"{LITERAL}\" }} }}")),
        extra(&format!("{{ header: {{ name: X-Key, value: env:A, format: \"{LITERAL}\" }} }}")),
        extra(&format!("{{ query: {{ name: key, value: {LITERAL} }} }}")),
        extra(&format!("{{ token: {LITERAL} }}")),
        extra(&format!("{{ body: {{ field: k, value: {LITERAL} }} }}")),
        extra(&format!("{{ placeholder: {{ token: \"x {LITERAL}\", value: env:A, in: [path] }} }}")),
        extra(&format!("{{ placeholder: {{ token: {LITERAL}, value: {LITERAL}, in: [path] }} }}")),
        extra(&format!("{{ mtls: {{ certificate: {LITERAL}, key: {LITERAL} }} }}")),
        extra(&format!(
            "{{ hmac: {{ key: {LITERAL}, content: \"{{body}}\", signature: {{ header: X }} }} }}"
        )),
        extra(&format!(
            "{{ hmac: {{ key: env:A, content: \"{{{LITERAL}}}\", signature: {{ header: X }} }} }}"
        )),
        extra(&format!("{{ bearer: {{ value: {LITERAL} }} }}")),
        extra(LITERAL),
        extra(&format!("{{ bearer: {LITERAL}, bearer: {LITERAL} }}")),
        extra(&format!("{{ bearer: \"{LITERAL}\n")),
        extra(&format!("{{ bearer: &a {LITERAL} }}")),
    ]
}

#[tokio::test]
async fn no_piece_of_a_secret_leaves_the_process_by_any_way_but_the_provider() {
    let (log, _guard) = Capture::start(tracing::Level::TRACE);
    let scene = Scene::new().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("origin.pem"), &scene.ca.pem).unwrap();
    for (name, value) in files() {
        std::fs::write(dir.path().join(name), value).unwrap();
    }
    let store = |name: &str| match name {
        "PASSWORD" => "file:{dir}/PASSWORD#deep.password".to_owned(),
        name => format!("file:{{dir}}/{name}"),
    };
    let policy = scene.policy(store, "telemetry: { query: redacted }");
    let proxy = Proxy::start_in(dir, &policy).await;
    let mut received = play(proxy.address(), proxy.admin(), &proxy.ca()).await;
    for policy in literal_policies(&policy) {
        let outcome = proxy.reload(&policy).await;
        let text = format!("{outcome:?}");
        assert!(text.starts_with("Refused"), "{policy}\n{text}");
        assert_clean("the outcome of a reload", &text);
        let mut stream = dial(proxy.admin()).await;
        stream
            .write_all(b"POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        stream.read_to_end(&mut received).await.unwrap();
    }
    let records = proxy.log.text(&proxy.app.telemetry);
    assert!(records.lines().count() > 100 && records.contains("\"outgate.scrubbed\""));
    assert!(log.text().contains("not reloaded"), "the operational log is captured");
    // What the app itself sent may come back to it.
    assert_without(&ALL[..7], "what the client received", &String::from_utf8_lossy(&received));
    assert_clean("the access log", &records);
    assert_clean("the operational log", &log.text());
    assert_clean("the metrics", &proxy.metrics());
    // The provider did get it: the canaries were alive.
    let origin = scene.origin.text();
    for secret in [BEARER, HEADER, OLD] {
        assert!(origin.contains(secret));
    }
    assert!(!origin.contains(REJECTED) && scene.other.text().is_empty());
}

#[tokio::test]
async fn the_program_with_secrets_in_its_environment_leaks_none() {
    let scene = Scene::new().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("origin.pem"), &scene.ca.pem).unwrap();
    let policy = scene.policy(|name| format!("env:{name}"), "telemetry: { access_log: { format: text } }");
    let environment =
        [("BEARER", BEARER), ("PASSWORD", PASSWORD), ("HEADER", HEADER), ("QUERY", QUERY), ("OLD", OLD)];
    let bad = format!("{REJECTED}\r\nX-Injected: 1");
    let environment: Vec<(&str, &str)> =
        environment.into_iter().chain([("REJECTED", bad.as_str()), ("A", HEADER)]).collect();
    let program = Program::start(dir.path(), &policy, "trace", &environment);
    let ca = std::fs::read_to_string(dir.path().join("ca/ca.pem")).unwrap();
    let mut received = play(program.listener, program.admin, &ca).await;
    for policy in literal_policies(&policy) {
        super::program::write_policy(dir.path(), &policy);
        let mut stream = dial(program.admin).await;
        stream
            .write_all(b"POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        stream.read_to_end(&mut received).await.unwrap();
    }
    until("the access log is written", || program.stdout().lines().count() > 100).await;
    program.signal("TERM");
    let mut program = program;
    program.wait(std::time::Duration::from_secs(10));
    // What the app itself sent may come back to it.
    assert_without(&ALL[..7], "what the client received", &String::from_utf8_lossy(&received));
    assert_clean("standard output", &program.stdout());
    assert_clean("standard error", &program.stderr());
    assert!(program.stderr().contains("TRACE"), "everything was logged");
    // Nothing was written beside the CA and the bundle.
    for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
        if entry.path().is_file() && entry.file_name() != "proxy.yaml" {
            assert_clean("a file", &String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()));
        }
    }
    assert!(scene.origin.text().contains(BEARER));
}

fn files() -> Vec<(&'static str, String)> {
    vec![
        ("BEARER", format!("{BEARER}\n")),
        ("PASSWORD", format!("{{\"deep\":{{\"password\":\"{PASSWORD}\"}}}}")),
        ("HEADER", HEADER.to_owned()),
        ("QUERY", QUERY.to_owned()),
        ("OLD", OLD.to_owned()),
        ("REJECTED", format!("{REJECTED}\r\nX-Injected: 1")),
    ]
}
