//! The response cache: a private cache (RFC 9111) for each provider, its answers apart by credential and tenant.
//!
//! ```yaml
//! providers:
//!   github:
//!     cache: { max_size: 64MiB, max_entry: 1MiB, stale_if_error: 1h, coalesce: true }
//! ```
//!
//! Below the deadline and outside of everything else: a hit costs no quota, no token and no permit. The request is seen
//! before a secret is in it, the answer after secrets were masked.
//!
//! - **Served**: GET, and HEAD from a kept GET. Requests with `Range`, content, `no-store`, `If-Match`, or an `Authorization`
//!   or `Cookie` of the app's own pass by. Other credentials of the app's own (`X-Api-Key` ...) are part of the key.
//! - **Kept**: what RFC 9111 allows, where `responses` calls the answer a success; errors (4xx) and what is `final` only with
//!   a lifetime of their own; never with `Set-Cookie`, trailers, or a body that was cut. An answer without a lifetime is kept
//!   too where it can be validated, or stand in for a failure (`stale_if_error`).
//! - **Stale**: validated by its tag or date; a 304 makes it fresh again. Used without, while it is renewed
//!   (`stale_while_revalidate`), or when the provider fails (`stale_if_error`: no connection, no answer in time, an open
//!   breaker, a credential that is not there, 500, 502, 503, 504); never against `must-revalidate` or `no-cache`.
//! - **Coalesced**: identical GETs wait for one answer, at most 5 s and half of the time that their deadline leaves.
//! - **Invalid**: after a successful unsafe request to the same URL, for every credential.
//!
//! Limits: `max_size` bytes are kept (heads and bookkeeping included), and bodies that are being read hold as much again; 8
//! variants of a URL; 16 answers are renewed at a time; 1000 requests wait for one answer; what nobody asked for in a day
//! goes. Kept in memory, by this process alone.

mod config;
mod directives;
mod entry;
mod fill;
mod flight;
mod forward;
mod invalidate;
mod layer;
mod note;
mod place;
mod renewal;
mod semantics;
mod serve;
mod state;
mod validator;

#[cfg(test)]
mod tests;

pub use config::{CacheConfig, CacheSettings, StaleIfError};
pub use invalidate::Invalidate;
pub use layer::{Cache, RouteCache};
pub use renewal::Renewals;
pub use state::{CacheStatus, ResponseCache, Spawn};
