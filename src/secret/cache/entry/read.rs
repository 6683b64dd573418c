//! One read of a secret, and what follows from how it ended.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};

use super::{Book, Bound, READ_TIMEOUT, RETRY_FIRST, RETRY_MAX, RefreshOutcome, SecretEntry, SecretVersion};
use crate::message::end::End;
use crate::secret::aws;
use crate::secret::cache::refused::Refusal;
use crate::secret::error::SecretError;
use crate::secret::reference::{ENV, FILE};
use crate::secret::value::{SecretValue, ValueRules};
use crate::secret::{Reading, Source};

/// A value whose own end lies behind that may as well have none.
const LONGEST_LIFE: Duration = Duration::from_secs(366 * 86_400);

impl SecretEntry {
    /// Takes the last read of an entry that is gone for its own.
    pub(super) fn goes_on_from(&self, before: Refusal) {
        let Refusal { again, failures, error } = before;
        self.current.store(Arc::new(Err(Arc::clone(&error))));
        let mut book = self.book();
        (book.ended, book.last) = (1, Some((0, RefreshOutcome::Failed)));
        (book.due_at, book.failures, book.error) = (Some(again), failures, Some(error));
    }

    pub(super) async fn read_after_now(&self, limit: Duration) -> RefreshOutcome {
        let asked = self.book().begun;
        let Ok(_turn) = self.turn.acquire().await else {
            return RefreshOutcome::Failed;
        };
        let last = self.book().last;
        match last {
            // The last good or failed read began after this call asked, so it answers this call too.
            Some((begun, outcome)) if begun > asked => return outcome,
            Some((_, outcome)) if self.is_done() => {
                return if outcome == RefreshOutcome::Failed { outcome } else { RefreshOutcome::Unchanged };
            }
            _ => {}
        }
        self.read(limit).await
    }

    /// One read, within the store's patience and `limit`. The caller holds the turn.
    pub(in crate::secret::cache) async fn read(&self, limit: Duration) -> RefreshOutcome {
        let number = {
            let mut book = self.book();
            book.begun += 1;
            book.reading = true;
            book.begun
        };
        let _running = Running(self);
        let (unknown, store) = (self.is_of_unknown(), self.reference.store());
        if unknown && !self.pace.may_ask(store, Instant::now()) {
            return self.held_back(number);
        }
        let bound = self.bound.load_full();
        let limit = limit.min(bound.store.as_ref().map_or(READ_TIMEOUT, |store| store.patience()));
        let read = match timeout(limit, self.load(&bound)).await {
            Ok(read) => read,
            Err(_) => Err(SecretError::TimedOut { reference: self.reference.clone(), after: limit }),
        };
        if Arc::ptr_eq(&bound, &self.bound.load()) {
            self.book().rebound = false;
        }
        // A store that fails is left alone by its own client.
        if unknown && read.as_ref().err().is_none_or(|error| !error.blames_store()) {
            self.pace.asked(store, read.is_ok(), Instant::now());
        }
        match read {
            Ok(found) => self.succeeded(number, &bound, found),
            Err(error) => self.failed(number, &bound, error),
        }
    }

    async fn load(&self, bound: &Bound) -> Result<Found, SecretError> {
        let store = bound.store.as_ref().map_err(Clone::clone)?;
        let Reading { bytes, expires, again } = store.read(&self.reference).await?;
        let value = SecretValue::checked(bytes, self.rules, &self.reference)?;
        let expires = match (expires, self.own_end(&value)?) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let poll = match bound.source {
            Source::Polled(every) => Some(Instant::now() + every.mul_f64(0.9 + fastrand::f64() / 5.0)),
            Source::Fixed | Source::File(_) | Source::Made => None,
        };
        Ok(Found { value, expires, again: again.or(poll) })
    }

    /// When a value ends that says so itself.
    ///
    /// # Errors
    /// It has ended.
    fn own_end(&self, value: &SecretValue) -> Result<Option<Instant>, SecretError> {
        if self.rules != ValueRules::AwsKeys {
            return Ok(None);
        }
        let Some(at) = aws::ends(value.expose()) else { return Ok(None) };
        match at.duration_since(SystemTime::now()) {
            Ok(left) => Ok(Some(Instant::now() + left.min(LONGEST_LIFE))),
            Err(_) => Err(SecretError::Expired { reference: self.reference.clone() }),
        }
    }

    fn succeeded(&self, read: u64, bound: &Bound, found: Found) -> RefreshOutcome {
        let Found { value, expires, again } = found;
        // Not `current()`: a value that has ended still counts.
        let before = self.latest();
        let same = before.as_ref().is_some_and(|before| before.value.same_as(&value));
        let outcome = if same { RefreshOutcome::Unchanged } else { RefreshOutcome::Changed };
        // A value that lives on with a new end keeps its number: whoever made something of it need not make it anew.
        let lives_on = before.as_ref().filter(|_| same);
        let (number, read_at, read_at_wall) = lives_on.map_or_else(
            || (before.as_ref().map_or(0, |old| old.number) + 1, Instant::now(), SystemTime::now()),
            |old| (old.number, old.read_at, old.read_at_wall),
        );
        if !same || before.is_some_and(|old| old.expires.map(End::steady) != expires) {
            let version =
                SecretVersion { value, number, read_at, read_at_wall, expires: expires.map(End::at) };
            self.current.store(Arc::new(Ok(Arc::new(version))));
        }
        if !same && self.template.is_none() {
            self.wake.changed();
            tracing::info!(target: "outgate::secret", reference = bound.shown, version = number, "secret read");
        } else if !same {
            // One line for each tenant is too many for a log that people read.
            tracing::debug!(target: "outgate::secret", reference = bound.shown, version = number, "secret read");
        }
        {
            let mut book = self.book();
            book.end(read, outcome);
            (book.failures, book.failed_at, book.error) = (0, None, None);
            (book.good_at, book.missing) = (Some(SystemTime::now()), None);
            // A reload may have bound it anew meanwhile: then it stays due.
            if !book.rebound {
                book.due_at = again;
            }
        }
        if let Some(refused) = &self.refused {
            refused.forget(&(self.reference.clone(), self.rules));
        }
        if !same && number > 1 {
            self.products_are_due();
        }
        self.wake.notify_one();
        self.ended.notify_waiters();
        outcome
    }

