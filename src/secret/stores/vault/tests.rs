//! The store against a server that answers as Vault's API documents say.

use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::secret::fake::{Asked, FakeServer, Reply, ok, pass, store_env};

/// The answers of the documents, for a token that lives as long as `ttl` says.
struct Script {
    ttl: Mutex<u64>,
    /// What a renewal grants.
    renewed: Mutex<u64>,
    /// The token that is taken; others get a 403.
    token: Mutex<String>,
    /// How many leases were given.
    leases: Mutex<u64>,
    lease_renewed: Mutex<u64>,
    /// Answers to leases and renewals wait for it, where it is there.
    gate: Mutex<Option<Arc<tokio::sync::Semaphore>>>,
}

impl Script {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            ttl: Mutex::new(3600),
            renewed: Mutex::new(3600),
            token: Mutex::new("s.one".into()),
            leases: Mutex::new(0),
            lease_renewed: Mutex::new(3600),
            gate: Mutex::new(None),
        })
    }

    fn auth(&self, seconds: u64) -> Reply {
        let token = self.token.lock().unwrap();
        ok(format!(
            r#"{{"request_id":"x","lease_id":"","renewable":false,"lease_duration":0,"data":null,"auth":{{"client_token":"{token}","accessor":"a","policies":["p"],"lease_duration":{seconds},"renewable":true,"token_type":"service"}}}}"#
        ))
    }

    /// Answers to leases and renewals are on their way for as long as the gate is shut.
    fn answer(&self, asked: &Asked) -> Reply {
        let gate = self.gate.lock().unwrap().clone();
        match (self.answer_now(asked), gate) {
            (Reply::Answer(status, body), Some(gate))
                if asked.line.contains("GET /v1/database/creds") || asked.line.contains("leases/renew") =>
            {
                Reply::Later(gate, status, body)
            }
            (answer, _) => answer,
        }
    }

    fn answer_now(&self, asked: &Asked) -> Reply {
        let login = asked.line.starts_with("POST /v1/auth/") && asked.line.ends_with("/login");
        if login {
            let good = asked.body.contains(r#""role_id":"r","secret_id":"CANARY-secret-id""#)
                || asked.body == r#"{"role":"outgate","jwt":"CANARY-jwt"}"#;
            return if good {
                self.auth(*self.ttl.lock().unwrap())
            } else {
                errors(400, "invalid role or CANARY")
            };
        }
        if asked.header("x-vault-token") != *self.token.lock().unwrap() {
            return errors(403, "permission denied CANARY");
        }
        match &*asked.line {
            "GET /v1/auth/token/lookup-self" => ok(format!(
                r#"{{"data":{{"ttl":{},"renewable":true,"id":"CANARY"}}}}"#,
                self.ttl.lock().unwrap()
            )),
            "POST /v1/auth/token/renew-self" => match *self.renewed.lock().unwrap() {
                0 => errors(400, "lease is not renewable"),
                seconds => self.auth(seconds),
            },
            "GET /v1/sys/internal/ui/mounts/kv/stripe" | "GET /v1/sys/internal/ui/mounts/kv/gone" => {
                ok(r#"{"data":{"path":"kv/","type":"kv","options":{"version":"2"}}}"#)
            }
            "GET /v1/sys/internal/ui/mounts/team/kv/stripe" => {
                ok(r#"{"data":{"path":"team/kv/","type":"kv","options":{"version":"2"}}}"#)
            }
            "GET /v1/sys/internal/ui/mounts/old/stripe" => {
                ok(r#"{"data":{"path":"old/","type":"kv","options":null}}"#)
            }
            "GET /v1/sys/internal/ui/mounts/database/creds/app" => {
                ok(r#"{"data":{"path":"database/","type":"database"}}"#)
            }
            "GET /v1/kv/data/stripe" | "GET /v1/kv/data/stripe?version=4" | "GET /v1/team/kv/data/stripe" => {
                versioned("CANARY-four", 4)
            }
            "GET /v1/kv/data/stripe?version=3" => versioned("CANARY-three", 3),
            "GET /v1/kv/data/gone" => {
                Reply::Answer(404, r#"{"data":{"data":null,"metadata":{"version":2}}}"#.into())
            }
            "GET /v1/old/denied" => errors(403, "permission denied CANARY"),
            "GET /v1/old/stripe" => {
                ok(r#"{"lease_id":"","lease_duration":2764800,"data":{"key":"CANARY-plain","n":7}}"#)
            }
            "GET /v1/database/creds/app" => {
                let mut leases = self.leases.lock().unwrap();
                *leases += 1;
                ok(format!(
                    r#"{{"lease_id":"database/creds/app/{leases}","lease_duration":3600,"renewable":true,"data":{{"username":"user-{leases}","password":"CANARY-{leases}"}}}}"#
                ))
            }
            "GET /v1/sys/internal/ui/mounts/hanging/creds/slow" => {
                ok(r#"{"data":{"path":"hanging/","type":"database"}}"#)
            }
            "GET /v1/hanging/creds/slow" => Reply::Hang,
            "PUT /v1/sys/leases/renew" => match *self.lease_renewed.lock().unwrap() {
                0 => errors(400, "lease expired CANARY"),
                seconds => ok(format!(
                    r#"{{"lease_id":"database/creds/app/1","lease_duration":{seconds},"renewable":true}}"#
                )),
            },
            _ => Reply::Answer(404, r#"{"errors":[]}"#.into()),
        }
    }
}

fn errors(status: u16, text: &str) -> Reply {
    Reply::Answer(status, format!(r#"{{"errors":["{text}"]}}"#))
}

fn versioned(value: &str, version: u64) -> Reply {
    ok(format!(r#"{{"data":{{"data":{{"secret_key":"{value}"}},"metadata":{{"version":{version}}}}}}}"#))
}

struct Scene {
    server: FakeServer,
    script: Arc<Script>,
    store: VaultStore,
    directory: tempfile::TempDir,
}

async fn scene(settings: &str) -> Scene {
    let script = Script::new();
    let answers = script.clone();
    let server = FakeServer::start(move |asked| answers.answer(asked)).await;
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("token", "s.one\n"), ("id", "CANARY-secret-id\n"), ("jwt", "CANARY-jwt")] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let store = store(&server, directory.path(), settings);
    Scene { server, script, store, directory }
}

fn store(server: &FakeServer, directory: &Path, settings: &str) -> VaultStore {
    let config: VaultConfig = serde_yaml::from_str(&format!("address: {}\n{settings}", server.url)).unwrap();
    assert!(config.mistakes().is_empty(), "{:?}", config.mistakes());
    VaultStore::new("test", &config, None, &store_env(directory)).unwrap()
}

const APP_ROLE: &str = "auth: { app_role: { role_id: r, secret_id: file:id } }\n";
const TOKEN: &str = "auth: { token: file:token }\n";

/// The value, or the error's code.
async fn read(store: &VaultStore, reference: &str) -> String {
    match store.read(&reference.parse().unwrap()).await {
        Ok(reading) => String::from_utf8(reading.bytes.to_vec()).unwrap(),
        Err(error) => {
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
            error.code().to_owned()
        }
    }
}

#[tokio::test]
async fn both_versions_of_kv_are_read() {
    let scene = scene(TOKEN).await;
    let table = [
        ("v:kv/stripe#secret_key", "CANARY-four"),
        ("v:kv/stripe#secret_key@3", "CANARY-three"),
        ("v:kv/stripe#secret_key@previous", "CANARY-three"),
        ("v:team/kv/stripe#secret_key", "CANARY-four"),
        ("v:old/stripe#key", "CANARY-plain"),
        ("v:old/stripe#n", "7"),
        ("v:old/stripe#key@3", "bad_reference"),
        ("v:kv/stripe#secret_key@x", "bad_reference"),
        ("v:kv/stripe", "bad_reference"),
        ("v:kv/../stripe#key", "bad_reference"),
        ("v:kv/stripe#other", "field_missing"),
        ("v:kv/gone#key", "not_found"),
        ("v:nowhere/stripe#key", "not_found"),
    ];
    for (reference, expected) in table {
        assert_eq!(read(&scene.store, reference).await, expected, "{reference}");
    }
    scene.server.lines();
    assert_eq!(read(&scene.store, "v:kv/stripe#secret_key").await, "CANARY-four");
    assert_eq!(
        scene.server.lines(),
        ["GET /v1/kv/data/stripe"],
        "neither login nor mount are asked for again"
    );
}

#[tokio::test]
async fn a_stated_version_and_mount_spare_the_question() {
    let scene = scene(&format!("{TOKEN}namespace: team-a\nkv: 2\nmount: team/kv\n")).await;
    assert_eq!(read(&scene.store, "v:stripe#secret_key").await, "CANARY-four");
    let asked = scene.server.asked();
    assert!(asked.iter().all(|asked| asked.header("x-vault-namespace") == "team-a"), "{asked:?}");
    assert_eq!(scene.server.lines(), ["GET /v1/auth/token/lookup-self", "GET /v1/team/kv/data/stripe"]);
    let plain = store(&scene.server, scene.directory.path(), &format!("{TOKEN}kv: 1\n"));
    assert_eq!(read(&plain, "v:old/stripe#key").await, "CANARY-plain");
}

#[tokio::test]
async fn every_login_sends_what_its_method_wants() {
    for (settings, line) in [
        (APP_ROLE.to_owned(), "POST /v1/auth/approle/login"),
        (
            "auth: { app_role: { role_id: r, secret_id: file:id, mount: team/approle } }\n".to_owned(),
            "POST /v1/auth/team/approle/login",
        ),
        (
            "auth: { kubernetes: { role: outgate, token_file: jwt } }\n".to_owned(),
            "POST /v1/auth/kubernetes/login",
        ),
        ("auth: { jwt: { role: outgate, token_file: jwt } }\n".to_owned(), "POST /v1/auth/jwt/login"),
    ] {
        let scene = scene(&settings).await;
        assert_eq!(read(&scene.store, "v:kv/stripe#secret_key").await, "CANARY-four", "{settings}");
        assert_eq!(scene.server.lines()[0], line);
    }
    let scene = scene("auth: { app_role: { role_id: r, secret_id: file:missing } }\n").await;
    assert_eq!(read(&scene.store, "v:kv/stripe#secret_key").await, "store_login");
    let scene = self::scene("auth: { app_role: { role_id: wrong, secret_id: file:id } }\n").await;
    assert_eq!(read(&scene.store, "v:kv/stripe#secret_key").await, "store_login");
}

#[tokio::test]
async fn the_token_is_renewed_at_two_thirds_and_replaced_near_its_maximum() {
    let scene = scene(APP_ROLE).await;
    let tend = async |seconds| {
        pass(Duration::from_secs(seconds)).await;
        if scene.store.upkeep_at().is_some_and(|at| at <= Instant::now()) {
            scene.store.upkeep().await;
        }
        scene.server.lines()
    };
    assert_eq!(scene.store.upkeep_at(), None, "no token, nothing to renew");
    read(&scene.store, "v:old/stripe#key").await;
    scene.server.lines();
    assert_eq!(tend(2390).await, [""; 0]);
    assert_eq!(tend(20).await, ["POST /v1/auth/token/renew-self"]);
    *scene.script.renewed.lock().unwrap() = 100;
    assert_eq!(tend(2410).await, ["POST /v1/auth/token/renew-self", "POST /v1/auth/approle/login"]);
    *scene.script.renewed.lock().unwrap() = 0;
    assert_eq!(tend(2410).await, ["POST /v1/auth/token/renew-self", "POST /v1/auth/approle/login"]);
    // Neither renewed nor replaced: the old token serves to its end, and the store is left alone for a while.
    std::fs::remove_file(scene.directory.path().join("id")).unwrap();
    assert_eq!(tend(2410).await, ["POST /v1/auth/token/renew-self"]);
    assert_eq!(tend(5).await, [""; 0]);
    assert_eq!(read(&scene.store, "v:old/stripe#key").await, "CANARY-plain");
    pass(Duration::from_secs(1300)).await;
    assert_eq!(read(&scene.store, "v:old/stripe#key").await, "store_login");
    assert_eq!(scene.store.upkeep_at(), None);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once_a_minute() {
    let scene = scene(TOKEN).await;
    assert_eq!(read(&scene.store, "v:old/stripe#key").await, "CANARY-plain");
    // An agent writes the new token.
    *scene.script.token.lock().unwrap() = "s.two".into();
    std::fs::write(scene.directory.path().join("token"), "s.two\n").unwrap();
    assert_eq!(read(&scene.store, "v:old/stripe#key").await, "CANARY-plain");
    *scene.script.token.lock().unwrap() = "s.three".into();
    assert_eq!(read(&scene.store, "v:old/stripe#key").await, "store_denied");
    scene.server.lines();
    assert_eq!(read(&scene.store, "v:old/stripe#key").await, "store_denied");
    assert_eq!(scene.server.lines(), ["GET /v1/old/stripe"], "no further login within the minute");
}

#[tokio::test]
async fn a_path_that_is_denied_causes_no_login() {
    let scene = scene(&format!("{APP_ROLE}kv: 1\n")).await;
    assert_eq!(read(&scene.store, "v:old/denied#key").await, "store_denied");
    let login = "POST /v1/auth/approle/login";
    let asked = ["GET /v1/old/denied", "GET /v1/auth/token/lookup-self"];
    assert_eq!(scene.server.lines(), [login, asked[0], asked[1]]);
    pass(Duration::from_secs(61)).await;
    assert_eq!(read(&scene.store, "v:old/denied#key").await, "store_denied");
    assert_eq!(scene.server.lines(), asked);
}

#[tokio::test]
async fn fields_of_a_lease_belong_together_and_end_with_it() {
    let scene = scene(APP_ROLE).await;
    let (user, password) = ("v:database/creds/app#username", "v:database/creds/app#password");
    let both = async || (read(&scene.store, user).await, read(&scene.store, password).await);
    let pair = |n: u64| (format!("user-{n}"), format!("CANARY-{n}"));
    assert_eq!(both().await, pair(1));
    let reading = scene.store.read(&user.parse().unwrap()).await.unwrap_or_else(|error| panic!("{error}"));
    let (ends, again) = (reading.expires.unwrap(), reading.again.unwrap());
    let near = |at: Instant, seconds: u64| {
        let left = at.saturating_duration_since(Instant::now()).as_secs();
        assert!((seconds - 5..=seconds + 1).contains(&left), "{left} {seconds}");
    };
    near(ends, 3600);
    near(again, 2400);
    assert_eq!(
        scene.server.lines().iter().filter(|line| line.contains("creds")).count(),
        2,
        "the mount, one lease"
    );

    pass(Duration::from_secs(2401)).await;
    assert_eq!(both().await, pair(1), "renewed");
    let lines = scene.server.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("leases/renew")).count(), 1, "{lines:?}");

    *scene.script.lease_renewed.lock().unwrap() = 0;
    pass(Duration::from_secs(2401)).await;
    assert_eq!(both().await, pair(2), "no longer renewed: a new one, for both");

    scene.store.rejected(&user.parse().unwrap());
    assert_eq!(read(&scene.store, user).await, "user-3", "however young it was: it may have been revoked");
    scene.store.rejected(&password.parse().unwrap());
    assert_eq!(both().await, pair(3), "the other field's healing took no second one");
    pass(Duration::from_secs(31)).await;
    scene.store.rejected(&user.parse().unwrap());
    assert_eq!(both().await, pair(4));
}

/// A term begins when it is asked for, not when the answer comes: Vault counted from somewhere in between.
#[tokio::test]
async fn a_term_is_counted_from_the_question() {
    let scene = scene("auth: { token: file:token }\ntimeouts: { total: 60s }\n").await;
    let user = "v:database/creds/app#username".parse().unwrap();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    for (line, before) in [("GET /v1/database/creds/app", 0), ("PUT /v1/sys/leases/renew", 2401)] {
        *scene.script.gate.lock().unwrap() = Some(gate.clone());
        pass(Duration::from_secs(before)).await;
        scene.server.lines();
        let answer = async {
            while !scene.server.asked().iter().any(|asked| asked.line == line) {
                tokio::task::yield_now().await;
            }
            pass(Duration::from_secs(40)).await;
            gate.add_permits(1);
        };
        let (reading, ()) = tokio::join!(scene.store.read(&user), answer);
        let reading = reading.unwrap_or_else(|error| panic!("{error}"));
        let left = |at: Option<Instant>| at.unwrap().saturating_duration_since(Instant::now()).as_secs();
        assert!((3550..=3560).contains(&left(reading.expires)), "{line} {}", left(reading.expires));
        assert!((2350..=2360).contains(&left(reading.again)), "{line} {}", left(reading.again));
    }
}

/// Vault may have made a user and lost the answer: to ask again would make a second one, which nobody knows of.
#[tokio::test]
async fn a_lost_lease_is_not_asked_for_again_at_once() {
    for lost in [|| Reply::Close, || Reply::Answer(500, "CANARY".to_owned())] {
        let script = Script::new();
        let answers = script.clone();
        let server = FakeServer::start(move |asked| match &*asked.line {
            "GET /v1/database/creds/app" => lost(),
            _ => answers.answer(asked),
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "s.one\n").unwrap();
        let store = store(&server, directory.path(), TOKEN);
        assert!(read(&store, "v:database/creds/app#username").await.starts_with("store_"));
        let asked = server
            .lines()
            .into_iter()
            .filter(|line| line.ends_with("creds/app") && line.starts_with("GET /v1/database"));
        assert_eq!(asked.count(), 1);
    }
}

#[tokio::test]
async fn leases_are_taken_anew_under_a_new_login() {
    let scene = scene(APP_ROLE).await;
    let user = "v:database/creds/app#username";
    assert_eq!(read(&scene.store, user).await, "user-1");
    *scene.script.renewed.lock().unwrap() = 0;
    pass(Duration::from_secs(2401)).await;
    assert_eq!(read(&scene.store, user).await, "user-2");
}

#[tokio::test]
async fn a_lease_that_hangs_keeps_no_other_waiting() {
    let scene = scene("auth: { token: file:token }\ntimeouts: { total: 20s }\n").await;
    let hanging = "v:hanging/creds/slow#username".parse().unwrap();
    let slow = scene.store.read(&hanging);
    let good = async {
        while !scene.server.asked().iter().any(|asked| asked.line == "GET /v1/hanging/creds/slow") {
            tokio::task::yield_now().await;
        }
        read(&scene.store, "v:database/creds/app#username").await
    };
    tokio::select! {
        _ = slow => panic!("it hangs"),
        good = good => assert_eq!(good, "user-1"),
    }
}

/// Two that find nothing look at the same time; one of them has written between the two looks of the other.
#[tokio::test]
async fn what_was_written_between_two_looks_is_not_taken_for_deleted() {
    for (deleted, version, text) in [(false, 1, Some("of the other")), (true, 2, None), (false, 0, None)] {
        let looked = std::sync::atomic::AtomicUsize::new(0);
        let server = FakeServer::start(move |asked| {
            let missing = || Reply::Answer(404, r#"{"errors":[]}"#.into());
            match &*asked.line {
                "GET /v1/auth/token/lookup-self" => ok(r#"{"data":{"ttl":3600,"renewable":true}}"#),
                "GET /v1/kv/metadata/grant" if version == 0 => missing(),
                "GET /v1/kv/metadata/grant" => ok(format!(r#"{{"data":{{"current_version":{version}}}}}"#)),
                "GET /v1/kv/data/grant" if version > 0 && !deleted => {
                    match looked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                        0 => missing(),
                        _ => ok(r#"{"data":{"data":{"outgate":"of the other"},"metadata":{"version":1}}}"#),
                    }
                }
                _ => missing(),
            }
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "s.one").unwrap();
        let store = store(&server, directory.path(), "kv: 2\nmount: kv\nauth: { token: file:token }\n");
        let look = store.ledger().unwrap().look(&"v:grant".parse().unwrap()).await;
        let entry = look.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((entry.version, entry.text.as_deref().map(String::as_str)), (version, text));
    }
}

#[tokio::test]
async fn garbage_is_named_and_not_repeated() {
    let table = [
        ("CANARY", "store_garbled"),
        (r#"{"auth":{"client_token":"CANARY\n","lease_duration":5}}"#, "store_garbled"),
        (r#"{"auth":{"client_token":"CANARY"}}"#, "store_garbled"),
        (r#"{"data":"CANARY"}"#, "store_garbled"),
    ];
    for (answer, code) in table {
        let server = FakeServer::start(move |_| ok(answer)).await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("id"), "CANARY-secret-id").unwrap();
        let login = store(&server, directory.path(), APP_ROLE);
        let got = read(&login, "v:kv/stripe#key").await;
        assert!(got == "store_login" || got == code, "{answer}: {got}");
        let plain = store(&server, directory.path(), "kv: 1\nauth: { token: file:id }\n");
        let got = read(&plain, "v:kv/stripe#key").await;
        assert!(got == code || got == "field_missing" || got == "store_login", "{answer}: {got}");
    }
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let mistakes = |settings: &str| {
        let config: VaultConfig = serde_yaml::from_str(settings).unwrap();
        config.mistakes().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    let table: [(&str, &[&str]); 5] = [
        ("address: https://vault\nauth: { token: env:T }", &[]),
        ("address: http://vault\nauth: { token: other:T }", &["address", "auth.token"]),
        (
            "address: https://vault\nauth: { jwt: { role: r, token_file: f, mount: /jwt } }\nmount: a//b",
            &["auth.jwt.mount", "mount"],
        ),
        (
            "address: https://vault\nauth: { token: env:T }\ntimeouts: { total: 2m }\nrefresh: 10ms",
            &["timeouts.total", "refresh"],
        ),
        (
            "address: http://vault\nplaintext: allow\nauth: { token: env:T }\nnamespace: \"a\\nb\"",
            &["namespace"],
        ),
    ];
    for (settings, expected) in table {
        assert_eq!(mistakes(settings), expected, "{settings}");
    }
    for (kv, good) in [("auto", true), ("1", true), ("2", true), ("\"2\"", true), ("3", false), ("x", false)]
    {
        assert_eq!(serde_yaml::from_str::<KvVersion>(kv).is_ok(), good, "{kv}");
    }
}
