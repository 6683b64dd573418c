//! The two layers around a scripted provider, in paused time.

use http_body_util::BodyExt;
use tokio::time::advance;

use super::super::state::PROBE_WAIT;
use super::*;
use crate::message::body::{BodyError, Side};
use crate::resilience::timeout::{AttemptTimeouts, Timeout, tests::stuck};

#[tokio::test(start_paused = true)]
async fn a_dead_provider_is_left_alone_and_the_app_is_told_for_how_long() {
    let (provider, breakers) = (Provider::new(0), breakers(rules()));
    let stack = both(provider.service(), &breakers);
    send_times(&stack, 5).await;
    advance(10 * SECOND).await;
    assert_eq!(send(&stack).await, Err(Some(20 * SECOND)));
    assert_eq!(provider.reached(), 5);
    let status = breakers.status();
    assert_eq!((status.opened, status.refused, status.hosts[0].state), (1, 1, "open"));
    assert_eq!(status.hosts[0].next_probe_ms, Some(20_000));
}

#[tokio::test(start_paused = true)]
async fn it_closes_after_two_probes_that_succeed() {
    let (provider, breakers) = (Provider::new(503), breakers(rules()));
    let stack = both(provider.service(), &breakers);
    send_times(&stack, 8).await;
    assert_eq!(provider.reached(), 5);
    provider.is(200);
    advance(30 * SECOND).await;
    assert_eq!(send(&stack).await, Ok(200));
    assert_eq!(breakers.status().hosts[0].state, "half_open");
    assert_eq!(send(&stack).await, Ok(200));
    let status = breakers.status();
    assert_eq!(status.hosts[0].state, "closed");
    assert_eq!((status.opened, status.half_opened, status.closed, status.probes), (1, 1, 1, 2));
    send_times(&stack, 100).await;
    assert_eq!(provider.reached(), 5 + 102);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_doubles_the_time() {
    let (provider, breakers) = (Provider::new(0), breakers(rules()));
    let stack = both(provider.service(), &breakers);
    send_times(&stack, 5).await;
    for open_for in [60, 120, 240, 300, 300] {
        let before = provider.reached();
        let wait = breakers.status().hosts[0].next_probe_ms.unwrap();
        advance(Duration::from_millis(wait)).await;
        send_times(&stack, 10).await;
        assert_eq!(provider.reached() - before, 1, "one probe");
        assert_eq!(send(&stack).await, Err(Some(open_for * SECOND)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_provider_says_when_to_come_back() {
    let breakers = breakers(rules());
    let busy = service_fn(|_: EgressRequest| async { Ok(judged(503, Some(90 * SECOND))) });
    let stack = both(busy, &breakers);
    send_times(&stack, 5).await;
    assert_eq!(send(&stack).await, Err(Some(90 * SECOND)));
}

#[tokio::test(start_paused = true)]
async fn what_the_client_did_wrong_never_opens_it() {
    for status in [400, 401, 403, 404, 409, 422, 429] {
        let (provider, breakers) = (Provider::new(status), breakers(rules()));
        let stack = both(provider.service(), &breakers);
        send_times(&stack, 100).await;
        assert_eq!((provider.reached(), breakers.status().opened), (100, 0), "{status}");
    }
    let breakers = breakers(rules());
    let gone = service_fn(|_: EgressRequest| async {
        Err::<Response<Body>, _>(Failure::sent(Fault::DownstreamGone))
    });
    let stack = Take::new(gone, breakers.clone(), None);
    for _ in 0..100 {
        let failure = stack.clone().call(request_with(Body::empty(), None)).await.err().unwrap();
        assert_eq!(failure.fault, Fault::DownstreamGone);
    }
    assert_eq!((breakers.status().opened, breakers.status().hosts[0].window_requests), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn only_the_probes_run_while_it_is_half_open() {
    let (provider, breakers) = (Provider::slow(0, 2 * SECOND), breakers(Rules { probes: 3, ..rules() }));
    let stack = both(provider.service(), &breakers);
    for _ in 0..5 {
        let _ = send(&stack).await;
    }
    provider.is(200);
    advance(30 * SECOND).await;
    provider.most.store(0, Ordering::SeqCst);
    let answers = futures_util::future::join_all((0..50).map(|_| send(&stack))).await;
    let (passed, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((passed.len(), provider.most.load(Ordering::SeqCst)), (3, 3));
    assert!(refused.iter().all(|answer| *answer == Err(Some(PROBE_WAIT))));
    assert_eq!(breakers.status().hosts[0].state, "closed");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_gives_its_place_back() {
    let (provider, breakers) = (Provider::new(0), breakers(rules()));
    let stack = both(provider.service(), &breakers);
    send_times(&stack, 5).await;
    advance(30 * SECOND).await;
    let hung = both(stuck(true), &breakers);
    let never_polled = hung.clone().call(request_with(Body::empty(), None));
    assert_eq!(breakers.status().hosts[0].probes_running, 1);
    assert_eq!(send(&stack).await, Err(Some(PROBE_WAIT)));
    drop(never_polled);
    for _ in 0..10 {
        let call = hung.clone().call(request_with(Body::empty(), None));
        assert!(tokio::time::timeout(SECOND, call).await.is_err(), "the app goes away");
        assert_eq!(breakers.status().hosts[0].probes_running, 0);
    }
    provider.is(200);
    assert_eq!(send(&stack).await, Ok(200));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_trips_it_and_an_impatient_app_does_not() {
    let timeouts = AttemptTimeouts { response: 5 * SECOND, idle: 5 * SECOND, total: None };
    let breakers = breakers(rules());
    let hung = both(Timeout::new(stuck(true), timeouts), &breakers);
    for _ in 0..50 {
        let call = hung.clone().call(request_with(Body::empty(), None));
        assert!(tokio::time::timeout(SECOND, call).await.is_err());
    }
    assert_eq!(breakers.status().opened, 0);
    for _ in 0..5 {
        let failure = hung.clone().call(request_with(Body::empty(), None)).await.err().unwrap();
        assert_eq!(failure.fault, Fault::ResponseTimeout);
    }
    assert_eq!(breakers.status().opened, 1);
}

/// The body of an answer whose connection ends too early, as hyper reports it.
async fn cut_body() -> Body {
    let (ours, theirs) = tokio::io::duplex(1024);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(ours)).await.unwrap();
    tokio::spawn(connection);
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut read, mut write) = tokio::io::split(theirs);
        let _ = read.read(&mut [0; 1024]).await;
        write.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await.unwrap();
    });
    let request = http::Request::new(http_body_util::Empty::<bytes::Bytes>::new());
    Body::incoming(sender.send_request(request).await.unwrap().into_body(), Side::Upstream)
}

#[tokio::test]
async fn bodies_that_break_off_open_it() {
    let breakers = breakers(Rules {
        error_rate: Some(ErrorRate { min_requests: 3, ..rules().error_rate.unwrap() }),
        ..rules()
    });
    let cut = service_fn(|_: EgressRequest| async { Ok(Response::new(cut_body().await)) });
    let stack = both(cut, &breakers);
    for _ in 0..3 {
        let answer = stack.clone().call(request_with(Body::empty(), None)).await.unwrap();
        assert_eq!(answer.body().exact_length(), Some(10));
        assert_eq!(breakers.status().opened, 0);
        assert!(matches!(answer.into_body().collect().await, Err(BodyError::UpstreamCut(_))));
    }
    assert_eq!(breakers.status().opened, 1);
    assert!(send(&stack).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_app_drops_says_nothing() {
    let breakers = breakers(rules());
    let timeouts = AttemptTimeouts { response: SECOND, idle: SECOND, total: None };
    let open_ended = service_fn(|_: EgressRequest| async {
        let (sender, body) = crate::resilience::timeout::tests::channel();
        std::mem::forget(sender);
        Ok(Response::new(body))
    });
    let stack = both(Timeout::new(open_ended, timeouts), &breakers);
    for _ in 0..50 {
        drop(stack.clone().call(request_with(Body::empty(), None)).await.unwrap());
    }
    assert_eq!(breakers.status().hosts[0].window_failures, 0);
    let answer = stack.clone().call(request_with(Body::empty(), None)).await.unwrap();
    assert!(matches!(answer.into_body().collect().await, Err(BodyError::UpstreamIdle)));
    assert_eq!(breakers.status().hosts[0].window_failures, 1);
    assert_eq!(breakers.status().hosts[0].window_requests, 51);
}

fn with_fallback(fallback: Fallback) -> BreakerSettings {
    BreakerSettings { fallback, ..settings(rules()) }
}

#[tokio::test(start_paused = true)]
async fn the_fallback_stands_in_for_both_refusals() {
    let answer = StaticAnswer {
        status: StatusCode::OK,
        headers: vec![(http::header::CONTENT_TYPE, "application/json".parse().unwrap())],
        body: "[]".into(),
    };
    let breakers = Arc::new(Breakers::new("geo".into(), with_fallback(Fallback::Static(Arc::new(answer)))));
    let provider = Provider::new(0);
    send_times(&both(provider.service(), &breakers), 5).await;
    // With and without the outer look: what queued before it opened is refused by `Take` and answered by `Look`.
    let refusing = service_fn(|_: EgressRequest| async {
        Err::<Response<Body>, _>(Failure::not_sent(Fault::BreakerOpen))
    });
    let closed = Arc::new(Breakers::new("geo".into(), (*breakers.settings()).clone()));
    for mut stack in [
        tower::util::BoxCloneSyncService::new(both(provider.service(), &breakers)),
        tower::util::BoxCloneSyncService::new(Look::new(
            RouteService::boxing(refusing),
            closed.clone(),
            None,
        )),
    ] {
        let response = stack.call(request_with(Body::empty(), None)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.extensions().get(), Some(&FallbackAnswer));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "[]");
    }
    let counts = (provider.reached(), breakers.status().fallbacks, closed.status().fallbacks);
    assert_eq!(counts, (5, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn between_the_layers_a_refusal_stays_a_request_that_was_not_sent() {
    let answer = StaticAnswer { status: StatusCode::OK, headers: Vec::new(), body: "x".into() };
    let breakers = Arc::new(Breakers::new("geo".into(), with_fallback(Fallback::Static(Arc::new(answer)))));
    let take = Take::new(Provider::new(0).service(), breakers.clone(), None);
    send_times(&take, 5).await;
    let failure = take.clone().call(request_with(Body::empty(), None)).await.err().unwrap();
    assert_eq!(failure.fault, Fault::BreakerOpen);
    assert_eq!(failure.progress, crate::message::failure::Progress::NotSent);
    assert_eq!(failure.retry_after, Some(30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn stale_is_left_to_the_cache() {
    let breakers = Arc::new(Breakers::new("geo".into(), with_fallback(Fallback::Stale)));
    let stack = both(Provider::new(0).service(), &breakers);
    send_times(&stack, 5).await;
    assert_eq!(send(&stack).await, Err(Some(30 * SECOND)));
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_everything_passes_and_each_request_is_noted_once() {
    let (provider, breakers) = (Provider::new(0), breakers(rules()));
    let label: Arc<str> = "breaker".into();
    let take = Take::new(provider.service(), breakers.clone(), Some(label.clone()));
    let stack = Look::new(RouteService::boxing(take), breakers.clone(), Some(label.clone()));
    send_times(&stack, 5).await;
    let request = request_with(Body::empty(), None);
    let exchange = request.exchange.clone();
    let failure = stack.clone().call(request).await.err().unwrap();
    assert_eq!(failure.fault, Fault::Reset, "the provider's own failure");
    assert_eq!(exchange.facts().shadowed, [label]);
    let status = breakers.status();
    assert_eq!((provider.reached(), status.opened, status.shadowed, status.refused), (6, 1, 1, 0));
    // It goes through its states as if it refused.
    provider.is(200);
    advance(30 * SECOND).await;
    send_times(&stack, 2).await;
    assert_eq!(breakers.status().hosts[0].state, "closed");
}
