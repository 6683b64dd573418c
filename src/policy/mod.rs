//! The policy: what was typed, and what is true because of it. Pure; no async, no sockets.
//!
//! Text becomes a located tree ([`load`], [`yaml`], [`tree`]), trees are laid over each other ([`merge`]), and the result is
//! decoded into the types of the layers below ([`decode`]), all mistakes at once ([`diagnostic`]). [`pattern`] holds the
//! host and path patterns that routing works on, [`preset`] what is known of providers.

pub mod compile;
pub mod compiled;
pub mod decide;
pub mod decode;
pub mod diagnostic;
pub mod layers;
pub mod load;
pub mod merge;
pub mod pattern;
pub mod preset;
pub mod reference;
pub mod restart;
pub mod schema;
pub mod setting;
pub mod switch;
pub mod tenant_pattern;
pub mod tree;
pub mod widening;
pub mod yaml;
