//! Tenants whose tokens come from one endpoint.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;

use super::*;
use crate::secret::fake::{FakeServer, Reply, ok, pass};
use crate::secret::http::{MAX_FAILURES, WINDOW};

const TOKEN: &str = r#"{"access_token":"token","expires_in":100000}"#;

fn tokens(server: &FakeServer, tenants: usize) -> Rig {
    let text = format!(
        "{{ oauth2_client_credentials: {{ token_url: \"{}/token\", client_id: \"plain:app\", client_secret: \"file:{{tenant}}\" }} }}",
        server.url
    );
    rig(&text, tenants)
}

impl Rig {
    /// How many of these tenants have a token.
    async fn good(&self, tenants: std::ops::Range<usize>) -> usize {
        let all = join_all(tenants.map(async |number| self.use_of(&format!("t{number}")).await)).await;
        all.into_iter().filter(|good| *good).count()
    }
}

#[tokio::test]
async fn an_identity_provider_that_fails_is_asked_ten_times_a_minute_by_all_tenants_together() {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = up.clone();
    let server = FakeServer::start(move |_| match is_up.load(Ordering::SeqCst) {
        true => ok(TOKEN),
        false => Reply::Answer(503, "CANARY".to_owned()),
    })
    .await;
    let rig = tokens(&server, 30);
    // Three minutes, in which each tenant asks as soon as it may; never more than ten questions in a minute.
    let step = Duration::from_secs(5);
    let mut asked = Vec::new();
    for _ in 0..36 {
        assert_eq!(rig.good(0..30).await, 0);
        asked.push(server.lines().len());
        pass(step).await;
    }
    let steps = (WINDOW.as_secs() / step.as_secs()) as usize;
    let most = asked.windows(steps - 1).map(|minute| minute.iter().sum::<usize>()).max();
    assert!(most <= Some(MAX_FAILURES), "{asked:?}");
    assert!(asked.iter().sum::<usize>() > MAX_FAILURES, "it is asked again: {asked:?}");
    // It comes back, and so do all.
    up.store(true, Ordering::SeqCst);
    let mut waited = 0;
    while rig.good(0..30).await < 30 {
        waited += step.as_secs();
        assert!(waited <= 400, "{} of 30", rig.good(0..30).await);
        pass(step).await;
    }
}

#[tokio::test]
async fn what_is_refused_to_some_tenants_touches_no_other() {
    let refused: Arc<Mutex<HashSet<String>>> = Arc::default();
    let set = refused.clone();
    let server = FakeServer::start(move |asked| {
        let basic = asked.header("authorization").trim_start_matches("Basic ");
        let client = String::from_utf8(STANDARD.decode(basic).unwrap()).unwrap();
        let number = client.rsplit_once("-of-").unwrap().1;
        match set.lock().unwrap().contains(number) {
            // A provider's own code is one as well.
            true if number.len() > 1 => Reply::Answer(403, r#"{"error":"access_denied"}"#.to_owned()),
            true => Reply::Answer(401, r#"{"error":"invalid_client"}"#.to_owned()),
            false => ok(TOKEN),
        }
    })
    .await;
    let rig = tokens(&server, 40);
    refused.lock().unwrap().extend((0..21).map(|number: usize| number.to_string()));
    assert_eq!(rig.good(0..21).await, 0);
    assert_eq!(rig.good(21..40).await, 19, "who was never asked for has its token at once");
    // Twice as many are refused as questions are free for what fails; those that are mended need none of them.
    refused.lock().unwrap().retain(|number| number != "7");
    pass(Duration::from_secs(8)).await;
    assert_eq!((rig.good(7..8).await, rig.good(0..7).await), (1, 0));
}
