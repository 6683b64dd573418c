//! Rate limits of the policy's own: each attempt takes a token of every limit that holds for its route.
//!
//! ```yaml
//! providers:
//!   stripe:
//!     limits:
//!       - { name: account, rate: 100/s, burst: 10 }
//!       - { name: each-tenant, rate: 20/s, per: tenant, on_excess: reject }
//! ```
//!
//! **What.** No window of the rate's own length ever holds more than the rate: tokens come back at `rate - burst + 1` per
//! window, and `burst` may be taken at once (the proof stands in [`pace`]). What exceeds it waits, first in, first out, or
//! is refused with 429, an exact `Retry-After` and the `RateLimit` fields. A wait that would exceed `max_wait` or the
//! request's deadline is refused when it begins, not when it ends. The token is taken at the moment the request goes on, of
//! all limits at once; it is given back where outgate itself kept the request from being sent.
//!
//! **Where.** Inside the attempt loop, because providers count attempts; outside the concurrency permit and the attempt's
//! timeouts, because this wait is neither the provider's time nor a reason to hold a permit.
//!
//! **Limits.** Each limit keeps at most 1.6 million keys, in 50 MiB; what owes nothing is dropped. New keys beyond that count
//! together as one and are counted in `overflowed`: never too much goes out, and no key gets more than it may. Waiting
//! requests are bounded per key (`max_queue`). Timers have a grain of a millisecond: `burst: 1` at more than a few hundred a
//! second does not reach its rate. Of two limits that make the same requests wait, the narrower line is joined first.
//!
//! The promise is about the moment at which a request goes on. What then waits for a permit (`concurrency`) can leave together
//! with what came later: where that matters, leave `concurrency.max_wait` short.
//!
//! **Fleet.** With `scope: fleet` each key spends what is leased to this pod ([`lease`]); a lease may change at any moment and
//! is obeyed at once. A pod without a share waits for one; nothing is fetched on the request's path. With `on_excess: reject`
//! it waits 150 ms at most, so that the first request on a key is not refused for what nobody has used; in an outage with
//! `on_outage: closed`, each request waits that long before its 429.
//!
//! **Reload.** A limit whose numbers change goes on with what was spent and who waits ([`limiter::Limiter::adopt`]).

mod claims;
pub mod config;
pub mod layer;
pub mod leaky;
pub mod lease;
pub mod limiter;
pub mod pace;
pub mod settings;
mod slots;
mod store;
#[cfg(test)]
mod tests;

pub use config::{LimitsConfig, Origin};
pub use layer::RateLimit;
pub use limiter::{Limiter, Tokens};
pub use settings::{LimitSettings, Scope, Unit};
