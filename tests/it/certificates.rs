//! Client certificates in an overlap: `certificate: [new, old]`. The new one is shown, and the old one where the provider does not take
//! it: in the handshake, behind it, or in an answer.

use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::support::ca::TestCa;
use super::support::client::{Got, admin, local_request};
use super::support::origin::{HttpOrigin, RawOrigin, Script, Stream, read_request, text};
use super::support::proxy::Proxy;
use super::world::{HOST, answering, directory, policy};

const OVERLAP: &str = "    credential: { mtls: { certificate: [\"file:{dir}/new.pem\", \"file:{dir}/old.pem\"], key: [\"file:{dir}/new.key\", \"file:{dir}/old.key\"] } }\n";

fn write(dir: &Path, name: &str, (certificate, key): (String, String)) {
    std::fs::write(dir.join(format!("{name}.pem")), certificate).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key).unwrap();
}

fn ok() -> Script {
    answering(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()))
}

async fn post(proxy: &Proxy) -> Got {
    local_request(proxy.address(), "POST", "/api/x", "", "a body").await
}

/// How often the old one was needed.
fn old_needed(proxy: &Proxy) -> Option<u64> {
    let metrics = proxy.metrics();
    let own =
        |line: &&str| line.starts_with("outgate_credential_overlap_total") && line.contains("old_needed");
    metrics.lines().find(own)?.rsplit(' ').next()?.parse().ok()
}

/// Who has signed the new and the old certificate, and the provider's own.
struct Authorities {
    own: TestCa,
    new: TestCa,
    old: TestCa,
}

impl Authorities {
    fn new() -> Self {
        Self { own: TestCa::new(), new: TestCa::new(), old: TestCa::new() }
    }

    async fn proxy(&self, origin: &RawOrigin, keys: &str) -> (Proxy, Arc<tempfile::TempDir>) {
        let dir = directory(&self.own);
        write(dir.path(), "new", self.new.client("new"));
        write(dir.path(), "old", self.old.client("old"));
        (Proxy::start_in(dir.clone(), &policy(origin.address, &format!("{OVERLAP}{keys}"), "")).await, dir)
    }
}

#[tokio::test]
async fn the_old_certificate_is_shown_where_the_new_one_is_refused_in_the_handshake_or_behind_it() {
    let versions: [(&[&rustls::SupportedProtocolVersion], &str); 2] =
        [(&[&rustls::version::TLS12], "http/1.1"), (&[&rustls::version::TLS13], "http/1.1")];
    for (version, alpn) in versions {
        let authorities = Authorities::new();
        let tls = authorities.own.server_of_version(&[HOST], &[alpn], &authorities.old.pem, version);
        let origin = RawOrigin::start(Some(tls), ok()).await;
        let (proxy, _dir) = authorities.proxy(&origin, "").await;
        // A POST too: a request that the provider did not take may be sent again.
        let got = post(&proxy).await;
        assert_eq!(got.status, 200, "{version:?}: {}", got.text());
        assert_eq!(origin.text().matches("POST /x").count(), 1, "it was taken once");
        // The next one shows the old one at once, if its connection is not back in the pool yet.
        let before = origin.connections();
        assert_eq!(post(&proxy).await.status, 200);
        assert!(origin.connections() <= before + 1, "the new one was not tried again");
        assert_eq!(old_needed(&proxy), Some(2));
    }
}

/// Over HTTP/2 what ended the connection is not told, so what may be repeated is.
#[tokio::test]
async fn over_http2_the_old_certificate_is_shown_after_a_reset() {
    let authorities = Authorities::new();
    let tls =
        authorities.own.server_of_version(&[HOST], &["h2"], &authorities.old.pem, rustls::DEFAULT_VERSIONS);
    let origin = HttpOrigin::with(Some(tls), |_| text(200, "ok")).await;
    let dir = directory(&authorities.own);
    write(dir.path(), "new", authorities.new.client("new"));
    write(dir.path(), "old", authorities.old.client("old"));
    let proxy = Proxy::start_in(dir, &policy(origin.address, OVERLAP, "")).await;
    for _ in 0..3 {
        let got = local_request(proxy.address(), "GET", "/api/x", "", "").await;
        assert_eq!(got.status, 200, "{}", got.text());
    }
    assert_eq!(origin.requests().len(), 3);
}

