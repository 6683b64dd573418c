//! CPU per request in a closed loop of kept-alive connections.

use std::time::Duration;

use super::{INTERCEPTED_AT_MOST, LOCAL_AT_MOST, Lane, Pair, Round, order};
use crate::client::Door;
use crate::report::{self, Spread};
use crate::{Bench, Outcome};

const DOORS: [(Door, &str); 4] = [
    (Door::Floor, "floor"),
    (Door::Local, "local endpoint"),
    (Door::LocalHttp2, "local endpoint, HTTP/2 to the origin"),
    (Door::Intercepted, "intercepted"),
];

/// Interleaved rounds through each door.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let (rounds, warm, duration) = if bench.quick { (3, 300, 800) } else { (7, 1000, 2000) };
    let (warm, duration) = (Duration::from_millis(warm), Duration::from_millis(duration));
    let pair = Pair::start(bench)?;
    let mut lanes = Vec::new();
    for (door, _) in DOORS {
        lanes.push(pair.warm(door, warm).await?);
    }
    for round in 0..rounds {
        for index in order(round, lanes.len()) {
            pair.outgate.forget_log()?;
            measure(&pair, &mut lanes[index], duration).await?;
        }
    }
    print(&lanes);
    pair.note_company()
}

/// One round of one lane: CPU and rate.
pub(super) async fn measure(pair: &Pair, lane: &mut Lane, duration: Duration) -> Outcome<()> {
    let before = pair.cpu_seconds(lane.door)?;
    let (requests, seconds) = lane.load.closed(duration).await?;
    let cpu = (pair.cpu_seconds(lane.door)? - before) * 100_000.0 / requests as f64;
    lane.rounds.push(Round { cpu, per_second: requests as f64 / seconds, p50: f64::NAN, p99: f64::NAN });
    Ok(())
}

fn print(lanes: &[Lane]) {
    report::section("cpu: closed loop, 32 connections kept alive, 1 KiB answers, TLS to the origin");
    for (lane, (_, name)) in lanes.iter().zip(DOORS) {
        report::figure(
            &format!("{name}: CPU per 100,000 requests"),
            "s",
            Spread::of(lane.all(|round| round.cpu)),
        );
    }
    for (lane, (_, name)) in lanes.iter().zip(DOORS) {
        report::figure(&format!("{name}: requests"), "1/s", Spread::of(lane.all(|round| round.per_second)));
    }
    let floor = lanes[0].all(|round| round.cpu);
    let times = |lane: &Lane| Spread::of_ratios(&lane.all(|round| round.cpu), &floor);
    report::target("local endpoint / floor, CPU of paired rounds", "x", times(&lanes[1]), LOCAL_AT_MOST);
    report::target("intercepted / floor, CPU of paired rounds", "x", times(&lanes[3]), INTERCEPTED_AT_MOST);
}
