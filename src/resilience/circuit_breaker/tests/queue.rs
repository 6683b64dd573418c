//! What queued before the breaker opened does not rush the provider. Concurrency stands for every layer in which requests wait.

use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::resilience::concurrency::{Concurrency, ConcurrencySettings, Permits};

fn permits(max: u32) -> Arc<Permits> {
    let settings = ConcurrencySettings { max, max_wait: 60 * SECOND, max_queue: 1000, shadow: false };
    Arc::new(Permits::new(settings))
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_refused_when_its_turn_comes() {
    let (provider, breakers, permits) = (Provider::slow(0, SECOND / 10), breakers(rules()), permits(10));
    let take = Take::new(provider.service(), breakers.clone(), None);
    let stack = Look::new(Concurrency::new(take, permits.clone(), None), breakers.clone(), None);
    let calls: Vec<_> = (0..1010)
        .map(|_| {
            let stack = stack.clone();
            tokio::spawn(async move { send(&stack).await })
        })
        .collect();
    sleep(SECOND / 100).await;
    assert_eq!(permits.status().waiting, 1000, "all passed the outer look while it was closed");
    let mut refused = 0;
    for call in calls {
        refused += u32::from(call.await.unwrap().is_err_and(|retry_after| retry_after.is_some()));
    }
    // Ten were with the provider when it died. The four that failed before the breaker opened made room for one each, at
    // the most: whether it came before the fifth failure is up to the runtime.
    assert!((10..=14).contains(&provider.reached()), "{}", provider.reached());
    assert_eq!(refused, 1010 - provider.reached());
    let status = breakers.status();
    assert_eq!((status.opened, status.probes, status.refused), (1, 0, u64::from(refused)));
    assert_eq!((permits.status().running, permits.status().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_a_full_queue_only_the_probes_get_through_when_the_time_is_over() {
    let (provider, breakers) = (Provider::slow(0, SECOND), breakers(Rules { probes: 2, ..rules() }));
    let take = Take::new(provider.service(), breakers.clone(), None);
    send_times(&take, 5).await;
    // They got past the outer look in time, and their turn comes in the very moment at which probes may go.
    advance(30 * SECOND).await;
    provider.most.store(0, Ordering::SeqCst);
    let queued = Concurrency::new(take, permits(1000), None);
    let started = Instant::now();
    let answers = futures_util::future::join_all((0..1000).map(|_| send(&queued))).await;
    assert_eq!((provider.reached(), provider.most.load(Ordering::SeqCst)), (5 + 2, 2));
    let refused_by_breaker = answers.iter().filter(|answer| matches!(answer, Err(Some(_)))).count();
    assert_eq!((refused_by_breaker, started.elapsed()), (998, SECOND));
    assert_eq!(breakers.status().hosts[0].state, "open");
}

/// Under steady load a provider dies and comes back: while it is dead only probes reach it, and the next probe after it is
/// well again finds that out.
#[tokio::test(start_paused = true)]
async fn a_provider_that_dies_and_recovers_under_load() {
    const TICK: Duration = Duration::from_millis(10);
    let (provider, breakers) = (Provider::slow(200, 5 * TICK), breakers(rules()));
    let stack = both(provider.service(), &breakers);
    let mut reached = Vec::new();
    let (mut opened, mut closed) = (None, None);
    for tick in 0..11_000usize {
        provider.is(if (1_000..9_500).contains(&tick) { 0 } else { 200 });
        let stack = stack.clone();
        tokio::spawn(async move { send(&stack).await });
        sleep(TICK).await;
        reached.push(provider.reached());
        let status = breakers.status();
        opened = opened.or((status.opened > 0).then_some(tick));
        closed = closed.or((status.closed > 0).then_some(tick));
    }
    let (opened, closed) = (opened.unwrap(), closed.unwrap());
    assert!((1_000..1_020).contains(&opened), "{opened}");
    assert_eq!(reached[9_499] - reached[opened], 1, "the probe after 30 s, which failed");
    // The next one may go 60 s later; two have to succeed, one after the other.
    assert!((opened + 9_000..opened + 9_040).contains(&closed), "{opened} {closed}");
    assert_eq!(reached[closed] - reached[9_499], 2 + 1, "two probes, and the first request after them");
    assert!(reached[10_999] - reached[closed] >= 10_990 - u32::try_from(closed).unwrap());
}
