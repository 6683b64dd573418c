//! What the layer does where a credential ends while its request waits for a connection, on paused time.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::header::AUTHORIZATION;
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;
use tower::service_fn;

use super::*;
use crate::credential::CredentialConfig;
use crate::credential::location::Location;
use crate::credential::token::TokenEnv;
use crate::message::failure::Progress;
use crate::resilience::timeout::tests::request_with;
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
async fn what_was_signed_goes_again_unless_its_body_was_begun() {
    let streamed = |text: &'static str| Body::boxed(Body::full(text));
    for (sent, begun, text) in [
        (Body::empty(), false, Some("")),
        (Body::full("held"), false, Some("held")),
        (streamed("streams"), false, Some("streams")),
        (streamed("streams"), true, None),
    ] {
        let mut request = request();
        request.body = sent;
        let prepared = prepared_for_each_request().await;
        let before = (request.path_and_query.clone(), request.headers.clone(), request.body.exact_length());
        let plain = Plain::of(&mut request, &prepared);
        assert_eq!(request.body.exact_length(), before.2, "its length can be told while it is lent");
        request.path_and_query = "/v1?a=b&signed=1".parse().unwrap();
        request.headers.insert(AUTHORIZATION, "signed".parse().unwrap());
        let mut lent = std::mem::replace(&mut request.body, Body::full("signed"));
        if begun {
            lent.frame().await.unwrap().unwrap();
        }
        let back = plain.back_in(request, &Locations::default());
        assert_eq!(back.is_some(), text.is_some(), "{text:?}");
        let Some(back) = back else { continue };
        let after = (back.path_and_query.clone(), back.headers.clone(), back.body.exact_length());
        assert_eq!(after, before);
        let body = back.into_parts().body.collect().await.unwrap().to_bytes();
        assert_eq!(Some(&*body), text.map(str::as_bytes));
    }
}

/// A token can come between two looks for it: who looked before and after must not be told that there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_request_is_refused_in_the_moment_in_which_a_token_comes() {
    let (server, _) = issuer().await;
    let directory = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let rig = rig(&server, Location::Header(AUTHORIZATION), directory.path(), &[]);
        let (layer, sent) = (rig.layer.clone(), rig.busy.clone());
        // Asks all the time, and gives up at once where it would have to wait.
        let asking = std::thread::spawn(move || {
            let mut layer = layer;
            let mut cx = Context::from_waker(std::task::Waker::noop());
            while sent.sent().is_empty() {
                if let Poll::Ready(Err(failure)) = layer.call(request()).as_mut().poll(&mut cx) {
                    return Some(failure.fault);
                }
            }
            None
        });
        let refused = tokio::task::spawn_blocking(|| asking.join().unwrap()).await.unwrap();
        assert_eq!(refused, None, "round {round}");
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
