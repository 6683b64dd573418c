//! TLS with the provider that fails: in which way is told by `Proxy-Status`, nothing of the credential was sent, and the client's
//! connection stays.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::after::{Bench, Setup, assert_no_canary, assert_refused};
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
