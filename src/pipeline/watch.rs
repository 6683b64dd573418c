//! Watches the policy, and the files that are part of it, for changes: events of their directories, and a slow poll for
//! mounts that have none.
//!
//! The *directory* is watched, because editors and Kubernetes replace the file (a ConfigMap swaps its `..data` link), and a
//! watch on the file itself would die with it. Whether anything really changed is decided by the reload, by content.

use std::collections::BTreeSet;
use std::ffi::OsString;
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
        reloader.look().await;
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

fn start(reloader: &Reloader, changed: &Arc<Notify>) -> Option<(RecommendedWatcher, Vec<PathBuf>)> {
    let (changed, again) = (changed.clone(), changed);
    let names = names_of(reloader);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| concerns(&event, &names)) {
            changed.notify_one();
        }
    });
    let directories = directories_of(reloader);
    let watched = watcher.and_then(|mut watcher| {
        for directory in &directories {
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
/// the way to it.
fn concerns(event: &Event, names: &BTreeSet<OsString>) -> bool {
    let may_be_policy = |path: &PathBuf| {
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
fn directories_of(reloader: &Reloader) -> Vec<PathBuf> {
    let directory = |path: &Path| {
        if path.is_dir() {
            return path.to_path_buf();
        }
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            Some(_) | None => PathBuf::from("."),
        }
    };
    let current = reloader.current().load_full();
    let files = current.policy().files.iter().map(PathBuf::as_path);
    let mut directories = Vec::new();
    for path in std::iter::once(reloader.path()).chain(files) {
        let real = path.canonicalize().ok();
        for directory in std::iter::once(directory(path)).chain(real.as_deref().map(directory)) {
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
    }
    directories
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
            let event = Event::new(kind).add_path(path.into());
            assert_eq!(concerns(&event, &names), expected, "{kind:?} {path}");
        }
        assert!(concerns(&Event::new(EventKind::Other), &names), "events were lost");
    }
}
