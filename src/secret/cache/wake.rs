//! What entries tell their cache.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Wakes [`SecretCache::run`](super::SecretCache::run), and counts the values that changed, but for those of tenants.
#[derive(Debug, Default)]
pub(super) struct Wake {
    notify: Notify,
    changes: AtomicU64,
}

impl Wake {
    /// Entries came or went, or one of them wants another read.
    pub(super) fn notify_one(&self) {
        self.notify.notify_one();
    }

    /// Completes when somebody has notified.
    pub(super) fn notified(&self) -> Notified<'_> {
        self.notify.notified()
    }

    /// An entry has another value; one that is no tenant's, for those come and go with each name.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// How often an entry of the policy had another value.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}
