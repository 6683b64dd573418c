//! Each tenant has its own credential: `{tenant}` in secret references, through the whole proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;

use super::capture::Capture;
use super::support::ca::TestCa;
use super::support::client::{Got, Raw, admin, local_request, over_http1, over_tls, request, sample};
use super::support::origin::{HttpOrigin, RawOrigin, Script, Seen, read_request, text};
use super::support::proxy::Proxy;

const TENANT: &str = "    tenant: { header: X-Tenant, required: true }\n";
const BEARER: &str = "    credential: { bearer: \"file:{dir}/{tenant}/key\" }\n";

fn policy(origin: &HttpOrigin, keys: &str) -> String {
    format!(
        "providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n{keys}",
        origin.address
    )
}

fn secret_of(tenant: &str) -> String {
    format!("the-secret-of-{tenant}-0001")
}

/// A directory with a secret for each tenant.
fn directory(tenants: &[&str]) -> Arc<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    for tenant in tenants {
        write(&dir, tenant, &secret_of(tenant));
    }
    Arc::new(dir)
}

fn write(dir: &tempfile::TempDir, tenant: &str, secret: &str) {
    std::fs::create_dir_all(dir.path().join(tenant)).unwrap();
    std::fs::write(dir.path().join(tenant).join("key"), secret).unwrap();
}

async fn get(proxy: &Proxy, tenant: &str, path: &str) -> Got {
    local_request(proxy.address(), "GET", path, &format!("X-Tenant: {tenant}\r\n"), "").await
}

fn carried(seen: &Seen) -> &str {
    seen.header("authorization").unwrap_or_default().trim_start_matches("Bearer ")
}

#[tokio::test]
async fn each_tenant_carries_its_own_secret_and_its_name_goes_no_further() {
    let origin = HttpOrigin::with(None, |_| text(200, "ok")).await;
    let proxy =
        Proxy::start_in(directory(&["acme", "globex"]), &policy(&origin, &format!("{TENANT}{BEARER}"))).await;
    for tenant in ["acme", "globex", "acme"] {
        assert_eq!(get(&proxy, tenant, "/api/x").await.status, 200);
    }
    let seen = origin.requests();
    let all: Vec<&str> = seen.iter().map(carried).collect();
    assert_eq!(all, [secret_of("acme"), secret_of("globex"), secret_of("acme")]);
    assert!(seen.iter().all(|one| one.header("x-tenant").is_none()));
    // In no other spelling of its field either.
    let twin = "X-Tenant: acme\r\nx_tenant: globex\r\n";
    assert_eq!(local_request(proxy.address(), "GET", "/api/twin", twin, "").await.status, 200);
    let seen = origin.requests().pop().unwrap();
    assert!(carried(&seen) == secret_of("acme") && seen.header("x_tenant").is_none());
    // Who names none is refused, and so is who names two.
    let none = local_request(proxy.address(), "GET", "/api/x", "", "").await;
    let two =
        local_request(proxy.address(), "GET", "/api/x", "X-Tenant: acme\r\nX-Tenant: globex\r\n", "").await;
    assert_eq!((none.status, two.status, origin.requests().len()), (400, 400, 4));
    // Names of tenants are no labels, and none is in the record.
    let records = proxy.records(6).await;
    assert!(records[0]["outgate.credential"].as_str().unwrap().ends_with("/{tenant}/key"), "{}", records[0]);
    let (metrics, status) = (proxy.metrics(), admin(&proxy, "GET", "/status").await.text());
    assert!(!metrics.contains("acme") && !status.contains("acme"));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (&status["tenant_secrets"][0]["tenants"], &status["tenant_secrets"][0]["missing"]),
        (&2.into(), &0.into())
    );
}

