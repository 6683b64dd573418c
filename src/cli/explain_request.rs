//! `explain`, what is no layer: hosts and doors, what is changed in requests, and what is masked in logs.

use serde_json::{Map, Value as Json, json};

use crate::policy::compiled::{Provider, Route, TenantFrom};
use crate::policy::preset::keys;
use crate::policy::tree::{Node, Place, PolicyPath};
use crate::telemetry::KeyShapes;

/// Says where the value at a place comes from.
pub type Source<'a> = &'a dyn Fn(Place) -> String;

/// The merged text of a provider or a route, asked where its values come from.
struct Written<'a> {
    text: &'a Node,
    source: Source<'a>,
}

impl Written<'_> {
    fn node(&self, keys: &[&str]) -> Option<&Node> {
        self.text.at(&keys.iter().fold(PolicyPath::root(), |path, key| path.key(*key)))
    }

    fn value(&self, keys: &[&str], text: impl Into<String>) -> Json {
        let from = self.node(keys).map_or_else(|| BUILT_IN.to_owned(), |node| (self.source)(node.place));
        json!({ "value": text.into(), "from": from })
    }

    /// A list, whose elements may come from more than one text: of each text the first one's place.
    fn list(&self, keys: &[&str], texts: Vec<String>, none: &str) -> Json {
        let node = self.node(keys);
        let items = node.map(Node::items).unwrap_or_default();
        let mut places: Vec<Place> =
            node.filter(|_| items.is_empty()).map(|node| node.place).into_iter().collect();
        for item in items {
            if !places.iter().any(|known| known.source == item.place.source) {
                places.push(item.place);
            }
        }
        let from: Vec<String> = places.into_iter().map(self.source).collect();
        let from = if from.is_empty() { BUILT_IN.to_owned() } else { from.join(", ") };
        let text = if texts.is_empty() { none.to_owned() } else { texts.join(", ") };
        json!({ "value": text, "from": from })
    }
}

const BUILT_IN: &str = "built in";

/// What holds for all requests of a provider, and for the requests of one of its routes.
pub fn values(provider: &Provider, route: &Route, source: Source<'_>) -> Map<String, Json> {
    let of_provider = Written { text: &provider.effective, source };
    let of_route = Written { text: &route.effective, source };
    let mut all = Map::new();
    let mut say = |key: &str, value: Json| all.insert(key.to_owned(), value);
    say("hosts", of_provider.list(&["hosts"], provider.host_names.clone(), "none"));
    say("doors", of_provider.list(&["doors"], doors(provider), "none"));
    say("upstream", upstream(provider, &of_provider));
    say(
        "local",
        json!({
            "path": of_provider.value(&["local", "path"], provider.local_path.as_str()),
            "host": of_provider.value(&["local", "host"], provider.local_host.as_str()),
        }),
    );
    let paths = provider.effective.get("paths").and_then(Node::as_str).unwrap_or("canonical");
    say("paths", of_provider.value(&["paths"], paths));
    if let Some(tenant) = &provider.tenant {
        let required = of_provider.value(&["tenant", "required"], tenant.required.to_string());
        let (key, name) = match &tenant.from {
            TenantFrom::Header(header, _) => ("header", header.as_str()),
            TenantFrom::Token => ("from", "token"),
        };
        say("tenant", json!({ key: of_provider.value(&["tenant", key], name), "required": required }));
    }
    say("headers", headers(route, &of_route));
    let removed = route.settings.query_remove.clone();
    say("query", json!({ "remove": of_route.list(&["query", "remove"], removed, "nothing") }));
    let masked = |key: &str, own: &[String]| {
        of_provider.list(&["redact", key], own.to_vec(), "what is masked everywhere")
    };
    say(
        "redact",
        json!({
            "query": masked("query", &provider.redact_query),
            "path": masked("path", &provider.redact_path),
        }),
    );
    let mode = if route.settings.layers.shadow { "shadow" } else { "enforce" };
    say("mode", of_route.value(&["mode"], mode));
    say("cost", of_route.value(&["cost"], route.settings.layers.cost.to_string()));
    all
}

fn doors(provider: &Provider) -> Vec<String> {
    let doors = provider.doors;
    let all = [("forward", doors.forward), ("connect", doors.connect), ("local", doors.local)];
    all.into_iter().filter(|(_, open)| *open).map(|(name, _)| name.to_owned()).collect()
}

fn upstream(provider: &Provider, written: &Written<'_>) -> Json {
    let settings = &provider.upstream.settings;
    let mut values = Map::new();
    values.insert("scheme".to_owned(), written.value(&["upstream", "scheme"], settings.scheme.as_str()));
    if let Some(address) = &settings.connect_to {
        let value = written.value(&["upstream", "connect_to"], address.to_string());
        values.insert("connect_to".to_owned(), value);
    }
    Json::Object(values)
}

/// What is changed in the fields of a request, in the order in which it is done.
fn headers(route: &Route, written: &Written<'_>) -> Json {
    let edits = &route.settings.headers;
    // Somebody may have written a key where a constant is meant.
    let shapes = KeyShapes::new(keys::shapes());
    let mut values = Map::new();
    let removed = edits.remove.iter().map(ToString::to_string).collect();
    values.insert("remove".to_owned(), written.list(&["headers", "remove"], removed, "nothing"));
    for (section, lines) in [("default", &edits.default), ("set", &edits.set)] {
        let names = written.node(&["headers", section]).map(Node::entries).unwrap_or_default();
        for (name, value) in lines {
            let entry = names.iter().find(|entry| entry.key.eq_ignore_ascii_case(name.as_str()));
            let from = entry.map_or_else(|| BUILT_IN.to_owned(), |entry| (written.source)(entry.value.place));
            let text = shapes.mask(value.to_str().unwrap_or_default()).into_owned();
            values.insert(format!("{section}.{name}"), json!({ "value": text, "from": from }));
        }
    }
    Json::Object(values)
}
