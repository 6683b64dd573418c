//! Abuse cases: hostile and broken input, the answer each must get, and what must hold whatever the answer is.

mod bench;
mod connect;
mod framing;
mod listed;
mod targets;
