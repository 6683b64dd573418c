//! What an upstream is made of, after the policy was compiled. Equal settings keep their connections over a reload.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::message::target::{Host, Scheme};

use super::guard::AddressRules;
use super::ranges::unmap;

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// What ALPN says; HTTP/1.1 without TLS.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; without TLS by prior knowledge.
    Http2,
}

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MinTls {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// TLS towards the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// PEM of the authorities that are trusted in place of the system's.
    pub ca: Option<Arc<[u8]>>,
    /// The oldest version.
    pub min_version: MinTls,
}

/// Bounds of the connection pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolSettings {
    /// Connections per host and port, those being made included.
    pub max_connections: usize,
    /// How long a connection is kept without a request.
    pub idle_timeout: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self { max_connections: 100, idle_timeout: Duration::from_secs(60) }
    }
}

/// Who resolves names when a corporate proxy is chained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProxyResolve {
    /// outgate: the proxy is asked for the address that was checked.
    #[default]
    Local,
    /// The proxy: it is asked for the name, and the address rules cannot be kept for names.
    Proxy,
}

/// A corporate proxy that connections are chained through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamProxy {
    /// The proxy's host. It is dialled without the address rules: the policy names it.
    pub host: Host,
    /// The proxy's port.
    pub port: u16,
    /// Destinations that are dialled directly.
    pub no_proxy: Vec<Bypass>,
    /// Who resolves names.
    pub resolve: ProxyResolve,
}

/// A destination that is dialled directly though a corporate proxy is configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// Every host.
    All,
    /// This very name.
    Host(Host),
    /// Names below this suffix, which starts with a dot; not the suffix itself.
    Below(Arc<str>),
    /// Addresses in this range: literals, and names where outgate resolves them itself.
    Net(IpNet),
}

impl Bypass {
    /// Whether the name (or literal) is dialled directly.
    pub fn covers_host(&self, host: &Host) -> bool {
        match (self, host.ip()) {
            (Self::All, _) => true,
            (Self::Host(own), _) => own == host,
            (Self::Below(suffix), None) => host.as_str().ends_with(&**suffix),
            (Self::Net(net), Some(ip)) => net.contains(&unmap(ip)),
            (Self::Below(_), Some(_)) | (Self::Net(_), None) => false,
        }
    }
}

/// Everything that makes an upstream what it is, apart from secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamSettings {
    /// The provider's name, for logs and metrics.
    pub provider: Arc<str>,
    /// How the provider is spoken to.
    pub scheme: Scheme,
    /// Dialled in place of what the name resolves to; allowed by being named.
    pub connect_to: Option<SocketAddr>,
    /// TLS.
    pub tls: TlsSettings,
    /// Version of HTTP.
    pub http: HttpVersion,
    /// Pool bounds.
    pub pool: PoolSettings,
    /// Bound of resolving and connecting together.
    pub connect_timeout: Duration,
    /// Bound of the TLS handshake.
    pub tls_timeout: Duration,
    /// Which addresses may be dialled.
    pub addresses: Arc<AddressRules>,
    /// The corporate proxy.
    pub upstream_proxy: Option<Arc<UpstreamProxy>>,
}

impl UpstreamSettings {
    /// The settings of a provider that says nothing of its own.
    pub fn new(provider: Arc<str>, addresses: Arc<AddressRules>) -> Self {
        Self {
            provider,
            scheme: Scheme::Https,
            connect_to: None,
            tls: TlsSettings::default(),
            http: HttpVersion::Auto,
            pool: PoolSettings::default(),
            connect_timeout: Duration::from_secs(2),
            tls_timeout: Duration::from_secs(3),
            addresses,
            upstream_proxy: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_entries_cover_what_they_say() {
        let host = |text: &str| Host::parse(text).unwrap();
        let below = Bypass::Below(".example.com".into());
        assert!(below.covers_host(&host("a.example.com")));
        assert!(!below.covers_host(&host("example.com")));
        assert!(!below.covers_host(&host("badexample.com")));
        let net = Bypass::Net("10.0.0.0/8".parse().unwrap());
        assert!(net.covers_host(&host("10.1.1.1")));
        assert!(net.covers_host(&host("[::ffff:10.1.1.1]")));
        assert!(!net.covers_host(&host("11.1.1.1")));
        assert!(Bypass::Host(host("a.b")).covers_host(&host("A.b.")));
        assert!(Bypass::All.covers_host(&host("x")));
    }
}
