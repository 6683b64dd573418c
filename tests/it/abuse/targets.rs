//! TG-01 to TG-21: which host a request is for, in every spelling, at every door.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;

use super::bench::{
    MALFORMED, Policy, REFUSED, Setup, World, assert_answer, closes, get, handshake, ok, serves,
    towards_http2,
};
use crate::support::CANARY;
use crate::support::client::{Raw, http2};

const OPEN: &str = "http://open.example.test/";

/// Each run is malformed: 400, closed, recorded, and nothing dialled.
async fn all_malformed(world: &World, runs: &[(&str, String)]) {
    for (run, request) in runs {
        let (mut client, got) = world.sent(request).await;
        assert_answer(&got, MALFORMED, run);
        assert!(closes(&mut client.stream).await, "{run} closes");
        assert_eq!(client.stream.answers(), 1, "{run}");
    }
    nothing_dialled(world);
}

fn nothing_dialled(world: &World) {
    for (name, origin) in [("open", &world.open), ("open-tls", &world.open_tls), ("api", &world.api)] {
        assert!(origin.heard().is_empty(), "{name} was reached: {:?}", origin.heard());
    }
}

/// Each run is refused by policy, and the connection goes on.
async fn all_refused(world: &World, runs: &[(&str, String)]) {
    for (run, request) in runs {
        let (mut client, got) = world.sent(request).await;
        assert_answer(&got, REFUSED, run);
        assert!(client.stream.answers() == 1);
        assert!(serves(&mut client, "http://alive.example.test/", "alive.example.test").await, "{run} stays");
    }
    nothing_dialled(world);
}

#[tokio::test]
async fn tg_01_target_and_host_differ() {
    let world = World::start(Policy::Inj).await;
    let (mut client, got) = world.sent(get(OPEN, "api.example.test")).await;
    assert_eq!((got.status, got.text().as_str()), (200, "open"));
    let seen = world.open.only();
    assert_eq!(seen.all("host"), ["open.example.test"]);
    assert!(seen.all("authorization").is_empty() && !seen.head.contains("api.example.test"), "{seen:?}");
    assert!(world.api.heard().is_empty());
    assert!(serves(&mut client, OPEN, "open.example.test").await);
    world.after(&[(200, ""), (200, "")]).await;
}

#[tokio::test]
async fn tg_02_no_host() {
    let world = World::start(Policy::Open).await;
    all_malformed(&world, &[("a", format!("GET {OPEN} HTTP/1.1\r\n\r\n"))]).await;
    world.after(&[(400, "bad_request")]).await;
}

#[tokio::test]
async fn tg_03_host_twice() {
    let world = World::start(Policy::Open).await;
    let twice =
        |second: &str| format!("GET {OPEN} HTTP/1.1\r\nHost: open.example.test\r\nHost: {second}\r\n\r\n");
    all_malformed(&world, &[("same", twice("open.example.test")), ("other", twice("evil.example.test"))])
        .await;
    world.after(&[(400, "bad_request"); 2]).await;
}

#[tokio::test]
async fn tg_04_host_that_is_no_host() {
    let world = World::start(Policy::Open).await;
    let runs = [
        ("a", get(OPEN, "api.example.test@evil.example.test")),
        ("b", get(OPEN, "open.example.test/evil")),
        ("c", get(OPEN, "open.example.test, evil.example.test")),
        ("d", get(OPEN, "")),
        ("e", get(OPEN, "op\u{e9}n.example.test")),
    ];
    all_malformed(&world, &runs).await;
    world.after(&[(400, "bad_request"); 5]).await;
}

#[tokio::test]
async fn tg_05_user_information() {
    let world = World::start(Policy::Wide).await;
    let runs = [
        ("a", get("http://api.example.test@evil.example.test/", "evil.example.test")),
        ("b", get("http://user:p4ssw0rd@open.example.test/", "open.example.test")),
        ("c", get("http://open.example.test%40evil.example.test/", "open.example.test")),
        ("empty", get("http://@open.example.test/", "open.example.test")),
    ];
    all_malformed(&world, &runs).await;
    let log = world.proxy.log.text(&world.proxy.app.telemetry) + &world.proxy.metrics();
    assert!(!log.contains("p4ssw0rd") && !log.contains("user:") && !log.contains('@'), "{log}");
    world.after_with(&[(400, "bad_request"); 4], &["p4ssw0rd"]).await;
}

