//! The series of one secret, by its reference. A reference names a place and holds no value.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The series of one secret.
#[derive(Debug, Default)]
pub struct SecretMetrics {
    /// Milliseconds since 1970; 0: never.
    read_at: AtomicU64,
    /// Seconds until its end, and one; 0: it has none.
    ends_in: AtomicU64,
    pub(super) version: AtomicU64,
    pub(super) errors: AtomicU64,
}

impl SecretMetrics {
    /// Notes that the value was read, or found unchanged, at `now`. `version` grows by one with each change of the value.
    pub fn read(&self, version: u64, now: SystemTime) {
        self.version.store(version, Relaxed);
        self.read_at.store(since_1970(now), Relaxed);
    }

    /// Sets how many reads failed since the start; it only grows.
    pub fn failed_in_all(&self, reads: u64) {
        self.errors.store(reads, Relaxed);
    }

    /// Sets how many seconds are left until the value in use ends; none where it has no end, or there is none.
    pub fn ends_in(&self, seconds: Option<u64>) {
        self.ends_in.store(seconds.map_or(0, |seconds| seconds.saturating_add(1)), Relaxed);
    }

    /// The same, as it was set.
    pub(super) fn seconds_left(&self) -> Option<f64> {
        Some(self.ends_in.load(Relaxed).checked_sub(1)? as f64)
    }

    /// Seconds since the last good read; `None` if there was none.
    pub(super) fn age(&self, now: SystemTime) -> Option<f64> {
        let read_at = self.read_at.load(Relaxed);
        // A clock that was set back gives an age of zero.
        let age = Duration::from_millis(since_1970(now).saturating_sub(read_at));
        (read_at > 0).then_some(age.as_secs_f64())
    }
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
