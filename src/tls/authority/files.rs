//! The CA's two files: reading them with suspicion, and making them so that neither a crash nor a second
//! process leaves a key and a certificate that do not belong together.
//!
//! The key is the truth, and is written first; the certificate is made for the key that lies there, and takes
//! its name from it. So a start that finds only the key, or a certificate of ours for another key, just makes
//! the certificate. Each file is written under another name, synced and renamed, and all writing happens
//! under a file lock.
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use zeroize::Zeroizing;

use super::{Authority, CaKey, is_outgate_ca, profile};
use crate::tls::error::TlsError;
use crate::tls::pem;

/// No key or chain of certificates is longer.
const MAX_FILE: u64 = 256 * 1024;
/// How long another process may take to make the pair.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// The places inside the folder.
struct Places {
    directory: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// Reads the pair of a folder, or makes it.
pub(super) fn load_or_create(directory: &Path) -> Result<Authority, TlsError> {
    let places = Places {
        directory: directory.to_owned(),
        certificate: directory.join("ca.pem"),
        key: directory.join("ca.key"),
    };
    // The usual start takes no lock and writes nothing: the folder may be read-only.
    if let Some(authority) = load_pair(&places)? {
        return Ok(authority);
    }
    make_directory(directory)?;
    let _lock = lock(directory)?;
    match load_pair(&places)? {
        Some(made_meanwhile) => Ok(made_meanwhile),
        None => complete_pair(&places),
    }
}

/// The pair, or nothing when a part of it is missing, half-written, or of ours but for another key.
fn load_pair(places: &Places) -> Result<Option<Authority>, TlsError> {
    let Some(key) = whole(read_key(&places.key))? else { return Ok(None) };
    let Some(certificate) = whole(read_certificate(&places.certificate).map(Zeroizing::new))? else {
        return Ok(None);
    };
    let key = CaKey::parse(&key, &places.key)?;
    if for_another_key(&certificate, &key) {
        return Ok(None);
    }
    Authority::from_parts(&certificate, key, &places.certificate).map(Some)
}

/// Makes what is missing; only under the lock.
fn complete_pair(places: &Places) -> Result<Authority, TlsError> {
    let key = match whole(read_key(&places.key))? {
        Some(text) => CaKey::parse(&text, &places.key)?,
        None => {
            refuse_foreign_certificate(places)?;
            let key = CaKey::generate()?;
            publish(&places.key, key.pem().as_bytes(), 0o600)?;
            key
        }
    };
    let certificate = profile::authority(&key, SystemTime::now())?.self_signed(&key)?;
    let mut text = String::new();
    pem::push_certificate(&mut text, certificate.der());
    publish(&places.certificate, text.as_bytes(), 0o644)?;
    // Once, for both names. Should a power cut lose one of them, the next start makes what is missing.
    let sync = File::open(&places.directory).and_then(|directory| directory.sync_all());
    sync.map_err(|error| TlsError::file("write", &places.directory, error))?;
    Authority::from_parts(text.as_bytes(), key, &places.certificate)
}

/// A certificate that outgate did not make, without its key, is a user's mistake, and nothing to write over.
fn refuse_foreign_certificate(places: &Places) -> Result<(), TlsError> {
    let Some(text) = whole(read_certificate(&places.certificate).map(Zeroizing::new))? else { return Ok(()) };
    match pem::certificates(&text, "ca.pem") {
        Ok(found) if !is_outgate_ca(&found[0]) => Err(TlsError::UnusableAuthority {
            path: places.certificate.clone(),
            reason: "its key (ca.key) is missing",
        }),
        _ => Ok(()),
    }
}

fn for_another_key(certificate: &[u8], key: &CaKey) -> bool {
    use rcgen::PublicKeyData as _;
    pem::certificates(certificate, "ca.pem").is_ok_and(|found| {
        let own_key =
            super::parse(&found[0]).map(|c| c.public_key().subject_public_key.data == key.der_bytes());
        is_outgate_ca(&found[0]) && own_key == Some(false)
    })
}

/// Nothing for a file that is missing, or that has no END line: what a crash leaves.
fn whole(read: Result<Zeroizing<Vec<u8>>, TlsError>) -> Result<Option<Zeroizing<Vec<u8>>>, TlsError> {
    match read {
        Ok(text) => Ok(text.windows(9).any(|window| window == b"-----END ").then_some(text)),
        Err(TlsError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a certificate file (bounded).
pub(super) fn read_certificate(path: &Path) -> Result<Vec<u8>, TlsError> {
    let file = File::open(path).map_err(|error| TlsError::file("read", path, error))?;
    read_bounded(file, path)
}

/// Reads a key file (bounded) if nobody else could have read or replaced its content.
///
/// Owner and mode are those of the opened file, so nothing can be exchanged between look and reading; links
/// are followed, as mounted secrets are links.
pub(super) fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let file = File::open(path).map_err(|error| TlsError::file("read", path, error))?;
    let metadata = file.metadata().map_err(|error| TlsError::file("read", path, error))?;
    let (owner, expected) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != expected && owner != 0 {
        return Err(TlsError::KeyOwner { path: path.to_owned(), owner, expected });
    }
    let mode = metadata.mode() & 0o7777;
    if !is_private(mode, owner, expected) {
        return Err(TlsError::KeyMode { path: path.to_owned(), mode });
    }
    read_bounded(file, path).map(Zeroizing::new)
}

/// For the owner alone. Where the owner is root and this process is not, its group may read too: that is how Kubernetes
/// mounts a Secret for a user that is not root, and root has then decided who is in the group.
fn is_private(mode: u32, owner: u32, me: u32) -> bool {
    let forbidden = if owner == 0 && me != 0 { 0o137 } else { 0o177 };
    mode & forbidden == 0
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, TlsError> {
    // Room for the whole at once: a growing vector would leave copies of a key behind.
    let size = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_FILE);
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.take(MAX_FILE).read_to_end(&mut content).map_err(|error| TlsError::file("read", path, error))?;
    Ok(content)
}

/// The folder itself is for this user only; folders above it are made as usual, since the bundle for the app
/// may lie there.
fn make_directory(directory: &Path) -> Result<(), TlsError> {
    let fail = |error| TlsError::file("create", directory, error);
    if let Some(parent) = directory.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(fail(error)),
        _ => Ok(()),
    }
}

/// Holds off other processes that would make the pair; the lock goes with the file, and with the process.
fn lock(directory: &Path) -> Result<File, TlsError> {
    let path = directory.join("ca.lock");
    let fail = |error| TlsError::file("lock", &path, error);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(fail)?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(fail(error)),
            Err(TryLockError::WouldBlock) if begin.elapsed() > LOCK_WAIT => {
                return Err(fail(io::Error::new(io::ErrorKind::TimedOut, "another process holds it")));
            }
            // A start-up path with no runtime yet: the thread may sleep.
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
        }
    }
}

/// Writes a file so that it is there whole or not at all.
fn publish(path: &Path, content: &[u8], mode: u32) -> Result<(), TlsError> {
    let draft = path.with_added_extension("new");
    let fail = |error| TlsError::file("write", path, error);
    // Under the lock a draft can only be the rest of a crash.
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft).map_err(fail)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&draft, path).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::is_private;

    #[test]
    fn who_may_read_a_key_file() {
        const ME: u32 = 65532;
        for (mode, owner, me, private) in [
            (0o600, ME, ME, true),
            (0o400, ME, ME, true),
            (0o440, ME, ME, false),
            (0o700, ME, ME, false),
            // A mounted Secret.
            (0o440, 0, ME, true),
            (0o640, 0, ME, true),
            (0o460, 0, ME, false),
            (0o444, 0, ME, false),
            (0o644, 0, ME, false),
            // Root reads its own without a group.
            (0o440, 0, 0, false),
            (0o600, 0, 0, true),
        ] {
            assert_eq!(is_private(mode, owner, me), private, "{mode:o} of {owner} for {me}");
        }
    }
}
