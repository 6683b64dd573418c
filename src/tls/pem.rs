//! PEM text (RFC 7468): certificates in and out, private keys in only.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::error::TlsError;

/// Characters of base64 in one line (RFC 7468, section 2).
const LINE: usize = 64;

/// All certificates of a PEM text, in its order; other sections are passed over.
///
/// `what` names the text in errors. Errors: [`TlsError::Pem`] when a section is malformed or no certificate is there.
pub fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::pem(what, &error))?;
    if found.is_empty() {
        return Err(TlsError::pem(what, &rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}

/// The first private key of a PEM text: PKCS#8, PKCS#1 or SEC1, not encrypted. It is wiped when dropped.
///
/// `what` names the text in errors, which never quote it. Errors: [`TlsError::Pem`].
pub fn private_key(pem: &[u8], what: &str) -> Result<Zeroizing<PrivateKeyDer<'static>>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map(Zeroizing::new).map_err(|error| TlsError::pem(what, &error))
}

/// Appends one certificate as PEM, with a final newline.
pub(super) fn push_certificate(out: &mut String, der: &[u8]) {
    let text = STANDARD.encode(der);
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // base64 is ASCII, so any index is a character boundary.
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END CERTIFICATE-----\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for length in [1, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
            let mut text = String::new();
            push_certificate(&mut text, &der);
            assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
            let read = certificates(text.as_bytes(), "test").unwrap();
            assert_eq!(read, [CertificateDer::from(der)]);
        }
    }

    #[test]
    fn errors_name_the_text_and_do_not_quote_it() {
        let cut = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n";
        let error = private_key(cut.as_bytes(), "ca.key").err().unwrap().to_string();
        assert_eq!(error, "ca.key is not usable PEM: a section has no END line");
        let bad = "-----BEGIN PRIVATE KEY-----\n!!secret!!\n-----END PRIVATE KEY-----\n";
        let error = private_key(bad.as_bytes(), "ca.key").err().unwrap().to_string();
        assert_eq!(error, "ca.key is not usable PEM: a section is not base64");
        let none = certificates(b"nothing", "x").err().unwrap().to_string();
        assert_eq!(none, "x is not usable PEM: it holds nothing of the wanted kind");
    }
}
