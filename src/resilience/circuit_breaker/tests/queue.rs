//! What queued before the breaker opened does not rush the provider.

use tokio::sync::Semaphore;
use tokio::time::{Instant, advance, sleep};

use super::*;

/// Stands for the limits: lets `at_a_time` requests through at once, the others wait in order, and each pays some time.
fn queue(inner: impl Inner, at_a_time: usize, waiting: Arc<AtomicU32>) -> impl Inner {
    let gate = Arc::new(Semaphore::new(at_a_time));
    service_fn(move |request: EgressRequest| {
        let (mut inner, gate, waiting) = (inner.clone(), gate.clone(), waiting.clone());
        async move {
            waiting.fetch_add(1, Ordering::SeqCst);
            let _turn = gate.acquire().await.unwrap();
            waiting.fetch_sub(1, Ordering::SeqCst);
            inner.call(request).await
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_refused_when_its_turn_comes() {
    let (provider, breakers, waiting) = (Provider::slow(0, SECOND / 10), breakers(rules()), Arc::default());
    let take = Take::new(provider.service(), breakers.clone(), None);
    let stack = Look::new(queue(take, 10, Arc::clone(&waiting)), breakers.clone(), None);
    let calls: Vec<_> = (0..1010)
        .map(|_| {
            let stack = stack.clone();
            tokio::spawn(async move { send(&stack).await })
        })
        .collect();
    sleep(SECOND / 100).await;
    assert_eq!(waiting.load(Ordering::SeqCst), 1000, "all passed the outer look while it was closed");
    let mut refused = 0;
    for call in calls {
        if call.await.unwrap().is_err_and(|retry_after| retry_after.is_some()) {
            refused += 1;
        }
    }
    // Ten were with the provider when it died. The one that opened the breaker, and those before it, made room for others
    // only while it was still closed.
    assert!(provider.reached() <= 10 + 5, "{}", provider.reached());
    assert_eq!(refused, 1010 - provider.reached());
    assert_eq!(breakers.status().opened, 1);
}

#[tokio::test(start_paused = true)]
async fn of_a_full_queue_only_the_probes_get_through_when_the_time_is_over() {
    let (provider, breakers, waiting) =
        (Provider::slow(0, SECOND), breakers(Rules { probes: 2, ..rules() }), Arc::default());
    let take = Take::new(provider.service(), breakers.clone(), None);
    for _ in 0..5 {
        let _ = send(&take).await;
    }
    // They got past the outer look in time, and their turn comes in the very moment at which probes may go.
    advance(30 * SECOND).await;
    provider.most.store(0, Ordering::SeqCst);
    let queued = queue(take, 1000, waiting);
    let started = Instant::now();
    let answers = futures_util::future::join_all((0..1000).map(|_| send(&queued))).await;
    assert_eq!((provider.reached(), provider.most.load(Ordering::SeqCst)), (5 + 2, 2));
    let refused_by_breaker = answers.iter().filter(|answer| matches!(answer, Err(Some(_)))).count();
    assert_eq!((refused_by_breaker, started.elapsed()), (998, SECOND));
    assert_eq!(breakers.status().hosts[0].state, "open");
}
