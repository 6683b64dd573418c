//! `/status`: what the process is doing, as JSON. References and ages of secrets, never values.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::Admin;

/// The whole status.
pub fn status(admin: &Admin) -> Value {
    let generation = admin.reloader.current().load_full();
    let policy = generation.policy();
    let providers: Vec<Value> = policy
        .providers
        .iter()
        .map(|provider| {
            json!({
                "name": *provider.name,
                "hosts": provider.host_names,
                "scheme": provider.upstream.settings.scheme.as_str(),
                "intercept": provider.intercept.intercept,
                "intercept_because": provider.intercept.because,
                "local": provider.local_path,
                "layers": admin.shared.layers.status(&provider.name),
                "routes": provider.routes.iter().map(|route| &*route.name).collect::<Vec<_>>(),
            })
        })
        .collect();
    let pools: Vec<Value> = admin
        .shared
        .upstreams()
        .iter()
        .map(|(provider, upstream)| {
            let stats = upstream.stats();
            json!({
                "provider": **provider,
                "open": stats.open,
                "idle": stats.idle,
                "waiting": stats.waiting,
                "http2": stats.http2,
                "dials": stats.dials_ok + stats.dials_failed,
                "dials_failed": stats.dials_failed,
            })
        })
        .collect();
    let leaves = admin.leaves.stats();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "generation": generation.number,
        "policy": { "hash": policy.hash, "warnings": policy.warnings },
        "ready": admin.ready.load(std::sync::atomic::Ordering::Acquire) && admin.shared.secrets.ready(),
        "providers": providers,
        "secrets": admin.shared.secrets.status(),
        "tenant_secrets": admin.shared.secrets.tenant_secrets(),
        "fleet": admin.shared.layers.fleet.status(),
        "pools": pools,
        "interception": {
            "ca_sha256": admin.leaves.authority().fingerprint_sha256(),
            "ca_ends_in_seconds": ends_in(admin.leaves.authority().not_after()),
            "ca_next": admin.leaves.next_authority().map(|next| json!({
                "sha256": next.fingerprint_sha256(),
                "ends_in_seconds": ends_in(next.not_after()),
            })),
            "leaves": leaves.entries,
            "minted": leaves.minted,
        },
    })
}

/// Seconds until a CA of interception ends; 0 where it has.
fn ends_in(not_after: SystemTime) -> u64 {
    not_after.duration_since(SystemTime::now()).map_or(0, |left| left.as_secs())
}
