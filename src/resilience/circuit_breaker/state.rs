//! The state of one breaker: closed, open, half-open. Pure: time is an argument, and nothing here waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::settings::Rules;
use super::tally::Tally;

/// A `Retry-After` below this is taken as this: a breaker that opens for no time at all would not be open.
pub const SHORTEST_ASKED: Duration = Duration::from_secs(1);

/// What the app is told while all probes are under way: nobody knows when the next may go.
pub const PROBE_WAIT: Duration = Duration::from_secs(1);

/// Leave for one request to go on. Whoever has it says how the request ended, once.
#[derive(Debug, PartialEq, Eq)]
pub struct Pass {
    epoch: u64,
    probe: bool,
}

impl Pass {
    /// Leave that a closed breaker gives.
    pub fn closed(epoch: u64) -> Self {
        Self { epoch, probe: false }
    }

    /// Between which transitions the request began.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it is one of the few of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// A refusal, and the time until the next probe may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFor(pub Duration);

/// Where a breaker stands, for logs and status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Everything passes.
    Closed,
    /// Nothing passes.
    Open,
    /// Probes pass.
    HalfOpen,
}

impl Position {
    /// The word of logs and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why a breaker changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `failures` in a row.
    FailuresInARow,
    /// `error_rate`.
    ErrorRate,
    /// A probe failed.
    ProbeFailed,
    /// The open time is over.
    TimeIsOver,
    /// Enough probes succeeded.
    ProbesSucceeded,
    /// What the admin listener had forced was taken back.
    Released,
}

impl Reason {
    /// The words of logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FailuresInARow => "failures in a row",
            Self::ErrorRate => "error rate",
            Self::ProbeFailed => "a probe failed",
            Self::TimeIsOver => "the open time is over",
            Self::ProbesSucceeded => "probes succeeded",
            Self::Released => "no longer forced",
        }
    }
}

/// One transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it stood.
    pub from: Position,
    /// Where it stands now.
    pub to: Position,
    /// Why.
    pub reason: Reason,
    /// For how long, where it opened.
    pub open_for: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen { succeeded: u32 },
}

/// The state of one breaker.
#[derive(Debug)]
pub struct State {
    rules: Rules,
    tally: Arc<Tally>,
    phase: Phase,
    /// Grows with each transition. The end of a request that began before the last one says nothing about now.
    epoch: u64,
    /// Probes under way, those of an earlier half-open phase included: the provider still has them.
    running: u32,
    /// How often in a row it opened again because a probe failed.
    reopened: u32,
}

impl State {
    /// Closed, with counts kept in `tally`.
    pub fn new(rules: Rules, tally: Arc<Tally>) -> Self {
        Self { rules, tally, phase: Phase::Closed, epoch: 0, running: 0, reopened: 0 }
    }

    /// Where it stands. An open breaker whose time is over is open until somebody takes the first probe.
    pub fn position(&self) -> Position {
        match self.phase {
            Phase::Closed => Position::Closed,
            Phase::Open { .. } => Position::Open,
            Phase::HalfOpen { .. } => Position::HalfOpen,
        }
    }

