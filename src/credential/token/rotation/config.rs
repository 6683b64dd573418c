//! Where a rotating refresh token is kept, as written in the policy.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Shelf;
use super::file::FileShelf;
use super::redis::RedisShelf;
use crate::credential::token::{Input, Inputs};
use crate::secret::TokenFault;
use crate::secret::reference::{ENV, FILE, SecretRef};

/// Where the newest refresh token is kept: one place, of one kind.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeepConfig {
    /// A file in a directory that outgate may write to and that outlives the process: for one pod.
    File(String),
    /// A secret of its own in a KV of version 2 of a `vault` store, as `<store>:<path>`: for any number of pods.
    Vault(SecretRef),
    /// A key in a Redis that keeps its data: for any number of pods.
    Redis(RedisKeepConfig),
}

/// A key in Redis.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisKeepConfig {
    /// Its URL, `redis://` or `rediss://`, as a secret reference.
    pub url: SecretRef,
    /// The key. Default: one made of the token endpoint, the client and the reference of the refresh token.
    pub key: Option<String>,
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeepSettings {
    /// A file.
    File(PathBuf),
    /// A secret of a store.
    Vault(SecretRef),
    /// A key in Redis.
    Redis {
        /// Where Redis is.
        url: SecretRef,
        /// The key.
        key: String,
    },
}

impl fmt::Display for KeepSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Vault(reference) => write!(f, "{reference}"),
            Self::Redis { url, key } => write!(f, "the key {key} of the Redis at {url}"),
        }
    }
}

impl KeepConfig {
    /// The place. `owner` tells this grant from all others.
    ///
    /// # Errors
    /// What is wrong.
    pub fn compile(&self, directory: &Path, owner: &str) -> Result<KeepSettings, String> {
        match self {
            Self::File(path) => {
                let path = path.strip_prefix("file:").unwrap_or(path);
                if path.is_empty() || path.ends_with('/') {
                    return Err("`store.file` is the path of a file".to_owned());
                }
                Ok(KeepSettings::File(directory.join(path)))
            }
            Self::Vault(reference) if matches!(reference.store(), ENV | FILE) => {
                Err("`store.vault` names a `vault` store of `secrets`, such as `payments:kv/outgate/slack`"
                    .to_owned())
            }
            Self::Vault(reference) if reference.version().is_some() || reference.field().is_some() => {
                Err("`store.vault` is a whole secret of its own, without `#field` and `@version`".to_owned())
            }
            Self::Vault(reference) => Ok(KeepSettings::Vault(reference.clone())),
            Self::Redis(redis) => {
                let mark = digest(&SHA256, owner.as_bytes());
                let mark: String = mark.as_ref().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
                let key = redis.key.clone().unwrap_or_else(|| format!("outgate:grant:{mark}"));
                Ok(KeepSettings::Redis { url: redis.url.clone(), key })
            }
        }
    }
}

/// A path without `..` and links in its directory, where that exists.
#[must_use]
pub fn whole(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    match directory.zip(path.file_name()) {
        Some((directory, name)) => directory.join(name),
        None => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

impl KeepSettings {
    /// The secret that it needs itself.
    #[must_use]
    pub fn input(&self) -> Option<Input> {
        match self {
            Self::Redis { url, .. } => Some(Input::text(vec![url.clone()])),
            Self::File(_) | Self::Vault(_) => None,
        }
    }

    /// Whether pods on several hosts can share it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !matches!(self, Self::File(_))
    }

    /// Whether it is the very same place, as far as the policy tells: one Redis has one reference, one file any path.
    #[must_use]
    pub fn is_at(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(another)) => whole(one) == whole(another),
            (one, another) => one == another,
        }
    }

    /// The secret that is written, where it is one.
    #[must_use]
    pub fn written(&self) -> Option<&SecretRef> {
        match self {
            Self::Vault(reference) => Some(reference),
            Self::File(_) | Self::Redis { .. } => None,
        }
    }

    /// The place itself. Its own secret is the input at `at`.
    ///
    /// # Errors
    /// That secret is not there, or the store is not.
    pub async fn open(&self, inputs: &Inputs<'_>, at: usize) -> Result<Shelf, TokenFault> {
        Ok(match self {
            Self::File(path) => Shelf::File(FileShelf::new(path)),
            Self::Redis { key, .. } => Shelf::Redis(RedisShelf::new(inputs.get(at).await?, key)),
            Self::Vault(reference) => {
                let store = inputs.store(reference).ok_or(TokenFault::NotKept("there is no such store"))?;
                Shelf::Store { store, reference: reference.clone() }
            }
        })
    }
}
