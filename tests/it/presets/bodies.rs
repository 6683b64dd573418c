//! Large bodies: credentials that stand in bodies hold as much as the provider's batches need, and a key for repetitions goes only into what
//! is kept for a repetition.

use std::collections::HashMap;

use outgate::policy::preset::text as preset_text;
use serde_json::{Value, json};

use super::ways::ways;
use super::{Case, JSON, Mock, NO_CREDENTIAL, ask, facts, provider};
use crate::support::client::Raw;

/// A document of about so many bytes.
fn document(of: &Value, bytes: usize) -> String {
    let mut document = of.clone();
    document["padding"] = "x".repeat(bytes).into();
    document.to_string()
}

/// The bound of a way whose secret goes into bodies, in mebibytes, and the name of its part.
fn most(preset: &str) -> Option<(usize, String)> {
    let yaml: Value = serde_yaml::from_str(preset_text(preset).unwrap()).unwrap();
    let ways = yaml["preset"]["credentials"].as_object().unwrap().values();
    let body = ways.map(|way| &way["is"]["body"]).find(|body| body["max"].is_string())?;
    let most = body["max"].as_str().unwrap().strip_suffix("MiB").unwrap().parse().unwrap();
    let part = body["value"].as_str().unwrap().trim_start_matches("${").trim_end_matches('}');
    Some((most, part.to_owned()))
}

#[tokio::test]
async fn a_credential_goes_into_batches_up_to_its_bound_and_no_further() {
    const BATCH: usize = 1 << 20;
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        let Some((most, part)) = most(&preset) else { continue };
        let way = ways(&preset).iter().find(|way| way.text.contains(&format!("{part}:"))).unwrap();
        policy.push_str(&provider(&preset, &preset, &fact, &way.text, "    retry: off\n"));
        let plain = Case { status: 200, ..Case::default() };
        cases.extend(["within", "beyond"].map(|case| (format!("{preset}-{case}"), plain.clone().wants(way))));
        asks.push((preset, most << 20));
    }
    assert_eq!(asks.len(), 3, "{asks:?}");
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (preset, most) in &asks {
        let (within, beyond) = (format!("{preset}-within"), format!("{preset}-beyond"));
        // Refused by its length: more than the beginning, in which keys for repetitions are looked for, is not waited for.
        let mut raw = Raw::connect(proxy.address()).await;
        let head = format!("POST /{preset}/x HTTP/1.1\r\nHost: {}\r\nx-case: {beyond}\r\n", proxy.address());
        let beginning = &document(&json!({}), 128 * 1024)[..128 * 1024];
        raw.send(format!("{head}{JSON}Content-Length: {}\r\n\r\n{beginning}", most + 1)).await;
        assert_eq!((raw.answer().await.status, mock.seen(&beyond).len()), (413, 0), "{preset}");
        // Much more than what is held where a preset says nothing.
        let got = ask(&proxy, "POST", preset, "/x", &within, JSON, &document(&json!({}), BATCH)).await;
        assert!(got.status == 200 && got.text() != NO_CREDENTIAL, "{preset}: {got:?}");
        assert!(mock.seen(&within)[0].body.len() > BATCH, "{preset}");
    }
}

/// A body that is longer than what is kept goes as it came, and once.
#[tokio::test]
async fn a_key_goes_into_no_body_that_could_not_be_sent_again() {
    const KEPT: usize = 64 * 1024;
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        let key = &fact["key"];
        if key["added"] != true || key["header"].is_string() {
            continue;
        }
        let keys = "    retry: { backoff: { base: 1ms, max: 1ms } }\n    quota: off\n    limits: off\n";
        policy.push_str(&provider(&preset, &preset, &fact, "none", keys));
        for case in ["within", "beyond"] {
            cases.insert(format!("{preset}-{case}"), Case { status: 503, ..Case::default() });
        }
        asks.push((preset, key.clone()));
    }
    assert!(asks.len() >= 3, "{asks:?}");
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (preset, key) in &asks {
        let path = key["path"].as_str().unwrap_or("/x");
        let bare = if key["bare"].is_null() { json!({}) } else { key["bare"].clone() };
        if !bare.is_object() {
            continue;
        }
        for (case, bytes, sent) in [("within", KEPT / 2, 2), ("beyond", KEPT + 1, 1)] {
            let (case, body) = (format!("{preset}-{case}"), document(&bare, bytes));
            ask(&proxy, "POST", preset, path, &case, JSON, &body).await;
            let seen = mock.seen(&case);
            assert_eq!(seen.len(), sent, "{case}");
            assert_eq!(seen[0].body != body.as_bytes(), sent == 2, "{case}: a key was added");
        }
    }
}
