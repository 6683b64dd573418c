//! What stores have in common: a store that fails is asked ten times a minute, in whatever way it fails and however many
//! secrets it is asked for; and a secret that is not there is not the store's failure.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::secret::fake::{Asked, FakeServer, Reply, ok, pass, store_env};
use crate::secret::{SecretCache, SecretError, SecretRef, SecretStore, StoreConfig, Stores};

/// References that are read.
const MANY: usize = 30;
/// How a store is written: `{url}` stands for its server; and its reference, in which `{n}` stands for a number.
const STORES: [(&str, &str); 8] = [
    ("vault: { address: '{url}', auth: { app_role: { role_id: r } } }", "s:kv/{n}#key"),
    ("vault: { address: '{url}', kv: 2, auth: { token: 'file:token' } }", "s:kv/{n}#key"),
    ("vault: { address: '{url}', kv: 1, auth: { token: 'file:token' } }", "s:kv/{n}#key"),
    (
        "aws_secrets_manager: { region: r, address: '{url}', credentials: { access_key_id: 'file:token', secret_access_key: 'file:token' } }",
        "s:{n}",
    ),
    (
        "aws_secrets_manager: { region: r, api: parameter_store, address: '{url}', credentials: { access_key_id: 'file:token', secret_access_key: 'file:token' } }",
        "s:/{n}",
    ),
    ("gcp_secret_manager: { project: p, address: '{url}', metadata: '{url}' }", "s:s{n}"),
    (
        "azure_key_vault: { address: '{url}', authority: '{url}', auth: { client_secret: { tenant: t, client_id: c, client_secret: 'file:token' } } }",
        "s:s{n}",
    ),
    ("kubernetes: { address: '{url}', namespace: n, token_file: token }", "s:s{n}#key"),
];

