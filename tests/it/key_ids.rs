//! Keys in an overlap that have an id of their own each: the provider refuses the new one, and the old one comes with the old
//! one's id. For every kind that writes an id beside its key.

use std::path::Path;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::support::ca::TestCa;
use super::support::client::local_get;
use super::support::origin::{HttpOrigin, Seen, text};
use super::support::proxy::Proxy;
use super::world::{HOST, directory, policy};

fn write_key(path: &Path) {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let der = STANDARD.encode(key.as_ref());
    std::fs::write(path, format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n")).unwrap();
}

/// The id that a JWT names, by this field of its header.
fn id_of(jwt: &str, field: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(jwt.split('.').next().unwrap()).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()[field].as_str().unwrap_or_default().to_owned()
}

/// The ids that a provider saw, which takes the old one alone.
async fn ids(credential: &str, id: fn(&Seen) -> String) -> (u16, Vec<String>) {
    let ca = TestCa::new();
    let origin = HttpOrigin::with(Some(ca.server(&[HOST], &["http/1.1"])), move |seen: Seen| {
        text(if id(&seen) == "the-old-id" { 200 } else { 401 }, "{}")
    })
    .await;
    let dir = directory(&ca);
    ["new", "old"].into_iter().for_each(|name| write_key(&dir.path().join(name)));
    let proxy =
        Proxy::start_in(dir, &policy(origin.address, &format!("    credential: {credential}"), "")).await;
    let status = local_get(&proxy, "/api/x").await.status;
    let seen = origin.requests();
    // The preferred one, afterwards, is the one that worked.
    assert_eq!(local_get(&proxy, "/api/x").await.status, status);
    assert_eq!(id(origin.requests().last().unwrap()), "the-old-id");
    (status, seen.iter().map(id).collect())
}

fn kid(seen: &Seen) -> String {
    id_of(seen.header("authorization").unwrap().trim_start_matches("Bearer "), "kid")
}

#[tokio::test]
async fn a_refused_key_is_followed_by_the_old_one_with_the_old_ones_id() {
    let keys = "[\"file:{dir}/new\", \"file:{dir}/old\"]";
    let both = ["the-new-id", "the-old-id"];
    let of_hmac = |seen: &Seen| seen.header("x-key").unwrap().to_owned();
    let hmac = format!(
        "{{ hmac: {{ key: {keys}, key_id: [\"plain:the-new-id\", \"plain:the-old-id\"], key_id_in: {{ header: X-Key }}, content: \"{{method}}\", signature: {{ header: X-Sig }} }} }}"
    );
    let jwt = format!(
        "{{ jwt_bearer: {{ key: {keys}, key_id: [the-new-id, the-old-id], algorithm: ES256, issuer: \"plain:me\", audience: \"https://x.test\" }} }}"
    );
    let apple = format!(
        "{{ apple: {{ service: app_store_connect, private_key: {keys}, key_id: [the-new-id, the-old-id] }} }}"
    );
    assert_eq!(ids(&hmac, of_hmac).await, (200, both.map(str::to_owned).to_vec()));
    assert_eq!(ids(&jwt, kid).await, (200, both.map(str::to_owned).to_vec()));
    assert_eq!(ids(&apple, kid).await, (200, both.map(str::to_owned).to_vec()));
}

#[tokio::test]
async fn the_key_of_a_token_that_is_signed_here_is_read_again_after_a_401() {
    const OLD: &str = "the-key-before-it-was-rotated-1234";
    const NEW: &str = "the-key-after-it-was-rotated-12345";
    let ca = TestCa::new();
    let origin = HttpOrigin::with(Some(ca.server(&[HOST], &["http/1.1"])), |seen: Seen| {
        let jwt = seen.header("authorization").unwrap().trim_start_matches("Bearer ").to_owned();
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, NEW.as_bytes());
        let good = URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes()).as_ref());
        text(if signature == good { 200 } else { 401 }, "{}")
    })
    .await;
    let dir = directory(&ca);
    std::fs::write(dir.path().join("key"), OLD).unwrap();
    let keys = "    credential: { jwt_bearer: { key: \"file:{dir}/key\", algorithm: HS256, issuer: \"plain:me\", audience: \"https://x.test\" } }";
    let proxy = Proxy::start_in(dir.clone(), &policy(origin.address, keys, "")).await;
    assert_eq!(local_get(&proxy, "/api/x").await.status, 401);
    let dir = directory(&ca);
    std::fs::write(dir.path().join("key"), OLD).unwrap();
    let proxy = Proxy::start_in(dir.clone(), &policy(origin.address, keys, "")).await;
    // In one step, or it is looked at while it is empty.
    std::fs::write(dir.path().join("other"), NEW).unwrap();
    std::fs::rename(dir.path().join("other"), dir.path().join("key")).unwrap();
    assert_eq!(local_get(&proxy, "/api/x").await.status, 200);
}

/// What stands in a field of a form.
fn field(seen: &Seen, name: &str) -> String {
    let body = String::from_utf8(seen.body.to_vec()).unwrap();
    let value = body.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    value.unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_token_is_got_with_the_old_client_and_its_key_where_the_new_one_is_refused() {
    let endpoint = HttpOrigin::with(None, |seen: Seen| {
        let old = field(&seen, "client_id") == "the-old-client"
            && id_of(&field(&seen, "client_assertion"), "kid") == "the-old-id"
            && id_of(&field(&seen, "client_assertion"), "x5t#S256") == "old-print";
        match old {
            true => text(200, r#"{"access_token":"by-old","expires_in":3600}"#),
            false => text(401, r#"{"error":"invalid_client"}"#),
        }
    })
    .await;
    let ca = TestCa::new();
    let origin = HttpOrigin::with(Some(ca.server(&[HOST], &["http/1.1"])), |_| text(200, "{}")).await;
    let dir = directory(&ca);
    ["new", "old"].into_iter().for_each(|name| write_key(&dir.path().join(name)));
    std::fs::write(dir.path().join("new-client"), "the-new-client").unwrap();
    std::fs::write(dir.path().join("old-client"), "the-old-client").unwrap();
    let key = "client_key: { key: [\"file:{dir}/new\", \"file:{dir}/old\"], algorithm: ES256, key_id: [the-new-id, the-old-id], thumbprint: [new-print, old-print] }";
    for client in [
        "[\"plain:the-new-client\", \"plain:the-old-client\"]",
        "[\"file:{dir}/new-client\", \"file:{dir}/old-client\"]",
    ] {
        let keys = format!(
            "    credential: {{ oauth2_client_credentials: {{ token_url: \"http://{}/token\", client_id: {client}, auth_style: private_key_jwt, {key} }} }}",
            endpoint.address
        );
        let before = endpoint.requests().len();
        let proxy = Proxy::start_in(dir.clone(), &policy(origin.address, &keys, "")).await;
        assert_eq!(local_get(&proxy, "/api/x").await.status, 200, "{client}");
        assert_eq!(origin.requests().last().unwrap().header("authorization"), Some("Bearer by-old"));
        let asked: Vec<String> =
            endpoint.requests()[before..].iter().map(|seen| field(seen, "client_id")).collect();
        // Not in which order: a token of the proxy before may be on its way to be made anew.
        for name in ["the-new-client", "the-old-client"] {
            assert!(asked.iter().any(|one| one == name), "{asked:?}");
        }
    }
}
