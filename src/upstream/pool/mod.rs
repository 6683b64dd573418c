//! The connections of one upstream, by host and port.
//!
//! HTTP/1.1 connections are lent to one request at a time, the last used first; HTTP/2 connections are shared. Connections
//! of one host and port, those being made included, are capped; who finds none waits in line, and is handed the next
//! connection that comes back or the next free place. While the protocol of a host is not known, or is HTTP/2, one
//! connection is made and the others wait for its outcome, so a cold host gets one handshake and not one per request.
//!
//! A connection carries the credential of one account for its whole life, a tenant's own one as much as a provider's
//! ([`Wanted::account`]; the keys of an overlap are one account): what a provider, or what stands before it, keeps with a
//! connection, it keeps for that account alone. They share the cap: where it is
//! reached, an idle connection of another account gives way.
//!
//! One short lock guards everything. Nothing that ends a connection is dropped under it: the end of a connection takes
//! the lock itself. Nothing ticks: one task sweeps while something is idle, and ends when nothing is.
//!
//! Bounds: `max_connections` per host and port, [`MAX_WAITERS`] in line, [`MAX_HOSTS`] hosts remembered without a
//! connection.

mod host;
mod lease;
mod place;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderValue;
use http::uri::Authority;
use tokio::time::Instant;

use crate::message::failure::Fault;
use crate::message::target::{Host, Scheme, Target};

use super::connector::Purpose;
use super::settings::{HttpVersion, PoolSettings};

use host::{HostConnections, Idle, Protocol, Shared, Waiter};
pub use lease::{Http1, Http1Lease, Http2Lease, Lease, Made};
pub use place::{Place, Waiting};

/// Requests that may wait in line for a connection to one host and port.
pub const MAX_WAITERS: usize = 10_000;
/// Hosts above which those without a connection are forgotten.
pub const MAX_HOSTS: usize = 1024;

/// A host and port, with what every request to it needs ready-made.
pub struct Origin {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The `Host` field of HTTP/1.1.
    pub host_header: HeaderValue,
    /// The `:authority` of HTTP/2.
    pub authority: Authority,
}

type Key = (Host, u16);

impl Origin {
    fn new(scheme: Scheme, host: &Host, port: u16) -> Result<Self, http::Error> {
        let text = Target { scheme, host: host.clone(), port }.host_header();
        let host_header = HeaderValue::from_str(&text)?;
        let authority = Authority::from_maybe_shared(host_header.clone())?;
        Ok(Self { host: host.clone(), port, host_header, authority })
    }

    fn key(&self) -> Key {
        (self.host.clone(), self.port)
    }
}

/// What a connection is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it will carry.
    pub purpose: Purpose,
    /// Whose credential it will carry; 0 = none's.
    pub account: u64,
}

/// What the pool hands out: a connection, the leave to make one, or the failure of the dial that was waited for.
pub enum Ticket {
    /// A connection.
    Ready(Lease),
    /// A place for a connection that has to be made.
    Dial(Place),
    /// The connection that was waited for could not be made.
    Failed(Fault),
}

/// What asking for a connection comes to.
pub enum Step {
    /// Go on with this.
    Ticket(Ticket),
    /// Wait in line.
    Wait(Waiting),
    /// The line is full.
    Full,
}

/// Figures of a pool, for metrics and the status page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Connections, those being made included.
    pub open: usize,
    /// Connections that carry no request.
    pub idle: usize,
    /// Requests in line.
    pub waiting: usize,
    /// HTTP/2 connections among the open ones.
    pub http2: usize,
    /// Dials that led to a connection, since the start.
    pub dials_ok: u64,
    /// Dials that did not.
    pub dials_failed: u64,
}

/// The pool. Leases and places hold it, so it outlives the upstream until the last exchange has ended.
pub struct Pool {
    scheme: Scheme,
    http: HttpVersion,
    settings: PoolSettings,
    state: Mutex<State>,
    next_id: AtomicU64,
    dials_ok: AtomicU64,
    dials_failed: AtomicU64,
}

#[derive(Default)]
struct State {
    sweeping: bool,
    /// Version of the client certificate; connections of another are not used again.
    version: u64,
    /// A wildcard lets apps name hosts, so the hash has a seed; of how many there are, [`MAX_HOSTS`] is the bound.
    hosts: HashMap<Key, HostConnections, foldhash::fast::RandomState>,
}

/// What has to be dropped after the lock is released: dropping it takes the lock again. The payloads are never read.
#[allow(dead_code, reason = "held for its drop alone")]
enum Discarded {
    Ticket(Ticket),
    Http1(Http1),
    Http2(lease::Sender2),
    Host(HostConnections),
}

