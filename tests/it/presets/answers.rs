//! What answers mean: each answer of the facts, and how far its refusal reaches.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Case, Mock, acted, ask, facts, in_a_while, is_held, is_low, list, path_of, provider};

/// Each answer of the facts, to a GET and to a POST: what it means shows in whether it is sent again, and why.
#[tokio::test]
async fn answers_mean_what_the_facts_say() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        let quick = if is_low(&fact) {
            ""
        } else {
            "    retry: { backoff: { base: 1ms, max: 1ms }, max_retry_after: 1s, budget: { min_per_second: 1000 } }\n"
        };
        for (number, row) in fact["answers"].as_array().unwrap().iter().enumerate() {
            let methods = list(row, "methods");
            let methods = if methods.is_empty() { vec!["GET", "POST"] } else { methods };
            for method in methods.into_iter().map(str::to_owned) {
                let name = format!("{preset}-{number}-{}", method.to_ascii_lowercase());
                policy.push_str(&provider(
                    &name,
                    &preset,
                    &fact,
                    "none",
                    &format!("{quick}    quota: off\n    limits: off\n"),
                ));
                cases.insert(name.clone(), Case::of(row));
                asks.push((name, method, fact.clone(), row.clone()));
            }
        }
    }
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (name, method, fact, row) in &asks {
        ask(&proxy, method, name, path_of(fact, row), name, "", "{}").await;
    }
    let records = proxy.records(asks.len()).await;
    let reasons: HashMap<&str, &Value> = records
        .iter()
        .map(|record| (record["outgate.provider"].as_str().unwrap(), &record["outgate.retry.reason"]))
        .collect();
    let mut wrong = String::new();
    for (name, method, fact, row) in &asks {
        let (attempts, reason) = expected(method, fact, row);
        let (sent, said) = (mock.seen(name).len(), reasons[name.as_str()]);
        let first = said.as_array().map_or(said, |all| &all[0]);
        if sent != attempts || *first != reason {
            let _ = writeln!(
                wrong,
                "{name}: {row}: sent {sent} times because of {said}, and should be {attempts} because of {reason}"
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// How often a request is sent, and the reason in the log.
fn expected(method: &str, fact: &Value, row: &Value) -> (usize, Value) {
    let class = row["is"].as_str().unwrap();
    let stop = |why: &str| (1, Value::from(format!("not_repeated:{why}")));
    // The body says so, or the preset where the answer says nothing.
    let long = row["else_s"].is_number() || row["wait"].as_array().is_some_and(|wait| wait[1] == "body");
    let again = list(fact, "repeats").contains(&method);
    let repeatable = again || !acted(row) || fact["key"]["everywhere"] == true;
    match class {
        "success" => (1, Value::Null),
        _ if is_low(fact) => (1, Value::Null),
        "final" | "quota" | "unauthorized" => stop(class),
        _ if !repeatable => stop("may_have_acted"),
        _ if long => stop("retry_after"),
        _ => (2, Value::from(class)),
    }
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
            let mut case = Case::of(row);
            if let [Value::String(field), Value::String(format)] =
                row["wait"].as_array().map_or(&[][..], Vec::as_slice)
                && !field.is_empty()
            {
                case.headers.push((field.clone(), in_a_while(format)));
            }
            policy.push_str(&provider(
                &name,
                &preset,
                &fact,
                "none",
                &format!("{once}    limits: off\n    quota: {{ on_excess: reject }}\n"),
            ));
            cases.insert(name.clone(), case);
            asks.push((name, pauses, path_of(&fact, row).to_owned(), row.clone()));
        }
    }
    assert!(asks.iter().filter(|(_, pauses, ..)| *pauses).count() > 30);
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    let mut wrong = String::new();
    for (name, pauses, path, row) in &asks {
        let first = ask(&proxy, "GET", name, path, name, "", "").await;
        let second = ask(&proxy, "GET", name, path, name, "", "").await;
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
            policy.push_str(&provider(&name, &preset, &fact, "none", keys));
            let mut case = Case::of(row);
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
        let json = "content-type: application/json\r\n";
        let (one, other) = (json!({ "model": "a" }).to_string(), json!({ "model": "b" }).to_string());
        ask(&proxy, "POST", name, path, name, json, &one).await;
        let got = ask(&proxy, "POST", name, &format!("{path}/else/where"), name, json, &other).await;
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
            policy.push_str(&provider(&name, &preset, &fact, "none", keys));
            cases.insert(name.clone(), Case::of(row));
            asks.push((name, seconds, path_of(&fact, row).to_owned()));
        }
    }
    assert!(asks.len() >= 6, "{asks:?}");
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (name, seconds, path) in &asks {
        ask(&proxy, "GET", name, path, name, "", "").await;
        let second = ask(&proxy, "GET", name, path, name, "", "").await;
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
            policy.push_str(&provider(&name, &preset, &fact, "none", keys));
            let mut case = Case::of(row);
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
        let first = ask(&proxy, "POST", name, &format!("{path}/one"), name, "", "{}").await;
        assert_eq!(first.status, *status, "{name}: {first:?}");
        for other in ["two", "three"] {
            let got = ask(&proxy, "POST", name, &format!("{path}/{other}"), name, "", "{}").await;
            assert!(got.status == 200 && got.header("outgate-error").is_none(), "{name}: {got:?}");
        }
        assert_eq!(mock.seen(name).len(), 3, "{name}");
    }
}
