//! Published signatures of real providers, and what is told of mistakes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Method};

use super::config::Config;
use super::sign::{Now, sign};
use crate::credential::kinds::{Half, MemberSettings, PerRequest};
use crate::credential::location::Location;
use crate::credential::rewrite::Secrets;
use crate::message::body::Body;
use crate::message::failure::Fault;
use crate::message::request::{EgressParts, EgressRequest, Exchange};
use crate::message::target::{Host, Scheme, Target};
use crate::secret::reference::SecretRef;
use crate::secret::{SecretCache, Stores};

fn members(text: &str) -> Result<Vec<MemberSettings>, String> {
    serde_yaml::from_str::<Config>(text).map_err(|error| error.to_string())?.members()
}

fn request(method: Method, host: &str, target: &str, body: &str) -> EgressRequest {
    EgressRequest::from(EgressParts {
        method,
        target: Target { scheme: Scheme::Https, host: Host::parse(host).unwrap(), port: 443 },
        path_and_query: target.parse().unwrap(),
        headers: HeaderMap::new(),
        body: Body::full(body.to_owned()),
        upgrade: false,
        credential_choice: 0,
        tenant: None,
        leave: None,
        exchange: Arc::new(Exchange::new(None)),
    })
}

async fn secrets(values: &[&str]) -> Secrets {
    let directory = tempfile::tempdir().unwrap();
    let cache = SecretCache::new(Stores::built_in(directory.path()));
    let mut versions = Vec::new();
    for (at, value) in values.iter().enumerate() {
        std::fs::write(directory.path().join(at.to_string()), value).unwrap();
        let reference: SecretRef = format!("file:{at}").parse().unwrap();
        let entry = cache.entry(&reference);
        cache.read_new(Duration::from_secs(5)).await;
        versions.push(entry.current().unwrap());
    }
    Secrets::new(versions)
}

fn at(milliseconds: u64) -> Now {
    Now { time: UNIX_EPOCH + Duration::from_millis(milliseconds), nonce: "00ff".into() }
}

async fn signed(
    policy: &str,
    key: &[&str],
    request: EgressRequest,
    now: Now,
) -> Result<EgressRequest, Fault> {
    let member = members(policy).unwrap().remove(0);
    let Some(PerRequest::Hmac(settings)) = member.per_request else { panic!("another kind") };
    sign(&settings, request, &secrets(key).await, now).await.map_err(|failure| failure.fault)
}

#[tokio::test]
async fn binance_signs_query_and_body() {
    // The example of "SIGNED endpoint security" in Binance's Spot API documentation.
    const KEY: &str = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j";
    let policy = r#"{ key: file:k, key_id: file:id, key_id_in: { header: X-MBX-APIKEY }, content: "{query}{body}", signature: { query: signature }, timestamp: { query: timestamp, format: epoch_ms } }"#;
    let sent = "/api/v3/order?symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000";
    let request = request(Method::POST, "api.binance.com", sent, "");
    let out = signed(policy, &[KEY, "id-1"], request, at(1_499_827_319_559)).await.unwrap();
    let expected = "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71";
    assert_eq!(out.path_and_query, format!("{sent}&timestamp=1499827319559&signature={expected}").as_str());
    assert_eq!(out.headers["x-mbx-apikey"], "id-1");
    assert!(out.headers["x-mbx-apikey"].is_sensitive());
}

#[tokio::test]
async fn duo_signs_date_method_host_path_and_form() {
    // The example of "Authentication" in Duo's Accounts API documentation.
    const KEY: &str = "Zh5eGmUq9zpfQnyUIu5OL9iWoMMv5ZNmk3zLJ4Ep";
    let policy = r#"{ key: file:k, algorithm: sha1, key_id: "plain:DIWJ8X6AEYOR5OMC6TQ1", timestamp: { header: Date, format: rfc2822 }, content: "{timestamp}\n{method}\n{host}\n{path}\n{body}", signature: { header: Authorization, format: "Basic {basic}" } }"#;
    let request = request(
        Method::POST,
        "api-xxxxxxxx.duosecurity.com",
        "/accounts/v1/account/list",
        "realname=First%20Last&username=root",
    );
    let out = signed(policy, &[KEY], request, at(1_345_570_158_000)).await.unwrap();
    assert_eq!(out.headers["date"], "Tue, 21 Aug 2012 17:29:18 -0000");
    assert_eq!(
        out.headers["authorization"],
        "Basic RElXSjhYNkFFWU9SNU9NQzZUUTE6MmQ5N2Q2MTY2MzE5NzgxYjVhM2EwN2FmMzlkMzY2ZjQ5MTIzNGVkYw=="
    );
}

