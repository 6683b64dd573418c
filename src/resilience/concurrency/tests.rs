//! The layer around a scripted provider, in paused time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio::time::{Instant, advance, sleep};
use tower::{Service, service_fn};

use super::permits::Held;
use super::*;
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault, Progress};
use crate::message::request::EgressRequest;
use crate::resilience::Inner;
use crate::resilience::timeout::tests::{channel, request_with, stuck};

const SECOND: Duration = Duration::from_secs(1);

fn settings(max: u32) -> ConcurrencySettings {
    ConcurrencySettings { max, max_wait: SECOND, max_queue: 1000, shadow: false }
}

fn permits(settings: ConcurrencySettings) -> Arc<Permits> {
    Arc::new(Permits::new(settings))
}

fn request() -> EgressRequest {
    request_with(Body::empty(), None)
}

/// Answers after `takes` and counts who is there.
fn slow(takes: Duration) -> (impl Inner, Arc<AtomicU32>) {
    let most = Arc::new(AtomicU32::new(0));
    let (seen, running) = (most.clone(), Arc::new(AtomicU32::new(0)));
    let service = service_fn(move |_: EgressRequest| {
        let (seen, running) = (seen.clone(), running.clone());
        async move {
            seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(takes).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Failure>(Response::new(Body::empty()))
        }
    });
    (service, most)
}

/// Answers at once with a body that the test feeds.
fn streaming() -> (impl Inner, mpsc::UnboundedReceiver<mpsc::Sender<Bytes>>) {
    let (told, senders) = mpsc::unbounded_channel();
    let service = service_fn(move |_: EgressRequest| {
        let (sender, body) = channel();
        told.send(sender).unwrap();
        async move { Ok::<_, Failure>(Response::new(body)) }
    });
    (service, senders)
}

fn counts(permits: &Permits) -> (u32, u32) {
    let status = permits.status();
    (status.running, status.waiting)
}

