//! The series that come and go with the policy, by name, and their text.
//!
//! The library's own families keep every label set that was ever used; these keep what the policy names, and write it sorted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::labels::{Counts, Label, Phase, ReloadResult};
use super::{ListenerMetrics, ProviderMetrics, RouteMetrics, SecretMetrics, locked};

type ByName<T> = BTreeMap<Arc<str>, T>;

/// All that is tracked by name.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    providers: Mutex<ByName<Provider>>,
    listeners: Mutex<ByName<Arc<ListenerMetrics>>>,
    secrets: Mutex<ByName<Arc<SecretMetrics>>>,
    pub(super) reloads: Counts<ReloadResult>,
}

#[derive(Debug)]
struct Provider {
    metrics: Arc<ProviderMetrics>,
    routes: ByName<Arc<RouteMetrics>>,
}

impl Tracked {
    pub(super) fn provider(&self, name: &str) -> Arc<ProviderMetrics> {
        Arc::clone(&named(&mut locked(&self.providers), name, Provider::new).metrics)
    }

    pub(super) fn route(&self, provider: &str, route: &str) -> Arc<RouteMetrics> {
        let mut providers = locked(&self.providers);
        let Provider { metrics, routes } = named(&mut providers, provider, Provider::new);
        Arc::clone(named(routes, route, || Arc::new(RouteMetrics::new(Arc::clone(metrics)))))
    }

    pub(super) fn retain_providers(&self, keeps: impl Fn(&str, Option<&str>) -> bool) {
        locked(&self.providers).retain(|name, provider| {
            let stays = keeps(name, None);
            provider.routes.retain(|route, _| stays && keeps(name, Some(route)));
            stays
        });
    }

    pub(super) fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        Arc::clone(named(&mut locked(&self.listeners), name, Arc::default))
    }

    pub(super) fn secret(&self, reference: &str) -> Arc<SecretMetrics> {
        Arc::clone(named(&mut locked(&self.secrets), reference, Arc::default))
    }

    pub(super) fn retain_secrets(&self, keeps: impl Fn(&str) -> bool) {
        locked(&self.secrets).retain(|reference, _| keeps(reference));
    }
}

impl Provider {
    fn new() -> Self {
        Self { metrics: Arc::new(ProviderMetrics::new()), routes: BTreeMap::new() }
    }
}

fn named<'m, T>(map: &'m mut ByName<T>, name: &str, new: impl FnOnce() -> T) -> &'m mut T {
    map.entry(Arc::from(name)).or_insert_with(new)
}

impl Collector for Tracked {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        let providers = locked(&self.providers);
        requests(&mut out, &providers)?;
        transfer(&mut out, &providers)?;
        upstream(&mut out, &providers)?;
        listeners(&mut out, &locked(&self.listeners))?;
        secrets(&mut out, &locked(&self.secrets))?;
        out.counters("policy_reloads", "Policies that were read again, by what came of it", |family| {
            self.reloads.read().try_for_each(|(result, count)| family.counter(&[("result", result)], count))
        })
    }
}

fn requests(out: &mut Families<'_>, providers: &ByName<Provider>) -> fmt::Result {
    out.counters("requests", "Finished requests, by class of the status and by flag", |family| {
        providers.iter().try_for_each(|(provider, Provider { routes, .. })| {
            routes.iter().try_for_each(|(route, metrics)| {
                metrics.requests().try_for_each(|(class, flag, count)| {
                    let labels =
                        [("provider", &**provider), ("route", route), ("code_class", class), ("flag", flag)];
                    family.counter(&labels, count)
                })
            })
        })
    })?;
    out.gauges("requests_in_flight", "Requests that have begun and not ended", |family| {
        providers.iter().try_for_each(|(name, provider)| {
            family.gauge(&[("provider", name)], provider.metrics.in_flight.load(Relaxed) as f64)
        })
    })?;
    let help = "Time of requests in seconds, by phase";
    out.family("request_duration_seconds", help, MetricType::Histogram, |family| {
        providers.iter().try_for_each(|(name, provider)| {
            Phase::ALL.iter().zip(&provider.metrics.durations).try_for_each(|(phase, histogram)| {
                let labels = [("provider", &**name), ("phase", phase.label())];
                histogram.encode(family.0.encode_family(&labels)?)
            })
        })
    })
}

