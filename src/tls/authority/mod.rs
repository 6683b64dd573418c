//! The interception CA: makes the certificates that the app sees in place of the provider's.
//!
//! It is made on first run, unique to the installation, and can sign leaves only (path length 0); or the user
//! brings one. Its key is read once, kept in memory, and never written, served or printed again.
//!
//! ```yaml
//! interception:
//!   ca: { directory: .outgate/ca }            # ca.pem and ca.key; or:
//!   # ca: { certificate: ca.pem, key: ca.key }
//! ```
mod files;
mod profile;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use zeroize::Zeroizing;

use super::error::TlsError;
use super::pem;

/// Where the CA comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CaSource {
    /// A folder with `ca.pem` and `ca.key`; both are made where they are missing.
    Directory(PathBuf),
    /// A CA that the user brings; nothing is ever written.
    Files {
        /// PEM: the CA's certificate first; further certificates lead to the root that the app trusts.
        certificate: PathBuf,
        /// PEM, not encrypted: PKCS#8, PKCS#1 or SEC1.
        key: PathBuf,
    },
}

/// The CA of interception. It has no `Debug`: it holds the key.
pub struct Authority {
    issuer: Issuer<'static, CaKey>,
    /// The CA's certificate, then what leads from it to a root; never empty.
    certificates: Vec<CertificateDer<'static>>,
    pem: String,
    fingerprint: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// A leaf and its key, ready to be served. The key exists only here.
pub(super) struct Leaf {
    pub(super) certified: CertifiedKey,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Authority {
    /// Reads the CA, and for [`CaSource::Directory`] makes what is missing of it (waits 5 s at most for
    /// another process that does the same).
    ///
    /// Blocks on the file system: for start-up, not for the request path.
    ///
    /// # Errors
    /// The key file may be used by others ([`TlsError::KeyMode`], [`TlsError::KeyOwner`]); files cannot be
    /// read, written or parsed; the certificate is no CA, has expired, or belongs to another key
    /// ([`TlsError::UnusableAuthority`]).
    pub fn load_or_create(source: &CaSource) -> Result<Self, TlsError> {
        match source {
            CaSource::Directory(directory) => files::load_or_create(directory),
            CaSource::Files { certificate, key } => {
                let key_text = files::read_key(key)?;
                let key = CaKey::parse(&key_text, key)?;
                let authority = Self::from_parts(&files::read_certificate(certificate)?, key, certificate)?;
                authority.check_issuer_name(certificate)?;
                Ok(authority)
            }
        }
    }

    /// The CA's certificate as PEM, with what else the user's file had in its chain. Never a key.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// The CA's certificate, DER.
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificates[0]
    }

    /// SHA-256 of the certificate's DER: 64 lower-case hex digits.
    pub fn fingerprint_sha256(&self) -> &str {
        &self.fingerprint
    }

    /// When the CA expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether leaves of this CA are valid for whoever trusts the `former` one alone: the same key under the same name and key
    /// identifier, in another certificate.
    pub fn continues(&self, former: &Self) -> bool {
        let (Some(own), Some(other)) = (parse(self.certificate_der()), parse(former.certificate_der()))
        else {
            return false;
        };
        own.subject().as_raw() == other.subject().as_raw()
            && own.public_key().raw == other.public_key().raw
            && key_identifier(&own) == key_identifier(&other)
    }

    /// Joins a certificate text and a key, and checks that the pair can be a CA now.
    fn from_parts(certificate_pem: &[u8], key: CaKey, path: &Path) -> Result<Self, TlsError> {
        let certificates = pem::certificates(certificate_pem, &path.display().to_string())?;
        let unusable = |reason| TlsError::UnusableAuthority { path: path.to_owned(), reason };
        let first = &certificates[0];
        let (not_before, not_after) = check(first, &key, SystemTime::now()).map_err(unusable)?;
        let mut pem = String::new();
        certificates.iter().for_each(|certificate| pem::push_certificate(&mut pem, certificate));
        let fingerprint = hex(sha256(first).as_ref());
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(first, key)?,
            certificates,
            pem,
            fingerprint,
            not_before,
            not_after,
        })
    }

    /// A name that our encoder writes with other string types would make leaves that chain to nothing: tell
    /// at start.
    fn check_issuer_name(&self, path: &Path) -> Result<(), TlsError> {
        let reason = "its subject name has a form that cannot be copied into leaves";
        let wrong = || TlsError::UnusableAuthority { path: path.to_owned(), reason };
        let leaf = self.mint("outgate.invalid")?;
        let leaf = leaf.certified.cert.first().ok_or_else(wrong)?;
        let (issued, ca) = (parse(leaf).ok_or_else(wrong)?, parse(self.certificate_der()).ok_or_else(wrong)?);
        if issued.issuer().as_raw() == ca.subject().as_raw() { Ok(()) } else { Err(wrong()) }
    }

    /// Makes a leaf for one host (a normalised name, or an IP address as text). About 0.1 ms of computing.
    pub(super) fn mint(&self, host: &str) -> Result<Leaf, TlsError> {
        let name = LeafName::parse(host)?;
        let now = SystemTime::now();
        if now >= self.not_after {
            return Err(TlsError::AuthorityExpired);
        }
        let (not_before, not_after) = profile::leaf_validity(now, self.not_before, self.not_after);
        let key = Zeroizing::new(KeyPair::generate()?);
        let leaf = profile::leaf(&name, not_before, not_after)?.signed_by(&*key, &self.issuer)?;
        // Borrowed, so that the key is not copied into a buffer that nobody wipes.
        let signer = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der())))?;
        Ok(Leaf { certified: CertifiedKey::new(self.chain(leaf.into()), signer), not_before, not_after })
    }

    /// What is sent: the leaf, and those that lead from it to a root, without the root.
    fn chain(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        let sent =
            self.certificates.iter().filter(|der| parse(der).is_some_and(|c| c.subject() != c.issuer()));
        std::iter::once(leaf).chain(sent.cloned()).collect()
    }
}

