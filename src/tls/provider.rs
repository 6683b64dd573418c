//! The one cryptography provider of the process: aws-lc-rs.
use std::sync::{Arc, LazyLock};

use rustls::NamedGroup;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

static UPSTREAM: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

static DOWNSTREAM: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    // A stable sort: X25519 first, the others in the order they had.
    provider.kx_groups.sort_by_key(|group| group.name() != NamedGroup::X25519);
    Arc::new(provider)
});

/// The provider of every client config: the post-quantum hybrid key exchange is offered first, X25519 with
/// it.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    UPSTREAM.clone()
}

/// The provider of interception: X25519 first. The app is on this host, where a post-quantum exchange costs
/// a kilobyte and its computing, and protects from nobody.
pub(super) fn downstream_provider() -> Arc<CryptoProvider> {
    DOWNSTREAM.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downstream_prefers_x25519_and_loses_no_group() {
        let names =
            |provider: &CryptoProvider| provider.kx_groups.iter().map(|g| g.name()).collect::<Vec<_>>();
        let (up, down) = (names(&crypto_provider()), names(&downstream_provider()));
        assert_eq!(up.first(), Some(&NamedGroup::X25519MLKEM768));
        assert_eq!(down.first(), Some(&NamedGroup::X25519));
        assert_eq!(up.len(), down.len());
    }
}
