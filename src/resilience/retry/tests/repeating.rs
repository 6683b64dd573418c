use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::message::request::{EgressParts, Exchange};
use crate::resilience::deadline::Deadline;
use crate::resilience::timeout::tests::{channel, stuck};

const FIXED: &str = "{ backoff: { jitter: none } }";

/// What an app got: a status, or a fault with how far the request had got.
fn told(given: &Result<Response<Body>, Failure>) -> String {
    match given {
        Ok(answer) => answer.status().as_u16().to_string(),
        Err(failure) => format!("{:?} {:?}", failure.fault, failure.progress),
    }
}

fn reasons(exchange: &Exchange) -> Vec<&'static str> {
    exchange.facts().retry_reasons.clone()
}

#[tokio::test(start_paused = true)]
async fn each_attempt_says_why_it_was_or_was_not_made_again() {
    let (get, post) = (Method::GET, Method::POST);
    for (method, plays, given, expected) in [
        (&get, vec![], "200", &[][..]),
        (&post, vec![Play::throttle()], "200", &["throttle"]),
        (&post, vec![Play::refused(), Play::throttle()], "200", &["connect", "throttle"]),
        (&post, vec![Play::unavailable()], "503", &["not_repeated:may_have_acted"]),
        (
            &post,
            vec![Play::throttle(), Play::reset()],
            "Reset Sent",
            &["throttle", "not_repeated:may_have_acted"],
        ),
        (&get, vec![Play::unavailable(), Play::reset()], "200", &["unavailable", "reset"]),
        (
            &get,
            vec![Play::reset(), Play::reset(), Play::reset()],
            "Reset Sent",
            &["reset", "reset", "not_repeated:attempts"],
        ),
        (&get, vec![Play::answer(404, Class::Final, true)], "404", &["not_repeated:final"]),
        (&get, vec![Play::answer(429, Class::Quota, true)], "429", &["not_repeated:quota"]),
        (&get, vec![Play::throttle().waits(61)], "429", &["not_repeated:retry_after"]),
        (
            &get,
            vec![Play::Fail(Fault::RateLimited, Progress::NotSent)],
            "RateLimited NotSent",
            &["not_repeated:refused_by_outgate"],
        ),
        // The last attempt is what the app gets, and what an earlier one may have done is not forgotten.
        (
            &get,
            vec![Play::reset(), Play::refused(), Play::refused()],
            "ConnectRefused Sent",
            &["reset", "connect", "not_repeated:attempts"],
        ),
        (
            &get,
            vec![Play::throttle(), Play::refused(), Play::refused()],
            "ConnectRefused NotSent",
            &["throttle", "connect", "not_repeated:attempts"],
        ),
    ] {
        let (service, log) = script(plays.clone());
        let request = request(method.clone(), Body::full("pay"));
        let exchange = request.exchange.clone();
        let answer = repeating(service, settings(FIXED)).call(request).await;
        assert_eq!(told(&answer), given, "{method} {plays:?}");
        assert_eq!(reasons(&exchange), expected, "{method} {plays:?}");
        let log = log.lock().unwrap();
        assert!(log.iter().all(|attempt| attempt.body == "pay"), "{log:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn waits_grow_and_count_as_queue_time() {
    let (service, log) = script(vec![Play::refused(); 4]);
    let request = request(Method::GET, Body::empty());
    let exchange = request.exchange.clone();
    let started = Instant::now();
    repeating(service, settings("{ attempts: 5, backoff: { jitter: none } }")).call(request).await.unwrap();
    let at: Vec<_> = log.lock().unwrap().iter().map(|attempt| (attempt.at - started).as_millis()).collect();
    assert_eq!(at, [0, 250, 750, 1750, 3750]);
    assert_eq!(exchange.facts().queue, Some(Duration::from_millis(3750)));
}

#[tokio::test(start_paused = true)]
async fn full_jitter_draws_from_the_whole_range() {
    let mut waits = Vec::new();
    for _ in 0..200 {
        let (service, log) = script([Play::refused()]);
        repeating(service, settings("{}")).call(request(Method::GET, Body::empty())).await.unwrap();
        let log = log.lock().unwrap();
        waits.push(log[1].at - log[0].at);
    }
    let whole = Duration::from_millis(250);
    assert!(waits.iter().all(|wait| *wait <= whole + Duration::from_millis(1)), "{waits:?}");
    assert!(waits.iter().any(|wait| *wait < whole / 4) && waits.iter().any(|wait| *wait > whole * 3 / 4));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_the_least_wait() {
    let (service, log) = script([Play::throttle().waits(20)]);
    repeating(service, settings("{}")).call(request(Method::POST, Body::empty())).await.unwrap();
    let log = log.lock().unwrap();
    let waited = log[1].at - log[0].at;
    assert!((Duration::from_secs(20)..=Duration::from_secs(21)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn who_was_told_the_same_wait_comes_back_at_another_time() {
    let mut waits = Vec::new();
    for jitter in ["full", "none"] {
        for _ in 0..50 {
            let (service, log) = script([Play::throttle().waits(20)]);
            let settings = settings(&format!("{{ backoff: {{ jitter: {jitter} }} }}"));
            repeating(service, settings).call(request(Method::POST, Body::empty())).await.unwrap();
            let log = log.lock().unwrap();
            waits.push((log[1].at - log[0].at).as_millis());
        }
    }
    let (full, none) = waits.split_at(50);
    assert!(full.iter().all(|wait| (20_000..=21_001).contains(wait)), "{full:?}");
    assert!(full.iter().any(|wait| *wait < 20_400) && full.iter().any(|wait| *wait > 20_600), "{full:?}");
    assert!(none.iter().all(|wait| *wait == 20_000), "{none:?}");
}

#[tokio::test(start_paused = true)]
async fn what_would_pass_the_deadline_is_handed_over_at_once() {
    let started = Instant::now();
    let (service, log) = script([Play::throttle().waits(20)]);
    let deadline = Some(started + Duration::from_secs(20));
    let request = request_with(Body::empty(), deadline);
    let exchange = request.exchange.clone();
    let given = Deadline::new(repeating(service, settings("{}"))).call(request).await;
    assert_eq!(told(&given), "429");
    assert_eq!((started.elapsed(), log.lock().unwrap().len()), (Duration::ZERO, 1));
    assert_eq!(reasons(&exchange), ["not_repeated:deadline"]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_a_later_attempt_tells_what_an_earlier_one_may_have_done() {
    let plays = Arc::new(Mutex::new(0));
    let service = service_fn(move |request: EgressRequest| {
        let mut count = plays.lock().unwrap();
        *count += 1;
        let first = *count == 1;
        async move {
            if first {
                request.exchange.handed_over();
                return Err(Failure::sent(Fault::ResponseTimeout));
            }
            stuck(false).call(request).await
        }
    });
    let deadline = Some(Instant::now() + Duration::from_secs(3));
    let request = EgressRequest::from(EgressParts {
        method: Method::GET,
        ..request_with(Body::empty(), deadline).into_parts()
    });
    let exchange = request.exchange.clone();
    let given = Deadline::new(repeating(service, settings("{}"))).call(request).await;
    assert_eq!(told(&given), "Deadline Sent");
    assert_eq!(reasons(&exchange), ["timeout", "not_repeated:deadline"]);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_in_a_wait_leaves_nothing_running() {
    let (service, log) = script(vec![Play::throttle().waits(30); 3]);
    let mut retry = repeating(service, settings("{}"));
    let request = request(Method::POST, Body::full("pay"));
    let exchange = request.exchange.clone();
    let call = tokio::time::timeout(Duration::from_secs(10), retry.call(request)).await;
    assert!(call.is_err());
    tokio::time::advance(Duration::from_secs(600)).await;
    tokio::task::yield_now().await;
    assert_eq!(log.lock().unwrap().len(), 1);
    assert_eq!(exchange.facts().queue, Some(Duration::from_secs(10)));
}

#[tokio::test(start_paused = true)]
async fn the_budget_bounds_what_retries_add() {
    let budget = Arc::new(Budget::new(BudgetSettings { ratio: Ratio::from_percent(20), min_per_second: 0 }));
    let (service, log) = script(vec![Play::refused(); 1000]);
    let settings = settings("{ attempts: 2, backoff: { base: 1ms } }");
    let mut retry = Retry::new(service, Some(settings), None, None, Some(budget.clone()), 64);
    let mut last = Vec::new();
    for _ in 0..100 {
        let request = request(Method::GET, Body::empty());
        let exchange = request.exchange.clone();
        assert!(retry.call(request).await.is_err());
        last = reasons(&exchange);
    }
    assert_eq!(log.lock().unwrap().len(), 120);
    assert_eq!((budget.status().granted, budget.status().balance), (20, 0));
    assert!(last == ["connect", "not_repeated:attempts"] || last == ["not_repeated:budget"]);
    assert_eq!(budget.status().refused, 80);
}

#[tokio::test(start_paused = true)]
async fn what_never_reached_the_provider_pays_for_no_retry() {
    let all = BudgetSettings { ratio: Ratio::from_percent(100), min_per_second: 0 };
    let held_back = [Fault::RateLimited, Fault::QuotaHeld, Fault::QueueFull, Fault::ConcurrencyLimit]
        .into_iter()
        .chain([Fault::BreakerOpen, Fault::OnlyIfCached, Fault::Credential, Fault::DownstreamGone])
        .map(|fault| (Play::Fail(fault, Progress::NotSent), 0));
    let tried = [Play::ok(), Play::refused(), Play::reset(), Play::answer(404, Class::Final, true)];
    for (play, balance) in held_back.chain(tried.map(|play| (play, 1))) {
        let budget = Arc::new(Budget::new(all));
        let (service, _) = script([play.clone()]);
        let once = settings("{ attempts: 1 }");
        let mut retry = Retry::new(service, Some(once), None, None, Some(budget.clone()), 64);
        let _ = retry.call(request(Method::GET, Body::empty())).await;
        assert_eq!(budget.status().balance, balance, "{play:?}");
    }
    // Who leaves while the provider is at it has made an attempt as well.
    for (sent, balance) in [(true, 1), (false, 0)] {
        let budget = Arc::new(Budget::new(all));
        let service = service_fn(move |request: EgressRequest| async move {
            if sent {
                request.exchange.handed_over();
            }
            std::future::pending::<Result<Response<Body>, Failure>>().await
        });
        let mut retry = Retry::new(service, Some(settings("{}")), None, None, Some(budget.clone()), 64);
        let call = retry.call(request(Method::GET, Body::empty()));
        assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
        assert_eq!(budget.status().balance, balance, "{sent}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_never_repeated_costs_no_budget() {
    let budget = Arc::new(Budget::new(BudgetSettings { ratio: Ratio::default(), min_per_second: 9 }));
    let (service, _) = script(vec![Play::reset(), Play::answer(404, Class::Final, true)]);
    let mut retry = Retry::new(service, Some(settings("{}")), None, None, Some(budget.clone()), 64);
    for _ in 0..2 {
        let _ = retry.call(request(Method::POST, Body::empty())).await;
    }
    assert_eq!((budget.status().granted, budget.status().refused), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_key_goes_with_every_attempt_and_stays_the_same() {
    let plays = [Play::reset(), Play::unavailable()];
    for sent in [None, Some("app-1")] {
        let (service, log) = script(plays.clone());
        let mut request = request(Method::POST, Body::full("pay"));
        if let Some(sent) = sent {
            request.headers.insert(KEY, HeaderValue::from_static(sent));
        }
        assert_eq!(keyed(service, settings("{}")).call(request).await.unwrap().status(), 200);
        let log = log.lock().unwrap();
        let keys: Vec<_> = log.iter().map(|attempt| attempt.key.clone().unwrap()).collect();
        assert_eq!(keys.len(), 3);
        assert!(keys.iter().all(|key| *key == keys[0] && sent.is_none_or(|sent| key == sent)), "{keys:?}");
    }
    // A key that the provider is not known to honour is no ground.
    let (service, log) = script(plays);
    let mut request = request(Method::POST, Body::full("pay"));
    request.headers.insert(KEY, HeaderValue::from_static("app-1"));
    assert!(repeating(service, settings("{}")).call(request).await.is_err());
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_buffer_is_streamed_and_sent_once() {
    for (length, attempts) in [(16, 2), (17, 1)] {
        let (service, log) = script([Play::throttle()]);
        let request = request(Method::PUT, Body::full("x".repeat(length)));
        let exchange = request.exchange.clone();
        let retry = settings("{ replay_buffer: 16B }");
        let answer = repeating(service, retry).call(request).await;
        assert_eq!(log.lock().unwrap().len(), attempts);
        if attempts == 1 {
            assert_eq!((told(&answer), reasons(&exchange)), ("429".into(), vec!["not_repeated:body"]));
        }
    }
    // Nobody has read it: it can be sent, however long it is.
    let unread = Arc::new(Mutex::new(0));
    let count = unread.clone();
    let service = service_fn(move |request: EgressRequest| {
        *count.lock().unwrap() += 1;
        let first = *count.lock().unwrap() == 1;
        async move {
            if first {
                return Err(Failure::not_sent(Fault::ConnectRefused));
            }
            assert_eq!(request.into_parts().body.collect().await.unwrap().to_bytes().len(), 17);
            Ok(answer(200))
        }
    });
    let request = request(Method::POST, Body::full("x".repeat(17)));
    assert!(repeating(service, settings("{ replay_buffer: 16B }")).call(request).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_the_middle_of_an_upload_hands_the_upload_on() {
    let (sender, body) = channel();
    // The first attempt reads one piece, answers, and keeps its body, as a connection does that is not told yet.
    let old = Arc::new(Mutex::new(None));
    let kept = old.clone();
    let service = service_fn(move |mut request: EgressRequest| {
        let kept = kept.clone();
        async move {
            if kept.lock().unwrap().is_none() {
                request.body.frame().await.unwrap().unwrap();
                *kept.lock().unwrap() = Some(request.into_parts().body);
                let mut answer = answer(429);
                Verdict { class: Class::Throttle, acted: false, wait: None }.note(&mut answer);
                return Ok::<_, Failure>(answer);
            }
            let body = request.into_parts().body.collect().await.unwrap().to_bytes();
            Ok(Response::new(Body::full(body)))
        }
    });
    tokio::spawn(async move {
        for piece in ["one ", "two ", "three"] {
            sender.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        }
    });
    let answer = repeating(service, settings("{}")).call(request(Method::POST, body)).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "one two three");
    let mut old = old.lock().unwrap().take().unwrap();
    assert!(old.frame().await.unwrap().is_err(), "the old attempt can never be completed");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_let_go_before_the_wait() {
    // A body that says when it was dropped: a permit hangs on it. No byte of it ever comes.
    let (sender, body) = channel();
    let body = Arc::new(Mutex::new(Some(body)));
    let service = service_fn(move |_: EgressRequest| {
        let body = body.lock().unwrap().take();
        async move {
            let Some(body) = body else { return Ok::<_, Failure>(answer(200)) };
            let mut answer = answer(429).map(|_| body);
            Verdict { class: Class::Throttle, acted: false, wait: Some(Duration::from_secs(30)) }
                .note(&mut answer);
            Ok(answer)
        }
    });
    let started = Instant::now();
    let dropped = tokio::spawn(async move {
        sender.closed().await;
        started.elapsed()
    });
    let exact = settings("{ backoff: { jitter: none } }");
    repeating(service, exact).call(request(Method::POST, Body::empty())).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(30), "the time to let go is part of the wait");
    assert_eq!(dropped.await.unwrap(), Duration::from_millis(100));
}

/// What the provider said last is what the app gets, though outgate refuses the attempt after it.
#[tokio::test(start_paused = true)]
async fn where_outgate_has_no_room_for_another_attempt_the_last_answer_stands() {
    let long = "x".repeat(70_000);
    for (fault, body, expected) in [
        (Fault::RateLimited, "short", Ok(503)),
        (Fault::QuotaHeld, "", Ok(503)),
        (Fault::BreakerOpen, "short", Ok(503)),
        (Fault::ConcurrencyLimit, long.as_str(), Err(Fault::ConcurrencyLimit)),
        // Why these are refused is more than a matter of the moment.
        (Fault::AddressDenied, "short", Err(Fault::AddressDenied)),
        (Fault::Credential, "short", Err(Fault::Credential)),
        (Fault::ConnectRefused, "short", Err(Fault::ConnectRefused)),
    ] {
        let body = body.to_owned();
        let attempts = Arc::new(AtomicUsize::new(0));
        let (said, made) = (body.clone(), attempts.clone());
        let service = service_fn(move |_: EgressRequest| {
            let first = made.fetch_add(1, Ordering::SeqCst) == 0;
            let body = said.clone();
            async move {
                if !first {
                    return Err(Failure::not_sent(fault));
                }
                let mut answer = answer(503).map(|_| Body::full(body));
                Verdict { class: Class::Overload, acted: false, wait: None }.note(&mut answer);
                Ok(answer)
            }
        });
        let request = request(Method::POST, Body::empty());
        let exchange = request.exchange.clone();
        let given = repeating(service, settings("{}")).call(request).await;
        match (given, expected) {
            (Ok(answer), Ok(status)) => {
                assert_eq!(answer.status(), status);
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
                assert_eq!(reasons(&exchange), ["overload", "not_repeated:refused_by_outgate"]);
            }
            (given, expected) => assert_eq!(given.err().map(|failure| failure.fault), expected.err()),
        }
    }
}

/// A failure that may have acted stands as well; one in which nothing was sent says less than the refusal.
#[tokio::test(start_paused = true)]
async fn where_outgate_has_no_room_for_another_attempt_what_may_have_acted_is_told() {
    for (method, first, expected) in [
        (Method::GET, Failure::sent(Fault::Reset), (Fault::Reset, Progress::Sent)),
        (Method::POST, Failure::sent(Fault::ResponseTimeout), (Fault::ResponseTimeout, Progress::Sent)),
        (Method::POST, Failure::not_sent(Fault::ConnectRefused), (Fault::RateLimited, Progress::NotSent)),
    ] {
        let first = Arc::new(Mutex::new(Some(first)));
        let service = service_fn(move |request: EgressRequest| {
            let first = first.lock().unwrap().take();
            async move {
                if first.as_ref().is_some_and(|first| first.progress != Progress::NotSent) {
                    request.exchange.handed_over();
                }
                let refused = Failure::not_sent(Fault::RateLimited).retry_after(Duration::from_secs(9));
                Err::<Response<Body>, _>(first.unwrap_or(refused))
            }
        });
        let mut retry = Retry::new(service, Some(settings("{}")), None, Some(keys()), None, 64);
        let given = retry.call(request(method, Body::empty())).await.err().unwrap();
        assert_eq!((given.fault, given.progress), expected);
        assert_eq!(given.retry_after.is_some(), expected.1 == Progress::NotSent);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_repeated_only_where_nothing_was_sent() {
    for (play, attempts) in [(Play::refused(), 2), (Play::unavailable(), 1), (Play::throttle(), 1)] {
        let (service, log) = script([play]);
        let request = EgressRequest::from(EgressParts {
            upgrade: true,
            ..request(Method::GET, Body::empty()).into_parts()
        });
        let _ = repeating(service, settings("{}")).call(request).await;
        assert_eq!(log.lock().unwrap().len(), attempts);
    }
}

#[tokio::test]
async fn without_settings_nothing_is_repeated_or_judged() {
    let (service, log) = script([Play::refused()]);
    let mut retry = Retry::new(service, None, None, Some(keys()), None, 64);
    let request = request(Method::POST, Body::full("pay"));
    let exchange = request.exchange.clone();
    assert!(retry.call(request).await.is_err());
    let log = log.lock().unwrap();
    assert_eq!((log.len(), log[0].body.as_str()), (1, "pay"));
    assert!(log[0].key.is_some(), "a key helps the provider also against others' retries");
    assert!(reasons(&exchange).is_empty());
}
