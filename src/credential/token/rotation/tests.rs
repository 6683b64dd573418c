//! Grants whose refresh token rotates, against a scripted identity provider that takes each refresh token once and ends
//! the earlier access tokens; kept in a file, in Vault's API, and in a real Redis.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::credential::CredentialConfig;
use crate::credential::kinds::MemberSettings;
use crate::credential::token::endpoint::TOTAL_KEPT;
use crate::credential::token::{TokenEnv, TokenSettings, entry};
use crate::secret::cache::{RefreshOutcome, SecretCache, SecretEntry};
use crate::secret::fake::{Asked as Received, FakeServer, Reply, ok, pass, store_env, upstream_env};
use crate::secret::{StoreConfig, Stores};

/// An identity provider that rotates. Its first refresh token is `seed-<n>` with the round it is in, then `refresh-1`, ...
struct Provider {
    server: FakeServer,
    issued: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
}

impl Provider {
    async fn new(seconds: u64) -> Self {
        let (issued, down): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let (count, fails) = (issued.clone(), down.clone());
        let server = FakeServer::start(move |asked: &Received| {
            if fails.load(Ordering::SeqCst) {
                return Reply::Answer(503, "CANARY".to_owned());
            }
            let number = count.load(Ordering::SeqCst);
            let good = if number == 0 { "seed-token-1".to_owned() } else { format!("refresh-{number}") };
            if !asked.body.contains(&format!("refresh_token={good}")) && !asked.body.contains("another-seed")
            {
                return Reply::Answer(
                    400,
                    r#"{"error":"invalid_grant","error_description":"CANARY"}"#.to_owned(),
                );
            }
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            ok(serde_json::json!({
                "access_token": format!("access-{number}"),
                "refresh_token": format!("refresh-{number}"),
                "expires_in": seconds,
            }))
        })
        .await;
        Self { server, issued, down }
    }

    fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }
}

/// One process: a cache of its own.
struct Process {
    token: Arc<SecretEntry>,
    _stop: tokio_util::sync::DropGuard,
}

impl Process {
    fn start(provider: &Provider, store: &str, directory: &Path, stores: Stores) -> Self {
        Self::asking(provider, store, "", directory, stores)
    }

    /// `more` are further keys of the credential.
    fn asking(provider: &Provider, store: &str, more: &str, directory: &Path, stores: Stores) -> Self {
        let member = member(provider, store, more, directory);
        let cache = Arc::new(SecretCache::new(stores));
        let token = entry(&member.tokens[0], &cache, &TokenEnv::new(upstream_env()));
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        tokio::spawn(cache.run(stop.clone()));
        Self { token, _stop: stop.drop_guard() }
    }

    /// Waits until it has this token. On a slow machine a place may not answer in time; then the token is got some seconds later.
    async fn has(&self, token: &str) {
        let wait = async {
            while self.value().as_deref() != Some(token) {
                let _ = self.token.obtain().await;
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(100), wait).await;
        assert!(waited.is_ok(), "{token} and not {:?}", self.value());
    }

    fn value(&self) -> Option<String> {
        let version = self.token.current().ok()?;
        Some(String::from_utf8(version.value.expose().to_vec()).unwrap())
    }
}

fn member(provider: &Provider, store: &str, more: &str, directory: &Path) -> MemberSettings {
    let text = format!(
        "{{ oauth2_refresh_token: {{ token_url: \"{}/token\", client_id: \"plain:app\", refresh_token: file:seed, rotates: true, store: {store}{more} }} }}",
        provider.server.url
    );
    let config: CredentialConfig = serde_yaml::from_str(&text).unwrap();
    config.members(directory).unwrap().remove(0)
}

/// What a process of this provider asks with.
fn mark_of(provider: &Provider, directory: &Path, more: &str) -> String {
    match &member(provider, "{ file: grant }", more, directory).tokens[0].settings {
        TokenSettings::Oauth2RefreshToken(settings) => settings.mark().to_owned(),
        _ => unreachable!("it is one"),
    }
}

/// An exchange that was made already, with this mark.
struct Asked(String);

impl Exchange for Asked {
    fn ask<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
        Box::pin(async { Err(TokenFault::Dead) })
    }
    fn lifetime(&self) -> Option<Duration> {
        None
    }
    fn mark(&self) -> &str {
        &self.0
    }
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("seed"), "seed-token-1").unwrap();
    directory
}

