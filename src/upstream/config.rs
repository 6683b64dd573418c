//! `upstream:` of a provider and `addresses:` of the policy: what is typed, and how it becomes [`UpstreamSettings`].
//!
//! ```yaml
//! addresses:
//!   allow_private: ["10.0.0.0/8:443"]
//!   upstream_proxy: { url: "http://proxy.corp.example:3128", auth: env:PROXY_AUTH, no_proxy: [".corp.example"] }
//! providers:
//!   geo:
//!     upstream: { connect_to: "127.0.0.1:8443", tls: { ca: geo-ca.pem }, pool: { max_connections: 20 } }
//! ```

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::quantity::Span;
use crate::message::target::{Authority, Host, Scheme};
use crate::tls::pem;

use super::guard::{AddressRange, AddressRules};
pub use super::settings::UpstreamSettings;
use super::settings::{
    Bypass, HttpVersion, IdentityReferences, MinTls, PoolSettings, ProxyResolve, TlsSettings, UpstreamProxy,
};

/// A mistake in `upstream`: the keys that lead to it from there, and what is wrong.
pub type UpstreamMistake = (Vec<&'static str>, String);
/// A mistake in `addresses`: its key, and what is wrong.
pub type AddressMistake = (&'static str, String);

/// How a provider is reached.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `https` or `http`. Default: `https`.
    pub scheme: Option<SchemeConfig>,
    /// An address and port that is dialled in place of what the name resolves to. SNI and `Host` stay. The address is
    /// allowed by being named here. Default: none.
    pub connect_to: Option<String>,
    /// TLS towards the provider.
    pub tls: Option<UpstreamTlsConfig>,
    /// Version of HTTP: `auto` (what ALPN says), `http1` or `http2`. Default: `auto`.
    pub http: Option<HttpConfig>,
    /// Whether a credential may be sent over `scheme: http`: `deny` or `allow`. Default: `deny`.
    pub plaintext_credential: Option<PlaintextCredential>,
    /// Bounds of the connections that are kept.
    pub pool: Option<PoolConfig>,
}

/// How the provider is spoken to.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SchemeConfig {
    /// HTTP over TLS.
    Https,
    /// Plain HTTP.
    Http,
}

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HttpConfig {
    /// What ALPN says; HTTP/1.1 without TLS.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; without TLS by prior knowledge.
    Http2,
}

/// Whether a credential may be sent over plain HTTP.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlaintextCredential {
    /// No: such a provider is an error.
    Deny,
    /// Yes: anyone on the way can read it.
    Allow,
}

/// TLS towards the provider.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTlsConfig {
    /// A PEM file of certificate authorities that take the place of the system's; relative to the policy. Default: none.
    pub ca: Option<String>,
    /// Reference of a client certificate chain as PEM, leaf first. Needs `client_key`.
    pub client_certificate: Option<String>,
    /// Reference of the client certificate's key as PEM.
    pub client_key: Option<String>,
    /// The oldest version: `"1.2"` or `"1.3"`. Default: `"1.2"`.
    pub min_version: Option<MinVersionConfig>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub enum MinVersionConfig {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

/// Bounds of the connections that are kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// Connections per host and port; who finds none free waits in line for at most `timeouts.connect`. Default: 100.
    pub max_connections: Option<usize>,
    /// How long a connection is kept without a request. Default: `60s`.
    pub idle_timeout: Option<Span>,
}

/// Which addresses may be reached though they are not public, and through which proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressesConfig {
    /// Ranges, with or without a port (`10.0.0.0/8`, `10.0.0.0/8:443`, `[fd00::/8]:443`), that may be reached though they
    /// are private, loopback, link-local or otherwise not public. Default: none.
    pub allow_private: Option<Vec<String>>,
    /// Metadata services of cloud providers that may be reached; `allow_private` never covers them. Default: none.
    pub allow_metadata: Option<Vec<String>>,
    /// A corporate proxy that every connection is chained through. Default: none. Proxy variables of the environment have
    /// no effect.
    pub upstream_proxy: Option<UpstreamProxyConfig>,
}

