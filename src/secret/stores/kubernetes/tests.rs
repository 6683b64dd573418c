use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::secret::cache::{SecretCache, SecretEntry};
use crate::secret::fake::{FakeServer, Reply, ok, pass, store_env};
use crate::secret::{StoreConfig, Stores};

#[tokio::test]
async fn secrets_are_read_with_the_pods_token() {
    let server = FakeServer::start(|asked| {
        if asked.header("authorization") != "Bearer CANARY-token" {
            return Reply::Answer(401, r#"{"message":"CANARY"}"#.into());
        }
        match &*asked.line {
            "GET /api/v1/namespaces/payments/secrets/stripe" | "GET /api/v1/namespaces/mine/secrets/stripe" => ok(
                r#"{"kind":"Secret","metadata":{"resourceVersion":"7"},"data":{"api-key":"Q0FOQVJZ","tls.key":"eA==","bad":"CANARY!"}}"#,
            ),
            "GET /api/v1/namespaces/other/secrets/stripe" => Reply::Answer(403, r#"{"message":"CANARY"}"#.into()),
            "GET /api/v1/namespaces/mine/secrets/empty" => ok(r#"{"kind":"Secret"}"#),
            "GET /api/v1/namespaces/mine/secrets/text" => ok("CANARY"),
            _ => Reply::Answer(404, String::new()),
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "CANARY-token").unwrap();
    let settings = format!("address: {}\nnamespace: mine\ntoken_file: token", server.url);
    let config: KubernetesConfig = serde_yaml::from_str(&settings).unwrap();
    assert!(config.mistakes().is_empty());
    let store = KubernetesStore::new("k", &config, None, &store_env(directory.path())).unwrap();
    let read = async |reference: &str| match store.read(&reference.parse().unwrap()).await {
        Ok(reading) => String::from_utf8(reading.bytes.to_vec()).unwrap(),
        Err(error) => {
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
            error.code().to_owned()
        }
    };
    let table = [
        ("k:payments/stripe#api-key", "CANARY"),
        ("k:stripe#api-key", "CANARY"),
        ("k:stripe#tls.key", "x"),
        ("k:stripe#bad", "store_garbled"),
        ("k:stripe#none", "field_missing"),
        ("k:stripe", "bad_reference"),
        ("k:stripe#api-key@1", "bad_reference"),
        ("k:a/b/c#key", "bad_reference"),
        ("k:../x#key", "bad_reference"),
        ("k:empty#key", "store_garbled"),
        ("k:text#key", "store_garbled"),
        ("k:other/stripe#key", "store_denied"),
        ("k:nothing#key", "not_found"),
    ];
    for (reference, expected) in table {
        assert_eq!(read(reference).await, expected, "{reference}");
    }
    std::fs::write(directory.path().join("token"), "CANARY-other").unwrap();
    assert_eq!(read("k:stripe#api-key").await, "store_denied", "the token is read each time");
    std::fs::remove_file(directory.path().join("token")).unwrap();
    assert_eq!(read("k:stripe#api-key").await, "store_credential");
}

/// What the stub does next with a watch.
enum Next {
    /// Sends an event of this type, with this version.
    Event(&'static str, &'static str),
    /// Sends these bytes.
    Bytes(String),
    /// Ends the answer.
    Close,
}

/// An API server with one Secret, which answers reads at once and holds watches open.
struct Cluster {
    url: String,
    value: Arc<Mutex<String>>,
    /// The first line of each request.
    asked: Arc<Mutex<Vec<String>>>,
    next: mpsc::UnboundedSender<Next>,
    /// The status of watches.
    status: Arc<AtomicUsize>,
}

impl Cluster {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let value = Arc::new(Mutex::new("first-value".to_owned()));
        let (asked, status) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(AtomicUsize::new(200)));
        let (next, told) = mpsc::unbounded_channel();
        let told = Arc::new(tokio::sync::Mutex::new(told));
        let shared = (value.clone(), asked.clone(), status.clone(), told);
        #[expect(clippy::disallowed_methods, reason = "a test")]
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (value, asked, status, told) = shared.clone();
                tokio::spawn(async move { serve(stream, &value, &asked, &status, &told).await });
            }
        });
        Self { url, value, asked, next, status }
    }

    fn set(&self, value: &str) {
        *self.value.lock().unwrap() = value.to_owned();
    }

    fn tell(&self, next: Next) {
        self.next.send(next).unwrap_or_else(|_| panic!("the stub is gone"));
    }

    /// The versions that watches began with, so far.
    fn watches(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let watches = asked.iter().filter(|line| line.contains("watch=true"));
        let version = |line: &String| {
            line.split_once("resourceVersion=")
                .map_or("", |(_, rest)| rest.split(' ').next().unwrap())
                .to_owned()
        };
        watches.map(version).collect()
    }

    fn reads(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| !line.contains("watch=true")).count()
    }
}

