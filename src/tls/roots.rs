//! Whom outgate believes upstream, and the bundle that makes the app believe outgate.
//!
//! Both come from one set of certificates: the system's roots. The app's variables (`SSL_CERT_FILE` and
//! friends) point at the bundle, and outgate often runs with the same environment as the app; so a bundle of
//! outgate's own is never taken for the system's roots, and no CA that an outgate made is ever trusted
//! upstream, wherever it was found.
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use super::authority::is_outgate_ca;
use super::error::TlsError;
use super::pem;

/// Where systems keep their roots in one file; the first that holds certificates is used.
const FILES: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Alpine, Arch, distroless
    "/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL 6 and later
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // CentOS, RHEL 7 and later
    "/etc/ssl/ca-bundle.pem",             // OpenSUSE
    "/etc/pki/tls/cacert.pem",            // OpenELEC
    "/etc/ssl/cert.pem",                  // Alpine, BSD, macOS
    "/opt/etc/ssl/certs/ca-certificates.crt", // Entware
];

/// Folders of single files, looked at only where no file above was found: reading one takes ten times as
/// long.
const FOLDERS: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// What the bundle says above the interception CA.
const OWN_COMMENT: &str =
    "# outgate: the CA of interception on this machine; it signs for the hosts in its policy\n";

/// The certificates that upstream servers are judged by; never empty, and never with a CA of outgate's own.
#[derive(Debug, Clone)]
pub struct SystemRoots {
    /// The certificates, DER, each once.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Where they come from, for the log: a path, or `built in (Mozilla)`.
    pub source: String,
    /// What could not be used and was passed over, for the log.
    pub warnings: Vec<String>,
}

/// What one place gave, and what was wrong there.
struct Found {
    certificates: Vec<CertificateDer<'static>>,
    source: String,
}

impl SystemRoots {
    /// Reads the roots: from the given `SSL_CERT_FILE` and `SSL_CERT_DIR` (several folders are parted by
    /// `:`), else from the system's usual places, else those built in. Some milliseconds; blocks on the file
    /// system.
    ///
    /// `own_ca` is dropped wherever it is found; `own_bundle` is not read, by whatever path or link it is named.
    /// Files that cannot be read become `warnings`: a program with fewer roots is of more use than none.
    pub fn load(
        own_ca: Option<&CertificateDer<'_>>,
        own_bundle: Option<&Path>,
        ssl_cert_file: Option<PathBuf>,
        ssl_cert_dir: Option<PathBuf>,
    ) -> Self {
        let mut warnings = Vec::new();
        let file = ssl_cert_file.filter(|file| !own_bundle.is_some_and(|bundle| same_file(file, bundle)));
        let folders = ssl_cert_dir.map(|folders| std::env::split_paths(&folders).collect::<Vec<_>>());
        let mut keep = |found: Found| drop_own(found, own_ca);
        let roots = read(file.as_deref(), &folders.unwrap_or_default(), &mut warnings)
            .and_then(&mut keep)
            .or_else(|| system(&mut warnings).and_then(&mut keep))
            .unwrap_or_else(built_in);
        Self { certificates: roots.certificates, source: roots.source, warnings }
    }

    /// The store that upstream connections are verified with. Certificates that the verifier does not
    /// understand are left out, as the systems' bundles have some.
    pub fn root_store(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.certificates.iter().cloned());
        Arc::new(store)
    }
}

/// Writes the bundle for the app: the system's roots, and behind them the CA of interception, as PEM.
///
/// The file has mode 0644, and appears whole; folders above it are made. It is not touched when it already
/// has this content, so that programs that watch it stay calm.
///
/// # Errors
/// [`TlsError::File`].
pub fn write_bundle(path: &Path, roots: &SystemRoots, ca_pem: &str) -> Result<(), TlsError> {
    write_public(path, bundle_text(roots, ca_pem).as_bytes())
}

