//! Where the client certificate and the corporate proxy's password come from.
//!
//! Both are secrets, and secrets live in a higher row; so this row asks through a narrow trait, by version, and keeps
//! nothing but the TLS configuration that was built from them.

use zeroize::Zeroizing;

/// A secret that is needed for a connection is not there. The text holds no secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SecretMissing(pub String);

/// A client certificate with its key. No `Debug`: it holds a key.
pub struct ClientIdentity {
    /// Changes when certificate or key change; connections of an older version are not used again.
    pub version: u64,
    /// The chain, leaf first, as PEM.
    pub certificate_pem: Vec<u8>,
    /// The private key as PEM.
    pub key_pem: Zeroizing<Vec<u8>>,
}

/// Hands out the current client certificate of a provider.
pub trait IdentitySource: Send + Sync {
    /// The version that [`IdentitySource::current`] would return; asked once per request, so it must be cheap.
    fn version(&self) -> u64;
    /// Certificate and key, asked when a version is seen for the first time.
    fn current(&self) -> Result<ClientIdentity, SecretMissing>;
    /// Whether there are several of which one is shown at a time; only then the rest is asked and told.
    fn overlaps(&self) -> bool {
        false
    }
    /// The provider refused the one of this version, or it cannot be used. Whether another one is shown from now on.
    fn refused(&self, _version: u64) -> bool {
        false
    }
    /// The provider took the one of this version.
    fn accepted(&self, _version: u64) {}
    /// Whether the one of this version was taken, and not refused since.
    fn is_proven(&self, _version: u64) -> bool {
        true
    }
}

/// Hands out the user and password of the corporate proxy.
pub trait ProxyAuthSource: Send + Sync {
    /// `user:password`, asked once per dial.
    fn user_password(&self) -> Result<Zeroizing<String>, SecretMissing>;
}