async fn serve(
    mut stream: TcpStream,
    value: &Mutex<String>,
    asked: &Mutex<Vec<String>>,
    status: &AtomicUsize,
    told: &tokio::sync::Mutex<mpsc::UnboundedReceiver<Next>>,
) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        while !bytes.ends_with(b"\r\n\r\n") {
            (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
        }
        let head = String::from_utf8(std::mem::take(&mut bytes)).unwrap();
        let line = head.lines().next().unwrap().to_owned();
        asked.lock().unwrap().push(line.clone());
        if !line.contains("watch=true") {
            let value = value.lock().unwrap().clone();
            let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, value);
            let body = format!("{{\"data\":{{\"key\":\"{encoded}\"}}}}");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.ok()?;
            continue;
        }
        let status = status.load(Ordering::SeqCst);
        if status != 200 {
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 6\r\n\r\nCANARY");
            stream.write_all(answer.as_bytes()).await.ok()?;
            continue;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.ok()?;
        loop {
            let next = tokio::select! {
                next = async { told.lock().await.recv().await } => next?,
                // The client has gone: what comes next is for another watch.
                _ = stream.read_u8() => return None,
            };
            let text = match next {
                Next::Event(kind, version) => format!(
                    "{{\"type\":\"{kind}\",\"object\":{{\"code\":410,\"metadata\":{{\"resourceVersion\":\"{version}\"}},\"data\":{{\"key\":\"CANARY\"}}}}}}\n"
                ),
                Next::Bytes(text) => text,
                Next::Close => break,
            };
            stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await.ok()?;
        }
        stream.write_all(b"0\r\n\r\n").await.ok()?;
    }
}

/// A cache whose one secret is the cluster's; polled once an hour.
struct Watching {
    cluster: Cluster,
    secret: Arc<SecretEntry>,
    _stop: tokio_util::sync::DropGuard,
    _directory: tempfile::TempDir,
}

impl Watching {
    async fn new(status: usize) -> Self {
        let cluster = Cluster::start().await;
        cluster.status.store(status, Ordering::SeqCst);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "CANARY-token").unwrap();
        let text = format!(
            "kubernetes: {{ address: \"{}\", namespace: mine, token_file: token, refresh: 1h }}",
            cluster.url
        );
        let config: StoreConfig = serde_yaml::from_str(&text).unwrap();
        let stores =
            Stores::build(&[("k".to_owned(), config)].into(), &store_env(directory.path()), None).unwrap();
        let cache = Arc::new(SecretCache::new(stores));
        let secret = cache.entry(&"k:stripe#key".parse().unwrap());
        let stop = tokio_util::sync::CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        tokio::spawn(cache.clone().run(stop.clone()));
        cache.read_new(Duration::from_secs(5)).await;
        Self { cluster, secret, _stop: stop.drop_guard(), _directory: directory }
    }

    /// Waits for it; time goes on where it is waited for.
    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !condition(self) {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{what}: {:?}",
                self.cluster.asked.lock().unwrap()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn has(&self, value: &str) -> bool {
        self.secret.current().is_ok_and(|version| version.value.expose() == value.as_bytes())
    }
}

