//! SS-01 to SS-18: whatever name or number an address hides behind, it is judged before it is dialled, and the address that
//! was judged is the one that is dialled.
//!
//! Each host is tried in four ways: GET and CONNECT, on the usual port and on the port of a sentinel that listens on every
//! address of this host.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outgate::message::target::Host;
use tokio::net::TcpListener;

use super::after::{Bench, Sentinel, Setup, assert_covered, assert_malformed, assert_refused, good, holds};
use crate::support::CANARY;
use crate::support::ca::TestCa;
use crate::support::client::{Raw, intercepted, over_http1, request, tunnel};
use crate::support::origin::{Answer, HttpOrigin, text};
use crate::support::proxy::Proxy;

const NOT_YET: &[(&str, &str)] = &[];

const PROHIBITED: &str = "destination_ip_prohibited";

/// What is expected of a host.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// 403, the connection stays unless it is a CONNECT.
    Prohibited,
    /// 400, the connection is closed.
    Malformed,
}

/// Policy P-WIDE: a provider that lists the hosts, on port 80 and on the sentinel's.
async fn wide(hosts: &[&str], addresses: &str) -> Bench {
    let bench = Bench::start(Setup::default()).await;
    let mut normal: Vec<Host> = hosts.iter().filter_map(|host| Host::parse(host).ok()).collect();
    let mut seen = Vec::new();
    normal.retain(|host| {
        let is_new = !seen.contains(host);
        seen.push(host.clone());
        is_new
    });
    let port = bench.evil.port;
    let list: Vec<String> =
        normal.iter().flat_map(|host| [format!("\"{host}\""), format!("\"{host}:{port}\"")]).collect();
    let more = if list.is_empty() {
        String::new()
    } else {
        format!("  wide:\n    hosts: [{}]\n    upstream: {{ scheme: http }}\n", list.join(", "))
    };
    let outcome = bench
        .reload(|policy| format!("unmatched: tunnel\naddresses: {{ {addresses} }}\n{policy}{more}"))
        .await;
    assert!(matches!(outcome, outgate::pipeline::reload::ReloadOutcome::Applied(_)), "{outcome:?}");
    bench
}

/// Tries each host in all ways, all hosts at once.
async fn each(bench: &Bench, hosts: &[(&str, Fate)]) {
    let tried = hosts.iter().map(|(host, fate)| async move {
        let mut answers = Vec::new();
        for port in [String::new(), format!(":{}", bench.evil.port)] {
            let mut raw = Raw::connect(bench.proxy.address()).await;
            raw.send(format!("GET http://{host}{port}/ HTTP/1.1\r\nHost: {host}{port}\r\n\r\n")).await;
            let got = raw.answer().await;
            judge(&format!("GET {host}{port}"), &got, *fate);
            match fate {
                Fate::Prohibited => assert!(raw.stays().await, "GET {host} keeps its connection"),
                Fate::Malformed => assert!(raw.ends().await, "GET {host} closes"),
            }
            answers.push(format!("{got:?}"));
        }
        for port in [443, bench.evil.port] {
            let mut raw = Raw::connect(bench.proxy.address()).await;
            raw.send(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")).await;
            let got = raw.answer().await;
            judge(&format!("CONNECT {host}:{port}"), &got, *fate);
            assert!(raw.ends().await, "a refused CONNECT closes");
            answers.push(format!("{got:?}"));
        }
        answers
    });
    let answers = futures_util::future::join_all(tried).await.concat();
    let texts: Vec<&str> = answers.iter().map(String::as_str).collect();
    for record in bench.after(answers.len(), &texts).await {
        let error = record["error.type"].as_str().unwrap();
        assert!(["address_denied", "bad_request"].contains(&error), "{record}");
    }
    for (host, fate) in hosts {
        if *fate == Fate::Malformed {
            assert!(!bench.proxy.names.questions().iter().any(|name| name == host), "{host} was asked for");
        }
    }
}

fn judge(what: &str, got: &crate::support::client::Got, fate: Fate) {
    match fate {
        Fate::Prohibited => {
            assert_refused(what, got, 403, PROHIBITED);
            assert_eq!(got.header("outgate-error"), Some("address_denied"), "{what}");
        }
        Fate::Malformed => assert_malformed(what, got),
    }
}

async fn all_prohibited(hosts: &[&str], addresses: &str) {
    let bench = wide(hosts, addresses).await;
    let table: Vec<_> = hosts.iter().map(|host| (*host, Fate::Prohibited)).collect();
    each(&bench, &table).await;
}

async fn all_malformed(hosts: &[&str]) {
    let bench = wide(hosts, "").await;
    let table: Vec<_> = hosts.iter().map(|host| (*host, Fate::Malformed)).collect();
    each(&bench, &table).await;
}

#[tokio::test]
async fn ss_01_loopback_by_literal_and_by_name() {
    let hosts = [
        "127.0.0.1",
        "127.255.255.254",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "ip6-localhost",
        "127.0.0.1.",
    ];
    let bench = wide(&hosts, "").await;
    bench.proxy.names.set("localhost", &["127.0.0.1", "::1"]);
    bench.proxy.names.set("ip6-localhost", &["::1"]);
    let table: Vec<_> = hosts.iter().map(|host| (*host, Fate::Prohibited)).collect();
    each(&bench, &table).await;
}

#[tokio::test]
async fn ss_02_old_number_forms_of_ipv4() {
    all_malformed(&[
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "127.0.1",
        "00000177.0.0.1",
        "0X7F.1",
        "127.0.0.1.0x0",
        "1.2.3.0377",
    ])
    .await;
}

#[tokio::test]
async fn ss_03_unspecified_address() {
    all_malformed(&["0"]).await;
    all_prohibited(&["0.0.0.0", "[::]", "[::0]", "[0:0:0:0:0:0:0:0]", "[::ffff:0.0.0.0]"], "").await;
}

#[tokio::test]
async fn ss_04_ipv6_loopback_and_mapped_forms() {
    all_prohibited(
        &[
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:7f00:0001]",
            "[::FFFF:10.0.0.5]",
        ],
        "",
    )
    .await;
}

