//! Keys that AWS gives, as a token.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::credential::token::{TokenEnv, entry};
use crate::secret::Stores;
use crate::secret::cache::SecretCache;
use crate::secret::fake::{FakeServer, Reply, ok, pass, upstream_env};
use crate::secret::http::{MAX_FAILURES, WINDOW};

const KEYS: &str = r#"{"Code":"Success","AccessKeyId":"AKIDROLE","SecretAccessKey":"CANARY-secret","Token":"CANARY-session","Expiration":"2040-01-01T00:00:00Z"}"#;

#[tokio::test]
async fn a_source_that_fails_is_asked_ten_times_a_minute_and_its_failures_are_forgotten_when_it_works() {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = up.clone();
    let server = FakeServer::start(move |_| match is_up.load(Ordering::SeqCst) {
        true => ok(KEYS),
        false => Reply::Answer(500, "CANARY".to_owned()),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "{{ aws_sigv4: {{ credentials: {{ container: {{ endpoint: \"{}/keys\" }} }}, region: eu-west-1, service: s3 }} }}",
        server.url
    );
    let config: crate::credential::CredentialConfig = serde_yaml::from_str(&text).unwrap();
    let member = config.members(directory.path()).unwrap().remove(0);
    let cache = Arc::new(SecretCache::new(Stores::built_in(directory.path())));
    let env = TokenEnv::new(upstream_env());
    let keys = entry(&member.tokens[0], &cache, &env);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.clone().run(stop));

    let step = Duration::from_secs(2);
    let steps = (WINDOW.as_secs() / step.as_secs()) as usize;
    let mut asked = Vec::new();
    for _ in 0..2 * steps {
        assert!(keys.obtain().await.is_err());
        asked.push(server.lines().len());
        pass(step).await;
    }
    let most = asked.windows(steps - 1).map(|minute| minute.iter().sum::<usize>()).max();
    assert!(most <= Some(MAX_FAILURES) && asked[0] == 3, "{asked:?}");

    up.store(true, Ordering::SeqCst);
    let mut waited = Duration::ZERO;
    while keys.obtain().await.is_err() {
        waited += step;
        assert!(waited < Duration::from_secs(300));
        pass(step).await;
    }
    // Each rejection asks once more; what is good is no failure however often it is asked for.
    for _ in 0..2 * MAX_FAILURES {
        pass(Duration::from_millis(30_100)).await;
        keys.heal_refresh().await;
        assert_eq!(cache.status()[0].last_error_code, None);
    }
}
