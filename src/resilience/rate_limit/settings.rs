//! A limit as true.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::pace::Pace;
use crate::message::quantity::Rate;
use crate::resilience::key::Per;
use crate::resilience::mode::Mode;

/// `scope:` of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Each pod has the rate for itself.
    #[default]
    Pod,
    /// All pods share it.
    Fleet,
}

/// `unit:` of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Each request takes one.
    #[default]
    Requests,
    /// Each request takes the `cost` of its route.
    Cost,
}

/// `on_excess:` of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnExcess {
    /// Wait in a queue, first in, first out.
    #[default]
    Wait,
    /// Answer 429 at once.
    Reject,
}

/// One limit, as compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LimitSettings {
    /// What logs, metrics and answers call it.
    pub name: Arc<str>,
    /// What no window of its length exceeds.
    pub rate: Rate,
    /// How many may go at once; 1 to the rate.
    pub burst: u32,
    /// What it counts.
    pub unit: Unit,
    /// What is counted apart.
    pub per: Per,
    /// Who shares it.
    pub scope: Scope,
    /// What happens above it.
    pub on_excess: OnExcess,
    /// The longest wait.
    pub max_wait: Duration,
    /// How many may wait, of each key.
    pub max_queue: u32,
    /// Whether it is only tried out.
    pub mode: Mode,
}

impl LimitSettings {
    /// Whether `other`, which counts at least all that this one counts, lets no more through than this one allows, in any time:
    /// then this one never holds anything. Of two that say the same the later one is not reached; `first` says that this one
    /// comes first.
    pub fn is_never_reached(&self, other: &Self, first: bool) -> bool {
        let kind = |limit: &Self| (limit.unit, limit.scope);
        let counts_all = other.per == self.per || other.per == Per::Provider;
        let shadow = self.mode.is_shadow() || other.mode.is_shadow();
        if kind(self) != kind(other) || !counts_all || shadow || other.burst > self.burst {
            return false;
        }
        let windows = self.rate.per().as_nanos().div_ceil(other.rate.per().as_nanos());
        let most = windows.saturating_mul(u128::from(other.rate.count()));
        // A large burst is paid for by less that comes back.
        let back = |limit: &Self, per: &Self| u128::from(limit.refill()) * per.rate.per().as_nanos();
        let same = other.rate == self.rate && other.burst == self.burst;
        most <= u128::from(self.rate.count()) && back(other, self) <= back(self, other) && !(same && first)
    }

    /// Whether one author who wrote both, the one beside the other, made a mistake: they count the same, and this one is never
    /// reached or says the same rate once more.
    pub fn is_idle_beside(&self, other: &Self, first: bool) -> bool {
        // Beside a fleet's limit one of the pod alone holds while Redis is away.
        let counts = |limit: &Self| (limit.unit, limit.per, limit.scope);
        let shadow = self.mode.is_shadow() || other.mode.is_shadow();
        let again = self.rate == other.rate && !first && !shadow;
        counts(self) == counts(other) && (again || self.is_never_reached(other, first))
    }

    /// Thousandths of a token that come back per window: what a fleet has to share out, besides the burst.
    pub fn refill(&self) -> u64 {
        (u64::from(self.rate.count().saturating_sub(self.burst)) + 1) * 1_000
    }

    /// How many tokens a request of this cost takes.
    pub(super) fn tokens(&self, cost: NonZeroU32) -> NonZeroU32 {
        match self.unit {
            Unit::Requests => NonZeroU32::MIN,
            Unit::Cost => cost,
        }
    }

    /// The whole limit's pace.
    pub(super) fn pace(&self) -> Pace {
        let refill = NonZeroU64::new(self.refill()).unwrap_or(NonZeroU64::MIN);
        Pace::steady(self.rate.per(), refill, NonZeroU32::new(self.burst).unwrap_or(NonZeroU32::MIN))
    }
}
