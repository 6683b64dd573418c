//! The waits between attempts: exponential, and by default drawn anew from the whole range ("full jitter"), so that requests
//! that failed together do not come back together.

use std::time::Duration;

/// How long to wait before an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backoff {
    /// The most before the first repetition.
    pub base: Duration,
    /// By what it grows with each.
    pub factor: u32,
    /// Where it stops growing.
    pub max: Duration,
    /// How chance comes in.
    pub jitter: Jitter,
}

/// How chance comes into a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Jitter {
    /// Anything from nothing to the whole.
    Full,
    /// The whole.
    None,
}

impl Backoff {
    /// The longest wait before repetition `number`, which counts from 0.
    pub fn ceiling(&self, number: u32) -> Duration {
        let grown = self.factor.checked_pow(number).and_then(|factor| self.base.checked_mul(factor));
        grown.map_or(self.max, |grown| grown.min(self.max))
    }

    /// The wait before repetition `number`, which counts from 0. `chance` is drawn from 0 to 1; what lies outside, or is no
    /// number, counts as the nearest.
    pub fn wait(&self, number: u32, chance: f64) -> Duration {
        let ceiling = self.ceiling(number);
        match self.jitter {
            Jitter::None => ceiling,
            // `mul_f64` panics for what no duration can be.
            Jitter::Full if chance.is_nan() => Duration::ZERO,
            Jitter::Full => ceiling.mul_f64(chance.clamp(0.0, 1.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLIS: fn(u64) -> Duration = Duration::from_millis;

    fn contract(jitter: Jitter) -> Backoff {
        Backoff { base: MILLIS(250), factor: 2, max: MILLIS(8000), jitter }
    }

    #[test]
    fn it_doubles_up_to_the_bound() {
        let waits: Vec<_> = (0..8).map(|number| contract(Jitter::None).wait(number, 0.3)).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000].map(MILLIS));
    }

    #[test]
    fn full_jitter_spans_the_whole_range() {
        for (chance, millis) in [(0.0, 0), (0.5, 500), (1.0, 1000), (-3.0, 0), (7.0, 1000), (f64::NAN, 0)] {
            assert_eq!(contract(Jitter::Full).wait(2, chance), MILLIS(millis), "{chance}");
        }
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_bound_and_ceilings_never_shrink(
            base in 1_u64..60_000, factor in 1_u32..20, max in 1_u64..600_000, number in any::<u32>(), chance in any::<f64>(),
        ) {
            let backoff = Backoff { base: MILLIS(base), factor, max: MILLIS(max), jitter: Jitter::Full };
            prop_assert!(backoff.wait(number, chance) <= backoff.ceiling(number));
            prop_assert!(backoff.ceiling(number) <= MILLIS(max));
            prop_assert!(backoff.ceiling(number) <= backoff.ceiling(number.saturating_add(1)));
        }
    }
}
