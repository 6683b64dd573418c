//! One request of the webhook: what is read of it, for how long, and what goes back.
//!
//! Whoever reaches the port may send, so all is bounded: a body by its bytes ([`MAX_BODY`]) and by the number of values in it (a byte of
//! JSON may become a hundred of memory), all bodies together by as many bytes as one may have, the whole by ten seconds.

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
use super::review::{Malformed, Verdict, review};
use crate::message::body::Body;

/// Bytes of one review. The API server takes 3 MiB of an object, which may be more as JSON, and puts some around it.
pub const MAX_BODY: usize = 8 * 1024 * 1024;
/// Values in one review, counted generously. As maps in one another so many take about 35 MB, and a pod stands in memory three times
/// while it is compared; a pod that people write has a hundredth of them.
const MAX_VALUES: usize = 50_000;
/// How long one request may take. The API server itself gives up after 30 s at most.
const TIME: Duration = Duration::from_secs(10);

/// How long a body may take to come, once there is room for it. Who sends slowly holds others up no longer.
const BODY: Duration = Duration::from_secs(2);

/// A body takes room in steps of this many bytes.
const STEP: usize = 256 * 1024;
/// So many steps there are for all bodies together.
const ROOM: usize = MAX_BODY / STEP;

/// What answers.
pub struct Webhook {
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
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
        Self { live, metrics, room: Arc::new(Semaphore::new(ROOM)) }
    }

    /// Answers a request.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != "/mutate" {
            return text(StatusCode::NOT_FOUND, "not found; reviews go to /mutate\n");
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "reviews are posted\n");
        }
        let begun = Instant::now();
        let read = tokio::time::timeout(TIME, self.read(request.into_body())).await;
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

    /// The whole body, and the room that it takes.
    async fn read(&self, mut body: Incoming) -> Result<(Bytes, OwnedSemaphorePermit), Unanswered> {
        // Without a length it could be as large as any.
        let announced =
            body.size_hint().exact().map_or(MAX_BODY, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if announced > MAX_BODY {
            return Err(Unanswered::TooLarge);
        }
        let steps = u32::try_from(announced.div_ceil(STEP).max(1)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(steps).await.map_err(|_| Unanswered::Late)?;
        let read = tokio::time::timeout(BODY, collect(&mut body)).await;
        Ok((read.unwrap_or(Err(Unanswered::Late))?, room))
    }
}

/// The bytes of a body, up to the bounds.
async fn collect(body: &mut Incoming) -> Result<Bytes, Unanswered> {
    let mut read = BytesMut::new();
    let mut values = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unanswered::Cut)?.into_data() else { continue };
        values += data.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
        if read.len() + data.len() > MAX_BODY || values > MAX_VALUES {
            return Err(Unanswered::TooLarge);
        }
        read.extend_from_slice(&data);
    }
    Ok(read.freeze())
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
