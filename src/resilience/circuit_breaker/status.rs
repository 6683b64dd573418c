//! What is shown of a provider's breakers.

use std::sync::atomic::AtomicU64;

use serde::Serialize;

/// Counters of one provider.
#[derive(Debug, Default)]
pub struct Counters {
    pub opened: AtomicU64,
    pub half_opened: AtomicU64,
    pub closed: AtomicU64,
    pub refused: AtomicU64,
    pub shadowed: AtomicU64,
    pub fallbacks: AtomicU64,
    pub probes: AtomicU64,
}

/// The breakers of one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BreakersStatus {
    /// `open` or `closed`, where the admin listener has forced it.
    pub forced: Option<&'static str>,
    /// Hosts that are known.
    pub known_hosts: usize,
    /// At most 50 of them, those that are not closed first.
    pub hosts: Vec<HostStatus>,
    /// How often one opened.
    pub opened: u64,
    /// How often one became half-open.
    pub half_opened: u64,
    /// How often one closed again.
    pub closed: u64,
    /// Requests that were refused, those that got a fallback included.
    pub refused: u64,
    /// Requests that shadow mode let pass.
    pub shadowed: u64,
    /// Requests that were answered with the static fallback.
    pub fallbacks: u64,
    /// Probes that were let through.
    pub probes: u64,
}

/// The breaker of one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostStatus {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `closed`, `open` or `half_open`.
    pub state: &'static str,
    /// Milliseconds until the next probe may go, where it is open; 0 = with the next request.
    pub next_probe_ms: Option<u64>,
    /// Failures in a row.
    pub failures_in_row: u32,
    /// Failures in the window of `error_rate`.
    pub window_failures: u64,
    /// Requests in that window.
    pub window_requests: u64,
    /// Probes under way.
    pub probes_running: u32,
}
