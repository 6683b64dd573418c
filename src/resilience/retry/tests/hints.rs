use bytes::Bytes;

use super::*;
use crate::message::body::BodyError;
use crate::message::request::EgressParts;
use crate::resilience::timeout::tests::{channel, stuck};

const HINTED: &str = "{ hint: { header: x-should-retry } }";

/// What the app's SDK is told: by an answer, or by outgate's own.
fn told(given: &Result<Response<Body>, Failure>) -> Option<&[u8]> {
    match given {
        Ok(answer) => answer.headers().get(HINT).map(HeaderValue::as_bytes),
        Err(failure) => failure.hint.as_ref().map(|hint| {
            assert_eq!(hint.0, HINT);
            hint.1.as_bytes()
        }),
    }
}

#[tokio::test(start_paused = true)]
async fn the_app_is_told_not_to_do_what_outgate_refused() {
    let (get, post) = (Method::GET, Method::POST);
    let no = Some(&b"false"[..]);
    for (method, plays, expected) in [
        (&post, vec![Play::unavailable()], no),
        (&post, vec![Play::unavailable().says("true")], no),
        (&post, vec![Play::reset()], no),
        (&post, vec![Play::Fail(Fault::ResponseTimeout, Progress::Sent)], no),
        (&post, vec![Play::answer(500, Class::Success, true)], no),
        (&post, vec![Play::answer(409, Class::Final, true)], no),
        // What did nothing may come again.
        (&post, vec![Play::refused(); 3], None),
        (&post, vec![Play::throttle(); 3], None),
        (&post, vec![Play::throttle().says("true"); 3], Some(&b"true"[..])),
        (&post, vec![Play::answer(503, Class::Overload, false); 3], None),
        // What succeeded, or fails for good, is passed on as it is.
        (&post, vec![Play::ok()], None),
        (&post, vec![Play::answer(422, Class::Final, true)], None),
        // What the app may repeat without harm is its own affair.
        (&get, vec![Play::unavailable(); 3], None),
        (&get, vec![Play::reset(); 3], None),
    ] {
        let (service, _) = script(plays.clone());
        let given = repeating(service, settings(HINTED)).call(request(method.clone(), Body::full("x"))).await;
        assert_eq!(told(&given), expected, "{method} {plays:?}");
    }
    let (service, _) = script([Play::unavailable()]);
    let given = repeating(service, settings("{}")).call(request(Method::POST, Body::empty())).await;
    assert_eq!(told(&given), None, "no hint is known");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_app_does_not_know_does_not_protect_its_repetition() {
    for (sent, expected) in [(None, Some(&b"false"[..])), (Some("app-1"), None)] {
        for plays in [vec![Play::unavailable(); 3], vec![Play::reset(), Play::throttle(), Play::throttle()]] {
            let (service, _) = script(plays.clone());
            let mut request = request(Method::POST, Body::full("pay"));
            if let Some(sent) = sent {
                request.headers.insert(KEY, HeaderValue::from_static(sent));
            }
            let given = keyed(service, settings(HINTED)).call(request).await;
            assert_eq!(told(&given), expected, "{sent:?} {plays:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_tells_it_too() {
    let deadline = Some(Instant::now() + Duration::from_secs(3));
    let retry = repeating(stuck(true), settings(HINTED));
    let given =
        crate::resilience::deadline::Deadline::new(retry).call(request_with(Body::full("x"), deadline)).await;
    assert_eq!(given.as_ref().err().unwrap().fault, Fault::Deadline);
    assert_eq!(told(&given), Some(&b"false"[..]));
}

#[tokio::test(start_paused = true)]
async fn the_providers_word_is_obeyed() {
    let (get, post) = (Method::GET, Method::POST);
    let unjudged = |status| Play::answer(status, Class::Success, true);
    for (method, play, said, attempts) in [
        (&get, Play::unavailable(), "false", 1),
        (&get, Play::unavailable(), " False ", 1),
        (&get, Play::unavailable(), "true", 3),
        (&get, Play::unavailable(), "maybe", 3),
        // Its no, also where the answer proves that nothing was done.
        (&post, Play::throttle(), "false", 1),
        (&post, Play::throttle(), "true", 3),
        // Its yes, where the table says that it is final, or where no table has judged an error.
        (&get, Play::answer(422, Class::Final, true), "true", 3),
        (&get, Play::answer(422, Class::Final, true), "maybe", 1),
        (&get, unjudged(500), "true", 3),
        (&get, unjudged(500), "maybe", 1),
        (&get, unjudged(418), "true", 3),
        // What may have acted is not sent twice, whatever it says.
        (&post, Play::answer(422, Class::Final, true), "true", 1),
        (&post, Play::unavailable(), "true", 1),
        (&post, unjudged(500), "true", 1),
        // Neither is what succeeded, nor what a plan has no more of.
        (&get, unjudged(200), "true", 1),
        (&get, Play::answer(429, Class::Quota, true), "true", 1),
    ] {
        let plays = vec![play.clone().says(said); 3];
        let (service, log) = script(plays);
        let _ = repeating(service, settings(HINTED)).call(request(method.clone(), Body::full("x"))).await;
        assert_eq!(log.lock().unwrap().len(), attempts, "{method} {play:?} {said}");
    }
}

/// A body of a stated length that ends as it is told.
struct Stated {
    left: u64,
    pieces: std::collections::VecDeque<Result<Bytes, BodyError>>,
}

impl http_body::Body for Stated {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        let piece = self.pieces.pop_front();
        if let Some(Ok(data)) = &piece {
            self.left -= data.len() as u64;
        }
        std::task::Poll::Ready(piece.map(|piece| piece.map(http_body::Frame::data)))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left)
    }
}

pub(super) fn stated(length: u64, pieces: Vec<Result<Bytes, BodyError>>) -> Body {
    Body::boxed(Stated { left: length, pieces: pieces.into() })
}

/// One attempt that answers 200 with the body that is made.
fn answering(make: impl Fn() -> Body + Clone + Send + Sync + 'static) -> impl Inner {
    service_fn(move |request: EgressRequest| {
        request.exchange.handed_over();
        std::future::ready(Ok::<_, Failure>(Response::new(make())))
    })
}

#[tokio::test]
async fn a_short_answer_that_is_cut_becomes_a_failure_that_can_say_so() {
    let cut = || stated(10, vec![Ok(Bytes::from_static(b"half")), Err(BodyError::UpstreamIdle)]);
    let given =
        repeating(answering(cut), settings(HINTED)).call(request(Method::POST, Body::full("x"))).await;
    let failure = given.as_ref().err().unwrap();
    assert_eq!((failure.fault, failure.progress), (Fault::IdleTimeout, Progress::HeadReceived));
    assert_eq!(told(&given), Some(&b"false"[..]));

    // Neither a request that may come again, nor without a hint: there the head goes on at once.
    for (method, yaml) in [(Method::GET, HINTED), (Method::POST, "{}")] {
        let given = repeating(answering(cut), settings(yaml)).call(request(method, Body::empty())).await;
        assert!(given.unwrap().into_body().collect().await.is_err());
    }
}

#[tokio::test]
async fn a_whole_answer_is_passed_on_as_it_was() {
    let whole = || stated(6, vec![Ok(Bytes::from_static(b"abc")), Ok(Bytes::from_static(b"def"))]);
    let given =
        repeating(answering(whole), settings(HINTED)).call(request(Method::POST, Body::full("x"))).await;
    let answer = given.unwrap();
    assert_eq!((answer.status().as_u16(), answer.body().exact_length()), (200, Some(6)));
    assert!(!http_body::Body::is_end_stream(answer.body()));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "abcdef");
}

/// A body without a stated length that ends as it is told.
fn unstated(pieces: Vec<Result<http_body::Frame<Bytes>, BodyError>>) -> Body {
    Body::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(pieces)))
}

