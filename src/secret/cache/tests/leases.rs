//! Values that end, stores that are tended, and a store that takes the place of another.

use super::*;

/// A store whose values are polled or leased, and whose upkeep is counted.
struct Leasing {
    /// Value, and seconds that it lives.
    answer: Mutex<Option<(&'static str, Option<u64>)>>,
    reads: watch::Sender<Vec<Instant>>,
    upkeep: watch::Sender<Vec<Instant>>,
    upkeep_at: Mutex<Option<Instant>>,
}

impl Leasing {
    fn new(value: &'static str, seconds: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(Some((value, seconds))),
            reads: watch::Sender::default(),
            upkeep: watch::Sender::default(),
            upkeep_at: Mutex::default(),
        })
    }

    fn say(&self, answer: Option<(&'static str, Option<u64>)>) {
        *self.answer.lock().unwrap() = answer;
    }
}

impl SecretStore for Leasing {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move {
            self.reads.send_modify(|reads| reads.push(Instant::now()));
            let answer = *self.answer.lock().unwrap();
            let (value, seconds) =
                answer.ok_or_else(|| SecretError::NotFound { reference: reference.clone() })?;
            let term = seconds.map(Duration::from_secs);
            Ok(Reading {
                bytes: Zeroizing::new(value.into()),
                expires: term.map(|term| Instant::now() + term),
                again: term.map(|term| Instant::now() + term * 2 / 3),
            })
        })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Polled(Duration::from_secs(300))
    }

    fn upkeep_at(&self) -> Option<Instant> {
        *self.upkeep_at.lock().unwrap()
    }

    fn upkeep(&self) -> futures_util::future::BoxFuture<'_, ()> {
        Box::pin(async {
            // A renewal that takes its time is not begun twice.
            tokio::time::sleep(Duration::from_secs(7)).await;
            *self.upkeep_at.lock().unwrap() = Some(Instant::now() + Duration::from_secs(100));
            self.upkeep.send_modify(|upkeep| upkeep.push(Instant::now()));
        })
    }
}

fn leasing(store: &Arc<Leasing>) -> Arc<SecretCache> {
    Arc::new(SecretCache::new(stores().with("test", Arc::clone(store) as Arc<dyn SecretStore>)))
}

#[tokio::test(start_paused = true)]
async fn a_value_is_read_again_at_its_interval_and_a_lease_at_two_thirds() {
    for (seconds, least, most) in [(None, 270, 331), (Some(90), 60, 61)] {
        let store = Leasing::new("one", seconds);
        let cache = leasing(&store);
        let entry = cache.entry(&test_ref());
        cache.read_new(Duration::from_secs(5)).await;
        let cancel = CancellationToken::new();
        let task = tokio::spawn(cache.clone().run(cancel.clone()));
        let mut reads = store.reads.subscribe();
        let times = reads.wait_for(|reads| reads.len() >= 4).await.unwrap().clone();
        for pair in times.windows(2) {
            let wait = (pair[1] - pair[0]).as_secs();
            assert!((least..most).contains(&wait), "{seconds:?}: {wait}");
        }
        assert_eq!(shown(&entry), "one#1", "the same value has the same number");
        cancel.cancel();
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_ends_with_its_lease_and_its_number_goes_on() {
    let store = Leasing::new("one", Some(60));
    let cache = leasing(&store);
    let entry = cache.entry(&test_ref());
    entry.refresh().await;
    advance(Duration::from_secs(40)).await;
    entry.refresh().await;
    advance(Duration::from_secs(40)).await;
    assert_eq!(shown(&entry), "one#1", "the lease was made longer");
    store.say(None);
    entry.refresh().await;
    assert_eq!((shown(&entry), cache.status()[0].state), ("one#1".to_owned(), SecretState::Stale));
    advance(Duration::from_secs(21)).await;
    assert_eq!((shown(&entry), cache.status()[0].state), ("expired".to_owned(), SecretState::Missing));
    assert!(!entry.required() && cache.ready());
    store.say(Some(("two", None)));
    entry.refresh().await;
    assert_eq!(shown(&entry), "two#2");
    advance(Duration::from_secs(100_000)).await;
    assert_eq!(shown(&entry), "two#2", "without a lease there is no end");
    // Without a read at its end, the status tells it all the same.
    store.say(Some(("three", Some(1))));
    entry.refresh().await;
    advance(Duration::from_secs(1)).await;
    let status = cache.status().remove(0);
    assert_eq!((status.state, status.last_error_code), (SecretState::Missing, Some("expired")));
}

#[tokio::test(start_paused = true)]
async fn stores_are_tended_one_upkeep_at_a_time() {
    let store = Leasing::new("one", None);
    *store.upkeep_at.lock().unwrap() = Some(Instant::now() + Duration::from_secs(50));
    let cache = leasing(&store);
    let began = Instant::now();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(cache.clone().run(cancel.clone()));
    let mut upkeep = store.upkeep.subscribe();
    let times = upkeep.wait_for(|upkeep| upkeep.len() >= 3).await.unwrap().clone();
    let seconds: Vec<u64> = times.iter().map(|at| (*at - began).as_secs()).collect();
    assert_eq!(seconds, [57, 164, 271]);
    cancel.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_of_a_new_policy_takes_over() {
    let (old, new) = (Leasing::new("old", None), Leasing::new("new", None));
    let cache = leasing(&old);
    let entry = cache.entry(&test_ref());
    cache.read_new(Duration::from_secs(5)).await;
    let with = |store: &Arc<Leasing>| stores().with("test", Arc::clone(store) as Arc<dyn SecretStore>);
    cache.adopt(with(&old));
    cache.read_new(Duration::from_secs(5)).await;
    assert_eq!(old.reads.borrow().len(), 1, "the same store is not asked again");
    // A reference to a store that is only now there.
    let later = cache.entry(&"later:key".parse().unwrap());
    cache.read_new(Duration::from_secs(5)).await;
    assert_eq!(shown(&later), "unknown_store");
    cache.adopt(with(&new).with("later", Leasing::new("late", None)));
    assert_eq!(shown(&entry), "old#1", "until it is read");
    cache.read_new(Duration::from_secs(5)).await;
    assert_eq!((shown(&entry), shown(&later)), ("new#2".to_owned(), "late#1".to_owned()));
    assert_eq!(cache.status()[0].reference, "later:key");
    // A new store that fails: the old store's value stays.
    let failing = Leasing::new("", None);
    failing.say(None);
    cache.adopt(with(&failing));
    cache.read_new(Duration::from_secs(5)).await;
    assert_eq!(shown(&entry), "new#2");
}
