//! Secrets: where they come from, how long they live, and how they stay unseen.
//!
//! A policy never holds a secret, only a reference to one ([`SecretRef`], `env:STRIPE_KEY`). The store that the reference
//! names ([`SecretStore`]) reads the bytes, [`SecretValue`] holds them, and [`SecretCache`] keeps them across reloads and
//! reads them again when they change. A request only ever loads a pointer: it never waits for a store while a good value
//! is held.
//!
//! Nothing here can print a value: [`SecretValue`] has no `Debug`, `Display`, `Clone` or `Serialize`, and
//! [`SecretError`] has no place for one.
//!
//! # To add a store
//!
//! 1. `stores/<store>.rs`: its `Config` (as typed in the policy), and a type that implements [`SecretStore`]: one
//!    read by reference, with its own bound on size; `stores/file.rs` is the pattern, `stores/field.rs` picks `#field`.
//! 2. Here: give its variant of [`StoreConfig`] that `Config` in place of [`NotYet`], and an arm in `build`.
//!
//! Size, control characters, timeout, retry, single flight and status are the cache's business and come by themselves.

pub mod cache;
pub mod error;
pub mod reference;
pub mod stores;
pub mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

pub use cache::{RefreshOutcome, SecretCache, SecretEntry, SecretState, SecretStatus, SecretVersion};
pub use error::SecretError;
pub use reference::SecretRef;
pub use value::{SecretValue, ValueRules};

use stores::not_yet::{self, NotYet};

/// The bytes of one read, wiped when dropped. They are not yet checked: the cache does that for every store.
pub type SecretBytes = Zeroizing<Vec<u8>>;

/// The future of one read. Boxed, because stores stand side by side in one table; a read is rare, so the box is cheap.
pub type ReadFuture<'a> = BoxFuture<'a, Result<SecretBytes, SecretError>>;

/// A place that secrets are read from.
pub trait SecretStore: Send + Sync {
    /// Reads the value that `reference` names, its `#field` and `@version` included.
    ///
    /// Called at start and when a value may have changed, never per request, and never twice at once for one secret. The
    /// caller bounds the time; the store bounds the size. The future may be dropped at any await.
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a>;

    /// How a change of the value can be noticed.
    fn source(&self, reference: &SecretRef) -> Source;
}

/// How a change of a secret can be noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The value cannot change while the process lives: it is read once.
    Fixed,
    /// The value is in this file, which is watched.
    File(PathBuf),
}

/// One entry of the policy's `secrets:` section: a store under a name of the team's choice.
///
/// ```yaml
/// secrets:
///   payments: { vault: { address: "https://vault:8200" } }
/// ```
///
/// Kinds that the contract names and that are not built yet are refused with that reason, so that nobody looks for a
/// typing mistake. `env` and `file` are not in this list: they need no settings and always exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreConfig {
    /// HashiCorp Vault or OpenBao.
    #[serde(deserialize_with = "not_yet::vault")]
    Vault(NotYet),
    /// AWS Secrets Manager.
    #[serde(deserialize_with = "not_yet::aws_secrets_manager")]
    AwsSecretsManager(NotYet),
    /// Google Cloud Secret Manager.
    #[serde(deserialize_with = "not_yet::gcp_secret_manager")]
    GcpSecretManager(NotYet),
    /// Azure Key Vault.
    #[serde(deserialize_with = "not_yet::azure_key_vault")]
    AzureKeyVault(NotYet),
    /// Secrets of the Kubernetes API. (Mounted secrets are files, and work through `file:`.)
    #[serde(deserialize_with = "not_yet::kubernetes")]
    Kubernetes(NotYet),
    /// The output of a command.
    #[serde(deserialize_with = "not_yet::exec")]
    Exec(NotYet),
    /// An encrypted file.
    #[serde(deserialize_with = "not_yet::sealed")]
    Sealed(NotYet),
}

impl StoreConfig {
    fn build(&self) -> Arc<dyn SecretStore> {
        match self {
            Self::Vault(never)
            | Self::AwsSecretsManager(never)
            | Self::GcpSecretManager(never)
            | Self::AzureKeyVault(never)
            | Self::Kubernetes(never)
            | Self::Exec(never)
            | Self::Sealed(never) => match *never {},
        }
    }
}

/// The stores of a policy by name; `env` and `file` are always among them.
#[derive(Clone)]
pub struct Stores {
    by_name: BTreeMap<String, Arc<dyn SecretStore>>,
}

impl Stores {
    /// Builds the stores of the policy's `secrets:` section. Relative `file:` paths start at `policy_directory`.
    ///
    /// # Errors
    /// [`SecretError::StoreName`] for a name that no reference could name, or that is `env` or `file`.
    pub fn build(
        configs: &BTreeMap<String, StoreConfig>,
        policy_directory: &Path,
    ) -> Result<Self, SecretError> {
        let mut by_name: BTreeMap<String, Arc<dyn SecretStore>> = BTreeMap::new();
        by_name.insert(reference::ENV.to_owned(), Arc::new(stores::env::EnvStore));
        by_name.insert(reference::FILE.to_owned(), Arc::new(stores::file::FileStore::new(policy_directory)));
        for (name, config) in configs {
            if !reference::is_store_name(name) || by_name.contains_key(name) {
                return Err(SecretError::StoreName);
            }
            by_name.insert(name.clone(), config.build());
        }
        Ok(Self { by_name })
    }

    /// The store of `reference`; a policy is compiled only if every reference has one.
    ///
    /// # Errors
    /// [`SecretError::UnknownStore`]. It lists the stores there are, and does not repeat the reference: `user:password`
    /// reads like a reference to a store called `user`.
    pub fn find(&self, reference: &SecretRef) -> Result<&Arc<dyn SecretStore>, SecretError> {
        self.by_name.get(reference.store()).ok_or_else(|| {
            let known = self.by_name.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            SecretError::UnknownStore { known }
        })
    }

    /// The same stores and one more under `name`; for tests.
    #[cfg(test)]
    pub(crate) fn with(mut self, name: &str, store: Arc<dyn SecretStore>) -> Self {
        self.by_name.insert(name.to_owned(), store);
        self
    }
}

#[cfg(test)]
mod tests;
