//! A provider, its routes, and what both may say of a request.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::NotYet;
use super::process::DoorConfig;
use crate::credential::CredentialConfig;
use crate::credential::scrub::Scrub;
use crate::message::quantity::{ByteSize, TimeSpan};
use crate::policy::switch::Switch;
use crate::resilience::cache::CacheConfig;
use crate::resilience::circuit_breaker::BreakerConfig;
use crate::resilience::concurrency::ConcurrencyConfig;
use crate::resilience::idempotency::IdempotencyConfig;
use crate::resilience::mode::Mode;
use crate::resilience::quota::QuotaConfig;
use crate::resilience::rate_limit::LimitsConfig;
use crate::resilience::responses::ResponsesConfig;
use crate::resilience::retry::RetryConfig;
use crate::upstream::config::UpstreamConfig;

/// One provider, or `defaults`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Built-in knowledge of a provider, by its name (`outgate presets` lists them): hosts, the place of the credential, quota
    /// fields, what answers mean. The provider's own keys win.
    pub preset: Option<String>,
    /// Parameters of the preset, such as `subdomain`; `outgate presets show <name>` says which.
    pub with: Option<BTreeMap<String, ParameterConfig>>,
    /// Its hosts: names, `*.example.com` (one label), each with an optional port. Required without a preset.
    pub hosts: Option<Vec<String>>,
    /// Changes of request headers.
    pub headers: Option<HeadersConfig>,
    /// Changes of a request's query.
    pub query: Option<QueryEditsConfig>,
    /// How it is reached.
    pub upstream: Option<UpstreamConfig>,
    /// The doors by which its hosts are found. Default: all of `forward`, `connect`, `local`.
    pub doors: Option<Vec<DoorConfig>>,
    /// Largest request body; 413 above it. Default: none.
    pub max_body: Option<ByteSize>,
    /// Whether TLS is intercepted. Default: `auto`.
    pub intercept: Option<Intercept>,
    /// Of a blind tunnel: true lets any bytes through, false wants TLS whose SNI is the CONNECT host. Default: false.
    pub opaque: Option<bool>,
    /// Where it is found at the local endpoint.
    pub local: Option<LocalConfig>,
    /// What is injected. With a preset, the parts of its credential are enough: `{ secret: env:STRIPE_KEY }`. Default: `none`.
    #[serde(default)]
    #[schemars(schema_with = "credential_or_parts")]
    pub credential: Option<CredentialConfig>,
    /// `enforce`, or `shadow`: what limits, quota, concurrency, breaker and denying routes would refuse is counted and logged,
    /// and passes. Default: `enforce`.
    pub mode: Option<Mode>,
    /// Tenants: for limits `per: tenant`, and for `{tenant}` in the secret references of `credential`.
    pub tenant: Option<TenantConfig>,
    /// How long things may take.
    pub timeouts: Option<TimeoutsConfig>,
    /// Rate limits; all of them must admit. Default: none.
    pub limits: Option<Switch<LimitsConfig>>,
    /// What one request takes of the limits that count cost (`unit: cost`): 1 to 1000000. Default: 1.
    pub cost: Option<u32>,
    /// How many requests run at a time. Default: any number.
    pub concurrency: Option<Switch<ConcurrencyConfig>>,
    /// What is learned from answers, and kept before the provider has to say 429. Default: on, with the values shown.
    pub quota: Option<Switch<QuotaConfig>>,
    /// What answers mean, first match wins. Without a row: 429 throttle, 401 unauthorized, 502, 503 and 504 unavailable, other
    /// 4xx final. Default: none.
    pub responses: Option<Switch<ResponsesConfig>>,
    /// When a request is sent again. Default: on, with the values shown.
    pub retry: Option<Switch<RetryConfig>>,
    /// Keys by which the provider knows a request again. Default: none.
    pub idempotency: Option<Switch<IdempotencyConfig>>,
    /// When a host of the provider is left alone because it fails. Default: none.
    pub breaker: Option<Switch<BreakerConfig>>,
    /// Answers that are kept (RFC 9111, private cache). Default: none.
    pub cache: Option<Switch<CacheConfig>>,
    /// What is masked in logs, added to the built-in lists.
    pub redact: Option<RedactConfig>,
    /// How far answers are searched for the credential. Default: `standard`.
    pub scrub: Option<Scrub>,
    /// `raw` lets dot segments, empty segments and encoded slashes pass where routes have paths. Default: `canonical`.
    pub paths: Option<Paths>,
    /// Rules by method and path; the first that matches decides.
    pub routes: Option<Vec<RouteConfig>>,
}

