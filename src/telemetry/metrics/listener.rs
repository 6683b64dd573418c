//! The series of one listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// The series of one listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    pub(super) open: AtomicI64,
    pub(super) accepted: AtomicU64,
    pub(super) resting: AtomicI64,
}

impl ListenerMetrics {
    /// Counts a connection, and counts it as open until the guard is dropped.
    pub fn accept(self: &Arc<Self>) -> DownstreamConnection {
        self.accepted.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        DownstreamConnection(Arc::clone(self))
    }

    /// Counts a connection as at rest until the guard is dropped.
    pub fn rest(self: &Arc<Self>) -> RestingConnection {
        self.resting.fetch_add(1, Relaxed);
        RestingConnection(Arc::clone(self))
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

/// A downstream connection at rest, as long as it rests.
#[derive(Debug)]
pub struct RestingConnection(Arc<ListenerMetrics>);

impl Drop for RestingConnection {
    fn drop(&mut self) {
        self.0.resting.fetch_sub(1, Relaxed);
    }
}
