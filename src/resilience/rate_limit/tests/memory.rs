//! What a million tenants take, measured: of a limit and of the learned quota of one route, in a process of its own.

use std::future::ready;
use std::process::Command;

use futures_util::FutureExt;

use super::*;
use crate::resilience::key::Key;
use crate::resilience::quota::{MOST_KEYS, Quota, QuotaLayer, QuotaSettings};
use crate::resilience::rate_limit::slots::Id;
use crate::resilience::rate_limit::store::Store;

const TENANTS: usize = 1_000_000;
const MOST: u64 = 64 << 20;

/// Bytes of memory of this process that belong to no file (proc_pid_status(5)).
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The test program again, with [`measured_alone`] as its only test: what other tests have left behind would count too.
#[test]
fn a_million_tenants_stay_under_64_mib_and_are_swept() {
    let alone = "resilience::rate_limit::tests::memory::measured_alone";
    let program = std::env::current_exe().unwrap();
    let ran = Command::new(program).args(["--ignored", "--exact", alone, "--nocapture"]).output().unwrap();
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

#[tokio::test(start_paused = true)]
#[ignore = "a_million_tenants_stay_under_64_mib_and_are_swept runs it in a process of its own"]
async fn measured_alone() {
    let limit = limiter(LimitSettings { per: Per::Tenant, ..settings("1000/s", 100) });
    let quota = Arc::new(Quota::new("p"));
    let provider = service_fn(|_: EgressRequest| {
        // What is told is kept.
        let told = ["ratelimit-remaining", "ratelimit-limit", "ratelimit-reset"];
        let answer = told.iter().fold(Response::builder(), |answer, name| answer.header(*name, "60"));
        ready(answer.body(Body::empty()).map_err(|_| Failure::not_sent(Fault::Internal)))
    });
    let source = KeySource { route: "r".into(), ..KeySource::default() };
    let learning = QuotaSettings::default();
    let mut layer = QuotaLayer::new(provider, quota.clone(), learning, source, None, false);
    let asks = |number: usize| {
        let mut who = Store::own(Id::from(Key::of(&[&number.to_string()])));
        assert!(limit.store().take(&mut who, limit.edition(), None).is_ok(), "{number}");
    };
    let before = anonymous();
    // They still owe when the last one comes, for time stands still.
    (0..TENANTS).for_each(asks);
    let of_limit = anonymous() - before;
    // The quota keeps so many keys and no more, so twice as many are as good as a million.
    for number in 0..2 * MOST_KEYS {
        let answer = layer.call(of(number)).now_or_never();
        assert!(answer.is_some_and(|answer| answer.is_ok()), "{number}");
    }
    let (keys, learned, grown) = (limit.status().keys, quota.status().keys, anonymous() - before);
    println!("{keys} keys of the limit: {of_limit} bytes; with {learned} of the quota: {grown} bytes");
    assert_eq!(keys, TENANTS);
    assert!((MOST_KEYS / 2..=MOST_KEYS).contains(&learned), "{learned}");
    assert!(of_limit < MOST, "{of_limit} bytes");
    assert!(grown - of_limit < MOST / 2, "{} bytes of the quota", grown - of_limit);
    // An hour later nobody owes anything: each table is swept by the next newcomer that finds it grown.
    advance(Duration::from_secs(3600)).await;
    const LATER: usize = 1_000;
    (TENANTS..TENANTS + LATER).for_each(asks);
    let (keys, left) = (limit.status().keys, anonymous().saturating_sub(before));
    println!("{keys} keys an hour later: {left} bytes");
    assert_eq!(keys, LATER, "all that owed are gone");
    assert!(left < grown / 2, "{left} bytes are still held");
}
