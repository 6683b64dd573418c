//! New intercepted connections: TCP, CONNECT and a full TLS handshake with a leaf that is minted already.

use std::time::Instant;

use super::Pair;
use crate::client::Door;
use crate::report::{self, Spread, percentile};
use crate::{Bench, Outcome};

const P50_AT_MOST_MS: f64 = 2.0;

/// Connections one after the other, so that none waits for another.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let (rounds, connections) = if bench.quick { (3, 100) } else { (5, 300) };
    let pair = Pair::start(bench)?;
    // Mints the leaf.
    pair.doors.open(Door::Intercepted).await?.once().await?;

    let (mut p50, mut p99, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = pair.cpu_seconds(Door::Intercepted)?;
        let mut latencies = Vec::with_capacity(connections);
        for _ in 0..connections {
            let start = Instant::now();
            let stream = pair.doors.intercepted().await?;
            latencies.push(start.elapsed().as_secs_f64() * 1e3);
            drop(stream);
        }
        cpu.push((pair.cpu_seconds(Door::Intercepted)? - before) * 1e3 / connections as f64);
        p50.push(percentile(&mut latencies, 0.50));
        p99.push(percentile(&mut latencies, 0.99));
    }

    report::section("handshake: new intercepted connections, full handshake, one after the other");
    report::target("TCP, CONNECT and TLS: p50", "ms", Spread::of(p50), P50_AT_MOST_MS);
    report::figure("TCP, CONNECT and TLS: p99", "ms", Spread::of(p99));
    report::figure("CPU of outgate per connection", "ms", Spread::of(cpu));
    Ok(())
}