/// A credential as a kind; or, where a preset knows the kind, as a map of its parts.
fn credential_or_parts(generator: &mut SchemaGenerator) -> Schema {
    let kind = generator.subschema_for::<CredentialConfig>();
    json_schema!({ "anyOf": [
        kind,
        { "type": "object", "description": "with a preset: the parts of its credential, or one of its ways" },
        { "type": "null" },
    ] })
}

/// The value of a preset's parameter: a text, or a number, which is taken as it is written.
#[derive(Clone, Debug)]
pub struct ParameterConfig;

impl<'de> Deserialize<'de> for ParameterConfig {
    /// Only its kind is checked here; the value is read where the preset is filled in.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ParameterVisitor;
        impl de::Visitor<'_> for ParameterVisitor {
            type Value = ParameterConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a number")
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<ParameterConfig, E> {
                Ok(ParameterConfig)
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<ParameterConfig, E> {
                Ok(ParameterConfig)
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<ParameterConfig, E> {
                Ok(ParameterConfig)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<ParameterConfig, E> {
                Ok(ParameterConfig)
            }
        }
        deserializer.deserialize_any(ParameterVisitor)
    }
}

impl JsonSchema for ParameterConfig {
    fn schema_name() -> Cow<'static, str> {
        "Parameter".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number"] })
    }
}

/// Whether TLS is intercepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Intercept {
    /// Where a credential, or a key written in the policy, needs to see the request.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never: a blind tunnel.
    Never,
}

/// Tenants: whose request it is, where one app serves many customers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// What names the tenant: a `header` of the request, or the `token` that the client sends to the listener
    /// (`listeners.auth.tenants`), which proves it. Default: `header`.
    pub from: Option<TenantFromConfig>,
    /// The request header that names the tenant; it is taken out before the provider sees the request. Required with
    /// `from: header`.
    pub header: Option<String>,
    /// Whether a request that names none is refused (400; with `from: token` 403). `{tenant}` in a secret reference needs `true`. Default: false.
    pub required: Option<bool>,
    /// What a tenant's name looks like, as a whole; any other is refused (400). Characters, classes (`[a-z0-9]`), and how often
    /// (`{16}`, `{1,64}`, `?`, `+`, `*`), at most 128 in all; never `.` or what holds `..`. Default: `[A-Za-z0-9._-]{1,128}`.
    pub pattern: Option<String>,
}

/// What names the tenant of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TenantFromConfig {
    /// A header of the request.
    #[default]
    Header,
    /// The token that the client sends to the listener.
    Token,
}

/// How paths are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Paths {
    /// Ambiguous paths are 400 where a route has a path.
    #[default]
    Canonical,
    /// Paths are matched as they are.
    Raw,
}

/// Changes of request headers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeadersConfig {
    /// Written whatever the app sent.
    pub set: Option<BTreeMap<String, String>>,
    /// Written only where the app sent none.
    pub default: Option<BTreeMap<String, String>>,
    /// Removed.
    pub remove: Option<Vec<String>>,
}

/// Changes of a request's query.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryEditsConfig {
    /// Parameters that are taken out, by name, in every spelling in which a server may read it; the rest stays byte for byte.
    pub remove: Option<Vec<String>>,
}

