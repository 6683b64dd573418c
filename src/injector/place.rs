//! Places for connections, and which of them gives way when all are taken.
//!
//! Whoever reaches a port may hold connections open, from many addresses at once, and say nothing. So a newcomer is never left outside
//! for their sake: when all places are taken, a connection that waits for its peer is closed for it. That is one without a request before
//! one with a request that is slow to come; of these one of the address that has the most; of these the one that has waited the longest. So
//! whoever holds few connections keeps them as long as others hold more.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A request that runs for so long waits for its peer: what a review takes otherwise is milliseconds. It is asked of each request by itself:
/// a connection of HTTP/2 that always has one under way is busy and not slow.
const SLOW: Duration = Duration::from_secs(2);
/// How often it is looked for a connection that may be closed, while there is none.
const AGAIN: Duration = Duration::from_millis(100);

/// All places of one listener.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    connections: HashMap<u64, Connection>,
}

/// A connection as the others see it.
#[derive(Debug)]
struct Connection {
    address: IpAddr,
    /// Requests that run, each with its begin, the oldest first. As many as one connection may have streams.
    running: BTreeMap<u64, Instant>,
    /// Since when none runs.
    idle_since: Instant,
    leave: CancellationToken,
}

impl Connection {
    /// For how long it has waited: in its oldest request, or for one.
    fn waited(&self, now: Instant) -> Duration {
        let since = self.running.values().next().copied().unwrap_or(self.idle_since);
        now.saturating_duration_since(since)
    }
}

/// The place of one connection; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    all: Arc<Places>,
    leave: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// A request that runs, until it is dropped.
#[derive(Debug)]
pub struct Running {
    connection: u64,
    request: u64,
    all: Arc<Places>,
}

impl Places {
    /// So many places.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { free: Arc::new(Semaphore::new(count)), held: Mutex::default() })
    }

    /// A place for a connection of this address. Where all are taken, another connection is told to leave.
    pub async fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.room().await?,
        };
        let leave = CancellationToken::new();
        let connection = Connection {
            address,
            running: BTreeMap::new(),
            idle_since: Instant::now(),
            leave: leave.clone(),
        };
        let mut held = self.held();
        let number = held.number();
        held.connections.insert(number, connection);
        drop(held);
        Some(Place { number, all: self.clone(), leave, _permit: permit })
    }

    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            self.make_room(Instant::now());
            // Who is told to leave does so at once, or as soon as its goodbye is said.
            let freed = self.free.clone().acquire_owned();
            if let Ok(permit) = tokio::time::timeout(AGAIN, freed).await {
                return permit.ok();
            }
        }
    }

    /// Tells the one connection to leave that others may rather do without.
    fn make_room(&self, now: Instant) {
        let held = self.held();
        let mut of_address = HashMap::<IpAddr, usize>::new();
        for connection in held.connections.values() {
            *of_address.entry(connection.address).or_default() += 1;
        }
        let waits = |one: &&Connection| {
            !one.leave.is_cancelled() && (one.running.is_empty() || one.waited(now) >= SLOW)
        };
        let rank = |one: &&Connection| {
            (one.running.is_empty(), of_address.get(&one.address).copied(), one.waited(now))
        };
        if let Some(one) = held.connections.values().filter(waits).max_by_key(rank) {
            tracing::debug!(address = %one.address, "all places are taken; a connection without a request is closed");
            one.leave.cancel();
        }
    }

    /// Locked for moments, never over an await.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// One that no connection and no request has had.
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Place {
    /// Says that a request of this connection runs.
    pub fn runs(&self) -> Running {
        let mut held = self.all.held();
        let request = held.number();
        if let Some(connection) = held.connections.get_mut(&self.number) {
            connection.running.insert(request, Instant::now());
        }
        Running { connection: self.number, request, all: self.all.clone() }
    }

    /// Returns when the connection is to leave.
    pub async fn wanted(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(connection) = self.all.held().connections.get_mut(&self.connection) {
            connection.running.remove(&self.request);
            connection.idle_since = Instant::now();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.held().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    async fn taken(places: &Arc<Places>, of: &[u8]) -> Vec<Place> {
        let mut all = Vec::new();
        for last in of {
            all.push(places.take(address(*last)).await.unwrap());
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        all
    }

    /// Which of these is told to leave for the next one.
    async fn gives_way(places: &Arc<Places>, all: &mut Vec<Place>) -> usize {
        let next = tokio::spawn({
            let places = places.clone();
            async move { places.take(address(99)).await }
        });
        let at = loop {
            if let Some(at) = all.iter().position(|place| place.leave.is_cancelled()) {
                break at;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        drop(all.remove(at));
        assert!(next.await.unwrap().is_some());
        at
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_the_most_gives_way_and_of_it_the_one_that_waited_longest() {
        let places = Places::new(5);
        let mut all = taken(&places, &[1, 2, 2, 3, 3]).await;
        // Both have two; the first of 2 waits longer than those of 3.
        assert_eq!(gives_way(&places, &mut all).await, 1);
        // The newcomer has gone again.
        all.push(places.take(address(3)).await.unwrap());
        assert_eq!(gives_way(&places, &mut all).await, 2, "3 has three: its first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_left_alone_until_it_is_slow() {
        let places = Places::new(3);
        let mut all = taken(&places, &[1, 1, 2]).await;
        let first = all[0].runs();
        tokio::time::advance(Duration::from_millis(10)).await;
        let second = all[1].runs();
        assert_eq!(gives_way(&places, &mut all).await, 2, "the one without a request, though 1 has more");
        all.push(places.take(address(2)).await.unwrap());
        let last = all[2].runs();
        let begun = Instant::now();
        assert_eq!(gives_way(&places, &mut all).await, 0, "all run one: the first that is slow");
        assert!(begun.elapsed() >= SLOW / 2, "{:?}", begun.elapsed());
        drop((first, second, last));
    }

    /// Streams that overlap, so there is always one: it is no slow request as long as each of them ends.
    #[tokio::test(start_paused = true)]
    async fn a_busy_connection_is_not_slow_and_one_with_a_slow_stream_is() {
        let places = Places::new(2);
        let mut all = taken(&places, &[1, 2]).await;
        let mut busy = all[0].runs();
        let slow = all[1].runs();
        for _ in 0..30 {
            tokio::time::advance(SLOW / 10).await;
            let next = all[0].runs();
            drop(busy);
            busy = next;
            // Beside the slow one others come and go; that does not hide it.
            drop(all[1].runs());
        }
        assert_eq!(gives_way(&places, &mut all).await, 1);
        drop(slow);
        all.push(places.take(address(1)).await.unwrap());
        let other = all[1].runs();
        let begun = Instant::now();
        assert_eq!(gives_way(&places, &mut all).await, 0, "the one that runs longer, when it is slow");
        assert!(begun.elapsed() >= SLOW / 2, "{:?}", begun.elapsed());
        drop((busy, other));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_again_and_a_time_begins_with_the_last_request() {
        let places = Places::new(2);
        let mut all = taken(&places, &[1, 1]).await;
        // Two requests on the first, one after the other; so the second waits longer.
        drop(all[0].runs());
        assert_eq!(gives_way(&places, &mut all).await, 1);
        drop(all);
        assert_eq!(places.free.available_permits(), 2);
        assert!(places.held().connections.is_empty());
    }
}
