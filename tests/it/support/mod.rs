//! What every test stands on: the proxy in process, scriptable origins, a throw-away CA, raw clients.

pub mod ca;
pub mod client;
pub mod log;
pub mod origin;
pub mod proxy;

/// A credential that must never be seen where it does not belong.
pub const CANARY: &str = "sk_live_CANARY0a1b2c3d4e5f6g7h8i9j";
