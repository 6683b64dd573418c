//! Values that outgate makes itself: tokens. What differs from a value that a store keeps:
//!
//! - A request that finds none waits for it, within its own deadline; unless the last try failed a short while ago, then
//!   it is told at once.
//! - All reads are done by [`SecretCache::run`](super::SecretCache::run). A read that a request did itself would be broken
//!   off with the request, and a grant whose refresh token rotates would be lost half-way.
//! - What no policy uses any more is made as long as a request on its way asks for it, and not by the clock; not at all, where that
//!   would use up what the new policy's needs.
//! - However many ask at once, one read serves them all, and none begins because of an answer that they could not know yet.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::entry::{Current, RefreshOutcome, SecretEntry};
use crate::message::end::End;
use crate::secret::Source;

/// For each value that is made anew because one secret changed, so long at most.
const SPREAD: Duration = Duration::from_millis(50);

impl SecretEntry {
    /// The value in use; where there is none and outgate makes it itself, or it is a tenant's, waits until a read of it has ended.
    /// That read is asked for, if none is under way and the last one did not fail a short while ago. The future may be
    /// dropped: the read goes on.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn obtain(&self) -> Current {
        let asked = self.book().ended;
        let now = self.current();
        if now.is_ok() || !self.is_waited_for() || self.rests() {
            return now;
        }
        self.ask_and_wait(asked).await;
        self.current()
    }

    /// Whether outgate makes the value itself.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.bound().source == Source::Made
    }

    /// Whether a request that finds no value waits for one: outgate makes it, or it is a tenant's, who was not known before.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.is_made() || self.template().is_some()
    }

    /// What the value is made from, where that is all there is to it: a token that outgate signs itself.
    #[must_use]
    pub fn made_alone_from(&self) -> Option<Vec<Arc<Self>>> {
        let bound = self.bound();
        let store = bound.store.as_ref().ok().filter(|store| store.makes_alone())?;
        Some(store.made_from())
    }

    /// When the last good value is no longer used, or since when it is not.
    #[must_use]
    pub fn ends_at(&self) -> Option<Instant> {
        self.latest()?.expires.map(End::steady)
    }

    /// Waits until a read from its present store was tried, which is done now if there was none: for who needs a secret to make
    /// another one.
    pub async fn tried_once(&self) {
        if !self.is_new() {
            return;
        }
        let _place =
            if self.is_of_unknown() { self.pace.place(self.reference().store()).await } else { None };
        if self.is_new() {
            self.refresh().await;
        }
    }

    /// Notes `made` as one that is made from this secret.
    pub(super) fn leads_to(&self, made: &Arc<Self>) {
        let mut all = self.made_of_it();
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(made));
    }

    /// What is made from this secret, and still in use.
    fn products(&self) -> Vec<Arc<Self>> {
        self.made_of_it().iter().filter_map(Weak::upgrade).collect()
    }

    /// This secret has another value: what was made from the one before is made anew. One that is being made is not: it may
    /// be what led to this read, and goes on with the new value.
    pub(super) fn products_are_due(&self) {
        let products = self.products();
        // A thousand tenants' tokens of one client are not asked for in one moment.
        let within = SPREAD * u32::try_from(products.len()).unwrap_or(u32::MAX);
        for made in products {
            let mut book = made.book();
            if !book.reading && !book.wanted && book.ended > 0 {
                let at = Instant::now() + within.mul_f64(fastrand::f64());
                book.due_at = Some(book.due_at.map_or(at, |due| due.min(at)));
            }
        }
        self.wake.notify_one();
    }

    /// This secret comes from another store: what is made from it is made anew before the new policy takes effect.
    pub(super) fn products_are_new(&self) {
        for made in self.products() {
            let mut book = made.book();
            (book.rebound, book.due_at) = (true, Some(Instant::now()));
        }
    }

    /// Whether the last read failed, and the time for the next has not come.
    fn rests(&self) -> bool {
        self.retry_at().is_some_and(|at| at > Instant::now())
    }

    /// Whether a read runs, or was asked for and has not begun.
    pub(super) fn is_under_way(&self) -> bool {
        let book = self.book();
        book.reading || book.wanted
    }

    /// Whether somebody asked for a read that has not begun.
    pub(super) fn is_wanted(&self) -> bool {
        self.book().wanted
    }

    /// No policy uses it any more. Returns whether it is read for who still holds it: not where that uses something up, which
    /// belongs to the new policy now. Then who waits is told at once; what runs comes to its end.
    pub(super) fn leave(&self) -> bool {
        let uses_up = self.bound().store.as_ref().is_ok_and(|store| store.uses_up());
        if uses_up {
            self.book().gone = true;
            self.ended.notify_waiters();
        }
        !uses_up
    }

    /// Waits for the first read that ends after `asked` reads had ended, and asks for it if none is under way. `asked` was
    /// looked up before the value was: a read that ended in between is not waited past.
    pub(super) async fn ask_and_wait(&self, asked: u64) -> RefreshOutcome {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Before the look into the book: an end between the two is not missed.
            ended.as_mut().enable();
            {
                let mut book = self.book();
                if book.ended != asked {
                    return book.last.map_or(RefreshOutcome::Failed, |(_, outcome)| outcome);
                }
                if book.gone && !book.reading {
                    return RefreshOutcome::Failed;
                }
                // Also where one was under way and is gone without an end.
                if !book.reading && !book.wanted {
                    (book.wanted, book.due_at) = (true, Some(Instant::now()));
                    self.wake.notify_one();
                }
            }
            ended.await;
        }
    }

    /// The read of [`SecretCache::run`](super::SecretCache::run): nothing, if another has done it meanwhile.
    pub(super) async fn read_wanted(self: Arc<Self>) {
        let Ok(_turn) = self.turn.acquire().await else { return };
        {
            let mut book = self.book();
            let is_due = std::mem::take(&mut book.wanted) && !book.gone;
            if !is_due {
                return;
            }
            book.reading = true;
        }
        self.read(Duration::MAX).await;
    }

    /// The first read, waited for at most `limit`; it goes on after that.
    pub(super) async fn first_made(&self, limit: Duration) {
        // Nothing is lost: the outcome stands in the entry.
        let asked = self.book().ended;
        let _ = timeout(limit, self.ask_and_wait(asked)).await;
    }
}
