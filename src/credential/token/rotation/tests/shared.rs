//! Several processes with one place, and what each of them finds there.

use super::*;

/// Four processes that share a place want a token at once, then find it refused at once: each time one asks for all.
async fn four_share(store: &str, directory: &Path, stores: impl Fn() -> Stores) {
    let provider = Provider::new(3600).await;
    let all: Vec<Process> = (0..4).map(|_| Process::start(&provider, store, directory, stores())).collect();
    join_all(all.iter().map(|one| one.has("access-1"))).await;
    assert_eq!((provider.issued(), provider.server.asked().len()), (1, 1));
    let outcomes = join_all(all.iter().map(|one| one.token.heal_refresh())).await;
    let done = [RefreshOutcome::Changed, RefreshOutcome::Failed];
    assert!(outcomes.iter().all(|outcome| done.contains(outcome)), "{outcomes:?}");
    join_all(all.iter().map(|one| one.has("access-2"))).await;
    assert_eq!((provider.issued(), provider.server.asked().len()), (2, 2));
    // A process that starts later takes what is there.
    let late = Process::start(&provider, store, directory, stores());
    late.has("access-2").await;
    assert_eq!(provider.issued(), 2);
}

#[tokio::test]
async fn four_processes_with_one_file_make_one_refresh() {
    let directory = directory();
    four_share("{ file: grant }", directory.path(), || Stores::built_in(directory.path())).await;
    let kept = std::fs::read_to_string(directory.path().join("grant")).unwrap();
    assert!(!kept.contains("access-") && !kept.contains("refresh-"), "{kept}");
}

#[tokio::test]
async fn four_processes_with_one_redis_make_one_refresh() {
    let directory = directory();
    let redis = Redis::start();
    std::fs::write(directory.path().join("url"), &redis.url).unwrap();
    four_share("{ redis: { url: file:url } }", directory.path(), || Stores::built_in(directory.path())).await;
}

#[tokio::test]
async fn four_processes_with_one_vault_make_one_refresh() {
    let directory = directory();
    let vault = vault().await;
    let config: StoreConfig = serde_yaml::from_str(&format!(
        "vault: {{ address: \"{}\", auth: {{ token: file:seed }} }}",
        vault.url
    ))
    .unwrap();
    let configs = [("kept".to_owned(), config)].into();
    let stores = || Stores::build(&configs, &store_env(directory.path()), None).unwrap();
    four_share("{ vault: \"kept:kv/outgate/grant\" }", directory.path(), stores).await;
}

#[tokio::test]
async fn a_restart_goes_on_with_what_was_kept() {
    let (directory, provider) = (directory(), Provider::new(100).await);
    let start =
        || Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()));
    let first = start();
    first.token.obtain().await.unwrap();
    drop(first);
    let second = start();
    second.token.obtain().await.unwrap();
    assert_eq!((second.value().as_deref(), provider.issued()), (Some("access-1"), 1));
    // The seed was used up; what was kept is asked with.
    assert_eq!(second.token.heal_refresh().await, RefreshOutcome::Changed);
    assert_eq!((second.value().as_deref(), provider.issued()), (Some("access-2"), 2));
}

/// The place is empty, or as it was two generations ago: the seed and what was used up are not sent.
#[tokio::test]
async fn a_place_that_lost_its_page_or_went_back_gets_the_newest_one_again() {
    for goes_back in [false, true] {
        let (directory, provider) = (directory(), Provider::new(3600).await);
        let path = directory.path().join("grant");
        let start = || {
            Process::start(&provider, "{ file: grant }", directory.path(), Stores::built_in(directory.path()))
        };
        let (first, second) = (start(), start());
        first.token.obtain().await.unwrap();
        let old = std::fs::read(&path).unwrap();
        assert_eq!(first.token.heal_refresh().await, RefreshOutcome::Changed);
        // This one has only seen it there.
        second.token.obtain().await.unwrap();
        assert_eq!((second.value().as_deref(), provider.issued()), (Some("access-2"), 2));
        for number in [3, 4] {
            if goes_back {
                std::fs::write(&path, &old).unwrap();
            } else {
                std::fs::remove_file(&path).unwrap();
            }
            // No healing follows another within 30 s.
            pass(Duration::from_secs(31)).await;
            // The one that has only seen the newest there; the other then takes what it brought.
            assert_eq!(second.token.heal_refresh().await, RefreshOutcome::Changed);
            assert_eq!(first.token.heal_refresh().await, RefreshOutcome::Changed);
            assert_eq!(
                [first.value(), second.value()],
                [format!("access-{number}"), format!("access-{number}")].map(Some)
            );
            assert_eq!(provider.issued(), number);
        }
        let asked = provider.server.asked();
        let sent = |token: &str| asked.iter().filter(|asked| asked.body.contains(token)).count();
        assert_eq!((sent("seed-token-1"), sent("refresh-1"), asked.len()), (1, 1, 4), "{goes_back}");
        let late = start();
        late.token.obtain().await.unwrap();
        assert_eq!((late.value().as_deref(), provider.issued()), (Some("access-4"), 4));
    }
}

