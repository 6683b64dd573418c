//! Limits that pods share: `scope: fleet`.
//!
//! ```yaml
//! fleet: { redis: { url: "env:REDIS_URL" }, assume_pods: 4 }
//! providers:
//!   stripe:
//!     limits:
//!       - { name: account, rate: 200/s, burst: 4, scope: fleet }
//! ```
//!
//! **What.** Each pod leases a *rate* of each limit through Redis or Valkey and spends it locally; nothing is fetched while a
//! request waits. Four times a second it reports what it obeys and what it wants, in one script call, and is granted at most
//! what the leases of the others leave free. So the sum keeps the limit at every moment; fairness (`share`) moves it to
//! where it is wanted. A key without a share that gets its first request is reported at once.
//!
//! **When Redis is away** a pod keeps its lease until that ends (a second). Then `on_outage` says what it may spend: its local
//! share, everything, or nothing (`book`). It goes on trying (at most half a second apart), and leases again when Redis is
//! back, empty or not: nothing grows until all pods have reported.
//!
//! **Pauses.** A pause that one pod tells ([`Fleet::pause`]) reaches the others with their next report.
//!
//! **Limits.** 10,000 active keys a pod and 50,000 known ones (more share one lease a limit), 256 pauses on their way, 100 ms a
//! call, 500 ms to connect. A limit smaller than twice the pods that use it at once is served in turns, and gives nothing
//! in an outage if it is smaller than the pods. One Redis, not a cluster. A pod that alone is cut off from a Redis which the
//! others reach cannot be known to them: it may add its local share to the limit.
//!
//! The redis crate dials by itself, past the address rules of `upstream/connector.rs`: where Redis is says the platform in the
//! configuration, and no request has a part in it. See `docs/decisions/0006-fleet-leases.md`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::message::quantity::Rate;
use crate::resilience::rate_limit::lease::{Leases, RateLease};

mod book;
mod config;
mod demand;
mod link;
mod pauses;
mod run;
mod script;
mod share;
mod spend;

#[cfg(test)]
mod tests;

pub use config::{FleetConfig, FleetSettings, OnOutage, RedisConfig};
pub use link::UrlSource;
pub use run::run;
pub use share::{Grant, Spec};
pub use spend::Spend;

use book::{Book, TRACKED};
use pauses::Pauses;
use spend::Limit;

/// What hears of pauses that other pods told: the name and what is left of it.
pub type PauseHeard = Arc<dyn Fn(&str, Duration) + Send + Sync>;

/// This pod's part in the fleet. Lives longer than a generation; [`run()`] keeps it in touch.
pub struct Fleet<L: Spend = RateLease> {
    prefix: Arc<str>,
    url: UrlSource,
    pod: Box<str>,
    book: Mutex<Book<L>>,
    limits: Mutex<HashMap<String, Weak<Limit>>>,
    pauses: Mutex<Pauses>,
    heard: Mutex<Vec<PauseHeard>>,
    /// A report is due.
    due: Notify,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    failed: AtomicU64,
    connects: AtomicU64,
    told: AtomicU64,
    heard: AtomicU64,
    overflowed: AtomicU64,
}

/// What holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FleetMode {
    /// No call was answered or failed yet.
    Starting,
    /// Leases of Redis; they do not grow until all pods have reported.
    Settling,
    /// Leases of Redis.
    Leased,
    /// Redis does not answer; leases end, and others may still hold theirs.
    Lapsing,
    /// Redis does not answer; the limit divided by the pods.
    LocalShare,
    /// Redis does not answer; the whole limit.
    Open,
    /// Redis does not answer; nothing.
    Closed,
}

/// What `/status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FleetStatus {
    /// The last call was answered.
    pub connected: bool,
    /// What holds now.
    pub mode: FleetMode,
    /// Pods that the last answer told of, this one included; 0 = never answered.
    pub pods: u32,
    /// Keys with a lease.
    pub leases: usize,
    /// Keys that are known.
    pub tracked: usize,
    /// Active keys that found no place in the last report.
    pub left_out: usize,
    /// Keys that share one lease because too many were known, since the start.
    pub overflowed: u64,
    /// Milliseconds since the last answer.
    pub last_contact_ms: Option<u64>,
    /// Calls that were answered, since the start.
    pub calls: u64,
    /// Calls and connections that failed, since the start.
    pub failed: u64,
    /// Connections that were made, since the start.
    pub connects: u64,
    /// Pauses that were told to others, since the start.
    pub pauses_told: u64,
    /// Pauses of others that were heard, since the start.
    pub pauses_heard: u64,
    /// Pauses that found no room, since the start.
    pub pauses_dropped: u64,
}

impl Fleet {
    /// This pod, under an id that no other pod has: see [`random_pod_id`]. Does nothing until [`run()`] runs.
    pub fn new(settings: &FleetSettings, url: UrlSource, pod: &str) -> Arc<Self> {
        Self::of(settings, url, pod)
    }

