//! The life of a token, against a scripted token endpoint.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio_util::sync::CancellationToken;

use super::{TokenEnv, entry};
use crate::credential::CredentialConfig;
use crate::credential::kinds::MemberSettings;
use crate::secret::cache::{RefreshOutcome, SecretCache, SecretEntry};
use crate::secret::fake::{FakeServer, Reply, ok, pass, store_env, upstream_env};
use crate::secret::{SecretState, Stores};

/// A cache that is kept fresh, with one token in it.
struct Rig {
    cache: Arc<SecretCache>,
    token: Arc<SecretEntry>,
    _stop: tokio_util::sync::DropGuard,
    directory: tempfile::TempDir,
}

impl Rig {
    /// `secret` is the line of the client's secret.
    async fn new(server: &FakeServer, secret: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("new"), "new-secret-1").unwrap();
        std::fs::write(directory.path().join("old"), "old-secret-1").unwrap();
        let member = member(&server.url, secret, directory.path());
        let cache = Arc::new(SecretCache::new(Stores::built_in(directory.path())));
        let env = TokenEnv::new(upstream_env());
        let token = entry(&member.tokens[0], &cache, &env);
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        tokio::spawn(cache.clone().run(stop.clone()));
        Self { cache, token, _stop: stop.drop_guard(), directory }
    }

    fn value(&self) -> Option<String> {
        let version = self.token.current().ok()?;
        Some(String::from_utf8(version.value.expose().to_vec()).unwrap())
    }

    fn state(&self) -> SecretState {
        self.cache.status().into_iter().find(|one| one.reference.starts_with("token:")).unwrap().state
    }
}

fn member(url: &str, secret: &str, directory: &Path) -> MemberSettings {
    let text = format!(
        "{{ oauth2_client_credentials: {{ token_url: \"{url}/token\", client_id: \"plain:app\", client_secret: {secret}, scopes: [a, b] }} }}"
    );
    let config: CredentialConfig = serde_yaml::from_str(&text).unwrap();
    config.members(directory).unwrap().remove(0)
}

/// Tokens `token-1`, `token-2` and so on, which live for `seconds`.
async fn issuer(seconds: u64) -> FakeServer {
    let count = AtomicUsize::new(0);
    FakeServer::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        ok(serde_json::json!({ "access_token": format!("token-{number}"), "expires_in": seconds }))
    })
    .await
}

#[tokio::test]
async fn however_many_ask_one_request_gets_the_token() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:new").await;
    let all = (0..500).map(|_| rig.token.obtain());
    let versions = futures_util::future::join_all(all).await;
    assert!(versions.into_iter().all(|version| version.unwrap().value.expose() == b"token-1"));
    let asked = server.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].line, "POST /token");
    assert_eq!(asked[0].body, "grant_type=client_credentials&scope=a%20b");
    assert_eq!(asked[0].header("authorization"), "Basic YXBwOm5ldy1zZWNyZXQtMQ==");
    assert!(
        rig.token.reference().to_string().starts_with("token:oauth2_client_credentials/127.0.0.1/token#")
    );
}