/// Four processes that share a place want a token at once, then find it refused at once: each time one asks for all.
async fn four_share(store: &str, directory: &Path, stores: impl Fn() -> Stores) {
    let provider = Provider::new(3600).await;
    let all: Vec<Process> = (0..4).map(|_| Process::start(&provider, store, directory, stores())).collect();
    join_all(all.iter().map(|one| one.has("access-1"))).await;
    assert_eq!((provider.issued(), provider.server.asked().len()), (1, 1));
    let outcomes = join_all(all.iter().map(|one| one.token.heal_refresh())).await;
    let done = [RefreshOutcome::Changed, RefreshOutcome::Failed];
    assert!(outcomes.iter().all(|outcome| done.contains(outcome)), "{outcomes:?}");
    join_all(all.iter().map(|one| one.has("access-2"))).await;
    assert_eq!((provider.issued(), provider.server.asked().len()), (2, 2));
    // A process that starts later takes what is there.
    let late = Process::start(&provider, store, directory, stores());
    late.has("access-2").await;
    assert_eq!(provider.issued(), 2);
}

#[tokio::test]
async fn four_processes_with_one_file_make_one_refresh() {
    let directory = directory();
    four_share("{ file: grant }", directory.path(), || Stores::built_in(directory.path())).await;
    let kept = std::fs::read_to_string(directory.path().join("grant")).unwrap();
    assert!(!kept.contains("access-") && !kept.contains("refresh-"), "{kept}");
}

#[tokio::test]
async fn four_processes_with_one_redis_make_one_refresh() {
    let directory = directory();
    let redis = Redis::start();
    std::fs::write(directory.path().join("url"), &redis.url).unwrap();
    four_share("{ redis: { url: file:url } }", directory.path(), || Stores::built_in(directory.path())).await;
}

#[tokio::test]
async fn four_processes_with_one_vault_make_one_refresh() {
    let directory = directory();
    let vault = vault().await;
    let config: StoreConfig = serde_yaml::from_str(&format!(
        "vault: {{ address: \"{}\", auth: {{ token: file:seed }} }}",
        vault.url
    ))
    .unwrap();
    let configs = [("kept".to_owned(), config)].into();
    let stores = || Stores::build(&configs, &store_env(directory.path()), None).unwrap();
    four_share("{ vault: \"kept:kv/outgate/grant\" }", directory.path(), stores).await;
}

#[tokio::test]
async fn a_restart_goes_on_with_what_was_kept() {
    let (directory, provider) = (directory(), Provider::new(100).await);
    let start =
        || Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    let first = start();
    first.token.obtain().await.unwrap();
    drop(first);
    let second = start();
    second.token.obtain().await.unwrap();
    assert_eq!((second.value().as_deref(), provider.issued()), (Some("access-1"), 1));
    // The seed was used up; what was kept is asked with.
    assert_eq!(second.token.heal_refresh().await, RefreshOutcome::Changed);
    assert_eq!((second.value().as_deref(), provider.issued()), (Some("access-2"), 2));
}

