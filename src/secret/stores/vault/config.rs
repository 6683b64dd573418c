//! The settings of a `vault` store as written in the policy.

use std::fmt;

use http::HeaderValue;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::login::VaultAuth;
use crate::message::quantity::TimeSpan;
use crate::secret::config::StoreMistake;
use crate::secret::stores::server::{self, Plaintext, StoreAddress, StoreTimeouts};

/// HashiCorp Vault or OpenBao.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VaultConfig {
    /// `https://host:port`. Plain http is for an agent on this host.
    pub address: StoreAddress,
    /// The namespace, where the server has them.
    pub namespace: Option<String>,
    /// PEM file of the authorities that are trusted in place of the system's.
    pub ca: Option<String>,
    /// `allow` lets secrets go over http to another host. Default: `deny`.
    pub plaintext: Option<Plaintext>,
    /// How outgate logs in.
    pub auth: VaultAuth,
    /// Version of the KV engine: `auto` (asked of the server), `1` or `2`. Default: `auto`.
    pub kv: Option<KvVersion>,
    /// The mount that all references of this store lie below. Default: none; then a reference begins with its mount.
    pub mount: Option<String>,
    /// How often a value without a lease is read again. Default: 5m.
    pub refresh: Option<TimeSpan>,
    /// Times of one read.
    pub timeouts: Option<StoreTimeouts>,
}

/// Version of Vault's KV engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvVersion {
    /// The server is asked.
    #[default]
    Auto,
    /// Without versions.
    V1,
    /// With versions.
    V2,
}

impl<'de> Deserialize<'de> for KvVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = KvVersion;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto`, `1` or `2`")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<KvVersion, E> {
                match number {
                    1 => Ok(KvVersion::V1),
                    2 => Ok(KvVersion::V2),
                    _ => Err(E::custom("expected `auto`, `1` or `2`")),
                }
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<KvVersion, E> {
                self.visit_u64(u64::try_from(number).unwrap_or_default())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<KvVersion, E> {
                match text {
                    "auto" => Ok(KvVersion::Auto),
                    _ => self.visit_u64(text.parse().unwrap_or_default()),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for KvVersion {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "KvVersion".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": "auto" }, { "const": 1 }, { "const": 2 }] })
    }
}

impl VaultConfig {
    pub(crate) fn mistakes(&self) -> Vec<StoreMistake> {
        let mut mistakes = server::check_times(&self.timeouts(), self.refresh);
        mistakes.extend(self.address.check_plaintext(self.plaintext.unwrap_or_default()));
        mistakes.extend(self.auth.mistakes());
        if self.mount.as_deref().is_some_and(|mount| !is_path(mount)) {
            mistakes.push((
                "mount",
                "expected a path such as `kv` or `team/kv`, without slashes around it".to_owned(),
            ));
        }
        if self.namespace.as_deref().is_some_and(|name| HeaderValue::from_str(name).is_err()) {
            mistakes.push(("namespace", "it has characters that cannot be sent".to_owned()));
        }
        mistakes
    }

    pub(super) fn timeouts(&self) -> StoreTimeouts {
        self.timeouts.clone().unwrap_or_default()
    }
}

/// Whether it is a path of Vault: no empty and no dot segments, which would name something else than they say.
pub(super) fn is_path(path: &str) -> bool {
    path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}
