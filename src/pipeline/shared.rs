//! What outlives a generation: connection pools, bound credentials, secrets. Keyed by identity and settings, so that equal
//! settings get the live value back after a reload; what no generation uses any more goes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::client_certificates::ClientCertificates;
use super::layer_states::LayerStates;
use crate::credential::Credentials;
use crate::credential::kinds::MemberSettings;
use crate::credential::token::{TokenEnv, Unbroken};
use crate::policy::compiled::UpstreamKey;
use crate::resilience::cache::Spawn;
use crate::secret::SecretCache;
use crate::telemetry::{Metrics, Telemetry};
use crate::upstream::identity::{IdentitySource, ProxyAuthSource, SecretMissing};
use crate::upstream::{Upstream, UpstreamEnv, UpstreamError};
use zeroize::Zeroizing;

/// Live values by key. Building a generation asks for what it needs and then drops what it did not ask for.
pub struct StateMap<K, V> {
    live: Mutex<HashMap<K, Arc<V>>>,
}

impl<K, V> Default for StateMap<K, V> {
    fn default() -> Self {
        Self { live: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash + Clone, V> StateMap<K, V> {
    /// The live value of the key, or a new one.
    pub fn get_or_make<E>(&self, key: &K, make: impl FnOnce() -> Result<Arc<V>, E>) -> Result<Arc<V>, E> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = live.get(key) {
            return Ok(value.clone());
        }
        let value = make()?;
        live.insert(key.clone(), value.clone());
        Ok(value)
    }

    /// Drops what is not in `used`.
    pub fn retain(&self, used: &[K]) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| used.contains(key));
    }

    /// All live values with their keys.
    pub fn entries(&self) -> Vec<(K, Arc<V>)> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// What all generations share.
pub struct Shared {
    /// Secrets by reference.
    pub secrets: Arc<SecretCache>,
    /// Log and metrics.
    pub telemetry: Arc<Telemetry>,
    /// Resolver, roots, own listeners.
    pub upstream_env: Arc<UpstreamEnv>,
    /// State of the resilience layers.
    pub layers: LayerStates,
    upstreams: StateMap<UpstreamKey, Upstream>,
    credentials: StateMap<(Arc<str>, Vec<MemberSettings>), Credentials>,
    tokens: TokenEnv,
}

impl Shared {
    /// Shared state that holds nothing yet. `spawn` starts tasks that outlive a request.
    pub fn new(
        secrets: Arc<SecretCache>,
        telemetry: Arc<Telemetry>,
        upstream_env: Arc<UpstreamEnv>,
        spawn: Spawn,
    ) -> Self {
        Self {
            tokens: TokenEnv::new(upstream_env.clone()),
            secrets,
            telemetry,
            upstream_env,
            layers: LayerStates::new(spawn),
            upstreams: StateMap::default(),
            credentials: StateMap::default(),
        }
    }

    /// The pool of an upstream.
    pub fn upstream(&self, key: &UpstreamKey) -> Result<Arc<Upstream>, UpstreamError> {
        self.upstreams.get_or_make(key, || {
            let identity = (!key.identities.is_empty()).then(|| {
                let metrics = self.telemetry.metrics.provider(&key.settings.provider);
                let all = ClientCertificates::new(&key.identities, &self.secrets, metrics);
                Arc::new(all) as Arc<dyn IdentitySource>
            });
            let proxy_auth = key.proxy_auth.as_ref().map(|reference| {
                Arc::new(SecretProxyAuth(self.secrets.entry(reference))) as Arc<dyn ProxyAuthSource>
            });
            Upstream::new(key.settings.clone(), self.upstream_env.clone(), identity, proxy_auth)
        })
    }

    /// A credential of a provider, bound to its secrets.
    pub fn credential(&self, provider: &Arc<str>, members: &[MemberSettings]) -> Arc<Credentials> {
        let key = (provider.clone(), members.to_vec());
        let made: Result<_, std::convert::Infallible> = self.credentials.get_or_make(&key, || {
            let metrics = self.telemetry.metrics.provider(provider);
            Ok(Arc::new(Credentials::bind(members, &self.secrets, &self.tokens, metrics)))
        });
        match made {
            Ok(credential) => credential,
        }
    }

    /// Exchanges of tokens that the end of the process waits for.
    pub fn unbroken(&self) -> &Unbroken {
        &self.tokens.unbroken
    }

    /// Drops pools and credentials that the newest generation does not use.
    pub fn retain(&self, upstreams: &[UpstreamKey], credentials: &[(Arc<str>, Vec<MemberSettings>)]) {
        self.upstreams.retain(upstreams);
        self.credentials.retain(credentials);
    }

    /// The live pools with their providers, for status and metrics.
    pub fn upstreams(&self) -> Vec<(Arc<str>, Arc<Upstream>)> {
        self.upstreams
            .entries()
            .into_iter()
            .map(|(key, upstream)| (key.settings.provider, upstream))
            .collect()
    }

    /// Sets the metrics of pools and secrets to what they are now, and lets go of tenants that nobody names any more.
    pub fn export(&self, metrics: &Metrics) {
        for (provider, upstream) in self.upstreams() {
            let stats = upstream.stats();
            let busy = stats.open.saturating_sub(stats.idle);
            metrics.provider(&provider).set_connections(stats.idle as u64, busy as u64);
        }
        for (_, credential) in self.credentials.entries() {
            credential.sweep();
        }
        for secret in self.secrets.status() {
            metrics.secret(&secret.reference).failed_in_all(secret.failed_reads);
            metrics.secret(&secret.reference).ends_in(secret.ends_in_seconds);
            let Some((version, age)) = secret.version.zip(secret.age_seconds) else { continue };
            let read_at = SystemTime::now().checked_sub(Duration::from_secs(age));
            metrics.secret(&secret.reference).read(version, read_at.unwrap_or(SystemTime::UNIX_EPOCH));
        }
    }
}

/// `user:password` of the corporate proxy.
struct SecretProxyAuth(Arc<crate::secret::SecretEntry>);

impl ProxyAuthSource for SecretProxyAuth {
    fn user_password(&self) -> Result<Zeroizing<String>, SecretMissing> {
        let version = self.0.current().map_err(|error| SecretMissing(error.to_string()))?;
        let text =
            std::str::from_utf8(version.value.expose()).map_err(|_| SecretMissing("not UTF-8".to_owned()))?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_settings_get_the_live_value_back_and_unused_ones_go() {
        let map: StateMap<(&str, u32), String> = StateMap::default();
        let make = |text: &str| Ok::<_, std::convert::Infallible>(Arc::new(text.to_owned()));
        let Ok(first) = map.get_or_make(&("stripe", 1), || make("a"));
        let Ok(again) = map.get_or_make(&("stripe", 1), || make("b"));
        assert!(Arc::ptr_eq(&first, &again));
        let Ok(changed) = map.get_or_make(&("stripe", 2), || make("c"));
        assert_eq!(*changed, "c");
        map.retain(&[("stripe", 2)]);
        assert_eq!(map.entries().len(), 1);
    }
}