/// Where a provider is found at the local endpoint.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalConfig {
    /// Path prefix. Default: `/<name>`.
    pub path: Option<String>,
    /// Host name. Default: `<name>.localhost`.
    pub host: Option<String>,
    /// A port of its own, for SDKs that take neither prefix nor host name. Default: none. Needs a restart.
    pub address: Option<String>,
}

/// How long things may take.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeoutsConfig {
    /// Name lookup and TCP connection. Default: 2s.
    pub connect: Option<TimeSpan>,
    /// TLS handshake with the provider. Default: 3s.
    pub tls: Option<TimeSpan>,
    /// From the last request byte sent to the head of the answer. Default: 60s.
    pub response: Option<TimeSpan>,
    /// Between bytes of a body, either way. Default: 60s.
    pub idle: Option<TimeSpan>,
    /// Silence in tunnels and WebSockets. Default: 1h.
    pub upgrade_idle: Option<TimeSpan>,
    /// Until a head is handed to the app: all attempts, queues and waits together. The app may shorten it. Default: 2m.
    pub deadline: Option<TimeSpan>,
    /// The whole exchange, the answer's body included. Default: none.
    pub total: Option<TimeSpan>,
}

/// What is masked in logs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedactConfig {
    /// Header fields. Not supported yet: no header is logged.
    pub headers: Option<NotYet>,
    /// Query parameters whose values are masked.
    pub query: Option<Vec<String>>,
    /// Fields of JSON bodies. Not supported yet: no body is logged.
    pub json_fields: Option<NotYet>,
    /// Path patterns; what stands at a `*` is masked.
    pub path: Option<Vec<String>>,
}

/// One rule by method and path.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Name in logs and metrics. Default: made of methods and path.
    pub name: Option<String>,
    /// Which requests. Required; `{}` is all.
    #[serde(rename = "match")]
    pub matching: Option<MatchConfig>,
    /// Refuses, with this reason.
    pub deny: Option<String>,
    /// Changes of request headers.
    pub headers: Option<HeadersConfig>,
    /// Changes of a request's query.
    pub query: Option<QueryEditsConfig>,
    /// Largest request body.
    pub max_body: Option<ByteSize>,
    /// What is injected.
    #[serde(default)]
    #[schemars(schema_with = "credential_or_parts")]
    pub credential: Option<CredentialConfig>,
    /// `enforce` or `shadow`. Default: the provider's.
    pub mode: Option<Mode>,
    /// How long things may take. `connect` and `tls` belong to the provider.
    pub timeouts: Option<TimeoutsConfig>,
    /// Rate limits; all of them must admit. Default: none.
    pub limits: Option<Switch<LimitsConfig>>,
    /// What one request takes of the limits that count cost (`unit: cost`): 1 to 1000000. Default: 1.
    pub cost: Option<u32>,
    /// How many requests run at a time. Default: any number.
    pub concurrency: Option<Switch<ConcurrencyConfig>>,
    /// What is learned from answers, and kept before the provider has to say 429. Default: on, with the values shown.
    pub quota: Option<Switch<QuotaConfig>>,
    /// What answers mean, first match wins. Without a row: 429 throttle, 401 unauthorized, 502, 503 and 504 unavailable, other
    /// 4xx final. Default: none.
    pub responses: Option<Switch<ResponsesConfig>>,
    /// When a request is sent again.
    pub retry: Option<Switch<RetryConfig>>,
    /// Keys by which the provider knows a request again. Default: none.
    pub idempotency: Option<Switch<IdempotencyConfig>>,
    /// When a host of the provider is left alone because it fails. Default: none.
    pub breaker: Option<Switch<BreakerConfig>>,
    /// Answers that are kept (RFC 9111, private cache). Default: none.
    pub cache: Option<Switch<CacheConfig>>,
    /// How far answers are searched for the credential.
    pub scrub: Option<Scrub>,
}

/// Which requests a route is for.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// Methods, in capitals. Default: all.
    pub methods: Option<Vec<String>>,
    /// Path pattern: `*` is one segment, `/**` at the end is the rest. Default: all.
    pub path: Option<String>,
}
