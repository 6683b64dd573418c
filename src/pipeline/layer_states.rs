//! The state of the resilience layers, which outlives generations: what was counted, learned and opened stays when the
//! policy is edited. Keyed by identity (provider, and the route where it wrote its own); new settings are taken over by the
//! state that lives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::policy::compiled::{CompiledPolicy, Provider, Route};
use crate::policy::layers::Owner;
use crate::resilience::Layers;
use crate::resilience::key::KeySource;
use crate::resilience::responses::Table;
use crate::resilience::retry::{Budget, RetrySettings};
use crate::resilience::timeout::AttemptTimeouts;

/// Whose state it is: the provider's, or a route's of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    provider: Arc<str>,
    owner: Owner,
}

type ByIdentity<V> = Mutex<HashMap<Identity, V>>;

/// The state of all layers.
#[derive(Default)]
pub struct LayerStates {
    budgets: ByIdentity<(RetrySettings, Arc<Budget>)>,
}

impl LayerStates {
    /// The layers of a route, over the state that lives or a new one. `heal` is the credential's business.
    pub(super) fn of(&self, provider: &Provider, route: &Route, attempt: AttemptTimeouts) -> Layers {
        let settings = &route.settings.layers;
        let identity = |owner: &Owner| Identity { provider: provider.name.clone(), owner: owner.clone() };
        let retry = settings.retry.as_ref().map(|retry| {
            let mut budgets = locked(&self.budgets);
            let (known, budget) = budgets
                .entry(identity(&retry.owner))
                .or_insert_with(|| (retry.settings.clone(), Arc::new(Budget::new(retry.settings.budget))));
            if known.budget != retry.settings.budget {
                (*known, *budget) = (retry.settings.clone(), Arc::new(Budget::new(retry.settings.budget)));
            }
            (retry.settings.clone(), budget.clone())
        });
        Layers {
            keys: KeySource { route: route.name.clone(), credential: references(route) },
            attempt,
            responses: Arc::new(Table::new(settings.responses.clone())),
            retry,
            heal: None,
            idempotency: settings.idempotency.clone(),
        }
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
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
