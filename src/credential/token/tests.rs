//! The life of a token, against a scripted token endpoint.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{TokenEnv, entry};
use crate::credential::CredentialConfig;
use crate::credential::kinds::MemberSettings;
use crate::secret::cache::{RefreshOutcome, SecretCache, SecretEntry};
use crate::secret::fake::{FakeServer, Reply, ok, pass, upstream_env};
use crate::secret::{SecretState, Stores};

/// A cache that is kept fresh, with one token in it.
struct Rig {
    cache: Arc<SecretCache>,
    token: Arc<SecretEntry>,
    _stop: tokio_util::sync::DropGuard,
    directory: tempfile::TempDir,
}

impl Rig {
    /// `secret` is the line of the client's secret.
    async fn new(server: &FakeServer, secret: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("new"), "new-secret-1").unwrap();
        std::fs::write(directory.path().join("old"), "old-secret-1").unwrap();
        let member = member(&server.url, secret, directory.path());
        let cache = Arc::new(SecretCache::new(Stores::built_in(directory.path())));
        let env = TokenEnv { upstream: upstream_env() };
        let token = entry(&member.tokens[0], &cache, &env);
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        tokio::spawn(cache.clone().run(stop.clone()));
        Self { cache, token, _stop: stop.drop_guard(), directory }
    }

    fn value(&self) -> Option<String> {
        let version = self.token.current().ok()?;
        Some(String::from_utf8(version.value.expose().to_vec()).unwrap())
    }

    fn state(&self) -> SecretState {
        self.cache.status().into_iter().find(|one| one.reference.starts_with("token:")).unwrap().state
    }
}

fn member(url: &str, secret: &str, directory: &Path) -> MemberSettings {
    let text = format!(
        "{{ oauth2_client_credentials: {{ token_url: \"{url}/token\", client_id: \"plain:app\", client_secret: {secret}, scopes: [a, b] }} }}"
    );
    let config: CredentialConfig = serde_yaml::from_str(&text).unwrap();
    config.members(directory).unwrap().remove(0)
}

/// Tokens `token-1`, `token-2` and so on, which live for `seconds`.
async fn issuer(seconds: u64) -> FakeServer {
    let count = AtomicUsize::new(0);
    FakeServer::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        ok(serde_json::json!({ "access_token": format!("token-{number}"), "expires_in": seconds }))
    })
    .await
}

#[tokio::test]
async fn however_many_ask_one_request_gets_the_token() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:new").await;
    let all = (0..500).map(|_| rig.token.obtain());
    let versions = futures_util::future::join_all(all).await;
    assert!(versions.into_iter().all(|version| version.unwrap().value.expose() == b"token-1"));
    let asked = server.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].line, "POST /token");
    assert_eq!(asked[0].body, "grant_type=client_credentials&scope=a%20b");
    assert_eq!(asked[0].header("authorization"), "Basic YXBwOm5ldy1zZWNyZXQtMQ==");
    assert!(
        rig.token.reference().to_string().starts_with("token:oauth2_client_credentials/127.0.0.1/token#")
    );
}

