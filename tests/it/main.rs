//! The whole proxy in process: real clients, scripted origins, its own CA, a captured log. One binary, files named by
//! behaviour.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test stands on fails the test, and clippy's exception for tests covers their own bodies only"
)]

mod abuse;
mod doors;
mod support;
