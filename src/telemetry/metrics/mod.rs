//! Metrics in the OpenMetrics text format.
//!
//! Label values come from the policy (providers, routes, secret references) or from closed lists, never from a request, so the
//! number of series is bounded by the policy's size. What belongs to a provider is reached through a handle that is made when
//! the policy is compiled ([`Metrics::provider`], [`Metrics::route`]); a request then only adds to atomics. When a policy is
//! replaced, [`Metrics::retain`] lets the series go that the new one does not name.
//!
//! What lives elsewhere (pools, caches) is read when somebody asks: [`Metrics::on_scrape`].

mod collector;
mod labels;
mod levels;
mod listener;
mod process;
mod provider;
mod secret;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, info::Info};
use prometheus_client::registry::Registry;

use collector::Tracked;
pub use labels::{DialResult, HealResult, OverlapEvent, ReloadResult};
pub use levels::{Level, LevelFamily, LevelKind, LevelSource};
pub use listener::{DownstreamConnection, ListenerMetrics};
pub use provider::{InFlight, ProviderMetrics, RouteMetrics};
pub use secret::SecretMetrics;

use super::{Flag, RequestEvent};

/// A gauge of fractions, for seconds.
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
/// Called before each encoding.
type Refresh = Arc<dyn Fn() + Send + Sync>;

/// The label of requests that belong to no provider, and of their route.
pub const NO_PROVIDER: &str = "none";

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    tracked: Arc<Tracked>,
    levels: levels::Levels,
    no_provider: Arc<RouteMetrics>,
    globals: Globals,
    refreshers: Mutex<Vec<Refresh>>,
}

/// What exists once.
#[derive(Default)]
struct Globals {
    leaf_cache_entries: Gauge,
    leaf_minted: Counter,
    policy_generation: Gauge,
    policy_last_reload: Seconds,
    ca_not_after: Seconds,
    access_log_dropped: Counter,
    internal_errors: Counter,
}

impl Metrics {
    /// A registry in which nothing has happened yet.
    pub fn new() -> Self {
        let (tracked, globals) = (Arc::new(Tracked::default()), Globals::default());
        let levels = levels::Levels::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        let ours = registry.sub_registry_with_prefix("outgate");
        ours.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        globals.register(ours);
        ours.register_collector(Box::new(Arc::clone(&tracked)));
        ours.register_collector(Box::new(levels.clone()));
        let no_provider = tracked.route(NO_PROVIDER, NO_PROVIDER);
        Self { registry, tracked, levels, no_provider, globals, refreshers: Mutex::default() }
    }

    /// The handle of a provider: the same for the same name, as long as it is retained.
    pub fn provider(&self, provider: &str) -> Arc<ProviderMetrics> {
        self.tracked.provider(provider)
    }

    /// The handle of a provider's route, which events carry.
    pub fn route(&self, provider: &str, route: &str) -> Arc<RouteMetrics> {
        self.tracked.route(provider, route)
    }

    /// Lets go what `keeps` does not want: asked with `(provider, None)` for a provider, and with `(provider, Some(route))` for
    /// each route of one that stays. Handles still held go on counting, unseen.
    pub fn retain(&self, keeps: impl Fn(&str, Option<&str>) -> bool) {
        self.tracked.retain_providers(|provider, route| provider == NO_PROVIDER || keeps(provider, route));
    }

    /// The handle of a listener.
    pub fn listener(&self, listener: &str) -> Arc<ListenerMetrics> {
        self.tracked.listener(listener)
    }

    /// The handle of a secret, by its reference.
    pub fn secret(&self, reference: &str) -> Arc<SecretMetrics> {
        self.tracked.secret(reference)
    }

    /// Lets the secrets go whose reference `keeps` does not want.
    pub fn retain_secrets(&self, keeps: impl Fn(&str) -> bool) {
        self.tracked.retain_secrets(keeps);
    }

    /// Has `refresh` called before each encoding, to set gauges from what lives elsewhere. For wiring at start: it stays for
    /// good, so it should hold `Weak`s. It must not block, and may use every method here.
    pub fn on_scrape(&self, refresh: impl Fn() + Send + Sync + 'static) {
        locked(&self.refreshers).push(Arc::new(refresh));
    }

    /// Says where the levels of limiters, quotas, breakers and caches are read from. For wiring at start: the first source stays,
    /// so it should hold `Weak`s. Called at each encoding; must not block.
    pub fn levels(&self, source: LevelSource) {
        self.levels.set(source);
    }

    /// Counts what a finished exchange says.
    pub(super) fn record(&self, event: &RequestEvent) {
        event.metrics.as_deref().unwrap_or(&self.no_provider).record(event);
        if event.flag == Some(Flag::Internal) {
            self.globals.internal_errors.inc();
        }
    }

    /// Sets how many leaf certificates are kept, and how many were minted in all.
    pub fn set_leaf_cache(&self, entries: usize, minted: u64) {
        self.globals.leaf_cache_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        let known = self.globals.leaf_minted.get();
        self.globals.leaf_minted.inc_by(minted.saturating_sub(known));
    }

    /// Sets when the CA of interception ends.
    pub fn set_ca_end(&self, not_after: SystemTime) {
        let since = not_after.duration_since(UNIX_EPOCH);
        self.globals.ca_not_after.set(since.map_or(0.0, |since| since.as_secs_f64()));
    }

    /// Counts a policy that was put in place at `now`.
    pub fn policy_applied(&self, generation: u64, now: SystemTime) {
        self.tracked.reloads.add(ReloadResult::Applied);
        self.globals.policy_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.globals
            .policy_last_reload
            .set(now.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));
    }

    /// Counts a policy that was not put in place: refused, or no different.
    pub fn policy_not_applied(&self, result: ReloadResult) {
        self.tracked.reloads.add(result);
    }

    /// Counts a mistake of ours outside an exchange, such as a panic of a background task.
    pub fn internal_error(&self) {
        self.globals.internal_errors.inc();
    }

    /// The counter that the access log adds to.
    pub(super) fn access_log_dropped(&self) -> Counter {
        self.globals.access_log_dropped.clone()
    }

    /// Everything as OpenMetrics text, of media type [`Metrics::CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        // Called outside the lock, so that a refresher may use every method.
        let refreshers = locked(&self.refreshers).clone();
        for refresh in refreshers {
            refresh();
        }
        let mut text = String::with_capacity(16 * 1024);
        // Writing into a `String` does not fail, and our collectors fail only where writing does.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    /// The media type of [`Metrics::encode`].
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Globals {
    fn register(&self, registry: &mut Registry) {
        let gauges = [
            ("leaf_cache_entries", "Leaf certificates kept for interception", &self.leaf_cache_entries),
            ("policy_generation", "Generation of the policy in force", &self.policy_generation),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        let counters = [
            ("leaf_minted", "Leaf certificates made for interception", &self.leaf_minted),
            (
                "access_log_dropped",
                "Access-log lines lost: queue full or output broken",
                &self.access_log_dropped,
            ),
            ("internal_errors", "Mistakes of outgate itself; any is worth a report", &self.internal_errors),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "policy_last_reload_timestamp_seconds",
            "Unix time when the policy in force was put in place",
            self.policy_last_reload.clone(),
        );
        registry.register(
            "ca_not_after_timestamp_seconds",
            "Unix time when the CA of interception in use ends",
            self.ca_not_after.clone(),
        );
    }
}

/// Locks also what a panicking thread left behind: these are maps of handles, whole after every step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
