//! One secret in use: its value, and when it may be read again.

mod read;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::pace::{Missing, Pace};
use super::refused::Refused;
use super::tenants::TenantLog;
use super::wake::Wake;
use super::{SecretState, SecretStatus};
use crate::message::end::End;
use crate::secret::error::SecretError;
use crate::secret::reference::{ENV, FILE, SecretRef};
use crate::secret::value::{SecretValue, ValueRules};
use crate::secret::{SecretStore, Source};

/// How long one read may take, unless its store asks for another time.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// A rejected credential causes at most one read of its secret in this time.
pub const HEAL_INTERVAL: Duration = Duration::from_secs(30);
/// The least time between a failed read and the next that no change asked for: so a failing store sees at most ten reads
/// of a secret a minute.
const RETRY_FIRST: Duration = Duration::from_secs(6);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// A value as it was read.
pub struct SecretVersion {
    /// The value.
    pub value: SecretValue,
    /// 1 for the first value that this process read, and one more for each that differed from the one before.
    pub number: u64,
    /// When it was first read.
    pub read_at: Instant,
    /// The same by the wall clock, for people.
    pub read_at_wall: SystemTime,
    /// When the value itself ends; from then on [`SecretEntry::current`] does not give it any more.
    pub expires: Option<End>,
}

impl SecretVersion {
    fn is_over(&self) -> bool {
        self.expires.is_some_and(End::has_come)
    }
}

/// What a request to read again came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefreshOutcome {
    /// There is a new version.
    Changed,
    /// The value is still the same.
    Unchanged,
    /// The read failed; a former good value stays.
    Failed,
    /// Not read: it was done a short while ago.
    TooSoon,
}

pub(super) type Current = Result<Arc<SecretVersion>, Arc<SecretError>>;

/// One secret. Shared by all who use the same reference.
pub struct SecretEntry {
    reference: SecretRef,
    /// Of a tenant's secret, the reference as it stands in the policy.
    template: Option<SecretRef>,
    rules: ValueRules,
    bound: ArcSwap<Bound>,
    current: ArcSwap<Current>,
    /// What is said once the value has ended; made beforehand, so that a request only clones it.
    over: Arc<SecretError>,
    book: Mutex<Book>,
    /// One permit: who holds it reads. A cancelled reader gives it back, and the next in line takes over.
    pub(super) turn: Semaphore,
    required: AtomicBool,
    pub(super) wake: Arc<Wake>,
    pub(super) pace: Arc<Pace>,
    /// A read came to an end.
    pub(super) ended: Notify,
    /// Of a tenant's secret: whether a failure may be told.
    log: Option<Arc<TenantLog>>,
    /// Of a tenant's secret: where a failure is remembered.
    refused: Option<Arc<Refused>>,
    /// What outgate makes from this secret. Locked for moments, never over an await.
    products: Mutex<Vec<Weak<SecretEntry>>>,
}

/// What an entry tells its cache, and what that knows of its store.
pub(super) struct Told {
    pub(super) wake: Arc<Wake>,
    pub(super) pace: Arc<Pace>,
}

/// Where the value comes from. Swapped when a reload changes the store.
pub(super) struct Bound {
    pub(super) store: Result<Arc<dyn SecretStore>, SecretError>,
    pub(super) source: Source,
    /// The reference for logs and status.
    shown: String,
}

impl Bound {
    fn new(
        reference: &SecretRef,
        template: Option<&SecretRef>,
        store: Result<Arc<dyn SecretStore>, SecretError>,
    ) -> Self {
        let source = match store.as_ref().map_or(Source::Fixed, |store| store.source(reference)) {
            Source::File(_) if template.is_some() => Source::Polled(super::tenants::FILE_POLL),
            source => source,
        };
        let shown = if store.is_ok() { reference.to_string() } else { String::from("(unknown store)") };
        Self { store, source, shown }
    }
}

/// What is known of the reads so far. Locked for moments, never over an await.
#[derive(Default)]
pub(super) struct Book {
    /// Reads begun; a cancelled one counts.
    begun: u64,
    /// Reads that came to an end.
    pub(super) ended: u64,
    /// The number (by `begun`) of the last read that came to an end, and what it came to.
    pub(super) last: Option<(u64, RefreshOutcome)>,
    /// When the last good read ended, by the wall clock, for people.
    good_at: Option<SystemTime>,
    failed_at: Option<Instant>,
    failures: u32,
    /// Failed reads since the start; never reset.
    failures_in_all: u64,
    /// When to read next without being asked: after a failure, or when the value is due.
    pub(super) due_at: Option<Instant>,
    /// Somebody, or the clock, asked for a read of a value that outgate makes itself, and it has not begun.
    pub(super) wanted: bool,
    /// A read runs. Not the same as the turn, which is given back a moment after the end.
    pub(super) reading: bool,
    /// The value, or what it is made from, comes from another store now, and was not read from there yet.
    pub(super) rebound: bool,
    /// No policy uses it any more, and its reads use something up: none begins.
    pub(super) gone: bool,
    healed_at: Option<Instant>,
    /// Its store works and does not have it.
    missing: Option<Missing>,
    error: Option<Arc<SecretError>>,
}

