//! Secrets of tenants, on paused time.

use super::*;
use crate::secret::cache::lines::READS_AT_ONCE;
use crate::secret::cache::tenants::TenantLog;

fn template() -> SecretRef {
    "test:kv/{tenant}".parse().unwrap()
}

fn kept_fresh(cache: &Arc<SecretCache>) -> tokio_util::sync::DropGuard {
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.clone().run(stop.clone()));
    stop.drop_guard()
}

fn bound(cache: &SecretCache, tenant: &str) -> Arc<SecretEntry> {
    cache.tenant_entry(&template(), ValueRules::HeaderSafe, tenant).unwrap()
}

#[tokio::test(start_paused = true)]
async fn whoever_names_a_tenant_first_waits_and_one_read_serves_all() {
    let store = Scripted::new(Some("value"));
    let cache = cache_over(&store);
    let _running = kept_fresh(&cache);
    store.hang.send_replace(true);
    let entry = bound(&cache, "acme");
    assert!(Arc::ptr_eq(&entry, &bound(&cache, "acme")));
    {
        // The first goes away: its read goes on.
        let mut gone = std::pin::pin!(entry.obtain());
        assert!(futures_util::poll!(gone.as_mut()).is_pending());
    }
    let all = futures_util::future::join_all((0..50).map(|_| entry.obtain()));
    let freed = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        store.hang.send_replace(false);
    };
    let (all, ()) = tokio::join!(all, freed);
    assert!(all.iter().all(Result::is_ok));
    assert_eq!((shown(&entry), store.reads()), ("value#1".to_owned(), 1));
    // It is read again by the clock, as a file would not be.
    store.say(Some("other"));
    tokio::time::sleep(Duration::from_secs(34)).await;
    assert_eq!((shown(&entry), store.reads()), ("other#2".to_owned(), 2));
    // Who makes something of all secrets need not make it anew for each name.
    assert_eq!((cache.changes(), cache.versions().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_tenant_is_remembered_and_asked_for_again_at_its_time() {
    let store = Scripted::new(None);
    let cache = cache_over(&store);
    let _running = kept_fresh(&cache);
    let entry = bound(&cache, "nobody");
    for _ in 0..20 {
        assert_eq!(entry.obtain().await.err().unwrap().code(), "not_found");
    }
    assert_eq!(store.reads(), 1);
    assert!(entry.retry_at().unwrap() > Instant::now() + Duration::from_secs(5));
    store.say(Some("value"));
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!((shown(&entry), store.reads()), ("value#1".to_owned(), 2));
}

#[tokio::test(start_paused = true)]
async fn they_live_with_their_holder_and_are_in_no_list_of_the_policys() {
    let store = Scripted::new(Some("value"));
    let cache = cache_over(&store);
    let _running = kept_fresh(&cache);
    let kept = cache.entry(&test_ref());
    kept.refresh().await;
    let (one, two) = (bound(&cache, "one"), bound(&cache, "two"));
    one.obtain().await.unwrap();
    // A tenant who is being read holds up no readiness, and a reload drops nobody.
    assert!(cache.ready());
    cache.retain(&HashSet::from([test_ref()]));
    assert!(Arc::ptr_eq(&one, &bound(&cache, "one")));
    assert_eq!(cache.status().len(), 1);
    let counted = cache.tenant_secrets();
    assert_eq!(counted.len(), 1);
    assert_eq!(
        (counted[0].reference.as_str(), counted[0].tenants, counted[0].missing),
        ("test:kv/{tenant}", 2, 1)
    );
    assert!(counted[0].last_good_read.is_some() && counted[0].last_error_codes.is_empty());
    // A changed store is asked anew.
    let other = Scripted::new(Some("other"));
    cache.adopt(stores().with("test", Arc::clone(&other) as Arc<dyn SecretStore>));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(shown(&one), "other#2");
    drop((one, two));
    assert!(cache.tenant_secrets().is_empty());
    let reads = (store.reads(), other.reads());
    tokio::time::sleep(Duration::from_secs(600)).await;
    // What nobody holds is not read.
    assert!(other.reads() - reads.1 <= 1, "{:?}", (reads, other.reads()));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_one_is_read_again_and_no_other() {
    let store = Scripted::new(Some("value"));
    let cache = cache_over(&store);
    let _running = kept_fresh(&cache);
    let (one, two) = (bound(&cache, "one"), bound(&cache, "two"));
    one.obtain().await.unwrap();
    two.obtain().await.unwrap();
    store.say(Some("new"));
    assert_eq!(one.heal_refresh().await, RefreshOutcome::Changed);
    assert_eq!((shown(&one), shown(&two), store.reads()), ("new#2".to_owned(), "value#1".to_owned(), 3));
    assert_eq!(one.heal_refresh().await, RefreshOutcome::TooSoon);
}

#[test]
fn names_that_do_not_fit_have_no_entry() {
    let cache = cache_over(&Scripted::new(Some("value")));
    for name in ["", "..", "a/b", "a..b", "-x", "{tenant}"] {
        let error = cache.tenant_entry(&template(), ValueRules::HeaderSafe, name).err().unwrap();
        assert_eq!(error.code(), "tenant", "{name}");
    }
    assert!(cache.tenant_secrets().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_app_that_invents_names_makes_a_line_and_no_flood() {
    let store = Scripted::new(Some("value"));
    let cache = cache_over(&store);
    let _running = kept_fresh(&cache);
    store.hang.send_replace(true);
    let entries: Vec<_> = (0..200).map(|number| bound(&cache, &format!("t{number:03}"))).collect();
    let mut asked = Box::pin(futures_util::future::join_all(entries.iter().map(|entry| entry.obtain())));
    let soon = |after| tokio::time::sleep(Duration::from_millis(after));
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut asked).await.is_err());
    assert_eq!(store.reads(), READS_AT_ONCE);
    // Those of the policy do not stand in that line.
    let own = cache.entry(&test_ref());
    assert!(futures_util::poll!(Box::pin(own.refresh())).is_pending());
    assert_eq!(store.reads(), READS_AT_ONCE + 1);
    // Its read was broken off; it goes, or the cache would read it again some time.
    cache.retain(&HashSet::new());
    // Who is gone before its turn is not read.
    drop(asked);
    let mut entries = entries;
    entries.truncate(100);
    store.hang.send_replace(false);
    soon(10).await;
    let read = entries.iter().filter(|entry| entry.current().is_ok()).count();
    assert_eq!((read, store.reads()), (100, 101));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_up_no_tenant_of_another_and_none_that_has_a_value() {
    let (slow, quick) = (Scripted::new(Some("value")), Scripted::new(Some("value")));
    let of = |store: &Arc<Scripted>| Arc::clone(store) as Arc<dyn SecretStore>;
    let cache = Arc::new(SecretCache::new(stores().with("test", of(&slow)).with("quick", of(&quick))));
    let _running = kept_fresh(&cache);
    let known = bound(&cache, "known");
    known.obtain().await.unwrap();
    slow.hang.send_replace(true);
    let invented: Vec<_> = (0..500).map(|number| bound(&cache, &format!("a{number:03}"))).collect();
    let asked = futures_util::future::join_all(invented.iter().map(|entry| entry.obtain()));
    let mut asked = Box::pin(asked);
    assert!(timeout(Duration::from_secs(1), &mut asked).await.is_err());
    assert_eq!(slow.reads(), 1 + READS_AT_ONCE);
    let other: SecretRef = "quick:kv/{tenant}".parse().unwrap();
    let other = cache.tenant_entry(&other, ValueRules::HeaderSafe, "acme").unwrap();
    let began = Instant::now();
    other.obtain().await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
    // What has a value is read again by the clock, beside the line.
    known.make_due();
    cache.wake.notify_one();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(slow.reads(), 2 + READS_AT_ONCE);
}

#[tokio::test(start_paused = true)]
async fn who_comes_first_is_read_first_and_who_is_gone_takes_no_place() {
    let store = Scripted::new(Some("value"));
    let cache = cache_over(&store);
    let _running = kept_fresh(&cache);
    store.hang.send_replace(true);
    let mut gone = Vec::new();
    let ask = |entry: Arc<SecretEntry>| Box::pin(async move { entry.obtain().await.is_ok() });
    let first: Vec<_> =
        (0..READS_AT_ONCE).map(|number| ask(bound(&cache, &format!("f{number:03}")))).collect();
    let mut first = Box::pin(futures_util::future::join_all(first));
    let soon = Duration::from_millis(10);
    assert!(timeout(soon, &mut first).await.is_err());
    let mut real = ask(bound(&cache, "z-real"));
    assert!(timeout(soon, &mut real).await.is_err());
    for number in 0..200 {
        let entry = bound(&cache, &format!("a{number:03}"));
        let mut asked = ask(entry.clone());
        assert!(futures_util::poll!(&mut asked).is_pending());
        drop(asked);
        gone.push(Arc::downgrade(&entry));
    }
    tokio::time::sleep(soon).await;
    assert!(gone.iter().all(|entry| entry.strong_count() == 0), "waiting holds nothing");
    let late: Vec<_> = (0..200).map(|number| ask(bound(&cache, &format!("b{number:03}")))).collect();
    let mut late = Box::pin(futures_util::future::join_all(late));
    assert!(timeout(soon, &mut late).await.is_err());
    assert_eq!(store.reads(), READS_AT_ONCE);
    // The first ones run out of their time, and their places go to who came next.
    assert!(first.await.iter().all(|good| !good));
    assert!(timeout(soon, &mut real).await.is_err());
    store.hang.send_replace(false);
    assert!(timeout(soon, real).await.unwrap());
    assert!(late.await.iter().all(|good| *good));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_tenant_that_is_pushed_out_is_not_asked_for_before_its_time() {
    let store = Scripted::new(None);
    let cache = cache_over(&store);
    let _running = kept_fresh(&cache);
    for (after, reads) in [(0, 1), (3, 1), (8, 2), (8, 2), (20, 3)] {
        tokio::time::sleep(Duration::from_secs(after)).await;
        let entry = bound(&cache, "nobody");
        assert_eq!(entry.obtain().await.err().unwrap().code(), "not_found");
        assert_eq!(store.reads(), reads, "after {after} s more");
        assert!(entry.retry_at().unwrap() > Instant::now());
    }
    // Other stores may know it, and a good read is forgotten with its entry.
    store.say(Some("value"));
    cache.adopt(stores().with("test", Arc::clone(&store) as Arc<dyn SecretStore>));
    assert!(bound(&cache, "nobody").obtain().await.is_ok());
    store.say(None);
    assert_eq!(bound(&cache, "nobody").obtain().await.err().unwrap().code(), "not_found");
    assert_eq!(store.reads(), 5);
}

#[test]
fn failures_of_tenants_are_told_ten_times_a_minute() {
    let (log, begin) = (TenantLog::default(), Instant::now());
    let told = |seconds| (0..50).filter(|_| log.may_tell(begin + Duration::from_secs(seconds))).count();
    assert_eq!([0, 30, 59, 60, 61].map(told), [10, 0, 0, 10, 0]);
}

#[tokio::test(start_paused = true)]
async fn names_that_no_store_knows_are_asked_for_sixty_times_a_minute_at_most() {
    let (store, other) = (Scripted::new(None), Scripted::new(None));
    let of = |store: &Arc<Scripted>| Arc::clone(store) as Arc<dyn SecretStore>;
    let cache = Arc::new(SecretCache::new(stores().with("test", of(&store)).with("other", of(&other))));
    let _running = kept_fresh(&cache);
    store.say(Some("value"));
    let (own, known) = (cache.entry(&test_ref()), bound(&cache, "known"));
    own.refresh().await;
    known.obtain().await.unwrap();
    store.say(None);
    let before = store.reads();
    for number in 0..600 {
        let entry = bound(&cache, &format!("t{number:03}"));
        assert!(entry.obtain().await.is_err());
        assert!(entry.retry_at().unwrap() > Instant::now());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let reads: Vec<Instant> = store.reads.borrow()[before..].to_vec();
    // The two that have a value are polled besides.
    let most = reads.iter().map(|from| {
        reads.iter().filter(|at| *at >= from && at.duration_since(*from) < Duration::from_secs(60)).count()
    });
    let most = most.max().unwrap();
    assert!((30..=60).contains(&most), "{most}");
    // Others do not wait for that: neither the policy's secrets, nor who has a value, nor another store.
    store.say(Some("new"));
    assert_eq!(own.refresh().await, RefreshOutcome::Changed);
    assert_eq!(known.heal_refresh().await, RefreshOutcome::Changed);
    let reference: SecretRef = "other:kv/{tenant}".parse().unwrap();
    let elsewhere = cache.tenant_entry(&reference, ValueRules::HeaderSafe, "acme").unwrap();
    assert_eq!(elsewhere.obtain().await.err().unwrap().code(), "not_found");
    // A new tenant is known as soon as there is room again.
    let fresh = bound(&cache, "fresh");
    let begun = Instant::now();
    while fresh.obtain().await.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(begun.elapsed() <= Duration::from_secs(31), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn secrets_that_tokens_wait_for_are_no_way_around_that() {
    let store = Scripted::new(None);
    let cache = cache_over(&store);
    store.hang.send_replace(true);
    let entries: Vec<_> = (0..600).map(|number| bound(&cache, &format!("t{number:03}"))).collect();
    let mut all = Box::pin(futures_util::future::join_all(entries.iter().map(|entry| entry.tried_once())));
    assert!(timeout(Duration::from_secs(1), &mut all).await.is_err());
    assert_eq!(store.reads(), READS_AT_ONCE);
    store.hang.send_replace(false);
    all.await;
    let reads = store.reads();
    assert!((20..=20 + READS_AT_ONCE).contains(&reads), "{reads}");
    assert!(entries.iter().all(|entry| entry.current().is_err() && !entry.is_new()));
}

#[tokio::test(start_paused = true)]
async fn few_unknown_names_among_many_known_ones_hold_up_nobody() {
    let store = Scripted::new(None);
    let cache = cache_over(&store);
    let _running = kept_fresh(&cache);
    for number in 0..300 {
        store.say((number % 4 > 0).then_some("value"));
        let entry = bound(&cache, &format!("t{number:03}"));
        let code = entry.obtain().await.err().map(|error| error.code());
        assert_eq!(code, (number % 4 == 0).then_some("not_found"), "{number}");
    }
}
