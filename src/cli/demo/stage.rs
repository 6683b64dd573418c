//! Everything the demo needs, made anew each time in a temporary directory: an authority, a secret, a policy, the provider,
//! and outgate itself, started as `outgate run` starts it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::DemoError;
use super::client::Client;
use super::moods::SHOP_HOST;
use super::provider::{API_HOST, BLIND_HOST, Provider};
use crate::app::{App, Overrides};
use crate::pipeline::reload;
use crate::telemetry::LogOutput;
use crate::tls::{Alpn, ClientTls, MinVersion, crypto_provider, pem};
use crate::upstream::resolver::Resolver;

/// A host of the policy that resolves to a private address.
pub const PRIVATE_HOST: &str = "private.demo.example";
/// Where it resolves to.
const PRIVATE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));
/// A host of the policy whose secret is not there.
pub const MISSING_HOST: &str = "missing.demo.example";
/// A host that the policy does not name.
pub const UNKNOWN_HOST: &str = "elsewhere.example";

/// How long the breaker of the second act stays open: long enough to be met open on a slow machine.
pub const OPEN_FOR: Duration = Duration::from_secs(2);
/// How many requests in a minute, and at once, the limit of the second act lets through.
pub const ALLOWED: usize = 3;

/// Everything, running.
pub struct Stage {
    /// outgate.
    pub app: App,
    /// What is behind it.
    pub provider: Provider,
    /// Who is before it.
    pub client: Client,
    /// The real key, that the app must never see.
    pub key: String,
    /// The policy, as written, without what the second act needs.
    pub policy: String,
    /// The rest of it.
    pub second_policy: String,
    /// Where all files are. The last field, so that it is removed last.
    pub directory: TemporaryDirectory,
}

impl Stage {
    /// Makes everything and starts it.
    pub async fn set() -> Result<Self, DemoError> {
        let directory = TemporaryDirectory::new().map_err(DemoError::io("temporary directory"))?;
        let key = random_key();
        directory.write("secret", &key)?;
        let identity = Identity::new()?;
        directory.write("provider-ca.pem", &identity.authority)?;
        let provider = Provider::start(identity.tls, key.clone()).await?;
        let policy = policy(provider.address);
        let second_policy = second_policy(provider.address);
        directory.write("proxy.yaml", &format!("{policy}{second_policy}"))?;
        let app = start(directory.path("proxy.yaml"), directory.path("access.log")).await?;
        let client = Client {
            outgate: *app.listeners.first().ok_or(DemoError::NoListener)?,
            bundle: trusting(&directory.path("bundle.pem"))?,
            provider: trusting(&directory.path("provider-ca.pem"))?,
        };
        Ok(Self { app, provider, client, key, policy, second_policy, directory })
    }

    /// What the access log holds by now.
    pub async fn access_log(&self) -> Result<String, DemoError> {
        tokio::fs::read_to_string(self.directory.path("access.log"))
            .await
            .map_err(DemoError::io("access log"))
    }
}

async fn start(config: PathBuf, log: PathBuf) -> Result<App, DemoError> {
    let policy = reload::read(&config).map_err(|rejection| DemoError::Policy(rejection.render(false)))?;
    let resolver = Resolver::scripted(Arc::new(|name| match name {
        PRIVATE_HOST => Ok(vec![PRIVATE_ADDRESS]),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "the demo has no such name")),
    }));
    let log = Some(LogOutput::File(log));
    let overrides = Overrides { resolver: Some(resolver), log, ..Overrides::default() };
    Ok(App::start(config, policy, overrides).await?)
}

/// Short enough to be read at the start of the demo. Relative paths are the policy's own directory's.
fn policy(provider: SocketAddr) -> String {
    format!(
        r#"version: 1
listeners: [{{ address: "127.0.0.1:0" }}]
admin: {{ address: "127.0.0.1:0" }}
interception: {{ ca: {{ directory: ca }}, bundle: bundle.pem }}
runtime: {{ drain: 2s }}
providers:
  demo:
    hosts: [{API_HOST}]
    upstream: {{ connect_to: "{provider}", tls: {{ ca: provider-ca.pem }} }}
    credential: {{ bearer: "file:secret" }}
  blind:
    hosts: [{BLIND_HOST}]
    upstream: {{ connect_to: "{provider}" }}
    intercept: never
  missing:
    hosts: [{MISSING_HOST}]
    upstream: {{ connect_to: "{provider}", tls: {{ ca: provider-ca.pem }} }}
    credential: {{ bearer: "file:not-there" }}
  private:
    hosts: [{PRIVATE_HOST}]    # resolves to {PRIVATE_ADDRESS}
    credential: {{ bearer: "file:secret" }}
"#
    )
}

/// One more provider, for the second act: each route has what its scene shows, so that none disturbs another.
fn second_policy(provider: SocketAddr) -> String {
    format!(
        r#"  shop:    # one more of the providers
    hosts: [{SHOP_HOST}]
    upstream: {{ connect_to: "{provider}", tls: {{ ca: provider-ca.pem }} }}
    credential: {{ bearer: "file:secret" }}
    retry: {{ attempts: 3, hint: {{ header: X-Should-Retry }} }}
    routes:
      - match: {{ path: /payments }}
        idempotency: {{ header: Idempotency-Key, add: true }}
      - match: {{ path: /stock }}
        retry: off
        breaker: {{ failures: 3, open_for: {}s, half_open: {{ probes: 1, successes: 1 }} }}
      - match: {{ path: /search }}
        limits: [{{ name: search, rate: {ALLOWED}/m, burst: {ALLOWED}, on_excess: reject }}]
      - match: {{ path: /rates }}
        cache: {{ max_size: 1MiB }}
"#,
        OPEN_FOR.as_secs()
    )
}

/// Looks like a key of a provider, and is good for nothing.
fn random_key() -> String {
    format!("demo_live_{:032x}", fastrand::u128(..))
}

/// A client's TLS that believes the certificates of a file.
fn trusting(file: &Path) -> Result<Arc<ClientConfig>, DemoError> {
    let text = std::fs::read(file).map_err(DemoError::io("certificates"))?;
    let tls = ClientTls {
        roots: Arc::new(RootCertStore::empty()),
        extra_ca: Some(pem::certificates(&text, "the bundle")?),
        client_certificate: None,
        min_version: MinVersion::Tls12,
        alpn: Alpn::Auto,
    };
    Ok(tls.config()?)
}

/// The provider's certificate, and the authority that signed it.
struct Identity {
    /// PEM.
    authority: String,
    tls: ServerConfig,
}

impl Identity {
    fn new() -> Result<Self, DemoError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "demo provider CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let hosts = [API_HOST, BLIND_HOST, MISSING_HOST, SHOP_HOST].map(str::to_owned);
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, API_HOST);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &authority)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls = ServerConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        Ok(Self { authority: authority.pem(), tls })
    }
}

/// A directory that only its owner may enter, and that goes with the value.
pub struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("outgate-demo-{:016x}", fastrand::u64(..)));
        // Fails where the name is taken, so nobody can have prepared it.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    fn write(&self, name: &str, text: &str) -> Result<(), DemoError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(DemoError::io("file of the demo"))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
