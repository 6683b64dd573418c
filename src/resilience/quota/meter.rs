//! One thing that a provider counts, as its answers tell it: how many are left, and until when.
//!
//! Pure: the time is an argument. Three kinds of origins tell the same fields and mean different things:
//!
//! - **Fixed window**: all come back at the reset. Answers come back in any order, so within a window the least that any of
//!   them said counts, and a window is over only when its reset has passed.
//! - **Sliding window**: at the reset some come back. So nothing is taken for granted after a reset: one request asks first,
//!   until the meter has been seen full after a reset; from then on that is relied upon.
//! - **Token bucket**, whose reset is when it will be full (OpenAI): the reset moves with each request, and what is left
//!   grows with time. It is known by the time per used unit, which stays the same while the number used doubles; then what
//!   comes back meanwhile is counted, and no reset is waited for.
//!
//! Where a provider never tells the limit, the most that it ever told as left stands in for it: a window begins with all of it.
//!
//! A reset is taken at its latest: providers round to seconds, some up and some down, and one asked too early answers 429.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::config::ReserveConfig;
use super::fields::Reading;

/// What two readings of one reset may differ by, besides their step: the way back of the answer.
const TOLERANCE: Duration = Duration::from_millis(250);

/// How often the number used must double, and the time per unit stay, until it is a token bucket.
const VOTES: u8 = 3;

/// What is left does not become so much less from one window to the next: the number before was none.
const MOST_FALL: u64 = 100;

/// What a meter says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// It may pass.
    Open,
    /// Not before this.
    Until(Instant),
    /// What is left is on its way already: an answer may say more, or the window ends.
    Answers(Option<Instant>),
}

/// What is known of the window after one that was used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Full again, as far as is known.
    Whole,
    /// Not known, or not full.
    Asks,
}

/// One meter.
#[derive(Debug)]
pub(super) struct Meter {
    name: Arc<str>,
    /// What is left; none: unknown since the window ended, one request asks.
    remaining: Option<u64>,
    limit: Option<u64>,
    /// The most that was told as left; less where windows were seen to begin with less ([`Meter::lower`]).
    most: u64,
    /// The reserve that held the window which ended last.
    low: u64,
    /// The latest end of the window; none: it has passed, and no answer has come since.
    reset_at: Option<Instant>,
    /// The longest reset that was told: about the window's length.
    window: Duration,
    /// When what is left was told, and by the answer to which request.
    told_at: Instant,
    told_by: u64,
    /// The first request that was sent after that: only its answer is sure to know more.
    newer: u64,
    /// The least that was told by answers that may have been counted in any order, and the reset that came with it.
    least: Option<(u64, Instant)>,
    /// The first request of the window, and when it began. Earlier ones count against the one before.
    since: u64,
    since_at: Instant,
    /// Requests on their way, from the first that counts as such.
    out: u32,
    out_since: u64,
    /// What was left at the window's first answer, and how many were sent since: what a request costs.
    first: u64,
    sent: u64,
    cost: u64,
    trust: Trust,
    /// The next answer shows whether the window is whole; with how many sent before.
    test: bool,
    /// In this window the reset moved on.
    moves: bool,
    flow: Flow,
}

impl Meter {
    /// A meter that an answer told for the first time, with `out` other requests on their way.
    pub(super) fn new(reading: &Reading<'_>, now: Instant, seq: u64, next: u64, out: u32) -> Self {
        let mut meter = Self {
            name: reading.name.into(),
            remaining: None,
            limit: None,
            most: 0,
            low: 0,
            reset_at: None,
            window: Duration::ZERO,
            told_at: now,
            told_by: seq,
            newer: 0,
            least: None,
            since: 0,
            since_at: now,
            out,
            out_since: 0,
            first: 0,
            sent: 0,
            cost: 1,
            trust: Trust::Asks,
            test: false,
            moves: false,
            flow: Flow::default(),
        };
        meter.told(reading, now, seq, next);
        meter
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// Whether the window has passed and one request must ask what is left.
    pub(super) fn is_unknown(&self) -> bool {
        self.remaining.is_none()
    }

    /// What is left now, requests on their way not taken off; none = unknown.
    pub(super) fn left(&self, now: Instant) -> Option<u64> {
        let remaining = self.remaining?;
        let Some(unit) = self.flow.unit else { return Some(remaining) };
        let back = (now - self.told_at).as_nanos() / unit.as_nanos().max(1);
        let left = remaining.saturating_add(u64::try_from(back).unwrap_or(u64::MAX));
        Some(self.limit.map_or(left, |limit| left.min(limit)))
    }

    /// When the window is over at the latest.
    pub(super) fn reset_at(&self) -> Option<Instant> {
        self.reset_at
    }

    /// Whether it has nothing to say any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.reset_at.is_none_or(|at| at <= now)
    }