/// The place is empty, or as it was two generations ago: the seed and what was used up are not sent.
#[tokio::test]
async fn a_place_that_lost_its_page_or_went_back_gets_the_newest_one_again() {
    for goes_back in [false, true] {
        let (directory, provider) = (directory(), Provider::new(3600).await);
        let path = directory.path().join("grant");
        let start = || {
            Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()))
        };
        let (first, second) = (start(), start());
        first.token.obtain().await.unwrap();
        let old = std::fs::read(&path).unwrap();
        assert_eq!(first.token.heal_refresh().await, RefreshOutcome::Changed);
        // This one has only seen it there.
        second.token.obtain().await.unwrap();
        assert_eq!((second.value().as_deref(), provider.issued()), (Some("access-2"), 2));
        for number in [3, 4] {
            if goes_back {
                std::fs::write(&path, &old).unwrap();
            } else {
                std::fs::remove_file(&path).unwrap();
            }
            // No healing follows another within 30 s.
            pass(Duration::from_secs(31)).await;
            // The one that has only seen the newest there; the other then takes what it brought.
            assert_eq!(second.token.heal_refresh().await, RefreshOutcome::Changed);
            assert_eq!(first.token.heal_refresh().await, RefreshOutcome::Changed);
            assert_eq!(
                [first.value(), second.value()],
                [format!("access-{number}"), format!("access-{number}")].map(Some)
            );
            assert_eq!(provider.issued(), number);
        }
        let asked = provider.server.asked();
        let sent = |token: &str| asked.iter().filter(|asked| asked.body.contains(token)).count();
        assert_eq!((sent("seed-token-1"), sent("refresh-1"), asked.len()), (1, 1, 4), "{goes_back}");
        let late = start();
        late.token.obtain().await.unwrap();
        assert_eq!((late.value().as_deref(), provider.issued()), (Some("access-4"), 4));
    }
}

