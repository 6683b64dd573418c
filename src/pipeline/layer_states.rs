//! The state of the resilience layers, which outlives generations: what was counted, learned and opened stays when the
//! policy is edited. Keyed by identity (provider, and the route where it wrote its own); new settings are taken over by the
//! state that lives.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderName;
use http::header::USER_AGENT;

use super::live_fleet::LiveFleet;
use crate::credential::Credentials;
use crate::policy::compiled::{CompiledPolicy, HeaderEdits, Provider, Route};
use crate::policy::layers::{LayerSettings, Owner};
use crate::resilience::Layers;
use crate::resilience::cache::{CacheSettings, ResponseCache, RouteCache, Spawn};
use crate::resilience::circuit_breaker::{BreakerSettings, Breakers, Forced};
use crate::resilience::concurrency::{ConcurrencySettings, Permits};
use crate::resilience::fleet::Fleet;
use crate::resilience::key::KeySource;
use crate::resilience::quota::Quota;
use crate::resilience::quota::config::Bucket;
use crate::resilience::rate_limit::{LimitSettings, Limiter, Scope, Tokens};
use crate::resilience::responses::{JudgeCounts, Table};
use crate::resilience::retry::Budget;
use crate::resilience::retry::budget::BudgetSettings;
use crate::resilience::timeout::AttemptTimeouts;
use crate::secret::SecretCache;

/// Whose state it is: the provider's, or a route's of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub(super) provider: Arc<str>,
    pub(super) owner: Owner,
}

pub(super) type ByIdentity<V> = Mutex<HashMap<Identity, V>>;

/// What a cache holds, by how much it may hold.
pub(super) type CacheSize = (u64, u64);
/// Limiters with the fleet that they lease from.
type Limiters = HashMap<(Identity, Arc<str>), (Option<Arc<Fleet>>, Arc<Limiter>)>;

/// The state of all layers.
pub struct LayerStates {
    /// The fleet that this pod is part of.
    pub fleet: LiveFleet,
    spawn: Spawn,
    pub(super) caches: Mutex<HashMap<(Identity, CacheSize), Arc<ResponseCache>>>,
    pub(super) budgets: ByIdentity<(BudgetSettings, Arc<Budget>)>,
    pub(super) breakers: ByIdentity<Arc<Breakers>>,
    /// By provider, and not by who wrote a breaker: that may change with an edit, and what was forced by hand holds until it
    /// is released by hand.
    forced: Mutex<HashMap<Arc<str>, Forced>>,
    pub(super) permits: ByIdentity<Arc<Permits>>,
    /// By the limit's name as well.
    pub(super) limiters: Mutex<Limiters>,
    pub(super) quotas: Arc<Mutex<HashMap<Arc<str>, Arc<Quota>>>>,
    /// By provider.
    pub(super) judges: Mutex<HashMap<Arc<str>, Arc<JudgeCounts>>>,
}

impl LayerStates {
    /// Nothing was counted yet. `spawn` starts tasks that outlive a request.
    pub fn new(spawn: Spawn) -> Self {
        Self {
            fleet: LiveFleet::new(spawn.clone()),
            spawn,
            caches: Mutex::default(),
            budgets: Mutex::default(),
            breakers: Mutex::default(),
            forced: Mutex::default(),
            permits: Mutex::default(),
            limiters: Mutex::default(),
            quotas: Arc::default(),
            judges: Mutex::default(),
        }
    }

    /// The fleet of a policy. What other pods tell of pauses goes to the quotas.
    pub(super) fn join(&self, policy: &CompiledPolicy, secrets: &SecretCache) -> Option<Arc<Fleet>> {
        self.fleet.adopt(policy.fleet.as_ref(), secrets, || {
            let quotas = Arc::downgrade(&self.quotas);
            Arc::new(move |name: &str, pause| {
                let Some(quotas) = quotas.upgrade() else { return };
                let live: Vec<Arc<Quota>> = locked(&quotas).values().cloned().collect();
                live.iter().for_each(|quota| quota.pause(name, pause));
            })
        })
    }

