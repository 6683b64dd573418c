//! The permits of one provider. They outlive reloads; a changed number takes effect under the requests that run.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::config::ConcurrencySettings;
use crate::message::failure::{Failure, Fault};
use crate::message::request::Exchange;

/// What a refused app is told to wait: nobody knows when a body ends.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The permits of one provider.
///
/// A tokio semaphore is first come, first served, and what is given back goes to who waits before a newcomer can take it.
#[derive(Debug)]
pub struct Permits {
    free: Semaphore,
    size: Mutex<u32>,
    /// Permits that are out and are retired when they come back, because there are to be fewer now.
    excess: AtomicU32,
    max_wait_ms: AtomicU64,
    max_queue: AtomicU32,
    running: AtomicU32,
    waiting: AtomicU32,
    waited: AtomicU64,
    timed_out: AtomicU64,
    queue_full: AtomicU64,
    shadowed: AtomicU64,
}

/// How the permits of a provider stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PermitsStatus {
    /// So many requests may run.
    pub max: u32,
    /// So many run. For a while more than `max`, where that became smaller.
    pub running: u32,
    /// So many wait.
    pub waiting: u32,
    /// Requests that had to wait so far.
    pub waited: u64,
    /// Requests that were refused because their wait became too long.
    pub timed_out: u64,
    /// Requests that were refused because too many waited.
    pub queue_full: u64,
    /// Requests that shadow mode let pass without a permit.
    pub shadowed: u64,
}

impl Permits {
    /// All permits are free.
    pub fn new(settings: ConcurrencySettings) -> Self {
        Self {
            free: Semaphore::new(settings.max as usize),
            size: Mutex::new(settings.max),
            excess: AtomicU32::new(0),
            max_wait_ms: AtomicU64::new(millis(settings.max_wait)),
            max_queue: AtomicU32::new(settings.max_queue),
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            waited: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            shadowed: AtomicU64::new(0),
        }
    }

    /// Takes other settings. Who waits keeps its place, and the time it was given.
    pub fn update(&self, settings: ConcurrencySettings) {
        self.max_wait_ms.store(millis(settings.max_wait), Ordering::Relaxed);
        self.max_queue.store(settings.max_queue, Ordering::Relaxed);
        self.resize(settings.max);
    }

    /// So many permits from now on. Where there were more, those that are out are retired as they come back.
    pub fn resize(&self, max: u32) {
        let mut size = self.size();
        let old = std::mem::replace(&mut *size, max);
        if max < old {
            self.excess.fetch_add(old - max, Ordering::SeqCst);
            self.retire_free();
        } else {
            let excess = self.excess.load(Ordering::SeqCst);
            let kept = excess.min(max - old);
            self.excess.store(excess - kept, Ordering::SeqCst);
            self.free.add_permits((max - old - kept) as usize);
        }
    }

    /// A permit, if one is free and nobody waits for it.
    pub fn try_enter(self: &Arc<Self>) -> Option<Held> {
        if self.excess.load(Ordering::SeqCst) > 0 {
            let _size = self.size();
            self.retire_free();
        }
        self.free.try_acquire().ok()?.forget();
        Some(Held::new(self.clone()))
    }

    /// A permit, after a wait where none is free.
    ///
    /// # Errors
    ///
    /// `QueueFull` at once, where `max_queue` others wait; `ConcurrencyLimit` when `max_wait` or the deadline is over, and at
    /// once where there is no time to wait. Dropped, it leaves the queue.
    pub async fn enter(self: &Arc<Self>, exchange: &Exchange) -> Result<Held, Failure> {
        if let Some(held) = self.try_enter() {
            return Ok(held);
        }
        let place = Place::take(self, exchange)?;
        let until = place.since + Duration::from_millis(self.max_wait_ms.load(Ordering::Relaxed));
        let until = exchange.deadline.map_or(until, |deadline| deadline.min(until));
        if until > place.since {
            self.waited.fetch_add(1, Ordering::Relaxed);
            // The semaphore is never closed, so what is no permit is the end of the time.
            if let Ok(Ok(permit)) = timeout_at(until, self.free.acquire()).await {
                permit.forget();
                return Ok(Held::new(self.clone()));
            }
        }
        self.timed_out.fetch_add(1, Ordering::Relaxed);
        Err(refused(Fault::ConcurrencyLimit))
    }

    /// Counts a request that shadow mode let pass.
    pub fn let_pass(&self) {
        self.shadowed.fetch_add(1, Ordering::Relaxed);
    }

    /// How they stand.
    pub fn status(&self) -> PermitsStatus {
        PermitsStatus {
            max: *self.size(),
            running: self.running.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            waited: self.waited.load(Ordering::Relaxed),
            timed_out: self.timed_out.load(Ordering::Relaxed),
            queue_full: self.queue_full.load(Ordering::Relaxed),
            shadowed: self.shadowed.load(Ordering::Relaxed),
        }
    }

    fn give_back(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        if self.excess.load(Ordering::SeqCst) > 0 {
            let _size = self.size();
            let excess = self.excess.load(Ordering::SeqCst);
            if excess > 0 {
                self.excess.store(excess - 1, Ordering::SeqCst);
                return;
            }
        }
        self.free.add_permits(1);
    }

    /// Retires free permits for those that are too many. The size is locked.
    fn retire_free(&self) {
        let excess = self.excess.load(Ordering::SeqCst);
        let retired = self.free.forget_permits(excess as usize);
        self.excess
            .store(excess.saturating_sub(u32::try_from(retired).unwrap_or(u32::MAX)), Ordering::SeqCst);
    }

    /// Locked by whoever changes `excess`.
    fn size(&self) -> MutexGuard<'_, u32> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn refused(fault: Fault) -> Failure {
    Failure::not_sent(fault).retry_after(RETRY_AFTER)
}

/// A permit that is out; dropped, it comes back.
#[derive(Debug)]
pub struct Held {
    permits: Arc<Permits>,
}

impl Held {
    fn new(permits: Arc<Permits>) -> Self {
        permits.running.fetch_add(1, Ordering::Relaxed);
        Self { permits }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.permits.give_back();
    }
}

/// A place in the queue; dropped, it is free, and the exchange knows how long it was held.
struct Place<'a> {
    permits: &'a Permits,
    exchange: &'a Exchange,
    since: Instant,
}

impl<'a> Place<'a> {
    fn take(permits: &'a Permits, exchange: &'a Exchange) -> Result<Self, Failure> {
        let place = Self { permits, exchange, since: Instant::now() };
        let before = permits.waiting.fetch_add(1, Ordering::Relaxed);
        if before >= permits.max_queue.load(Ordering::Relaxed) {
            permits.queue_full.fetch_add(1, Ordering::Relaxed);
            return Err(refused(Fault::QueueFull));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.permits.waiting.fetch_sub(1, Ordering::Relaxed);
        self.exchange.queued(self.since.elapsed());
    }
}
