//! The TLS configuration of one upstream profile, and what a failed handshake with an upstream was about.
use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use zeroize::Zeroizing;

use super::error::TlsError;
use super::provider::crypto_provider;

/// Sessions that one profile keeps for resumption.
const SESSIONS: usize = 256;

/// What a client config is made of. It has no `Debug`: it may hold a key.
pub struct ClientTls {
    /// The roots that servers are judged by.
    pub roots: Arc<RootCertStore>,
    /// A CA of the provider's own (`upstream.tls.ca`): takes the place of `roots`, and does not add to them.
    pub extra_ca: Option<Vec<CertificateDer<'static>>>,
    /// What outgate shows to servers that ask for a certificate.
    pub client_certificate: Option<ClientCertificate>,
    /// The oldest version that is spoken.
    pub min_version: MinVersion,
    /// The protocols that are offered.
    pub alpn: Alpn,
}

/// A client certificate with its key.
pub struct ClientCertificate {
    /// The certificate, then what leads to a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key; wiped when dropped.
    pub key: Zeroizing<PrivateKeyDer<'static>>,
}

/// The oldest TLS version that is spoken with an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// The protocols that are offered to an upstream (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Alpn {
    /// HTTP/2, else HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// What a failed handshake with an upstream was about; the error types of RFC 9209, section 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsFault {
    /// `tls_certificate_error`: we did not accept the server's certificate.
    Certificate,
    /// `tls_alert_received`: the server did not accept us.
    Alert,
    /// `tls_protocol_error`: the two could not agree, or one broke the rules.
    Protocol,
    /// No TLS error: the connection broke.
    Io,
}

impl ClientTls {
    /// Makes the config; one per profile, shared by its connections.
    ///
    /// # Errors
    /// [`TlsError::Config`]: a CA that cannot be parsed, or a client key that is unusable or belongs to
    /// another certificate.
    pub fn config(self) -> Result<Arc<ClientConfig>, TlsError> {
        let roots = match self.extra_ca {
            Some(certificates) => only(certificates)?,
            None => self.roots,
        };
        let builder = ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(self.min_version.versions())?
            .with_root_certificates(roots);
        let mut config = match self.client_certificate {
            Some(certificate) => builder.with_client_cert_resolver(Arc::new(certificate.resolver()?)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.names().iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        // Early data can be replayed by whoever records it; requests that spend money must not be.
        config.enable_early_data = false;
        Ok(Arc::new(config))
    }
}

impl ClientCertificate {
    /// The key is lent, and not given, to the library, so that no copy of it stays unwiped.
    fn resolver(self) -> Result<SingleCertAndKey, TlsError> {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&self.key)?;
        let certified = CertifiedKey::new(self.chain, key);
        certified.keys_match()?;
        Ok(SingleCertAndKey::from(certified))
    }
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => &BOTH[..1],
        }
    }
}

impl Alpn {
    fn names(self) -> &'static [&'static [u8]] {
        match self {
            Self::Auto => &[b"h2", b"http/1.1"],
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
        }
    }
}

/// What the error of an upstream handshake was about, wherever in its chain of causes the TLS error stands.
pub fn classify(error: &io::Error) -> TlsFault {
    match find(error) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            TlsFault::Certificate
        }
        Some(rustls::Error::InvalidCertRevocationList(_)) => TlsFault::Certificate,
        Some(rustls::Error::AlertReceived(_)) => TlsFault::Alert,
        Some(_) => TlsFault::Protocol,
        None => TlsFault::Io,
    }
}

/// Whether the peer refused the client certificate, or wanted one. Its alert is authentic in TLS 1.3 and ends the handshake in
/// earlier versions: it has taken no request on that connection.
pub fn refuses_certificate(error: &io::Error) -> bool {
    use rustls::AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, DecryptError, HandshakeFailure, UnknownCA, UnsupportedCertificate,
    };
    let Some(rustls::Error::AlertReceived(alert)) = find(error) else { return false };
    matches!(
        alert,
        AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | DecryptError
            | HandshakeFailure
            | UnknownCA
            | UnsupportedCertificate
    )
}

