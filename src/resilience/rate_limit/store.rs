//! What is spent of a limit, and who waits: by key, in tables that each have a lock of their own.
//!
//! Outlives reloads: a limiter with other numbers goes on with the store of the one before it, and each table takes over the
//! new pace when it is first asked under it. A lock is held for a look-up and some arithmetic, never across an await.
//!
//! A place in a queue is a ticket. Only the first in line may take a token, and takes it itself; whoever leaves the head of
//! the line wakes the next one. So there is one timer and one wake-up a token, and who gives up leaves nothing behind.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::lease::{Leases, RateLease, Taken};
use super::pace::Pace;
use super::slots::{ById, Id, NoToken, Slots};

/// Tables of a store; a power of two.
const TABLES: usize = 16;
/// Leases of one table; 16,000 in all.
const MOST_LEASES: usize = 1_000;

/// What a limiter's numbers mean for its store, and the how-manieth such meaning this is.
pub(super) struct Edition {
    pub pace: Pace,
    /// `None`: the store's own tokens.
    pub source: Option<Arc<dyn Leases>>,
    number: u64,
}

/// Whose tokens are meant.
#[derive(Clone)]
pub(super) struct Who {
    id: Id,
    /// `None`: of the store's own tokens.
    pub lease: Option<Arc<RateLease>>,
    /// How many it wants, all at once.
    tokens: NonZeroU32,
}

/// How it stands with one who wants a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A token is there.
    Now,
    /// First in line, and there is a token in so many nanoseconds; `None`: not before the lease changes.
    In(Option<u64>),
    /// Others are before it.
    Behind,
}

/// Why a queue was not joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// As many wait as may.
    Full,
    /// It would take too long.
    TooLong,
}

/// How it stands with a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    /// Tokens that could be taken now.
    pub remaining: u64,
    /// Nanoseconds until one who asks has one; `None`: not before the lease changes.
    pub wait: Option<u64>,
}

/// Who waits for tokens of one key, by ticket.
#[derive(Default)]
struct Queue {
    waiters: BTreeMap<u64, Waiter>,
    /// What all of them want.
    tokens: u64,
}

impl Queue {
    /// No one wants more than may be taken at once.
    fn clamp(&mut self, burst: NonZeroU32) {
        for waiter in self.waiters.values_mut() {
            waiter.tokens = waiter.tokens.min(burst);
        }
        self.tokens = self.waiters.values().map(|waiter| u64::from(waiter.tokens.get())).sum();
    }
}

struct Waiter {
    wake: Arc<Notify>,
    tokens: NonZeroU32,
}

/// Who is before one: how many, and how many tokens they want.
#[derive(Clone, Copy, Default)]
struct Ahead {
    waiters: usize,
    tokens: u64,
}

struct Table {
    slots: Slots,
    source: Option<Arc<dyn Leases>>,
    leases: ById<Arc<RateLease>>,
    queues: ById<Queue>,
    tickets: u64,
}

pub(super) struct Store {
    epoch: Instant,
    tables: [Mutex<Table>; TABLES],
    editions: AtomicU64,
    /// Requests that found no room for their key.
    pub overflowed: AtomicU64,
    /// Requests that wait now.
    pub waiting: AtomicU64,
}

