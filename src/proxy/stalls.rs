//! Clients that open HTTP/2 streams and then take nothing: one watch per connection, running only while an answer's body is
//! on its way.
//!
//! A socket that takes nothing is seen by the socket itself. A stream whose window stays shut is not, because hyper simply
//! does not ask its body for more. So each body notes when it last offered bytes and whether it was asked since; one that
//! was offered bytes and took less than `LEAST` in a whole write timeout ends the connection. One byte of window now and
//! then does not renew it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

/// Bytes that a stream must take in one write timeout, where that many are waiting.
const LEAST: u64 = 1024;

/// The bodies of one connection.
#[derive(Default)]
pub struct Stalls {
    bodies: Mutex<Vec<Weak<State>>>,
    begun: Notify,
}

#[derive(Default)]
struct State {
    /// Bytes handed to the connection so far.
    offered: AtomicU64,
    /// 1 while the connection waits for the provider: then the client is not to blame.
    waiting: AtomicU64,
    seen: AtomicU64,
}

/// The view of one body.
pub struct Progress(Arc<State>);

impl Progress {
    /// The connection asks for more, so what was offered before has been taken.
    pub fn asked(&self) {
        self.0.waiting.store(1, Ordering::Relaxed);
    }

    /// Bytes were handed to the connection.
    pub fn offered(&self, bytes: usize) {
        self.0.offered.fetch_add(bytes as u64, Ordering::Relaxed);
        self.0.waiting.store(0, Ordering::Relaxed);
    }
}

impl Stalls {
    /// Watches a new body.
    pub fn watch(&self) -> Progress {
        let state = Arc::<State>::default();
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        bodies.retain(|body| body.strong_count() > 0);
        bodies.push(Arc::downgrade(&state));
        self.begun.notify_one();
        Progress(state)
    }

    /// Returns when a body of this connection has stalled for a whole `timeout`.
    pub async fn stalled(&self, timeout: Duration) {
        loop {
            self.begun.notified().await;
            while self.any() {
                self.mark();
                sleep(timeout).await;
                if self.has_stalled() {
                    return;
                }
            }
        }
    }

    fn any(&self) -> bool {
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        bodies.retain(|body| body.strong_count() > 0);
        !bodies.is_empty()
    }

    fn mark(&self) {
        for body in self.live() {
            body.seen.store(body.offered.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn has_stalled(&self) -> bool {
        self.live().iter().any(|body| {
            let offered = body.offered.load(Ordering::Relaxed);
            let moved = offered - body.seen.load(Ordering::Relaxed);
            // A body that has offered nothing yet waits for the provider, or is new.
            offered > 0 && body.waiting.load(Ordering::Relaxed) == 0 && moved < LEAST
        })
    }

    fn live(&self) -> Vec<Arc<State>> {
        let bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        bodies.iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    const WRITE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_nothing_ends_the_connection() {
        let stalls = Stalls::default();
        let started = Instant::now();
        let body = stalls.watch();
        body.asked();
        body.offered(16 * 1024);
        stalls.stalled(WRITE).await;
        assert!(started.elapsed() <= 2 * WRITE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_for_the_provider_does_not() {
        let stalls = Arc::new(Stalls::default());
        let body = stalls.watch();
        body.asked();
        body.offered(16);
        body.asked();
        assert!(timeout(10 * WRITE, stalls.stalled(WRITE)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_goes_on_taking_does_not() {
        let stalls = Arc::new(Stalls::default());
        let body = stalls.watch();
        let taking = async {
            for _ in 0..100 {
                body.asked();
                body.offered(4096);
                sleep(Duration::from_secs(5)).await;
            }
        };
        tokio::select! {
            () = taking => {}
            () = stalls.stalled(WRITE) => panic!("it takes 4 KiB every 5 s"),
        }
    }
}