/// Ways to fail: what is refused, and how.
const FAULTS: [(&str, u16, &str); 12] = [
    ("all", 400, "{}"),
    ("all", 400, r#"{"__type":"ThrottlingException"}"#),
    ("all", 400, r#"{"__type":"UnrecognizedClientException"}"#),
    ("all", 401, "{}"),
    ("all", 403, r#"{"errors":["permission denied"]}"#),
    ("all", 429, "{}"),
    ("all", 500, "{}"),
    ("all", 200, "<html>"),
    ("all", 200, "{}"),
    ("reads", 403, r#"{"__type":"AccessDeniedException"}"#),
    ("reads", 200, "<html>"),
    ("reads", 200, "[]"),
];

fn login(asked: &Asked) -> Option<Reply> {
    let line = &asked.line;
    if line.contains("/auth/token/lookup-self") {
        return Some(ok(r#"{"data":{"ttl":3600}}"#));
    }
    if line.contains("/auth/approle/login") {
        return Some(ok(r#"{"auth":{"client_token":"t","lease_duration":3600}}"#));
    }
    if line.contains("/internal/ui/mounts/") {
        return Some(ok(r#"{"data":{"path":"kv/","type":"kv","options":{"version":"2"}}}"#));
    }
    what_logs_in_elsewhere(line).then(|| ok(r#"{"access_token":"t","expires_in":3600}"#))
}

/// Whether it went to the server that gives tokens, which is another one than the store.
fn what_logs_in_elsewhere(line: &str) -> bool {
    line.contains("/oauth2/") || line.contains("/computeMetadata/")
}

/// The same answer holds the value for every store.
fn value(asked: &Asked) -> Reply {
    if asked.line.contains("/v1/kv/data/") {
        return ok(r#"{"data":{"data":{"key":"dmFsdWU="},"metadata":{"version":1}}}"#);
    }
    ok(
        r#"{"data":{"key":"dmFsdWU="},"payload":{"data":"dmFsdWU="},"value":"v","SecretString":"v","Parameter":{"Value":"v"}}"#,
    )
}

struct Scene {
    store: Arc<dyn SecretStore>,
    references: Vec<SecretRef>,
    server: FakeServer,
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn of(
        (settings, reference): (&str, &str),
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let server = FakeServer::start(script).await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "token").unwrap();
        let store = store(&settings.replace("{url}", &server.url), directory.path());
        let reference = |number: usize| reference.replace("{n}", &number.to_string()).parse().unwrap();
        Self { store, references: (0..MANY).map(reference).collect(), server, _directory: directory }
    }

    /// Reads all at once, as at the start; how many were good, and the errors.
    async fn read_all(&self) -> (usize, Vec<SecretError>) {
        let all = join_all(self.references.iter().map(|reference| self.store.read(reference))).await;
        let errors: Vec<_> = all.into_iter().filter_map(Result::err).collect();
        (MANY - errors.len(), errors)
    }
}

fn store(settings: &str, directory: &Path) -> Arc<dyn SecretStore> {
    let config: StoreConfig = serde_yaml::from_str(settings).unwrap();
    assert!(config.mistakes(directory).is_empty(), "{:?}", config.mistakes(directory));
    config.build("s", None, &store_env(directory)).unwrap()
}

#[tokio::test]
async fn a_store_that_fails_is_asked_ten_times_a_minute_however_it_fails() {
    let scenes = STORES.iter().flat_map(|store| FAULTS.iter().map(move |fault| (*store, *fault)));
    // Side by side: they wait for sockets, and the clock is theirs together.
    let mut all = Vec::new();
    let fails = Arc::new(AtomicBool::new(true));
    for (written, fault) in scenes {
        let (what, status, body) = fault;
        let failing = fails.clone();
        let scene = Scene::of(written, move |asked| {
            if !failing.load(Ordering::SeqCst) || what == "reads" && login(asked).is_some() {
                return login(asked).unwrap_or_else(|| value(asked));
            }
            Reply::Answer(status, body.to_owned())
        });
        all.push((written, fault, scene.await, VecDeque::new()));
    }
    for second in (0..150).step_by(10) {
        join_all(all.iter_mut().map(async |(written, fault, scene, asked)| {
            let (good, errors) = scene.read_all().await;
            assert_eq!(good, 0, "{written:?} {fault:?}: {errors:?}");
            let elsewhere = |line: &String| what_logs_in_elsewhere(line) && fault.0 == "reads";
            let lines = scene.server.lines();
            asked.push_back((second, lines.iter().filter(|line| !elsewhere(line)).count()));
            while asked.front().is_some_and(|(then, _)| then + 60 <= second) {
                asked.pop_front();
            }
            let within: usize = asked.iter().map(|(_, count)| count).sum();
            assert!((1..=10).contains(&within), "{written:?} {fault:?}: {within} at {second} s");
        }))
        .await;
        pass(Duration::from_secs(10)).await;
    }
    // It is well again: a minute later everything is.
    fails.store(false, Ordering::SeqCst);
    pass(Duration::from_secs(60)).await;
    join_all(all.iter().map(async |(written, fault, scene, _)| {
        let (good, errors) = scene.read_all().await;
        assert_eq!(good, MANY, "{written:?} {fault:?}: {errors:?}");
    }))
    .await;
}

#[tokio::test]
async fn a_secret_that_is_not_there_is_no_failure_of_the_store() {
    for written in STORES {
        let asked = Arc::new(AtomicUsize::new(0));
        let scene = Scene::of(written, move |request| {
            if let Some(login) = login(request) {
                return login;
            }
            let text = format!("{} {}", request.line, request.body);
            let missing = ["kv/7 ", "kv/data/7 ", "s7/", "s7?", "s7 ", r#":"7""#, r#":"/7""#];
            if !missing.iter().any(|name| text.contains(name)) {
                return value(request);
            }
            asked.fetch_add(1, Ordering::SeqCst);
            match text.contains("secretsmanager") || request.header("x-amz-target").is_empty() {
                true => Reply::Answer(404, "{}".to_owned()),
                false if request.header("x-amz-target").contains("Parameter") => {
                    Reply::Answer(400, r#"{"__type":"ParameterNotFound"}"#.to_owned())
                }
                false => Reply::Answer(400, r#"{"__type":"ResourceNotFoundException"}"#.to_owned()),
            }
        })
        .await;
        for round in 0..20 {
            let (good, errors) = scene.read_all().await;
            let codes: Vec<_> = errors.iter().map(SecretError::code).collect();
            assert_eq!((good, &*codes), (MANY - 1, &["not_found"][..]), "{written:?} {round}");
        }
    }
}

/// At the start all are asked for at once, and the one that is there comes last.
#[tokio::test]
async fn one_that_is_there_is_not_kept_waiting_by_thirty_that_are_forbidden() {
    let server = FakeServer::start(|asked| match asked.body.contains("there") {
        true => value(asked),
        false => Reply::Answer(400, r#"{"__type":"AccessDeniedException"}"#.to_owned()),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "token").unwrap();
    let store = store(&STORES[3].0.replace("{url}", &server.url), directory.path());
    let cache = Arc::new(SecretCache::new(Stores::built_in(directory.path()).with("s", store)));
    (0..MANY).for_each(|number| drop(cache.entry(&format!("s:forbidden-{number}").parse().unwrap())));
    cache.read_new(Duration::from_secs(20)).await;
    let there = cache.entry(&"s:there".parse().unwrap());
    cache.read_new(Duration::from_secs(20)).await;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.clone().run(stop));

    let mut asked = vec![server.asked().len()];
    while there.current().is_err() {
        pass(Duration::from_secs(2)).await;
        loop {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            if cache.status().iter().all(|one| !one.reading) {
                break;
            }
        }
        asked.push(server.asked().len());
        assert!(asked.len() < 110, "{asked:?}");
    }
    // Until then ten in a minute, and none of them twice. With the first good answer the others go on.
    let before = &asked[..asked.len() - 1];
    let most = before.windows(29).map(|minute| minute[28] - minute[0]).max();
    assert!(asked[0] == 10 && most <= Some(10), "{asked:?}");
    let questions = server.asked().into_iter().take(before[before.len() - 1]);
    let bodies: Vec<_> = questions.map(|question| question.body).collect();
    assert_eq!(bodies.iter().collect::<HashSet<_>>().len(), bodies.len(), "{bodies:?}");
}

#[tokio::test]
async fn a_program_that_gives_garbage_is_left_alone_as_one_that_fails() {
    let directory = tempfile::tempdir().unwrap();
    let runs = Arc::new(Mutex::new(directory.path().join("runs")));
    let log = runs.lock().unwrap().clone();
    for (command, field, code) in [
        ("exit 3", "", "exec_exit"),
        ("echo no JSON", "#key", "not_json"),
        ("echo {}", "#key", "field_missing"),
        ("yes", "", "too_large"),
    ] {
        std::fs::write(&log, "").unwrap();
        let script = format!("echo x >> {}; {command}", log.display());
        let store = store(&format!("exec: {{ command: [/bin/sh, -c, '{script}', x] }}"), directory.path());
        let references: Vec<SecretRef> =
            (0..MANY).map(|number| format!("s:{number}{field}").parse().unwrap()).collect();
        let all = join_all(references.iter().map(|reference| store.read(reference))).await;
        assert_eq!(all[0].as_ref().err().map(SecretError::code), Some(code));
        assert!(all.iter().all(Result::is_err), "{command}");
        assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 10, "{command}");
    }
}
