//! What is read after a rejection, and how often.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_value_that_was_due_is_healed_no_more_often_than_another() {
    let store = Scripted::new(Some("one"));
    let entry = cache_over(&store).entry(&test_ref());
    entry.refresh().await;
    store.say(None);
    entry.refresh().await;
    advance(Duration::from_secs(10)).await;
    assert!(entry.take_due(Instant::now()), "after a failure");
    store.say(Some("one"));
    entry.refresh().await;
    let reads = store.reads();
    assert_eq!(entry.heal_refresh().await, RefreshOutcome::Unchanged);
    assert_eq!(entry.heal_refresh().await, RefreshOutcome::TooSoon);
    assert_eq!(store.reads(), reads + 1);
}

#[tokio::test(start_paused = true)]
async fn healing_reads_at_most_once_per_thirty_seconds() {
    let store = Scripted::new(Some("one"));
    let entry = cache_over(&store).entry(&test_ref());
    entry.refresh().await;
    store.say(Some("two"));
    assert_eq!(entry.heal_refresh().await, RefreshOutcome::Changed);
    // seconds to let pass, outcome, reads in all
    let table = [
        (0, RefreshOutcome::TooSoon, 2),
        (29, RefreshOutcome::TooSoon, 2),
        (1, RefreshOutcome::Unchanged, 3),
        (0, RefreshOutcome::TooSoon, 3),
    ];
    for (seconds, outcome, reads) in table {
        advance(Duration::from_secs(seconds)).await;
        assert_eq!((entry.heal_refresh().await, store.reads()), (outcome, reads), "after {seconds} s");
    }
    assert_eq!(entry.refresh().await, RefreshOutcome::Unchanged, "an event reads all the same");
    store.say(None);
    entry.refresh().await;
    advance(Duration::from_secs(5)).await;
    assert_eq!(entry.heal_refresh().await, RefreshOutcome::TooSoon, "right after a failure");
}

#[tokio::test(start_paused = true)]
async fn healing_at_the_same_time_is_one_read_and_outlives_its_first_caller() {
    let store = Scripted::new(Some("one"));
    let entry = cache_over(&store).entry(&test_ref());
    store.hang.send_replace(true);
    let mut first = Box::pin(entry.heal_refresh());
    let mut others = Box::pin(join_all((0..50).map(|_| entry.heal_refresh())));
    assert!(futures_util::poll!(&mut first).is_pending() && futures_util::poll!(&mut others).is_pending());
    drop(first);
    store.hang.send_replace(false);
    assert_eq!(others.await, [RefreshOutcome::Changed; 50]);
    assert_eq!(store.reads(), 2, "the cancelled one, and the one that took over");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_before_the_rejection_and_brings_nothing_new_does_not_stand_for_the_healing() {
    for (brings, reads) in [("one", 3), ("two", 2)] {
        let store = Scripted::new(Some("one"));
        let entry = cache_over(&store).entry(&test_ref());
        entry.refresh().await;
        store.hang.send_replace(true);
        let mut refresh = Box::pin(entry.refresh());
        assert!(futures_util::poll!(&mut refresh).is_pending());
        let mut heals = Box::pin(join_all((0..50).map(|_| entry.heal_refresh())));
        assert!(futures_util::poll!(&mut heals).is_pending());
        store.say(Some(brings));
        store.hang.send_replace(false);
        refresh.await;
        let changed = brings == "two";
        let expected = if changed { RefreshOutcome::Changed } else { RefreshOutcome::Unchanged };
        assert_eq!(heals.await, [expected; 50], "{brings}");
        assert_eq!(store.reads(), reads, "{brings}: one more for all of them, where it is needed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_sees_what_changed_before_it_was_asked_for() {
    let store = Scripted::new(Some("one"));
    let entry = cache_over(&store).entry(&test_ref());
    store.hang.send_replace(true);
    let mut running = Box::pin(entry.refresh());
    assert!(futures_util::poll!(&mut running).is_pending());
    // That read may have seen the old value: those who ask now share one later read.
    let mut later = Box::pin(join_all((0..10).map(|_| entry.refresh())));
    assert!(futures_util::poll!(&mut later).is_pending());
    store.hang.send_replace(false);
    assert_eq!(running.await, RefreshOutcome::Changed);
    store.say(Some("two"));
    assert_eq!(later.await, [RefreshOutcome::Changed; 10]);
    assert_eq!((shown(&entry).as_str(), store.reads()), ("two#2", 2));
}
