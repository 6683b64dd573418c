//! Reading a policy: one file, or a directory whose `*.yaml` and `*.yml` are merged in the byte order of their names.
//!
//! Only regular files are read (after following symbolic links, which is how Kubernetes mounts a ConfigMap): a FIFO would
//! block the start, and `/dev/zero` would fill the memory. The size is asked first and counted while reading, because a
//! file may grow in between. Of a directory, names that begin with a dot are left out (editors' backups, a ConfigMap's
//! `..data`), and subdirectories are not searched.
//!
//! Across files the maps at the top (`providers`, `secrets`, `defaults` ...) come together; a key in one of them that two
//! files define is a mistake, and so is anything else at the top that two files define: no order of names shall decide
//! which of two policies for one provider counts.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::decode::salvage;
use super::diagnostic::{Diagnostic, Diagnostics, Rejection, render_place};
use super::schema::PolicyConfig;
use super::setting::Setting;
use super::tree::{Entry, Node, Place, PolicyPath, SourceId, Sources, Value};
use super::yaml;

/// The most bytes one file may have: 4 MiB.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// The most bytes all files of a directory may have together: 16 MiB.
pub const MAX_TOTAL_BYTES: u64 = 4 * MAX_FILE_BYTES;
/// The most files a directory may have.
pub const MAX_FILES: usize = 1000;

/// A policy as it was read, before it is decoded.
#[derive(Clone, Debug)]
pub struct LoadedPolicy {
    /// The whole, merged; a map.
    pub tree: Node,
    /// The names of the files, for messages. Presets are added to it later.
    pub sources: Sources,
    /// 16 hexadecimal digits (FNV-1a, 64 bit) over the bytes read: the same for the same content, wherever it lies. It
    /// tells a change, and is no protection against a made collision.
    pub hash: String,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
    /// What is wrong with the text and hides nothing of it: a key that stands twice, an anchor. A policy that has any does not
    /// compile; what else is wrong with it is told beside them.
    pub mistakes: Diagnostics,
}

/// Where a policy is read from, and what the deployment sets beside it.
#[derive(Clone, Debug)]
pub struct PolicyOrigin {
    /// The file, or the directory.
    pub path: PathBuf,
    /// What takes the place of what stands there, in this order.
    pub settings: Vec<Setting>,
}

impl From<PathBuf> for PolicyOrigin {
    fn from(path: PathBuf) -> Self {
        Self { path, settings: Vec::new() }
    }
}

impl From<&Path> for PolicyOrigin {
    fn from(path: &Path) -> Self {
        path.to_path_buf().into()
    }
}

impl From<&PathBuf> for PolicyOrigin {
    fn from(path: &PathBuf) -> Self {
        path.clone().into()
    }
}

/// Reads a policy. Blocks on the file system.
///
/// # Errors
/// A file that cannot be read to its end, with what is wrong with the others as far as that can be told without it.
pub fn load(origin: impl Into<PolicyOrigin>) -> Result<LoadedPolicy, Rejection> {
    let origin = origin.into();
    let mut reading = Reading::default();
    let files = reading.list(&origin.path);
    for file in &files {
        reading.file(file);
    }
    reading.finish(files, &origin.settings)
}

#[derive(Default)]
struct Reading {
    sources: Sources,
    diagnostics: Diagnostics,
    trees: Vec<Node>,
    hash: Fnv1a,
    total: u64,
}

impl Reading {
    /// The files to read: the one, or those of the directory.
    fn list(&mut self, path: &Path) -> Vec<PathBuf> {
        if !path.is_dir() {
            return vec![path.to_owned()];
        }
        match policy_files(path) {
            Ok(files) if files.is_empty() => self.refuse(path, "no `*.yaml` file in this directory"),
            Ok(files) if files.len() > MAX_FILES => {
                self.refuse(path, format!("more than {MAX_FILES} files in this directory"));
            }
            Ok(files) => return files,
            Err(error) => self.refuse(path, format!("cannot be read: {}", error.kind())),
        }
        Vec::new()
    }

    fn refuse(&mut self, path: &Path, message: impl Into<String>) {
        let source = self.sources.add(path.display().to_string());
        self.diagnostics.report(Place::whole(source), PolicyPath::root(), message);
    }

