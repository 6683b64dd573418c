//! Key files that cannot be read or used, at the start and later, for kinds that read them in different ways: requests that need them
//! are 503 or go on with the last good value, and the other providers go on.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use serde_json::Value;

use super::program::{Program, outgate, write_policy};
use super::support::client::{admin, local_get, local_request};
use super::support::origin::{HttpOrigin, Seen, text};
use super::support::proxy::Proxy;

/// By which `/status` may tell something.
type Codes = &'static [&'static str];

/// What became of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Missing,
    Directory,
    LinkToNothing,
    LinkToItself,
    BelowAFile,
    Pipe,
    Empty,
    Content(&'static [u8]),
}

/// Faults of any file, each with its codes.
const OF_FILES: [(Fault, Codes); 7] = [
    (Fault::Missing, &["not_found"]),
    (Fault::Directory, &["not_a_file"]),
    (Fault::LinkToNothing, &["not_found"]),
    (Fault::LinkToItself, &["unreadable"]),
    (Fault::BelowAFile, &["unreadable", "not_found"]),
    (Fault::Pipe, &["not_a_file"]),
    (Fault::Empty, &["empty", "malformed"]),
];

/// Faults of a value that goes into a header.
const OF_VALUES: [(Fault, Codes); 7] = [
    (Fault::Content("schl\u{fc}ssel".as_bytes()), &["malformed"]),
    (Fault::Content(b"a-key\r\nX-Evil: 1"), &["malformed"]),
    (Fault::Content(b"a-key\nX: 1"), &["malformed"]),
    (Fault::Content(b"a-key\r"), &["malformed"]),
    (Fault::Content(b"a-key\0"), &["malformed"]),
    (Fault::Content(b"a\x7fkey"), &["malformed"]),
    (Fault::Content(b"   "), &["empty", "malformed"]),
];

impl Fault {
    fn happens_to(self, path: &Path) {
        remove(path);
        match self {
            Self::Missing => {}
            Self::Directory => std::fs::create_dir(path).unwrap(),
            Self::LinkToNothing => symlink("nothing", path).unwrap(),
            Self::LinkToItself => symlink(path, path).unwrap(),
            Self::BelowAFile => {
                // Its directory is a file now.
                let directory = path.parent().unwrap();
                std::fs::remove_dir_all(directory).unwrap();
                std::fs::write(directory, "a file").unwrap();
            }
            Self::Pipe => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            Self::Empty => std::fs::write(path, "").unwrap(),
            Self::Content(bytes) => std::fs::write(path, bytes).unwrap(),
        }
    }
}

fn remove(path: &Path) {
    let directory = path.parent().unwrap();
    if directory.is_file() {
        std::fs::remove_file(directory).unwrap();
    }
    std::fs::create_dir_all(directory).unwrap();
    if path.is_dir() {
        std::fs::remove_dir(path).unwrap();
    } else if path.symlink_metadata().is_ok() {
        std::fs::remove_file(path).unwrap();
    }
}

