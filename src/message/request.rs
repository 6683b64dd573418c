//! A request on its way out, after admission.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::time::Instant;

use super::body::Body;
use super::end::End;
use super::failure::{Failure, Progress};
use super::target::Target;
use crate::telemetry::{Flag, HttpVersion};

/// A request as the layers of a route see it: judged, cleaned, without credential. In a box, because each layer hands it on,
/// and futures that hold it once or twice would be larger than what allocators serve quickly.
pub struct EgressRequest(Box<EgressParts>);

impl Deref for EgressRequest {
    type Target = EgressParts;

    fn deref(&self) -> &EgressParts {
        &self.0
    }
}

impl DerefMut for EgressRequest {
    fn deref_mut(&mut self) -> &mut EgressParts {
        &mut self.0
    }
}

impl From<EgressParts> for EgressRequest {
    fn from(parts: EgressParts) -> Self {
        Self(Box::new(parts))
    }
}

/// What a request is made of.
pub struct EgressParts {
    /// The method.
    pub method: Method,
    /// The origin; the decision, DNS, SNI, `Host` and the pool key all come from it.
    pub target: Target,
    /// Path and query, sent byte for byte as they were judged. Starts with `/`.
    pub path_and_query: http::uri::PathAndQuery,
    /// End-to-end fields only.
    pub headers: HeaderMap,
    /// The body; streams.
    pub body: Body,
    /// Whether this asks to become a WebSocket; then the upstream must speak HTTP/1.1.
    pub upgrade: bool,
    /// Which member of a list of credentials this attempt takes; 0 is the first in order of preference.
    pub credential_choice: usize,
    /// The tenant the app named (`tenant.header`), where the policy asks for one.
    pub tenant: Option<Arc<str>>,
    /// Leave to go on that a layer outside gave, and that is asked about again after the waits further in.
    pub leave: Option<Leave>,
    /// What the layers tell the record, and one another, about this exchange.
    pub exchange: Arc<Exchange>,
}

/// Digests that the app made of a body which is another one now.
const DIGESTS: [&str; 4] = ["content-md5", "digest", "content-digest", "repr-digest"];

impl EgressRequest {
    /// Takes it apart.
    pub fn into_parts(self) -> EgressParts {
        *self.0
    }

    /// Gives it another body: a stated length follows, and digests of the old one go.
    pub fn replace_body(&mut self, body: Bytes) {
        for name in DIGESTS {
            self.headers.remove(HeaderName::from_static(name));
        }
        if self.headers.contains_key(CONTENT_LENGTH) {
            self.headers.insert(CONTENT_LENGTH, body.len().into());
        }
        self.body = Body::full(body);
    }
}

/// A request that comes back whole.
pub struct Unsent(Mutex<EgressRequest>);

impl Unsent {
    /// Wraps it. A body cannot be shared between threads, and what carries it may be: hence the lock, which nobody takes.
    pub fn new(request: EgressRequest) -> Self {
        Self(Mutex::new(request))
    }

