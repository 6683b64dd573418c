//! Tokens that outgate gets itself, through the whole proxy: a storm on a token that has ended, and token endpoints that
//! fail in every way.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::leak::assert_without;
use super::support::client::{admin, get_many, local_get};
use super::support::origin::{HttpOrigin, RawOrigin, Script, Seen, Stream, read_request, text};
use super::support::proxy::Proxy;
use super::world::until;

/// Requests of the storm, on connections of fifty.
const STORM: usize = 500;

/// An identity provider that takes two seconds, rotates refresh tokens and ends earlier access tokens when it is asked.
struct Provider {
    origin: RawOrigin,
    /// The number of the token that is good; none while one is made.
    good: Arc<Mutex<Option<usize>>>,
    asked: Arc<AtomicUsize>,
    /// The storm has begun: the second token is not made before that.
    storming: Arc<AtomicBool>,
}

impl Provider {
    async fn start() -> Self {
        let (good, asked): (Arc<Mutex<Option<usize>>>, Arc<AtomicUsize>) = Default::default();
        let storming = Arc::<AtomicBool>::default();
        let (now, count, storm) = (good.clone(), asked.clone(), storming.clone());
        let script = Arc::new(move |mut stream: Box<dyn Stream>, _: usize| {
            let (now, count, storm) = (now.clone(), count.clone(), storm.clone());
            let serving = async move {
                while let Some(asked) = read_request(&mut stream).await {
                    let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                    *now.lock().unwrap() = None;
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    if number == 2 {
                        until("the storm begins", || storm.load(Ordering::SeqCst)).await;
                    }
                    let wanted = match number {
                        1 => "refresh_token=the-first-one".to_owned(),
                        _ => format!("refresh_token=refresh-{}&", number - 1),
                    };
                    let answer = if format!("{asked}&").contains(&wanted) {
                        *now.lock().unwrap() = Some(number);
                        // The first one ends while the second is made.
                        let life = if number == 1 { 4 } else { 3600 };
                        format!(
                            "{{\"access_token\":\"access-{number}\",\"refresh_token\":\"refresh-{number}\",\"expires_in\":{life}}}"
                        )
                    } else {
                        "{\"error\":\"invalid_grant\"}".to_owned()
                    };
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
                    if stream.write_all(format!("{head}{answer}").as_bytes()).await.is_err() {
                        return;
                    }
                }
            };
            Box::pin(serving) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
        });
        Self { origin: RawOrigin::start(None, script).await, good, asked, storming }
    }
}

