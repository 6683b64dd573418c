//! What is the process's own: listeners, the admin listener, interception, bounds, logs. A change of it needs a restart.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::NotYet;
use crate::message::quantity::{ByteSize, TimeSpan};
use crate::secret::reference::SecretRef;

/// One listener.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// `address:port`, `unix:/path/of/socket`, or `systemd:NAME`: a socket that systemd hands over under this name
    /// (`FileDescriptorName`). Required.
    pub address: Option<String>,
    /// The doors it opens, told apart by the request itself. `transparent` stands alone: such a listener takes connections that
    /// were redirected to it (`outgate redirect`), and nothing else. Default: all of `forward`, `connect`, `local`.
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
    /// Redirected connections: TLS is judged as a CONNECT to its SNI and the port that was dialled, plain HTTP as `forward` by its
    /// `Host`. Only in `accept` of a listener: a provider opens `connect` and `forward` to them.
    Transparent,
}

/// `auth:` of a listener: `none`, or `{ token: env:OUTGATE_TOKEN }`, or tokens of tenants.
#[derive(Clone, Debug)]
pub enum ListenerAuth {
    /// Everyone who can connect.
    None,
    /// Who sends one of these tokens in `Proxy-Authorization`, Basic or Bearer.
    Tokens(ListenerTokens),
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
                let tokens = ListenerTokens::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(ListenerAuth::Tokens(tokens))
            }
        }
        deserializer.deserialize_any(AuthVisitor)
    }
}

/// The tokens that a listener knows.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTokens {
    /// Reference of the token of whoever is no tenant. Default: none; then `tenants` is required.
    pub token: Option<SecretRef>,
    /// Tokens of tenants, by the tenant's name: who sends one is that tenant, for providers with `tenant: { from: token }`. At most
    /// 1000. Default: none.
    pub tenants: Option<BTreeMap<String, SecretRef>>,
}

impl JsonSchema for ListenerAuth {
    fn schema_name() -> Cow<'static, str> {
        "ListenerAuth".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let token = generator.subschema_for::<ListenerTokens>();
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
    /// Where the same certificates are written for Java: a PKCS#12 truststore, whose password is the customary `changeit`.
    /// Default: nowhere.
    pub truststore: Option<String>,
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
