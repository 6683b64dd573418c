//! The TLS configurations of one upstream: one that offers what the policy says, one for upgrades that offers HTTP/1.1
//! only. They are rebuilt when the client certificate changes, and so is the session cache: a session of one identity is
//! never resumed by another.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::identity::{ClientIdentity, IdentitySource, SecretMissing};
use super::settings::{HttpVersion, MinTls, TlsSettings};

/// Sessions kept for resumption, per upstream and identity.
const SESSIONS: usize = 256;

/// Why TLS cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The authorities cannot be read.
    #[error("the certificate authorities (`tls.ca`) cannot be read: {0}")]
    Ca(String),
    /// Certificate or key cannot be read, or do not belong together.
    #[error("the client certificate cannot be used: {0}")]
    Identity(String),
    /// The secret is not there.
    #[error("the client certificate is not there: {0}")]
    Missing(#[from] SecretMissing),
    /// The versions do not fit the provider of cryptography.
    #[error("TLS cannot be configured: {0}")]
    Config(rustls::Error),
}

/// The configurations of one identity.
pub struct Configs {
    version: u64,
    /// For ordinary connections.
    pub ordinary: Arc<ClientConfig>,
    /// For upgrades: ALPN offers HTTP/1.1 only.
    pub http1: Arc<ClientConfig>,
}

/// Builds and keeps the configurations.
pub struct ClientConfigs {
    roots: Arc<RootCertStore>,
    http: HttpVersion,
    min_version: MinTls,
    identity: Option<Arc<dyn IdentitySource>>,
    current: Mutex<Option<Arc<Configs>>>,
}

impl Configs {
    /// Version of the client certificate in them; 0 without one.
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl ClientConfigs {
    /// Reads the authorities. The certificate is read with the first connection.
    pub fn new(
        roots: &Arc<RootCertStore>,
        tls: &TlsSettings,
        http: HttpVersion,
        identity: Option<Arc<dyn IdentitySource>>,
    ) -> Result<Self, TlsSetupError> {
        let roots = match &tls.ca {
            Some(pem) => Arc::new(read_roots(pem)?),
            None => roots.clone(),
        };
        Ok(Self { roots, http, min_version: tls.min_version, identity, current: Mutex::new(None) })
    }

    /// The version of the identity that new connections get; 0 without one.
    pub fn version(&self) -> u64 {
        self.identity.as_ref().map_or(0, |identity| identity.version())
    }

    /// The configurations for the current identity.
    pub fn current(&self) -> Result<Arc<Configs>, TlsSetupError> {
        let version = self.version();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(configs) if configs.version == version => Ok(configs.clone()),
            Some(_) | None => Ok(current.insert(Arc::new(self.build()?)).clone()),
        }
    }

    fn build(&self) -> Result<Configs, TlsSetupError> {
        let identity = self.identity.as_ref().map(|identity| identity.current()).transpose()?;
        let version = identity.as_ref().map_or(0, |identity| identity.version);
        let ordinary: &[&[u8]] = match self.http {
            HttpVersion::Auto => &[b"h2", b"http/1.1"],
            HttpVersion::Http1 => &[b"http/1.1"],
            HttpVersion::Http2 => &[b"h2"],
        };
        Ok(Configs {
            version,
            ordinary: Arc::new(self.config(identity.as_ref(), ordinary)?),
            http1: Arc::new(self.config(identity.as_ref(), &[b"http/1.1"])?),
        })
    }

    fn config(
        &self,
        identity: Option<&ClientIdentity>,
        alpn: &[&[u8]],
    ) -> Result<ClientConfig, TlsSetupError> {
        let versions: &[&rustls::SupportedProtocolVersion] = match self.min_version {
            MinTls::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            MinTls::Tls13 => &[&rustls::version::TLS13],
        };
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .map_err(TlsSetupError::Config)?
                .with_root_certificates(self.roots.clone());
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = read_identity(identity)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| TlsSetupError::Identity(error.to_string()))?
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS);
        Ok(config)
    }
}

fn read_roots(pem: &[u8]) -> Result<RootCertStore, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| TlsSetupError::Ca(error.to_string()))?;
        roots.add(certificate).map_err(|error| TlsSetupError::Ca(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsSetupError::Ca("no certificate in it".into()));
    }
    Ok(roots)
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_identity(identity: &ClientIdentity) -> Result<ChainAndKey, TlsSetupError> {
    let chain = CertificateDer::pem_slice_iter(&identity.certificate_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsSetupError::Identity(error.to_string()))?;
    // The PEM reader's error texts name sections and never quote their content.
    let key = PrivateKeyDer::from_pem_slice(&identity.key_pem)
        .map_err(|error| TlsSetupError::Identity(error.to_string()))?;
    Ok((chain, key))
}