#[tokio::test]
async fn the_new_certificate_is_shown_where_it_is_taken() {
    let authorities = Authorities::new();
    let tls = authorities.own.server_for_clients(&[HOST], &["http/1.1"], &authorities.new.pem);
    let origin = RawOrigin::start(Some(tls), ok()).await;
    let (proxy, _dir) = authorities.proxy(&origin, "").await;
    for _ in 0..3 {
        assert_eq!(post(&proxy).await.status, 200);
    }
    assert!(origin.connections() <= 3, "none was refused");
    assert_eq!(old_needed(&proxy).unwrap_or(0), 0);
}

#[tokio::test]
async fn a_provider_that_takes_neither_is_shown_each_once() {
    let authorities = Authorities::new();
    let neither = TestCa::new();
    let tls =
        authorities.own.server_of_version(&[HOST], &["http/1.1"], &neither.pem, &[&rustls::version::TLS12]);
    let origin = RawOrigin::start(Some(tls), ok()).await;
    let (proxy, _dir) = authorities.proxy(&origin, "    retry: off\n").await;
    for requests in 1..=2 {
        let got = post(&proxy).await;
        assert_eq!((got.status, got.header("outgate-error")), (502, Some("upstream_tls")));
        assert_eq!(got.header("outgate-sent"), Some("no"));
        assert_eq!(origin.connections(), 2 * requests);
    }
    assert!(origin.text().is_empty());
}

#[tokio::test]
async fn a_401_is_healed_with_the_old_certificate_and_a_second_one_goes_to_the_app() {
    for (refuses, status) in [(1, 200), (2, 401)] {
        let authorities = Authorities::new();
        let both = format!("{}{}", authorities.new.pem, authorities.old.pem);
        let tls = authorities.own.server_of_version(&[HOST], &["http/1.1"], &both, rustls::DEFAULT_VERSIONS);
        // Who shows which is told by the connection: the second one shows the other.
        let script: Script = Arc::new(move |mut stream: Box<dyn Stream>, connection| {
            Box::pin(async move {
                while read_request(&mut stream).await.is_some() {
                    let status = if connection < refuses { "401 Unauthorized" } else { "200 OK" };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            })
        });
        let origin = RawOrigin::start(Some(tls), script).await;
        let (proxy, _dir) = authorities.proxy(&origin, "").await;
        assert_eq!(post(&proxy).await.status, status);
        assert_eq!(origin.connections(), 2, "each certificate has a connection of its own");
        assert_eq!(origin.text().matches("POST /x").count(), 2);
    }
}

#[tokio::test]
async fn a_new_certificate_that_cannot_be_had_or_used_leaves_the_old_one_in_use() {
    let authorities = Authorities::new();
    let tls = authorities.own.server_for_clients(&[HOST], &["http/1.1"], &authorities.old.pem);
    let origin = RawOrigin::start(Some(tls), ok()).await;
    for (certificate, key) in [
        (None, None),
        (Some("new.pem"), None),
        (Some("new.pem"), Some("old.key")),
        (Some("old.key"), Some("old.pem")),
    ] {
        let dir = directory(&authorities.own);
        write(dir.path(), "new", authorities.new.client("new"));
        write(dir.path(), "old", authorities.old.client("old"));
        for (name, file) in [("one.pem", certificate), ("one.key", key)] {
            if let Some(file) = file {
                std::fs::copy(dir.path().join(file), dir.path().join(name)).unwrap();
            }
        }
        let keys = OVERLAP.replace("new.", "one.");
        let proxy = Proxy::start_in(dir.clone(), &policy(origin.address, &keys, "")).await;
        assert_eq!(post(&proxy).await.status, 200, "{certificate:?} {key:?}");
        let status = admin(&proxy, "GET", "/status").await.text();
        assert!(status.contains("one.pem") && status.contains("old.pem"), "{status}");
    }
}