    /// The request.
    pub fn into_request(self) -> EgressRequest {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to go on, which whoever gave it may take back while the request waits elsewhere.
#[derive(Clone, Debug)]
pub struct Leave {
    /// How often leave was taken back from all who had it; grows only.
    recalls: Arc<AtomicU32>,
    given_at: u32,
    /// The number in the order in which leave was given: whoever is called back keeps it.
    number: u64,
    /// The leave that was given further out, which must hold as well.
    outer: Option<Arc<Leave>>,
    /// What the request had further in, when it was called back from there.
    further_in: Option<Number>,
}

/// A number in the order of one giver of leaves.
#[derive(Clone, Debug)]
pub struct Number {
    giver: Arc<AtomicU32>,
    number: u64,
}

impl Leave {
    /// Leave that holds until `recalls` is another number than `given_at`, and as long as `outer` does. `number` is its place in
    /// the order of the giver.
    pub fn new(recalls: Arc<AtomicU32>, given_at: u32, number: u64, outer: Option<Arc<Leave>>) -> Self {
        Self { recalls, given_at, number, outer, further_in: None }
    }

    /// Takes along what the request had further in.
    pub fn with_number(mut self, further_in: Option<Number>) -> Self {
        self.further_in = further_in;
        self
    }

    /// Its number, and whose.
    pub fn number(&self) -> Number {
        Number { giver: self.recalls.clone(), number: self.number }
    }

    /// The number that the request had before, if this giver gave it.
    pub fn number_of(&self, giver: &Arc<AtomicU32>) -> Option<u64> {
        self.further_in.as_ref().filter(|had| Arc::ptr_eq(&had.giver, giver)).map(|had| had.number)
    }

    /// Whether it was not taken back.
    pub fn holds(&self) -> bool {
        self.recalls.load(Ordering::Acquire) == self.given_at
            && self.outer.as_ref().is_none_or(|outer| outer.holds())
    }
}

/// What happens to one exchange, written by the layers and read when its record is emitted.
#[derive(Default)]
pub struct Exchange {
    /// When an answer's head must be there; none = no deadline.
    pub deadline: Option<Instant>,
    facts: Mutex<Facts>,
    upload: Upload,
    acted: AtomicBool,
    /// A connection was begun for it.
    dialled: AtomicBool,
    /// An attempt before the present one may have acted, and nothing has proved otherwise.
    acted_earlier: AtomicBool,
    hint: OnceLock<(HeaderName, HeaderValue)>,
    bucket: OnceLock<Arc<str>>,
    answered: AtomicBool,
    /// Bytes of the request body as received from the app.
    pub uploaded: AtomicU64,
}

/// The record's view of the way upstream.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Attempts made, the first included.
    pub attempts: u32,
    /// Time spent waiting for permits and pauses inside outgate.
    pub queue: Option<Duration>,
    /// Time the name took to resolve, where it had to be.
    pub dns: Option<Duration>,
    /// Time the TCP connection took, where one was made for this request.
    pub connect: Option<Duration>,
    /// Time the TLS handshake took, where one was made.
    pub tls: Option<Duration>,
    /// From the last request byte sent to the head of the answer.
    pub first_byte: Option<Duration>,
    /// The address that was dialled.
    pub peer: Option<SocketAddr>,
    /// Whether the connection had carried a request before.
    pub reused: Option<bool>,
    /// The version of HTTP spoken with the provider.
    pub upstream_version: Option<HttpVersion>,
    /// Reference of the credential that the current attempt carries (never its value).
    pub prepared: Option<Arc<str>>,
    /// The same of the last attempt that a connection had: it may have been sent.
    pub credential: Option<Arc<str>>,
    /// Which preparation of the credential the last attempt carried.
    pub credential_stamp: u64,
    /// Whose credential the current attempt carries: the number of a provider's credential, and of a tenant's own one; 0 = none.
    pub account: u64,
    /// When the credential that the current attempt carries ends by itself; it is not sent from then on.
    pub credential_ends: Option<End>,
    /// Which member of a list of credentials the last attempt carried; another than was asked for, where that one could
    /// not be had.
    pub credential_choice: usize,
    /// How often the answer repeated the credential and was masked.
    pub scrubbed: u64,
    /// For each attempt that was judged, why it was made again (`throttle`), or why not (`not_repeated:may_have_acted`).
    pub retry_reasons: Vec<&'static str>,
    /// Why outgate answered in the provider's stead though the exchange went well: a flag and a code.
    pub instead: Option<(Flag, &'static str)>,
    /// What would have been refused if it were not in shadow mode, such as `limit:account`.
    pub shadowed: Vec<Arc<str>>,
}

/// Attempts whose judgement is noted: more than a policy can ask for, with one more for a healed credential.
const MAX_REASONS: usize = 16;

impl Exchange {
    /// A new exchange with the given deadline for the answer's head.
    pub fn new(deadline: Option<Instant>) -> Self {
        Self { deadline, ..Self::default() }
    }

    /// The facts, for reading and writing. Never held across an await.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the credential that the current attempt carries has ended by itself.
    pub fn credential_is_over(&self) -> bool {
        self.facts().credential_ends.is_some_and(End::has_come)
    }

    /// Adds to the time spent waiting inside outgate: for limits, quota, concurrency and backoff. Never upstream time.
    pub fn queued(&self, waited: Duration) {
        if !waited.is_zero() {
            let mut facts = self.facts();
            facts.queue = Some(facts.queue.unwrap_or_default() + waited);
        }
    }

    /// Notes what shadow mode let pass; each once.
    pub fn shadowed(&self, what: &Arc<str>) {
        let mut facts = self.facts();
        if !facts.shadowed.contains(what) {
            facts.shadowed.push(what.clone());
        }
    }

    /// The request was handed to a connection: from now on bytes of it may have reached the provider.
    pub fn handed_over(&self) {
        self.upload.handed_over();
        let mut facts = self.facts();
        facts.credential = facts.prepared.clone();
        drop(facts);
        self.acted.store(true, Ordering::Release);
    }

    /// The connection gave the request back unwritten, or the provider said that it did not process it.
    pub fn taken_back(&self) {
        self.upload.handed.store(false, Ordering::Release);
        self.facts().credential = None;
        self.acted.store(false, Ordering::Release);
    }

    /// The head of the answer was handed to the app.
    pub fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether the head of the answer was handed to the app.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether the provider may have acted on this exchange, in the present attempt or in one before it.
    pub fn may_have_acted(&self) -> bool {
        self.acted.load(Ordering::Acquire) || self.acted_earlier()
    }

    /// Whether an attempt before the present one may have acted.
    pub fn acted_earlier(&self) -> bool {
        self.acted_earlier.load(Ordering::Acquire)
    }

    /// A connection is made for the present attempt: the provider is called, whatever comes of it.
    pub fn dialled(&self) {
        self.dialled.store(true, Ordering::Release);
    }

    /// Whether the provider was called, in the present attempt, or may have acted in one before it.
    pub fn has_called(&self) -> bool {
        self.dialled.load(Ordering::Acquire) || self.may_have_acted()
    }

    /// Another attempt follows. What the one before it may have done stays true unless its outcome proved that it did
    /// nothing.
    pub fn next_attempt(&self, did_nothing: bool) {
        self.dialled.store(false, Ordering::Release);
        if self.acted.swap(false, Ordering::AcqRel) && !did_nothing {
            self.acted_earlier.store(true, Ordering::Release);
        }
    }

    /// Notes why an attempt was, or was not, made again.
    pub fn judged(&self, reason: &'static str) {
        let mut facts = self.facts();
        if facts.retry_reasons.len() < MAX_REASONS {
            facts.retry_reasons.push(reason);
        }
    }

    /// The field that tells the app's SDK not to send this request again by itself. Set at most once.
    pub fn set_hint(&self, name: HeaderName, value: HeaderValue) {
        let _ = self.hint.set((name, value));
    }

    /// The name of the quota that the request itself tells, such as the model that it asks. Set at most once.
    pub fn set_bucket(&self, name: Arc<str>) {
        let _ = self.bucket.set(name);
    }

    /// What [`Exchange::set_bucket`] has set.
    pub fn bucket(&self) -> Option<&Arc<str>> {
        self.bucket.get()
    }

    /// What [`Exchange::set_hint`] has set.
    pub fn hint(&self) -> Option<&(HeaderName, HeaderValue)> {
        self.hint.get()
    }

    /// Says of a failure what is true of the exchange as a whole: that an earlier attempt may have acted, and then what the
    /// app's SDK is told.
    pub fn complete(&self, mut failure: Failure) -> Failure {
        if failure.progress == Progress::NotSent && self.acted_earlier() {
            failure.progress = Progress::Sent;
            if failure.fault.is_for_load() {
                // When there is room again is no reason to do again what may have been done.
                (failure.retry_after, failure.limit) = (None, None);
            }
        }
        if failure.progress != Progress::NotSent {
            failure.hint = self.hint.get().cloned().map(Box::new);
        }
        failure
    }

    /// How the upload of the current attempt goes.
    pub fn upload(&self) -> &Upload {
        &self.upload
    }
}

/// How the upload goes: written by the request body as it is taken, read by the timeouts.
///
/// Times are milliseconds since the exchange began, kept in atomics because the body is polled by the connection's task
/// and the timeouts by the request's.
pub struct Upload {
    started: Instant,
    last_taken: AtomicU64,
    handed: AtomicBool,
    complete: AtomicBool,
    awaiting_downstream: AtomicBool,
}

impl Default for Upload {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            last_taken: AtomicU64::new(0),
            handed: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            awaiting_downstream: AtomicBool::new(false),
        }
    }
}

