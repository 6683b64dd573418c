//! The app's side: listeners, connections, doors, and what crosses between them and a route's stack.
//!
//! ```text
//! listener -> connection -> dispatch -+- forward (in dispatch) ----+
//!                                     +- local --------------------+
//!                                     +- connect -+- tunnel        |
//!                                     |           +- intercept ----+  (TLS accept, then `connection` again, once)
//!                                                                  v
//!                                                              exchange -> respond, on error
//! ```

pub mod connect;
pub mod connection;
pub mod context;
pub mod dispatch;
pub mod download;
pub mod exchange;
pub mod intercept;
pub mod links;
pub mod listener;
pub mod local;
pub mod overload;
pub mod panics;
pub mod relay;
pub mod resets;
pub mod respond;
pub mod rest;
pub mod socket;
pub mod stalls;
pub mod tunnel;
pub mod upgrade;
pub mod upload;
pub mod work;
