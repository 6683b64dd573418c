//! Laying one tree over another: `defaults` under a preset, a preset under a provider, a provider under a route.
//!
//! Maps merge key by key at every depth. Lists and scalars replace, also across kinds: `retry: off` over a map removes what
//! a preset gave, and a map over `off` stands alone. A few lists, named in closed tables, are added instead. Every value
//! keeps the place it was written at.

use super::tree::{Entry, Node, Value};

/// How the lists of a key come together.
#[derive(Clone, Copy)]
enum Lists {
    /// The upper rows stand before the lower ones: the first match wins, so the own rows are asked first.
    Before,
    /// The upper ones are added; one with the `name` of a lower one takes its place.
    ByName,
    /// The upper ones are added.
    Added,
}

/// Which lists come together: those of a map, and those of maps in it.
#[derive(Clone, Copy)]
struct Rules {
    lists: &'static [(&'static str, Lists)],
    inside: &'static [(&'static str, &'static [(&'static str, Lists)])],
}

impl Rules {
    /// Those of the map under a key.
    fn of(self, key: &str) -> Self {
        let found = self.inside.iter().find(|(name, _)| *name == key);
        Self { lists: found.map_or(&[], |(_, lists)| *lists), inside: &[] }
    }
}

/// The keys whose lists do not simply replace. They count at the top of the merged maps only (of a provider, a route, a
/// preset), so that a preset's parameter of the same name is not touched.
const LISTS: [(&str, Lists); 2] = [("responses", Lists::Before), ("limits", Lists::ByName)];
/// What is masked stays masked, whoever asked for it.
const REDACT: [(&str, Lists); 2] = [("query", Lists::Added), ("path", Lists::Added)];
const REMOVE: [(&str, Lists); 1] = [("remove", Lists::Added)];

/// `over` laid over `base`. The keys of `base` come first, in its order.
pub fn merge(base: &Node, over: &Node) -> Node {
    merge_nodes(base, over, Rules { lists: &LISTS, inside: &[("redact", &REDACT)] })
}

/// A preset laid over `defaults`: what the team has taken out of all requests is taken out of these too. What may be repeated is no
/// habit of a team (`idempotency`, `retry.methods`): a preset knows it of its provider, and where it says nothing nothing more may be.
pub fn merge_preset(defaults: &Node, preset: &Node) -> Node {
    let inside = &[("redact", &REDACT as &[_]), ("headers", &REMOVE), ("query", &REMOVE)];
    merge_nodes(&without_repetitions(defaults), preset, Rules { lists: &LISTS, inside })
}

fn without_repetitions(defaults: &Node) -> Node {
    let mut kept = without(defaults, "idempotency");
    if let Value::Mapping(entries) = &mut kept.value {
        for retry in entries.iter_mut().filter(|entry| entry.key == "retry") {
            retry.value = without(&retry.value, "methods");
        }
    }
    kept
}

fn without(node: &Node, key: &str) -> Node {
    let Value::Mapping(entries) = &node.value else { return node.clone() };
    let kept = entries.iter().filter(|entry| entry.key != key).cloned();
    Node { value: Value::Mapping(kept.collect()), place: node.place }
}

fn merge_nodes(base: &Node, over: &Node, lists: Rules) -> Node {
    match (&base.value, &over.value) {
        (Value::Mapping(lower), Value::Mapping(upper)) => {
            Node { value: Value::Mapping(merge_entries(lower, upper, lists)), place: over.place }
        }
        _ => over.clone(),
    }
}

fn merge_entries(lower: &[Entry], upper: &[Entry], lists: Rules) -> Vec<Entry> {
    let find = |entries: &[Entry], key: &str| entries.iter().position(|entry| entry.key == key);
    let mut merged: Vec<Entry> = lower
        .iter()
        .map(|entry| match find(upper, &entry.key).and_then(|index| upper.get(index)) {
            None => entry.clone(),
            Some(over) => Entry { value: merge_values(&entry.value, over, lists), ..over.clone() },
        })
        .collect();
    merged.extend(upper.iter().filter(|entry| find(lower, &entry.key).is_none()).cloned());
    merged
}

