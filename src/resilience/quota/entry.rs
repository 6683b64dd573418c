//! One key with its queue: who may pass, in which order, and who is woken.
//!
//! First in, first out; who was let through and came back unsent stands before those who never were. Only the head of the queue watches the clock; it wakes the next when it passes, so one wake-up
//! goes with each request that is let through, and a hold that ends does not wake the whole queue. Whoever is dropped
//! leaves its place at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::config::ReserveConfig;
use super::key_state::{Answer, Decision, KeyState, Learned, Pass};
use crate::message::failure::{Fault, LimitState};
use crate::message::request::Leave;

/// When nothing is known of the end of a hold, this is what a refused request is told.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a key is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// Reference of the credential.
    pub(super) credential: Arc<str>,
    /// Hash of the tenant's name, the same in every instance; zero = no tenant.
    pub(super) tenant: u64,
    /// What the quota covers.
    pub(super) bucket: Arc<str>,
}

/// A key that is in use.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) names: Names,
    inner: Mutex<Inner>,
    /// `KeyState::recalls`, for those who hold a pass and no lock.
    recalls: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Inner {
    state: KeyState,
    queue: VecDeque<Waiter>,
    tickets: u64,
}

#[derive(Debug)]
struct Waiter {
    rank: Rank,
    wake: Arc<Notify>,
}

/// Who goes first. Ranks only grow along the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Was let through once, in this order, and called back: it came before all who wait for the first time.
    Back(u64),
    /// Came in this order.
    New(u64),
}

/// How long a request may wait, and behind how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) reserve: ReserveConfig,
    pub(super) until: Instant,
    pub(super) max_queue: u32,
    /// The number of the pass that it had first, where it was called back.
    pub(super) back: Option<u64>,
}

/// Why a request was not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) fault: Fault,
    pub(super) retry_after: Duration,
    pub(super) limit: Option<LimitState>,
}

impl Entry {
    pub(super) fn new(names: Names, now: Instant) -> Self {
        let inner = Inner { state: KeyState::new(now), queue: VecDeque::new(), tickets: 0 };
        Self { names, inner: Mutex::new(inner), recalls: Arc::default() }
    }

    /// What a request with this pass is asked about again before it is sent. `number` is that of the pass that it had first.
    pub(super) fn leave(&self, pass: &Pass, number: u64, outer: Option<Arc<Leave>>) -> Leave {
        Leave::new(self.recalls.clone(), pass.recalls(), number, outer)
    }

    /// The number of the pass that a request had here first, where a layer further out has called it back.
    pub(super) fn number_of(&self, leave: &Leave) -> Option<u64> {
        leave.number_of(&self.recalls)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request through if it need not wait; `back` as in [`Patience`].
    pub(super) fn try_pass(&self, now: Instant, reserve: ReserveConfig, back: Option<u64>) -> Option<Pass> {
        let mut inner = self.lock();
        if inner.queue.front().is_some_and(|head| back.is_none_or(|pass| head.rank < Rank::Back(pass))) {
            return None;
        }
        match inner.state.decide(now, reserve) {
            Decision::Go => Some(inner.state.pass(now)),
            Decision::Hold { .. } => None,
        }
    }

    /// Lets a request through in any case.
    pub(super) fn force(&self, now: Instant) -> Pass {
        self.lock().state.pass(now)
    }

    /// Waits for its turn.
    pub(super) async fn wait(&self, patience: Patience) -> Result<Pass, Refusal> {
        let place = self.queue_up(patience)?;
        loop {
            let now = Instant::now();
            let again = match self.turn(place.rank, now, patience.reserve) {
                Turn::Pass(pass) => return Ok(pass),
                Turn::Hold { until: Some(until), certain: true } if until > patience.until => {
                    return Err(self.refusal(now, patience.reserve));
                }
                Turn::Hold { until, .. } => until.unwrap_or(patience.until).min(patience.until),
                Turn::Behind => patience.until,
            };
            if now >= patience.until {
                return Err(self.refusal(now, patience.reserve));
            }
            let _ = timeout_at(again, place.wake.notified()).await;
        }
    }

    fn queue_up(&self, patience: Patience) -> Result<Place<'_>, Refusal> {
        let now = Instant::now();
        let mut inner = self.lock();
        // Who was called back had its turn already; the queues that it comes from have bounds of their own.
        if patience.back.is_none() && inner.queue.len() >= patience.max_queue as usize {
            drop(inner);
            return Err(Refusal { fault: Fault::QueueFull, ..self.refusal(now, patience.reserve) });
        }
        // What certainly comes too late is not waited for in vain.
        if let Decision::Hold { until: Some(until), certain: true } =
            inner.state.decide(now, patience.reserve)
            && until > patience.until
        {
            drop(inner);
            return Err(self.refusal(now, patience.reserve));
        }
        let rank = patience.back.map_or(Rank::New(inner.tickets), Rank::Back);
        inner.tickets += 1;
        let wake = Arc::new(Notify::new());
        let at = inner.queue.partition_point(|waiter| waiter.rank < rank);
        inner.queue.insert(at, Waiter { rank, wake: wake.clone() });
        Ok(Place { entry: self, rank, wake })
    }