    /// Whether a request may pass. `next` is the number that it would have.
    pub(super) fn gate(&mut self, now: Instant, next: u64, reserve: ReserveConfig) -> Gate {
        self.turn(now, next, reserve);
        let (Some(left), reserve) = (self.left(now), self.reserve(reserve)) else { return Gate::Open };
        let on_the_way = u64::from(self.out).saturating_mul(self.cost);
        if left.saturating_sub(on_the_way) > reserve {
            return Gate::Open;
        }
        if let Some(unit) = self.flow.unit {
            let missing =
                (reserve + 1).saturating_add(on_the_way).saturating_sub(self.remaining.unwrap_or(left));
            let missing = u32::try_from(missing).unwrap_or(u32::MAX);
            let at = self.told_at + unit.saturating_mul(missing).min(self.window + unit);
            return if at <= now { Gate::Open } else { Gate::Until(at) };
        }
        match self.reset_at {
            Some(at) if left <= reserve => Gate::Until(at),
            at => Gate::Answers(at),
        }
    }

    /// Whether more are on their way than what is left allows: others used it up, or the provider told late.
    pub(super) fn is_overdrawn(&self, now: Instant, reserve: ReserveConfig) -> bool {
        let on_the_way = u64::from(self.out).saturating_mul(self.cost);
        self.left(now).is_some_and(|left| left < self.reserve(reserve).saturating_add(on_the_way))
    }

    /// The reserve in numbers; one that leaves nothing of the limit is cut, because it would hold for ever. A part is rounded
    /// up, so that a part of a small limit is something too.
    fn reserve(&self, reserve: ReserveConfig) -> u64 {
        let (reserve, whole) = match reserve {
            ReserveConfig::Count(count) => (count, self.limit),
            ReserveConfig::Share(share) => {
                let whole = self.limit.unwrap_or(self.most);
                let part = (u128::from(whole) * u128::from(share.millionths())).div_ceil(1_000_000);
                (u64::try_from(part).unwrap_or(whole), Some(whole))
            }
        };
        whole.map_or(reserve, |whole| reserve.min(whole.saturating_sub(1)))
    }

    /// Whether the reserve is so large that nothing of the limit would be used.
    pub(super) fn is_reserve_absurd(&self, reserve: ReserveConfig) -> bool {
        matches!((reserve, self.limit), (ReserveConfig::Count(count), Some(limit)) if count >= limit)
    }

    /// What one request takes on average: 1 where requests are counted, more where tokens or points are. All that were sent
    /// are taken as counted already, so that what is counted ahead of its answer does not look dear.
    fn learn_cost(&mut self) {
        let used = self.first.saturating_sub(self.remaining.unwrap_or(self.first));
        if self.sent > 0 && used > 0 {
            self.cost = used.div_ceil(self.sent).max(1);
        }
    }

    /// Ends the window if its reset has passed.
    fn turn(&mut self, now: Instant, next: u64, reserve: ReserveConfig) {
        let low = self.reserve(reserve);
        let on_the_way = u64::from(self.out).saturating_mul(self.cost);
        let used_up = self.remaining.is_some_and(|left| left.saturating_sub(on_the_way) <= low);
        let passed = self.reset_at.is_some_and(|at| at <= now);
        if self.flow.unit.is_some() {
            return;
        }
        if !passed {
            // Nothing is left, nothing is on its way, and nothing says until when: one asks.
            if self.reset_at.is_none() && self.out == 0 && used_up {
                self.remaining = None;
            }
            return;
        }
        self.reset_at = None;
        if !used_up {
            // What was left is left in the new window too, at least. More is known when an answer says so.
            return;
        }
        self.test = true;
        self.low = low;
        self.since_at = now;
        self.sent = 0;
        match (self.trust, self.limit) {
            (Trust::Whole, Some(limit)) if !self.moves => {
                // What is still on its way was counted in the window that ended.
                self.since = next;
                self.out_since = next;
                self.out = 0;
                self.remaining = Some(limit);
                self.first = limit;
            }
            _ => {
                self.since = next;
                self.remaining = None;
            }
        }
    }

