//! CN-01 to CN-12: CONNECT, what may stand in it, where it may lead, and what comes after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::bench::{
    MALFORMED, Policy, REFUSED, Setup, Tap, World, assert_answer, closes, get, handshake, serves,
};
use crate::support::CANARY;
use crate::support::ca::trusting;
use crate::support::client::{Got, Raw};

/// A CONNECT with this Host.
fn connect(target: &str, host: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// A first flight for this name, as rustls would send it.
pub fn client_hello(name: &str, sni: bool) -> Vec<u8> {
    let (_, hello) = tls_client(name, "", sni);
    hello
}

fn tls_client(name: &str, pem: &str, sni: bool) -> (rustls::ClientConnection, Vec<u8>) {
    let mut config = (*trusting(pem, &["http/1.1"])).clone();
    config.enable_sni = sni;
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    (client, hello)
}

/// Each run gets this answer, and is closed.
async fn all_closed(world: &World, runs: &[(&str, String)], answer: (u16, &str)) {
    for (run, request) in runs {
        let (mut client, got) = world.sent(request).await;
        assert_answer(&got, answer, run);
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

#[tokio::test]
async fn cn_01_target_forms() {
    let world = World::start(Policy::Wide).await;
    let targets = [
        "open.example.test",
        "open.example.test:",
        "open.example.test:0",
        "open.example.test:65536",
        "http://open.example.test:443/",
        "/",
        "open.example.test:443/path",
        "*:443",
        "[::1 :443",
        ":443",
        "open.example.test:443?x",
        "open.example.test:+443",
        "open.example.test:https",
    ];
    let runs = targets.map(|target| (target, connect(target, "open.example.test")));
    all_closed(&world, &runs, MALFORMED).await;
    world.after(&[(400, "bad_request"); 13]).await;
}

#[tokio::test]
async fn cn_01_with_a_body_or_inside_a_tunnel() {
    let world = World::start(Policy::Inj).await;
    let runs =
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"].map(|rest| {
            let head = connect("api.example.test:443", "api.example.test:443");
            (rest, head.strip_suffix("\r\n").unwrap().to_owned() + rest)
        });
    all_closed(&world, &runs, MALFORMED).await;
    for target in ["api.example.test:443", "evil.example.test:443"] {
        let mut client = world.intercepted("api.example.test").await;
        client.send(connect(target, target)).await;
        assert_answer(&client.answer().await, MALFORMED, target);
        assert!(closes(&mut client.stream).await, "{target}");
    }
    nothing_dialled(&world);
    let bad = (400, "bad_request");
    world.after(&[bad, bad, (200, ""), bad, (200, ""), bad]).await;
}

#[tokio::test]
async fn cn_02_user_information() {
    let world = World::start(Policy::Wide).await;
    let runs = [
        ("a", connect("api.example.test@evil.example.test:443", "evil.example.test:443")),
        ("b", connect("user:p4ssw0rd@open.example.test:443", "open.example.test:443")),
    ];
    all_closed(&world, &runs, MALFORMED).await;
    world.after_with(&[(400, "bad_request"); 2], &["p4ssw0rd"]).await;
}

#[tokio::test]
async fn cn_03_ports_outside_the_list() {
    let world = World::start(Policy::Wide).await;
    let targets = [25, 22, 6379, 5432, 11211].map(|port| format!("open.example.test:{port}"));
    let runs = targets.each_ref().map(|target| (target.as_str(), connect(target, target)));
    all_closed(&world, &runs, REFUSED).await;
    world.after(&[(403, "denied"); 5]).await;
}

/// A provider for these hosts of outgate's own, with loopback exempted on purpose: only the guard stands before them.
async fn reaching_itself(hosts: &[String]) -> (World, String) {
    let top = "addresses: { allow_private: [127.0.0.0/8, \"::1/128\"] }\n".to_owned();
    let may_ask = vec!["localhost", "self.example.test"];
    let world = World::with(Policy::Wide, Setup { top, may_ask, ..Setup::default() }).await;
    world.proxy.names.set("localhost", &["127.0.0.1"]);
    world.proxy.names.set("self.example.test", &["127.0.0.1"]);
    let ports = |text: &str| {
        text.replace("PROXY", &world.proxy.address().port().to_string())
            .replace("ADMIN", &world.proxy.admin().port().to_string())
    };
    let hosts: Vec<String> = hosts.iter().map(|host| format!("\"{}\"", ports(host))).collect();
    let policy = format!(
        "{}  itself:\n    hosts: [{}]\n    upstream: {{ scheme: http }}\n",
        world.policy,
        hosts.join(", ")
    );
    (world, policy)
}

const ITSELF: (u16, &str) = (403, "destination_ip_prohibited");

#[tokio::test]
async fn cn_04_the_proxy_itself() {
    let hosts = ["127.0.0.1:PROXY", "[::1]:PROXY", "localhost:PROXY", "self.example.test:PROXY"];
    let (world, policy) = reaching_itself(&hosts.map(str::to_owned)).await;
    world.proxy.reload(&policy).await;
    let port = world.proxy.address().port();
    let connects = ["127.0.0.1", "localhost", "self.example.test"]
        .map(|host| (host, connect(&format!("{host}:{port}"), "x")));
    all_closed(&world, &connects, ITSELF).await;
    // An absolute request for outgate by a loopback name is one for its local endpoint, and `x` is not that.
    for host in ["localhost", "[::1]", "127.0.0.1"] {
        for (named, status) in [("x".to_owned(), 421), (format!("{host}:{port}"), 403)] {
            let (_client, got) = world.sent(get(&format!("http://{host}:{port}/"), &named)).await;
            assert_answer(&got, (status, "http_request_denied"), host);
        }
    }
    // By any other name it is a host like others, until it is to be dialled.
    let (mut client, got) = world.sent(get(&format!("http://self.example.test:{port}/"), "x")).await;
    assert_answer(&got, ITSELF, "by another name");
    assert!(serves(&mut client, "http://alive.example.test/", "alive.example.test").await);
    let mut expected = vec![(403, "address_denied"); 3];
    expected.extend([(421, "bad_request"), (403, "denied")].repeat(3));
    expected.push((403, "address_denied"));
    world.after(&expected).await;
}

#[tokio::test]
async fn cn_05_the_admin_port() {
    let hosts = ["127.0.0.1:ADMIN", "localhost:ADMIN"];
    let (world, policy) = reaching_itself(&hosts.map(str::to_owned)).await;
    world.proxy.reload(&policy).await;
    let port = world.proxy.admin().port();
    let (mut client, got) = world.sent(get(&format!("http://127.0.0.1:{port}/metrics"), "127.0.0.1")).await;
    assert_answer(&got, ITSELF, "a");
    assert!(serves(&mut client, "http://alive.example.test/", "alive.example.test").await);
    all_closed(&world, &[("b", connect(&format!("localhost:{port}"), "x"))], ITSELF).await;
    // A number form is no host at all.
    all_closed(&world, &[("c", connect(&format!("127.1:{port}"), "x"))], MALFORMED).await;
    world.after(&[(403, "address_denied"), (403, "address_denied"), (400, "bad_request")]).await;
}

#[tokio::test]
async fn cn_06_refused_with_bytes_behind_it() {
    let world = World::start(Policy::One).await;
    let request = connect("evil.example.test:443", "evil.example.test:443")
        + &get("http://open.example.test/smuggled", "open.example.test");
    all_closed(&world, &[("a", request)], REFUSED).await;
    world.after(&[(403, "denied")]).await;
}

/// CONNECT and the first flight in one write, then the rest of the handshake, one request and its answer.
async fn at_once(world: &World, target: &str, host: &str, pem: &str) -> Vec<u8> {
    let (mut tls, hello) = tls_client(host, pem, true);
    let mut client = world.client().await;
    client.send([connect(target, target).as_bytes(), &hello].concat()).await;
    // Byte by byte: what follows the head is TLS already.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    use std::io::{Read, Write};
    tls.writer().write_all(get("/v1/x", host).as_bytes()).unwrap();
    let (mut plain, mut piece) = (Vec::new(), [0; 8192]);
    while super::bench::find(&plain, b"\r\n\r\n").is_none() {
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out).unwrap();
        }
        client.stream.write_all(&out).await.unwrap();
        let read = client.stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the tunnel goes on");
        let mut bytes = &piece[..read];
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes).unwrap();
            tls.process_new_packets().unwrap();
        }
        let _ = tls.reader().read_to_end(&mut plain);
    }
    plain
}

