//! The series of one provider and of one route: atomics that are reached without a look-up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

use super::labels::{CodeClass, Counts, DialResult, HealResult, Label, OverlapEvent, Phase};
use super::locked;
use crate::telemetry::{Flag, RequestEvent, Timings};

/// Upper bounds in seconds: a millisecond (a cached answer) to a minute (a slow model), and what lies beyond.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

/// Names that shadow mode may count of one provider; they come from the policy, and reloads may bring new ones.
const SHADOWED: usize = 1_000;

/// The series of one provider.
#[derive(Debug)]
pub struct ProviderMetrics {
    /// By the index of [`Phase`].
    pub(super) durations: Vec<Histogram>,
    pub(super) in_flight: AtomicI64,
    pub(super) request_bytes: AtomicU64,
    pub(super) response_bytes: AtomicU64,
    pub(super) scrubbed: AtomicU64,
    /// Requests that shadow mode let pass, by what would have stopped them.
    pub(super) shadowed: Mutex<BTreeMap<Arc<str>, u64>>,
    pub(super) idle_connections: AtomicU64,
    pub(super) active_connections: AtomicU64,
    pub(super) dials: Counts<DialResult>,
    pub(super) heals: Counts<HealResult>,
    pub(super) overlaps: Counts<OverlapEvent>,
}

impl ProviderMetrics {
    pub(super) fn new() -> Self {
        Self {
            durations: Phase::ALL.iter().map(|_| Histogram::new(BUCKETS)).collect(),
            in_flight: AtomicI64::new(0),
            request_bytes: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            scrubbed: AtomicU64::new(0),
            shadowed: Mutex::default(),
            idle_connections: AtomicU64::new(0),
            active_connections: AtomicU64::new(0),
            dials: Counts::default(),
            heals: Counts::default(),
            overlaps: Counts::default(),
        }
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Counts an attempt to open an upstream connection.
    pub fn dialed(&self, result: DialResult) {
        self.dials.add(result);
    }

    /// Counts a healing.
    pub fn healed(&self, result: HealResult) {
        self.heals.add(result);
    }

    /// Counts what a list of credentials, new and old, showed.
    pub fn overlap(&self, event: OverlapEvent) {
        self.overlaps.add(event);
    }

    /// Sets how many upstream connections there are now; for a refresher of [`super::Metrics::on_scrape`].
    pub fn set_connections(&self, idle: u64, active: u64) {
        self.idle_connections.store(idle, Relaxed);
        self.active_connections.store(active, Relaxed);
    }

    fn record(&self, event: &RequestEvent) {
        self.request_bytes.fetch_add(event.request_bytes, Relaxed);
        self.response_bytes.fetch_add(event.response_bytes, Relaxed);
        if event.scrubbed > 0 {
            self.scrubbed.fetch_add(event.scrubbed, Relaxed);
        }
        // Mostly there is nothing, and then nothing is locked.
        for what in &event.shadowed {
            let mut shadowed = locked(&self.shadowed);
            if shadowed.len() < SHADOWED || shadowed.contains_key(what) {
                *shadowed.entry(what.clone()).or_default() += 1;
            }
        }
        for (phase, duration) in phases(&event.timings) {
            if let Some(duration) = duration {
                self.durations[phase.index()].observe(duration.as_secs_f64());
            }
        }
    }
}

fn phases(timings: &Timings) -> [(Phase, Option<Duration>); 6] {
    [
        (Phase::Total, Some(timings.total)),
        (Phase::Queue, timings.queue),
        (Phase::Connect, timings.connect),
        (Phase::Tls, timings.tls),
        (Phase::FirstByte, timings.first_byte),
        (Phase::Body, timings.body),
    ]
}

/// A request in flight, as long as it lives.
#[derive(Debug)]
pub struct InFlight(Arc<ProviderMetrics>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

const CLASSES: usize = CodeClass::ALL.len();
/// A row for each flag, and the last for requests without one.
const ROWS: usize = Flag::ALL.len() + 1;

/// The series of one route. Events carry it.
#[derive(Debug)]
pub struct RouteMetrics {
    provider: Arc<ProviderMetrics>,
    /// About a kilobyte a route: cheaper than any map, and nothing is created while requests run.
    requests: [[AtomicU64; CLASSES]; ROWS],
}

impl RouteMetrics {
    pub(super) fn new(provider: Arc<ProviderMetrics>) -> Self {
        Self { provider, requests: [const { [const { AtomicU64::new(0) }; CLASSES] }; ROWS] }
    }

    /// The series of the route's provider.
    pub fn provider(&self) -> &Arc<ProviderMetrics> {
        &self.provider
    }

    pub(super) fn record(&self, event: &RequestEvent) {
        let row = event.flag.map_or(ROWS - 1, Flag::index);
        self.requests[row][CodeClass::of(event.status).index()].fetch_add(1, Relaxed);
        self.provider.record(event);
    }

    /// The counts that are not zero, with code class and flag.
    pub(super) fn requests(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let flags = Flag::ALL.iter().map(|flag| flag.as_str()).chain([""]);
        flags.zip(&self.requests).flat_map(|(flag, row)| {
            let counts = CodeClass::ALL
                .iter()
                .zip(row)
                .map(move |(class, count)| (class.label(), flag, count.load(Relaxed)));
            counts.filter(|(.., count)| *count > 0)
        })
    }
}
