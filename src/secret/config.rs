//! The policy's `secrets:` section: the closed list of kinds of stores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::SecretStore;
use super::stores::{aws, azure, exec, gcp, kubernetes, sealed, server, vault};
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
/// `env` and `file` are not in this list: they need no settings and always exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreConfig {
    /// HashiCorp Vault or OpenBao.
    Vault(vault::VaultConfig),
    /// AWS Secrets Manager, or the Parameter Store.
    AwsSecretsManager(aws::AwsConfig),
    /// Google Cloud Secret Manager.
    GcpSecretManager(gcp::GcpConfig),
    /// Azure Key Vault.
    AzureKeyVault(azure::AzureConfig),
    /// Secrets of the Kubernetes API. (Mounted secrets are files, and work through `file:`.)
    Kubernetes(kubernetes::KubernetesConfig),
    /// The output of a command.
    Exec(exec::ExecConfig),
    /// An encrypted file.
    Sealed(sealed::SealedConfig),
}

/// A mistake in a store's settings: the key below the kind (dotted; empty for the whole), and what is wrong.
pub type StoreMistake = (&'static str, String);

impl StoreConfig {
    /// The settings of a store that outgate can write to.
    fn writable(&self) -> Option<&vault::VaultConfig> {
        match self {
            Self::Vault(vault) => Some(vault),
            Self::AwsSecretsManager(_)
            | Self::GcpSecretManager(_)
            | Self::AzureKeyVault(_)
            | Self::Kubernetes(_)
            | Self::Exec(_)
            | Self::Sealed(_) => None,
        }
    }

    /// Of a store that outgate can write to: whether it tells who wrote last, which a KV of version 1 does not.
    #[must_use]
    pub fn tells_writers(&self) -> Option<bool> {
        self.writable().map(|vault| vault.kv != Some(vault::KvVersion::V1))
    }

    /// Of a store that outgate can write to: the server and where in it, so that two that differ in other settings alone are
    /// the same place.
    #[must_use]
    pub fn written_at(&self) -> Option<String> {
        self.writable().map(|vault| format!("{:?} {:?} {:?}", vault.address, vault.namespace, vault.mount))
    }

    /// The kind, as written in the policy.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vault(_) => "vault",
            Self::AwsSecretsManager(_) => "aws_secrets_manager",
            Self::GcpSecretManager(_) => "gcp_secret_manager",
            Self::AzureKeyVault(_) => "azure_key_vault",
            Self::Kubernetes(_) => "kubernetes",
            Self::Exec(_) => "exec",
            Self::Sealed(_) => "sealed",
        }
    }

    /// What is wrong with the settings, as far as it can be told without asking the store. Reads the file of authorities.
    #[must_use]
    pub fn mistakes(&self, directory: &Path) -> Vec<StoreMistake> {
        let mut mistakes = match self {
            Self::Vault(config) => config.mistakes(),
            Self::AwsSecretsManager(config) => config.mistakes(),
            Self::GcpSecretManager(config) => config.mistakes(),
            Self::AzureKeyVault(config) => config.mistakes(),
            Self::Kubernetes(config) => config.mistakes(),
            Self::Exec(config) => config.mistakes(),
            Self::Sealed(config) => config.mistakes(),
        };
        mistakes.extend(self.read_ca(directory).err().map(|what| ("ca", what)));
        mistakes
    }

    /// The authorities that the store trusts in place of the system's; read with the policy, so that a change of the file
    /// is a change of the settings.
    pub(super) fn read_ca(&self, directory: &Path) -> Result<Option<Arc<[u8]>>, String> {
        let path = match self {
            Self::Vault(config) => config.ca.as_deref(),
            Self::AwsSecretsManager(config) => config.ca.as_deref(),
            Self::GcpSecretManager(config) => config.ca.as_deref(),
            Self::AzureKeyVault(config) => config.ca.as_deref(),
            Self::Kubernetes(config) => config.ca.as_deref(),
            Self::Exec(_) | Self::Sealed(_) => None,
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
            Self::AwsSecretsManager(config) => Arc::new(aws::AwsStore::new(name, config, ca, env)?),
            Self::GcpSecretManager(config) => Arc::new(gcp::GcpStore::new(name, config, ca, env)?),
            Self::AzureKeyVault(config) => Arc::new(azure::AzureStore::new(name, config, ca, env)?),
            Self::Kubernetes(config) => Arc::new(kubernetes::KubernetesStore::new(name, config, ca, env)?),
            Self::Exec(config) => Arc::new(exec::ExecStore::new(config)),
            Self::Sealed(config) => Arc::new(sealed::SealedStore::new(config, env)),
        })
    }
}