/// What a provider keeps with a connection it keeps for one tenant alone.
#[tokio::test]
async fn two_tenants_never_share_a_connection() {
    let carried = Arc::new(std::sync::Mutex::new(Vec::<Vec<String>>::new()));
    let seen = carried.clone();
    let script: Script = Arc::new(move |mut stream, number| {
        let seen = seen.clone();
        Box::pin(async move {
            while let Some(request) = read_request(&mut stream).await {
                let secret = request.split("Bearer ").nth(1).unwrap_or_default();
                let secret = secret.split("\r\n").next().unwrap().to_owned();
                {
                    let mut seen = seen.lock().unwrap();
                    let length = seen.len().max(number + 1);
                    seen.resize_with(length, Vec::new);
                    seen[number].push(secret);
                }
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
        })
    });
    let origin = RawOrigin::start(None, script).await;
    let text = format!(
        "providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n{TENANT}{BEARER}",
        origin.address
    );
    let tenants = ["acme", "globex", "initech"];
    let proxy = Proxy::start_in(directory(&tenants), &text).await;
    for _ in 0..4 {
        for tenant in tenants {
            assert_eq!(get(&proxy, tenant, "/api/x").await.status, 200);
        }
    }
    let carried = carried.lock().unwrap();
    assert!(carried.iter().all(|one| one.iter().all(|secret| *secret == one[0])), "{carried:?}");
    assert_eq!(carried.iter().map(Vec::len).sum::<usize>(), 12);
    // A tenant's own connection is used again, unless its next request came before it was back.
    assert!(carried.iter().any(|one| one.len() > 1), "{carried:?}");
}

#[tokio::test]
async fn an_unknown_tenant_is_503_and_touches_no_other() {
    let origin = HttpOrigin::with(None, |_| text(200, "ok")).await;
    let proxy = Proxy::start_in(directory(&["acme"]), &policy(&origin, &format!("{TENANT}{BEARER}"))).await;
    for _ in 0..3 {
        let got = get(&proxy, "nobody", "/api/x").await;
        assert_eq!((got.status, got.header("outgate-error")), (503, Some("credential_unavailable")));
        let wait: u64 = got.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=8).contains(&wait), "{wait}");
        assert_eq!(get(&proxy, "acme", "/api/x").await.status, 200);
    }
    assert_eq!(origin.requests().len(), 3);
    let status: serde_json::Value =
        serde_json::from_str(&admin(&proxy, "GET", "/status").await.text()).unwrap();
    // One read of it, however often it was named.
    let told = &status["tenant_secrets"][0];
    assert_eq!((&told["failed_reads"], &told["missing"], &told["stale"]), (&1.into(), &1.into(), &0.into()));
    assert_eq!(told["last_error_codes"], serde_json::json!({ "not_found": 1 }));
    assert!(told["last_good_read"].is_string() && told["next_read_in_seconds"].is_u64(), "{told}");
    assert!(!told.to_string().contains("nobody") && !told.to_string().contains("acme"), "{told}");
    assert!(told["first_ends_in_seconds"].is_null(), "keys in files have no end");
}

#[tokio::test]
async fn no_name_climbs_out_of_its_place() {
    let origin = HttpOrigin::with(None, |_| text(200, "ok")).await;
    let dir = directory(&["acme"]);
    // What a name that climbed would find.
    std::fs::write(dir.path().join("key"), "not-for-tenants-1").unwrap();
    let proxy = Proxy::start_in(dir, &policy(&origin, &format!("{TENANT}{BEARER}"))).await;
    let long = "a".repeat(129);
    for name in [
        "..",
        ".",
        "../acme",
        "acme/..",
        "acme/../..",
        "./acme",
        "/acme",
        "acme/",
        "a/b",
        "acme\\..",
        "..\\acme",
        "a..b",
        "%2e%2e",
        "..%2f",
        "acme%00",
        "acme#x",
        "acme@1",
        "acme?x",
        "acme x",
        "acme,globex",
        "{tenant}",
        "~",
        "*",
        "$HOME",
        "acme;x",
        "acme:x",
        "\"acme\"",
        "",
        &long,
    ] {
        let got = get(&proxy, name, "/api/x").await;
        assert_eq!((got.status, got.header("outgate-error")), (400, Some("bad_request")), "{name:?}");
    }
    assert!(origin.requests().is_empty());
    // A name that only looks odd is one.
    assert_eq!(get(&proxy, "-", "/api/x").await.status, 503);
    assert_eq!(get(&proxy, "acme", "/api/x").await.status, 200);
}

