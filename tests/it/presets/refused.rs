//! Keys that are refused, with a 401 or in the provider's own words: the next one of an overlap is taken, for reads and for writes, for such
//! an answer proves that nothing was done.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::ways::{Way, ways};
use super::{Case, JSON, ask, facts, path_of, provider};
use crate::support::CANARY;
use crate::support::origin::{HttpOrigin, Seen, text};
use crate::support::proxy::Proxy;

/// One provider of the policy, with the refusal of its facts that it meets.
struct Refused {
    name: String,
    method: &'static str,
    path: String,
    row: Value,
    way: Way,
}

/// Each refusal of the facts, and a 401, by each way of the credential that has an overlap.
fn all() -> (String, Vec<Refused>) {
    let (mut policy, mut all) = (String::new(), Vec::new());
    for (preset, fact) in facts() {
        let own =
            fact["answers"].as_array().unwrap().iter().filter(|row| row["is"] == "unauthorized").cloned();
        let usual = json!({ "status": 401, "body": {} });
        for (row, way) in
            own.chain([usual]).flat_map(|row| ways(&preset).iter().map(move |way| (row.clone(), way)))
        {
            let Some(credential) = way.in_overlap() else { continue };
            for method in ["GET", "POST"].into_iter().filter(|method| way.brings(method)) {
                let name = format!("{preset}-{}", all.len());
                // Each has keys of its own: which of them worked is remembered by their references.
                let credential = credential.replace("{dir}/", &format!("{{dir}}/{name}-"));
                let keys = "    quota: off\n    limits: off\n    concurrency: off\n";
                policy.push_str(&provider(&name, &preset, &fact, &credential, keys));
                let path = path_of(&fact, &row).to_owned();
                all.push(Refused { name, method, path, row: row.clone(), way: way.clone() });
            }
        }
    }
    (policy, all)
}

#[tokio::test]
async fn a_key_that_is_refused_gives_way_to_the_next() {
    let (policy, all) = all();
    assert!(all.len() > 100 && all.iter().filter(|one| one.row["status"] != 401).count() >= 15);
    let refusals: Vec<(String, Way, Case)> =
        all.iter().map(|one| (one.name.clone(), one.way.clone(), Case::of(&one.row))).collect();
    let origin = HttpOrigin::with(None, move |seen: Seen| {
        let case = seen.header("x-case").unwrap_or_default();
        let (_, way, refusal) = refusals.iter().find(|(name, ..)| name == case).unwrap();
        if way.is_borne_by(&seen) { text(200, "{}") } else { refusal.answer() }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    for Refused { name, .. } in &all {
        std::fs::write(dir.path().join(format!("{name}-secret")), CANARY).unwrap();
        std::fs::write(dir.path().join(format!("{name}-stale")), "the-stale-key-of-before").unwrap();
    }
    let policy = format!("providers:\n{policy}").replace("{origin}", &origin.address.to_string());
    let proxy = Proxy::start_in(Arc::new(dir), &policy).await;
    let mut wrong = String::new();
    for Refused { name, method, path, row, .. } in &all {
        let got = ask(&proxy, method, name, path, name, JSON, "{}").await;
        let sent = origin.requests().iter().filter(|seen| seen.header("x-case") == Some(name)).count();
        if got.status != 200 || got.text() != "{}" || sent != 2 {
            let _ = writeln!(wrong, "{name} {method}: {row}: sent {sent} times: {got:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let log = format!("{:?}", proxy.records(all.len()).await);
    assert!(!log.contains(CANARY) && !log.contains("the-stale-key"), "{log}");
}