fn data(text: impl Into<Bytes>) -> Result<http_body::Frame<Bytes>, BodyError> {
    Ok(http_body::Frame::data(text.into()))
}

/// One attempt that answers so.
fn answering_as(
    status: u16,
    content_type: &'static str,
    make: impl Fn() -> Body + Clone + Send + Sync + 'static,
) -> impl Inner {
    service_fn(move |request: EgressRequest| {
        request.exchange.handed_over();
        let mut answer = Response::new(make());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        if !content_type.is_empty() {
            answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        std::future::ready(Ok::<_, Failure>(answer))
    })
}

#[tokio::test]
async fn a_document_without_a_length_is_held_back_and_a_stream_is_not() {
    for (status, content_type, held) in [
        (200, "application/json", true),
        (200, "Application/JSON; charset=utf-8", true),
        (200, "application/vnd.api+json", true),
        (200, "text/xml", true),
        (500, "text/html", true),
        (503, "", true),
        (400, "text/plain", true),
        (200, "text/event-stream", false),
        (200, "text/event-stream; charset=utf-8", false),
        (500, "text/event-stream", false),
        (200, "application/grpc+json", false),
        (200, "application/x-ndjson", false),
        (200, "application/stream+json", false),
        (200, "application/json-seq", false),
        (200, "text/plain", false),
        (200, "audio/mpeg", false),
        (200, "", false),
    ] {
        let cut = || unstated(vec![data("half"), Err(BodyError::UpstreamIdle)]);
        let service = answering_as(status, content_type, cut);
        let given = repeating(service, settings(HINTED)).call(request(Method::POST, Body::full("x"))).await;
        assert_eq!(given.is_err(), held, "{status} {content_type}");
        if held {
            assert_eq!(told(&given), Some(&b"false"[..]), "{status} {content_type}");
        }
    }
}

#[tokio::test]
async fn a_held_document_is_passed_on_as_it_was() {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("6"));
    let long = Bytes::from(vec![b'x'; 64 * 1024]);
    for (pieces, length, exact) in [
        (vec!["abc".into(), "def".into()], 6, true),
        (vec![], 0, true),
        // More than is held back: its end is not known yet.
        (vec![long.clone(), "y".into(), long.clone()], 2 * 64 * 1024 + 1, false),
    ] as [(Vec<Bytes>, usize, bool); 3]
    {
        for trailers in [None, Some(trailers.clone())] {
            let (pieces, ending) = (pieces.clone(), trailers.clone());
            let make = move || {
                let ending = ending.clone().map(|trailers| Ok(http_body::Frame::trailers(trailers)));
                unstated(pieces.iter().cloned().map(data).chain(ending).collect())
            };
            let service = answering_as(200, "application/json", make);
            let given =
                repeating(service, settings(HINTED)).call(request(Method::POST, Body::full("x"))).await;
            let body = given.unwrap().into_body();
            // Trailers want chunks.
            let known = (exact && trailers.is_none()).then_some(length as u64);
            assert_eq!(body.exact_length(), known);
            assert_eq!(http_body::Body::is_end_stream(&body), length == 0 && trailers.is_none());
            let whole = body.collect().await.unwrap();
            assert_eq!(whole.trailers(), trailers.as_ref());
            assert_eq!(whole.to_bytes().len(), length);
        }
    }
}

