//! What queued for a limit or a permit before the provider throttled goes back to wait for its quota.

use tower::service_fn;

use super::*;
use crate::resilience::RouteService;
use crate::resilience::concurrency::{Concurrency, ConcurrencySettings, Permits};
use crate::resilience::key::Per;
use crate::resilience::quota::Recheck;
use crate::resilience::rate_limit::settings::{OnExcess, Unit};
use crate::resilience::rate_limit::{LimitSettings, Limiter, RateLimit, Scope, Tokens};

/// Quota, a limit of ten a minute, and one permit, around a provider that takes a tenth of a second for an answer.
struct Queued {
    stack: RouteService,
    quota: Arc<Quota>,
    limit: Arc<Limiter>,
    permits: Arc<Permits>,
    started: Instant,
    /// When the provider was reached, and by which request.
    reached: Arc<Mutex<Vec<(Duration, String)>>>,
}

impl Queued {
    fn new(script: &[(u16, Fields)], settings: QuotaSettings, shadow: Option<&str>) -> Self {
        Self::limited(script, settings, shadow, "10/m", 10)
    }

    fn limited(
        script: &[(u16, Fields)],
        settings: QuotaSettings,
        shadow: Option<&str>,
        rate: &str,
        burst: u32,
    ) -> Self {
        let (started, reached) = (Instant::now(), Arc::<Mutex<Vec<(Duration, String)>>>::default());
        let (origin, log) = (origin(script).0, reached.clone());
        let slow = service_fn(move |request: EgressRequest| {
            log.lock().unwrap().push((started.elapsed(), request.path_and_query.to_string()));
            let mut origin = origin.clone();
            async move {
                sleep(SECOND / 10).await;
                origin.call(request).await
            }
        });
        let limit = Arc::new(Limiter::new(
            LimitSettings {
                name: "l".into(),
                rate: rate.parse().unwrap(),
                burst,
                unit: Unit::Requests,
                per: Per::Provider,
                scope: Scope::Pod,
                on_excess: OnExcess::Wait,
                max_wait: if burst == 10 { SECOND } else { 100 * SECOND },
                max_queue: 100,
                mode: Mode::Enforce,
            },
            Tokens::Own,
        ));
        let one = ConcurrencySettings { max: 1, max_wait: 10 * SECOND, max_queue: 100, shadow: false };
        let permits = Arc::new(Permits::new(one));
        let stack = RouteService::new(Recheck::new(RouteService::boxing(slow)));
        let stack = RouteService::new(Concurrency::new(stack, permits.clone(), None));
        let stack = RouteService::new(RateLimit::new(stack, vec![limit.clone()], source(), false));
        let quota = Arc::new(Quota::new("p"));
        let layer = QuotaLayer::new(stack, quota.clone(), settings, source(), shadow.map(Into::into), true);
        Self { stack: RouteService::new(layer), quota, limit, permits, started, reached }
    }

    /// Ten at once; what became of each, and when.
    async fn ten(&self) -> Vec<(Result<u16, Fault>, Duration)> {
        let calls = (0..10).map(|number| {
            let call = self.stack.send(request(&format!("/{number}")));
            async move {
                let outcome = call.await.map(|answer| answer.status().as_u16());
                (outcome.map_err(|failure| failure.fault), self.started.elapsed())
            }
        });
        futures_util::future::join_all(calls).await
    }

    fn reached(&self) -> Vec<Duration> {
        self.reached.lock().unwrap().iter().map(|(at, _)| *at).collect()
    }