    /// Between which transitions it is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Probes under way.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Until when it is open.
    pub fn open_until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } => Some(until),
            Phase::Closed | Phase::HalfOpen { .. } => None,
        }
    }

    /// Takes other numbers. An open breaker stays open, no longer than they allow.
    pub fn update(&mut self, now: Instant, rules: Rules) {
        self.rules = rules;
        self.tally.set_window(rules.error_rate.map(|rate| rate.window));
        if let Phase::Open { until } = &mut self.phase {
            *until = (*until).min(now + rules.max_open_for);
        }
    }

    /// Whether a request could go on now. Takes nothing.
    pub fn look(&self, now: Instant) -> Result<(), OpenFor> {
        match self.phase {
            Phase::Closed => Ok(()),
            Phase::Open { until } if now < until => Err(OpenFor(until - now)),
            Phase::Open { .. } | Phase::HalfOpen { .. } if self.running < self.rules.probes => Ok(()),
            Phase::Open { .. } | Phase::HalfOpen { .. } => Err(OpenFor(PROBE_WAIT)),
        }
    }

    /// Leave for a request, and the transition that it made: the first probe makes an open breaker half-open.
    pub fn take(&mut self, now: Instant) -> Result<(Pass, Option<Change>), OpenFor> {
        self.look(now)?;
        let change = match self.phase {
            Phase::Closed => return Ok((Pass::closed(self.epoch), None)),
            Phase::HalfOpen { .. } => None,
            Phase::Open { .. } => Some(self.go(Phase::HalfOpen { succeeded: 0 }, Reason::TimeIsOver)),
        };
        self.running += 1;
        Ok((Pass { epoch: self.epoch, probe: true }, change))
    }

    /// A request succeeded.
    pub fn on_success(&mut self, pass: &Pass, now: Instant) -> Option<Change> {
        self.give_back(pass);
        if pass.epoch != self.epoch {
            return None;
        }
        match &mut self.phase {
            Phase::Closed => {
                self.tally.success(now);
                None
            }
            Phase::HalfOpen { succeeded } => {
                *succeeded += 1;
                (*succeeded >= self.rules.successes).then(|| self.close(Reason::ProbesSucceeded))
            }
            Phase::Open { .. } => None,
        }
    }

    /// A request failed; `retry_after` is what the provider asked for.
    pub fn on_failure(&mut self, pass: &Pass, now: Instant, retry_after: Option<Duration>) -> Option<Change> {
        self.give_back(pass);
        let tally = self.tally.clone();
        self.failed(pass.epoch, now, retry_after, |now| tally.failure(now))
    }

    /// The body of an answer that began in `epoch` and was counted as a success broke off.
    pub fn on_broken(&mut self, epoch: u64, now: Instant) -> Option<Change> {
        let tally = self.tally.clone();
        self.failed(epoch, now, None, |now| tally.turned(now))
    }

    /// A request ended in a way that says nothing about the provider.
    pub fn on_nothing(&mut self, pass: &Pass) {
        self.give_back(pass);
    }

    /// Starts anew, after it was forced. What is under way counts for nothing.
    pub fn release(&mut self) -> Option<Change> {
        match self.phase {
            Phase::Closed => {
                self.close(Reason::Released);
                None
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => Some(self.close(Reason::Released)),
        }
    }

    fn give_back(&mut self, pass: &Pass) {
        if pass.probe {
            self.running = self.running.saturating_sub(1);
        }
    }

    fn failed(
        &mut self,
        epoch: u64,
        now: Instant,
        retry_after: Option<Duration>,
        count: impl FnOnce(Instant) -> u32,
    ) -> Option<Change> {
        if epoch != self.epoch {
            return None;
        }
        match self.phase {
            Phase::Closed => {
                let row = count(now);
                let reason = self.tripped(row, now)?;
                Some(self.open(now, reason, retry_after))
            }
            Phase::HalfOpen { .. } => {
                self.reopened = self.reopened.saturating_add(1);
                Some(self.open(now, Reason::ProbeFailed, retry_after))
            }
            Phase::Open { .. } => None,
        }
    }

    /// Judged at each failure, never at a success: a success alone is no reason to open.
    fn tripped(&self, row: u32, now: Instant) -> Option<Reason> {
        if row >= self.rules.failures {
            return Some(Reason::FailuresInARow);
        }
        let rate = self.rules.error_rate?;
        let (failed, all) = self.tally.window(now);
        let enough = all >= u64::from(rate.min_requests);
        let high = failed.saturating_mul(1_000_000) >= all.saturating_mul(rate.threshold.millionths().into());
        (enough && high).then_some(Reason::ErrorRate)
    }

    fn open(&mut self, now: Instant, reason: Reason, retry_after: Option<Duration>) -> Change {
        let doubled = self.rules.open_for.saturating_mul(1 << self.reopened.min(31));
        let wanted = retry_after.map_or(doubled, |asked| asked.max(SHORTEST_ASKED));
        let open_for = wanted.min(self.rules.max_open_for);
        let change = self.go(Phase::Open { until: now + open_for }, reason);
        Change { open_for: Some(open_for), ..change }
    }

    fn close(&mut self, reason: Reason) -> Change {
        self.reopened = 0;
        self.go(Phase::Closed, reason)
    }

    fn go(&mut self, to: Phase, reason: Reason) -> Change {
        let from = self.position();
        self.phase = to;
        self.epoch += 1;
        self.tally.clear();
        Change { from, to: self.position(), reason, open_for: None }
    }
}
