//! Why a credential could not be had, or may not be used.

use crate::secret::error::SecretError;

/// A credential that is not there. Messages name references, never values.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CredentialError {
    /// One of its secrets was never read, or cannot be used.
    #[error("secret `{reference}` is not available: {cause}")]
    Secret {
        /// The reference, as written in the policy.
        reference: String,
        /// Why.
        cause: std::sync::Arc<SecretError>,
    },
    /// Its secrets are per tenant, and the request named none.
    #[error("the credential is per tenant, and the request names no tenant")]
    NoTenant,
    /// The value holds a byte that the place it belongs to cannot carry.
    #[error("the value of `{reference}` cannot stand in {place}")]
    NotUsable {
        /// The reference, as written in the policy.
        reference: String,
        /// Where it should stand.
        place: &'static str,
    },
}
