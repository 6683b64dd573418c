//! When something ends by itself: a token, a lease, keys. By both clocks of the machine, whichever says so first.
//!
//! The steady clock stands still while the host is suspended, or its virtual machine is paused or restored, and what was good before is
//! then over without its knowing. The wall clock goes on, but can be set. What is over by either is not sent: a wall clock that
//! was set forward costs a token before its time, and one that was set back lengthens no life.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    steady: Instant,
    /// None where it is too far away for the clock to tell.
    wall: Option<SystemTime>,
}

impl End {
    /// That moment of the steady clock, and what the wall clock will say then.
    #[must_use]
    pub fn at(steady: Instant) -> Self {
        Self::from(steady, Instant::now(), SystemTime::now())
    }

    fn from(steady: Instant, now: Instant, wall: SystemTime) -> Self {
        let left = steady.saturating_duration_since(now);
        let over = now.saturating_duration_since(steady);
        Self { steady, wall: wall.checked_add(left).and_then(|end| end.checked_sub(over)) }
    }

    /// The moment by the steady clock.
    #[must_use]
    pub fn steady(self) -> Instant {
        self.steady
    }

    /// Whether it has come, by either clock.
    #[must_use]
    pub fn has_come(self) -> bool {
        self.left().is_zero()
    }

    /// How long until then, by the clock by which it comes first; nothing where it has come.
    #[must_use]
    pub fn left(self) -> Duration {
        self.left_at(Instant::now(), SystemTime::now())
    }

    fn left_at(self, now: Instant, wall: SystemTime) -> Duration {
        let steady = self.steady.saturating_duration_since(now);
        let by_wall = self.wall.map(|end| end.duration_since(wall).unwrap_or_default());
        by_wall.map_or(steady, |by_wall| by_wall.min(steady))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_come_when_one_of_the_clocks_says_so() {
        let (steady, wall) = (Instant::now() + Duration::from_secs(10_000), SystemTime::now());
        let end = End::from(steady + Duration::from_secs(100), steady, wall);
        // Seconds that have passed on the steady and on the wall clock; seconds that are left.
        for (on_steady, on_wall, left) in [
            (0, 0, 100),
            (60, 60, 40),
            (100, 100, 0),
            // A host that was suspended, or a clock that was set forward.
            (1, 90, 10),
            (1, 7200, 0),
            // A clock that was set back.
            (60, -7200, 40),
            (100, -7200, 0),
        ] {
            let by = |seconds: i64| Duration::from_secs(seconds.unsigned_abs());
            let told = if on_wall < 0 { wall - by(on_wall) } else { wall + by(on_wall) };
            assert_eq!(end.left_at(steady + by(on_steady), told), by(left), "{on_steady} {on_wall}");
        }
        let over = End::from(steady - Duration::from_secs(5), steady, wall);
        assert!(over.left_at(steady, wall).is_zero() && over.wall == Some(wall - Duration::from_secs(5)));
        assert!(End::at(Instant::now()).has_come());
        assert!(!End::at(Instant::now() + Duration::from_secs(3600)).has_come());
    }
}
