//! Pauses that this pod has to tell the others: bounded, and forgotten when they are over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// The longest pause that is told or believed.
pub const LONGEST: Duration = Duration::from_secs(3_600);
/// Pauses that wait to be told; more are counted and not told.
const WAITING: usize = 256;
/// Bytes of a name.
const NAME: usize = 512;

/// What waits to be told.
#[derive(Debug, Default)]
pub struct Pauses {
    waiting: Vec<(Arc<str>, Instant)>,
    /// Pauses that found no room.
    pub dropped: u64,
}

impl Pauses {
    /// A pause to tell. Of one name the latest end is told. `false`: it is not told.
    pub fn add(&mut self, name: &str, pause: Duration, now: Instant) -> bool {
        let ends = now + pause.min(LONGEST);
        if let Some(known) = self.waiting.iter_mut().find(|(known, _)| **known == *name) {
            known.1 = known.1.max(ends);
            return true;
        }
        if self.waiting.len() >= WAITING {
            self.waiting.retain(|(_, ends)| *ends > now);
        }
        if self.waiting.len() >= WAITING || name.len() > NAME {
            self.dropped += 1;
            return false;
        }
        self.waiting.push((name.into(), ends));
        true
    }

    /// Names and milliseconds of what is to be told now.
    pub fn telling(&mut self, now: Instant) -> Vec<(Arc<str>, u64)> {
        self.waiting.retain(|(_, ends)| *ends > now);
        let rest = |ends: Instant| u64::try_from((ends - now).as_millis()).unwrap_or(u64::MAX).max(1);
        self.waiting.iter().map(|(name, ends)| (name.clone(), rest(*ends))).collect()
    }

    /// Forgets what was told, unless it grew meanwhile.
    pub fn told(&mut self, told: &[(Arc<str>, u64)], at: Instant) {
        let slack = Duration::from_millis(2);
        self.waiting.retain(|(name, ends)| {
            let same = told.iter().find(|(other, _)| other == name);
            same.is_none_or(|(_, rest)| *ends > at + Duration::from_millis(*rest) + slack)
        });
    }
}

/// What is left of a pause that another pod told, within bounds.
pub fn believed(millis: u64) -> Duration {
    Duration::from_millis(millis).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_latest_end_is_told_once_and_what_is_over_is_not() {
        let mut pauses = Pauses::default();
        let now = Instant::now();
        pauses.add("a", Duration::from_secs(5), now);
        pauses.add("a", Duration::from_secs(2), now);
        pauses.add("b", Duration::from_secs(1), now);
        pauses.add("c", Duration::from_secs(900_000), now);
        let telling = pauses.telling(now + Duration::from_secs(2));
        assert_eq!(telling, [("a".into(), 3_000), ("c".into(), 3_598_000)]);
        // One that grew while it was told is told again.
        pauses.add("a", Duration::from_secs(9), now);
        pauses.told(&telling, now + Duration::from_secs(2));
        assert_eq!(pauses.telling(now), [("a".into(), 9_000)]);
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded() {
        let mut pauses = Pauses::default();
        let now = Instant::now();
        assert!(!pauses.add(&"n".repeat(NAME + 1), LONGEST, now));
        for number in 0..WAITING {
            assert!(pauses.add(&number.to_string(), Duration::from_secs(1), now));
        }
        assert!(!pauses.add("one more", LONGEST, now));
        assert_eq!((pauses.dropped, pauses.telling(now).len()), (2, WAITING));
        // Those that are over make room.
        assert!(pauses.add("one more", LONGEST, now + Duration::from_secs(1)));
        assert_eq!(believed(u64::MAX), LONGEST);
    }
}