    /// The layers of a route, over the state that lives or a new one. `heal` is the credential's business.
    pub(super) fn of(
        &self,
        provider: &Provider,
        route: &Route,
        attempt: AttemptTimeouts,
        fleet: Option<&Arc<Fleet>>,
        credential: Option<&Arc<Credentials>>,
    ) -> Layers {
        let settings = &route.settings.layers;
        let identity = |owner: &Owner| Identity { provider: provider.name.clone(), owner: owner.clone() };
        let shadow = |own: bool, label: &str| (own || settings.shadow).then(|| Arc::from(label));
        let references = credential.map(|credential| credential.references()).unwrap_or_default();
        let keys = KeySource { route: route.name.clone(), credential: references };
        Layers {
            cache: settings.cache.as_ref().map(|cache| {
                let state = self.cache(identity(&cache.owner), &cache.settings);
                (state, route_cache(&cache.settings, &keys, credential, written(&route.settings.headers)))
            }),
            invalidates: self.other_caches(provider, route, identity),
            keys,
            attempt,
            responses: Arc::new(Table::new(settings.responses.clone(), self.judge(&provider.name))),
            pauses_hosts: pauses_hosts(provider),
            retry: settings.retry.as_ref().map(|retry| {
                (retry.settings.clone(), self.budget(identity(&retry.owner), retry.settings.budget))
            }),
            heal: None,
            idempotency: settings.idempotency.clone(),
            breaker: settings.breaker.as_ref().map(|breaker| {
                let shadow = shadow(breaker.settings.shadow, "breaker");
                (self.breaker(identity(&breaker.owner), &breaker.settings), shadow)
            }),
            quota: settings.quota.as_ref().map(|quota| {
                let shadow = shadow(quota.mode.is_shadow(), "quota");
                (self.quota(&provider.name, fleet), quota.clone(), shadow)
            }),
            cost: settings.cost,
            limits: settings
                .limits
                .iter()
                .map(|limit| self.limiter(identity(&limit.owner), &limit.settings, fleet))
                .collect(),
            concurrency: settings.concurrency.as_ref().map(|concurrency| {
                let shadow = shadow(concurrency.settings.shadow, "concurrency");
                (self.permits(identity(&concurrency.owner), concurrency.settings), shadow)
            }),
            shadow: settings.shadow,
        }
    }

    fn judge(&self, provider: &Arc<str>) -> Arc<JudgeCounts> {
        locked(&self.judges).entry(provider.clone()).or_default().clone()
    }

    fn budget(&self, identity: Identity, settings: BudgetSettings) -> Arc<Budget> {
        let mut budgets = locked(&self.budgets);
        let new = || (settings, Arc::new(Budget::new(settings)));
        let live = budgets.entry(identity).or_insert_with(new);
        if live.0 != settings {
            *live = new();
        }
        live.1.clone()
    }

    fn breaker(&self, identity: Identity, settings: &BreakerSettings) -> Arc<Breakers> {
        let mut breakers = locked(&self.breakers);
        let provider = identity.provider.clone();
        let live = breakers.entry(identity).or_insert_with(|| {
            let forced = locked(&self.forced).get(&provider).copied();
            let new = Breakers::new(provider, settings.clone());
            new.force(forced);
            Arc::new(new)
        });
        live.update(settings.clone());
        live.clone()
    }

    fn permits(&self, identity: Identity, settings: ConcurrencySettings) -> Arc<Permits> {
        let mut permits = locked(&self.permits);
        let live = permits.entry(identity).or_insert_with(|| Arc::new(Permits::new(settings)));
        live.update(settings);
        live.clone()
    }

