//! The rate of a provider that tells nothing but "too many" (Slack: 429 and `Retry-After`; Stripe: 429 alone).
//!
//! What such a provider allows is learned from its first refusal: how many requests it answered since the last pause
//! ended, and how long the window must be. From then on no window of that length holds more than that number, so the
//! provider need not refuse again.
//!
//! - **Number**: the requests of the run that were answered, also those whose answers came after the refusal.
//! - **Window**: from the run's first request to the end of the wait that the provider named (which it rounded up to a
//!   second), or, where it named none, to some time between the last refusal and the first success. Within that doubt a
//!   length that people choose (a second, a minute, ten seconds ...) is taken, else a whole second, else the longest.
//! - **Doubt**: a first run may have begun in one window of the provider's and ended in the next; then no more than half of
//!   what was answered is sure. For one window, what goes beyond that half is sent one at a time, so that a number that is
//!   too high costs one refusal and not a burst of them.
//! - **Long runs** (a minute, and ten times the wait) say nothing of one window: only the pause is kept, and the next run,
//!   which begins when the pause ends, is measured.
//! - **Again refused** though the number was kept: within two windows the new run is a better measure (the first may have
//!   begun in the middle of the provider's window) if it is slower; otherwise an eighth less.
//! - **Upwards**: a thirty-second more after five minutes without a refusal in which the number did hold requests back;
//!   twice as long after each refusal that follows such a step, up to eight hours.
//!
//! Limits: a sliding window is kept from when answers came, because by then the provider had counted the request; times are
//! kept in 64 pieces of the window. Other users of the same credential are not seen, and show as further refusals. A token
//! bucket shows as its burst first and as its rate after the second refusal.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Into how many pieces a window is divided.
const PIECES: u32 = 64;
/// Pieces into which a past run is spread.
const SPREAD: u32 = 16;
/// How long it must be quiet before more is tried, and the most that this doubles to.
const QUIET: Duration = Duration::from_secs(300);
const LONGEST_QUIET: Duration = Duration::from_secs(8 * 3600);
/// A run that is longer, and ten times longer than the wait, says nothing of one window.
const LONG_RUN: Duration = Duration::from_secs(60);
/// The shortest and the longest window.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(86_400);

/// Window lengths in seconds that providers choose, the most usual first.
const USUAL: [u64; 14] = [60, 1, 10, 3600, 5, 30, 2, 15, 300, 600, 900, 20, 120, 86_400];

/// The requests between two pauses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    /// When the first of them was sent.
    pub(super) started: Option<Instant>,
    /// How many were answered, and not refused for their number.
    pub(super) answered: u32,
}

/// A run that a refusal ended, until it is known when the provider answers again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// The run. Answers to what was on its way are still added.
    pub(super) run: Run,
    /// Which run it was.
    pub(super) epoch: u32,
    /// When it was refused first, and last.
    refused: Instant,
    last_refused: Instant,
    /// When the provider said that the window ends.
    named_end: Option<Instant>,
}

impl Ended {
    /// A run that ends with a refusal now.
    pub(super) fn new(run: Run, epoch: u32, now: Instant, wait: Option<Duration>) -> Self {
        Self { run, epoch, refused: now, last_refused: now, named_end: wait.map(|wait| now + wait) }
    }

    /// Refused once more, before anything was answered.
    pub(super) fn refused_again(&mut self, now: Instant, wait: Option<Duration>) {
        self.last_refused = now;
        self.named_end = wait.map(|wait| now + wait).max(self.named_end);
    }

    /// Whether the run was no longer than about one window.
    fn is_short(&self) -> bool {
        let wait = self.named_end.map_or(Duration::ZERO, |end| end - self.last_refused);
        self.run.started.is_some_and(|started| self.refused - started <= (wait * 10).max(LONG_RUN))
    }

    /// Whether the run may have begun before the provider's window did. One that began when a pause ended did not.
    fn may_span_two(&self, window: Duration) -> bool {
        let begins = self.named_end.and_then(|end| end.checked_sub(window));
        self.epoch == 0 && begins.is_none_or(|begins| self.run.started.is_some_and(|at| begins > at))
    }

