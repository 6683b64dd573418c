//! The series of one listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// The series of one listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    pub(super) open: AtomicI64,
    pub(super) accepted: AtomicU64,
}

impl ListenerMetrics {
    /// Counts a connection, and counts it as open until the guard is dropped.
    pub fn accept(self: &Arc<Self>) -> DownstreamConnection {
        self.accepted.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        DownstreamConnection(Arc::clone(self))
    }
}

/// An open downstream connection, as long as it lives.
#[derive(Debug)]
pub struct DownstreamConnection(Arc<ListenerMetrics>);

impl Drop for DownstreamConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}
