//! What presets say as data against what the facts say, both ways: places of credentials and of the app's own keys, fields that
//! are added, what keys look like and where else secrets stand, what is masked, what may be repeated, webhooks, what is not
//! sure, and what is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use outgate::policy::preset::text as preset_text;
use serde_json::{Map, Value};

use super::compare::{hosts_of, routes_of, stars};
use super::{acted, facts, kept, list};

/// Every preset with its facts.
fn each(mut look: impl FnMut(&Value, &Value, &mut dyn FnMut(&str, bool))) {
    let mut wrong = String::new();
    for (name, fact) in facts() {
        let yaml: Value = serde_yaml::from_str(preset_text(&name).unwrap()).unwrap();
        look(&yaml, &fact, &mut |what, same| {
            if !same {
                let _ = writeln!(wrong, "{name}: {what}");
            }
        });
    }
    assert!(wrong.is_empty(), "presets and facts differ:\n{wrong}");
}

fn same_sets(what: &str, own: BTreeSet<String>, said: BTreeSet<String>, check: &mut dyn FnMut(&str, bool)) {
    for one in own.symmetric_difference(&said) {
        check(&format!("{what}: {one} is not in both"), false);
    }
}

fn set(fact: &Value, key: &str) -> BTreeSet<String> {
    list(fact, key).into_iter().map(str::to_owned).collect()
}

fn lower(name: &Value) -> String {
    name.as_str().unwrap().to_ascii_lowercase()
}

/// Where each way of the credential stands, or its kind, where that is more than a place.
fn places_of(yaml: &Value) -> BTreeSet<String> {
    let ways = yaml["preset"]["credentials"].as_object().unwrap().values();
    let kinds = ways.flat_map(|way| way["is"].as_object().unwrap().iter());
    kinds
        .flat_map(|(kind, spec)| match kind.as_str() {
            "header" => {
                let fields = spec.as_array().map_or_else(|| vec![spec], |all| all.iter().collect());
                fields.into_iter().map(|field| format!("header {}", lower(&field["name"]))).collect()
            }
            "query" => vec![format!("query {}", spec["name"].as_str().unwrap())],
            "body" => fields_of(spec).into_iter().map(|field| format!("body {field}")).collect(),
            _ => vec![kind.clone()],
        })
        .collect()
}

/// The fields that a way writes into bodies.
fn fields_of(body: &Value) -> Vec<&str> {
    let all = body["fields"].as_array().cloned().unwrap_or_default().len();
    let many = (0..all).filter_map(|at| body["fields"][at]["field"].as_str());
    body["field"].as_str().into_iter().chain(many).collect()
}

#[test]
fn credentials_go_to_the_places_of_the_facts() {
    each(|yaml, fact, check| {
        let said = kept(fact, "auth").into_iter().map(str::to_owned).collect();
        same_sets("places", places_of(yaml), said, check);
    });
}

/// A field of what is posted goes with nothing else: what a host tells everybody is read without a credential.
#[test]
fn fields_of_what_is_posted_are_those_of_the_facts() {
    each(|yaml, fact, check| {
        let ways = yaml["preset"]["credentials"].as_object().unwrap().values();
        let bodies = ways.map(|way| &way["is"]["body"]).filter(|body| body["methods"].is_array());
        for body in bodies.clone() {
            check("posted", body["methods"] == serde_json::json!(["POST"]));
        }
        let own = bodies.flat_map(fields_of).map(str::to_owned).collect();
        same_sets("posted", own, set(fact, "posted"), check);
    });
}

/// A fact that is left out stands in the facts and not in the preset; one that comes in has to leave the list, and none is left
/// out without being named there.
#[test]
fn what_is_left_out_is_not_there() {
    each(|yaml, fact, check| {
        let sets = yaml["quota"]["headers"].as_array().cloned();
        let sets = sets.unwrap_or_else(|| vec![yaml["quota"]["headers"].clone()]);
        let read = sets.iter().filter_map(Value::as_object).flat_map(Map::values).filter_map(Value::as_str);
        let read: BTreeSet<String> = read.map(str::to_ascii_lowercase).collect();
        let is_read = |field: &str| {
            let field = field.to_ascii_lowercase();
            let (start, end) = field.split_once('*').unwrap_or((&field, ""));
            let like = |name: &String| name.starts_with(start) && name.ends_with(end);
            if field.contains('*') { read.iter().any(like) } else { read.contains(&field) }
        };
        let (hosts, places) = (hosts_of(yaml), places_of(yaml));
        let said = ["hosts", "auth", "fields"].map(|key| set(fact, key));
        for (what, reason) in fact["left_out"].as_object().into_iter().flatten() {
            check(
                &format!("{what} is there"),
                !hosts.contains(what) && !places.contains(what) && !is_read(what),
            );
            let words = reason.as_str().map_or(0, |reason| reason.split(' ').count());
            check(&format!("{what} is left out without a reason"), words > 0);
            check(&format!("{what} is no fact"), said.iter().any(|facts| facts.contains(what)));
        }
        for field in list(fact, "fields") {
            check(&format!("{field} is not read"), is_read(field) || fact["left_out"][field].is_string());
        }
    });
}

