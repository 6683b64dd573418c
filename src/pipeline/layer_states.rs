//! The state of the resilience layers, which outlives generations: what was counted, learned and opened stays when the
//! policy is edited. Keyed by identity (provider, and the route where it wrote its own); new settings are taken over by the
//! state that lives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::policy::compiled::{CompiledPolicy, Provider, Route};
use crate::policy::layers::Owner;
use crate::resilience::Layers;
use crate::resilience::circuit_breaker::{BreakerSettings, Breakers, Forced};
use crate::resilience::concurrency::{ConcurrencySettings, Permits};
use crate::resilience::key::KeySource;
use crate::resilience::quota::Quota;
use crate::resilience::rate_limit::{LimitSettings, Limiter, Tokens};
use crate::resilience::responses::Table;
use crate::resilience::retry::Budget;
use crate::resilience::retry::budget::BudgetSettings;
use crate::resilience::timeout::AttemptTimeouts;

/// Whose state it is: the provider's, or a route's of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub(super) provider: Arc<str>,
    pub(super) owner: Owner,
}

pub(super) type ByIdentity<V> = Mutex<HashMap<Identity, V>>;

/// The state of all layers.
#[derive(Default)]
pub struct LayerStates {
    pub(super) budgets: ByIdentity<(BudgetSettings, Arc<Budget>)>,
    pub(super) breakers: ByIdentity<Arc<Breakers>>,
    pub(super) permits: ByIdentity<Arc<Permits>>,
    /// By the limit's name as well.
    pub(super) limiters: Mutex<HashMap<(Identity, Arc<str>), Arc<Limiter>>>,
    pub(super) quotas: Mutex<HashMap<Arc<str>, Arc<Quota>>>,
}

impl LayerStates {
    /// The layers of a route, over the state that lives or a new one. `heal` is the credential's business.
    pub(super) fn of(&self, provider: &Provider, route: &Route, attempt: AttemptTimeouts) -> Layers {
        let settings = &route.settings.layers;
        let identity = |owner: &Owner| Identity { provider: provider.name.clone(), owner: owner.clone() };
        let shadow = |own: bool, label: &str| (own || settings.shadow).then(|| Arc::from(label));
        Layers {
            keys: KeySource { route: route.name.clone(), credential: references(route) },
            attempt,
            responses: Arc::new(Table::new(settings.responses.clone())),
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
                (self.quota(&provider.name), quota.clone(), shadow)
            }),
            limits: settings
                .limits
                .iter()
                .map(|limit| self.limiter(identity(&limit.owner), &limit.settings))
                .collect(),
            concurrency: settings.concurrency.as_ref().map(|concurrency| {
                let shadow = shadow(concurrency.settings.shadow, "concurrency");
                (self.permits(identity(&concurrency.owner), concurrency.settings), shadow)
            }),
            shadow: settings.shadow,
        }
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
        let live =
            breakers.entry(identity).or_insert_with(|| Arc::new(Breakers::new(provider, settings.clone())));
        live.update(settings.clone());
        live.clone()
    }

    fn permits(&self, identity: Identity, settings: ConcurrencySettings) -> Arc<Permits> {
        let mut permits = locked(&self.permits);
        let live = permits.entry(identity).or_insert_with(|| Arc::new(Permits::new(settings)));
        live.update(settings);
        live.clone()
    }

    fn limiter(&self, identity: Identity, settings: &LimitSettings) -> Arc<Limiter> {
        let mut limiters = locked(&self.limiters);
        let new = || Limiter::new(settings.clone(), Tokens::Own);
        let live = limiters.entry((identity, settings.name.clone())).or_insert_with(|| Arc::new(new()));
        if live.settings() != settings {
            *live = Arc::new(new().adopt(live));
        }
        live.clone()
    }

    fn quota(&self, provider: &Arc<str>) -> Arc<Quota> {
        let mut quotas = locked(&self.quotas);
        quotas.entry(provider.clone()).or_insert_with(|| Arc::new(Quota::new(provider.clone()))).clone()
    }

    /// Forces the breakers of a provider and its routes, or lets them decide again. How many there are.
    pub fn force_breakers(&self, provider: &str, forced: Option<Forced>) -> usize {
        let breakers = locked(&self.breakers);
        let own = breakers.iter().filter(|(identity, _)| *identity.provider == *provider);
        own.map(|(_, live)| live.force(forced)).count()
    }

    /// Drops the state of what the policy no longer has.
    pub(super) fn retain(&self, policy: &CompiledPolicy) {
        let lives = |identity: &Identity| {
            policy.providers.iter().filter(|provider| provider.name == identity.provider).any(|provider| {
                match &identity.owner {
                    Owner::Provider => true,
                    Owner::Route(name) => provider.routes.iter().any(|route| route.name == *name),
                }
            })
        };
        locked(&self.budgets).retain(|identity, _| lives(identity));
        locked(&self.breakers).retain(|identity, _| lives(identity));
        locked(&self.permits).retain(|identity, _| lives(identity));
        locked(&self.limiters).retain(|(identity, _), _| lives(identity));
        locked(&self.quotas).retain(|name, _| policy.providers.iter().any(|provider| provider.name == *name));
    }
}

/// One name for each member of the credential: the references of its parts.
fn references(route: &Route) -> Arc<[Arc<str>]> {
    let member = |parts: &Vec<crate::credential::kinds::Part>| -> Arc<str> {
        let references: Vec<String> =
            parts.iter().flat_map(|part| part.secrets()).map(ToString::to_string).collect();
        references.join("+").into()
    };
    route.settings.credential.iter().map(member).collect()
}

/// Maps of handles, whole after every step, also where a thread panicked.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