#[tokio::test]
async fn ss_05_other_ipv6_forms_that_carry_an_ipv4_address() {
    all_prohibited(
        &[
            "[64:ff9b::7f00:1]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::7f00:1]",
            "[2002:7f00:1::]",
            "[2002:a9fe:a9fe::1]",
            "[::127.0.0.1]",
            "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
        ],
        "",
    )
    .await;
}

#[tokio::test]
async fn ss_06_metadata_address_in_every_spelling() {
    let spellings = [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "169.254.170.2",
        "169.254.170.23",
    ];
    // Also with the whole range, and everything, exempted: metadata needs an exemption of its own.
    for addresses in [
        "",
        "allow_private: [\"169.254.0.0/16\"]",
        "allow_private: [\"0.0.0.0/0\", \"::/0\", \"169.254.169.254\"]",
    ] {
        all_prohibited(&spellings, addresses).await;
    }
    all_malformed(&["2852039166", "0xA9FEA9FE", "0251.0376.0251.0376", "169.254.43518"]).await;
}

#[tokio::test]
async fn ss_07_metadata_by_name() {
    let hosts = [
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata.example.test",
        "instance-data.example.test",
    ];
    let bench = wide(&hosts, "allow_private: [\"169.254.0.0/16\"]").await;
    for name in ["metadata.google.internal", "metadata.example.test", "instance-data.example.test"] {
        bench.proxy.names.set(name, &["169.254.169.254"]);
    }
    let table: Vec<_> = hosts.iter().map(|host| (*host, Fate::Prohibited)).collect();
    each(&bench, &table).await;
}

#[tokio::test]
async fn ss_08_metadata_over_ipv6() {
    let hosts = ["[fd00:ec2::254]", "[fd20:ce::254]", "[fd00:0ec2:0000::0254]"];
    all_prohibited(&hosts, "").await;
    all_prohibited(&hosts, "allow_private: [\"fd00::/8\"]").await;
}

#[tokio::test]
async fn ss_09_provider_addresses_outside_the_private_ranges() {
    let hosts = ["168.63.129.16", "192.0.0.192", "100.100.100.200", "[::ffff:168.63.129.16]"];
    all_prohibited(&hosts, "").await;
    all_prohibited(&hosts, "allow_private: [\"0.0.0.0/0\"]").await;
}

#[tokio::test]
async fn ss_10_private_and_shared_ranges() {
    all_prohibited(
        &[
            "10.0.0.5",
            "172.16.0.5",
            "172.31.255.254",
            "192.168.0.5",
            "100.64.0.5",
            "100.127.255.254",
            "[fc00::5]",
            "[fd12:3456::5]",
            "[fe80::5]",
            "169.254.1.1",
            "[fec0::1]",
        ],
        "",
    )
    .await;
    // Just outside the guard has no say. The 200 comes before anything is dialled, and nothing is sent, so nothing is.
    let bench = wide(&[], "").await;
    for host in ["172.32.0.1", "172.15.255.255", "100.63.255.254", "100.128.0.1", "9.255.255.255", "11.0.0.1"]
    {
        drop(tunnel(&bench.proxy, &format!("{host}:443")).await);
    }
}

