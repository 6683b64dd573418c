//! Values that outgate made for a policy that is no longer the newest, on paused time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// Makes `made-1`, `made-2` and so on, once it may.
struct Maker {
    uses_up: bool,
    made: AtomicUsize,
    hang: watch::Sender<bool>,
    begun: AtomicBool,
}

impl Maker {
    fn new(uses_up: bool) -> Arc<Self> {
        let (made, hang, begun) = (AtomicUsize::new(0), watch::Sender::default(), AtomicBool::new(false));
        Arc::new(Self { uses_up, made, hang, begun })
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }
}

impl SecretStore for Maker {
    fn read<'a>(&'a self, _: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move {
            self.begun.store(true, Ordering::SeqCst);
            self.hang.subscribe().wait_for(|hang| !hang).await.unwrap();
            let number = self.made.fetch_add(1, Ordering::SeqCst) + 1;
            let (bytes, end) = (format!("made-{number}").into_bytes(), Duration::from_secs(100));
            let expires = Some(Instant::now() + end);
            Ok(Reading { bytes: Zeroizing::new(bytes), expires, again: Some(Instant::now() + end * 4 / 5) })
        })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Made
    }

    fn uses_up(&self) -> bool {
        self.uses_up
    }
}

fn reference() -> SecretRef {
    SecretRef::made("token", "test", "mark")
}

async fn kept(
    cache: &Arc<SecretCache>,
    maker: &Arc<Maker>,
) -> (Arc<SecretEntry>, tokio_util::sync::DropGuard) {
    let entry = cache.made(&reference(), || Arc::clone(maker) as Arc<dyn SecretStore>);
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(Arc::clone(cache).run(stop.clone()));
    entry.obtain().await.unwrap();
    (entry, stop.drop_guard())
}

#[tokio::test(start_paused = true)]
async fn a_token_of_the_policy_before_is_made_anew_for_who_asks_and_not_by_the_clock() {
    let (cache, maker) = (Arc::new(SecretCache::new(stores())), Maker::new(false));
    let (entry, _running) = kept(&cache, &maker).await;
    cache.retain(&HashSet::new());
    let soon = Duration::from_secs(1);
    assert_eq!(timeout(soon, entry.heal_refresh()).await, Ok(RefreshOutcome::Changed));
    assert_eq!((shown(&entry), maker.made()), ("made-2#2".to_owned(), 2));
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!((shown(&entry), maker.made()), ("expired".to_owned(), 2));
    assert!(timeout(soon, entry.obtain()).await.unwrap().is_ok());
    assert_eq!((shown(&entry), maker.made()), ("made-3#3".to_owned(), 3));
    // A policy that uses it again has one of its own.
    assert!(!Arc::ptr_eq(&entry, &cache.made(&reference(), || maker.clone())));
    assert_eq!(cache.leaving().len(), 1);
    drop(entry);
    cache.retain(&HashSet::new());
    tokio::time::sleep(soon).await;
    assert_eq!(cache.leaving().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_making_uses_something_up_is_not_made_for_the_policy_before() {
    let (cache, maker) = (Arc::new(SecretCache::new(stores())), Maker::new(true));
    let (entry, _running) = kept(&cache, &maker).await;
    let soon = Duration::from_secs(1);
    // What runs at the reload comes to its end, also for who asked for it.
    maker.hang.send_replace(true);
    maker.begun.store(false, Ordering::SeqCst);
    let mut heal = Box::pin(entry.heal_refresh());
    assert!(timeout(soon, &mut heal).await.is_err() && maker.begun.load(Ordering::SeqCst));
    cache.retain(&HashSet::new());
    assert!(timeout(soon, &mut heal).await.is_err());
    maker.hang.send_replace(false);
    assert_eq!(heal.await, RefreshOutcome::Changed);
    // And then nothing begins any more: who asks is told at once.
    advance(Duration::from_secs(60)).await;
    assert_eq!(timeout(soon, entry.heal_refresh()).await, Ok(RefreshOutcome::Failed));
    advance(Duration::from_secs(100)).await;
    assert_eq!(timeout(soon, entry.obtain()).await.unwrap().err().unwrap().code(), "expired");
    assert_eq!(maker.made(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_making_that_has_not_begun_is_told_when_its_policy_goes() {
    let (cache, maker) = (Arc::new(SecretCache::new(stores())), Maker::new(true));
    let entry = cache.made(&reference(), || maker.clone());
    let mut asked = Box::pin(entry.obtain());
    assert!(futures_util::poll!(&mut asked).is_pending());
    cache.retain(&HashSet::new());
    assert_eq!(timeout(Duration::from_secs(1), asked).await.unwrap().err().unwrap().code(), "not_read");
    assert_eq!(maker.made(), 0);
}
