//! One request of the webhook: what is read of it, for how long, and what goes back.
//!
//! Whoever reaches the port may send, so all is bounded: a body by its bytes ([`MAX_BODY`]) and by the number of values in it (a byte of
//! JSON may become a hundred of memory), the bodies of one address together by as many bytes as one may have, all bodies by twice that, the
//! whole by ten seconds. Small bodies, which nearly all reviews are, have room of their own beside that, and little time: who holds the
//! room with large ones that come slowly holds up large ones only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::live::Live;
use super::metrics::{Metrics, Outcome};
use super::peer::Peer;
use super::review::{Malformed, Verdict, review};
use crate::message::body::Body;

/// Bytes of one review. The API server takes 3 MiB of an object, which may be more as JSON, and puts some around it.
pub const MAX_BODY: usize = 8 * 1024 * 1024;
/// Values in one review, counted generously. As maps in one another so many take about 35 MB, and a pod stands in memory three times
/// while it is compared; a pod that people write has a hundredth of them.
const MAX_VALUES: usize = 50_000;
/// How long one request may take. The API server itself gives up after 30 s at most.
const TIME: Duration = Duration::from_secs(10);

/// How long a body may take to come, once there is room for it. Who sends slowly gives its room back then; what waits for that is of the
/// same address, or comes while two addresses send as much as they may.
const BODY: Duration = Duration::from_secs(2);

/// A body of which it is said that it has no more bytes than this is small. A pod that people write has a few KiB.
const SMALL: usize = 64 * 1024;
/// How long a small one may take to come: it is sent at once, by whoever has it.
const SMALL_BODY: Duration = Duration::from_millis(250);
/// So many small ones of one address at a time: they take milliseconds each, and from as many addresses as there are connections (512)
/// those that never come hold up the others by 512 x 2 / 128 x 0.25 s = 2 s.
pub(super) const SMALL_PLACES: usize = 2;
/// So many of all, which is 8 MiB.
const ALL_SMALL_PLACES: usize = 128;

/// A body takes room in steps of this many bytes.
const STEP: usize = 256 * 1024;
/// So many steps there are for all bodies of one address together.
pub(super) const ROOM: usize = MAX_BODY / STEP;
/// So many there are for all.
const ALL_ROOM: usize = 2 * ROOM;

/// What answers.
pub struct Webhook {
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

/// Why there is no review to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unanswered {
    Malformed(Malformed),
    TooLarge,
    Cut,
    Late,
}

impl Webhook {
    /// A webhook with these files.
    pub fn new(live: Arc<Live>, metrics: Arc<Metrics>) -> Self {
        let (room, small) = (Semaphore::new(ALL_ROOM), Semaphore::new(ALL_SMALL_PLACES));
        Self { live, metrics, room: Arc::new(room), small: Arc::new(small) }
    }

    /// Answers a request of this peer.
    pub async fn answer(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        if request.uri().path() != "/mutate" {
            return text(StatusCode::NOT_FOUND, "not found; reviews go to /mutate\n");
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "reviews are posted\n");
        }
        let begun = Instant::now();
        let read = tokio::time::timeout(TIME, self.read(request.into_body(), peer)).await;
        // What follows does not wait: one review at a time is taken apart.
        let result = match read.unwrap_or(Err(Unanswered::Late)) {
            Ok((body, _room)) => review(&body, &self.live.template()).map_err(Unanswered::Malformed),
            Err(reason) => Err(reason),
        };
        let took = begun.elapsed();
        match result {
            Ok(answer) => {
                let outcome = match answer.verdict {
                    Verdict::Injected => Outcome::Injected,
                    Verdict::Unchanged => Outcome::Unchanged,
                    Verdict::Refused => Outcome::Refused,
                };
                self.metrics.request(outcome, answer.warnings, took);
                for sentence in &answer.said {
                    tracing::info!(pod = answer.pod, "{sentence}");
                }
                let mut response = text(StatusCode::OK, answer.review.to_string());
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(reason) => {
                let (outcome, status, words) = told(reason);
                self.metrics.request(outcome, 0, took);
                tracing::warn!(status = status.as_u16(), "a request that is no review: {}", words.trim_end());
                text(status, words)
            }
        }
    }