/// Another process has a new refresh token in its policy, and its page: that stays until something better is there.
#[tokio::test]
async fn what_another_key_has_sealed_is_not_written_over_by_what_is_remembered() {
    struct Answers(std::path::PathBuf, std::sync::Mutex<Vec<String>>);
    impl Exchange for Answers {
        fn ask<'a>(&'a self, token: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
            Box::pin(async move {
                let kept = std::fs::read_to_string(&self.0).unwrap();
                self.1.lock().unwrap().push(kept);
                match token {
                    b"seed" => Ok(TokenAnswer::of(r#"{"access_token":"a","refresh_token":"r"}"#)),
                    b"r" => Err(TokenFault::Http(crate::secret::http::HttpError::TimedOut)),
                    _ => panic!("nobody has such a token"),
                }
            })
        }
        fn lifetime(&self) -> Option<Duration> {
            None
        }
        fn mark(&self) -> &str {
            "mine"
        }
    }
    let directory = directory();
    let path = directory.path().join("grant");
    let (state, shelf) = (GrantState::default(), Shelf::File(file::FileShelf::new(&path)));
    let exchange = Answers(path.clone(), Default::default());
    state.rotating(b"seed", &shelf, &exchange).await.unwrap();
    std::fs::write(&path, r#"{"grant":"of-another"}"#).unwrap();
    // Not the seed, which was used up; and the other's page stands before, during and after it.
    assert_eq!(
        state.rotating(b"seed", &shelf, &exchange).await.err(),
        Some(TokenFault::Http(crate::secret::http::HttpError::TimedOut))
    );
    assert!(exchange.1.lock().unwrap()[1].contains("of-another"));
    assert!(std::fs::read_to_string(&path).unwrap().contains("of-another"));
}

#[tokio::test]
async fn an_access_token_of_other_scopes_is_not_taken_from_the_shelf() {
    let (directory, provider) = (directory(), Provider::new(3600).await);
    let start = |more| {
        let stores = Stores::built_in(directory.path());
        Process::asking(&provider, "{ file: grant }", more, directory.path(), stores)
    };
    let first = start(", scopes: [read]");
    first.token.obtain().await.unwrap();
    drop(first);
    // Each goes on with the refresh token, and asks for an access token of its own.
    for (number, more) in
        [(2, ", scopes: [read, write]"), (3, ", scopes: [read], extra: { audience_of: x }"), (4, "")]
    {
        let process = start(more);
        process.token.obtain().await.unwrap();
        assert_eq!(
            (process.value(), provider.issued()),
            (Some(format!("access-{number}")), number),
            "{more}"
        );
    }
    let same = start("");
    same.token.obtain().await.unwrap();
    assert_eq!((same.value().as_deref(), provider.issued()), (Some("access-4"), 4));
}

/// Pods whose clocks are an hour off the place's, which is to say each other's, either way: each lives by the place's.
#[tokio::test]
async fn pods_whose_clocks_differ_judge_a_shared_token_alike() {
    for (hours, date) in [(-1.0_f64, "behind"), (1.0, "ahead")] {
        let (directory, provider) = (directory(), Provider::new(600).await);
        let clock = Arc::new(std::sync::Mutex::new(hours * 3600.0));
        let vault = vault_with(clock.clone()).await;
        let config: StoreConfig = serde_yaml::from_str(&format!(
            "vault: {{ address: \"{}\", auth: {{ token: file:seed }} }}",
            vault.url
        ))
        .unwrap();
        let configs = [("kept".to_owned(), config)].into();
        let stores = || Stores::build(&configs, &store_env(directory.path()), None).unwrap();
        let start =
            || Process::start(&provider, "{ vault: \"kept:kv/outgate/grant\" }", directory.path(), stores());
        let left = |process: &Process| {
            let ends = process.token.ends_at().unwrap();
            ends.saturating_duration_since(Instant::now()).as_secs()
        };
        let first = start();
        first.token.obtain().await.unwrap();
        assert!((585..=595).contains(&left(&first)), "{date}: {}", left(&first));
        // Four minutes later, by the place's clock.
        *clock.lock().unwrap() += 240.0;
        let second = start();
        second.token.obtain().await.unwrap();
        assert_eq!((second.value().as_deref(), provider.issued()), (Some("access-1"), 1), "{date}");
        assert!((345..=355).contains(&left(&second)), "{date}: {}", left(&second));
        // And when it is over it is not taken any more.
        *clock.lock().unwrap() += 360.0;
        let third = start();
        third.token.obtain().await.unwrap();
        assert_eq!((third.value().as_deref(), provider.issued()), (Some("access-2"), 2), "{date}");
    }
}
