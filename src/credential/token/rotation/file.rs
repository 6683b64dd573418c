//! A grant that is kept in a file: for one pod, and for several processes of one host.
//!
//! Replaced whole: written beside it, synced, renamed over it, and the directory synced; readable by outgate's user alone.
//! A lock file beside it is held for the moment of a write, so the directory must be writable.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use crate::secret::TokenFault;

/// Bytes that it may have.
const MOST: u64 = 256 * 1024;
/// How often the lock is tried, and how long after each other: a write takes a few milliseconds.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(20);

/// A file that keeps a grant.
pub struct FileShelf(PathBuf);

impl FileShelf {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) async fn look(&self) -> Result<Option<Zeroizing<String>>, TokenFault> {
        let path = self.0.clone();
        let read = tokio::task::spawn_blocking(move || look(&path)).await;
        match read {
            Ok(Ok(text)) => Ok(text),
            _ => Err(TokenFault::NotKept("its file cannot be read")),
        }
    }

    pub(super) async fn put(
        &self,
        before: Option<Zeroizing<String>>,
        text: Zeroizing<String>,
    ) -> Result<bool, TokenFault> {
        let path = self.0.clone();
        let written = tokio::task::spawn_blocking(move || put(&path, before.as_ref(), &text)).await;
        match written {
            Ok(Ok(done)) => Ok(done),
            _ => Err(TokenFault::NotKept("its file, or the directory of it, cannot be written")),
        }
    }
}

fn look(path: &Path) -> io::Result<Option<Zeroizing<String>>> {
    let mut text = Zeroizing::new(String::new());
    match File::open(path) {
        Ok(file) => file.take(MOST).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(text))
}

fn put(path: &Path, before: Option<&Zeroizing<String>>, text: &str) -> io::Result<bool> {
    let mine = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
    let lock = mine().open(beside(path, "lock")?)?;
    hold(&lock)?;
    if look(path)?.as_ref() != before {
        return Ok(false);
    }
    let new = beside(path, "new")?;
    // One that was left behind half-written may have other permissions.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = mine().create_new(true).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    Ok(true)
}

/// Takes the lock, or gives up. It is let go when the file is closed, also by a process that is killed.
fn hold(lock: &File) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => std::thread::sleep(LOCK_WAIT),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// `.<name>.<what>` in the same directory.
fn beside(path: &Path, what: &str) -> io::Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(path.with_file_name(format!(".{name}.{what}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_replaced_whole_and_only_by_who_saw_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grant");
        let text = |text: &str| Zeroizing::new(text.to_owned());
        assert!(look(&path).unwrap().is_none());
        assert!(!put(&path, Some(&text("other")), "one").unwrap());
        std::fs::write(directory.path().join(".grant.new"), "half").unwrap();
        assert!(put(&path, None, "one").unwrap());
        assert!(!put(&path, None, "two").unwrap());
        assert!(put(&path, Some(&text("one")), "two").unwrap());
        assert_eq!(look(&path).unwrap().as_deref(), Some(&"two".to_owned()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(names.len() == 2 && names.contains(&".grant.lock".to_owned()), "{names:?}");
    }

    #[test]
    fn of_many_that_write_at_once_one_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grant");
        let done: Vec<bool> = std::thread::scope(|scope| {
            let path = &path;
            let all: Vec<_> =
                (0..8).map(|n| scope.spawn(move || put(path, None, &n.to_string()).unwrap())).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(done.iter().filter(|done| **done).count(), 1, "{done:?}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_told() {
        assert!(put(Path::new("/proc/outgate/grant"), None, "x").is_err());
    }
}
