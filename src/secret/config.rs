//! The policy's `secrets:` section: the closed list of kinds of stores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::SecretStore;
use super::stores::not_yet::{self, NotYet};
use super::stores::{server, vault};
use crate::upstream::UpstreamEnv;

/// What stores need of the process.
pub struct StoreEnv {
    /// Where relative paths of the policy start.
    pub directory: PathBuf,
    /// The way out, for stores behind HTTP.
    pub upstream: Arc<UpstreamEnv>,
}

/// One entry of the policy's `secrets:` section: a store under a name of the team's choice.
///
/// ```yaml
/// secrets:
///   payments: { vault: { address: "https://vault:8200", auth: { kubernetes: { role: outgate } } } }
/// ```
///
/// Kinds that the contract names and that are not built yet are refused with that reason, so that nobody looks for a
/// typing mistake. `env` and `file` are not in this list: they need no settings and always exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreConfig {
    /// HashiCorp Vault or OpenBao.
    Vault(vault::VaultConfig),
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

/// A mistake in a store's settings: the key below the kind (dotted; empty for the whole), and what is wrong.
pub type StoreMistake = (&'static str, String);

impl StoreConfig {
    /// The kind, as written in the policy.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vault(_) => "vault",
            Self::AwsSecretsManager(never)
            | Self::GcpSecretManager(never)
            | Self::AzureKeyVault(never)
            | Self::Kubernetes(never)
            | Self::Exec(never)
            | Self::Sealed(never) => match *never {},
        }
    }

    /// What is wrong with the settings, as far as it can be told without asking the store. Reads the file of authorities.
    #[must_use]
    pub fn mistakes(&self, directory: &Path) -> Vec<StoreMistake> {
        let mut mistakes = match self {
            Self::Vault(config) => config.mistakes(),
            Self::AwsSecretsManager(never)
            | Self::GcpSecretManager(never)
            | Self::AzureKeyVault(never)
            | Self::Kubernetes(never)
            | Self::Exec(never)
            | Self::Sealed(never) => match *never {},
        };
        mistakes.extend(self.read_ca(directory).err().map(|what| ("ca", what)));
        mistakes
    }

    /// The authorities that the store trusts in place of the system's; read with the policy, so that a change of the file
    /// is a change of the settings.
    pub(super) fn read_ca(&self, directory: &Path) -> Result<Option<Arc<[u8]>>, String> {
        let path = match self {
            Self::Vault(config) => config.ca.as_deref(),
            _ => None,
        };
        path.map(|path| server::read_ca(&directory.join(path))).transpose()
    }

    pub(super) fn build(
        &self,
        name: &str,
        ca: Option<Arc<[u8]>>,
        env: &StoreEnv,
    ) -> Result<Arc<dyn SecretStore>, String> {
        Ok(match self {
            Self::Vault(config) => Arc::new(vault::VaultStore::new(name, config, ca, env)?),
            Self::AwsSecretsManager(never)
            | Self::GcpSecretManager(never)
            | Self::AzureKeyVault(never)
            | Self::Kubernetes(never)
            | Self::Exec(never)
            | Self::Sealed(never) => match *never {},
        })
    }
}