#[tokio::test]
async fn ss_11_reserved_test_multicast_and_broadcast_ranges() {
    all_prohibited(
        &[
            "0.1.2.3",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "198.18.0.5",
            "192.88.99.1",
            "240.0.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "239.1.1.1",
            "[ff02::1]",
            "[2001:db8::1]",
            "[100::1]",
            "[3fff::1]",
        ],
        "",
    )
    .await;
}

#[tokio::test]
async fn ss_12_names_that_carry_a_private_address() {
    let names = [
        ("10.0.0.5.nip.example.test", "10.0.0.5"),
        ("169-254-169-254.sslip.example.test", "169.254.169.254"),
        ("7f000001.hex.example.test", "127.0.0.1"),
        ("customer.127.0.0.1.nip.example.test", "127.0.0.1"),
    ];
    let hosts: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let bench = wide(&hosts, "").await;
    for (name, address) in names {
        bench.proxy.names.set(name, &[address]);
    }
    let table: Vec<_> = hosts.iter().map(|host| (*host, Fate::Prohibited)).collect();
    each(&bench, &table).await;
    // The decision is taken on the address: the same names with a public one pass.
    for (name, _) in names {
        bench.proxy.names.set(name, &["93.184.215.15"]);
        drop(tunnel(&bench.proxy, &format!("{name}:443")).await);
    }
}

#[tokio::test]
async fn ss_13_cname_chain_that_ends_in_a_private_address() {
    // The resolver follows the chain; what arrives is its end.
    let bench = wide(&["chain.example.test"], "").await;
    bench.proxy.names.set("chain.example.test", &["10.0.0.5"]);
    each(&bench, &[("chain.example.test", Fate::Prohibited)]).await;
}

