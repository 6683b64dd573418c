//! All that is known of one key (credential, tenant, bucket), and whether a request under it may be sent now.
//!
//! Pure: the time is an argument, and nothing here waits. A request that is let through gets a [`Pass`], which comes back
//! exactly once: with the answer, or as lost.

use std::time::Duration;

use tokio::time::Instant;

use super::config::ReserveConfig;
use super::fields::Readings;
use super::learned_rate::{Ended, LearnedRate, Run};
use super::meter::{Gate, Meter};
use crate::resilience::verdict::{Class, Verdict};

/// Meters of one key.
const MOST_METERS: usize = 8;
/// The first pause after a refusal that names no wait, and the longest that it doubles to.
const BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Answers after which a key is open though a meter is still not known: they do not tell it any more.
const ENOUGH_ANSWERS: u32 = 3;
/// How long a learned rate, or that the key was refused, is kept without use.
const KEEP: Duration = Duration::from_secs(3600);

/// What a key says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It may be sent.
    Go,
    /// It may not be sent now.
    Hold {
        /// When to ask again at the latest; none: when an answer comes.
        until: Option<Instant>,
        /// Nothing that may happen makes it sooner.
        certain: bool,
    },
}

/// A request that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    seq: u64,
    epoch: u32,
    probe: Option<u32>,
    recalls: u32,
}

impl Pass {
    /// Its number: passes are given in this order.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// How often passes had been called back when this one was given.
    pub(super) fn recalls(&self) -> u32 {
        self.recalls
    }
}

/// An answer as the quota sees it.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) verdict: Verdict,
    pub(super) readings: Readings<'a>,
    pub(super) max_hold: Duration,
}

/// What an answer led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Learned {
    /// The key pauses for so long from now: to be told to the other instances.
    pub(super) paused: Option<Duration>,
    /// A wait that was cut.
    pub(super) absurd: u32,
}

/// After a pause, or a window that was used up, one asks first; one more each second, so that a slow answer does not hold
/// the rest for long.
#[derive(Clone, Copy, Debug)]
struct Probing {
    id: u32,
    since: Instant,
    out: u32,
    answers: u32,
}

/// The state of one key.
#[derive(Debug)]
pub(super) struct KeyState {
    meters: Vec<Meter>,
    rate: Option<Box<LearnedRate>>,
    run: Run,
    ended: Option<Box<Ended>>,
    paused_until: Option<Instant>,
    probing: Option<Probing>,
    /// Refusals in a row.
    strikes: u32,
    /// Counts the pauses: an answer to a request from before one tells nothing new.
    epoch: u32,
    /// Counts how often those that were let through, and are not sent yet, were called back.
    recalls: u32,
    probes: u32,
    seq: u64,
    on_the_way: u32,
    used_at: Instant,
}

