//! What is masked in the log: keys by their shapes, wherever they stand, and the places that a preset names.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use serde_json::Map;

use super::{Mock, ask, facts, list, provider};

/// A key that an app puts into a path, the name of a parameter or the method by mistake is not in the log, whatever provider it is
/// sent to and however it is escaped.
#[tokio::test]
async fn keys_in_paths_are_masked() {
    let facts = facts();
    let mock = Mock::start(HashMap::new()).await;
    let proxy = mock.proxy(&provider("stripe", "stripe", &facts["stripe"], "none", "")).await;
    let keys = facts.values().filter_map(|fact| fact["keys"].as_object());
    let prefixes: BTreeSet<&String> = keys.flat_map(Map::keys).collect();
    assert!(prefixes.len() > 50, "{}", prefixes.len());
    // In every class of characters.
    let rest = "0".repeat(200);
    for prefix in &prefixes {
        let got = ask(&proxy, "GET", "stripe", &format!("/x/{prefix}{rest}"), "", "", "").await;
        assert_eq!(got.status, 200, "{prefix}: {got:?}");
    }
    for record in proxy.records(prefixes.len()).await {
        let path = record["url.path"].as_str().unwrap();
        assert!(path.contains("***") && !path.contains("00000000"), "{path}");
    }
    let mut sent = prefixes.len();
    for prefix in &prefixes {
        let escaped: String = prefix.bytes().map(|byte| format!("%{byte:02X}")).collect();
        ask(&proxy, "GET", "stripe", &format!("/x/{escaped}{rest}?{escaped}{rest}=1"), "", "", "").await;
        sent += 1;
    }
    for method in [format!("sk_live_{rest}"), format!("sk%5Flive%5F{rest}")] {
        ask(&proxy, &method, "stripe", "/x", "", "", "").await;
        sent += 1;
    }
    let log = format!("{:?}", proxy.records(sent).await);
    assert!(!log.contains("00000000") && log.contains("sk%5Flive%5F***"), "{log}");
}

/// Parameters and parts of paths that are secrets at a provider are not in its log, though queries are logged with their values.
#[tokio::test]
async fn what_a_preset_masks_is_not_in_the_log() {
    const SECRET: &str = "shown-to-nobody-1";
    let (mut policy, mut asks) = (String::new(), Vec::new());
    for (preset, fact) in facts() {
        for (number, place) in list(&fact, "redact").into_iter().enumerate() {
            let name = format!("{preset}-{number}");
            policy.push_str(&provider(&name, &preset, &fact, "none", ""));
            let path = match place.split_once(' ').unwrap() {
                ("query", parameter) => format!("/x?seen=shown&{parameter}={SECRET}"),
                (_, pattern) => format!("{}?seen=shown", pattern.replace('*', SECRET)),
            };
            asks.push((name, path));
        }
    }
    assert!(asks.len() >= 20, "{asks:?}");
    let mock = Mock::start(HashMap::new()).await;
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let policy = format!("telemetry: {{ query: redacted }}\nproviders:\n{policy}")
        .replace("{origin}", &mock.origin.address.to_string());
    let proxy = crate::support::proxy::Proxy::start_in(dir, &policy).await;
    let mut wrong = String::new();
    for (name, path) in &asks {
        let got = ask(&proxy, "GET", name, path, name, "", "").await;
        let asked = mock.seen(name).pop().map(|seen| seen.uri.to_string());
        if got.status != 200 || asked.as_ref() != Some(path) {
            let _ = writeln!(wrong, "{name}: {got:?} {asked:?}");
        }
    }
    for record in proxy.records(asks.len()).await {
        let text = record.to_string();
        if text.contains(SECRET)
            || !record["url.query"].as_str().is_some_and(|query| query.contains("seen=shown"))
        {
            let _ = writeln!(wrong, "{text}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Keys of the app's own that stand in fields are not in the log either, and reach the provider: it is the app that encrypts with them.
#[tokio::test]
async fn keys_that_encrypt_are_not_in_the_log() {
    const KEY: &str = "c2hvd24tdG8tbm9ib2R5LTI=";
    let named = [
        ("aws-s3", "x-amz-server-side-encryption-customer-key"),
        ("aws-s3", "x-amz-copy-source-server-side-encryption-customer-key"),
        ("google-cloud-storage", "x-goog-encryption-key"),
    ];
    let facts = facts();
    for (preset, field) in named {
        let elsewhere = list(&facts[preset], "secrets_elsewhere").join(" ");
        assert!(elsewhere.contains(field) || elsewhere.contains("its copy-source twin"), "{elsewhere}");
    }
    let mock = Mock::start(HashMap::new()).await;
    let presets: BTreeSet<&str> = named.iter().map(|(preset, _)| *preset).collect();
    let policy: String =
        presets.iter().map(|preset| provider(preset, preset, &facts[*preset], "none", "")).collect();
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let policy = format!("telemetry: {{ query: redacted }}\nproviders:\n{policy}")
        .replace("{origin}", &mock.origin.address.to_string());
    let proxy = crate::support::proxy::Proxy::start_in(dir, &policy).await;
    for (preset, field) in named {
        let path = format!("/b/o?X-Amz-Security-Token={KEY}&x=shown");
        let got = ask(&proxy, "GET", preset, &path, field, &format!("{field}: {KEY}\r\n"), "").await;
        assert_eq!(got.status, 200, "{field}: {got:?}");
        assert_eq!(mock.seen(field)[0].header(field), Some(KEY));
    }
    let log = format!("{:?}", proxy.records(named.len()).await);
    assert!(!log.contains(KEY) && log.contains("x=shown"), "{log}");
}
