//! A CA of the user's own, with the real program: renewed while it runs, and apps that were given the old one go on.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::program::Program;
use super::support::ca::{TestCa, trusting};
use super::support::client::{Raw, local_request};
use super::support::origin::HttpOrigin;
use super::world::{HOST, directory, policy, until};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate for this key, from a day ago on, for so long from now.
fn certificate(key: &KeyPair, life: Duration) -> String {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "the platform's CA for apps");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + (now - DAY);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + (now + life);
    params.self_signed(key).unwrap().pem()
}

/// A new version of the pair, as a mounted Secret changes: the certificate, its key, or both are other files at once.
fn bring(dir: &Path, pem: &str, key: &KeyPair) {
    for (name, text) in [("own.key", key.serialize_pem()), ("own.pem", pem.to_owned())] {
        let draft = dir.join("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(&draft, dir.join(name)).unwrap();
    }
}

struct Running {
    program: Program,
    dir: std::sync::Arc<tempfile::TempDir>,
    _origin: HttpOrigin,
}

impl Running {
    async fn with(pem: &str, key: &KeyPair) -> Self {
        Self::beside(pem, key, None).await
    }

    /// The same, with this certificate among the roots of the system.
    async fn beside(pem: &str, key: &KeyPair, root: Option<&str>) -> Self {
        let ca = TestCa::new();
        let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
        let dir = directory(&ca);
        bring(dir.path(), pem, key);
        let top = "interception: { ca: { certificate: \"{dir}/own.pem\", key: \"{dir}/own.key\" }, bundle: \"{dir}/bundle.pem\", truststore: \"{dir}/trust.p12\" }\n";
        let roots = dir.path().join("roots.pem").to_string_lossy().into_owned();
        std::fs::write(&roots, root.unwrap_or_default()).unwrap();
        let environment = root.map(|_| ("SSL_CERT_FILE", roots.as_str()));
        let program =
            Program::start(dir.path(), &policy(origin.address, "", top), "info", environment.as_slice());
        Self { program, dir, _origin: origin }
    }

    /// A new connection of an app that trusts this certificate and no other.
    async fn app(&self, pem: &str) -> std::io::Result<Raw<TlsStream<TcpStream>>> {
        let mut raw = Raw::connect(self.program.listener).await;
        raw.send(format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n")).await;
        assert_eq!(raw.head().await.status, 200);
        let name = rustls::pki_types::ServerName::try_from(HOST).unwrap();
        Ok(Raw::over(TlsConnector::from(trusting(pem, &["http/1.1"])).connect(name, raw.stream).await?))
    }

    async fn status(&self) -> Value {
        let text = local_request(self.program.admin, "GET", "/status", "", "").await.text();
        serde_json::from_str::<Value>(&text).unwrap()["interception"].clone()
    }

    /// Waits until the status says so.
    async fn status_is(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status().await;
            if holds(&status) {
                return status;
            }
            assert!(std::time::Instant::now() < deadline, "{what}: {status:#} {}", self.program.stderr());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn bundle(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("bundle.pem")).unwrap().replace("\r\n", "\n")
    }

    fn gives(&self, pem: &str) -> bool {
        let body = pem.lines().nth(1).unwrap();
        self.bundle().contains(body)
    }
}

async fn served(app: &mut Raw<TlsStream<TcpStream>>) -> u16 {
    app.send(format!("GET /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    app.answer().await.status
}

#[tokio::test]
async fn a_new_certificate_for_the_same_key_signs_at_once() {
    let key = KeyPair::generate().unwrap();
    let (first, second) = (certificate(&key, 30 * DAY), certificate(&key, 90 * DAY));
    let running = Running::with(&first, &key).await;
    let before = running.status().await;
    let seconds = |status: &Value| status["ca_ends_in_seconds"].as_u64().unwrap();
    let days = |status: &Value| seconds(status).div_ceil(24 * 3600);
    assert_eq!((days(&before), &before["ca_next"]), (30, &Value::Null));
    let mut open = running.app(&first).await.unwrap();
    assert_eq!(served(&mut open).await, 200);

    bring(running.dir.path(), &second, &key);
    let after = running.status_is("it signs", |status| status["ca_sha256"] != before["ca_sha256"]).await;
    assert_eq!((days(&after), &after["ca_next"]), (90, &Value::Null));
    let metrics = local_request(running.program.admin, "GET", "/metrics", "", "").await.text();
    let ends = metrics.lines().find_map(|line| line.strip_prefix("outgate_ca_not_after_timestamp_seconds "));
    let ends = Duration::from_secs_f64(ends.unwrap().parse().unwrap());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert!(ends > now + 89 * DAY, "{metrics}");
    // Whoever read the old certificate at its start goes on, and so does what is open.
    assert_eq!(served(&mut open).await, 200);
    for pem in [&first, &second] {
        assert_eq!(served(&mut running.app(pem).await.unwrap()).await, 200);
        assert!(running.gives(pem));
    }
}

#[tokio::test]
async fn a_new_key_waits_beside_the_old_one_for_its_end() {
    let (old, new) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (first, second) = (certificate(&old, 30 * DAY), certificate(&new, 90 * DAY));
    let running = Running::with(&first, &old).await;
    let before = running.status().await;
    let truststore = std::fs::read(running.dir.path().join("trust.p12")).unwrap();

    // What cannot be used is told, and changes nothing.
    bring(running.dir.path(), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &new);
    until("it is told", || running.program.stderr().contains("the one in use goes on")).await;
    assert_eq!(running.status().await["ca_sha256"], before["ca_sha256"]);

    bring(running.dir.path(), &second, &new);
    let after = running.status_is("it waits", |status| !status["ca_next"].is_null()).await;
    assert_eq!(after["ca_sha256"], before["ca_sha256"], "the old one signs on");
    assert_eq!(after["ca_next"]["ends_in_seconds"].as_u64().unwrap().div_ceil(24 * 3600), 90);
    // Apps that were started before trust the old one alone, those that start now both.
    assert!(running.gives(&first) && running.gives(&second));
    assert_ne!(std::fs::read(running.dir.path().join("trust.p12")).unwrap(), truststore);
    assert_eq!(served(&mut running.app(&first).await.unwrap()).await, 200);
    assert_eq!(served(&mut running.app(&format!("{first}{second}")).await.unwrap()).await, 200);
    assert!(running.app(&second).await.is_err());

    // Taken back: as if nothing had been.
    bring(running.dir.path(), &first, &old);
    let back = running.status_is("it is gone", |status| status["ca_next"].is_null()).await;
    assert_eq!(back["ca_sha256"], before["ca_sha256"]);
    assert!(running.gives(&first) && !running.gives(&second));
}

#[tokio::test]
async fn a_new_key_signs_when_the_old_one_is_about_to_end() {
    let (old, new) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (first, second) = (certificate(&old, DAY / 48), certificate(&new, 90 * DAY));
    let running = Running::with(&first, &old).await;
    let before = running.status().await;
    let mut open = running.app(&first).await.unwrap();
    assert_eq!(served(&mut open).await, 200);
    bring(running.dir.path(), &second, &new);
    running.status_is("it signs", |status| status["ca_sha256"] != before["ca_sha256"]).await;
    assert_eq!(served(&mut open).await, 200, "what is open stays");
    assert_eq!(served(&mut running.app(&second).await.unwrap()).await, 200);
    assert!(running.app(&first).await.is_err());
    assert!(running.gives(&second));
}

/// outgate would take a leaf of its own for a provider's.
#[tokio::test]
async fn a_new_ca_that_providers_are_verified_with_wants_a_restart() {
    let (old, new) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (first, second) = (certificate(&old, 30 * DAY), certificate(&new, 90 * DAY));
    let running = Running::beside(&first, &old, Some(&second)).await;
    let before = running.status().await;
    bring(running.dir.path(), &second, &new);
    until("it is told", || running.program.stderr().contains("restart outgate")).await;
    assert_eq!(running.status().await["ca_sha256"], before["ca_sha256"]);
    assert_eq!(running.status().await["ca_next"], Value::Null);
    assert_eq!(served(&mut running.app(&first).await.unwrap()).await, 200);
}