/// Another process has a new refresh token in its policy, and its page: that stays until something better is there.
#[tokio::test]
async fn what_another_key_has_sealed_is_not_written_over_by_what_is_remembered() {
    struct Answers(std::path::PathBuf, std::sync::Mutex<Vec<String>>);
    impl Exchange for Answers {
        fn ask<'a>(&'a self, token: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
            Box::pin(async move {
                let kept = std::fs::read_to_string(&self.0).unwrap();
                self.1.lock().unwrap().push(kept);
                match token {
                    b"seed" => Ok(TokenAnswer::of(r#"{"access_token":"a","refresh_token":"r"}"#)),
                    b"r" => Err(TokenFault::Http(crate::secret::http::HttpError::TimedOut)),
                    _ => panic!("nobody has such a token"),
                }
            })
        }
        fn lifetime(&self) -> Option<Duration> {
            None
        }
        fn mark(&self) -> &str {
            "mine"
        }
    }
    let directory = directory();
    let path = directory.path().join("grant");
    let (state, shelf) = (GrantState::default(), Shelf::File(file::FileShelf::new(&path)));
    let exchange = Answers(path.clone(), Default::default());
    state.rotating(b"seed", &shelf, &exchange).await.unwrap();
    std::fs::write(&path, r#"{"grant":"of-another"}"#).unwrap();
    // Not the seed, which was used up; and the other's page stands before, during and after it.
    assert_eq!(
        state.rotating(b"seed", &shelf, &exchange).await.err(),
        Some(TokenFault::Http(crate::secret::http::HttpError::TimedOut))
    );
    assert!(exchange.1.lock().unwrap()[1].contains("of-another"));
    assert!(std::fs::read_to_string(&path).unwrap().contains("of-another"));
}

#[tokio::test]
async fn an_access_token_of_other_scopes_is_not_taken_from_the_shelf() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    let start = |more| {
        let stores = Stores::built_in(directory.path());
        Process::asking(&provider, "{ file: grant }", more, directory.path(), stores)
    };
    let first = start(", scopes: [read]");
    first.token.obtain().await.unwrap();
    drop(first);
    // Each goes on with the refresh token, and asks for an access token of its own.
    for (number, more) in
        [(2, ", scopes: [read, write]"), (3, ", scopes: [read], extra: { audience_of: x }"), (4, "")]
    {
        let process = start(more);
        process.token.obtain().await.unwrap();
        assert_eq!(
            (process.value(), provider.issued()),
            (Some(format!("access-{number}")), number),
            "{more}"
        );
    }
    let same = start("");
    same.token.obtain().await.unwrap();
    assert_eq!((same.value().as_deref(), provider.issued()), (Some("access-4"), 4));
}

/// Pods whose clocks are an hour off the place's, which is to say each other's, either way: each lives by the place's.
#[tokio::test]
async fn pods_whose_clocks_differ_judge_a_shared_token_alike() {
    for (hours, date) in [(-1.0_f64, "behind"), (1.0, "ahead")] {
        let (directory, provider) = (directory(), Provider::new(600).await);
        let clock = Arc::new(std::sync::Mutex::new(hours * 3600.0));
        let vault = vault_with(clock.clone()).await;
        let config: StoreConfig = serde_yaml::from_str(&format!(
            "vault: {{ address: \"{}\", auth: {{ token: file:seed }} }}",
            vault.url
        ))
        .unwrap();
        let configs = [("kept".to_owned(), config)].into();
        let stores = || Stores::build(&configs, &store_env(directory.path()), None).unwrap();
        let start =
            || Process::start(&provider, "{ vault: \"kept:kv/outgate/grant\" }", directory.path(), stores());
        let left = |process: &Process| {
            let ends = process.token.ends_at().unwrap();
            ends.saturating_duration_since(Instant::now()).as_secs()
        };
        let first = start();
        first.token.obtain().await.unwrap();
        assert!((585..=595).contains(&left(&first)), "{date}: {}", left(&first));
        // Four minutes later, by the place's clock.
        *clock.lock().unwrap() += 240.0;
        let second = start();
        second.token.obtain().await.unwrap();
        assert_eq!((second.value().as_deref(), provider.issued()), (Some("access-1"), 1), "{date}");
        assert!((345..=355).contains(&left(&second)), "{date}: {}", left(&second));
        // And when it is over it is not taken any more.
        *clock.lock().unwrap() += 360.0;
        let third = start();
        third.token.obtain().await.unwrap();
        assert_eq!((third.value().as_deref(), provider.issued()), (Some("access-2"), 2), "{date}");
    }
}

#[tokio::test]
async fn nothing_is_asked_where_the_place_cannot_be_written() {
    let (directory, provider) = (directory(), Provider::new(100).await);
    let store = "{ file: /proc/outgate/grant }";
    let process = Process::start(&provider, store, directory.path(), Stores::built_in(directory.path()));
    let error = process.token.obtain().await.err().unwrap();
    assert_eq!((error.code(), provider.server.asked().len()), ("token_not_kept", 0));
}

#[tokio::test]
async fn what_cannot_be_written_is_not_used_and_is_written_later() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    let folder = directory.path().join("kept");
    std::fs::create_dir(&folder).unwrap();
    let gone = folder.clone();
    // Its directory goes while the endpoint is asked.
    let script = FakeServer::start(move |_| {
        let _ = std::fs::remove_dir_all(&gone);
        ok(r#"{"access_token":"access-1","refresh_token":"refresh-1","expires_in":3600}"#)
    })
    .await;
    let provider = Provider { server: script, ..provider };
    let process = Process::start(
        &provider,
        "{ file: kept/grant }",
        directory.path(),
        Stores::built_in(directory.path()),
    );
    let error = process.token.obtain().await.err().unwrap();
    assert_eq!((error.code(), process.value()), ("token_not_kept", None));
    std::fs::create_dir(&folder).unwrap();
    pass(Duration::from_secs(8)).await;
    process.token.obtain().await.unwrap();
    assert_eq!((process.value().as_deref(), provider.server.asked().len()), (Some("access-1"), 1));
}

#[tokio::test]
async fn a_grant_that_is_dead_is_not_asked_for_until_the_secret_changes() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    provider.issued.store(7, Ordering::SeqCst);
    let process =
        Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    for _ in 0..3 {
        let error = process.token.obtain().await.err().unwrap();
        assert_eq!((error.code(), provider.server.asked().len()), ("token_grant_dead", 1));
        assert!(!error.to_string().contains("CANARY"));
        pass(Duration::from_secs(60)).await;
    }
    std::fs::write(directory.path().join("seed"), "another-seed").unwrap();
    pass(Duration::from_secs(400)).await;
    process.token.obtain().await.unwrap();
    assert_eq!((process.value().as_deref(), provider.server.asked().len()), (Some("access-8"), 2));
}

