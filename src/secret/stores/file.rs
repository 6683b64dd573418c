//! `file:/run/secrets/stripe`: files, such as Docker's and Kubernetes' secrets and systemd's credentials.
//!
//! A relative path starts at the policy's directory. Symlinks are followed; what they lead to must be a regular file of
//! at most 1 MiB. Exactly one line end at the end (`\n` or `\r\n`) is dropped, since editors and `echo` put one there;
//! a second one is part of the value, and refused later. `#field` takes a field of a JSON file. The file is watched.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::field;
use crate::secret::error::SecretError;
use crate::secret::reference::SecretRef;
use crate::secret::{ReadFuture, SecretBytes, SecretStore, Source};

/// Bytes that a secret's file may have.
pub const MAX_FILE: usize = 1024 * 1024;

/// Files read at once. A read on a dead network mount cannot be stopped and keeps its thread: this bounds how many.
const MAX_READS: usize = 16;

/// Files under a directory of the system.
pub struct FileStore {
    base: PathBuf,
    reads: Arc<Semaphore>,
}

impl FileStore {
    /// A store whose relative paths start at `base`.
    #[must_use]
    pub fn new(base: &Path) -> Self {
        Self { base: base.to_owned(), reads: Arc::new(Semaphore::new(MAX_READS)) }
    }

    fn path(&self, reference: &SecretRef) -> PathBuf {
        self.base.join(reference.path())
    }

    /// The whole content of a file, for the sake of `reference`.
    ///
    /// # Errors
    /// It is not a regular file within bounds, or cannot be read.
    pub async fn read_path(&self, path: PathBuf, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
        let stopped =
            || SecretError::Unreadable { reference: reference.clone(), kind: io::ErrorKind::Interrupted };
        let permit = Arc::clone(&self.reads).acquire_owned().await.map_err(|_| stopped())?;
        let named = reference.clone();
        let read = tokio::task::spawn_blocking(move || {
            // Lives as long as the thread, not as long as the caller's patience.
            let _permit = permit;
            read_regular(&path, &named)
        });
        read.await.map_err(|_| stopped())?
    }
}

impl SecretStore for FileStore {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move {
            let bytes = self.read_path(self.path(reference), reference).await?;
            value(bytes, reference).map(Into::into)
        })
    }

    fn source(&self, reference: &SecretRef) -> Source {
        Source::File(self.path(reference))
    }
}

/// The field that is asked for, or all of it without its line end.
fn value(mut bytes: SecretBytes, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
    if reference.field().is_some() {
        return field::select(bytes, reference);
    }
    let kept = without_line_end(&bytes).len();
    bytes.truncate(kept);
    Ok(bytes)
}

/// Without exactly one line end, if there is one.
pub(super) fn without_line_end(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).unwrap_or(bytes)
}

fn read_regular(path: &Path, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
    let fail = |error: io::Error| SecretError::from_io(reference, &error);
    // Looked at before it is opened: to open a device can have an effect. And again after, for it may have been swapped.
    let looked_at = std::fs::metadata(path).map_err(fail)?;
    if !looked_at.is_file() {
        return Err(SecretError::NotAFile { reference: reference.clone() });
    }
    let file = open(path).map_err(fail)?;
    let opened = file.metadata().map_err(fail)?;
    if !opened.is_file() {
        return Err(SecretError::NotAFile { reference: reference.clone() });
    }
    let size = usize::try_from(opened.len()).unwrap_or(usize::MAX);
    read_bounded(file, size)
        .map_err(fail)?
        .ok_or_else(|| SecretError::TooLarge { reference: reference.clone(), limit: MAX_FILE })
}

/// Without NONBLOCK the open of a FIFO waits for its writer, perhaps for ever.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Reads to the end; `None` above the limit. Not `read_to_end`: when that grows its buffer, a copy stays unwiped.
fn read_bounded(mut file: File, size: usize) -> io::Result<Option<SecretBytes>> {
    let mut buffer = Zeroizing::new(vec![0; size.min(MAX_FILE) + 1]);
    let mut filled = 0;
    loop {
        if filled > MAX_FILE {
            return Ok(None);
        }
        if filled == buffer.len() {
            let mut larger = Zeroizing::new(vec![0; (filled * 2).min(MAX_FILE + 1)]);
            larger[..filled].copy_from_slice(&buffer);
            buffer = larger;
        }
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(Some(buffer))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn read(store: &FileStore, reference: &str) -> String {
        let reference: SecretRef = reference.parse().unwrap();
        match store.read(&reference).await {
            Ok(reading) => reading.bytes.escape_ascii().to_string(),
            Err(error) => {
                assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
                error.code().to_owned()
            }
        }
    }

    #[tokio::test]
    async fn exactly_one_line_end_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::new(directory.path());
        let table: &[(&[u8], &str)] = &[
            (b"CANARY", "CANARY"),
            (b"CANARY\n", "CANARY"),
            (b"CANARY\r\n", "CANARY"),
            (b"CANARY\n\n", "CANARY\\n"),
            (b"CANARY\r\n\r\n", "CANARY\\r\\n"),
            (b"CANARY\n\r\n", "CANARY\\n"),
            (b"CANARY\r", "CANARY\\r"),
            (b"\nCANARY", "\\nCANARY"),
            (b"\n", ""),
            (b"", ""),
        ];
        for (bytes, expected) in table {
            fs::write(directory.path().join("key"), bytes).unwrap();
            assert_eq!(&read(&store, "file:key").await, expected, "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn only_regular_files_within_bounds_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("folder/real"), "inside\n").unwrap();
        symlink("folder/real", at("link")).unwrap();
        symlink("loop", at("loop")).unwrap();
        fs::write(at("largest"), vec![b'x'; MAX_FILE]).unwrap();
        fs::write(at("larger"), vec![b'x'; MAX_FILE + 1]).unwrap();
        fs::write(at("app.json"), r#"{"stripe":{"key":"nested"},"CANARY":1}"#).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let store = FileStore::new(directory.path());
        let absolute = format!("file:{}", at("link").display());
        let largest = "x".repeat(MAX_FILE);
        let table = [
            ("file:link", "inside"),
            (absolute.as_str(), "inside"),
            ("file:largest", largest.as_str()),
            ("file:larger", "too_large"),
            ("file:missing", "not_found"),
            ("file:link/x", "not_found"),
            ("file:folder", "not_a_file"),
            ("file:fifo", "not_a_file"),
            ("file:/dev/zero", "not_a_file"),
            ("file:loop", "unreadable"),
            ("file:app.json#stripe.key", "nested"),
            ("file:app.json#nothing", "field_missing"),
            ("file:link#nothing", "not_json"),
        ];
        for (reference, expected) in table {
            let got = read(&store, reference).await;
            assert!(got == expected, "{reference}: {}", got.chars().take(40).collect::<String>());
        }
    }

    #[test]
    fn a_fifo_that_takes_the_files_place_after_the_look_does_not_hang() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        let file = open(&path).unwrap();
        assert!(!file.metadata().unwrap().is_file());
    }

    #[test]
    fn a_file_that_grows_while_it_is_read_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "0123456789").unwrap();
        let bytes = read_bounded(File::open(&path).unwrap(), 2).unwrap().unwrap();
        assert_eq!(bytes.as_slice(), b"0123456789");
    }
}
