//! The script itself, against a real server.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::ledger::Ledger;
use super::server::Server;
use crate::resilience::fleet::Grant;
use crate::resilience::fleet::script::{Answer, Head, Part, RawAnswer, Report, answer, invocation, script};

fn head<'a>(pod: &'a str, number: u64, pauses: &'a [(Arc<str>, u64)]) -> Head<'a> {
    Head { prefix: "t", pod, number, knew: 1, part: Part::Last, heard: 0, pauses }
}

async fn call(
    redis: &mut MultiplexedConnection,
    head: &Head<'_>,
    reports: &[Report],
) -> redis::RedisResult<Answer> {
    let raw: RawAnswer = invocation(&script(), head, reports).invoke_async(redis).await?;
    answer(raw, reports.len())
}

/// Reports until leases may grow.
async fn settled(redis: &mut MultiplexedConnection, pod: &str, first: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut number = first;
    while !call(redis, &head(pod, number, &[]), &[]).await.unwrap().settled {
        assert!(Instant::now() < deadline, "never settled");
        tokio::time::sleep(Duration::from_millis(20)).await;
        number += 1;
    }
    number + 1
}

fn report(id: &str, want: (u64, u32), obeys: u64, held: u32) -> Report {
    Report {
        id: id.into(),
        window: 1_000,
        budget: 201_000,
        want: Grant { refill: want.0, burst: want.1 },
        young: Grant { refill: obeys, burst: held },
        obeys,
        held,
        wants: want.0,
        back: false,
    }
}

#[tokio::test]
async fn it_does_what_its_model_does() {
    let server = Server::start().await;
    let mut redis = server.connect().await.unwrap();
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = Ledger::default();
    let mut numbers = [0_u64; 4];
    for step in 0..3_000 {
        let pod = random.usize(0..4);
        numbers[pod] += 1;
        let number = if random.u8(0..50) == 0 { numbers[pod] / 2 } else { numbers[pod] };
        let reports: Vec<Report> = ["a", "b"][..random.usize(0..=2)]
            .iter()
            .map(|id| {
                let want = (random.u64(0..200_000), random.u32(0..5));
                let current = (random.u64(0..60_000) * random.u64(0..2), random.u32(0..3));
                let back = random.u8(0..10) == 0;
                let window = if *id == "a" { 1_000 } else { 60_000 };
                Report { back, window, ..report(id, want, current.0, current.1) }
            })
            .collect();
        let name = format!("pod-{pod}");
        let part = [Part::Last, Part::Last, Part::More, Part::Leave][random.usize(0..4)];
        let head = Head { knew: random.u32(1..5), part, heard: 1, ..head(&name, number, &[]) };
        let real = call(&mut redis, &head, &reports).await;
        let Ok(real) = real else {
            // Refused as stale: the model must refuse it at any time.
            assert!(model.call(0, &head, &reports).is_none(), "seed {seed}, step {step}: {real:?}");
            continue;
        };
        let model = model.call(real.now, &head, &reports);
        let model = model.unwrap_or_else(|| panic!("seed {seed}, step {step}: the model refuses"));
        assert_eq!(
            (real.pods, real.settled, real.leases),
            (model.pods, model.settled, model.leases),
            "seed {seed}, step {step}: {head:?} {reports:?}"
        );
    }
}

