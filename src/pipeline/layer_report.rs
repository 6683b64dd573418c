//! How the resilience layers stand: for `/metrics` as levels, for `/status` as JSON.

use serde_json::{Map, Value as Json, json};

use super::layer_states::{ByIdentity, Identity, LayerStates, locked};
use crate::policy::layers::Owner;
use crate::telemetry::{Level, LevelFamily};

const LIMIT_REMAINING: LevelFamily = LevelFamily::gauge(
    "limit_remaining",
    "Tokens of a limit that are there now, of the key that has the fewest",
);
const LIMIT_WAITING: LevelFamily = LevelFamily::gauge("limit_waiting", "Requests that wait for a limit");
const LIMIT_KEYS: LevelFamily =
    LevelFamily::gauge("limit_keys", "Keys of a limit of which something is spent");
const LIMIT_DECISIONS: LevelFamily = LevelFamily::counter("limit_decisions", "What limits did with requests");
const JUDGED: LevelFamily = LevelFamily::counter(
    "judged",
    "What judging answers came to: bodies looked into, bodies that could not be read, waits that cannot be meant",
);
const QUOTA_REMAINING: LevelFamily =
    LevelFamily::gauge("quota_remaining", "What is left of a provider's quota, as far as it told");
const QUOTA_LIMIT: LevelFamily = LevelFamily::gauge("quota_limit", "A provider's quota, as far as it told");
const QUOTA_PAUSED: LevelFamily =
    LevelFamily::gauge("quota_paused_seconds", "For how long a key is still paused after a throttle");
const QUOTA_WAITING: LevelFamily = LevelFamily::gauge("quota_waiting", "Requests that wait for a quota");
const QUOTA_DECISIONS: LevelFamily =
    LevelFamily::counter("quota_decisions", "What the learned quota did, and what it was told");
const BREAKER_STATE: LevelFamily = LevelFamily::gauge(
    "breaker_state",
    "0 closed, 1 half-open, 2 open, of the hosts that are listed in /status; what was forced by hand counts",
);
const BREAKER_FORCED: LevelFamily =
    LevelFamily::gauge("breaker_forced", "0 decides for itself, 1 forced closed, 2 forced open");
const BREAKER_EVENTS: LevelFamily = LevelFamily::counter(
    "breaker_events",
    "Transitions of circuit breakers, and what they did with requests",
);
const CONCURRENCY: LevelFamily = LevelFamily::gauge(
    "concurrency",
    "Requests with a permit, requests that wait for one, and permits in all",
);
const CONCURRENCY_DECISIONS: LevelFamily =
    LevelFamily::counter("concurrency_decisions", "Requests that waited for a permit, or were refused one");
const RETRY_BUDGET: LevelFamily =
    LevelFamily::gauge("retry_budget", "Retries that the deposits of the last ten seconds still pay for");
const RETRIES: LevelFamily = LevelFamily::counter("retries", "Retries that the budget granted, and refused");

const CACHE_ENTRIES: LevelFamily = LevelFamily::gauge("cache_entries", "URLs of which an answer is kept");
const CACHE_BYTES: LevelFamily = LevelFamily::gauge("cache_bytes", "Memory that kept answers take");
const CACHE_HIT_RATIO: LevelFamily =
    LevelFamily::gauge("cache_hit_ratio", "Part of the requests that the provider was spared");
const CACHE_EVENTS: LevelFamily = LevelFamily::counter("cache_events", "What the response cache did");
const FLEET_CONNECTED: LevelFamily =
    LevelFamily::gauge("fleet_connected", "Whether the Redis of the fleet is reached");
const FLEET_PODS: LevelFamily = LevelFamily::gauge("fleet_pods", "Pods of the fleet that were seen last");
const FLEET_CALLS: LevelFamily = LevelFamily::counter("fleet_calls", "Calls to the Redis of the fleet");

