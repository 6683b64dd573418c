//! What the book keeps books on: limits, and the leases that limiters spend.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::share::{Grant, Spec};
use crate::resilience::rate_limit::lease::RateLease;

/// What is set and read of a lease. [`RateLease`] is one.
pub trait Spend: Send + Sync + 'static {
    /// A lease of nothing.
    fn nothing(window: Duration) -> Self;
    /// What may be spent from now on; `at_once`: whether what is new of the burst may be, as far as it was paid for, or comes
    /// with the refill.
    fn set(&self, grant: Grant, at_once: bool);
    /// What may be spent now.
    fn current(&self) -> Grant;
    /// The burst that still counts.
    fn held_burst(&self) -> u32;
    /// Requests since the last call.
    fn demand(&self) -> u64;
    /// Requests that wait.
    fn waiting(&self) -> u64;
}

impl Spend for RateLease {
    fn nothing(window: Duration) -> Self {
        Self::new(window)
    }

    fn set(&self, grant: Grant, at_once: bool) {
        Self::set(self, grant.refill, grant.burst, at_once);
    }

    fn current(&self) -> Grant {
        let (refill, burst) = Self::current(self);
        Grant { refill, burst }
    }

    fn held_burst(&self) -> u32 {
        Self::held_burst(self)
    }

    fn demand(&self) -> u64 {
        Self::demand(self)
    }

    fn waiting(&self) -> u64 {
        Self::waiting(self)
    }
}

/// A limit of the policy; its numbers may change with a reload.
#[derive(Debug)]
pub struct Limit {
    /// Name and window: what the keys in Redis begin with.
    pub key: String,
    window: Duration,
    numbers: AtomicU64,
}

impl Limit {
    /// A limit under a name.
    pub fn new(key: String, spec: Spec) -> Self {
        let limit = Self { key, window: spec.window, numbers: AtomicU64::new(0) };
        limit.change(spec);
        limit
    }

    /// Other numbers; the window stays.
    pub fn change(&self, spec: Spec) {
        let burst = spec.burst.clamp(1, spec.rate.max(1));
        self.numbers.store(u64::from(spec.rate) << 32 | u64::from(burst), Ordering::Relaxed);
    }

    /// The numbers of now.
    pub fn spec(&self) -> Spec {
        let numbers = self.numbers.load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let (rate, burst) = ((numbers >> 32) as u32, numbers as u32);
        Spec { rate, burst, window: self.window }
    }
}