/// In one step, as tools that rotate do.
fn write(path: &Path, bytes: &[u8]) {
    remove(path);
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Kinds that read a file, each with a good one.
fn kinds(issuer: &HttpOrigin) -> Vec<(&'static str, String, Vec<u8>)> {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
    let file = "\"file:{dir}/{name}/key\"";
    vec![
        ("bearer", format!("bearer: {file}"), b"a-key".to_vec()),
        (
            "hmac",
            format!("hmac: {{ key: {file}, content: \"{{method}}\", signature: {{ header: X-Sig }} }}"),
            b"a-key".to_vec(),
        ),
        (
            "base64",
            format!(
                "hmac: {{ key: {file}, key_encoding: base64, content: \"{{method}}\", signature: {{ header: X-Sig }} }}"
            ),
            b"YS1rZXk=".to_vec(),
        ),
        (
            "aws",
            format!("aws_sigv4: {{ keys: {file}, region: eu-west-1, service: sqs }}"),
            br#"{"AccessKeyId":"AKID","SecretAccessKey":"s"}"#.to_vec(),
        ),
        (
            "jwt",
            format!("jwt_bearer: {{ key: {file}, issuer: \"plain:me\", audience: \"https://x.test\" }}"),
            pem.into_bytes(),
        ),
        (
            "oauth",
            format!(
                "oauth2_client_credentials: {{ token_url: \"http://{}/token\", client_id: \"plain:app\", client_secret: {file} }}",
                issuer.address
            ),
            b"a-key".to_vec(),
        ),
    ]
}

struct World {
    proxy: Proxy,
    origin: HttpOrigin,
    dir: Arc<tempfile::TempDir>,
    kinds: Vec<(&'static str, String, Vec<u8>)>,
    _issuer: HttpOrigin,
}

impl World {
    /// With this fault at the start, of every kind; `other` has a file of its own.
    async fn start(fault: Option<Fault>) -> Self {
        let issuer =
            HttpOrigin::with(None, |_: Seen| text(200, r#"{"access_token":"a-token","expires_in":3600}"#))
                .await;
        let origin = HttpOrigin::with(None, |_| text(200, "{}")).await;
        let (dir, kinds) = (Arc::new(tempfile::tempdir().unwrap()), kinds(&issuer));
        let mut policy = "providers:\n".to_owned();
        let other = ("other", "bearer: \"file:{dir}/{name}/key\"".to_owned(), b"another-key".to_vec());
        for (name, credential, good) in kinds.iter().chain([&other]) {
            policy.push_str(&format!(
                "  {name}:\n    hosts: [{name}.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {{ {} }}\n",
                origin.address,
                credential.replace("{name}", name),
            ));
            let path = dir.path().join(name).join("key");
            write(&path, good);
            if let Some(fault) = fault.filter(|_| *name != "other") {
                fault.happens_to(&path);
            }
        }
        let proxy = Proxy::start_in(dir.clone(), &policy).await;
        Self { proxy, origin, dir, kinds, _issuer: issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join("key")
    }

    async fn get(&self, name: &str) -> u16 {
        local_get(&self.proxy, &format!("/{name}/x")).await.status
    }

    /// What `/status` says of a provider's file.
    async fn status(&self, name: &str) -> Value {
        let status: Value = serde_json::from_str(&admin(&self.proxy, "GET", "/status").await.text()).unwrap();
        let of_it =
            |secret: &&Value| secret["reference"].as_str().unwrap().ends_with(&format!("/{name}/key"));
        status["secrets"].as_array().unwrap().iter().find(of_it).unwrap().clone()
    }

    async fn until(&self, what: &str, name: &str, holds: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        loop {
            let now = self.status(name).await;
            if holds(&now) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{what} {name}: {now}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every kind is without a value, nothing of it is sent, and the other provider goes on.
    async fn nothing_is_sent(&self, what: Fault, names: &[&'static str]) {
        for name in names {
            let before = self.origin.requests().len();
            assert_eq!(self.get(name).await, 503, "{what:?} {name}");
            assert_eq!(self.origin.requests().len(), before, "{what:?} {name}");
        }
        self.the_other_goes_on().await;
    }

    async fn the_other_goes_on(&self) {
        assert_eq!(self.get("other").await, 200);
        assert_eq!(self.origin.requests().pop().unwrap().header("authorization"), Some("Bearer another-key"));
    }

    fn names(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|(name, ..)| *name).collect()
    }
}

/// A few at a time.
async fn each<F: Future<Output = ()>>(faults: &[(Fault, Codes)], test: impl Fn(Fault, Codes) -> F) {
    stream::iter(faults).for_each_concurrent(4, |(fault, codes)| test(*fault, codes)).await;
}

#[tokio::test]
async fn key_files_that_cannot_be_read_at_the_start_are_503_until_they_can() {
    each(&OF_FILES, async |fault, codes| {
        let world = World::start(Some(fault)).await;
        world.nothing_is_sent(fault, &world.names()).await;
        for (name, ..) in &world.kinds {
            let status = world.status(name).await;
            assert!(
                codes.contains(&status["last_error_code"].as_str().unwrap_or_default()),
                "{fault:?}: {status}"
            );
        }
        for (name, _, good) in &world.kinds {
            write(&world.path(name), good);
        }
        for name in world.names() {
            world.until("it is read when it can be", name, |status| status["state"] == "current").await;
        }
        // What is made of a file is made when it is wanted, or after its last failure's wait.
        for name in ["bearer", "hmac", "base64", "aws"] {
            assert_eq!(world.get(name).await, 200, "{fault:?} {name}");
        }
        world.the_other_goes_on().await;
    })
    .await;
}

#[tokio::test]
async fn key_files_that_break_later_leave_the_last_good_value_in_use() {
    each(&OF_FILES, async |fault, codes| {
        let world = World::start(None).await;
        for name in world.names() {
            assert_eq!(world.get(name).await, 200, "{fault:?} {name}");
        }
        for name in world.names() {
            fault.happens_to(&world.path(name));
        }
        for name in world.names() {
            world.until("the fault is met", name, |status| status["state"] == "stale").await;
            let status = world.status(name).await;
            assert!(
                codes.contains(&status["last_error_code"].as_str().unwrap_or_default()),
                "{fault:?}: {status}"
            );
            assert_eq!(world.get(name).await, 200, "{fault:?} {name}");
        }
        world.the_other_goes_on().await;
    })
    .await;
}

#[tokio::test]
async fn values_that_cannot_stand_in_a_header_are_not_used() {
    each(&OF_VALUES, async |fault, codes| {
        let world = World::start(Some(fault)).await;
        world.nothing_is_sent(fault, &["bearer"]).await;
        let status = world.status("bearer").await;
        assert!(
            codes.contains(&status["last_error_code"].as_str().unwrap_or_default()),
            "{fault:?}: {status}"
        );
        // And later: the last good one stays.
        write(&world.path("bearer"), b"a-key\n");
        world.until("it is read", "bearer", |status| status["state"] == "current").await;
        fault.happens_to(&world.path("bearer"));
        world.until("the fault is met", "bearer", |status| status["state"] == "stale").await;
        assert_eq!(world.get("bearer").await, 200);
        assert_eq!(world.origin.requests().pop().unwrap().header("authorization"), Some("Bearer a-key"));
        world.the_other_goes_on().await;
    })
    .await;
}

/// Content of the right kind of file, of which no key can be made: the last good one stays, and of a list the next is taken.
#[tokio::test]
async fn keys_that_are_none_are_not_used() {
    let garbage = Fault::Content(b"{\"no\": \"key!\"}");
    let world = World::start(Some(garbage)).await;
    world.nothing_is_sent(garbage, &["base64", "aws"]).await;
    for (name, _, good) in world.kinds.iter().filter(|(name, ..)| ["base64", "aws"].contains(name)) {
        assert_eq!(world.status(name).await["last_error_code"], "malformed");
        write(&world.path(name), good);
        world.until("it is read", name, |status| status["state"] == "current").await;
        assert_eq!(world.get(name).await, 200, "{name}");
        garbage.happens_to(&world.path(name));
        world.until("the fault is met", name, |status| status["state"] == "stale").await;
        assert_eq!(world.status(name).await["last_error_code"], "malformed");
        assert_eq!(world.get(name).await, 200, "{name}");
    }
    world.the_other_goes_on().await;

    let origin = HttpOrigin::with(None, |_| text(200, "{}")).await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    for (name, bytes) in [
        ("bad", &b"no key!"[..]),
        ("hmac", b"YS1rZXk="),
        ("aws", br#"{"AccessKeyId":"AKIDOLD","SecretAccessKey":"s"}"#),
    ] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let list = |name: &str| format!("[\"file:{{dir}}/bad\", \"file:{{dir}}/{name}\"]");
    let hmac = format!(
        "hmac: {{ key: {}, key_encoding: base64, content: \"{{method}}\", signature: {{ header: X-Sig }} }}",
        list("hmac")
    );
    let aws = format!("aws_sigv4: {{ keys: {}, region: eu-west-1, service: sqs }}", list("aws"));
    let mut policy = "providers:\n".to_owned();
    for (name, credential) in [("hmac", hmac), ("aws", aws)] {
        policy.push_str(&format!(
            "  {name}:\n    hosts: [{name}.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {{ {credential} }}\n",
            origin.address
        ));
    }
    let proxy = Proxy::start_in(dir, &policy).await;
    for name in ["hmac", "aws"] {
        assert_eq!(local_get(&proxy, &format!("/{name}/x")).await.status, 200, "{name}");
    }
    let seen = origin.requests();
    assert!(seen[0].header("x-sig").is_some());
    assert!(seen[1].header("authorization").unwrap().contains("AKIDOLD"), "{seen:?}");
}

/// As the real program, because who runs the tests may be allowed to read everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_without_permission_is_503_and_the_others_go_on() {
    let origin = HttpOrigin::with(None, |_| text(200, "{}")).await;
    let dir = tempfile::tempdir().unwrap();
    let mut policy = "providers:\n".to_owned();
    for name in ["closed", "later", "other"] {
        std::fs::write(dir.path().join(name), format!("key-of-{name}")).unwrap();
        policy.push_str(&format!(
            "  {name}:\n    hosts: [{name}.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {{ bearer: \"file:{{dir}}/{name}\" }}\n",
            origin.address
        ));
    }
    let mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&dir.path().join("closed"), 0o000);
    let path = write_policy(dir.path(), &policy);
    let mut command = outgate(&["run", "--config", &path, "--log", "info"]);
    if std::fs::read(dir.path().join("closed")).is_ok() {
        // It would be read by us. So the program runs as nobody, from where nobody may look.
        let program = dir.path().join("outgate");
        std::fs::copy(command.get_program(), &program).unwrap();
        mode(dir.path(), 0o777);
        let mut other = Command::new(program);
        other.args(command.get_args()).env_clear().uid(65_534).gid(65_534);
        command = other;
    }
    let program = Program::started(command);
    let get =
        async |name: &str| local_request(program.listener, "GET", &format!("/{name}/x"), "", "").await.status;
    assert_eq!((get("closed").await, get("later").await, get("other").await), (503, 200, 200));
    // A file that is taken away from it: the value that was read stays.
    let later = dir.path().join("later");
    std::fs::write(dir.path().join("new"), "another-key").unwrap();
    mode(&dir.path().join("new"), 0o000);
    std::fs::rename(dir.path().join("new"), &later).unwrap();
    let began = Instant::now();
    let told = loop {
        let status: Value =
            serde_json::from_str(&local_request(program.admin, "GET", "/status", "", "").await.text())
                .unwrap();
        let of = |name: &str| {
            let all = status["secrets"].as_array().unwrap();
            all.iter().find(|secret| secret["reference"].as_str().unwrap().ends_with(name)).unwrap().clone()
        };
        if of("/later")["state"] == "stale" {
            break (of("/closed"), of("/later"));
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for secret in [&told.0, &told.1] {
        assert_eq!(secret["last_error_code"], "unreadable", "{secret}");
    }
    assert_eq!((get("closed").await, get("later").await, get("other").await), (503, 200, 200));
    let sent = origin.requests().pop().unwrap();
    assert_eq!(sent.header("authorization"), Some("Bearer key-of-other"));
    mode(&dir.path().join("closed"), 0o644);
    let began = Instant::now();
    while get("closed").await != 200 {
        assert!(began.elapsed() < Duration::from_secs(120), "it is read when it may be");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
