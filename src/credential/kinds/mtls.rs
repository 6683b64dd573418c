//! `mtls`: the provider knows outgate by its TLS client certificate. It belongs to the connection and not to a request, so
//! it is the provider's, and its routes share it.
//!
//! ```yaml
//! credential: { mtls: { certificate: file:/run/secrets/client.pem, key: file:/run/secrets/client.key } }
//! ```
//!
//! In an overlap both are lists: `certificate: [new, old]`, `key: [new, old]`. The new one is shown; where the provider refuses it
//! in the handshake or with a 401, or it cannot be had, the old one.
//!
//! Both come from any store, as PEM: the certificate with its chain, leaf first. When one of them changes, new connections show
//! the new certificate, and connections of the old one are not used again. While one is missing, or they do not belong
//! together, requests are answered with 503 `credential_unavailable`. A provider that wants a token besides has the
//! certificate under `upstream.tls`, and the token here; it is the same certificate by another key.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::credential::config::OneOrMany;
use crate::secret::reference::SecretRef;

/// `mtls` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The certificate and its chain as PEM, leaf first; or a list in an overlap, the new one first.
    pub certificate: OneOrMany<SecretRef>,
    /// Its private key as PEM, not encrypted; or a list, each at the place of its certificate.
    pub key: OneOrMany<SecretRef>,
}

impl Config {
    /// The certificates with their keys, the new one first.
    ///
    /// # Errors
    /// What is wrong.
    pub fn pairs(&self) -> Result<Vec<(SecretRef, SecretRef)>, String> {
        let (certificates, keys) = (&self.certificate.0, &self.key.0);
        if certificates.len() != keys.len() {
            let (certificates, keys) = (certificates.len(), keys.len());
            return Err(format!(
                "`certificate` names {certificates} and `key` {keys}: each has a key of its own"
            ));
        }
        Ok(certificates.iter().cloned().zip(keys.iter().cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::credential::CredentialConfig;

    #[test]
    fn each_certificate_of_an_overlap_has_a_key_of_its_own() {
        let read = |text: &str| serde_yaml::from_str::<CredentialConfig>(text).unwrap();
        let one = read("{ mtls: { certificate: file:a.pem, key: file:a.key } }");
        let two = read("{ mtls: { certificate: [file:a.pem, file:b.pem], key: [file:a.key, file:b.key] } }");
        for (config, pairs) in [(&one, 1), (&two, 2)] {
            assert!(config.is_certificate() && config.members(Path::new("/")).unwrap().is_empty());
            assert_eq!(config.identities().len(), pairs);
        }
        assert_eq!(two.identities()[1].1.to_string(), "file:b.key");
        let wrong = read("{ mtls: { certificate: [file:a.pem, file:b.pem], key: file:a.key } }");
        let told = wrong.members(Path::new("/")).err().unwrap();
        assert!(told.contains("`certificate` names 2 and `key` 1"), "{told}");
        assert!(!read("none: {}").is_certificate());
    }
}
