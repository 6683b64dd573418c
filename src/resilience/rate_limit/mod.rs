//! Rate limits.

pub mod lease;
pub mod pace;
