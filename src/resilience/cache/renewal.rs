//! Renewing a stale answer behind the app's back, and the record of it.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::forward::Journey;
use super::place::Place;
use super::serve::{Found, Server, copy_head, selecting};
use super::state::count;
use crate::message::body::{Body, BodyError};
use crate::message::failure::Failure;
use crate::message::record::Record;
use crate::message::request::{EgressRequest, Exchange};
use crate::resilience::Inner;
use crate::telemetry::Flag;

/// How long an answer may take to be renewed in the background, its body included.
const RENEWAL: Duration = Duration::from_secs(60);

/// How the renewals of a route get into the log.
#[derive(Clone)]
pub struct Renewals {
    /// Opens the record of a renewal.
    pub open: Arc<dyn Fn(&EgressRequest) -> Record + Send + Sync>,
    /// Notes that one got no answer.
    pub failed: fn(&mut Record, Failure),
}

impl<S: Inner> Server<S> {
    /// Renews a stale answer, if nobody does so yet. It has a record of its own, and takes tokens and permits like any other
    /// request.
    pub(super) fn renew(&self, request: &EgressRequest, place: Place, found: &Found) {
        let Ok(permit) = self.state.background.clone().try_acquire_owned() else { return };
        let key = place.flight(&request.headers, &selecting(found));
        let Some(leader) = self.state.flights.lead(key) else { return };
        let mut request = copy_head(request);
        request.method = Method::GET;
        request.exchange = Arc::new(Exchange::new(Some(Instant::now() + RENEWAL)));
        // The app's own conditions are for its own answer.
        request.headers.remove(http::header::IF_NONE_MATCH);
        request.headers.remove(http::header::IF_MODIFIED_SINCE);
        let found = Found { slot: None, kept: found.kept.clone(), why: found.why };
        let journey = Journey::new(self.clone(), &request, place, found, Some(leader)).in_background();
        let work = Work::begin(self, &request);
        (self.state.spawn)(Box::pin(async move {
            let _permit = permit;
            work.run(journey, request).await;
        }));
    }
}

/// One renewal under way.
struct Work<S> {
    server: Server<S>,
    record: Option<Record>,
}

impl<S: Inner> Work<S> {
    fn begin(server: &Server<S>, request: &EgressRequest) -> Self {
        let record = server.route.renewals.as_ref().map(|renewals| {
            let mut record = (renewals.open)(request);
            record.follow(request.exchange.clone());
            record
        });
        Self { server: server.clone(), record }
    }

    async fn run(mut self, journey: Journey<S>, request: EgressRequest) {
        let done = tokio::time::timeout(RENEWAL, self.go(journey, request)).await;
        // Out of time is one more failure: the answer stays as stale as it is.
        if done.is_err() {
            self.note(|record| record.flag(Flag::UpstreamTimeout));
        }
        let counters = &self.server.state.counters;
        count(if done == Ok(true) { &counters.renewed } else { &counters.not_renewed });
        self.note(Record::finish);
    }

    /// Whether a whole answer came.
    async fn go(&mut self, journey: Journey<S>, request: EgressRequest) -> bool {
        match journey.go(request).await {
            Ok(answer) => {
                self.note(|record| record.answered(answer.status().as_u16()));
                let whole = answer.status().as_u16() < 500;
                self.read(answer.into_body()).await && whole
            }
            Err(failure) => {
                let failed = self.server.route.renewals.as_ref().map(|renewals| renewals.failed);
                if let (Some(failed), Some(record)) = (failed, &mut self.record) {
                    failed(record, failure);
                }
                false
            }
        }
    }

    /// Reads a body to its end, or as far as one could be kept: by that it is kept. Whether it was not cut.
    async fn read(&mut self, mut body: Body) -> bool {
        let (mut seen, most) = (0, self.server.state.max_entry());
        while !body.is_end_stream() && seen <= most {
            match body.frame().await {
                Some(Ok(frame)) => {
                    seen += frame.data_ref().map_or(0, |data| data.len() as u64);
                    self.note(|record| record.event.response_bytes = seen);
                }
                Some(Err(error)) => {
                    self.note(|record| cut(record, &error));
                    return false;
                }
                None => return true,
            }
        }
        true
    }

    fn note(&mut self, note: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            note(record);
        }
    }
}

fn cut(record: &mut Record, error: &BodyError) {
    record.flag(match error {
        BodyError::UpstreamCut(_) => Flag::UpstreamReset,
        BodyError::UpstreamIdle | BodyError::Total => Flag::UpstreamTimeout,
        // Errors of uploads; an answer that has one is a bug.
        BodyError::DownstreamGone(_)
        | BodyError::DownstreamMalformed(_)
        | BodyError::DownstreamFraming(_)
        | BodyError::DownstreamStalled
        | BodyError::TrailersTooLarge
        | BodyError::Forbidden(_)
        | BodyError::TooLarge
        | BodyError::Superseded => Flag::Internal,
    });
    record.event.error_detail.get_or_insert_with(|| error.to_string());
}
