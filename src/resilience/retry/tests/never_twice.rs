//! Never twice: a provider that acts, and fails at a random point. However it fails, no request acts twice, unless each of its
//! attempts carried the same key.
//!
//! The seed is printed, and stands in the text of a failure; put into [`seed`] it repeats the run.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;

use super::hints::stated;
use super::*;
use crate::message::body::BodyError;
use crate::resilience::timeout::tests::channel;

/// What was done for whom: by request, then by the key that each effect carried.
type Effects = Arc<Mutex<BTreeMap<u64, Vec<Option<HeaderValue>>>>>;

const REQUEST: HeaderName = HeaderName::from_static("x-request");

/// One attempt at the provider.
struct Provider {
    rng: Arc<Mutex<Rng>>,
    effects: Effects,
}

impl Provider {
    fn roll(&self, sides: u32) -> u32 {
        self.rng.lock().unwrap().u32(..sides)
    }

    /// Reads some, or all, of the body.
    async fn read(&self, request: &mut EgressRequest) -> bool {
        let all = self.roll(3) > 0;
        while let Some(frame) = request.body.frame().await {
            if frame.is_err() || (!all && self.roll(2) == 0) {
                return false;
            }
        }
        true
    }

    fn act(&self, request: &EgressRequest) {
        let number = request.headers[&REQUEST].to_str().unwrap().parse().unwrap();
        let key = request.headers.get(KEY).cloned();
        self.effects.lock().unwrap().entry(number).or_default().push(key);
    }

    async fn serve(&self, mut request: EgressRequest) -> Result<Response<Body>, Failure> {
        if self.roll(6) == 0 {
            return Err(Failure::not_sent(Fault::ConnectRefused));
        }
        request.exchange.handed_over();
        if self.roll(8) == 0 {
            // A stream that was refused, with a part of the body taken.
            self.read(&mut request).await;
            request.exchange.taken_back();
            return Err(Failure::not_sent(Fault::Reset));
        }
        if self.roll(5) == 0 || !self.read(&mut request).await {
            return self.end_without_effect().await;
        }
        self.act(&request);
        self.end_after_effect()
    }

    async fn end_without_effect(&self) -> Result<Response<Body>, Failure> {
        match self.roll(4) {
            0 => Err(Failure::sent(Fault::Reset)),
            1 => Err(Failure::sent(Fault::ResponseTimeout)),
            2 => Ok(judged(429, Class::Throttle, false)),
            _ => Ok(judged(503, Class::Unavailable, true)),
        }
    }

    fn end_after_effect(&self) -> Result<Response<Body>, Failure> {
        match self.roll(9) {
            0 => Err(Failure::sent(Fault::Reset)),
            1 => Err(Failure::sent(Fault::ResponseTimeout)),
            2 => Err(Failure::sent(Fault::Protocol)),
            3 => Ok(judged(503, Class::Unavailable, true)),
            4 => Ok(judged(500, Class::Success, true)),
            5 => Ok(judged(409, Class::Conflict, true)),
            // The provider is wrong about itself: its hint must not make an unsafe request safe.
            6 => {
                let mut answer = judged(503, Class::Overload, true);
                answer.headers_mut().insert(HINT, HeaderValue::from_static("true"));
                Ok(answer)
            }
            7 => Ok(Response::new(stated(
                9,
                vec![Ok(Bytes::from_static(b"cut")), Err(BodyError::UpstreamIdle)],
            ))),
            _ => Ok(Response::new(Body::full("done"))),
        }
    }
}

fn judged(status: u16, class: Class, acted: bool) -> Response<Body> {
    let mut answer = answer(status).map(|_| Body::full("why"));
    Verdict { class, acted, wait: None }.note(&mut answer);
    answer
}

