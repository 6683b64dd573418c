//! The two loads: a closed loop (as fast as it goes) and an open one (a fixed rate, whatever comes back).

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::client::{Door, Doors, Exchange};

/// Kept-alive connections of a load.
const CONNECTIONS: usize = 32;
/// How long what is under way at the end of an open loop may take.
const TAIL: Duration = Duration::from_secs(10);

/// Connections through one door, opened once and kept over all rounds.
pub struct Load {
    idle: Vec<Exchange>,
}

impl Load {
    /// Opens the connections.
    pub async fn open(doors: &Doors, door: Door) -> Outcome<Self> {
        let mut idle = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            idle.push(doors.open(door).await?);
        }
        Ok(Self { idle })
    }

    /// Each connection asks again as soon as it has its answer. Requests answered, and the seconds it took.
    pub async fn closed(&mut self, duration: Duration) -> Outcome<(usize, f64)> {
        let start = Instant::now();
        let mut loops: JoinSet<Outcome<(Exchange, usize)>> = JoinSet::new();
        for mut exchange in self.idle.drain(..) {
            loops.spawn(async move {
                let mut count = 0;
                while start.elapsed() < duration {
                    exchange.once().await?;
                    count += 1;
                }
                Ok((exchange, count))
            });
        }
        let mut requests = 0;
        while let Some(ended) = loops.join_next().await {
            let (exchange, count) = ended??;
            requests += count;
            self.idle.push(exchange);
        }
        Ok((requests, start.elapsed().as_secs_f64()))
    }

    /// `rate` requests per second for `duration`, each due at its own time. The latencies in milliseconds, counted from the
    /// time when the request was *due*: a slow answer cannot hide the wait of those behind it.
    pub async fn open_loop(&mut self, rate: u32, duration: Duration) -> Outcome<Vec<f64>> {
        let period = Duration::from_secs(1) / rate;
        let total = (duration.as_secs_f64() * f64::from(rate)) as u32;
        let start = Instant::now();
        let ticker = Ticker::new(start, period);
        let (mut sent, mut latencies) = (0, Vec::with_capacity(total as usize));
        // What is due and finds no connection; at most `total`.
        let mut waiting = VecDeque::new();
        let mut running = JoinSet::new();
        while latencies.len() < total as usize {
            tokio::select! {
                biased;
                Some(ended) = running.join_next() => {
                    let (exchange, latency) = ended??;
                    self.idle.push(exchange);
                    latencies.push(latency);
                }
                () = ticker.tick(), if sent < total => {
                    while sent < total && start.elapsed() >= period * sent {
                        waiting.push_back(start + period * sent);
                        sent += 1;
                    }
                }
                () = tokio::time::sleep(TAIL), if sent == total => {
                    return Err("answers are missing".into());
                }
            }
            while let Some(exchange) = self.idle.pop_if(|_| !waiting.is_empty())
                && let Some(due) = waiting.pop_front()
            {
                running.spawn(timed(exchange, due));
            }
        }
        Ok(latencies)
    }
}

async fn timed(mut exchange: Exchange, due: Instant) -> Outcome<(Exchange, f64)> {
    exchange.once().await?;
    let latency = due.elapsed().as_secs_f64() * 1e3;
    Ok((exchange, latency))
}

/// Ticks from a thread of its own: tokio's timers have a grain of one millisecond, which is more than what is measured.
struct Ticker(Arc<Notify>);

impl Ticker {
    /// The first tick is at `start`, so that no tick comes just before what it is for.
    fn new(start: Instant, period: Duration) -> Self {
        let notify = Arc::new(Notify::new());
        let weak = Arc::downgrade(&notify);
        std::thread::spawn(move || {
            // The kernel may delay a sleep by 50 us to save power; one that says no only makes all doors as late.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            let mut next = start;
            while let Some(notify) = weak.upgrade() {
                notify.notify_one();
                drop(notify);
                next += period;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        Self(notify)
    }

    /// Waits for the next tick, or for several that were missed.
    async fn tick(&self) {
        self.0.notified().await;
    }
}
