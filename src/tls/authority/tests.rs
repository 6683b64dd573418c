use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};
use x509_parser::extensions::GeneralName;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// What happened to the files between two starts.
type Damage = fn(&Ca);
/// What is wrong with a CA that the user brings.
type Change = fn(&mut CertificateParams);

struct Ca {
    _folder: tempfile::TempDir,
    directory: PathBuf,
}

impl Ca {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("a/ca");
        Self { _folder: folder, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn load(&self) -> Result<Authority, TlsError> {
        Authority::load_or_create(&CaSource::Directory(self.directory.clone()))
    }

    fn files(&self) -> (String, String) {
        (fs::read_to_string(self.path("ca.key")).unwrap(), fs::read_to_string(self.path("ca.pem")).unwrap())
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn seconds(at: SystemTime) -> i64 {
    i64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// A CA that the user brings, made by `change` from a good one.
fn brought(folder: &Path, change: impl FnOnce(&mut CertificateParams)) -> CaSource {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    change(&mut params);
    let (certificate, key_path) = (folder.join("own.pem"), folder.join("own.key"));
    fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
    let _ = fs::remove_file(&key_path);
    fs::write(&key_path, key.serialize_pem()).unwrap();
    fs::set_permissions(&key_path, Permissions::from_mode(0o400)).unwrap();
    CaSource::Files { certificate, key: key_path }
}

#[test]
fn first_run_makes_a_pair_and_the_next_finds_it() {
    let ca = Ca::new();
    let made = ca.load().unwrap();
    assert_eq!(
        [mode(&ca.directory), mode(&ca.path("ca.key")), mode(&ca.path("ca.pem"))],
        [0o700, 0o600, 0o644]
    );
    let (key, pem) = ca.files();
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert_eq!(made.certificate_pem(), pem);
    let found = ca.load().unwrap();
    assert_eq!(found.fingerprint_sha256(), made.fingerprint_sha256());
    assert_eq!(found.fingerprint_sha256().len(), 64);
    assert_eq!(ca.files(), (key, pem));
    assert_ne!(Ca::new().load().unwrap().fingerprint_sha256(), made.fingerprint_sha256());
}

#[test]
fn the_ca_certificate_says_what_it_must() {
    let ca = Ca::new().load().unwrap();
    let der = ca.certificate_der().clone();
    let certificate = parse(&der).unwrap();
    let subject = certificate.subject().to_string();
    let tag = subject.strip_prefix("O=outgate, CN=outgate CA ").unwrap_or_else(|| panic!("{subject}"));
    assert!(tag.len() == 8 && tag.chars().all(|c| c.is_ascii_hexdigit()), "{tag}");

    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 0b110_0000, "keyCertSign and cRLSign");
    assert_eq!(subject_key(&certificate).len(), 20);

    let now = seconds(SystemTime::now());
    let validity = certificate.validity();
    assert!((validity.not_before.timestamp() - (now - 24 * 3600)).abs() < 60);
    assert!((validity.not_after.timestamp() - (now + 3652 * 24 * 3600)).abs() < 60);
    assert_eq!(seconds(ca.not_after()), validity.not_after.timestamp());
    assert!(is_outgate_ca(&der));
}

fn subject_key(certificate: &X509Certificate<'_>) -> Vec<u8> {
    certificate
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
        .unwrap()
}

#[test]
fn a_leaf_says_what_it_must() {
    let ca = Ca::new().load().unwrap();
    let ca_der = ca.certificate_der().clone();
    let issuer = parse(&ca_der).unwrap();
    let long = format!("{0}.{0}.example.test", "a".repeat(40));
    let cases: [(&str, GeneralName<'_>, &str); 6] = [
        ("api.example.test", GeneralName::DNSName("api.example.test"), "api.example.test"),
        ("API.example.test.", GeneralName::DNSName("api.example.test"), "api.example.test"),
        (&long, GeneralName::DNSName(&long), "outgate leaf"),
        ("192.0.2.7", GeneralName::IPAddress(&[192, 0, 2, 7]), "192.0.2.7"),
        ("::1", GeneralName::IPAddress(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), "::1"),
        ("[::1]", GeneralName::IPAddress(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), "::1"),
    ];
    for (host, name, common_name) in cases {
        let leaf = ca.mint(host).unwrap();
        let chain = &leaf.certified.cert;
        assert_eq!(chain.len(), 1, "a root is not sent");
        let certificate = parse(&chain[0]).unwrap();
        assert_eq!(certificate.issuer().as_raw(), issuer.subject().as_raw());
        certificate.verify_signature(Some(issuer.public_key())).unwrap();
        assert_eq!(certificate.subject().to_string(), format!("O=outgate, CN={common_name}"));

        let san = certificate.subject_alternative_name().unwrap().unwrap();
        assert!(!san.critical);
        assert_eq!(san.value.general_names, [name]);
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(usage.value.flags, 1, "digitalSignature alone");
        let purposes = certificate.extended_key_usage().unwrap().unwrap();
        assert!(purposes.value.server_auth && !purposes.value.client_auth && !purposes.value.any);

        let authority_key =
            certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            });
        assert_eq!(authority_key, Some(subject_key(&issuer)));
        assert_eq!(subject_key(&certificate).len(), 20);
        let serial = certificate.raw_serial();
        assert!(serial.len() >= 16 && serial[0] & 0x80 == 0 && serial[0] != 0, "{serial:02x?}");

        let (validity, now) = (certificate.validity(), seconds(SystemTime::now()));
        assert!((validity.not_before.timestamp() - (now - 3600)).abs() < 60);
        assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 24 * 3600);
    }
    let serials: Vec<_> = (0..2).map(|_| ca.mint("a.test").unwrap()).collect();
    let serials: Vec<_> =
        serials.iter().map(|l| parse(&l.certified.cert[0]).unwrap().raw_serial().to_vec()).collect();
    assert_ne!(serials[0], serials[1]);
}

#[test]
fn no_leaf_lives_outside_its_cas_time() {
    let now = SystemTime::now();
    let life = profile::LEAF_LIFE;
    let cases = [
        ("a long CA", now - HOUR * 24, now + HOUR * 240, now - HOUR, now - HOUR + life),
        ("a dying CA", now - HOUR * 24, now + HOUR * 2, now - HOUR, now + HOUR * 2),
        ("a CA of now", now, now + HOUR * 240, now, now - HOUR + life),
    ];
    for (case, ca_begin, ca_end, begin, end) in cases {
        assert_eq!(profile::leaf_validity(now, ca_begin, ca_end), (begin, end), "{case}");
    }
}

#[test]
fn a_key_that_others_could_use_is_refused() {
    let ca = Ca::new();
    ca.load().unwrap();
    let key = ca.path("ca.key");
    for (bits, good) in
        [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o644, false), (0o700, false)]
    {
        fs::set_permissions(&key, Permissions::from_mode(bits)).unwrap();
        match ca.load() {
            Ok(_) => assert!(good, "{bits:o}"),
            Err(error) => {
                assert!(
                    !good && matches!(error, TlsError::KeyMode { mode, .. } if mode == bits),
                    "{bits:o}: {error}"
                );
            }
        }
    }
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    // Only root can give a file away; elsewhere this part has nothing to work on.
    if std::os::unix::fs::chown(&key, Some(4711), None).is_ok() {
        let error = ca.load().err().unwrap();
        assert!(matches!(error, TlsError::KeyOwner { owner: 4711, .. }), "{error}");
    }
}