/// Fields that the provider wants are added where the app sent none, with these values; what an app may send beside the
/// credential is taken out.
#[test]
fn what_is_added_and_taken_out_stands_in_the_facts() {
    each(|yaml, fact, check| {
        let added = yaml["headers"]["default"].as_object().into_iter().flatten();
        let added: Map<String, Value> =
            added.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let said = fact["required_headers"].as_object().cloned().unwrap_or_default();
        check(&format!("fields that are added: {added:?}"), added == said);
        check("fields that are set", yaml["headers"]["set"].is_null());
        let fields = list(&yaml["headers"], "remove")
            .into_iter()
            .map(|name| format!("header {}", name.to_ascii_lowercase()));
        let parameters = list(&yaml["query"], "remove").into_iter().map(|name| format!("query {name}"));
        same_sets("keys of the app", fields.chain(parameters).collect(), set(fact, "app_keys"), check);
    });
}

/// Shapes of keys: their beginnings and characters, and that no key of the length that the facts tell is missed.
#[test]
fn keys_look_as_the_facts_say() {
    each(|yaml, fact, check| {
        let mut own = BTreeMap::new();
        for key in yaml["preset"]["keys"].as_array().unwrap().iter().filter(|key| key["secret"] == true) {
            own.extend(list(key, "prefix").into_iter().map(|prefix| (prefix.to_owned(), key)));
        }
        let said = fact["keys"].as_object().cloned().unwrap_or_default();
        same_sets("keys", own.keys().cloned().collect(), said.keys().cloned().collect(), check);
        for (prefix, key) in own {
            let told = &said[&prefix];
            check(&format!("characters after {prefix}"), key["chars"] == told[0]);
            let least = key["least"].as_u64().unwrap_or_default();
            check(&format!("{least} characters after {prefix}, and {}", told[1]), is_enough(least, &told[1]));
        }
    });
}

/// Whether so many characters after a beginning tell a key of this length, and no word.
fn is_enough(least: u64, told: &Value) -> bool {
    let number = |text: &str| text.trim().parse::<u64>().unwrap();
    // A part of a key is better masked than read.
    let Some(text) = told.as_str() else {
        let told = told.as_u64().unwrap();
        return (told * 4 / 5..=told).contains(&least);
    };
    let most = match text.split_once("..") {
        _ if text == "variable" => 20,
        Some((from, _)) => number(from),
        None => match text.strip_prefix("about ") {
            // What is not exactly known may be a fifth shorter.
            Some(about) => number(about) * 4 / 5,
            None => number(text.strip_suffix("or more").unwrap()),
        },
    };
    (10..=most).contains(&least)
}

#[test]
fn what_else_a_preset_says_stands_in_the_facts() {
    each(|yaml, fact, check| {
        for key in ["webhooks", "sandbox", "secrets_elsewhere"] {
            let own = &yaml["preset"][key];
            check(&format!("{key}: {own} and {}", fact[key]), *own == fact[key]);
        }
        check("paths", yaml["paths"] == fact["paths"]);
        let redact = &yaml["redact"];
        let masked = ["query", "path"]
            .into_iter()
            .flat_map(|kind| list(redact, kind).into_iter().map(move |what| format!("{kind} {what}")));
        same_sets("masked", masked.collect(), set(fact, "redact"), check);
    });
}

/// What is not sure is told line by line, nothing hangs on it, and where something does it is on the safe side: no limit, and no ground
/// to send again what may have acted.
#[test]
fn what_is_not_sure_is_told_and_on_the_safe_side() {
    each(|yaml, fact, check| {
        let lines = fact["unsure"].as_object().cloned().unwrap_or_default();
        same_sets("unsure", set(&yaml["preset"], "unsure"), lines.keys().cloned().collect(), check);
        let rows = |key: &str| fact[key].as_array().cloned().unwrap_or_default();
        let mut marked = BTreeSet::new();
        for (row, is_limit) in
            rows("limits").iter().map(|row| (row, true)).chain(rows("answers").iter().map(|row| (row, false)))
        {
            let Some(line) = row["unsure"].as_str() else { continue };
            marked.insert(line.to_owned());
            let stops = ["final", "quota"].contains(&row["is"].as_str().unwrap_or_default());
            let safe = if is_limit { row["left"].is_string() } else { stops || acted(row) };
            check(&format!("{line}: {row} is not on the safe side"), safe);
        }
        let said = lines.iter().filter(|(_, why)| *why == "marked").map(|(line, _)| line.clone()).collect();
        same_sets("rows that hang on what is unsure", marked, said, check);
        for (line, why) in &lines {
            let words = why.as_str().unwrap().split(' ').count();
            check(&format!("{line}: why nothing hangs on it"), why == "marked" || words > 1);
        }
    });
}

