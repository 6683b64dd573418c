//! The learned quota of one provider: its keys, hints of other instances, counters.
//!
//! Holds no settings, so an edit of the policy loses nothing: it lives as long as the provider's name is in the policy, and
//! the layers bring their settings with each request.
//!
//! Bounds: [`MOST_KEYS`] keys; those of which nothing is known that counts are dropped when room is wanted, then those
//! that nobody uses. Where all are in use, further requests are let through uncounted (and that is counted).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::buckets::Buckets;
use super::config::ReserveConfig;
use super::entry::{Entry, Names};
use super::fields::Readings;
use super::key_state::{Answer, Pass};
use crate::resilience::key::{ByHash, Key};
use crate::resilience::verdict::{Class, Verdict};

/// Keys of one provider.
pub const MOST_KEYS: usize = 16_384;
const SHARDS: usize = 16;
/// A shard is swept when it has doubled since the last time, but not below this.
const FIRST_SWEEP: usize = 64;
/// How often one that is full is swept.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Of how many keys that are not in use the least worth is dropped where there is no room.
const FEW: usize = 16;
/// Hints for keys that are not in use here.
const MOST_HINTS: usize = 4_096;
/// The longest pause that another instance can ask for.
const LONGEST_HINT: Duration = Duration::from_secs(3600);
/// Keys that `/status` lists.
const MOST_LISTED: usize = 50;

/// Told when a key was refused: its stable name, and for how long it pauses.
pub type OnThrottle = Arc<dyn Fn(&str, Duration) + Send + Sync>;

/// What was learned of one provider's quota.
pub struct Quota {
    provider: Arc<str>,
    shards: [Mutex<Shard>; SHARDS],
    pub(super) buckets: Buckets,
    hints: Mutex<HashMap<Box<str>, Instant>>,
    has_hints: AtomicBool,
    on_throttle: RwLock<Option<OnThrottle>>,
    pub(super) counters: Counters,
}

#[derive(Default)]
struct Shard {
    keys: ByHash<Key, Arc<Entry>>,
    sweep_at: usize,
    swept_at: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) held: AtomicU64,
    pub(super) waited: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) throttled: AtomicU64,
    pub(super) absurd: AtomicU64,
    pub(super) shadowed: AtomicU64,
    pub(super) recalled: AtomicU64,
    hinted: AtomicU64,
    overflow: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

/// For how long an answer wants all buckets of a host to pause.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostPause {
    pub(super) length: Duration,
    /// The answer names the length.
    pub(super) told: bool,
}

/// How the quota of a provider stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct QuotaStatus {
    /// Keys of which something is known or on its way.
    pub keys: usize,
    /// Requests that wait now.
    pub waiting: usize,
    /// Requests that found their quota held.
    pub held: u64,
    /// Requests that waited and were sent.
    pub waited: u64,
    /// Requests that were refused with 429.
    pub refused: u64,
    /// Refusals by the provider for the number of requests.
    pub throttled: u64,
    /// Values of the provider that could not be meant, and reserves above the limit.
    pub absurd: u64,
    /// Requests that would have waited or been refused, in shadow mode.
    pub shadowed: u64,
    /// Times that a request was called back from the queue of a limit or permit, because its quota was gone meanwhile.
    pub recalled: u64,
    /// Pauses that other instances asked for.
    pub hinted: u64,
    /// Requests that passed uncounted because all keys were in use.
    pub overflow: u64,
    /// The keys that matter most now: those with waiters and pauses first, then those with the least left. Bounded.
    pub list: Vec<KeyStatus>,
}

/// How one key stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyStatus {
    /// Reference of the credential; empty = none.
    pub credential: String,
    /// What the quota covers.
    pub bucket: String,
    /// Hash of the tenant; none = no tenant.
    pub tenant: Option<String>,
    /// For how long it is paused.
    pub paused_seconds: Option<f64>,
    /// Requests that wait.
    pub waiting: usize,
    /// What the provider tells, or what was learned of its rate (`learned`).
    pub meters: Vec<MeterStatus>,
}

/// How one meter stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeterStatus {
    /// The provider's name for it.
    pub name: String,
    /// How many are left; none = not known since the reset.
    pub remaining: Option<u64>,
    /// How many there are in all.
    pub limit: Option<u64>,
    /// When there are more.
    pub reset_seconds: Option<f64>,
}

impl Quota {
    /// Nothing is known yet.
    pub fn new(provider: impl Into<Arc<str>>) -> Self {
        Self {
            provider: provider.into(),
            shards: Default::default(),
            buckets: Buckets::default(),
            hints: Mutex::default(),
            has_hints: AtomicBool::new(false),
            on_throttle: RwLock::new(None),
            counters: Counters::default(),
        }
    }

