//! What the injector tells about itself, as OpenMetrics text. It is a process of its own, so these are all it has.

use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pod was changed.
    Injected,
    /// There was nothing to do.
    Unchanged,
    /// The pod was refused.
    Refused,
    /// It was no AdmissionReview, or too large to be one.
    Malformed,
    /// Its body did not come in time, or there was no room for it in time.
    Timeout,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Injected, Self::Unchanged, Self::Refused, Self::Malformed, Self::Timeout];

    fn label(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Timeout => "timeout",
        }
    }
}

/// What was read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Certificate and key.
    Certificate,
    /// The template.
    Template,
}

impl Part {
    /// As metrics and log call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Template => "template",
        }
    }
}

type One = [(&'static str, &'static str); 1];
type Two = [(&'static str, &'static str); 2];

/// All of them.
pub struct Metrics {
    registry: Registry,
    requests: Family<One, Counter>,
    warnings: Counter,
    duration: Histogram,
    reloads: Family<Two, Counter>,
    certificate: Gauge,
}

impl Metrics {
    /// The media type of [`Metrics::encode`].
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// A registry in which nothing has happened yet.
    pub fn new() -> Self {
        // 0.25 ms to 4 s: the API server waits 5 s.
        let buckets = (0..15).map(|power| 0.000_25 * f64::from(1_u32 << power));
        let mut made = Self {
            registry: Registry::default(),
            requests: Family::default(),
            warnings: Counter::default(),
            duration: Histogram::new(buckets),
            reloads: Family::default(),
            certificate: Gauge::default(),
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        made.registry.sub_registry_with_prefix("outgate").register("build", "The version that runs", build);
        let ours = made.registry.sub_registry_with_prefix("outgate_injector");
        ours.register("requests", "Reviews that were answered, by how", made.requests.clone());
        ours.register("warnings", "Warnings that were given", made.warnings.clone());
        let help = "Seconds from a request's head to its answer";
        ours.register("request_duration_seconds", help, made.duration.clone());
        ours.register("reloads", "Changed files that were read, by what and how", made.reloads.clone());
        let help = "When the certificate in use ends, in seconds since 1970";
        ours.register("certificate_not_after_timestamp_seconds", help, made.certificate.clone());
        made.begin();
        made
    }

    /// Series exist from the start, so that the first increase is one.
    fn begin(&self) {
        for outcome in Outcome::ALL {
            let _ = self.requests.get_or_create(&[("result", outcome.label())]);
        }
        for what in [Part::Certificate, Part::Template] {
            for result in ["applied", "refused"] {
                let _ = self.reloads.get_or_create(&[("what", what.as_str()), ("result", result)]);
            }
        }
    }

    /// Counts a request.
    pub fn request(&self, outcome: Outcome, warnings: usize, took: Duration) {
        self.requests.get_or_create(&[("result", outcome.label())]).inc();
        self.warnings.inc_by(u64::try_from(warnings).unwrap_or(u64::MAX));
        self.duration.observe(took.as_secs_f64());
    }

    /// Counts a change of a file, and whether it could be used.
    pub fn reload(&self, what: Part, applied: bool) {
        let result = if applied { "applied" } else { "refused" };
        self.reloads.get_or_create(&[("what", what.as_str()), ("result", result)]).inc();
    }

    /// Says when the certificate in use ends.
    pub fn certificate_ends(&self, seconds_since_1970: i64) {
        self.certificate.set(seconds_since_1970);
    }

    /// Everything as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(4 * 1024);
        // Writing into a `String` does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