/// `presets show` says what is not sure of each.
#[test]
fn show_says_what_is_not_sure() {
    let mut asked = 0;
    for (name, fact) in facts() {
        let lines = fact["unsure"].as_object().cloned().unwrap_or_default();
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"));
        let output = program.args(["presets", "show", &name]).env_clear().output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        let told = shown.split_once("\n  unsure:\n").map_or("", |(_, rest)| rest);
        for line in lines.keys() {
            let written = format!("    - \"{line}\"");
            assert!(told.lines().any(|one| one == written), "{name}: {line}: {shown}");
            asked += 1;
        }
    }
    assert!(asked > 100, "{asked}");
}

/// Where a sandbox has hosts of its own, a value of a parameter leads there, and only there, and is not the usual one.
#[test]
fn sandboxes_are_a_parameter() {
    each(|yaml, fact, check| {
        let said = &fact["sandbox_at"];
        let parameter = &yaml["preset"]["parameters"][said["parameter"].as_str().unwrap_or_default()];
        let hosts = |value: &Value| -> BTreeSet<String> {
            let meaning = &parameter["values"][value.as_str().unwrap_or_default()];
            let texts = meaning.as_array().cloned().unwrap_or_else(|| vec![meaning.clone()]);
            texts.iter().filter_map(Value::as_str).map(stars).collect()
        };
        same_sets("hosts of the sandbox", hosts(&said["value"]), set(said, "hosts"), check);
        let usual = hosts(&parameter["default"]);
        check("the usual hosts are the sandbox's", usual.is_disjoint(&set(said, "hosts")));
        // A host that is called so is one.
        for host in
            kept(fact, "hosts").into_iter().filter(|host| host.contains("sandbox") || host.contains("-test."))
        {
            check(&format!("{host} is no parameter's"), set(said, "hosts").contains(host));
        }
    });
}

/// Methods that are sent again though the first may have acted, and paths where nothing is.
#[test]
fn what_may_be_repeated_stands_in_the_facts() {
    const USUAL: [&str; 5] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"];
    each(|yaml, fact, check| {
        let retry = &yaml["retry"];
        let own: BTreeSet<String> = match &retry["methods"] {
            _ if retry == "off" || *retry == false => BTreeSet::new(),
            Value::Null => USUAL.map(str::to_owned).into(),
            _ => set(retry, "methods"),
        };
        check("methods that may be repeated are told", fact["repeats"].is_array());
        same_sets("methods", own, set(fact, "repeats"), check);
        let once = routes_of(yaml).into_iter().filter(|(_, route)| !route["retry"].is_null());
        let once = once.inspect(|(place, route)| {
            check(&format!("retry of {place}"), route["retry"] == serde_json::json!({ "attempts": 1 }));
        });
        let once: BTreeSet<String> = once.map(|(place, _)| place).collect();
        same_sets("sent once", once, set(fact, "once"), check);
    });
}

/// Where keys for repetitions are honoured: header or field, whether one is added, and for which methods.
#[test]
fn keys_for_repetitions_are_those_of_the_facts() {
    each(|yaml, fact, check| {
        let mut own = Map::new();
        let whole = &yaml["idempotency"];
        let routes = routes_of(yaml);
        for (place, node) in std::iter::once((String::new(), yaml)).chain(routes) {
            let Some(written) = node["idempotency"].as_object() else { continue };
            // A route says what differs.
            let mut all = whole.as_object().cloned().unwrap_or_default();
            all.extend(written.clone());
            let name = all.get("header").or(all.get("field")).cloned().unwrap_or_default();
            let added = if all["add"] == true { "added" } else { "read" };
            let methods = all["methods"].as_array().cloned().unwrap_or_default();
            own.insert(place, [vec![name, added.into()], methods].concat().into());
        }
        let said = fact["keys_at"].as_object().cloned().unwrap_or_default();
        check(&format!("{own:?} and {said:?}"), own == said);
        check("a key of the facts without a place", fact["key"].is_object() != said.is_empty());
    });
}

/// Nothing in a preset that no test holds against the facts. How long to wait between attempts and how much of a body to keep
/// is outgate's own.
#[test]
fn presets_say_nothing_that_is_not_compared() {
    let whole = "preset hosts headers query quota responses retry idempotency timeouts limits concurrency redact routes paths";
    let route = "name match quota responses retry idempotency timeouts limits concurrency cost deny";
    each(|yaml, _, check| {
        let retry = &yaml["retry"];
        let nodes = [("", yaml, whole), ("retry ", retry, "methods hint backoff replay_buffer")];
        let routes = yaml["routes"].as_array().into_iter().flatten().map(|one| ("route ", one, route));
        for (what, node, known) in nodes.into_iter().chain(routes) {
            for key in node.as_object().into_iter().flat_map(Map::keys) {
                check(&format!("{what}{key}"), known.split(' ').any(|one| one == key));
            }
        }
    });
}
