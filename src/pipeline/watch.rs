//! Watches the policy, and the files that are part of it, for changes: events of their directories, and a slow poll for
//! mounts that have none.
//!
//! The *directory* is watched, because editors and Kubernetes replace the file (a ConfigMap swaps its `..data` link), and a
//! watch on the file itself would die with it. Whether anything really changed is decided by the reload, by content.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::reload::Reloader;

/// Events of one change come close together.
const DEBOUNCE: Duration = Duration::from_millis(250);
/// How often the content is looked at without any event.
const POLL: Duration = Duration::from_secs(30);

/// Reloads on every change until cancelled.
pub async fn run(reloader: Arc<Reloader>, cancel: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let mut watched = start(&reloader, &changed);
    let mut names = names_of(&reloader);
    loop {
        let poll = Instant::now() + POLL;
        tokio::select! {
            () = changed.notified() => sleep(DEBOUNCE).await,
            () = sleep_until(poll) => {}
            () = cancel.cancelled() => return,
        }
        let refused = reloader.refuses();
        reloader.look().await;
        if !refused && reloader.refuses() {
            // What was changed meanwhile may have been passed over.
            changed.notify_one();
        }
        // The way to the files may have changed with them, and which files there are.
        let now = names_of(&reloader);
        if names != now
            || watched.as_ref().is_none_or(|(_, directories)| *directories != directories_of(&reloader))
        {
            watched = start(&reloader, &changed);
            names = now;
        }
    }
}

/// Directories, with device and inode: one that was replaced under its name needs a new watch.
type Directories = BTreeMap<PathBuf, Option<(u64, u64)>>;

fn start(reloader: &Arc<Reloader>, changed: &Arc<Notify>) -> Option<(RecommendedWatcher, Directories)> {
    let (changed, again) = (changed.clone(), changed);
    let names = names_of(reloader);
    let refuses = reloader.clone();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Which files a policy is made of that was refused is not known.
        let names = (!refuses.refuses()).then_some(&names);
        if concerns(&event, names) {
            changed.notify_one();
        }
    });
    let directories = directories_of(reloader);
    let watched = watcher.and_then(|mut watcher| {
        for directory in directories.keys() {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    match watched {
        Ok(watcher) => {
            // The policy was read before the watch began; what was changed in between has no event.
            again.notify_one();
            Some((watcher, directories))
        }
        Err(error) => {
            tracing::warn!(%error, "the policy's directory cannot be watched; it is looked at every {} s", POLL.as_secs());
            None
        }
    }
}

/// Whether the policy may have changed with an event. What is written into another file of its directory is no change of it: an
/// access log there would have the policy read four times a second. What comes, goes or gets another name may be a link on
/// the way to it. Without `names` any file may be part of it. After an error of the watcher nobody knows what changed.
fn concerns(event: &notify::Result<Event>, names: Option<&BTreeSet<OsString>>) -> bool {
    let Ok(event) = event else { return true };
    let may_be_policy = |path: &PathBuf| {
        let Some(names) = names else { return true };
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        is_yaml || path.file_name().is_none_or(|name| names.contains(name))
    };
    match event.kind {
        // Reading the file is an event too.
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => {
            event.paths.is_empty() || event.paths.iter().any(may_be_policy)
        }
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(ModifyKind::Any | ModifyKind::Name(_) | ModifyKind::Other)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// The names of the policy and of the files that it is made of, as they are called and as they really are.
fn names_of(reloader: &Reloader) -> BTreeSet<OsString> {
    let current = reloader.current().load_full();
    let files = current.policy().files.iter().map(PathBuf::as_path);
    let paths = std::iter::once(reloader.path()).chain(files);
    let called = paths.flat_map(|path| [Some(path.to_path_buf()), path.canonicalize().ok()]).flatten();
    called.filter_map(|path| path.file_name().map(OsString::from)).collect()
}

/// The directories in which the policy and the files that it is made of stand, and those in which they really stand.
fn directories_of(reloader: &Reloader) -> Directories {
    let current = reloader.current().load_full();
    let files = current.policy().files.iter().map(PathBuf::as_path);
    directories_around(std::iter::once(reloader.path()).chain(files))
}

fn directories_around<'a>(paths: impl Iterator<Item = &'a Path>) -> Directories {
    let directory = |path: &Path| {
        if path.is_dir() {
            return path.to_path_buf();
        }
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            Some(_) | None => PathBuf::from("."),
        }
    };
    let called =
        paths.flat_map(|path| [Some(directory(path)), path.canonicalize().ok().as_deref().map(directory)]);
    called.flatten().map(|directory| (directory.clone(), identity_of(&directory))).collect()
}

fn identity_of(directory: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessKind, CreateKind, DataChange, MetadataKind, RemoveKind, RenameMode};

    use super::*;

    #[test]
    fn what_others_write_beside_the_policy_is_no_change_of_it() {
        let names = BTreeSet::from([OsString::from("proxy.yaml"), OsString::from("answer.json")]);
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let table = [
            (written, "/d/proxy.yaml", true),
            (written, "./answer.json", true),
            // One more part of a directory of policies.
            (written, "/d/more.yml", true),
            (written, "/d/access.log", false),
            (EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)), "/d/access.log", false),
            (EventKind::Access(AccessKind::Any), "/d/proxy.yaml", false),
            // A ConfigMap's link, an editor's way to save, a log that is rotated.
            (EventKind::Modify(ModifyKind::Name(RenameMode::To)), "/d/..data", true),
            (EventKind::Create(CreateKind::File), "/d/4913", true),
            (EventKind::Remove(RemoveKind::File), "/d/access.log.1", true),
        ];
        for (kind, path, expected) in table {
            let event = Ok(Event::new(kind).add_path(path.into()));
            assert_eq!(concerns(&event, Some(&names)), expected, "{kind:?} {path}");
            let is_read = matches!(kind, EventKind::Access(_));
            assert_eq!(concerns(&event, None), !is_read, "after a refusal: {kind:?} {path}");
        }
        assert!(concerns(&Ok(Event::new(EventKind::Other)), Some(&names)), "events were lost");
        let broken = notify::Error::generic("the queue is full");
        assert!(concerns(&Err(broken), Some(&names)), "what changed is not known");
    }

    #[test]
    fn a_directory_that_was_replaced_under_its_name_is_another() {
        let place = tempfile::tempdir().unwrap();
        let (directory, policy) = (place.path().join("d"), place.path().join("d/proxy.yaml"));
        let look = || directories_around([&*policy, &place.path().join("d/answer.json")].into_iter());
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(&policy, "version: 1").unwrap();
        let first = look();
        assert!(first.contains_key(&directory) && first.values().all(Option::is_some), "{first:?}");
        std::fs::write(&policy, "version: 2").unwrap();
        assert_eq!(look(), first);
        // The old one is still there, so that its inode is in use.
        std::fs::rename(&directory, place.path().join("old")).unwrap();
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(&policy, "version: 1").unwrap();
        assert_ne!(look(), first);
    }
}
