//! The series of one secret, by its reference. A reference names a place and holds no value.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The series of one secret.
#[derive(Debug, Default)]
pub struct SecretMetrics {
    /// Milliseconds since 1970; 0: never.
    read_at: AtomicU64,
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