/// Listeners on the same port of several loopback addresses.
async fn same_port(addresses: &[&str]) -> (u16, Vec<TcpListener>) {
    for _ in 0..100 {
        let first = TcpListener::bind((addresses[0], 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut all = vec![first];
        for address in &addresses[1..] {
            if let Ok(listener) = TcpListener::bind((*address, port)).await {
                all.push(listener);
            }
        }
        if all.len() == addresses.len() {
            return (port, all);
        }
    }
    panic!("no port is free on all of {addresses:?}");
}

/// An answer after which the provider's connection ends, so that every request dials anew.
fn closing() -> Answer {
    let mut answer = text(200, "once");
    answer.headers_mut().insert("connection", http::HeaderValue::from_static("close"));
    answer
}

/// 127.0.0.2 is exempt, 127.0.0.3 is not.
fn exempting(port: u16, name: &str) -> String {
    format!(
        "addresses: {{ allow_private: [\"127.0.0.2/32:{port}\"] }}
providers:
  mixed:
    hosts: [\"{name}:{port}\"]
    upstream: {{ scheme: http }}
"
    )
}

#[tokio::test]
async fn ss_14_mixed_answer_set() {
    let (port, mut listeners) = same_port(&["127.0.0.2", "127.0.0.3"]).await;
    let forbidden = Sentinel::on(listeners.pop().unwrap());
    let origin = HttpOrigin::on(listeners.pop().unwrap(), None, |_| closing());
    let proxy = Proxy::start(&exempting(port, "mixed.example.test")).await;
    let get = format!("GET http://mixed.example.test:{port}/ HTTP/1.1\r\nHost: mixed.example.test\r\n\r\n");
    for order in [["127.0.0.2", "127.0.0.3"], ["127.0.0.3", "127.0.0.2"]] {
        proxy.names.set("mixed.example.test", &order);
        for _ in 0..100 {
            let mut raw = Raw::connect(proxy.address()).await;
            raw.send(&get).await;
            assert_eq!(raw.answer().await.status, 200);
        }
    }
    assert_eq!(origin.requests().len(), 200);
    assert_eq!(forbidden.connections(), 0);
}

#[tokio::test]
async fn ss_14_mixed_answer_set_whose_allowed_address_refuses() {
    let (port, mut listeners) = same_port(&["127.0.0.2", "127.0.0.3"]).await;
    let forbidden = Sentinel::on(listeners.pop().unwrap());
    drop(listeners);
    let proxy = Proxy::start(&exempting(port, "mixed.example.test")).await;
    for order in [["127.0.0.2", "127.0.0.3"], ["127.0.0.3", "127.0.0.2"]] {
        proxy.names.set("mixed.example.test", &order);
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!(
            "GET http://mixed.example.test:{port}/ HTTP/1.1\r\nHost: mixed.example.test\r\n\r\n"
        ))
        .await;
        assert_refused("refused by the allowed one", &raw.answer().await, 502, "connection_refused");
        assert!(raw.stays().await);
    }
    assert_eq!(forbidden.connections(), 0);
}

/// A resolver whose answers take turns: good, bad, good, bad ...
async fn rebinding(port: u16, opaque: bool) -> (Proxy, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let count = asked.clone();
    let more = if opaque { "    opaque: true\n" } else { "" };
    let policy = format!("{}{more}", exempting(port, "rebind.example.test"));
    let proxy = Proxy::start_resolving(Arc::new(tempfile::tempdir().unwrap()), &policy, move |_| {
        let good = count.fetch_add(1, Ordering::SeqCst) % 2 == 0;
        Ok(vec![if good { "127.0.0.2" } else { "127.0.0.1" }.parse::<IpAddr>().unwrap()])
    })
    .await;
    (proxy, asked)
}

#[tokio::test]
async fn ss_15_dns_rebinding_between_check_and_dial() {
    let (port, mut listeners) = same_port(&["127.0.0.2", "127.0.0.1"]).await;
    let forbidden = Sentinel::on(listeners.pop().unwrap());
    let origin = HttpOrigin::on(listeners.pop().unwrap(), None, |_| closing());
    let (proxy, asked) = rebinding(port, false).await;
    let host = format!("rebind.example.test:{port}");
    for turn in 0..200 {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let got = raw.answer().await;
        if turn % 2 == 0 {
            assert_eq!(got.status, 200, "request {turn}: {got:?}");
        } else {
            assert_refused(&format!("request {turn}"), &got, 403, PROHIBITED);
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 200, "one question per dial: what was judged is dialled");
    assert_eq!(origin.requests().len(), 100);
    assert_eq!(forbidden.connections(), 0);
}

#[tokio::test]
async fn ss_15_dns_rebinding_between_connect_and_the_tunnel() {
    let (port, mut listeners) = same_port(&["127.0.0.2", "127.0.0.1"]).await;
    let forbidden = Sentinel::on(listeners.pop().unwrap());
    let allowed = Sentinel::on(listeners.pop().unwrap());
    let (proxy, asked) = rebinding(port, true).await;
    let mut raw = tunnel(&proxy, &format!("rebind.example.test:{port}")).await;
    let _ = tokio::io::AsyncWriteExt::write_all(&mut raw.stream, b"first bytes").await;
    assert!(raw.ends().await, "the second answer is refused, and the tunnel ends");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!((forbidden.connections(), allowed.connections()), (0, 0));
    let record = &proxy.records(1).await[0];
    assert_eq!(record["error.type"], "address_denied");
}

/// The credential's provider is found by name; 127.0.0.2 alone is exempt.
async fn by_name(port: u16, ca: &TestCa, open: &HttpOrigin) -> Proxy {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("origin.pem"), &ca.pem).unwrap();
    std::fs::write(dir.path().join("secret"), CANARY).unwrap();
    let policy = format!(
        "addresses: {{ allow_private: [\"127.0.0.2/32:{port}\"] }}
providers:
  api:
    hosts: [api.example.test, \"api.example.test:{port}\"]
    upstream: {{ tls: {{ ca: \"{{dir}}/origin.pem\" }} }}
    credential: {{ bearer: \"file:{{dir}}/secret\" }}
  open:
    hosts: [open.example.test]
    upstream: {{ scheme: http, connect_to: \"{}\" }}
",
        open.address
    );
    Proxy::start_in(dir, &policy).await
}

#[tokio::test]
async fn ss_16_allowed_name_that_starts_to_resolve_to_a_private_address() {
    let (port, mut listeners) = same_port(&["127.0.0.2", "127.0.0.3"]).await;
    let forbidden = Sentinel::on(listeners.pop().unwrap());
    let ca = TestCa::new();
    let tls = ca.server(&["api.example.test"], &["http/1.1"]);
    let origin = HttpOrigin::on(listeners.pop().unwrap(), Some(tls), |_| closing());
    let open = HttpOrigin::start(None).await;
    let proxy = by_name(port, &ca, &open).await;

    // Poisoned from the start.
    proxy.names.set("api.example.test", &["10.0.0.5"]);
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("CONNECT api.example.test:443 HTTP/1.1\r\nHost: api.example.test:443\r\n\r\n").await;
    let refused = raw.answer().await;
    assert_refused("CONNECT", &refused, 403, PROHIBITED);
    assert!(raw.ends().await);
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET http://api.example.test/v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n").await;
    assert_refused("GET", &raw.answer().await, 403, PROHIBITED);
    assert!(raw.stays().await);

    // Poisoned while the tunnel is open.
    proxy.names.set("api.example.test", &["127.0.0.2"]);
    let connect = format!("CONNECT api.example.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(&connect).await;
    assert_eq!(raw.head().await.status, 200);
    let name = rustls::pki_types::ServerName::try_from("api.example.test").unwrap();
    let config = crate::support::ca::trusting(&proxy.ca(), &["http/1.1"]);
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, raw.stream).await.unwrap();
    let mut inside = Raw::over(stream);
    let get = format!("GET /v1/x HTTP/1.1\r\nHost: api.example.test:{port}\r\n\r\n");
    inside.send(&get).await;
    assert_eq!(inside.answer().await.status, 200);
    proxy.names.set("api.example.test", &["127.0.0.3"]);
    inside.send(&get).await;
    let inner = inside.answer().await;
    assert_refused("inside", &inner, 403, PROHIBITED);
    assert!(inside.stays().await);

    assert_eq!(origin.requests().len(), 1);
    assert_eq!(good(&proxy).await.status, 200);
    proxy.records(6).await;
    holds(&proxy, &[&forbidden], &[&format!("{refused:?}{inner:?}")]).await;
}

#[tokio::test]
async fn ss_17_redirect_to_a_forbidden_address() {
    let bench = Bench::start(Setup {
        providers: "  moving:
    hosts: [moving.example.test]
    upstream: { scheme: http, connect_to: \"127.0.0.1:1\" }
  meta:
    hosts: [169.254.169.254]
    upstream: { scheme: http }
",
        ..Setup::default()
    })
    .await;
    let moving = HttpOrigin::with(None, |_| {
        let mut answer = text(302, "");
        let location = http::HeaderValue::from_static("http://169.254.169.254/latest/meta-data/");
        answer.headers_mut().insert("location", location);
        answer
    })
    .await;
    bench.reload(|policy| policy.replace("127.0.0.1:1\"", &format!("{}\"", moving.address))).await;
    let mut raw = Raw::connect(bench.proxy.address()).await;
    raw.send("GET http://moving.example.test/ HTTP/1.1\r\nHost: moving.example.test\r\n\r\n").await;
    let got = raw.answer().await;
    assert_eq!(got.status, 302);
    let location = got.header("location").unwrap().to_owned();
    assert_eq!(location, "http://169.254.169.254/latest/meta-data/");
    raw.send(format!("GET {location} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")).await;
    let got = raw.answer().await;
    assert_refused("the redirect", &got, 403, PROHIBITED);
    assert!(raw.stays().await);
    bench.after(2, &[&format!("{got:?}")]).await;
    assert_eq!(moving.requests().len(), 1);
}

#[tokio::test]
async fn ss_18_names_dns_cannot_carry() {
    let label = format!("{}.example.test", "a".repeat(64));
    let long = format!("{}.", "a".repeat(63)).repeat(4);
    all_malformed(&[
        "a..b.example.test",
        &label,
        &long,
        "-",
        ".",
        "",
        "a_b..",
        "%00.example.test",
        "-a.example.test",
        "a-.example.test",
    ])
    .await;
}

#[tokio::test]
async fn the_exempt_tunnel_of_these_cases_does_inject() {
    // What the cases above rely on: without an attack the very same way works.
    let (port, mut listeners) = same_port(&["127.0.0.2"]).await;
    let ca = TestCa::new();
    let tls = ca.server(&["api.example.test"], &["http/1.1"]);
    let origin = HttpOrigin::on(listeners.pop().unwrap(), Some(tls), |_| closing());
    let open = HttpOrigin::start(None).await;
    let proxy = by_name(port, &ca, &open).await;
    proxy.names.set("api.example.test", &["127.0.0.2"]);
    let mut raw = Raw::connect(proxy.address()).await;
    let host = format!("api.example.test:{port}");
    raw.send(format!("GET https://{host}/v1/x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert_eq!(raw.answer().await.status, 200);
    assert_eq!(origin.only().header("authorization"), Some(format!("Bearer {CANARY}").as_str()));
    let bench = Bench::start(Setup::default()).await;
    let stream = intercepted(&bench.proxy, "api.example.test", &["http/1.1"]).await;
    assert_eq!(over_http1(stream, request("GET", "/v1/x", Some("api.example.test"), "")).await.status, 200);
}

#[test]
fn every_case_of_this_group_is_tested_or_listed() {
    assert_covered("SS", 18, include_str!("addresses.rs"), NOT_YET);
}
