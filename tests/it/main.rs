//! The whole proxy in process: real clients, scripted origins, its own CA, a captured log. One binary, files named by
//! behaviour.

// A test says what went wrong by failing; and it is the app here, so it dials.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod abuse;
mod blame;
mod breaker;
mod cache;
mod capture;
mod certificates;
mod clocks;
mod credentials;
mod demo;
mod doors;
mod drain;
mod ending;
mod file_faults;
mod fleet;
mod healing;
mod key_ids;
mod keys;
mod leak;
mod limits;
mod local;
mod never_twice;
mod own_ca;
mod policy;
mod presets;
mod process;
mod program;
mod quota;
mod records;
mod reload;
mod rest;
mod rewrite;
mod rotating;
mod shadow;
mod signed;
mod store_faults;
mod stores;
mod streaming;
mod support;
mod tenants;
mod timeouts;
mod transparent;
mod upgrade;
mod upstream;
mod world;
