//! `mtls`: the provider knows outgate by its TLS client certificate. It belongs to the connection and not to a request, so
//! it is the provider's, and its routes share it.
//!
//! ```yaml
//! credential: { mtls: { certificate: file:/run/secrets/client.pem, key: file:/run/secrets/client.key } }
//! ```
//!
//! Both come from any store, as PEM: the certificate with its chain, leaf first. When one of them changes, new connections show
//! the new certificate, and connections of the old one are not used again. While one is missing, or they do not belong
//! together, requests are answered with 503 `credential_unavailable`. A provider that wants a token besides has the
//! certificate under `upstream.tls`, and the token here; it is the same certificate by another key.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::secret::reference::SecretRef;

/// `mtls` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The certificate and its chain as PEM, leaf first.
    pub certificate: SecretRef,
    /// Its private key as PEM, not encrypted.
    pub key: SecretRef,
}