fn transfer(out: &mut Families<'_>, providers: &ByName<Provider>) -> fmt::Result {
    type Read = fn(&ProviderMetrics) -> u64;
    let families: [(&str, &str, Read); 3] = [
        ("request_bytes", "Bytes of request bodies", |metrics| metrics.request_bytes.load(Relaxed)),
        ("response_bytes", "Bytes of answer bodies", |metrics| metrics.response_bytes.load(Relaxed)),
        ("scrubbed", "Times an answer repeated the credential, and it was masked", |metrics| {
            metrics.scrubbed.load(Relaxed)
        }),
    ];
    families.into_iter().try_for_each(|(name, help, read)| {
        out.counters(name, help, |family| {
            providers.iter().try_for_each(|(name, provider)| {
                family.counter(&[("provider", name)], read(&provider.metrics))
            })
        })
    })?;
    out.counters(
        "shadowed",
        "Requests that shadow mode let pass, by what would have stopped them",
        |family| {
            providers.iter().try_for_each(|(name, provider)| {
                locked(&provider.metrics.shadowed).iter().try_for_each(|(what, count)| {
                    family.counter(&[("provider", &**name), ("what", what)], *count)
                })
            })
        },
    )
}

fn upstream(out: &mut Families<'_>, providers: &ByName<Provider>) -> fmt::Result {
    out.gauges("upstream_connections", "Open connections to upstreams", |family| {
        providers.iter().try_for_each(|(name, Provider { metrics, .. })| {
            let (idle, active) = (&metrics.idle_connections, &metrics.active_connections);
            [("idle", idle), ("active", active)].into_iter().try_for_each(|(state, count)| {
                family.gauge(&[("provider", &**name), ("state", state)], count.load(Relaxed) as f64)
            })
        })
    })?;
    out.counters("upstream_dials", "Attempts to open a connection to an upstream", |family| {
        providers.iter().try_for_each(|(name, provider)| family.by_result(name, &provider.metrics.dials))
    })?;
    out.counters("heals", "Credentials renewed because the provider refused them", |family| {
        providers.iter().try_for_each(|(name, provider)| family.by_result(name, &provider.metrics.heals))
    })?;
    let help = "Of lists of credentials, new and old: uses of an old one, and hours in which none was needed";
    out.counters("credential_overlap", help, |family| {
        providers.iter().try_for_each(|(name, provider)| {
            provider.metrics.overlaps.read().try_for_each(|(event, count)| {
                family.counter(&[("provider", &**name), ("event", event)], count)
            })
        })
    })
}

fn listeners(out: &mut Families<'_>, listeners: &ByName<Arc<ListenerMetrics>>) -> fmt::Result {
    // The counter has a name of its own: to OpenMetrics, a gauge `x` and a counter `x_total` are one family twice.
    out.gauges("downstream_connections", "Open connections from clients", |family| {
        listeners.iter().try_for_each(|(name, metrics)| {
            family.gauge(&[("listener", name)], metrics.open.load(Relaxed) as f64)
        })
    })?;
    let help = "Open connections from clients on which nothing happens, and which hold no buffers";
    out.gauges("downstream_connections_resting", help, |family| {
        listeners.iter().try_for_each(|(name, metrics)| {
            family.gauge(&[("listener", name)], metrics.resting.load(Relaxed) as f64)
        })
    })?;
    out.counters("downstream_connections_accepted", "Accepted connections from clients", |family| {
        listeners.iter().try_for_each(|(name, metrics)| {
            family.counter(&[("listener", name)], metrics.accepted.load(Relaxed))
        })
    })
}