    fn turn(&self, rank: Rank, now: Instant, reserve: ReserveConfig) -> Turn {
        let mut inner = self.lock();
        if inner.queue.front().is_none_or(|head| head.rank != rank) {
            return Turn::Behind;
        }
        match inner.state.decide(now, reserve) {
            Decision::Go => {
                inner.queue.pop_front();
                let pass = inner.state.pass(now);
                inner.wake_head();
                Turn::Pass(pass)
            }
            Decision::Hold { until, certain } => Turn::Hold { until, certain },
        }
    }

    /// How a request is told that it was refused.
    pub(super) fn refusal(&self, now: Instant, reserve: ReserveConfig) -> Refusal {
        let mut inner = self.lock();
        let until = match inner.state.decide(now, reserve) {
            Decision::Hold { until, .. } => until,
            Decision::Go => None,
        };
        let retry_after = until.map_or(ASK_AGAIN, |until| until - now);
        let limit = inner.limit(now, retry_after);
        Refusal { fault: Fault::QuotaHeld, retry_after, limit }
    }

    /// A request was answered.
    pub(super) fn answered(
        &self,
        now: Instant,
        pass: Pass,
        answer: &Answer<'_>,
        reserve: ReserveConfig,
    ) -> Learned {
        let mut inner = self.lock();
        let learned = inner.state.answered(now, pass, answer, reserve);
        self.recalls.store(inner.state.recalls(), Ordering::Release);
        inner.wake_head();
        learned
    }

    /// A request got no answer.
    pub(super) fn lost(&self, now: Instant, pass: Pass, counted: bool) {
        let mut inner = self.lock();
        inner.state.lost(now, pass, counted);
        inner.wake_head();
    }

    /// Another instance was refused under this key, or an answer says that all buckets pause.
    pub(super) fn pause(&self, now: Instant, pause: Duration) {
        let mut inner = self.lock();
        inner.state.pause(now, pause);
        self.recalls.store(inner.state.recalls(), Ordering::Release);
    }

    /// Whether it can be forgotten.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let inner = self.lock();
        inner.queue.is_empty() && inner.state.is_idle(now)
    }

    /// How much would be lost if it were forgotten; nothing where it is in use.
    pub(super) fn worth(&self, now: Instant) -> Option<u8> {
        let inner = self.lock();
        inner.state.worth(now).filter(|_| inner.queue.is_empty())
    }

    /// Looks at the state, and at how many wait.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut KeyState, usize) -> T) -> T {
        let inner = &mut *self.lock();
        look(&mut inner.state, inner.queue.len())
    }
}

impl Inner {
    fn wake_head(&self) {
        if let Some(head) = self.queue.front() {
            head.wake.notify_one();
        }
    }

    /// The limit that holds, for the `RateLimit` fields, where its number is known.
    fn limit(&mut self, now: Instant, reset: Duration) -> Option<LimitState> {
        let name: Arc<str> = "quota".into();
        let least = self.state.meters().iter().filter(|meter| meter.limit().is_some());
        if let Some(meter) = least.min_by_key(|meter| meter.left(now)) {
            let (quota, window) = (meter.limit()?, meter.window().max(reset));
            return Some(LimitState { name, quota, unit: None, window, remaining: 0, reset });
        }
        let (allowed, window, _) = self.state.rate(now)?;
        Some(LimitState { name, quota: u64::from(allowed), unit: None, window, remaining: 0, reset })
    }
}

enum Turn {
    Pass(Pass),
    Hold { until: Option<Instant>, certain: bool },
    Behind,
}

/// A place in the queue; leaves it when dropped.
struct Place<'a> {
    entry: &'a Entry,
    rank: Rank,
    wake: Arc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut inner = self.entry.lock();
        if let Ok(at) = inner.queue.binary_search_by_key(&self.rank, |waiter| waiter.rank) {
            inner.queue.remove(at);
            if at == 0 {
                inner.wake_head();
            }
        }
    }
}
