//! What has to be looked at to notice that a file changed: the file, and every symlink on the way to it.
//!
//! Kubernetes mounts `key -> ..data/key` and `..data -> ..2026_01_01/`, and changes a secret by renaming a new link over
//! `..data`: nothing happens to `key` itself, and the old file is never written. So the trail of `/etc/s/key` is
//! `/etc/s/key`, `/etc/s/..data` and `/etc/s/..2026_01_01/key`, and their directories are what gets watched.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Symlinks followed for one path, as the kernel does (ELOOP).
const MAX_LINKS: usize = 40;

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A look at one path. All of it is system calls that may block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trail {
    /// The symlinks on the way and the file at the end (or the first name that is missing), each in a real directory.
    pub(super) names: BTreeSet<PathBuf>,
    /// Of the file at the end; none if there is none.
    pub(super) fingerprint: Option<Fingerprint>,
}

impl Trail {
    pub(super) fn of(path: &Path) -> Self {
        Self { names: names(path), fingerprint: std::fs::metadata(path).ok().as_ref().map(Fingerprint::of) }
    }

    /// The directories in which those names stand.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.names.iter().filter_map(|name| name.parent())
    }
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Walks `path` one component at a time, as the kernel would.
fn names(path: &Path) -> BTreeSet<PathBuf> {
    let mut names = BTreeSet::new();
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut at = PathBuf::from("/");
    let mut rest = parts(&path);
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        if let Ok(target) = std::fs::read_link(&next) {
            links += 1;
            names.insert(next);
            if links > MAX_LINKS {
                break;
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            let mut further = parts(&target);
            further.append(&mut rest);
            rest = further;
        } else if rest.is_empty() || !next.is_dir() {
            names.insert(next);
            break;
        } else {
            at = next;
        }
    }
    names
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_trail_has_every_link_and_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("s/..one")).unwrap();
        fs::create_dir(root.join("plain")).unwrap();
        fs::write(root.join("s/..one/key"), "1").unwrap();
        symlink("..one", root.join("s/..data")).unwrap();
        symlink("..data/key", root.join("s/key")).unwrap();
        symlink(root.join("s"), root.join("absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("../s/key", root.join("plain/up")).unwrap();
        // path, names of the trail, whether there is a file
        let table: &[(&str, &[&str], bool)] = &[
            ("s/..one/key", &["s/..one/key"], true),
            ("s/key", &["s/key", "s/..data", "s/..one/key"], true),
            ("absolute/key", &["absolute", "s/key", "s/..data", "s/..one/key"], true),
            ("plain/up", &["plain/up", "s/key", "s/..data", "s/..one/key"], true),
            ("s/missing", &["s/missing"], false),
            ("missing/deep/key", &["missing"], false),
            ("loop", &["loop"], false),
            ("s/..one/key/below", &["s/..one/key"], false),
        ];
        for (path, names, exists) in table {
            let trail = Trail::of(&root.join(path));
            assert_eq!(trail.names, names.iter().map(|name| root.join(name)).collect(), "{path}");
            assert_eq!(trail.fingerprint.is_some(), *exists, "{path}");
        }
    }

    #[test]
    fn a_swap_and_a_write_change_the_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "a").unwrap();
        let first = Trail::of(&path);
        assert_eq!(first, Trail::of(&path));
        fs::write(&path, "ab").unwrap();
        let written = Trail::of(&path);
        assert_ne!(first, written);
        fs::write(directory.path().join("new"), "cd").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert_ne!(written, Trail::of(&path));
    }
}
