//! Keys that are written into bodies.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::Value;

use super::*;
use crate::message::request::EgressParts;
use crate::resilience::timeout::tests::channel;

const FIXED: &str = "{ replay_buffer: 100B, backoff: { jitter: none }, hint: { header: x-should-retry } }";

/// A loop for a provider that honours keys at `field`.
fn in_bodies(service: impl Inner, field: &str) -> Retry<impl Inner> {
    let keys: IdempotencyConfig = serde_yaml::from_str(field).unwrap();
    let keys = keys.compile(&mut Mistakes::default());
    Retry::new(service, Some(settings(FIXED)), None, Some(keys), None, 100)
}

fn json(method: Method, body: Body) -> EgressRequest {
    let mut request = request(method, body);
    request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

/// The bodies of all attempts at a provider that may have acted and says that it is unavailable, and whether the app was told
/// not to repeat it.
async fn attempts(field: &str, request: EgressRequest) -> (Vec<String>, bool) {
    let (service, log) = script([Play::unavailable()]);
    let answer = in_bodies(service, field).call(request).await.unwrap();
    let log = log.lock().unwrap();
    (log.iter().map(|attempt| attempt.body.clone()).collect(), answer.headers().contains_key(HINT))
}

/// The key of a body that is whole and as long as was said.
fn key(body: &str) -> String {
    let read: Value = serde_json::from_str(body).unwrap();
    read["k"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_made_key_is_the_same_on_each_attempt() {
    let (one, two) = (r#"{ "pay": 1.50 }"#, r#"{"pay":2,"k":null}"#);
    let mut keys = Vec::new();
    for body in [one, two] {
        let (service, log) = script([Play::reset(), Play::unavailable()]);
        let request = json(Method::POST, Body::full(body));
        let answer = in_bodies(service, "{ field: /k }").call(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let log = log.lock().unwrap();
        assert_eq!(log.len(), 3);
        assert!(log.iter().all(|attempt| attempt.body == log[0].body && attempt.key.is_none()), "{log:?}");
        keys.push(key(&log[0].body));
        let rest = log[0].body.replace(&format!("\"{}\"", keys.last().unwrap()), "null");
        assert!(rest == body || rest == r#"{ "pay": 1.50,"k":null }"#, "{rest}");
    }
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test(start_paused = true)]
async fn the_length_follows_and_digests_go() {
    let service = service_fn(|request: EgressRequest| async move {
        let (length, exact) = (request.headers[CONTENT_LENGTH].clone(), request.body.exact_length());
        let EgressParts { body, headers, .. } = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut answer = Response::new(Body::empty());
        answer.headers_mut().insert(CONTENT_LENGTH, length);
        assert_eq!(exact, Some(body.len() as u64));
        assert!(!headers.contains_key("content-md5"));
        assert!(body.len() > 40, "{body:?}");
        answer.headers_mut().insert("x-read", body.len().into());
        Ok::<_, Failure>(answer)
    });
    let mut request = json(Method::POST, Body::full("{}"));
    request.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("2"));
    request.headers.insert("content-md5", HeaderValue::from_static("mZFLkyvTelC5g8XnyQrpOw=="));
    let answer = in_bodies(service, "{ field: /k }").call(request).await.unwrap();
    assert_eq!(answer.headers()[CONTENT_LENGTH], answer.headers()["x-read"]);
}

#[tokio::test(start_paused = true)]
async fn only_an_object_that_is_short_gets_a_key() {
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(93));
    // Short, and too long with a key.
    let full = format!(r#"{{"a":"{}"}}"#, "x".repeat(60));
    assert!(long.len() == 101 && full.len() < 100);
    for body in [
        &long,
        &full,
        "",
        "[]",
        "[{}]",
        "7",
        "pay=1",
        "{\"a\":1",
        "{} {}",
        r#"{"k":"a","k":"b"}"#,
        r#"{"k":"a","K":"b"}"#,
        r#"{"K":"a"}"#,
        r#"{"k":{}}"#,
    ] {
        let request = json(Method::POST, Body::full(body.to_owned()));
        assert_eq!(attempts("{ field: /k }", request).await, (vec![body.to_owned()], true), "{body}");
    }
    // Which methods, types and codings.
    let body = || Body::full("{}");
    let alone = (vec!["{}".to_owned()], true);
    assert_eq!(attempts("{ field: /k }", json(Method::PATCH, body())).await, alone);
    assert_eq!(attempts("{ field: /k }", request(Method::POST, body())).await, alone);
    assert_eq!(attempts("{ field: /k, add: false }", json(Method::POST, body())).await, alone);
    let mut packed = json(Method::POST, body());
    packed.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    assert_eq!(attempts("{ field: /k }", packed).await, alone);
    let upgrade =
        EgressRequest::from(EgressParts { upgrade: true, ..json(Method::POST, body()).into_parts() });
    assert_eq!(attempts("{ field: /k }", upgrade).await, alone);
    let (written, told) = attempts("{ field: /k }", json(Method::POST, body())).await;
    assert_eq!((written.len(), told), (2, false));
}

/// The app's own key counts where the provider would read it, and nowhere else.
#[tokio::test(start_paused = true)]
async fn a_key_in_what_is_no_json_is_no_key() {
    const KEYED: &str = r#"{"k":"app-1"}"#;
    let body = || Body::full(KEYED);
    let (written, told) = attempts("{ field: /k }", json(Method::POST, body())).await;
    assert_eq!((written, told), (vec![KEYED.to_owned(); 2], false));
    for (name, value) in [(CONTENT_TYPE, "text/plain"), (CONTENT_ENCODING, "br")] {
        let mut other = json(Method::POST, body());
        other.headers.insert(name, HeaderValue::from_static(value));
        assert_eq!(attempts("{ field: /k }", other).await, (vec![KEYED.to_owned()], true), "{value}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_apps_own_key_stays_and_the_app_may_repeat_it() {
    let body = r#"{"pay":1,"k":"app-1"}"#;
    let (service, log) = script([Play::unavailable(), Play::unavailable(), Play::unavailable()]);
    let request = json(Method::POST, Body::full(body));
    let answer = in_bodies(service, "{ field: /k }").call(request).await.unwrap();
    assert!(answer.status() == 503 && !answer.headers().contains_key(HINT));
    assert!(log.lock().unwrap().iter().all(|attempt| attempt.body == body));
    assert_eq!(log.lock().unwrap().len(), 3);
    // A key that the app does not know is another thing.
    let (service, _) = script([Play::unavailable(), Play::unavailable(), Play::unavailable()]);
    let request = json(Method::POST, Body::full("{}"));
    let answer = in_bodies(service, "{ field: /k }").call(request).await.unwrap();
    assert!(answer.status() == 503 && answer.headers().contains_key(HINT));
}

#[tokio::test(start_paused = true)]
async fn each_element_of_a_list_has_a_key_of_its_own() {
    let body = r#"{"e":[{"a":1},{"k":"own"},{}]}"#;
    let (service, log) = script([Play::reset()]);
    let request = json(Method::POST, Body::full(body));
    let keys: IdempotencyConfig = serde_yaml::from_str("{ field: \"/e/*/k\" }").unwrap();
    let keys = keys.compile(&mut Mistakes::default());
    let _ =
        Retry::new(service, Some(settings("{}")), None, Some(keys), None, 1000).call(request).await.unwrap();
    let log = log.lock().unwrap();
    assert!(log.len() == 2 && log[0].body == log[1].body, "{log:?}");
    let read: Value = serde_json::from_str(&log[0].body).unwrap();
    let of = |at: usize| read["e"][at]["k"].as_str().unwrap().to_owned();
    assert_eq!((of(1), of(0).len(), of(2).len()), ("own".to_owned(), 36, 36));
    assert_ne!(of(0), of(2));
}

/// What is sent before the app has sent all of it, in the order in which it happened.
#[tokio::test(start_paused = true)]
async fn a_body_in_pieces_gets_a_key_and_one_that_is_too_long_streams() {
    let pieces = |pieces: &'static [&'static str]| {
        let (sender, body) = channel();
        tokio::spawn(async move {
            for piece in pieces {
                sender.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
            }
        });
        body
    };
    let (written, _) =
        attempts("{ field: /k }", json(Method::POST, pieces(&[" ", "{\"a\"", ":1", "}"]))).await;
    assert_eq!(written.len(), 2);
    assert_eq!(key(&written[0]), key(&written[1]));

    // Streams: the provider reads the first pieces while the app waits with the rest.
    for begin in ["[1,", &format!("{{\"a\":\"{}", "x".repeat(100))] {
        let (sender, body) = channel();
        let (heard, mut hears) = tokio::sync::mpsc::channel::<Bytes>(1);
        let service = service_fn(move |mut request: EgressRequest| {
            let heard = heard.clone();
            async move {
                while let Some(frame) = request.body.frame().await {
                    heard.send(frame.unwrap().into_data().unwrap()).await.unwrap();
                }
                Ok::<_, Failure>(answer(200))
            }
        });
        let app = async {
            sender.send(Bytes::copy_from_slice(begin.as_bytes())).await.unwrap();
            assert_eq!(hears.recv().await.unwrap(), begin);
            sender.send(Bytes::from_static(b"end")).await.unwrap();
            assert_eq!(hears.recv().await.unwrap(), "end");
            drop(sender);
        };
        let mut retry = in_bodies(service, "{ field: /k }");
        let (answer, ()) = tokio::join!(retry.call(json(Method::POST, body)), app);
        assert_eq!(answer.unwrap().status(), 200, "{begin}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_while_it_is_held_sends_nothing() {
    let (service, log) = script([]);
    let broken = hints::stated(
        9,
        vec![Ok(Bytes::from_static(b"{")), Err(crate::message::body::BodyError::DownstreamStalled)],
    );
    let failure = in_bodies(service, "{ field: /k }").call(json(Method::POST, broken)).await.err().unwrap();
    assert_eq!((failure.fault, failure.progress), (Fault::DownstreamStalled, Progress::NotSent));
    assert!(log.lock().unwrap().is_empty());
}

/// A body as an app may send it, at once or in pieces.
fn any_body(rng: &mut fastrand::Rng) -> Body {
    let text = match rng.u32(0..8) {
        0 => "[{}]".to_owned(),
        1 => r#"{"k":"a","k":"b"}"#.to_owned(),
        2 => r#"{"K":"a"}"#.to_owned(),
        3 => r#"{"a":1"#.to_owned(),
        4 => r#"{"k":"app"}"#.to_owned(),
        _ => format!(r#"{{"a":"{}"}}"#, "x".repeat(rng.usize(0..120))),
    };
    if rng.bool() {
        return Body::full(text);
    }
    let (sender, body) = channel();
    let size = rng.usize(1..40);
    tokio::spawn(async move {
        for piece in text.as_bytes().chunks(size) {
            if sender.send(Bytes::copy_from_slice(piece)).await.is_err() {
                break;
            }
        }
    });
    body
}

/// Whatever is sent, and however the provider fails: what acts more than once carried one key, the same each time.
#[tokio::test(start_paused = true)]
async fn what_acts_twice_carried_the_same_key() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut repeated, mut alone) = (0, 0);
    for _ in 0..3_000 {
        let plays = (0..3).map(|_| match rng.u32(0..6) {
            0 => Play::reset(),
            1 => Play::unavailable(),
            2 => Play::Fail(Fault::ResponseTimeout, Progress::Sent),
            3 => Play::answer(500, Class::Overload, true),
            _ => Play::ok(),
        });
        let (service, log) = script(plays.collect::<Vec<_>>());
        let _ = in_bodies(service, "{ field: /k }").call(json(Method::POST, any_body(&mut rng))).await;
        // Each of them may have acted.
        let log = log.lock().unwrap();
        assert!(!log.is_empty(), "seed {seed}");
        if log.len() == 1 {
            alone += 1;
            continue;
        }
        repeated += 1;
        assert_eq!(log[0].body.matches("\"k\"").count(), 1, "{log:?}, seed {seed}");
        assert!(!key(&log[0].body).is_empty(), "seed {seed}");
        assert!(log.iter().all(|attempt| attempt.body == log[0].body), "{log:?}, seed {seed}");
    }
    assert!(repeated > 300 && alone > 300, "{repeated} {alone}, seed {seed}");
}
