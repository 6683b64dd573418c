//! How busy the whole process is: what a linger waits for.
//!
//! Counts requests, tunnels and upgraded connections, and not connections that are only kept. Two atomic additions a request,
//! and nobody is woken while requests run.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// The work of the process.
#[derive(Default)]
pub struct Work {
    running: AtomicU32,
    begun: AtomicU64,
    rested: Notify,
}

impl Work {
    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn end(&self) {
        if self.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.rested.notify_waiters();
        }
    }

    /// Returns when nothing has run for `idle`.
    pub async fn rest(&self, idle: Duration) {
        loop {
            let rested = self.rested.notified();
            let begun = self.begun.load(Ordering::SeqCst);
            if self.running.load(Ordering::SeqCst) > 0 {
                rested.await;
                continue;
            }
            tokio::time::sleep(idle).await;
            let quiet = self.running.load(Ordering::SeqCst) == 0;
            if quiet && self.begun.load(Ordering::SeqCst) == begun {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const IDLE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn rest_begins_anew_with_each_piece_of_work() {
        let work = Arc::new(Work::default());
        let began = tokio::time::Instant::now();
        work.rest(IDLE).await;
        assert_eq!(began.elapsed(), IDLE, "nothing ran at all");

        let busy = work.clone();
        tokio::spawn(async move {
            busy.begin();
            tokio::time::sleep(Duration::from_secs(60)).await;
            busy.end();
            // A short one, while the rest is being waited for.
            tokio::time::sleep(Duration::from_secs(4)).await;
            busy.begin();
            busy.end();
        });
        tokio::task::yield_now().await;
        let began = tokio::time::Instant::now();
        work.rest(IDLE).await;
        // 60 s of work, 5 s in which the short one fell, and 5 s without any.
        assert_eq!(began.elapsed(), Duration::from_secs(70));
    }
}
