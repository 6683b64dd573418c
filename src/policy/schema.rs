//! The policy as typed: what a platform team writes, key by key. The JSON Schema and `docs/configuration.md` come from
//! these types; what the keys mean together is said in `compile`.
//!
//! Every key is optional here, because a value may come from `defaults`; what is required is checked on the merged whole.
//! Keys of the contract that are not built yet have the type [`NotYet`]: they are refused by name, never ignored.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::switch::Switch;
use crate::credential::CredentialConfig;
use crate::credential::scrub::Scrub;
use crate::message::quantity::{ByteSize, TimeSpan};
use crate::resilience::cache::CacheConfig;
use crate::resilience::circuit_breaker::BreakerConfig;
use crate::resilience::concurrency::ConcurrencyConfig;
use crate::resilience::fleet::FleetConfig;
use crate::resilience::idempotency::IdempotencyConfig;
use crate::resilience::mode::Mode;
use crate::resilience::quota::QuotaConfig;
use crate::resilience::rate_limit::LimitsConfig;
use crate::resilience::responses::ResponsesConfig;
use crate::resilience::retry::RetryConfig;
use crate::secret::StoreConfig;
use crate::secret::reference::SecretRef;
use crate::upstream::config::{AddressesConfig, UpstreamConfig};

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

/// One listener.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// `address:port`, or `unix:/path/of/socket`. Required.
    pub address: Option<String>,
    /// The doors it opens, told apart by the request itself. Default: all of `forward`, `connect`, `local`.
    pub accept: Option<Vec<DoorConfig>>,
    /// Who may use it. Default: `none`.
    pub auth: Option<ListenerAuth>,
    /// Must be true for an address off loopback without auth. Default: false.
    pub expose: Option<bool>,
    /// Further `Host` names by which the local endpoint may be called here, such as a container's name. Default: none.
    pub hosts: Option<Vec<String>>,
}

/// A way into outgate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DoorConfig {
    /// Absolute-form requests (`HTTP_PROXY`).
    Forward,
    /// CONNECT (`HTTPS_PROXY`).
    Connect,
    /// The local endpoint.
    Local,
    /// Redirected connections. Not supported yet.
    Transparent,
}

/// `auth:` of a listener: `none`, or `{ token: env:OUTGATE_TOKEN }`.
#[derive(Clone, Debug)]
pub enum ListenerAuth {
    /// Everyone who can connect.
    None,
    /// Who sends this token in `Proxy-Authorization`, Basic or Bearer.
    Token(SecretRef),
}

impl<'de> Deserialize<'de> for ListenerAuth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AuthVisitor;
        impl<'de> de::Visitor<'de> for AuthVisitor {
            type Value = ListenerAuth;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`none`, or `{ token: env:OUTGATE_TOKEN }`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ListenerAuth, E> {
                if text == "none" {
                    Ok(ListenerAuth::None)
                } else {
                    Err(E::custom("expected `none`, or `{ token: env:OUTGATE_TOKEN }`"))
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<ListenerAuth, A::Error> {
                let config = TokenAuth::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(ListenerAuth::Token(config.token))
            }
        }
        deserializer.deserialize_any(AuthVisitor)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TokenAuth {
    /// Reference of the token.
    token: SecretRef,
}

impl JsonSchema for ListenerAuth {
    fn schema_name() -> Cow<'static, str> {
        "ListenerAuth".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let token = generator.subschema_for::<TokenAuth>();
        json_schema!({ "anyOf": [{ "const": "none" }, token] })
    }
}

/// The admin listener.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// `address:port` or `unix:/path`. Default: 127.0.0.1:9901.
    pub address: Option<String>,
    /// Token (Bearer) for what changes state, and for everything but health and metrics off loopback. Default: none.
    pub token: Option<SecretRef>,
    /// A second address that serves /healthz, /readyz and /metrics only. Default: none.
    pub health_address: Option<String>,
    /// Whether `POST /quit` drains and ends outgate for whoever reaches `address` on loopback, without the token: so the last
    /// act of a Job's main container can end a sidecar that Kubernetes takes for a main container too. Default: false.
    pub quit: Option<bool>,
}

/// TLS interception.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InterceptionConfig {
    /// Where the CA is. Default: `{ directory: .outgate/ca }`, made on first run.
    pub ca: Option<CaConfig>,
    /// Where the bundle of system roots and this CA is written, for the app's SSL_CERT_FILE and friends. Default: `.outgate/ca-bundle.pem`.
    pub bundle: Option<String>,
}

