//! Tokens of requests that were not sent.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_given_back() {
    let limit = limiter(settings("1/m", 1));
    for (fault, back) in [
        (Fault::BreakerOpen, true),
        (Fault::ConcurrencyLimit, true),
        (Fault::Credential, true),
        (Fault::ConnectRefused, false),
    ] {
        let closed =
            service_fn(
                move |_: EgressRequest| async move { Err::<Response<Body>, _>(Failure::not_sent(fault)) },
            );
        let failure = layer(closed, &[&limit]).call(request()).await.err().unwrap();
        assert_eq!(failure.fault, fault);
        assert_eq!(limit.status().remaining, u64::from(back), "{fault:?}");
    }
    advance(Duration::from_secs(61)).await;
    let reset =
        service_fn(|_: EgressRequest| async { Err::<Response<Body>, _>(Failure::sent(Fault::Credential)) });
    assert!(layer(reset, &[&limit]).call(request()).await.is_err());
    assert_eq!(limit.status().remaining, 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_gives_its_token_back_unless_it_was_sent() {
    for (sent, remaining) in [(false, 1), (true, 0)] {
        let limit = limiter(settings("1/m", 1));
        let stuck = crate::resilience::timeout::tests::stuck(sent);
        let task = tokio::spawn(layer(stuck, &[&limit]).call(request()));
        settle().await;
        assert_eq!(limit.status().remaining, 0);
        task.abort();
        settle().await;
        assert_eq!(limit.status().remaining, remaining, "sent: {sent}");
    }
}

/// Who hangs up while a dead provider is dialled would else call it as often as it likes.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_cancelled_while_it_dials_keeps_its_token() {
    let limit = limiter(settings("1/m", 1));
    let dialling = service_fn(|request: EgressRequest| async move {
        request.exchange.dialled();
        std::future::pending::<Result<Response<Body>, Failure>>().await
    });
    let task = tokio::spawn(layer(dialling, &[&limit]).call(request()));
    settle().await;
    task.abort();
    settle().await;
    assert_eq!(limit.status().remaining, 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_given_back_goes_to_the_first_in_line() {
    let limit = limiter(settings("2/s", 1));
    let held =
        tokio::spawn(layer(crate::resilience::timeout::tests::stuck(false), &[&limit]).call(request()));
    settle().await;
    let (provider, calls) = provider();
    let waiting = tokio::spawn(layer(provider, &[&limit]).call(request()));
    settle().await;
    held.abort();
    waiting.await.unwrap().unwrap();
    assert_eq!(millis(&calls), [0]);
}