    /// A request was let through. Every one is counted, also where the meter had no say.
    pub(super) fn sent(&mut self) {
        self.out = self.out.saturating_add(1);
        self.sent = self.sent.saturating_add(1);
    }

    /// Request `seq` is not on its way any more; `counted`: it may have reached the provider, and no answer says so.
    pub(super) fn back(&mut self, seq: u64, counted: bool) {
        if seq < self.out_since {
            return;
        }
        self.out = self.out.saturating_sub(1);
        if counted {
            self.remaining = self.remaining.map(|left| left.saturating_sub(self.cost));
        }
    }

    /// The answer to request `seq` tells how the meter stands; `next` is the number of the next request. Comes after
    /// [`Meter::back`]. Says whether the most that was left until now cannot have been meant.
    pub(super) fn told(&mut self, reading: &Reading<'_>, now: Instant, seq: u64, next: u64) -> bool {
        let remaining = self.least_of(reading, now, seq);
        self.most = self.most.max(reading.remaining);
        let most = self.most;
        self.read(&Reading { remaining, ..*reading }, now, seq);
        self.newer = next;
        self.limit.is_none() && self.most > 0 && most / MOST_FALL > self.most
    }

    /// Answers of one window that were on their way together may have been counted in any order: the least counts, also of
    /// those that are left out otherwise.
    fn least_of(&mut self, reading: &Reading<'_>, now: Instant, seq: u64) -> u64 {
        let latest = now + reading.reset.least + reading.reset.step;
        let slack = reading.reset.step * 2 + TOLERANCE;
        let same = |at: Instant| at <= latest + slack && latest <= at + slack;
        let before = self.least.filter(|(_, at)| seq < self.newer && same(*at));
        let least = before.map_or(reading.remaining, |(least, _)| least.min(reading.remaining));
        self.least = Some((least, latest));
        least
    }

    fn read(&mut self, reading: &Reading<'_>, now: Instant, seq: u64) {
        self.limit = reading.limit.or(self.limit);
        self.window = self.window.max(reading.reset.least);
        let latest = now + reading.reset.least + reading.reset.step;
        self.flow.told(self.limit, reading, self.window);
        if self.flow.unit.is_some() {
            return self.told_flowing(reading, now, seq, latest);
        }
        let slack = reading.reset.step * 2 + TOLERANCE;
        match self.reset_at.filter(|at| *at > now) {
            Some(known) if latest + slack < known => {
                // Of an earlier window; unless it is the answer to a later request, which knows better.
                if seq > self.told_by {
                    self.replace(reading, now, seq, latest);
                }
            }
            Some(known) => {
                self.moves |= latest > known + slack;
                self.reset_at = Some(match (self.trust, self.remaining) {
                    // One reset, rounded in different places: the earliest of the latest ends holds.
                    (Trust::Whole, _) if !self.moves => known.min(latest),
                    // A reset says what comes back to those that were left when it was told, and to no others.
                    (_, Some(left)) if left < reading.remaining => known,
                    (_, Some(left)) if left == reading.remaining => known.max(latest),
                    (_, Some(_) | None) => latest,
                });
                self.remaining =
                    Some(self.remaining.map_or(reading.remaining, |left| left.min(reading.remaining)));
                self.told_by = self.told_by.max(seq);
                self.learn_cost();
            }
            // An answer from before the window ended. Where windows are not whole it may tell of what came back since.
            None if seq < self.since && latest <= self.since_at + slack && self.trust == Trust::Whole => {}
            None => self.replace(reading, now, seq, latest),
        }
    }

    fn replace(&mut self, reading: &Reading<'_>, now: Instant, seq: u64, latest: Instant) {
        if self.test && seq >= self.since {
            self.test = false;
            let full = reading.remaining.saturating_add(self.sent.max(1));
            // All is back, and the next reset is a window away: where windows slide it is when the next one comes back.
            let far = reading.reset.least * 2 + reading.reset.step > self.window;
            let whole = far && self.limit.is_some_and(|limit| full >= limit);
            self.trust = if whole && !self.moves { Trust::Whole } else { Trust::Asks };
            self.lower(reading.remaining, far);
        }
        self.moves = false;
        // One that was on its way with the last may have been counted before it.
        let most = self.remaining.filter(|_| seq < self.newer).unwrap_or(reading.remaining);
        self.remaining = Some(reading.remaining.min(most));
        self.reset_at = Some(latest);
        self.told_at = now;
        self.told_by = seq;
        self.first = reading.remaining.min(most);
        self.sent = u64::from(self.out);
    }

