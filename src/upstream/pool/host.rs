//! What the pool knows about one host and port. Plain state: everything here runs under the pool's lock.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::message::failure::Fault;

use super::lease::{Http1, Http1Lease, Http2Lease, Lease, Made, Sender2};
use super::place::Place;
use super::{Discarded, Origin, Pool, Purpose, Ticket, Wanted};

/// What the host speaks, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// ALPN will tell.
    Unknown,
    Http1,
    Http2,
}

/// How many different wants are looked at that cannot be served, each time something comes free.
const MOST_UNSERVED: usize = 16;

/// For so long one that gives way is waited for: a socket that closes slowly holds up no other account.
const GIVES_WAY: Duration = Duration::from_secs(1);

pub(super) struct Idle {
    pub(super) connection: Http1,
    pub(super) since: Instant,
}

pub(super) struct Shared {
    pub(super) sender: Sender2,
    pub(super) made: Made,
    pub(super) streams: usize,
    /// Streams that the provider allows at once, kept up to date by the connection's task.
    pub(super) limit: Arc<AtomicUsize>,
    pub(super) since: Instant,
}

pub(super) struct Waiter {
    pub(super) id: u64,
    pub(super) wanted: Wanted,
    pub(super) grant: oneshot::Sender<Ticket>,
}

pub(super) struct HostConnections {
    pub(super) origin: Arc<Origin>,
    pub(super) protocol: Protocol,
    /// Sockets, and dials that may become one, by their ids; at most `max_connections`.
    pub(super) open: HashSet<u64, foldhash::fast::RandomState>,
    /// Dials whose outcome others wait for, with whose they are: one for each account, and one for all while the protocol is not known.
    leading: Vec<(u64, u64)>,
    /// When an idle connection was closed to make room for another account's: one at a time, until a place is free.
    giving_way: Option<Instant>,
    pub(super) idle: Vec<Idle>,
    pub(super) shared: Vec<Shared>,
    pub(super) waiters: VecDeque<Waiter>,
}

impl HostConnections {
    pub(super) fn new(origin: Arc<Origin>, protocol: Protocol) -> Self {
        Self {
            origin,
            protocol,
            open: HashSet::default(),
            leading: Vec::new(),
            giving_way: None,
            idle: Vec::new(),
            shared: Vec::new(),
            waiters: VecDeque::new(),
        }
    }

    /// A connection, or leave to make one, where there is either.
    pub(super) fn take(
        &mut self,
        pool: &Arc<Pool>,
        wanted: Wanted,
        version: u64,
        discarded: &mut Vec<Discarded>,
    ) -> Option<Ticket> {
        match wanted.purpose {
            Purpose::Ordinary => {
                if let Some(lease) = self.take_shared(pool, wanted.account, version, discarded) {
                    return Some(Ticket::Ready(Lease::Http2(lease)));
                }
                if let Some(lease) = self.take_idle(pool, wanted.account, version, discarded) {
                    return Some(Ticket::Ready(Lease::Http1(lease)));
                }
                if self.is_led(wanted.account) {
                    return None;
                }
                self.make_way(pool, wanted.account, discarded);
            }
            // An upgrade takes a connection out of the pool for good, so it makes its own, and an idle one gives way.
            Purpose::Upgrade if self.open.len() >= pool.settings.max_connections && !self.idle.is_empty() => {
                discarded.push(Discarded::Http1(self.idle.remove(0).connection));
            }
            Purpose::Upgrade => {}
        }
        self.take_place(pool, wanted).map(Ticket::Dial)
    }

    /// Whether who wants a connection of this account waits for a dial that runs.
    pub(super) fn is_led(&self, account: u64) -> bool {
        let any = self.protocol == Protocol::Unknown;
        self.leading.iter().any(|(_, own)| any || *own == account)
    }

    /// Closes an idle connection of another account, the one that was idle the longest, where there is no other room. Its place is
    /// free when its socket is closed.
    fn make_way(&mut self, pool: &Arc<Pool>, account: u64, discarded: &mut Vec<Discarded>) {
        let waits = self.giving_way.is_some_and(|since| since.elapsed() < GIVES_WAY);
        if self.open.len() < pool.settings.max_connections || waits {
            return;
        }
        let other = |made: &Made| made.account != account;
        if let Some(at) = self.idle.iter().position(|idle| other(&idle.connection.made)) {
            let Idle { connection, .. } = self.idle.remove(at);
            self.giving_way = Some(Instant::now());
            discarded.push(Discarded::Http1(connection));
            return;
        }
        let idle = |shared: &&Shared| shared.streams == 0 && other(&shared.made);
        let longest = self.shared.iter().filter(idle).min_by_key(|shared| shared.since);
        if let Some(id) = longest.map(|shared| shared.made.id) {
            self.giving_way = Some(Instant::now());
            self.retire(id, discarded);
        }
    }

    fn take_shared(
        &mut self,
        pool: &Arc<Pool>,
        account: u64,
        version: u64,
        discarded: &mut Vec<Discarded>,
    ) -> Option<Http2Lease> {
        let unusable =
            self.shared.extract_if(.., |shared| shared.sender.is_closed() || shared.made.version != version);
        discarded.extend(unusable.map(|shared| Discarded::Http2(shared.sender)));
        // Above the provider's own limit a request would wait inside the connection, where nobody counts it.
        let fits = |own: &&mut Shared| {
            own.made.account == account && own.streams < own.limit.load(Ordering::Relaxed)
        };
        let free = self.shared.iter_mut().find(fits)?;
        free.streams += 1;
        Some(Http2Lease::new(pool.clone(), self.origin.clone(), free.sender.clone(), free.made, false))
    }