#[tokio::test]
async fn cn_07_client_hello_in_the_same_packet() {
    // Passed through: the origin's own certificate.
    let world = World::start(Policy::Wide).await;
    let answer = at_once(&world, "open.example.test:443", "open.example.test", &world.origin_ca).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    assert_eq!(world.open_tls.heard().len(), 1, "the early bytes were used once");
    assert_eq!(world.open_tls.only().line(), "GET /v1/x HTTP/1.1");
    world.after(&[(200, "")]).await;

    // Intercepted: outgate's.
    let world = World::start(Policy::Inj).await;
    let answer = at_once(&world, "api.example.test:443", "api.example.test", &world.proxy.ca()).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    assert_eq!(world.api.only().line(), "GET /v1/x HTTP/1.1");
    world.after(&[(200, ""), (200, "")]).await;
}

#[tokio::test]
async fn cn_07_early_bytes_of_a_tunnel_that_cannot_be_made() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let providers =
        format!("  gone:\n    hosts: [gone.example.test]\n    upstream: {{ connect_to: \"{address}\" }}\n");
    let world = World::with(Policy::Wide, Setup { providers, ..Setup::default() }).await;
    let hello = client_hello("gone.example.test", true);
    let mut client = world.client().await;
    client.send([connect("gone.example.test:443", "x").as_bytes(), &hello].concat()).await;
    assert_eq!(client.head().await.status, 200);
    assert!(closes(&mut client.stream).await);
    nothing_dialled(&world);
    world.after(&[(200, "upstream_connect")]).await;
}

