//! The policy as typed: what a platform team writes, key by key. The JSON Schema and `docs/configuration.md` come from
//! these types; what the keys mean together is said in `compile`.
//!
//! Every key is optional here, because a value may come from `defaults`; what is required is checked on the merged whole.
//! Keys of the contract that are not built yet have the type [`NotYet`]: they are refused by name, never ignored.

mod process;
mod provider;

pub use process::{
    AccessLogConfig, AdminConfig, CaConfig, DoorConfig, DownstreamConfig, InterceptionConfig, ListenerAuth,
    ListenerConfig, ListenerTokens, LogFormat, LogOutput, QueryConfig, RuntimeConfig, TelemetryConfig,
    Workers,
};
pub use provider::{
    HeadersConfig, Intercept, LocalConfig, MatchConfig, ParameterConfig, Paths, ProviderConfig,
    QueryEditsConfig, RedactConfig, RouteConfig, TenantConfig, TenantFromConfig, TimeoutsConfig,
};

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::switch::Switch;
use crate::resilience::fleet::FleetConfig;
use crate::secret::StoreConfig;
use crate::upstream::config::AddressesConfig;

/// A key that is part of the contract and not built yet. Writing it is an error.
#[derive(Clone, Debug)]
pub struct NotYet;

impl<'de> Deserialize<'de> for NotYet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer)?;
        Err(de::Error::custom("not supported yet"))
    }
}

impl JsonSchema for NotYet {
    fn schema_name() -> Cow<'static, str> {
        "NotSupportedYet".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "not": {}, "description": "part of the contract, not supported yet: writing it is an error" })
    }
}

/// A policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// Version of this format: 1.
    pub version: Option<u32>,
    /// Where apps connect to. Default: one on 127.0.0.1:3128. Needs a restart.
    pub listeners: Option<Vec<ListenerConfig>>,
    /// Metrics, health and status. Needs a restart.
    pub admin: Option<AdminConfig>,
    /// The CA of TLS interception. Needs a restart.
    pub interception: Option<InterceptionConfig>,
    /// Bounds of the process. Needs a restart.
    pub runtime: Option<RuntimeConfig>,
    /// Logs. Needs a restart.
    pub telemetry: Option<TelemetryConfig>,
    /// Secret stores by name; `env` and `file` always exist.
    pub secrets: Option<BTreeMap<String, StoreConfig>>,
    /// Limits that pods share (`scope: fleet`). Default: none.
    pub fleet: Option<Switch<FleetConfig>>,
    /// What happens to hosts that no provider names. Default: `deny`.
    pub unmatched: Option<Unmatched>,
    /// Which addresses may be reached though they are not public, and through which proxy.
    pub addresses: Option<AddressesConfig>,
    /// Anything a provider may have; a provider's own keys win, key by key.
    pub defaults: Option<ProviderConfig>,
    /// The providers, by name.
    pub providers: Option<BTreeMap<String, ProviderConfig>>,
}

/// What happens to hosts that no provider names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// 403.
    #[default]
    Deny,
    /// CONNECT to port 443 goes through, TLS with the host as SNI, nothing else.
    Tunnel,
}