#[tokio::test]
async fn it_is_replaced_in_the_background_while_the_old_one_serves() {
    let server = issuer(1000).await;
    let rig = Rig::new(&server, "file:new").await;
    rig.token.obtain().await.unwrap();
    pass(Duration::from_secs(740)).await;
    assert_eq!((rig.value().as_deref(), server.asked().len()), (Some("token-1"), 1));
    pass(Duration::from_secs(115)).await;
    // Past its time, and before its end: nobody waits.
    assert!(rig.value().is_some());
    while rig.value().as_deref() != Some("token-2") {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn a_token_that_ended_is_never_given_out_and_is_waited_for() {
    let failing = Arc::new(AtomicUsize::new(0));
    let fails = failing.clone();
    let server = FakeServer::start(move |_| match fails.load(Ordering::SeqCst) {
        0 => ok(r#"{"access_token":"token-1","expires_in":100}"#),
        1 => Reply::Answer(400, r#"{"error":"invalid_client"}"#.to_owned()),
        _ => ok(r#"{"access_token":"token-2","expires_in":100}"#),
    })
    .await;
    let rig = Rig::new(&server, "file:new").await;
    rig.token.obtain().await.unwrap();
    failing.store(1, Ordering::SeqCst);
    pass(Duration::from_secs(96)).await;
    let error = rig.token.obtain().await.err().unwrap();
    assert_eq!((error.code(), rig.value(), rig.state()), ("expired", None, SecretState::Missing));
    // Right after a failure nobody asks again, and nobody waits.
    let before = server.asked().len();
    assert!(rig.token.obtain().await.is_err());
    assert_eq!(server.asked().len(), before);
    assert!(rig.token.retry_at().is_some());
    failing.store(2, Ordering::SeqCst);
    pass(Duration::from_secs(8)).await;
    rig.token.obtain().await.unwrap();
    assert_eq!(rig.value().as_deref(), Some("token-2"));
}

#[tokio::test]
async fn a_rejected_token_is_replaced_once_for_all_who_saw_it_rejected() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:new").await;
    rig.token.obtain().await.unwrap();
    let all = (0..50).map(|_| rig.token.heal_refresh());
    let outcomes = futures_util::future::join_all(all).await;
    assert!(outcomes.iter().all(|outcome| *outcome == RefreshOutcome::Changed), "{outcomes:?}");
    assert_eq!(server.asked().len(), 2);
    assert_eq!(rig.token.heal_refresh().await, RefreshOutcome::TooSoon);
}

#[tokio::test]
async fn who_goes_away_does_not_break_off_the_request() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:new").await;
    {
        let mut gone = std::pin::pin!(rig.token.obtain());
        assert!(futures_util::poll!(gone.as_mut()).is_pending());
    }
    rig.token.obtain().await.unwrap();
    assert_eq!((rig.value().as_deref(), server.asked().len()), (Some("token-1"), 1));
}

#[tokio::test]
async fn in_an_overlap_the_old_secret_serves_and_a_replaced_one_is_read_again() {
    let server = FakeServer::start(|asked| match asked.header("authorization") {
        // app:old-secret-1 and app:new-secret-2
        "Basic YXBwOm9sZC1zZWNyZXQtMQ==" => ok(r#"{"access_token":"by-old"}"#),
        "Basic YXBwOm5ldy1zZWNyZXQtMg==" => ok(r#"{"access_token":"by-new"}"#),
        _ => Reply::Answer(401, r#"{"error":"invalid_client"}"#.to_owned()),
    })
    .await;
    let rig = Rig::new(&server, "[file:new, file:old]").await;
    rig.token.obtain().await.unwrap();
    assert_eq!(rig.value().as_deref(), Some("by-old"));
    pass(Duration::from_secs(31)).await;
    std::fs::write(rig.directory.path().join("new"), "new-secret-2").unwrap();
    assert_eq!(rig.token.heal_refresh().await, RefreshOutcome::Changed);
    assert_eq!(rig.value().as_deref(), Some("by-new"));
}

#[tokio::test]
async fn what_it_is_got_with_may_be_missing() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:nowhere").await;
    let error = rig.token.obtain().await.err().unwrap();
    assert_eq!((error.code(), server.asked().len()), ("token_input", 0));
    assert!(
        error.to_string().ends_with("what it is got with is not available: `file:nowhere` does not exist")
    );
}

#[test]
fn equal_settings_are_one_token_and_others_are_not() {
    let of =
        |secret: &str| member("https://idp.example.com", secret, Path::new("/")).tokens[0].reference.clone();
    assert_eq!(of("env:A"), of("env:A"));
    assert_ne!(of("env:A"), of("env:B"));
}

#[test]
fn mistakes_are_told() {
    let mistake = |text: &str| {
        let config: CredentialConfig = serde_yaml::from_str(text).unwrap();
        config.members(Path::new("/")).err().unwrap()
    };
    let told = mistake(
        "{ oauth2_client_credentials: { token_url: \"http://idp.example.com/t\", client_id: \"env:ID\", client_secret: env:S } }",
    );
    assert_eq!(told, "`token_url`: over http everybody on the way could read the secrets: use https");
    let told = mistake(
        "{ oauth2_client_credentials: { token_url: \"https://idp.example.com/t\", client_id: \"env:ID\", client_secret: env:S, extra: { scope: a } } }",
    );
    assert_eq!(told, "`extra` holds `scope`, which has a key of its own");
}
