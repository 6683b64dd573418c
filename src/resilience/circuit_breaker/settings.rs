//! `breaker:` as true.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::message::body::Body;
use crate::message::quantity::Ratio;

/// A breaker, as compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BreakerSettings {
    /// When it opens, and how it closes again.
    pub rules: Rules,
    /// What is answered while it is open.
    pub fallback: Fallback,
    /// Whether it only counts what it would refuse.
    pub shadow: bool,
}

/// The numbers of a breaker. All counts are at least 1, and `open_for` is at most `max_open_for`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Opens after so many failures in a row.
    pub failures: u32,
    /// Opens at this part of failures, where it is looked at.
    pub error_rate: Option<ErrorRate>,
    /// How long it stays open the first time.
    pub open_for: Duration,
    /// How long it stays open at most.
    pub max_open_for: Duration,
    /// How many requests run at a time while it is half-open.
    pub probes: u32,
    /// How many of them must succeed before it closes.
    pub successes: u32,
}

/// Failures as a part of what was asked lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorRate {
    /// The part at which the breaker opens; above 0, at most 100 %.
    pub threshold: Ratio,
    /// How far back requests count, to a tenth of it.
    pub window: Duration,
    /// Fewer requests in the window say nothing.
    pub min_requests: u32,
}

/// What is answered in place of a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// Nothing: the app is told `breaker_open`.
    #[default]
    None,
    /// A stored answer, however old: given by the cache, which stands outside and sees the refusal.
    Stale,
    /// Always the same.
    Static(Arc<StaticAnswer>),
}

/// The answer of a static fallback.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StaticAnswer {
    /// Its status, 200 to 599.
    pub status: StatusCode,
    /// Its fields; none that frames the message.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
}

impl StaticAnswer {
    /// A fresh copy; the body is shared.
    pub fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::full(self.body.clone()));
        *response.status_mut() = self.status;
        for (name, value) in &self.headers {
            response.headers_mut().append(name.clone(), value.clone());
        }
        response
    }
}

impl fmt::Debug for StaticAnswer {
    /// Without the body, which may be long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticAnswer")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}