/// A body as an app sends it: none, at once, or in pieces, shorter and longer than the replay buffer.
fn body(rng: &mut Rng) -> Body {
    let pieces = rng.usize(0..6);
    if rng.bool() {
        return Body::full("x".repeat(pieces * 8));
    }
    let (sender, body) = channel();
    tokio::spawn(async move {
        for _ in 0..pieces {
            if sender.send(Bytes::from_static(b"xxxxxxxx")).await.is_err() {
                break;
            }
        }
    });
    body
}

/// An SDK with retries of its own, which does what the hint says.
async fn sdk(retry: &mut Retry<impl Inner>, rng: &mut Rng, number: u64, key: Option<&str>) -> u32 {
    for attempt in 1.. {
        let mut request = request(Method::POST, body(rng));
        request.headers.insert(REQUEST, number.into());
        if let Some(key) = key {
            request.headers.insert(KEY, HeaderValue::from_str(key).unwrap());
        }
        let again = match retry.call(request).await {
            Err(failure) => failure.hint.is_none(),
            Ok(answer) => {
                let status = answer.status();
                let no = answer.headers().get(HINT).is_some_and(|hint| hint == "false");
                let broken = answer.into_body().collect().await.is_err();
                !no && (broken || status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 429))
            }
        };
        if !again || attempt == 3 {
            return attempt;
        }
    }
    unreachable!()
}

/// Sends the requests of one kind; what was done, and how many attempts there were in all.
async fn run(seed: u64, keys: Keys) -> (Effects, u32) {
    let mut rng = Rng::with_seed(seed);
    let effects = Effects::default();
    let provider = Arc::new(Provider { rng: Arc::new(Mutex::new(rng.fork())), effects: effects.clone() });
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let service = service_fn(move |request: EgressRequest| {
        *counted.lock().unwrap() += 1;
        let provider = provider.clone();
        async move { provider.serve(request).await }
    });
    let settings =
        settings("{ hint: { header: x-should-retry }, replay_buffer: 24B, backoff: { base: 1ms } }");
    let idempotency = (keys != Keys::Unknown).then(self::keys);
    let mut retry = Retry::new(service, Some(settings), None, idempotency, None, 24);
    for number in 0..REQUESTS {
        let own = format!("app-{number}");
        let key = (keys == Keys::ByApp).then_some(own.as_str());
        sdk(&mut retry, &mut rng, number, key).await;
    }
    let calls = *calls.lock().unwrap();
    (effects, calls)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    Unknown,
    ByApp,
    ByOutgate,
}

const REQUESTS: u64 = 10_000;

fn seed() -> u64 {
    // Another run each time; the seed stands in the text of a failure.
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    seed
}

#[tokio::test(start_paused = true)]
async fn without_a_key_nothing_acts_twice() {
    let seed = seed();
    let (effects, calls) = run(seed, Keys::Unknown).await;
    let effects = effects.lock().unwrap();
    for (number, effects) in effects.iter() {
        assert_eq!(effects.len(), 1, "request {number} acted twice, seed {seed}");
    }
    // The test would hold for a loop that never repeats as well.
    assert!(u64::from(calls) > REQUESTS * 12 / 10, "{calls} attempts, seed {seed}");
    assert!(effects.len() as u64 > REQUESTS / 2, "{} effects, seed {seed}", effects.len());
}

#[tokio::test(start_paused = true)]
async fn with_a_key_every_effect_carries_the_same() {
    for keys in [Keys::ByApp, Keys::ByOutgate] {
        let seed = seed();
        let (effects, _) = run(seed, keys).await;
        let effects = effects.lock().unwrap();
        for (number, effects) in effects.iter() {
            let same = effects.iter().all(|key| key.is_some() && *key == effects[0]);
            assert!(same, "request {number} acted under {effects:?}, {keys:?}, seed {seed}");
        }
        let repeated = effects.values().filter(|effects| effects.len() > 1).count();
        assert!(repeated as u64 > REQUESTS / 50, "{repeated} repeated, {keys:?}, seed {seed}");
    }
}