/// The CA: a directory, or a certificate and its key.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaConfig {
    /// Directory of `ca.pem` and `ca.key`; made on first run.
    pub directory: Option<String>,
    /// PEM file of a CA certificate of your own.
    pub certificate: Option<String>,
    /// PEM file of its key, mode 0600.
    pub key: Option<String>,
}

/// Bounds of the process.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Worker threads: a number, or `auto` (the processors this process may use). Default: `auto`.
    pub workers: Option<Workers>,
    /// Connections from apps at a time. Default: 10000.
    pub max_connections: Option<u32>,
    /// How long running work may take after SIGTERM. Default: 20s.
    pub drain: Option<TimeSpan>,
    /// How long, after SIGTERM and before `drain`, everything is served as before, at most: where app and outgate are told to
    /// end at the same moment, the app still needs its way out. Default: 0s.
    pub linger: Option<TimeSpan>,
    /// `linger` is over as soon as nothing has run for so long. Default: 5s.
    pub linger_idle: Option<TimeSpan>,
    /// Bounds of the app's side.
    pub downstream: Option<DownstreamConfig>,
}

/// `workers:` a number or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// As many as there are processors.
    #[default]
    Auto,
    /// Exactly so many.
    Count(u16),
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WorkersVisitor;
        impl de::Visitor<'_> for WorkersVisitor {
            type Value = Workers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto`, or a number from 1 to 1024")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Workers, E> {
                if text == "auto" {
                    Ok(Workers::Auto)
                } else {
                    Err(E::custom("expected `auto`, or a number from 1 to 1024"))
                }
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Workers, E> {
                match u16::try_from(number) {
                    Ok(count @ 1..=1024) => Ok(Workers::Count(count)),
                    Ok(_) | Err(_) => Err(E::custom("expected `auto`, or a number from 1 to 1024")),
                }
            }
        }
        deserializer.deserialize_any(WorkersVisitor)
    }
}

impl JsonSchema for Workers {
    fn schema_name() -> Cow<'static, str> {
        "Workers".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": "auto" }, { "type": "integer", "minimum": 1, "maximum": 1024 }] })
    }
}

/// Bounds of the app's side.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DownstreamConfig {
    /// From the first byte of a request head to its end. Default: 10s.
    pub header_timeout: Option<TimeSpan>,
    /// For the TLS handshake of an intercepted connection, and for the first bytes of a tunnel. Default: 10s.
    pub tls_handshake_timeout: Option<TimeSpan>,
    /// Between requests. Default: 5m.
    pub idle_timeout: Option<TimeSpan>,
    /// Between bytes of a request body. Default: 30s.
    pub body_timeout: Option<TimeSpan>,
    /// Between bytes of an answer that the app takes. Default: 30s.
    pub write_timeout: Option<TimeSpan>,
    /// Header fields of a request. Default: 256.
    pub max_headers: Option<u32>,
    /// Size of a request head. Default: 64KiB.
    pub max_header_bytes: Option<ByteSize>,
}

/// Logs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The access log.
    pub access_log: Option<AccessLogConfig>,
    /// What of a URL's query is logged. Default: `keys`.
    pub query: Option<QueryConfig>,
    /// Traces over OTLP. Not supported yet.
    pub otlp: Option<NotYet>,
}

/// The access log.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLogConfig {
    /// `json` or `text`. Default: `json`.
    pub format: Option<LogFormat>,
    /// `stdout`, or `{ file: path }`. Default: `stdout`.
    pub output: Option<LogOutput>,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Where log lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogOutput {
    /// Standard output.
    #[default]
    Stdout,
    /// A file; reopened when it was moved away.
    File(String),
}

/// What of a URL's query is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueryConfig {
    /// Nothing.
    None,
    /// The names of its parameters.
    #[default]
    Keys,
    /// Names and values; the values of parameters that carry credentials are masked.
    Redacted,
}

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
    /// The request header that names the tenant; it is taken out before the provider sees the request. Required.
    pub header: Option<String>,
    /// Whether a request without it is refused (400). `{tenant}` in a secret reference needs `true`. Default: false.
    pub required: Option<bool>,
    /// What a tenant's name looks like, as a whole; any other is refused (400). Characters, classes (`[a-z0-9]`), and how often
    /// (`{16}`, `{1,64}`, `?`, `+`, `*`), at most 128 in all; never `.` or what holds `..`. Default: `[A-Za-z0-9._-]{1,128}`.
    pub pattern: Option<String>,
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
