//! What is measured, a file a section.

pub mod cpu;
pub mod credentials;
pub mod handshake;
pub mod layers;
pub mod memory;
pub mod rate;
pub mod startup;
pub mod tunnel;

use std::time::Duration;

use crate::client::{Door, Doors};
use crate::load::Load;
use crate::outgate::Outgate;
use crate::process::Process;
use crate::{Bench, Outcome, report};

/// What a request at outgate's local endpoint may cost, as a multiple of the floor.
const LOCAL_AT_MOST: f64 = 1.20;
/// The same for a request on an intercepted connection that is kept alive.
const INTERCEPTED_AT_MOST: f64 = 1.35;

/// Share of its own time that a process may have to wait for its core, its own second thread included.
const COMPANY: f64 = 0.1;

/// The floor and outgate side by side on one core; only one of them works at a time.
struct Pair {
    floor: Process,
    outgate: Outgate,
    doors: Doors,
}

impl Pair {
    fn start(bench: &Bench) -> Outcome<Self> {
        let (floor, floor_address) = bench.floor()?;
        let outgate = Outgate::start(bench)?;
        let doors = Doors::new(bench.directory.path(), [bench.origin, floor_address, outgate.address])?;
        Ok(Self { floor, outgate, doors })
    }

    /// CPU seconds of the process behind a door; none where there is no proxy.
    fn cpu_seconds(&self, door: Door) -> Outcome<f64> {
        match door {
            Door::Direct => Ok(0.0),
            Door::Floor => self.floor.cpu_seconds(),
            _ => self.outgate.process.cpu_seconds(),
        }
    }

    /// Tells the reader when other programs have used the proxy's core: latencies show that more than CPU figures do.
    fn note_company(&self) -> Outcome<()> {
        for (name, process) in [("floor", &self.floor), ("outgate", &self.outgate.process)] {
            let (waited, worked) = (process.waited_seconds().unwrap_or(0.0), process.cpu_seconds()?);
            if waited > worked * COMPANY {
                report::note(&format!(
                    "other programs were on the core: {name} waited {waited:.1} s for {worked:.1} s of work"
                ));
            }
        }
        Ok(())
    }

    /// Opens a load through a door, and runs it until pools are filled and pages are there.
    async fn warm(&self, door: Door, duration: Duration) -> Outcome<Lane> {
        let mut load = Load::open(&self.doors, door).await?;
        load.closed(duration).await?;
        Ok(Lane { door, load, rounds: Vec::new() })
    }
}

/// One door, its load, and what its rounds gave.
struct Lane {
    door: Door,
    load: Load,
    rounds: Vec<Round>,
}

/// What one round gave.
struct Round {
    /// CPU seconds of the proxy per 100,000 requests.
    cpu: f64,
    per_second: f64,
    /// Latency in milliseconds; only at a fixed rate.
    p50: f64,
    p99: f64,
}

impl Lane {
    fn all(&self, figure: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(figure).collect()
    }
}

/// The order of a round: there and back again, so that a drift of the machine does not favour one end.
fn order(round: usize, lanes: usize) -> Box<dyn Iterator<Item = usize>> {
    if round.is_multiple_of(2) { Box::new(0..lanes) } else { Box::new((0..lanes).rev()) }
}
