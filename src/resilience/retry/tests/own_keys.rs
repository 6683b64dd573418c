//! A key that outgate made ends with the request: no answer may invite the app to send again what went out under it.

use super::*;

const HINTED: &str = "{ hint: { header: x-should-retry } }";

/// What the app gets: a status, or a fault with how far the request had got, and when to come again.
fn told(given: &Result<Response<Body>, Failure>) -> String {
    match given {
        Ok(answer) => answer.status().as_u16().to_string(),
        Err(failure) => format!("{:?} {:?} {:?}", failure.fault, failure.progress, failure.retry_after),
    }
}

async fn post(
    plays: Vec<Play>,
    yaml: &str,
    key: Option<&'static str>,
) -> (Result<Response<Body>, Failure>, Vec<&'static str>) {
    let (service, _) = script(plays);
    let mut request = request(Method::POST, Body::full("pay"));
    if let Some(key) = key {
        request.headers.insert(KEY, HeaderValue::from_static(key));
    }
    let exchange = request.exchange.clone();
    let given = keyed(service, settings(yaml)).call(request).await;
    let reasons = exchange.facts().retry_reasons.clone();
    (given, reasons)
}

#[tokio::test(start_paused = true)]
async fn no_answer_invites_to_do_again_what_may_have_been_done_under_another_key() {
    let (reset, unavailable) = (Play::reset, Play::unavailable);
    let answer = |status| Play::answer(status, Class::Final, true);
    let (failed, unsettled) = ("Reset Sent None", "Withheld Sent None");
    for (plays, status, withheld, reason) in [
        (vec![reset(), Play::throttle().waits(100)], 429, failed, "not_repeated:retry_after"),
        (vec![reset(), Play::throttle(), Play::throttle()], 429, failed, "not_repeated:attempts"),
        (vec![reset(), Play::answer(429, Class::Quota, true)], 429, failed, "not_repeated:quota"),
        (vec![reset(), answer(409)], 409, failed, "not_repeated:final"),
        (vec![reset(), answer(408)], 408, failed, "not_repeated:final"),
        (vec![reset(), unavailable(), unavailable()], 503, failed, "not_repeated:attempts"),
        (vec![reset(), Play::answer(500, Class::Success, true)], 500, failed, "not_repeated:may_have_acted"),
        // The attempt before was answered, and may have acted all the same.
        (vec![unavailable(), Play::throttle().waits(100)], 429, unsettled, "not_repeated:retry_after"),
        (vec![unavailable(); 3], 503, unsettled, "not_repeated:attempts"),
    ] {
        let (given, reasons) = post(plays.clone(), "{}", None).await;
        assert_eq!(told(&given), withheld, "{plays:?}");
        assert_eq!(reasons.last(), Some(&reason), "{plays:?}");
        // The field of the provider says it on the answer.
        let (given, _) = post(plays.clone(), HINTED, None).await;
        assert_eq!(told(&given), status.to_string(), "{plays:?}");
        assert_eq!(given.unwrap().headers()[HINT], "false", "{plays:?}");
        // What the app sends again goes under the same key.
        for yaml in ["{}", HINTED] {
            let (given, _) = post(plays.clone(), yaml, Some("app-1")).await;
            assert_eq!(told(&given), status.to_string(), "{plays:?}");
            assert!(!given.unwrap().headers().contains_key(HINT), "{plays:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_set_aside_invites_to_nothing_either() {
    let full = || Play::Fail(Fault::RateLimited, Progress::NotSent);
    for (plays, own, apps) in [
        (vec![Play::reset(), Play::throttle(), full()], "Reset Sent None", "429"),
        (vec![Play::unavailable(), full()], "RateLimited Sent None", "503"),
        (vec![Play::throttle(), full()], "429", "429"),
    ] {
        for (key, expected) in [(None, own), (Some("app-1"), apps)] {
            let (given, reasons) = post(plays.clone(), "{}", key).await;
            assert_eq!(told(&given), expected, "{key:?} {plays:?}");
            assert_eq!(reasons.last(), Some(&"not_repeated:refused_by_outgate"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn other_answers_are_handed_on() {
    for (plays, status) in [
        // Nothing was done before.
        (vec![Play::refused(), Play::throttle().waits(100)], "429"),
        (vec![Play::throttle(); 3], "429"),
        (vec![Play::answer(503, Class::Final, true)], "503"),
        // No SDK repeats these by itself.
        (vec![Play::reset(), Play::answer(422, Class::Final, true)], "422"),
        (vec![Play::reset(), Play::ok()], "200"),
    ] {
        let (given, _) = post(plays.clone(), "{}", None).await;
        assert_eq!(told(&given), status, "{plays:?}");
    }
    // A method that may act twice, whoever made its key.
    let both = IdempotencyConfig { methods: Some(vec!["PUT".into()]), ..IdempotencyConfig::default() };
    let both = both.compile(&mut Mistakes::default());
    let (service, log) = script([Play::reset(), Play::throttle().waits(100)]);
    let mut retry = Retry::new(service, Some(settings("{}")), None, Some(both), None, 64);
    let given = retry.call(request(Method::PUT, Body::full("pay"))).await;
    assert_eq!(told(&given), "429");
    assert!(log.lock().unwrap().iter().all(|attempt| attempt.key.is_some()));
}
