//! The kept answers of one provider. Outlives reloads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use http::HeaderMap;
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::sync::Cache as Moka;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::config::CacheSettings;
use super::entry::{Epoch, Slot, Stored};
use super::flight::Flights;
use super::place::Place;
use crate::resilience::key::Key;

/// Starts a task of the process: answers are renewed in the background by it.
pub type Spawn = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

/// Answers that are renewed in the background at a time.
const BACKGROUND: usize = 16;

/// What nobody asked for in a day goes, however much room there is.
const UNUSED: Duration = Duration::from_secs(24 * 3600);

/// The table of URLs is swept when it has so many more entries than are in use.
const SLACK: usize = 1024;

/// The kept answers of one provider, and what is on its way into them. At most `max_size` bytes are kept, and as many again
/// are held by bodies that are still being read.
pub struct ResponseCache {
    slots: Moka<Place, Arc<Slot>>,
    /// The URLs that something is kept for, or on its way to be, by whom so ever.
    urls: Mutex<Urls>,
    pub(super) flights: Arc<Flights>,
    pub(super) background: Arc<Semaphore>,
    pub(super) spawn: Spawn,
    pub(super) counters: Arc<Counters>,
    max_size: u64,
    max_entry: u64,
    clock: Clock,
    filling: AtomicU64,
}

#[derive(Default)]
struct Urls {
    epochs: HashMap<Key, Weak<AtomicU64>>,
    sweep_at: usize,
}

/// Counted since the state was made.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub bypassed: AtomicU64,
    pub revalidated: AtomicU64,
    pub stale_served: AtomicU64,
    pub coalesced: AtomicU64,
    pub stored: AtomicU64,
    pub not_storable: AtomicU64,
    pub evicted: AtomicU64,
    pub invalidated: AtomicU64,
    pub renewed: AtomicU64,
    pub not_renewed: AtomicU64,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// How a cache stands, for `/status` and `/metrics`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CacheStatus {
    /// URLs that something is kept for, each credential and tenant apart.
    pub entries: u64,
    /// Memory that they take, about.
    pub bytes: u64,
    /// Requests answered from the cache without a word to the provider.
    pub hits: u64,
    /// Requests that went to the provider though the cache was asked.
    pub misses: u64,
    /// Requests that the cache does not serve: ranges, cookies of the app's own, `no-store` ...
    pub bypassed: u64,
    /// Kept answers that the provider confirmed by a 304.
    pub revalidated: u64,
    /// Stale answers that the app got, in place of a failure or while they were renewed.
    pub stale_served: u64,
    /// Requests that were answered by another's answer, having waited for it.
    pub coalesced: u64,
    /// Answers that were kept.
    pub stored: u64,
    /// Answers that must not be kept, or are too large.
    pub not_storable: u64,
    /// Kept answers that went for want of room, or because nobody asked for them in a day.
    pub evicted: u64,
    /// URLs whose answers a successful PUT, POST, PATCH or DELETE made invalid.
    pub invalidated: u64,
    /// Stale answers that were renewed in the background.
    pub renewed: u64,
    /// Renewals that came to nothing.
    pub not_renewed: u64,
    /// Part of the requests that the provider was spared: (hits + coalesced) / (hits + coalesced + misses).
    pub hit_ratio: f64,
}

impl ResponseCache {
    /// An empty cache. `spawn` starts a task that outlives its request.
    pub fn new(settings: &CacheSettings, spawn: Spawn) -> Self {
        Self::with_clock(settings, spawn, Clock::of_the_system())
    }

    pub(super) fn with_clock(settings: &CacheSettings, spawn: Spawn, clock: Clock) -> Self {
        let counters = Arc::new(Counters::default());
        let of_listener = counters.clone();
        let slots = Moka::builder()
            .max_capacity(settings.max_size)
            .weigher(|_, slot: &Arc<Slot>| u32::try_from(slot.weight()).unwrap_or(u32::MAX))
            .time_to_idle(UNUSED)
            .eviction_listener(move |_, _, cause| {
                if matches!(cause, RemovalCause::Size | RemovalCause::Expired) {
                    count(&of_listener.evicted);
                }
            })
            .build();
        Self {
            slots,
            urls: Mutex::default(),
            flights: Arc::default(),
            background: Arc::new(Semaphore::new(BACKGROUND)),
            spawn,
            counters,
            max_size: settings.max_size,
            max_entry: settings.max_entry,
            clock,
            filling: AtomicU64::new(0),
        }
    }

