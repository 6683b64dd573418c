//! Abuse cases: hostile and broken input, the answer each must get, and what must hold whatever the answer is.

mod addresses;
mod after;
mod frames;
mod http2;
mod limits;
mod policies;
mod secrets;
