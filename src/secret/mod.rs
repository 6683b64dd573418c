//! Secrets: where they come from, how long they live, and how they stay unseen.
//!
//! A policy never holds a secret, only a reference to one ([`SecretRef`], `env:STRIPE_KEY`). The store that the reference
//! names ([`SecretStore`]) reads the bytes, [`SecretValue`] holds them, and [`SecretCache`] keeps them across reloads and
//! reads them again when they change. A request only ever loads a pointer: it never waits for a store while a good value
//! is held.
//!
//! Nothing here can print a value: [`SecretValue`] has no `Debug`, `Display`, `Clone` or `Serialize`, and
//! [`SecretError`] has no place for one.
//!
//! # To add a store
//!
//! 1. `stores/<store>.rs`: its `Config` (as typed in the policy), and a type that implements [`SecretStore`]: one
//!    read by reference, with its own bound on size; `stores/file.rs` is the pattern, `stores/field.rs` picks `#field`.
//! 2. `config.rs`: give its variant of [`StoreConfig`] that `Config`, and an arm in each `match`.
//!
//! A store behind HTTP asks through [`http::HttpClient`], which brings deadline, retries, address rules and the bound on
//! how often a failing store is asked; the store says of each answer whether it was good ([`http::Verdict`]). Control characters, timeout, retry, single flight and status are the cache's business and come by themselves.

pub mod aws;
pub mod cache;
pub mod config;
pub mod error;
pub mod form;
pub mod http;
pub mod key_text;
pub mod reference;
pub mod stores;
pub mod value;

#[cfg(test)]
pub(crate) mod fake;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use zeroize::Zeroizing;

pub use cache::{
    RefreshOutcome, SecretCache, SecretEntry, SecretState, SecretStatus, SecretVersion, TenantSecrets,
};
pub use config::{StoreConfig, StoreEnv, StoreMistake};
pub use error::{SecretError, TokenFault};
pub use reference::SecretRef;
pub use value::{SecretValue, ValueRules};

/// The bytes of one read, wiped when dropped. They are not yet checked: the cache does that for every store.
pub type SecretBytes = Zeroizing<Vec<u8>>;

/// The future of one read. Boxed, because stores stand side by side in one table; a read is rare, so the box is cheap.
pub type ReadFuture<'a> = BoxFuture<'a, Result<Reading, SecretError>>;

/// What one read brought.
pub struct Reading {
    /// The value.
    pub bytes: SecretBytes,
    /// When the value itself ends, such as with its lease: from then on it is not used, whatever else fails.
    pub expires: Option<Instant>,
    /// When to read again, where the store knows better than its [`Source`].
    pub again: Option<Instant>,
}

impl From<SecretBytes> for Reading {
    fn from(bytes: SecretBytes) -> Self {
        Self { bytes, expires: None, again: None }
    }
}

/// A place that secrets are read from.
pub trait SecretStore: Send + Sync {
    /// Reads the value that `reference` names, its `#field` and `@version` included.
    ///
    /// Called at start and when a value may have changed, never per request, and never twice at once for one secret. The
    /// caller bounds the time; the store bounds the size. The future may be dropped at any await.
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a>;

    /// How a change of the value can be noticed.
    fn source(&self, reference: &SecretRef) -> Source;

    /// How long one read may take, its retries included.
    fn patience(&self) -> Duration {
        cache::READ_TIMEOUT
    }

    /// A provider rejected the value. The read that follows must not be answered from what the store itself keeps.
    fn rejected(&self, _reference: &SecretRef) {}

    /// What it can be written through, where it can.
    fn ledger(&self) -> Option<&dyn Ledger> {
        None
    }

    /// Tells of changes of these secrets as they come, where the store can, until the future is dropped. What `changed` is called
    /// with is read again; none too many calls are made, and a secret that is not watched is polled all the same.
    fn watch<'a>(
        &'a self,
        _references: &'a [SecretRef],
        _changed: &'a (dyn Fn(&SecretRef) + Send + Sync),
    ) -> Option<BoxFuture<'a, ()>> {
        None
    }

    /// Whether a read uses up what no other read can use, such as a refresh token that rotates.
    fn uses_up(&self) -> bool {
        false
    }

    /// The secrets that it makes its value from, where it does: a change of one of them leads to a new value.
    fn made_from(&self) -> Vec<Arc<SecretEntry>> {
        Vec::new()
    }

    /// Whether it makes its value from those alone and asks nobody, so that making it anew tells nothing new.
    fn makes_alone(&self) -> bool {
        false
    }

    /// When [`SecretStore::upkeep`] wants to be called next, where the store keeps a login of its own alive.
    fn upkeep_at(&self) -> Option<Instant> {
        None
    }

    /// Renews the store's own login. Never called twice at once.
    fn upkeep(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// The stores of the newest policy, live.
pub type LiveStores = Arc<ArcSwap<Stores>>;

/// A store that outgate can also write to. For what outgate itself learned and must not lose; a secret of its own each,
/// which holds nothing else.
pub trait Ledger: Send + Sync {
    /// What stands at a path.
    fn look<'a>(&'a self, reference: &'a SecretRef) -> BoxFuture<'a, Result<LedgerEntry, SecretError>>;

    /// Writes, if the version that stands there is still `version`; none where it is not.
    fn put<'a>(
        &'a self,
        reference: &'a SecretRef,
        text: &'a str,
        version: u64,
    ) -> BoxFuture<'a, Result<Option<Written>, SecretError>>;
}

