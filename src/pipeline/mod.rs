//! From a policy to a running thing: generations, their stacks, the live state they share, and what the app is told.
//!
//! Only admission hands out the power to send: [`generation::Generation`] is the one place that returns a route's service
//! or a tunnel permit, and `proxy` cannot import `upstream`. So "no dial before policy" is a fact, not a rule.

mod client_certificates;
pub mod error;
pub mod generation;
mod kept;
pub mod layer_report;
pub mod layer_states;
pub mod live_fleet;
pub mod reload;
mod renewals;
pub mod route_stack;
pub mod shared;
pub mod tunnel;
pub mod watch;
