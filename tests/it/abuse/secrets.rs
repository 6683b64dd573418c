//! SX-01 to SX-13: a credential reaches its provider, whole and alone, and nobody else; what comes back does not bring it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::after::{
    Bench, Sentinel, Setup, assert_covered, assert_malformed, assert_no_canary, assert_refused, program,
};
use crate::support::CANARY;
use crate::support::ca::TestCa;
use crate::support::client::{Got, Raw, admin, intercepted};
use crate::support::origin::{HttpOrigin, RawOrigin, read_request};
use crate::world::until;

const NOT_YET: &[(&str, &str)] = &[];

const GET_API: &str = "GET http://api.example.test/v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n";
const GET_OPEN: &str = "GET http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n\r\n";

fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}

/// A credential that cannot be used: its routes fail closed, the others work, and nothing is sent.
async fn unusable(secret: &[u8], says: &str) {
    let bench = Bench::start(Setup { secret, ..Setup::default() }).await;
    let mut raw = Raw::connect(bench.proxy.address()).await;
    raw.send(GET_API).await;
    let got = raw.answer().await;
    assert_refused("with a bad secret", &got, 503, "proxy_internal_error");
    assert_eq!(got.header("outgate-error"), Some("credential_unavailable"));
    assert_eq!(got.header("outgate-sent"), Some("no"));
    raw.send(GET_OPEN).await;
    assert_eq!(raw.answer().await.status, 200, "other routes work, on the same connection too");
    let records = bench.after(2, &[&format!("{got:?}")]).await;
    let detail = records[0]["outgate.error.detail"].as_str().unwrap();
    assert!(detail.contains("/secret`") && detail.contains(says), "{detail}");
    assert!(bench.api.requests().is_empty(), "nothing reaches the provider without its credential");
}

#[tokio::test]
async fn sx_01_secret_value_with_a_line_break() {
    let length = CANARY.len();
    for (tail, offset) in
        [("\r\nX-Evil: 1", length), ("\nX: 1", length), ("\r", length), ("\n\n", length), ("\0", length)]
    {
        unusable(format!("{CANARY}{tail}").as_bytes(), &format!("offset {offset} ")).await;
    }
    unusable(format!("\t{CANARY}").as_bytes(), "offset 0 ").await;
    unusable(format!("{CANARY}\u{e9}").as_bytes(), &format!("offset {length} ")).await;
}

