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

mod busy;
mod refused;
mod shared;

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
