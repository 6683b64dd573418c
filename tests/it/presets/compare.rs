//! What presets say against what the facts say, both ways: a fact that changes fails until the preset follows, and what a
//! preset says has a fact behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use outgate::message::quantity::Rate;
use outgate::policy::preset::{Preset, text as preset_text};
use serde_json::{Map, Value, json};

use super::{facts, is_low, kept, list};

/// A text of a preset with `*` for what a customer has.
pub(super) fn stars(text: &str) -> String {
    let mut out = text.to_owned();
    while let (Some(from), Some(to)) = (out.find("${"), out.find('}')) {
        out.replace_range(from..=to, "*");
    }
    out
}

/// Every text of a preset that is a host, for every value of its parameters, with `*` for what a customer has.
pub(super) fn hosts_of(yaml: &Value) -> BTreeSet<String> {
    let mut hosts = BTreeSet::new();
    for text in list(yaml, "hosts") {
        let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        let Some(parameter) = name.map(|name| &yaml["preset"]["parameters"][name]) else {
            hosts.insert(stars(text));
            continue;
        };
        let values = parameter["values"].as_object().into_iter().flat_map(Map::values);
        let values: Vec<&Value> =
            values.chain([&parameter["is"], &parameter["absent"]]).filter(|value| !value.is_null()).collect();
        if values.is_empty() {
            hosts.insert(stars(text));
        }
        for value in values {
            let many = value.as_array().into_iter().flatten().chain(std::iter::once(value));
            hosts.extend(many.filter_map(Value::as_str).map(stars));
        }
    }
    hosts
}

/// Where each way of the credential gets its tokens, and where it proves itself there.
fn tokens_of(yaml: &Value) -> Value {
    let ways = yaml["preset"]["credentials"].as_object().into_iter().flatten();
    let tokens: Map<String, Value> = ways
        .filter_map(|(way, text)| {
            let kind = text["is"].as_object()?.values().next()?;
            let url = kind["token_url"].as_str()?;
            let told = ["auth_style", "audience"].map(|key| kind[key].clone());
            let told =
                std::iter::once(Value::from(url)).chain(told.into_iter().filter(|value| !value.is_null()));
            Some((way.clone(), told.collect()))
        })
        .collect();
    if tokens.is_empty() { Value::Null } else { tokens.into() }
}

/// The routes of a preset, each with the requests that it is for: `POST,PUT /files/**`.
pub(super) fn routes_of(yaml: &Value) -> Vec<(String, &Value)> {
    let place = |route: &Value| {
        let path = route["match"]["path"].as_str().map(str::to_owned);
        let methods = Some(list(&route["match"], "methods").join(",")).filter(|methods| !methods.is_empty());
        methods.into_iter().chain(path).collect::<Vec<_>>().join(" ")
    };
    yaml["routes"].as_array().into_iter().flatten().map(|route| (place(route), route)).collect()
}

/// A changed fact fails here until the preset follows.
#[test]
fn presets_say_what_the_facts_say() {
    let mut wrong = String::new();
    for (name, fact) in facts() {
        let preset = Preset::named(&name).unwrap();
        let yaml: Value = serde_yaml::from_str(preset_text(&name).unwrap()).unwrap();
        let mut check = |what: &str, same: bool| {
            if !same {
                let _ = writeln!(wrong, "{name}: {what}");
            }
        };
        check("confidence", preset.header.confidence.as_str() == fact["confidence"]);
        check_sets("hosts", hosts_of(&yaml), kept(&fact, "hosts"), &mut check);
        check(&format!("token endpoints {:?}", tokens_of(&yaml)), tokens_of(&yaml) == fact["tokens"]);
        check_quota(&yaml, &fact, &mut check);
        check("hint", yaml["retry"]["hint"]["header"] == fact["hint"]);
        check_limits(&yaml, &fact, &mut check);
        check_times(&yaml, &fact, &mut check);
        let key = &fact["key"];
        let own = yaml.get("idempotency").is_some()
            || routes_of(&yaml).iter().any(|(_, route)| route.get("idempotency").is_some());
        check("idempotency", own == key.is_object());
        check(
            "retry of low confidence",
            !is_low(&fact) || !(yaml["retry"].is_null() || yaml["retry"].is_object()),
        );
    }
    assert!(wrong.is_empty(), "presets that do not say what the facts say:\n{wrong}");
}

fn check_sets(what: &str, own: BTreeSet<String>, said: Vec<&str>, check: &mut impl FnMut(&str, bool)) {
    let said: BTreeSet<String> = said.into_iter().map(str::to_owned).collect();
    for one in own.symmetric_difference(&said) {
        check(&format!("{what}: {one} is not in both"), false);
    }
}

/// The fields of every thing that is counted, and what one quota covers, everywhere and at some paths.
fn check_quota(yaml: &Value, fact: &Value, check: &mut impl FnMut(&str, bool)) {
    let quota = &yaml["quota"];
    let headers = &quota["headers"];
    let sets: Vec<&Value> = match headers {
        Value::Array(sets) => sets.iter().collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    };
    let used = sets.first().map(|set| &set["used_of_limit"]).filter(|used| used.is_string());
    let of_limit = used.map_or(Value::Null, |used| json!([used, sets[0]["used_name"]]));
    check(&format!("used of limit {of_limit}"), of_limit == fact["used_of_limit"]);
    let sets = if used.is_some() { Vec::new() } else { sets };
    let own: BTreeSet<Vec<String>> = sets
        .into_iter()
        .map(|set| {
            let keys = ["limit", "remaining", "reset", "reset_format"];
            keys.map(|key| set[key].as_str().unwrap_or_default().to_ascii_lowercase()).to_vec()
        })
        .collect();
    let said: BTreeSet<Vec<String>> = fact["quota"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|set| {
            let fields = set.as_array().unwrap().iter();
            fields.map(|field| field.as_str().unwrap().to_ascii_lowercase()).collect()
        })
        .collect();
    for set in own.symmetric_difference(&said) {
        check(&format!("quota fields {set:?} are not in both"), false);
    }
    check(&format!("bucket {}", quota["bucket"]), quota["bucket"] == fact["bucket"]);
    let apart: Map<String, Value> = routes_of(yaml)
        .into_iter()
        .filter(|(_, route)| !route["quota"].is_null())
        .map(|(place, route)| {
            let off = route["quota"]["learn"] == false;
            (place, if off { "none".into() } else { route["quota"]["bucket"].clone() })
        })
        .collect();
    let said = fact["bucket_at"].as_object().cloned().unwrap_or_default();
    check(&format!("buckets at paths {apart:?}"), apart == said);
}

