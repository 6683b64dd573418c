//! What a closed breaker counts: failures in a row, and successes and failures in a sliding window.
//!
//! All atomics, because every request of a healthy provider counts here and none shall wait for another: the lock of the
//! breaker is for its transitions. A count that races with a transition may land before or after it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// The window is cut into so many buckets. It slides by one at a time, so it spans nine to ten tenths of its length.
const BUCKETS: u32 = 10;

/// The counts of one breaker.
#[derive(Debug)]
pub struct Tally {
    origin: Instant,
    /// Length of a bucket in nanoseconds; 0 = no window.
    bucket: AtomicU64,
    row: AtomicU32,
    succeeded: Ring,
    failed: Ring,
}

impl Tally {
    /// Counts nothing yet. Without a window only failures in a row are counted.
    pub fn new(now: Instant, window: Option<Duration>) -> Self {
        Self {
            origin: now,
            bucket: AtomicU64::new(bucket_nanos(window)),
            row: AtomicU32::new(0),
            succeeded: Ring::default(),
            failed: Ring::default(),
        }
    }

    /// Another length of the window. What was counted under the old one does not fit into the new one and is forgotten.
    pub fn set_window(&self, window: Option<Duration>) {
        let nanos = bucket_nanos(window);
        if self.bucket.swap(nanos, Relaxed) != nanos {
            self.succeeded.clear();
            self.failed.clear();
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.row.store(0, Relaxed);
        self.succeeded.clear();
        self.failed.clear();
    }

    /// A success: the row of failures ends.
    pub fn success(&self, now: Instant) {
        // Read first: a healthy provider's requests then share the cache line without writing to it.
        if self.row.load(Relaxed) != 0 {
            self.row.store(0, Relaxed);
        }
        if let Some(slot) = self.slot(now) {
            self.succeeded.add(slot);
        }
    }

    /// A failure; returns how many in a row this makes.
    pub fn failure(&self, now: Instant) -> u32 {
        if let Some(slot) = self.slot(now) {
            self.failed.add(slot);
        }
        self.row.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// What was counted as a success is a failure after all; returns how many in a row this makes.
    pub fn turned(&self, now: Instant) -> u32 {
        if let Some(slot) = self.slot(now) {
            self.succeeded.take_one(slot);
        }
        self.failure(now)
    }

    /// Failures in a row.
    pub fn row(&self) -> u32 {
        self.row.load(Relaxed)
    }

    /// Failures of the window, and all requests of it.
    pub fn window(&self, now: Instant) -> (u64, u64) {
        let Some(slot) = self.slot(now) else { return (0, 0) };
        let failed = self.failed.sum(slot);
        (failed, failed + self.succeeded.sum(slot))
    }

    /// The number of the bucket that `now` falls into. It wraps, after 13 years of the shortest buckets.
    #[expect(clippy::cast_possible_truncation, reason = "slots are compared modulo 2^32")]
    fn slot(&self, now: Instant) -> Option<u32> {
        let nanos = now.saturating_duration_since(self.origin).as_nanos();
        nanos.checked_div(u128::from(self.bucket.load(Relaxed))).map(|slot| slot as u32)
    }
}

fn bucket_nanos(window: Option<Duration>) -> u64 {
    let Some(window) = window else { return 0 };
    u64::try_from((window / BUCKETS).as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Buckets by slot: the slot's number in the upper half, the count in the lower. A bucket of an older slot counts as empty.
#[derive(Debug, Default)]
struct Ring([AtomicU64; BUCKETS as usize]);

fn parts(value: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "each is half of the value")]
    ((value >> 32) as u32, value as u32)
}

fn whole(slot: u32, count: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(count)
}

impl Ring {
    fn add(&self, slot: u32) {
        let Some(bucket) = self.0.get((slot % BUCKETS) as usize) else { return };
        let _ = bucket.fetch_update(Relaxed, Relaxed, |value| {
            let (held, count) = parts(value);
            Some(if held == slot { whole(slot, count.saturating_add(1)) } else { whole(slot, 1) })
        });
    }

    fn take_one(&self, slot: u32) {
        for bucket in &self.0 {
            let taken = bucket.fetch_update(Relaxed, Relaxed, |value| {
                let (held, count) = parts(value);
                let lately = slot.wrapping_sub(held) < BUCKETS;
                lately.then(|| count.checked_sub(1).map(|count| whole(held, count))).flatten()
            });
            if taken.is_ok() {
                return;
            }
        }
    }

    fn sum(&self, slot: u32) -> u64 {
        let counts = self.0.iter().map(|bucket| parts(bucket.load(Relaxed)));
        counts.filter(|(held, _)| slot.wrapping_sub(*held) < BUCKETS).map(|(_, count)| u64::from(count)).sum()
    }

    fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    #[test]
    fn a_success_ends_the_row_and_stays_in_the_window() {
        let now = Instant::now();
        let tally = Tally::new(now, Some(WINDOW));
        assert_eq!((tally.failure(now), tally.failure(now)), (1, 2));
        tally.success(now);
        assert_eq!((tally.row(), tally.window(now)), (0, (2, 3)));
        assert_eq!(tally.turned(now), 1);
        assert_eq!(tally.window(now), (3, 3));
        tally.clear();
        assert_eq!((tally.row(), tally.window(now)), (0, (0, 0)));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let start = Instant::now();
        let tally = Tally::new(start, Some(WINDOW));
        tally.failure(start);
        tally.success(start + Duration::from_secs(15));
        let at = |secs| tally.window(start + Duration::from_secs(secs));
        assert_eq!((at(29), at(30), at(44), at(45), at(10_000)), ((1, 2), (0, 1), (0, 1), (0, 0), (0, 0)));
    }

    #[test]
    fn another_window_starts_anew_and_none_counts_only_the_row() {
        let now = Instant::now();
        let tally = Tally::new(now, Some(WINDOW));
        tally.failure(now);
        tally.set_window(Some(WINDOW));
        assert_eq!(tally.window(now), (1, 1));
        tally.set_window(None);
        assert_eq!((tally.failure(now), tally.window(now)), (2, (0, 0)));
        tally.set_window(Some(WINDOW * 2));
        assert_eq!(tally.window(now), (0, 0));
    }

    proptest! {
        /// Against a list of all events: at least what lies within nine tenths of the window, at most what lies within it.
        #[test]
        fn the_window_holds_what_is_recent(steps in prop::collection::vec((0u64..5_000, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let tally = Tally::new(start, Some(WINDOW));
            let (mut now, mut events) = (start, VecDeque::new());
            for (gap, fails) in steps {
                now += Duration::from_millis(gap);
                if fails { tally.failure(now); } else { tally.success(now); }
                events.push_back((now, fails));
                let within = |span: Duration, only_failed: bool| {
                    let recent = events.iter().filter(|(at, fails)| now - *at < span && (*fails || !only_failed));
                    recent.count() as u64
                };
                let (failed, all) = tally.window(now);
                let short = WINDOW.mul_f64(0.9);
                prop_assert!((within(short, false)..=within(WINDOW, false)).contains(&all));
                prop_assert!((within(short, true)..=within(WINDOW, true)).contains(&failed));
            }
        }
    }
}
