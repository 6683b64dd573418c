//! The kernel's change events (inotify) for a set of directories, gathered until somebody takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode};
use notify::{ErrorKind, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Paths kept until they are taken; beyond that it is "look at everything".
const MAX_PATHS: usize = 1024;

/// What changed since the last look.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Changes {
    paths: BTreeSet<PathBuf>,
    /// Events were lost, or name no path.
    everything: bool,
}

impl Changes {
    /// Whether one of `names` may have changed.
    pub(super) fn touch(&self, names: &BTreeSet<PathBuf>) -> bool {
        self.everything || !self.paths.is_disjoint(names)
    }

    fn add(&mut self, event: notify::Event) {
        self.everything |= event.need_rescan() || event.paths.is_empty();
        self.paths.extend(event.paths);
        if self.paths.len() > MAX_PATHS {
            self.paths.clear();
            self.everything = true;
        }
    }
}

/// Where the watcher's thread leaves changes.
#[derive(Default)]
pub(super) struct Inbox {
    changes: Mutex<Changes>,
    arrived: Notify,
}

impl Inbox {
    /// Waits until there is something to take. May be dropped at any time: nothing is lost with it.
    pub(super) async fn arrived(&self) {
        while *self.lock() == Changes::default() {
            self.arrived.notified().await;
        }
    }

    pub(super) fn take(&self) -> Changes {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, event: notify::Result<notify::Event>) {
        {
            let mut changes = self.lock();
            match event {
                Ok(event) if is_change(&event.kind) => changes.add(event),
                // Our own reads open the files too: to look again on those would never end.
                Ok(_) => return,
                Err(_) => changes.everything = true,
            }
        }
        self.arrived.notify_one();
    }
}

fn is_change(kind: &EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}

/// The watched directories.
pub(super) struct Directories {
    watcher: RecommendedWatcher,
    /// With device and inode: a directory that was replaced under its name needs a new watch.
    watched: BTreeMap<PathBuf, Option<(u64, u64)>>,
}

impl Directories {
    /// Starts the watcher, which has a thread of its own.
    pub(super) fn start(inbox: &Arc<Inbox>) -> notify::Result<Self> {
        let inbox = Arc::clone(inbox);
        let watcher = notify::recommended_watcher(move |event| inbox.put(event))?;
        Ok(Self { watcher, watched: BTreeMap::new() })
    }

    /// Watches exactly `wanted`, and says whether all of it could be: not so for a directory that may not be listed. One
    /// that does not exist (any more) is no matter: its nearest parent is in the trail as well.
    ///
    /// # Errors
    /// A limit of the system is reached: then events cannot be relied on.
    pub(super) fn watch(&mut self, wanted: &BTreeSet<PathBuf>) -> notify::Result<bool> {
        let is_stale = |path: &Path, identity| !wanted.contains(path) || identity_of(path) != identity;
        let stale: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(path, id)| is_stale(path, **id))
            .map(|(path, _)| path.clone())
            .collect();
        for path in stale {
            self.watched.remove(&path);
            // Fails where the kernel dropped the watch together with the directory.
            let _ = self.watcher.unwatch(&path);
        }
        let mut all = true;
        for path in wanted {
            all &= self.watched.contains_key(path) || self.add(path)?;
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path) -> notify::Result<bool> {
        let identity = identity_of(path);
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(path.to_owned(), identity);
                Ok(true)
            }
            Err(error) => match &error.kind {
                ErrorKind::PathNotFound => Ok(true),
                ErrorKind::Io(io) if io.kind() == io::ErrorKind::NotFound => Ok(true),
                ErrorKind::Io(io) if io.kind() == io::ErrorKind::PermissionDenied => Ok(false),
                _ => Err(error),
            },
        }
    }
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use notify::Event;
    use notify::event::{CreateKind, Flag};

    use super::*;

    #[test]
    fn changes_are_gathered_and_bounded() {
        let inbox = Inbox::default();
        let event = |path: String| Ok(Event::new(EventKind::Create(CreateKind::File)).add_path(path.into()));
        let names = |name: &str| BTreeSet::from([PathBuf::from(name)]);
        inbox.put(event("/s/key".into()));
        let changes = inbox.take();
        assert!(changes.touch(&names("/s/key")) && !changes.touch(&names("/s/other")));
        assert_eq!(inbox.take(), Changes::default());

        inbox.put(Ok(
            Event::new(EventKind::Access(AccessKind::Open(AccessMode::Any))).add_path("/s/key".into())
        ));
        assert_eq!(inbox.take(), Changes::default(), "a read is no change");

        for number in 0..=MAX_PATHS {
            inbox.put(event(format!("/s/{number}")));
        }
        let changes = inbox.take();
        assert!(changes.everything && changes.paths.is_empty() && changes.touch(&names("/s/other")));

        inbox.put(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        assert!(inbox.take().everything);
    }
}