    /// How it stands.
    pub fn status(&self) -> CacheStatus {
        self.slots.run_pending_tasks();
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let (hits, misses, coalesced) = (of(&counters.hits), of(&counters.misses), of(&counters.coalesced));
        let spared = hits + coalesced;
        CacheStatus {
            entries: self.slots.entry_count(),
            bytes: self.slots.weighted_size(),
            hits,
            misses,
            bypassed: of(&counters.bypassed),
            revalidated: of(&counters.revalidated),
            stale_served: of(&counters.stale_served),
            coalesced,
            stored: of(&counters.stored),
            not_storable: of(&counters.not_storable),
            evicted: of(&counters.evicted),
            invalidated: of(&counters.invalidated),
            renewed: of(&counters.renewed),
            not_renewed: of(&counters.not_renewed),
            hit_ratio: if spared == 0 { 0.0 } else { spared as f64 / (spared + misses) as f64 },
        }
    }

    /// The longest body that is kept.
    pub(super) fn max_entry(&self) -> u64 {
        self.max_entry
    }

    /// Now, as dates are compared with.
    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// What is kept at a place.
    pub(super) fn slot(&self, place: &Place) -> Option<Arc<Slot>> {
        self.slots.get(place)
    }

    /// Keeps an answer, in place of those that the same request selects.
    pub(super) fn keep(&self, place: Place, stored: Arc<Stored>, asked: &HeaderMap) {
        let now = self.now();
        self.slots.entry(place).and_upsert_with(|old| {
            let old = old.map(moka::Entry::into_value).unwrap_or_default();
            Arc::new(old.with(stored, asked, now))
        });
    }

    /// Forgets an answer.
    pub(super) fn forget(&self, place: Place, stored: &Arc<Stored>) {
        self.slots.entry(place).and_compute_with(|old| match old {
            None => Op::Nop,
            Some(old) => {
                let rest = old.value().without(stored);
                if rest.is_empty() { Op::Remove } else { Op::Put(Arc::new(rest)) }
            }
        });
    }

    /// Notes that waiting for another's answer was of no use at a place.
    pub(super) fn useless_to_wait(&self, place: Place) {
        self.slots
            .entry(place)
            .and_upsert_with(|old| Arc::new(old.map(moka::Entry::into_value).unwrap_or_default().useless()));
    }

    /// The present epoch of a URL. Taken before a request is sent, so that what an unsafe request makes invalid meanwhile is
    /// not kept afterwards.
    pub(super) fn epoch(&self, url: Key) -> Epoch {
        let mut urls = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = urls.epochs.get(&url).and_then(Weak::upgrade) {
            return Epoch::now(epoch);
        }
        let epoch = Arc::new(AtomicU64::new(0));
        urls.epochs.insert(url, Arc::downgrade(&epoch));
        if urls.epochs.len() > urls.sweep_at {
            urls.epochs.retain(|_, epoch| epoch.strong_count() > 0);
            urls.sweep_at = urls.epochs.len() * 2 + SLACK;
        }
        Epoch::now(epoch)
    }

    /// Makes all answers of a URL invalid, whoever they are kept for.
    pub(super) fn invalidate(&self, url: Key) {
        let urls = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = urls.epochs.get(&url).and_then(Weak::upgrade) {
            epoch.fetch_add(1, Ordering::AcqRel);
            count(&self.counters.invalidated);
        }
    }

    /// Takes room for bytes that are being read; false where there is none.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        let before = self.filling.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.max_size;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    /// Gives room back.
    pub(super) fn release(&self, bytes: u64) {
        self.filling.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn filling(&self) -> u64 {
        self.filling.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn urls(&self) -> usize {
        self.urls.lock().unwrap().epochs.len()
    }
}

/// Dates are compared with a clock that does not jump: the time of the start, and what has passed since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    wall: SystemTime,
    started: Instant,
    follows: bool,
}

impl Clock {
    /// A clock that stood at `wall` now, and goes with tokio's.
    pub fn at(wall: SystemTime) -> Self {
        Self { wall, started: Instant::now(), follows: false }
    }

    /// The same from the system's time; and where that is ahead, because the machine slept meanwhile, it counts: kept answers
    /// age in their sleep.
    fn of_the_system() -> Self {
        Self { follows: true, ..Self::at(SystemTime::now()) }
    }

    fn now(&self) -> SystemTime {
        let steady = self.wall.checked_add(self.started.elapsed()).unwrap_or(self.wall);
        if self.follows { steady.max(SystemTime::now()) } else { steady }
    }
}