#[tokio::test]
async fn tg_05_user_information_inside_a_tunnel() {
    let world = World::start(Policy::Inj).await;
    for (target, host) in [
        ("/v1/x", "user:p4ssw0rd@api.example.test"),
        ("https://user:p4ssw0rd@api.example.test/v1/x", "api.example.test"),
    ] {
        let mut client = world.intercepted("api.example.test").await;
        client.send(get(target, host)).await;
        assert_answer(&client.answer().await, MALFORMED, target);
        assert!(closes(&mut client.stream).await);
    }
    nothing_dialled(&world);
    let one = [(200, ""), (400, "bad_request")];
    world.after_with(&one.repeat(2), &["p4ssw0rd"]).await;
}

#[tokio::test]
async fn tg_09_targets_of_no_form() {
    let world = World::start(Policy::Wide).await;
    let targets = [
        "http:///x",
        "http:/open.example.test/",
        "http:open.example.test/",
        "open.example.test",
        "open.example.test:443",
        "open.example.test/x",
        "http://open.example.test\\@evil.example.test/",
        "http://open.example.test\\.evil.example.test/",
        "http://[::ffff:127.0.0.1/",
        "http://[v1.x]/",
        "http://open.example.test\u{0}/",
        "http://open example.test/",
        "?x",
        "#/",
    ];
    let runs = targets.map(|target| (target, get(target, "open.example.test")));
    all_malformed(&world, &runs).await;
    world.after(&[(400, "bad_request"); 14]).await;
}

#[tokio::test]
async fn tg_06_fragment() {
    let world = World::start(Policy::One).await;
    let (mut client, got) =
        world.sent(get("http://open.example.test/v1/ok#/../admin", "open.example.test")).await;
    // Dropped before the decision: policy and wire have the same path.
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(world.open.only().line(), "GET /v1/ok HTTP/1.1");
    // What stands before the mark decides.
    client.send(get("http://open.example.test/admin#/v1/ok", "open.example.test")).await;
    assert_answer(&client.answer().await, REFUSED, "admin");
    assert_eq!(world.open.requests().len(), 1);
    let records = world.proxy.records(2).await;
    assert_eq!((&records[0]["url.path"], &records[1]["url.path"]), (&"/v1/ok".into(), &"/admin".into()));
    world.after(&[(200, ""), (403, "denied")]).await;
}