impl Store {
    pub fn new(pace: Pace) -> Self {
        let table = || Table {
            slots: Slots::new(pace),
            source: None,
            leases: ById::default(),
            queues: ById::default(),
            tickets: 0,
        };
        Self {
            epoch: Instant::now(),
            tables: std::array::from_fn(|_| Mutex::new(table())),
            editions: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }

    /// A further meaning: in force as soon as someone asks under it.
    pub fn edition(&self, pace: Pace, source: Option<Arc<dyn Leases>>) -> Edition {
        Edition { pace, source, number: self.editions.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// One who takes the store's own tokens.
    pub fn own(id: Id) -> Who {
        Who { id, lease: None, tokens: NonZeroU32::MIN }
    }

    /// One who takes so many of the store's own tokens.
    pub fn own_many(id: Id, tokens: NonZeroU32) -> Who {
        Who { id, lease: None, tokens }
    }

    /// One whose tokens are leased, if the limit's are. Where no lease can be kept for the key, it shares one with all others
    /// like it.
    pub fn leased(&self, id: Id, names: &[&str], by: &Edition) -> Who {
        let (mut guard, _) = self.enter(id, by);
        let table = &mut *guard;
        if let Some(lease) = table.leases.get(&id) {
            return Who { id, lease: Some(lease.clone()), tokens: NonZeroU32::MIN };
        }
        // The newest source, whichever generation asks.
        let Some(source) = &table.source else { return Self::own(id) };
        if table.leases.len() >= MOST_LEASES && id != Id::OVERFLOW {
            table.leases.retain(|_, lease| lease.waiting() > 0 || lease.now().1 > 0);
            if table.leases.len() >= MOST_LEASES {
                drop(guard);
                self.overflowed.fetch_add(1, Ordering::Relaxed);
                // No key has three names.
                return self.leased(Id::OVERFLOW, &["overflow", "", ""], by);
            }
        }
        let lease = source.lease(names);
        table.leases.insert(id, lease.clone());
        Who { id, lease: Some(lease), tokens: NonZeroU32::MIN }
    }

    /// Takes a token, if one is there and nobody is before this one; `place` is its place in the queue, if it has one, and
    /// is still to be given up.
    pub fn take(&self, who: &mut Who, by: &Edition, place: Option<&Place>) -> Result<Taken, Turn> {
        let (mut guard, now) = self.enter(who.id, by);
        let table = &mut *guard;
        let ticket = place.map(|place| place.ticket);
        if !table.is_first(who.id, ticket) {
            return Err(Turn::Behind);
        }
        let taken = match &who.lease {
            Some(lease) => lease.take().map_err(NoToken::Until),
            // Who has waited is not sent to another queue for want of room; those are few.
            None => {
                // Nor does who joined the line under a larger burst block it for ever.
                let tokens = if ticket.is_some() { table.wanted(who) } else { who.tokens };
                table.slots.take(who.id, now, ticket.is_some(), tokens)
            }
        };
        match taken {
            Ok(taken) => Ok(taken),
            Err(NoToken::Until(wait)) => Err(Turn::In(wait)),
            Err(NoToken::NoRoom) => {
                drop(guard);
                self.overflowed.fetch_add(1, Ordering::Relaxed);
                who.id = Id::OVERFLOW;
                self.take(who, by, place)
            }
        }
    }

    /// Gives back a token that nothing was sent for, as far as that cannot let one too many through.
    pub fn give_back(&self, who: &Who, taken: Taken) {
        let mut table = self.table(who.id);
        match &who.lease {
            Some(lease) => lease.give_back(taken),
            None => {
                let now = self.now();
                table.slots.give_back(who.id, taken, now);
            }
        }
        let next = table.first(who.id);
        drop(table);
        wake(next);
    }

    /// A place at the end of the queue: if fewer than `most` wait, and a token is expected within `limit` nanoseconds. Of a
    /// leased limit that is expected which its whole pace would allow, because the lease may grow at any moment.
    pub fn join(
        self: &Arc<Self>,
        who: &Who,
        by: &Edition,
        most: usize,
        limit: u64,
    ) -> Result<Place, NoPlace> {
        let (mut table, now) = self.enter(who.id, by);
        let ahead = table.ahead(who.id, None);
        let wait = table.wait(who, ahead, now);
        if ahead.waiters >= most {
            return Err(NoPlace::Full);
        }
        let soonest = if who.lease.is_some() { Some(by.pace.wait(0, ahead.tokens)) } else { wait };
        if soonest.is_some_and(|soonest| soonest > limit) {
            return Err(NoPlace::TooLong);
        }
        let ticket = table.tickets;
        table.tickets += 1;
        let woken = Arc::new(Notify::new());
        let tokens = table.wanted(who);
        let queue = table.queues.entry(who.id).or_default();
        queue.tokens += u64::from(tokens.get());
        queue.waiters.insert(ticket, Waiter { wake: woken.clone(), tokens });
        drop(table);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if let Some(lease) = &who.lease {
            lease.wait(true);
        }
        let expected = self.instant(now.saturating_add(soonest.unwrap_or(limit)));
        Ok(Place { store: self.clone(), who: who.clone(), ticket, woken, expected })
    }

    /// How it stands with one who waits.
    pub fn turn(&self, place: &Place) -> Turn {
        let table = self.table(place.who.id);
        if !table.is_first(place.who.id, Some(place.ticket)) {
            return Turn::Behind;
        }
        match table.wait(&place.who, Ahead::default(), self.now()) {
            Some(0) => Turn::Now,
            wait => Turn::In(wait),
        }
    }

    /// How much of a key is spent, and when one has a token who is at this place, or comes now.
    pub fn level(&self, who: &Who, place: Option<&Place>) -> Level {
        let table = self.table(who.id);
        let now = self.now();
        let (pace, debt) = table.level(who, now);
        let wait = table.wait(who, table.ahead(who.id, place.map(|place| place.ticket)), now);
        Level { remaining: pace.map_or(0, |pace| pace.remaining(debt)), wait }
    }

    /// Tokens that the key could take now that has the fewest; `None`: there is no key.
    pub fn fewest(&self) -> Option<u64> {
        let now = self.now();
        let fewest = |table: &Mutex<Table>| {
            let table = table.lock().unwrap_or_else(PoisonError::into_inner);
            if table.source.is_some() {
                return table.leases.values().map(|lease| lease.remaining()).min();
            }
            let slots = &table.slots;
            (slots.len() > 0).then(|| slots.pace.remaining(slots.most_debt(now)))
        };
        self.tables.iter().filter_map(fewest).min()
    }

    /// Keys that are kept.
    pub fn keys(&self) -> usize {
        let keys = |table: &Mutex<Table>| {
            let table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.slots.len() + table.leases.len()
        };
        self.tables.iter().map(keys).sum()
    }

    /// Drops keys that owe nothing, one table after the other.
    pub fn sweep(&self) {
        for table in &self.tables {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.slots.sweep(self.now());
        }
    }

    /// The lease of a key, where it has one.
    pub fn lease(&self, id: Id) -> Option<Arc<RateLease>> {
        self.table(id).leases.get(&id).cloned()
    }

    fn table(&self, id: Id) -> MutexGuard<'_, Table> {
        self.tables[id.table(TABLES)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table of a key under the newest pace, and the time; read with the lock held, so that it never runs backwards.
    fn enter(&self, id: Id, by: &Edition) -> (MutexGuard<'_, Table>, u64) {
        let mut table = self.table(id);
        let now = self.now();
        if table.slots.edition < by.number {
            table.slots.repace(by.pace, by.number, now);
            // Asked for again: the source now knows another rate.
            table.source = by.source.clone();
            table.leases.clear();
            let burst = table.burst();
            table.queues.values_mut().for_each(|queue| queue.clamp(burst));
            for first in table.queues.values().filter_map(|queue| queue.waiters.values().next()) {
                first.wake.notify_one();
            }
        }
        (table, now)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.epoch + Duration::from_nanos(nanos)
    }
}

impl Table {
    /// Whether nobody is before the holder of a ticket, or before a newcomer.
    fn is_first(&self, id: Id, ticket: Option<u64>) -> bool {
        // Mostly nobody waits for anything.
        if self.queues.is_empty() {
            return true;
        }
        self.queues.get(&id).is_none_or(|queue| queue.waiters.keys().next().copied() == ticket)
    }

    /// Who is before it; for the holder of a ticket counted one by one, when it gives up.
    fn ahead(&self, id: Id, ticket: Option<u64>) -> Ahead {
        let Some(queue) = self.queues.get(&id) else { return Ahead::default() };
        let Some(ticket) = ticket else {
            return Ahead { waiters: queue.waiters.len(), tokens: queue.tokens };
        };
        queue.waiters.range(..ticket).fold(Ahead::default(), |ahead, (_, waiter)| Ahead {
            waiters: ahead.waiters + 1,
            tokens: ahead.tokens + u64::from(waiter.tokens.get()),
        })
    }

    fn level(&self, who: &Who, now: u64) -> (Option<Pace>, u64) {
        match &who.lease {
            Some(lease) => lease.now(),
            None => (Some(self.slots.pace), self.slots.debt(who.id, now)),
        }
    }

    fn wait(&self, who: &Who, ahead: Ahead, now: u64) -> Option<u64> {
        let (pace, debt) = self.level(who, now);
        // All of its own but the last are before that one.
        pace.map(|pace| pace.wait(debt, ahead.tokens + u64::from(self.wanted(who).get() - 1)))
    }

    fn burst(&self) -> NonZeroU32 {
        NonZeroU32::new(self.slots.pace.burst()).unwrap_or(NonZeroU32::MIN)
    }

    /// How many tokens one takes who waits: all there can be, where a reload made the burst smaller than what it costs.
    fn wanted(&self, who: &Who) -> NonZeroU32 {
        // Of a lease it is one, whatever the share.
        who.tokens.min(self.burst())
    }

    fn first(&self, id: Id) -> Option<Arc<Notify>> {
        self.queues.get(&id)?.waiters.values().next().map(|first| first.wake.clone())
    }

    /// Takes a place out of its queue; who is to be woken, if that was the first.
    fn leave(&mut self, id: Id, ticket: u64) -> Option<Arc<Notify>> {
        let queue = self.queues.get_mut(&id)?;
        let was_first = queue.waiters.keys().next() == Some(&ticket);
        let left = queue.waiters.remove(&ticket).map_or(0, |waiter| u64::from(waiter.tokens.get()));
        queue.tokens = queue.tokens.saturating_sub(left);
        if queue.waiters.is_empty() {
            self.queues.remove(&id);
            return None;
        }
        if was_first { self.first(id) } else { None }
    }
}

fn wake(next: Option<Arc<Notify>>) {
    if let Some(next) = next {
        next.notify_one();
    }
}

/// A place in a queue; given up by dropping it.
pub(super) struct Place {
    store: Arc<Store>,
    who: Who,
    ticket: u64,
    /// Told when this one has become the first, or when its token may come sooner.
    pub woken: Arc<Notify>,
    /// When it was expected to have its token.
    pub expected: Instant,
}

impl Place {
    /// How it stands with it.
    pub fn turn(&self) -> Turn {
        self.store.turn(self)
    }

    /// The lease it waits for, if it is one.
    pub fn lease(&self) -> Option<&Arc<RateLease>> {
        self.who.lease.as_ref()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = self.store.table(self.who.id).leave(self.who.id, self.ticket);
        wake(next);
        self.store.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(lease) = &self.who.lease {
            lease.wait(false);
        }
    }
}
