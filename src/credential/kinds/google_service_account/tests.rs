//! Against a scripted token endpoint, with keys that are made here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::credential::token::rig::{Pair, issued, member};
use crate::secret::fake::{FakeServer, Reply, ok};

fn key(pair: &Pair, token_uri: &str) -> String {
    json!({
        "type": "service_account", "project_id": "p", "private_key_id": "key-1", "private_key": pair.pem,
        "client_email": "robot@p.iam.gserviceaccount.com", "client_id": "1", "token_uri": token_uri,
    })
    .to_string()
}

fn directory(content: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("key.json"), content).unwrap();
    directory
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn assertion(body: &str) -> String {
    let (grant, assertion) = body.split_once("&assertion=").unwrap();
    assert_eq!(grant, "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer");
    assertion.to_owned()
}

#[tokio::test]
async fn a_signed_assertion_is_exchanged_for_a_token() {
    let server = FakeServer::start(|_| ok(json!({ "access_token": "ya29.one", "expires_in": 3599 }))).await;
    let pair = Pair::rsa();
    let directory = directory(&key(&pair, "https://oauth2.googleapis.com/token"));
    let text = format!(
        "{{ google_service_account: {{ key: file:key.json, scopes: [a, \"https://b\"], subject: user@example.com, token_url: \"{}/token\" }} }}",
        server.url
    );
    let (token, life) = issued(&text, directory.path()).await.unwrap();
    assert_eq!(token, "ya29.one");
    assert!(life.unwrap() > Duration::from_secs(3580) && life.unwrap() <= Duration::from_secs(3594));
    let asked = server.asked();
    assert_eq!((asked.len(), &*asked[0].line), (1, "POST /token"));
    assert_eq!(asked[0].header("content-type"), "application/x-www-form-urlencoded");
    let (header, claims) = pair.read(&assertion(&asked[0].body));
    assert_eq!(header, json!({ "alg": "RS256", "typ": "JWT", "kid": "key-1" }));
    let (issued, end) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    assert!(end - issued == 3600 && issued <= now() && end > now());
    assert_eq!(claims["iss"], "robot@p.iam.gserviceaccount.com");
    assert_eq!(claims["sub"], "user@example.com");
    assert_eq!(claims["scope"], "a https://b");
    assert_eq!(claims["aud"], format!("{}/token", server.url));
}

#[tokio::test]
async fn a_self_signed_token_asks_nobody() {
    let pair = Pair::rsa();
    let directory = directory(&key(&pair, "https://oauth2.googleapis.com/token"));
    for (what, audience, scope) in [
        (
            "audience: \"https://pubsub.googleapis.com/\"",
            json!("https://pubsub.googleapis.com/"),
            Value::Null,
        ),
        ("scopes: [a, b]", Value::Null, json!("a b")),
    ] {
        let text =
            format!("{{ google_service_account: {{ key: file:key.json, self_signed: true, {what} }} }}");
        let (token, life) = issued(&text, directory.path()).await.unwrap();
        let (_, claims) = pair.read(&token);
        let email = json!("robot@p.iam.gserviceaccount.com");
        assert_eq!((&claims["iss"], &claims["sub"]), (&email, &email));
        assert_eq!((&claims["aud"], &claims["scope"]), (&audience, &scope));
        // It is not used beyond what it says itself.
        let left = Duration::from_secs(claims["exp"].as_u64().unwrap() - now());
        assert!(life.unwrap() <= left && life.unwrap() > left - Duration::from_secs(20), "{life:?} {left:?}");
    }
}

#[tokio::test]
async fn a_key_does_not_choose_where_assertions_go() {
    let server = FakeServer::start(|_| ok("{}")).await;
    let pair = Pair::rsa();
    for uri in [
        format!("{}/token", server.url),
        "http://oauth2.googleapis.com/token".to_owned(),
        "https://oauth2.googleapis.com.evil.example/token".to_owned(),
        "https://evilgoogleapis.com/token".to_owned(),
        "https://oauth2.googleapis.com@evil.example/token".to_owned(),
        "https://oauth2.googleapis.com:8443/token".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let directory = directory(&key(&pair, &uri));
        let text = "{ google_service_account: { key: file:key.json, scopes: [a] } }";
        let error = issued(text, directory.path()).await.unwrap_err();
        assert_eq!(error.code(), "token_key", "{uri}: {error}");
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn keys_that_are_none_are_told_without_a_word_of_them() {
    let pair = Pair::rsa();
    let good: Value = serde_json::from_str(&key(&pair, "https://oauth2.googleapis.com/token")).unwrap();
    let mut table = vec![("CANARY".to_owned(), "it is not JSON")];
    for (field, value, says) in [
        ("type", json!("CANARY"), "it is not of a service account (`type`)"),
        ("client_email", Value::Null, "it has no `client_email`"),
        ("private_key", Value::Null, "it has no `private_key`"),
        (
            "private_key",
            json!("CANARY"),
            "it is no private key in PEM (PKCS#8, PKCS#1 or SEC1, not encrypted)",
        ),
        ("private_key", json!(Pair::p256().pem), "it is no RSA key of 2048 to 8192 bits"),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        table.push((bad.to_string(), says));
    }
    for (content, says) in table {
        let directory = directory(&content);
        let text = "{ google_service_account: { key: file:key.json, self_signed: true, audience: a } }";
        let error = issued(text, directory.path()).await.unwrap_err().to_string();
        assert!(error.ends_with(says) && !error.contains("CANARY"), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_that_repeats_the_assertion_is_not_repeated() {
    let server = FakeServer::start(|asked| {
        Reply::Answer(400, json!({ "error": "invalid_grant", "error_description": asked.body }).to_string())
    })
    .await;
    let directory = directory(&key(&Pair::rsa(), "https://oauth2.googleapis.com/token"));
    let text = format!(
        "{{ google_service_account: {{ key: file:key.json, scopes: [a], token_url: \"{}/token\" }} }}",
        server.url
    );
    let error = issued(&text, directory.path()).await.unwrap_err();
    assert!(error.to_string().ends_with("the token endpoint answered HTTP 400 (invalid_grant)"), "{error}");
    assert!(!format!("{error:?}").contains("eyJ"));
}

#[test]
fn mistakes_are_told() {
    let mistake = |keys: &str| {
        let text = format!("{{ google_service_account: {{ key: env:KEY, {keys} }} }}");
        member(&text, std::path::Path::new("/")).unwrap_err()
    };
    for (keys, says) in [
        ("self_signed: false", "missing key `scopes`: what the token shall be good for"),
        ("audience: a", "`audience` is of self-signed tokens: add `self_signed: true`, or name `scopes`"),
        ("self_signed: true", "with `self_signed: true` either `audience` or `scopes` says what it is for"),
        (
            "self_signed: true, audience: a, scopes: [b]",
            "with `self_signed: true` either `audience` or `scopes` says what it is for",
        ),
        (
            "self_signed: true, audience: a, subject: u",
            "`subject` needs a token endpoint, and with `self_signed: true` none is asked",
        ),
        (
            "scopes: [a], token_url: \"http://x.example/t\"",
            "`token_url`: over http everybody on the way could read the secrets: use https",
        ),
    ] {
        assert_eq!(mistake(keys), says);
    }
}
