//! The failures of the last minute: the negative cache of a client.
//!
//! A peer of which nothing is good is asked ten times a minute in all. Where nobody knows whether it works, ten questions run at the
//! same time, and further ones wait for what comes of them. Where some of it is good, that goes on, and what failed when
//! it was last asked shares ten failures a minute: thirty broken secrets are no more questions than one.
//!
//! Whoever can name what is asked for, as an app can its tenants, could have everything held by ten names that the peer
//! forbids. So the last of the ten questions is kept for what was good when it was last asked: if it still is, the peer works. It
//! is not held by what others failed with; only where something that was good failed too, the peer is down for all. What was last
//! asked for while the peer was away may have that question as well: nothing is known against it.
//!
//! What was never asked for goes before what failed: as long as nothing is good, the questions are for those of which nothing is
//! known, and one that is there is not kept waiting by thirty that are forbidden and are asked for again and again.
//!
//! A refusal that concerns who asks alone, such as a tenant's grant that was revoked, shows that the peer works. It is counted for
//! who was refused, ten times a minute, and for nobody else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{HttpError, MAX_FAILURES, WINDOW};

/// Subjects that are known apart; further ones are one, under a name that none has.
pub(super) const MAX_SUBJECTS: usize = 256;
const FURTHER: &str = "";
/// For so long who was held before its first question is waited for. It comes again sooner, if anybody still wants it.
const WAITS: Duration = Duration::from_secs(10);

/// Questions of the window, the oldest first; at most [`MAX_FAILURES`].
#[derive(Default)]
struct Count {
    at: VecDeque<Instant>,
    last: Option<HttpError>,
}

impl Count {
    fn add(&mut self, failed: Option<HttpError>) {
        self.at.push_back(Instant::now());
        self.last = failed.or(self.last.take());
        if self.at.len() > MAX_FAILURES {
            self.at.pop_front();
        }
    }

    /// The last failure, if there is no room for another one. Those that run may fail too; a peer that does not fail is
    /// only bound by the permits.
    fn full(&mut self, running: usize) -> Option<HttpError> {
        self.is_of_late();
        self.last.clone().filter(|_| self.at.len() + running >= MAX_FAILURES)
    }

    /// Whether anything happened within the window.
    fn is_of_late(&mut self) -> bool {
        while self.at.front().is_some_and(|at| at.elapsed() >= WINDOW) {
            self.at.pop_front();
        }
        if self.at.is_empty() {
            self.last = None;
        }
        !self.at.is_empty()
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
    /// Refusals that concern it alone.
    refused: Count,
}

impl Subject {
    /// Whether its last answer was a good one.
    fn is_good(&self) -> bool {
        self.good.is_some()
    }

    /// Whether it failed because the peer was away, which says nothing of it.
    fn missed(&self) -> bool {
        self.failed.as_ref().is_some_and(|(error, _)| match error {
            HttpError::Failed(_) | HttpError::TimedOut => true,
            HttpError::Status(status) => *status == 429 || *status >= 500,
            HttpError::TooLarge | HttpError::Garbled | HttpError::Request | HttpError::Held(_) => false,
        })
    }

    fn is_known(&mut self) -> bool {
        self.running > 0 || self.failed.is_some() || self.good.is_some() || self.refused.is_of_late()
    }
}

/// The failures of a client.
#[derive(Default)]
pub(super) struct Failures {
    subjects: HashMap<String, Subject>,
    /// Who was held before its first question, or its first since the peer was away, and when; at most [`MAX_SUBJECTS`].
    waiting: HashMap<String, Instant>,
    running: usize,
    /// Those of them whose subject was not good when they began.
    doubtful: usize,
    /// When something that was good failed, if nothing was good since.
    fell: Option<Instant>,
    /// A question came to its end.
    ended: Arc<Notify>,
    /// When something showed that the peer works, if nothing has failed since.
    good_at: Option<Instant>,
    /// All failures: they hold for what failed when it was last asked for.
    all: Count,
    /// What was asked since the last good answer: it holds for everything, once there is a failure in it.
    row: Count,
}

impl Failures {
    fn holds(&mut self, name: &str) -> Option<HttpError> {
        let held = self.holds_known(name);
        let unknown = name != FURTHER && self.subjects.get(name).is_none_or(Subject::missed);
        if held.is_some() && unknown && self.waiting.len() < MAX_SUBJECTS {
            self.waiting.insert(name.to_owned(), Instant::now());
        }
        held
    }

    /// Whether so many questions run that all that are free would be used up if they failed, and nothing says that they will not.
    fn is_crowded(&mut self, name: &str) -> bool {
        if !self.is_good(name) {
            return self.doubtful + usize::from(self.keeps(name)) >= MAX_FAILURES || self.is_first_crowd();
        }
        // One that was good finds out for all, where the others have used up the questions.
        let good = self.running.saturating_sub(self.doubtful);
        self.is_first_crowd() || good > 0 && self.row.full(self.running).is_some()
    }

    fn is_first_crowd(&self) -> bool {
        let works = self.good_at.is_some_and(|at| at.elapsed() < WINDOW);
        self.running >= MAX_FAILURES && !works
    }

    fn is_good(&self, name: &str) -> bool {
        self.subjects.get(name).is_some_and(Subject::is_good)
    }