/// The CA's key pair. Its serialized form is wiped on drop (what aws-lc holds, aws-lc wipes).
struct CaKey(Zeroizing<KeyPair>);

impl CaKey {
    fn generate() -> Result<Self, TlsError> {
        Ok(Self(Zeroizing::new(KeyPair::generate()?)))
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, TlsError> {
        let name = path.display().to_string();
        let der = pem::private_key(text, &name)?;
        // rcgen's error may tell of the key's inside; the reader needs only to know which kinds work.
        let reason = "not an ECDSA, RSA or Ed25519 key".to_owned();
        KeyPair::try_from(&*der)
            .map(|key| Self(Zeroizing::new(key)))
            .map_err(|_| TlsError::Pem { what: name, reason })
    }

    fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// What a leaf is for.
enum LeafName {
    Dns(DnsName<'static>),
    Ip(IpAddr),
}

impl LeafName {
    /// Takes names with and without the final dot, IPv6 addresses with and without brackets.
    fn parse(host: &str) -> Result<Self, TlsError> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self::Ip(ip));
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        DnsName::try_from(name).map(Self::Dns).map_err(|_| TlsError::InvalidHost)
    }
}

/// Checks a CA certificate against its key and the clock; gives the time it is valid in.
fn check(
    der: &CertificateDer<'_>,
    key: &CaKey,
    now: SystemTime,
) -> Result<(SystemTime, SystemTime), &'static str> {
    let certificate = parse(der).ok_or("it is not an X.509 certificate")?;
    let constraints = certificate.basic_constraints().map_err(|_| "its basicConstraints are malformed")?;
    if !constraints.is_some_and(|found| found.value.ca) {
        return Err("it is not a CA certificate (basicConstraints CA:TRUE)");
    }
    let usage = certificate.key_usage().map_err(|_| "its keyUsage is malformed")?;
    if usage.is_some_and(|found| !found.value.key_cert_sign()) {
        return Err("its keyUsage does not allow signing certificates");
    }
    if certificate.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err("the key belongs to another certificate");
    }
    let validity = certificate.validity();
    let span = (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()));
    match now {
        now if now < span.0 => Err("it is not valid yet (is the clock right?)"),
        now if now >= span.1 => {
            Err("it has expired (move it away, and a new one is made; the app must then trust that)")
        }
        _ => Ok(span),
    }
}

/// True for certificates that some outgate made as its CA, this one or another.
pub(super) fn is_outgate_ca(der: &CertificateDer<'_>) -> bool {
    // The search spares the parsing of a few hundred roots at start.
    let marker = profile::CA_NAME.as_bytes();
    if !der.windows(marker.len()).any(|window| window == marker) {
        return false;
    }
    let Some(certificate) = parse(der) else { return false };
    [certificate.subject(), certificate.issuer()].into_iter().any(|name| {
        let organization = name.iter_organization().any(|part| part.as_str() == Ok(profile::ORGANIZATION));
        let common = name
            .iter_common_name()
            .any(|part| part.as_str().is_ok_and(|cn| cn.starts_with(profile::CA_NAME)));
        organization && common
    })
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    x509_parser::parse_x509_certificate(der).ok().map(|(_, certificate)| certificate)
}

/// The subject key identifier, by which a chain is built (RFC 5280 section 4.2.1.2).
fn key_identifier<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0),
        _ => None,
    })
}

/// Seconds since 1970 as a time; what lies before 1970 counts as 1970.
fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn sha256(bytes: &[u8]) -> aws_lc_rs::digest::Digest {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
