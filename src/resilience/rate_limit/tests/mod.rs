//! The layer under paused time, around a provider that records when it was called.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use http::Response;
use tokio::time::{Instant, advance, sleep};
use tower::{Service, service_fn};

use super::layer::RateLimit;
use super::lease::{Leases, RateLease};
use super::limiter::{Limiter, Tokens};
use super::settings::{LimitSettings, OnExcess, Scope, Unit};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressParts, EgressRequest};
use crate::resilience::Inner;
use crate::resilience::key::{KeySource, Per};
use crate::resilience::mode::Mode;
use crate::resilience::timeout::tests::request_with;

type Calls = Arc<Mutex<Vec<(Duration, String)>>>;

/// A provider that answers at once, and records when which tenant called.
fn provider() -> (impl Inner, Calls) {
    let (calls, started) = (Calls::default(), Instant::now());
    let log = calls.clone();
    let service = service_fn(move |request: EgressRequest| {
        let tenant = request.tenant.as_deref().unwrap_or_default().to_owned();
        log.lock().unwrap().push((started.elapsed(), tenant));
        async { Ok::<_, Failure>(Response::new(Body::empty())) }
    });
    (service, calls)
}

fn settings(rate: &str, burst: u32) -> LimitSettings {
    LimitSettings {
        name: "account".into(),
        rate: rate.parse().unwrap(),
        burst,
        unit: Unit::Requests,
        per: Per::Provider,
        scope: Scope::Pod,
        on_excess: OnExcess::Wait,
        max_wait: Duration::from_secs(5),
        max_queue: 1000,
        mode: Mode::Enforce,
    }
}

fn limiter(settings: LimitSettings) -> Arc<Limiter> {
    Arc::new(Limiter::new(settings, Tokens::Own))
}

fn layer<S>(inner: S, limits: &[&Arc<Limiter>]) -> RateLimit<S> {
    let source = KeySource { route: "r".into(), ..KeySource::default() };
    RateLimit::new(inner, limits.iter().map(|limit| (*limit).clone()).collect(), source, false)
}

fn request() -> EgressRequest {
    request_with(Body::empty(), None)
}

fn of(tenant: impl std::fmt::Display) -> EgressRequest {
    EgressRequest::from(EgressParts { tenant: Some(tenant.to_string().into()), ..request().into_parts() })
}

/// The times are those of timers, which are late by a millisecond.
fn near(found: Duration, expected: Duration) -> bool {
    found.abs_diff(expected) <= Duration::from_millis(5)
}

fn millis(calls: &Calls) -> Vec<u128> {
    calls.lock().unwrap().iter().map(|(at, _)| at.as_millis()).collect()
}

fn tenants(calls: &Calls) -> Vec<String> {
    calls.lock().unwrap().iter().map(|(_, tenant)| tenant.clone()).collect()
}

/// Lets spawned requests run until they wait.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dear_request_takes_its_cost_of_the_limits_that_count_it() {
    let (provider, calls) = provider();
    let units = limiter(LimitSettings { unit: Unit::Cost, ..settings("110/s", 11) });
    let requests = limiter(settings("100/s", 10));
    let layer = &|cost: u32| {
        let limits = vec![units.clone(), requests.clone()];
        let source = KeySource { route: "r".into(), ..KeySource::default() };
        RateLimit::costing(provider.clone(), limits, source, false, NonZeroU32::new(cost).unwrap())
    };
    // 11 at once, then 100 units a second: the dear one waits for five, and the cheap one behind it for its own.
    let costs = [5, 5, 6, 1];
    let answers = join_all(costs.map(|cost| async move { layer(cost).call(of(cost)).await })).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(tenants(&calls), ["5", "5", "6", "1"]);
    for ((at, _), expected) in calls.lock().unwrap().iter().zip([0, 0, 50, 60]) {
        assert!(near(*at, Duration::from_millis(expected)), "{at:?}, not {expected} ms");
    }
    assert_eq!(requests.status().admitted, 4);
    // What was not sent is given back, all of it.
    sleep(Duration::from_secs(1)).await;
    let unsent = service_fn(|_: EgressRequest| async {
        Err::<Response<Body>, _>(Failure::not_sent(Fault::BreakerOpen))
    });
    let source = KeySource { route: "r".into(), ..KeySource::default() };
    let cost = NonZeroU32::new(11).unwrap();
    let mut held_back = RateLimit::costing(unsent, vec![units.clone()], source, false, cost);
    assert!(held_back.call(request()).await.is_err());
    assert_eq!(units.status().remaining, 11);
}