    fn file(&mut self, path: &Path) {
        let source = self.sources.add(path.display().to_string());
        let read = read_regular(path).and_then(|bytes| {
            self.total += bytes.len() as u64;
            if self.total > MAX_TOTAL_BYTES { Err(FileFault::TotalSize) } else { Ok(bytes) }
        });
        match read {
            Err(fault) => {
                self.diagnostics.report(Place::whole(source), PolicyPath::root(), fault.to_string());
            }
            Ok(bytes) => self.text(&bytes, source),
        }
    }

    fn text(&mut self, bytes: &[u8], source: SourceId) {
        self.hash.add(&(bytes.len() as u64).to_le_bytes());
        self.hash.add(bytes);
        let text = match decode_text(bytes, source) {
            Ok(text) => text,
            Err(mistake) => return self.diagnostics.push(*mistake),
        };
        let Some(tree) = yaml::parse(text, source, &mut self.diagnostics) else { return };
        match tree.value {
            Value::Mapping(_) => self.trees.push(tree),
            _ => self.diagnostics.push(
                Diagnostic::new(Some(tree.place), PolicyPath::root(), "a policy is a map of keys")
                    .hint("begin with `version: 1`"),
            ),
        }
    }

    fn finish(mut self, files: Vec<PathBuf>, settings: &[Setting]) -> Result<LoadedPolicy, Rejection> {
        let complete = self.trees.len() == files.len();
        let mut whole: Option<Node> = None;
        for tree in std::mem::take(&mut self.trees) {
            match &mut whole {
                None => whole = Some(tree),
                Some(whole) => join(whole, tree, &self.sources, &mut self.diagnostics),
            }
        }
        if let Some(tree) = &mut whole {
            for setting in settings {
                setting.apply(tree, &mut self.sources, &mut self.diagnostics);
            }
        }
        match whole {
            Some(tree) if complete => Ok(LoadedPolicy {
                tree,
                sources: self.sources,
                hash: self.hash.hex(),
                files,
                mistakes: self.diagnostics,
            }),
            rest => {
                rest.iter().for_each(|rest| self.look_at(rest));
                Err(Rejection::new(self.diagnostics, self.sources))
            }
        }
    }

    /// Tells what is wrong with the keys of the files that could be read. What is missing may stand in the others.
    fn look_at(&mut self, rest: &Node) {
        let mut found = Diagnostics::new();
        let _: Option<PolicyConfig> = salvage(rest, &PolicyPath::root(), &mut found);
        for mistake in found.into_sorted().into_iter().filter(|mistake| !mistake.path.is_root()) {
            self.diagnostics.push(mistake);
        }
    }
}

/// Adds a further file's top-level keys.
fn join(whole: &mut Node, more: Node, sources: &Sources, diagnostics: &mut Diagnostics) {
    let (Value::Mapping(entries), Value::Mapping(added)) = (&mut whole.value, more.value) else { return };
    for entry in added {
        match entries.iter_mut().find(|known| known.key == entry.key) {
            None => entries.push(entry),
            Some(known) => join_key(known, entry, sources, diagnostics),
        }
    }
}

fn join_key(known: &mut Entry, entry: Entry, sources: &Sources, diagnostics: &mut Diagnostics) {
    let path = PolicyPath::root().key(known.key.clone());
    let (Value::Mapping(inner), Value::Mapping(added)) = (&mut known.value.value, entry.value.value) else {
        return twice(known.key_place, entry.key_place, path, sources, diagnostics);
    };
    let places: std::collections::HashMap<String, Place> =
        inner.iter().map(|entry| (entry.key.clone(), entry.key_place)).collect();
    for entry in added {
        match places.get(&entry.key) {
            None => inner.push(entry),
            Some(first) => twice(*first, entry.key_place, path.key(entry.key), sources, diagnostics),
        }
    }
}

fn twice(first: Place, second: Place, path: PolicyPath, sources: &Sources, diagnostics: &mut Diagnostics) {
    let message = format!("defined twice, first at {}", render_place(first, sources));
    diagnostics.report(second, path, message);
}

/// Why a file is not read. The text names no content.
#[derive(Debug, thiserror::Error)]
enum FileFault {
    #[error("cannot be read: {0}")]
    Io(io::ErrorKind),
    #[error("a directory stands where a file was expected")]
    Directory,
    #[error("not a regular file")]
    NotRegular,
    #[error("the file is larger than 4 MiB")]
    Size,
    #[error("the files of this directory are larger than 16 MiB together")]
    TotalSize,
}

