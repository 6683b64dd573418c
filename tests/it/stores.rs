//! Stores of secrets behind the whole proxy: from the policy to the provider, over reloads, and out of the `seal` command.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use outgate::pipeline::reload::ReloadOutcome;

use super::program::outgate;
use super::support::client::{admin, local_get};
use super::support::origin::RawOrigin;
use super::support::proxy::Proxy;
use super::world::{answering, until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn origin() -> RawOrigin {
    RawOrigin::start(None, answering(|_| Some(OK.to_vec()))).await
}

/// A provider `api` over plain HTTP with a credential, and a section of stores.
fn policy(origin: &RawOrigin, secrets: &str, credential: &str) -> String {
    format!(
        "secrets:\n{secrets}\nproviders:\n  api:\n    hosts: [api.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {{ bearer: \"{credential}\" }}\n",
        origin.address
    )
}

/// The secret of the last request at the origin.
fn last(origin: &RawOrigin) -> String {
    let text = origin.text().to_ascii_lowercase();
    let (_, rest) = text.rsplit_once("authorization: bearer ").unwrap_or_default();
    rest.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_reload_that_changes_a_store_changes_the_secret() {
    let origin = origin().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    for (name, value) in [("one/key", "first-value"), ("two/key", "second-value")] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value).unwrap();
    }
    let store =
        |folder: &str| format!("  run: {{ exec: {{ command: [/bin/cat, \"{{dir}}/{folder}/{{path}}\"] }} }}");
    let proxy = Proxy::start_in(dir.clone(), &policy(&origin, &store("one"), "run:key")).await;
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    assert_eq!(last(&origin), "first-value");
    let outcome = proxy.reload(&policy(&origin, &store("two"), "run:key")).await;
    assert!(matches!(outcome, ReloadOutcome::Applied(2)), "{outcome:?}");
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    assert_eq!(last(&origin), "second-value", "the first request after the reload has it");
    // A store that gives nothing: the last good value stays.
    let outcome = proxy.reload(&policy(&origin, &store("none"), "run:key")).await;
    assert!(matches!(outcome, ReloadOutcome::Applied(3)), "{outcome:?}");
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    assert_eq!(last(&origin), "second-value");
    let status = admin(&proxy, "GET", "/status").await.text();
    assert!(status.contains("exec_exit") && status.contains("run:key"), "{status}");
    // A new store and a reference to it arrive together.
    let renamed = store("one").replace("run:", "other:");
    let outcome = proxy.reload(&policy(&origin, &renamed, "other:key")).await;
    assert!(matches!(outcome, ReloadOutcome::Applied(4)), "{outcome:?}");
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    assert_eq!(last(&origin), "first-value");
    // What cannot be used is told with its place, and nothing changes.
    let wrong = policy(&origin, "  run: { exec: { command: [cat] } }\n  ENV: { kubernetes: {} }", "env:A");
    let text = format!(
        "{}",
        match proxy.reload(&wrong).await {
            ReloadOutcome::Refused(error) => error,
            other => panic!("{other:?}"),
        }
    );
    assert!(text.contains("secrets.run.exec.command") && text.contains("secrets.ENV"), "{text}");
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
}

