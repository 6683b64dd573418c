//! The origin's CA and certificate, and who trusts what.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::Outcome;

/// The provider that has a credential.
pub const BENCH_HOST: &str = "bench.example.test";
/// The provider that is tunnelled blindly.
pub const BLIND_HOST: &str = "blind.example.test";
/// The origin's CA, in the benchmark's directory.
pub const ORIGIN_CA: &str = "origin-ca.pem";
const ORIGIN_CHAIN: &str = "origin.pem";
const ORIGIN_KEY: &str = "origin-key.pem";

/// Makes a CA and a leaf for both hosts, and writes them into `directory`.
pub fn mint(directory: &Path) -> Outcome<()> {
    let mut authority = CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority.distinguished_name.push(DnType::CommonName, "benchmark origin CA");
    let key = KeyPair::generate()?;
    std::fs::write(directory.join(ORIGIN_CA), authority.self_signed(&key)?.pem())?;

    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate()?;
    let leaf =
        CertificateParams::new([BENCH_HOST.to_owned(), BLIND_HOST.to_owned(), "127.0.0.1".to_owned()])?;
    std::fs::write(directory.join(ORIGIN_CHAIN), leaf.signed_by(&key, &issuer)?.pem())?;
    std::fs::write(directory.join(ORIGIN_KEY), key.serialize_pem())?;
    Ok(())
}

/// The origin's side of TLS: HTTP/2 or HTTP/1.1, as the client asks.
pub fn origin(directory: &Path) -> Outcome<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(directory.join(ORIGIN_CHAIN))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(directory.join(ORIGIN_KEY))?;
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts one file. Each of its handshakes is a full one: resumed ones would flatter the figures.
pub fn trusting(ca: &Path) -> Outcome<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