#[test]
fn what_a_crash_leaves_does_not_block_the_next_start() {
    let cases: [(&str, Damage, bool); 7] = [
        ("only the key", |ca| fs::remove_file(ca.path("ca.pem")).unwrap(), true),
        ("an empty certificate", |ca| fs::write(ca.path("ca.pem"), "").unwrap(), true),
        ("half a certificate", |ca| fs::write(ca.path("ca.pem"), &ca.files().1[..90]).unwrap(), true),
        ("only the certificate", |ca| fs::remove_file(ca.path("ca.key")).unwrap(), false),
        ("half a key", |ca| fs::write(ca.path("ca.key"), &ca.files().0[..60]).unwrap(), false),
        (
            "the certificate of a former key",
            |ca| {
                let other = Ca::new();
                other.load().unwrap();
                fs::copy(other.path("ca.pem"), ca.path("ca.pem")).map(|_| ()).unwrap();
            },
            true,
        ),
        (
            "drafts",
            |ca| {
                fs::remove_file(ca.path("ca.key")).unwrap();
                fs::write(ca.path("ca.key.new"), "half").unwrap();
                fs::write(ca.path("ca.pem.new"), "half").unwrap();
            },
            false,
        ),
    ];
    for (case, damage, key_stays) in cases {
        let ca = Ca::new();
        ca.load().unwrap();
        let (key, _) = ca.files();
        damage(&ca);
        let repaired = ca.load().unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(ca.files().0 == key, key_stays, "{case}");
        assert_eq!(ca.load().unwrap().fingerprint_sha256(), repaired.fingerprint_sha256(), "{case}");
        let mut names: Vec<_> =
            fs::read_dir(&ca.directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["ca.key", "ca.lock", "ca.pem"], "{case}");
    }
}

