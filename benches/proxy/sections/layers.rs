//! What the resilience layers cost: the same closed loop with limits, quota, retry, breaker and concurrency, and without.

use std::time::Duration;

use super::{Pair, cpu, order};
use crate::client::Door;
use crate::report::{self, Spread};
use crate::{Bench, Outcome};

/// What the layers may cost, as a multiple of the run without them.
const LAYERS_AT_MOST: f64 = 1.10;

/// Interleaved rounds of the two providers.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let (rounds, warm, duration) = if bench.quick { (5, 300, 800) } else { (11, 1000, 2000) };
    let (warm, duration) = (Duration::from_millis(warm), Duration::from_millis(duration));
    let pair = Pair::start(bench)?;
    let mut lanes = vec![pair.warm(Door::LocalBare, warm).await?, pair.warm(Door::LocalLayers, warm).await?];
    for round in 0..rounds {
        for index in order(round, lanes.len()) {
            pair.outgate.forget_log()?;
            cpu::measure(&pair, &mut lanes[index], duration).await?;
        }
    }
    report::section("layers: closed loop at the local endpoint, with and without the resilience layers");
    let [bare, layers] = [&lanes[0], &lanes[1]].map(|lane| lane.all(|round| round.cpu));
    report::figure("without: CPU per 100,000 requests", "s", Spread::of(bare.clone()));
    report::figure("with: CPU per 100,000 requests", "s", Spread::of(layers.clone()));
    let times = Spread::of_ratios(&layers, &bare);
    report::target("with / without, CPU of paired rounds", "x", times, LAYERS_AT_MOST);
    pair.note_company()
}