    /// The window's length, as it is known at the first success.
    fn window(&self, now: Instant) -> Option<Duration> {
        let started = self.run.started?;
        let second = Duration::from_secs(1);
        let (least, most) = match self.named_end {
            Some(end) => ((end - started).saturating_sub(second), end - started),
            None => (self.last_refused - started, now - started),
        };
        // A run that began when a pause ended began up to a second after the provider's window: waits are rounded up.
        let late = if self.epoch > 0 { second } else { Duration::ZERO };
        let usual = USUAL.into_iter().map(Duration::from_secs);
        let chosen = usual.into_iter().find(|usual| *usual > least && *usual <= most + late);
        // Where the doubt is a second, windows are whole seconds.
        let whole = Duration::from_secs(most.as_secs());
        let whole = self.named_end.map(|_| whole).filter(|whole| *whole > least);
        Some(chosen.or(whole).unwrap_or(most + late).clamp(SHORTEST, LONGEST))
    }
}

/// A learned rate and what was used of it.
#[derive(Debug)]
pub(super) struct LearnedRate {
    allowed: u32,
    window: Duration,
    /// Answered requests: when the last of a piece was answered, when the piece began, how many.
    used: VecDeque<(Instant, Instant, u32)>,
    sum: u32,
    /// What is sure, and until when the rest is sent one at a time.
    doubt: Option<(u32, Instant)>,
    /// Since when nothing was refused, and how long that must last before more is tried.
    quiet_since: Instant,
    quiet_for: Duration,
    /// The number did hold requests back since then.
    held: bool,
    /// More was tried, and nothing has been refused since.
    raised: bool,
}

impl LearnedRate {
    /// The rate after a run that was refused, at the first success after it.
    pub(super) fn learn(before: Option<Self>, ended: &Ended, now: Instant) -> Option<Self> {
        let Some((window, started)) = ended.window(now).zip(ended.run.started) else { return before };
        let answered = ended.run.answered;
        let Some(mut before) = before else {
            // Refused before anything was answered, or after a long run: nothing is known of the number. The next run
            // begins when the pause ends, and is a better measure.
            return (answered > 0 && ended.is_short()).then(|| Self {
                doubt: ended.may_span_two(window).then(|| (answered.div_ceil(2), now + window)),
                ..Self::new(answered, window, started, ended.refused, now)
            });
        };
        let run = ended.refused - started;
        let slower = f64::from(answered.max(1)) / window.as_secs_f64()
            < 0.98 * f64::from(before.allowed) / before.window.as_secs_f64();
        if run <= before.window * 2 && slower && answered > 0 {
            return Some(Self::new(answered, window, started, ended.refused, now));
        }
        before.lower(now);
        Some(before)
    }

    fn new(allowed: u32, window: Duration, started: Instant, refused: Instant, now: Instant) -> Self {
        let mut rate = Self {
            allowed,
            window,
            used: VecDeque::new(),
            sum: 0,
            doubt: None,
            quiet_since: now,
            quiet_for: QUIET,
            held: false,
            raised: false,
        };
        // When each of them was answered is not known any more: evenly, over the run.
        let pieces = allowed.min(SPREAD);
        for piece in 0..pieces {
            let at = started + (refused - started) * (piece + 1) / pieces;
            let share =
                |pieces_before: u32| u64::from(allowed) * u64::from(pieces_before) / u64::from(pieces);
            let count = u32::try_from(share(piece + 1) - share(piece)).unwrap_or(allowed);
            rate.used.push_back((at, at, count));
        }
        rate.sum = allowed;
        rate
    }

    fn lower(&mut self, now: Instant) {
        self.allowed = (self.allowed - self.allowed.div_ceil(8)).max(1);
        if self.raised {
            self.quiet_for = (self.quiet_for * 2).min(LONGEST_QUIET);
        }
        (self.quiet_since, self.held, self.raised) = (now, false, false);
    }

    /// How many, and in which time.
    pub(super) fn rate(&self) -> (u32, Duration) {
        (self.allowed, self.window)
    }

    /// How many are left now.
    pub(super) fn left(&mut self, now: Instant, on_the_way: u32) -> u32 {
        self.expire(now);
        self.allowed.saturating_sub(self.sum).saturating_sub(on_the_way)
    }