#[tokio::test]
async fn a_document_longer_than_what_is_held_back_is_cut_as_it_is() {
    let long = || unstated(vec![data(vec![b'x'; 64 * 1024]), data("y"), Err(BodyError::UpstreamIdle)]);
    let service = answering_as(200, "application/json", long);
    let given = repeating(service, settings(HINTED)).call(request(Method::POST, Body::full("x"))).await;
    assert!(given.unwrap().into_body().collect().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_hands_on_what_is_here_of_an_answer() {
    let (sender, body) = channel();
    let body = Arc::new(Mutex::new(Some(body)));
    let slow = answering_as(200, "application/json", move || body.lock().unwrap().take().unwrap());
    sender.send(Bytes::from_static(b"{")).await.unwrap();
    let started = Instant::now();
    let request = request_with(Body::full("x"), Some(started + Duration::from_secs(3)));
    let request = EgressRequest::from(EgressParts { method: Method::POST, ..request.into_parts() });
    let retry = repeating(slow, settings(HINTED));
    let answer = crate::resilience::deadline::Deadline::new(retry).call(request).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(3));
    let mut body = answer.into_body();
    assert_eq!(body.exact_length(), None);
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "{");
    sender.send(Bytes::from_static(b"}")).await.unwrap();
    drop(sender);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "}");
}

#[tokio::test]
async fn a_long_or_endless_answer_is_not_held_back() {
    let long = || stated(64 * 1024 + 1, vec![Err(BodyError::UpstreamIdle)]);
    let request_of = || request(Method::POST, Body::full("x"));
    assert!(repeating(answering(long), settings(HINTED)).call(request_of()).await.is_ok());

    let (sender, body) = channel();
    let body = Arc::new(Mutex::new(Some(body)));
    let endless = move || body.lock().unwrap().take().unwrap();
    let answer = repeating(answering(endless), settings(HINTED)).call(request_of()).await.unwrap();
    let mut body = answer.into_body();
    sender.send(Bytes::from_static(b"event")).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "event");
}
