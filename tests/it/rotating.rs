//! Refresh tokens that rotate, with the real program: what is on its way when the process is told to end is not lost, and
//! four processes that share a place make one refresh.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;

use outgate::pipeline::reload::ReloadOutcome;
use tokio::sync::Semaphore;

use super::fleet::Redis;
use super::program::{Program, ended_with};
use super::support::client::{Raw, get_many, local_get, local_request};
use super::support::origin::{HttpOrigin, RawOrigin, Script, Seen, Stream, read_request, text};
use super::support::proxy::Proxy;
use super::world::until;

/// Requests of the storm, a quarter of them for each process.
const STORM: usize = 500;
/// How long the identity provider takes.
const LATENCY: Duration = Duration::from_secs(2);

/// An identity provider that is slow, rotates refresh tokens, and ends earlier access tokens when it is asked.
struct Identity {
    origin: RawOrigin,
    book: Arc<Mutex<Book>>,
    /// A permit for each answer after the first one.
    gate: Arc<Semaphore>,
}

#[derive(Default)]
struct Book {
    asked: usize,
    /// How often a refresh token came that was used up already.
    reused: usize,
    /// The number of the token that is good; none while one is made.
    good: Option<usize>,
}

impl Identity {
    /// Tokens live for so many seconds: the first one, and the others.
    async fn start(lives: [u64; 2]) -> Self {
        let (book, gate) = (Arc::<Mutex<Book>>::default(), Arc::new(Semaphore::new(0)));
        let (books, gates) = (book.clone(), gate.clone());
        let script: Script = Arc::new(move |mut stream: Box<dyn Stream>, _| {
            let (book, gate) = (books.clone(), gates.clone());
            Box::pin(async move {
                while let Some(asked) = read_request(&mut stream).await {
                    let number = {
                        let mut book = book.lock().unwrap();
                        book.asked += 1;
                        book.good = None;
                        book.asked
                    };
                    tokio::time::sleep(LATENCY).await;
                    if number > 1 {
                        gate.acquire().await.unwrap().forget();
                    }
                    let answer = answer(&book, number, &asked, lives);
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
                    if stream.write_all(format!("{head}{answer}").as_bytes()).await.is_err() {
                        return;
                    }
                }
            })
        });
        Self { origin: RawOrigin::start(None, script).await, book, gate }
    }

    fn asked(&self) -> usize {
        self.book.lock().unwrap().asked
    }

    fn reused(&self) -> usize {
        self.book.lock().unwrap().reused
    }

    /// Ends all tokens.
    fn end_all(&self) {
        self.book.lock().unwrap().good = None;
    }

    /// An API that takes the good token alone; others are counted.
    async fn api(&self) -> (HttpOrigin, Arc<AtomicUsize>) {
        let (book, stale) = (self.book.clone(), Arc::<AtomicUsize>::default());
        let count = stale.clone();
        let origin = HttpOrigin::with(None, move |seen: Seen| {
            let good = book.lock().unwrap().good.map(|number| format!("Bearer access-{number}"));
            if good.is_some() && seen.header("authorization") == good.as_deref() {
                return text(200, "{}");
            }
            count.fetch_add(1, Ordering::SeqCst);
            text(401, "{}")
        })
        .await;
        (origin, stale)
    }