#[tokio::test]
async fn it_is_replaced_in_the_background_while_the_old_one_serves() {
    let server = issuer(1000).await;
    let rig = Rig::new(&server, "file:new").await;
    rig.token.obtain().await.unwrap();
    pass(Duration::from_secs(740)).await;
    assert_eq!((rig.value().as_deref(), server.asked().len()), (Some("token-1"), 1));
    pass(Duration::from_secs(115)).await;
    // Past its time, and before its end: nobody waits.
    assert!(rig.value().is_some());
    while rig.value().as_deref() != Some("token-2") {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn a_token_that_ended_is_never_given_out_and_is_waited_for() {
    let failing = Arc::new(AtomicUsize::new(0));
    let fails = failing.clone();
    let server = FakeServer::start(move |_| match fails.load(Ordering::SeqCst) {
        0 => ok(r#"{"access_token":"token-1","expires_in":100}"#),
        1 => Reply::Answer(400, r#"{"error":"invalid_client"}"#.to_owned()),
        _ => ok(r#"{"access_token":"token-2","expires_in":100}"#),
    })
    .await;
    let rig = Rig::new(&server, "file:new").await;
    rig.token.obtain().await.unwrap();
    failing.store(1, Ordering::SeqCst);
    pass(Duration::from_secs(96)).await;
    let error = rig.token.obtain().await.err().unwrap();
    assert_eq!((error.code(), rig.value(), rig.state()), ("expired", None, SecretState::Missing));
    // Right after a failure nobody asks again, and nobody waits.
    let before = server.asked().len();
    assert!(rig.token.obtain().await.is_err());
    assert_eq!(server.asked().len(), before);
    assert!(rig.token.retry_at().is_some());
    failing.store(2, Ordering::SeqCst);
    pass(Duration::from_secs(8)).await;
    rig.token.obtain().await.unwrap();
    assert_eq!(rig.value().as_deref(), Some("token-2"));
}

#[tokio::test]
async fn a_rejected_token_is_replaced_once_for_all_who_saw_it_rejected() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:new").await;
    rig.token.obtain().await.unwrap();
    let all = (0..50).map(|_| rig.token.heal_refresh());
    let outcomes = futures_util::future::join_all(all).await;
    assert!(outcomes.iter().all(|outcome| *outcome == RefreshOutcome::Changed), "{outcomes:?}");
    assert_eq!(server.asked().len(), 2);
    assert_eq!(rig.token.heal_refresh().await, RefreshOutcome::TooSoon);
}

#[tokio::test]
async fn who_goes_away_does_not_break_off_the_request() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:new").await;
    {
        let mut gone = std::pin::pin!(rig.token.obtain());
        assert!(futures_util::poll!(gone.as_mut()).is_pending());
    }
    rig.token.obtain().await.unwrap();
    assert_eq!((rig.value().as_deref(), server.asked().len()), (Some("token-1"), 1));
}

#[tokio::test]
async fn in_an_overlap_the_old_secret_serves_and_a_replaced_one_is_read_again() {
    let server = FakeServer::start(|asked| match asked.header("authorization") {
        // app:old-secret-1 and app:new-secret-2
        "Basic YXBwOm9sZC1zZWNyZXQtMQ==" => ok(r#"{"access_token":"by-old"}"#),
        "Basic YXBwOm5ldy1zZWNyZXQtMg==" => ok(r#"{"access_token":"by-new"}"#),
        _ => Reply::Answer(401, r#"{"error":"invalid_client"}"#.to_owned()),
    })
    .await;
    let rig = Rig::new(&server, "[file:new, file:old]").await;
    rig.token.obtain().await.unwrap();
    assert_eq!(rig.value().as_deref(), Some("by-old"));
    pass(Duration::from_secs(31)).await;
    std::fs::write(rig.directory.path().join("new"), "new-secret-2").unwrap();
    assert_eq!(rig.token.heal_refresh().await, RefreshOutcome::Changed);
    assert_eq!(rig.value().as_deref(), Some("by-new"));
}

#[tokio::test]
async fn what_it_is_got_with_may_be_missing() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:nowhere").await;
    let error = rig.token.obtain().await.err().unwrap();
    assert_eq!((error.code(), server.asked().len()), ("token_input", 0));
    assert!(
        error.to_string().ends_with("what it is got with is not available: `file:nowhere` does not exist")
    );
}

/// The token of a credential that is written as `kind: {{ token_url, rest }}`, got once, and what was asked for it.
async fn got_once(
    kind: &str,
    rest: &str,
    files: &[(&str, &str)],
) -> (String, Vec<crate::secret::fake::Asked>) {
    let server = FakeServer::start(|_| ok(r#"{"access_token":"the-token","token_type":"N_A"}"#)).await;
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let text = format!("{{ {kind}: {{ {} }} }}", rest.replace("{url}", &server.url));
    let config: CredentialConfig = serde_yaml::from_str(&text).unwrap();
    let member = config.members(directory.path()).unwrap().remove(0);
    let cache = Arc::new(SecretCache::new(Stores::built_in(directory.path())));
    let token = entry(&member.tokens[0], &cache, &TokenEnv::new(upstream_env()));
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.run(stop));
    let version = token.obtain().await.unwrap_or_else(|error| panic!("{error}"));
    let value = String::from_utf8(version.value.expose().to_vec()).unwrap();
    (value, server.asked())
}

#[tokio::test]
async fn each_grant_sends_what_its_rfc_says() {
    let (jwt, basic) = ("urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt", "Basic YXBwOnNlY3JldC0x");
    let exchange = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange";
    // kind, what is written, form, `Authorization`
    for (kind, rest, form, header) in [
        (
            "oauth2_client_credentials",
            "token_url: \"{url}/t/?p=1\", client_id: \"plain:app\", client_secret: file:secret, auth_style: post, audience: x, extra: { resource: y }",
            "grant_type=client_credentials&resource=y&audience=x&client_id=app&client_secret=secret-1"
                .to_owned(),
            "",
        ),
        (
            "oauth2_refresh_token",
            "token_url: \"{url}/t/?p=1\", client_id: \"plain:app\", refresh_token: file:secret, scopes: [a, b]",
            "grant_type=refresh_token&refresh_token=secret-1&scope=a%20b&client_id=app".to_owned(),
            "",
        ),
        (
            "token_exchange",
            "token_url: \"{url}/t/?p=1\", subject_token: file:token, actor_token: file:secret, audience: x, client_id: file:id, client_secret: file:secret",
            format!(
                "{exchange}&subject_token_type={jwt}&actor_token_type={jwt}&audience=x&subject_token=t.o.k&actor_token=secret-1"
            ),
            basic,
        ),
    ] {
        let files = [("secret", "secret-1\n"), ("id", "app"), ("token", "t.o.k")];
        let (value, asked) = got_once(kind, rest, &files).await;
        assert_eq!((value.as_str(), asked.len(), asked[0].line.as_str()), ("the-token", 1, "POST /t/?p=1"));
        assert_eq!(
            (asked[0].body.as_str(), asked[0].header("authorization")),
            (form.as_str(), header),
            "{kind}"
        );
    }
}

/// Header and claims of a JWT.
fn parts(jwt: &str) -> [serde_json::Value; 2] {
    use base64::Engine as _;
    let part = |at| {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(jwt.split('.').nth(at).unwrap());
        serde_json::from_slice(&bytes.unwrap()).unwrap()
    };
    [part(0), part(1)]
}

fn field<'a>(body: &'a str, name: &str) -> &'a str {
    body.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap()
}

#[tokio::test]
async fn jwts_prove_clients_and_are_exchanged_or_are_the_token() {
    let key = "algorithm: HS256, key: file:key";
    let files = [("key", "a key of HMAC"), ("id", "the-app")];
    let rest = format!(
        "token_url: \"{{url}}/t\", client_id: file:id, auth_style: private_key_jwt, client_key: {{ {key}, key_id: k1, thumbprint: tp }}"
    );
    let (_, asked) = got_once("oauth2_client_credentials", &rest, &files).await;
    let body = &asked[0].body;
    assert_eq!(field(body, "client_id"), "the-app");
    assert!(field(body, "client_assertion_type").ends_with("client-assertion-type%3Ajwt-bearer"), "{body}");
    let [header, claims] = parts(field(body, "client_assertion"));
    assert_eq!(header, serde_json::json!({ "alg": "HS256", "typ": "JWT", "kid": "k1", "x5t#S256": "tp" }));
    assert_eq!((&claims["iss"], &claims["sub"]), (&"the-app".into(), &"the-app".into()));
    assert!(claims["aud"].as_str().unwrap().ends_with("/t") && claims["jti"].is_string(), "{claims}");

    let rest = format!(
        "token_url: \"{{url}}/t\", {key}, issuer: \"plain:https://me\", subject: file:id, claims: {{ scope: s }}, scopes: [a]"
    );
    let (value, asked) = got_once("jwt_bearer", &rest, &files).await;
    let body = &asked[0].body;
    assert_eq!((value.as_str(), field(body, "scope")), ("the-token", "a"));
    assert!(field(body, "grant_type").ends_with("jwt-bearer"), "{body}");
    let [_, claims] = parts(field(body, "assertion"));
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["scope"]),
        (&"https://me".into(), &"the-app".into(), &"s".into())
    );

    let rest = format!("{key}, issuer: \"plain:me\", audience: them, assertion_lifetime: 20m");
    let (value, asked) = got_once("jwt_bearer", &rest, &files).await;
    let [_, claims] = parts(&value);
    assert_eq!((asked.len(), &claims["aud"], &claims["sub"]), (0, &"them".into(), &serde_json::Value::Null));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 1200);

    // The application in a claim of its own: neither `iss` nor `aud`.
    let files = [files[0], ("app", "the-app")];
    let rest = format!("{key}, issuer: \"file:app\", issuer_claim: application_id, subject: \"plain:s\"");
    let (value, asked) = got_once("jwt_bearer", &rest, &files).await;
    let [_, claims] = parts(&value);
    let names: Vec<_> = claims.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((asked.len(), names), (0, vec!["application_id", "exp", "iat", "jti", "sub"]));
    assert_eq!((&claims["application_id"], &claims["sub"]), (&"the-app".into(), &"s".into()));
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_told_without_its_text() {
    let server = issuer(60).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("key"), "CANARY-no-pem").unwrap();
    let text = format!(
        "{{ jwt_bearer: {{ token_url: \"{}/t\", key: file:key, issuer: \"plain:me\" }} }}",
        server.url
    );
    let config: CredentialConfig = serde_yaml::from_str(&text).unwrap();
    let member = config.members(directory.path()).unwrap().remove(0);
    let cache = Arc::new(SecretCache::new(Stores::built_in(directory.path())));
    let token = entry(&member.tokens[0], &cache, &TokenEnv::new(upstream_env()));
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.run(stop));
    let error = token.obtain().await.err().unwrap();
    assert_eq!((error.code(), server.asked().len()), ("token_key", 0));
    assert!(!error.to_string().contains("CANARY"), "{error}");
}

