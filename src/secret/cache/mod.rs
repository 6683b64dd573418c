//! The secrets in use. Lives across reloads: a reference that stays in the policy keeps its value and its history.
//!
//! | when | what |
//! | --- | --- |
//! | start, reload | [`SecretCache::read_new`] reads what was never read, all at once, each within a bound |
//! | a file changes | read again at once (after 200 ms of gathering), by the task [`SecretCache::run`] |
//! | the provider answers 401 | [`SecretEntry::heal_refresh`], at most once per 30 s and secret |
//! | a store tells of a change (`kubernetes`) | read again at once, as long as it tells |
//! | a store tells of no changes | read again at its interval, give or take a tenth |
//! | a value has a lease | read again at two thirds of it; not used after its end |
//! | a token nears its end | made anew at 80 % of its life; not used after its end |
//! | what a token is made from changes | made anew; the old one serves meanwhile |
//! | a request finds no token | it waits for the one that is being made ([`SecretEntry::obtain`]) |
//! | a read fails | the last good value stays; read again after 6 s, doubling up to 5 min, with jitter |
//!
//! Reads of one secret never overlap. Requests never read: they load what is there. Only where that is a token which has
//! ended they wait, and [`SecretCache::run`] makes it for all of them at once.
//!
//! Secrets of tenants come with their tenants and go with them: their entries live as long as somebody holds them.
//!
//! Bounds: one entry per reference (and rules) of the newest policies, whose size is bounded, and of the tenants that are held;
//! a value is bounded by its store; a read by [`READ_TIMEOUT`]; of each store, 10 first reads
//! of tenants' secrets at a time, 10 that tokens wait for and 10 further ones, and 60 in a minute that fail; 4096 tenants' secrets that could not be read are remembered.

mod entry;
mod lines;
mod made;
mod pace;
mod refused;
mod run;
mod tenants;
mod trail;
mod wake;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use serde::Serialize;
use tokio::sync::Notify;

pub use tenants::TenantSecrets;

pub use entry::{HEAL_INTERVAL, READ_TIMEOUT, RefreshOutcome, SecretEntry, SecretVersion};

use super::reference::SecretRef;
use super::value::ValueRules;
use super::{LiveStores, SecretStore, Stores};

type Key = (SecretRef, ValueRules);

/// All secrets that the policies in use refer to.
pub struct SecretCache {
    stores: LiveStores,
    /// Held for look-ups alone, never over an await.
    entries: Mutex<BTreeMap<Key, Arc<SecretEntry>>>,
    /// Those of tenants. Who uses them holds them.
    of_tenants: Mutex<BTreeMap<Key, Weak<SecretEntry>>>,
    /// Values made for policies that are no longer the newest. Requests on their way hold them.
    leaving: Mutex<Vec<Weak<SecretEntry>>>,
    tenant_log: Arc<tenants::TenantLog>,
    /// Places of reads of tenants' secrets.
    lines: lines::Lines,
    refused: Arc<refused::Refused>,
    pace: Arc<pace::Pace>,
    /// Wakes [`SecretCache::run`]: entries came or went, or one of them failed and wants another read.
    wake: Arc<wake::Wake>,
    /// Wakes its look at files: entries came or went, or have another store.
    members: Notify,
    /// The same for watches of stores.
    watched: Notify,
}

/// What `/status` and the metrics say of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretStatus {
    /// The reference as written.
    pub reference: String,
    /// Its store.
    pub store: String,
    /// How it stands.
    pub state: SecretState,
    /// Number of the version in use, from 1, as read by this process.
    pub version: Option<u64>,
    /// Seconds since that version was first read.
    pub age_seconds: Option<u64>,
    /// When a read was good last, whether or not it brought another value; RFC 3339, UTC. None before the first.
    pub last_good_read: Option<String>,
    /// Seconds until the value in use ends; none where it has no end.
    pub ends_in_seconds: Option<u64>,
    /// Seconds until it is read next without being asked for; none where only a change or a request leads to a read.
    pub next_read_in_seconds: Option<u64>,
    /// Whether a read is under way.
    pub reading: bool,
    /// Code of the last read's error; none after a good read.
    pub last_error_code: Option<&'static str>,
    /// Reads that failed since the start.
    pub failed_reads: u64,
    /// Whether readiness waits for it.
    pub required: bool,
}

/// How a secret stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretState {
    /// No read was tried yet.
    Pending,
    /// The last read was good.
    Current,
    /// A good value is in use, and the last read failed.
    Stale,
    /// There is no value: what needs it answers 503.
    Missing,
}

impl SecretCache {
    /// An empty cache over `stores`.
    #[must_use]
    pub fn new(stores: Stores) -> Self {
        Self {
            stores: Arc::new(ArcSwap::from_pointee(stores)),
            entries: Mutex::default(),
            of_tenants: Mutex::default(),
            leaving: Mutex::default(),
            tenant_log: Arc::default(),
            lines: lines::Lines::default(),
            refused: Arc::default(),
            pace: Arc::default(),
            wake: Arc::default(),
            members: Notify::new(),
            watched: Notify::new(),
        }
    }

    /// The stores of the newest policy.
    #[must_use]
    pub fn stores(&self) -> Arc<Stores> {
        self.stores.load_full()
    }

    /// The stores of whichever policy is the newest then.
    #[must_use]
    pub fn live_stores(&self) -> LiveStores {
        Arc::clone(&self.stores)
    }