    /// Who is told of refusals, so that other instances pause too. It must not block. Replaces an earlier one.
    pub fn on_throttle(&self, told: OnThrottle) {
        *self.on_throttle.write().unwrap_or_else(PoisonError::into_inner) = Some(told);
    }

    /// Another instance was refused: pauses the key of this stable name, also if it is used here only later. At most an
    /// hour; nobody is told again.
    pub fn pause(&self, key_name: &str, pause: Duration) {
        let now = Instant::now();
        let pause = pause.min(LONGEST_HINT);
        count(&self.counters.hinted, 1);
        self.hint(key_name, now, now + pause);
        for shard in &self.shards {
            let named: Vec<_> =
                lock(shard).keys.values().filter(|entry| self.is_named(entry, key_name)).cloned().collect();
            named.iter().for_each(|entry| entry.pause(now, pause));
        }
    }

    fn hint(&self, name: &str, now: Instant, until: Instant) {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        if hints.len() >= MOST_HINTS {
            hints.retain(|_, until| *until > now);
        }
        if hints.len() < MOST_HINTS {
            hints.insert(name.into(), until);
            self.has_hints.store(true, Ordering::Release);
        }
    }

    /// The name of a key that is the same in every instance: provider, credential, hash of the tenant, bucket.
    fn stable_name(&self, names: &Names) -> String {
        format!("{}|{}|{:016x}|{}", self.provider, names.credential, names.tenant, names.bucket)
    }

    fn is_named(&self, entry: &Entry, name: &str) -> bool {
        // Compared without the tenant first, so that a look over all keys costs no allocation for each.
        let names = &entry.names;
        let between = name
            .strip_prefix(&*self.provider)
            .and_then(|rest| rest.strip_prefix('|')?.strip_prefix(&*names.credential)?.strip_prefix('|'));
        between
            .and_then(|rest| rest.strip_suffix(&*names.bucket)?.strip_suffix('|'))
            .is_some_and(|tenant| u64::from_str_radix(tenant, 16).is_ok_and(|tenant| tenant == names.tenant))
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        // The other half is what a shard's table sorts by.
        let place = usize::try_from(key.halves().1 % SHARDS as u64).unwrap_or(0);
        &self.shards[place]
    }

    /// The entry of a key; made where there is none.
    pub(super) fn entry(&self, key: Key, now: Instant, names: impl FnOnce() -> Names) -> Arc<Entry> {
        let mut shard = lock(self.shard(key));
        if let Some(entry) = shard.keys.get(&key) {
            return entry.clone();
        }
        let entry = Arc::new(self.make(names(), now));
        if !shard.make_room(now) {
            count(&self.counters.overflow, 1);
            return entry;
        }
        shard.keys.insert(key, entry.clone());
        entry
    }

    fn make(&self, names: Names, now: Instant) -> Entry {
        let entry = Entry::new(names, now);
        if self.has_hints.load(Ordering::Acquire) {
            let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
            hints.retain(|_, until| *until > now);
            self.has_hints.store(!hints.is_empty(), Ordering::Release);
            if let Some(until) = hints.get(self.stable_name(&entry.names).as_str()) {
                entry.pause(now, *until - now);
            }
        }
        entry
    }

    /// An answer came: the key learns, and what follows from it is counted and told.
    pub(super) fn answered(&self, entry: &Entry, pass: Pass, answer: &Answer<'_>, reserve: ReserveConfig) {
        let learned = entry.answered(Instant::now(), pass, answer, reserve);
        let absurd = answer.readings.absurd + learned.absurd;
        if absurd > 0 {
            count(&self.counters.absurd, absurd.into());
        }
        if matches!(answer.verdict.class, Class::Throttle | Class::Quota) {
            count(&self.counters.throttled, 1);
        }
        if let Some(pause) = learned.paused {
            self.tell(entry, pause);
        }
    }

    /// The answer to a request that was let through here says that all buckets pause, or nothing of that.
    pub(super) fn answered_for_all(&self, entry: &Entry, pass: Pass, pause: Option<HostPause>) {
        let now = Instant::now();
        let (known, late) =
            entry.look(|state, _| (state.paused_for(now).is_some(), state.is_from_before(pass)));
        // What was on its way when the host began to pause can make that pause longer, and begins none of its own.
        if let Some(HostPause { length: pause, .. }) = pause.filter(|pause| !late || known && pause.told) {
            // Before the answer counts as one: who waits would go on with it.
            entry.pause(now, pause);
            if !known {
                self.tell(entry, pause);
            }
        }
        let answer =
            Answer { verdict: Verdict::SUCCESS, readings: Readings::default(), max_hold: Duration::ZERO };
        entry.answered(now, pass, &answer, ReserveConfig::Count(0));
    }

