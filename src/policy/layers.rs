//! The resilience layers of a route as true: what each of them shall do, and whose traffic it counts.

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::resilience::cache::CacheSettings;
use crate::resilience::circuit_breaker::BreakerSettings;
use crate::resilience::concurrency::ConcurrencySettings;
use crate::resilience::idempotency::IdempotencySettings;
use crate::resilience::quota::QuotaSettings;
use crate::resilience::rate_limit::LimitSettings;
use crate::resilience::responses::TableSettings;
use crate::resilience::retry::RetrySettings;

/// Whose traffic something counts: a provider's as a whole, or that of the route that wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Owner {
    /// All routes of the provider that did not write their own.
    #[default]
    Provider,
    /// The route of this name.
    Route(Arc<str>),
}

/// Settings of something that counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owned<S> {
    /// Whose traffic.
    pub owner: Owner,
    /// What it shall do.
    pub settings: S,
}

/// The layers of a route; what is absent is not in its stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSettings {
    /// Rate limits; all of them must admit.
    pub limits: Vec<Owned<LimitSettings>>,
    /// What one request takes of the limits that count cost.
    pub cost: NonZeroU32,
    /// Requests at a time.
    pub concurrency: Option<Owned<ConcurrencySettings>>,
    /// What is learned from answers; its state is the provider's.
    pub quota: Option<QuotaSettings>,
    /// What answers mean.
    pub responses: TableSettings,
    /// When a request is sent again.
    pub retry: Option<Owned<RetrySettings>>,
    /// Keys by which the provider knows a request again.
    pub idempotency: Option<IdempotencySettings>,
    /// When a host is left alone.
    pub breaker: Option<Owned<BreakerSettings>>,
    /// Answers that are kept.
    pub cache: Option<Owned<CacheSettings>>,
    /// The whole provider is tried out: every layer that refuses only says so.
    pub shadow: bool,
}