fn policy_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        if is_policy_name(&name) && files.len() <= MAX_FILES {
            files.push(directory.join(name));
        }
    }
    // `OsString` compares bytes on Unix; a locale's order would differ between machines.
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(files)
}

fn is_policy_name(name: &OsStr) -> bool {
    let ends = Path::new(name).extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    ends && !name.as_encoded_bytes().starts_with(b".")
}

fn read_regular(path: &Path) -> Result<Vec<u8>, FileFault> {
    // Asked before opening, because opening some devices has effects, and again of what was opened.
    check_kind(&std::fs::metadata(path).map_err(|error| FileFault::Io(error.kind()))?)?;
    let file = open_without_waiting(path).map_err(|error| FileFault::Io(error.kind()))?;
    check_kind(&file.metadata().map_err(|error| FileFault::Io(error.kind()))?)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| FileFault::Io(error.kind()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES { Err(FileFault::Size) } else { Ok(bytes) }
}

/// `O_NONBLOCK`, so that a FIFO put in the file's place between the two looks cannot hold the reload.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn check_kind(metadata: &std::fs::Metadata) -> Result<(), FileFault> {
    if metadata.is_dir() {
        Err(FileFault::Directory)
    } else if !metadata.is_file() {
        Err(FileFault::NotRegular)
    } else if metadata.len() > MAX_FILE_BYTES {
        Err(FileFault::Size)
    } else {
        Ok(())
    }
}

/// UTF-8, with or without its byte-order mark.
fn decode_text(bytes: &[u8], source: SourceId) -> Result<&str, Box<Diagnostic>> {
    let mistake = |place, message: &str| {
        Box::new(Diagnostic::new(Some(place), PolicyPath::root(), message).hint(SAVE_AS))
    };
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(mistake(Place::whole(source), "the file is UTF-16"));
    }
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let text = std::str::from_utf8(valid).unwrap_or_default();
        mistake(yaml::place_of_offset(text, text.len(), source), "the file is not UTF-8")
    })
}

const SAVE_AS: &str = "save it as UTF-8";