type Labels = Vec<(&'static str, String)>;

impl Identity {
    fn labels(&self) -> Labels {
        let route = match &self.owner {
            Owner::Provider => String::new(),
            Owner::Route(name) => name.to_string(),
        };
        vec![("provider", self.provider.to_string()), ("owner", route)]
    }
}

/// Gathers samples.
#[derive(Default)]
struct Report(Vec<Level>);

impl Report {
    fn add(&mut self, family: &'static LevelFamily, labels: Labels, value: f64) {
        self.0.push(Level { family, labels, value });
    }

    fn each(
        &mut self,
        family: &'static LevelFamily,
        labels: &Labels,
        key: &'static str,
        values: &[(&str, u64)],
    ) {
        for (name, value) in values {
            let mut labels = labels.clone();
            labels.push((key, (*name).to_owned()));
            self.add(family, labels, *value as f64);
        }
    }
}

impl Report {
    /// Tenants are no label: there may be any number of them, and their names are nobody's business. Of several samples with the
    /// same labels the worst stays: the least that is left, the longest pause. `/status` has the keys one by one.
    fn worst_of_tenants(&mut self) {
        let mut worst: Vec<Level> = Vec::new();
        for level in self.0.drain(..) {
            let same =
                |known: &&mut Level| known.family.name == level.family.name && known.labels == level.labels;
            match worst.iter_mut().find(same) {
                Some(known) if known.family.name == QUOTA_PAUSED.name => {
                    known.value = known.value.max(level.value)
                }
                Some(known) => known.value = known.value.min(level.value),
                None => worst.push(level),
            }
        }
        self.0 = worst;
    }
}

impl LayerStates {
    /// All levels there are now. Label values come from the policy; hosts and quota keys are bounded by their states.
    pub fn levels(&self) -> Vec<Level> {
        let mut report = Report::default();
        self.limit_levels(&mut report);
        self.judge_levels(&mut report);
        self.quota_levels(&mut report);
        self.breaker_levels(&mut report);
        self.other_levels(&mut report);
        self.cache_levels(&mut report);
        self.fleet_levels(&mut report);
        // The maps have no order; a page that is read twice should look the same.
        report.0.sort_by(|one, two| (one.family.name, &one.labels).cmp(&(two.family.name, &two.labels)));
        report.0
    }

    fn limit_levels(&self, report: &mut Report) {
        for ((identity, _), (_, limiter)) in locked(&self.limiters).iter() {
            let status = limiter.status();
            let mut labels = identity.labels();
            labels.push(("limit", status.name));
            report.add(&LIMIT_REMAINING, labels.clone(), status.remaining as f64);
            report.add(&LIMIT_WAITING, labels.clone(), status.waiting as f64);
            report.add(&LIMIT_KEYS, labels.clone(), status.keys as f64);
            let decisions = [
                ("admitted", status.admitted),
                ("waited", status.waited),
                ("refused", status.refused),
                ("shadowed", status.shadowed),
                ("overflowed", status.overflowed),
            ];
            report.each(&LIMIT_DECISIONS, &labels, "decision", &decisions);
        }
    }

    fn judge_levels(&self, report: &mut Report) {
        for (provider, counts) in locked(&self.judges).iter() {
            let status = counts.status();
            let labels = vec![("provider", provider.to_string())];
            let events =
                [("looked", status.looked), ("unread", status.unread), ("absurd_wait", status.absurd_waits)];
            report.each(&JUDGED, &labels, "event", &events);
        }
    }

    fn quota_levels(&self, all: &mut Report) {
        for (provider, quota) in locked(&self.quotas).iter() {
            let mut report = Report::default();
            let status = quota.status();
            let labels = vec![("provider", provider.to_string())];
            for key in &status.list {
                let mut labels = labels.clone();
                labels.push(("credential", key.credential.clone()));
                labels.push(("bucket", key.bucket.clone()));
                if let Some(paused) = key.paused_seconds {
                    report.add(&QUOTA_PAUSED, labels.clone(), paused);
                }
                for meter in &key.meters {
                    let mut labels = labels.clone();
                    labels.push(("meter", meter.name.clone()));
                    if let Some(limit) = meter.limit {
                        report.add(&QUOTA_LIMIT, labels.clone(), limit as f64);
                    }
                    if let Some(remaining) = meter.remaining {
                        report.add(&QUOTA_REMAINING, labels, remaining as f64);
                    }
                }
            }
            report.worst_of_tenants();
            report.add(&QUOTA_WAITING, labels.clone(), status.waiting as f64);
            let decisions = [
                ("held", status.held),
                ("waited", status.waited),
                ("refused", status.refused),
                ("throttled", status.throttled),
                ("absurd", status.absurd),
                ("shadowed", status.shadowed),
                ("recalled", status.recalled),
                ("hinted", status.hinted),
                ("overflowed", status.overflow),
            ];
            report.each(&QUOTA_DECISIONS, &labels, "decision", &decisions);
            all.0.append(&mut report.0);
        }
    }

    fn breaker_levels(&self, report: &mut Report) {
        for (identity, breakers) in locked(&self.breakers).iter() {
            let status = breakers.status();
            let labels = identity.labels();
            let forced = match status.forced {
                None => 0.0,
                Some("closed") => 1.0,
                Some(_) => 2.0,
            };
            report.add(&BREAKER_FORCED, labels.clone(), forced);
            for host in &status.hosts {
                let mut labels = labels.clone();
                labels.push(("host", format!("{}:{}", host.host, host.port)));
                let state = match status.forced.unwrap_or(host.state) {
                    "closed" => 0.0,
                    "half_open" => 1.0,
                    _ => 2.0,
                };
                report.add(&BREAKER_STATE, labels, state);
            }
            let events = [
                ("opened", status.opened),
                ("half_opened", status.half_opened),
                ("closed", status.closed),
                ("refused", status.refused),
                ("shadowed", status.shadowed),
                ("fallback", status.fallbacks),
                ("probe", status.probes),
            ];
            report.each(&BREAKER_EVENTS, &labels, "event", &events);
        }
    }

    fn other_levels(&self, report: &mut Report) {
        for (identity, permits) in locked(&self.permits).iter() {
            let status = permits.status();
            let labels = identity.labels();
            let levels = [
                ("running", u64::from(status.running)),
                ("waiting", u64::from(status.waiting)),
                ("max", u64::from(status.max)),
            ];
            report.each(&CONCURRENCY, &labels, "state", &levels);
            let decisions = [
                ("waited", status.waited),
                ("timed_out", status.timed_out),
                ("queue_full", status.queue_full),
                ("shadowed", status.shadowed),
            ];
            report.each(&CONCURRENCY_DECISIONS, &labels, "decision", &decisions);
        }
        for (identity, (_, budget)) in locked(&self.budgets).iter() {
            let status = budget.status();
            let labels = identity.labels();
            report.add(&RETRY_BUDGET, labels.clone(), status.balance as f64);
            report.each(
                &RETRIES,
                &labels,
                "result",
                &[("granted", status.granted), ("refused", status.refused)],
            );
        }
    }

    fn cache_levels(&self, report: &mut Report) {
        for ((identity, _), cache) in locked(&self.caches).iter() {
            let status = cache.status();
            let labels = identity.labels();
            report.add(&CACHE_ENTRIES, labels.clone(), status.entries as f64);
            report.add(&CACHE_BYTES, labels.clone(), status.bytes as f64);
            report.add(&CACHE_HIT_RATIO, labels.clone(), status.hit_ratio);
            let events = [
                ("hit", status.hits),
                ("miss", status.misses),
                ("bypassed", status.bypassed),
                ("revalidated", status.revalidated),
                ("stale_served", status.stale_served),
                ("coalesced", status.coalesced),
                ("stored", status.stored),
                ("not_storable", status.not_storable),
                ("evicted", status.evicted),
                ("invalidated", status.invalidated),
                ("renewed", status.renewed),
                ("not_renewed", status.not_renewed),
            ];
            report.each(&CACHE_EVENTS, &labels, "event", &events);
        }
    }

    fn fleet_levels(&self, report: &mut Report) {
        let Some(status) = self.fleet.status() else { return };
        report.add(&FLEET_CONNECTED, Vec::new(), f64::from(u8::from(status.connected)));
        report.add(&FLEET_PODS, Vec::new(), f64::from(status.pods));
        let calls = [("ok", status.calls.saturating_sub(status.failed)), ("failed", status.failed)];
        report.each(&FLEET_CALLS, &Vec::new(), "result", &calls);
    }

    /// How the layers of one provider stand, those of its routes under their names.
    pub fn status(&self, provider: &str) -> Json {
        let mut limits = Vec::new();
        for ((identity, _), (_, limiter)) in locked(&self.limiters).iter() {
            if *identity.provider == *provider {
                limits.push(with_owner(identity, json!(limiter.status())));
            }
        }
        let mut caches = Vec::new();
        for ((identity, _), cache) in locked(&self.caches).iter() {
            if *identity.provider == *provider {
                caches.push(with_owner(identity, json!(cache.status())));
            }
        }
        let mut status = Map::new();
        status.insert("cache".to_owned(), sorted(caches));
        status.insert("limits".to_owned(), sorted(limits));
        status.insert("breakers".to_owned(), owned(&self.breakers, provider, |live| json!(live.status())));
        status.insert("concurrency".to_owned(), owned(&self.permits, provider, |live| json!(live.status())));
        status
            .insert("retry_budget".to_owned(), owned(&self.budgets, provider, |live| json!(live.1.status())));
        if let Some(counts) = locked(&self.judges).get(provider) {
            status.insert("judged".to_owned(), json!(counts.status()));
        }
        if let Some(quota) = locked(&self.quotas).get(provider) {
            status.insert("quota".to_owned(), json!(quota.status()));
        }
        status.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
        Json::Object(status)
    }
}

fn owned<V>(map: &ByIdentity<V>, provider: &str, status: impl Fn(&V) -> Json) -> Json {
    let map = locked(map);
    let own = map.iter().filter(|(identity, _)| *identity.provider == *provider);
    sorted(own.map(|(identity, live)| with_owner(identity, status(live))).collect())
}

/// What is a route's own says so.
fn with_owner(identity: &Identity, mut status: Json) -> Json {
    if let (Owner::Route(route), Some(status)) = (&identity.owner, status.as_object_mut()) {
        status.insert("route".to_owned(), route.to_string().into());
    }
    status
}

fn sorted(mut list: Vec<Json>) -> Json {
    list.sort_by_key(ToString::to_string);
    Json::Array(list)
}
