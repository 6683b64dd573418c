//! The mark of who is busy with a grant.

use super::*;

/// An exchange that takes its time; the number of those that were made.
struct Slow(Duration, AtomicUsize);

impl Exchange for Slow {
    fn ask<'a>(&'a self, token: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
        Box::pin(async move {
            assert_eq!(token, b"seed-token-1", "nobody asked before");
            self.1.fetch_add(1, Ordering::SeqCst);
            sleep(self.0).await;
            Ok(TokenAnswer::of(r#"{"access_token":"a","refresh_token":"r","expires_in":3600}"#))
        })
    }
    fn lifetime(&self) -> Option<Duration> {
        None
    }
    fn mark(&self) -> &str {
        "mine"
    }
}

/// The longest that an exchange may take: others that share the place wait for it, and none takes it for gone.
#[tokio::test(start_paused = true)]
async fn the_mark_of_a_process_whose_endpoint_is_slow_counts_to_the_end_of_its_exchange() {
    for seconds in [20, 29] {
        assert!(Duration::from_secs(seconds) < TOTAL_KEPT);
        let directory = directory();
        let path = directory.path().join("grant");
        let exchange = Slow(Duration::from_secs(seconds), AtomicUsize::new(0));
        let one = async || {
            let (state, shelf) = (GrantState::default(), Shelf::File(file::FileShelf::new(&path)));
            let issued = state.rotating(b"seed-token-1", &shelf, &exchange).await.unwrap();
            assert_eq!(issued.token.as_slice(), b"a");
        };
        // One that comes at once, and one whose wait spans the end of the exchange.
        let late = async {
            sleep(Duration::from_secs(seconds - 1)).await;
            one().await;
        };
        let began = Instant::now();
        tokio::join!(one(), one(), late);
        assert_eq!(exchange.1.load(Ordering::SeqCst), 1, "{seconds} s");
        assert!(began.elapsed() < Duration::from_secs(seconds) + LOOK_MOST * 2, "{:?}", began.elapsed());
        assert!(!std::fs::read_to_string(&path).unwrap().contains("busy"));
    }
}

#[test]
fn the_mark_of_a_busy_process_outlives_its_exchange_and_the_write_behind_it() {
    // Five writes with their pauses, and each look and write of Redis or Vault takes a few seconds at most.
    assert!(LEASE >= TOTAL_KEPT + LOOK_FIRST * (1..=WRITES).sum::<u32>());
}

/// Through the real client: an endpoint of 20 s ends other tokens' exchanges, and not one that uses something up.
#[tokio::test]
async fn an_endpoint_of_twenty_seconds_does_not_end_a_grant_that_rotates() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let later = gate.clone();
    let server = FakeServer::start(move |_| {
        let body = r#"{"access_token":"access-1","refresh_token":"refresh-1","expires_in":3600}"#;
        Reply::Later(later.clone(), 200, body.to_owned())
    })
    .await;
    let provider = Provider { server, ..provider };
    let start =
        || Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    let (first, second) = (start(), start());
    let busy = || std::fs::read_to_string(directory.path().join("grant")).unwrap_or_default();
    let script = async {
        while provider.server.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        let mark = busy();
        assert!(mark.contains("busy"), "{mark}");
        pass(Duration::from_secs(20)).await;
        assert!(first.token.current().is_err() && second.token.current().is_err());
        // Looks of the other at the place, which find it busy as before.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert_eq!(busy(), mark, "the mark is the same");
        gate.add_permits(1);
    };
    let (one, other, ()) = tokio::join!(first.token.obtain(), second.token.obtain(), script);
    assert!(one.is_ok() && other.is_ok(), "{:?} {:?}", one.err(), other.err());
    assert_eq!((first.value(), second.value()), (Some("access-1".to_owned()), Some("access-1".to_owned())));
    assert_eq!(provider.server.asked().len(), 1, "one exchange, which was not repeated");
}

#[tokio::test(start_paused = true)]
async fn the_mark_of_a_process_that_was_killed_counts_for_a_while() {
    let directory = directory();
    std::fs::write(directory.path().join("grant"), r#"{"busy":"gone"}"#).unwrap();
    struct Once;
    impl Exchange for Once {
        fn ask<'a>(&'a self, token: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
            assert_eq!(token, b"seed-token-1");
            Box::pin(async { Ok(TokenAnswer::of(r#"{"access_token":"a","refresh_token":"r"}"#)) })
        }
        fn lifetime(&self) -> Option<Duration> {
            None
        }
        fn mark(&self) -> &str {
            "mine"
        }
    }
    let shelf = Shelf::File(file::FileShelf::new(&directory.path().join("grant")));
    let (state, began) = (GrantState::default(), Instant::now());
    let issued = state.rotating(b"seed-token-1", &shelf, &Once).await.unwrap();
    assert_eq!(issued.token.as_slice(), b"a");
    assert!((LEASE..ASK_BEFORE).contains(&began.elapsed()), "{:?}", began.elapsed());
}
