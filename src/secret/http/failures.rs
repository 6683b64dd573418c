//! The failures of the last minute: the negative cache of a client.
//!
//! A peer of which nothing is good is asked ten times a minute in all. Where some of it is good, that goes on, and what failed when
//! it was last asked shares ten failures a minute: thirty broken secrets are no more questions than one.
//!
//! Whoever can name what is asked for, as an app can its tenants, could have everything held by ten names that the peer
//! forbids. So the last of the ten questions is kept for what was good when it was last asked: if it still is, the peer works.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::{HttpError, MAX_FAILURES, WINDOW};

/// Subjects that are known apart; further ones are one, under a name that none has.
pub(super) const MAX_SUBJECTS: usize = 256;
const FURTHER: &str = "";

/// Questions of the window, the oldest first; at most [`MAX_FAILURES`].
#[derive(Default)]
struct Count {
    at: VecDeque<Instant>,
    last: Option<HttpError>,
}

impl Count {
    fn add(&mut self, failed: Option<HttpError>) {
        self.at.push_back(Instant::now());
        self.last = failed.or(self.last);
        if self.at.len() > MAX_FAILURES {
            self.at.pop_front();
        }
    }

    /// The last failure, if there is no room for another one. Those that run may fail too; a peer that does not fail is
    /// only bound by the permits.
    fn full(&mut self, running: usize) -> Option<HttpError> {
        while self.at.front().is_some_and(|at| at.elapsed() >= WINDOW) {
            self.at.pop_front();
        }
        if self.at.is_empty() {
            self.last = None;
        }
        self.last.filter(|_| self.at.len() + running >= MAX_FAILURES)
    }
}

/// What is known of one subject.
#[derive(Default)]
struct Subject {
    running: usize,
    /// How it failed when it was last asked for, where it did.
    failed: Option<(HttpError, Instant)>,
    /// When it was good, where it was so when it was last asked for.
    good: Option<Instant>,
}

/// The failures of a client.
#[derive(Default)]
pub(super) struct Failures {
    subjects: HashMap<String, Subject>,
    running: usize,
    /// All failures: they hold for what failed when it was last asked for.
    all: Count,
    /// What was asked since the last good answer: it holds for everything, once there is a failure in it.
    row: Count,
}

impl Failures {
    fn holds(&mut self, name: &str) -> Option<HttpError> {
        let good = |one: &Subject| one.good.is_some();
        let kept = self.subjects.values().any(good) && !self.subjects.get(name).is_some_and(good);
        if let Some(last) = self.row.full(self.running + usize::from(kept)) {
            return Some(last);
        }
        let (failed, _) = self.subjects.get(name)?.failed?;
        self.all.full(self.running).map(|_| failed)
    }

    pub(super) fn fails(&self) -> Option<HttpError> {
        self.row.last
    }

    /// Under which name a subject is known.
    fn name(&mut self, subject: &str) -> String {
        if self.subjects.contains_key(subject) || self.subjects.len() < MAX_SUBJECTS {
            return subject.to_owned();
        }
        let of_late = |at: Instant| at.elapsed() < WINDOW;
        let failed_of_late = |one: &Subject| one.failed.is_some_and(|(_, at)| of_late(at));
        self.subjects.retain(|_, one| one.running > 0 || failed_of_late(one) || one.good.is_some());
        // What was good the longest ago gives way: it loses its question, and no newcomer its name.
        while self.subjects.len() >= MAX_SUBJECTS {
            let idle = self.subjects.iter().filter(|(_, one)| one.running == 0);
            let oldest = idle.filter_map(|(name, one)| Some((one.good?, name))).min();
            let Some(oldest) = oldest.map(|(_, name)| name.clone()) else { break };
            self.subjects.remove(&oldest);
        }
        if self.subjects.len() < MAX_SUBJECTS { subject.to_owned() } else { FURTHER.to_owned() }
    }

    fn begin(&mut self, name: &str) {
        self.running += 1;
        self.subjects.entry(name.to_owned()).or_default().running += 1;
    }

    fn end(&mut self, name: &str, end: End) {
        self.running = self.running.saturating_sub(1);
        let Some(subject) = self.subjects.get_mut(name) else { return };
        subject.running = subject.running.saturating_sub(1);
        let now = Instant::now();
        match end {
            End::Good => (subject.failed, subject.good) = (None, Some(now)),
            End::Failed(error) => (subject.failed, subject.good) = (Some((error, now)), None),
            End::Aside => subject.failed = None,
        }
        if subject.running == 0 && subject.failed.is_none() && subject.good.is_none() {
            self.subjects.remove(name);
        }
    }

    #[cfg(test)]
    pub(super) fn known(&self, subject: &str) -> bool {
        self.subjects.contains_key(subject)
    }

    #[cfg(test)]
    pub(super) fn counted(&self) -> usize {
        self.all.at.len()
    }
}

/// How a request ended.
enum End {
    Good,
    /// It proves nothing.
    Aside,
    Failed(HttpError),
}

/// A request on its way. If it is dropped, the peer did not answer in its caller's time: that counts as a failure.
pub(super) struct Running {
    failures: Arc<Mutex<Failures>>,
    name: String,
    ended: bool,
}

impl Running {
    /// Begins a request.
    ///
    /// # Errors
    /// The peer, or its subject, failed too often: the last failure.
    pub(super) fn begin(failures: &Arc<Mutex<Failures>>, subject: &str) -> Result<Self, HttpError> {
        let mut state = lock(failures);
        let name = state.name(subject);
        if let Some(error) = state.holds(&name) {
            return Err(error);
        }
        state.begin(&name);
        Ok(Self { failures: Arc::clone(failures), name, ended: false })
    }

    pub(super) fn works(mut self) {
        self.end(End::Good, |state| state.row = Count::default());
    }

    pub(super) fn aside(mut self) {
        self.end(End::Aside, |state| state.row.add(None));
    }

    pub(super) fn failed(mut self, error: HttpError) {
        self.fail(error);
    }

    fn fail(&mut self, error: HttpError) {
        self.end(End::Failed(error), |state| {
            state.all.add(Some(error));
            state.row.add(Some(error));
        });
    }

    fn end(&mut self, end: End, count: impl FnOnce(&mut Failures)) {
        self.ended = true;
        let mut state = lock(&self.failures);
        state.end(&self.name, end);
        count(&mut state);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.fail(HttpError::TimedOut);
        }
    }
}

pub(super) fn lock(failures: &Mutex<Failures>) -> MutexGuard<'_, Failures> {
    failures.lock().unwrap_or_else(PoisonError::into_inner)
}