    /// One request, after so long.
    async fn one(&self, after: Duration, path: &str) {
        sleep(after).await;
        self.stack.send(request(path)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_queued_before_a_throttle_does_not_rush_the_provider() {
    let queued = Queued::new(&[(429, wait("30"))], patient(), None);
    let outcomes = queued.ten().await;
    assert_eq!(outcomes[0].0, Ok(429));
    assert!(outcomes[1..].iter().all(|(outcome, _)| *outcome == Ok(200)), "{outcomes:?}");
    let reached = queued.reached();
    assert_eq!((reached.len(), reached[0]), (10, Duration::ZERO));
    let resumed = reached[1] - SECOND / 10;
    assert!(30 * SECOND <= resumed && resumed <= 31 * SECOND, "{reached:?}");
    // There are tokens for ten and no more: none was kept by a request that was not sent.
    assert!(reached[9] < 35 * SECOND, "{reached:?}");
    assert_eq!((queued.limit.status().refused, queued.permits.status().running), (0, 0));
    let status = queued.quota.status();
    assert_eq!((status.recalled, status.throttled, status.refused, status.waiting), (9, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_queued_before_the_provider_told_that_nothing_is_left_waits_for_the_reset() {
    let answers = [2, 1, 0].map(|left| (200, told(left, 10, "7")));
    let queued = Queued::new(&answers, patient(), None);
    let outcomes = queued.ten().await;
    assert!(outcomes.iter().all(|(outcome, _)| *outcome == Ok(200)), "{outcomes:?}");
    let reached = queued.reached();
    let before = reached.iter().filter(|at| **at < 7 * SECOND).count();
    assert_eq!((before, reached.len()), (3, 10), "two were left after the first: {reached:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_called_back_waits_no_longer_than_it_may() {
    let short = QuotaSettings { max_wait: 10 * SECOND, ..QuotaSettings::default() };
    let reject = QuotaSettings { on_excess: QuotaExcess::Reject, ..QuotaSettings::default() };
    for settings in [short, reject] {
        let queued = Queued::new(&[(429, wait("30"))], settings, None);
        let outcomes = queued.ten().await;
        assert_eq!((queued.reached().len(), outcomes[0].0), (1, Ok(429)));
        for (outcome, at) in &outcomes[1..] {
            assert_eq!(*outcome, Err(Fault::QuotaHeld));
            assert!(*at <= SECOND, "the pause is longer than the wait may be: {at:?}");
        }
        assert_eq!((queued.limit.status().remaining, queued.quota.status().refused), (9, 9));
    }
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_calls_nobody_back() {
    let queued = Queued::new(&[(429, wait("30"))], patient(), Some("quota"));
    queued.ten().await;
    assert_eq!((queued.reached().len(), queued.quota.status().recalled), (10, 0));
    assert!(queued.started.elapsed() < 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn who_is_called_back_goes_before_those_who_came_later() {
    // One a second: three wait for their tokens when the provider throttles, and learn of it one by one.
    let queued = Queued::limited(&[(429, wait("30"))], patient(), None, "60/m", 1);
    let early = ["/a", "/b", "/c", "/d"].map(|path| queued.one(Duration::ZERO, path));
    let late = ["/e", "/f"].map(|path| queued.one(SECOND / 2, path));
    futures_util::join!(futures_util::future::join_all(early), futures_util::future::join_all(late));
    assert_eq!(queued.quota.status().recalled, 3);
    let order: Vec<_> = queued.reached.lock().unwrap().iter().map(|(_, path)| path.clone()).collect();
    assert_eq!(order, ["/a", "/b", "/c", "/d", "/e", "/f"]);
}

#[tokio::test(start_paused = true)]
async fn who_is_called_back_is_not_refused_for_those_who_came_later() {
    let two = QuotaSettings { max_queue: 2, ..patient() };
    let queued = Queued::limited(&[(429, wait("30"))], two, None, "60/m", 1);
    let early = ["/a", "/b", "/c", "/d"].map(|path| queued.one(Duration::ZERO, path));
    // These fill the queue; there is no room for one more.
    let late = ["/e", "/f"].map(|path| queued.one(SECOND / 2, path));
    let refused = async {
        sleep(SECOND * 3 / 4).await;
        queued.stack.send(request("/g")).await.map(drop).unwrap_err().fault
    };
    let (_, _, refused) = futures_util::join!(
        futures_util::future::join_all(early),
        futures_util::future::join_all(late),
        refused
    );
    assert_eq!(refused, Fault::QueueFull);
    assert_eq!((queued.quota.status().recalled, queued.quota.status().refused), (3, 1));
    let order: Vec<_> = queued.reached.lock().unwrap().iter().map(|(_, path)| path.clone()).collect();
    assert_eq!(order, ["/a", "/b", "/c", "/d", "/e", "/f"]);
}
