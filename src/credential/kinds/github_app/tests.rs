//! Against a scripted API, with keys that are made here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::credential::token::rig::{Pair, issued, member};
use crate::secret::fake::{FakeServer, Reply};

fn directory(pair: &Pair) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("app.pem"), &pair.pem).unwrap();
    std::fs::write(directory.path().join("id"), "42\n").unwrap();
    std::fs::write(directory.path().join("bad-id"), "42/../../x").unwrap();
    directory
}

fn in_an_hour() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(3600)).to_string()
}

#[tokio::test]
async fn an_apps_jwt_is_exchanged_for_a_token_of_its_installation() {
    let server = FakeServer::start(|_| {
        Reply::Answer(201, json!({ "token": "ghs_one", "expires_at": in_an_hour() }).to_string())
    })
    .await;
    let pair = Pair::rsa();
    let directory = directory(&pair);
    let text = format!(
        "{{ github_app: {{ app_id: 123456, installation_id: file:id, private_key: file:app.pem, api_url: \"{}/api/v3\", repositories: [shop], permissions: {{ contents: read, issues: write }} }} }}",
        server.url
    );
    let (token, life) = issued(&text, directory.path()).await.unwrap();
    assert_eq!(token, "ghs_one");
    assert!(life.unwrap() > Duration::from_secs(3500) && life.unwrap() <= Duration::from_secs(3595));
    let asked = &server.asked()[0];
    assert_eq!(asked.line, "POST /api/v3/app/installations/42/access_tokens");
    assert_eq!(asked.header("accept"), "application/vnd.github+json");
    assert_eq!(asked.header("content-type"), "application/json");
    assert_eq!(asked.header("x-github-api-version"), "2022-11-28");
    assert_eq!(asked.header("user-agent"), "outgate");
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(
        body,
        json!({ "repositories": ["shop"], "permissions": { "contents": "read", "issues": "write" } })
    );
    let (header, claims) = pair.read(asked.header("authorization").strip_prefix("Bearer ").unwrap());
    assert_eq!(header, json!({ "alg": "RS256", "typ": "JWT" }));
    assert_eq!(claims["iss"], "123456");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (issued, end) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    // GitHub refuses more than ten minutes from now, by its own clock.
    assert!(issued + 60 <= now + 1 && end - issued <= 600 && end <= now + 600);
}

#[tokio::test]
async fn what_an_id_holds_stays_within_the_path() {
    let server = FakeServer::start(|_| Reply::Close).await;
    let directory = directory(&Pair::rsa());
    let text = format!(
        "{{ github_app: {{ app_id: 1, installation_id: file:bad-id, private_key: file:app.pem, api_url: \"{}\" }} }}",
        server.url
    );
    let error = issued(&text, directory.path()).await.unwrap_err();
    assert_eq!((error.code(), server.asked().len()), ("token_key", 0));
}

#[tokio::test]
async fn a_refusal_or_an_answer_without_token_is_no_token() {
    for (status, body, code) in [
        (401, r#"{"message":"CANARY"}"#, "token_refused"),
        (404, r#"{"message":"CANARY"}"#, "token_refused"),
        (201, r#"{"access_token":"CANARY"}"#, "token_garbled"),
        (201, "CANARY", "token_garbled"),
    ] {
        let server = FakeServer::start(move |_| Reply::Answer(status, body.to_owned())).await;
        let directory = directory(&Pair::rsa());
        let text = format!(
            "{{ github_app: {{ app_id: 1, installation_id: 2, private_key: file:app.pem, api_url: \"{}\" }} }}",
            server.url
        );
        let error = issued(&text, directory.path()).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert!(!format!("{error} {error:?}").contains("CANARY"));
    }
}

#[test]
fn ids_are_numbers_texts_or_references_and_mistakes_are_told() {
    let of = |keys: &str| {
        member(&format!("{{ github_app: {{ private_key: env:KEY, {keys} }} }}"), std::path::Path::new("/"))
    };
    for keys in [
        "app_id: 1, installation_id: 2",
        "app_id: \"1\", installation_id: \"2\"",
        "app_id: \"plain:Iv23abc\", installation_id: \"plain:2\"",
        "app_id: env:APP, installation_id: env:INSTALLATION",
        "app_id: 1, installation_id: 2, sent_as: basic",
    ] {
        assert!(of(keys).is_ok(), "{keys} {:?}", of(keys).err());
    }
    for (keys, says) in [
        ("app_id: 1, installation_id: \"plain:x\"", "`installation_id` is a number"),
        (
            "app_id: 1, installation_id: 2, repositories: [acme/shop]",
            "`repositories`: names without their owner",
        ),
        (
            "app_id: 1, installation_id: 2, api_url: \"https://github.com\"",
            "`api_url`: the API of github.com is at",
        ),
        ("app_id: 1, installation_id: 2, api_url: \"http://ghe.example\"", "`api_url`: over http everybody"),
        ("app_id: -1, installation_id: 2", "an id is not negative"),
        ("app_id: \"plain:a/b\", installation_id: 2", "an id is 1 to 64 letters"),
        ("app_id: 1", "missing field `installation_id`"),
    ] {
        let told = of(keys).unwrap_err();
        assert!(told.contains(says), "{told}");
    }
}