#[tokio::test]
async fn what_is_free_is_granted_and_what_shrinks_is_free_when_it_was_confirmed() {
    let server = Server::start().await;
    let mut redis = server.connect().await.unwrap();
    let at = settled(&mut redis, "a", 1).await;
    // Within the lease's time: the whole test is a few calls.
    let grant = async |redis: &mut MultiplexedConnection, pod: &str, number, report: Report| {
        call(redis, &head(pod, number, &[]), &[report]).await.unwrap().leases.remove(0)
    };
    let a = grant(&mut redis, "a", at, report("x", (190_000, 2), 0, 0)).await;
    assert_eq!((a.grant, a.others.len()), (Grant { refill: 190_000, burst: 2 }, 0));
    let b = grant(&mut redis, "b", 1, report("x", (100_000, 1), 0, 0)).await;
    assert_eq!((b.grant, b.others, b.place), (Grant { refill: 8_000, burst: 1 }, vec![190_000], 1));
    // `a` asks for less: what it obeys counts until it says that it obeys less.
    grant(&mut redis, "a", at + 1, report("x", (50_000, 1), 190_000, 2)).await;
    let b = grant(&mut redis, "b", 2, report("x", (100_000, 1), 8_000, 1)).await;
    assert_eq!(b.grant, Grant { refill: 8_000, burst: 1 });
    grant(&mut redis, "a", at + 2, report("x", (50_000, 1), 50_000, 1)).await;
    let b = grant(&mut redis, "b", 3, report("x", (100_000, 1), 8_000, 1)).await;
    assert_eq!(b.grant, Grant { refill: 100_000, burst: 1 });
    // An older call that comes late changes nothing.
    let stale = call(&mut redis, &head("b", 2, &[]), &[report("x", (1, 1), 0, 0)]).await;
    assert_eq!(stale.unwrap_err().code(), Some("STALE"));
}

#[tokio::test]
async fn a_first_start_needs_no_second_of_patience_and_a_forgetful_redis_does() {
    let server = Server::start().await;
    let mut redis = server.connect().await.unwrap();
    // Just started: it may have forgotten pods that live.
    let young = call(&mut redis, &head("a", 1, &[]), &[]).await.unwrap();
    assert!(!young.settled);
    let leave = Head { part: Part::Leave, heard: young.now, ..head("a", 2, &[]) };
    call(&mut redis, &leave, &[]).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await.unwrap();
        let up = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:")).unwrap();
        if up.parse::<u32>().unwrap() >= 3 {
            break;
        }
        assert!(Instant::now() < deadline, "{up}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(call(&mut redis, &head("b", 1, &[]), &[]).await.unwrap().settled);
    let _: () = redis::cmd("FLUSHALL").query_async(&mut redis).await.unwrap();
    let known = Head { heard: 1, ..head("b", 2, &[]) };
    assert!(!call(&mut redis, &known, &[]).await.unwrap().settled);
}

#[tokio::test]
async fn pauses_reach_others_once_and_the_longest_holds() {
    let server = Server::start().await;
    let mut redis = server.connect().await.unwrap();
    let told = [("stripe|env:KEY".into(), 60_000), ("other".into(), 1)];
    let own = call(&mut redis, &head("a", 1, &told), &[]).await.unwrap();
    assert!(own.pauses.is_empty(), "{own:?}");
    let shorter = [("stripe|env:KEY".into(), 5_000)];
    call(&mut redis, &head("c", 1, &shorter), &[]).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let heard = loop {
        // The short one is over soon.
        let heard = call(&mut redis, &head("b", 1, &[]), &[]).await.unwrap();
        if heard.pauses.len() == 1 {
            break heard;
        }
        assert!(Instant::now() < deadline, "{heard:?}");
    };
    assert_eq!(heard.pauses[0].0, "stripe|env:KEY");
    assert!((50_000..=60_000).contains(&heard.pauses[0].1), "{heard:?}");
    let later = Head { heard: heard.now, ..head("b", 2, &[]) };
    assert!(call(&mut redis, &later, &[]).await.unwrap().pauses.is_empty());
}

#[tokio::test]
async fn garbage_in_the_keys_is_thrown_out() {
    let server = Server::start().await;
    let mut redis = server.connect().await.unwrap();
    let at = settled(&mut redis, "a", 1).await;
    let key = "{t}:limit:x";
    let _: () = redis::cmd("HSET").arg(key).arg("b").arg("no record").query_async(&mut redis).await.unwrap();
    let answer = call(&mut redis, &head("a", at, &[]), &[report("x", (190_000, 2), 0, 0)]).await.unwrap();
    assert_eq!(answer.leases[0].grant.refill, 190_000);
    let fields: Vec<String> = redis::cmd("HKEYS").arg(key).query_async(&mut redis).await.unwrap();
    assert_eq!(fields, ["a"]);
    // And everything has an end.
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    for key in keys {
        let rest: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut redis).await.unwrap();
        assert!(rest > 0, "{key}");
    }
}
