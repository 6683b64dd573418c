//! The loop around scripted providers, in paused time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::{Service, service_fn};

use super::budget::{Budget, BudgetSettings};
use super::config::RetryConfig;
use super::{Retry, RetrySettings};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault, Progress};
use crate::message::quantity::Ratio;
use crate::message::request::{EgressParts, EgressRequest};
use crate::resilience::Inner;
use crate::resilience::idempotency::{IdempotencyConfig, IdempotencySettings};
use crate::resilience::mistake::Mistakes;
use crate::resilience::timeout::tests::request_with;
use crate::resilience::verdict::{Class, Verdict};

mod bodies;
mod healing;
mod hints;
mod never_twice;
mod own_keys;
mod repeating;

const HINT: HeaderName = HeaderName::from_static("x-should-retry");
const KEY: HeaderName = HeaderName::from_static("idempotency-key");

fn settings(yaml: &str) -> RetrySettings {
    serde_yaml::from_str::<RetryConfig>(yaml).unwrap().compile(&mut Mistakes::default())
}

fn keys() -> IdempotencySettings {
    IdempotencyConfig::default().compile(&mut Mistakes::default())
}

fn request(method: Method, body: Body) -> EgressRequest {
    EgressRequest::from(EgressParts { method, ..request_with(body, None).into_parts() })
}

fn answer(status: u16) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

/// What a scripted provider does with one attempt.
#[derive(Clone, Debug)]
enum Play {
    /// Fails.
    Fail(Fault, Progress),
    /// Answers.
    Answer { status: u16, verdict: Verdict, hint: Option<&'static str> },
}

impl Play {
    fn ok() -> Self {
        Self::Answer { status: 200, verdict: Verdict::SUCCESS, hint: None }
    }

    fn answer(status: u16, class: Class, acted: bool) -> Self {
        Self::Answer { status, verdict: Verdict { class, acted, wait: None }, hint: None }
    }

    fn waits(self, seconds: u64) -> Self {
        match self {
            Self::Answer { status, verdict, hint } => {
                let wait = Some(Duration::from_secs(seconds));
                Self::Answer { status, verdict: Verdict { wait, ..verdict }, hint }
            }
            failed @ Self::Fail(..) => failed,
        }
    }

    fn says(self, text: &'static str) -> Self {
        match self {
            Self::Answer { status, verdict, .. } => Self::Answer { status, verdict, hint: Some(text) },
            failed @ Self::Fail(..) => failed,
        }
    }

    fn throttle() -> Self {
        Self::answer(429, Class::Throttle, false)
    }

    fn unavailable() -> Self {
        Self::answer(503, Class::Unavailable, true)
    }

    fn reset() -> Self {
        Self::Fail(Fault::Reset, Progress::Sent)
    }

    fn refused() -> Self {
        Self::Fail(Fault::ConnectRefused, Progress::NotSent)
    }
}

/// One attempt as the provider saw it.
#[derive(Debug)]
struct Attempt {
    at: Instant,
    body: String,
    key: Option<HeaderValue>,
}

type Log = Arc<Mutex<Vec<Attempt>>>;

/// A provider that plays what it is told, and then only succeeds.
fn script(plays: impl IntoIterator<Item = Play>) -> (impl Inner, Log) {
    let plays: Arc<Mutex<VecDeque<Play>>> = Arc::new(Mutex::new(plays.into_iter().collect()));
    let log: Log = Arc::default();
    let seen = log.clone();
    let service = service_fn(move |request: EgressRequest| {
        let play = plays.lock().unwrap().pop_front().unwrap_or(Play::ok());
        let seen = seen.clone();
        async move {
            if !matches!(play, Play::Fail(_, Progress::NotSent)) {
                request.exchange.handed_over();
            }
            let EgressParts { body, headers, .. } = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let key = headers.get(KEY).cloned();
            let body = String::from_utf8(body.to_vec()).unwrap();
            seen.lock().unwrap().push(Attempt { at: Instant::now(), body, key });
            match play {
                Play::Fail(fault, Progress::NotSent) => Err(Failure::not_sent(fault)),
                Play::Fail(fault, progress) => {
                    let mut failure = Failure::sent(fault);
                    failure.progress = progress;
                    Err(failure)
                }
                Play::Answer { status, verdict, hint } => {
                    let mut answer = answer(status);
                    verdict.note(&mut answer);
                    if let Some(hint) = hint {
                        answer.headers_mut().insert(HINT, HeaderValue::from_static(hint));
                    }
                    Ok(answer)
                }
            }
        }
    });
    (service, log)
}

/// A loop that repeats and nothing else.
fn repeating(service: impl Inner, settings: RetrySettings) -> Retry<impl Inner> {
    let buffer = settings.replay_buffer;
    Retry::new(service, Some(settings), None, None, None, buffer)
}

/// The same, for a provider that honours keys.
fn keyed(service: impl Inner, settings: RetrySettings) -> Retry<impl Inner> {
    let buffer = settings.replay_buffer;
    Retry::new(service, Some(settings), None, Some(keys()), None, buffer)
}
