//! What can go wrong with TLS, its keys and its files.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem;

/// An error of the `tls` layer. None of them contains key material; paths and host names are all they tell.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file or folder could not be read, written or locked.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried, as a verb: `read`, `write` ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A PEM file is malformed, or holds nothing of the wanted kind.
    #[error("{what} is not usable PEM: {reason}")]
    Pem {
        /// The file, or what the text is for.
        what: String,
        /// What the parser said.
        reason: String,
    },
    /// The CA key can be read or replaced by others: outgate does not intercept with it (it would be no
    /// secret).
    #[error("{path} has mode {mode:04o}: a CA key must have 0600 or stricter (chmod 600)")]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The CA key belongs to another user.
    #[error(
        "{path} belongs to user {owner}, and must belong to the user of this process ({expected}) or to root"
    )]
    KeyOwner {
        /// The key file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// The effective user of this process.
        expected: u32,
    },
    /// The given CA certificate cannot be used for interception.
    #[error("{path} cannot be the CA of interception: {reason}")]
    UnusableAuthority {
        /// The certificate file.
        path: PathBuf,
        /// Why, in words for a reader of the log.
        reason: &'static str,
    },
    /// The CA has expired while the process runs; nothing can be minted any more.
    #[error("the CA of interception has expired")]
    AuthorityExpired,
    /// A key or certificate could not be made.
    #[error("cannot make a key or certificate: {0}")]
    Mint(#[from] rcgen::Error),
    /// The host is neither a DNS name nor an IP address, so no certificate can name it.
    #[error("no certificate can name this host")]
    InvalidHost,
    /// A TLS configuration was refused by the library (a client key that does not fit its certificate ...).
    #[error("TLS configuration: {0}")]
    Config(#[from] rustls::Error),
    /// The system has no randomness to give.
    #[error("no randomness from the system")]
    Random,
    /// Several callers waited for one leaf, and its making failed.
    #[error(transparent)]
    Shared(#[from] Arc<TlsError>),
    /// The first bytes are not a TLS record.
    #[error("the client does not speak TLS")]
    NotTls,
    /// A ClientHello arrived that cannot be parsed.
    #[error("malformed ClientHello: {0}")]
    ClientHello(rustls::Error),
    /// The ClientHello is longer than outgate reads.
    #[error("ClientHello above {limit} bytes")]
    ClientHelloTooLong {
        /// The bound, bytes.
        limit: usize,
    },
    /// The client went away before the handshake was done.
    #[error("the client closed the connection during the TLS handshake")]
    Closed,
    /// The handshake was not done in time.
    #[error("TLS handshake not done in time")]
    Timeout,
    /// The client asked for another host than the one it opened the tunnel to.
    #[error("TLS server name differs from the host of the tunnel")]
    SniMismatch,
    /// The handshake with the client failed (most often: the client does not trust outgate's CA, and said so
    /// by an alert).
    #[error("TLS handshake: {0}")]
    Handshake(rustls::Error),
    /// The client's connection broke.
    #[error("connection during the TLS handshake: {0}")]
    Io(#[source] io::Error),
}

impl TlsError {
    /// A file error with the verb of what was tried.
    pub(super) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }

    /// A PEM error; the reason is written out because pem's errors may quote lines, and a key file's lines
    /// are secret.
    pub(super) fn pem(what: impl Into<String>, error: &pem::Error) -> Self {
        let reason = match error {
            pem::Error::MissingSectionEnd { .. } => "a section has no END line",
            pem::Error::IllegalSectionStart { .. } => "a section's BEGIN line is malformed",
            pem::Error::Base64Decode(_) => "a section is not base64",
            pem::Error::NoItemsFound => "it holds nothing of the wanted kind",
            _ => "it cannot be read",
        };
        Self::Pem { what: what.into(), reason: reason.to_owned() }
    }

    /// From the error of a handshake with a client, as tokio-rustls hands it out.
    pub(super) fn handshake(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Closed;
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => Self::NotTls,
            Some(inner) => Self::Handshake(inner.clone()),
            None => Self::Io(error),
        }
    }
}