/// A corporate proxy.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamProxyConfig {
    /// `http://host:port`.
    pub url: String,
    /// Reference of `user:password`. Default: none.
    pub auth: Option<String>,
    /// Destinations that are dialled directly: a host (`a.example`), all below one (`.example` or `*.example`), an address,
    /// a range, or `*`. Default: none.
    pub no_proxy: Option<Vec<String>>,
    /// Who resolves names: `local` (the proxy is asked for the address that was checked) or `proxy` (it is asked for the
    /// name, and the address rules cannot be kept). Default: `local`.
    pub resolve: Option<ResolveConfig>,
}

/// Who resolves names when a corporate proxy is chained.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResolveConfig {
    /// outgate.
    Local,
    /// The proxy.
    Proxy,
}

/// `addresses:` after it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressSettings {
    /// Which addresses may be dialled.
    pub rules: Arc<AddressRules>,
    /// The corporate proxy.
    pub upstream_proxy: Option<Arc<UpstreamProxy>>,
}

impl AddressSettings {
    /// Reads the section.
    ///
    /// # Errors
    ///
    /// The first mistake, with its key.
    pub fn compile(config: Option<&AddressesConfig>) -> Result<Self, AddressMistake> {
        let Some(config) = config else { return Ok(Self::default()) };
        let rules = AddressRules {
            allow_private: ranges("allow_private", config.allow_private.as_deref())?,
            allow_metadata: ranges("allow_metadata", config.allow_metadata.as_deref())?,
        };
        let upstream_proxy = config.upstream_proxy.as_ref().map(upstream_proxy).transpose();
        let upstream_proxy = upstream_proxy.map_err(|message| ("upstream_proxy", message))?;
        Ok(Self { rules: Arc::new(rules), upstream_proxy: upstream_proxy.map(Arc::new) })
    }

    /// Reference of the corporate proxy's `user:password`.
    pub fn proxy_auth(&self) -> Option<&str> {
        self.upstream_proxy.as_ref()?.auth.as_deref()
    }

    /// Whether the corporate proxy resolves names, so that the address rules cannot be kept.
    pub fn resolves_at_proxy(&self) -> bool {
        self.upstream_proxy.as_ref().is_some_and(|proxy| proxy.resolve == ProxyResolve::Proxy)
    }
}

fn ranges(key: &'static str, texts: Option<&[String]>) -> Result<Vec<AddressRange>, AddressMistake> {
    let parse = |text: &String| text.parse().map_err(|fault| (key, format!("`{text}`: {fault}")));
    texts.unwrap_or_default().iter().map(parse).collect()
}

fn upstream_proxy(config: &UpstreamProxyConfig) -> Result<UpstreamProxy, String> {
    let expected = "`url` must be the like of `http://proxy.example:3128`, without user, password or path";
    let authority = config.url.strip_prefix("http://").ok_or(expected)?;
    let authority =
        Authority::parse(authority.strip_suffix('/').unwrap_or(authority)).map_err(|_| expected)?;
    let no_proxy = config.no_proxy.as_deref().unwrap_or_default().iter().map(|text| bypass(text));
    Ok(UpstreamProxy {
        host: authority.host,
        port: authority.port.ok_or(expected)?,
        auth: config.auth.as_deref().map(Arc::from),
        no_proxy: no_proxy.collect::<Result<_, _>>()?,
        resolve: match config.resolve {
            Some(ResolveConfig::Local) | None => ProxyResolve::Local,
            Some(ResolveConfig::Proxy) => ProxyResolve::Proxy,
        },
    })
}

fn bypass(text: &str) -> Result<Bypass, String> {
    if text == "*" {
        return Ok(Bypass::All);
    }
    if let Some(name) = text.strip_prefix("*.").or_else(|| text.strip_prefix('.')) {
        let host = Host::parse(name).map_err(|fault| format!("`no_proxy`: `{text}`: {fault}"))?;
        return Ok(Bypass::Below(format!(".{}", host.as_str()).into()));
    }
    if let Ok(net) = IpNet::from_str(text) {
        return Ok(Bypass::Net(net.trunc()));
    }
    let host = Host::parse(text).map_err(|fault| format!("`no_proxy`: `{text}`: {fault}"))?;
    Ok(host.ip().map_or(Bypass::Host(host), |ip| Bypass::Net(ip.into())))
}

