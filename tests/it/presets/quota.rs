//! Quota: what the providers tell in their own fields, and what one quota covers.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::ways::turn;
use super::{Case, JSON, Mock, ask, facts, is_held, is_low, list, path_of, provider, told_later};

/// What an answer tells when one thing that a provider counts is used up, for each such thing.
fn used_up(fact: &Value) -> Vec<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    if let Some([field, name]) = fact["used_of_limit"].as_array().map(Vec::as_slice) {
        return vec![vec![(text(field), format!("{}=5000/5000; other=1/9(a=b)", text(name)))]];
    }
    let sets = fact["quota"].as_array().into_iter().flatten();
    sets.map(|set| {
        let [limit, remaining, reset, format] = &set.as_array().unwrap()[..] else { panic!("{set}") };
        let of = [(limit, "100".to_owned()), (remaining, "0".to_owned()), (reset, told_later(&text(format)))];
        of.map(|(field, value)| (text(field), value)).to_vec()
    })
    .collect()
}

/// The quota fields of each provider, told with a success: what is used up is not asked for again before its reset, whichever
/// of the things that it counts that is.
#[tokio::test]
async fn quota_is_learned_from_the_providers_own_fields() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        for (number, headers) in used_up(&fact).into_iter().enumerate() {
            let name = format!("{preset}-{number}");
            let way = turn(&preset, number);
            policy.push_str(&provider(
                &name,
                &preset,
                &fact,
                &way.text,
                "    quota: { on_excess: reject }\n",
            ));
            let case = Case { status: 200, headers, body: "{}".to_owned(), way: None };
            cases.insert(name.clone(), case.wants(way));
            asks.push((name, fact.clone()));
        }
    }
    assert!(asks.len() >= 13, "{asks:?}");
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (name, fact) in &asks {
        let path = path_of(fact, &Value::Null);
        assert_eq!(ask(&proxy, "GET", name, path, name, JSON, "{}").await.status, 200);
        let second = ask(&proxy, "GET", name, path, name, JSON, "{}").await;
        // Where the field tells no reset, the preset says when to ask again.
        let held = if fact["used_of_limit"].is_array() {
            (second.header("outgate-error"), second.header("retry-after"))
                == (Some("rate_limited"), Some("300"))
        } else {
            is_held(&second)
        };
        assert!(held && mock.seen(name).len() == 1, "{name}: {second:?}");
        // A path that the same quota does not cover.
        for other in list(fact, "quota_free") {
            let got = ask(&proxy, "POST", name, other, name, JSON, "{}").await;
            assert_eq!(got.status, 200, "{name} {other}: {got:?}");
        }
    }
}

