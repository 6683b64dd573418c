//! The stores, one file each, and what they share: `server` (behind HTTP), `document` (JSON answers), `field` (`#field`).

pub mod aws;
pub mod azure;
pub mod bearer;
pub mod document;
pub mod env;
pub mod exec;
pub mod field;
pub mod file;
pub mod gcp;
pub mod kubernetes;
pub mod sealed;
pub mod server;
pub mod vault;

#[cfg(test)]
mod tests;
