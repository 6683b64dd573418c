//! The whole proxy in process: real clients, scripted origins, its own CA, a captured log. One binary, files named by
//! behaviour.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test stands on fails the test, and clippy's exception for tests covers their own bodies only"
)]

mod capture;
mod doors;
mod healing;
mod leak;
mod local;
mod process;
mod program;
mod records;
mod reload;
mod streaming;
mod support;
mod timeouts;
mod upgrade;
mod world;