/// What one quota covers: what lies outside goes on while it is used up, and what lies inside waits with it.
#[tokio::test]
async fn a_quota_covers_what_the_facts_say() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        let mut case = match used_up(&fact).into_iter().next() {
            Some(headers) => Case { status: 200, headers, body: "{}".to_owned(), way: None },
            // Who tells no quota may still say that something is used up.
            None => match fact["answers"].as_array().unwrap().iter().find(|row| {
                let field = row["wait"][0].as_str().is_some_and(|field| !field.is_empty());
                row["is"] == "throttle" && (field || row["wait"][1] == "body")
            }) {
                Some(row) => {
                    let mut case = Case::of(row);
                    let [field, format] = [0, 1].map(|index| row["wait"][index].as_str().unwrap());
                    if format != "body" {
                        case.headers.push((field.to_owned(), told_later(format)));
                    }
                    case
                }
                None => {
                    // Whose bucket is not the host's may say so as everybody may.
                    let anywhere = |row: &&Value| row["path"].is_null() && row["methods"].is_null();
                    let mut rows = fact["answers"].as_array().unwrap().iter().filter(anywhere);
                    let throttle = rows.find(|row| row["is"] == "throttle" && !fact["bucket"].is_null());
                    let Some(row) = throttle else {
                        assert!(fact["bucket"].is_null(), "{preset}: a bucket that nothing fills");
                        continue;
                    };
                    let mut case = Case::of(row);
                    case.headers.push(("retry-after".to_owned(), told_later("delta_s")));
                    case
                }
            },
        };
        if let Some(field) = fact["bucket"]["header"].as_str() {
            case.headers.push((field.to_owned(), "first".to_owned()));
        }
        let once = if is_low(&fact) { "" } else { "    retry: { attempts: 1 }\n" };
        let keys = format!("{once}    limits: off\n    quota: {{ on_excess: reject }}\n");
        let way = turn(&preset, asks.len());
        policy.push_str(&provider(&preset, &preset, &fact, &way.text, &keys));
        cases.insert(preset.clone(), case.wants(way));
        asks.push((preset, fact));
    }
    assert!(asks.len() >= 20, "{}", asks.len());
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (name, fact) in &asks {
        let path = path_of(fact, &Value::Null).to_owned();
        let (elsewhere, same) = (format!("{path}/else/where"), json!({ "model": "a" }).to_string());
        let other = json!({ "model": "b" }).to_string();
        // One that lies outside of the quota, if anything of the host does, and one that lies inside.
        let (outside, inside) = match &fact["bucket"] {
            Value::Null => (None, (elsewhere.as_str(), &other)),
            Value::Object(named) if named.contains_key("field") => {
                (Some((path.as_str(), &other)), (elsewhere.as_str(), &same))
            }
            _ => (Some((elsewhere.as_str(), &same)), (path.as_str(), &other)),
        };
        let post = async |path: &str, body: &str| ask(&proxy, "POST", name, path, name, JSON, body).await;
        post(&path, &same).await;
        if let Some((path, body)) = outside {
            let got = post(path, body).await;
            assert!(got.status == 200 && got.header("outgate-error").is_none(), "{name}: {got:?}");
        }
        let got = post(inside.0, inside.1).await;
        assert_eq!(got.header("outgate-error"), Some("rate_limited"), "{name}: {got:?}");
        assert_eq!(mock.seen(name).len(), 1 + usize::from(outside.is_some()), "{name}");
    }
}

/// Which requests share a quota: one of a line is throttled, the others of the line wait, and all other lines go on.
#[tokio::test]
async fn requests_share_a_quota_as_the_facts_say() {
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        let is_apart = !fact["bucket"].is_null() && fact["bucket"]["header"].is_null();
        assert_eq!(is_apart, fact["shares"].is_array(), "{preset}: which requests share a quota");
        for number in 0..fact["shares"].as_array().map_or(0, Vec::len) {
            let name = format!("{preset}-{number}");
            let keys = "    retry: { attempts: 1 }\n    limits: off\n    quota: { on_excess: reject }\n";
            let way = turn(&preset, number);
            policy.push_str(&provider(&name, &preset, &fact, &way.text, keys));
            let headers = vec![("retry-after".to_owned(), told_later("delta_s"))];
            let case = Case { status: 429, headers, body: "{}".to_owned(), way: None };
            cases.insert(name.clone(), case.wants(way));
            asks.push((name, number, fact["shares"].clone()));
        }
    }
    assert!(asks.len() >= 50, "{}", asks.len());
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    let mut wrong = String::new();
    for (name, number, lines) in &asks {
        let send = async |request: &str| {
            let mut words = request.split(' ');
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            let body = json!({ "model": words.next().unwrap_or_default() }).to_string();
            ask(&proxy, method, name, path, name, JSON, &body).await
        };
        let lines: Vec<Vec<&str>> = lines.as_array().unwrap().iter().map(texts).collect();
        send(lines[*number][0]).await;
        for (line, requests) in lines.iter().enumerate() {
            for request in requests {
                let got = send(request).await;
                if is_held(&got) != (line == *number) {
                    let _ = writeln!(wrong, "{name}: after {}, {request}: {got:?}", lines[*number][0]);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn texts(line: &Value) -> Vec<&str> {
    line.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}
