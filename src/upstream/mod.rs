//! The way to the provider: resolve, check the address, dial that very address, secure it, keep it, speak HTTP.
//!
//! ```text
//! service    one request: builds it, leases a connection, fills the exchange's facts
//!   > pool        connections by host and port, HTTP/1.1 and HTTP/2; caps, waiters, idle timeout
//!   > connector   the only place that dials: resolver > guard > TCP > corporate proxy > TLS
//!     > guard     which addresses may be dialled, after `ranges` (the registries) and `local_address`
//! ```
//!
//! There is one [`service::Upstream`] per provider, so connections are never shared between providers; nor are they between
//! credentials of one provider, each tenant's own included, or versions of a client certificate.

mod answer;
pub mod client_tls;
pub mod config;
pub mod connector;
pub mod error;
mod exchange;
pub mod guard;
mod handshake;
pub mod identity;
pub mod local_address;
mod pool;
mod proxy_tunnel;
pub mod ranges;
pub mod resolver;
pub mod service;
pub mod settings;
mod socket;
mod upload;

pub use connector::UpstreamEnv;
pub use pool::PoolStats;
pub use service::{Upstream, UpstreamError, UpstreamService};

#[cfg(test)]
mod tests;