/// An API that takes the good token alone; others are counted.
async fn api(good: Arc<Mutex<Option<usize>>>, stale: Arc<AtomicUsize>) -> HttpOrigin {
    HttpOrigin::with(None, move |seen: Seen| {
        let good = good.lock().unwrap().map(|number| format!("Bearer access-{number}"));
        if good.is_some() && seen.header("authorization") == good.as_deref() {
            return text(200, "{}");
        }
        stale.fetch_add(1, Ordering::SeqCst);
        text(401, "{}")
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_an_ended_token_leads_to_one_refresh_and_no_stale_request() {
    let _machine = crate::support::the_machine().await;
    let provider = Provider::start().await;
    let stale = Arc::new(AtomicUsize::new(0));
    let origin = api(provider.good.clone(), stale.clone()).await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("seed"), "the-first-one").unwrap();
    let policy = format!(
        "providers:\n  api:\n    hosts: [api.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential:\n      oauth2_refresh_token:\n        token_url: http://{}/token\n        client_id: plain:app\n        refresh_token: file:{{dir}}/seed\n        rotates: true\n        store: {{ file: \"{{dir}}/grant\" }}\n",
        origin.address, provider.origin.address
    );
    let proxy = Proxy::start_in(dir, &policy).await;
    assert_eq!(get_many(proxy.address(), 1).await, [200]);
    // It ends while the next one is made: nothing may be sent with it any more.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !admin(&proxy, "GET", "/status").await.text().contains("\"expired\"") {
        assert!(Instant::now() < deadline, "the first token does not end");
    }
    provider.storming.store(true, Ordering::SeqCst);
    let answers = join_all((0..STORM / 50).map(|_| get_many(proxy.address(), 50))).await.concat();
    assert_eq!((answers.len(), answers.iter().filter(|status| **status == 200).count()), (STORM, STORM));
    assert_eq!(provider.asked.load(Ordering::SeqCst), 2, "the first token, and exactly one refresh");
    assert_eq!(stale.load(Ordering::SeqCst), 0, "no request carried a stale token");
    assert_eq!(get_many(proxy.address(), 1).await, [200]);
}

/// What token endpoints say to who asks for a token; each repeats the client's secret where it can.
fn answer(path: &str, secret: &str) -> Option<String> {
    let whole = |status: &str, field: &str, body: String| {
        Some(format!("HTTP/1.1 {status}\r\n{field}Content-Length: {}\r\n\r\n{body}", body.len()))
    };
    match path {
        "/garbage" => whole("200 OK", "", format!("<html>{secret}")),
        "/empty" => whole("200 OK", "", String::new()),
        "/refused" => {
            whole("401 No", "", format!("{{\"error\":\"{secret}\",\"error_description\":\"{secret}\"}}"))
        }
        "/slack" => whole("200 OK", "", format!("{{\"ok\":false,\"error\":\"{secret}\"}}")),
        "/redirect" => whole("302 Found", &format!("Location: /good?{secret}\r\n"), String::new()),
        "/down" => whole("503 Down", "", secret.to_owned()),
        "/lines" => whole("200 OK", "", "{\"access_token\":\"token\\r\\nX-Evil: 1\"}".to_owned()),
        "/zero" => whole("200 OK", "", "{\"access_token\":\"token\\u0000end\"}".to_owned()),
        "/letters" => whole("200 OK", "", "{\"access_token\":\"tok\u{e9}n\"}".to_owned()),
        "/large" => whole("200 OK", "", "x".repeat(2 << 20)),
        "/not-http" => Some(format!("{secret}\r\n\r\n")),
        "/cut" => Some("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"access_token\":".to_owned()),
        "/good" => whole("200 OK", "", "{\"access_token\":\"good-token\",\"expires_in\":3600}".to_owned()),
        _ => None,
    }
}

const SECRET: &str = "cL7iEnT4sEcR9eT2xQ8wZ5vB";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_fails_its_provider_alone_and_repeats_no_secret() {
    // Each provider has an identity provider of its own.
    let script: Script = Arc::new(|mut stream: Box<dyn Stream>, _| {
        Box::pin(async move {
            let Some(asked) = read_request(&mut stream).await else { return };
            let path = asked.split(' ').nth(1).unwrap_or_default().to_owned();
            match answer(&path, SECRET) {
                Some(bytes) => {
                    let _ = stream.write_all(bytes.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
                // It hangs.
                None => std::future::pending().await,
            }
        })
    });
    let origin = HttpOrigin::start(None).await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("secret"), SECRET).unwrap();
    // Provider and path, and the code in `/status`.
    let cases = [
        ("garbage", "token_garbled"),
        ("empty", "token_garbled"),
        ("refused", "token_refused"),
        ("slack", "token_refused"),
        ("redirect", "token_refused"),
        ("down", "token_status"),
        ("lines", "malformed"),
        ("zero", "malformed"),
        ("letters", "malformed"),
        ("large", "token_garbled"),
        ("not-http", "token_unreachable"),
        ("cut", "token_unreachable"),
        ("hang", "token_timeout"),
        ("closed", "token_unreachable"),
        ("good", ""),
    ];
    let endpoints = join_all(cases.map(|_| RawOrigin::start(None, script.clone()))).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut policy = "providers:\n".to_owned();
    for ((name, _), endpoint) in cases.into_iter().zip(&endpoints) {
        let address = if name == "closed" { closed } else { endpoint.address };
        policy.push_str(&format!(
            "  {name}:\n    hosts: [{name}.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential:\n      oauth2_client_credentials: {{ token_url: \"http://{address}/{name}\", client_id: \"plain:app\", client_secret: \"file:{{dir}}/secret\", auth_style: post }}\n",
            origin.address
        ));
    }
    let proxy = Proxy::start_in(dir, &policy).await;
    let mut sinks = Vec::new();
    for (name, code) in cases {
        let got = local_get(&proxy, &format!("/{name}/x")).await;
        let expected = if code.is_empty() { 200 } else { 503 };
        assert_eq!(got.status, expected, "{name}: {}", got.text());
        if !code.is_empty() {
            assert_eq!(got.header("outgate-error"), Some("credential_unavailable"), "{name}");
            assert!(got.header("retry-after").is_some(), "{name}");
        }
        sinks.push(got.text());
    }
    let status = admin(&proxy, "GET", "/status").await.text();
    let secrets: serde_json::Value = serde_json::from_str(&status).unwrap();
    let of = |name: &str| {
        let all = secrets["secrets"].as_array().unwrap();
        let ends = format!("/{name}#");
        all.iter().find(|one| one["reference"].as_str().unwrap().contains(&ends)).unwrap().clone()
    };
    for (name, code) in cases.into_iter().filter(|(_, code)| !code.is_empty()) {
        assert_eq!(of(name)["last_error_code"], code, "{name}");
    }
    assert!(of("good")["ends_in_seconds"].as_u64().unwrap() > 3500, "{status}");
    let seen = origin.requests();
    assert!(seen.len() == 1 && seen[0].header("authorization") == Some("Bearer good-token"), "{seen:?}");
    sinks.extend([status, proxy.metrics(), proxy.log.text(&proxy.app.telemetry)]);
    for sink in sinks {
        assert_without(&[SECRET], "an answer, the status, the metrics or the log", &sink);
    }
}

/// With a credential and without, in every spelling in which a server may read the name; the rest stays byte for byte.
#[tokio::test]
async fn parameters_that_the_policy_removes_are_not_sent() {
    let origin = HttpOrigin::start(None).await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("secret"), SECRET).unwrap();
    let provider = |name: &str, credential: &str| {
        format!(
            "  {name}:\n    hosts: [{name}.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {credential}\n    query: {{ remove: [app_key, key] }}\n    routes: [{{ match: {{ path: \"/own/**\" }}, query: {{ remove: [other] }} }}]\n",
            origin.address
        )
    };
    let policy = format!(
        "providers:\n{}{}",
        provider("none", "none"),
        provider("query", "{ query: { name: key, value: \"file:{dir}/secret\" } }")
    );
    let proxy = Proxy::start_in(dir, &policy).await;
    let brought = format!("key={SECRET}");
    for (path, expected) in [
        ("/none/x?a=1&app_key=d&b=%2f&key=d", "/x?a=1&b=%2f".to_owned()),
        ("/none/x?APP_KEY=d&%61pp.key=d&app_key[]=d&app%5Fkey%00=d;app-key=d", "/x".to_owned()),
        ("/none/x?app_keys=1&my_app_key=2", "/x?app_keys=1&my_app_key=2".to_owned()),
        ("/none/own/x?other=d&app_key=1", "/own/x?app_key=1".to_owned()),
        // The credential is brought after the app's is taken out.
        ("/query/x?app_key=d&Key=d&c", format!("/x?c&{brought}")),
        ("/query/own/x?key=d&other=d", format!("/own/x?{brought}")),
    ] {
        let got = local_get(&proxy, path).await;
        let seen = origin.requests().pop().unwrap();
        assert_eq!((got.status, seen.uri.to_string()), (200, expected), "{path}");
    }
}
