//! What answers mean: each answer of the facts, and how far its refusal reaches.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use outgate::policy::preset::text as preset_text;

use super::compare::routes_of;
use super::rows::{is_for, meets, rows_of};
use super::ways::{turn, ways};
use super::{
    Case, JSON, Mock, NO_CREDENTIAL, acted, ask, facts, is_held, is_low, list, path_of, provider, told_later,
};

/// One request for one answer of the facts.
struct Ask {
    provider: String,
    case: String,
    method: String,
    path: String,
    /// How often it should be sent, and the reason in the log.
    expected: (usize, Value),
    row: Value,
}

/// Each answer of the facts, to a GET and to a POST, at its own path or at one of each route of the preset, with the credential in
/// each of its ways: what it means shows in whether it is sent again, and why.
#[tokio::test]
async fn answers_mean_what_the_facts_say() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        let quick = if is_low(&fact) {
            ""
        } else {
            "    retry: { backoff: { base: 1ms, max: 1ms }, max_retry_after: 1s, budget: { min_per_second: 1000 } }\n"
        };
        for (number, way) in ways(&preset).iter().enumerate() {
            let keys = format!("{quick}    quota: off\n    limits: off\n    concurrency: off\n");
            policy.push_str(&provider(&format!("{preset}-{number}"), &preset, &fact, &way.text, &keys));
        }
        let yaml: Value = serde_yaml::from_str(preset_text(&preset).unwrap()).unwrap();
        for (number, row) in fact["answers"].as_array().unwrap().iter().enumerate() {
            for (method, path) in places_of(&yaml, &fact, row) {
                let way = asks.len() % ways(&preset).len();
                let case = format!("{preset}-{number}-{}", asks.len());
                cases.insert(case.clone(), Case::of(row).wants(&ways(&preset)[way]));
                let expected = expected(&yaml, &fact, row, &method, &path);
                let (provider, row) = (format!("{preset}-{way}"), row.clone());
                asks.push(Ask { provider, case, method, path, expected, row });
            }
        }
    }
    assert!(asks.len() > 1000, "{}", asks.len());
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    let mut ids = Vec::new();
    for Ask { provider, case, method, path, .. } in &asks {
        let got = ask(&proxy, method, provider, path, case, JSON, "{}").await;
        assert_ne!(got.text(), NO_CREDENTIAL, "{case} {method} {path}: {:?}", mock.seen(case));
        ids.push(got.header("outgate-request-id").unwrap().to_owned());
    }
    let records = proxy.records(asks.len()).await;
    let reasons: HashMap<&str, &Value> = records
        .iter()
        .map(|record| (record["outgate.request_id"].as_str().unwrap(), &record["outgate.retry.reason"]))
        .collect();
    let sent = sent(&mock);
    let mut wrong = String::new();
    for (Ask { case, method, path, expected: (attempts, reason), row, .. }, id) in asks.iter().zip(&ids) {
        let (sent, said) = (sent.get(case).copied().unwrap_or_default(), reasons[id.as_str()]);
        let first = said.as_array().map_or(said, |all| &all[0]);
        if sent != *attempts || first != reason {
            let _ = writeln!(
                wrong,
                "{case} {method} {path}: {row}: sent {sent} times because of {said}, and should be {attempts} because of {reason}"
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// How often each case was sent.
fn sent(mock: &Mock) -> HashMap<String, usize> {
    let mut sent = HashMap::new();
    for seen in mock.origin.requests() {
        *sent.entry(seen.header("x-case").unwrap_or_default().to_owned()).or_default() += 1;
    }
    sent
}

/// Methods and paths at which an answer of the facts comes and means the same: its own path, and one of each route that has the same row for
/// it.
fn places_of(yaml: &Value, fact: &Value, row: &Value) -> Vec<(String, String)> {
    let methods = list(row, "methods");
    let methods = if methods.is_empty() { vec!["GET", "POST"] } else { methods };
    let mut paths = vec![path_of(fact, row).to_owned()];
    if row["path"].is_null() {
        let named = routes_of(yaml).into_iter().filter(|(_, route)| route["deny"].is_null());
        let named = named.filter_map(|(_, route)| route["match"]["path"].as_str());
        paths.extend(named.map(|pattern| pattern.replace("/**", "/a").replace('*', "a")));
    }
    let all = paths.iter().flat_map(|path| methods.iter().map(move |method| (*method, path)));
    let first = |method: &str, path: &str| {
        let rows = rows_of(yaml, method, path).into_iter();
        rows.map(|(place, known)| (place, meets(&known["when"], row)))
            .find(|(_, meets)| *meets)
            .map(|(place, _)| place)
    };
    let own = path_of(fact, row);
    let all = all.filter(|(method, path)| first(method, path) == first(method, own));
    all.map(|(method, path)| (method.to_owned(), path.clone())).collect()
}

/// How often a request is sent, and the reason in the log.
fn expected(yaml: &Value, fact: &Value, row: &Value, method: &str, path: &str) -> (usize, Value) {
    let class = row["is"].as_str().unwrap();
    let stop = |why: &str| (1, Value::from(format!("not_repeated:{why}")));
    // The body says so, or the preset where the answer says nothing.
    let long = row["else_s"].is_number() || row["wait"].as_array().is_some_and(|wait| wait[1] == "body");
    let route = route_of(yaml, method, path).unwrap_or_default();
    let again = list(fact, "repeats").contains(&method);
    let repeatable = again || !acted(row) || has_key(fact, &route, method);
    match class {
        "success" => (1, Value::Null),
        // The loop is there for the sake of the credential, too.
        "unauthorized" => stop(class),
        _ if is_low(fact) => (1, Value::Null),
        "final" | "quota" => stop(class),
        _ if !repeatable => stop("may_have_acted"),
        _ if list(fact, "once").contains(&route.as_str()) => stop("attempts"),
        _ if long => stop("retry_after"),
        _ => (2, Value::from(class)),
    }
}

/// The route of a preset that is for a request, as the facts write it.
fn route_of(yaml: &Value, method: &str, path: &str) -> Option<String> {
    let mut routes = routes_of(yaml).into_iter();
    let found = routes.find(|(_, route)| is_for(route, method, path));
    found.map(|(place, _)| place)
}

/// Whether a request with the body `{}` gets a key for repetitions there.
fn has_key(fact: &Value, route: &str, method: &str) -> bool {
    let keys = &fact["keys_at"];
    let key = if keys[route].is_array() { &keys[route] } else { &keys[""] };
    let Some([name, added, methods @ ..]) = key.as_array().map(Vec::as_slice) else { return false };
    // A key of each entry of a list needs the list.
    *added == "added" && methods.iter().any(|one| one == method) && !name.as_str().unwrap().contains('*')
}

/// A throttle with its wait, written as the provider writes it: the key pauses for so long, and nothing else is sent.
#[tokio::test]
async fn a_throttle_pauses_as_long_as_the_provider_says() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        let once = if is_low(&fact) { "" } else { "    retry: { attempts: 1 }\n" };
        for (number, row) in fact["answers"].as_array().unwrap().iter().enumerate() {
            let class = row["is"].as_str().unwrap();
            let pauses = row["wait"].is_array() && ["throttle", "quota"].contains(&class);
            let passes = ["concurrency", "conflict", "final", "success"].contains(&class);
            if !pauses && !passes {
                continue;
            }
            let name = format!("{preset}-{number}");
            let way = turn(&preset, number);
            let mut case = Case::of(row).wants(way);
            if let [Value::String(field), Value::String(format)] =
                row["wait"].as_array().map_or(&[][..], Vec::as_slice)
                && !field.is_empty()
            {
                case.headers.push((field.clone(), told_later(format)));
            }
            policy.push_str(&provider(
                &name,
                &preset,
                &fact,
                &way.text,
                &format!("{once}    limits: off\n    quota: {{ on_excess: reject }}\n"),
            ));
            cases.insert(name.clone(), case);
            let method = list(row, "methods").first().map_or("GET", |method| *method).to_owned();
            asks.push((name, pauses, method, path_of(&fact, row).to_owned(), row.clone()));
        }
    }
    assert!(asks.iter().filter(|(_, pauses, ..)| *pauses).count() > 30);
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    let mut wrong = String::new();
    for (name, pauses, method, path, row) in &asks {
        let first = ask(&proxy, method, name, path, name, JSON, "{}").await;
        let second = ask(&proxy, method, name, path, name, JSON, "{}").await;
        let held = is_held(&second) && mock.seen(name).len() == 1;
        let passed = second.status == 200 && mock.seen(name).len() == 2;
        if (*pauses && !held) || (!*pauses && !passed) || first.status != row["status"] {
            let _ = writeln!(wrong, "{name}: {row}: {first:?} {second:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// How far a refusal reaches: its bucket, or where the facts say so all buckets of the host.
#[tokio::test]
async fn a_pause_reaches_as_far_as_the_facts_say() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        for (number, row) in fact["answers"].as_array().unwrap().iter().enumerate() {
            let pauses = ["throttle", "quota"].contains(&row["is"].as_str().unwrap());
            let says = row["pauses"].as_str();
            assert!(pauses == (says != Some("nothing")) || says.is_none(), "{preset}: {row}");
            if !pauses || fact["bucket"].is_null() || row["path"].is_string() {
                assert!(says != Some("host") || !fact["bucket"].is_null(), "{preset}: {row}");
                continue;
            }
            let name = format!("{preset}-{number}");
            let keys = "    retry: { attempts: 1 }\n    limits: off\n    quota: { on_excess: reject }\n";
            let way = turn(&preset, number);
            policy.push_str(&provider(&name, &preset, &fact, &way.text, keys));
            let mut case = Case::of(row).wants(way);
            if let Some(field) = fact["bucket"]["header"].as_str() {
                case.headers.push((field.to_owned(), "first".to_owned()));
            }
            cases.insert(name.clone(), case);
            asks.push((name, path_of(&fact, row).to_owned(), row["pauses"] == "host"));
        }
    }
    assert!(asks.iter().filter(|(.., host)| *host).count() >= 7 && asks.iter().any(|(.., host)| !host));
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    let mut wrong = String::new();
    for (name, path, host) in &asks {
        let (one, other) = (json!({ "model": "a" }).to_string(), json!({ "model": "b" }).to_string());
        ask(&proxy, "POST", name, path, name, JSON, &one).await;
        let got = ask(&proxy, "POST", name, &format!("{path}/else/where"), name, JSON, &other).await;
        let held = got.header("outgate-error") == Some("rate_limited");
        if held != *host || mock.seen(name).len() != 2 - usize::from(held) {
            let _ = writeln!(wrong, "{name}: {got:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Where an answer says nothing of a wait, what the provider's documents say holds.
#[tokio::test]
async fn a_wait_that_no_answer_tells_is_the_documented_one() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        for (number, row) in fact["answers"].as_array().unwrap().iter().enumerate() {
            let pauses = ["throttle", "quota"].contains(&row["is"].as_str().unwrap());
            let Some(seconds) = row["else_s"].as_u64().filter(|_| pauses) else { continue };
            let name = format!("{preset}-{number}");
            let keys = "    retry: { attempts: 1 }\n    limits: off\n    quota: { on_excess: reject }\n";
            let way = turn(&preset, number);
            policy.push_str(&provider(&name, &preset, &fact, &way.text, keys));
            cases.insert(name.clone(), Case::of(row).wants(way));
            asks.push((name, seconds, path_of(&fact, row).to_owned()));
        }
    }
    assert!(asks.len() >= 6, "{asks:?}");
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (name, seconds, path) in &asks {
        ask(&proxy, "GET", name, path, name, JSON, "{}").await;
        let second = ask(&proxy, "GET", name, path, name, JSON, "{}").await;
        let told: u64 = second.header("retry-after").and_then(|text| text.parse().ok()).unwrap_or_default();
        let held = second.header("outgate-error") == Some("rate_limited") && mock.seen(name).len() == 1;
        assert!(held && (seconds.saturating_sub(10)..=seconds + 2).contains(&told), "{name}: {second:?}");
    }
}

/// A refusal of one object, of one user or of one endpoint holds nobody else, however long it asks to wait.
#[tokio::test]
async fn after_a_refusal_of_one_object_the_others_go_on() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        for (number, row) in fact["answers"].as_array().unwrap().iter().enumerate() {
            if row["pauses"] != "nothing" {
                continue;
            }
            let name = format!("{preset}-{number}");
            let keys = "    retry: { attempts: 1 }\n    limits: off\n    quota: { on_excess: reject }\n";
            let way = turn(&preset, number);
            policy.push_str(&provider(&name, &preset, &fact, &way.text, keys));
            let mut case = Case::of(row).wants(way);
            case.headers.push(("retry-after".to_owned(), "60".to_owned()));
            cases.insert(name.clone(), case);
            asks.push((name, path_of(&fact, row).to_owned(), row["status"].clone()));
        }
    }
    let presets: std::collections::BTreeSet<_> =
        asks.iter().map(|(name, ..)| name.rsplit_once('-').unwrap().0).collect();
    assert!(presets.len() >= 9, "{presets:?}");
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (name, path, status) in &asks {
        let first = ask(&proxy, "POST", name, &format!("{path}/one"), name, JSON, "{}").await;
        assert_eq!(first.status, *status, "{name}: {first:?}");
        for other in ["two", "three"] {
            let got = ask(&proxy, "POST", name, &format!("{path}/{other}"), name, JSON, "{}").await;
            assert!(got.status == 200 && got.header("outgate-error").is_none(), "{name}: {got:?}");
        }
        assert_eq!(mock.seen(name).len(), 3, "{name}");
    }
}