impl SecretEntry {
    pub(super) fn new(
        reference: SecretRef,
        rules: ValueRules,
        store: Result<Arc<dyn SecretStore>, SecretError>,
        told: Told,
    ) -> Self {
        Self::with(reference, None, rules, store, told)
    }

    /// A tenant's secret; `template` is the reference as it stands in the policy.
    pub(super) fn of_tenant(
        reference: SecretRef,
        template: SecretRef,
        rules: ValueRules,
        store: Result<Arc<dyn SecretStore>, SecretError>,
        told: Told,
        (log, refused): (Arc<TenantLog>, Arc<Refused>),
    ) -> Self {
        let before = refused.of(&(reference.clone(), rules));
        let (log, refused) = (Some(log), Some(refused));
        let entry = Self { log, refused, ..Self::with(reference, Some(template), rules, store, told) };
        if let Some(before) = before {
            entry.goes_on_from(before);
        }
        entry
    }

    fn with(
        reference: SecretRef,
        template: Option<SecretRef>,
        rules: ValueRules,
        store: Result<Arc<dyn SecretStore>, SecretError>,
        Told { wake, pace }: Told,
    ) -> Self {
        let bound = Bound::new(&reference, template.as_ref(), store);
        let not_read = SecretError::NotRead { reference: reference.clone() };
        let over = SecretError::Expired { reference: reference.clone() };
        Self {
            reference,
            template,
            rules,
            bound: ArcSwap::from_pointee(bound),
            current: ArcSwap::from_pointee(Err(Arc::new(not_read))),
            over: Arc::new(over),
            book: Mutex::default(),
            turn: Semaphore::new(1),
            log: None,
            refused: None,
            required: AtomicBool::new(false),
            wake,
            pace,
            ended: Notify::new(),
            products: Mutex::default(),
        }
    }

    /// Which secret it is.
    #[must_use]
    pub fn reference(&self) -> &SecretRef {
        &self.reference
    }

    /// Of a tenant's secret, the reference as it stands in the policy.
    pub(super) fn template(&self) -> Option<&SecretRef> {
        self.template.as_ref()
    }

    /// The value in use. Takes no lock and never waits: cheap enough for every attempt of every request.
    ///
    /// # Errors
    /// Why there is none: no read was good yet, or the last good value has ended.
    pub fn current(&self) -> Result<Arc<SecretVersion>, Arc<SecretError>> {
        match self.current.load().as_ref() {
            Ok(version) if version.is_over() => Err(Arc::clone(&self.over)),
            other => other.clone(),
        }
    }

    /// The last good value, also where it has ended.
    pub(super) fn latest(&self) -> Option<Arc<SecretVersion>> {
        self.current.load().as_ref().as_ref().ok().cloned()
    }

    /// When version `number` is no longer used: at once where another has taken its place. Asked of each attempt; takes no lock.
    #[must_use]
    pub fn end_of(&self, number: u64) -> Option<End> {
        match self.current.load().as_ref() {
            Ok(version) if version.number == number => version.expires,
            Ok(_) | Err(_) => Some(End::at(Instant::now())),
        }
    }

    /// Reads again. Calls at the same time share one read, which begins after each of them asked: so a change that a
    /// caller knows of is seen. A value that cannot change is not read twice.
    pub async fn refresh(&self) -> RefreshOutcome {
        self.read_after_now(Duration::MAX).await
    }

    /// Reads again because a provider rejected the credential, at most once per [`HEAL_INTERVAL`] and not right after a
    /// failed read. Who asks while a read runs gets that read's outcome, if there is news in it. Ask only if the rejected version is still the
    /// current one.
    pub async fn heal_refresh(&self) -> RefreshOutcome {
        if self.is_done() {
            return RefreshOutcome::Unchanged;
        }
        let asked = self.book().ended;
        if !self.may_heal() && !self.is_under_way() {
            return RefreshOutcome::TooSoon;
        }
        if self.is_made() {
            if !self.is_under_way() {
                self.mark_rejected();
            }
            return self.ask_and_wait(asked).await;
        }
        let Ok(_turn) = self.turn.acquire().await else {
            return RefreshOutcome::Failed;
        };
        // A read that was under way before anything was rejected may have been answered from what its store keeps, such as a
        // lease: it is an answer if it brought another value, or was made for the same rejection.
        if let Some(outcome) = self.ended_since(asked)
            && (outcome == RefreshOutcome::Changed || !self.may_heal())
        {
            return outcome;
        }
        self.mark_rejected();
        self.read(Duration::MAX).await
    }

    fn mark_rejected(&self) {
        // Marked before the read: cancelling requests must not be a way to read more often.
        self.book().healed_at = Some(Instant::now());
        if let Ok(store) = &self.bound.load_full().store {
            store.rejected(&self.reference);
        }
    }

    /// The file to watch, if it comes from one.
    pub(super) fn file(&self) -> Option<PathBuf> {
        match &self.bound.load().source {
            Source::File(path) => Some(path.clone()),
            Source::Fixed | Source::Polled(_) | Source::Made => None,
        }
    }

