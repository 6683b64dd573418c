//! Tenants' secrets that could not be read, remembered beyond their entries. An app that names more unknown tenants than there is
//! room for has each of them bound again and again; their store is asked again only when it is time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::Key;
use crate::secret::error::SecretError;

/// So many are remembered; the one that was read longest ago goes first.
const MOST: usize = 4096;

/// How the last read failed.
#[derive(Clone)]
pub(super) struct Refusal {
    /// When the next one is allowed.
    pub again: Instant,
    /// How often it failed in a row.
    pub failures: u32,
    /// Why.
    pub error: Arc<SecretError>,
}

/// Those of all tenants.
#[derive(Default)]
pub(super) struct Refused(Mutex<Table>);

#[derive(Default)]
struct Table {
    by_key: HashMap<Key, (u64, Refusal)>,
    /// Oldest first.
    by_age: BTreeMap<u64, Key>,
    count: u64,
}

impl Table {
    fn remove(&mut self, key: &Key) {
        if let Some((number, _)) = self.by_key.remove(key) {
            self.by_age.remove(&number);
        }
    }
}

impl Refused {
    /// A read failed, and there is no value.
    pub(super) fn note(&self, key: &Key, refusal: Refusal) {
        let mut table = self.lock();
        table.remove(key);
        if table.by_key.len() >= MOST
            && let Some((_, oldest)) = table.by_age.pop_first()
        {
            table.by_key.remove(&oldest);
        }
        table.count += 1;
        let number = table.count;
        table.by_age.insert(number, key.clone());
        table.by_key.insert(key.clone(), (number, refusal));
    }

    /// A read was good.
    pub(super) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Stores are other ones now, and may know more.
    pub(super) fn forget_all(&self) {
        *self.lock() = Table::default();
    }

    /// How the last read failed, if it did.
    pub(super) fn of(&self, key: &Key) -> Option<Refusal> {
        self.lock().by_key.get(key).map(|(_, refusal)| refusal.clone())
    }

    /// Locked for moments, never over an await.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::reference::SecretRef;
    use crate::secret::value::ValueRules;

    #[test]
    fn the_newest_few_thousand_are_remembered() {
        let refused = Refused::default();
        let key = |number: usize| -> Key {
            (format!("test:kv/t{number}").parse::<SecretRef>().unwrap(), ValueRules::HeaderSafe)
        };
        let note = |number| {
            let key = key(number);
            let error = Arc::new(SecretError::NotRead { reference: key.0.clone() });
            refused.note(&key, Refusal { again: Instant::now(), failures: 1, error });
        };
        (0..MOST).for_each(note);
        // One that failed again is new again.
        note(0);
        assert!(refused.of(&key(0)).is_some() && refused.of(&key(1)).is_some());
        note(MOST);
        let known = |number| refused.of(&key(number)).is_some();
        assert_eq!([0, 1, 2, MOST].map(known), [true, false, true, true]);
        refused.forget(&key(2));
        let sizes = {
            let table = refused.lock();
            (table.by_key.len(), table.by_age.len())
        };
        assert_eq!(sizes, (MOST - 1, MOST - 1));
        refused.forget_all();
        assert!(!known(0));
    }
}