    /// Whether the last question is kept for another subject than this one.
    fn keeps(&self, name: &str) -> bool {
        let spared = |one: &Subject| one.is_good() || one.missed();
        !self.subjects.get(name).is_some_and(spared) && self.subjects.values().any(spared)
    }

    /// Tells of the end of a question.
    pub(super) fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    fn holds_known(&mut self, name: &str) -> Option<HttpError> {
        let kept = usize::from(self.keeps(name));
        if self.is_good(name) {
            let down = self.fell.is_some_and(|at| at.elapsed() < WINDOW);
            return self.row.full(0).filter(|_| down);
        }
        if let Some(last) = self.row.full(self.doubtful + kept) {
            return Some(last);
        }
        let subject = self.subjects.get_mut(name)?;
        if let Some(refused) = subject.refused.full(subject.running) {
            return Some(refused);
        }
        let (failed, _) = subject.failed.clone()?;
        self.waiting.retain(|_, at| at.elapsed() < WAITS);
        let gives_way = self.good_at.is_none() && !subject.missed() && !self.waiting.is_empty();
        (gives_way || self.all.full(self.doubtful + kept).is_some()).then_some(failed)
    }

    /// Whether anything is counted now: what runs, or failed within the window.
    pub(super) fn counts(&mut self) -> bool {
        let refused = |one: &mut Subject| one.refused.is_of_late();
        let (all, row) = (self.all.is_of_late(), self.row.is_of_late());
        self.running > 0 || all || row || self.subjects.values_mut().any(refused)
    }

    pub(super) fn fails(&self) -> Option<HttpError> {
        self.row.last.clone()
    }

    /// Under which name a subject is known.
    fn name(&mut self, subject: &str) -> String {
        if self.subjects.contains_key(subject) || self.subjects.len() < MAX_SUBJECTS {
            return subject.to_owned();
        }
        let of_late = |at: Instant| at.elapsed() < WINDOW;
        let failed_of_late = |one: &Subject| one.failed.as_ref().is_some_and(|(_, at)| of_late(*at));
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

    fn begin(&mut self, name: &str, good: bool) {
        self.running += 1;
        self.doubtful += usize::from(!good);
        self.waiting.remove(name);
        self.subjects.entry(name.to_owned()).or_default().running += 1;
    }

    fn end(&mut self, name: &str, good: bool, end: End) {
        self.running = self.running.saturating_sub(1);
        self.doubtful = self.doubtful.saturating_sub(usize::from(!good));
        let Some(subject) = self.subjects.get_mut(name) else { return };
        subject.running = subject.running.saturating_sub(1);
        let now = Instant::now();
        match end {
            End::Good => {
                (subject.failed, subject.good) = (None, Some(now));
                (self.good_at, self.fell) = (Some(now), None);
            }
            End::Failed(error) => {
                if subject.good.is_some() {
                    self.fell = Some(now);
                }
                (subject.failed, subject.good) = (Some((error, now)), None);
                self.good_at = None;
            }
            End::Aside => subject.failed = None,
            End::Refused(error) => {
                (subject.failed, subject.good) = (None, None);
                subject.refused.add(Some(error));
                (self.good_at, self.fell) = (Some(now), None);
            }
        }
        if !subject.is_known() {
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
    /// The peer works, and refuses who asked.
    Refused(HttpError),
    Failed(HttpError),
}

/// A request on its way. If it is dropped, the peer did not answer in its caller's time: that counts as a failure.
pub(super) struct Running {
    failures: Arc<Mutex<Failures>>,
    name: String,
    /// Whether its subject was good when it began.
    good: bool,
    ended: bool,
}

impl Running {
    /// Begins a request; none where it is to wait for the end of others, which tell whether the peer works.
    ///
    /// # Errors
    /// The peer, or its subject, failed too often: the last failure.
    pub(super) fn begin(failures: &Arc<Mutex<Failures>>, subject: &str) -> Result<Option<Self>, HttpError> {
        let mut state = lock(failures);
        let name = state.name(subject);
        if let Some(error) = state.holds(&name) {
            return Err(HttpError::Held(Box::new(error)));
        }
        if state.is_crowded(&name) {
            return Ok(None);
        }
        let good = state.is_good(&name);
        state.begin(&name, good);
        Ok(Some(Self { failures: Arc::clone(failures), name, good, ended: false }))
    }

    pub(super) fn works(mut self) {
        self.end(End::Good, |state| state.row = Count::default());
    }

    pub(super) fn aside(mut self) {
        self.end(End::Aside, |state| state.row.add(None));
    }

    pub(super) fn refused(mut self, error: HttpError) {
        self.end(End::Refused(error), |state| state.row = Count::default());
    }

    pub(super) fn failed(mut self, error: HttpError) {
        self.fail(error);
    }

    fn fail(&mut self, error: HttpError) {
        self.end(End::Failed(error.clone()), |state| {
            state.all.add(Some(error.clone()));
            state.row.add(Some(error));
        });
    }

    fn end(&mut self, end: End, count: impl FnOnce(&mut Failures)) {
        self.ended = true;
        let mut state = lock(&self.failures);
        state.end(&self.name, self.good, end);
        count(&mut state);
        state.ended.notify_waiters();
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
