//! The cache with a scripted store on paused time, and with real files and real events.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tokio::time::{Instant, advance, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::*;
use crate::secret::stores::file::FileStore;
use crate::secret::{ReadFuture, Reading, SecretError, SecretStore, SecretValue, Source};

mod left;
mod tenants;

/// A store that answers what it is told to, and counts. `None` is a store that is down; `hang` one that does not answer.
struct Scripted {
    answer: Mutex<Option<Vec<u8>>>,
    reads: watch::Sender<Vec<Instant>>,
    hang: watch::Sender<bool>,
}

impl Scripted {
    fn new(answer: Option<&str>) -> Arc<Self> {
        let answer = Mutex::new(answer.map(Vec::from));
        Arc::new(Self { answer, reads: watch::Sender::default(), hang: watch::Sender::default() })
    }

    fn say(&self, answer: Option<&str>) {
        *self.answer.lock().unwrap() = answer.map(Vec::from);
    }

    fn reads(&self) -> usize {
        self.reads.borrow().len()
    }
}

impl SecretStore for Scripted {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move {
            self.reads.send_modify(|reads| reads.push(Instant::now()));
            self.hang.subscribe().wait_for(|hang| !hang).await.unwrap();
            let answer = self.answer.lock().unwrap().clone();
            answer
                .map(|answer| Zeroizing::new(answer).into())
                .ok_or_else(|| SecretError::NotFound { reference: reference.clone() })
        })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::File(PathBuf::from("/outgate-no-such-directory/key"))
    }
}

fn stores() -> Stores {
    Stores::built_in(Path::new("/"))
}

fn cache_over(store: &Arc<Scripted>) -> Arc<SecretCache> {
    Arc::new(SecretCache::new(stores().with("test", Arc::clone(store) as Arc<dyn SecretStore>)))
}

fn test_ref() -> SecretRef {
    "test:key".parse().unwrap()
}