fn secrets(out: &mut Families<'_>, secrets: &ByName<Arc<SecretMetrics>>) -> fmt::Result {
    let now = SystemTime::now();
    out.gauges(
        "secret_age_seconds",
        "Seconds since the secret was last read or found unchanged",
        |family| {
            secrets
                .iter()
                .filter_map(|(reference, metrics)| Some((reference, metrics.age(now)?)))
                .try_for_each(|(reference, age)| family.gauge(&[("reference", reference)], age))
        },
    )?;
    out.gauges(
        "secret_ends_in_seconds",
        "Seconds until the value in use ends, where it has an end: a token, a lease",
        |family| {
            secrets
                .iter()
                .filter_map(|(reference, metrics)| Some((reference, metrics.seconds_left()?)))
                .try_for_each(|(reference, left)| family.gauge(&[("reference", reference)], left))
        },
    )?;
    out.gauges("secret_version", "Grows by one with each change of the secret", |family| {
        secrets.iter().try_for_each(|(reference, metrics)| {
            family.gauge(&[("reference", reference)], metrics.version.load(Relaxed) as f64)
        })
    })?;
    out.counters("secret_errors", "Reads of the secret that failed", |family| {
        secrets.iter().try_for_each(|(reference, metrics)| {
            family.counter(&[("reference", reference)], metrics.errors.load(Relaxed))
        })
    })
}

/// Writes families one after the other.
pub(super) struct Families<'a>(pub(super) DescriptorEncoder<'a>);

impl Families<'_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl FnOnce(&mut Samples<'_>) -> fmt::Result,
    ) -> fmt::Result {
        // The library ends the help of what is registered with a full stop, and leaves a collector's as it is.
        samples(&mut Samples(self.0.encode_descriptor(name, &format!("{help}."), None, kind)?))
    }

    /// A family of counters; `_total` is added to the samples' name.
    pub(super) fn counters(
        &mut self,
        name: &str,
        help: &str,
        samples: impl FnOnce(&mut Samples<'_>) -> fmt::Result,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Counter, samples)
    }

    /// A family of gauges.
    pub(super) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        samples: impl FnOnce(&mut Samples<'_>) -> fmt::Result,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, samples)
    }
}

/// Writes the samples of one family.
pub(super) struct Samples<'a>(MetricEncoder<'a>);

impl Samples<'_> {
    /// One sample of a counter.
    pub(super) fn counter<const N: usize>(&mut self, labels: &[(&str, &str); N], value: u64) -> fmt::Result {
        self.0.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// One sample of a gauge.
    pub(super) fn gauge<const N: usize>(&mut self, labels: &[(&str, &str); N], value: f64) -> fmt::Result {
        self.0.encode_family(labels)?.encode_gauge(&value)
    }

    /// One sample of a gauge with labels of any number.
    pub(super) fn level(&mut self, labels: &[(&'static str, String)], value: f64) -> fmt::Result {
        self.0.encode_family(&labels)?.encode_gauge(&value)
    }

    /// One sample of a counter with labels of any number; counters are whole.
    pub(super) fn count(&mut self, labels: &[(&'static str, String)], value: f64) -> fmt::Result {
        let whole = value as u64;
        self.0.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&whole, None)
    }

    /// The only sample of a counter without labels, in fractions.
    pub(super) fn single_counter(&mut self, value: f64) -> fmt::Result {
        self.0.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// The only sample of a gauge without labels.
    pub(super) fn single_gauge(&mut self, value: f64) -> fmt::Result {
        self.0.encode_gauge(&value)
    }

    fn by_result<L: Label>(&mut self, provider: &str, counts: &Counts<L>) -> fmt::Result {
        counts.read().try_for_each(|(result, count)| {
            self.counter(&[("provider", provider), ("result", result)], count)
        })
    }
}
