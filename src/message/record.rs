//! The record of one exchange: opened when its head was read, emitted exactly once, on every path.
//!
//! Whoever holds the record fills it in; when it is dropped, it is emitted. A record that nobody finished belongs to a
//! client that went away, because that is the only way in which the work on a request is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::request::Exchange;
use crate::telemetry::{Door, Flag, HttpVersion, InFlight, RequestEvent, RequestId, RouteMetrics, Telemetry};

/// An open record.
pub struct Record {
    /// What is known so far.
    pub event: RequestEvent,
    telemetry: Arc<Telemetry>,
    exchange: Option<Arc<Exchange>>,
    in_flight: Option<InFlight>,
    started: Instant,
    head_at: Option<Instant>,
    finished: bool,
    withdrawn: bool,
    /// Cancelled when outgate ends what did not finish in time: then it was not the client that went away.
    abort: CancellationToken,
}

impl Record {
    /// Opens a record now.
    pub fn open(
        telemetry: &Arc<Telemetry>,
        abort: &CancellationToken,
        request_id: RequestId,
        door: Door,
        listener: Arc<str>,
    ) -> Self {
        Self {
            event: RequestEvent::new(request_id, door, listener, SystemTime::now()),
            telemetry: telemetry.clone(),
            exchange: None,
            in_flight: None,
            started: Instant::now(),
            head_at: None,
            finished: false,
            withdrawn: false,
            abort: abort.clone(),
        }
    }

    /// When it was opened.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Counted as in flight for a provider, without a route of its own: tunnels.
    pub fn counted(&mut self, metrics: &Arc<RouteMetrics>) {
        self.in_flight = Some(metrics.provider().begin());
        self.event.metrics = Some(metrics.clone());
    }

    /// The policy has chosen a route.
    pub fn routed(&mut self, provider: &Arc<str>, route: &Arc<str>, metrics: &Arc<RouteMetrics>) {
        self.event.provider = Some(provider.clone());
        self.event.route = Some(route.clone());
        self.in_flight = Some(metrics.provider().begin());
        self.event.metrics = Some(metrics.clone());
    }

    /// What the layers note from now on belongs to this record.
    pub fn follow(&mut self, exchange: Arc<Exchange>) {
        self.exchange = Some(exchange);
    }

    /// A head was handed to the app.
    pub fn answered(&mut self, status: u16) {
        self.event.status = Some(status);
        if let Some(exchange) = &self.exchange {
            exchange.answered();
        }
        self.head_at = Some(Instant::now());
    }

    /// Notes why this ended as it did; the first reason stays.
    pub fn flag(&mut self, flag: Flag) {
        self.event.flag.get_or_insert(flag);
    }

    /// The exchange is over, in the way that the record says.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Nothing happened that is worth a line: what came of it has records of its own.
    pub fn withdraw(&mut self) {
        self.withdrawn = true;
    }

    fn close(&mut self) {
        let now = Instant::now();
        if std::thread::panicking() {
            self.flag(Flag::Internal);
            self.event.status.get_or_insert(500);
        } else if !self.finished {
            self.flag(if self.abort.is_cancelled() { Flag::Drained } else { Flag::DownstreamGone });
        }
        self.event.timings.total = now - self.started;
        self.event.timings.body = self.head_at.map(|at| now - at);
        if let Some(exchange) = &self.exchange {
            // What a relay copied stands there already, and no body was counted then.
            let uploaded = exchange.uploaded.load(Ordering::Relaxed);
            self.event.request_bytes = self.event.request_bytes.max(uploaded);
            let mut facts = exchange.facts();
            self.event.attempts = facts.attempts;
            // Where nothing was attempted, nothing could be repeated.
            if facts.attempts > 0 {
                self.event.retry_reasons = std::mem::take(&mut facts.retry_reasons);
            }
            self.event.shadowed = std::mem::take(&mut facts.shadowed);
            if let Some((flag, code)) = facts.instead {
                self.event.flag.get_or_insert(flag);
                self.event.error.get_or_insert(code);
            }
            self.event.credential = facts.credential.clone();
            self.event.scrubbed = facts.scrubbed;
            self.event.upstream = facts.peer;
            self.event.connection_reused = facts.reused;
            self.event.upstream_version = facts.upstream_version;
            let timings = &mut self.event.timings;
            (timings.queue, timings.dns, timings.connect) = (facts.queue, facts.dns, facts.connect);
            (timings.tls, timings.first_byte) = (facts.tls, facts.first_byte);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.withdrawn {
            return;
        }
        self.close();
        self.in_flight = None;
        self.telemetry.emit(&self.event);
    }
}

/// The version as the log spells it.
pub fn version(version: http::Version) -> HttpVersion {
    HttpVersion::from(version)
}
