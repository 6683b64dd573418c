//! Stores that fail, secrets that are not there, and what is told of them.

use super::*;

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