fn find(error: &io::Error) -> Option<&rustls::Error> {
    // `source()` of an io::Error passes over the very error that it wraps.
    let mut next: Option<&(dyn Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}

fn only(certificates: Vec<CertificateDer<'static>>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate)?;
    }
    Ok(Arc::new(store))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::ServerName;
    use tokio::io::AsyncWriteExt as _;
    use tokio::time::Instant;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::tls::{Authority, CaSource, LeafCache, accept};

    fn cache() -> LeafCache {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(&CaSource::Directory(folder.path().join("ca"))).unwrap();
        LeafCache::new(Arc::new(authority), 16).unwrap()
    }

    fn plain(roots: RootCertStore) -> ClientTls {
        ClientTls {
            roots: Arc::new(roots),
            extra_ca: None,
            client_certificate: None,
            min_version: MinVersion::Tls12,
            alpn: Alpn::Auto,
        }
    }

    async fn connect(server: &LeafCache, client: ClientTls, name: &str) -> io::Result<()> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let config = server.server_config("a.test").await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(client.config().unwrap());
        let (done, _) = tokio::join!(connector.connect(name, near), accept(far, config, "a.test", deadline));
        done.map(|_| ())
    }

    #[tokio::test]
    async fn a_ca_of_the_providers_own_replaces_the_roots() {
        let (right, other) = (cache(), cache());
        let ca = |cache: &LeafCache| vec![cache.authority().certificate_der().clone()];
        let with = |roots: &LeafCache, extra: Option<&LeafCache>| {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(ca(roots));
            ClientTls { extra_ca: extra.map(ca), ..plain(store) }
        };
        connect(&right, with(&right, None), "a.test").await.unwrap();
        connect(&right, with(&other, Some(&right)), "a.test").await.unwrap();
        for client in [with(&other, None), with(&right, Some(&other))] {
            let error = connect(&right, client, "a.test").await.unwrap_err();
            assert_eq!(classify(&error), TlsFault::Certificate, "{error}");
        }
        // The server refuses another name by an alert, before its certificate.
        let error = connect(&right, with(&right, None), "b.test").await.unwrap_err();
        assert_eq!(classify(&error), TlsFault::Alert, "{error}");
    }

    #[tokio::test]
    async fn faults_of_other_kinds() {
        let connector = TlsConnector::from(plain(RootCertStore::empty()).config().unwrap());
        for (answer, fault) in
            [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], TlsFault::Protocol), (b"", TlsFault::Io)]
        {
            let (near, mut far) = tokio::io::duplex(64 * 1024);
            far.write_all(answer).await.unwrap();
            far.shutdown().await.unwrap();
            let error = connector.connect(ServerName::try_from("a.test").unwrap(), near).await.unwrap_err();
            assert_eq!(classify(&error), fault, "{error}");
            let wrapped = io::Error::other(io::Error::other(error));
            assert_eq!(classify(&wrapped), fault, "as a cause of others");
        }
    }

    #[test]
    fn versions_protocols_and_client_certificates() {
        for (alpn, names) in
            [(Alpn::Auto, &["h2", "http/1.1"][..]), (Alpn::Http1, &["http/1.1"]), (Alpn::Http2, &["h2"])]
        {
            let config = ClientTls { alpn, ..plain(RootCertStore::empty()) }.config().unwrap();
            assert_eq!(
                config.alpn_protocols,
                names.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>()
            );
            assert!(!config.enable_early_data);
        }
        assert_eq!(MinVersion::Tls13.versions().len(), 1);

        let identity = |key: &rcgen::KeyPair, certified: &rcgen::KeyPair| {
            let certificate = rcgen::CertificateParams::default().self_signed(certified).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            ClientCertificate { chain: vec![certificate.into()], key: Zeroizing::new(key) }
        };
        let (one, two) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let with =
            |identity| ClientTls { client_certificate: Some(identity), ..plain(RootCertStore::empty()) };
        assert!(with(identity(&one, &one)).config().unwrap().client_auth_cert_resolver.has_certs());
        let error = with(identity(&one, &two)).config().err().unwrap();
        assert!(matches!(error, TlsError::Config(rustls::Error::InconsistentKeys(_))), "{error:?}");
    }
}
