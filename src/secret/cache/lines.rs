//! Places of reads of tenants' secrets.
//!
//! Apps name tenants, so they can invent them. Each store has two lines: one for first reads, where invented names stand, and one
//! for reading again what has a value. So neither a store that is slow nor names that nobody knows hold up the tenants of another
//! store, or those that work. Nobody stands in a line but an entry that somebody holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::entry::SecretEntry;

/// Places of each line. An app that invents names makes a line of its own; it does not flood the store.
pub(super) const READS_AT_ONCE: usize = 10;

/// The lines of all stores, by the stores' names.
#[derive(Default)]
pub(super) struct Lines(Mutex<BTreeMap<String, Line>>);

struct Line {
    first: Arc<Semaphore>,
    again: Arc<Semaphore>,
}

impl Line {
    fn new() -> Self {
        let places = || Arc::new(Semaphore::new(READS_AT_ONCE));
        Self { first: places(), again: places() }
    }
}

/// There is no place now.
pub(super) struct Full;

impl Lines {
    /// A place for a read of `entry`; none where it needs none.
    pub(super) fn take(&self, entry: &SecretEntry) -> Result<Option<OwnedSemaphorePermit>, Full> {
        self.line(entry).map(|line| line.try_acquire_owned().map_err(|_| Full)).transpose()
    }

    /// Whether a read of `entry` could begin.
    pub(super) fn have_room(&self, entry: &SecretEntry) -> bool {
        self.line(entry).is_none_or(|line| line.available_permits() > 0)
    }

    /// Forgets stores that are not there any more. What is read keeps its place.
    pub(super) fn retain(&self, is_store: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| is_store(name));
    }

    /// Where `entry` stands. Tokens stand nowhere: they wait for the tenant's secrets.
    fn line(&self, entry: &SecretEntry) -> Option<Arc<Semaphore>> {
        if entry.template().is_none() || entry.is_made() {
            return None;
        }
        let mut lines = self.lock();
        let store = entry.reference().store();
        if !lines.contains_key(store) {
            lines.insert(store.to_owned(), Line::new());
        }
        let line = lines.get(store)?;
        Some(Arc::clone(if entry.latest().is_some() { &line.again } else { &line.first }))
    }

    /// Locked for moments, never over an await.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
