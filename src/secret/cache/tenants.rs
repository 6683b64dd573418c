//! Secrets of tenants: references with `{tenant}` in them, with a name in its place.
//!
//! They are not in the policy, so no policy keeps them: whoever bound them to a tenant does, and with the last holder they go.
//! A request that finds no value waits for the first read, as with tokens, because nobody could read it before the tenant was
//! named. One that failed a short while ago is not asked for again: that is how an unknown tenant is remembered.
//!
//! It is remembered for a while after it has gone, too. Names that no store knows are held back when they become many
//! (`pace`).
//!
//! Files of tenants are not watched: a thousand of them would be a thousand watches. They are read again every
//! [`FILE_POLL`], and after a rejection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::entry::SecretEntry;
use super::{Key, SecretCache, SecretState, SecretStatus};
use crate::secret::SecretStore;
use crate::secret::error::SecretError;
use crate::secret::reference::SecretRef;
use crate::secret::value::ValueRules;

/// How often files of tenants are read again.
pub(super) const FILE_POLL: Duration = Duration::from_secs(30);

/// Failures of tenants' reads that are told in a minute: apps name tenants, and names that nobody knows are no news.
const TOLD: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// How many failures were told of late.
#[derive(Default)]
pub(super) struct TenantLog(Mutex<(Option<Instant>, u32)>);

impl TenantLog {
    /// Whether one more may be told; the last one says that it is the last for now.
    pub(super) fn may_tell(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, told) = &mut *state;
        if since.is_none_or(|since| now.saturating_duration_since(since) >= MINUTE) {
            (*since, *told) = (Some(now), 0);
        }
        *told = told.saturating_add(1);
        if *told == TOLD + 1 {
            tracing::warn!(target: "outgate::secret", "more secrets of tenants are not read; the next are told in a minute, and counted in /status");
        }
        *told <= TOLD
    }
}

/// What `/status` says of the tenants' secrets of one reference. Tenants are counted and not named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TenantSecrets {
    /// The reference as written, with `{tenant}`; of a token, its name.
    pub reference: String,
    /// Tenants in use.
    pub tenants: usize,
    /// Those without a value: unknown ones, and those whose read fails or is under way.
    pub missing: usize,
    /// Those whose last read failed and that go on with the value of one before.
    pub stale: usize,
    /// Reads that failed since those tenants were first named.
    pub failed_reads: u64,
    /// How many tenants' last read failed, by code.
    pub last_error_codes: BTreeMap<&'static str, usize>,
    /// When the last good read of any of them ended (RFC 3339).
    pub last_good_read: Option<String>,
    /// Seconds until the first of the values ends.
    pub first_ends_in_seconds: Option<u64>,
    /// Seconds until the next read of any of them that nobody asks for.
    pub next_read_in_seconds: Option<u64>,
}

impl TenantSecrets {
    fn none_of(reference: String) -> Self {
        Self {
            reference,
            tenants: 0,
            missing: 0,
            stale: 0,
            failed_reads: 0,
            last_error_codes: BTreeMap::new(),
            last_good_read: None,
            first_ends_in_seconds: None,
            next_read_in_seconds: None,
        }
    }

    fn add(&mut self, one: SecretStatus) {
        self.tenants += 1;
        self.missing += usize::from(one.version.is_none());
        self.stale += usize::from(one.state == SecretState::Stale);
        self.failed_reads += one.failed_reads;
        if let Some(code) = one.last_error_code {
            *self.last_error_codes.entry(code).or_default() += 1;
        }
        // Texts of one form and zone: their order is that of time.
        self.last_good_read = self.last_good_read.take().max(one.last_good_read);
        let first = |so_far: Option<u64>, one: Option<u64>| so_far.into_iter().chain(one).min();
        self.first_ends_in_seconds = first(self.first_ends_in_seconds, one.ends_in_seconds);
        self.next_read_in_seconds = first(self.next_read_in_seconds, one.next_read_in_seconds);
    }
}

impl SecretCache {
    /// The entry of a tenant's secret. The same reference and tenant give the same entry, as long as somebody holds it.
    ///
    /// # Errors
    /// The name does not fit ([`SecretRef::for_tenant`]).
    pub fn tenant_entry(
        &self,
        template: &SecretRef,
        rules: ValueRules,
        tenant: &str,
    ) -> Result<Arc<SecretEntry>, SecretError> {
        let reference = template.for_tenant(tenant)?;
        let key = (reference, rules);
        if let Some(entry) = self.of_tenants().get(&key).and_then(Weak::upgrade) {
            return Ok(entry);
        }
        let store = self.stores.load().find(&key.0);
        Ok(self.hold(key, template, store))
    }

    /// The entry of a value that outgate makes itself for a tenant, by `maker` where there is none; see [`SecretCache::made`].
    pub fn tenant_made(
        &self,
        template: &SecretRef,
        tenant: &str,
        maker: impl FnOnce() -> Arc<dyn SecretStore>,
    ) -> Arc<SecretEntry> {
        let key = (template.made_for_tenant(tenant), ValueRules::HeaderSafe);
        if let Some(entry) = self.of_tenants().get(&key).and_then(Weak::upgrade) {
            return entry;
        }
        // Not under the lock: the maker binds itself to secrets of this cache.
        let maker = maker();
        let inputs = maker.made_from();
        let entry = self.hold(key, template, Ok(maker));
        inputs.iter().for_each(|input| input.leads_to(&entry));
        entry
    }

    /// The tenants' secrets in use, by reference.
    #[must_use]
    pub fn tenant_secrets(&self) -> Vec<TenantSecrets> {
        let mut all: BTreeMap<String, TenantSecrets> = BTreeMap::new();
        for entry in self.held() {
            let reference = entry.template().map(ToString::to_string).unwrap_or_default();
            let sum = all.entry(reference.clone()).or_insert_with(|| TenantSecrets::none_of(reference));
            sum.add(entry.status());
        }
        all.into_values().collect()
    }

    /// Every entry there is: the policy's and those of tenants.
    pub(super) fn live(&self) -> Vec<Arc<SecretEntry>> {
        let mut all = self.all();
        all.extend(self.held());
        all
    }

    fn held(&self) -> Vec<Arc<SecretEntry>> {
        let mut held = Vec::new();
        // Those that nobody holds any more go at the same time: this is asked for after each read.
        self.of_tenants().retain(|_, entry| entry.upgrade().map(|entry| held.push(entry)).is_some());
        held
    }

    fn hold(
        &self,
        key: Key,
        template: &SecretRef,
        store: Result<Arc<dyn SecretStore>, SecretError>,
    ) -> Arc<SecretEntry> {
        let mut entries = self.of_tenants();
        // Another may have been faster.
        if let Some(entry) = entries.get(&key).and_then(Weak::upgrade) {
            return entry;
        }
        let (reference, template) = (key.0.clone(), template.clone());
        let (log, refused) = (Arc::clone(&self.tenant_log), Arc::clone(&self.refused));
        let told = self.told();
        let entry = Arc::new(SecretEntry::of_tenant(reference, template, key.1, store, told, (log, refused)));
        entries.insert(key, Arc::downgrade(&entry));
        entry
    }

    fn of_tenants(&self) -> MutexGuard<'_, BTreeMap<Key, Weak<SecretEntry>>> {
        self.of_tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
