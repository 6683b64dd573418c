//! `explain`, the resilience layers: every value with the line that says it, or "built in".

use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use crate::policy::compiled::Route;
use crate::policy::layers::{LayerSettings, Owned, Owner};
use crate::policy::tree::{Entry, Node, Place, PolicyPath, Value};
use crate::resilience::circuit_breaker::{BreakerSettings, Fallback};
use crate::resilience::fleet::FleetSettings;
use crate::resilience::rate_limit::LimitSettings;
use crate::resilience::rate_limit::settings::{OnExcess, Scope};
use crate::resilience::retry::backoff::Jitter;
use crate::resilience::retry::settings::{RetrySettings, Trigger};

/// Says where the value at a path of the route's merged text comes from.
pub type Origin<'a> = &'a dyn Fn(&PolicyPath) -> String;

/// Where a value comes from that nobody wrote.
pub const BUILT_IN: &str = "built in";

/// One layer's values, by key.
struct Section<'a> {
    at: PolicyPath,
    origin: Origin<'a>,
    values: Map<String, Json>,
}

impl<'a> Section<'a> {
    fn new(key: &str, origin: Origin<'a>) -> Self {
        Self { at: PolicyPath::root().key(key.to_owned()), origin, values: Map::new() }
    }

    /// A value at `a.b` below the layer's key.
    fn say(&mut self, key: &str, value: impl Into<String>) {
        let at = key.split('.').filter(|step| !step.is_empty()).fold(self.at.clone(), |at, step| match step
            .parse()
        {
            Ok(index) => at.index(index),
            Err(_) => at.key(step.to_owned()),
        });
        let value: String = value.into();
        self.values.insert(key.to_owned(), json!({ "value": value, "from": (self.origin)(&at) }));
    }

    /// What a layer does, which a provider in shadow mode says for all of its layers.
    fn mode(&mut self, own: &str, provider: bool) {
        self.say("mode", own);
        if provider && own != "shadow" {
            let from = (self.origin)(&PolicyPath::root().key("mode"));
            self.values.insert("mode".to_owned(), json!({ "value": "shadow", "from": from }));
        }
    }

    /// The fields that tell a quota, one set or several: each is written by somebody, key by key.
    fn fields(&mut self, headers: Option<&Node>) {
        let sets: Vec<(String, &[Entry])> = match headers.map(|headers| &headers.value) {
            Some(Value::Mapping(keys)) => vec![("headers".to_owned(), keys)],
            Some(Value::Sequence(sets)) => {
                sets.iter().enumerate().map(|(at, set)| (format!("headers.{at}"), set.entries())).collect()
            }
            _ => Vec::new(),
        };
        if sets.is_empty() {
            self.say("headers", "the IETF fields and Retry-After");
        }
        for (at, keys) in sets {
            for key in keys {
                self.say(&format!("{at}.{}", key.key), flow(&key.value));
            }
        }
    }

    fn span(&mut self, key: &str, duration: Duration) {
        self.say(key, humantime::format_duration(duration).to_string());
    }
}

/// The layers of a route, those that are off included, and the fleet, where one of its limits is shared; `source` says where a value at
/// a place comes from.
pub fn layers(
    route: &Route,
    origin: Origin<'_>,
    source: &dyn Fn(Place) -> String,
    fleet: Option<(&FleetSettings, Origin<'_>)>,
) -> Json {
    let settings = &route.settings.layers;
    let mut all = Map::new();
    if settings.limits.is_empty() {
        // A list may have lost its entries, where a parameter that they name has no value: nobody turned them off.
        let from = if is_off(route, "limits") { origin } else { &|_: &PolicyPath| BUILT_IN.to_owned() };
        all.insert("limits".to_owned(), Json::Object(off("limits", from).values));
    }
    for (index, limit) in settings.limits.iter().enumerate() {
        let (name, section) = limit_section(index, limit, settings.shadow, origin);
        all.insert(name, Json::Object(section.values));
    }
    let shared = settings.limits.iter().any(|limit| limit.settings.scope == Scope::Fleet);
    if let Some((fleet, origin)) = fleet.filter(|_| shared) {
        let mut section = Section::new("fleet", origin);
        section.say("redis.url", fleet.url.to_string());
        section.say("on_outage", snake(&fleet.on_outage));
        section.say("assume_pods", fleet.assume_pods.to_string());
        all.insert("fleet".to_owned(), Json::Object(section.values));
    }
    let mut add = |section: Section<'_>| {
        let name = section.at.to_string();
        all.insert(name, Json::Object(section.values));
    };
    add(quota(route, origin));
    add(concurrency(settings, origin));
    add(breaker(settings, origin));
    add(cache(settings, origin));
    add(retry(route, origin, source));
    add(idempotency(settings, origin));
    add(responses(route, origin));
    Json::Object(all)
}

