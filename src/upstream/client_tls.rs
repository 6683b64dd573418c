//! The TLS configurations of one upstream: one that offers what the policy says, one for upgrades that offers HTTP/1.1
//! only. They are rebuilt when the client certificate changes, and so is the session cache: a session of one identity is
//! never resumed by another.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::tls::client_config::{Alpn, ClientCertificate, ClientTls, MinVersion};
use crate::tls::{TlsError, pem};

use super::identity::{ClientIdentity, IdentitySource, SecretMissing};
use super::settings::{HttpVersion, MinTls, TlsSettings};

/// Why TLS cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The authorities cannot be used, or no version of TLS is left.
    #[error("TLS cannot be configured")]
    Config(#[source] TlsError),
    /// Certificate or key cannot be read, or do not belong together.
    #[error("the client certificate cannot be used")]
    Identity(#[source] TlsError),
    /// The secret is not there.
    #[error("the client certificate is not there")]
    Missing(#[source] SecretMissing),
}

/// The configurations of one identity.
pub struct Configs {
    /// Version of the client certificate in them; 0 without one.
    pub version: u64,
    /// For ordinary connections.
    pub ordinary: Arc<ClientConfig>,
    /// For upgrades: ALPN offers HTTP/1.1 only.
    pub http1: Arc<ClientConfig>,
}

/// Builds and keeps the configurations.
pub struct ClientConfigs {
    roots: Arc<RootCertStore>,
    extra_ca: Option<Vec<CertificateDer<'static>>>,
    http: HttpVersion,
    min_version: MinVersion,
    identity: Option<Arc<dyn IdentitySource>>,
    current: Mutex<Option<Arc<Configs>>>,
}

impl ClientConfigs {
    /// Reads the authorities, and tries them. The client certificate is read with the first connection.
    pub fn new(
        roots: &Arc<RootCertStore>,
        tls: &TlsSettings,
        http: HttpVersion,
        identity: Option<Arc<dyn IdentitySource>>,
    ) -> Result<Self, TlsSetupError> {
        let extra_ca = tls.ca.as_deref().map(|text| pem::certificates(text, "tls.ca")).transpose();
        let configs = Self {
            roots: roots.clone(),
            extra_ca: extra_ca.map_err(TlsSetupError::Config)?,
            http,
            min_version: match tls.min_version {
                MinTls::Tls12 => MinVersion::Tls12,
                MinTls::Tls13 => MinVersion::Tls13,
            },
            identity,
            current: Mutex::new(None),
        };
        if configs.extra_ca.is_some() {
            configs.config(None, Alpn::Http1)?;
        }
        Ok(configs)
    }

    /// The version of the identity that new connections get; 0 without one.
    pub fn version(&self) -> u64 {
        self.identity.as_ref().map_or(0, |identity| identity.version())
    }

    /// The identity, where it is an overlap of several.
    pub fn overlap(&self) -> Option<&Arc<dyn IdentitySource>> {
        self.identity.as_ref().filter(|identity| identity.overlaps())
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
        let identity = self.identity.as_ref().map(|source| source.current()).transpose();
        let identity = identity.map_err(TlsSetupError::Missing)?;
        let ordinary = match self.http {
            HttpVersion::Auto => Alpn::Auto,
            HttpVersion::Http1 => Alpn::Http1,
            HttpVersion::Http2 => Alpn::Http2,
        };
        Ok(Configs {
            version: identity.as_ref().map_or(0, |identity| identity.version),
            ordinary: self.config(identity.as_ref(), ordinary)?,
            http1: self.config(identity.as_ref(), Alpn::Http1)?,
        })
    }

    fn config(
        &self,
        identity: Option<&ClientIdentity>,
        alpn: Alpn,
    ) -> Result<Arc<ClientConfig>, TlsSetupError> {
        let client_certificate = identity.map(certificate).transpose().map_err(TlsSetupError::Identity)?;
        let with_identity = client_certificate.is_some();
        let tls = ClientTls {
            roots: self.roots.clone(),
            extra_ca: self.extra_ca.clone(),
            client_certificate,
            min_version: self.min_version,
            alpn,
        };
        // The authorities were tried without an identity when the upstream was built.
        tls.config().map_err(if with_identity { TlsSetupError::Identity } else { TlsSetupError::Config })
    }
}

fn certificate(identity: &ClientIdentity) -> Result<ClientCertificate, TlsError> {
    Ok(ClientCertificate {
        chain: pem::certificates(&identity.certificate_pem, "client_certificate")?,
        key: pem::private_key(&identity.key_pem, "client_key")?,
    })
}
