//! What stands in the certificates: RFC 5280 as the strictest readers want it (OpenSSL's `x509_strict`,
//! Python 3.13's default, Go).
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
};

use super::{CaKey, LeafName, hex, sha256};
use crate::tls::error::TlsError;
use crate::tls::provider::crypto_provider;

/// O of the CA's name, and of leaves whose name is too long for a CN.
pub(super) const ORGANIZATION: &str = "outgate";
/// How the CN of every CA begins; eight hex digits follow.
pub(super) const CA_NAME: &str = "outgate CA";

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Ten years with their leap days, counted from the making.
const CA_LIFE: Duration = Duration::from_secs(3652 * 24 * 3600);
/// In all: an hour before the minting, for clients whose clock is late, and 23 hours after it.
pub(super) const LEAF_LIFE: Duration = DAY;
/// The longest CN (RFC 5280, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// The parameters of a new CA. The name comes from the key, so that two certificates for one key have one
/// name.
pub(super) fn authority(key: &CaKey, now: SystemTime) -> Result<CertificateParams, TlsError> {
    let tag = hex(&sha256(&key.subject_public_key_info()).as_ref()[..4]);
    let mut params = base(&format!("{CA_NAME} {tag}"), now - DAY, now + CA_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The parameters of a leaf.
pub(super) fn leaf(
    name: &LeafName,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, TlsError> {
    let text = match name {
        LeafName::Dns(dns) => dns.as_ref().to_owned(),
        LeafName::Ip(ip) => ip.to_string(),
    };
    // Clients judge by the SAN; the CN is for people. A subject without one would make the SAN critical.
    let common_name = if text.len() > MAX_COMMON_NAME { "outgate leaf" } else { &text };
    let mut params = base(common_name, not_before, not_after)?;
    params.subject_alt_names = vec![match name {
        LeafName::Dns(_) => SanType::DnsName(text.try_into()?),
        LeafName::Ip(ip) => SanType::IpAddress(*ip),
    }];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// From when to when a leaf made now is valid: never outside its CA's own time.
pub(super) fn leaf_validity(
    now: SystemTime,
    ca_not_before: SystemTime,
    ca_not_after: SystemTime,
) -> (SystemTime, SystemTime) {
    let begin = now - HOUR;
    (begin.max(ca_not_before), (begin + LEAF_LIFE).min(ca_not_after))
}

fn base(
    common_name: &str,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANIZATION);
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.serial_number = Some(serial()?);
    // rcgen's kind of date, made without naming the crate it comes from.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(not_before);
    params.not_after = epoch + since_epoch(not_after);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Twenty octets, the most that RFC 5280 allows, of which 158 bits are random; positive, and without a
/// leading zero.
fn serial() -> Result<SerialNumber, TlsError> {
    let mut bytes = [0u8; 20];
    crypto_provider().secure_random.fill(&mut bytes).map_err(|_| TlsError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Whole seconds since 1970: certificates know no smaller unit.
fn since_epoch(at: SystemTime) -> Duration {
    Duration::from_secs(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
}