impl UpstreamSettings {
    /// Reads the section of a provider. `directory` is where the policy lies: the file of `tls.ca` is read from there.
    ///
    /// # Errors
    ///
    /// The first mistake, with the keys that lead to it.
    pub fn compile(
        provider: Arc<str>,
        config: Option<&UpstreamConfig>,
        addresses: &AddressSettings,
        connect_timeout: Duration,
        tls_timeout: Duration,
        directory: &Path,
    ) -> Result<Self, UpstreamMistake> {
        let default = UpstreamConfig::default();
        let config = config.unwrap_or(&default);
        let mut settings = Self::new(provider, addresses.rules.clone());
        settings.connect_timeout = connect_timeout;
        settings.tls_timeout = tls_timeout;
        settings.upstream_proxy = addresses.upstream_proxy.clone();
        settings.plaintext_credential =
            matches!(config.plaintext_credential, Some(PlaintextCredential::Allow));
        if let Some(SchemeConfig::Http) = config.scheme {
            settings.scheme = Scheme::Http;
        }
        settings.http = match config.http {
            Some(HttpConfig::Auto) | None => HttpVersion::Auto,
            Some(HttpConfig::Http1) => HttpVersion::Http1,
            Some(HttpConfig::Http2) => HttpVersion::Http2,
        };
        if let Some(text) = &config.connect_to {
            let address = text.parse().map_err(|_| {
                let message = format!("`{text}` is not an address with a port, such as `127.0.0.1:8443`");
                (vec!["connect_to"], message)
            })?;
            settings.connect_to = Some(address);
        }
        if let Some(pool) = &config.pool {
            settings.pool = pool_settings(pool)?;
        }
        if let Some(tls) = &config.tls {
            settings.tls = tls_settings(tls, directory)?;
            settings.identity = identity(tls)?;
        }
        Ok(settings)
    }

    /// The references of client certificate and key, each with its key below `upstream.tls`.
    pub fn identity_references(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.identity
            .iter()
            .flat_map(|own| [("client_certificate", &*own.certificate), ("client_key", &*own.key)])
    }
}

fn pool_settings(config: &PoolConfig) -> Result<PoolSettings, UpstreamMistake> {
    let default = PoolSettings::default();
    let settings = PoolSettings {
        max_connections: config.max_connections.unwrap_or(default.max_connections),
        idle_timeout: config.idle_timeout.map_or(default.idle_timeout, Span::get),
    };
    if settings.max_connections == 0 {
        return Err((vec!["pool", "max_connections"], "at least one connection is needed".to_owned()));
    }
    if settings.idle_timeout.is_zero() {
        return Err((vec!["pool", "idle_timeout"], "must be longer than nothing".to_owned()));
    }
    Ok(settings)
}

fn tls_settings(config: &UpstreamTlsConfig, directory: &Path) -> Result<TlsSettings, UpstreamMistake> {
    let at = |message: String| (vec!["tls", "ca"], message);
    let read = |name: &String| {
        let text = std::fs::read(directory.join(name)).map_err(|error| at(format!("`{name}`: {error}")))?;
        pem::certificates(&text, name).map_err(|error| at(error.to_string()))?;
        Ok(Arc::<[u8]>::from(text))
    };
    Ok(TlsSettings {
        ca: config.ca.as_ref().map(read).transpose()?,
        min_version: match config.min_version {
            Some(MinVersionConfig::Tls12) | None => MinTls::Tls12,
            Some(MinVersionConfig::Tls13) => MinTls::Tls13,
        },
    })
}