#[test]
fn equal_settings_are_one_token_and_others_are_not() {
    let of =
        |secret: &str| member("https://idp.example.com", secret, Path::new("/")).tokens[0].reference.clone();
    assert_eq!(of("env:A"), of("env:A"));
    assert_ne!(of("env:A"), of("env:B"));
}

#[test]
fn mistakes_are_told() {
    let mistake = |text: &str| {
        let config: CredentialConfig = serde_yaml::from_str(text).unwrap();
        config.members(Path::new("/")).err().unwrap()
    };
    let told = mistake(
        "{ oauth2_client_credentials: { token_url: \"http://idp.example.com/t\", client_id: \"env:ID\", client_secret: env:S } }",
    );
    assert_eq!(told, "`token_url`: over http everybody on the way could read the secrets: use https");
    let told = mistake(
        "{ oauth2_client_credentials: { token_url: \"https://idp.example.com/t\", client_id: \"env:ID\", client_secret: env:S, extra: { scope: a } } }",
    );
    assert_eq!(told, "`extra` holds `scope`, which has a key of its own");
    let client = "token_url: \"https://idp.example.com/t\", client_id: \"env:ID\"";
    for (kind, rest, told) in [
        ("oauth2_client_credentials", "", "a client of this grant proves itself: `client_secret` is missing"),
        (
            "oauth2_client_credentials",
            ", auth_style: private_key_jwt",
            "`auth_style: private_key_jwt` needs `client_key`",
        ),
        (
            "oauth2_client_credentials",
            ", client_secret: env:S, client_key: { key: env:K }",
            "`client_key` is for `auth_style: private_key_jwt`",
        ),
        (
            "oauth2_refresh_token",
            ", refresh_token: env:R, store: { file: f }",
            "`store` is for a refresh token that `rotates: true`",
        ),
        (
            "oauth2_refresh_token",
            ", refresh_token: file:f, rotates: true, store: { file: f }",
            "`store.file` is the file of `refresh_token`, which is not written",
        ),
        (
            "oauth2_refresh_token",
            ", refresh_token: \"file:{tenant}\", rotates: true, store: { file: f }",
            "a refresh token that rotates is kept in one place: `{tenant}` in it is not supported",
        ),
        (
            "jwt_bearer",
            ", key: env:K, issuer: env:I, assertion_lifetime: 1m",
            "`assertion_lifetime` is 2m to 24h",
        ),
        (
            "jwt_bearer",
            ", key: env:K, issuer: env:I, claims: { exp: x }",
            "`claims` holds `exp`, which is written by a key of its own or by outgate",
        ),
        ("jwt_bearer", ", key: env:K", "with `token_url` the JWT names its `issuer`"),
        (
            "jwt_bearer",
            ", key: env:K, issuer: env:I, issuer_claim: application_id",
            "with `token_url` the issuer stands in `iss`: no `issuer_claim`",
        ),
        (
            "token_exchange",
            ", subject_token: env:T, actor_token_type: x",
            "`actor_token_type` needs `actor_token`",
        ),
    ] {
        assert_eq!(mistake(&format!("{{ {kind}: {{ {client}{rest} }} }}")), told);
    }
    let alone = "{ jwt_bearer: { key: env:K, issuer: env:I, audience: a, ca: x } }";
    assert_eq!(mistake(alone), "`ca` needs `token_url`: without that the JWT itself is the token");
    for (rest, told) in [
        ("audience: a", "the JWT says of nobody that it is his: `issuer`, `subject` or `claims`"),
        ("claims: { app: x }", "without `token_url` the JWT names its `audience`"),
        ("issuer: env:I, issuer_claim: iss", "without `token_url` the JWT names its `audience`"),
        (
            "subject: env:S, issuer_claim: app",
            "`issuer_claim` says where the `issuer` stands, which is missing",
        ),
        (
            "issuer: env:I, issuer_claim: \"a b\"",
            "`issuer_claim` is the name of a claim, such as `application_id`",
        ),
        (
            "issuer: env:I, issuer_claim: sub",
            "`issuer_claim` is `sub`, which is written by a key of its own or by outgate",
        ),
        (
            "issuer: env:I, issuer_claim: app, claims: { app: x }",
            "`claims` holds `app`, which is written by a key of its own or by outgate",
        ),
    ] {
        assert_eq!(mistake(&format!("{{ jwt_bearer: {{ key: env:K, {rest} }} }}")), told);
    }
}