    /// A window that was used up is followed by one that begins with `remaining`: of a smaller limit, or others took from it
    /// already. One that begins below the reserve would let nothing through but what asks, and so would all after it; if it was
    /// the others, a later one tells more. Where windows slide, one begins at the reserve, for what came back is what asks.
    fn lower(&mut self, remaining: u64, far: bool) {
        if remaining < self.low {
            self.most = remaining;
        } else if far {
            self.most = remaining.max(self.most - self.most.div_ceil(4));
        }
    }

    /// In a bucket that fills, the answer with the latest reset is the newest.
    fn told_flowing(&mut self, reading: &Reading<'_>, now: Instant, seq: u64, latest: Instant) {
        match self.reset_at {
            Some(known) if latest < known => {}
            _ => self.replace(reading, now, seq, latest),
        }
    }
}

/// Knows a token bucket by its resets.
#[derive(Debug, Default)]
struct Flow {
    /// The number used, and the nanoseconds per used unit then.
    anchor: Option<(u64, u128)>,
    /// How often the number doubled and the time per unit stayed.
    votes: u8,
    /// The time in which one comes back, where this is a token bucket.
    unit: Option<Duration>,
}

impl Flow {
    fn told(&mut self, limit: Option<u64>, reading: &Reading<'_>, longest: Duration) {
        let Some(used) =
            limit.and_then(|limit| limit.checked_sub(reading.remaining)).filter(|used| *used > 0)
        else {
            return;
        };
        // Too coarse to tell.
        if reading.reset.least < reading.reset.step * 5 || reading.reset.least.is_zero() {
            return;
        }
        let unit = (reading.reset.least + reading.reset.step / 2).as_nanos() / u128::from(used);
        let Some((anchor_used, anchor_unit)) = self.anchor else {
            self.anchor = Some((used, unit));
            return;
        };
        if unit.abs_diff(anchor_unit) > anchor_unit / 4 {
            *self = Self { anchor: Some((used, unit)), ..Self::default() };
            return;
        }
        if used >= anchor_used * 2 || used <= anchor_used / 2 {
            self.votes = self.votes.saturating_add(1);
            self.anchor = Some((used, unit));
        }
        // No reset was ever further away than a whole bucket takes to fill.
        let whole = unit * u128::from(used.saturating_add(reading.remaining));
        if self.votes >= VOTES && whole * 5 / 4 >= longest.as_nanos() {
            // Taken at its longest, so that it is not asked too early.
            let most = (reading.reset.least + reading.reset.step).as_nanos() / u128::from(used);
            self.unit = Some(Duration::from_nanos(u64::try_from(most).unwrap_or(u64::MAX)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::responses::format::Span;

    const NONE: ReserveConfig = ReserveConfig::Count(0);

    fn secs(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn reading(remaining: u64, reset: f64) -> Reading<'static> {
        let reset = Span { least: secs(reset), step: Duration::from_millis(1) };
        Reading { name: "m", remaining, limit: Some(10), reset }
    }

    #[test]
    fn answers_in_any_order_leave_the_least() {
        let now = Instant::now();
        let mut meter = Meter::new(&reading(7, 10.0), now, 2, 3, 0);
        meter.told(&reading(9, 10.0), now, 0, 1);
        meter.told(&reading(8, 9.9), now + secs(0.1), 1, 2);
        assert_eq!(meter.left(now), Some(7));
        assert_eq!(meter.gate(now, 3, NONE), Gate::Open);
        assert_eq!(meter.gate(now, 3, ReserveConfig::Count(7)), Gate::Until(meter.reset_at().unwrap()));
    }

    #[test]
    fn what_is_on_its_way_is_taken_off() {
        let now = Instant::now();
        let mut meter = Meter::new(&reading(3, 10.0), now, 0, 1, 1);
        let end = meter.reset_at();
        for _ in 0..2 {
            assert_eq!(meter.gate(now, 1, NONE), Gate::Open);
            meter.sent();
        }
        assert_eq!(meter.gate(now, 1, NONE), Gate::Answers(end));
        meter.back(1, false);
        assert_eq!(meter.gate(now, 1, NONE), Gate::Open);
        meter.back(2, true);
        assert_eq!(meter.left(now), Some(2));
    }

    #[test]
    fn after_a_reset_one_asks_until_the_window_was_seen_whole() {
        let now = Instant::now();
        let mut meter = Meter::new(&reading(0, 10.0), now, 0, 1, 0);
        let end = meter.reset_at().unwrap();
        assert_eq!(meter.gate(now, 1, NONE), Gate::Until(end));
        assert_eq!(meter.gate(end, 1, NONE), Gate::Open);
        assert!(meter.is_unknown());
        meter.sent();
        meter.back(1, false);
        meter.told(&reading(9, 10.0), end, 1, 2);
        assert_eq!(meter.left(end), Some(9));
        meter.told(&reading(0, 9.0), end + secs(1.0), 9, 10);
        let next = meter.reset_at().unwrap();
        assert_eq!(meter.gate(next, 10, NONE), Gate::Open);
        assert_eq!(meter.left(next), Some(10), "it was whole the last time");
        // This time it is not, so the next is not relied upon.
        meter.sent();
        meter.back(10, false);
        meter.told(&reading(2, 5.0), next, 10, 11);
        meter.told(&reading(0, 4.0), next + secs(1.0), 12, 13);
        let last = meter.reset_at().unwrap();
        assert_eq!(meter.gate(last, 13, NONE), Gate::Open);
        assert!(meter.is_unknown());
    }

    #[test]
    fn what_was_left_at_the_reset_is_left_after_it() {
        let now = Instant::now();
        let mut meter = Meter::new(&reading(4, 1.0), now, 0, 1, 0);
        let after = now + secs(2.0);
        assert_eq!(meter.gate(after, 1, NONE), Gate::Open);
        assert_eq!(meter.left(after), Some(4));
        meter.told(&reading(9, 1.0), after, 1, 2);
        assert_eq!(meter.left(after), Some(9));
    }

    #[test]
    fn an_answer_of_an_earlier_window_says_nothing_of_this_one() {
        let now = Instant::now();
        let mut meter = Meter::new(&reading(9, 10.0), now, 5, 6, 0);
        meter.told(&reading(0, 0.0), now, 1, 2);
        assert_eq!(meter.left(now), Some(9));
        // An origin that changes its mind is believed.
        meter.told(&reading(1, 2.0), now, 6, 7);
        assert_eq!(meter.left(now), Some(1));
    }

    #[test]
    fn a_bucket_that_fills_is_not_waited_for_whole() {
        let now = Instant::now();
        let mut meter = Meter::new(&reading(9, 1.0), now, 0, 1, 0);
        for used in 2..=10 {
            meter.told(&reading(10 - used, used as f64), now, used, used + 1);
        }
        assert_eq!(meter.left(now), Some(0));
        let Gate::Until(at) = meter.gate(now, 11, NONE) else { panic!("held") };
        assert!(at >= now + secs(1.0) && at < now + secs(1.1), "{:?}", at - now);
        assert_eq!(meter.gate(now + secs(3.1), 11, NONE), Gate::Open);
        assert_eq!(meter.left(now + secs(3.1)), Some(3));
        assert_eq!(meter.left(now + secs(300.0)), Some(10));
    }

    #[test]
    fn tokens_cost_more_than_one() {
        let now = Instant::now();
        let big = |remaining| Reading { limit: Some(10_000), ..reading(remaining, 10.0) };
        let mut meter = Meter::new(&big(9_000), now, 0, 1, 0);
        for (seq, left) in [(1, 6_000), (2, 3_000)] {
            meter.sent();
            meter.back(seq, false);
            meter.told(&big(left), now, seq, seq + 1);
        }
        meter.sent();
        assert!(matches!(meter.gate(now, 3, NONE), Gate::Answers(_)), "3000 of 3000 are on their way");
    }

    #[test]
    fn a_reserve_is_a_number_or_a_part_and_never_all() {
        let now = Instant::now();
        let meter = Meter::new(&reading(5, 1.0), now, 0, 1, 0);
        let share = ReserveConfig::Share(crate::message::quantity::Ratio::from_percent(25));
        for (reserve, held) in
            [(NONE, 0), (ReserveConfig::Count(3), 3), (ReserveConfig::Count(500), 9), (share, 3)]
        {
            assert_eq!(meter.reserve(reserve), held);
        }
        assert!(meter.is_reserve_absurd(ReserveConfig::Count(10)));
    }

    /// Uses up a window that begins at `now` with `limit`; how many passed, and how many values were absurd.
    fn use_up(
        meter: &mut Meter,
        now: Instant,
        seq: &mut u64,
        (limit, reset): (u64, f64),
        reserve: ReserveConfig,
    ) -> (u64, u32) {
        let (mut passed, mut absurd) = (0, 0);
        while passed < limit && meter.gate(now, *seq, reserve) == Gate::Open {
            meter.sent();
            meter.back(*seq, false);
            passed += 1;
            let told = Reading { limit: None, ..reading(limit - passed, reset) };
            absurd += u32::from(meter.told(&told, now, *seq, *seq + 1));
            *seq += 1;
        }
        (passed, absurd)
    }

    #[test]
    fn a_most_that_was_too_high_holds_no_more_than_two_windows() {
        let tenth = ReserveConfig::Share(crate::message::quantity::Ratio::from_percent(10));
        // What was left once, with its reset; then each window. Of a longer window, of one as long, and none that can be meant.
        for ((first, long), then, counted) in [
            ((999, 8.0), (50, 2.0), 0),
            ((999, 8.0), (95, 2.0), 0),
            ((999, 8.0), (50, 8.0), 0),
            ((1_000_000_000_000, 2.0), (50, 2.0), 1),
            ((1_000_000_000_000, 60.0), (50, 2.0), 1),
        ] {
            let mut now = Instant::now();
            let told = Reading { limit: None, ..reading(first, long) };
            let mut meter = Meter::new(&told, now, 0, 1, 0);
            let (mut seq, mut used, mut absurd) = (1, vec![], 0);
            for _ in 0..6 {
                now = meter.reset_at().unwrap() + secs(0.001);
                let (passed, strange) = use_up(&mut meter, now, &mut seq, then, tenth);
                used.push(passed);
                absurd += strange;
            }
            // The last tenth is kept back.
            let whole = then.0 * 9 / 10 - 1;
            assert!(used[2..].iter().all(|passed| *passed >= whole), "{first} {then:?}: {used:?}");
            assert_eq!(absurd, counted, "{first} {then:?}");
        }
    }

    #[test]
    fn where_windows_slide_the_reserve_is_kept() {
        let tenth = ReserveConfig::Share(crate::message::quantity::Ratio::from_percent(10));
        let without = |remaining, reset| Reading { limit: None, ..reading(remaining, reset) };
        let mut now = Instant::now();
        let mut meter = Meter::new(&without(99, 60.0), now, 0, 1, 0);
        meter.told(&without(10, 1.0), now, 1, 2);
        now += secs(61.0);
        meter.told(&without(10, 1.0), now, 2, 3);
        for seq in 3..40 {
            // One came back, and is what asks.
            now = meter.reset_at().unwrap();
            assert_eq!(meter.gate(now, seq, tenth), Gate::Open);
            meter.sent();
            meter.back(seq, false);
            meter.told(&without(10, 1.0), now, seq, seq + 1);
            assert_eq!(meter.reserve(tenth), 10);
        }
    }

    #[test]
    fn a_part_of_a_limit_that_is_never_told_is_of_the_most_that_was_left() {
        let without = |remaining| Reading { limit: None, ..reading(remaining, 10.0) };
        let tenth = ReserveConfig::Share(crate::message::quantity::Ratio::from_percent(10));
        let mut now = Instant::now();
        let mut meter = Meter::new(&without(99), now, 0, 1, 0);
        meter.told(&without(11), now, 1, 2);
        assert_eq!(meter.gate(now, 2, tenth), Gate::Open);
        meter.told(&without(10), now, 2, 3);
        assert_eq!(
            meter.gate(now, 3, tenth),
            Gate::Until(meter.reset_at().unwrap()),
            "a tenth of 99 is kept"
        );
        // The limit became 8: a tenth of 99 would be more than all of it, and would hold for ever.
        for seq in 3..20 {
            now = meter.reset_at().unwrap_or(now);
            meter.gate(now, seq, tenth);
            meter.sent();
            meter.back(seq, false);
            meter.told(&without(7), now, seq, seq + 1);
        }
        assert_eq!(meter.gate(now, 20, tenth), Gate::Open);
        assert_eq!(meter.reserve(tenth), 1, "a tenth of what there is now");
        // One answer that is missing the limit takes nothing away from one that is known.
        meter.told(&Reading { limit: Some(1_000), ..without(7) }, now, 20, 21);
        meter.told(&without(6), now, 21, 22);
        assert_eq!(meter.reserve(tenth), 100);
    }
}