/// Fowler, Noll and Vo's hash, 64 bit: the same on every machine and in every release, which std's hashers do not promise.
pub(super) struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(super) fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    /// What `load` says of a path, without the directory's own name.
    fn told(path: &Path, base: &Path) -> String {
        let text = match load(path) {
            Ok(loaded) => Rejection::new(loaded.mistakes, loaded.sources),
            Err(rejection) => rejection,
        };
        let text = text.to_string();
        text.replace(&format!("{}/", base.display()), "").replace(&base.display().to_string(), "DIR")
    }

    #[test]
    fn one_file() {
        let base = directory(&[("proxy.yaml", b"\xef\xbb\xbfversion: 1\nproviders: {}\n")]);
        let path = base.path().join("proxy.yaml");
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.files, std::slice::from_ref(&path));
        assert_eq!(loaded.sources.name(loaded.tree.place.source), path.display().to_string());
        assert_eq!(loaded.tree.entry("version").unwrap().key_place.column, 1);
        assert_eq!(loaded.hash.len(), 16);
    }

    #[test]
    fn the_hash_is_of_the_content() {
        let base = directory(&[("a.yaml", b"a: 1\n"), ("b.yaml", b"a: 1\n"), ("c.yaml", b"a: 2\n")]);
        let hash = |name: &str| load(base.path().join(name)).unwrap().hash;
        assert_eq!(hash("a.yaml"), hash("b.yaml"));
        assert_ne!(hash("a.yaml"), hash("c.yaml"));
        let mut fnv = Fnv1a::default();
        fnv.add(b"foobar");
        assert_eq!(fnv.hex(), "85944171f73967e8"); // the vector of the FNV page
    }

    #[test]
    fn a_directory_is_merged_in_the_order_of_names() {
        let base = directory(&[
            ("20-b.yaml", b"providers: {b: {hosts: [b.test]}}\n"),
            ("10-a.yml", b"version: 1\nproviders: {a: {hosts: [a.test]}}\nsecrets: {x: {}}\n"),
            ("Z.yaml", b"unmatched: deny\nruntime: {workers: 2}\n"),
            ("z.yaml", b"runtime: {drain: 5s}\n"),
            (".hidden.yaml", b"version: 9\n"),
            ("notes.txt", b"not: [yaml"),
        ]);
        fs::create_dir(base.path().join("more")).unwrap();
        let loaded = load(base.path()).unwrap();
        let names: Vec<_> =
            loaded.files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["10-a.yml", "20-b.yaml", "Z.yaml", "z.yaml"]);
        let keys = |node: &Node| node.entries().iter().map(|entry| entry.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&loaded.tree), ["version", "providers", "secrets", "unmatched", "runtime"]);
        assert_eq!(keys(loaded.tree.get("providers").unwrap()), ["a", "b"]);
        assert_eq!(keys(loaded.tree.get("runtime").unwrap()), ["workers", "drain"]);
        let place = loaded.tree.get("providers").unwrap().get("b").unwrap().place;
        assert!(loaded.sources.name(place.source).ends_with("20-b.yaml"));
    }

    #[test]
    fn what_two_files_define_is_told_with_both_places() {
        let base = directory(&[
            ("a.yaml", b"unmatched: deny\nproviders:\n  s: {}\nlisteners: []\nsecrets: {v: {}}\n"),
            ("b.yaml", b"unmatched: deny\nproviders:\n\n  s: {}\nlisteners: []\nsecrets: {v: {}}\n"),
        ]);
        assert_eq!(
            told(base.path(), base.path()),
            "b.yaml:1:1: unmatched: defined twice, first at a.yaml:1:1\n\
             b.yaml:4:3: providers.s: defined twice, first at a.yaml:3:3\n\
             b.yaml:5:1: listeners: defined twice, first at a.yaml:4:1\n\
             b.yaml:6:11: secrets.v: defined twice, first at a.yaml:5:11"
        );
    }

    #[test]
    fn mistakes_of_all_files_are_told_at_once() {
        let base = directory(&[("a.yaml", b"a: &x 1\n"), ("b.yaml", b"[1]\n"), ("c.yaml", b"")]);
        let text = told(base.path(), base.path());
        for part in
            ["a.yaml:1:4: ", "b.yaml:1:1: a policy is a map of keys", "c.yaml: the file holds nothing"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_by_place() {
        for (content, expected) in [
            (&b"\xff\xfea\0:\0"[..], "p.yaml: the file is UTF-16\n"),
            (b"\xfe\xff\0a\0:", "p.yaml: the file is UTF-16\n"),
            (b"a: 1\nb: \xc3\xbc\xe9\n", "p.yaml:2:5: the file is not UTF-8\n"),
            (b"a\0:\0 \0", "p.yaml:1:2: a control character"),
        ] {
            let base = directory(&[("p.yaml", content)]);
            let text = told(&base.path().join("p.yaml"), base.path());
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let base = directory(&[("good.txt", b"a: 1\n"), ("big.yaml", &vec![b' '; 4 * 1024 * 1024 + 1])]);
        let at = |name: &str| base.path().join(name);
        let _socket = UnixListener::bind(at("socket.yaml")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo.yaml"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        symlink("/dev/zero", at("zero.yaml")).unwrap();
        symlink("nowhere", at("broken.yaml")).unwrap();
        symlink("good.txt", at("link.yaml")).unwrap();
        for (name, expected) in [
            ("big.yaml", "big.yaml: the file is larger than 4 MiB"),
            ("socket.yaml", "socket.yaml: not a regular file"),
            ("fifo.yaml", "fifo.yaml: not a regular file"),
            ("zero.yaml", "zero.yaml: not a regular file"),
            ("broken.yaml", "broken.yaml: cannot be read: entity not found"),
            ("missing.yaml", "missing.yaml: cannot be read: entity not found"),
        ] {
            assert_eq!(told(&at(name), base.path()), expected);
        }
        assert!(load(at("link.yaml")).is_ok());
        assert!(open_without_waiting(&at("fifo.yaml")).is_ok(), "a FIFO must not block");
        assert!(load(Path::new("/dev/zero")).is_err());
    }

    #[test]
    fn a_directory_without_policy_is_refused() {
        let base = directory(&[("a.txt", b"a: 1\n")]);
        assert_eq!(told(base.path(), base.path()), "DIR: no `*.yaml` file in this directory");
        fs::create_dir(base.path().join("sub.yaml")).unwrap();
        assert_eq!(told(base.path(), base.path()), "sub.yaml: a directory stands where a file was expected");
    }
}
