//! outgate: a sidecar egress proxy for third-party API calls.
//!
//! A request's path through the modules, top to bottom; imports go down only (`tests/architecture.rs`):
//!
//! ```text
//! main, cli, app, admin     wiring; `injector` beside it puts sidecars into pods, and has no part in requests
//! proxy                     the app's side: listeners, doors, exchange
//! pipeline                  generations: admission, route stacks, reload, the answer table
//! policy                    what was typed, what is true, the decision; pure
//! credential                what is injected, and how answers are searched for it
//! secret, resilience        where values come from; deadlines, healing, timeouts
//! upstream                  resolve, guard, dial, pool
//! tls, message              certificates; the fixed types of the path
//! telemetry                 log, metrics, identities
//! ```

// Unit tests dial their own sockets and collect their own bodies.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod admin;
pub mod app;
pub mod cli;
pub mod credential;
pub mod injector;
pub mod message;
pub mod pipeline;
pub mod policy;
pub mod process;
pub mod proxy;
pub mod resilience;
pub mod secret;
pub mod telemetry;
pub mod tls;
pub mod upstream;
