//! The breaker of one host: its state behind a short lock, and a way past the lock while it is closed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::outcome::Outcome;
use super::settings::Rules;
use super::state::{Change, OpenFor, Pass, Position, State};
use super::status::{Counters, HostStatus};
use super::tally::Tally;
use crate::message::target::Host;

/// The breaker of one host and port.
#[derive(Debug)]
pub struct Breaker {
    provider: Arc<str>,
    host: Host,
    port: u16,
    /// The state's epoch, and in the lowest bit whether it is closed. Lets requests pass a closed breaker without its lock.
    gate: AtomicU64,
    tally: Arc<Tally>,
    state: Mutex<State>,
    /// Whether anybody asked since room was last made.
    touched: AtomicBool,
    counters: Arc<Counters>,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(provider: Arc<str>, host: Host, port: u16, rules: Rules, counters: Arc<Counters>) -> Self {
        let tally = Arc::new(Tally::new(Instant::now(), rules.error_rate.map(|rate| rate.window)));
        let state = State::new(rules, tally.clone());
        let gate = AtomicU64::new(gate_of(&state));
        let (state, touched) = (Mutex::new(state), AtomicBool::new(true));
        Self { provider, host, port, gate, tally, state, touched, counters }
    }

    /// The epoch, if it is closed.
    fn closed_epoch(&self) -> Option<u64> {
        let gate = self.gate.load(Ordering::Acquire);
        (gate & 1 == 1).then_some(gate >> 1)
    }

    /// Whether everything passes.
    pub fn is_closed(&self) -> bool {
        self.closed_epoch().is_some()
    }

    /// Whether a request could go on now.
    pub fn look(&self) -> Result<(), OpenFor> {
        self.touch();
        if self.is_closed() { Ok(()) } else { self.lock().look(Instant::now()) }
    }

    /// Leave for one request.
    pub fn take(self: &Arc<Self>) -> Result<Running, OpenFor> {
        self.touch();
        let pass = match self.closed_epoch() {
            Some(epoch) => Pass::closed(epoch),
            None => self.take_slowly()?,
        };
        Ok(Running { breaker: self.clone(), pass: Some(pass) })
    }

    fn take_slowly(&self) -> Result<Pass, OpenFor> {
        let (pass, change) = self.with(|state| state.take(Instant::now()))?;
        if pass.is_probe() {
            self.counters.probes.fetch_add(1, Ordering::Relaxed);
        }
        self.note(change);
        Ok(pass)
    }

    fn finish(&self, pass: Pass, outcome: Outcome) {
        match outcome {
            Outcome::Success if self.closed_epoch() == Some(pass.epoch()) => {
                self.tally.success(Instant::now());
            }
            Outcome::Success => self.note(self.with(|state| state.on_success(&pass, Instant::now()))),
            Outcome::Failure { retry_after } => {
                self.note(self.with(|state| state.on_failure(&pass, Instant::now(), retry_after)));
            }
            Outcome::Nothing if pass.is_probe() => self.with(|state| state.on_nothing(&pass)),
            Outcome::Nothing => {}
        }
    }

    /// The body of an answer broke off that was counted as a success in `epoch`.
    pub fn broken(&self, epoch: u64) {
        self.note(self.with(|state| state.on_broken(epoch, Instant::now())));
    }

    /// Takes other numbers.
    pub fn update(&self, rules: Rules) {
        self.with(|state| state.update(Instant::now(), rules));
    }

    /// Starts anew, after it was forced.
    pub fn release(&self) {
        self.note(self.with(State::release));
    }

    /// Whether anybody asked since this was last called.
    pub fn untouch(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    /// How it stands.
    pub fn status(&self) -> HostStatus {
        let now = Instant::now();
        let (failed, requests) = self.tally.window(now);
        let state = self.lock();
        let left = state.open_until().map(|until| until.saturating_duration_since(now));
        HostStatus {
            host: self.host.as_str().to_owned(),
            port: self.port,
            state: state.position().as_str(),
            next_probe_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            failures_in_row: self.tally.row(),
            window_failures: failed,
            window_requests: requests,
            probes_running: state.running(),
        }
    }

    fn touch(&self) {
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and the gate with it.
    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        self.gate.store(gate_of(&state), Ordering::Release);
        result
    }

    fn note(&self, change: Option<Change>) {
        let Some(Change { from, to, reason, open_for }) = change else { return };
        let counter = match to {
            Position::Closed => &self.counters.closed,
            Position::Open => &self.counters.opened,
            Position::HalfOpen => &self.counters.half_opened,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let (provider, host, port) = (&*self.provider, &self.host, self.port);
        let (from, to, reason) = (from.as_str(), to.as_str(), reason.as_str());
        match open_for {
            Some(open_for) => {
                tracing::warn!(target: "outgate::breaker", provider, %host, port, from, to, reason, ?open_for, "circuit breaker opened");
            }
            None => {
                tracing::info!(target: "outgate::breaker", provider, %host, port, from, to, reason, "circuit breaker changed");
            }
        }
    }
}

fn gate_of(state: &State) -> u64 {
    state.epoch() << 1 | u64::from(state.position() == Position::Closed)
}

/// A request under way. Dropped without an outcome it counts as nothing, and a probe's place is free again.
#[derive(Debug)]
pub struct Running {
    breaker: Arc<Breaker>,
    pass: Option<Pass>,
}

impl Running {
    /// Says how it ended; returns what follows the body, where the body can still break a success.
    pub fn finish(mut self, outcome: Outcome) -> Option<Broken> {
        let pass = self.pass.take()?;
        let epoch = pass.epoch();
        self.breaker.finish(pass, outcome);
        (outcome == Outcome::Success).then(|| Broken { breaker: self.breaker.clone(), epoch })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.breaker.finish(pass, Outcome::Nothing);
        }
    }
}

/// Tells the breaker that a body broke off.
#[derive(Debug)]
pub struct Broken {
    breaker: Arc<Breaker>,
    epoch: u64,
}

impl Broken {
    /// It broke off.
    pub fn tell(&self) {
        self.breaker.broken(self.epoch);
    }
}