#[tokio::test]
async fn what_another_refresh_token_has_sealed_stays_until_there_is_better() {
    let (directory, key) = (directory(), PageKey::of(b"the-seed-of-tomorrow").unwrap());
    let answer = TokenAnswer::of(r#"{"access_token":"a","refresh_token":"kept","expires_in":3600}"#);
    let record = Record::of(&answer, b"", 1, &Asked(String::new()), SystemTime::now());
    let place = directory.path().join("grant");
    std::fs::write(&place, page::write(None, Some(&record), None, &key).unwrap().as_bytes()).unwrap();
    let grant = || {
        let text = std::fs::read_to_string(&place).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["grant"].as_str().unwrap().to_owned()
    };
    let before = grant();
    let refuses = || Reply::Answer(400, r#"{"error":"invalid_grant"}"#.to_owned());
    let server = FakeServer::start(move |_| refuses()).await;
    let provider = Provider { server, ..Provider::new(1).await };
    // A process that still has yesterday's refresh token.
    let process =
        Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    assert!(process.token.obtain().await.is_err());
    assert_eq!(grant(), before);
}

#[tokio::test]
async fn a_refused_refresh_token_is_looked_for_again_before_the_grant_is_dead() {
    let (directory, key) = (directory(), PageKey::of(b"seed-token-1").unwrap());
    let path = directory.path().join("grant");
    let (place, seen) = (path.clone(), Arc::new(AtomicUsize::new(0)));
    let (asked, mark) = (seen.clone(), Arc::new(std::sync::OnceLock::<String>::new()));
    let of = mark.clone();
    // Another process, which took this one for gone, was faster: its outcome stands there when the refusal comes.
    let server = FakeServer::start(move |_| {
        asked.fetch_add(1, Ordering::SeqCst);
        let answer =
            TokenAnswer::of(r#"{"access_token":"by-the-other","refresh_token":"r","expires_in":3600}"#);
        let by = Asked(of.get().unwrap().clone());
        let record = Record::of(&answer, b"", 1, &by, SystemTime::now());
        std::fs::write(&place, page::write(None, Some(&record), None, &key).unwrap().as_bytes()).unwrap();
        Reply::Answer(400, r#"{"error":"invalid_grant"}"#.to_owned())
    })
    .await;
    let provider = Provider { server, ..Provider::new(1).await };
    mark.set(mark_of(&provider, directory.path(), "")).unwrap();
    let process =
        Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    process.token.obtain().await.unwrap();
    assert_eq!((process.value().as_deref(), seen.load(Ordering::SeqCst)), (Some("by-the-other"), 1));
}

#[tokio::test]
async fn an_endpoint_that_is_down_uses_nothing_up_and_lets_go_of_the_place() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    provider.down.store(true, Ordering::SeqCst);
    let process =
        Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    let error = process.token.obtain().await.err().unwrap();
    // Once: what may have been acted on is not repeated.
    assert_eq!((error.code(), provider.server.asked().len()), ("token_status", 1));
    assert!(!std::fs::read_to_string(directory.path().join("grant")).unwrap().contains("busy"));
    provider.down.store(false, Ordering::SeqCst);
    pass(Duration::from_secs(8)).await;
    process.token.obtain().await.unwrap();
    assert_eq!((process.value().as_deref(), provider.issued()), (Some("access-1"), 1));
}

/// An exchange that takes its time; the number of those that were made.
struct Slow(Duration, AtomicUsize);

impl Exchange for Slow {
    fn ask<'a>(&'a self, token: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
        Box::pin(async move {
            assert_eq!(token, b"seed-token-1", "nobody asked before");
            self.1.fetch_add(1, Ordering::SeqCst);
            sleep(self.0).await;
            Ok(TokenAnswer::of(r#"{"access_token":"a","refresh_token":"r","expires_in":3600}"#))
        })
    }
    fn lifetime(&self) -> Option<Duration> {
        None
    }
    fn mark(&self) -> &str {
        "mine"
    }
}

/// The longest that an exchange may take: others that share the place wait for it, and none takes it for gone.
#[tokio::test(start_paused = true)]
async fn the_mark_of_a_process_whose_endpoint_is_slow_counts_to_the_end_of_its_exchange() {
    for seconds in [20, 29] {
        assert!(Duration::from_secs(seconds) < TOTAL_KEPT);
        let directory = directory();
        let path = directory.path().join("grant");
        let exchange = Slow(Duration::from_secs(seconds), AtomicUsize::new(0));
        let one = async || {
            let (state, shelf) = (GrantState::default(), Shelf::File(file::FileShelf::new(&path)));
            let issued = state.rotating(b"seed-token-1", &shelf, &exchange).await.unwrap();
            assert_eq!(issued.token.as_slice(), b"a");
        };
        // One that comes at once, and one whose wait spans the end of the exchange.
        let late = async {
            sleep(Duration::from_secs(seconds - 1)).await;
            one().await;
        };
        let began = Instant::now();
        tokio::join!(one(), one(), late);
        assert_eq!(exchange.1.load(Ordering::SeqCst), 1, "{seconds} s");
        assert!(began.elapsed() < Duration::from_secs(seconds) + LOOK_MOST * 2, "{:?}", began.elapsed());
        assert!(!std::fs::read_to_string(&path).unwrap().contains("busy"));
    }
}

#[test]
fn the_mark_of_a_busy_process_outlives_its_exchange_and_the_write_behind_it() {
    // Five writes with their pauses, and each look and write of Redis or Vault takes a few seconds at most.
    assert!(LEASE >= TOTAL_KEPT + LOOK_FIRST * (1..=WRITES).sum::<u32>());
}

/// Through the real client: an endpoint of 20 s ends other tokens' exchanges, and not one that uses something up.
#[tokio::test]
async fn an_endpoint_of_twenty_seconds_does_not_end_a_grant_that_rotates() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let later = gate.clone();
    let server = FakeServer::start(move |_| {
        let body = r#"{"access_token":"access-1","refresh_token":"refresh-1","expires_in":3600}"#;
        Reply::Later(later.clone(), 200, body.to_owned())
    })
    .await;
    let provider = Provider { server, ..provider };
    let start =
        || Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    let (first, second) = (start(), start());
    let busy = || std::fs::read_to_string(directory.path().join("grant")).unwrap_or_default();
    let script = async {
        while provider.server.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        let mark = busy();
        assert!(mark.contains("busy"), "{mark}");
        pass(Duration::from_secs(20)).await;
        assert!(first.token.current().is_err() && second.token.current().is_err());
        // Looks of the other at the place, which find it busy as before.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert_eq!(busy(), mark, "the mark is the same");
        gate.add_permits(1);
    };
    let (one, other, ()) = tokio::join!(first.token.obtain(), second.token.obtain(), script);
    assert!(one.is_ok() && other.is_ok(), "{:?} {:?}", one.err(), other.err());
    assert_eq!((first.value(), second.value()), (Some("access-1".to_owned()), Some("access-1".to_owned())));
    assert_eq!(provider.server.asked().len(), 1, "one exchange, which was not repeated");
}

#[tokio::test(start_paused = true)]
async fn the_mark_of_a_process_that_was_killed_counts_for_a_while() {
    let directory = directory();
    std::fs::write(directory.path().join("grant"), r#"{"busy":"gone"}"#).unwrap();
    struct Once;
    impl Exchange for Once {
        fn ask<'a>(&'a self, token: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
            assert_eq!(token, b"seed-token-1");
            Box::pin(async { Ok(TokenAnswer::of(r#"{"access_token":"a","refresh_token":"r"}"#)) })
        }
        fn lifetime(&self) -> Option<Duration> {
            None
        }
        fn mark(&self) -> &str {
            "mine"
        }
    }
    let shelf = Shelf::File(file::FileShelf::new(&directory.path().join("grant")));
    let (state, began) = (GrantState::default(), Instant::now());
    let issued = state.rotating(b"seed-token-1", &shelf, &Once).await.unwrap();
    assert_eq!(issued.token.as_slice(), b"a");
    assert!((LEASE..ASK_BEFORE).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_fixed_refresh_token_that_was_refused_is_not_sent_again() {
    struct Never(AtomicUsize);
    impl Exchange for Never {
        fn ask<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Err(TokenFault::Refused { status: 400, code: "invalid_grant" }) })
        }
        fn lifetime(&self) -> Option<Duration> {
            None
        }
        fn mark(&self) -> &str {
            "mine"
        }
    }
    let (state, exchange) = (GrantState::default(), Never(AtomicUsize::new(0)));
    for (seed, asked) in [("one", 1), ("one", 1), ("two", 2)] {
        let fault = state.fixed(seed.as_bytes(), &exchange).await.err().unwrap();
        assert_eq!((fault, exchange.0.load(Ordering::SeqCst)), (TokenFault::Dead, asked));
    }
}

/// A KV of version 2 as Vault's API describes it, of one secret.
async fn vault() -> FakeServer {
    vault_with(Arc::default()).await
}

/// The same with a clock that is so many seconds ahead of this machine's.
async fn vault_with(ahead: Arc<std::sync::Mutex<f64>>) -> FakeServer {
    let kept: std::sync::Mutex<(u64, String)> = Default::default();
    FakeServer::start(move |asked| {
        let mut kept = kept.lock().unwrap();
        let ahead = *ahead.lock().unwrap();
        let span = Duration::from_secs_f64(ahead.abs());
        let now = if ahead < 0.0 { SystemTime::now() - span } else { SystemTime::now() + span };
        let ok = |body: serde_json::Value| {
            Reply::With(200, format!("Date: {}", httpdate::fmt_http_date(now)), body.to_string())
        };
        match &*asked.line {
            "GET /v1/auth/token/lookup-self" => {
                ok(serde_json::json!({ "data": { "ttl": 0, "renewable": false } }))
            }
            "GET /v1/sys/internal/ui/mounts/kv/outgate/grant" => ok(
                serde_json::json!({ "data": { "path": "kv/", "type": "kv", "options": { "version": "2" } } }),
            ),
            "GET /v1/kv/data/outgate/grant" if kept.0 > 0 => ok(serde_json::json!({
                "data": { "data": { "outgate": kept.1 }, "metadata": { "version": kept.0 } }
            })),
            "POST /v1/kv/data/outgate/grant" => {
                let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
                if body["options"]["cas"] != kept.0 {
                    return Reply::Answer(
                        400,
                        r#"{"errors":["check-and-set parameter did not match"]}"#.to_owned(),
                    );
                }
                *kept = (kept.0 + 1, body["data"]["outgate"].as_str().unwrap().to_owned());
                ok(serde_json::json!({ "data": { "version": kept.0 } }))
            }
            _ => Reply::Answer(404, r#"{"errors":[]}"#.to_owned()),
        }
    })
    .await
}

/// A real server on a socket of its own.
struct Redis {
    url: String,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Redis {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("redis.sock");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let url = format!("redis+unix://{}", socket.display());
        let began = std::time::Instant::now();
        while ::redis::Client::open(url.as_str()).unwrap().get_connection().is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "redis-server does not answer");
            std::thread::yield_now();
        }
        Self { url, child, _directory: directory }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