#[tokio::test(start_paused = true)]
async fn what_exceeds_the_rate_waits_its_turn() {
    let (provider, calls) = provider();
    let limit = limiter(settings("10/s", 2));
    let layer = layer(provider, &[&limit]);
    let requests: Vec<_> = (0..12).map(of).collect();
    let exchanges: Vec<_> = requests.iter().map(|request| request.exchange.clone()).collect();
    let answers = join_all(requests.into_iter().map(|request| layer.clone().call(request))).await;
    assert!(answers.iter().all(Result::is_ok));
    let expected: Vec<_> = (0..12).map(|number: u32| number.to_string()).collect();
    assert_eq!(tenants(&calls), expected);
    // Two at once, then 9 each second.
    for (number, (at, _)) in calls.lock().unwrap().iter().enumerate() {
        let waited = Duration::from_secs(1) * u32::try_from(number.saturating_sub(1)).unwrap() / 9;
        assert!(near(*at, waited), "{number}: {at:?}, not {waited:?}");
        let queue = exchanges[number].facts().queue.unwrap_or_default();
        assert!(near(queue, waited), "{number}: {queue:?}, not {waited:?}");
    }
    let status = limit.status();
    assert_eq!((status.admitted, status.waited, status.refused, status.waiting), (12, 10, 0, 0));
}

