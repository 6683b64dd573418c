//! `explain`, the resilience layers: every value with the line that says it, or "built in".

use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use crate::policy::compiled::Route;
use crate::policy::layers::LayerSettings;
use crate::policy::tree::{Node, PolicyPath, Value};
use crate::resilience::retry::backoff::Jitter;
use crate::resilience::retry::settings::{RetrySettings, Trigger};

/// Says where the value at a path of the route's merged text comes from.
pub type Origin<'a> = &'a dyn Fn(&PolicyPath) -> String;

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

    fn span(&mut self, key: &str, duration: Duration) {
        self.say(key, humantime::format_duration(duration).to_string());
    }
}

/// The layers of a route, those that are off included.
pub fn layers(route: &Route, origin: Origin<'_>) -> Json {
    let settings = &route.settings.layers;
    let mut all = Map::new();
    let mut add = |section: Section<'_>| {
        let name = section.at.to_string();
        all.insert(name, Json::Object(section.values));
    };
    add(retry(settings, origin));
    add(idempotency(settings, origin));
    add(responses(route, origin));
    Json::Object(all)
}

/// A layer that is not there: said so, with the line that removed it.
fn off<'a>(key: &str, origin: Origin<'a>) -> Section<'a> {
    let mut section = Section::new(key, origin);
    section.say("", "off");
    section
}

fn retry<'a>(settings: &LayerSettings, origin: Origin<'a>) -> Section<'a> {
    let Some(retry) = &settings.retry else { return off("retry", origin) };
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
    if let Some(hint) = hint {
        section.say("hint.header", hint.as_str());
    }
    section
}

fn idempotency<'a>(settings: &LayerSettings, origin: Origin<'a>) -> Section<'a> {
    let Some(keys) = &settings.idempotency else { return off("idempotency", origin) };
    let mut section = Section::new("idempotency", origin);
    section.say("header", keys.header.as_str());
    let methods: Vec<&str> = keys.methods.iter().map(http::Method::as_str).collect();
    section.say("methods", methods.join(", "));
    section.say("add", keys.add.to_string());
    section
}

fn responses<'a>(route: &Route, origin: Origin<'a>) -> Section<'a> {
    let mut section = Section::new("responses", origin);
    let rows = route.effective.get("responses").map(Node::items).unwrap_or_default();
    for (index, row) in rows.iter().enumerate() {
        section.say(&index.to_string(), flow(row));
    }
    section.say(
        "",
        "then 429 throttle, 401 unauthorized, 502/503/504 unavailable, other 4xx final, else success",
    );
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