const WITHOUT_LOCAL: &str = "listeners:
  - { address: \"127.0.0.1:0\", accept: [forward, connect] }
  - { address: \"127.0.0.1:0\" }
";

#[tokio::test]
async fn tg_07_origin_form_at_the_forward_door() {
    let setup = Setup { top: WITHOUT_LOCAL.to_owned(), ..Setup::default() };
    let world = World::with(Policy::Inj, setup).await;
    let request = get("/v1/x", "api.example.test");
    all_malformed(&world, &[("a", request.clone())]).await;
    // Where the local endpoint is, the same bytes are legal, and a browser's are not.
    let mut client = world.client_of(world.proxy.app.listeners[1]).await;
    client.send(request.replace("\r\n\r\n", "\r\nSec-Fetch-Site: cross-site\r\n\r\n")).await;
    assert_answer(&client.answer().await, REFUSED, "a web page");
    nothing_dialled(&world);
    client.send(request).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(world.api.only().all("authorization"), [format!("Bearer {CANARY}")]);
    world.after(&[(400, "bad_request"), (403, "denied"), (200, "")]).await;
}

#[tokio::test]
async fn tg_08_https_in_an_absolute_target() {
    let world = World::start(Policy::Inj).await;
    let (mut client, got) = world.sent(get("https://api.example.test/v1/x", "api.example.test")).await;
    assert_eq!((got.status, got.text().as_str()), (200, "api"));
    assert_eq!(world.api.heard()[0].sni.as_deref(), Some("api.example.test"), "over TLS, by name");
    assert_eq!(world.api.only().line(), "GET /v1/x HTTP/1.1");
    assert!(world.open.heard().is_empty());
    assert!(serves(&mut client, OPEN, "open.example.test").await);
    world.after(&[(200, ""), (200, "")]).await;
}

#[tokio::test]
async fn tg_08_https_is_never_sent_without_verified_tls() {
    // A host that the policy speaks plain http to: the app asked for TLS.
    let origin = super::bench::Capture::start(None, Arc::new(|_| ok("plain"))).await;
    let providers = format!(
        "  plain:\n    hosts: [plain.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n",
        origin.address
    );
    let plain = World::with(Policy::One, Setup { providers, ..Setup::default() }).await;
    for target in ["https://plain.example.test/x", "https://plain.example.test:80/x"] {
        let (mut client, got) = plain.sent(get(target, "plain.example.test")).await;
        assert_answer(&got, REFUSED, target);
        assert!(serves(&mut client, "http://alive.example.test/", "alive.example.test").await);
    }
    assert!(origin.heard().is_empty());
    plain.after(&[(403, "denied"); 2]).await;

    // A certificate that nobody vouches for.
    let providers = |address| {
        format!(
            "  other:
    hosts: [other.example.test]
    upstream: {{ connect_to: \"{address}\" }}
    credential: {{ bearer: \"file:{{dir}}/secret\" }}
"
        )
    };
    let own = World::start(Policy::One).await;
    let setup = Setup { providers: providers(own.open_tls.address), ..Setup::default() };
    let world = World::with(Policy::One, setup).await;
    let (mut client, got) = world.sent(get("https://other.example.test/", "other.example.test")).await;
    assert_answer(&got, (502, "tls_certificate_error"), "certificate");
    assert!(own.open_tls.requests().is_empty());
    assert!(serves(&mut client, OPEN, "open.example.test").await);
    world.after(&[(502, "upstream_tls"), (200, "")]).await;
}

#[tokio::test]
async fn tg_09_other_schemes() {
    let world = World::start(Policy::Wide).await;
    let runs = [
        ("a", get("ftp://open.example.test/", "open.example.test")),
        ("b", get("file:///etc/passwd", "open.example.test")),
        ("c", get("ws://open.example.test/", "open.example.test")),
        ("d", get("gopher://open.example.test:6379/_x", "open.example.test")),
    ];
    all_malformed(&world, &runs).await;
    world.after(&[(400, "bad_request"); 4]).await;
}

#[tokio::test]
async fn tg_10_asterisk() {
    let world = World::start(Policy::Open).await;
    let options = |target: &str| get(target, "open.example.test").replace("GET", "OPTIONS");
    all_malformed(&world, &[("a", get("*", "open.example.test")), ("c", options("*/x"))]).await;
    let (mut client, got) = world.sent(options("*")).await;
    assert_eq!(got.status, 204, "b: about outgate itself");
    nothing_dialled(&world);
    assert!(serves(&mut client, OPEN, "open.example.test").await);
    world.after(&[(400, "bad_request"), (400, "bad_request"), (204, ""), (200, "")]).await;
}

#[tokio::test]
async fn tg_11_other_spellings_of_a_denied_host() {
    let world = World::start(Policy::Deny1).await;
    let refused = [
        ("a", get("http://EVIL.Example.TEST/", "EVIL.Example.TEST")),
        ("b", get("http://evil.example.test./", "evil.example.test.")),
        ("port", get("http://evil.example.test:80/", "evil.example.test")),
    ];
    all_refused(&world, &refused).await;
    let malformed = [
        ("c", get("http://%65vil.example.test/", "evil.example.test")),
        ("d", get("http://evil.example.test..:80/", "evil.example.test")),
        ("e", get("http://\u{ff45}vil.example.test/", "evil.example.test")),
    ];
    all_malformed(&world, &malformed).await;
    for target in ["EVIL.Example.TEST:80", "evil.example.test.:80"] {
        let (mut client, got) =
            world.sent(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
        assert_answer(&got, REFUSED, target);
        assert!(closes(&mut client.stream).await, "{target}");
    }
    let records = world.proxy.records(8).await;
    let hosts: Vec<_> = records
        .iter()
        .filter(|record| record["http.response.status_code"] == 403)
        .map(|record| record["server.address"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(hosts, ["evil.example.test"; 5], "one normal form, in the log as well");
    let expected = [[(403, "denied"); 3], [(400, "bad_request"); 3]].concat();
    world.after(&[expected, vec![(403, "denied"); 2]].concat()).await;
}

#[tokio::test]
async fn tg_12_suffix_tricks() {
    let wild = super::bench::Capture::start(None, Arc::new(|_| ok("wild"))).await;
    let providers = format!(
        "  wild:\n    hosts: [\"*.wild.example.test\"]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n",
        wild.address
    );
    let world = World::with(Policy::One, Setup { providers, ..Setup::default() }).await;
    let hosts = [
        "open.example.test.evil.example.test",
        "xopen.example.test",
        "wild.example.test",
        "xwild.example.test",
        // A star is one label: `outgate explain` and the host patterns say so.
        "a.b.wild.example.test",
    ];
    let runs = hosts.map(|host| (host, get(&format!("http://{host}/"), host)));
    all_refused(&world, &runs).await;
    assert!(wild.heard().is_empty());
    let (_client, got) = world.sent(get("http://a.wild.example.test/", "a.wild.example.test")).await;
    assert_eq!((got.status, got.text().as_str()), (200, "wild"));
    let denied = [(403, "denied"); 5].into_iter().chain([(200, "")]);
    world.after(&denied.collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn tg_13_ports() {
    let world = World::start(Policy::One).await;
    all_refused(&world, &[("a", get("http://open.example.test:8080/", "open.example.test:8080"))]).await;
    let malformed = [
        ("b", get("http://open.example.test:80:443/", "open.example.test")),
        ("c", get("http://open.example.test:65536/", "open.example.test")),
        ("d", get("http://open.example.test:0/", "open.example.test")),
        ("e", get("http://open.example.test:/", "open.example.test")),
        ("sign", get("http://open.example.test:+80/", "open.example.test")),
        ("zeros", get("http://open.example.test:00000080x/", "open.example.test")),
    ];
    all_malformed(&world, &malformed).await;
    let denied = [(403, "denied")].into_iter().chain([(400, "bad_request"); 6]);
    world.after(&denied.collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn tg_14_tls_name_differs_from_the_connect_host() {
    let world = World::start(Policy::Inj).await;
    let minted = || world.proxy.app.proxy.leaves.stats().minted;
    let before = minted();
    let stream = world.tunnel("open.example.test:443").await;
    let error = handshake(stream, "api.example.test", &world.proxy.ca(), true).await.err().unwrap();
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert_eq!(
        alert,
        Some(&rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName)),
        "{error:?}"
    );
    assert!(minted() <= before + 1, "at most the leaf of the CONNECT host");
    nothing_dialled(&world);
    world.after(&[(200, "NR")]).await;
}

#[tokio::test]
async fn tg_14_closes_after_the_alert() {
    let world = World::start(Policy::Inj).await;
    let mut stream = world.tunnel("open.example.test:443").await;
    use tokio::io::AsyncWriteExt;
    stream.write_all(&super::connect::client_hello("api.example.test", true)).await.unwrap();
    assert!(closes(&mut stream).await);
    let seen = stream.seen();
    assert!(seen.ends_with(&[0x15, 3, 3, 0, 2, 2, 112]), "the alert and nothing else: {seen:x?}");
    drop(stream);
    nothing_dialled(&world);
    world.after(&[(200, "NR")]).await;
}

#[tokio::test]
async fn tg_15_host_inside_differs() {
    let runs = [
        get("/v1/x", "evil.example.test"),
        get("/v1/x", "open.example.test"),
        get("/v1/x", "api.example.test:8443"),
        get("https://evil.example.test/v1/x", "api.example.test"),
        get("http://api.example.test/v1/x", "api.example.test"),
    ];
    let world = World::start(Policy::Inj).await;
    for request in &runs {
        let mut client = world.intercepted("api.example.test").await;
        client.send(request).await;
        let got = client.answer().await;
        assert_answer(&got, (421, "http_request_denied"), request);
        assert!(closes(&mut client.stream).await, "{request}");
    }
    nothing_dialled(&world);
    // What names the same host, in whatever form, is served.
    let mut client = world.intercepted("api.example.test").await;
    for (target, host) in [
        ("/v1/x", "API.example.test."),
        ("/v1/x", "api.example.test:443"),
        ("https://api.example.test/v1/x", "api.example.test"),
    ] {
        assert!(serves(&mut client, target, host).await, "{target} {host}");
    }
    assert!(world.api.requests().iter().all(|seen| seen.all("host") == ["api.example.test"]));
    let mut expected = [(200, ""), (421, "bad_request")].repeat(runs.len());
    expected.extend([(200, ""); 4]);
    world.after(&expected).await;
}

#[tokio::test]
async fn tg_16_authority_inside_differs() {
    let world = World::start(Policy::Inj).await;
    let stream = world.tunnel("api.example.test:443").await;
    let config = crate::support::ca::trusting(&world.proxy.ca(), &["h2"]);
    let name = rustls::pki_types::ServerName::try_from("api.example.test").unwrap();
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
    let mut sender = http2(stream).await;
    let request = |authority: &str| {
        let uri = format!("https://{authority}/v1/x");
        http::Request::get(uri).version(http::Version::HTTP_2).body(Full::<Bytes>::default()).unwrap()
    };
    let refused = sender.send_request(request("evil.example.test")).await.unwrap();
    assert_eq!(refused.status(), 421);
    let status = refused.headers()["proxy-status"].to_str().unwrap();
    assert!(status.contains("error=http_request_denied"), "{status}");
    drop(refused);
    assert!(world.api.heard().is_empty());
    // Only the stream was refused.
    let served = sender.send_request(request("api.example.test")).await.unwrap();
    assert_eq!(crate::support::client::Got::read(served).await.text(), "api");
    assert_eq!(world.api.only().all("host"), ["api.example.test"]);
    world.after(&[(200, ""), (421, "bad_request"), (200, "")]).await;
}

#[tokio::test]
async fn tg_17_intercepted_without_sni() {
    let world = World::start(Policy::Inj).await;
    let stream = world.tunnel("api.example.test:443").await;
    // The client checks the leaf against the CONNECT host.
    let stream = handshake(stream, "api.example.test", &world.proxy.ca(), false).await.unwrap();
    let mut client = Raw::over(stream);
    client.send(get("/v1/x", "api.example.test")).await;
    let got = client.answer().await;
    assert_eq!((got.status, got.text().as_str()), (200, "api"));
    assert_eq!(world.api.heard()[0].sni.as_deref(), Some("api.example.test"));
    assert!(serves(&mut client, "/v1/x", "api.example.test").await);
    world.after(&[(200, ""), (200, ""), (200, "")]).await;
}

#[tokio::test]
async fn tg_18_dot_segments() {
    let world = World::start(Policy::Inj).await;
    let mut client = world.intercepted("api.example.test").await;
    let paths = [
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1/./../../admin",
        "/v1//../admin",
        "/v1/%2E%2e/admin",
        "/v1/.%2e/admin",
        "/v1/..%2fadmin",
        "/v1/..%5cadmin",
        "/v1/x%00",
        "/v1/..",
    ];
    for path in paths {
        client.send(get(path, "api.example.test")).await;
        let got = client.answer().await;
        // All on one connection: the message is sound, so it stays.
        assert_answer(&got, MALFORMED, path);
    }
    nothing_dialled(&world);
    // What was judged is sent byte for byte.
    client.send(get("/v1/a%7Eb%2Ec?x=%2e%2e/../y", "api.example.test")).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(world.api.only().line(), "GET /v1/a%7Eb%2Ec?x=%2e%2e/../y HTTP/1.1");
    let mut expected = vec![(200, "")];
    expected.extend([(400, "bad_request"); 10]);
    expected.push((200, ""));
    world.after(&expected).await;
}

#[tokio::test]
async fn tg_18_dot_segments_at_the_other_doors() {
    let world = World::start(Policy::Inj).await;
    let mut client = world.client().await;
    let own = world.proxy.address().to_string();
    for (target, host) in [
        ("https://api.example.test/v1/../admin", "api.example.test"),
        ("http://api.example.test/v1/%2e%2e/admin", "api.example.test"),
        ("/v1/../admin", "api.example.test"),
        ("/api/v1/../admin", own.as_str()),
        ("/api/..", own.as_str()),
        ("/api//v1/x", own.as_str()),
        ("/api@api.example.test/v1/../admin", own.as_str()),
    ] {
        client.send(get(target, host)).await;
        assert_answer(&client.answer().await, MALFORMED, target);
    }
    for target in ["/./api/v1/x", "//api/v1/x", "/api@evil.example.test/v1/x", "/apiv1/x"] {
        client.send(get(target, &own)).await;
        assert_answer(&client.answer().await, REFUSED, target);
    }
    // A provider without rules about paths gets what was sent, and it stays with that provider.
    assert!(serves(&mut client, "/open/../api/v1/x", &own).await);
    assert_eq!(world.open.only().line(), "GET /../api/v1/x HTTP/1.1");
    assert!(world.api.heard().is_empty(), "no spelling leads to another provider, or past its routes");
    let expected = [vec![(400, "bad_request"); 7], vec![(403, "denied"); 4], vec![(200, "")]].concat();
    world.after(&expected).await;
}

#[tokio::test]
async fn tg_18_a_query_without_a_path() {
    let (world, http2) = towards_http2().await;
    for host in ["open.example.test", "h2.example.test"] {
        let (_client, got) = world.sent(get(&format!("http://{host}?x=/v1/"), host)).await;
        assert_eq!(got.status, 200, "{host}: {got:?}");
    }
    assert_eq!(world.open.only().line(), "GET /?x=/v1/ HTTP/1.1");
    assert_eq!(http2.only().uri.path_and_query().unwrap().as_str(), "/?x=/v1/");
    world.after(&[(200, ""), (200, "")]).await;
}

#[tokio::test]
async fn tg_19_query_like_an_allowed_path() {
    let world = World::start(Policy::Inj).await;
    let mut client = world.intercepted("api.example.test").await;
    for target in ["/admin?x=/v1/", "/admin?/v1/", "/?/v1/x", "/v1?/v1/../"] {
        client.send(get(target, "api.example.test")).await;
        let got = client.answer().await;
        if target.starts_with("/v1?") {
            // `/v1/**` is `/v1` too; the query is no path.
            assert_eq!(got.status, 200);
        } else {
            assert_answer(&got, REFUSED, target);
        }
    }
    assert_eq!(world.api.only().line(), "GET /v1?/v1/../ HTTP/1.1");
    world.after(&[(200, ""), (403, "denied"), (403, "denied"), (403, "denied"), (200, "")]).await;
}

#[tokio::test]
async fn tg_20_web_pages_at_the_local_endpoint() {
    let setup = Setup { api: "    local: { address: \"127.0.0.1:0\" }\n".to_owned(), ..Setup::default() };
    let world = World::with(Policy::Inj, setup).await;
    let endpoint = world.proxy.app.listeners[1];
    let port = endpoint.port();
    let page = |lines: &str| {
        format!("POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{lines}Content-Length: 0\r\n\r\n")
    };
    let runs = [
        ("a", get("/v1/x", &format!("evil.example.test:{port}")), 421),
        ("a prefix", get("/v1/x", &format!("127.0.0.1.evil.example.test:{port}")), 421),
        ("a localhost", get("/v1/x", &format!("evil.localhost:{port}")), 421),
        ("b", page("Origin: https://evil.example.test\r\nSec-Fetch-Site: cross-site\r\n"), 403),
        ("b origin", page("Origin: https://evil.example.test\r\n"), 403),
        ("b null", page("Origin: null\r\n"), 403),
        ("b site", page("Sec-Fetch-Site: same-site\r\n"), 403),
    ];
    let mut client = world.client_of(endpoint).await;
    for (run, request, status) in &runs {
        client.send(request).await;
        assert_answer(&client.answer().await, (*status, "http_request_denied"), run);
    }
    // (c): the key closes what is malformed.
    client.send(get("http://evil.example.test/", "evil.example.test")).await;
    assert_answer(&client.answer().await, MALFORMED, "c");
    assert!(closes(&mut client.stream).await);
    nothing_dialled(&world);
    // The SDK that it is there for is served.
    let mut client = world.client_of(endpoint).await;
    assert!(serves(&mut client, "/v1/x", &format!("127.0.0.1:{port}")).await);
    assert!(serves(&mut client, "/v1/x", &format!("localhost:{port}")).await);
    // The endpoint that the providers share, by path, keeps the same rules.
    let shared = world.proxy.address();
    let own = format!("POST /api/v1/x HTTP/1.1\r\nHost: {shared}\r\nContent-Length: 0\r\n");
    let runs = [
        (get("/api/v1/x", &format!("evil.example.test:{}", shared.port())), 421),
        (format!("{own}Origin: https://evil.example.test\r\nSec-Fetch-Site: cross-site\r\n\r\n"), 403),
        (format!("{own}Origin: http://127.0.0.1.evil.example.test\r\n\r\n"), 403),
    ];
    let mut client = world.client().await;
    for (request, status) in &runs {
        client.send(request).await;
        assert_answer(&client.answer().await, (*status, "http_request_denied"), request);
    }
    assert_eq!(world.api.requests().len(), 2);
    let mut expected = vec![(421, "bad_request"); 3];
    expected.extend([(403, "denied"); 4]);
    expected.extend([(400, "bad_request"), (200, ""), (200, "")]);
    expected.extend([(421, "bad_request"), (403, "denied"), (403, "denied")]);
    world.after(&expected).await;
}

#[tokio::test]
async fn tg_20_web_pages_at_the_admin_port() {
    let world = World::start(Policy::Inj).await;
    let port = world.proxy.admin().port();
    let mut client = world.client_of(world.proxy.admin()).await;
    for path in ["/config", "/status", "/"] {
        client.send(get(path, &format!("evil.example.test:{port}"))).await;
        let got = client.answer().await;
        assert_eq!((got.status, got.proxy_error()), (421, Some("http_request_error")), "d {path}: {got:?}");
    }
    assert!(serves(&mut client, "/status", &format!("127.0.0.1:{port}")).await);
    world.after(&[]).await;

    // (e) wants the token. Off loopback it is always wanted; a token in the policy makes it so on loopback too.
    let top = "admin: { address: \"127.0.0.1:0\", token: \"file:{dir}/secret\" }\n".to_owned();
    let world = World::with(Policy::Inj, Setup { top, ..Setup::default() }).await;
    let port = world.proxy.admin().port();
    let mut client = world.client_of(world.proxy.admin()).await;
    for lines in ["", "Authorization: Bearer wrong\r\n"] {
        client.send(format!("GET /status HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{lines}\r\n")).await;
        let got = client.answer().await;
        assert_eq!((got.status, got.proxy_error()), (401, Some("http_request_error")), "e: {got:?}");
    }
    let right =
        format!("GET /status HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {CANARY}\r\n\r\n");
    client.send(right).await;
    assert_eq!(client.answer().await.status, 200);
    world.after(&[]).await;
}

#[tokio::test]
async fn tg_21_loop() {
    let world = World::start(Policy::Open).await;
    let name = world.proxy.app.proxy.pseudonym.name.clone();
    let via = |via: &str| format!("GET {OPEN} HTTP/1.1\r\nHost: open.example.test\r\n{via}\r\n");
    let looping = [
        format!("Via: 1.1 {name}\r\n"),
        format!("Via: 1.1 first, 2 {name} (comment)\r\n"),
        format!("Via: 1.0 a\r\nVia: 1.1 {name}\r\n"),
    ];
    let mut client = world.client().await;
    for lines in &looping {
        client.send(via(lines)).await;
        assert_answer(&client.answer().await, (502, "proxy_loop_detected"), lines);
    }
    nothing_dialled(&world);
    // Another outgate is no loop, and each adds its own name.
    client.send(via("Via: 1.1 outgate-0123456789abcdef\r\n")).await;
    assert_eq!(client.answer().await.status, 200);
    let seen = world.open.only().all("via").join(", ");
    assert_eq!(seen, format!("1.1 outgate-0123456789abcdef, 1.1 {name}"));
    let other = World::start(Policy::Open).await;
    assert_ne!(other.proxy.app.proxy.pseudonym.name, name, "unique per process");
    world.after(&[(502, "loop_detected"), (502, "loop_detected"), (502, "loop_detected"), (200, "")]).await;
}