/// Looks once whether it is ready.
async fn ready<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_ready())).await
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake_who_waits_though_a_token_is_there() {
    let (provider, _) = provider();
    let limit = limiter(settings("10/s", 2));
    let layer = layer(provider, &[&limit]);
    let [mut one, mut two, mut three, mut four] = [1, 2, 3, 4].map(|number| layer.clone().call(of(number)));
    assert!(ready(&mut one).await && ready(&mut two).await && !ready(&mut three).await);
    advance(Duration::from_millis(150)).await;
    assert!(!ready(&mut four).await);
    assert!(ready(&mut three).await);
    advance(Duration::from_millis(100)).await;
    assert!(ready(&mut four).await);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_leaves_nothing_behind() {
    let (provider, calls) = provider();
    let limit = limiter(settings("10/s", 1));
    let layer = layer(provider, &[&limit]);
    let waiting: Vec<_> = (0..6).map(|number| tokio::spawn(layer.clone().call(of(number)))).collect();
    settle().await;
    assert_eq!(limit.status().waiting, 5);
    // The first in line, one in the middle, the last.
    for gone in [1, 3, 5] {
        waiting[gone].abort();
    }
    settle().await;
    assert_eq!(limit.status().waiting, 2);
    for task in waiting {
        let _ = task.await;
    }
    assert_eq!(tenants(&calls), ["0", "2", "4"]);
    let times = millis(&calls);
    assert!(times[1] <= 105 && times[2] <= 206, "{times:?}");
    assert_eq!(limit.status().admitted, 3);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_would_be_too_long_is_refused_at_once() {
    let (provider, calls) = provider();
    let limit = limiter(LimitSettings { max_wait: Duration::from_millis(950), ..settings("2/s", 1) });
    let layer = layer(provider, &[&limit]);
    layer.clone().call(request()).await.unwrap();
    let waiting = tokio::spawn(layer.clone().call(request()));
    settle().await;
    let started = Instant::now();
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::ZERO));
    let after = failure.retry_after.unwrap();
    assert!(near(after, Duration::from_secs(1)), "{after:?}");
    // Exact: who comes back then is admitted at once, and a moment before it is not.
    waiting.await.unwrap().unwrap();
    let state = failure.limit.unwrap();
    assert_eq!((state.name.as_ref(), state.quota, state.window), ("account", 2, Duration::from_secs(1)));
    assert_eq!((state.remaining, state.reset), (0, after));
    tokio::time::sleep_until(started + after).await;
    let before = Instant::now();
    layer.clone().call(request()).await.unwrap();
    assert_eq!((Instant::now(), calls.lock().unwrap().len()), (before, 3));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_bounds_the_wait() {
    let (provider, _) = provider();
    let limit = limiter(settings("1/s", 1));
    let layer = layer(provider, &[&limit]);
    layer.clone().call(request()).await.unwrap();
    let started = Instant::now();
    let hasty = request_with(Body::empty(), Some(started + Duration::from_millis(900)));
    let failure = layer.clone().call(hasty).await.err().unwrap();
    assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::ZERO));
    let patient = request_with(Body::empty(), Some(started + Duration::from_millis(1100)));
    assert!(layer.clone().call(patient).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let (provider, _) = provider();
    let limit = limiter(LimitSettings { max_queue: 2, ..settings("1/s", 1) });
    let layer = layer(provider, &[&limit]);
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(layer.clone().call(request()))).collect();
    settle().await;
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!(failure.fault, Fault::QueueFull);
    assert!(near(failure.retry_after.unwrap(), Duration::from_secs(3)), "{:?}", failure.retry_after);
    for task in waiting {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!((limit.status().refused, limit.status().admitted), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn reject_says_exactly_when() {
    let (provider, calls) = provider();
    let limit = limiter(LimitSettings { on_excess: OnExcess::Reject, ..settings("5/m", 1) });
    let layer = layer(provider, &[&limit]);
    for _ in 0..20 {
        if let Err(failure) = layer.clone().call(request()).await {
            assert_eq!(failure.fault, Fault::RateLimited);
            let after = failure.retry_after.unwrap();
            // One nanosecond early is too early; at the time it is admitted.
            advance(after - Duration::from_nanos(1)).await;
            assert!(layer.clone().call(request()).await.is_err());
            advance(Duration::from_nanos(1)).await;
            layer.clone().call(request()).await.unwrap();
        }
    }
    let times = millis(&calls);
    assert_eq!(times.len(), 20);
    for pair in times.windows(6) {
        assert!(pair[5] - pair[0] >= 60_000, "{times:?}");
    }
}

/// Of several limits the slowest says when, whichever refused first.
#[tokio::test(start_paused = true)]
async fn of_several_limits_the_last_to_let_it_through_says_when() {
    for order in [[0, 1], [1, 0]] {
        let (provider, _) = provider();
        let reject = |rate: &str| LimitSettings { on_excess: OnExcess::Reject, ..settings(rate, 1) };
        let limits = [limiter(reject("1/m")), limiter(reject("1/4s"))];
        let layer = layer(provider, &order.map(|at: usize| &limits[at]));
        layer.clone().call(request()).await.unwrap();
        let failure = layer.clone().call(request()).await.err().unwrap();
        let after = failure.retry_after.unwrap();
        assert_eq!(after, Duration::from_secs(60));
        advance(after - Duration::from_nanos(1)).await;
        assert!(layer.clone().call(request()).await.is_err());
        advance(Duration::from_nanos(1)).await;
        layer.clone().call(request()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_tokens_and_its_own_queue() {
    let (provider, calls) = provider();
    let limit = limiter(LimitSettings { per: Per::Tenant, ..settings("1/s", 1) });
    let layer = layer(provider, &[&limit]);
    let requests = ["a", "a", "b", "a", "b"].map(|tenant| layer.clone().call(of(tenant)));
    assert!(join_all(requests).await.iter().all(Result::is_ok));
    assert_eq!(tenants(&calls), ["a", "b", "a", "b", "a"]);
    assert_eq!((limit.status().keys, limit.status().remaining), (2, 0));
    sleep(Duration::from_secs(3)).await;
    limit.sweep();
    assert_eq!(limit.status().keys, 0);
}

#[tokio::test(start_paused = true)]
async fn all_limits_must_admit_and_take_at_the_same_moment() {
    let (provider, calls) = provider();
    let fast = limiter(settings("10/s", 2));
    let slow = limiter(settings("3/s", 3));
    let layer = layer(provider, &[&fast, &slow]);
    let answers = join_all((0..6).map(|number| layer.clone().call(of(number)))).await;
    assert!(answers.iter().all(Result::is_ok));
    let expected: Vec<_> = (0..6).map(|number: u32| number.to_string()).collect();
    assert_eq!(tenants(&calls), expected);
    let times = millis(&calls);
    // Two by the burst of the first; one by its rate; then one a second by the second.
    for (at, expected) in times.iter().zip([0, 0, 111, 1000, 2000, 3000]) {
        assert!(at.abs_diff(expected) <= 5, "{times:?}");
    }
    // What waits for the second limit holds no token of the first.
    assert_eq!(fast.status().admitted, 6);
    sleep(Duration::from_millis(200)).await;
    assert_eq!((fast.status().remaining, fast.status().waiting), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_one_limit_costs_nothing_of_the_others() {
    let (provider, _) = provider();
    let wide = limiter(settings("10/s", 10));
    let narrow = limiter(LimitSettings { on_excess: OnExcess::Reject, ..settings("1/m", 1) });
    let layer = layer(provider, &[&wide, &narrow]);
    layer.clone().call(request()).await.unwrap();
    for _ in 0..20 {
        assert!(layer.clone().call(request()).await.is_err());
    }
    assert_eq!(wide.status().remaining, 9);
    assert_eq!((wide.status().admitted, wide.status().refused, narrow.status().refused), (1, 0, 20));
}

#[tokio::test(start_paused = true)]
async fn what_will_be_refused_later_does_not_wait_before() {
    let (provider, _) = provider();
    let first = limiter(LimitSettings { per: Per::Tenant, ..settings("1/s", 1) });
    for then in [
        LimitSettings { on_excess: OnExcess::Reject, ..settings("1/m", 1) },
        LimitSettings { max_wait: Duration::from_secs(4), ..settings("1/m", 1) },
    ] {
        let layer = layer(provider.clone(), &[&first, &limiter(then)]);
        layer.clone().call(request()).await.unwrap();
        let started = Instant::now();
        let failure = layer.clone().call(request()).await.err().unwrap();
        assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::ZERO));
        assert!(failure.retry_after.unwrap() > Duration::from_secs(59));
        advance(Duration::from_secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_waits_for_its_own_limit_does_not_hold_up_the_others() {
    let (provider, calls) = provider();
    let account = limiter(settings("100/s", 1));
    let tenant = limiter(LimitSettings { per: Per::Tenant, ..settings("1/s", 1) });
    let layer = layer(provider, &[&account, &tenant]);
    let requests = ["a", "a", "a", "b", "c"].map(|tenant| layer.clone().call(of(tenant)));
    assert!(join_all(requests).await.iter().all(Result::is_ok));
    assert_eq!(tenants(&calls), ["a", "b", "c", "a", "a"]);
}

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

#[tokio::test(start_paused = true)]
async fn shadow_lets_everything_pass_at_once_and_says_so() {
    for provider_in_shadow in [false, true] {
        let (provider, calls) = provider();
        let mode = if provider_in_shadow { Mode::Enforce } else { Mode::Shadow };
        let limit = limiter(LimitSettings { mode, ..settings("1/s", 1) });
        let source = KeySource::default();
        let layer = RateLimit::new(provider, vec![limit.clone()], source, provider_in_shadow);
        let mut told = Vec::new();
        for _ in 0..3 {
            let request = request();
            let exchange = request.exchange.clone();
            layer.clone().call(request).await.unwrap();
            told.push(exchange.facts().shadowed.iter().map(|what| what.to_string()).collect::<Vec<_>>());
        }
        assert_eq!(told, [vec![], vec!["limit:account".to_owned()], vec!["limit:account".to_owned()]]);
        assert_eq!(millis(&calls), [0, 0, 0]);
        let status = limit.status();
        assert_eq!((status.admitted, status.shadowed, status.refused), (1, 2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_limiter_keeps_what_is_spent_and_who_waits() {
    let (inner, calls) = provider();
    let old = limiter(settings("10/s", 10));
    let before = layer(inner.clone(), &[&old]);
    for _ in 0..5 {
        before.clone().call(request()).await.unwrap();
    }
    let new = Arc::new(Limiter::new(settings("20/s", 20), Tokens::Own).adopt(&old));
    // Made, but not in force: the reload may still fail.
    assert_eq!(old.status().remaining, 5);
    let after = RateLimit::new(inner.clone(), vec![new.clone()], KeySource::default(), false);
    after.clone().call(request()).await.unwrap();
    // Five were left, and ten more a second are at hand at once.
    assert_eq!((new.status().remaining, old.status().remaining), (14, 14));
    // The old generation spends the same tokens, and its waiters obey the new pace.
    for _ in 0..14 {
        before.clone().call(request()).await.unwrap();
    }
    let waiting = tokio::spawn(before.clone().call(of("old")));
    settle().await;
    let faster = Arc::new(Limiter::new(settings("1000/s", 10), Tokens::Own).adopt(&new));
    let fast = RateLimit::new(inner.clone(), vec![faster.clone()], KeySource::default(), false);
    let behind = tokio::spawn(fast.clone().call(of("new")));
    waiting.await.unwrap().unwrap();
    behind.await.unwrap().unwrap();
    assert_eq!(tenants(&calls)[20..], ["old", "new"]);
    assert!(millis(&calls)[21] <= 15, "{:?}", millis(&calls));
    assert_eq!(faster.status().admitted, 22);
    for other in [
        LimitSettings { per: Per::Route, ..settings("1/s", 1) },
        LimitSettings { unit: Unit::Cost, ..settings("1/s", 1) },
    ] {
        let other = Limiter::new(other, Tokens::Own).adopt(&faster);
        assert_eq!((other.status().admitted, other.status().keys), (0, 0), "{other:?}");
    }
}

/// One lease for every key, set by the test.
struct Fixed(Arc<RateLease>);

impl Leases for Fixed {
    fn lease(&self, names: &[&str]) -> Arc<RateLease> {
        assert!(names.is_empty());
        self.0.clone()
    }
}

fn leased(settings: LimitSettings) -> (Arc<Limiter>, Arc<RateLease>) {
    let lease = Arc::new(RateLease::new(settings.rate.per()));
    (Arc::new(Limiter::new(settings, Tokens::Leased(Arc::new(Fixed(lease.clone()))))), lease)
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_share_waits_until_it_has_one() {
    let (provider, calls) = provider();
    let (limit, lease) = leased(settings("200/s", 4));
    let layer = layer(provider, &[&limit]);
    let waiting: Vec<_> = (0..3).map(|number| tokio::spawn(layer.clone().call(of(number)))).collect();
    settle().await;
    assert_eq!((lease.demand(), lease.waiting(), limit.status().waiting), (3, 3, 3));
    advance(Duration::from_millis(200)).await;
    lease.set(10_000, 1, true);
    settle().await;
    assert_eq!((calls.lock().unwrap().len(), lease.waiting()), (1, 2));
    // A larger share is used at once.
    lease.set(100_000, 1, true);
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    let times = millis(&calls);
    assert!(times[0] == 200 && times[2] <= 225, "{times:?}");
    assert_eq!((lease.demand(), lease.waiting(), limit.status().remaining), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_rejects_waits_a_moment_for_the_first_share_and_for_nothing_else() {
    let rejecting = LimitSettings { on_excess: OnExcess::Reject, ..settings("200/s", 4) };
    let (provider, calls) = provider();
    let (limit, lease) = leased(rejecting.clone());
    let layer = layer(provider, &[&limit]);
    let started = Instant::now();
    let first = tokio::spawn(layer.clone().call(request()));
    settle().await;
    assert_eq!((calls.lock().unwrap().len(), lease.waiting()), (0, 1));
    advance(Duration::from_millis(30)).await;
    lease.set(10_000, 1, true);
    first.await.unwrap().unwrap();
    assert_eq!((started.elapsed(), lease.waiting()), (Duration::from_millis(30), 0));
    // There is a share, and it is used up.
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::from_millis(30)));

    let (limit, lease) = leased(LimitSettings { max_queue: 2, ..rejecting });
    let layer = super::tests::layer(self::provider().0, &[&limit]);
    let started = Instant::now();
    let calls = (0..3).map(|_| layer.clone().call(request()));
    let refused = futures_util::future::join_all(calls).await;
    assert!(
        refused
            .iter()
            .all(|outcome| outcome.as_ref().is_err_and(|failure| failure.fault == Fault::RateLimited))
    );
    assert!(near(started.elapsed(), Duration::from_millis(150)), "{:?}", started.elapsed());
    assert_eq!((lease.waiting(), limit.status().refused), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn without_a_share_nobody_waits_longer_than_max_wait() {
    let (provider, _) = provider();
    let (limit, lease) = leased(settings("200/s", 4));
    let layer = layer(provider, &[&limit]);
    let started = Instant::now();
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!(failure.fault, Fault::RateLimited);
    assert!(near(started.elapsed(), Duration::from_secs(5)), "{:?}", started.elapsed());
    assert_eq!(failure.retry_after, Some(Duration::from_secs(1)));
    assert_eq!((lease.waiting(), limit.status().waiting, limit.status().refused), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_even_the_whole_limit_could_not_serve_in_time_is_refused_at_once() {
    let (provider, _) = provider();
    let (limit, _lease) = leased(LimitSettings { max_wait: Duration::from_secs(1), ..settings("2/s", 1) });
    let layer = layer(provider, &[&limit]);
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(layer.clone().call(request()))).collect();
    settle().await;
    let started = Instant::now();
    let failure = layer.clone().call(request()).await.err().unwrap();
    assert_eq!((failure.fault, started.elapsed()), (Fault::RateLimited, Duration::ZERO));
    for task in waiting {
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_fleet_limit_asks_for_its_leases_again() {
    let (provider, _) = provider();
    let (old, first) = leased(settings("10/s", 1));
    first.set(10_000, 1, true);
    layer(provider.clone(), &[&old]).call(request()).await.unwrap();
    let second = Arc::new(RateLease::new(Duration::from_secs(1)));
    second.set(20_000, 2, true);
    let tokens = Tokens::Leased(Arc::new(Fixed(second.clone())));
    let shared = LimitSettings { scope: Scope::Fleet, ..settings("20/s", 2) };
    // Another scope, as `leased` above has the default one: nothing is taken over.
    assert_eq!(Limiter::new(shared, tokens.clone()).adopt(&old).status().admitted, 0);
    let new = Arc::new(Limiter::new(settings("20/s", 2), tokens).adopt(&old));
    layer(provider.clone(), &[&new]).call(request()).await.unwrap();
    // The old generation goes by the new leases, too.
    layer(provider, &[&old]).call(request()).await.unwrap();
    assert_eq!((first.demand(), second.demand(), new.status().admitted), (1, 2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_shrinks_under_those_who_wait_keeps_its_word_to_none_longer_than_max_wait() {
    let (provider, _) = provider();
    let old = limiter(settings("10/s", 1));
    let before = layer(provider.clone(), &[&old]);
    let waiting: Vec<_> = (0..4).map(|number| tokio::spawn(before.clone().call(of(number)))).collect();
    settle().await;
    let new = Arc::new(Limiter::new(settings("1/m", 1), Tokens::Own).adopt(&old));
    let started = Instant::now();
    assert!(layer(provider, &[&new]).call(request()).await.is_err());
    let mut answers = Vec::new();
    for task in waiting {
        answers.push(task.await.unwrap().map_err(|failure| failure.fault).map(|_| ()));
    }
    let late = Err(Fault::RateLimited);
    assert_eq!(answers, [Ok(()), late, late, late]);
    assert!(near(started.elapsed(), Duration::from_secs(5)), "{:?}", started.elapsed());
    assert_eq!(new.status().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_more_than_a_smaller_burst_holds_does_not_block_the_line() {
    let (provider, calls) = provider();
    let cost = |limit: &Arc<Limiter>, cost: u32| {
        let source = KeySource { route: "r".into(), ..KeySource::default() };
        let cost = NonZeroU32::new(cost).unwrap();
        RateLimit::costing(provider.clone(), vec![limit.clone()], source, false, cost)
    };
    let units = |rate, burst| LimitSettings { unit: Unit::Cost, ..settings(rate, burst) };
    let old = limiter(units("100/s", 50));
    cost(&old, 50).call(of("first")).await.unwrap();
    let dear: Vec<_> = (0..2).map(|number| tokio::spawn(cost(&old, 50).call(of(number)))).collect();
    settle().await;
    let new = Arc::new(Limiter::new(units("100/s", 10), Tokens::Own).adopt(&old));
    let cheap = tokio::spawn(cost(&new, 1).call(of("cheap")));
    for task in dear.into_iter().chain([cheap]) {
        task.await.unwrap().unwrap();
    }
    assert_eq!(tenants(&calls), ["first", "0", "1", "cheap"]);
    // 91 a second come back, first what the larger burst had let go, and each of the dear takes the ten that there can be.
    assert!(millis(&calls)[3] < 700, "{:?}", millis(&calls));
    assert_eq!(new.status().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_kept_while_a_later_limit_refuses_and_order_of_the_list_does_not_matter() {
    let (provider, calls) = provider();
    let (one, two) = (limiter(settings("50/s", 1)), limiter(settings("40/s", 3)));
    let (there, back) = (layer(provider.clone(), &[&one, &two]), layer(provider, &[&two, &one]));
    let requests =
        (0..60).map(|number| if number % 2 == 0 { &there } else { &back }.clone().call(of(number)));
    assert!(join_all(requests).await.iter().all(Result::is_ok));
    let expected: Vec<_> = (0..60).map(|number: u32| number.to_string()).collect();
    assert_eq!(tenants(&calls), expected);
    assert_eq!((one.status().waiting, two.status().waiting), (0, 0));
}

/// Real threads and timers: no wake-up is lost, whoever leaves whenever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_forgotten_in_a_crowd() {
    let (provider, calls) = provider();
    let all = limiter(settings("4000/s", 20));
    let each = limiter(LimitSettings { per: Per::Tenant, ..settings("2000/s", 5) });
    let layer = layer(provider, &[&all, &each]);
    let tasks: Vec<_> = (0..600).map(|number| tokio::spawn(layer.clone().call(of(number % 3)))).collect();
    for task in tasks.iter().skip(1).step_by(3) {
        tokio::task::yield_now().await;
        task.abort();
    }
    let mut answered = 0;
    for task in tasks {
        let outcome = tokio::time::timeout(Duration::from_secs(20), task).await.expect("still waits");
        answered += usize::from(outcome.is_ok_and(|answer| answer.is_ok()));
    }
    assert!(answered >= 400, "{answered}");
    assert!(calls.lock().unwrap().len() >= answered);
    assert_eq!((all.status().waiting, each.status().waiting), (0, 0));
}
