//! The rows of `responses` against the answers of the facts, both ways: what an answer means stands in the row that it meets
//! first, and every row is met by an answer. Written out once more, without the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use outgate::policy::preset::text as preset_text;
use serde_json::Value;

use super::{acted, facts, list, path_of};

/// A row's place in a preset: the route's name, empty for the preset as a whole, and the row's number.
pub(super) type Place = (String, usize);

/// What one row was seen to be met by.
#[derive(Default)]
struct Met {
    statuses: BTreeSet<u64>,
    told: bool,
}

#[test]
fn rows_and_answers_say_the_same() {
    let mut wrong = String::new();
    for (name, fact) in facts() {
        let yaml: Value = serde_yaml::from_str(preset_text(&name).unwrap()).unwrap();
        let mut met = BTreeMap::<Place, Met>::new();
        for answer in fact["answers"].as_array().unwrap() {
            let methods = list(answer, "methods");
            for method in if methods.is_empty() { vec!["GET", "POST"] } else { methods } {
                let rows = rows_of(&yaml, method, path_of(&fact, answer));
                let Some((place, row)) = rows.into_iter().find(|(_, row)| meets(&row["when"], answer)) else {
                    if usual(answer["status"].as_u64().unwrap()) != answer["is"] {
                        let _ = writeln!(wrong, "{name}: {method} has no row for {answer}");
                    }
                    continue;
                };
                for difference in differences(&row, answer) {
                    let _ = writeln!(wrong, "{name} {place:?}: {difference}: {row} and {answer}");
                }
                let met = met.entry(place).or_default();
                met.statuses.insert(answer["status"].as_u64().unwrap());
                met.told |= field_of(answer).is_some();
            }
        }
        for (place, row) in all_rows(&yaml) {
            let nothing = Met::default();
            let met = met.get(&place).unwrap_or(&nothing);
            for wanted in each(&row["when"]["status"]) {
                if !met.statuses.iter().any(|status| is_in(*status, wanted)) {
                    let _ = writeln!(wrong, "{name} {place:?}: no answer with {wanted} meets {row}");
                }
            }
            if row["wait"]["header"].is_string() && !met.told {
                let _ = writeln!(wrong, "{name} {place:?}: no answer tells the wait of {row}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Failures that come with a status of success: each that the facts name is told by an answer, which has its row, or a reason says why
/// none does; and an answer that is such a failure is one of those.
#[test]
fn failures_with_a_status_of_success_are_those_of_the_facts() {
    let mut wrong = String::new();
    for (name, fact) in facts() {
        let Some(named) = fact["body_errors"].as_object() else {
            let _ = writeln!(wrong, "{name}: which failures come with a status of success is not said");
            continue;
        };
        let mut told = BTreeSet::new();
        for answer in fact["answers"].as_array().unwrap() {
            let fails = answer["status"].as_u64().unwrap() / 100 == 2 && answer["is"] != "success";
            match answer["tells"].as_str() {
                Some(what) if fails => told.extend([what]),
                None if !fails => {}
                what => {
                    let _ = writeln!(wrong, "{name}: {what:?} of {answer}");
                }
            }
        }
        for (what, how) in named {
            let how = how.as_str().unwrap();
            let said = told.remove(what.as_str());
            if said != (how == "told") || (!said && how.split(' ').count() < 3) {
                let _ = writeln!(wrong, "{name}: `{what}` is {how}, and told by an answer: {said}");
            }
        }
        for what in told {
            let _ = writeln!(wrong, "{name}: the facts do not name `{what}`");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What differs between a row and an answer that meets it.
fn differences(row: &Value, answer: &Value) -> Vec<&'static str> {
    let wait = &row["wait"];
    let field = field_of(answer);
    let named = wait["header"].as_str().zip(wait["format"].as_str());
    let lower = |(name, format): (&str, &str)| (name.to_ascii_lowercase(), format.to_owned());
    let in_body = answer["wait"][1] == "body";
    let same = [
        ("class", row["is"] == answer["is"]),
        ("acted", answer["is"] == "success" || acted(row) == acted(answer)),
        ("reach of the pause", (row["pauses"] == "host") == (answer["pauses"] == "host")),
        ("field of the wait", field.is_none() || field.map(lower) == named.map(lower)),
        ("wait in the body", wait["json"].is_string() == in_body),
        ("default of the wait", seconds(&wait["default"]) == answer["else_s"].as_u64()),
    ];
    same.into_iter().filter(|(_, same)| !same).map(|(what, _)| what).collect()
}

/// The field that tells the wait, where it is another than `Retry-After`.
fn field_of(answer: &Value) -> Option<(&str, &str)> {
    let field = answer["wait"][0].as_str().filter(|field| !field.is_empty())?;
    let known = field.eq_ignore_ascii_case("retry-after");
    (!known).then(|| (field, answer["wait"][1].as_str().unwrap_or_default()))
}

fn seconds(span: &Value) -> Option<u64> {
    Some(humantime::parse_duration(span.as_str()?).unwrap().as_secs())
}

/// What a status means without a row.
fn usual(status: u64) -> &'static str {
    match status {
        429 => "throttle",
        401 => "unauthorized",
        502..=504 => "unavailable",
        400..=499 => "final",
        _ => "success",
    }
}

fn rows_in(node: &Value, name: &str) -> Vec<(Place, Value)> {
    let rows = node["responses"].as_array().into_iter().flatten().cloned();
    rows.enumerate().map(|(number, row)| ((name.to_owned(), number), row)).collect()
}

fn routes(yaml: &Value) -> impl Iterator<Item = &Value> {
    yaml["routes"].as_array().into_iter().flatten()
}

fn all_rows(yaml: &Value) -> Vec<(Place, Value)> {
    let of_routes = routes(yaml).flat_map(|route| rows_in(route, route["name"].as_str().unwrap()));
    of_routes.chain(rows_in(yaml, "")).collect()
}

/// The rows that a request's answer is held against, in their order: those of the first route that it matches stand before
/// the preset's.
pub(super) fn rows_of(yaml: &Value, method: &str, path: &str) -> Vec<(Place, Value)> {
    let route = routes(yaml).find(|route| is_for(route, method, path));
    let own = route.map(|route| rows_in(route, route["name"].as_str().unwrap()));
    own.into_iter().flatten().chain(rows_in(yaml, "")).collect()
}

/// Whether a route is for a request.
pub(super) fn is_for(route: &Value, method: &str, path: &str) -> bool {
    let methods = list(&route["match"], "methods");
    (methods.is_empty() || methods.contains(&method)) && is_at(route["match"]["path"].as_str(), path)
}

/// Whether a path is one of a pattern's: `*` is a segment, `/**` at the end whatever follows.
fn is_at(pattern: Option<&str>, path: &str) -> bool {
    let Some(pattern) = pattern else { return true };
    let (pattern, open) = pattern.strip_suffix("/**").map_or((pattern, false), |start| (start, true));
    let path = if path == "/" { path } else { path.trim_end_matches('/') };
    let (wanted, given): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    let length = if open { given.len() >= wanted.len() } else { given.len() == wanted.len() };
    length && wanted.iter().zip(&given).all(|(wanted, given)| *wanted == "*" || wanted == given)
}

fn each(value: &Value) -> Vec<&Value> {
    value.as_array().map_or_else(|| vec![value], |all| all.iter().collect())
}

/// Whether a status is the one that is named, or of the class.
fn is_in(status: u64, wanted: &Value) -> bool {
    match wanted.as_str() {
        Some(class) => class.as_bytes()[0] == status.to_string().as_bytes()[0],
        None => wanted.is_null() || wanted.as_u64() == Some(status),
    }
}

/// Whether an answer is what a row is about.
pub(super) fn meets(when: &Value, answer: &Value) -> bool {
    let status = answer["status"].as_u64().unwrap();
    let body = match &answer["body"] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        json => json.to_string(),
    };
    let header = |name: &str| {
        let mut fields = answer["headers"].as_object().into_iter().flatten();
        let field =
            fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).and_then(|(_, value)| value.as_str());
        field.or((name == "content-type").then_some("application/json")).map(str::to_owned)
    };
    let is_json = header("content-type").is_some_and(|kind| kind.contains("json"));
    let document = || serde_json::from_str(&body).ok().filter(|_: &Value| is_json);
    let fields = |key: &str| when[key].as_object().cloned().unwrap_or_default();
    each(&when["status"]).into_iter().any(|wanted| is_in(status, wanted))
        && fields("header").iter().all(|(name, wanted)| {
            let wanted = wanted.as_str().map_or_else(|| wanted.to_string(), str::to_owned);
            header(name).is_some_and(|text| is_like(&wanted, &text))
        })
        && fields("json").iter().all(|(pointer, wanted)| {
            let steps: Vec<&str> = pointer.split('/').skip(1).collect();
            document().is_some_and(|document: Value| leads_to(&document, &steps, wanted))
        })
        && when["text"].as_str().is_none_or(|wanted| !body.is_empty() && is_like(wanted, &body))
}

/// Whether a pointer leads to a value, through every element of a list where it says `*`.
fn leads_to(value: &Value, steps: &[&str], wanted: &Value) -> bool {
    let Some((step, rest)) = steps.split_first() else {
        return match wanted {
            Value::String(any) if any == "*" => {
                !value.is_null() && *value != serde_json::json!({}) && *value != serde_json::json!([])
            }
            Value::String(text) => value.as_str().is_some_and(|found| is_like(text, found)),
            other => value == other,
        };
    };
    match value {
        Value::Array(all) if *step == "*" => all.iter().any(|one| leads_to(one, rest, wanted)),
        Value::Array(all) => {
            step.parse().ok().and_then(|at: usize| all.get(at)).is_some_and(|one| leads_to(one, rest, wanted))
        }
        Value::Object(map) => map.get(*step).is_some_and(|one| leads_to(one, rest, wanted)),
        _ => false,
    }
}

/// Whether a text is as a pattern with `*` for any run of characters.
fn is_like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).any(|at| text.is_char_boundary(at) && is_like(rest, &text[at..]))
        }),
    }
}
