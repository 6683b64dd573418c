//! Rotation, told: where a list `[new, old]` is in use, whether the old one is still needed.
//!
//! Two events of the log (target `outgate::credential`), and the metric `outgate_credential_overlap_total`:
//!
//! - `old_needed`: a request was accepted with the old one, because the provider refused the new one, or the new one could not
//!   be had. Logged when it begins, counted each time.
//! - `safe_to_remove`: for [`QUIET`] the new one was accepted and nobody needed the old one. Said once, with the first request
//!   after that hour, until the old one is needed again.
//!
//! The same for the secrets that tokens are got with; there an acceptance is a token that was issued.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the new one must have been accepted alone.
pub const QUIET: Duration = Duration::from_secs(3600);

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The old one was needed, for the first time or for the first time again.
    OldNeeded,
    /// Nobody needs the old one any more.
    SafeToRemove,
}

/// What is known of the use of one list.
#[derive(Default)]
pub struct Overlap(Mutex<State>);

#[derive(Clone, Copy, Default)]
struct State {
    /// Since when the new one alone was accepted.
    quiet_since: Option<Instant>,
    said: Option<News>,
}

impl Overlap {
    /// A member of the list was accepted at `now`; 0 is the newest.
    pub fn accepted(&self, choice: usize, now: Instant) -> Option<News> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = state.accepted(choice, now).filter(|news| state.said != Some(*news));
        state.said = news.or(state.said);
        news
    }
}

impl State {
    fn accepted(&mut self, choice: usize, now: Instant) -> Option<News> {
        if choice > 0 {
            self.quiet_since = None;
            return Some(News::OldNeeded);
        }
        let since = *self.quiet_since.get_or_insert(now);
        (now.saturating_duration_since(since) >= QUIET).then_some(News::SafeToRemove)
    }
}

/// Writes the news to the log. `new` and `old` are references; `tenant` is whose credential it is, where each has its own.
pub fn tell(news: News, owner: &str, (new, old): (&str, &str), tenant: Option<&str>) {
    match news {
        News::OldNeeded => tracing::warn!(
            target: "outgate::credential", event = "old_needed", owner, new, old, tenant,
            "the old credential was needed: the new one was refused, or could not be had"
        ),
        News::SafeToRemove => tracing::info!(
            target: "outgate::credential", event = "safe_to_remove", owner, new, old, tenant,
            "the old credential is safe to remove: nobody needed it for an hour, and the new one was accepted"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said, by seconds and accepted member.
    fn said(accepted: &[(u64, usize)]) -> Vec<(u64, News)> {
        let (overlap, begin) = (Overlap::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let said =
            accepted.iter().map(|(seconds, choice)| (*seconds, overlap.accepted(*choice, at(*seconds))));
        said.filter_map(|(seconds, news)| Some((seconds, news?))).collect()
    }

    #[test]
    fn an_hour_of_the_new_one_alone_makes_the_old_one_safe_to_remove_and_it_is_said_once() {
        use News::{OldNeeded, SafeToRemove};
        assert_eq!(said(&[(0, 0), (1800, 0), (3599, 0)]), []);
        assert_eq!(said(&[(0, 0), (3600, 0), (3601, 0), (9000, 0)]), [(3600, SafeToRemove)]);
        assert_eq!(said(&[(0, 1), (1, 1), (2, 0), (3, 1)]), [(0, OldNeeded)]);
        // The hour begins anew with each use of the old one.
        let table = [(0, 1), (10, 0), (3000, 2), (3010, 0), (6600, 0), (6610, 0), (7000, 0)];
        assert_eq!(said(&table), [(0, OldNeeded), (6610, SafeToRemove)]);
        let table = [(0, 0), (3600, 0), (4000, 1), (4001, 1), (4010, 0), (7610, 0), (7611, 0)];
        assert_eq!(said(&table), [(3600, SafeToRemove), (4000, OldNeeded), (7610, SafeToRemove)]);
        // One acceptance long ago is not an hour of acceptances, but it is an hour in which nobody needed the old one.
        assert_eq!(said(&[(0, 0), (100_000, 0)]), [(100_000, SafeToRemove)]);
    }
}
