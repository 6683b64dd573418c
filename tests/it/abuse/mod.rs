//! Abuse cases: hostile and broken input, the answer each must get, and what must hold whatever the answer is.

mod addresses;
mod after;
mod bench;
mod connect;
mod doors;
mod frames;
mod framing;
mod http2;
mod limits;
mod listed;
mod policies;
mod secrets;
mod targets;
mod tls;