#[tokio::test]
async fn cn_08_plain_http_where_tls_is_expected() {
    for policy in [Policy::Inj, Policy::Wide] {
        let world = World::start(policy).await;
        let mut stream = world.tunnel("open.example.test:443").await;
        stream.write_all(get("/v1/x", "open.example.test").as_bytes()).await.unwrap();
        assert!(closes(&mut stream).await);
        assert_eq!(stream.answers(), 1, "only that of the CONNECT");
        nothing_dialled(&world);
        world.after(&[(200, "DPE")]).await;
    }
    let world = World::start(Policy::Inj).await;
    let mut stream = world.tunnel("api.example.test:443").await;
    stream.write_all(get("/v1/x", "api.example.test").as_bytes()).await.unwrap();
    assert!(closes(&mut stream).await);
    nothing_dialled(&world);
    world.after(&[(200, "DPE")]).await;
}

#[tokio::test]
async fn cn_09_tunnel_whose_tls_name_differs() {
    let world = World::start(Policy::One).await;
    let hello = client_hello("evil.example.test", true);
    let half = hello.len() / 2;
    // Whole, and in two records: it is read and judged before anything is dialled.
    let fragmented = [
        &[0x16, 3, 1],
        &u16::try_from(half - 5).unwrap().to_be_bytes()[..],
        &hello[5..half],
        &[0x16, 3, 1],
        &u16::try_from(hello.len() - half).unwrap().to_be_bytes()[..],
        &hello[half..],
    ]
    .concat();
    for bytes in [&hello, &fragmented] {
        let mut stream = world.tunnel("open.example.test:443").await;
        stream.write_all(bytes).await.unwrap();
        assert!(closes(&mut stream).await);
        nothing_dialled(&world);
    }
    // Without a name it is passed on, byte for byte.
    let stream = world.tunnel("open.example.test:443").await;
    let stream = handshake(stream, "open.example.test", &world.origin_ca, false).await.unwrap();
    let mut client = Raw::over(stream);
    assert!(serves(&mut client, "/x", "open.example.test").await);
    assert_eq!(world.open_tls.heard()[0].sni, None);
    drop(client);
    world.after(&[(200, "NR"), (200, "NR"), (200, "")]).await;
}

