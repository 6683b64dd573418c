//! Watches the policy for changes: events of its directory, and a slow poll for mounts that have none.
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
    let mut watched = start(reloader.path(), &changed);
    loop {
        let poll = Instant::now() + POLL;
        tokio::select! {
            () = changed.notified() => sleep(DEBOUNCE).await,
            () = sleep_until(poll) => {}
            () = cancel.cancelled() => return,
        }
        reloader.reload().await;
        // The way to the file may have changed with it.
        if watched.as_ref().is_none_or(|(_, directories)| *directories != directories_of(reloader.path())) {
            watched = start(reloader.path(), &changed);
        }
    }
}

fn start(path: &Path, changed: &Arc<Notify>) -> Option<(RecommendedWatcher, Vec<PathBuf>)> {
    let (changed, again) = (changed.clone(), changed);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is an event too.
        if event.is_ok_and(|event| !matches!(event.kind, notify::EventKind::Access(_))) {
            changed.notify_one();
        }
    });
    let directories = directories_of(path);
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

/// The directory in which the policy stands, and the one in which it really stands.
fn directories_of(path: &Path) -> Vec<PathBuf> {
    let directory = |path: &Path| {
        if path.is_dir() {
            return path.to_path_buf();
        }
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            Some(_) | None => PathBuf::from("."),
        }
    };
    let mut directories = vec![directory(path)];
    if let Ok(real) = path.canonicalize() {
        let real = directory(&real);
        if !directories.contains(&real) {
            directories.push(real);
        }
    }
    directories
}
