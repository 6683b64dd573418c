//! Rate limits.

mod claims;
pub mod config;
pub mod layer;
pub mod lease;
pub mod limiter;
pub mod pace;
pub mod settings;
mod slots;
mod store;
