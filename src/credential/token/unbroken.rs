//! Exchanges that must come to their end: one that uses a refresh token up, and is broken off before what it brought is
//! written, ends the grant. So it is neither broken off with who waits for it nor with the process: the end of the process
//! waits for it.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The exchanges of the process that must come to their end. Clones share them.
#[derive(Clone, Default)]
pub struct Unbroken {
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Unbroken {
    /// Begins one. Each is bounded by the times of its client and its shelf.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(work)
    }

    /// Told when the process ends: then nothing is begun that uses something up, and nobody waits for another process.
    pub(super) fn ending(&self) -> CancellationToken {
        self.ending.clone()
    }

    /// Lets nothing more begin that uses something up. What runs goes on.
    pub fn begin_no_more(&self) {
        self.ending.cancel();
    }

    /// Lets nothing more begin, and waits for what runs, for `limit` at most. Returns whether all of it came to its end.
    pub async fn end(&self, limit: Duration) -> bool {
        self.begin_no_more();
        self.tasks.close();
        if !self.tasks.is_empty() {
            tracing::info!(
                target: "outgate::credential",
                exchanges = self.tasks.len(),
                "a refresh token that rotates is on its way: the end waits for it"
            );
        }
        let ended = tokio::time::timeout(limit, self.tasks.wait()).await.is_ok();
        if !ended {
            tracing::error!(
                target: "outgate::credential",
                exchanges = self.tasks.len(),
                "a new refresh token could not be kept before the end: its grant may have to be given anew"
            );
        }
        ended
    }
}
