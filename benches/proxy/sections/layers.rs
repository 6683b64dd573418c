//! What the resilience layers cost: the same closed loop with limits, retry, breaker and concurrency, and without them. Quota is
//! learned in both, as it is where a policy says nothing; a third lane has it off too.

use std::time::Duration;

use super::{Pair, cpu, order};
use crate::client::Door;
use crate::report::{self, Spread};
use crate::{Bench, Outcome};

/// What the layers may cost, as a multiple of the run without them.
const LAYERS_AT_MOST: f64 = 1.10;

/// Interleaved rounds of the three providers.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let (rounds, warm, duration) = if bench.quick { (5, 300, 800) } else { (11, 1000, 2000) };
    let (warm, duration) = (Duration::from_millis(warm), Duration::from_millis(duration));
    let pair = Pair::start(bench)?;
    let mut lanes = [
        pair.warm(Door::LocalBare, warm).await?,
        pair.warm(Door::LocalQuota, warm).await?,
        pair.warm(Door::LocalLayers, warm).await?,
    ];
    for round in 0..rounds {
        for index in order(round, lanes.len()) {
            pair.outgate.forget_log()?;
            cpu::measure(&pair, &mut lanes[index], duration).await?;
        }
    }
    report::section("layers: closed loop at the local endpoint, with and without the resilience layers");
    let [bare, quota, layers] = [0, 1, 2].map(|index: usize| lanes[index].all(|round| round.cpu));
    report::figure("none: CPU per 100,000 requests", "s", Spread::of(bare.clone()));
    report::figure("learned quota alone: CPU per 100,000 requests", "s", Spread::of(quota.clone()));
    report::figure("all: CPU per 100,000 requests", "s", Spread::of(layers.clone()));
    let times = Spread::of_ratios(&layers, &quota);
    report::target("all / learned quota alone, CPU of paired rounds", "x", times, LAYERS_AT_MOST);
    report::figure("all / none, CPU of paired rounds", "x", Spread::of_ratios(&layers, &bare));
    pair.note_company()
}
