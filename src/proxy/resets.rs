//! Clients that open HTTP/2 streams only to reset them (CVE-2023-44487): every reset is cheap for the client, and each
//! request that had begun is work for outgate and for the provider.
//!
//! The HTTP library bounds resets of streams that it has not handed over yet. Here those are counted whose request had
//! begun and had no answer; each answered request makes up for one. A connection on which they outweigh the answers by
//! `MOST` ends. An app that cancels a few requests, or hedges every one of them, never comes near.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

/// Requests that may be abandoned beyond those that were answered.
const MOST: u32 = 100;

/// The balance of one connection.
#[derive(Default)]
pub struct Resets {
    abandoned: AtomicU32,
    too_many: Notify,
}

/// A request that has no answer yet. Dropped without one, it was abandoned.
pub struct Begun<'a>(Option<&'a Resets>);

impl Resets {
    /// A request begins.
    pub fn begin(&self) -> Begun<'_> {
        Begun(Some(self))
    }

    /// Returns when the client has abandoned too many requests.
    pub async fn too_many(&self) {
        self.too_many.notified().await;
    }
}

impl Begun<'_> {
    /// The request has its answer.
    pub fn answered(mut self) {
        let Some(resets) = self.0.take() else { return };
        let less = |abandoned: u32| Some(abandoned.saturating_sub(1));
        let _ = resets.abandoned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let Some(resets) = self.0 else { return };
        if resets.abandoned.fetch_add(1, Ordering::Relaxed) + 1 >= MOST {
            resets.too_many.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_hundred_more_abandoned_than_answered_is_too_many() {
        let resets = Resets::default();
        for _ in 0..1000 {
            drop(resets.begin());
            resets.begin().answered();
        }
        for _ in 0..99 {
            drop(resets.begin());
        }
        assert!(resets.too_many().now_or_never().is_none());
        drop(resets.begin());
        assert!(resets.too_many().now_or_never().is_some());
    }

    #[test]
    fn answers_are_no_credit_for_later() {
        let resets = Resets::default();
        for _ in 0..1000 {
            resets.begin().answered();
        }
        for _ in 0..MOST {
            drop(resets.begin());
        }
        assert!(resets.too_many().now_or_never().is_some());
    }
}
