//! JWTs as Apple's documentation describes them, with keys that are made here.

use std::time::Duration;

use serde_json::{Value, json};

use crate::credential::token::rig::{Pair, issued, member};

async fn claims(keys: &str) -> (Value, Value, Duration) {
    let pair = Pair::p256();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("key.p8"), &pair.pem).unwrap();
    let text = format!("{{ apple: {{ key_id: KEY1234567, private_key: file:key.p8, {keys} }} }}");
    let (token, life) = issued(&text, directory.path()).await.unwrap();
    let (header, mut claims) = pair.read(&token);
    let (issued, end) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    // App Store Connect takes at most twenty minutes.
    assert_eq!(end - issued, 900);
    let claims_map = claims.as_object_mut().unwrap();
    claims_map.remove("iat");
    claims_map.remove("exp");
    (header, claims, life.unwrap())
}

#[tokio::test]
async fn the_client_secret_of_sign_in() {
    let (header, claims, life) = claims("team_id: TEAM123456, client_id: com.example.web").await;
    assert_eq!(header, json!({ "alg": "ES256", "typ": "JWT", "kid": "KEY1234567" }));
    let expected =
        json!({ "iss": "TEAM123456", "sub": "com.example.web", "aud": "https://appleid.apple.com" });
    assert_eq!(claims, expected);
    assert!(life <= Duration::from_secs(840));
}

#[tokio::test]
async fn the_token_of_app_store_connect() {
    let issuer = "service: app_store_connect, issuer_id: 57246542-96fe-1a63-e053-0824d011072a";
    let (_, of_team, _) = claims(issuer).await;
    let expected = json!({ "iss": "57246542-96fe-1a63-e053-0824d011072a", "aud": "appstoreconnect-v1" });
    assert_eq!(of_team, expected);
    let (_, of_person, _) = claims("service: app_store_connect").await;
    assert_eq!(of_person, json!({ "sub": "user", "aud": "appstoreconnect-v1" }));
}

#[tokio::test]
async fn a_key_of_another_kind_is_told() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("key.p8"), Pair::rsa().pem).unwrap();
    let text = "{ apple: { key_id: K, private_key: file:key.p8, service: app_store_connect } }";
    let error = issued(text, directory.path()).await.unwrap_err();
    assert!(error.to_string().ends_with("it is no key on the curve P-256"), "{error}");
}

#[test]
fn mistakes_are_told() {
    for (keys, says) in [
        ("client_id: c", "missing key `team_id`"),
        ("team_id: t", "missing key `client_id`"),
        ("team_id: t, client_id: c, issuer_id: i", "`issuer_id` is not used with this `service`"),
        ("service: app_store_connect, team_id: t", "`team_id` is not used with this `service`"),
        (
            "team_id: \"env:TEAM\", client_id: c",
            "`team_id` is an id as Apple shows it, and no secret reference",
        ),
    ] {
        let text = format!("{{ apple: {{ key_id: K, private_key: env:KEY, {keys} }} }}");
        assert_eq!(member(&text, std::path::Path::new("/")).unwrap_err(), says);
    }
}