/// A vault's answers by path, for a store whose settings change.
async fn vault(secret: &'static str) -> FakeServer {
    FakeServer::start(move |asked| match &*asked.line {
        "GET /v1/kv/client" => ok(serde_json::json!({ "data": { "secret": secret } })),
        _ => ok(r#"{"data":{"ttl":0,"renewable":false}}"#),
    })
    .await
}

#[tokio::test]
async fn a_token_is_got_anew_where_what_it_is_got_with_changes() {
    let server = issuer(3600).await;
    let rig = Rig::new(&server, "file:new").await;
    rig.token.obtain().await.unwrap();
    std::fs::write(rig.directory.path().join("new"), "a-third-secret").unwrap();
    while rig.value().as_deref() != Some("token-2") {
        assert!(rig.value().is_some(), "the old one serves meanwhile");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].header("authorization"), "Basic YXBwOmEtdGhpcmQtc2VjcmV0");
}

#[tokio::test]
async fn a_token_does_not_outlive_the_store_of_what_it_was_got_with() {
    let server = issuer(3600).await;
    let (one, two) = (vault("of-one").await, vault("of-two").await);
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("login"), "login").unwrap();
    let stores = |url: &str, before: Option<&Stores>| {
        let text = format!("vault: {{ address: \"{url}\", kv: 1, auth: {{ token: file:login }} }}");
        let configs = [("kept".to_owned(), serde_yaml::from_str(&text).unwrap())].into();
        Stores::build(&configs, &store_env(directory.path()), before).unwrap()
    };
    let cache = Arc::new(SecretCache::new(stores(&one.url, None)));
    let member = member(&server.url, "\"kept:kv/client#secret\"", directory.path());
    let token = entry(&member.tokens[0], &cache, &TokenEnv::new(upstream_env()));
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.clone().run(stop));
    let value = || String::from_utf8(token.current().unwrap().value.expose().to_vec()).unwrap();
    cache.read_new(Duration::from_secs(5)).await;
    assert_eq!(value(), "token-1");
    // As in a reload: when the new policy takes effect, the token is one of the new store already.
    let before = cache.stores();
    cache.adopt(stores(&two.url, Some(&before)));
    cache.read_new(Duration::from_secs(5)).await;
    assert_eq!(value(), "token-2");
    let asked: Vec<String> =
        server.asked().iter().map(|asked| asked.header("authorization").to_owned()).collect();
    let of = |secret: &str| format!("Basic {}", STANDARD.encode(format!("app:{secret}")));
    assert_eq!(asked, [of("of-one"), of("of-two")]);
    // A reload that changes nothing of it asks nobody.
    let before = cache.stores();
    cache.adopt(stores(&two.url, Some(&before)));
    cache.read_new(Duration::from_secs(5)).await;
    assert_eq!((value(), server.asked().len()), ("token-2".to_owned(), 2));
}

/// The secret that is refused was replaced, and read, while the endpoint thought: the read that follows finds nothing new.
#[tokio::test]
async fn a_secret_that_was_replaced_while_the_endpoint_refused_it_is_tried_at_once() {
    let (count, gate) = (AtomicUsize::new(0), Arc::new(tokio::sync::Semaphore::new(0)));
    let later = gate.clone();
    let server = FakeServer::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Later(later.clone(), 400, r#"{"error":"invalid_client"}"#.to_owned()),
        _ => ok(r#"{"access_token":"token","expires_in":3600}"#),
    })
    .await;
    let rig = Rig::new(&server, "file:new").await;
    let replaced = async {
        while server.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        std::fs::write(rig.directory.path().join("new"), "newer-secret-1").unwrap();
        rig.cache.entry(&"file:new".parse().unwrap()).refresh().await;
        gate.add_permits(1);
    };
    let (got, ()) = tokio::join!(rig.token.obtain(), replaced);
    assert!(got.is_ok() && rig.value().as_deref() == Some("token"), "{:?}", got.err());
    let newer = format!("Basic {}", STANDARD.encode("app:newer-secret-1"));
    assert_eq!((server.asked().len(), server.asked()[1].header("authorization")), (2, &*newer));
}
