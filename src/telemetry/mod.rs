//! What outgate tells about itself: the access log, the metrics, and the identities of requests and traces.
//!
//! One finished exchange is one [`RequestEvent`]; [`Telemetry::emit`] writes its log line and updates the metrics together, so
//! that the two never disagree. Nothing here knows a secret: what could hold one comes in already redacted ([`Redaction`]).

mod access_log;
mod event;
mod flags;
mod key_shapes;
mod known_values;
mod line;
mod metrics;
mod redact;
mod traces;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, OnceLock};

pub use access_log::{AccessLog, LogOutput};
pub use event::{Client, Door, HttpVersion, Original, RequestEvent, Sent, Timings};
pub use flags::Flag;
pub use key_shapes::{KeyShape, KeyShapes};
pub use known_values::KnownValues;
pub use line::LogFormat;
pub use metrics::{
    DialResult, DownstreamConnection, HealResult, InFlight, Level, LevelFamily, LevelKind, LevelSource,
    ListenerMetrics, Metrics, NO_PROVIDER, OverlapEvent, ProviderMetrics, ReloadResult, RouteMetrics,
    SecretMetrics,
};
pub use redact::{MASK, QueryMode, Redaction, without_userinfo};
pub use traces::{HexText, RequestId, TraceId, TraceParent, new_request_id};

/// The access log and the metrics of the process.
#[derive(Debug)]
pub struct Telemetry {
    /// The access log.
    pub access_log: AccessLog,
    /// The metrics; shared, because every layer counts something.
    pub metrics: Arc<Metrics>,
    values: OnceLock<Box<dyn KnownValues>>,
}

impl Telemetry {
    /// Opens the access log, with metrics that start at zero.
    ///
    /// # Errors
    ///
    /// Those of [`AccessLog::start`].
    pub fn start(format: LogFormat, output: LogOutput) -> io::Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let access_log = AccessLog::start(format, output, metrics.access_log_dropped())?;
        Ok(Self { access_log, metrics, values: OnceLock::new() })
    }

    /// From now on these are masked in every line. Said once, when the secrets are known.
    pub fn mask(&self, values: impl KnownValues + 'static) {
        let _ = self.values.set(Box::new(values));
    }

    /// Tells of a finished exchange: its line and its counts. The only place where either is made.
    pub fn emit(&self, event: &RequestEvent) {
        self.metrics.record(event);
        let masked = self.values.get().and_then(|values| known_values::masked(event, &**values));
        self.access_log.write(masked.as_ref().unwrap_or(event));
    }
}
