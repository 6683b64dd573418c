//! What the layer does where a credential ends while its request waits for a connection, on paused time.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::header::AUTHORIZATION;
use tokio_util::sync::CancellationToken;
use tower::service_fn;

use super::*;
use crate::credential::CredentialConfig;
use crate::credential::location::Location;
use crate::credential::token::TokenEnv;
use crate::message::failure::Progress;
use crate::resilience::timeout::tests::{channel, request_with};
use crate::secret::fake::{FakeServer, ok, pass, upstream_env};
use crate::secret::{SecretCache, Stores};
use crate::telemetry::Metrics;

/// A provider whose connections are taken: the first requests wait for as long as `waits` says, one after the other.
#[derive(Clone)]
struct Busy {
    waits: Arc<[u64]>,
    asked: Arc<AtomicUsize>,
    /// Targets and credentials that were sent.
    sent: Arc<Mutex<Vec<String>>>,
}

impl Busy {
    fn new(waits: &[u64]) -> Self {
        Self { waits: waits.into(), asked: Arc::default(), sent: Arc::default() }
    }

    fn sent(&self) -> Vec<String> {
        self.sent.lock().unwrap().clone()
    }
}

/// Waits its turn, and sends if the credential has not ended meanwhile.
async fn in_line(busy: Busy, request: EgressRequest) -> Result<Response<Body>, Failure> {
    let at = busy.asked.fetch_add(1, Ordering::SeqCst);
    if let Some(seconds) = busy.waits.get(at) {
        pass(Duration::from_secs(*seconds)).await;
    }
    if request.exchange.credential_is_over() {
        return Err(Failure::not_sent(Fault::Credential).handing_back(request));
    }
    let field = request.headers.get(AUTHORIZATION).map_or("-", |value| value.to_str().unwrap());
    busy.sent.lock().unwrap().push(format!("{} {field}", request.path_and_query));
    Ok(Response::new(Body::empty()))
}

struct Rig<S> {
    layer: Inject<S>,
    busy: Busy,
    _stop: tokio_util::sync::DropGuard,
}

/// `place` is where the token goes.
fn rig(server: &FakeServer, place: Location, directory: &Path, waits: &[u64]) -> Rig<impl Inner> {
    let text = format!(
        "{{ oauth2_client_credentials: {{ token_url: \"{}/token\", client_id: \"plain:app\", client_secret: env:PATH }} }}",
        server.url
    );
    let config: CredentialConfig = serde_yaml::from_str(&text).unwrap();
    let mut members = config.members(directory).unwrap();
    members[0].parts[0].location = place;
    let cache = Arc::new(SecretCache::new(Stores::built_in(directory)));
    let env = TokenEnv::new(upstream_env());
    let credentials = Credentials::bind(&members, &cache, &env, Metrics::new().provider("api"));
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.run(stop.clone()));
    let busy = Busy::new(waits);
    let provider = {
        let busy = busy.clone();
        service_fn(move |request| in_line(busy.clone(), request))
    };
    let layer = Inject::new(provider, Arc::new(credentials), Scrub::Standard);
    Rig { layer, busy, _stop: stop.drop_guard() }
}

fn request() -> EgressRequest {
    let mut request = request_with(Body::empty(), None);
    request.path_and_query = "/v1?a=b".parse().unwrap();
    request
}

/// Tokens `token-1`, `token-2` and so on, which live for 100 seconds, and may be used for 95.
async fn issuer() -> (FakeServer, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let issued = count.clone();
    let server = FakeServer::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        ok(serde_json::json!({ "access_token": format!("token-{number}"), "expires_in": 100 }))
    })
    .await;
    (server, issued)
}

#[tokio::test]
async fn a_token_that_ended_in_the_line_for_a_connection_is_not_sent_and_the_next_is() {
    let (server, issued) = issuer().await;
    let directory = tempfile::tempdir().unwrap();
    for (place, sent) in [
        (Location::Header(AUTHORIZATION), "/v1?a=b Bearer token-N"),
        (Location::Query("access_token".into()), "/v1?a=b&access_token=Bearer%20token-N -"),
    ] {
        // Two that ended in line, the third is sent.
        let mut rig = rig(&server, place, directory.path(), &[120, 120, 0]);
        let request = request();
        let exchange = request.exchange.clone();
        let answer = rig.layer.call(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let last = issued.load(Ordering::SeqCst);
        assert_eq!(rig.busy.sent(), [sent.replace('N', &last.to_string())]);
        assert_eq!(rig.busy.asked.load(Ordering::SeqCst), 3);
        assert!(!exchange.credential_is_over());
    }
}

#[tokio::test]
async fn who_waits_longer_than_three_tokens_live_is_answered() {
    let (server, _) = issuer().await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(&server, Location::Header(AUTHORIZATION), directory.path(), &[120; 10]);
    let failure = rig.layer.call(request()).await.err().unwrap();
    assert_eq!((failure.fault, failure.progress), (Fault::Credential, Progress::NotSent));
    assert!(failure.retry_after.is_some() && failure.handed_back.is_none());
    assert_eq!(rig.busy.sent(), [""; 0]);
}

#[tokio::test]
async fn what_was_signed_goes_again_where_its_body_is_at_hand() {
    let body = |text: &'static str| Body::full(text);
    let streamed = || channel().1;
    for (sent, goes) in [(Body::empty(), true), (body("held"), true), (streamed(), false)] {
        let mut request = request();
        request.body = sent;
        let prepared = prepared_for_each_request().await;
        let plain = Plain::of(&request, &prepared);
        assert_eq!(plain.is_some(), goes);
        let Some(plain) = plain else { continue };
        let before = (request.path_and_query.clone(), request.headers.clone(), request.body.at_hand());
        request.path_and_query = "/v1?a=b&signed=1".parse().unwrap();
        request.headers.insert(AUTHORIZATION, "signed".parse().unwrap());
        request.body = Body::full("signed");
        let back = plain.back_in(request, &Locations::default());
        assert_eq!((back.path_and_query.clone(), back.headers.clone(), back.body.at_hand()), before);
    }
}

async fn prepared_for_each_request() -> Arc<Prepared> {
    let directory = tempfile::tempdir().unwrap();
    let text = "{ hmac: { key: env:PATH, content: \"{method}\", signature: { header: X-Signature } } }";
    let config: CredentialConfig = serde_yaml::from_str(text).unwrap();
    let members = config.members(directory.path()).unwrap();
    let cache = Arc::new(SecretCache::new(Stores::built_in(directory.path())));
    let env = TokenEnv::new(upstream_env());
    let credential = Credential::bind(&members, &cache, &env, Metrics::new().provider("api"));
    cache.read_new(Duration::from_secs(1)).await;
    credential.choose(0).unwrap().2
}