    /// The whole body, and the room that it takes. One with a length takes its room first, so bodies do not wait for one another half
    /// read; one without takes a step, and more as it comes.
    async fn read(&self, mut body: Incoming, peer: &Peer) -> Result<(Bytes, Room), Unanswered> {
        let announced =
            body.size_hint().exact().map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if announced > MAX_BODY {
            return Err(Unanswered::TooLarge);
        }
        let mut room = Room::default();
        let time = if (1..=SMALL).contains(&announced) {
            self.squeeze(&mut room, peer).await?;
            SMALL_BODY
        } else {
            self.widen(&mut room, announced.max(1), peer).await?;
            BODY
        };
        let read = tokio::time::timeout(time, self.collect(&mut body, &mut room, peer)).await;
        Ok((read.unwrap_or(Err(Unanswered::Late))?, room))
    }

    /// Room for a small body: of the peer's first. No more comes than was announced, so it never has to be widened.
    async fn squeeze(&self, room: &mut Room, peer: &Peer) -> Result<(), Unanswered> {
        for semaphore in [&peer.small, &self.small] {
            room.permits.push(semaphore.clone().acquire_owned().await.map_err(|_| Unanswered::Late)?);
        }
        room.steps = SMALL.div_ceil(STEP);
        Ok(())
    }

    /// Room for so many bytes: of the peer's first, so that it waits where only it is held up.
    async fn widen(&self, room: &mut Room, bytes: usize, peer: &Peer) -> Result<(), Unanswered> {
        let steps = bytes.div_ceil(STEP).saturating_sub(room.steps);
        let permits = u32::try_from(steps).unwrap_or(u32::MAX);
        for semaphore in [&peer.room, &self.room] {
            let taken = semaphore.clone().acquire_many_owned(permits).await.map_err(|_| Unanswered::Late)?;
            room.permits.push(taken);
        }
        room.steps += steps;
        Ok(())
    }

    /// The bytes of a body, up to the bounds.
    async fn collect(&self, body: &mut Incoming, room: &mut Room, peer: &Peer) -> Result<Bytes, Unanswered> {
        let mut read = BytesMut::new();
        let mut values = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Unanswered::Cut)?.into_data() else { continue };
            values += data.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
            let length = read.len() + data.len();
            if length > MAX_BODY || values > MAX_VALUES {
                return Err(Unanswered::TooLarge);
            }
            if length > room.steps * STEP {
                self.widen(room, length, peer).await?;
            }
            read.extend_from_slice(&data);
        }
        Ok(read.freeze())
    }
}

/// The room that a body takes; given back when it is dropped.
#[derive(Default)]
struct Room {
    steps: usize,
    permits: Vec<OwnedSemaphorePermit>,
}

fn told(reason: Unanswered) -> (Outcome, StatusCode, &'static str) {
    match reason {
        Unanswered::Malformed(Malformed::Shape) => {
            (Outcome::Malformed, StatusCode::BAD_REQUEST, "the body is not an AdmissionReview\n")
        }
        Unanswered::Malformed(Malformed::Version) => {
            (Outcome::Malformed, StatusCode::BAD_REQUEST, "the review is not of admission.k8s.io/v1\n")
        }
        Unanswered::TooLarge => {
            (Outcome::Malformed, StatusCode::PAYLOAD_TOO_LARGE, "the review is too large\n")
        }
        Unanswered::Cut => (Outcome::Malformed, StatusCode::BAD_REQUEST, "the body was cut\n"),
        Unanswered::Late => (Outcome::Timeout, StatusCode::SERVICE_UNAVAILABLE, "the review took too long\n"),
    }
}

/// An answer in words.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
