//! What every test stands on: the proxy in process, scriptable origins, a throw-away CA, raw clients.

pub mod ca;
pub mod client;
pub mod log;
pub mod origin;
pub mod proxy;

static MACHINE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// To be held by a test that keeps the cores busy for seconds: one such test at a time. Those that judge by time what the machine
/// does are `ignore`d, and run alone by `make test`.
pub async fn the_machine() -> tokio::sync::MutexGuard<'static, ()> {
    MACHINE.lock().await
}

/// A credential that must never be seen where it does not belong.
pub const CANARY: &str = "sk_live_CANARY0a1b2c3d4e5f6g7h8i9j";
