//! The CA of interception: its files for the app, and its renewal while outgate runs.
//!
//! Only a CA that the user brings (`interception.ca: { certificate, key }`) is renewed by somebody else: cert-manager, mostly, which writes a
//! new pair into the Secret that is mounted. It is looked at every five seconds, and taken over without a restart:
//!
//! | the new certificate | what happens |
//! | --- | --- |
//! | same key, name and key identifier | signs at once: whoever trusts the old one trusts its leaves |
//! | another key | stands beside the old one in the bundle, so that apps that start now trust both; signs an hour before the old one ends |
//! | cannot be used | is told once, and the old one goes on |

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use tokio_util::sync::CancellationToken;

use crate::policy::compiled::Fixed;
use crate::telemetry::Telemetry;
use crate::tls::roots::{SystemRoots, write_bundle};
use crate::tls::truststore::write_truststore;
use crate::tls::{Authority, CaSource, LeafCache, Succession, TlsError};

/// How often the files are looked at. Nothing else of a mounted Secret is faster.
const EVERY: Duration = Duration::from_secs(5);

/// The files that apps are given.
#[derive(Clone)]
pub struct Given {
    bundle: PathBuf,
    truststore: Option<PathBuf>,
    /// The environment's SSL_CERT_FILE and SSL_CERT_DIR.
    ssl_cert_file: Option<PathBuf>,
    ssl_cert_dir: Option<PathBuf>,
}

impl Given {
    /// Those that the policy names.
    pub fn new(fixed: &Fixed, file: Option<PathBuf>, directory: Option<PathBuf>) -> Self {
        Self {
            bundle: fixed.interception.bundle.clone(),
            truststore: fixed.interception.truststore.clone(),
            ssl_cert_file: file,
            ssl_cert_dir: directory,
        }
    }

    /// The system's roots, as they are now.
    pub fn roots(&self) -> SystemRoots {
        let (file, directory) = (self.ssl_cert_file.clone(), self.ssl_cert_dir.clone());
        SystemRoots::load(None, Some(&self.bundle), file, directory)
    }

    /// Writes them: the roots and these CAs, the one that signs first. None of them stays among the roots: one of the user's own may
    /// stand in the system's, for the apps; upstream it is not trusted.
    ///
    /// # Errors
    /// [`TlsError::File`].
    pub fn write(&self, roots: &mut SystemRoots, own: &[&Authority]) -> Result<(), TlsError> {
        roots.certificates.retain(|root| own.iter().all(|ca| root != ca.certificate_der()));
        let pem: String = own.iter().map(|ca| ca.certificate_pem()).collect();
        write_bundle(&self.bundle, roots, &pem)?;
        if let Some(path) = &self.truststore {
            let own: Vec<_> = own.iter().map(|ca| ca.certificate_der()).collect();
            write_truststore(path, roots, &own)?;
        }
        Ok(())
    }
}

/// What is known of both files without reading them: inode, size and time. A new version of a mounted Secret is another file.
type Mark = [Option<(u64, u64, i64, i64)>; 2];

/// A CA of the user's own, whose files may change.
pub struct Renewal {
    certificate: PathBuf,
    key: PathBuf,
    leaves: Arc<LeafCache>,
    /// What providers are verified with.
    trusted: Arc<RootCertStore>,
    given: Given,
    telemetry: Arc<Telemetry>,
    /// What has been taken over, or is no other.
    seen: Option<Mark>,
    /// What could not be used, and was told of.
    told: Option<Mark>,
}

impl Renewal {
    /// None where outgate makes the CA itself: then nobody renews it.
    pub fn of(
        source: &CaSource,
        (leaves, trusted): (&Arc<LeafCache>, &Arc<RootCertStore>),
        given: Given,
        telemetry: &Arc<Telemetry>,
    ) -> Option<Self> {
        let CaSource::Files { certificate, key } = source else { return None };
        let (certificate, key) = (certificate.clone(), key.clone());
        let (leaves, trusted, telemetry) = (leaves.clone(), trusted.clone(), telemetry.clone());
        Some(Self { certificate, key, leaves, trusted, given, telemetry, seen: None, told: None })
    }