#[tokio::test]
async fn sx_01_secret_of_the_environment_with_a_line_break() {
    let value = format!("{CANARY}\r\nX-Evil: 1");
    let providers = "  env:
    hosts: [env.example.test]
    upstream: { connect_to: \"127.0.0.1:1\" }
    credential: { bearer: \"env:IT_BROKEN\" }
  unset:
    hosts: [unset.example.test]
    upstream: { connect_to: \"127.0.0.1:1\" }
    credential: { bearer: \"env:IT_NEVER_SET\" }
  blank:
    hosts: [blank.example.test]
    upstream: { connect_to: \"127.0.0.1:1\" }
    credential: { bearer: \"env:IT_BLANK\" }
";
    let (mut program, _, _) =
        program(Setup { providers, ..Setup::default() }, &[("IT_BROKEN", &value), ("IT_BLANK", "   ")]).await;
    for host in ["env", "unset", "blank"] {
        let mut raw = Raw::connect(program.address).await;
        raw.send(format!("GET http://{host}.example.test/ HTTP/1.1\r\nHost: {host}.example.test\r\n\r\n"))
            .await;
        let got = raw.answer().await;
        assert_refused(host, &got, 503, "proxy_internal_error");
        assert_no_canary("the client", &format!("{got:?}"));
    }
    program.holds().await;
    // A record is written when its answer has ended, which the client may see a moment earlier.
    until("three records", || program.records().lines().count() >= 3).await;
    let records = program.records();
    assert!(records.contains(&format!("`env:IT_BROKEN` has a byte at offset {}", CANARY.len())), "{records}");
    assert!(records.contains("`env:IT_BLANK` is empty"), "{records}");
}

/// What a store answers is judged as what a file holds: here a program that prints it.
#[tokio::test]
async fn sx_01_and_03_secret_of_a_store() {
    let values = tempfile::tempdir().unwrap();
    let length = CANARY.len();
    let mut providers = String::new();
    let broken: Vec<(String, String)> = vec![
        (format!("{CANARY}\r\nX-Evil: 1"), format!("offset {length} ")),
        (format!("{CANARY}\nX: 1"), format!("offset {length} ")),
        (format!("{CANARY}\r"), format!("offset {length} ")),
        (format!("{CANARY}\0"), format!("offset {length} ")),
        (String::new(), "is empty or blank".to_owned()),
        ("   ".to_owned(), "is empty or blank".to_owned()),
        ("\n".to_owned(), "is empty or blank".to_owned()),
    ];
    for (number, (value, _)) in broken.iter().enumerate() {
        std::fs::write(values.path().join(format!("v{number}")), value).unwrap();
        providers.push_str(&format!(
            "  p{number}:\n    hosts: [p{number}.example.test]\n    upstream: {{ connect_to: \"127.0.0.1:1\" }}\n    credential: {{ bearer: \"run:v{number}\" }}\n"
        ));
    }
    let top = format!(
        "secrets:\n  run: {{ exec: {{ command: [/bin/cat, \"{}/{{path}}\"] }} }}",
        values.path().display()
    );
    let bench = Bench::start(Setup { top: &top, providers: &providers, ..Setup::default() }).await;
    let mut answers = String::new();
    for number in 0..broken.len() {
        let host = format!("p{number}.example.test");
        let got = bench.ask(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_refused(&host, &got, 503, "proxy_internal_error");
        assert_eq!(got.header("outgate-sent"), Some("no"));
        answers.push_str(&format!("{got:?}"));
    }
    let records = bench.after(broken.len(), &[&answers]).await;
    for (number, (_, says)) in broken.iter().enumerate() {
        let detail = records[number]["outgate.error.detail"].as_str().unwrap();
        assert!(detail.contains(&format!("`run:v{number}`")) && detail.contains(says), "{detail}");
    }
}

#[tokio::test]
async fn sx_01_the_former_good_version_stays() {
    let bench = Bench::start(Setup::default()).await;
    assert_eq!(bench.ask(GET_API).await.status, 200);
    std::fs::write(bench.proxy.dir.path().join("secret"), format!("{CANARY}\r\nX-Evil: 1")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(15);
    while !admin(&bench.proxy, "GET", "/status").await.text().contains("malformed") {
        assert!(Instant::now() < deadline, "the change was not seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bench.ask(GET_API).await.status, 200);
    for seen in bench.api.requests() {
        assert_eq!(seen.header("authorization"), Some(bearer(CANARY).as_str()));
        assert!(!seen.headers.contains_key("x-evil"));
    }
    bench.after(2, &[]).await;
}

#[tokio::test]
async fn sx_02_secret_file_with_one_final_newline() {
    for end in ["", "\n", "\r\n"] {
        let secret = format!("{CANARY}{end}");
        let bench = Bench::start(Setup { secret: secret.as_bytes(), ..Setup::default() }).await;
        let mut raw = Raw::connect(bench.proxy.address()).await;
        raw.send(GET_API).await;
        let got = raw.answer().await;
        assert_eq!(got.status, 200);
        assert!(raw.stays().await);
        assert_eq!(bench.api.only().header("authorization"), Some(bearer(CANARY).as_str()));
        bench.after(1, &[&format!("{got:?}")]).await;
    }
}

#[tokio::test]
async fn sx_03_empty_or_blank_secret() {
    for secret in [&b""[..], b"   ", b"\n", b"\r\n", b" \t\r\n"] {
        unusable(secret, "is empty or blank").await;
    }
    // The file is not there at all.
    let bench = Bench::start(Setup::default()).await;
    let outcome = bench.reload(|policy| policy.replace("/secret\"", "/missing\"")).await;
    assert!(matches!(outcome, outgate::pipeline::reload::ReloadOutcome::Applied(2)), "{outcome:?}");
    assert_refused("without a file", &bench.ask(GET_API).await, 503, "proxy_internal_error");
    bench.after(1, &[]).await;
    assert!(bench.api.requests().is_empty());
}

#[tokio::test]
async fn sx_04_client_brings_its_own_credential() {
    let bench = Bench::start(Setup::default()).await;
    let stream = intercepted(&bench.proxy, "api.example.test", &["http/1.1"]).await;
    let mut raw = Raw::over(stream);
    raw.send(
        "GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\nAuthorization: Bearer attacker\r\n\
         authorization: Bearer second\r\nAUTHORIZATION: Basic eDp5\r\nX-Api-Key: attacker\r\n\r\n",
    )
    .await;
    let got = raw.answer().await;
    assert_eq!(got.status, 200);
    assert!(raw.stays().await);
    let seen = bench.api.only();
    let values: Vec<_> = seen.headers.get_all("authorization").iter().collect();
    assert_eq!(values, [bearer(CANARY).as_str()]);
    assert_eq!(seen.header("x-api-key"), Some("attacker"), "this rule does not own it");
    bench.after(2, &[&format!("{got:?}")]).await;
}

#[tokio::test]
async fn sx_04_underscore_twins_and_trailers_do_not_pass() {
    let bench = Bench::start(Setup { providers: "", api: "    scrub: standard\n", ..Setup::default() }).await;
    let outcome = bench
        .reload(|policy| {
            policy.replace(
                "credential: { bearer: \"file:{dir}/secret\" }",
                "credential: { header: { name: X-Api-Key, value: \"file:{dir}/secret\" } }",
            )
        })
        .await;
    assert!(matches!(outcome, outgate::pipeline::reload::ReloadOutcome::Applied(2)), "{outcome:?}");
    let mut raw = Raw::connect(bench.proxy.address()).await;
    raw.send(
        "POST http://api.example.test/v1/x HTTP/1.1\r\nHost: api.example.test\r\nX-Api-Key: a\r\nX_Api_Key: b\r\nx-api_KEY: c\r\n\
         Trailer: X-Api-Key\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Api-Key: d\r\nX_Api_Key: e\r\n\r\n",
    )
    .await;
    assert_eq!(raw.answer().await.status, 200);
    let seen = bench.api.only();
    let trailers = seen.trailers.clone().unwrap_or_default();
    let twins: Vec<_> = seen
        .headers
        .iter()
        .chain(&trailers)
        .filter(|(name, _)| name.as_str().replace('_', "-") == "x-api-key")
        .map(|(_, value)| value.to_str().unwrap())
        .collect();
    assert_eq!(twins, [CANARY]);
    bench.after(1, &[]).await;
}

#[tokio::test]
async fn sx_05_injected_header_named_in_connection() {
    let bench = Bench::start(Setup::default()).await;
    let stream = intercepted(&bench.proxy, "api.example.test", &["http/1.1"]).await;
    let mut raw = Raw::over(stream);
    raw.send("GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\nConnection: close, Authorization\r\n\r\n")
        .await;
    assert_eq!(raw.answer().await.status, 200);
    assert!(raw.ends().await, "as asked");
    assert_eq!(bench.api.only().header("authorization"), Some(bearer(CANARY).as_str()));
    bench.after(2, &[]).await;
}

#[tokio::test]
async fn sx_06_trace_and_track() {
    let bench = Bench::start(Setup::default()).await;
    for method in ["TRACE", "TRACK", "track", "trace"] {
        for host in ["api", "open"] {
            let mut raw = Raw::connect(bench.proxy.address()).await;
            raw.send(format!(
                "{method} http://{host}.example.test/v1/x HTTP/1.1\r\nHost: {host}.example.test\r\n\r\n"
            ))
            .await;
            let got = raw.answer().await;
            // Methods are case-sensitive: `trace` is an unknown one, and stopped where it could do the same.
            if method == "trace" && host == "open" {
                assert!(got.status == 403 || got.status == 200, "{got:?}");
            } else {
                assert_refused(method, &got, 403, "http_request_denied");
            }
            assert!(raw.stays().await);
        }
    }
    let mut raw = Raw::over(intercepted(&bench.proxy, "api.example.test", &["http/1.1"]).await);
    raw.send("TRACE /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n").await;
    let got = raw.answer().await;
    assert_refused("TRACE inside", &got, 403, "http_request_denied");
    assert!(raw.stays().await);
    bench.after(10, &[&format!("{got:?}")]).await;
    assert!(bench.api.requests().is_empty());
    assert!(bench.open.requests().iter().all(|seen| seen.method != "TRACE" && seen.method != "TRACK"));
}

#[tokio::test]
async fn sx_07_credential_and_plaintext_upstream() {
    // Such requests are sent over verified TLS.
    let bench = Bench::start(Setup::default()).await;
    assert_eq!(bench.ask(GET_API).await.status, 200);
    let seen = bench.api.only();
    assert_eq!(seen.header("authorization"), Some(bearer(CANARY).as_str()));
    bench.after(1, &[]).await;
    // Port 80 by name is no way around it.
    let port80 = "GET http://api.example.test:80/v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n";
    assert_eq!(bench.ask(port80).await.status, 200);
    bench.after(1, &[]).await;

    // An origin whose certificate is not the host's gets nothing.
    let ca = TestCa::new();
    let stranger = HttpOrigin::start(Some(ca.server(&["other.example.test"], &["http/1.1"]))).await;
    let bench = Bench::with(Setup::default(), &ca, stranger).await;
    let got = bench.ask(GET_API).await;
    assert_refused("a stranger's certificate", &got, 502, "tls_certificate_error");
    assert_eq!(got.header("outgate-sent"), Some("no"));
    bench.after(1, &[]).await;
    assert!(bench.api.requests().is_empty());

    // An origin that speaks plain HTTP gets nothing either.
    let plain = RawOrigin::start(
        None,
        Arc::new(|mut stream, _| {
            Box::pin(async move {
                let mut some = [0_u8; 64];
                let _ = stream.read(&mut some).await;
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            })
        }),
    )
    .await;
    let bench = Bench::with(Setup::default(), &ca, as_http(&plain)).await;
    let got = bench.ask(GET_API).await;
    assert_refused("plain HTTP where TLS is expected", &got, 502, "tls_protocol_error");
    bench.after(1, &[]).await;
    assert_no_canary("a plain origin", &plain.text());

    // A policy that wants plaintext says so in so many words.
    let refused = bench
        .reload(|policy| policy.replace("upstream: { connect_to", "upstream: { scheme: http, connect_to"))
        .await;
    assert!(matches!(refused, outgate::pipeline::reload::ReloadOutcome::Refused(_)), "{refused:?}");
}

/// A raw origin in the place of an ordinary one.
fn as_http(raw: &RawOrigin) -> HttpOrigin {
    HttpOrigin { address: raw.address, seen: Arc::default() }
}

#[tokio::test]
async fn sx_08_log_injection() {
    let bench = Bench::start(Setup { top: "telemetry: { query: redacted }", ..Setup::default() }).await;
    let long = "r".repeat(5000);
    let heads = [
        "/%0a%7b%22level%22:%22error%22%7d?q=%1b[2J\"".to_owned(),
        "/a\",\"http.response.status_code\":200,\"x\":\"?q=\",\"error.type\":null".to_owned(),
        format!("/{long}?{long}={long}"),
        "/%e2%80%a8%e2%80%ae?%0d%0a=%0d%0aX: 1".replace(' ', "%20"),
    ];
    let mut answers = String::new();
    for target in &heads {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        let mut head =
            format!("GET http://open.example.test{target} HTTP/1.1\r\nHost: open.example.test\r\n")
                .into_bytes();
        head.extend_from_slice(b"User-Agent: x\",\"status\":200,\"a\":\"\xe2\x80\xa8\xff\r\n");
        head.extend_from_slice(format!("Referer: {long}\r\n\r\n").as_bytes());
        raw.send(head).await;
        let got = raw.answer().await;
        if got.status == 200 {
            assert!(raw.stays().await);
        } else {
            assert_malformed(target, &got);
        }
        answers.push_str(&format!("{got:?}"));
    }
    let records = bench.after(heads.len(), &[&answers]).await;
    let log = bench.proxy.log.text(&bench.proxy.app.telemetry);
    for (line, record) in log.lines().zip(&records) {
        assert!(line.len() < 16 * 1024, "a record is bounded: {}", line.len());
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}' || c == '\u{202e}'), "{line}");
        // Names that stand twice would let one overwrite the other.
        let names = line.matches("\"http.response.status_code\":").count();
        assert_eq!(names, 1, "{line}");
        assert!(record["http.response.status_code"].is_number());
        assert!(record["level"].is_null() && record["status"].is_null());
    }
    let cut = &records[2];
    assert!(
        cut["url.path"].as_str().unwrap().contains("[cut "),
        "an over-long value is cut and marked: {cut}"
    );
}

/// Answers by path; each with a connection of its own.
async fn echoing(ca: &TestCa, answers: Vec<(&'static str, String)>) -> RawOrigin {
    let answers = Arc::new(answers);
    RawOrigin::start(
        Some(ca.server(&["api.example.test"], &["http/1.1"])),
        Arc::new(move |mut stream, _| {
            let answers = answers.clone();
            Box::pin(async move {
                let Some(request) = read_request(&mut stream).await else { return };
                let path = request.split(' ').nth(1).unwrap().to_owned();
                let answer = &answers.iter().find(|(known, _)| *known == path).unwrap().1;
                // In two pieces, so that a hit may lie across them.
                let (first, second) = answer.split_at(answer.len() * 2 / 3);
                let _ = stream.write_all(first.as_bytes()).await;
                let _ = stream.flush().await;
                tokio::task::yield_now().await;
                let _ = stream.write_all(second.as_bytes()).await;
                let _ = stream.shutdown().await;
            })
        }),
    )
    .await
}

/// Everything a client reads on a connection that it asks to be closed.
async fn all_of(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET http://api.example.test{path} HTTP/1.1\r\nHost: api.example.test\r\nTE: trailers\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn sx_09_upstream_repeats_the_credential_in_its_answer() {
    let ca = TestCa::new();
    let json = format!("{{\"headers\":{{\"authorization\":\"Bearer {CANARY}\"}}}}");
    let page = format!("<pre>GET /v1/g HTTP/1.1\r\nauthorization: Bearer {CANARY}\r\n</pre>");
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("u:{CANARY}"));
    let basic = format!("{{\"basic\":\"{encoded}\"}}");
    let sized = |head: &str, body: &str| format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        10,
        &CANARY[..10],
        CANARY.len() - 10,
        &CANARY[10..]
    );
    let answers = vec![
        ("/v1/a", sized("HTTP/1.1 200 OK\r\nContent-Type: application/json", &json)),
        ("/v1/b", sized(&format!("HTTP/1.1 200 OK\r\nX-Echo: Bearer {CANARY}"), "b")),
        (
            "/v1/c",
            sized(&format!("HTTP/1.1 302 Found\r\nLocation: https://open.example.test/?t={CANARY}"), ""),
        ),
        ("/v1/d", sized(&format!("HTTP/1.1 200 OK\r\nSet-Cookie: t={CANARY}"), "d")),
        ("/v1/e", sized(&format!("HTTP/1.1 401 bad key {CANARY}"), "e")),
        (
            "/v1/f",
            format!(
                "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nf\r\n0\r\nX-T: {CANARY}\r\n\r\n"
            ),
        ),
        ("/v1/g", sized("HTTP/1.1 500 Oops\r\nContent-Type: text/html", &page)),
        ("/v1/base64", sized("HTTP/1.1 200 OK", &basic)),
        ("/v1/chunks", chunks),
        ("/v1/close", format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{json}")),
    ];
    let origin = echoing(&ca, answers.clone()).await;
    let bench = Bench::with(Setup::default(), &ca, as_http(&origin)).await;
    let mut clients = Vec::new();
    for (path, answer) in &answers {
        let text = all_of(bench.proxy.address(), path).await;
        assert_no_canary(path, &text);
        let status = answer.split(' ').nth(1).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: the status passes: {text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        if let Some((_, wanted)) = answer.split_once("Content-Length: ") {
            let wanted: usize = wanted.split("\r\n").next().unwrap().parse().unwrap();
            assert!(
                head.to_ascii_lowercase().contains(&format!("content-length: {wanted}")),
                "{path}: {head}"
            );
            assert_eq!(body.len(), wanted, "{path}: the length stays right");
        }
        if *path != "/v1/e" {
            assert!(text.contains(&"*".repeat(20)), "{path}: the value is replaced by a mark: {text}");
        }
        clients.push(text);
    }
    let clients: Vec<&str> = clients.iter().map(String::as_str).collect();
    // A 401 heals: the credential is read again, and the request sent once more.
    let records = bench.after(answers.len(), &clients).await;
    for (record, (path, _)) in records.iter().zip(&answers) {
        assert!(record["outgate.scrubbed"].as_u64() >= Some(1), "{path}: {record}");
        assert!(
            record["outgate.credential"].as_str().unwrap().ends_with("/secret"),
            "the log names the secret"
        );
    }
    let metrics = bench.proxy.metrics();
    let counted =
        metrics.lines().find(|line| line.starts_with("outgate_scrubbed_total") && line.contains("api"));
    let counted: u64 = counted.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(counted >= answers.len() as u64, "{counted}");
}

#[tokio::test]
async fn sx_10_alt_svc() {
    let ca = TestCa::new();
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nAlt-Svc: h3=\":443\"; ma=86400, h2=\"evil.example.test:443\"\r\nAlt-Svc: clear\r\nContent-Length: 0\r\n\r\n";
    let origin = echoing(&ca, vec![("/v1/x", ANSWER.to_owned())]).await;
    let bench = Bench::with(Setup::default(), &ca, as_http(&origin)).await;
    let plain = RawOrigin::answering(None, ANSWER.as_bytes()).await;
    let evil = bench.evil.port;
    let outcome = bench
        .reload(|policy| {
            format!(
                "{policy}  alt:\n    hosts: [alt.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n# {evil}\n",
                plain.address
            )
        })
        .await;
    assert!(matches!(outcome, outgate::pipeline::reload::ReloadOutcome::Applied(2)), "{outcome:?}");
    let get_alt = "GET http://alt.example.test/ HTTP/1.1\r\nHost: alt.example.test\r\n\r\n";
    for get in [GET_API, get_alt] {
        let mut raw = Raw::connect(bench.proxy.address()).await;
        raw.send(get).await;
        let got = raw.answer().await;
        assert_eq!(got.status, 200);
        assert!(!got.headers.contains_key("alt-svc"), "{got:?}");
        assert!(raw.stays().await);
    }
    // It is not followed either.
    assert_eq!(bench.ask(GET_API).await.status, 200);
    assert!(!bench.proxy.names.questions().iter().any(|name| name.contains("evil")));
    bench.after(3, &[]).await;
}

#[tokio::test]
async fn sx_11_hop_by_hop_fields() {
    let origin = RawOrigin::answering(None, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let bench = Bench::start(Setup::default()).await;
    bench
        .reload(|policy| {
            format!(
                "{policy}  raw:\n    hosts: [raw.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n",
                origin.address
            )
        })
        .await;
    let mut raw = Raw::connect(bench.proxy.address()).await;
    raw.send(
        "GET http://raw.example.test/ HTTP/1.1\r\nHost: raw.example.test\r\nConnection: keep-alive, X-Drop\r\nX-Drop: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Bearer LOCALTOKEN\r\n\
         Proxy: http://evil.example.test:3128\r\nTE: gzip, trailers\r\nTrailer: X-T\r\n\r\n",
    )
    .await;
    assert_eq!(raw.answer().await.status, 200);
    assert!(raw.stays().await);
    let sent = origin.text().to_ascii_lowercase();
    for gone in [
        "x-drop",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "localtoken",
        "\r\nproxy:",
        "gzip",
        "evil",
    ] {
        assert!(!sent.contains(gone), "{gone} went upstream: {sent}");
    }
    assert!(sent.contains("\r\nvia: 1.1 outgate"), "{sent}");
    bench.after(1, &[]).await;
}

#[tokio::test]
async fn sx_12_proxy_variables_in_the_environment_of_the_proxy() {
    let evil = Sentinel::everywhere().await;
    let url = format!("http://127.0.0.1:{}", evil.port);
    let named: Vec<(&str, &str)> =
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
            .into_iter()
            .map(|name| (name, url.as_str()))
            .chain([("NO_PROXY", ""), ("no_proxy", "")])
            .collect();
    // One provider is found through the system's resolver, as a real one would be.
    let resolved = HttpOrigin::start(None).await;
    let port = resolved.address.port();
    let top = format!("addresses: {{ allow_private: [\"127.0.0.1/32:{port}\", \"[::1/128]:{port}\"] }}");
    let providers =
        format!("  found:\n    hosts: [\"localhost:{port}\"]\n    upstream: {{ scheme: http }}\n");
    let setup = Setup { top: &top, providers: &providers, ..Setup::default() };
    let (mut program, api, _open) = program(setup, &named).await;
    let ask = async |text: String| -> Got {
        let mut raw = Raw::connect(program.address).await;
        raw.send(text).await;
        raw.answer().await
    };
    for _ in 0..10 {
        assert_eq!(ask(GET_API.to_owned()).await.status, 200);
        let found = format!("GET http://localhost:{port}/ HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
        assert_eq!(ask(found).await.status, 200);
    }
    // A secret that is read again.
    let renewed = "sk_live_RENEWED_0123456789";
    std::fs::write(program.dir.path().join("secret"), renewed).unwrap();
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        assert_eq!(ask(GET_API.to_owned()).await.status, 200);
        if api.requests().last().unwrap().header("authorization") == Some(bearer(renewed).as_str()) {
            break;
        }
        assert!(Instant::now() < deadline, "the secret was not read again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(resolved.requests().len(), 10);
    assert_eq!(evil.connections(), 0, "the environment has no say");
    program.holds().await;
}

#[tokio::test]
async fn sx_13_credential_rule_whose_match_is_wider_than_one_host() {
    let bench = Bench::start(Setup::default()).await;
    for host in ["*", "**", "*.*", "*.test", "*:443"] {
        let outcome =
            bench.reload(|policy| policy.replace("[api.example.test]", &format!("[\"{host}\"]"))).await;
        match outcome {
            outgate::pipeline::reload::ReloadOutcome::Refused(error) => {
                let text = error.to_string();
                assert!(text.contains("providers.api.hosts"), "the message names the rule: {text}");
            }
            other => panic!("{host}: {other:?}"),
        }
    }
    bench.after(0, &[]).await;
}

#[test]
fn every_case_of_this_group_is_tested_or_listed() {
    assert_covered("SX", 13, include_str!("secrets.rs"), NOT_YET);
}