    fn take_idle(
        &mut self,
        pool: &Arc<Pool>,
        account: u64,
        version: u64,
        discarded: &mut Vec<Discarded>,
    ) -> Option<Http1Lease> {
        // The last used first; there are at most as many as the cap allows.
        let own = |idle: &Idle| idle.connection.made.account == account;
        while let Some(at) = self.idle.iter().rposition(own) {
            let Idle { connection, since } = self.idle.remove(at);
            let usable = connection.made.version == version
                && connection.is_ready()
                && since.elapsed() < pool.settings.idle_timeout;
            if usable {
                return Some(Http1Lease::new(pool.clone(), connection, false));
            }
            discarded.push(Discarded::Http1(connection));
        }
        None
    }

    fn take_place(&mut self, pool: &Arc<Pool>, Wanted { purpose, account }: Wanted) -> Option<Place> {
        if self.open.len() >= pool.settings.max_connections {
            return None;
        }
        let id = pool.next_id();
        self.open.insert(id);
        if purpose == Purpose::Ordinary && self.protocol != Protocol::Http1 {
            self.leading.push((id, account));
        }
        Some(Place::new(pool.clone(), self.origin.clone(), id, account))
    }

    /// Hands out what there is, in line. Who cannot be served keeps back who wants the same, and nobody else.
    pub(super) fn serve(&mut self, pool: &Arc<Pool>, version: u64, discarded: &mut Vec<Discarded>) {
        let mut unserved: Vec<Wanted> = Vec::new();
        let mut at = 0;
        while let Some(wanted) = self.waiters.get(at).map(|waiter| waiter.wanted) {
            if unserved.contains(&wanted) {
                at += 1;
                continue;
            }
            let Some(ticket) = self.take(pool, wanted, version, discarded) else {
                unserved.push(wanted);
                if unserved.len() == MOST_UNSERVED {
                    return;
                }
                continue;
            };
            let Some(waiter) = self.waiters.remove(at) else { return };
            // Who has gone gets nothing; the ticket comes back when it is dropped, after the lock.
            if let Err(unwanted) = waiter.grant.send(ticket) {
                discarded.push(Discarded::Ticket(unwanted));
            }
        }
    }

    /// Whether this dial was one that others waited for.
    pub(super) fn dial_ended(&mut self, id: u64) -> bool {
        let before = self.leading.len();
        self.leading.retain(|(own, _)| *own != id);
        self.leading.len() < before
    }

    /// Who waited for the dial of this account is told how it failed.
    pub(super) fn fail_line(&mut self, fault: Fault, account: u64, discarded: &mut Vec<Discarded>) {
        let any = self.protocol == Protocol::Unknown;
        let waited =
            |wanted: Wanted| wanted.purpose == Purpose::Ordinary && (any || wanted.account == account);
        let (told, stay): (VecDeque<_>, VecDeque<_>) =
            self.waiters.drain(..).partition(|waiter| waited(waiter.wanted));
        self.waiters = stay;
        for waiter in told {
            if let Err(unwanted) = waiter.grant.send(Ticket::Failed(fault)) {
                discarded.push(Discarded::Ticket(unwanted));
            }
        }
    }

    pub(super) fn stream_ended(&mut self, id: u64) {
        if let Some(shared) = self.shared.iter_mut().find(|shared| shared.made.id == id) {
            shared.streams = shared.streams.saturating_sub(1);
            shared.since = Instant::now();
        }
    }

    pub(super) fn retire(&mut self, id: u64, discarded: &mut Vec<Discarded>) {
        let retired = self.shared.extract_if(.., |shared| shared.made.id == id);
        discarded.extend(retired.map(|shared| Discarded::Http2(shared.sender)));
    }

    pub(super) fn leave(&mut self, id: u64, discarded: &mut Vec<Discarded>) {
        self.open.remove(&id);
        self.giving_way = None;
        self.dial_ended(id);
        self.retire(id, discarded);
        let closed = self.idle.extract_if(.., |idle| idle.connection.made.id == id);
        discarded.extend(closed.map(|idle| Discarded::Http1(idle.connection)));
    }

    /// Closes what was idle for too long; returns when the next is due.
    pub(super) fn sweep(
        &mut self,
        now: Instant,
        timeout: Duration,
        discarded: &mut Vec<Discarded>,
    ) -> Option<Instant> {
        let expired = |since: Instant| now.saturating_duration_since(since) >= timeout;
        let old = self.idle.extract_if(.., |idle| expired(idle.since));
        discarded.extend(old.map(|idle| Discarded::Http1(idle.connection)));
        let old = self.shared.extract_if(.., |shared| shared.streams == 0 && expired(shared.since));
        discarded.extend(old.map(|shared| Discarded::Http2(shared.sender)));
        self.idle_since().min().map(|since| since + timeout)
    }

    fn idle_since(&self) -> impl Iterator<Item = Instant> {
        let shared = self.shared.iter().filter(|shared| shared.streams == 0).map(|shared| shared.since);
        self.idle.iter().map(|idle| idle.since).chain(shared)
    }

    pub(super) fn has_idle(&self) -> bool {
        self.idle_since().next().is_some()
    }

    pub(super) fn idle_count(&self) -> usize {
        self.idle_since().count()
    }

    pub(super) fn is_unused(&self) -> bool {
        self.open.is_empty() && self.waiters.is_empty()
    }
}