    /// Takes changes over until cancelled.
    pub async fn watch(mut self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = cancel.cancelled() => return,
            }
            // Files are read and written, and a leaf is minted for a try.
            let looked = tokio::task::spawn_blocking(move || {
                self.look(SystemTime::now());
                self
            });
            match looked.await {
                Ok(same) => self = same,
                Err(error) => {
                    tracing::error!(%error, "the CA of interception is watched no more: restart outgate to take over a new one");
                    return;
                }
            }
        }
    }

    fn look(&mut self, now: SystemTime) {
        let mark = Some([&self.certificate, &self.key].map(|path| about(path)));
        let looked = match self.leaves.next_authority() {
            // One that waits is looked at for its time, and not read again.
            Some(next) if mark == self.seen => self.take(next, now),
            None if mark == self.seen => return,
            waiting => match (self.read(), waiting) {
                (Ok(found), _) => self.take(found, now),
                // Half a write, or a file that is gone: the one that waits keeps its time.
                (Err(error), Some(next)) => self.take(next, now).and(Err(error)),
                (Err(error), None) => Err(error),
            },
        };
        match looked {
            Ok(()) => (self.seen, self.told) = (mark, None),
            Err(error) if self.told != mark => {
                self.told = mark;
                tracing::warn!(%error, "a changed CA of interception cannot be used; the one in use goes on");
            }
            Err(_) => {}
        }
    }

    fn read(&self) -> Result<Arc<Authority>, TlsError> {
        let source = CaSource::Files { certificate: self.certificate.clone(), key: self.key.clone() };
        Authority::load_or_create(&source).map(Arc::new)
    }

    fn take(&self, found: Arc<Authority>, now: SystemTime) -> Result<(), TlsError> {
        let (former, succession) = (self.leaves.authority(), self.leaves.succession(&found, now));
        let own: &[&Authority] = match succession {
            Succession::Unchanged => return Ok(()),
            Succession::Withdrawn => &[&*found],
            Succession::Waits => &[&*former, &*found],
            Succession::Signs => &[&*found, &*former],
        };
        if is_among(&found, &self.trusted)? {
            let reason = "it stands among the roots that providers are verified with, which are read at the start: restart outgate";
            return Err(TlsError::UnusableAuthority { path: self.certificate.clone(), reason });
        }
        // Apps that start now have to trust what will sign for them, before it does.
        self.given.write(&mut self.given.roots(), own)?;
        self.leaves.succeed(found.clone(), succession);
        self.telemetry.metrics.set_ca_end(self.leaves.authority().not_after());
        let sha256 = found.fingerprint_sha256();
        match succession {
            Succession::Waits => tracing::info!(
                sha256,
                "a new CA of interception stands in the bundle; it signs when the one in use ends, and apps that were started before trust that one alone"
            ),
            Succession::Withdrawn => {
                tracing::info!(sha256, "the CA of interception in use is the one of the files again")
            }
            Succession::Signs | Succession::Unchanged => {
                tracing::info!(sha256, "a changed CA of interception signs from now on");
            }
        }
        Ok(())
    }
}

/// Whether outgate would take a leaf of its own CA for a provider's.
fn is_among(authority: &Authority, trusted: &RootCertStore) -> Result<bool, TlsError> {
    let mut own = RootCertStore::empty();
    own.add(authority.certificate_der().clone())?;
    Ok(own.roots.iter().any(|anchor| trusted.roots.contains(anchor)))
}

fn about(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.ino(), about.size(), about.mtime(), about.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{LogFormat, LogOutput};

    fn authority(folder: &Path) -> Arc<Authority> {
        Arc::new(Authority::load_or_create(&CaSource::Directory(folder.to_owned())).unwrap())
    }

    /// The files may be gone, or half written, for hours before the old CA ends.
    #[tokio::test]
    async fn a_ca_that_waits_keeps_its_time_where_its_files_break() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new, bundle] = ["old", "new", "bundle.pem"].map(|name| folder.path().join(name));
        let (first, second) = (authority(&old), authority(&new));
        let leaves = Arc::new(LeafCache::new(first.clone(), 8).unwrap());
        let mut renewal = Renewal {
            certificate: new.join("ca.pem"),
            key: new.join("ca.key"),
            leaves: leaves.clone(),
            trusted: Arc::new(RootCertStore::empty()),
            given: Given { bundle, truststore: None, ssl_cert_file: None, ssl_cert_dir: None },
            telemetry: Arc::new(
                Telemetry::start(LogFormat::Json, LogOutput::Capture(Arc::default())).unwrap(),
            ),
            seen: None,
            told: None,
        };
        let signs = |ca: &Authority| leaves.authority().certificate_der() == ca.certificate_der();
        renewal.look(SystemTime::now());
        assert!(leaves.next_authority().is_some() && signs(&first));
        std::fs::write(new.join("ca.pem"), "half a certif").unwrap();
        renewal.look(SystemTime::now());
        assert!(leaves.next_authority().is_some() && signs(&first));
        renewal.look(first.not_after() - Duration::from_secs(600));
        assert!(signs(&second));
    }
}