#[tokio::test]
async fn a_change_is_told_by_the_watch_which_goes_on_where_it_was() {
    let scene = Watching::new(200).await;
    scene.until("a watch begins", |scene| scene.cluster.watches() == [""]).await;
    let line = scene.cluster.asked.lock().unwrap().iter().find(|line| line.contains("watch=true")).cloned();
    assert!(line.unwrap().starts_with(
        "GET /api/v1/namespaces/mine/secrets?watch=true&fieldSelector=metadata.name%3Dstripe&allowWatchBookmarks=true"
    ));
    scene.cluster.tell(Next::Event("ADDED", "7"));
    scene.until("what is there is read", |scene| scene.cluster.reads() == 2).await;
    scene.cluster.set("second-value");
    scene.cluster.tell(Next::Event("MODIFIED", "8"));
    scene.until("the change is seen", |scene| scene.has("second-value")).await;
    // A bookmark is no change, and it is where the next watch goes on.
    scene.cluster.tell(Next::Event("BOOKMARK", "12"));
    scene.cluster.tell(Next::Close);
    scene.until("it is opened again", |scene| scene.cluster.watches() == ["", "12"]).await;
    assert_eq!(scene.cluster.reads(), 3);
    scene.cluster.set("third-value");
    scene.cluster.tell(Next::Event("MODIFIED", "13"));
    scene.until("the next change is seen", |scene| scene.has("third-value")).await;
}

#[tokio::test]
async fn a_version_that_is_forgotten_leads_to_a_read_and_a_watch_of_what_is_there() {
    let scene = Watching::new(200).await;
    scene.cluster.tell(Next::Event("ADDED", "7"));
    scene.until("it watches", |scene| scene.cluster.reads() == 2).await;
    scene.cluster.set("changed-meanwhile");
    scene.cluster.tell(Next::Event("ERROR", ""));
    scene.until("it is read again", |scene| scene.has("changed-meanwhile")).await;
    scene.until("from what is there", |scene| scene.cluster.watches() == ["", ""]).await;
    // The same said by the status of an answer.
    scene.cluster.tell(Next::Event("ADDED", "20"));
    scene.until("what is there is read", |scene| scene.cluster.reads() == 4).await;
    scene.cluster.status.store(410, Ordering::SeqCst);
    scene.cluster.tell(Next::Close);
    scene.until("it goes on", |scene| scene.cluster.watches().get(2).is_some_and(|from| from == "20")).await;
    scene.cluster.status.store(200, Ordering::SeqCst);
    scene
        .until("from what is there", |scene| scene.cluster.watches().get(3).is_some_and(String::is_empty))
        .await;
}

#[tokio::test]
async fn what_is_not_allowed_or_no_watch_is_not_asked_for_without_a_pause() {
    let refused = Watching::new(403).await;
    refused.until("it tries", |scene| scene.cluster.watches().len() == 1).await;
    for _ in 0..10 {
        pass(Duration::from_secs(20)).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(refused.cluster.watches().len(), 1, "not before some minutes are over");
    for _ in 0..10 {
        pass(Duration::from_secs(20)).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    refused.until("and then it is", |scene| scene.cluster.watches().len() == 2).await;
    assert!(refused.has("first-value"), "it is polled all the same");

    // Garbage, and a line without an end: the watch is given up, and opened again after a growing while.
    for garbage in ["<html>\n".to_owned(), "x".repeat(4 << 20)] {
        let scene = Watching::new(200).await;
        for count in 1..4 {
            scene.until("a watch", |scene| scene.cluster.watches().len() == count).await;
            scene.cluster.tell(Next::Bytes(garbage.clone()));
            pass(Duration::from_secs(6)).await;
        }
        assert!(scene.has("first-value"));
        assert!(scene.cluster.reads() <= 2, "garbage tells of no change");
    }
}