#[test]
fn a_users_mistake_is_not_written_over() {
    let ca = Ca::new();
    ca.load().unwrap();
    let CaSource::Files { certificate, .. } = brought(&ca.directory, |_| ()) else { unreachable!() };
    fs::rename(certificate, ca.path("ca.pem")).unwrap();
    let before = ca.files();
    let error = ca.load().err().unwrap().to_string();
    assert!(error.ends_with("the key belongs to another certificate"), "{error}");
    assert_eq!(ca.files(), before);

    fs::remove_file(ca.path("ca.key")).unwrap();
    let error = ca.load().err().unwrap().to_string();
    assert!(error.ends_with("its key (ca.key) is missing"), "{error}");
    assert!(!ca.path("ca.key").exists());
}

#[test]
fn processes_that_start_at_once_agree() {
    for _ in 0..8 {
        let ca = Ca::new();
        let starts: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| ca.load().map(|a| a.fingerprint))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
        });
        assert!(starts.windows(2).all(|pair| pair[0] == pair[1]), "{starts:?}");
    }
}

#[test]
fn a_ca_that_the_user_brings_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let good = Authority::load_or_create(&brought(folder.path(), |_| ())).unwrap();
    assert!(!is_outgate_ca(good.certificate_der()));
    good.mint("a.test").unwrap();

    let cases: [(&str, Change); 5] = [
        ("it is not a CA certificate (basicConstraints CA:TRUE)", |p| p.is_ca = IsCa::ExplicitNoCa),
        ("it is not a CA certificate (basicConstraints CA:TRUE)", |p| p.is_ca = IsCa::NoCa),
        ("its keyUsage does not allow signing certificates", |p| {
            p.key_usages = vec![KeyUsagePurpose::CrlSign]
        }),
        ("it has expired", |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1)),
        ("it is not valid yet", |p| p.not_before = rcgen::date_time_ymd(4000, 1, 1)),
    ];
    for (reason, change) in cases {
        let error = Authority::load_or_create(&brought(folder.path(), change)).err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn files_that_are_no_ca() {
    let folder = tempfile::tempdir().unwrap();
    let CaSource::Files { certificate, key } = brought(folder.path(), |_| ()) else { unreachable!() };
    let other = folder.path().join("other.key");
    fs::write(&other, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o600)).unwrap();
    let cases = [
        (&certificate, &other, "the key belongs to another certificate"),
        (&key, &key, "is not usable PEM: it holds nothing of the wanted kind"),
        (&folder.path().join("none"), &key, "No such file"),
    ];
    for (certificate, key, reason) in cases {
        let source = CaSource::Files { certificate: certificate.clone(), key: key.clone() };
        let error = Authority::load_or_create(&source).err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn what_leads_to_the_users_root_is_sent_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "Example root");
    let root_certificate = root.self_signed(&root_key).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut own = CertificateParams::default();
    own.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    own.distinguished_name.push(DnType::CommonName, "Example issuing CA");
    let own = own.signed_by(&key, &Issuer::from_params(&root, &root_key)).unwrap();

    let (certificate, key_path) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    // The key stands in the certificate file too: it must not come out again.
    fs::write(&certificate, own.pem() + &key.serialize_pem() + &root_certificate.pem()).unwrap();
    fs::write(&key_path, key.serialize_pem()).unwrap();
    fs::set_permissions(&key_path, Permissions::from_mode(0o600)).unwrap();
    let ca = Authority::load_or_create(&CaSource::Files { certificate, key: key_path }).unwrap();
    assert_eq!(ca.certificate_pem(), own.pem() + &root_certificate.pem());
    let sent = ca.mint("a.test").unwrap().certified.cert;
    assert_eq!(sent[1..], [own.der().clone()], "the issuing CA, and not the root");
}

/// Runs a judge; nothing when it is not installed, which a reader of the output sees.
fn judge(program: &str, arguments: &[&str]) -> Option<(bool, String)> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    match output {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(error) => {
            eprintln!("NOTE: {program} not run, so it has not judged the certificates: {error}");
            None
        }
    }
}

