use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use insta::assert_snapshot;
use proptest::prelude::*;
use serde_json::Value;

use super::LogFormat;
use crate::telemetry::{
    Client, Door, Flag, HttpVersion, Original, RequestEvent, Sent, Timings, TraceParent, new_request_id,
};

fn line(format: LogFormat, event: &RequestEvent) -> String {
    let mut line = Vec::new();
    format.write(event, &mut line);
    let line = String::from_utf8(line).unwrap();
    // The id differs from run to run.
    line.replace(event.request_id.as_str(), "<id>").trim_end().to_owned()
}

fn json(event: &RequestEvent) -> String {
    line(LogFormat::Json, event)
}

fn text(event: &RequestEvent) -> String {
    line(LogFormat::Text, event)
}

fn millis(millis: f64) -> Option<Duration> {
    Some(Duration::from_secs_f64(millis / 1000.0))
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn event(door: Door) -> RequestEvent {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
    let mut event = RequestEvent::new(new_request_id(), door, "127.0.0.1:3128".into(), time);
    event.client = Some(Client::Address(address("127.0.0.1:50000")));
    event.generation = 3;
    event
}

fn request(door: Door, host: &str, path: &str) -> RequestEvent {
    RequestEvent {
        method: Some(http::Method::POST),
        scheme: Some("https"),
        host: Some(host.into()),
        port: Some(443),
        path: Some(path.to_owned()),
        downstream_version: Some(HttpVersion::Http11),
        ..event(door)
    }
}

fn success() -> RequestEvent {
    let trace = TraceParent::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
    RequestEvent {
        trace_id: Some(trace.trace_id()),
        query: Some("expand=&limit=".into()),
        upstream_version: Some(HttpVersion::Http2),
        status: Some(200),
        request_bytes: 312,
        response_bytes: 1024,
        timings: Timings {
            total: Duration::from_micros(182_401),
            queue: millis(0.25),
            dns: millis(1.5),
            connect: millis(12.0),
            tls: millis(20.0),
            first_byte: millis(140.0),
            body: millis(3.217),
        },
        provider: Some("stripe".into()),
        route: Some("charges".into()),
        attempts: 1,
        credential: Some("env:STRIPE_KEY".into()),
        upstream: Some(address("[2001:db8::1]:443")),
        connection_reused: Some(false),
        ..request(Door::Intercept, "api.stripe.com", "/v1/charges")
    }
}

fn denied() -> RequestEvent {
    RequestEvent {
        status: Some(403),
        flag: Some(Flag::Denied),
        error: Some("denied"),
        error_detail: Some("no provider names this host".into()),
        sent: Some(Sent::No),
        timings: Timings { total: Duration::from_micros(87), ..Timings::default() },
        scheme: Some("http"),
        port: Some(8080),
        ..request(Door::Forward, "evil.example", "/collect")
    }
}

fn tunnel() -> RequestEvent {
    RequestEvent {
        client: Some(Client::Unix),
        method: Some(http::Method::CONNECT),
        host: Some("db.example.com".into()),
        port: Some(5432),
        status: Some(200),
        request_bytes: 4096,
        response_bytes: 1_000_000,
        timings: Timings { total: Duration::from_secs(3600), connect: millis(9.0), ..Timings::default() },
        provider: Some("db".into()),
        attempts: 1,
        upstream: Some(address("192.0.2.7:5432")),
        ..event(Door::Tunnel)
    }
}

fn cancelled() -> RequestEvent {
    RequestEvent {
        flag: Some(Flag::DownstreamGone),
        error: Some("client_gone"),
        provider: Some("openai".into()),
        route: Some("default".into()),
        attempts: 1,
        connection_reused: Some(true),
        timings: Timings { total: Duration::from_millis(2500), ..Timings::default() },
        ..request(Door::Local, "api.openai.com", "/v1/chat/completions")
    }
}

fn upstream_error() -> RequestEvent {
    RequestEvent {
        status: Some(504),
        flag: Some(Flag::UpstreamTimeout),
        error: Some("upstream_timeout"),
        error_detail: Some("no response head within 60s".into()),
        sent: Some(Sent::Maybe),
        provider: Some("github".into()),
        route: Some("default".into()),
        attempts: 3,
        retry_reasons: vec!["timeout", "connect", "not_repeated:attempts"],
        shadowed: vec!["limit:account".into(), "deny:refunds".into()],
        scrubbed: 2,
        upgrade: Some("websocket"),
        timings: Timings {
            total: Duration::from_millis(61_250),
            queue: millis(1000.0),
            ..Timings::default()
        },
        ..request(Door::Intercept, "api.github.com", "/graphql")
    }
}

const INJECTION: &str = "a\"}\n{\"level\":\"error\"}\r\t\0\u{1b}[2J\u{7f}\u{9b}\u{2028}\u{202e}\\é🦀";

/// Clients and operators choose these; nobody gets a second line or a member of his own.
fn injected(text: &str) -> RequestEvent {
    RequestEvent {
        query: Some(text.to_owned()),
        error_detail: Some(text.to_owned()),
        provider: Some(text.into()),
        route: Some(text.into()),
        credential: Some(text.into()),
        listener: text.into(),
        ..request(Door::Forward, text, text)
    }
}

#[test]
fn json_lines() {
    assert_snapshot!(json(&success()), @r#"{"timestamp":"2026-01-02T03:04:05.678Z","outgate.request_id":"<id>","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","outgate.door":"intercept","outgate.listener":"127.0.0.1:3128","client.address":"127.0.0.1","client.port":50000,"http.request.method":"POST","url.scheme":"https","server.address":"api.stripe.com","server.port":443,"url.path":"/v1/charges","url.query":"expand=&limit=","network.protocol.version":"1.1","http.request.body.size":312,"http.response.status_code":200,"http.response.body.size":1024,"outgate.provider":"stripe","outgate.route":"charges","outgate.generation":3,"outgate.credential":"env:STRIPE_KEY","outgate.attempts":1,"network.peer.address":"2001:db8::1","network.peer.port":443,"outgate.upstream.protocol":"2","outgate.upstream.reused":false,"duration":{"total":182.401,"queue":0.250,"dns":1.500,"connect":12.000,"tls":20.000,"first_byte":140.000,"body":3.217}}"#);
    assert_snapshot!(json(&denied()), @r#"{"timestamp":"2026-01-02T03:04:05.678Z","outgate.request_id":"<id>","outgate.door":"forward","outgate.listener":"127.0.0.1:3128","client.address":"127.0.0.1","client.port":50000,"http.request.method":"POST","url.scheme":"http","server.address":"evil.example","server.port":8080,"url.path":"/collect","network.protocol.version":"1.1","http.request.body.size":0,"http.response.status_code":403,"http.response.body.size":0,"outgate.flag":"NR","error.type":"denied","outgate.error.detail":"no provider names this host","outgate.sent":"no","outgate.generation":3,"outgate.attempts":0,"duration":{"total":0.087}}"#);
    assert_snapshot!(json(&tunnel()), @r#"{"timestamp":"2026-01-02T03:04:05.678Z","outgate.request_id":"<id>","outgate.door":"tunnel","outgate.listener":"127.0.0.1:3128","client.address":"unix","http.request.method":"CONNECT","server.address":"db.example.com","server.port":5432,"http.request.body.size":4096,"http.response.status_code":200,"http.response.body.size":1000000,"outgate.provider":"db","outgate.generation":3,"outgate.attempts":1,"network.peer.address":"192.0.2.7","network.peer.port":5432,"duration":{"total":3600000.000,"connect":9.000}}"#);
    assert_snapshot!(json(&cancelled()), @r#"{"timestamp":"2026-01-02T03:04:05.678Z","outgate.request_id":"<id>","outgate.door":"local","outgate.listener":"127.0.0.1:3128","client.address":"127.0.0.1","client.port":50000,"http.request.method":"POST","url.scheme":"https","server.address":"api.openai.com","server.port":443,"url.path":"/v1/chat/completions","network.protocol.version":"1.1","http.request.body.size":0,"http.response.body.size":0,"outgate.flag":"DC","error.type":"client_gone","outgate.provider":"openai","outgate.route":"default","outgate.generation":3,"outgate.attempts":1,"outgate.upstream.reused":true,"duration":{"total":2500.000}}"#);
    assert_snapshot!(json(&upstream_error()), @r#"{"timestamp":"2026-01-02T03:04:05.678Z","outgate.request_id":"<id>","outgate.door":"intercept","outgate.listener":"127.0.0.1:3128","client.address":"127.0.0.1","client.port":50000,"http.request.method":"POST","url.scheme":"https","server.address":"api.github.com","server.port":443,"url.path":"/graphql","network.protocol.version":"1.1","http.request.body.size":0,"http.response.status_code":504,"http.response.body.size":0,"outgate.flag":"UT","error.type":"upstream_timeout","outgate.error.detail":"no response head within 60s","outgate.sent":"maybe","outgate.upgrade":"websocket","outgate.provider":"github","outgate.route":"default","outgate.generation":3,"outgate.attempts":3,"outgate.retry.reason":["timeout","connect","not_repeated:attempts"],"outgate.shadow":["limit:account","deny:refunds"],"outgate.scrubbed":2,"duration":{"total":61250.000,"queue":1000.000}}"#);
    assert_snapshot!(json(&injected(INJECTION)), @r#"{"timestamp":"2026-01-02T03:04:05.678Z","outgate.request_id":"<id>","outgate.door":"forward","outgate.listener":"a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀","client.address":"127.0.0.1","client.port":50000,"http.request.method":"POST","url.scheme":"https","server.address":"a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀","server.port":443,"url.path":"a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀","url.query":"a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀","network.protocol.version":"1.1","http.request.body.size":0,"http.response.body.size":0,"outgate.error.detail":"a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀","outgate.provider":"a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀","outgate.route":"a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀","outgate.generation":3,"outgate.credential":"a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀","outgate.attempts":0,"duration":{"total":0.000}}"#);
}

#[test]
fn text_lines() {
    let events = [success(), denied(), tunnel(), cancelled(), upstream_error(), injected(INJECTION)];
    let lines: Vec<String> = events.iter().map(text).collect();
    assert_snapshot!(lines.join("\n"), @r#"
    2026-01-02T03:04:05.678Z 200 -   POST    api.stripe.com/v1/charges?expand=&limit=         stripe/charges           182.401ms   312B>1024B
    2026-01-02T03:04:05.678Z 403 NR  POST    evil.example:8080/collect                        -                        0.087ms     0B>0B error=denied (no provider names this host)
    2026-01-02T03:04:05.678Z 200 -   CONNECT db.example.com:5432                              db                       3600000.000ms 4096B>1000000B
    2026-01-02T03:04:05.678Z --- DC  POST    api.openai.com/v1/chat/completions               openai/default           2500.000ms  0B>0B error=client_gone
    2026-01-02T03:04:05.678Z 504 UT  POST    api.github.com/graphql                           github/default           61250.000ms 0B>0B attempts=3 retry=timeout,connect,not_repeated:attempts shadow=limit:account,deny:refunds upgrade=websocket error=upstream_timeout scrubbed=2 (no response head within 60s)
    2026-01-02T03:04:05.678Z --- -   POST    a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀?a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀 a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀/a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀 0.000ms     0B>0B (a\"}\u000a{\"level\":\"error\"}\u000d\u0009\u0000\u001b[2J\u007f\u009b\u2028\u202e\\é🦀)
    "#);
}

#[test]
fn long_values_are_cut_on_a_character_and_marked() {
    let event = RequestEvent { path: Some("é".repeat(2000)), ..request(Door::Local, &"é".repeat(600), "") };
    let parsed: Value = serde_json::from_str(&json(&event)).unwrap();
    assert_eq!(parsed["url.path"], format!("{}…[cut 1952]", "é".repeat(1024)));
    assert_eq!(parsed["server.address"], format!("{}…[cut 176]", "é".repeat(512)));
    let event = request(Door::Local, &format!("x{}", "é".repeat(600)), "");
    let parsed: Value = serde_json::from_str(&json(&event)).unwrap();
    assert_eq!(parsed["server.address"], format!("x{}…[cut 178]", "é".repeat(511)));
}

#[test]
fn odd_times_and_durations_are_written() {
    let mut event = event(Door::Local);
    event.time = SystemTime::UNIX_EPOCH - Duration::from_secs(5);
    event.timings.total = Duration::MAX;
    let parsed: Value = serde_json::from_str(&json(&event)).unwrap();
    assert_eq!(parsed["timestamp"], "1970-01-01T00:00:00.000Z");
    assert_eq!(parsed["duration"]["total"], 18_446_744_073_709_551.615);
}

/// All keys an event can have: those of an event with everything set.
fn full(text: &str) -> RequestEvent {
    let (success, error) = (success(), upstream_error());
    let (listener, host) = (text.into(), Some(text.into()));
    let strings = injected(text);
    RequestEvent {
        listener,
        host,
        status: error.status,
        flag: error.flag,
        error: error.error,
        sent: error.sent,
        retry_reasons: error.retry_reasons,
        shadowed: error.shadowed,
        upgrade: error.upgrade,
        scrubbed: 1,
        original: Some(Original { address: address("192.0.2.7:443"), resolved: Some(false) }),
        path: strings.path,
        query: strings.query,
        error_detail: strings.error_detail,
        provider: strings.provider,
        route: strings.route,
        credential: strings.credential,
        ..success
    }
}

fn keys(line: &str) -> BTreeSet<String> {
    let parsed: Value = serde_json::from_str(line).unwrap();
    parsed.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn the_keys_are_stable() {
    let keys: Vec<String> = keys(&json(&full("x"))).into_iter().collect();
    assert_snapshot!(keys.join(" "), @"client.address client.port duration error.type http.request.body.size http.request.method http.response.body.size http.response.status_code network.peer.address network.peer.port network.protocol.version outgate.attempts outgate.credential outgate.door outgate.error.detail outgate.flag outgate.generation outgate.listener outgate.original.address outgate.original.port outgate.original.resolved outgate.provider outgate.request_id outgate.retry.reason outgate.route outgate.scrubbed outgate.sent outgate.shadow outgate.upgrade outgate.upstream.protocol outgate.upstream.reused server.address server.port timestamp trace_id url.path url.query url.scheme");
}

proptest! {
    #[test]
    fn any_text_makes_one_line_of_our_keys(text in any::<String>(), noise in "[\\x00-\\x1f\"\\\\\u{7f}-\u{a0}\u{2020}-\u{2070}a]{0,40}") {
        for text in [&text, &noise] {
            let event = full(text);
            for format in [LogFormat::Json, LogFormat::Text] {
                let mut line = Vec::new();
                format.write(&event, &mut line);
                prop_assert_eq!(line.pop(), Some(b'\n'));
                let line = String::from_utf8(line).unwrap();
                let raw = line.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'));
                prop_assert!(!raw, "{}", line);
            }
            let line = json(&event);
            prop_assert_eq!(keys(&line), keys(&json(&full("x"))));
            let parsed: Value = serde_json::from_str(&line).unwrap();
            if text.len() <= 1024 {
                prop_assert_eq!(parsed["url.query"].as_str(), Some(text.as_str()));
                prop_assert_eq!(parsed["server.address"].as_str(), Some(text.as_str()));
            }
        }
    }
}