/// `<value>#<version number>`, or the error's code.
fn shown(entry: &SecretEntry) -> String {
    match entry.current() {
        Ok(version) => format!("{}#{}", version.value.expose().escape_ascii(), version.number),
        Err(error) => error.code().to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn versions_count_up_and_the_last_good_value_is_kept() {
    let store = Scripted::new(None);
    let cache = cache_over(&store);
    let entry = cache.entry(&test_ref());
    assert_eq!(shown(&entry), "not_read");
    // what the store says, the outcome, what is in use, how it stands
    let table = [
        (None, RefreshOutcome::Failed, "not_found", SecretState::Missing),
        (Some("one"), RefreshOutcome::Changed, "one#1", SecretState::Current),
        (Some("one"), RefreshOutcome::Unchanged, "one#1", SecretState::Current),
        (Some("two"), RefreshOutcome::Changed, "two#2", SecretState::Current),
        (None, RefreshOutcome::Failed, "two#2", SecretState::Stale),
        (Some(""), RefreshOutcome::Failed, "two#2", SecretState::Stale),
        (Some("two\nX: 1"), RefreshOutcome::Failed, "two#2", SecretState::Stale),
        (Some("two"), RefreshOutcome::Unchanged, "two#2", SecretState::Current),
        (Some("one"), RefreshOutcome::Changed, "one#3", SecretState::Current),
    ];
    for (answer, outcome, current, state) in table {
        store.say(answer);
        assert_eq!(entry.refresh().await, outcome, "{answer:?}");
        assert_eq!(shown(&entry), current, "{answer:?}");
        assert_eq!(cache.status()[0].state, state, "{answer:?}");
    }
}

/// The clock on the wall as `/status` writes it, at the next millisecond.
fn next_millisecond() -> String {
    let now = || humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    let before = now();
    std::iter::repeat_with(now).find(|now| *now > before).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_status_says_when_a_read_was_good_last_and_when_the_next_one_is() {
    let store = Scripted::new(None);
    let cache = cache_over(&store);
    let entry = cache.entry(&test_ref());
    let last = || cache.status().remove(0).last_good_read;
    entry.refresh().await;
    assert_eq!(last(), None, "no read was good yet");
    let mut seen = None;
    for answer in ["one", "one", "two"] {
        let before = next_millisecond();
        store.say(Some(answer));
        entry.refresh().await;
        assert!(last().is_some_and(|last| last >= before), "{answer}: {:?} {before}", last());
        store.say(None);
        next_millisecond();
        seen = last();
        entry.refresh().await;
        assert_eq!(last(), seen, "a failed read changes nothing");
    }
    advance(Duration::from_secs(3)).await;
    let status = serde_json::to_string_pretty(&cache.status()[0]).unwrap();
    let due = cache.status()[0].next_read_in_seconds.unwrap();
    assert!((3..=4).contains(&due), "six seconds after the failure, and up to a quarter more: {due}");
    let due = format!("\"next_read_in_seconds\": {due}");
    let status = status.replace(&*seen.unwrap(), "[time]").replace(&due, "\"next_read_in_seconds\": [due]");
    insta::assert_snapshot!(status, @r#"
    {
      "reference": "test:key",
      "store": "test",
      "state": "stale",
      "version": 2,
      "age_seconds": 3,
      "last_good_read": "[time]",
      "ends_in_seconds": null,
      "next_read_in_seconds": [due],
      "reading": false,
      "last_error_code": "not_found",
      "failed_reads": 4,
      "required": false
    }
    "#);
}

#[tokio::test(start_paused = true)]
async fn entries_are_shared_and_go_when_no_policy_uses_them() {
    let cache = cache_over(&Scripted::new(Some("one")));
    let (kept, dropped): (SecretRef, SecretRef) = (test_ref(), "test:other".parse().unwrap());
    let entry = cache.entry(&kept);
    cache.entry(&dropped);
    assert!(Arc::ptr_eq(&entry, &cache.entry(&kept)));
    assert!(!Arc::ptr_eq(&entry, &cache.entry_under(&kept, ValueRules::Any)), "other rules, other entry");
    cache.retain(&HashSet::from([kept.clone()]));
    assert!(Arc::ptr_eq(&entry, &cache.entry(&kept)));
    let names: Vec<String> = cache.status().into_iter().map(|status| status.reference).collect();
    assert_eq!(names, ["test:key", "test:key"]);
}

#[tokio::test(start_paused = true)]
async fn the_first_reads_run_side_by_side_and_within_their_limit() {
    let store = Scripted::new(Some("one"));
    store.hang.send_replace(true);
    let cache = cache_over(&store);
    let required = cache.entry(&test_ref());
    for name in ["test:b", "test:c"] {
        cache.entry(&name.parse().unwrap());
    }
    cache.require(&HashSet::from([test_ref()]));
    assert!(!cache.ready());
    let begun = Instant::now();
    cache.read_new(Duration::from_secs(2)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    assert_eq!(store.reads(), 3);
    assert_eq!(shown(&required), "timed_out");
    assert!(!cache.ready(), "a required one has no value");

    store.hang.send_replace(false);
    cache.read_new(Duration::from_secs(2)).await;
    assert_eq!(store.reads(), 3, "each was tried: what failed is the task's to try again");
    assert_eq!(required.refresh().await, RefreshOutcome::Changed);
    assert!(cache.ready(), "the others are not required");
}

#[tokio::test(start_paused = true)]
async fn a_missing_variable_is_not_read_again() {
    let cache = SecretCache::new(stores());
    let entry = cache.entry(&"env:OUTGATE_NO_SUCH_VARIABLE".parse().unwrap());
    assert_eq!(entry.refresh().await, RefreshOutcome::Failed);
    assert_eq!(entry.refresh().await, RefreshOutcome::Failed);
    assert_eq!(entry.heal_refresh().await, RefreshOutcome::Unchanged);
    assert_eq!(entry.due_at(), None);
}

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

#[tokio::test(start_paused = true)]
async fn a_failing_store_is_asked_again_and_never_ten_times_a_minute() {
    let store = Scripted::new(None);
    let cache = cache_over(&store);
    let entry = cache.entry(&test_ref());
    cache.read_new(READ_TIMEOUT).await;
    let cancel = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&cache).run(cancel.clone()));
    let mut reads = store.reads.subscribe();
    reads.wait_for(|reads| reads.len() >= 12).await.unwrap();
    {
        let times = reads.borrow();
        for window in times.windows(11) {
            assert!(window[10] - window[0] > Duration::from_secs(60), "{times:?}");
        }
        assert!(times[11] - times[10] <= Duration::from_secs(375));
    }
    store.say(Some("one"));
    reads.wait_for(|reads| reads.len() >= 13).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(shown(&entry), "one#1");
    cancel.cancel();
    task.await.unwrap();
}

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

/// The file store, with a count of the reads that ended.
struct Observed(FileStore, watch::Sender<usize>);

impl SecretStore for Observed {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move {
            let read = self.0.read(reference).await;
            self.1.send_modify(|count| *count += 1);
            read
        })
    }

    fn source(&self, reference: &SecretRef) -> Source {
        self.0.source(reference)
    }
}

/// A running cache over a directory of its own.
struct Watched {
    directory: tempfile::TempDir,
    entry: Arc<SecretEntry>,
    reads: watch::Receiver<usize>,
    _stop: tokio_util::sync::DropGuard,
}

impl Watched {
    /// Runs over the file `key` once `prepare` has made it, and waits until it is watched.
    async fn start(prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let observed = Arc::new(Observed(FileStore::new(directory.path()), watch::Sender::default()));
        let mut reads = observed.1.subscribe();
        let cache = Arc::new(SecretCache::new(stores().with("files", observed)));
        let entry = cache.entry(&"files:key".parse().unwrap());
        cache.read_new(READ_TIMEOUT).await;
        let cancel = CancellationToken::new();
        tokio::spawn(Arc::clone(&cache).run(cancel.clone()));
        // The first look reads once more, when the watch stands.
        reads.wait_for(|count| *count >= 2).await.unwrap();
        Self { directory, entry, reads, _stop: cancel.drop_guard() }
    }

    /// Waits for a value, for less than the slow poll takes: so it was an event that brought it.
    async fn becomes(&mut self, expected: &str) {
        let wait = async {
            while shown(&self.entry) != expected {
                self.reads.changed().await.unwrap();
            }
        };
        let in_time = timeout(Duration::from_secs(20), wait).await.is_ok();
        assert!(in_time, "expected {expected}, and it is {}", shown(&self.entry));
    }
}

#[tokio::test]
async fn a_swap_as_kubernetes_does_it_is_seen() {
    let version = |root: &Path, name: &str, value: &str| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("key"), value).unwrap();
        symlink(name, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    let mut watched = Watched::start(|root| {
        version(root, "..one", "one\n");
        symlink("..data/key", root.join("key")).unwrap();
    })
    .await;
    watched.becomes("one#1").await;
    for (name, old, value, expected) in
        [("..two", "..one", "two", "two#2"), ("..three", "..two", "three", "three#3")]
    {
        version(watched.directory.path(), name, value);
        fs::remove_dir_all(watched.directory.path().join(old)).unwrap();
        watched.becomes(expected).await;
    }
}

#[tokio::test]
async fn a_file_that_is_written_replaced_or_only_now_made_is_seen() {
    let mut watched = Watched::start(|_| {}).await;
    watched.becomes("not_found").await;
    let key = watched.directory.path().join("key");
    fs::write(&key, "made").unwrap();
    watched.becomes("made#1").await;
    fs::OpenOptions::new().append(true).open(&key).unwrap().write_all(b" longer").unwrap();
    watched.becomes("made longer#2").await;
    fs::write(watched.directory.path().join("new"), "renamed").unwrap();
    fs::rename(watched.directory.path().join("new"), &key).unwrap();
    watched.becomes("renamed#3").await;
}

#[tokio::test]
async fn no_value_is_in_an_error_a_log_line_or_the_status() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::default();
    // With one subscriber alone, an event that another thread meets first is off for all: that thread has none.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().finish());
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let cache = SecretCache::new(Stores::built_in(directory.path()));
    // content of the file, field, code of the error
    let table: &[(&[u8], &str, &str)] = &[
        (b"CANARY", "", "good"),
        (b"CANARY\nX: 1", "", "malformed"),
        (b"\xffCANARY", "", "malformed"),
        (b"CANARY", "#key", "not_json"),
        (b"{\"key\": CANARY}", "#key", "not_json"),
        (b"{\"key\": [\"CANARY\"]}", "#key", "field_not_text"),
        (b"{\"key\": \"CANARY\\n\"}", "#key", "malformed"),
        (b"{\"CANARY\": \"CANARY\"}", "#key", "field_missing"),
    ];
    let mut seen = String::new();
    for (number, (content, field, code)) in table.iter().enumerate() {
        fs::write(directory.path().join(number.to_string()), content).unwrap();
        let entry = cache.entry(&format!("file:{number}{field}").parse().unwrap());
        entry.refresh().await;
        match entry.current() {
            Ok(version) => {
                assert!(version.value.same_as(&SecretValue::new(content.to_vec())) && *code == "good")
            }
            Err(error) => {
                assert_eq!(error.code(), *code);
                seen += &format!("{error} {error:?} {:?}", std::error::Error::source(&error));
            }
        }
    }
    // A pasted `user:password` reads like a reference.
    cache.entry(&"user:CANARY".parse().unwrap()).refresh().await;
    seen += &serde_json::to_string(&cache.status()).unwrap();
    seen += &format!("{:?}", cache.status());
    seen += &String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(seen.contains("outgate::secret") && seen.contains("code=\"malformed\""), "{seen}");
    assert!(!seen.contains("CANARY"), "{seen}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn secrets_that_are_not_there_share_ten_questions_a_minute_and_hold_up_no_other() {
    let store = Scripted::new(None);
    let cache = cache_over(&store);
    let missing: Vec<_> =
        (0..30).map(|number| cache.entry(&format!("test:m{number}").parse().unwrap())).collect();
    cache.read_new(Duration::MAX).await;
    store.say(Some("value"));
    let good = cache.entry(&test_ref());
    cache.read_new(Duration::MAX).await;
    assert_eq!((shown(&good), store.reads()), ("value#1".to_owned(), 31));
    store.say(None);
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.clone().run(stop.clone()));
    let _stop = stop.drop_guard();
    // They are files as well, which are read once more when they are first looked at.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = store.reads();
    tokio::time::sleep(Duration::from_secs(900)).await;
    let reads: Vec<Instant> = store.reads.borrow()[before..].to_vec();
    let within = |from: &Instant| {
        reads.iter().filter(|at| *at >= from && at.duration_since(*from) < Duration::from_secs(60)).count()
    };
    let most = reads.iter().map(within).max().unwrap();
    assert!((5..=10).contains(&most), "{most}");
    store.say(Some("value"));
    // Each is asked for again within its wait, and one that is put off within a minute more.
    tokio::time::sleep(Duration::from_secs(375 + 60)).await;
    assert!(missing.iter().all(|entry| entry.current().is_ok()));
}