fn write_leaf(ca: &Authority, host: &str, path: &Path) {
    let key = KeyPair::generate().unwrap();
    let now = SystemTime::now();
    let (begin, end) = profile::leaf_validity(now, ca.not_before, ca.not_after);
    let params = profile::leaf(&LeafName::parse(host).unwrap(), begin, end).unwrap();
    let leaf = params.signed_by(&key, &ca.issuer).unwrap();
    fs::write(path, leaf.pem() + &key.serialize_pem()).unwrap();
}

#[test]
fn a_renewed_certificate_continues_the_old_one_and_another_key_or_name_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let first = Authority::load_or_create(&brought(folder.path(), |_| ())).unwrap();
    let key = KeyPair::from_pem(&fs::read_to_string(folder.path().join("own.key")).unwrap()).unwrap();
    let renewed = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.not_after = rcgen::date_time_ymd(4000, 1, 1);
        change(&mut params);
        fs::write(folder.path().join("own.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let (certificate, key) = (folder.path().join("own.pem"), folder.path().join("own.key"));
        Authority::load_or_create(&CaSource::Files { certificate, key }).unwrap()
    };
    assert!(renewed(&|_| ()).continues(&first));
    assert!(!renewed(&|params| params.distinguished_name.push(DnType::CommonName, "2")).continues(&first));
    let other = |params: &mut CertificateParams| {
        params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7; 20]);
    };
    assert!(!renewed(&other).continues(&first), "a chain is built by the identifier as well");
    let another = Authority::load_or_create(&brought(folder.path(), |_| ())).unwrap();
    assert!(!another.continues(&first));
}

#[test]
fn openssl_accepts_ca_and_leaves_strictly() {
    let ca = Ca::new();
    let authority = ca.load().unwrap();
    let (ca_file, leaf) = (ca.path("ca.pem"), ca.path("leaf.pem"));
    let (ca_file, leaf_text) = (ca_file.to_str().unwrap(), leaf.to_str().unwrap());
    for (host, name) in
        [("api.example.test", "-verify_hostname"), ("192.0.2.7", "-verify_ip"), ("::1", "-verify_ip")]
    {
        write_leaf(&authority, host, &leaf);
        let arguments =
            ["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", ca_file, name, host, leaf_text];
        let Some((good, text)) = judge("openssl", &arguments) else { return };
        assert!(good, "{host}: {text}");
        let Some((good, _)) = judge("openssl", &["verify", "-x509_strict", leaf_text]) else { return };
        assert!(!good, "the judge refuses what does not chain to its roots");
    }
}

/// A TLS handshake in memory, with the strict flag that Python's default context has from 3.13 on.
const PYTHON: &str = r#"
import ssl, sys
ca, leaf, host = sys.argv[1:]
if sys.version_info < (3, 13): print("too old"); sys.exit(0)
client = ssl.create_default_context(cafile=ca)
assert client.verify_flags & ssl.VERIFY_X509_STRICT
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); server.load_cert_chain(leaf)
a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
ends = [client.wrap_bio(a, b, server_hostname=host), server.wrap_bio(b, a, server_side=True)]
for _ in range(4):
    for end in ends:
        try: end.do_handshake()
        except ssl.SSLWantReadError: pass
print(ends[0].version(), ends[0].getpeercert()["subjectAltName"])
"#;

#[test]
fn strict_python_accepts_ca_and_leaves() {
    let ca = Ca::new();
    let authority = ca.load().unwrap();
    let leaf = ca.path("leaf.pem");
    let (ca_file, leaf_text) = (ca.path("ca.pem"), leaf.to_str().unwrap().to_owned());
    let Some(python) = newest_python() else { return };
    for host in ["api.example.test", "192.0.2.7", "::1"] {
        write_leaf(&authority, host, &leaf);
        let arguments = ["-c", PYTHON, ca_file.to_str().unwrap(), &leaf_text, host];
        let Some((good, text)) = judge(&python, &arguments) else { return };
        if text.starts_with("too old") {
            eprintln!("NOTE: {python} is older than 3.13, so strict Python has not judged the certificates");
            return;
        }
        assert!(good && text.starts_with("TLSv1.3"), "{host}: {text}");
    }
}

/// `python3` of the path, unless pyenv has a 3.13 or later (whose shims hide it).
fn newest_python() -> Option<String> {
    let found =
        judge("sh", &["-c", "ls -d ~/.pyenv/versions/3.1[3-9]*/bin/python3 2>/dev/null | tail -n 1"])?.1;
    Some(if found.trim().is_empty() { "python3".to_owned() } else { found.trim().to_owned() })
}