fn seal(dir: &Path, arguments: &[&str], value: &str) -> Output {
    let mut command = outgate(&[&["seal"], arguments].concat());
    command
        .current_dir(dir)
        .env("SEAL_KEY", std::fs::read_to_string(dir.join("key")).unwrap_or_default().trim());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended before it read anything.
    let _ = child.stdin.take().unwrap().write_all(value.as_bytes());
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn what_seal_writes_is_what_the_provider_gets() {
    let origin = origin().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let key = seal(dir.path(), &["--new-key"], "");
    assert!(key.status.success());
    std::fs::write(dir.path().join("key"), &key.stdout).unwrap();
    let add = |name: &str, value: &str| {
        seal(dir.path(), &["--store", "s.yaml", "--key", "env:SEAL_KEY", name], value)
    };
    let added = add("stripe", "first-sealed-value\n");
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    assert!(add("app", "{\"key\":\"x\"}").status.success());
    let text = std::fs::read_to_string(dir.path().join("s.yaml")).unwrap();
    assert!(text.contains("\"stripe\": aes256gcm:") && !text.contains("sealed-value"), "{text}");
    let store = "  sealed: { sealed: { file: \"{dir}/s.yaml\", key: \"file:{dir}/key\" } }";
    let proxy = Proxy::start_in(dir.clone(), &policy(&origin, store, "sealed:stripe")).await;
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
    assert_eq!(last(&origin), "first-sealed-value");
    // A running outgate sees the new value.
    assert!(add("stripe", "second-sealed-value").status.success());
    for _ in 0..1000 {
        assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
        if last(&origin) == "second-sealed-value" {
            break;
        }
    }
    until("the new value is read", || proxy.metrics().contains("outgate_secret_version")).await;
    let again = std::fs::read_to_string(dir.path().join("s.yaml")).unwrap();
    assert_eq!(again.lines().count(), 2, "{again}");
    // Another key would make a file of which half does not open; the value is not repeated.
    for (arguments, value, words) in [
        (["--store", "s.yaml", "--key", "file:other", "x"], "CANARY", "opens none"),
        (["--store", "s.yaml", "--key", "env:NONE", "x"], "CANARY", "does not exist"),
        (["--store", "s.yaml", "--key", "CANARYCANARY", "x"], "CANARY", "literal"),
        (["--store", "s.yaml", "--key", "env:SEAL_KEY", "a b"], "CANARY", "a name is"),
        (["--store", "s.yaml", "--key", "env:SEAL_KEY", "x"], " \n", "empty or blank"),
        (["--store", "key", "--key", "env:SEAL_KEY", "x"], "CANARY", "not a map"),
    ] {
        std::fs::write(dir.path().join("other"), seal(dir.path(), &["--new-key"], "").stdout).unwrap();
        let refused = seal(dir.path(), &arguments, value);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && text.contains(words), "{arguments:?}: {text}");
        assert!(!text.contains("CANARY") && refused.stdout.is_empty(), "{text}");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("s.yaml")).unwrap(), again);
}

/// What a program and a sealed file do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fails {
    Nothing,
    /// With this answer of the program; the file is gone.
    Gone(&'static str),
    /// The file is garbage.
    Garbled(&'static str),
    /// The file is sealed with another key.
    OtherKey(&'static str),
}

/// How the program fails; with each, one way of the file to fail.
const FAILS: [Fails; 6] = [
    Fails::Gone("exit 3"),
    Fails::Garbled("printf 'a\\nX: 1'"),
    Fails::OtherKey("printf 'a\\0b'"),
    Fails::Gone("exec sleep 60"),
    Fails::Garbled("exec head -c 3000000 /dev/zero"),
    Fails::OtherKey(":"),
];

/// A folder with a program, a sealed file, its key and another one, and what makes them fail.
struct Local(Arc<tempfile::TempDir>);

impl Local {
    fn new() -> Self {
        let local = Self(Arc::new(tempfile::tempdir().unwrap()));
        for key in ["good-key", "other-key"] {
            std::fs::write(local.0.path().join(key), seal(local.0.path(), &["--new-key"], "").stdout)
                .unwrap();
        }
        let good = ["--store", "good.yaml", "--key", "file:good-key", "stripe"];
        assert!(seal(local.0.path(), &good, "a-sealed-value").status.success());
        std::fs::write(local.0.path().join("other"), "another-value").unwrap();
        local
    }

    /// In one step each, as tools that rotate do.
    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.path().join("new"), bytes).unwrap();
        std::fs::rename(self.0.path().join("new"), self.0.path().join(name)).unwrap();
    }

    fn copy(&self, from: &str, to: &str) {
        self.put(to, &std::fs::read(self.0.path().join(from)).unwrap());
    }

    fn set(&self, fails: Fails) {
        let program = match fails {
            Fails::Nothing => "echo a-value-of-the-program",
            Fails::Gone(how) | Fails::Garbled(how) | Fails::OtherKey(how) => how,
        };
        self.put("program", format!("{program}\n").as_bytes());
        self.copy(if matches!(fails, Fails::OtherKey(_)) { "other-key" } else { "good-key" }, "key");
        match fails {
            Fails::Nothing | Fails::OtherKey(_) => self.copy("good.yaml", "s.yaml"),
            Fails::Garbled(_) => self.put("s.yaml", b"stripe: [nothing, like, that]\n"),
            Fails::Gone(_) => _ = std::fs::remove_file(self.0.path().join("s.yaml")),
        }
    }

    fn policy(origin: &RawOrigin) -> String {
        let mut policy = "secrets:\n  run: { exec: { command: [/bin/sh, \"{dir}/program\"], timeout: 1s, ttl: 1s } }\n  sealed: { sealed: { file: \"{dir}/s.yaml\", key: \"file:{dir}/key\" } }\nproviders:\n".to_owned();
        for (name, reference) in
            [("run", "run:x"), ("sealed", "sealed:stripe"), ("other", "file:{dir}/other")]
        {
            policy.push_str(&format!(
                "  {name}:\n    hosts: [{name}.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {{ bearer: \"{reference}\" }}\n",
                origin.address
            ));
        }
        policy
    }
}