    fn policy(&self, api: SocketAddr, seed: &Path, store: &str) -> String {
        format!(
            "runtime: {{ drain: 300ms }}
providers:
  api:
    hosts: [api.x.test]
    upstream: {{ scheme: http, connect_to: \"{api}\", plaintext_credential: allow }}
    credential:
      oauth2_refresh_token:
        token_url: http://{}/token
        client_id: plain:app
        refresh_token: file:{}
        rotates: true
        store: {store}
",
            self.origin.address,
            seed.display()
        )
    }
}

/// What it says to the request of this number.
fn answer(book: &Mutex<Book>, number: usize, asked: &str, lives: [u64; 2]) -> String {
    let wanted = match number {
        1 => "refresh_token=the-first-one&".to_owned(),
        _ => format!("refresh_token=refresh-{}&", number - 1),
    };
    let mut book = book.lock().unwrap();
    if !format!("{asked}&").contains(&wanted) {
        book.reused += 1;
        return "{\"error\":\"invalid_grant\"}".to_owned();
    }
    book.good = Some(number);
    let life = lives[usize::from(number > 1)];
    format!(
        "{{\"access_token\":\"access-{number}\",\"refresh_token\":\"refresh-{number}\",\"expires_in\":{life}}}"
    )
}

fn seed(directory: &Path) -> std::path::PathBuf {
    let seed = directory.join("seed");
    std::fs::write(&seed, "the-first-one").unwrap();
    seed
}

async fn get(program: &Program) -> u16 {
    local_request(program.listener, "GET", "/api/x", "", "").await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_on_its_way_is_not_lost_when_the_process_is_told_to_end() {
    let identity = Identity::start([3600, 3600]).await;
    let (api, _) = identity.api().await;
    let dir = tempfile::tempdir().unwrap();
    let policy = identity.policy(api.address, &seed(dir.path()), "{ file: \"{dir}/grant\" }");
    let mut program = Program::start(dir.path(), &policy, "info", &[]);
    assert_eq!((get(&program).await, identity.asked()), (200, 1));
    // The token is refused, so the next one is asked for; and while that is on its way, the end comes.
    identity.end_all();
    let mut waiting = Raw::connect(program.listener).await;
    waiting.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    until("the second token is asked for", || identity.asked() == 2).await;
    program.signal("TERM");
    // The client is let go when the drain is over, and the process stays for the answer.
    until("the end waits for it", || program.stderr().contains("the end waits for it")).await;
    assert!(program.stderr().contains("the drain time is over"), "{}", program.stderr());
    let released = Instant::now();
    identity.gate.add_permits(1);
    assert!(ended_with(program.wait(Duration::from_secs(10)), 0), "{}", program.stderr());
    assert!(released.elapsed() < Duration::from_secs(5), "it does not wait longer than it must");
    assert!(!program.stderr().contains("could not be kept"), "{}", program.stderr());

    // The next process finds what came, and goes on with it.
    let program = Program::start(dir.path(), &policy, "info", &[]);
    assert_eq!((get(&program).await, identity.asked()), (200, 2));
    identity.end_all();
    identity.gate.add_permits(1);
    assert_eq!((get(&program).await, identity.asked(), identity.reused()), (200, 3, 0));
}

/// From the begin of the drain on: whoever ends the process may not leave it the time to keep what such a request brings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_refresh_token_is_used_once_the_end_has_begun() {
    let identity = Identity::start([3600, 3600]).await;
    let (arrived, go) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
    let (count, wait) = (arrived.clone(), go.clone());
    // An API that refuses the token, when it is told to.
    let script: Script = Arc::new(move |mut stream: Box<dyn Stream>, _| {
        let (count, wait) = (count.clone(), wait.clone());
        Box::pin(async move {
            while read_request(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                wait.acquire().await.unwrap().forget();
                let answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        })
    });
    let api = RawOrigin::start(None, script).await;
    let dir = tempfile::tempdir().unwrap();
    let policy = identity
        .policy(api.address, &seed(dir.path()), "{ file: \"{dir}/grant\" }")
        .replace("drain: 300ms", "drain: 20s");
    let mut program = Program::start(dir.path(), &policy, "info", &[]);
    let mut waiting = Raw::connect(program.listener).await;
    waiting.send(format!("GET /api/x HTTP/1.1\r\nHost: {}\r\n\r\n", program.listener)).await;
    until("it is with the API", || arrived.load(Ordering::SeqCst) == 1).await;
    assert_eq!(identity.asked(), 1);
    program.signal("TERM");
    until("it drains", || program.stderr().contains("draining")).await;
    // Another token would be got for it now, and the drain has time enough.
    go.add_permits(8);
    let got = waiting.answer().await;
    assert!([401, 503].contains(&got.status), "{got:?}");
    assert!(ended_with(program.wait(Duration::from_secs(10)), 0), "{}", program.stderr());
    assert_eq!((identity.asked(), identity.reused()), (1, 0), "{}", program.stderr());
}

/// 500 requests at once over four processes whose token has ended.
async fn storm(store: &str, environment: &[(&str, &str)], directory: &Path) {
    let _machine = crate::support::the_machine().await;
    let identity = Identity::start([14, 3600]).await;
    let (api, stale) = identity.api().await;
    let policy = identity.policy(api.address, &seed(directory), store);
    let programs: Vec<(tempfile::TempDir, Program)> = std::thread::scope(|scope| {
        let start = || {
            let own = tempfile::tempdir().unwrap();
            let program = Program::start(own.path(), &policy, "info", environment);
            (own, program)
        };
        let all: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (_, program) in &programs {
        assert_eq!(get(program).await, 200, "{}", program.stderr());
    }
    assert_eq!(identity.asked(), 1, "four processes, one exchange");

    // It ends in each of them, while one of them asks for the next.
    let deadline = Instant::now() + Duration::from_secs(30);
    for (_, program) in &programs {
        while !local_request(program.admin, "GET", "/status", "", "").await.text().contains("\"expired\"") {
            assert!(Instant::now() < deadline, "the first token does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(stale.load(Ordering::SeqCst), 0);
    let share = programs.iter().map(|(_, program)| get_many(program.listener, STORM / 4));
    let release = async {
        until("one of them asks", || identity.asked() == 2).await;
        identity.gate.add_permits(1);
    };
    let (answers, ()) = tokio::join!(join_all(share), release);
    let answers = answers.concat();
    assert_eq!((answers.len(), answers.iter().filter(|status| **status == 200).count()), (STORM, STORM));
    assert_eq!((identity.asked(), identity.reused()), (2, 0), "the first token, and one refresh in all");
    assert_eq!(stale.load(Ordering::SeqCst), 0, "no request carried a stale token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_that_share_a_file_make_one_refresh_in_a_storm() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("{{ file: \"{}\" }}", dir.path().join("grant").display());
    storm(&store, &[], dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_that_share_a_redis_make_one_refresh_in_a_storm() {
    let dir = tempfile::tempdir().unwrap();
    let redis = Redis::start().await;
    storm("{ redis: { url: \"env:REDIS_URL\" } }", &[("REDIS_URL", &redis.url())], dir.path()).await;
}

/// A token endpoint that takes each refresh token once, and how often it was asked.
async fn once_each() -> (HttpOrigin, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let count = asked.clone();
    let origin = HttpOrigin::with(None, move |seen: Seen| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        let wanted = if number == 1 { "the-first-one".to_owned() } else { format!("refresh-{}", number - 1) };
        if !format!("{}&", String::from_utf8_lossy(&seen.body)).contains(&format!("refresh_token={wanted}&")) {
            return text(400, "{\"error\":\"invalid_grant\"}");
        }
        text(200, &format!("{{\"access_token\":\"access-{number}\",\"refresh_token\":\"refresh-{number}\",\"expires_in\":3600}}"))
    })
    .await;
    (origin, asked)
}

#[tokio::test]
async fn a_reload_that_would_lose_the_newest_refresh_token_is_refused_and_says_what_to_do() {
    let (identity, asked) = once_each().await;
    let api = HttpOrigin::with(None, |_| text(200, "{}")).await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    seed(dir.path());
    let policy = |rotates: &str, more: &str| {
        format!(
            "providers:\n  api:\n    hosts: [api.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential:\n      oauth2_refresh_token: {{ token_url: \"http://{}/token\", client_id: \"plain:app\", refresh_token: \"file:{{dir}}/seed\", {rotates} }}\n{more}",
            api.address, identity.address
        )
    };
    let at = |file: &str| format!("rotates: true, store: {{ file: \"{{dir}}/{file}\" }}");
    let more = "    headers: { set: { X-Policy: other } }\n";
    let proxy = Proxy::start_in(dir.clone(), &policy(&at("one"), "")).await;
    let get = async |proxy: &Proxy| local_get(proxy, "/api/x").await.status;
    assert_eq!((get(&proxy).await, asked.load(Ordering::SeqCst)), (200, 1));
    for (other, words) in [(at("two"), "/two"), ("rotates: false".to_owned(), "does not let it rotate")] {
        let text = match proxy.reload(&policy(&other, more)).await {
            ReloadOutcome::Refused(error) => error.to_string(),
            outcome => panic!("{other}: {outcome:?}"),
        };
        for words in [words, "/seed`", "/one", "move what is kept"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        // The old policy goes on, with its token.
        assert_eq!(get(&proxy).await, 200);
    }
    // Another change at the same place is taken, also where a policy without the grant ran meanwhile.
    let outcome = proxy.reload(&policy(&at("one"), more)).await;
    assert!(matches!(outcome, ReloadOutcome::Applied(_)), "{outcome:?}");
    assert!(matches!(proxy.reload("providers: {}").await, ReloadOutcome::Applied(_)));
    assert!(matches!(proxy.reload(&policy(&at("two"), "")).await, ReloadOutcome::Refused(_)));
    assert!(matches!(proxy.reload(&policy(&at("one"), "")).await, ReloadOutcome::Applied(_)));
    assert_eq!((get(&proxy).await, asked.load(Ordering::SeqCst)), (200, 1), "what is kept is taken again");
    assert!(!dir.path().join("two").exists());
    // What the message says: ended, moved, started.
    drop(proxy);
    std::fs::rename(dir.path().join("one"), dir.path().join("two")).unwrap();
    let proxy = Proxy::start_in(dir.clone(), &policy(&at("two"), "")).await;
    assert_eq!((get(&proxy).await, asked.load(Ordering::SeqCst)), (200, 1));
    assert!(api.requests().iter().all(|seen| seen.header("authorization") == Some("Bearer access-1")));
}