fn merge_values(base: &Node, over: &Entry, rules: Rules) -> Node {
    // These are one thing: a `bearer` over a `basic` is not both, and neither is a bucket of a field over one of paths.
    if matches!(over.key.as_str(), "credential" | "bucket") {
        return over.value.clone();
    }
    let rule = rules.lists.iter().find(|(key, _)| *key == over.key).map(|(_, rule)| *rule);
    match (rule, &base.value, &over.value.value) {
        (Some(rule), Value::Sequence(lower), Value::Sequence(upper)) => {
            let items = match rule {
                Lists::Before => upper.iter().chain(lower).cloned().collect(),
                Lists::ByName => add_by_name(lower, upper),
                Lists::Added => {
                    let known = |high: &&Node| lower.iter().any(|low| low.as_str() == high.as_str());
                    lower.iter().chain(upper.iter().filter(|high| !known(high))).cloned().collect()
                }
            };
            Node { value: Value::Sequence(items), place: over.value.place }
        }
        _ => merge_nodes(base, &over.value, rules.of(&over.key)),
    }
}

fn add_by_name(lower: &[Node], upper: &[Node]) -> Vec<Node> {
    let name = |node: &Node| node.get("name").and_then(Node::as_str).map(str::to_owned);
    let same = |a: &Node, b: &Node| name(a).is_some_and(|text| name(b) == Some(text));
    let kept = lower.iter().map(|low| upper.iter().find(|high| same(low, high)).unwrap_or(low));
    let added = upper.iter().filter(|high| !lower.iter().any(|low| same(low, high)));
    kept.chain(added).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::diagnostic::Diagnostics;
    use crate::policy::tree::{Place, Sources};
    use crate::policy::yaml;

    fn read(text: &str) -> Node {
        let mut diagnostics = Diagnostics::new();
        yaml::parse(text, Sources::new().add("p.yaml"), &mut diagnostics).unwrap()
    }

    /// A node as text, without places.
    fn plain(node: &Node) -> String {
        let joined = |parts: Vec<String>| parts.join(" ");
        match &node.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) | Value::String(text) => text.clone(),
            Value::Sequence(items) => format!("[{}]", joined(items.iter().map(plain).collect())),
            Value::Mapping(entries) => {
                let part = |entry: &Entry| format!("{}={}", entry.key, plain(&entry.value));
                format!("{{{}}}", joined(entries.iter().map(part).collect()))
            }
        }
    }

    #[test]
    fn one_tree_over_another() {
        for (base, over, merged) in [
            ("a: 1", "b: 2", "{a=1 b=2}"),
            ("{a: 1, b: 2}", "a: 3", "{a=3 b=2}"),
            ("a: {b: {c: 1, d: 2}}", "a: {b: {d: 3, e: 4}}", "{a={b={c=1 d=3 e=4}}}"),
            ("hosts: [a, b]", "hosts: [c]", "{hosts=[c]}"),
            ("retry: {attempts: 3}", "retry: off", "{retry=off}"),
            ("retry: off", "retry: {attempts: 3}", "{retry={attempts=3}}"),
            ("cache: {max_size: 1MiB}", "cache: null", "{cache=null}"),
            ("cache: null", "cache: {}", "{cache={}}"),
            ("breaker: {failures: 5}", "breaker: {}", "{breaker={failures=5}}"),
            ("responses: [{is: a}]", "responses: [{is: b}]", "{responses=[{is=b} {is=a}]}"),
            ("responses: [{is: a}]", "responses: []", "{responses=[{is=a}]}"),
            ("responses: [{is: a}]", "responses: off", "{responses=off}"),
            (
                "limits: [{name: x, rate: 1/s}, {name: y, rate: 2/s}]",
                "limits: [{name: z, rate: 3/s}, {name: x, burst: 4}, {rate: 5/s}]",
                "{limits=[{name=x burst=4} {name=y rate=2/s} {name=z rate=3/s} {rate=5/s}]}",
            ),
            ("limits: [{rate: 1/s}]", "limits: [{rate: 2/s}]", "{limits=[{rate=1/s} {rate=2/s}]}"),
            (
                "redact: {path: [/a/*], query: [k]}",
                "redact: {path: [/b/*, /a/*]}",
                "{redact={path=[/a/* /b/*] query=[k]}}",
            ),
            ("redact: {path: [a]}", "redact: null", "{redact=null}"),
            ("quota: {bucket: {paths: [a]}}", "quota: {bucket: {field: b}}", "{quota={bucket={field=b}}}"),
            ("headers: {remove: [a]}", "headers: {remove: [b]}", "{headers={remove=[b]}}"),
            // Only at the top: what lies deeper under the same name is another key.
            ("with: {limits: [a]}", "with: {limits: [b]}", "{with={limits=[b]}}"),
            ("a: {responses: [a]}", "a: {responses: [b]}", "{a={responses=[b]}}"),
        ] {
            assert_eq!(plain(&merge(&read(base), &read(over))), merged, "{base} | {over}");
        }
    }

    #[test]
    fn a_preset_takes_nothing_back_of_what_defaults_remove() {
        for (defaults, preset, merged) in [
            (
                "headers: {remove: [cookie]}",
                "headers: {remove: [x-api-key, cookie]}",
                "{headers={remove=[cookie x-api-key]}}",
            ),
            ("query: {remove: [a]}", "query: {remove: [b]}", "{query={remove=[a b]}}"),
            ("redact: {path: [/a/*]}", "redact: {path: [/b/*]}", "{redact={path=[/a/* /b/*]}}"),
            ("headers: {set: {a: b}}", "headers: {set: {a: c}}", "{headers={set={a=c}}}"),
            ("idempotency: {header: a}", "hosts: [b]", "{hosts=[b]}"),
            ("idempotency: {header: a}", "idempotency: {field: /b}", "{idempotency={field=/b}}"),
            ("retry: {methods: [POST], attempts: 2}", "hosts: [b]", "{retry={attempts=2} hosts=[b]}"),
            ("retry: {methods: [POST]}", "retry: {methods: [GET]}", "{retry={methods=[GET]}}"),
        ] {
            assert_eq!(plain(&merge_preset(&read(defaults), &read(preset))), merged, "{defaults} | {preset}");
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), "[a-c]".prop_map(Value::String)];
        leaf.prop_recursive(4, 40, 4, |inner| {
            let node = inner.prop_map(|value| Node { value, place: place(0) });
            let key = prop_oneof!["[a-c]", Just("limits".to_owned()), Just("responses".to_owned())];
            prop_oneof![
                prop::collection::vec(node.clone(), 0..4).prop_map(Value::Sequence),
                prop::collection::btree_map(key, node, 0..4).prop_map(|map| {
                    let entry = |(key, value)| Entry { key, key_place: place(0), value };
                    Value::Mapping(map.into_iter().map(entry).collect())
                }),
            ]
        })
    }

    fn place(line: u32) -> Place {
        Place { source: Sources::new().add("p"), line, column: 1 }
    }

    /// Gives every key and value a place of its own.
    fn number(value: Value, next: &mut u32) -> Node {
        let mut fresh = || {
            *next += 1;
            place(*next)
        };
        let (at, mut keys) = (fresh(), Vec::new());
        if let Value::Mapping(entries) = &value {
            keys.extend(entries.iter().map(|_| fresh()));
        }
        let value = match value {
            Value::Sequence(items) => {
                Value::Sequence(items.into_iter().map(|item| number(item.value, next)).collect())
            }
            Value::Mapping(entries) => Value::Mapping(
                entries
                    .into_iter()
                    .zip(keys)
                    .map(|(entry, key_place)| Entry {
                        key: entry.key,
                        key_place,
                        value: number(entry.value.value, next),
                    })
                    .collect(),
            ),
            scalar => scalar,
        };
        Node { value, place: at }
    }

    fn leaves(node: &Node, into: &mut HashSet<(Place, String)>) {
        match &node.value {
            Value::Sequence(items) => items.iter().for_each(|item| leaves(item, into)),
            Value::Mapping(entries) => entries.iter().for_each(|entry| {
                into.insert((entry.key_place, entry.key.clone()));
                leaves(&entry.value, into);
            }),
            _ => {
                into.insert((node.place, plain(node)));
            }
        }
    }

    proptest! {
        #[test]
        fn every_value_keeps_its_place(base in tree(), over in tree()) {
            let mut next = 0;
            let (base, over) = (number(base, &mut next), number(over, &mut next));
            let (mut given, mut found) = (HashSet::new(), HashSet::new());
            leaves(&base, &mut given);
            leaves(&over, &mut given);
            leaves(&merge(&base, &over), &mut found);
            prop_assert!(found.is_subset(&given));
        }

        #[test]
        fn what_lies_over_is_there(base in tree(), over in tree()) {
            let mut next = 0;
            let (base, over) = (number(base, &mut next), number(over, &mut next));
            let (mut wanted, mut found) = (HashSet::new(), HashSet::new());
            leaves(&over, &mut wanted);
            leaves(&merge(&base, &over), &mut found);
            prop_assert!(wanted.is_subset(&found));
        }
    }
}
