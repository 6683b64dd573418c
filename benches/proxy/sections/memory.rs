//! Resident memory: idle, and with many clients that stay connected and say nothing.

use std::time::Duration;

use tokio::task::JoinSet;

use super::Pair;
use crate::client::{Door, Doors, Exchange};
use crate::process::{self, Resident};
use crate::report::{self, Spread};
use crate::{Bench, Outcome};

const CLIENTS: usize = 5000;
/// Clients that connect at the same time.
const AT_ONCE: usize = 50;
/// Descriptors that the load needs beside its clients'.
const SPARE: usize = 200;
const IDLE_AT_MOST_MB: f64 = 12.0;
const CLIENTS_AT_MOST_MB: f64 = 80.0;
/// For buffers to be given back, and tasks that end.
const SETTLE: Duration = Duration::from_secs(1);

/// A fresh pair; the floor has the same clients, to tell what the libraries take.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let limit = usize::try_from(process::raise_descriptor_limit()).unwrap_or(usize::MAX);
    let clients = CLIENTS.min(limit.saturating_sub(SPARE));
    let pair = Pair::start(bench)?;
    pair.doors.open(Door::Floor).await?.once().await?;
    tokio::time::sleep(SETTLE).await;
    let idle = (pair.floor.resident()?, pair.outgate.process.resident()?);

    let kept = connect(&pair.doors, Door::Local, clients).await?;
    tokio::time::sleep(SETTLE).await;
    let outgate = pair.outgate.process.resident()?;
    drop(kept);
    let kept = connect(&pair.doors, Door::Floor, clients).await?;
    tokio::time::sleep(SETTLE).await;
    let floor = pair.floor.resident()?;
    drop(kept);

    report::section("memory: resident, idle clients have made one request each (MB = 10^6 bytes)");
    if clients < CLIENTS {
        report::note(&format!("only {clients} clients: the limit of open files is {limit}"));
    }
    report::target("idle, one request answered", "MB", Spread::of([idle.1.all]), IDLE_AT_MOST_MB);
    report::figure("  of it not backed by a file", "MB", Spread::of([idle.1.anonymous]));
    let label = format!("{clients} idle plaintext clients");
    report::target(&label, "MB", Spread::of([outgate.all]), CLIENTS_AT_MOST_MB);
    report::figure("  per client", "kB", Spread::of([per_client(&idle.1, &outgate, clients)]));
    report::figure("floor: idle, one request answered", "MB", Spread::of([idle.0.all]));
    report::figure("floor: the same clients", "MB", Spread::of([floor.all]));
    report::figure("  per client", "kB", Spread::of([per_client(&idle.0, &floor, clients)]));
    Ok(())
}

fn per_client(idle: &Resident, loaded: &Resident, clients: usize) -> f64 {
    (loaded.all - idle.all) * 1e3 / clients as f64
}

/// Clients that have made one request each, and stay.
async fn connect(doors: &Doors, door: Door, clients: usize) -> Outcome<Vec<Exchange>> {
    let mut kept = Vec::with_capacity(clients);
    let mut coming: JoinSet<Outcome<Exchange>> = JoinSet::new();
    for started in 0..clients {
        let doors = doors.clone();
        coming.spawn(async move {
            let mut exchange = doors.open(door).await?;
            exchange.once().await?;
            Ok(exchange)
        });
        if started >= AT_ONCE
            && let Some(come) = coming.join_next().await
        {
            kept.push(come??);
        }
    }
    while let Some(come) = coming.join_next().await {
        kept.push(come??);
    }
    Ok(kept)
}
