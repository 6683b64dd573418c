//! The failures of the last minute, by path: the negative cache of a client.
//!
//! A path that fails is left alone, and the others go on: one provider's broken secret is not the store's failure. The whole
//! peer is left alone where it is not reached at all, or where nothing of it has answered in the window.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::{HttpError, MAX_FAILURES, WINDOW};

/// Paths that are counted apart; further ones share one count, under a name that no path has.
pub(super) const MAX_PATHS: usize = 256;
const FURTHER: &str = "";

/// What failed, and how much of it was the peer itself.
#[derive(Clone, Copy)]
pub(super) struct Failed {
    pub(super) error: HttpError,
    /// The peer saw nothing of the request: no connection came about. That is no matter of the path.
    pub(super) unreached: bool,
}

/// The failures of the window, the oldest first; at most [`MAX_FAILURES`].
#[derive(Default)]
struct Count {
    at: VecDeque<Instant>,
    last: Option<HttpError>,
    running: usize,
}

impl Count {
    fn add(&mut self, error: HttpError) {
        self.at.push_back(Instant::now());
        self.last = Some(error);
        if self.at.len() > MAX_FAILURES {
            self.at.pop_front();
        }
    }

    /// The error to give in place of asking.
    fn holds(&mut self) -> Option<HttpError> {
        self.forget();
        // Those that run may fail too. A peer that does not fail is only bound by the permits.
        let full = !self.at.is_empty() && self.at.len() + self.running >= MAX_FAILURES;
        full.then_some(self.last).flatten()
    }

    fn forget(&mut self) {
        while self.at.front().is_some_and(|at| at.elapsed() >= WINDOW) {
            self.at.pop_front();
        }
    }
}

/// The failures of a client.
#[derive(Default)]
pub(super) struct Failures {
    paths: HashMap<String, Count>,
    /// All failures of all paths: they hold where nothing succeeded.
    all: Count,
    /// Those that did not reach the peer: they hold for everything.
    unreached: Count,
    succeeded: Option<Instant>,
}

impl Failures {
    /// Counts a failure of a path that is not counted by a [`Running`].
    pub(super) fn add(&mut self, path: &str, failed: Failed) {
        let name = self.name(path);
        self.paths.entry(name).or_default().add(failed.error);
        self.all.add(failed.error);
        if failed.unreached {
            self.unreached.add(failed.error);
        }
    }

    fn holds(&mut self, name: &str) -> Option<HttpError> {
        let nothing_succeeds = self.succeeded.is_none_or(|at| at.elapsed() >= WINDOW);
        let unreached = self.unreached.holds();
        let all = self.all.holds().filter(|_| nothing_succeeds);
        unreached.or(all).or_else(|| self.paths.get_mut(name)?.holds())
    }

    /// Under which name a path is counted.
    fn name(&mut self, path: &str) -> String {
        let path = path.split('?').next().unwrap_or_default();
        if self.paths.contains_key(path) || self.paths.len() < MAX_PATHS {
            return path.to_owned();
        }
        self.paths.retain(|_, count| {
            count.forget();
            count.running > 0 || !count.at.is_empty()
        });
        if self.paths.len() < MAX_PATHS { path.to_owned() } else { FURTHER.to_owned() }
    }

    fn running(&mut self, name: &str, more: bool) {
        let path = self.paths.entry(name.to_owned()).or_default();
        for count in [path, &mut self.all, &mut self.unreached] {
            count.running = if more { count.running + 1 } else { count.running.saturating_sub(1) };
        }
        if self.paths.get(name).is_some_and(|path| path.running == 0 && path.at.is_empty()) {
            self.paths.remove(name);
        }
    }

    #[cfg(test)]
    pub(super) fn counted(&self, path: &str) -> usize {
        self.paths.get(path).map_or(0, |count| count.at.len())
    }
}

/// A request on its way. If it is dropped, the peer did not answer in its caller's time: that counts as a failure.
pub(super) struct Running<'a> {
    failures: &'a Mutex<Failures>,
    name: String,
    ended: bool,
}

impl<'a> Running<'a> {
    /// Begins a request.
    ///
    /// # Errors
    /// Its path, or the whole peer, failed too often: the last failure.
    pub(super) fn begin(failures: &'a Mutex<Failures>, path: &str) -> Result<Self, HttpError> {
        let mut state = lock(failures);
        let name = state.name(path);
        if let Some(error) = state.holds(&name) {
            return Err(error);
        }
        state.running(&name, true);
        Ok(Self { failures, name, ended: false })
    }

    pub(super) fn end(mut self, failed: Option<Failed>) {
        self.ended = true;
        let mut state = lock(self.failures);
        match failed {
            Some(failed) => state.add(&self.name, failed),
            None => state.succeeded = Some(Instant::now()),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = lock(self.failures);
        if !self.ended {
            state.add(&self.name, Failed { error: HttpError::TimedOut, unreached: false });
        }
        state.running(&self.name, false);
    }
}

pub(super) fn lock(failures: &Mutex<Failures>) -> MutexGuard<'_, Failures> {
    failures.lock().unwrap_or_else(PoisonError::into_inner)
}