#[tokio::test(start_paused = true)]
async fn never_more_than_max_run_and_the_others_wait_their_turn() {
    let (inner, most) = slow(SECOND / 10);
    let permits = permits(settings(3));
    let layer = Concurrency::new(inner, permits.clone(), None);
    let started = Instant::now();
    let calls = (0..9).map(|number| {
        let (mut layer, request) = (layer.clone(), request());
        async move {
            let exchange = request.exchange.clone();
            layer.call(request).await.unwrap();
            let queued = exchange.facts().queue.unwrap_or_default();
            (started.elapsed(), queued, number)
        }
    });
    let ends = futures_util::future::join_all(calls).await;
    for (end, queued, number) in ends {
        assert_eq!(end, SECOND / 10 * (number / 3 + 1), "first come, first served");
        assert_eq!(queued, SECOND / 10 * (number / 3), "the wait is queue time");
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!((counts(&permits), permits.status().waited), ((0, 0), 6));
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_held_until_the_body_ends() {
    let (inner, mut senders) = streaming();
    let permits = permits(settings(1));
    let mut layer = Concurrency::new(inner, permits.clone(), None);
    let mut body = layer.call(request()).await.unwrap().into_body();
    let sender = senders.recv().await.unwrap();
    sender.send(Bytes::from_static(b"x")).await.unwrap();
    body.frame().await.unwrap().unwrap();
    assert_eq!(counts(&permits), (1, 0));
    drop(sender);
    assert!(body.frame().await.is_none());
    assert_eq!(counts(&permits), (0, 0), "at its end, though it is still there");
    drop(body);

    let body = layer.call(request()).await.unwrap().into_body();
    assert_eq!(counts(&permits), (1, 0));
    drop(body);
    assert_eq!(counts(&permits), (0, 0), "or when it is dropped");
}

#[tokio::test(start_paused = true)]
async fn a_body_of_known_length_gives_it_back_with_its_last_frame() {
    let inner = service_fn(|_: EgressRequest| async { Ok::<_, Failure>(Response::new(Body::full("abc"))) });
    let permits = permits(settings(1));
    let answer = Concurrency::new(inner, permits.clone(), None).call(request()).await.unwrap();
    assert_eq!((answer.body().exact_length(), counts(&permits)), (Some(3), (1, 0)));
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(counts(&permits), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_gets_no_body_gives_it_back_at_once() {
    let permits = permits(settings(1));
    for status in [StatusCode::NO_CONTENT, StatusCode::SWITCHING_PROTOCOLS] {
        let inner = service_fn(move |_: EgressRequest| async move {
            let body = if status == StatusCode::NO_CONTENT { Body::empty() } else { channel().1 };
            let mut response = Response::new(body);
            *response.status_mut() = status;
            Ok::<_, Failure>(response)
        });
        let answer = Concurrency::new(inner, permits.clone(), None).call(request()).await.unwrap();
        assert_eq!((answer.status(), counts(&permits)), (status, (0, 0)));
    }
    let broken =
        service_fn(|_: EgressRequest| async { Err::<Response<Body>, _>(Failure::sent(Fault::Reset)) });
    assert!(Concurrency::new(broken, permits.clone(), None).call(request()).await.is_err());
    assert_eq!(counts(&permits), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_bounded_by_max_wait_and_by_the_deadline() {
    let permits = permits(settings(1));
    let _held = permits.try_enter().unwrap();
    let layer = Concurrency::new(stuck(false), permits.clone(), None);
    for (deadline, waits) in [(None, 1000), (Some(300), 300), (Some(5000), 1000), (Some(0), 0)] {
        let started = Instant::now();
        let request = request_with(Body::empty(), deadline.map(|ms| started + Duration::from_millis(ms)));
        let exchange = request.exchange.clone();
        let failure = layer.clone().call(request).await.err().unwrap();
        assert_eq!((failure.fault, failure.progress), (Fault::ConcurrencyLimit, Progress::NotSent));
        assert_eq!(failure.retry_after, Some(SECOND));
        assert_eq!(started.elapsed(), Duration::from_millis(waits), "{deadline:?}");
        assert_eq!(exchange.facts().queue.unwrap_or_default(), Duration::from_millis(waits));
    }
    assert_eq!((counts(&permits), permits.status().timed_out), ((1, 0), 4));
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let permits = permits(ConcurrencySettings { max_queue: 2, ..settings(1) });
    let held = permits.try_enter().unwrap();
    let layer = Concurrency::new(slow(Duration::ZERO).0, permits.clone(), None);
    let mut waiters: Vec<_> = (0..2).map(|_| layer.clone().call(request())).collect();
    for waiter in &mut waiters {
        assert!(waiter.now_or_never().is_none());
    }
    let failure = layer.clone().call(request()).now_or_never().unwrap().err().unwrap();
    assert_eq!((failure.fault, failure.retry_after), (Fault::QueueFull, Some(SECOND)));
    assert_eq!((counts(&permits), permits.status().queue_full), ((1, 2), 1));
    waiters.pop();
    assert_eq!(counts(&permits), (1, 1), "who goes away leaves the queue");
    drop(held);
    assert!(waiters.pop().unwrap().await.is_ok());
    assert_eq!(counts(&permits), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn no_wait_and_no_queue_refuse_at_once() {
    for (no_wait, fault) in [
        (ConcurrencySettings { max_wait: Duration::ZERO, ..settings(1) }, Fault::ConcurrencyLimit),
        (ConcurrencySettings { max_queue: 0, ..settings(1) }, Fault::QueueFull),
    ] {
        let permits = permits(no_wait);
        let held = permits.try_enter().unwrap();
        let mut layer = Concurrency::new(slow(Duration::ZERO).0, permits.clone(), None);
        let failure = layer.call(request()).now_or_never().unwrap().err().unwrap();
        assert_eq!(failure.fault, fault);
        drop(held);
        assert!(layer.call(request()).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake_who_waits() {
    let permits = permits(settings(1));
    let held = permits.try_enter().unwrap();
    let exchange = request().into_parts().exchange;
    let mut first = Box::pin(permits.enter(&exchange));
    assert!(first.as_mut().now_or_never().is_none());
    drop(held);
    assert!(permits.try_enter().is_none(), "the permit is the waiter's already");
    let held = first.await.unwrap();
    assert_eq!(counts(&permits), (1, 0));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_goes_away_with_its_permit_passes_it_on() {
    let permits = permits(settings(1));
    let held = permits.try_enter().unwrap();
    let (one, two) = (request().into_parts().exchange, request().into_parts().exchange);
    let (mut first, mut second) = (Box::pin(permits.enter(&one)), Box::pin(permits.enter(&two)));
    assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
    drop(held);
    drop(first);
    assert!(second.await.is_ok());
    assert_eq!(counts(&permits), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_nobody_waits() {
    let label: Arc<str> = "concurrency".into();
    let permits = permits(settings(1));
    let (inner, most) = slow(SECOND);
    let layer = Concurrency::new(inner, permits.clone(), Some(label.clone()));
    let requests: Vec<_> = (0..5).map(|_| request()).collect();
    let exchanges: Vec<_> = requests.iter().map(|request| request.exchange.clone()).collect();
    let started = Instant::now();
    let calls = requests.into_iter().map(|request| layer.clone().call(request));
    assert!(futures_util::future::join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!((started.elapsed(), most.load(Ordering::SeqCst)), (SECOND, 5));
    let noted: Vec<_> = exchanges.iter().map(|exchange| exchange.facts().shadowed.len()).collect();
    assert_eq!(noted, [0, 1, 1, 1, 1]);
    assert_eq!((counts(&permits), permits.status().shadowed), ((0, 0), 4));
}

#[tokio::test(start_paused = true)]
async fn more_permits_let_waiters_in_at_once() {
    let permits = permits(settings(1));
    let _held = permits.try_enter().unwrap();
    let exchange = request().into_parts().exchange;
    let mut waiter = Box::pin(permits.enter(&exchange));
    assert!(waiter.as_mut().now_or_never().is_none());
    permits.update(settings(2));
    assert!(waiter.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn fewer_permits_are_reached_as_they_come_back_also_while_others_wait() {
    let permits = permits(settings(4));
    let mut held: Vec<Held> = (0..4).map(|_| permits.try_enter().unwrap()).collect();
    permits.update(settings(2));
    let exchange = request().into_parts().exchange;
    let mut waiter = Box::pin(permits.enter(&exchange));
    assert!(waiter.as_mut().now_or_never().is_none());
    for running in [3, 2] {
        held.pop();
        assert!(waiter.as_mut().now_or_never().is_none(), "these are retired");
        assert_eq!(permits.status().running, running);
    }
    held.pop();
    let third = waiter.await.unwrap();
    assert_eq!(permits.status().running, 2);
    drop((held, third));
    let all: Vec<_> = std::iter::from_fn(|| permits.try_enter()).collect();
    assert_eq!(all.len(), 2);
}

/// What is waited for with an old `max_wait` keeps it; a new one holds for who comes later.
#[tokio::test(start_paused = true)]
async fn another_max_wait_holds_for_who_comes_later() {
    let permits = permits(settings(1));
    let _held = permits.try_enter().unwrap();
    permits.update(ConcurrencySettings { max_wait: 3 * SECOND, ..settings(1) });
    let started = Instant::now();
    assert!(permits.enter(&request().into_parts().exchange).await.is_err());
    assert_eq!(started.elapsed(), 3 * SECOND);
    advance(SECOND).await;
}

#[derive(Clone, Debug)]
enum Event {
    Enter,
    Leave(prop::sample::Index),
    Resize(u32),
}

proptest! {
    #[test]
    fn there_are_never_more_than_there_may_be(
        first in 1u32..6,
        events in prop::collection::vec(
            prop_oneof![
                4 => Just(Event::Enter),
                3 => any::<prop::sample::Index>().prop_map(Event::Leave),
                1 => (1u32..6).prop_map(Event::Resize),
            ],
            1..100,
        ),
    ) {
        let permits = permits(settings(first));
        let (mut max, mut held) = (first as usize, Vec::new());
        for event in events {
            match event {
                Event::Enter => {
                    let entered = permits.try_enter();
                    prop_assert_eq!(entered.is_some(), held.len() < max);
                    held.extend(entered);
                }
                Event::Leave(index) if !held.is_empty() => drop(held.swap_remove(index.index(held.len()))),
                Event::Leave(_) => {}
                Event::Resize(to) => {
                    permits.resize(to);
                    max = to as usize;
                }
            }
            prop_assert_eq!(permits.status().running as usize, held.len());
        }
        held.clear();
        let all: Vec<_> = std::iter::from_fn(|| permits.try_enter()).collect();
        prop_assert_eq!(all.len(), max);
    }
}