    /// Takes the stores of a new policy. What came from a store that is another one now is read from the new one by
    /// [`SecretCache::read_new`]; until then the value in use stays.
    pub fn adopt(&self, stores: Stores) {
        self.stores.store(Arc::new(stores));
        let stores = self.stores.load_full();
        self.lines.retain(|name| stores.has(name));
        self.pace.retain(|name| stores.has(name));
        self.refused.forget_all();
        for entry in self.live() {
            // A store that went takes its entries with it: `retain`.
            if let Ok(store) = stores.find(entry.reference()) {
                entry.rebind(store);
            }
        }
        self.came_or_went();
    }

    /// The entry of a secret that goes into a header or query ([`ValueRules::HeaderSafe`]). The same reference gives the
    /// same entry. A new one is read by [`SecretCache::read_new`], not here.
    ///
    /// A reference to a store that does not exist gives an entry that never has a value, and whose reference is not
    /// shown: it may be a pasted `user:password`.
    pub fn entry(&self, reference: &SecretRef) -> Arc<SecretEntry> {
        self.entry_under(reference, ValueRules::HeaderSafe)
    }

    /// The same for a secret whose bytes are judged by other rules. Each pair of reference and rules is an entry.
    pub fn entry_under(&self, reference: &SecretRef, rules: ValueRules) -> Arc<SecretEntry> {
        let key = (reference.clone(), rules);
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&key) {
            return Arc::clone(entry);
        }
        let store = self.stores.load().find(reference);
        let entry = Arc::new(SecretEntry::new(reference.clone(), rules, store, self.told()));
        entries.insert(key, Arc::clone(&entry));
        self.came_or_went();
        entry
    }

    /// The entry of a value that outgate makes itself, by `maker` where there is no entry of that reference yet. `reference`
    /// is one of [`SecretRef::made`], whose mark stands for everything that `maker` was made from.
    pub fn made(
        &self,
        reference: &SecretRef,
        maker: impl FnOnce() -> Arc<dyn SecretStore>,
    ) -> Arc<SecretEntry> {
        let key = (reference.clone(), ValueRules::HeaderSafe);
        if let Some(entry) = self.lock().get(&key) {
            return Arc::clone(entry);
        }
        // Not under the lock: the maker binds itself to secrets of this cache.
        let (maker, told) = (maker(), self.told());
        let inputs = maker.made_from();
        let made = || Arc::new(SecretEntry::new(reference.clone(), ValueRules::HeaderSafe, Ok(maker), told));
        let entry = Arc::clone(self.lock().entry(key).or_insert_with(made));
        inputs.iter().for_each(|input| input.leads_to(&entry));
        self.came_or_went();
        entry
    }

    /// How often a secret that is no tenant's had another value: who keeps something made of all of them looks here.
    pub fn changes(&self) -> u64 {
        self.wake.changes()
    }

    /// The last good values of all secrets but those of tenants, also where they have ended.
    pub fn versions(&self) -> Vec<Arc<SecretVersion>> {
        self.lock().values().filter_map(|entry| entry.latest()).collect()
    }

    /// Drops the entries that the newest policy does not use. Who still holds one keeps its value; it is read again only if
    /// that is asked for.
    pub fn retain(&self, used: &HashSet<SecretRef>) {
        let mut left = Vec::new();
        self.lock().retain(|(reference, _), entry| {
            let stays = used.contains(reference);
            if !stays {
                left.push(Arc::clone(entry));
            }
            stays
        });
        let asked_for = left.iter().filter(|entry| entry.is_made() && entry.leave());
        self.leaving().extend(asked_for.map(Arc::downgrade));
        self.came_or_went();
    }

    /// Says which secrets readiness waits for (`credential.required: true`); the others are from now on optional.
    pub fn require(&self, required: &HashSet<SecretRef>) {
        for entry in self.all() {
            entry.set_required(required.contains(entry.reference()));
        }
    }

    /// Reads every secret that was never tried (from its present store), all at once, each for at most `limit`. Afterwards each was tried: the
    /// failed ones say why, and [`SecretCache::run`] tries them again.
    pub async fn read_new(&self, limit: Duration) {
        let entries = self.all();
        join_all(entries.iter().filter(|entry| entry.is_new()).map(|entry| entry.first_read(limit))).await;
    }

    fn told(&self) -> entry::Told {
        entry::Told { wake: Arc::clone(&self.wake), pace: Arc::clone(&self.pace) }
    }

    fn came_or_went(&self) {
        self.wake.notify_one();
        self.members.notify_one();
        self.watched.notify_one();
    }

    /// Whether every secret was tried and every required one has a value.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.all().iter().all(|entry| entry.tried() && (!entry.required() || entry.current().is_ok()))
    }

    /// How every secret stands, in the order of references.
    #[must_use]
    pub fn status(&self) -> Vec<SecretStatus> {
        self.all().iter().map(|entry| entry.status()).collect()
    }

    fn all(&self) -> Vec<Arc<SecretEntry>> {
        self.lock().values().cloned().collect()
    }

    /// Those that are read by the task: every entry in use, and of those that left the ones that somebody waits for.
    fn read_by_task(&self) -> Vec<Arc<SecretEntry>> {
        let mut all = self.live();
        self.leaving().retain(|entry| {
            let Some(entry) = entry.upgrade() else { return false };
            if entry.is_wanted() {
                all.push(entry);
            }
            true
        });
        all
    }

    fn leaving(&self) -> MutexGuard<'_, Vec<Weak<SecretEntry>>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<SecretEntry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
