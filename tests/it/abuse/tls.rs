//! TLS that fails. With the provider: in which way is told by `Proxy-Status`, nothing of the credential was sent, and the client's
//! connection stays. With the client, inside a tunnel: the tunnel ends, and nothing is dialled.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::after::{Bench, Setup, assert_no_canary, assert_refused};
use super::bench::{Policy, World, closes, find};
use super::connect::client_hello;
use crate::support::CANARY;
use crate::support::ca::TestCa;
use crate::support::client::Raw;
use crate::support::origin::{HttpOrigin, RawOrigin};

const HOST: &str = "api.example.test";
const GET_API: &str = "GET http://api.example.test/v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n";
const GET_OPEN: &str = "GET http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n\r\n";

/// The provider at this address is refused with this code and error, and everything else goes on.
async fn fails(
    what: &str,
    ca: &TestCa,
    address: std::net::SocketAddr,
    api: &str,
    (code, error): (&str, &str),
) {
    let origin = HttpOrigin { address, seen: Arc::default() };
    let bench = Bench::with(Setup { api, ..Setup::default() }, ca, origin).await;
    let mut raw = Raw::connect(bench.proxy.address()).await;
    raw.send(GET_API).await;
    let got = raw.answer().await;
    assert_refused(what, &got, 502, error);
    assert_eq!((got.header("outgate-error"), got.header("outgate-sent")), (Some(code), Some("no")), "{what}");
    raw.send(GET_OPEN).await;
    assert_eq!(raw.answer().await.status, 200, "{what}: the connection stays");
    let records = bench.after(2, &[&format!("{got:?}")]).await;
    let flag = if code == "upstream_tls" { "US" } else { "UC" };
    assert_eq!(
        (&records[0]["outgate.flag"], &records[0]["error.type"]),
        (&flag.into(), &code.into()),
        "{what}"
    );
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted() {
    let ca = TestCa::new();
    for (what, server) in [
        ("of another host", ca.server(&["other.example.test"], &["http/1.1"])),
        ("of the parent's name", ca.server(&["example.test"], &["http/1.1"])),
        ("of a pattern two labels up", ca.server(&["*.test"], &["http/1.1"])),
        ("of another authority", TestCa::new().server(&[HOST], &["http/1.1"])),
        ("ended", ca.server_of_the_past(&[HOST])),
        ("without a name", ca.server(&[], &["http/1.1"])),
    ] {
        let origin =
            RawOrigin::answering(Some(server), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        fails(what, &ca, origin.address, "", ("upstream_tls", "tls_certificate_error")).await;
        assert!(origin.text().is_empty(), "{what}: {}", origin.text());
    }
}

#[tokio::test]
async fn a_provider_that_refuses_the_handshake() {
    let ca = TestCa::new();
    // It speaks no protocol that is offered, and says so.
    let origin = RawOrigin::answering(Some(ca.server(&[HOST], &["smtp"])), b"").await;
    fails("no protocol in common", &ca, origin.address, "", ("upstream_tls", "tls_alert_received")).await;
}

/// A server that sends these bytes to every connection, reads what comes, and ends it.
async fn saying(bytes: &'static [u8]) -> (std::net::SocketAddr, Arc<std::sync::Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::<std::sync::Mutex<Vec<u8>>>::default();
    let all = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0_u8; 4096];
            let read = stream.read(&mut some).await.unwrap_or(0);
            all.lock().unwrap().extend_from_slice(&some[..read]);
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, heard)
}

#[tokio::test]
async fn what_is_no_tls() {
    let ca = TestCa::new();
    for bytes in [
        &b"SSH-2.0-OpenSSH_9\r\n"[..],
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        // A record of another version, one that is too long, and application data before anything else.
        b"\x16\x09\x09\x00\x02\x02\x00",
        b"\x16\x03\x03\xff\xff",
        b"\x17\x03\x03\x00\x05hello",
        // SSL 3.0 in a ServerHello.
        b"\x16\x03\x00\x00\x2a\x02\x00\x00\x26\x03\x00................................\x00\x00\x2f\x00",
        b"\x16\x03\x03\x00\x40",
        b"",
    ] {
        let what = String::from_utf8_lossy(bytes).into_owned();
        let (address, heard) = saying(bytes).await;
        // An end in the middle of the handshake is the end of a connection, and not a mistake in what was said.
        let cut = bytes.is_empty() || bytes.len() == 5 && bytes[0] == 0x16 && bytes[4] == 0x40;
        let told = match cut {
            true => ("upstream_reset", "connection_terminated"),
            false => ("upstream_tls", "tls_protocol_error"),
        };
        fails(&what, &ca, address, "    retry: off\n", told).await;
        let heard = heard.lock().unwrap().clone();
        assert!(heard.starts_with(&[0x16, 3, 1]), "{what}: TLS and nothing else was said");
        assert_no_canary(&what, &String::from_utf8_lossy(&heard));
        assert!(!String::from_utf8_lossy(&heard).contains(CANARY));
    }
}