    fn limiter(
        &self,
        identity: Identity,
        settings: &LimitSettings,
        fleet: Option<&Arc<Fleet>>,
    ) -> Arc<Limiter> {
        let fleet = fleet.filter(|_| settings.scope == Scope::Fleet);
        let tokens = || match fleet {
            None => Tokens::Own,
            Some(fleet) => {
                let name = format!("{identity}/{}", settings.name);
                Tokens::Leased(fleet.leases(&name, settings.rate, settings.burst))
            }
        };
        let mut limiters = locked(&self.limiters);
        let new = || Limiter::new(settings.clone(), tokens());
        let key = (identity.clone(), settings.name.clone());
        let (from, live) = limiters.entry(key).or_insert_with(|| (fleet.cloned(), Arc::new(new())));
        let same_fleet = match (&*from, fleet) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (Some(_), None) | (None, Some(_)) => false,
        };
        if live.settings() != settings || !same_fleet {
            (*from, *live) = (fleet.cloned(), Arc::new(new().adopt(live)));
        }
        live.clone()
    }

    fn quota(&self, provider: &Arc<str>, fleet: Option<&Arc<Fleet>>) -> Arc<Quota> {
        let mut quotas = locked(&self.quotas);
        let quota =
            quotas.entry(provider.clone()).or_insert_with(|| Arc::new(Quota::new(provider.clone()))).clone();
        let fleet = fleet.cloned();
        quota.on_throttle(Arc::new(move |name, pause| {
            if let Some(fleet) = &fleet {
                fleet.pause(name, pause);
            }
        }));
        quota
    }

    fn cache(&self, identity: Identity, settings: &CacheSettings) -> Arc<ResponseCache> {
        let key = (identity, (settings.max_size, settings.max_entry));
        let new = || Arc::new(ResponseCache::new(settings, self.spawn.clone()));
        locked(&self.caches).entry(key).or_insert_with(new).clone()
    }

    /// The caches of the provider that this route does not read: what it changes there is no longer true.
    fn other_caches(
        &self,
        provider: &Provider,
        route: &Route,
        identity: impl Fn(&Owner) -> Identity,
    ) -> Vec<Arc<ResponseCache>> {
        let own = route.settings.layers.cache.as_ref();
        let mut others: Vec<Arc<ResponseCache>> = Vec::new();
        for other in provider.routes.iter().filter_map(|other| other.settings.layers.cache.as_ref()) {
            if own.is_some_and(|own| own.owner == other.owner) {
                continue;
            }
            let cache = self.cache(identity(&other.owner), &other.settings);
            if !others.iter().any(|known| Arc::ptr_eq(known, &cache)) {
                others.push(cache);
            }
        }
        others
    }

    /// Forces the breakers of a provider and its routes, those that it will have included, or lets them decide again. How
    /// many there are; where there is none now, nothing is forced.
    pub fn force_breakers(&self, provider: &str, forced: Option<Forced>) -> usize {
        let breakers = locked(&self.breakers);
        let own: Vec<_> = breakers.iter().filter(|(identity, _)| *identity.provider == *provider).collect();
        if let Some((identity, _)) = own.first() {
            let mut all = locked(&self.forced);
            match forced {
                Some(forced) => all.insert(identity.provider.clone(), forced),
                None => all.remove(provider),
            };
        }
        own.into_iter().map(|(_, live)| live.force(forced)).count()
    }

    /// Drops the state of what the policy no longer has.
    pub(super) fn retain(&self, policy: &CompiledPolicy) {
        self.fleet.settle();
        let mut used = Used::default();
        for provider in &policy.providers {
            for layers in provider.routes.iter().map(|route| &route.settings.layers) {
                used.note(&provider.name, layers);
            }
        }
        locked(&self.budgets).retain(|identity, _| used.budgets.contains(identity));
        locked(&self.caches).retain(|key, _| used.caches.contains(key));
        locked(&self.breakers).retain(|identity, _| used.breakers.contains(identity));
        locked(&self.permits).retain(|identity, _| used.permits.contains(identity));
        locked(&self.limiters).retain(|key, _| used.limiters.contains(key));
        let known = |name: &Arc<str>| policy.providers.iter().any(|provider| provider.name == *name);
        locked(&self.forced).retain(|name, _| known(name));
        locked(&self.quotas).retain(|name, _| known(name));
        locked(&self.judges).retain(|name, _| known(name));
    }
}

