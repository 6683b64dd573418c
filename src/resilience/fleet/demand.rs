//! How much a pod wants of a limit, from what its requests ask for: pure.
//!
//! Where a limit is fully used, what one pod has and does not use is lost to the others. So the estimate is as close as it can
//! be: a slow mean, which jumps where chance does not explain the difference; and it grows with those who wait.

use std::time::Duration;

use tokio::time::Instant;

use super::share::{Spec, TOKEN};

/// A shorter time says nothing about a rate.
const SHORT: Duration = Duration::from_millis(100);
/// In which time those who wait beyond the first shall be served.
const CATCH_UP: f64 = 4.0;

/// The estimate of one key of a limit.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    per_second: f64,
    /// Seconds over which that mean goes so far.
    known: f64,
    asked: u64,
    since: Instant,
}

impl Demand {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { per_second: 0.0, known: 0.0, asked: 0, since: now }
    }

    /// What is wanted, in thousandths of a token per window; not more than the budget. Zero where nothing is.
    ///
    /// `asked`: requests since the last call; `waiting`: those that wait now; `refill`: what the pod may spend now.
    pub fn observe(&mut self, asked: u64, waiting: u64, refill: u64, spec: Spec, now: Instant) -> u64 {
        self.asked = self.asked.saturating_add(asked);
        let passed = now.saturating_duration_since(self.since);
        if passed >= SHORT {
            self.settle(passed.as_secs_f64(), horizon(spec.window));
            self.since = now;
        }
        let window = spec.window.as_secs_f64().max(1e-3);
        let granted = as_f64(refill) / as_f64(TOKEN) / window;
        // What came in a moment, as if it came each quarter of a second.
        let mut want = self.per_second.max(as_f64(self.asked) * 4.0);
        want += as_f64(waiting.saturating_sub(1)) / CATCH_UP;
        if refill == 0 {
            want = want.max(as_f64(waiting) * 4.0);
        } else if as_f64(waiting) > 4.0 + granted / 2.0 {
            // More than half a second behind: clients that wait for one another ask for no more than they get.
            want = want.max(granted * 1.5);
        }
        let thousandths = (want * window * as_f64(TOKEN)).min(as_f64(spec.budget()));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between zero and the budget"
        )]
        let thousandths = thousandths as u64;
        thousandths.max(u64::from(waiting > 0) * TOKEN)
    }

    fn settle(&mut self, seconds: f64, horizon: f64) {
        let (asked, expected) = (as_f64(self.asked), self.per_second * seconds);
        self.asked = 0;
        let jump = (asked - expected).abs() > 3.0 * expected.sqrt() + 2.0;
        self.known = if jump { seconds } else { (self.known + seconds).min(horizon) };
        self.per_second += (asked / seconds - self.per_second) * (seconds / self.known).min(1.0);
    }
}

/// Over how many seconds the mean goes: longer where few are allowed in a long window.
fn horizon(window: Duration) -> f64 {
    window.as_secs_f64().clamp(6.0, 60.0)
}

/// Counts far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Spec = Spec { rate: 200, burst: 4, window: Duration::from_secs(1) };

    /// Regular requests, `per_second` of them, seen each quarter of a second; the last estimates in requests per second.
    fn regular(demand: &mut Demand, from: Instant, per_second: f64, rounds: u32) -> Vec<f64> {
        let mut told = 0.0;
        let mut seen = Vec::new();
        for round in 1..=rounds {
            let all = (f64::from(round) * 0.25 * per_second).floor();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let asked = (all - told) as u64;
            told = all;
            let now = from + Duration::from_millis(250) * round;
            seen.push(demand.observe(asked, 0, 50_000, LIMIT, now) as f64 / 1_000.0);
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_regular_demand_is_known_closely() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        let seen = regular(&mut demand, start, 13.3, 80);
        assert!(seen[40..].iter().all(|rate| (rate - 13.3).abs() < 0.3), "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_jumps_up_and_down_within_a_round() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        let first = regular(&mut demand, start, 180.0, 1);
        assert!((first[0] - 180.0).abs() < 5.0, "{first:?}");
        let end = start + Duration::from_millis(500);
        assert_eq!(demand.observe(0, 0, 50_000, LIMIT, end), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_wants_more_and_never_more_than_there_is() {
        let now = Instant::now();
        for (asked, waiting, refill, least, most) in [
            (0, 0, 0, 0, 0),
            (1, 1, 0, 4_000, 4_000),
            (0, 1, 50_000, 1_000, 1_000),
            (0, 5, 50_000, 1_000, 1_000),
            // A backlog of more than a round.
            (0, 30, 50_000, 75_000, 75_000),
            (900, 1_000, 50_000, 201_000, 201_000),
            (u64::MAX, u64::MAX, u64::MAX, 201_000, 201_000),
        ] {
            let want = Demand::new(now).observe(asked, waiting, refill, LIMIT, now);
            assert!((least..=most).contains(&want), "{asked} {waiting} {refill}: {want}");
        }
    }
}