#[tokio::test]
async fn a_tenant_whose_secret_was_rotated_heals_alone() {
    let rotated = Arc::new(AtomicBool::new(false));
    let moved = rotated.clone();
    let origin = HttpOrigin::with(None, move |seen: Seen| {
        let stale = moved.load(Ordering::SeqCst) && carried(&seen) == secret_of("acme");
        text(if stale { 401 } else { 200 }, "{}")
    })
    .await;
    let dir = directory(&["acme", "globex"]);
    let proxy = Proxy::start_in(dir, &policy(&origin, &format!("{TENANT}{BEARER}"))).await;
    for tenant in ["acme", "globex"] {
        assert_eq!(get(&proxy, tenant, "/api/x").await.status, 200);
    }
    rotated.store(true, Ordering::SeqCst);
    write(&proxy.dir, "acme", "the-new-secret-of-acme-2");
    for tenant in ["acme", "globex"] {
        assert_eq!(get(&proxy, tenant, "/api/x").await.status, 200);
    }
    let carried: Vec<String> = origin.requests().iter().map(|one| carried(one).to_owned()).collect();
    let (acme, globex) = (secret_of("acme"), secret_of("globex"));
    assert_eq!(carried, [&*acme, &globex, &acme, "the-new-secret-of-acme-2", &globex]);
    assert_eq!(
        sample(&proxy.metrics(), "outgate_heals_total", &["provider=\"api\"", "result=\"healed\""]),
        Some(1.0)
    );
}

#[tokio::test]
async fn no_tenant_reads_the_cached_answer_of_another() {
    let origin = HttpOrigin::with(None, |seen: Seen| {
        let mut answer = text(200, carried(&seen));
        answer.headers_mut().insert("cache-control", "max-age=60".parse().unwrap());
        answer
    })
    .await;
    let keys = format!("{TENANT}{BEARER}    cache: {{}}\n    scrub: \"off\"\n");
    let proxy = Proxy::start_in(directory(&["acme", "globex"]), &policy(&origin, &keys)).await;
    for tenant in ["acme", "globex", "acme", "globex"] {
        assert_eq!(get(&proxy, tenant, "/api/x").await.text(), secret_of(tenant));
    }
    assert!(origin.requests().len() >= 2);
    let before = origin.requests().len();
    assert_eq!(get(&proxy, "acme", "/api/x").await.text(), secret_of("acme"));
    assert_eq!(origin.requests().len(), before, "its own answer is a hit");
}

