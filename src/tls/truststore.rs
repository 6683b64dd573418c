//! The bundle for Java, which reads no PEM: a PKCS#12 file (RFC 7292) of trusted certificates.
//!
//! A JVM takes a certificate of such a file for trusted only where it bears an attribute of Oracle's; without it the file looks
//! empty. The certificates are public, so they stand there unencrypted; the MAC is over a password that everybody knows, because
//! readers expect one. It is written here, and not by a library, because it is one fixed shape of DER, and the libraries for it rest
//! on preliminary releases. Readable by Java 17, 11.0.12, 8u301 and later, which know HMAC-SHA256 in this place.

use std::path::Path;

use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::hmac;
use rustls::pki_types::CertificateDer;

use super::error::TlsError;
use super::roots::{SystemRoots, write_public};

/// The password of the store: the one that Java's own has. It protects nothing, and is no secret.
pub const PASSWORD: &str = "changeit";

/// The name of outgate's certificate in the store.
const OWN: &str = "outgate";

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01]; // 1.2.840.113549.1.7.1
const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03]; // ...12.10.1.3
const X509: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01]; // ...9.22.1
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14]; // ...9.20
const TRUSTED_KEY: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 0x01, 0x01]; // 2.16.840.1.113894.746875.1.1
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00]; // 2.5.29.37.0
const SHA256_OID: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01]; // 2.16.840.1.101.3.4.2.1

/// What Java's own tool takes.
const ITERATIONS: u16 = 10_000;

/// Writes the store: the system's roots and the CAs of interception, the one that signs first. A store that is the same already is left as it is.
///
/// # Errors
/// [`TlsError::File`].
pub fn write_truststore(
    path: &Path,
    roots: &SystemRoots,
    own: &[&CertificateDer<'_>],
) -> Result<(), TlsError> {
    write_public(path, &store(&roots.certificates, own))
}

fn store(roots: &[CertificateDer<'_>], own: &[&CertificateDer<'_>]) -> Vec<u8> {
    let mut bags = Vec::new();
    for (index, ca) in own.iter().enumerate() {
        bags.extend(bag(&if index == 0 { OWN.to_owned() } else { format!("{OWN}-{}", index + 1) }, ca));
    }
    for (index, root) in roots.iter().enumerate() {
        bags.extend(bag(&format!("root-{}", index + 1), root));
    }
    let safe = content(&sequence(&[&bags]));
    let authenticated = sequence(&[&safe]);
    let version = integer(3);
    sequence(&[&version, &content(&authenticated), &mac(&authenticated)])
}

/// SafeBag (RFC 7292 section 4.2) with one certificate.
fn bag(name: &str, certificate: &[u8]) -> Vec<u8> {
    let utf16: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let mut attributes =
        [attribute(FRIENDLY_NAME, &tlv(BMP_STRING, &utf16)), attribute(TRUSTED_KEY, &tlv(OID, ANY_USAGE))];
    // DER wants the members of a set in order.
    attributes.sort();
    let value = explicit(&tlv(OCTETS, certificate));
    let certificate = sequence(&[&tlv(OID, X509), &value]);
    sequence(&[&tlv(OID, CERT_BAG), &explicit(&certificate), &tlv(SET, &attributes.concat())])
}

fn attribute(name: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[&tlv(OID, name), &tlv(SET, value)])
}

/// ContentInfo of type `data`.
fn content(inner: &[u8]) -> Vec<u8> {
    sequence(&[&tlv(OID, DATA), &explicit(&tlv(OCTETS, inner))])
}

/// MacData. The salt is drawn from the content, so that the same certificates make the same file.
fn mac(authenticated: &[u8]) -> Vec<u8> {
    let hash = digest::digest(&SHA256, authenticated);
    let salt = &hash.as_ref()[..16];
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &mac_key(salt)), authenticated);
    let algorithm = sequence(&[&tlv(OID, SHA256_OID), &tlv(NULL, &[])]);
    let digest_info = sequence(&[&algorithm, &tlv(OCTETS, tag.as_ref())]);
    sequence(&[&digest_info, &tlv(OCTETS, salt), &integer(ITERATIONS)])
}

/// The key of the MAC (RFC 7292 appendix B.2, ID 3); one block of SHA-256 is all that is needed of it.
fn mac_key(salt: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64;
    let password: Vec<u8> = PASSWORD.encode_utf16().chain([0]).flat_map(u16::to_be_bytes).collect();
    let filled = |bytes: &[u8]| -> Vec<u8> {
        let length = bytes.len().div_ceil(BLOCK) * BLOCK;
        bytes.iter().copied().cycle().take(length).collect()
    };
    let mut key = [vec![3; BLOCK], filled(salt), filled(&password)].concat();
    for _ in 0..ITERATIONS {
        key = digest::digest(&SHA256, &key).as_ref().to_vec();
    }
    key
}

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const EXPLICIT_0: u8 = 0xa0;

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

fn explicit(inner: &[u8]) -> Vec<u8> {
    tlv(EXPLICIT_0, inner)
}

/// A number that does not look negative (below 0x8000, and not from 0x80 to 0xff).
fn integer(number: u16) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    tlv(INTEGER, if bytes[0] == 0 { &bytes[1..] } else { &bytes })
}

/// Tag, length, value.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut written = vec![tag];
    match significant {
        [] => written.push(0),
        [short] if *short < 0x80 => written.push(*short),
        // At most eight bytes, so the count is one digit.
        long => {
            written.push(0x80 | u8::try_from(long.len()).unwrap_or(8));
            written.extend_from_slice(long);
        }
    }
    written.extend_from_slice(value);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_short_as_they_can_be() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (256, &[4, 0x82, 1, 0]),
            (70_000, &[4, 0x83, 1, 0x11, 0x70]),
        ] {
            let written = tlv(OCTETS, &vec![7; length]);
            assert_eq!(&written[..head.len()], head);
            assert_eq!(written.len(), head.len() + length);
        }
        assert_eq!((integer(3), integer(ITERATIONS)), (vec![2, 1, 3], vec![2, 2, 0x27, 0x10]));
    }

    #[test]
    fn every_certificate_is_in_it_and_the_same_ones_make_the_same_store() {
        let certificates: Vec<CertificateDer<'_>> =
            [b"first".to_vec(), vec![9; 1500]].into_iter().map(CertificateDer::from).collect();
        let ca = CertificateDer::from(b"own".to_vec());
        let store = super::store(&certificates, &[&ca]);
        assert_eq!(store, super::store(&certificates, &[&ca]));
        assert_ne!(store, super::store(&certificates[..1], &[&ca]));
        let count = |what: &[u8]| store.windows(what.len()).filter(|window| *window == what).count();
        assert_eq!((count(b"first"), count(&[9; 1500]), count(b"own")), (1, 1, 1));
        assert_eq!(count(TRUSTED_KEY), 3, "Java trusts nothing without it");
        // One value from end to end.
        let length = usize::from(u16::from_be_bytes([store[2], store[3]]));
        assert_eq!((store[0], store[1], store.len()), (SEQUENCE, 0x82, length + 4));
    }
}
