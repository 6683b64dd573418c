//! Dynamic secrets: values that Vault makes for outgate (a database user, AWS keys) and takes back when their lease ends.
//!
//! All fields of one path come from one lease, so that a user name and its password belong together. A lease is renewed
//! at two thirds of its life; where the server grants less than half of the former life, or refuses, a new one is taken.
//! A value is never used after the end of its lease. Leases end with the token that took them: after a login they are
//! taken anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Method;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Server;
use crate::secret::Reading;
use crate::secret::cache::HEAL_INTERVAL;
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::HttpCall;
use crate::secret::reference::SecretRef;
use crate::secret::stores::document::Document;

/// What was leased, and until when.
struct Lease {
    values: Arc<Document>,
    id: String,
    renewable: bool,
    /// Begin of the present term.
    from: Instant,
    ends: Instant,
    /// Number of the login under which it was taken.
    login: u64,
}

impl Lease {
    fn term(&self) -> Duration {
        self.ends.saturating_duration_since(self.from)
    }

    /// Two thirds of its term, and the same moment for all fields.
    fn due_at(&self) -> Instant {
        self.from + self.term().mul_f64(2.0 / 3.0)
    }

    fn reading(&self, server: &Server, reference: &SecretRef) -> Result<Reading, SecretError> {
        let bytes = self.values.field(&["data"], reference)?;
        // When the token is renewed or replaced is the time to look whether the lease lives on.
        let token = server.login.renew_at().map(|at| at + Duration::from_secs(1));
        let again = token.map_or(self.due_at(), |token| token.min(self.due_at()));
        // Not at once again, if the token was due a moment ago.
        let again = again.max(Instant::now() + Duration::from_secs(1));
        Ok(Reading { bytes, expires: Some(self.ends), again: Some(again) })
    }
}

/// The leases of a store by path. Ended ones go when a new one comes, so there are at most as many as references.
#[derive(Default)]
pub(super) struct Leases {
    held: Mutex<BTreeMap<String, Arc<Lease>>>,
    /// Paths whose lease was rejected in the last healing interval.
    rejected: Mutex<BTreeMap<String, Instant>>,
    /// One at a time takes or renews a path: two fields of it must not take a lease each. Paths do not wait for each other.
    turns: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

impl Leases {
    /// The field that `reference` asks for.
    pub(super) async fn read(
        &self,
        server: &Server,
        path: &str,
        reference: &SecretRef,
    ) -> Result<Reading, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        let turn = self.turn(path);
        let Ok(_turn) = turn.acquire().await else {
            return Err(fault(StoreFault::Garbled("the store was closed")));
        };
        // A token that is due is renewed or replaced first: a lease ends with its token.
        server.login.token(server).await.map_err(fault)?;
        let old = self.lock().get(path).cloned();
        if let Some(old) = old.filter(|old| old.login == server.login.logins() && old.ends > Instant::now()) {
            if old.due_at() > Instant::now() {
                return old.reading(server, reference);
            }
            if let Some(renewed) = renew(server, &old).await {
                return self.keep(path, renewed).reading(server, reference);
            }
        }
        // It may have begun when it was asked for: the answer may have been on its way for long.
        let now = Instant::now();
        let values = server.take(path).await.map_err(fault)?;
        match lease(&values) {
            Some((id, term, renewable)) => {
                let (values, login) = (Arc::new(values), server.login.logins());
                let lease = Lease { values, id, renewable, from: now, ends: now + term, login };
                self.keep(path, lease).reading(server, reference)
            }
            None => Ok(values.field(&["data"], reference)?.into()),
        }
    }

    /// A provider did not take a value of this path: the next read takes a new lease. Not again within the healing interval:
    /// another field of it is rejected with the same request.
    pub(super) fn rejected(&self, path: &str) {
        let mut rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        rejected.retain(|_, at| at.elapsed() < HEAL_INTERVAL);
        if !rejected.contains_key(path) && self.lock().remove(path).is_some() {
            rejected.insert(path.to_owned(), Instant::now());
        }
    }

    /// The turn of a path. Those that nobody waits for go, so there are at most as many as reads under way.
    fn turn(&self, path: &str) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(path).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Semaphore::new(1));
        turns.insert(path.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn keep(&self, path: &str, lease: Lease) -> Arc<Lease> {
        let lease = Arc::new(lease);
        let mut held = self.lock();
        held.retain(|_, lease| lease.ends > Instant::now());
        held.insert(path.to_owned(), Arc::clone(&lease));
        lease
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Lease>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Id, term and whether it can be renewed; none for an answer without lease.
fn lease(answer: &Document) -> Option<(String, Duration, bool)> {
    let id = answer.text(&["lease_id"]).filter(|id| !id.is_empty())?;
    let seconds = answer.number(&["lease_duration"]).filter(|seconds| *seconds > 0)?;
    let renewable = answer.at(&["renewable"]).and_then(|value| value.as_bool()).unwrap_or(false);
    Some((id.to_owned(), Duration::from_secs(seconds.min(u64::from(u32::MAX))), renewable))
}

/// The same lease with a longer term; none where the server refuses, or has little left to grant.
async fn renew(server: &Server, old: &Lease) -> Option<Lease> {
    if !old.renewable {
        return None;
    }
    let id = Zeroizing::new(serde_json::to_vec(&BTreeMap::from([("lease_id", &old.id)])).ok()?);
    let call = || {
        let call = HttpCall::login(&server.address.target, server.url("sys/leases/renew"), id.clone());
        HttpCall { method: Method::PUT, ..call }
    };
    let from = Instant::now();
    let (answer, verdict) = server.asked(call).await.ok()?;
    let (id, term, renewable) = lease(&answer)?;
    verdict.works();
    let values = Arc::clone(&old.values);
    let renewed = Lease { values, id, renewable, from, ends: from + term, login: server.login.logins() };
    (renewed.term() * 2 >= old.term()).then_some(renewed)
}
