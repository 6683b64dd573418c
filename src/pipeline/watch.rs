//! Watches the policy, and the files that are part of it, for changes: events of their directories, and a slow poll for
//! mounts that have none.
//!
//! The *directory* is watched, because editors and Kubernetes replace the file (a ConfigMap swaps its `..data` link), and a
//! watch on the file itself would die with it. Whether anything really changed is decided by the reload, by content.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
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
    loop {
        let poll = Instant::now() + POLL;
        tokio::select! {
            () = changed.notified() => sleep(DEBOUNCE).await,
            () = sleep_until(poll) => {}
            () = cancel.cancelled() => return,
        }
        reloader.look().await;
        // The way to the files may have changed with them, and which files there are.
        if watched.as_ref().is_none_or(|(_, directories)| *directories != directories_of(&reloader)) {
            watched = start(&reloader, &changed);
        }
    }
}

fn start(reloader: &Reloader, changed: &Arc<Notify>) -> Option<(RecommendedWatcher, Vec<PathBuf>)> {
    let (changed, again) = (changed.clone(), changed);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is an event too.
        if event.is_ok_and(|event| !matches!(event.kind, notify::EventKind::Access(_))) {
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