    /// The store that it is polled from, where it is.
    pub(super) fn polled(&self) -> Option<Arc<dyn SecretStore>> {
        let bound = self.bound.load();
        matches!(bound.source, Source::Polled(_)).then(|| bound.store.as_ref().ok().cloned()).flatten()
    }

    /// It may have changed: it is read again now.
    pub(super) fn make_due(&self) {
        self.book().due_at = Some(Instant::now());
    }

    /// Takes its values from `store` from now on, if that is another one. The value in use stays until the next read.
    pub(super) fn rebind(&self, store: Arc<dyn SecretStore>) {
        if self.bound.load().store.as_ref().is_ok_and(|old| Arc::ptr_eq(old, &store)) {
            return;
        }
        self.bound.store(Arc::new(Bound::new(&self.reference, self.template.as_ref(), Ok(store))));
        {
            let mut book = self.book();
            (book.rebound, book.due_at) = (true, Some(Instant::now()));
        }
        self.products_are_new();
    }

    /// Whether no read of its present store was tried yet.
    pub(super) fn is_new(&self) -> bool {
        let book = self.book();
        book.ended == 0 || book.rebound
    }

    pub(super) fn tried(&self) -> bool {
        self.book().ended > 0
    }

    pub(super) fn required(&self) -> bool {
        self.required.load(Ordering::Relaxed)
    }

    pub(super) fn set_required(&self, required: bool) {
        self.required.store(required, Ordering::Relaxed);
    }

    /// When a read that failed is tried again, where it was one and ever is.
    pub fn retry_at(&self) -> Option<Instant> {
        let book = self.book();
        book.due_at.filter(|_| book.failures > 0)
    }

    /// When to read next without being asked.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.book().due_at
    }

    /// Whether it is due; who is told so reads it.
    pub(super) fn take_due(&self, now: Instant) -> bool {
        let waited_for = self.is_waited_for();
        let mut book = self.book();
        let due = book.due_at.is_some_and(|at| at <= now);
        if due
            && book.missing.is_some()
            && let Err(later) = self.pace.ask_again(self.reference.store(), now)
        {
            book.due_at = Some(later);
            return false;
        }
        if due {
            book.due_at = None;
            book.wanted |= waited_for;
        }
        due
    }

    pub(super) async fn first_read(&self, limit: Duration) {
        if self.is_made() {
            return self.first_made(limit).await;
        }
        self.read_after_now(limit).await;
    }

    pub(super) fn status(&self) -> SecretStatus {
        let (current, bound) = (self.current(), self.bound.load_full());
        let (tried, error, failed_reads, due_at, good_at) = {
            let book = self.book();
            let error = book.error.as_ref().map(|error| error.code());
            (book.ended > 0, error, book.failures_in_all, book.due_at, book.good_at)
        };
        let until = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(Instant::now()).as_secs());
        let error = error.or(current.as_ref().err().filter(|_| tried).map(|error| error.code()));
        let version = current.ok();
        SecretStatus {
            reference: bound.shown.clone(),
            store: bound.store.as_ref().map_or_else(|_| String::new(), |_| self.reference.store().to_owned()),
            state: match (&version, error) {
                (Some(_), None) => SecretState::Current,
                (Some(_), Some(_)) => SecretState::Stale,
                (None, _) if tried => SecretState::Missing,
                (None, _) => SecretState::Pending,
            },
            version: version.as_ref().map(|version| version.number),
            age_seconds: version.as_ref().map(|version| version.read_at.elapsed().as_secs()),
            last_good_read: good_at.map(|at| humantime::format_rfc3339_millis(at).to_string()),
            ends_in_seconds: version.and_then(|version| version.expires).map(|end| end.left().as_secs()),
            next_read_in_seconds: until(due_at),
            reading: self.turn.available_permits() == 0,
            last_error_code: error,
            failed_reads,
            required: self.required(),
        }
    }

    pub(super) fn bound(&self) -> Arc<Bound> {
        self.bound.load_full()
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn made_of_it(&self) -> MutexGuard<'_, Vec<Weak<Self>>> {
        self.products.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is a secret of a tenant of whom nothing is known, and comes from a server.
    pub(super) fn is_of_unknown(&self) -> bool {
        let local = matches!(self.reference.store(), ENV | FILE);
        self.template.is_some() && !local && !self.is_made() && self.latest().is_none()
    }

    /// Whether another read could not tell anything new.
    fn is_done(&self) -> bool {
        self.bound.load().source == Source::Fixed && self.tried()
    }

    fn may_heal(&self) -> bool {
        let book = self.book();
        let past = |at: Option<Instant>, wait| at.is_none_or(|at: Instant| at.elapsed() >= wait);
        past(book.healed_at, HEAL_INTERVAL) && past(book.failed_at, RETRY_FIRST)
    }

    pub(super) fn ended_since(&self, asked: u64) -> Option<RefreshOutcome> {
        let book = self.book();
        if book.ended == asked { None } else { book.last.map(|(_, outcome)| outcome) }
    }
}
