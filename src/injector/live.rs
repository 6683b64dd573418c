//! Certificate, key and template, as they stand in files that change while the injector runs.
//!
//! They are looked at by content every two seconds: a mount of Kubernetes changes by a link that is swapped, and three small files are
//! read faster than a watch on them is kept right. What cannot be used is logged and counted once, and what was in use stays in use:
//! so a certificate that is there before its key does no harm.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::metrics::{Metrics, Part};
use super::template::{MAX_BYTES, Template, TemplateError};
use crate::tls::{TlsError, crypto_provider, pem};

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate with those that lead to its CA, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// The template.
    pub template: PathBuf,
}

/// Why the files cannot be used. It names the file, and shows nothing of what is in it.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Certificate or key.
    #[error("{0}")]
    Pem(#[from] TlsError),
    /// The key is not that of the certificate, or of a kind that is not known.
    #[error("certificate and key cannot be used: {0}")]
    Pair(rustls::Error),
    /// The certificate is none.
    #[error("the certificate cannot be read")]
    Certificate,
    /// The template.
    #[error("{path}: {source}")]
    Template {
        /// Which file.
        path: String,
        /// Why.
        source: TemplateError,
    },
}

/// What is in use.
pub struct Live {
    files: Files,
    tls: ArcSwap<ServerConfig>,
    template: ArcSwap<Template>,
    seen: Mutex<Seen>,
    metrics: Arc<Metrics>,
}

/// What was read last, whether it could be used or not.
struct Seen {
    certificate: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    template: Zeroizing<Vec<u8>>,
    /// Looks in a row at which certificate or key, and the template, could not be read.
    unread: (u8, u8),
}

/// At so many looks in a row a file that cannot be read is told of: one look may fall into the swap of a mount.
const TOLD_AT: u8 = 2;

impl Seen {
    fn read(files: &Files) -> Result<Self, LiveError> {
        Ok(Self {
            certificate: bytes(&files.certificate)?,
            key: bytes(&files.key)?,
            template: bytes(&files.template)?,
            unread: (0, 0),
        })
    }
}

impl Live {
    /// Reads all files.
    ///
    /// # Errors
    ///
    /// [`LiveError`]: without them there is nothing to serve.
    pub fn read(files: Files, metrics: Arc<Metrics>) -> Result<Self, LiveError> {
        let seen = Seen::read(&files)?;
        let (tls, ends) = tls(&seen.certificate, &seen.key)?;
        let template = template(&files.template, &seen.template)?;
        metrics.certificate_ends(ends);
        tracing::info!(template = template.hash, "certificate and template are read");
        let (tls, template) = (ArcSwap::from_pointee(tls), ArcSwap::from_pointee(template));
        Ok(Self { files, tls, template, seen: Mutex::new(seen), metrics })
    }

    /// What new connections are accepted with.
    pub fn tls(&self) -> Arc<ServerConfig> {
        self.tls.load_full()
    }

    /// What pods get now.
    pub fn template(&self) -> Arc<Template> {
        self.template.load_full()
    }

    /// Takes changes over until cancelled.
    pub async fn watch(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = cancel.cancelled() => return,
            }
            let live = self.clone();
            // A panic in there would be told by the runtime; the next look is soon.
            let _ = tokio::task::spawn_blocking(move || live.look()).await;
        }
    }

    /// Reads the files once, and takes over what changed and can be used. The pair and the template are looked at each by itself: one
    /// that cannot be read holds the other not up. It counts as unchanged, and is told of when it lasts.
    pub(super) fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *seen;
        let pair = bytes(&self.files.certificate).and_then(|first| Ok((first, bytes(&self.files.key)?)));
        if let Some((certificate, key)) = self.readable(Part::Certificate, pair, &mut seen.unread.0)
            && (seen.certificate != certificate || seen.key != key)
        {
            self.take_pair(&certificate, &key);
            (seen.certificate, seen.key) = (certificate, key);
        }
        let template = bytes(&self.files.template);
        if let Some(template) = self.readable(Part::Template, template, &mut seen.unread.1)
            && seen.template != template
        {
            self.take_template(&template);
            seen.template = template;
        }
    }

    /// What was read; where it could not be, it is told of once, at the second look in a row.
    fn readable<T>(&self, what: Part, read: Result<T, LiveError>, unread: &mut u8) -> Option<T> {
        match read {
            Ok(read) => {
                *unread = 0;
                Some(read)
            }
            Err(error) => {
                *unread = unread.saturating_add(1);
                if *unread == TOLD_AT {
                    self.told(what, Err(error));
                }
                None
            }
        }
    }

    fn take_pair(&self, certificate: &[u8], key: &[u8]) {
        let taken = tls(certificate, key).map(|(tls, ends)| {
            self.tls.store(Arc::new(tls));
            self.metrics.certificate_ends(ends);
        });
        self.told(Part::Certificate, taken);
    }

    fn take_template(&self, text: &[u8]) {
        let taken =
            template(&self.files.template, text).map(|template| self.template.store(Arc::new(template)));
        self.told(Part::Template, taken);
    }

    fn told(&self, what: Part, taken: Result<(), LiveError>) {
        self.metrics.reload(what, taken.is_ok());
        match taken {
            Ok(()) => tracing::info!(what = what.as_str(), "a changed file is in use"),
            Err(error) => {
                tracing::warn!(what = what.as_str(), %error, "a changed file cannot be used, and what was in use goes on");
            }
        }
    }
}

/// At most 1 MiB of a file.
fn bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, LiveError> {
    let failed = |source| LiveError::Read { path: path.display().to_string(), source };
    let mut bytes = Zeroizing::new(Vec::new());
    let bound = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
    let file = std::fs::File::open(path).map_err(failed)?;
    let taken = file.take(bound + 1).read_to_end(&mut bytes).map_err(failed)?;
    if taken > MAX_BYTES {
        return Err(failed(std::io::Error::other("it is larger than 1 MiB")));
    }
    Ok(bytes)
}

/// What to accept connections with, and when its certificate ends.
fn tls(certificate: &[u8], key: &[u8]) -> Result<(ServerConfig, i64), LiveError> {
    let chain = pem::certificates(certificate, "the certificate")?;
    let key = pem::private_key(key, "the key")?;
    let ends = chain.first().and_then(|first| {
        let (_, parsed) = x509_parser::parse_x509_certificate(first).ok()?;
        Some(parsed.validity().not_after.timestamp())
    });
    let ends = ends.ok_or(LiveError::Certificate)?;
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()
        .map_err(LiveError::Pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key.clone_key())
        .map_err(LiveError::Pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((config, ends))
}

fn template(path: &Path, text: &[u8]) -> Result<Template, LiveError> {
    let failed = |source| LiveError::Template { path: path.display().to_string(), source };
    let text = std::str::from_utf8(text).map_err(|_| failed(TemplateError::Incomplete("it is not UTF-8")))?;
    Template::parse(text).map_err(failed)
}