#[tokio::test]
async fn a_plain_hash_holds_the_key() {
    // Cloudinary's documented example of a signature, over what the app put into its query.
    let policy = r#"{ key: file:k, function: hash, algorithm: sha1, content: "{query}{key}", signature: { header: X-Signature } }"#;
    let target = "/?eager=w_400,h_300,c_pad|w_260,h_200,c_crop&public_id=sample_image&timestamp=1315060510";
    let out = signed(policy, &["abcd"], request(Method::GET, "a.test", target, ""), at(0)).await.unwrap();
    assert_eq!(out.headers["x-signature"], "bfd09f95f331f558cbd1320e67aa8d488770583e");
}

#[tokio::test]
async fn hmac_is_that_of_rfc_4231_and_2202() {
    // Test case 2 of each: key `Jefe`, data `what do ya want for nothing?`.
    for (algorithm, encoding, expected) in [
        ("sha1", "hex", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
        ("sha256", "hex", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        ("sha256", "base64", "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM="),
        ("sha256", "base64url", "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM"),
        (
            "sha384",
            "hex",
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        ),
        (
            "sha512",
            "hex",
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ),
    ] {
        for (key_encoding, key) in
            [("text", "Jefe"), ("hex", "4A656665"), ("base64", "SmVmZQ=="), ("base64", "SmVmZQ")]
        {
            let policy = format!(
                "{{ key: file:k, key_encoding: {key_encoding}, algorithm: {algorithm}, encoding: {encoding}, content: \"{{body}}\", signature: {{ header: X-Sig, format: \"v1={{signature}}\" }} }}"
            );
            let body = "what do ya want for nothing?";
            let out =
                signed(&policy, &[key], request(Method::POST, "a.test", "/", body), at(0)).await.unwrap();
            assert_eq!(out.headers["x-sig"], format!("v1={expected}"), "{algorithm} {key_encoding}");
            assert_eq!(out.body.exact_length(), Some(28));
        }
    }
}

#[tokio::test]
async fn every_piece_is_what_is_sent() {
    let policy = r#"{ key: file:k, function: hash, key_id: "plain:me", timestamp: { header: X-Time, format: iso8601 }, nonce: { header: X-Nonce, format: "n-{nonce}" }, digest: { header: X-Digest, algorithm: sha256, encoding: base64 }, content: "{method} {host} {path}|{query}|{target}|{header:X-A}|{header:none}|{timestamp}|{nonce}|{key_id}|{digest}|{key}", encoding: base64, signature: { header: X-Sig, format: "{key_id}:{timestamp}:{signature}" } }"#;
    let mut sent = request(Method::PUT, "a.test", "/p?q=1", "");
    sent.target.port = 8443;
    sent.headers.append("x-a", "1".parse().unwrap());
    sent.headers.append("x-a", "2".parse().unwrap());
    let out = signed(policy, &["KEY"], sent, at(1_000)).await.unwrap();
    let digest = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    assert_eq!(out.headers["x-digest"], digest);
    assert_eq!(out.headers["x-nonce"], "n-00ff");
    let content = format!("PUT a.test:8443 /p|q=1|/p?q=1|1,2||1970-01-01T00:00:01Z|00ff|me|{digest}|KEY");
    use base64::Engine as _;
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content.as_bytes());
    let hash = base64::engine::general_purpose::STANDARD.encode(hash.as_ref());
    assert_eq!(out.headers["x-sig"], format!("me:1970-01-01T00:00:01Z:{hash}"));
}

#[tokio::test]
async fn what_cannot_be_signed_is_not_sent() {
    let policy =
        r#"{ key: file:k, key_encoding: base64, content: "{method}", signature: { header: X-Sig } }"#;
    let get = || request(Method::GET, "a.test", "/", "");
    assert_eq!(signed(policy, &["n$t base64"], get(), at(0)).await.err(), Some(Fault::Credential));
    let policy = r#"{ key: file:k, content: "{body}", signature: { header: X-Sig }, max: 8B }"#;
    let long = request(Method::POST, "a.test", "/", "123456789");
    assert_eq!(signed(policy, &["k"], long, at(0)).await.err(), Some(Fault::BodyTooLargeToRewrite));
    let policy = r#"{ key: file:k, content: "{method}", signature: { query: sig } }"#;
    let long = request(Method::GET, "a.test", &format!("/{}", "x".repeat(65_500)), "");
    assert_eq!(signed(policy, &["k"], long, at(0)).await.err(), Some(Fault::TargetTooLong));
}

#[test]
fn nonces_differ() {
    let (one, other) = (Now::take(), Now::take());
    assert!(one.nonce.len() == 32 && one.nonce != other.nonce && one.time <= SystemTime::now());
}

#[test]
fn an_overlap_makes_members_and_every_place_is_ours() {
    let two = members(r#"{ key: [file:new, file:old], content: "{timestamp}", timestamp: { header: X-T }, nonce: { query: n }, signature: { header: X-S } }"#).unwrap();
    assert_eq!(two.len(), 2);
    let places = two[1].locations();
    assert_eq!(places.len(), 3);
    assert!(places.contains(&Location::Query("n".into())));
    for (id, plain) in [("plain:one", ["one", "one"]), ("[\"plain:new\", \"plain:old\"]", ["new", "old"])] {
        let id = if id.starts_with('[') { id.to_owned() } else { format!("{id:?}") };
        let two = members(&format!(
            r#"{{ key: [file:new, file:old], key_id: {id}, content: "{{method}}{{key_id}}", signature: {{ header: X-S }} }}"#
        ));
        let ids = two.unwrap().into_iter().map(|member| match member.per_request {
            Some(PerRequest::Hmac(settings)) => settings.key_id,
            _ => None,
        });
        assert_eq!(ids.collect::<Vec<_>>(), plain.map(|text| Some(Half::Plain(text.to_owned()))), "{id}");
    }
}

#[test]
fn mistakes_are_told() {
    for (text, part) in [
        (r#"content: "{metod}""#, "none of"),
        (r#"content: "fixed""#, "nothing of the request"),
        (r#"content: "{signature}""#, "no meaning"),
        (r#"content: "{timestamp}""#, "`hmac.timestamp` is used"),
        (r#"content: "{nonce}""#, "`hmac.nonce` is used"),
        (r#"content: "{method}{key_id}""#, "`hmac.key_id` is used"),
        (r#"content: "{digest}""#, "`hmac.digest` is used"),
        (r#"content: "{method}{key}""#, "for `function: hash` alone"),
        (r#"content: "{method}", function: hash"#, "wants `{key}`"),
        (r#"content: "{method}", timestamp: { header: X-S }"#, "two things"),
        (r#"content: "{method}", timestamp: { header: Host }"#, "cannot be set"),
        (r#"content: "{method}", nonce: { header: A, query: b }"#, "one of `header` and `query`"),
        (r#"content: "{method}", nonce: { header: A, format: "x" }"#, "does not hold"),
        (r#"content: "{method}", nonce: { header: A, format: "{nonce}{signature}" }"#, "no meaning"),
        (r#"content: "{method}", max: 1GiB"#, "16MiB"),
    ] {
        let error = members(&format!("{{ key: env:K, signature: {{ header: X-S }}, {text} }}")).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    let error =
        members(r#"{ key: env:K, content: "{method}", signature: { header: X, format: "x" } }"#).unwrap_err();
    assert!(error.contains("no `{signature}`"), "{error}");
    let error =
        members(r#"{ key: env:K, content: "{method}", signature: { header: X, format: "{basic}" } }"#)
            .unwrap_err();
    assert!(error.contains("`hmac.key_id` is used"), "{error}");
}