#[tokio::test]
async fn cn_10_zone_identifiers() {
    let world = World::start(Policy::Wide).await;
    let runs = [
        ("a", connect("[fe80::1%25lo]:443", "x")),
        ("b", get("http://[fe80::1%25lo]/", "x")),
        ("c", connect("[::1%lo]:443", "x")),
    ];
    all_closed(&world, &runs, MALFORMED).await;
    world.after(&[(400, "bad_request"); 3]).await;
}

#[tokio::test]
async fn cn_11_silence_after_connect() {
    const MANY: usize = 500;
    let top = "runtime: { downstream: { tls_handshake_timeout: 1s } }\n".to_owned();
    let world = World::with(Policy::Inj, Setup { top, ..Setup::default() }).await;
    let mut silent = Vec::with_capacity(MANY);
    for _ in 0..MANY {
        silent.push(world.tunnel("api.example.test:443").await);
    }
    let opened = Instant::now();
    for stream in &mut silent {
        assert!(closes(stream).await);
    }
    assert!(opened.elapsed() < Duration::from_secs(3), "{:?}", opened.elapsed());
    nothing_dialled(&world);
    world.after(&vec![(200, "DT"); MANY]).await;
    let usual = World::start(Policy::One).await;
    assert_eq!(usual.proxy.app.proxy.bounds.handshake, Duration::from_secs(10), "where the policy is silent");
}

/// A listener with a token beside the one without.
async fn with_token() -> World {
    let top = "listeners:
  - { address: \"127.0.0.1:0\" }
  - { address: \"127.0.0.1:0\", auth: { token: \"file:{dir}/secret\" } }
";
    World::with(Policy::Open, Setup { top: top.to_owned(), ..Setup::default() }).await
}

async fn with_credentials(client: &mut Raw<Tap>, line: &str) -> Got {
    let head = "GET http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n";
    client.send(format!("{head}{line}\r\n")).await;
    client.answer().await
}

#[tokio::test]
async fn cn_12_proxy_credentials() {
    use base64::Engine;
    let basic = |pair: String| {
        format!("Proxy-Authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(pair))
    };
    let world = with_token().await;
    let listener = world.proxy.app.listeners[1];
    let mut client = world.client_of(listener).await;
    let refused =
        [String::new(), basic("user:wr0ngt0ken".to_owned()), format!("Authorization: Bearer {CANARY}\r\n")];
    for line in &refused {
        let got = with_credentials(&mut client, line).await;
        assert_answer(&got, (407, "http_request_error"), line);
        assert!(got.headers.contains_key("proxy-authenticate"), "{got:?}");
    }
    assert!(world.open.heard().is_empty());
    let right = [format!("Proxy-Authorization: Bearer {CANARY}\r\n"), basic(format!("user:{CANARY}"))];
    for line in &right {
        assert_eq!(
            with_credentials(&mut client, line).await.status,
            200,
            "the connection stays, and is served"
        );
    }
    assert!(world.open.requests().iter().all(|seen| seen.all("proxy-authorization").is_empty()));
    let mut client = world.client_of(listener).await;
    client.send(connect("open.example.test:443", "x")).await;
    let got = client.answer().await;
    assert_answer(&got, (407, "http_request_error"), "CONNECT");
    assert!(got.headers.contains_key("proxy-authenticate"));
    assert!(closes(&mut client.stream).await, "a refused CONNECT closes");
    let mut expected = vec![(407, "proxy_auth_required"); 3];
    expected.extend([(200, ""), (200, ""), (407, "proxy_auth_required")]);
    world.after_with(&expected, &["wr0ngt0ken"]).await;
}

#[tokio::test]
async fn cn_12_guesses_are_slowed() {
    let world = with_token().await;
    let mut client = world.client_of(world.proxy.app.listeners[1]).await;
    let started = Instant::now();
    let mut sent = 0;
    // At a hundred a second all of these would be answered in a fifth of one.
    while sent < 20 && started.elapsed() < Duration::from_secs(2) {
        let got = with_credentials(&mut client, "Proxy-Authorization: Bearer wr0ngt0ken\r\n").await;
        assert_eq!(got.status, 407);
        sent += 1;
    }
    assert!(started.elapsed() >= Duration::from_secs(1), "{sent} guesses in {:?}", started.elapsed());
    assert!(sent < 20);
    world.after(&vec![(407, "proxy_auth_required"); sent]).await;
}