/// A first flight for api.example.test in which the name is another one of the same length.
fn hello_naming(name: &[u8]) -> Vec<u8> {
    let mut hello = client_hello(HOST, true);
    let at = find(&hello, HOST.as_bytes()).unwrap();
    hello[at..at + HOST.len()].copy_from_slice(name);
    hello
}

/// Names are compared in their one normal form, whole, and as bytes that a host can have.
#[tokio::test]
async fn names_in_a_client_hello() {
    for (name, served) in [
        (&b"api.example.test"[..], true),
        (b"API.Example.TEST", true),
        (b"apiXexample.test", false),
        (b"api.example.tes\0", false),
        (b"api.example.tes.", false),
        (b"*.i.example.test", false),
        (b"api%2eexample.te", false),
        (b"open.example.tes", false),
        (b"api.example.t\xc3\xa9t", false),
        (b"127.000.000.0001", false),
    ] {
        let what = String::from_utf8_lossy(name).into_owned();
        let world = World::start(Policy::Inj).await;
        let before = world.proxy.app.proxy.leaves.stats().minted;
        let mut stream = world.tunnel(&format!("{HOST}:443")).await;
        stream.write_all(&hello_naming(name)).await.unwrap();
        if served {
            assert_eq!(stream.read_u8().await.unwrap(), 22, "{what}: a ServerHello");
        } else {
            assert!(closes(&mut stream).await, "{what}");
            let seen = stream.seen();
            let after = &seen[find(&seen, b"\r\n\r\n").unwrap() + 4..];
            assert!(after.is_empty() || after[0] == 21, "{what}: an alert, or nothing: {after:x?}");
            assert!(world.proxy.app.proxy.leaves.stats().minted <= before + 1, "{what}");
        }
        assert!(world.api.heard().is_empty(), "{what}: nothing is dialled before there is a request");
        drop(stream);
        assert_eq!(world.proxy.records(1).await.len(), 1, "{what}");
    }
}

/// What is no ClientHello, or too large a one, ends the tunnel, intercepted or blind, and nothing is dialled for it.
#[tokio::test]
async fn what_is_no_client_hello() {
    let message = |length: usize| {
        let mut hello = vec![1, 0, u8::try_from(length >> 8).unwrap(), u8::try_from(length & 0xff).unwrap()];
        hello.resize(4 + length, 0x61);
        let mut records = Vec::new();
        for piece in hello.chunks(16 * 1024) {
            records.extend([22, 3, 1]);
            records.extend(u16::try_from(piece.len()).unwrap().to_be_bytes());
            records.extend_from_slice(piece);
        }
        records
    };
    let runs: Vec<(&str, Vec<u8>)> = vec![
        ("a ServerHello", [&[22, 3, 3, 0, 6, 2, 0, 0, 2, 3, 3][..], &[0; 32]].concat()),
        ("an alert", vec![21, 3, 3, 0, 2, 2, 40]),
        ("application data", [&[23, 3, 3, 0, 16][..], &[0; 16]].concat()),
        ("SSL 2", [&[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10][..], &[0; 37]].concat()),
        ("a record that is too long", [&[22, 3, 1, 0xff, 0xff][..], &[1; 1024]].concat()),
        ("a record of nothing", [22, 3, 1, 0, 0].repeat(200)),
        ("a message that is too long", message(60_000)),
        ("a message of garbage", message(300)),
        ("lines", b"EHLO example.test\r\n".to_vec()),
    ];
    for policy in [Policy::Inj, Policy::Wide] {
        let world = World::start(policy).await;
        for (run, bytes) in &runs {
            let mut stream = world.tunnel("open.example.test:443").await;
            // It may be closed before all of it is written.
            let _ = stream.write_all(bytes).await;
            let _ = stream.flush().await;
            assert!(closes(&mut stream).await, "{run} closes");
            assert_eq!(stream.answers(), 1, "{run}");
        }
        assert!(
            world.open_tls.heard().is_empty()
                && world.api.heard().is_empty()
                && world.open.heard().is_empty()
        );
        world.after(&vec![(200, "DPE"); runs.len()]).await;
    }
}
