//! CPU per request and latency at a fixed rate, far below what either proxy could do: the common case of a sidecar.

use std::time::Duration;

use super::{INTERCEPTED_AT_MOST, LOCAL_AT_MOST, Lane, Pair, Round, order};
use crate::client::Door;
use crate::report::{self, Spread, percentile};
use crate::{Bench, Outcome};

const PER_SECOND: u32 = 2000;
const DOORS: [(Door, &str); 4] = [
    (Door::Direct, "direct"),
    (Door::Floor, "floor"),
    (Door::Local, "local endpoint"),
    (Door::Intercepted, "intercepted"),
];

/// Interleaved rounds through each door.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let (rounds, duration) = if bench.quick { (3, 1500) } else { (5, 4000) };
    let duration = Duration::from_millis(duration);
    let pair = Pair::start(bench)?;
    let mut lanes = Vec::new();
    for (door, _) in DOORS {
        lanes.push(pair.warm(door, Duration::from_millis(300)).await?);
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

async fn measure(pair: &Pair, lane: &mut Lane, duration: Duration) -> Outcome<()> {
    let before = pair.cpu_seconds(lane.door)?;
    let mut latencies = lane.load.open_loop(PER_SECOND, duration).await?;
    let cpu = (pair.cpu_seconds(lane.door)? - before) * 100_000.0 / latencies.len() as f64;
    let (p50, p99) = (percentile(&mut latencies, 0.50), percentile(&mut latencies, 0.99));
    lane.rounds.push(Round { cpu, per_second: f64::from(PER_SECOND), p50, p99 });
    Ok(())
}

fn print(lanes: &[Lane]) {
    report::section("rate: 2,000 requests/s, latency counted from the due time");
    for (lane, (_, name)) in lanes.iter().zip(DOORS).skip(1) {
        report::figure(
            &format!("{name}: CPU per 100,000 requests"),
            "s",
            Spread::of(lane.all(|round| round.cpu)),
        );
    }
    let [direct, floor, ..] = lanes else { return };
    let floor = floor.all(|round| round.cpu);
    let times = |lane: &Lane| Spread::of_ratios(&lane.all(|round| round.cpu), &floor);
    report::target("local endpoint / floor, CPU of paired rounds", "x", times(&lanes[2]), LOCAL_AT_MOST);
    report::target("intercepted / floor, CPU of paired rounds", "x", times(&lanes[3]), INTERCEPTED_AT_MOST);

    report::figure("direct: p50", "ms", Spread::of(direct.all(|round| round.p50)));
    report::figure("direct: p99", "ms", Spread::of(direct.all(|round| round.p99)));
    for (lane, (_, name)) in lanes.iter().zip(DOORS).skip(1) {
        let over = |figure: fn(&Round) -> f64| Spread::of_differences(&lane.all(figure), &direct.all(figure));
        report::figure(&format!("{name}: p50 over direct"), "ms", over(|round| round.p50));
        report::figure(&format!("{name}: p99 over direct"), "ms", over(|round| round.p99));
    }
}
