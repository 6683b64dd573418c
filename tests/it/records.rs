//! What people and machines read of outgate: one record for each request whatever became of it, the names of the metrics, the
//! admin listener, and the trace.

use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::CANARY;
use super::support::ca::TestCa;
use super::support::client::{
    Got, Raw, admin, http2, intercepted, intercepted_trusting, local_get, over_http1, request,
};
use super::support::origin::{HttpOrigin, RawOrigin, Script, Stream, read_request};
use super::support::proxy::Proxy;
use super::world::{HOST, directory, policy, start, until};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

/// Answers as the path says.
fn origin() -> Script {
    Arc::new(|mut stream: Box<dyn Stream>, _| {
        Box::pin(async move {
            while let Some(request) = read_request(&mut stream).await {
                let path =
                    request.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
                let answer = match path {
                    "/echo" => format!("HTTP/1.1 200 OK\r\nX-Echo: {CANARY}\r\nContent-Length: 2\r\n\r\nok"),
                    "/garbage" => "HTTP/1.1 200\r\nno header\r\n\r\n".to_owned(),
                    "/cut" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok".to_owned(),
                    "/ws" => SWITCH.to_owned(),
                    "/refused" => "HTTP/1.1 402 Payment Required\r\nContent-Length: 2\r\n\r\nno".to_owned(),
                    "/heal" if request.contains(CANARY) => {
                        "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n".to_owned()
                    }
                    "/silent" => {
                        let _ = stream.read(&mut [0]).await;
                        return;
                    }
                    "/reset" => return,
                    _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.flush().await;
                match path {
                    "/garbage" | "/cut" => break,
                    "/ws" => {
                        let mut buffer = [0_u8; 64];
                        let read = stream.read(&mut buffer).await.unwrap_or(0);
                        let _ = stream.write_all(&buffer[..read]).await;
                        break;
                    }
                    _ => {}
                }
            }
            let _ = stream.shutdown().await;
        }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    })
}

struct World {
    proxy: Proxy,
    ca: TestCa,
    addresses: Vec<(String, &'static str)>,
    seen: usize,
    snapshot: String,
    open: Vec<TcpStream>,
}

impl World {
    async fn new() -> Self {
        let ca = TestCa::new();
        let names = [HOST, "blind.example.test", "list.example.test", "missing.example.test"];
        let server = ca.server(&names, &["http/1.1"]);
        let origin = RawOrigin::start(Some(server), origin()).await.address;
        let other = RawOrigin::start(Some(TestCa::new().server(&["tls.example.test"], &[])), self::origin())
            .await
            .address;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let provider = |name: &str, address: std::net::SocketAddr, credential: &str| {
            format!(
                "  {name}:\n    hosts: [{name}.example.test]\n    upstream: {{ connect_to: \"{address}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}\n    credential: {credential}\n"
            )
        };
        let bearer = "{ bearer: \"file:{dir}/secret\" }";
        let top = "telemetry: { query: redacted }\nruntime: { downstream: { body_timeout: 300ms } }\nlisteners:\n  - { address: \"127.0.0.1:0\" }\n  - { address: \"127.0.0.1:0\", auth: { token: \"file:{dir}/token\" } }\n";
        let keys = "    max_body: 1KiB\n    timeouts: { response: 500ms }\n    routes:\n      - { name: closed, match: { path: /denied }, deny: \"not this way\" }\n      - { name: rest, match: {} }";
        let text = format!(
            "{}{}{}{}{}{}{}  nowhere:\n    hosts: [nowhere.example.test]\n    credential: {bearer}\n  private:\n    hosts: [private.example.test]\n    credential: {bearer}\n",
            policy(origin, keys, top),
            provider("blind", origin, "none"),
            provider("list", origin, "{ bearer: [\"file:{dir}/secret\", \"file:{dir}/second\"] }"),
            provider("missing", origin, "{ bearer: \"file:{dir}/missing\" }"),
            provider("tls", other, bearer),
            provider("closed", closed, bearer),
            "",
        );
        let dir = directory(&ca);
        std::fs::write(dir.path().join("second"), "the-second-of-the-list").unwrap();
        std::fs::write(dir.path().join("token"), "a-token-of-the-listener").unwrap();
        let proxy = Proxy::start_in(dir, &text).await;
        proxy.names.set("private.example.test", &["10.1.2.3"]);
        let mut addresses = vec![
            (origin.to_string(), "[origin]"),
            (other.to_string(), "[other]"),
            (closed.to_string(), "[closed]"),
            (proxy.dir.path().to_string_lossy().into_owned(), "[dir]"),
        ];
        addresses.extend(proxy.app.listeners.iter().map(|address| (address.to_string(), "[listener]")));
        Self { proxy, ca, addresses, seen: 0, snapshot: String::new(), open: Vec::new() }
    }

    /// The records since the last call: there must be as many as `count`, of which the last is of interest.
    async fn note(&mut self, outcome: &str, count: usize) {
        let records = self.proxy.records(self.seen + count).await;
        assert_eq!(records.len(), self.seen + count, "{outcome}: {:#?}", &records[self.seen..]);
        self.seen += count;
        let mut record = records.last().unwrap().clone();
        redact(&mut record);
        let mut text = serde_json::to_string_pretty(&record).unwrap();
        for (address, name) in &self.addresses {
            text = text.replace(address, name);
        }
        self.snapshot.push_str(&format!("== {outcome}\n{text}\n"));
    }

    async fn raw(&mut self, outcome: &str, text: &str) -> Option<Got> {
        let text = text.replace("OWN", &self.proxy.address().to_string());
        let mut raw = Raw::connect(self.proxy.address()).await;
        raw.send(text).await;
        let got = raw.answer_or_end().await;
        self.note(outcome, 1).await;
        got
    }
}

/// Replaces what differs from run to run.
pub fn redact(record: &mut Value) {
    let fields = record.as_object_mut().unwrap();
    for name in ["timestamp", "outgate.request_id", "trace_id", "client.port", "network.peer.port"] {
        if let Some(value) = fields.get_mut(name) {
            *value = "[...]".into();
        }
    }
    if fields["outgate.door"] == "tunnel" {
        // Lengths of handshakes differ.
        fields["http.request.body.size"] = "[...]".into();
        fields["http.response.body.size"] = "[...]".into();
    }
    // Whether a kept connection was ready again in time is up to the scheduler.
    if let Some(reused) = fields.get_mut("outgate.upstream.reused") {
        *reused = "[...]".into();
    }
    let phases = fields["duration"].as_object().unwrap().keys().map(String::as_str);
    let phases: Vec<&str> = phases.filter(|phase| !["connect", "tls"].contains(phase)).collect();
    fields["duration"] = phases.join(" ").into();
}

#[tokio::test]
async fn every_outcome_leaves_one_record() {
    let mut world = World::new().await;
    for (outcome, text) in [
        ("answered", "GET /api/ok?a=1&token=hidden HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("refused by the provider", "GET /api/refused HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("by the forward door", "GET http://api.example.test/ok HTTP/1.1\r\nHost: api.example.test\r\n\r\n"),
        ("the answer repeats the credential", "GET /api/echo HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("healed with the next of a list", "GET /list/heal HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("no provider", "GET http://evil.example.test/ HTTP/1.1\r\nHost: evil.example.test\r\n\r\n"),
        ("denied by a route", "GET /api/denied HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        (
            "a CONNECT that is denied",
            "CONNECT evil.example.test:443 HTTP/1.1\r\nHost: evil.example.test:443\r\n\r\n",
        ),
        ("a private address", "GET /private/x HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("a name that is not there", "GET /nowhere/x HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("called by a strange name", "GET / HTTP/1.1\r\nHost: strange.example.test\r\n\r\n"),
        ("two Host fields", "GET /api/ok HTTP/1.1\r\nHost: OWN\r\nHost: OWN\r\n\r\n"),
        ("refused by the parser", "GET /api/ok HTTP/1.1\r\nHost : OWN\r\n\r\n"),
        (
            "an expectation",
            "POST /api/ok HTTP/1.1\r\nHost: OWN\r\nContent-Length: 1\r\nExpect: magic\r\n\r\n",
        ),
        ("a body that is too long", "POST /api/ok HTTP/1.1\r\nHost: OWN\r\nContent-Length: 2000\r\n\r\n"),
        ("a body that stalls", "POST /api/ok HTTP/1.1\r\nHost: OWN\r\nContent-Length: 20\r\n\r\nhalf"),
        ("the connection is refused", "GET /closed/x HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("a certificate of somebody else", "GET /tls/x HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("the provider closes", "POST /api/reset HTTP/1.1\r\nHost: OWN\r\nContent-Length: 0\r\n\r\n"),
        ("the provider talks nonsense", "GET /api/garbage HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("the provider is silent", "GET /api/silent HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("the answer is cut", "GET /api/cut HTTP/1.1\r\nHost: OWN\r\n\r\n"),
        ("a secret that is not there", "GET /missing/x HTTP/1.1\r\nHost: OWN\r\n\r\n"),
    ] {
        let got = world.raw(outcome, text).await;
        assert!(got.is_some(), "{outcome}");
    }
    let fields: String = (0..300).map(|number| format!("X-{number}: v\r\n")).collect();
    let got =
        world.raw("too many fields", &format!("GET /api/ok HTTP/1.1\r\nHost: OWN\r\n{fields}\r\n")).await;
    assert_eq!(got.unwrap().status, 431);
    let long = "x".repeat(70_000);
    let got = world.raw("too long a target", &format!("GET /api/{long} HTTP/1.1\r\nHost: OWN\r\n\r\n")).await;
    assert!([414, 431].contains(&got.unwrap().status));

    // The listener's token.
    let mut raw = Raw::connect(world.proxy.app.listeners[1]).await;
    raw.send(format!("GET /api/ok HTTP/1.1\r\nHost: {}\r\n\r\n", world.proxy.app.listeners[1])).await;
    assert_eq!(raw.answer().await.status, 407);
    world.note("without the listener's token", 1).await;

    // Through itself.
    let first = local_get(&world.proxy, "/api/ok").await;
    world.note("answered again", 1).await;
    let via = first.header("via").unwrap().to_owned();
    let got =
        world.raw("in a circle", &format!("GET /api/ok HTTP/1.1\r\nHost: OWN\r\nVia: {via}\r\n\r\n")).await;
    assert_eq!(got.unwrap().status, 502);

    // Interception by both versions: one record for the CONNECT, one for each request inside.
    let stream = intercepted(&world.proxy, HOST, &["http/1.1"]).await;
    over_http1(stream, request("GET", "/ok", Some(HOST), "")).await;
    world.note("intercepted", 2).await;
    let mut sender = http2(intercepted(&world.proxy, HOST, &["h2"]).await).await;
    world.note("a CONNECT that is intercepted", 1).await;
    let got = sender.send_request(request("GET", &format!("https://{HOST}/ok"), None, "")).await.unwrap();
    Got::read(got).await;
    world.note("intercepted, by HTTP/2", 1).await;

    let stream =
        intercepted_trusting(&world.proxy, "blind.example.test", 443, &world.ca.pem, &["http/1.1"]).await;
    over_http1(stream, request("GET", "/ok", Some("blind.example.test"), "")).await;
    world.note("tunnelled", 1).await;

    let mut raw = Raw::connect(world.proxy.address()).await;
    raw.send(format!(
        "GET /api/ws HTTP/1.1\r\nHost: {}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        world.proxy.address()
    ))
    .await;
    assert_eq!(raw.head().await.status, 101);
    raw.send("four").await;
    assert!(raw.ends().await);
    drop(raw);
    world.note("a WebSocket", 1).await;

    // Cancelled: the origin holds the request, and the client goes.
    let mut gone = TcpStream::connect(world.proxy.address()).await.unwrap();
    let head = format!("GET /api/silent HTTP/1.1\r\nHost: {}\r\n\r\n", world.proxy.address());
    gone.write_all(head.as_bytes()).await.unwrap();
    let metrics = world.proxy.app.telemetry.clone();
    until("it is in flight", || in_flight(&metrics.metrics.encode()) > 0.5).await;
    drop(gone);
    world.note("the client has gone", 1).await;

    // A connection that never sends a request leaves nothing.
    world.open.push(TcpStream::connect(world.proxy.address()).await.unwrap());
    world.proxy.app.shutdown().await;
    assert_eq!(world.proxy.records(world.seen).await.len(), world.seen, "and not one more");
    insta::assert_snapshot!("records", world.snapshot);
}

fn in_flight(metrics: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with("outgate_requests_in_flight{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn the_text_format_and_one_line_a_request() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let proxy = start(&ca, origin.address, "", "telemetry: { access_log: { format: text } }").await;
    for path in ["/api/plain", "/api/%0aevil", "/nobody/x", "/api/a%22b"] {
        local_get(&proxy, path).await;
    }
    until("four lines", || proxy.log.text(&proxy.app.telemetry).lines().count() >= 4).await;
    let text = proxy.log.text(&proxy.app.telemetry);
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.lines().next().unwrap().contains("/api/plain"), "{text}");
    assert!(!text.contains('\u{1b}') && text.bytes().all(|byte| byte == b'\n' || byte >= b' '));
}

#[tokio::test]
async fn names_of_the_metrics() {
    let mut world = World::new().await;
    for path in ["/api/ok", "/closed/x", "/nobody"] {
        world.raw(path, &format!("GET {path} HTTP/1.1\r\nHost: OWN\r\n\r\n")).await;
    }
    let got = admin(&world.proxy, "GET", "/metrics").await;
    assert!(got.header("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    let text = got.text();
    assert!(text.ends_with("# EOF\n"));
    let described: Vec<&str> =
        text.lines().filter(|line| line.starts_with("# ") && *line != "# EOF").collect();
    insta::assert_snapshot!("metrics", described.join("\n"));
    // Labels come from the policy, never from a client.
    assert!(!text.contains("nobody"), "{text}");
}

async fn ask(address: std::net::SocketAddr, text: &str) -> Got {
    let mut raw = Raw::connect(address).await;
    raw.send(text).await;
    raw.answer().await
}

#[tokio::test]
async fn the_admin_listener_answers_who_may_ask() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let top =
        "admin: { address: \"127.0.0.1:0\", health_address: \"127.0.0.1:0\", token: \"file:{dir}/token\" }\n";
    let dir = directory(&ca);
    std::fs::write(dir.path().join("token"), "the-token-of-the-admin").unwrap();
    let proxy = Proxy::start_in(dir, &policy(origin.address, "", top)).await;
    local_get(&proxy, "/api/x").await;
    let own = proxy.admin();
    let token = "Authorization: Bearer the-token-of-the-admin\r\n";
    for (line, fields, status) in [
        ("GET /healthz", "Host: localhost\r\n", 200),
        ("GET /readyz", "Host: localhost\r\n", 200),
        ("GET /metrics", "Host: localhost\r\n", 200),
        ("GET /status", "Host: localhost\r\n", 401),
        ("GET /", "Host: localhost\r\n", 401),
        ("GET /status", &format!("Host: localhost\r\n{token}"), 200),
        ("GET /", &format!("Host: 127.0.0.1\r\n{token}"), 200),
        ("GET /status", "Host: localhost\r\nAuthorization: Bearer the-token-of-the-admiN\r\n", 401),
        ("GET /status", "Host: localhost\r\nAuthorization: Bearer \r\n", 401),
        // The file says what a reload does, so it is free on loopback; but not for web pages.
        ("POST /reload", "Host: localhost\r\n", 200),
        ("POST /reload", "Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
        ("POST /reload", "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("GET /status", &format!("Host: rebound.example\r\n{token}"), 421),
        ("GET /status", &format!("Host: localhost\r\nOrigin: null\r\n{token}"), 403),
        ("GET /status", &format!("Host: localhost\r\nSec-Fetch-Site: same-origin\r\n{token}"), 200),
        ("DELETE /status", &format!("Host: localhost\r\n{token}"), 405),
        ("GET /reload", &format!("Host: localhost\r\n{token}"), 405),
        ("GET /secrets", &format!("Host: localhost\r\n{token}"), 404),
        ("GET http://api.example.test/x", "Host: localhost\r\n", 401),
    ] {
        let got = ask(own, &format!("{line} HTTP/1.1\r\n{fields}\r\n")).await;
        assert_eq!(got.status, status, "{line} {fields}");
        assert!(!got.text().contains(CANARY));
    }
    assert_eq!(origin.requests().len(), 1, "the admin listener is no way to a provider");

    let health = proxy.app.health.unwrap();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(
            ask(health, &format!("GET {path} HTTP/1.1\r\nHost: pod.example:9902\r\n\r\n")).await.status,
            200
        );
    }
    for line in ["GET /", "GET /status", "POST /reload", "GET /nothing"] {
        let got = ask(health, &format!("{line} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n")).await;
        assert_eq!(got.status, 404, "{line}");
    }

    let got = ask(own, &format!("GET /status HTTP/1.1\r\nHost: localhost\r\n{token}\r\n")).await;
    let status: Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!((&status["generation"], &status["ready"]), (&1.into(), &true.into()));
    assert_eq!(status["providers"][0]["name"], "api");
    let secret = status["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one.to_string().contains("/secret\""))
        .unwrap();
    assert!(secret.to_string().contains("\"version\":1"), "{secret}");
    let pools = status["pools"].as_array().unwrap();
    let pool = pools.iter().find(|pool| pool["provider"] == "api").unwrap();
    assert_eq!(pool["dials"], 1, "{status:#}");
}

#[tokio::test]
async fn readiness_waits_for_required_secrets_and_for_no_other() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    for (required, status) in [(true, 503), (false, 200)] {
        let keys = format!("    credential: {{ bearer: \"file:{{dir}}/late\", required: {required} }}");
        let proxy = start(&ca, origin.address, &keys, "").await;
        assert_eq!(admin(&proxy, "GET", "/readyz").await.status, status);
        assert_eq!(admin(&proxy, "GET", "/healthz").await.status, 200);
        let got = local_get(&proxy, "/api/x").await;
        assert_eq!((got.status, got.header("outgate-error")), (503, Some("credential_unavailable")));
        std::fs::write(proxy.dir.path().join("late"), "it-has-come-at-last").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(8);
        while local_get(&proxy, "/api/x").await.status != 200 {
            assert!(std::time::Instant::now() < deadline, "the secret is found when it comes");
        }
        assert_eq!(admin(&proxy, "GET", "/readyz").await.status, 200);
        proxy.app.shutdown().await;
    }
}

#[tokio::test]
async fn a_trace_is_passed_on_or_made() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let proxy = start(&ca, origin.address, "", "").await;
    let known = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (number, sent) in [Some(known), None, Some("00-garbage")].into_iter().enumerate() {
        let field =
            sent.map_or(String::new(), |value| format!("traceparent: {value}\r\ntracestate: a=b\r\n"));
        ask(proxy.address(), &format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n{field}\r\n", proxy.address()))
            .await;
        let seen = origin.requests()[number].clone();
        let fields: Vec<_> = seen.headers.get_all("traceparent").iter().collect();
        assert_eq!(fields.len(), 1, "{seen:?}");
        let value = fields[0].to_str().unwrap();
        let record = &proxy.records(number + 1).await[number];
        assert_eq!(record["trace_id"], value[3..35], "the record names the trace");
        if sent == Some(known) {
            assert_eq!((value, seen.header("tracestate")), (known, Some("a=b")));
        } else {
            assert!(value.len() == 55 && value.starts_with("00-") && value != "00-garbage", "{value}");
        }
    }
}

/// A request that was read has its record, also where the client closes its side with the last byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_comes_with_the_request_loses_no_record() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let proxy = start(&ca, origin.address, "", "").await;
    let get = format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address());
    const ROUNDS: usize = 40;
    for _ in 0..ROUNDS {
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        stream.write_all(get.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    }
    let records = proxy.records(ROUNDS).await;
    assert_eq!(records.len(), ROUNDS);
    // Where hyper saw the end first, nothing was judged: the line says who came, and with what method.
    assert!(records.iter().all(|record| record["http.request.method"] == "GET"), "{records:#?}");
}

/// A head that ends in the middle is nothing that can be answered, and is told.
#[tokio::test]
async fn a_head_that_does_not_come_whole_is_recorded() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let proxy = start(&ca, origin.address, "", "").await;
    let mut plain = TcpStream::connect(proxy.address()).await.unwrap();
    plain.write_all(b"GET /api/x HTTP/1.1\r\nHo").await.unwrap();
    plain.shutdown().await.unwrap();
    let record = &proxy.records(1).await[0];
    assert_eq!(
        (&record["outgate.flag"], &record["outgate.door"]),
        (&"DC".into(), &"local".into()),
        "{record}"
    );
    assert!(record["http.response.status_code"].is_null() && !record["client.address"].is_null(), "{record}");

    // Inside an intercepted connection: its CONNECT has a record of its own.
    let mut inside = intercepted(&proxy, HOST, &["http/1.1"]).await;
    inside.write_all(b"GET /x HTTP/1.1\r\nHo").await.unwrap();
    inside.shutdown().await.unwrap();
    let records = proxy.records(3).await;
    let record = records.iter().find(|record| record["outgate.door"] == "intercept").expect("a record");
    assert_eq!(
        (&record["outgate.flag"], &record["server.address"]),
        (&"DC".into(), &HOST.into()),
        "{record}"
    );

    // A connection that is closed between two requests has none, nor one on which nothing was sent.
    let mut kept = Raw::connect(proxy.address()).await;
    kept.send(format!("GET /api/y HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address())).await;
    assert_eq!(kept.answer().await.status, 200);
    drop((kept, TcpStream::connect(proxy.address()).await.unwrap()));
    assert_eq!(local_get(&proxy, "/api/z").await.status, 200);
    let records = proxy.records(5).await;
    assert_eq!(records.len(), 5, "{records:?}");
}