fn identity(config: &UpstreamTlsConfig) -> Result<Option<IdentityReferences>, UpstreamMistake> {
    let missing = |key| (vec!["tls", key], format!("missing key `{key}`: certificate and key go together"));
    match (&config.client_certificate, &config.client_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(IdentityReferences {
            certificate: certificate.as_str().into(),
            key: key.as_str().into(),
        })),
        (Some(_), None) => Err(missing("client_key")),
        (None, Some(_)) => Err(missing("client_certificate")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(text: &str) -> Result<UpstreamSettings, UpstreamMistake> {
        let config: UpstreamConfig = serde_yaml::from_str(text).unwrap();
        let second = Duration::from_secs(1);
        let addresses = AddressSettings::default();
        UpstreamSettings::compile(
            "p".into(),
            Some(&config),
            &addresses,
            second,
            second,
            Path::new("/nowhere"),
        )
    }

    fn addresses(text: &str) -> Result<AddressSettings, AddressMistake> {
        AddressSettings::compile(Some(&serde_yaml::from_str(text).unwrap()))
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let settings = upstream("{}").unwrap();
        assert_eq!(settings.scheme, Scheme::Https);
        assert_eq!(settings.http, HttpVersion::Auto);
        assert_eq!(settings.pool, PoolSettings::default());
        assert!(!settings.plaintext_credential && settings.identity.is_none());
    }

    #[test]
    fn everything_can_be_said() {
        let settings = upstream(
            "{scheme: http, connect_to: '127.0.0.1:8443', http: http2, plaintext_credential: allow,
              tls: {client_certificate: 'file:c.pem', client_key: 'file:k.pem', min_version: '1.3'},
              pool: {max_connections: 7, idle_timeout: 5s}}",
        )
        .unwrap();
        assert_eq!(settings.scheme, Scheme::Http);
        assert_eq!(settings.connect_to, Some("127.0.0.1:8443".parse().unwrap()));
        assert_eq!(settings.tls.min_version, MinTls::Tls13);
        assert_eq!(settings.pool.idle_timeout, Duration::from_secs(5));
        assert!(settings.plaintext_credential);
        let references: Vec<_> = settings.identity_references().collect();
        assert_eq!(references, [("client_certificate", "file:c.pem"), ("client_key", "file:k.pem")]);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, keys) in [
            ("{connect_to: localhost}", &["connect_to"][..]),
            ("{pool: {max_connections: 0}}", &["pool", "max_connections"]),
            ("{pool: {idle_timeout: 0s}}", &["pool", "idle_timeout"]),
            ("{tls: {ca: missing.pem}}", &["tls", "ca"]),
            ("{tls: {client_key: 'env:K'}}", &["tls", "client_certificate"]),
            ("{tls: {client_certificate: 'env:C'}}", &["tls", "client_key"]),
        ] {
            assert_eq!(upstream(text).unwrap_err().0, keys, "{text}");
        }
        assert!(serde_yaml::from_str::<UpstreamConfig>("{shceme: http}").is_err());
    }

    #[test]
    fn addresses_and_the_corporate_proxy() {
        let settings = addresses(
            "{allow_private: ['10.0.0.0/8:443'], upstream_proxy: {url: 'http://Proxy.Example:3128', auth: 'env:A',
              no_proxy: ['.corp.example', '*.b.example', c.example, 10.0.0.0/8, 192.0.2.1, '*'], resolve: proxy}}",
        )
        .unwrap();
        assert_eq!(settings.proxy_auth(), Some("env:A"));
        assert!(settings.resolves_at_proxy());
        let proxy = settings.upstream_proxy.unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
        assert_eq!(proxy.no_proxy[0], Bypass::Below(".corp.example".into()));
        assert_eq!(proxy.no_proxy[1], Bypass::Below(".b.example".into()));
        assert_eq!(proxy.no_proxy[4], Bypass::Net("192.0.2.1/32".parse().unwrap()));
        for (text, key) in [
            ("{allow_private: [10.0.0.1/8]}", "allow_private"),
            ("{allow_metadata: [x]}", "allow_metadata"),
            ("{upstream_proxy: {url: 'https://p:1'}}", "upstream_proxy"),
            ("{upstream_proxy: {url: 'http://u:p@p:1'}}", "upstream_proxy"),
            ("{upstream_proxy: {url: 'http://p'}}", "upstream_proxy"),
            ("{upstream_proxy: {url: 'http://p:1', no_proxy: ['a b']}}", "upstream_proxy"),
        ] {
            assert_eq!(addresses(text).unwrap_err().0, key, "{text}");
        }
    }
}