/// One number that a provider publishes, as the preset keeps it: where, for which value of a parameter, and how much.
type Number = (String, String, String);

/// Numbers only where the provider publishes them, all that it publishes, and what depends on a plan only where the policy
/// names one.
fn check_limits(yaml: &Value, fact: &Value, check: &mut impl FnMut(&str, bool)) {
    let mut own = BTreeSet::new();
    let mut costs = Map::new();
    for (place, node) in std::iter::once((String::new(), yaml)).chain(routes_of(yaml)) {
        if let Some(most) = node["concurrency"]["max"].as_u64() {
            own.insert((place.clone(), String::new(), format!("{most} at a time")));
        }
        for limit in node["limits"].as_array().into_iter().flatten() {
            check("limits are of one credential", limit["per"] == "credential");
            own.extend(rates(yaml, limit).into_iter().map(|(with, rate)| (place.clone(), with, rate)));
        }
        if !node["cost"].is_null() {
            costs.insert(place, node["cost"].clone());
        }
    }
    let rows = || fact["limits"].as_array().into_iter().flatten();
    for row in rows() {
        let number = row["rate"].is_string() || row["concurrent"].is_u64();
        let reason = row["left"].as_str().is_some_and(|reason| !reason.is_empty());
        check(&format!("neither a number nor a reason: {row}"), row["of"].is_string() && (number || reason));
    }
    let said: Vec<Number> = rows().filter(|row| row["left"].is_null()).map(number_of).collect();
    check("the same limit twice in the facts", said.iter().collect::<BTreeSet<_>>().len() == said.len());
    for number in own.symmetric_difference(&said.into_iter().collect()) {
        check(&format!("limit {number:?} is not in both"), false);
    }
    check("limits that nobody publishes", own.is_empty() || fact["published"] == true);
    check("whether limits are published", (fact["published"] == true) == rows().next().is_some());
    check("costs", costs == fact["costs"].as_object().cloned().unwrap_or_default());
}

fn number_of(row: &Value) -> Number {
    let with = row["with"].as_object().into_iter().flatten();
    let with: Vec<String> = with.map(|(name, word)| format!("{name}: {}", word.as_str().unwrap())).collect();
    let much = match row["concurrent"].as_u64() {
        Some(most) => format!("{most} at a time"),
        None => rate(row["rate"].as_str().unwrap()),
    };
    (row["at"].as_str().unwrap_or_default().to_owned(), with.join(", "), much)
}

/// The rates of a limit, by the value of the parameter that it depends on.
fn rates(yaml: &Value, limit: &Value) -> Vec<(String, String)> {
    let text = limit["rate"].as_str().unwrap();
    match text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
        None => vec![(String::new(), rate(text))],
        Some(name) => {
            let values = yaml["preset"]["parameters"][name]["values"].as_object().unwrap();
            values.iter().map(|(word, is)| (format!("{name}: {word}"), rate(is.as_str().unwrap()))).collect()
        }
    }
}

fn rate(text: &str) -> String {
    text.parse::<Rate>().unwrap().to_string()
}

/// Answers that take long have the time, everywhere or at some paths, and streams have no end.
fn check_times(yaml: &Value, fact: &Value, check: &mut impl FnMut(&str, bool)) {
    let span = |value: &Value| value.as_str().map(|text| humantime::parse_duration(text).unwrap());
    let mut own = BTreeMap::new();
    for (place, node) in std::iter::once(("all".to_owned(), yaml)).chain(routes_of(yaml)) {
        let Some(times) = node["timeouts"].as_object() else { continue };
        let (response, deadline) = (span(&node["timeouts"]["response"]), span(&node["timeouts"]["deadline"]));
        // All attempts together have more time than one.
        check(
            &format!("deadline of {place}"),
            response.zip(deadline).is_some_and(|(one, all)| all * 3 >= one * 4 && all <= one * 10),
        );
        let streams = place == "all" && fact["streams"] == true;
        let known = ["response", "deadline", if streams { "idle" } else { "" }];
        let others: Vec<&String> =
            times.keys().filter(|key| !known.contains(&key.as_str()) && *key != "total").collect();
        check(&format!("timeouts of {place} without a fact: {others:?}"), others.is_empty());
        // Said, so that a total of `defaults` does not end them.
        check(&format!("total of {place}"), times.get("total") == streams.then_some(&Value::Null));
        let idle = span(&node["timeouts"]["idle"]);
        check(&format!("idle of {place}"), idle == response.filter(|_| streams));
        own.insert(place, response.unwrap_or_default());
    }
    let said = fact["takes"].as_object().into_iter().flatten();
    let said: BTreeMap<String, Duration> =
        said.map(|(place, takes)| (place.clone(), span(takes).unwrap())).collect();
    check(&format!("times {own:?}"), own == said);
    check("streams without a time", fact["streams"] != true || said.contains_key("all"));
}
