//! `addresses:` and `upstream:`: ranges, the corporate proxy, and how each provider is reached.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Compiler;
use crate::credential::CredentialConfig;
use crate::message::target::{Authority, Host, Scheme};
use crate::policy::compiled::UpstreamKey;
use crate::policy::schema::{PolicyConfig, ProviderConfig};
use crate::policy::tree::PolicyPath;
use crate::secret::ValueRules;
use crate::secret::reference::SecretRef;
use crate::upstream::config::{
    MinVersionConfig, PlaintextCredential, PoolConfig, TlsConfig, UpstreamConfig, UpstreamProxyConfig,
};
use crate::upstream::guard::{AddressRange, AddressRules};
use crate::upstream::settings::{
    Bypass, HttpVersion, MinTls, PoolSettings, ProxyResolve, TlsSettings, UpstreamProxy, UpstreamSettings,
};

/// What all providers share of the way out.
pub(super) struct Addresses {
    rules: Arc<AddressRules>,
    proxy: Option<Arc<UpstreamProxy>>,
    proxy_auth: Option<SecretRef>,
}

impl Compiler<'_> {
    pub(super) fn addresses(&mut self, config: &PolicyConfig) -> Addresses {
        let path = PolicyPath::root().key("addresses");
        let config = config.addresses.clone().unwrap_or_default();
        let rules = AddressRules {
            allow_private: self.ranges(config.allow_private.as_deref(), &path.key("allow_private")),
            allow_metadata: self.ranges(config.allow_metadata.as_deref(), &path.key("allow_metadata")),
        };
        let (proxy, proxy_auth) = match &config.upstream_proxy {
            Some(proxy) => self.upstream_proxy(proxy, &path.key("upstream_proxy")),
            None => (None, None),
        };
        Addresses { rules: Arc::new(rules), proxy, proxy_auth }
    }

    fn ranges(&mut self, texts: Option<&[String]>, path: &PolicyPath) -> Vec<AddressRange> {
        let mut ranges = Vec::new();
        for (index, text) in texts.unwrap_or_default().iter().enumerate() {
            match text.parse() {
                Ok(range) => ranges.push(range),
                Err(fault) => {
                    let fault: crate::upstream::guard::RangeFault = fault;
                    self.mistake(&path.index(index), fault.to_string());
                }
            }
        }
        ranges
    }

    fn upstream_proxy(
        &mut self,
        config: &UpstreamProxyConfig,
        path: &PolicyPath,
    ) -> (Option<Arc<UpstreamProxy>>, Option<SecretRef>) {
        let auth = self.reference(config.auth.as_deref(), &path.key("auth"), ValueRules::HeaderSafe);
        let resolve = config.resolve.map_or(ProxyResolve::Local, Into::into);
        if resolve == ProxyResolve::Proxy {
            self.warnings.push(format!("{path}.resolve: with `proxy` the address rules cannot be kept: outgate never sees the addresses"));
        }
        let no_proxy = self.bypasses(config.no_proxy.as_deref(), &path.key("no_proxy"));
        let Some(url) = &config.url else {
            self.mistake_with(path, "missing key `url`", "such as `http://proxy.corp.example:3128`");
            return (None, auth);
        };
        let authority =
            url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).map(Authority::parse);
        match authority {
            Some(Ok(Authority { host, port: Some(port) })) => {
                (Some(Arc::new(UpstreamProxy { host, port, no_proxy, resolve })), auth)
            }
            Some(_) | None => {
                let hint = "such as `http://proxy.corp.example:3128`; user and password stand under `auth`";
                self.mistake_with(&path.key("url"), "not the URL of an HTTP proxy with its port", hint);
                (None, auth)
            }
        }
    }

    fn bypasses(&mut self, texts: Option<&[String]>, path: &PolicyPath) -> Vec<Bypass> {
        let mut all = Vec::new();
        for (index, text) in texts.unwrap_or_default().iter().enumerate() {
            match bypass(text) {
                Some(bypass) => all.push(bypass),
                None => self.mistake_with(
                    &path.index(index),
                    "not a host, suffix or range",
                    "such as `api.example.com`, `.corp.example`, `10.0.0.0/8` or `*`",
                ),
            }
        }
        all
    }

    /// A secret reference that is written as plain text because its row cannot see the type.
    fn reference(&mut self, text: Option<&str>, path: &PolicyPath, rules: ValueRules) -> Option<SecretRef> {
        match text?.parse::<SecretRef>() {
            Ok(reference) => {
                self.uses_secret_under(path, &reference, false, rules);
                Some(reference)
            }
            Err(error) => {
                self.mistake(path, error.to_string());
                None
            }
        }
    }

    /// How a provider is reached, and whether a credential may go over plain HTTP.
    pub(super) fn upstream(
        &mut self,
        name: &Arc<str>,
        config: &ProviderConfig,
        path: &PolicyPath,
        addresses: &Addresses,
    ) -> (UpstreamKey, bool) {
        let timeouts = config.timeouts.clone().unwrap_or_default();
        let at = path.key("timeouts");
        let connect_timeout = self.span(timeouts.connect, Duration::from_secs(2), &at.key("connect"));
        let tls_timeout = self.span(timeouts.tls, Duration::from_secs(3), &at.key("tls"));
        let credential = config.credential.clone();
        let credential_path = path.key("credential");
        let config = config.upstream.clone().unwrap_or_default();
        let path = path.key("upstream");
        let plaintext = config.plaintext_credential == Some(PlaintextCredential::Allow);
        let tls = config.tls.clone().unwrap_or_default();
        let identity = self.identity(&tls, &path.key("tls"));
        let identities = self.credential_identities(credential.as_ref(), identity, &credential_path);
        let settings = UpstreamSettings {
            provider: name.clone(),
            scheme: config.scheme.map_or(Scheme::Https, Into::into),
            connect_to: self.connect_to(&config, &addresses.rules, &path.key("connect_to")),
            tls: self.tls(&tls, &path.key("tls")),
            http: config.http.map_or(HttpVersion::Auto, Into::into),
            pool: self.pool(config.pool.as_ref(), &path.key("pool")),
            connect_timeout,
            tls_timeout,
            addresses: addresses.rules.clone(),
            upstream_proxy: addresses.proxy.clone(),
        };
        (UpstreamKey { settings, identities, proxy_auth: addresses.proxy_auth.clone() }, plaintext)
    }

    /// How hosts that no provider names are reached.
    pub(super) fn unmatched_upstream(&mut self, addresses: &Addresses) -> UpstreamKey {
        let (key, _) =
            self.upstream(&"unmatched".into(), &ProviderConfig::default(), &PolicyPath::root(), addresses);
        key
    }

    fn connect_to(
        &mut self,
        config: &UpstreamConfig,
        rules: &AddressRules,
        path: &PolicyPath,
    ) -> Option<std::net::SocketAddr> {
        let text = config.connect_to.as_ref()?;
        match text.parse::<std::net::SocketAddr>() {
            Ok(address) if !rules.reaches_metadata(address) => Some(address),
            Ok(_) => {
                let hint = "a metadata address needs its own line under `addresses.allow_metadata`";
                self.mistake_with(path, "this is a cloud metadata address", hint);
                None
            }
            Err(_) => {
                self.mistake_with(
                    path,
                    "not an address with its port",
                    "such as `127.0.0.1:8443` or `[::1]:8443`",
                );
                None
            }
        }
    }

    fn tls(&mut self, config: &TlsConfig, path: &PolicyPath) -> TlsSettings {
        let min_version = match config.min_version {
            Some(MinVersionConfig::Tls13) => MinTls::Tls13,
            Some(MinVersionConfig::Tls12) | None => MinTls::Tls12,
        };
        let ca = config.ca.as_ref().and_then(|file| self.certificates(file, &path.key("ca")));
        TlsSettings { ca, min_version }
    }

    /// The PEM of authorities; read here so that a reload sees a new content as a new setting.
    fn certificates(&mut self, file: &str, path: &PolicyPath) -> Option<Arc<[u8]>> {
        const LARGEST: u64 = 4 * 1024 * 1024;
        let file = self.file(file);
        let small =
            std::fs::metadata(&file).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LARGEST);
        match std::fs::read(&file) {
            Ok(pem) if small => match crate::tls::pem::certificates(&pem, "upstream.tls.ca") {
                Ok(_) => {
                    let pem: Arc<[u8]> = pem.into();
                    self.note_file(file, &pem);
                    Some(pem)
                }
                Err(error) => {
                    self.mistake(path, error.to_string());
                    None
                }
            },
            Ok(_) => {
                self.mistake(path, "not a regular file of at most 4 MiB");
                None
            }
            Err(error) => {
                self.mistake(path, format!("cannot be read: {error}"));
                None
            }
        }
    }

    /// Providers share such files: each is looked at once.
    fn note_file(&mut self, file: PathBuf, content: &Arc<[u8]>) {
        if !self.files.iter().any(|(known, _)| *known == file) {
            self.files.push((file, content.clone()));
        }
    }

    fn identity(&mut self, config: &TlsConfig, path: &PolicyPath) -> Option<(SecretRef, SecretRef)> {
        // Keys and certificates have line ends; what goes into a header must not.
        let mut pem = |text: Option<&String>, key| {
            self.reference(text.map(String::as_str), &path.key(key), ValueRules::Any)
        };
        let certificate = pem(config.client_certificate.as_ref(), "client_certificate");
        let key = pem(config.client_key.as_ref(), "client_key");
        if config.client_certificate.is_some() != config.client_key.is_some() {
            self.mistake(path, "`client_certificate` and `client_key` belong together");
        }
        certificate.zip(key)
    }

    /// The client certificates, where they are the provider's credential.
    fn credential_identities(
        &mut self,
        credential: Option<&CredentialConfig>,
        other: Option<(SecretRef, SecretRef)>,
        path: &PolicyPath,
    ) -> Vec<(SecretRef, SecretRef)> {
        let Some(config) = credential.filter(|one| one.is_certificate()) else {
            return other.into_iter().collect();
        };
        let own = config.identities();
        for reference in own.iter().flat_map(|(certificate, key)| [certificate, key]) {
            self.uses_secret_under(path, reference, config.required, ValueRules::Any);
        }
        if other.is_some_and(|other| own != [other]) {
            self.mistake_with(
                path,
                "`upstream.tls.client_certificate` names another client certificate, and a connection shows one",
                "take one of the two out",
            );
        }
        own
    }

    fn pool(&mut self, config: Option<&PoolConfig>, path: &PolicyPath) -> PoolSettings {
        let config = config.cloned().unwrap_or_default();
        let max_connections = config.max_connections.unwrap_or(100);
        if !(1..=100_000).contains(&max_connections) {
            self.mistake(&path.key("max_connections"), "expected a number from 1 to 100000");
        }
        let idle_timeout = self.span(config.idle_timeout, Duration::from_secs(60), &path.key("idle_timeout"));
        PoolSettings { max_connections: max_connections as usize, idle_timeout }
    }
}

fn bypass(text: &str) -> Option<Bypass> {
    if text == "*" {
        return Some(Bypass::All);
    }
    if let Some(suffix) = text.strip_prefix('.') {
        let host = Host::parse(suffix).ok()?;
        return Some(Bypass::Below(format!(".{}", host.as_str()).into()));
    }
    if let Ok(net) = text.parse::<IpNet>() {
        return (net.trunc() == net).then_some(Bypass::Net(net));
    }
    Host::parse(text).ok().map(Bypass::Host)
}
