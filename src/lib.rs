//! outgate: a sidecar egress proxy for third-party API calls.
pub mod admin;
pub mod cli;
pub mod credential;
pub mod message;
pub mod pipeline;
pub mod policy;
pub mod proxy;
pub mod resilience;
pub mod secret;
pub mod telemetry;
pub mod tls;
pub mod upstream;