#[tokio::test]
async fn two_thousand_tenants_are_served_and_a_thousand_are_held() {
    let origin = HttpOrigin::with(None, |_| text(200, "ok")).await;
    let names: Vec<String> = (0..2000).map(|number| format!("tenant-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let proxy = Proxy::start_in(directory(&names), &policy(&origin, &format!("{TENANT}{BEARER}"))).await;
    for chunk in names.chunks(20) {
        let all = chunk.iter().map(|tenant| get(&proxy, tenant, "/api/x"));
        let all = futures_util::future::join_all(all).await;
        assert!(all.iter().all(|got| got.status == 200));
    }
    let mut seen: Vec<String> = origin.requests().iter().map(|one| carried(one).to_owned()).collect();
    let mut expected: Vec<String> = names.iter().map(|tenant| secret_of(tenant)).collect();
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
    let status: serde_json::Value =
        serde_json::from_str(&admin(&proxy, "GET", "/status").await.text()).unwrap();
    assert_eq!(status["tenant_secrets"][0]["tenants"], 1000);
}

#[tokio::test]
async fn a_token_is_a_tenants_own_and_one_refused_client_stops_no_other() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let provider = HttpOrigin::with(None, move |seen: Seen| {
        counter.fetch_add(1, Ordering::SeqCst);
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        match body.split("client_secret=").nth(1) {
            Some(secret) if !secret.contains("bad") => {
                text(200, &format!("{{\"access_token\":\"token-for-{secret}\",\"expires_in\":3600}}"))
            }
            _ => text(401, "{\"error\":\"invalid_client\"}"),
        }
    })
    .await;
    let origin = HttpOrigin::with(None, |_| text(200, "ok")).await;
    let keys = format!(
        "{TENANT}    credential:\n      oauth2_client_credentials:\n        token_url: \"http://{}/token\"\n        client_id: \"plain:app\"\n        client_secret: \"file:{{dir}}/{{tenant}}/key\"\n        auth_style: post\n",
        provider.address
    );
    let proxy = Proxy::start_in(directory(&["acme", "globex", "bad"]), &policy(&origin, &keys)).await;
    for _ in 0..2 {
        for tenant in ["acme", "globex"] {
            assert_eq!(get(&proxy, tenant, "/api/x").await.status, 200);
        }
        assert_eq!(get(&proxy, "bad", "/api/x").await.status, 503);
    }
    let carried: Vec<String> = origin.requests().iter().map(|one| carried(one).to_owned()).collect();
    let token = |tenant: &str| format!("token-for-{}", secret_of(tenant));
    assert_eq!(carried, [token("acme"), token("globex"), token("acme"), token("globex")]);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert!(!proxy.metrics().contains("acme"));
}

#[test]
fn where_a_tenant_cannot_be_known_check_says_so() {
    let mistakes = |policy: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, policy).unwrap();
        match outgate::pipeline::reload::read(&path) {
            Ok(_) => String::new(),
            Err(rejection) => rejection.render(false),
        }
    };
    let provider =
        |keys: &str| format!("version: 1\nproviders:\n  api:\n    hosts: [api.example.test]\n{keys}");
    let bearer = "    credential: { bearer: \"file:/run/{tenant}/key\" }\n";
    assert_eq!(mistakes(&provider(&format!("{TENANT}{bearer}"))), "");
    for (policy, says) in [
        (provider(bearer), "not every request names its tenant"),
        (
            provider(&format!("    tenant: {{ header: X-Tenant }}\n{bearer}")),
            "not every request names its tenant",
        ),
        (
            provider(&format!(
                "    tenant: {{ header: X-Tenant, required: true, pattern: \"[a-z@]+\" }}\n{bearer}"
            )),
            "lets characters pass that may not stand there",
        ),
        (provider("    tenant: { header: X-Tenant, pattern: \"(a|b)\" }\n"), "expected characters, classes"),
        (
            provider(&format!(
                "{TENANT}    credential: {{ bearer: \"file:/run/{{tenant}}/key\", required: true }}\n"
            )),
            "readiness cannot wait",
        ),
        (
            "version: 1\nadmin: { token: \"file:/run/{tenant}\" }\n".to_owned(),
            "`{tenant}` has no meaning here",
        ),
    ] {
        let told = mistakes(&policy);
        assert!(told.contains(says), "{policy}\n{told}");
    }
}