/// What stands at a path of a [`Ledger`].
pub struct LedgerEntry {
    /// The text; none where nothing was written yet.
    pub text: Option<Zeroizing<String>>,
    /// Its version; 0 where nothing was ever written.
    pub version: u64,
    /// The time by the clock of who keeps it, where that was told.
    pub now: Option<SystemTime>,
}

/// Something was written to a [`Ledger`].
pub struct Written {
    /// The time by the clock of who keeps it, where that was told.
    pub now: Option<SystemTime>,
}

/// How a change of a secret can be noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The value cannot change while the process lives: it is read once.
    Fixed,
    /// The value is in this file, which is watched.
    File(PathBuf),
    /// It cannot: the value is read again this often, give or take a tenth.
    Polled(Duration),
    /// outgate makes it itself, such as a token: it is made anew before its end and after a rejection, and a request that
    /// finds none waits for it. It is only read by [`SecretCache::run`], so that no request that goes away interrupts it.
    Made,
}

/// The stores of a policy by name; `env` and `file` are always among them.
#[derive(Clone)]
pub struct Stores {
    by_name: BTreeMap<String, Arc<Kept>>,
}

/// A store with what it was built from.
struct Kept {
    store: Arc<dyn SecretStore>,
    built_from: Option<(StoreConfig, Option<Arc<[u8]>>)>,
    /// Its upkeep runs.
    tended: AtomicBool,
}

impl Kept {
    fn new(store: Arc<dyn SecretStore>, built_from: Option<(StoreConfig, Option<Arc<[u8]>>)>) -> Arc<Self> {
        Arc::new(Self { store, built_from, tended: AtomicBool::new(false) })
    }
}

impl Stores {
    /// `env` and `file` alone. Relative `file:` paths start at `policy_directory`.
    #[must_use]
    pub fn built_in(policy_directory: &Path) -> Self {
        let env: Arc<dyn SecretStore> = Arc::new(stores::env::EnvStore);
        let file: Arc<dyn SecretStore> = Arc::new(stores::file::FileStore::new(policy_directory));
        let of = |name: &str, store| (name.to_owned(), Kept::new(store, None));
        Self { by_name: BTreeMap::from([of(reference::ENV, env), of(reference::FILE, file)]) }
    }

    /// Builds the stores of the policy's `secrets:` section. What stands in `before` with the same settings is taken over
    /// as it is, with its login.
    ///
    /// # Errors
    /// [`SecretError::StoreName`] for a name that no reference could name, or that is `env` or `file`;
    /// [`SecretError::StoreSetup`] for settings that cannot be used.
    pub fn build(
        configs: &BTreeMap<String, StoreConfig>,
        env: &StoreEnv,
        before: Option<&Self>,
    ) -> Result<Self, SecretError> {
        let mut built = before.map_or_else(|| Self::built_in(&env.directory), Self::without_configured);
        for (name, config) in configs {
            if !reference::is_store_name(name) || built.by_name.contains_key(name) {
                return Err(SecretError::StoreName);
            }
            let setup = |what| SecretError::StoreSetup { name: name.clone(), what };
            let from = Some((config.clone(), config.read_ca(&env.directory).map_err(setup)?));
            let old = before.and_then(|before| before.by_name.get(name));
            let kept = match old.filter(|old| old.built_from == from) {
                Some(old) => Arc::clone(old),
                None => {
                    let ca = from.as_ref().and_then(|(_, ca)| ca.clone());
                    Kept::new(config.build(name, ca, env).map_err(setup)?, from)
                }
            };
            built.by_name.insert(name.clone(), kept);
        }
        Ok(built)
    }

    fn without_configured(&self) -> Self {
        let built_in = self.by_name.iter().filter(|(_, kept)| kept.built_from.is_none());
        Self { by_name: built_in.map(|(name, kept)| (name.clone(), Arc::clone(kept))).collect() }
    }

    /// The store of `reference`; a policy is compiled only if every reference has one.
    ///
    /// # Errors
    /// [`SecretError::UnknownStore`]. It lists the stores there are, and does not repeat the reference: `user:password`
    /// reads like a reference to a store called `user`.
    pub fn find(&self, reference: &SecretRef) -> Result<Arc<dyn SecretStore>, SecretError> {
        self.by_name.get(reference.store()).map(|kept| Arc::clone(&kept.store)).ok_or_else(|| {
            let known = self.by_name.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            SecretError::UnknownStore { known }
        })
    }

    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// When the next store wants its upkeep.
    fn next_upkeep(&self) -> Option<Instant> {
        let idle = self.by_name.values().filter(|kept| !kept.tended.load(Ordering::Acquire));
        idle.filter_map(|kept| kept.store.upkeep_at()).min()
    }

    /// The upkeeps that are due; each of them is given out again only when it is done.
    fn upkeep_due(&self, now: Instant) -> Vec<BoxFuture<'static, ()>> {
        let due = |kept: &&Arc<Kept>| kept.store.upkeep_at().is_some_and(|at| at <= now);
        let begun = |kept: &&Arc<Kept>| !kept.tended.swap(true, Ordering::AcqRel);
        let tend = |kept: &Arc<Kept>| -> BoxFuture<'static, ()> {
            let kept = Arc::clone(kept);
            Box::pin(async move {
                kept.store.upkeep().await;
                kept.tended.store(false, Ordering::Release);
            })
        };
        self.by_name.values().filter(due).filter(begun).map(tend).collect()
    }

    /// The same stores and one more under `name`; for tests.
    #[cfg(test)]
    pub(crate) fn with(mut self, name: &str, store: Arc<dyn SecretStore>) -> Self {
        self.by_name.insert(name.to_owned(), Kept::new(store, None));
        self
    }
}

#[cfg(test)]
mod tests;
