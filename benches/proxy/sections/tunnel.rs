//! A blind tunnel: what outgate pays for copying bytes that it cannot read.

use std::time::Instant;

use super::Pair;
use crate::client::Door;
use crate::report::{self, Spread};
use crate::{Bench, Outcome};

const CPU_PER_GB_AT_MOST: f64 = 0.55;

/// Downloads through CONNECT; TLS is between the load and the origin, on their own core.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let (rounds, bytes) = if bench.quick { (2, 256_000_000) } else { (3, 1_000_000_000) };
    let pair = Pair::start(bench)?;
    let mut exchange = pair.doors.open(Door::Tunnel).await?;
    exchange.download(16_000_000).await?;

    let (mut cpu, mut speed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (before, start) = (pair.cpu_seconds(Door::Tunnel)?, Instant::now());
        exchange.download(bytes).await?;
        let gigabytes = bytes as f64 / 1e9;
        speed.push(gigabytes * 1e3 / start.elapsed().as_secs_f64());
        cpu.push((pair.cpu_seconds(Door::Tunnel)? - before) / gigabytes);
    }

    report::section("tunnel: a download through CONNECT without interception");
    report::target("CPU of outgate per GB", "s", Spread::of(cpu), CPU_PER_GB_AT_MOST);
    report::figure("speed (bounded by TLS of origin and load)", "MB/s", Spread::of(speed));
    Ok(())
}
