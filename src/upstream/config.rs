//! `upstream:` and `addresses:` as written in the policy.

use schemars::JsonSchema;
use serde::Deserialize;

use super::settings::{HttpVersion, ProxyResolve};
use crate::message::quantity::TimeSpan;
use crate::message::target::Scheme;

/// How a provider is reached.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `https` or `http`. Default: `https`.
    pub scheme: Option<SchemeConfig>,
    /// Dial this `ip:port` instead of resolving; SNI and Host stay. Implies that this one address is allowed.
    pub connect_to: Option<String>,
    /// TLS with the provider.
    pub tls: Option<TlsConfig>,
    /// Version of HTTP: `auto` (what TLS negotiates), `http1` or `http2`. Default: `auto`.
    pub http: Option<HttpConfig>,
    /// `allow` is needed for a credential over scheme http. Default: `deny`.
    pub plaintext_credential: Option<PlaintextCredential>,
    /// Connections that are kept.
    pub pool: Option<PoolConfig>,
}

/// How a provider is spoken to.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SchemeConfig {
    /// HTTP over TLS.
    Https,
    /// Plain HTTP.
    Http,
}

impl From<SchemeConfig> for Scheme {
    fn from(config: SchemeConfig) -> Self {
        match config {
            SchemeConfig::Https => Self::Https,
            SchemeConfig::Http => Self::Http,
        }
    }
}

/// Version of HTTP.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HttpConfig {
    /// What TLS negotiates.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl From<HttpConfig> for HttpVersion {
    fn from(config: HttpConfig) -> Self {
        match config {
            HttpConfig::Auto => Self::Auto,
            HttpConfig::Http1 => Self::Http1,
            HttpConfig::Http2 => Self::Http2,
        }
    }
}

/// Whether a credential may go over plain HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlaintextCredential {
    /// It may not.
    Deny,
    /// It may: anyone on the way can read it.
    Allow,
}

/// TLS with a provider.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the authorities that are trusted in place of the system's.
    pub ca: Option<String>,
    /// Secret reference of a client certificate, PEM, leaf first.
    pub client_certificate: Option<String>,
    /// Secret reference of its key, PEM.
    pub client_key: Option<String>,
    /// `"1.2"` or `"1.3"`. Default: `"1.2"`.
    pub min_version: Option<MinVersionConfig>,
}

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub enum MinVersionConfig {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

/// Connections that are kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// Connections per host. Default: 100.
    pub max_connections: Option<u32>,
    /// How long an unused one is kept. Default: 60s.
    pub idle_timeout: Option<TimeSpan>,
}

/// Which addresses may be reached though they are not public, and through which proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressesConfig {
    /// Ranges such as `10.0.0.0/8` or `10.0.0.0/8:443` that are reachable though private, loopback, link-local, CGNAT ...
    pub allow_private: Option<Vec<String>>,
    /// Cloud metadata addresses need an exemption of their own.
    pub allow_metadata: Option<Vec<String>>,
    /// A corporate proxy to chain through.
    pub upstream_proxy: Option<UpstreamProxyConfig>,
}

/// A corporate proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamProxyConfig {
    /// `http://host:port`. Required.
    pub url: Option<String>,
    /// Secret reference of `user:password`.
    pub auth: Option<String>,
    /// Hosts that are dialled directly: names, `.suffixes`, ranges, or `*`.
    pub no_proxy: Option<Vec<String>>,
    /// Who resolves names: `local` (outgate, which then asks the proxy for the checked address) or `proxy`. Default: `local`.
    pub resolve: Option<ResolveConfig>,
}

/// Who resolves names behind a corporate proxy.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResolveConfig {
    /// outgate.
    Local,
    /// The proxy; the address rules cannot be kept.
    Proxy,
}

impl From<ResolveConfig> for ProxyResolve {
    fn from(config: ResolveConfig) -> Self {
        match config {
            ResolveConfig::Local => Self::Local,
            ResolveConfig::Proxy => Self::Proxy,
        }
    }
}