    /// Whether another may be sent; if not, when one of those that were answered leaves the window.
    pub(super) fn gate(&mut self, now: Instant, on_the_way: u32) -> Result<(), Option<Instant>> {
        if self.left(now, on_the_way) > 0 {
            return if self.is_doubtful(now, on_the_way) { Err(None) } else { Ok(()) };
        }
        self.held = true;
        Err(self.used.front().map(|(last, _, _)| *last + self.window))
    }

    /// Whether the next one may be too many, and another is on its way that will tell.
    fn is_doubtful(&mut self, now: Instant, on_the_way: u32) -> bool {
        self.doubt = self.doubt.filter(|(_, until)| now < *until);
        on_the_way > 0 && self.doubt.is_some_and(|(sure, _)| self.sum.saturating_add(on_the_way) >= sure)
    }

    /// A request was answered, or may have been counted without an answer.
    pub(super) fn answered(&mut self, now: Instant) {
        self.expire(now);
        let piece = self.window / PIECES;
        self.sum = self.sum.saturating_add(1);
        match self.used.back_mut() {
            Some((last, began, count)) if now < *began + piece => {
                *last = now;
                *count = count.saturating_add(1);
            }
            _ => self.used.push_back((now, now, 1)),
        }
        if now >= self.quiet_since + self.quiet_for {
            if self.held {
                self.allowed = self.allowed.saturating_add((self.allowed / 32).max(1));
                self.raised = true;
            }
            (self.quiet_since, self.held) = (now, false);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some((last, _, count)) = self.used.front() {
            if *last + self.window > now {
                break;
            }
            self.sum = self.sum.saturating_sub(*count);
            self.used.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// A run of `answered` from 0 to `refused`, with what the provider named, first answered again at `success`.
    fn learned(answered: u32, refused: f64, wait: Option<f64>, success: f64) -> (u32, f64) {
        let start = Instant::now();
        let run = Run { started: Some(start), answered };
        let ended = Ended::new(run, 0, start + secs(refused), wait.map(secs));
        let rate = LearnedRate::learn(None, &ended, start + secs(success)).unwrap();
        (rate.allowed, rate.window.as_secs_f64())
    }

    #[test]
    fn number_and_window_are_learned_from_one_refusal() {
        // Slack: a minute, refused after six seconds, the wait rounded up.
        assert_eq!(learned(50, 6.2, Some(54.0), 60.3), (50, 60.0));
        assert_eq!(learned(5, 0.5, Some(5.0), 5.6), (5, 5.0));
        // A window that few choose is a whole number of seconds.
        assert_eq!(learned(5, 0.5, Some(7.0), 7.6), (5, 7.0));
        // Stripe: no wait; refused at 0.1, asked again after a second.
        assert_eq!(learned(25, 0.1, None, 1.1), (25, 1.0));
    }

    #[test]
    fn beyond_what_is_sure_one_at_a_time_for_one_window() {
        let start = Instant::now();
        // Windows of five seconds; the run began 0.3 s before one ended, or when it began.
        for (epoch, refused, wait, doubtful) in
            [(0, 0.8, 5.0, true), (1, 0.8, 5.0, false), (0, 0.5, 4.5, false), (0, 0.0, 5.0, false)]
        {
            let run = Run { started: Some(start), answered: 10 };
            let ended = Ended::new(run, epoch, start + secs(refused), Some(secs(wait)));
            let now = start + secs(6.0);
            let mut rate = LearnedRate::learn(None, &ended, now).unwrap();
            assert_eq!(rate.rate(), (10, secs(5.0)));
            assert_eq!(rate.gate(now, 4), Ok(()));
            assert_eq!(rate.gate(now, 5).is_err(), doubtful, "{epoch} {refused} {wait}");
            (0..5).for_each(|_| rate.answered(now));
            assert_eq!(rate.gate(now, 0), Ok(()));
            assert_eq!(rate.gate(now, 1) == Err(None), doubtful);
            assert_eq!(rate.gate(now + secs(5.0), 9), Ok(()), "after one window");
        }
    }

    #[test]
    fn each_refusal_of_the_one_that_asks_narrows_the_window() {
        let start = Instant::now();
        let run = Run { started: Some(start), answered: 9 };
        let mut ended = Ended::new(run, 0, start + secs(0.1), None);
        for at in [1.1, 3.1, 7.1] {
            ended.refused_again(start + secs(at), None);
        }
        assert_eq!(ended.window(start + secs(15.1)), Some(secs(10.0)));
        assert_eq!(ended.window(start + secs(8.0)), Some(secs(8.0) - Duration::ZERO));
    }

    #[test]
    fn no_window_holds_more_than_the_number() {
        let start = Instant::now();
        let run = Run { started: Some(start), answered: 10 };
        let ended = Ended::new(run, 0, start + secs(1.0), Some(secs(9.0)));
        let mut now = start + secs(10.0);
        let mut rate = LearnedRate::learn(None, &ended, now).unwrap();
        let mut sent: Vec<Instant> = (1..=10).map(|i| start + secs(0.1) * i).collect();
        while now < start + secs(60.0) {
            match rate.gate(now, 0) {
                Ok(()) => {
                    rate.answered(now);
                    sent.push(now);
                }
                Err(at) => now = at.unwrap(),
            }
        }
        for (place, at) in sent.iter().enumerate() {
            let within = sent[place..].iter().take_while(|other| **other < *at + secs(10.0)).count();
            assert!(within <= 10, "{within} from {:?}", *at - start);
        }
        assert!(sent.len() >= 58, "{}", sent.len());
    }

    #[test]
    fn a_rate_that_was_wrong_is_learned_anew_and_one_that_changed_goes_down() {
        let start = Instant::now();
        let run = Run { started: Some(start), answered: 10 };
        // The first run began in the middle of a minute: ten seconds were left of it.
        let first = Ended::new(run, 0, start + secs(0.5), Some(secs(9.5)));
        let rate = LearnedRate::learn(None, &first, start + secs(10.0));
        assert_eq!(rate.as_ref().unwrap().rate(), (10, secs(10.0)));
        let run = Run { started: Some(start + secs(10.0)), answered: 10 };
        let second = Ended::new(run, 1, start + secs(20.0), Some(secs(50.0)));
        let rate = LearnedRate::learn(rate, &second, start + secs(70.0));
        assert_eq!(rate.as_ref().unwrap().rate(), (10, secs(60.0)));
        let run = Run { started: Some(start + secs(70.0)), answered: 900 };
        let third = Ended::new(run, 2, start + secs(5000.0), Some(secs(50.0)));
        let rate = LearnedRate::learn(rate, &third, start + secs(5050.0));
        assert_eq!(rate.unwrap().rate(), (8, secs(60.0)));
    }

    #[test]
    fn more_is_tried_only_after_a_long_quiet_time_in_which_it_was_needed() {
        let start = Instant::now();
        let ended =
            Ended::new(Run { started: Some(start), answered: 64 }, 0, start + secs(0.1), Some(secs(0.9)));
        let mut rate = LearnedRate::learn(None, &ended, start + secs(1.0)).unwrap();
        rate.answered(start + secs(310.0));
        assert_eq!(rate.allowed, 64, "nothing was held back");
        assert!(rate.gate(start + secs(400.0), 64).is_err());
        rate.answered(start + secs(620.0));
        assert_eq!(rate.allowed, 66);
        rate.lower(start + secs(621.0));
        assert_eq!((rate.allowed, rate.quiet_for), (57, QUIET * 2));
    }

    #[test]
    fn nothing_is_learned_from_a_refusal_without_an_answer() {
        let start = Instant::now();
        let ended = Ended::new(Run { started: Some(start), answered: 0 }, 0, start, None);
        assert!(LearnedRate::learn(None, &ended, start + secs(1.0)).is_none());
        // Nor from one after a long time of little use.
        let run = Run { started: Some(start), answered: u32::MAX };
        let ended = Ended::new(run, 0, start + secs(7200.0), Some(secs(5.0)));
        assert!(LearnedRate::learn(None, &ended, start + secs(7205.0)).is_none());
        let ended = Ended::new(Run::default(), 0, start, None);
        assert!(LearnedRate::learn(None, &ended, start + secs(1.0)).is_none());
    }
}