impl Pool {
    /// An empty pool.
    pub fn new(scheme: Scheme, http: HttpVersion, settings: PoolSettings) -> Arc<Self> {
        Arc::new(Self {
            scheme,
            http,
            settings,
            state: Mutex::default(),
            next_id: AtomicU64::new(1),
            dials_ok: AtomicU64::new(0),
            dials_failed: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks for a connection to the host, of this version of the client certificate.
    pub fn acquire(
        self: &Arc<Self>,
        host: &Host,
        port: u16,
        wanted: Wanted,
        version: u64,
    ) -> Result<Step, http::Error> {
        let mut discarded = Vec::new();
        let step = self.acquire_locked(host, port, wanted, version, &mut discarded);
        drop(discarded);
        step
    }

    fn acquire_locked(
        self: &Arc<Self>,
        host: &Host,
        port: u16,
        wanted: Wanted,
        version: u64,
        discarded: &mut Vec<Discarded>,
    ) -> Result<Step, http::Error> {
        let key = (host.clone(), port);
        let mut state = self.lock();
        state.version = version;
        let connections = match state.hosts.get_mut(&key) {
            Some(connections) => connections,
            None => {
                let origin = Arc::new(Origin::new(self.scheme, host, port)?);
                state.forget_unused(discarded);
                state.hosts.entry(key).or_insert(HostConnections::new(origin, self.first_protocol()))
            }
        };
        if let Some(ticket) = connections.take(self, wanted, version, discarded) {
            return Ok(Step::Ticket(ticket));
        }
        if connections.waiters.len() >= MAX_WAITERS {
            return Ok(Step::Full);
        }
        let (grant, receiver) = tokio::sync::oneshot::channel();
        let id = self.next_id();
        connections.waiters.push_back(Waiter { id, wanted, grant });
        let behind_dial = wanted.purpose == Purpose::Ordinary && connections.is_led(wanted.account);
        Ok(Step::Wait(Waiting::new(self.clone(), connections.origin.clone(), id, receiver, behind_dial)))
    }

    fn first_protocol(&self) -> Protocol {
        match (self.http, self.scheme) {
            (HttpVersion::Http1, _) | (HttpVersion::Auto, Scheme::Http) => Protocol::Http1,
            (HttpVersion::Auto, Scheme::Https) => Protocol::Unknown,
            (HttpVersion::Http2, _) => Protocol::Http2,
        }
    }

    /// Changes what is known about a host, serves its line, and drops what has to go.
    fn update(
        self: &Arc<Self>,
        origin: &Origin,
        change: impl FnOnce(&mut HostConnections, u64, &mut Vec<Discarded>),
    ) {
        let mut discarded = Vec::new();
        {
            let mut state = self.lock();
            let version = state.version;
            if let Some(connections) = state.hosts.get_mut(&origin.key()) {
                change(connections, version, &mut discarded);
                connections.serve(self, version, &mut discarded);
                if connections.has_idle() {
                    state.ensure_sweeper(self);
                }
            }
        }
        drop(discarded);
    }

    /// An HTTP/1.1 connection was made, and is already in use.
    pub fn made_http1(self: &Arc<Self>, origin: &Origin, id: u64, purpose: Purpose) {
        self.dials_ok.fetch_add(1, Ordering::Relaxed);
        self.update(origin, |connections, _, _| {
            connections.dial_ended(id);
            if purpose == Purpose::Ordinary {
                connections.protocol = Protocol::Http1;
            }
        });
    }

    /// An HTTP/2 connection was made; the caller gets its first stream.
    pub fn made_http2(
        self: &Arc<Self>,
        origin: &Arc<Origin>,
        sender: lease::Sender2,
        made: Made,
        limit: Arc<AtomicUsize>,
    ) -> Http2Lease {
        self.dials_ok.fetch_add(1, Ordering::Relaxed);
        let lease = Http2Lease::new(self.clone(), origin.clone(), sender.clone(), made, true);
        self.update(origin, |connections, _, _| {
            // Its dial goes on leading until the provider has told how many streams it takes: who waits does so for that.
            connections.protocol = Protocol::Http2;
            // Where its socket was closed meanwhile, nothing would take it out again.
            if connections.open.contains(&made.id) {
                connections.shared.push(Shared { sender, made, streams: 1, limit, since: Instant::now() });
            }
        });
        lease
    }

    /// The provider has told how many streams it takes on a connection, for the first time or anew.
    pub fn streams_told(self: &Arc<Self>, origin: &Origin, id: u64) {
        self.update(origin, |connections, _, _| {
            connections.dial_ended(id);
        });
    }

    /// A dial failed. Who waited for its outcome is told; each of them dialling in turn would only take longer.
    pub fn dial_failed(self: &Arc<Self>, place: Place, fault: Fault) {
        self.dials_failed.fetch_add(1, Ordering::Relaxed);
        self.update(place.origin(), |connections, _, discarded| {
            if connections.dial_ended(place.id()) {
                connections.fail_line(fault, place.account(), discarded);
            }
        });
    }

    /// An HTTP/1.1 connection is ready for its next request.
    fn put_back(self: &Arc<Self>, connection: Http1) {
        let origin = connection.origin.clone();
        // Of another identity, closed meanwhile, or returned to a pool that was closed: dropped here, after the lock.
        let mut returned = Some(connection);
        self.update(&origin, |connections, version, _| {
            let usable =
                |own: &mut Http1| own.made.version == version && connections.open.contains(&own.made.id);
            if let Some(connection) = returned.take_if(usable) {
                connections.idle.push(Idle { connection, since: Instant::now() });
            }
        });
    }

    /// A stream of an HTTP/2 connection has ended.
    fn stream_ended(self: &Arc<Self>, origin: &Origin, id: u64) {
        self.update(origin, |connections, _, _| connections.stream_ended(id));
    }

    /// An HTTP/2 connection takes no more requests; its streams go on.
    fn retire(self: &Arc<Self>, origin: &Origin, id: u64) {
        self.update(origin, |connections, _, discarded| connections.retire(id, discarded));
    }

    /// A socket was closed, or a dial given up.
    fn leave(self: &Arc<Self>, origin: &Origin, id: u64) {
        self.update(origin, |connections, _, discarded| connections.leave(id, discarded));
    }

    fn give_up(self: &Arc<Self>, origin: &Origin, id: u64) {
        self.update(origin, |connections, _, _| connections.waiters.retain(|waiter| waiter.id != id));
    }

    /// Connections with this version of the client certificate are kept from now on, and no others: where it changed while
    /// one was made.
    pub fn shows(&self, version: u64) {
        self.lock().version = version;
    }

    /// Closes what is idle; what is busy ends with its exchange.
    pub fn close(&self) {
        let hosts = std::mem::take(&mut self.lock().hosts);
        // After the lock.
        drop(hosts);
    }

    /// Closes what was idle for too long. Returns when to look again; none = nothing is idle.
    fn sweep(&self, now: Instant) -> Option<Instant> {
        let mut discarded = Vec::new();
        let next = {
            let mut state = self.lock();
            let timeout = self.settings.idle_timeout;
            let next = state
                .hosts
                .values_mut()
                .filter_map(|connections| connections.sweep(now, timeout, &mut discarded))
                .min();
            state.sweeping = next.is_some();
            next
        };
        drop(discarded);
        next
    }

    /// The pool's figures.
    pub fn stats(&self) -> PoolStats {
        let state = self.lock();
        let mut stats = PoolStats {
            dials_ok: self.dials_ok.load(Ordering::Relaxed),
            dials_failed: self.dials_failed.load(Ordering::Relaxed),
            ..PoolStats::default()
        };
        for connections in state.hosts.values() {
            stats.open += connections.open.len();
            stats.idle += connections.idle_count();
            stats.waiting += connections.waiters.len();
            stats.http2 += connections.shared.len();
        }
        stats
    }
}

impl State {
    /// A provider with a wildcard host may be asked for any number of names.
    fn forget_unused(&mut self, discarded: &mut Vec<Discarded>) {
        if self.hosts.len() < MAX_HOSTS {
            return;
        }
        let unused = self.hosts.extract_if(|_, connections| connections.is_unused());
        discarded.extend(unused.map(|(_, connections)| Discarded::Host(connections)));
    }

    fn ensure_sweeper(&mut self, pool: &Arc<Pool>) {
        if self.sweeping {
            return;
        }
        // Without a runtime (it is shutting down) nothing needs to be swept.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        self.sweeping = true;
        let (weak, first) = (Arc::downgrade(pool), Instant::now() + pool.settings.idle_timeout);
        runtime.spawn(async move {
            let mut next = Some(first);
            while let Some(at) = next {
                tokio::time::sleep_until(at).await;
                next = weak.upgrade().and_then(|pool| pool.sweep(Instant::now()));
            }
        });
    }
}
