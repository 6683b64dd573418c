//! The stores, one file each, and what they share.

pub mod document;
pub mod env;
pub mod field;
pub mod file;
pub mod not_yet;
pub mod server;
pub mod vault;
