//! Bounds of the process: above 80 % of connections, descriptors or memory new work is refused, below 70 % it is taken again.
//!
//! Nothing ticks: connections are counted as they come and go, descriptors follow from them, and memory is read at most
//! four times a second, when a connection is accepted.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How often memory is looked at, at most.
const LOOK: Duration = Duration::from_millis(250);

/// Whether the process is near one of its bounds.
pub struct Overload {
    connections: AtomicUsize,
    max_connections: usize,
    max_memory: Option<u64>,
    read_memory: fn() -> Option<u64>,
    full: AtomicBool,
    memory_full: AtomicBool,
    started: Instant,
    looked: AtomicU64,
}

impl Overload {
    /// `max_connections` is what configuration and descriptors allow; `max_memory` the bytes this process may use.
    pub fn new(max_connections: usize, max_memory: Option<u64>, read_memory: fn() -> Option<u64>) -> Self {
        Self {
            connections: AtomicUsize::new(0),
            max_connections,
            max_memory,
            read_memory,
            full: AtomicBool::new(false),
            memory_full: AtomicBool::new(false),
            started: Instant::now(),
            looked: AtomicU64::new(0),
        }
    }

    /// How many connections there may be.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// A connection came.
    pub fn opened(&self) {
        let now = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        self.judge(now);
        self.look_at_memory();
    }

    /// A connection went.
    pub fn closed(&self) {
        let now = self.connections.fetch_sub(1, Ordering::Relaxed) - 1;
        self.judge(now);
    }

    /// Whether new work is refused now.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed) || self.memory_full.load(Ordering::Relaxed)
    }

    fn judge(&self, connections: usize) {
        judge(&self.full, connections as u64, self.max_connections as u64);
    }

    fn look_at_memory(&self) {
        let Some(bound) = self.max_memory else { return };
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let last = self.looked.load(Ordering::Relaxed);
        let due = u64::try_from(LOOK.as_millis()).unwrap_or(0);
        if now.saturating_sub(last) < due && last != 0 {
            return;
        }
        self.looked.store(now.max(1), Ordering::Relaxed);
        if let Some(used) = (self.read_memory)() {
            judge(&self.memory_full, used, bound);
        }
    }
}

/// Full above 80 %, free again below 70 %.
fn judge(full: &AtomicBool, used: u64, bound: u64) {
    if used * 10 > bound * 8 {
        full.store(true, Ordering::Relaxed);
    } else if used * 10 < bound * 7 {
        full.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_above_eighty_and_free_below_seventy_percent() {
        let overload = Overload::new(100, None, || None);
        for _ in 0..80 {
            overload.opened();
        }
        assert!(!overload.is_full());
        overload.opened();
        assert!(overload.is_full());
        for _ in 0..11 {
            overload.closed();
        }
        assert!(overload.is_full(), "70 are still there");
        overload.closed();
        assert!(!overload.is_full());
    }

    #[tokio::test]
    async fn memory_counts_too() {
        let overload = Overload::new(100, Some(1000), || Some(900));
        overload.opened();
        assert!(overload.is_full());
    }
}
