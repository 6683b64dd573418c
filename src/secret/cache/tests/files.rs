//! Files that change.

use super::*;

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