/// Whether the merged text says `off`.
fn is_off(route: &Route, key: &str) -> bool {
    route.effective.get(key).and_then(Node::as_str) == Some("off")
}

/// One limit, under its name: entries of a list have no key of their own.
fn limit_section<'a>(
    index: usize,
    limit: &Owned<LimitSettings>,
    shadow: bool,
    origin: Origin<'a>,
) -> (String, Section<'a>) {
    let settings = &limit.settings;
    let at = PolicyPath::root().key("limits").index(index);
    let mut section = Section { at, origin, values: Map::new() };
    section.say("rate", settings.rate.to_string());
    section.say("burst", settings.burst.to_string());
    section.say("unit", word(&settings.unit));
    section.say("per", word(&settings.per));
    section.say("scope", word(&settings.scope));
    section.say("on_excess", word(&settings.on_excess));
    if settings.on_excess == OnExcess::Wait {
        section.span("max_wait", settings.max_wait);
        section.say("max_queue", settings.max_queue.to_string());
    }
    section.mode(&word(&settings.mode), shadow);
    if let Owner::Route(route) = &limit.owner {
        section
            .values
            .insert("counts".to_owned(), json!({ "value": format!("route {route} alone"), "from": "" }));
    }
    (format!("limits.{}", settings.name), section)
}

/// The policy's word of a value that is one of a few.
fn word(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// The same of more than one word.
fn snake(value: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    for letter in format!("{value:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

fn quota<'a>(route: &Route, origin: Origin<'a>) -> Section<'a> {
    let settings = &route.settings.layers;
    let Some(quota) = settings.quota.as_ref().filter(|quota| quota.learn) else {
        return off("quota", origin);
    };
    let mut section = Section::new("quota", origin);
    section.say("reserve", quota.reserve.to_string());
    section.fields(route.effective.get("quota").and_then(|quota| quota.get("headers")));
    section.say("bucket", quota.bucket.to_string());
    section.say("on_excess", word(&quota.on_excess));
    section.span("max_wait", quota.max_wait);
    section.say("max_queue", quota.max_queue.to_string());
    section.span("max_hold", quota.max_hold);
    section.mode(&word(&quota.mode), settings.shadow);
    section
}

fn concurrency<'a>(settings: &LayerSettings, origin: Origin<'a>) -> Section<'a> {
    let Some(concurrency) = &settings.concurrency else { return off("concurrency", origin) };
    let own = concurrency.settings;
    let mut section = Section::new("concurrency", origin);
    section.say("max", own.max.to_string());
    section.span("max_wait", own.max_wait);
    section.say("max_queue", own.max_queue.to_string());
    section.mode(if own.shadow { "shadow" } else { "enforce" }, settings.shadow);
    section
}

fn breaker<'a>(settings: &LayerSettings, origin: Origin<'a>) -> Section<'a> {
    let Some(breaker) = &settings.breaker else { return off("breaker", origin) };
    let BreakerSettings { rules, fallback, shadow } = &breaker.settings;
    let mut section = Section::new("breaker", origin);
    section.say("failures", rules.failures.to_string());
    match &rules.error_rate {
        None => section.say("error_rate", "off"),
        Some(rate) => {
            section.say("error_rate.threshold", rate.threshold.to_string());
            section.span("error_rate.window", rate.window);
            section.say("error_rate.min_requests", rate.min_requests.to_string());
        }
    }
    section.span("open_for", rules.open_for);
    section.span("max_open_for", rules.max_open_for);
    section.say("half_open.probes", rules.probes.to_string());
    section.say("half_open.successes", rules.successes.to_string());
    section.say(
        "fallback",
        match fallback {
            Fallback::None => "none".to_owned(),
            Fallback::Stale => "stale".to_owned(),
            Fallback::Static(answer) => format!("status {}", answer.status.as_u16()),
        },
    );
    section.mode(if *shadow { "shadow" } else { "enforce" }, settings.shadow);
    section
}