impl KeyState {
    /// Nothing is known.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            meters: Vec::new(),
            rate: None,
            run: Run::default(),
            ended: None,
            paused_until: None,
            probing: None,
            strikes: 0,
            epoch: 0,
            recalls: 0,
            probes: 0,
            seq: 0,
            on_the_way: 0,
            used_at: now,
        }
    }

    /// Whether a request may be sent now.
    pub(super) fn decide(&mut self, now: Instant, reserve: ReserveConfig) -> Decision {
        if let Some(until) = self.paused_until {
            if until > now {
                return Decision::Hold { until: Some(until), certain: true };
            }
            self.paused_until = None;
            self.probe(now);
        }
        let (seq, mut unknown) = (self.seq, false);
        let mut decision = Decision::Go;
        for meter in &mut self.meters {
            let was_unknown = meter.is_unknown();
            let gate = meter.gate(now, seq, reserve);
            unknown |= meter.is_unknown() && !was_unknown;
            decision = decision.and(match gate {
                Gate::Open => Decision::Go,
                Gate::Until(at) => Decision::Hold { until: Some(at), certain: true },
                Gate::Answers(at) => Decision::Hold { until: at, certain: false },
            });
        }
        if unknown && self.probing.is_none() {
            self.probe(now);
        }
        decision.and(self.of_rate(now)).and(self.of_probing(now))
    }

    /// A rate is learned only where no meter is told.
    fn of_rate(&mut self, now: Instant) -> Decision {
        let on_the_way = self.on_the_way;
        let rate = self.rate.as_mut().filter(|_| self.meters.is_empty());
        match rate.map(|rate| rate.gate(now, on_the_way)) {
            None | Some(Ok(())) => Decision::Go,
            Some(Err(until)) => Decision::Hold { until, certain: on_the_way == 0 },
        }
    }

    fn of_probing(&self, now: Instant) -> Decision {
        let Some(probing) = self.probing else { return Decision::Go };
        let seconds = (now - probing.since).as_secs();
        // What is on its way from before says how it stands too, and may take what came back.
        let alone = seconds > 0 || self.on_the_way == probing.out;
        let allowed = 1 + seconds;
        if alone && u64::from(probing.out) < allowed {
            return Decision::Go;
        }
        let until = probing.since + Duration::from_secs(allowed);
        Decision::Hold { until: Some(until), certain: false }
    }

    fn probe(&mut self, now: Instant) {
        self.probes = self.probes.wrapping_add(1);
        self.probing = Some(Probing { id: self.probes, since: now, out: 0, answers: 0 });
    }

    /// Lets a request through, whatever [`KeyState::decide`] says.
    pub(super) fn pass(&mut self, now: Instant) -> Pass {
        let seq = self.seq;
        self.seq += 1;
        self.used_at = now;
        self.on_the_way = self.on_the_way.saturating_add(1);
        self.run.started.get_or_insert(now);
        self.meters.iter_mut().for_each(Meter::sent);
        let probe = self.probing.as_mut().map(|probing| {
            probing.out = probing.out.saturating_add(1);
            probing.id
        });
        Pass { seq, epoch: self.epoch, probe, recalls: self.recalls }
    }

    /// A request that got no answer; `counted`: the provider may have counted it.
    pub(super) fn lost(&mut self, now: Instant, pass: Pass, counted: bool) {
        self.back(now, pass, counted);
        if counted && let Some(rate) = &mut self.rate {
            rate.answered(now);
        }
    }

    fn back(&mut self, now: Instant, pass: Pass, counted: bool) {
        self.used_at = now;
        self.on_the_way = self.on_the_way.saturating_sub(1);
        self.meters.iter_mut().for_each(|meter| meter.back(pass.seq, counted));
        if let Some(probing) = self.probing.as_mut().filter(|probing| pass.probe == Some(probing.id)) {
            probing.out = probing.out.saturating_sub(1);
        }
    }

    /// A request was answered.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        pass: Pass,
        answer: &Answer<'_>,
        reserve: ReserveConfig,
    ) -> Learned {
        self.back(now, pass, false);
        let cut = self.told(now, pass, answer, reserve);
        let learned = match answer.verdict.class {
            Class::Throttle | Class::Quota => self.refused(now, pass, answer),
            // Refused for another reason than its number, and not counted.
            Class::Concurrency => Learned::default(),
            _ => {
                self.let_in(now, pass);
                Learned::default()
            }
        };
        Learned { absurd: learned.absurd + cut, ..learned }
    }

    /// The meters learn. Returns of how many new ones the reserve is above the limit, and how many told what cannot be meant.
    fn told(&mut self, now: Instant, pass: Pass, answer: &Answer<'_>, reserve: ReserveConfig) -> u32 {
        let mut absurd = 0;
        let known = self.meters.iter().filter(|meter| !meter.is_unknown()).count();
        for reading in &answer.readings.list {
            if let Some(meter) = self.meters.iter_mut().find(|meter| **meter.name() == *reading.name) {
                // Ends the window if it has passed, before what is told of the next one counts.
                meter.gate(now, self.seq, reserve);
                absurd += u32::from(meter.told(reading, now, pass.seq, self.seq));
            } else if self.meters.len() < MOST_METERS {
                let meter = Meter::new(reading, now, pass.seq, self.seq, self.on_the_way);
                absurd += u32::from(meter.is_reserve_absurd(reserve));
                // Most keys have one; there may be many keys.
                self.meters.reserve_exact(1);
                self.meters.push(meter);
            }
        }
        // A window ended, and this answer is of the one before.
        if self.meters.iter().filter(|meter| !meter.is_unknown()).count() < known && self.probing.is_none() {
            self.probe(now);
        }
        if self.meters.iter().any(|meter| meter.is_overdrawn(now, reserve)) {
            self.recall();
        }
        absurd
    }

    /// Those that were let through and are not sent yet have to ask again.
    fn recall(&mut self) {
        self.recalls = self.recalls.wrapping_add(1);
    }

    /// How often passes were called back.
    pub(super) fn recalls(&self) -> u32 {
        self.recalls
    }

    /// The provider answered, so it counted the request and did not refuse it for its number.
    fn let_in(&mut self, now: Instant, pass: Pass) {
        if let Some(ended) = self.ended.as_mut().filter(|ended| ended.epoch == pass.epoch) {
            ended.run.answered = ended.run.answered.saturating_add(1);
        }
        if pass.epoch != self.epoch {
            return;
        }
        self.run.answered = self.run.answered.saturating_add(1);
        self.strikes = 0;
        if let Some(ended) = self.ended.take() {
            self.rate = LearnedRate::learn(self.rate.take().map(|rate| *rate), &ended, now).map(Box::new);
        }
        if let Some(rate) = &mut self.rate {
            rate.answered(now);
        }
        let unknown = self.meters.iter().any(Meter::is_unknown);
        if let Some(probing) = &mut self.probing {
            // Answers to those that were on their way before do not count.
            probing.answers += u32::from(pass.probe == Some(probing.id));
            if !unknown || probing.answers >= ENOUGH_ANSWERS {
                self.probing = None;
            }
        }
    }

    /// The provider refused: the key pauses. Those that were on their way with the first are part of the same refusal.
    fn refused(&mut self, now: Instant, pass: Pass, answer: &Answer<'_>) -> Learned {
        // A wait of nothing is one that was rounded down.
        let told = answer.verdict.wait.filter(|wait| !wait.is_zero());
        let absurd = u32::from(told.is_some_and(|wait| wait > answer.max_hold));
        let wait = told.map(|wait| wait.min(answer.max_hold));
        if pass.epoch != self.epoch || self.paused_for(now).is_some() {
            if let (Some(ended), Some(_)) =
                (self.ended.as_mut().filter(|ended| ended.epoch == pass.epoch), wait)
            {
                ended.refused_again(now, wait);
            }
            if let Some(wait) = wait {
                self.paused_until = Some(self.paused_until.unwrap_or(now).max(now + wait));
            }
            return Learned { paused: None, absurd };
        }
        self.strikes = self.strikes.saturating_add(1);
        let pause = wait.or_else(|| self.used_up_for(now)).unwrap_or_else(|| self.backoff());
        let pause = pause.min(answer.max_hold);
        self.end_run(now, wait);
        self.pause(now, pause);
        Learned { paused: Some(pause), absurd }
    }

    /// 1 s, 2 s, 4 s ... 60 s; where a rate is known, no less than its window.
    fn backoff(&self) -> Duration {
        let doubled = BACKOFF.saturating_mul(1 << self.strikes.saturating_sub(1).min(10));
        let window = self.rate.as_ref().map_or(Duration::ZERO, |rate| rate.rate().1);
        doubled.max(window).min(LONGEST_BACKOFF)
    }

    /// How long until every meter that is used up has more, where one is.
    fn used_up_for(&self, now: Instant) -> Option<Duration> {
        let used_up = self.meters.iter().filter(|meter| meter.left(now) == Some(0));
        used_up.filter_map(Meter::reset_at).max().map(|at| at - now).filter(|wait| !wait.is_zero())
    }

    fn end_run(&mut self, now: Instant, wait: Option<Duration>) {
        let run = std::mem::take(&mut self.run);
        match &mut self.ended {
            Some(ended) if run.answered == 0 => {
                ended.refused_again(now, wait);
                // What is on its way belongs to the run that asks, not to the one that ended.
            }
            _ => self.ended = Some(Box::new(Ended::new(run, self.epoch, now, wait))),
        }
    }

    /// Pauses the key; a longer pause stays.
    pub(super) fn pause(&mut self, now: Instant, pause: Duration) {
        self.epoch = self.epoch.wrapping_add(1);
        self.recall();
        self.probing = None;
        self.run = Run::default();
        self.paused_until = Some(self.paused_until.unwrap_or(now).max(now + pause));
    }

    /// Whether a request was let through before the latest pause.
    pub(super) fn is_from_before(&self, pass: Pass) -> bool {
        pass.epoch != self.epoch
    }

    /// Whether nothing is known that counts for a later request.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.on_the_way == 0
            && self.paused_until.is_none_or(|until| until <= now)
            && self.meters.iter().all(|meter| meter.is_over(now))
            && (self.rate.is_none() && self.strikes == 0 || now >= self.used_at + KEEP)
    }

    /// How much would be lost if it were forgotten for want of room; nothing where requests are on their way.
    pub(super) fn worth(&self, now: Instant) -> Option<u8> {
        let held =
            self.paused_for(now).is_some() || self.meters.iter().any(|meter| meter.left(now) == Some(0));
        (self.on_the_way == 0).then_some(if held { 2 } else { u8::from(self.rate.is_some()) })
    }

    /// For how long it is paused.
    pub(super) fn paused_for(&self, now: Instant) -> Option<Duration> {
        self.paused_until.map(|until| until - now).filter(|pause| !pause.is_zero())
    }

    /// The meters as they are.
    pub(super) fn meters(&self) -> &[Meter] {
        &self.meters
    }

    /// The rate as learned, where no meter is told: how many, in which time, how many are left.
    pub(super) fn rate(&mut self, now: Instant) -> Option<(u32, Duration, u32)> {
        let on_the_way = self.on_the_way;
        let rate = self.rate.as_mut().filter(|_| self.meters.is_empty())?;
        let (allowed, window) = rate.rate();
        Some((allowed, window, rate.left(now, on_the_way)))
    }
}

impl Decision {
    /// Both must let it go.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Go, decision) | (decision, Self::Go) => decision,
            (Self::Hold { until, certain }, Self::Hold { until: other, certain: other_certain }) => {
                // An answer can only end the uncertain part; the certain one stays.
                let sure = |certain: bool, until: Option<Instant>| until.filter(|_| certain);
                let least = sure(certain, until).max(sure(other_certain, other));
                match least {
                    Some(least) => Self::Hold { until: Some(least), certain: true },
                    None => Self::Hold { until: until.into_iter().chain(other).min(), certain: false },
                }
            }
        }
    }
}
