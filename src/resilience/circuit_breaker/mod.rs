//! The circuit breaker: a provider's host that fails is left alone for a while, and then tried with a few requests.
//!
//! ```yaml
//! breaker:
//!   failures: 5                  # in a row
//!   error_rate: { threshold: 50%, window: 30s, min_requests: 20 }     # or: off
//!   open_for: 30s
//!   max_open_for: 5m             # doubles while probes fail
//!   half_open: { probes: 1, successes: 2 }
//!   fallback: { status: 200, headers: { Content-Type: application/json }, body: "[]" }       # or: stale
//! ```
//!
//! **Closed**, everything passes, and failures are counted, per host and port. **Open**, everything is refused with
//! `breaker_open` and the time until the next probe, or answered with the fallback. When `open_for` is over the breaker is
//! **half-open**: at most `probes` requests run, the others are refused; `successes` of them close it, and one that fails
//! opens it for twice the time. A `Retry-After` of the answer that opened it sets the time instead.
//!
//! What counts as a failure is said in `outcome`: no answer for a reason of the provider's, and answers of the
//! classes `overload` and `unavailable`, or with a 5xx that has no class. A 4xx never does. A request that ends because the
//! app went away, or because its own deadline came, counts as nothing.
//!
//! Two layers. [`Look`] stands outside the limits and refuses before a token is spent. [`Take`] stands inside them and
//! looks again, because what queued before the breaker opened must not rush the provider when its turn comes; there the
//! probe's place is taken, and given back when the probe is dropped.
//!
//! Limits: at most [`MAX_HOSTS`] hosts of one provider are known at a time (wildcards); the state lives in this process and
//! is not shared with other pods.

mod breaker;
mod config;
mod hosts;
mod layer;
mod outcome;
mod settings;
mod state;
mod status;
mod tally;

pub use config::{
    BreakerConfig, ErrorRateConfig, ErrorRateSwitch, FallbackConfig, HalfOpenConfig, StaticAnswerConfig,
};
pub use hosts::{Breakers, Forced, MAX_HOSTS};
pub use layer::{FallbackAnswer, Look, Take};
pub use settings::{BreakerSettings, ErrorRate, Fallback, Rules, StaticAnswer};
pub use status::{BreakersStatus, HostStatus};

#[cfg(test)]
mod tests;