fn cache<'a>(settings: &LayerSettings, origin: Origin<'a>) -> Section<'a> {
    let Some(cache) = &settings.cache else { return off("cache", origin) };
    let settings = &cache.settings;
    let mut section = Section::new("cache", origin);
    section.say("max_size", format!("{} bytes", settings.max_size));
    section.say("max_entry", format!("{} bytes", settings.max_entry));
    for (key, span) in [
        ("default_ttl", settings.default_ttl),
        ("stale_if_error", settings.stale_if_error),
        ("stale_while_revalidate", settings.stale_while_revalidate),
    ] {
        match span {
            Some(span) => section.span(key, span),
            None => section.say(key, "none"),
        }
    }
    section.say("coalesce", settings.coalesce.to_string());
    section
}

/// A layer that is not there: said so, with the line that removed it.
fn off<'a>(key: &str, origin: Origin<'a>) -> Section<'a> {
    let mut section = Section::new(key, origin);
    section.say("", "off");
    section
}

fn retry<'a>(route: &Route, origin: Origin<'a>, source: &dyn Fn(Place) -> String) -> Section<'a> {
    let Some(retry) = &route.settings.layers.retry else { return off("retry", origin) };
    // Nothing is sent again, and what the provider calls its hint is still told to the app.
    let kept = route.hint_place.zip(retry.settings.hint.as_ref());
    let kept = kept.map(|(place, hint)| json!({ "value": hint.as_str(), "from": source(place) }));
    if let (Some(hint), true) = (&kept, is_off(route, "retry")) {
        let mut section = off("retry", origin);
        section.values.insert("hint.header".to_owned(), hint.clone());
        return section;
    }
    let RetrySettings { attempts, on, methods, backoff, max_retry_after, budget, replay_buffer, hint } =
        &retry.settings;
    let mut section = Section::new("retry", origin);
    section.say("attempts", attempts.to_string());
    let triggers: Vec<&str> =
        Trigger::ALL.into_iter().filter(|trigger| on.contains(*trigger)).map(Trigger::as_str).collect();
    section.say("on", triggers.join(", "));
    let methods: Vec<&str> = methods.iter().map(http::Method::as_str).collect();
    section.say("methods", methods.join(", "));
    section.span("backoff.base", backoff.base);
    section.say("backoff.factor", backoff.factor.to_string());
    section.span("backoff.max", backoff.max);
    section.say("backoff.jitter", if backoff.jitter == Jitter::Full { "full" } else { "none" });
    section.span("max_retry_after", *max_retry_after);
    section.say("budget.ratio", budget.ratio.to_string());
    section.say("budget.min_per_second", budget.min_per_second.to_string());
    section.say("replay_buffer", format!("{replay_buffer} bytes"));
    match (hint, kept) {
        (_, Some(kept)) => {
            section.values.insert("hint.header".to_owned(), kept);
        }
        (Some(hint), None) => section.say("hint.header", hint.as_str()),
        (None, None) => section.say("hint", "none"),
    }
    section
}

fn idempotency<'a>(settings: &LayerSettings, origin: Origin<'a>) -> Section<'a> {
    let Some(keys) = &settings.idempotency else { return off("idempotency", origin) };
    let mut section = Section::new("idempotency", origin);
    match &keys.field {
        Some(field) => section.say("field", field.as_str()),
        None => section.say("header", keys.header.as_str()),
    }
    let methods: Vec<&str> = keys.methods.iter().map(http::Method::as_str).collect();
    section.say("methods", methods.join(", "));
    match &keys.field {
        Some(_) if keys.add => section.say("add", "true, into JSON bodies of at most `retry.replay_buffer`"),
        _ => section.say("add", keys.add.to_string()),
    }
    section
}

fn responses<'a>(route: &Route, origin: Origin<'a>) -> Section<'a> {
    let mut section = Section::new("responses", origin);
    let rows = route.effective.get("responses").map(Node::items).unwrap_or_default();
    for (index, row) in rows.iter().enumerate() {
        section.say(&index.to_string(), flow(row));
    }
    let rest = "then 429 throttle, 401 unauthorized, 502/503/504 unavailable, other 4xx final, else success";
    // Not of any row: built in, unless somebody took all rows away.
    let from = if is_off(route, "responses") { origin(&section.at) } else { BUILT_IN.to_owned() };
    section.values.insert(String::new(), json!({ "value": rest, "from": from }));
    section
}

/// A value of the policy on one line, as it could be written there.
fn flow(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(text) | Value::String(text) => text.clone(),
        Value::Sequence(items) => {
            format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", "))
        }
        Value::Mapping(entries) => {
            let pairs: Vec<String> =
                entries.iter().map(|entry| format!("{}: {}", entry.key, flow(&entry.value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}
