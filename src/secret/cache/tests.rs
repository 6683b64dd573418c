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

mod failures;
mod files;
mod healing;
mod leases;
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