/// Writes a file that everyone may read, at once or not at all; one that is the same already is left as it is.
pub(super) fn write_public(path: &Path, content: &[u8]) -> Result<(), TlsError> {
    if std::fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let fail = |error| TlsError::file("write", path, error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    // Its own name per process: two that start at once must not write into one draft.
    let draft = path.with_added_extension(format!("{}.new", std::process::id()));
    let written = write_draft(&draft, content).and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written.map_err(fail)
}

/// Not synced to the disk: after a power cut the next start compares, and writes it again.
fn write_draft(draft: &Path, content: &[u8]) -> io::Result<()> {
    match std::fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(draft)?;
    file.write_all(content)?;
    // The app may run as another user, whatever this process's umask is.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

fn bundle_text(roots: &SystemRoots, ca_pem: &str) -> String {
    let size: usize = roots.certificates.iter().map(|der| der.len() * 3 / 2 + 64).sum();
    let mut text = String::with_capacity(size + ca_pem.len() + 256);
    text.push_str("# Made by outgate and written anew at its start; changes are lost.\n");
    text.push_str(&format!("# Roots of this system, from {}\n", roots.source.replace(['\n', '\r'], " ")));
    for certificate in &roots.certificates {
        pem::push_certificate(&mut text, certificate);
    }
    for own in ca_pem.split_inclusive("-----END CERTIFICATE-----\n") {
        text.push_str(OWN_COMMENT);
        text.push_str(own);
    }
    text
}

fn system(warnings: &mut Vec<String>) -> Option<Found> {
    if cfg!(target_os = "macos") {
        let found = rustls_native_certs::load_native_certs();
        return some(found.certs, "the system's keychain".to_owned());
    }
    let present = |path: &&str| Path::new(path).exists();
    let in_file =
        FILES.iter().filter(|path| present(path)).find_map(|path| read(Some(Path::new(path)), &[], warnings));
    in_file.or_else(|| {
        FOLDERS
            .iter()
            .filter(|path| present(path))
            .find_map(|path| read(None, &[PathBuf::from(path)], warnings))
    })
}

/// What a file and some folders hold, or nothing.
fn read(file: Option<&Path>, folders: &[PathBuf], warnings: &mut Vec<String>) -> Option<Found> {
    let mut certificates = Vec::new();
    let mut sources = Vec::new();
    let places = file.map(|file| (Some(file), None)).into_iter();
    for (file, folder) in places.chain(folders.iter().map(|folder| (None, Some(folder.as_path())))) {
        let found = rustls_native_certs::load_certs_from_paths(file, folder);
        warnings.extend(found.errors.iter().map(ToString::to_string));
        certificates.extend(found.certs);
        sources.extend(file.or(folder).map(|path| path.display().to_string()));
    }
    some(certificates, sources.join(", "))
}

fn some(certificates: Vec<CertificateDer<'static>>, source: String) -> Option<Found> {
    (!certificates.is_empty()).then_some(Found { certificates, source })
}

/// Without outgate's CAs and without doubles; nothing when nothing is left.
fn drop_own(found: Found, own_ca: Option<&CertificateDer<'_>>) -> Option<Found> {
    let mut seen = HashSet::new();
    let mut certificates = found.certificates;
    certificates.retain(|der| own_ca != Some(der) && !is_outgate_ca(der) && seen.insert(der.clone()));
    some(certificates, found.source)
}

/// Mozilla's roots of the day of the build: for images that have none.
fn built_in() -> Found {
    Found {
        certificates: webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec(),
        source: "built in (Mozilla)".to_owned(),
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;
    use crate::tls::{Authority, CaSource};

    fn authority(folder: &Path) -> Authority {
        Authority::load_or_create(&CaSource::Directory(folder.join("ca"))).unwrap()
    }

    /// A root that is not outgate's.
    fn foreign_root(name: &str) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().into()
    }

    fn file(folder: &Path, name: &str, certificates: &[&CertificateDer<'_>]) -> PathBuf {
        let mut text = String::from("some words\n");
        certificates.iter().for_each(|der| pem::push_certificate(&mut text, der));
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn given_places_are_honoured() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two, three) =
            (foreign_root("one"), foreign_root("two"), foreign_root("outgate CA imitation"));
        let in_file = file(folder.path(), "roots.pem", &[&one, &one, &three]);
        file(folder.path(), "d1/two.pem", &[&two, &one]);
        let folders = PathBuf::from(format!("{0}/d1:{0}/none", folder.path().display()));

        let roots = SystemRoots::load(None, None, Some(in_file.clone()), None);
        // Sorted by the reader; a name that only looks like ours stays.
        assert_eq!(sorted(&roots.certificates), sorted(&[one.clone(), three.clone()]));
        assert_eq!(roots.source, in_file.display().to_string());
        assert_eq!(roots.warnings, Vec::<String>::new());

        let roots = SystemRoots::load(None, None, Some(in_file), Some(folders));
        assert_eq!(sorted(&roots.certificates), sorted(&[one, two, three]));
        assert_eq!(roots.warnings.len(), 1, "the folder that is not there: {:?}", roots.warnings);
        assert_eq!(roots.root_store().len(), 3);
    }

    fn sorted(certificates: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
        let mut copy = certificates.to_vec();
        copy.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        copy
    }

    #[test]
    fn no_ca_of_an_outgate_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (authority(&folder.path().join("own")), authority(&folder.path().join("other")));
        let (foreign, brought) = (foreign_root("foreign"), foreign_root("brought by the user"));
        let all = [&foreign, own.certificate_der(), other.certificate_der(), &brought];
        let path = file(folder.path(), "copy-of-a-bundle.pem", &all);

        let roots = SystemRoots::load(Some(own.certificate_der()), None, Some(path.clone()), None);
        assert_eq!(sorted(&roots.certificates), sorted(&[foreign.clone(), brought.clone()]));
        let roots = SystemRoots::load(Some(&brought), None, Some(path), None);
        assert_eq!(roots.certificates, [foreign]);
    }

    #[test]
    fn own_bundle_is_not_taken_for_the_system() {
        let folder = tempfile::tempdir().unwrap();
        let marker = foreign_root("only in the bundle");
        let bundle = file(folder.path(), "bundle.pem", &[&marker]);
        let link = folder.path().join("link.pem");
        symlink(&bundle, &link).unwrap();
        for named in [bundle.clone(), link, folder.path().join("./bundle.pem")] {
            let roots = SystemRoots::load(None, Some(&bundle), Some(named.clone()), None);
            assert!(!roots.certificates.contains(&marker), "{}", named.display());
            assert!(roots.root_store().len() > 50, "the system's roots instead: {}", roots.source);
        }
    }

    #[test]
    fn never_empty() {
        let folder = tempfile::tempdir().unwrap();
        let own = authority(folder.path());
        let only_own = file(folder.path(), "own.pem", &[own.certificate_der()]);
        let empty = file(folder.path(), "empty.pem", &[]);
        for given in [Some(only_own), Some(empty), Some(folder.path().join("missing")), None] {
            let roots = SystemRoots::load(Some(own.certificate_der()), None, given, None);
            assert!(roots.certificates.len() > 50, "{}", roots.source);
            assert!(!roots.certificates.contains(own.certificate_der()));
        }
        let store = built_in();
        let built_in =
            SystemRoots { certificates: store.certificates, source: store.source, warnings: Vec::new() };
        assert!(built_in.root_store().len() > 50);
    }

    #[test]
    fn the_bundle_is_whole_readable_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let own = authority(folder.path());
        let root = foreign_root("a root");
        let roots =
            SystemRoots { certificates: vec![root.clone()], source: "here".to_owned(), warnings: Vec::new() };
        let path = folder.path().join("a/b/bundle.pem");

        write_bundle(&path, &roots, own.certificate_pem()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(pem::certificates(text.as_bytes(), "").unwrap(), [root, own.certificate_der().clone()]);
        let (_, behind) = text.split_once(OWN_COMMENT).unwrap();
        assert_eq!(behind, own.certificate_pem());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);

        let inode = path.metadata().unwrap().ino();
        write_bundle(&path, &roots, own.certificate_pem()).unwrap();
        assert_eq!(path.metadata().unwrap().ino(), inode, "equal content is not written");
        std::fs::write(&path, "damaged").unwrap();
        write_bundle(&path, &roots, own.certificate_pem()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "no draft is left");
    }
}
