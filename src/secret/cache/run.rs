//! The one task that keeps secrets fresh: it listens for changes of files, polls them slowly, reads again what failed or
//! is due, and has stores renew their logins. Without files it sleeps and has no watcher.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::trail::Trail;
use super::watch::{Changes, Directories, Inbox};
use super::{SecretCache, SecretEntry};
use crate::secret::SecretStore;
use crate::secret::reference::SecretRef;

/// An update is many events: this long they are gathered.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// For mounts that send no events (NFS, some FUSE and overlay mounts).
const SLOW_POLL: Duration = Duration::from_secs(30);
/// Where events cannot be had at all.
const FAST_POLL: Duration = Duration::from_secs(2);

impl SecretCache {
    /// Keeps the secrets fresh until `cancel`. To be run once, as a task of its own.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        cancel.run_until_cancelled(self.keep_fresh()).await;
    }

    /// Loops side by side: a dead mount that holds up the look at files holds up no token and no lease.
    async fn keep_fresh(&self) {
        tokio::join!(self.keep_due(), self.keep_files(), self.keep_watches());
    }

    /// Reads what is due. What was begun runs beside the rest: a store that hangs holds up nobody else.
    async fn keep_due(&self) {
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = until(self.next_due()) => running.extend(self.take_due()),
                Some(()) = running.next() => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Reads the files that change.
    async fn keep_files(&self) {
        let mut files = Files::default();
        // New files are read once more when they are first looked at: they may have changed between their first read
        // and the start of the watch.
        self.round(&mut files, &Changes::default()).await;
        loop {
            tokio::select! {
                changes = files.changed() => self.round(&mut files, &changes).await,
                () = self.members.notified() => {
                    if files.differ(&self.file_entries()) {
                        self.round(&mut files, &Changes::default()).await;
                    }
                }
            }
        }
    }

    /// Listens to the stores that tell of changes, as long as their secrets are the same.
    async fn keep_watches(&self) {
        let changed = |reference: &SecretRef| self.is_due_now(reference);
        loop {
            let stores = self.watchable();
            let watches = stores.iter().filter_map(|(store, references)| store.watch(references, &changed));
            let mut all = std::pin::pin!(join_all(watches.collect::<Vec<_>>()));
            loop {
                tokio::select! {
                    _ = &mut all => std::future::pending::<()>().await,
                    () = self.watched.notified() => {
                        if !same(&stores, &self.watchable()) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// The policy's secrets that are polled, by store. Those of tenants come and go, and are left to polling.
    fn watchable(&self) -> Vec<Watchable> {
        let mut all: Vec<Watchable> = Vec::new();
        for entry in self.all() {
            let Some(store) = entry.polled() else { continue };
            let reference = entry.reference().clone();
            match all.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &store)) {
                Some((_, references)) => references.push(reference),
                None => all.push((store, vec![reference])),
            }
        }
        all
    }

    fn is_due_now(&self, reference: &SecretRef) {
        self.all().iter().filter(|entry| entry.reference() == reference).for_each(|entry| entry.make_due());
        self.wake.notify_one();
    }

    async fn round(&self, files: &mut Files, changes: &Changes) {
        let entries = self.file_entries();
        let changed = files.look(&entries, changes).await;
        join_all(changed.iter().map(|entry| entry.refresh())).await;
    }

    /// The reads and renewals that are due, each of them given out once.
    fn take_due(&self) -> Vec<BoxFuture<'static, ()>> {
        let now = Instant::now();
        let stores = self.stores.load_full();
        let mut due = stores.upkeep_due(now);
        let at = |entry: Arc<SecretEntry>| entry.due_at().filter(|at| *at <= now).map(|at| (at, entry));
        let mut entries: Vec<_> = self.read_by_task().into_iter().filter_map(at).collect();
        // First come, first served: not the order of the names.
        entries.sort_by_key(|(at, _)| *at);
        for (_, entry) in entries {
            // Without a place it stays due: the end of a read leads to the next look, and until then nothing holds it but who
            // named its tenant.
            let Ok(place) = self.lines.take(&entry) else { continue };
            if !entry.take_due(now) {
                continue;
            }
            due.push(Box::pin(async move {
                let _place = place;
                if entry.is_waited_for() {
                    return entry.read_wanted().await;
                }
                entry.refresh().await;
            }));
        }
        due
    }

    fn next_due(&self) -> Option<Instant> {
        let (now, entries) = (Instant::now(), self.read_by_task());
        let at =
            |entry: &Arc<SecretEntry>| entry.due_at().filter(|at| *at > now || self.lines.have_room(entry));
        entries.iter().filter_map(at).chain(self.stores.load().next_upkeep()).min()
    }

    fn file_entries(&self) -> Vec<(PathBuf, Arc<SecretEntry>)> {
        let with_path = |entry: Arc<SecretEntry>| entry.file().map(|path| (path, entry));
        self.all().into_iter().filter_map(with_path).collect()
    }
}

/// A store, and what is read from it.
type Watchable = (Arc<dyn SecretStore>, Vec<SecretRef>);

fn same(one: &[Watchable], other: &[Watchable]) -> bool {
    let equal = |(one, other): (&Watchable, &Watchable)| Arc::ptr_eq(&one.0, &other.0) && one.1 == other.1;
    one.len() == other.len() && one.iter().zip(other).all(equal)
}

/// What is known of the files.
#[derive(Default)]
struct Files {
    inbox: Arc<Inbox>,
    watcher: Watcher,
    trails: Trails,
    next_poll: Option<Instant>,
}

type Trails = BTreeMap<PathBuf, Trail>;

impl Files {
    /// Waits for events and gathers those that follow, or for the next poll.
    async fn changed(&self) -> Changes {
        tokio::select! {
            () = self.inbox.arrived() => sleep(DEBOUNCE).await,
            () = until(self.next_poll) => {}
        }
        self.inbox.take()
    }

    /// Whether other files are to be looked at than last time.
    fn differ(&self, entries: &[(PathBuf, Arc<SecretEntry>)]) -> bool {
        let paths: BTreeSet<&PathBuf> = entries.iter().map(|(path, _)| path).collect();
        !paths.into_iter().eq(self.trails.keys())
    }

    /// Looks at all files, watches their directories, and says which have to be read.
    async fn look(
        &mut self,
        entries: &[(PathBuf, Arc<SecretEntry>)],
        changes: &Changes,
    ) -> Vec<Arc<SecretEntry>> {
        let paths: BTreeSet<PathBuf> = entries.iter().map(|(path, _)| path.clone()).collect();
        let (inbox, watcher) = (Arc::clone(&self.inbox), std::mem::take(&mut self.watcher));
        // Off the runtime's threads: a dead network mount blocks a look for as long as it is dead. Then files are not
        // watched meanwhile (there is one look at a time), and the values in use go on.
        let look = tokio::task::spawn_blocking(move || {
            let trails: Trails = paths.into_iter().map(|path| (path.clone(), Trail::of(&path))).collect();
            let watcher = watcher.follow(&trails, &inbox);
            (trails, watcher)
        });
        // It fails only by a bug of ours: then polling goes on.
        let (now, watcher) = look.await.unwrap_or_else(|_| (Trails::default(), Watcher::Unavailable));
        self.next_poll = watcher.poll().map(|wait| Instant::now() + wait);
        self.watcher = watcher;
        let before = std::mem::replace(&mut self.trails, now);
        let is_changed = |path: &PathBuf| match (before.get(path), self.trails.get(path)) {
            (Some(before), Some(now)) => before != now || changes.touch(&before.names),
            (_, now) => now.is_some(),
        };
        entries.iter().filter(|(path, _)| is_changed(path)).map(|(_, entry)| Arc::clone(entry)).collect()
    }
}

/// Where events come from.
#[derive(Default)]
enum Watcher {
    /// There are no files.
    #[default]
    Idle,
    Running {
        directories: Directories,
        /// Whether every directory of interest sends events.
        all: bool,
    },
    /// Said once in the log, and not tried again as long as there are files: a limit that is reached stays so.
    Unavailable,
}

impl Watcher {
    /// Watches the directories of `trails`. Asks the file system, so it may block.
    fn follow(self, trails: &Trails, inbox: &Arc<Inbox>) -> Self {
        if trails.is_empty() {
            return Self::Idle;
        }
        let directories = match self {
            Self::Unavailable => return self,
            Self::Idle => Directories::start(inbox),
            Self::Running { directories, .. } => Ok(directories),
        };
        let wanted = trails.values().flat_map(Trail::directories).map(PathBuf::from).collect();
        let watched = directories.and_then(|mut directories| {
            let all = directories.watch(&wanted)?;
            Ok(Self::Running { directories, all })
        });
        watched.unwrap_or_else(|error| {
            tracing::warn!(target: "outgate::secret", %error, "no change events for files of secrets: they are looked at every 2 s");
            Self::Unavailable
        })
    }

    /// How long until the files are looked at without an event.
    fn poll(&self) -> Option<Duration> {
        match self {
            Self::Idle => None,
            Self::Running { all: true, .. } => Some(SLOW_POLL),
            Self::Running { all: false, .. } | Self::Unavailable => Some(FAST_POLL),
        }
    }
}

/// Until then, or for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Stores;

    #[tokio::test]
    async fn a_look_names_the_files_that_differ_from_the_last_look() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "1").unwrap();
        std::fs::write(directory.path().join("b"), "1").unwrap();
        let cache = SecretCache::new(Stores::built_in(directory.path()));
        for name in ["file:a", "file:b", "file:missing", "env:NAME"] {
            cache.entry(&name.parse().unwrap());
        }
        let entries = cache.file_entries();
        // As where the system gives no events.
        let mut files = Files { watcher: Watcher::Unavailable, ..Files::default() };
        let mut look = async || {
            let changed = files.look(&entries, &Changes::default()).await;
            let wait = files.next_poll.map(|at| at.saturating_duration_since(Instant::now()));
            assert!(wait.is_some_and(|wait| wait <= FAST_POLL));
            changed.iter().map(|entry| entry.reference().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(look().await, ["file:a", "file:b", "file:missing"]);
        assert_eq!(look().await, [""; 0]);
        std::fs::write(directory.path().join("b"), "22").unwrap();
        std::fs::write(directory.path().join("missing"), "1").unwrap();
        assert_eq!(look().await, ["file:b", "file:missing"]);
        std::fs::remove_file(directory.path().join("a")).unwrap();
        assert_eq!(look().await, ["file:a"]);
    }

    #[tokio::test]
    async fn without_files_there_is_no_watcher_and_no_poll() {
        let cache = SecretCache::new(Stores::built_in(std::path::Path::new("/")));
        cache.entry(&"env:NAME".parse().unwrap());
        let mut files = Files::default();
        cache.round(&mut files, &Changes::default()).await;
        assert!(matches!(files.watcher, Watcher::Idle) && files.next_poll.is_none());
    }
}