/// Tokens of two tenants at one listener, and one of nobody's; the listener beside it asks for none.
const LISTENERS: &str = "listeners:
  - { address: \"127.0.0.1:0\", auth: { token: \"file:{dir}/plain\", tenants: { acme: \"file:{dir}/a\", globex: \"file:{dir}/g\" } } }
  - { address: \"127.0.0.1:0\" }
";

fn with_tokens() -> Arc<tempfile::TempDir> {
    let dir = directory(&["acme", "globex"]);
    for (name, token) in [("plain", "token-of-nobody"), ("a", "token-of-acme"), ("g", "token-of-globex")] {
        std::fs::write(dir.path().join(name), token).unwrap();
    }
    dir
}

#[tokio::test]
async fn the_token_of_the_listener_proves_the_tenant_and_a_header_does_not() {
    let origin = HttpOrigin::with(None, |_| text(200, "ok")).await;
    let tenant = "    tenant: { from: token, required: true }\n";
    let policy = format!("{LISTENERS}{}", policy(&origin, &format!("{tenant}{BEARER}")));
    let proxy = Proxy::start_in(with_tokens(), &policy).await;
    let ask = async |token: &str| {
        let lines = format!("Proxy-Authorization: Bearer {token}\r\nX-Tenant: globex\r\n");
        local_request(proxy.address(), "GET", "/api/x", &lines, "").await
    };
    assert_eq!(ask("token-of-acme").await.status, 200);
    assert_eq!(ask("token-of-globex").await.status, 200);
    let denied = ask("token-of-nobody").await;
    assert_eq!((denied.status, denied.header("outgate-error")), (403, Some("denied")));
    assert!(denied.text().contains("no tenant's token"), "{}", denied.text());
    assert_eq!(ask("token-of-acme0").await.status, 407);
    // Where no token is asked for nobody is a tenant, whatever is sent.
    let lines = "Proxy-Authorization: Bearer token-of-acme\r\n";
    let elsewhere = local_request(proxy.app.listeners[1], "GET", "/api/x", lines, "").await;
    assert_eq!(elsewhere.status, 403);
    let seen = origin.requests();
    let carried: Vec<&str> = seen.iter().map(carried).collect();
    assert_eq!(carried, [secret_of("acme"), secret_of("globex")]);
    // The header means nothing here, and no token goes further.
    assert!(seen.iter().all(|one| one.header("x-tenant") == Some("globex")));
    assert!(seen.iter().all(|one| one.header("proxy-authorization").is_none()));
}

/// Two references may lead to equal texts. Such a token proves nothing, and is told of once and not for each request.
#[tokio::test]
async fn a_token_that_two_own_opens_nothing_and_is_told_of_once() {
    let (log, _guard) = Capture::start(tracing::Level::WARN);
    let origin = HttpOrigin::with(None, |_| text(200, "ok")).await;
    let tenant = "    tenant: { from: token, required: true }\n";
    let dir = with_tokens();
    std::fs::write(dir.path().join("g"), "token-of-acme").unwrap();
    let policy = format!("{LISTENERS}{}", policy(&origin, &format!("{tenant}{BEARER}")));
    let proxy = Proxy::start_in(dir, &policy).await;
    for _ in 0..3 {
        let lines = "Proxy-Authorization: Bearer token-of-acme\r\n";
        assert_eq!(local_request(proxy.address(), "GET", "/api/x", lines, "").await.status, 407);
    }
    let told = log.text().matches("more than one of a listener's `auth`").count();
    assert_eq!((told, origin.requests().len()), (1, 0), "{}", log.text());
}

#[tokio::test]
async fn inside_an_intercepted_connection_the_token_of_its_connect_counts() {
    let ca = TestCa::new();
    let origin =
        HttpOrigin::with(Some(ca.server(&["api.example.test"], &["http/1.1"])), |_| text(200, "ok")).await;
    let policy = format!(
        "{LISTENERS}providers:\n  api:\n    hosts: [api.example.test]\n    upstream: {{ connect_to: \"{}\", tls: {{ ca: \"{{dir}}/ca.pem\" }} }}\n    tenant: {{ from: token, required: true }}\n{BEARER}",
        origin.address
    );
    let dir = with_tokens();
    std::fs::write(dir.path().join("ca.pem"), &ca.pem).unwrap();
    let proxy = Proxy::start_in(dir, &policy).await;
    for tenant in ["acme", "globex"] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!(
            "CONNECT api.example.test:443 HTTP/1.1\r\nHost: api.example.test:443\r\nProxy-Authorization: Bearer token-of-{tenant}\r\n\r\n"
        ))
        .await;
        assert_eq!(raw.head().await.status, 200);
        let stream = over_tls(raw, "api.example.test", &proxy.ca(), &["http/1.1"]).await;
        // What is claimed inside changes nothing.
        let mut claim = request("GET", "/x", Some("api.example.test"), "");
        claim.headers_mut().insert("proxy-authorization", "Bearer token-of-nobody".parse().unwrap());
        assert_eq!(over_http1(stream, claim).await.status, 200);
    }
    let seen = origin.requests();
    let carried: Vec<&str> = seen.iter().map(carried).collect();
    assert_eq!(carried, [secret_of("acme"), secret_of("globex")]);
}