impl Upload {
    fn elapsed(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// When the exchange began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// A connection has the request: what it does not take from now on is the provider's doing.
    fn handed_over(&self) {
        self.taken();
        self.handed.store(true, Ordering::Release);
    }

    /// Whether a connection has the request of this attempt.
    pub fn is_handed_over(&self) -> bool {
        self.handed.load(Ordering::Acquire)
    }

    /// A piece of the body was taken by the connection to the provider.
    pub fn taken(&self) {
        self.last_taken.store(self.elapsed(), Ordering::Relaxed);
        self.awaiting_downstream.store(false, Ordering::Relaxed);
    }

    /// The connection wants more, and the app has not sent it yet: the provider is not to blame for the wait.
    pub fn starved(&self) {
        self.awaiting_downstream.store(true, Ordering::Relaxed);
    }

    /// The whole body was taken.
    pub fn finished(&self) {
        self.taken();
        self.complete.store(true, Ordering::Release);
    }

    /// A new attempt begins.
    pub fn restart(&self) {
        self.handed.store(false, Ordering::Release);
        self.complete.store(false, Ordering::Release);
        self.taken();
    }

    /// Whether the whole body was taken.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether the next piece is the app's turn.
    pub fn is_starved(&self) -> bool {
        self.awaiting_downstream.load(Ordering::Relaxed)
    }

    /// When a piece was last taken.
    pub fn last_taken(&self) -> Instant {
        self.started + Duration::from_millis(self.last_taken.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_attempt_may_have_done_stays_true() {
        use crate::message::failure::Fault;
        let exchange = Exchange::new(None);
        exchange.set_hint(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        exchange.handed_over();
        exchange.next_attempt(true);
        assert!(!exchange.may_have_acted(), "a 429 proved that it did nothing");
        let failure = exchange.complete(Failure::not_sent(Fault::Connect));
        assert!(failure.progress == Progress::NotSent && failure.hint.is_none());

        exchange.handed_over();
        exchange.next_attempt(false);
        exchange.handed_over();
        exchange.taken_back();
        assert!(exchange.may_have_acted() && exchange.acted_earlier());
        let failure = exchange.complete(Failure::not_sent(Fault::Connect));
        assert_eq!(failure.progress, Progress::Sent);
        assert_eq!(failure.hint.unwrap().1, "false");
    }

    #[test]
    fn reasons_are_bounded() {
        let exchange = Exchange::new(None);
        (0..100).for_each(|_| exchange.judged("throttle"));
        assert_eq!(exchange.facts().retry_reasons.len(), MAX_REASONS);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_knows_when_it_last_moved() {
        let exchange = Exchange::new(None);
        let upload = exchange.upload();
        tokio::time::advance(Duration::from_millis(1500)).await;
        upload.starved();
        assert!(upload.is_starved() && !upload.is_complete());
        upload.finished();
        assert!(upload.is_complete() && !upload.is_starved());
        assert_eq!(upload.last_taken().elapsed(), Duration::ZERO);
        exchange.handed_over();
        upload.restart();
        assert!(!upload.is_complete() && !upload.is_handed_over() && exchange.may_have_acted());
    }
}
