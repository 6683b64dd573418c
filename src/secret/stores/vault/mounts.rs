//! What is mounted where, as far as it was asked.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Server;
use crate::secret::error::StoreFault;
use crate::secret::stores::document::Document;

/// Mounts that are remembered; beyond that all are asked for again.
const MAX_MOUNTS: usize = 1024;
/// How long a mount is believed in at least, whatever is not found below it: names that nobody knows lead to no questions.
const DOUBT_AFTER: Duration = Duration::from_secs(60);

/// How what is mounted is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// KV of version 2.
    Versioned,
    /// KV of version 1.
    Plain,
    /// Something else, whose answers may be leases.
    Leased,
}

struct Mount {
    kind: Kind,
    /// Its path, as the server says it.
    path: Option<String>,
    asked: Instant,
}

/// The mounts of a store.
pub(super) struct Mounts {
    /// By their paths; by that of the whole secret where the server does not say the mount's. No mount lies below another one.
    known: Mutex<BTreeMap<String, Mount>>,
    /// Who asks; the others wait for the answer.
    turn: Semaphore,
}

impl Default for Mounts {
    fn default() -> Self {
        Self { known: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Mounts {
    /// The mount that `path` lies in, and its kind; asked where it is not known.
    pub(super) async fn of(&self, path: &str, server: &Server) -> Result<(Option<String>, Kind), StoreFault> {
        if let Some(known) = self.known(path) {
            return Ok(known);
        }
        let Ok(_turn) = self.turn.acquire().await else {
            return Err(StoreFault::Garbled("the store was closed"));
        };
        if let Some(known) = self.known(path) {
            return Ok(known);
        }
        let about = server.about(&format!("sys/internal/ui/mounts/{path}")).await?;
        let (mount, kind) = about.as_ref().map_or((None, Kind::Leased), described);
        let mut known = self.lock();
        if known.len() >= MAX_MOUNTS {
            known.clear();
        }
        let key = mount.clone().unwrap_or_else(|| path.to_owned());
        known.insert(key, Mount { kind, path: mount.clone(), asked: Instant::now() });
        Ok((mount, kind))
    }

    /// Nothing was found at `path`: its mount is asked for again, if that was not done a short while ago.
    pub(super) fn doubt(&self, path: &str) {
        let mut known = self.lock();
        let key = prefixes(path).find(|prefix| known.contains_key(*prefix)).map(str::to_owned);
        if let Some(key) = key
            && known.get(&key).is_some_and(|mount| mount.asked.elapsed() >= DOUBT_AFTER)
        {
            known.remove(&key);
        }
    }

    fn known(&self, path: &str) -> Option<(Option<String>, Kind)> {
        let known = self.lock();
        let mount = prefixes(path).find_map(|prefix| known.get(prefix))?;
        Some((mount.path.clone(), mount.kind))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Mount>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A path and those above it, the longest first.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(above, _)| above))
}

fn described(about: &Document) -> (Option<String>, Kind) {
    let mount = about.text(&["data", "path"]).map(|mount| mount.trim_matches('/').to_owned());
    let version = about.number(&["data", "options", "version"]);
    let kind = match (about.text(&["data", "type"]), version) {
        (Some("kv"), Some(2)) => Kind::Versioned,
        (Some("kv" | "generic"), _) => Kind::Plain,
        _ => Kind::Leased,
    };
    (mount.filter(|mount| !mount.is_empty()), kind)
}