    /// The leases of a limit, for its limiter. `limit` names it in all pods: the provider and the limit's name.
    ///
    /// Asked again with other numbers (a reload), the leases that live follow those. A limit with another window is another
    /// limit.
    pub fn leases(self: &Arc<Self>, limit: &str, rate: Rate, burst: u32) -> Arc<dyn Leases> {
        let limit = self.limit(limit, Spec { rate: rate.count(), burst, window: rate.per() });
        Arc::new(SharedLimit { fleet: self.clone(), limit })
    }

    /// The lease of a limit that counts everything together.
    pub fn lease(self: &Arc<Self>, limit: &str, rate: Rate, burst: u32) -> Arc<RateLease> {
        self.leases(limit, rate, burst).lease(&[])
    }
}

/// An id for [`Fleet::new`]: 16 random hexadecimal digits.
pub fn random_pod_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

impl<L: Spend> Fleet<L> {
    fn of(settings: &FleetSettings, url: UrlSource, pod: &str) -> Arc<Self> {
        Arc::new(Self {
            prefix: settings.prefix.clone(),
            url,
            pod: pod.into(),
            book: Mutex::new(Book::new(settings.on_outage, settings.assume_pods)),
            limits: Mutex::default(),
            pauses: Mutex::default(),
            heard: Mutex::default(),
            due: Notify::new(),
            counters: Counters::default(),
        })
    }

    /// Other rules for an outage (a reload). URL and prefix are not changed: those make another fleet.
    pub fn adjust(&self, on_outage: OnOutage, assume_pods: u32) {
        self.book().adjust(on_outage, assume_pods);
    }

    /// Tells the other pods that what has this name may not be used for so long (at most an hour): at once, without waiting.
    pub fn pause(&self, name: &str, pause: Duration) {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        if !pause.is_zero() && pauses.add(name, pause, Instant::now()) {
            self.due.notify_one();
        }
    }

    /// Has the pauses told that other pods see: at most 250 ms after they did, and those that hold when this pod starts. Can be
    /// told twice; must be quick.
    pub fn on_pause(&self, heard: PauseHeard) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
    }

    /// What holds now.
    pub fn status(&self) -> FleetStatus {
        let now = Instant::now();
        let dropped = self.pauses.lock().unwrap_or_else(PoisonError::into_inner).dropped;
        let book = self.book();
        let contact = book.contact;
        let age = contact.answered.map(|at| now.saturating_duration_since(at).as_millis());
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FleetStatus {
            connected: contact.connected,
            mode: book.mode(now),
            pods: contact.pods,
            leases: book.leased(now),
            tracked: book.tracked(),
            left_out: book.left_out,
            overflowed: count(&self.counters.overflowed),
            last_contact_ms: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
            calls: count(&self.counters.calls),
            failed: count(&self.counters.failed),
            connects: count(&self.counters.connects),
            pauses_told: count(&self.counters.told),
            pauses_heard: count(&self.counters.heard),
            pauses_dropped: dropped,
        }
    }

    fn book(&self) -> MutexGuard<'_, Book<L>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, name: &str, spec: Spec) -> Arc<Limit> {
        let key = format!("{name}:{}", spec.window.as_millis());
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.retain(|_, limit| limit.strong_count() > 0);
        if let Some(live) = limits.get(&key).and_then(Weak::upgrade) {
            live.change(spec);
            return live;
        }
        let limit = Arc::new(Limit::new(key.clone(), spec));
        limits.insert(key, Arc::downgrade(&limit));
        limit
    }

    /// The lease of one key of a limit.
    fn lease_of(&self, limit: &Arc<Limit>, names: &[&str]) -> Arc<L> {
        let id = key_id(limit, names);
        let mut book = self.book();
        let full = !names.is_empty() && book.tracked() >= TRACKED && !book.knows(&id);
        let id = if full { key_id(limit, &["", "all that found no place"]) } else { id };
        let (lease, new) = book.lease(&id, limit, !names.is_empty(), Instant::now());
        drop(book);
        if full {
            self.counters.overflowed.fetch_add(1, Ordering::Relaxed);
        }
        if new {
            // The first request of this key is about to wait for its share.
            self.due.notify_one();
        }
        lease
    }
}

/// The key of some names of a limit. Names are hashed: they can be long, and are nobody's business in Redis.
fn key_id(limit: &Limit, names: &[&str]) -> Arc<str> {
    if names.is_empty() {
        return limit.key.as_str().into();
    }
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for name in names {
        context.update(&name.len().to_le_bytes());
        context.update(name.as_bytes());
    }
    let hash = context.finish();
    let mut id = format!("{}:", limit.key);
    for byte in hash.as_ref().iter().take(16) {
        id.push_str(&format!("{byte:02x}"));
    }
    id.into()
}

/// Where a limiter has its leases from.
struct SharedLimit {
    fleet: Arc<Fleet>,
    limit: Arc<Limit>,
}

impl Leases for SharedLimit {
    fn lease(&self, names: &[&str]) -> Arc<RateLease> {
        self.fleet.lease_of(&self.limit, names)
    }
}