/// Everything that a policy has.
#[derive(Default)]
struct Used {
    budgets: HashSet<Identity>,
    caches: HashSet<(Identity, CacheSize)>,
    breakers: HashSet<Identity>,
    permits: HashSet<Identity>,
    limiters: HashSet<(Identity, Arc<str>)>,
}

impl Used {
    fn note(&mut self, provider: &Arc<str>, layers: &LayerSettings) {
        let identity = |owner: &Owner| Identity { provider: provider.clone(), owner: owner.clone() };
        self.budgets.extend(layers.retry.iter().map(|retry| identity(&retry.owner)));
        self.caches.extend(
            layers
                .cache
                .iter()
                .map(|cache| (identity(&cache.owner), (cache.settings.max_size, cache.settings.max_entry))),
        );
        self.breakers.extend(layers.breaker.iter().map(|breaker| identity(&breaker.owner)));
        self.permits.extend(layers.concurrency.iter().map(|permits| identity(&permits.owner)));
        let limits = layers.limits.iter();
        self.limiters.extend(limits.map(|limit| (identity(&limit.owner), limit.settings.name.clone())));
    }
}

/// Whether an answer to some route pauses all buckets of a host, and a quota covers less than that. Looked at for the provider as
/// a whole: a route whose own table has no such row is held as well.
fn pauses_hosts(provider: &Provider) -> bool {
    let layers = || provider.routes.iter().map(|route| &route.settings.layers);
    let quotas = || layers().filter_map(|layers| layers.quota.as_ref()).filter(|quota| quota.learn);
    quotas().any(|quota| quota.bucket != Bucket::Host)
        && layers().any(|layers| layers.responses.pauses_hosts())
}

/// The fields that a policy writes; which software asks is no matter of whose the answer is.
fn written(edits: &HeaderEdits) -> Vec<HeaderName> {
    let fields = edits.set.iter().chain(&edits.default).map(|(name, _)| name.clone());
    fields.filter(|name| *name != USER_AGENT).collect()
}

/// What the cache of a route knows of it.
fn route_cache(
    settings: &CacheSettings,
    keys: &KeySource,
    credential: Option<&Arc<Credentials>>,
    written: Vec<HeaderName>,
) -> RouteCache {
    let (versioned, available) = (credential.cloned(), credential.cloned());
    RouteCache {
        settings: settings.clone(),
        source: keys.clone(),
        written,
        version: Arc::new(move |tenant| {
            versioned.as_ref().map_or(0, |credential| credential.version(tenant))
        }),
        available: Arc::new(move |tenant| {
            available.as_ref().is_none_or(|credential| credential.is_available(tenant))
        }),
        renewals: None,
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::Provider => write!(f, "{}", self.provider),
            Owner::Route(route) => write!(f, "{}/{route}", self.provider),
        }
    }
}

/// Maps of handles, whole after every step, also where a thread panicked.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::reload::read;

    #[test]
    fn one_row_of_the_provider_lets_its_answers_hold_all_routes_that_learn() {
        let row = "responses: [{ when: { status: 403 }, is: throttle, pauses: host }]";
        let small = "quota: { bucket: path }";
        let table = [
            (
                format!(
                    "routes: [{{ match: {{ path: /a }}, {row}, quota: off }}, {{ match: {{ path: /b }}, {small} }}]"
                ),
                true,
            ),
            (format!("{row}\n    routes: [{{ match: {{ path: /b }}, responses: off, {small} }}]"), true),
            (format!("{row}\n    {small}"), true),
            // One quota covers the host: its own pause holds everybody.
            (format!("{row}\n    routes: [{{ match: {{ path: /b }}, responses: off }}]"), false),
            (small.to_owned(), false),
        ];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.yaml");
        for (text, expected) in table {
            let text = format!("version: 1\nproviders:\n  p:\n    hosts: [p.example.com]\n    {text}\n");
            std::fs::write(&path, &text).unwrap();
            let policy = read(&*path).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)));
            assert_eq!(pauses_hosts(&policy.providers[0]), expected, "{text}");
        }
    }
}