    /// Tells the other instances of a pause.
    fn tell(&self, entry: &Entry, pause: Duration) {
        let told = self.on_throttle.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(told) = told {
            told(&self.stable_name(&entry.names), pause);
        }
    }

    /// Drops keys of which nothing is known that counts.
    pub fn sweep(&self) {
        let now = Instant::now();
        for shard in &self.shards {
            lock(shard).sweep(now);
        }
    }

    /// How it stands. Sweeps on the way.
    pub fn status(&self) -> QuotaStatus {
        self.sweep();
        let now = Instant::now();
        let entries: Vec<Arc<Entry>> = self
            .shards
            .iter()
            .flat_map(|shard| lock(shard).keys.values().cloned().collect::<Vec<_>>())
            .collect();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        QuotaStatus {
            keys: entries.len(),
            waiting: entries.iter().map(|entry| entry.look(|_, waiting| waiting)).sum(),
            held: load(&counters.held),
            waited: load(&counters.waited),
            refused: load(&counters.refused),
            throttled: load(&counters.throttled),
            absurd: load(&counters.absurd),
            shadowed: load(&counters.shadowed),
            recalled: load(&counters.recalled),
            hinted: load(&counters.hinted),
            overflow: load(&counters.overflow),
            list: listed(&entries, now),
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn sweep(&mut self, now: Instant) {
        // Who holds the entry may be about to pass.
        self.keys.retain(|_, entry| Arc::strong_count(entry) > 1 || !entry.is_idle(now));
        self.swept_at = Some(now);
        self.sweep_at = (self.keys.len() * 2).max(FIRST_SWEEP);
        if self.keys.capacity() > 4 * self.sweep_at {
            self.keys.shrink_to(self.sweep_at);
        }
    }

    /// Whether one more key has room.
    fn make_room(&mut self, now: Instant) -> bool {
        let most = MOST_KEYS / SHARDS;
        let full = self.keys.len() >= most;
        // A full shard is not swept for each key that comes.
        let due = self.swept_at.is_none_or(|at| at + SWEEP_EVERY <= now);
        if self.keys.len() >= self.sweep_at.max(FIRST_SWEEP) && !full || full && due {
            self.sweep(now);
        }
        if self.keys.len() >= most {
            let unused = self.keys.iter().filter(|(_, entry)| Arc::strong_count(entry) == 1);
            let worths = unused.filter_map(|(key, entry)| Some((entry.worth(now)?, *key)));
            let least = worths.take(FEW).min_by_key(|(worth, _)| *worth);
            least.map(|(_, key)| self.keys.remove(&key));
        }
        self.keys.len() < most
    }
}

/// The keys that matter most, the most pressing first.
fn listed(entries: &[Arc<Entry>], now: Instant) -> Vec<KeyStatus> {
    let mut ranked: Vec<_> = entries
        .iter()
        .map(|entry| {
            (
                entry.look(|state, waiting| {
                    let left = state.meters().iter().filter_map(|meter| {
                        let (left, limit) = (meter.left(now)?, meter.limit()?.max(1));
                        u64::try_from(u128::from(left) * 1_000_000 / u128::from(limit)).ok()
                    });
                    (waiting == 0, state.paused_for(now).is_none(), left.min().unwrap_or(u64::MAX))
                }),
                entry,
            )
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().take(MOST_LISTED).map(|(_, entry)| key_status(entry, now)).collect()
}

fn key_status(entry: &Entry, now: Instant) -> KeyStatus {
    let names = &entry.names;
    entry.look(|state, waiting| {
        let mut meters: Vec<_> = state
            .meters()
            .iter()
            .map(|meter| MeterStatus {
                name: meter.name().to_string(),
                remaining: meter.left(now),
                limit: meter.limit(),
                reset_seconds: meter.reset_at().map(|at| (at - now).as_secs_f64()),
            })
            .collect();
        meters.extend(state.rate(now).map(|(allowed, window, left)| MeterStatus {
            name: "learned".into(),
            remaining: Some(left.into()),
            limit: Some(allowed.into()),
            reset_seconds: Some(window.as_secs_f64()),
        }));
        KeyStatus {
            credential: names.credential.to_string(),
            bucket: names.bucket.to_string(),
            tenant: (names.tenant != 0).then(|| format!("{:016x}", names.tenant)),
            paused_seconds: state.paused_for(now).map(|pause| pause.as_secs_f64()),
            waiting,
            meters,
        }
    })
}