    /// A tenant's secret without a value is not asked for before its time, also where its entry goes and comes again.
    fn remember(&self, book: &Book, error: &Arc<SecretError>) {
        let Some(refused) = self.refused.as_ref().filter(|_| !book.rebound && self.latest().is_none()) else {
            return;
        };
        if let Some(again) = book.due_at {
            let refusal = Refusal { again, failures: book.failures, error: Arc::clone(error) };
            refused.note(&(self.reference.clone(), self.rules), refusal);
        }
    }

    /// What a secret that is not there waits at least: the more of them, the longer.
    fn least_wait(&self, book: &mut Book, error: &SecretError) -> Duration {
        let local = matches!(self.reference.store(), ENV | FILE);
        if error.blames_store() || self.template.is_some() || self.is_made() || local {
            book.missing = None;
            return Duration::ZERO;
        }
        book.missing.get_or_insert_with(|| self.pace.missing(self.reference.store())).wait()
    }

    /// It is not asked for: its store does not know too many others.
    fn held_back(&self, read: u64) -> RefreshOutcome {
        let error = Arc::new(SecretError::HeldBack { reference: self.reference.clone() });
        if self.current.load().is_err() {
            self.current.store(Arc::new(Err(Arc::clone(&error))));
        }
        {
            let mut book = self.book();
            book.end(read, RefreshOutcome::Failed);
            // Spread, for all that were held back come again.
            book.due_at = Some(Instant::now() + RETRY_FIRST.mul_f64(1.0 + 4.0 * fastrand::f64()));
            book.failures = book.failures.max(1);
            book.failures_in_all += 1;
            book.error = Some(error);
        }
        self.wake.notify_one();
        self.ended.notify_waiters();
        RefreshOutcome::Failed
    }

    fn failed(&self, read: u64, bound: &Bound, error: SecretError) -> RefreshOutcome {
        let error = Arc::new(error);
        if self.current.load().is_err() {
            self.current.store(Arc::new(Err(Arc::clone(&error))));
        }
        let news = {
            let mut book = self.book();
            book.end(read, RefreshOutcome::Failed);
            let now = Instant::now();
            book.failed_at = Some(now);
            // Who was not asked for stands in a line, and comes again to keep its place there.
            let held = error.is_held();
            if !book.rebound {
                let least = self.least_wait(&mut book, &error);
                let failures = if held { 0 } else { book.failures };
                book.due_at = (bound.source != Source::Fixed)
                    .then(|| now + retry_after(failures, least, fastrand::f64()));
            }
            book.failures = if held { book.failures.max(1) } else { book.failures.saturating_add(1) };
            book.failures_in_all += 1;
            self.remember(&book, &error);
            let told = held && book.error.is_some();
            !told && book.error.replace(Arc::clone(&error)).as_ref() != Some(&error)
        };
        // A store that is down for a day is one line, and not one for each retry.
        if news && self.log.as_ref().is_none_or(|log| log.may_tell(Instant::now())) {
            tracing::warn!(target: "outgate::secret", reference = bound.shown, code = error.code(), "secret not read: {error}");
        }
        self.wake.notify_one();
        self.ended.notify_waiters();
        RefreshOutcome::Failed
    }
}

/// A read on its way. If it is dropped before its end, who waits for it looks again.
struct Running<'a>(&'a SecretEntry);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::mem::take(&mut self.0.book().reading) {
            self.0.ended.notify_waiters();
        }
    }
}

/// A value that was read and checked.
struct Found {
    value: SecretValue,
    expires: Option<Instant>,
    again: Option<Instant>,
}

impl Book {
    fn end(&mut self, read: u64, outcome: RefreshOutcome) {
        self.ended += 1;
        self.reading = false;
        self.last = Some((read, outcome));
    }
}

/// Wait after the failure that came behind `failures` others: 6 s doubling up to 5 min, at least `least`, and up to a quarter
/// more, so that a fleet of pods does not come back in step. `random` is in 0..1.
fn retry_after(failures: u32, least: Duration, random: f64) -> Duration {
    let base = RETRY_FIRST.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(RETRY_MAX);
    base.max(least).mul_f64(1.0 + random / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_wait_at_least_six_seconds_and_at_most_five_minutes_and_a_quarter() {
        let table = [
            (0, 0.0, 6.0),
            (0, 1.0, 7.5),
            (1, 0.0, 12.0),
            (3, 0.5, 54.0),
            (6, 0.0, 300.0),
            (u32::MAX, 1.0, 375.0),
        ];
        for (failures, random, seconds) in table {
            assert_eq!(
                retry_after(failures, Duration::ZERO, random).as_secs_f64(),
                seconds,
                "{failures} {random}"
            );
        }
        assert_eq!(retry_after(0, Duration::from_secs(600), 0.0), Duration::from_secs(600));
    }
}
