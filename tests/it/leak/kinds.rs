//! Every kind of credential: its keys, what is signed or exchanged with them, and the tokens that come of it.

use std::path::Path;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;

use super::super::support::ca::TestCa;
use super::super::support::origin::RawOrigin;
use super::super::world::answering;
use super::rows::{Out, Row, as_program, in_process};
use super::stores::{TOKEN, hostile_store};
use super::{BEARER, DUMMY, HEADER, PASSWORD, QUERY, assert_without, hostile};

/// What token endpoints give.
const ISSUED: &str = "iS5uK8dT2oJ6eN0gP4rV7wX1";

/// What clients prove themselves with, and what they exchange.
const CLIENT_SECRET: &str = "cL6nT3sE9cR2eT5xQ8wZ4vB7";
const REFRESH: &str = "rF4gH7jK2lM9nP3qS6tU8vW5";
const SUBJECT: &str = "sB7jC4kD9mF2nG6pH3qJ8rL5";
const AWS_KEY: &str = "aW3sK8eY5pL2mN7bV4cX9zQ6";

/// A token endpoint that repeats, in every answer and wherever there is room, what it was sent and what it gives.
fn hostile_issuer(request: &str) -> Option<Vec<u8>> {
    let path = request.split(' ').nth(1)?;
    let echo = format!("{request:?}");
    let (status, body) = if path.contains("good") {
        (
            200,
            format!(
                "{{\"access_token\":\"{ISSUED}\",\"token\":\"{ISSUED}\",\"refresh_token\":\"{REFRESH}\",\"expires_in\":3600,\"echo\":{echo}}}"
            ),
        )
    } else if path.contains("garbage") {
        (200, format!("{ISSUED} {request}"))
    } else {
        (400, format!("{{\"error\":{echo},\"error_description\":{echo},\"message\":{echo}}}"))
    };
    let one_line = request.split("\r\n\r\n").nth(1)?.replace(['\r', '\n'], " ");
    let length = body.len();
    Some(
        format!(
            "HTTP/1.1 {status} {ISSUED}\r\nX-Echo: {one_line}\r\nLocation: /{ISSUED}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes(),
    )
}

/// A private key in PEM, and a piece of it that no other key has: the first bytes of every such key are the same.
struct Key {
    pem: String,
    piece: String,
}

impl Key {
    fn of(der: &[u8], piece: std::ops::Range<usize>) -> Self {
        let text = STANDARD.encode(der);
        let piece = text[piece].to_owned();
        Self { pem: format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"), piece }
    }

    fn rsa() -> Self {
        let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
        let middle = der.as_ref().len() * 2 / 3;
        Self::of(der.as_ref(), middle..middle + 48)
    }

    fn p256() -> Self {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        // The private number of 32 bytes begins at the 36th byte.
        Self::of(pair.to_pkcs8v1().unwrap().as_ref(), 50..88)
    }
}

/// What a run stands on.
struct Scene {
    origin: RawOrigin,
    /// One that wants a client certificate.
    shown: RawOrigin,
    /// One for each of [`WAYS`]: who fails is asked ten times a minute by all.
    issuers: Vec<RawOrigin>,
    keys_of_aws: RawOrigin,
    dir: tempfile::TempDir,
    /// Pieces of private keys.
    pieces: Vec<String>,
}

impl Scene {
    async fn new() -> Self {
        let (ca, clients) = (TestCa::new(), TestCa::new());
        let tls = ca.server_for_clients(&["*.x.test"], &["http/1.1"], &clients.pem);
        let dir = tempfile::tempdir().unwrap();
        let pieces = files(dir.path(), &ca.pem, clients.client("one"));
        Self {
            origin: RawOrigin::start(None, answering(hostile)).await,
            shown: RawOrigin::start(Some(tls), answering(hostile)).await,
            issuers: join_all(WAYS.map(|_| RawOrigin::start(None, answering(hostile_issuer)))).await,
            keys_of_aws: RawOrigin::start(None, answering(hostile_store)).await,
            dir,
            pieces,
        }
    }
}

fn files(dir: &Path, ca: &str, (certificate, client): (String, String)) -> Vec<String> {
    let (rsa, p256) = (Key::rsa(), Key::p256());
    let account = serde_json::json!({
        "type": "service_account", "private_key_id": "k", "private_key": rsa.pem,
        "client_email": "robot@p.iam.gserviceaccount.com", "token_uri": "https://oauth2.googleapis.com/token",
    });
    let broken = account.to_string().replace("BEGIN PRIVATE KEY", "BEGIN NOTHING");
    let body: String = client.lines().filter(|line| !line.starts_with('-')).collect();
    for (name, text) in [
        ("app.pem", rsa.pem.clone()),
        ("apple.p8", p256.pem.clone()),
        ("account.json", account.to_string()),
        ("broken.json", broken),
        ("origin.pem", ca.to_owned()),
        ("client.pem", certificate),
        ("client.key", client),
        ("bearer", BEARER.to_owned()),
        ("password", PASSWORD.to_owned()),
        ("header", HEADER.to_owned()),
        ("query", QUERY.to_owned()),
        ("lines", format!("{BEARER}\nX: {HEADER}")),
        ("client", CLIENT_SECRET.to_owned()),
        ("refresh", REFRESH.to_owned()),
        ("subject", SUBJECT.to_owned()),
        ("aws", AWS_KEY.to_owned()),
        ("aws.json", format!("{{\"AccessKeyId\":\"AKIDEXAMPLE\",\"SecretAccessKey\":\"{AWS_KEY}\"}}")),
        (
            "profile",
            format!("[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = {AWS_KEY}\n"),
        ),
        ("login", SUBJECT.to_owned()),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    // One of its own for each that rotates: `check` refuses one that two use up.
    for path in WAYS {
        std::fs::write(dir.join(format!("refresh-{path}")), REFRESH).unwrap();
    }
    vec![rsa.piece, p256.piece, body[50..88].to_owned()]
}

/// How a token endpoint behaves, by its path.
const WAYS: [&str; 3] = ["good", "garbage", "refused"];

/// What `/status` says of a token of such an endpoint.
fn code(way: &str) -> Option<&'static str> {
    match way {
        "good" => None,
        "garbage" => Some("token_garbled"),
        _ => Some("token_refused"),
    }
}

/// Kinds whose secret is written as it is, or signs the request.
fn plain() -> Vec<(&'static str, String, Option<&'static str>)> {
    let dummy = format!("token: {DUMMY}, value: \"file:{{dir}}/header\"");
    vec![
        ("none", "none".to_owned(), None),
        ("bearer", "{ bearer: \"file:{dir}/bearer\" }".to_owned(), None),
        ("bearer", "{ bearer: \"file:{dir}/lines\" }".to_owned(), Some("malformed")),
        ("basic", "{ basic: { username: \"plain:me\", password: \"file:{dir}/password\" } }".to_owned(), None),
        ("basic", "{ basic: { username: \"file:{dir}/lines\", password: \"file:{dir}/password\" } }".to_owned(), Some("malformed")),
        ("header", "{ header: { name: X-Api-Key, value: \"file:{dir}/header\" } }".to_owned(), None),
        ("header", "{ header: { name: X-Api-Key, value: \"file:{dir}/lines\" } }".to_owned(), Some("malformed")),
        ("query", "{ query: { name: key, value: \"file:{dir}/query\" } }".to_owned(), None),
        ("query", "{ query: { name: key, value: \"file:{dir}/lines\" } }".to_owned(), Some("malformed")),
        ("body", "{ body: { field: key, value: \"file:{dir}/query\" } }".to_owned(), None),
        ("body", "{ body: { field: key, value: \"file:{dir}/nothing\" } }".to_owned(), Some("not_found")),
        ("placeholder", format!("{{ placeholder: {{ {dummy}, in: [header] }} }}"), None),
        ("placeholder", "{ placeholder: { token: placeholder-000002, value: \"file:{dir}/lines\", in: [header] } }".to_owned(), Some("malformed")),
        (
            "hmac",
            "{ hmac: { key: \"file:{dir}/header\", content: \"{target}{body}\", signature: { header: X-Api-Key } } }".to_owned(),
            None,
        ),
        (
            "hmac",
            "{ hmac: { key: \"file:{dir}/header\", key_encoding: hex, content: \"{body}\", signature: { header: X-Api-Key } } }".to_owned(),
            Some(""),
        ),
        (
            "aws_sigv4",
            "{ aws_sigv4: { access_key_id: \"plain:AKIDEXAMPLE\", secret_access_key: \"file:{dir}/aws\", region: r, service: s } }".to_owned(),
            None,
        ),
        ("aws_sigv4", "{ aws_sigv4: { keys: \"file:{dir}/aws.json\", region: r, service: s } }".to_owned(), None),
        ("aws_sigv4", "{ aws_sigv4: { keys: \"file:{dir}/aws\", region: r, service: s } }".to_owned(), Some("")),
        ("mtls", "{ mtls: { certificate: \"file:{dir}/client.pem\", key: \"file:{dir}/client.key\" } }".to_owned(), None),
        ("mtls", "{ mtls: { certificate: \"file:{dir}/client.pem\", key: \"file:{dir}/app.pem\" } }".to_owned(), Some("")),
        (
            "google_service_account",
            "{ google_service_account: { key: \"file:{dir}/account.json\", self_signed: true, audience: a } }".to_owned(),
            None,
        ),
        (
            "google_service_account",
            "{ google_service_account: { key: \"file:{dir}/broken.json\", self_signed: true, audience: a } }".to_owned(),
            Some("token_key"),
        ),
        ("apple", "{ apple: { service: app_store_connect, key_id: k, private_key: \"file:{dir}/apple.p8\" } }".to_owned(), None),
        ("apple", "{ apple: { team_id: T, client_id: c, key_id: k, private_key: \"file:{dir}/apple.p8\" } }".to_owned(), None),
        (
            "apple",
            "{ apple: { service: app_store_connect, key_id: k, private_key: \"file:{dir}/app.pem\" } }".to_owned(),
            Some("token_key"),
        ),
        (
            "jwt_bearer",
            "{ jwt_bearer: { key: \"file:{dir}/app.pem\", issuer: \"plain:me\", audience: a } }".to_owned(),
            None,
        ),
        (
            "aws_sigv4",
            "{ aws_sigv4: { credentials: { profile: { file: \"{dir}/profile\" } }, region: r, service: s } }".to_owned(),
            None,
        ),
        (
            "aws_sigv4",
            "{ aws_sigv4: { credentials: { profile: { name: other, file: \"{dir}/profile\" } }, region: r, service: s } }".to_owned(),
            Some(""),
        ),
    ]
}

/// Kinds that ask an endpoint for a token. `{url}` is the endpoint, `{way}` how it behaves.
fn exchanged() -> Vec<(&'static str, String)> {
    let client = "client_id: \"plain:app\", client_secret: \"file:{dir}/client\"";
    let signer =
        "client_id: \"plain:app\", auth_style: private_key_jwt, client_key: { key: \"file:{dir}/app.pem\" }";
    let endpoint = "token_url: \"{url}/{way}\"";
    vec![
        ("google_service_account", format!("{{ google_service_account: {{ key: \"file:{{dir}}/account.json\", scopes: [a], {endpoint} }} }}")),
        (
            "github_app",
            "{ github_app: { app_id: 1, installation_id: 2, private_key: \"file:{dir}/app.pem\", api_url: \"{url}/{way}\" } }".to_owned(),
        ),
        ("oauth2_client_credentials", format!("{{ oauth2_client_credentials: {{ {endpoint}, {client} }} }}")),
        ("oauth2_client_credentials", format!("{{ oauth2_client_credentials: {{ {endpoint}, {client}, auth_style: post }} }}")),
        ("oauth2_client_credentials", format!("{{ oauth2_client_credentials: {{ {endpoint}, {client}, auth_style: json }} }}")),
        ("oauth2_client_credentials", format!("{{ oauth2_client_credentials: {{ {endpoint}, {signer} }} }}")),
        ("oauth2_refresh_token", format!("{{ oauth2_refresh_token: {{ {endpoint}, {client}, refresh_token: \"file:{{dir}}/refresh\" }} }}")),
        (
            "oauth2_refresh_token",
            format!(
                "{{ oauth2_refresh_token: {{ {endpoint}, {client}, refresh_token: \"file:{{dir}}/refresh-{{way}}\", rotates: true, store: {{ file: \"{{dir}}/kept-{{way}}\" }} }} }}"
            ),
        ),
        ("jwt_bearer", format!("{{ jwt_bearer: {{ {endpoint}, {client}, key: \"file:{{dir}}/app.pem\", issuer: \"plain:me\" }} }}")),
        (
            "token_exchange",
            format!("{{ token_exchange: {{ {endpoint}, {client}, subject_token: \"file:{{dir}}/subject\", audience: a }} }}"),
        ),
    ]
}

/// Keys of AWS's chain. `{url}` is the service that gives them.
const CHAIN: [&str; 3] = [
    "{ aws_sigv4: { credentials: { web_identity: { role_arn: r, token_file: \"{dir}/login\", endpoint: \"{url}\" } }, region: r, service: s } }",
    "{ aws_sigv4: { credentials: { container: { endpoint: \"{url}/container\", token_file: \"{dir}/login\" } }, region: r, service: s } }",
    "{ aws_sigv4: { credentials: { instance: { endpoint: \"{url}\" } }, region: r, service: s } }",
];

fn rows(scene: &Scene) -> Vec<Row> {
    let upstream =
        format!("{{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}", scene.origin.address);
    let shown =
        format!("{{ connect_to: \"{}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}", scene.shown.address);
    let lines: &'static str = "X-Api-Key: placeholder-000001\r\n";
    assert!(lines.contains(DUMMY));
    let row = |of, credential: String, code| Row {
        of,
        lines: if of == "placeholder" && code != Some("malformed") { lines } else { "" },
        upstream: if of == "mtls" { shown.clone() } else { upstream.clone() },
        credential,
        store: String::new(),
        code,
    };
    let mut rows: Vec<Row> =
        plain().into_iter().map(|(of, credential, code)| row(of, credential, code)).collect();
    for (way, issuer) in WAYS.into_iter().zip(&scene.issuers) {
        let url = format!("http://{}", issuer.address);
        let written = exchanged().into_iter();
        rows.extend(
            written.map(|(of, text)| row(of, text.replace("{url}", &url).replace("{way}", way), code(way))),
        );
    }
    for (way, code) in [("good", None), ("login", Some(""))] {
        let url = format!("http://{}/{way}", scene.keys_of_aws.address);
        rows.extend(CHAIN.iter().map(|text| row("aws_sigv4", text.replace("{url}", &url), code)));
    }
    rows
}

/// The begins of the signatures of the JWTs that were sent: who has one can use it.
fn signatures(text: &str) -> Vec<String> {
    let tokens = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    let jwts = tokens.filter(|token| token.starts_with("eyJ") && token.matches('.').count() == 2);
    jwts.filter_map(|jwt| Some(jwt.rsplit('.').next()?.chars().take(64).collect())).collect()
}

async fn run(program: bool) -> Vec<Row> {
    let scene = Scene::new().await;
    let rows = rows(&scene);
    let out: Out = if program {
        as_program(&rows, scene.dir.path(), &[]).await
    } else {
        in_process(&rows, scene.dir.path()).await
    };
    let codes = out.status["secrets"].to_string();
    for row in &rows {
        let code = row.code.unwrap_or_default();
        assert!(code.is_empty() || codes.contains(&format!("\"{code}\"")), "{code}: {}", row.credential);
    }
    for way in WAYS {
        let kept = std::fs::read_to_string(scene.dir.path().join(format!("kept-{way}"))).unwrap();
        assert_without(&[REFRESH, ISSUED], "where it is kept", &kept);
    }
    // The canaries were alive: each went where it belongs.
    let asked: String = scene.issuers.iter().map(RawOrigin::text).collect();
    let (sent, keys) = (scene.origin.text(), scene.keys_of_aws.text());
    assert!([BEARER, HEADER, ISSUED].iter().all(|secret| sent.contains(secret)));
    assert!([CLIENT_SECRET, REFRESH, SUBJECT].iter().all(|secret| asked.contains(secret)));
    assert!(keys.contains(SUBJECT) && scene.shown.text().contains("POST /echo"));
    let signed = [signatures(&sent), signatures(&asked)];
    assert!(signed[0].len() >= 4 && signed[1].len() >= 4, "{signed:?}");
    let fixed = [BEARER, PASSWORD, HEADER, QUERY, ISSUED, CLIENT_SECRET, REFRESH, SUBJECT, AWS_KEY, TOKEN];
    let made = scene.pieces.iter().chain(signed.iter().flatten()).map(String::as_str);
    let secrets: Vec<&str> = fixed.into_iter().chain(made).collect();
    out.assert_without(&secrets);
    rows
}

#[tokio::test]
async fn no_kind_leaks_its_key_its_assertion_or_its_token() {
    run(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_any_kind_of_the_program() {
    let rows = run(true).await;
    for kind in outgate::credential::CredentialConfig::KINDS {
        let has = |good: bool| rows.iter().any(|row| row.of == *kind && row.code.is_none() == good);
        assert!(
            has(true) && (has(false) || *kind == "none"),
            "`{kind}` has no row that is good, or none that is not"
        );
    }
}
