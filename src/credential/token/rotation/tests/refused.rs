//! Refresh tokens that are refused, places that cannot be written, endpoints that are down.

use super::*;

#[tokio::test]
async fn nothing_is_asked_where_the_place_cannot_be_written() {
    let (directory, provider) = (directory(), Provider::new(100).await);
    let store = "{ file: /proc/outgate/grant }";
    let process = Process::start(&provider, store, directory.path(), Stores::built_in(directory.path()));
    let error = process.token.obtain().await.err().unwrap();
    assert_eq!((error.code(), provider.server.asked().len()), ("token_not_kept", 0));
}

#[tokio::test]
async fn what_cannot_be_written_is_not_used_and_is_written_later() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    let folder = directory.path().join("kept");
    std::fs::create_dir(&folder).unwrap();
    let gone = folder.clone();
    // Its directory goes while the endpoint is asked.
    let script = FakeServer::start(move |_| {
        let _ = std::fs::remove_dir_all(&gone);
        ok(r#"{"access_token":"access-1","refresh_token":"refresh-1","expires_in":3600}"#)
    })
    .await;
    let provider = Provider { server: script, ..provider };
    let process = Process::start(
        &provider,
        "{ file: kept/grant }",
        directory.path(),
        Stores::built_in(directory.path()),
    );
    let error = process.token.obtain().await.err().unwrap();
    assert_eq!((error.code(), process.value()), ("token_not_kept", None));
    std::fs::create_dir(&folder).unwrap();
    pass(Duration::from_secs(8)).await;
    process.token.obtain().await.unwrap();
    assert_eq!((process.value().as_deref(), provider.server.asked().len()), (Some("access-1"), 1));
}

#[tokio::test]
async fn a_grant_that_is_dead_is_not_asked_for_until_the_secret_changes() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    provider.issued.store(7, Ordering::SeqCst);
    let process =
        Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    for _ in 0..3 {
        let error = process.token.obtain().await.err().unwrap();
        assert_eq!((error.code(), provider.server.asked().len()), ("token_grant_dead", 1));
        assert!(!error.to_string().contains("CANARY"));
        pass(Duration::from_secs(60)).await;
    }
    std::fs::write(directory.path().join("seed"), "another-seed").unwrap();
    pass(Duration::from_secs(400)).await;
    process.token.obtain().await.unwrap();
    assert_eq!((process.value().as_deref(), provider.server.asked().len()), (Some("access-8"), 2));
}

#[tokio::test]
async fn what_another_refresh_token_has_sealed_stays_until_there_is_better() {
    let (directory, key) = (directory(), PageKey::of(b"the-seed-of-tomorrow").unwrap());
    let answer = TokenAnswer::of(r#"{"access_token":"a","refresh_token":"kept","expires_in":3600}"#);
    let record = Record::of(&answer, b"", 1, &Asked(String::new()), SystemTime::now());
    let place = directory.path().join("grant");
    std::fs::write(&place, page::write(None, Some(&record), None, &key).unwrap().as_bytes()).unwrap();
    let grant = || {
        let text = std::fs::read_to_string(&place).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["grant"].as_str().unwrap().to_owned()
    };
    let before = grant();
    let refuses = || Reply::Answer(400, r#"{"error":"invalid_grant"}"#.to_owned());
    let server = FakeServer::start(move |_| refuses()).await;
    let provider = Provider { server, ..Provider::new(1).await };
    // A process that still has yesterday's refresh token.
    let process =
        Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    assert!(process.token.obtain().await.is_err());
    assert_eq!(grant(), before);
}

#[tokio::test]
async fn a_refused_refresh_token_is_looked_for_again_before_the_grant_is_dead() {
    let (directory, key) = (directory(), PageKey::of(b"seed-token-1").unwrap());
    let path = directory.path().join("grant");
    let (place, seen) = (path.clone(), Arc::new(AtomicUsize::new(0)));
    let (asked, mark) = (seen.clone(), Arc::new(std::sync::OnceLock::<String>::new()));
    let of = mark.clone();
    // Another process, which took this one for gone, was faster: its outcome stands there when the refusal comes.
    let server = FakeServer::start(move |_| {
        asked.fetch_add(1, Ordering::SeqCst);
        let answer =
            TokenAnswer::of(r#"{"access_token":"by-the-other","refresh_token":"r","expires_in":3600}"#);
        let by = Asked(of.get().unwrap().clone());
        let record = Record::of(&answer, b"", 1, &by, SystemTime::now());
        std::fs::write(&place, page::write(None, Some(&record), None, &key).unwrap().as_bytes()).unwrap();
        Reply::Answer(400, r#"{"error":"invalid_grant"}"#.to_owned())
    })
    .await;
    let provider = Provider { server, ..Provider::new(1).await };
    mark.set(mark_of(&provider, directory.path(), "")).unwrap();
    let process =
        Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    process.token.obtain().await.unwrap();
    assert_eq!((process.value().as_deref(), seen.load(Ordering::SeqCst)), (Some("by-the-other"), 1));
}

#[tokio::test]
async fn an_endpoint_that_is_down_uses_nothing_up_and_lets_go_of_the_place() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    provider.down.store(true, Ordering::SeqCst);
    let process =
        Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    let error = process.token.obtain().await.err().unwrap();
    // Once: what may have been acted on is not repeated.
    assert_eq!((error.code(), provider.server.asked().len()), ("token_status", 1));
    assert!(!std::fs::read_to_string(directory.path().join("grant")).unwrap().contains("busy"));
    provider.down.store(false, Ordering::SeqCst);
    pass(Duration::from_secs(8)).await;
    process.token.obtain().await.unwrap();
    assert_eq!((process.value().as_deref(), provider.issued()), (Some("access-1"), 1));
}

#[tokio::test]
async fn a_fixed_refresh_token_that_was_refused_is_not_sent_again() {
    struct Never(AtomicUsize);
    impl Exchange for Never {
        fn ask<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Err(TokenFault::Refused { status: 400, code: "invalid_grant" }) })
        }
        fn lifetime(&self) -> Option<Duration> {
            None
        }
        fn mark(&self) -> &str {
            "mine"
        }
    }
    let (state, exchange) = (GrantState::default(), Never(AtomicUsize::new(0)));
    for (seed, asked) in [("one", 1), ("one", 1), ("two", 2)] {
        let fault = state.fixed(seed.as_bytes(), &exchange).await.err().unwrap();
        assert_eq!((fault, exchange.0.load(Ordering::SeqCst)), (TokenFault::Dead, asked));
    }
}