/// Waits until both are in this state, and says by which codes they fail.
async fn both_are(proxy: &super::support::proxy::Proxy, state: &str, what: Fails) -> Vec<Option<String>> {
    let began = std::time::Instant::now();
    loop {
        let status: serde_json::Value =
            serde_json::from_str(&admin(proxy, "GET", "/status").await.text()).unwrap();
        let own = |one: &&serde_json::Value| !one["reference"].as_str().unwrap().starts_with("file:");
        let both: Vec<&serde_json::Value> =
            status["secrets"].as_array().unwrap().iter().filter(own).collect();
        if both.len() == 2 && both.iter().all(|one| one["state"] == state) {
            return both.iter().map(|one| one["last_error_code"].as_str().map(str::to_owned)).collect();
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{what:?} {state}: {both:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn fails_and_comes_back(fails: Fails) {
    let (origin, local) = (origin().await, Local::new());
    local.set(fails);
    let proxy = Proxy::start_in(local.0.clone(), &Local::policy(&origin)).await;
    let get = async |name: &str| {
        let status = local_get(&proxy, &format!("/{name}/x")).await.status;
        (status, last(&origin))
    };
    let other = (200, "another-value".to_owned());
    assert_eq!(get("other").await, other, "{fails:?}");
    for name in ["run", "sealed"] {
        // What the origin saw last is still the other's.
        assert_eq!(get(name).await, (503, other.1.clone()), "{fails:?} {name}");
    }
    let codes = both_are(&proxy, "missing", fails).await;
    assert!(codes.iter().all(Option::is_some), "{fails:?}: {codes:?}");
    local.set(Fails::Nothing);
    both_are(&proxy, "current", fails).await;
    let good = [("run", "a-value-of-the-program"), ("sealed", "a-sealed-value")];
    for (name, value) in good {
        assert_eq!(get(name).await, (200, value.to_owned()), "{fails:?} {name}");
    }
    local.set(fails);
    let codes = both_are(&proxy, "stale", fails).await;
    assert!(codes.iter().all(Option::is_some), "{fails:?}: {codes:?}");
    for (name, value) in good {
        assert_eq!(get(name).await, (200, value.to_owned()), "{fails:?} {name}: the last good value stays");
    }
    assert_eq!(get("other").await, other, "{fails:?}");
}

#[tokio::test]
async fn a_program_and_a_sealed_file_that_fail_take_no_other_provider_with_them() {
    stream::iter(FAILS).for_each_concurrent(3, fails_and_comes_back).await;
}
