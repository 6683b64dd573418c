//! Concurrency: so many requests to a provider run at a time, and the others wait, for a bounded time, in a bounded queue.
//!
//! ```yaml
//! concurrency: { max: 100, max_wait: 1s, max_queue: 1000 }
//! ```
//!
//! A request takes its permit after all other waits, and has it until the *body* of its answer has ended, broken or been
//! dropped, because until then the provider is at work for it. So nothing is held through a backoff: the body of an answer
//! that is tried again is dropped first. A request that gets no answer gives its permit back at once.
//!
//! Who finds no permit waits, first come, first served, at most `max_wait` and not beyond its deadline, and is then refused
//! with 503 `overloaded`; so is, at once, who finds `max_queue` others waiting. A `max_wait` of `0s` refuses without a queue.
//!
//! Limits: the permits are counted in this process, per provider. An upgraded connection (WebSocket) has its permit until
//! the 101 only: what is copied behind it is no request any more, may live for hours, and would keep ordinary requests out;
//! `upstream.pool.max_connections` bounds it.

mod config;
mod layer;
mod permits;

pub use config::{ConcurrencyConfig, ConcurrencySettings};
pub use layer::Concurrency;
pub use permits::{Permits, PermitsStatus};

#[cfg(test)]
mod tests;
