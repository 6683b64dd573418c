//! Ways of a credential whose token outgate gets or makes itself: each gets one, as the facts say it is got, and brings it to
//! its place, where nothing of the app's own is left.
//!
//! The policy says what a user would say. In what the preset makes of it one thing is changed, the origin of the endpoint:
//! `https://login.test/token` is `http://127.0.0.1:port/login.test/token` here.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use outgate::pipeline::reload::read;
use outgate::policy::diagnostic::Diagnostics;
use outgate::policy::preset::Preset;
use outgate::policy::preset::apply::apply;
use outgate::policy::tree::{Node, Sources, Value as Text};
use outgate::policy::yaml;
use serde_json::{Map, Value, json};

use super::{DUMMY, facts, field_of, kept, list, path_of, with};
use crate::support::CANARY;
use crate::support::client::{admin, local_request};
use crate::support::origin::{HttpOrigin, Seen, text};
use crate::support::proxy::Proxy;

const CLIENT: &str = "the-client";
const REFRESH: &str = "the-first-refresh-token";

/// A way that gets a token: how it is called in the policy, and its credential as a kind.
struct Way {
    name: String,
    preset: String,
    way: String,
    fact: Value,
    kind: String,
    settings: Map<String, Value>,
}

/// A value of the policy's tree.
fn json_of(node: &Node) -> Value {
    match &node.value {
        Text::Null => Value::Null,
        Text::Bool(value) => (*value).into(),
        Text::Number(text) => serde_json::from_str(text).unwrap(),
        Text::String(text) => text.as_str().into(),
        Text::Sequence(items) => items.iter().map(json_of).collect(),
        Text::Mapping(entries) => entries
            .iter()
            .map(|entry| (entry.key.clone(), json_of(&entry.value)))
            .collect::<Map<_, _>>()
            .into(),
    }
}

/// What a user gives for a part.
fn part(name: &str, provider: &str) -> String {
    match name {
        "key" | "service_account" => "\"file:{dir}/account.json\"".to_owned(),
        "private_key" if provider.starts_with("apple") => "\"file:{dir}/key.p8\"".to_owned(),
        "private_key" => "\"file:{dir}/app.pem\"".to_owned(),
        "app_id" if provider.starts_with("apple") => "com.acme.web".to_owned(),
        "team_id" => "TEAM123456".to_owned(),
        "key_id" => "KEY1234567".to_owned(),
        "client_id" => format!("\"plain:{CLIENT}\""),
        "client_secret" => "\"file:{dir}/secret\"".to_owned(),
        "refresh_token" => format!("\"file:{{dir}}/refresh-{provider}\""),
        "store" => format!("{{ file: \"{{dir}}/kept-{provider}\" }}"),
        "subject" | "email" => "box@acme.example".to_owned(),
        "tenant" => "acme.example".to_owned(),
        "app_id" | "installation_id" => "12".to_owned(),
        "consumer_key" | "application_id" | "user" => format!("\"plain:{name}\""),
        // What is written once is no token.
        _ => "\"file:{dir}/secret\"".to_owned(),
    }
}

/// Every way of every preset that gets a token, as the presets make it of what a user says.
fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for (preset, fact) in facts() {
        ways.extend(ways_of(&preset, &fact));
    }
    ways
}

/// Those of one preset, with the parameters of the facts.
fn ways_of(preset: &str, fact: &Value) -> Vec<Way> {
    let mut ways = Vec::new();
    let known = Preset::named(preset).unwrap();
    let forms = known.credential_forms(true);
    for (number, (way, (form, _))) in known.ways().zip(forms).enumerate() {
        let name = format!("{preset}-{number}");
        let form = form.strip_prefix("credential: ").unwrap();
        let mut given = form.to_owned();
        for word in form.split(|c: char| !(c.is_ascii_lowercase() || c == '_')) {
            for sample in ["env:NAME", "text", "{ file: PATH }"] {
                let (from, to) = (format!(" {word}: {sample}"), format!(" {word}: {}", part(word, &name)));
                given = given.replace(&from, &to);
            }
        }
        let (kind, settings) = as_kind(preset, fact, &given);
        let (preset, way) = (preset.to_owned(), way.to_owned());
        let way = Way { name, preset, way, fact: fact.clone(), kind, settings };
        if way.is_token() {
            ways.push(way);
        }
    }
    ways
}

/// A parameter that names a cloud says where tokens come from, too, and what they are for.
#[test]
fn tokens_come_from_the_cloud_that_a_parameter_names() {
    let mut told = BTreeSet::new();
    for (preset, fact) in facts() {
        for (parameter, wanted) in fact["tokens_at"].as_object().into_iter().flatten() {
            let mut fact = fact.clone();
            if let Some((name, value)) = parameter.split_once(": ") {
                fact["with"][name] = value.into();
            }
            let ways = ways_of(&preset, &fact);
            assert_eq!(ways.len(), 1, "{preset} {parameter}");
            let mut found = ways[0].endpoint().unwrap().1;
            if ways[0].settings.contains_key("scopes") {
                let _ = write!(found, " for {}", list_of(ways[0].settings.get("scopes")));
            }
            assert_eq!(Some(found.as_str()), wanted.as_str(), "{preset} {parameter}");
            told.insert(preset.clone());
        }
        // A preset whose hosts are of several clouds says where each gets its tokens.
        let clouds = list(&fact, "hosts")
            .iter()
            .any(|host| host.contains("-gov.") || host.ends_with(".azure.us") || host.ends_with(".ghe.com"));
        let tokens = !fact["tokens"].is_null() || kept(&fact, "auth").contains(&"github_app");
        assert_eq!(told.contains(&preset), clouds && tokens, "{preset}");
    }
}

/// The kind that a preset makes of a credential in the short form.
fn as_kind(preset: &str, fact: &Value, given: &str) -> (String, Map<String, Value>) {
    let policy = format!("providers:\n  p:\n    preset: {preset}\n{}    credential: {given}\n", with(fact));
    let (mut sources, mut mistakes) = (Sources::new(), Diagnostics::new());
    let source = sources.add("policy");
    let tree = yaml::parse(&policy, source, &mut mistakes).unwrap();
    let (tree, _) = apply(&tree, &mut sources, &mut mistakes);
    assert!(mistakes.is_empty(), "{policy}");
    let provider = tree.get("providers").and_then(|all| all.get("p")).unwrap();
    let credential = json_of(provider.get("credential").unwrap_or_else(|| panic!("{policy}")));
    let (kind, settings) = credential.as_object().unwrap().iter().next().unwrap();
    (kind.clone(), settings.as_object().cloned().unwrap_or_default())
}

impl Way {
    /// The provider in the policy; `{origin}` is the API, `{endpoint}` the token endpoint.
    fn provider(&self, settings: &Map<String, Value>) -> String {
        let credential = json!({ &self.kind: settings });
        format!(
            "  {}:\n    preset: {}\n{}    doors: [local]\n    upstream: {{ scheme: http, connect_to: \"{{origin}}\", plaintext_credential: allow }}\n    credential: {credential}\n",
            self.name,
            self.preset,
            with(&self.fact)
        )
    }

    fn is_token(&self) -> bool {
        if self.settings.is_empty() {
            return false;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.yaml");
        let text =
            self.provider(&self.settings).replace("{dir}", "/nowhere").replace("{origin}", "127.0.0.1:1");
        std::fs::write(&file, format!("version: 1\nproviders:\n{text}")).unwrap();
        let policy = read(&file).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)));
        policy.providers[0].routes[0].settings.credential.iter().any(|member| !member.tokens.is_empty())
    }

    /// Where the token is got: as the preset says, or as the kind does by itself.
    fn endpoint(&self) -> Option<(&'static str, String)> {
        let own = |key: &str| self.settings.get(key).and_then(Value::as_str);
        match self.kind.as_str() {
            "google_service_account" => Some(("token_url", "https://oauth2.googleapis.com/token".to_owned())),
            "github_app" => Some(("api_url", own("api_url").unwrap_or("https://api.github.com").to_owned())),
            _ => own("token_url").map(|url| ("token_url", url.to_owned())),
        }
    }

    /// The settings with the endpoint's origin changed.
    fn redirected(&self) -> Map<String, Value> {
        let mut settings = self.settings.clone();
        if let Some((key, url)) = self.endpoint() {
            let rest = url.strip_prefix("https://").unwrap_or_else(|| panic!("{url}"));
            settings.insert(key.to_owned(), format!("http://{{endpoint}}/{}/{rest}", self.name).into());
        }
        settings
    }

    /// What the endpoint was asked, held against the kind and against the facts.
    fn check(&self, asked: &Asked, wrong: &mut String) {
        let mut check = |what: &str, same: bool| {
            if !same {
                let _ = writeln!(wrong, "{}: {what}: {asked:?}", self.name);
            }
        };
        let said = &self.fact["tokens"][&self.way];
        let told = said.as_array().into_iter().flatten().filter_map(Value::as_str);
        let says = |text: &str| told.clone().any(|told| is_like(told, text));
        let field = |name: &str| asked.fields.get(name).map(String::as_str);
        if matches!(self.kind.as_str(), "oauth2_client_credentials" | "oauth2_refresh_token") {
            let basic = STANDARD.encode(format!("{CLIENT}:{CANARY}"));
            let basic = asked.authorization.as_deref() == Some(&format!("Basic {basic}"));
            let inside = (field("client_id"), field("client_secret")) == (Some(CLIENT), Some(CANARY));
            check("the client", if says("basic") { basic && !inside } else { inside && !basic });
            check("the form", asked.json == says("json") && (says("json") || says("post") || says("basic")));
            check("the scope", list_of(self.settings.get("scopes")) == field("scope").unwrap_or_default());
            let audience = self.settings.get("audience").and_then(Value::as_str);
            check("the audience", field("audience") == audience && audience.is_none_or(says));
        }
        match self.kind.as_str() {
            "oauth2_client_credentials" => {
                check("the grant", field("grant_type") == Some("client_credentials"));
            }
            "oauth2_refresh_token" => {
                check("the grant", field("grant_type") == Some("refresh_token"));
                check("the refresh token", field("refresh_token") == Some(REFRESH));
            }
            "google_service_account" => {
                let claims = claims_of(field("assertion").unwrap_or_default());
                check("the issuer", claims["iss"] == "robot@p.iam.gserviceaccount.com");
                check("the scope", claims["scope"] == list_of(self.settings.get("scopes")).as_str());
                let subject = self.settings.get("subject").cloned().unwrap_or_default();
                check("the subject", claims["sub"] == subject || subject.is_null());
            }
            "jwt_bearer" => {
                let claims = claims_of(field("assertion").unwrap_or_default());
                let written =
                    |key: &str| self.settings[key].as_str().unwrap().trim_start_matches("plain:").to_owned();
                let audience = claims["aud"].as_str().unwrap_or_default();
                check("the audience", says(audience));
                check(
                    "whose it is",
                    claims["iss"] == written("issuer") && claims["sub"] == written("subject"),
                );
            }
            "github_app" => {
                let jwt = asked.authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
                check("the app", claims_of(jwt.unwrap_or_default())["iss"].to_string().contains("12"));
                check("the installation", asked.path.ends_with("/app/installations/12/access_tokens"));
            }
            other => check(other, false),
        }
    }
}

/// Whether a text is what a text of the facts stands for, in which `${name}` is a name of the customer's.
fn is_like(told: &str, text: &str) -> bool {
    let Some((before, rest)) = told.split_once("${") else { return told == text };
    let after = rest.split_once('}').unwrap().1;
    text.strip_prefix(before).is_some_and(|text| {
        let segment = text.find('/').unwrap_or(text.len());
        (1..=segment).any(|end| is_like(after, &text[end..]))
    })
}

/// Scopes as a token endpoint takes them.
fn list_of(scopes: Option<&Value>) -> String {
    let scopes = scopes.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    scopes.collect::<Vec<_>>().join(" ")
}

fn claims_of(jwt: &str) -> Value {
    let claims = jwt.split('.').nth(1).unwrap_or_default();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap_or_default()).unwrap_or_default()
}

/// What a token endpoint was asked.
#[derive(Debug)]
struct Asked {
    path: String,
    authorization: Option<String>,
    json: bool,
    fields: HashMap<String, String>,
}

impl Asked {
    fn of(seen: &Seen) -> Self {
        let json = seen.header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
        let fields = if json {
            let body: Map<String, Value> = serde_json::from_slice(&seen.body).unwrap_or_default();
            body.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
        } else {
            let decoded = |text: &str| {
                let text = text.replace('+', " ");
                percent_encoding::percent_decode_str(&text).decode_utf8().unwrap().into_owned()
            };
            let body = String::from_utf8_lossy(&seen.body).into_owned();
            body.split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (decoded(name), decoded(value)))
                .collect()
        };
        let authorization = seen.header("authorization").map(str::to_owned);
        Self { path: seen.uri.path().to_owned(), authorization, json, fields }
    }
}

/// A good answer, in the provider's own words: when the token ends is told in seconds, as a date, or not at all.
fn good(provider: &str, fact: &Value, kind: &str) -> String {
    let mut answer = json!({ "access_token": format!("minted-{provider}"), "token_type": "Bearer" });
    match (kind, fact["token_end"].as_str()) {
        ("github_app", _) => {
            return json!({ "token": format!("minted-{provider}"), "expires_at": in_half_an_hour() })
                .to_string();
        }
        (_, None) => answer["expires_in"] = 1800.into(),
        (_, Some("date")) => answer["expires_at"] = in_half_an_hour().into(),
        (_, Some("none")) => {}
        (_, Some(other)) => panic!("{provider}: {other}"),
    }
    if kind == "oauth2_refresh_token" {
        answer["refresh_token"] = format!("next-{provider}").into();
    }
    // Slack says so in every answer.
    answer["ok"] = true.into();
    answer.to_string()
}

fn in_half_an_hour() -> String {
    let at = std::time::SystemTime::now() + std::time::Duration::from_secs(1800);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// The end of each token is the one that its answer told.
fn check_ends(ways: &[Way], status: &str, wrong: &mut String) {
    let status: Value = serde_json::from_str(status).unwrap();
    for way in ways.iter().filter(|way| way.endpoint().is_some()) {
        let part = format!("/{}/", way.name);
        let all = status["secrets"].as_array().unwrap().iter();
        let mut own = all.filter(|one| one["reference"].as_str().unwrap().contains(&part));
        let ends = own.next().and_then(|one| one["ends_in_seconds"].as_u64());
        let told = way.fact["token_end"] != "none" || way.kind == "github_app";
        if ends.is_some_and(|ends| (1700..=1800).contains(&ends)) != told {
            let _ = writeln!(wrong, "{}: ends in {ends:?}", way.name);
        }
    }
}

/// The keys of the app and of the service account.
fn write_keys(dir: &std::path::Path) {
    let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    let account = json!({
        "type": "service_account", "private_key_id": "k", "private_key": pem,
        "client_email": "robot@p.iam.gserviceaccount.com", "token_uri": "https://oauth2.googleapis.com/token",
    });
    std::fs::write(dir.join("account.json"), account.to_string()).unwrap();
    std::fs::write(dir.join("app.pem"), pem).unwrap();
    let random = aws_lc_rs::rand::SystemRandom::new();
    let curve = &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let der = aws_lc_rs::signature::EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    std::fs::write(dir.join("key.p8"), pem).unwrap();
    std::fs::write(dir.join("secret"), CANARY).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_that_gets_a_token_brings_it_to_its_place() {
    let ways = ways();
    let told: BTreeSet<(String, String)> = facts()
        .into_iter()
        .flat_map(|(preset, fact)| {
            let all = fact["tokens"].as_object().cloned().unwrap_or_default();
            all.into_iter().map(move |(way, _)| (preset.clone(), way))
        })
        .collect();
    let found = |one: &(String, String)| ways.iter().any(|way| way.preset == one.0 && way.way == one.1);
    assert!(told.iter().all(found) && told.len() >= 10, "{told:?}");
    let answers: HashMap<String, String> =
        ways.iter().map(|way| (way.name.clone(), good(&way.name, &way.fact, &way.kind))).collect();
    let endpoint = HttpOrigin::with(None, move |seen: Seen| {
        match answers.get(seen.uri.path().split('/').nth(1).unwrap_or_default()) {
            Some(answer) => text(200, answer),
            None => text(404, "{}"),
        }
    })
    .await;
    let api = HttpOrigin::start(None).await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    write_keys(dir.path());
    let mut policy = "providers:\n".to_owned();
    for way in &ways {
        std::fs::write(dir.path().join(format!("refresh-{}", way.name)), REFRESH).unwrap();
        policy.push_str(&way.provider(&way.redirected()));
    }
    let policy = policy
        .replace("{origin}", &api.address.to_string())
        .replace("{endpoint}", &endpoint.address.to_string());
    let proxy = Proxy::start_in(dir.clone(), &policy).await;
    let mut wrong = String::new();
    for way in &ways {
        let places = [list(&way.fact, "auth"), list(&way.fact, "app_keys")].concat();
        let fields = places.iter().filter_map(|place| place.strip_prefix("header "));
        let lines: Vec<String> = fields
            .chain(["authorization"])
            .map(|field| format!("{field}: Bearer {DUMMY}\r\n"))
            .chain([format!("x-case: {}\r\n", way.name)])
            .collect();
        let query: Vec<String> = places
            .iter()
            .filter_map(|place| place.strip_prefix("query "))
            .map(|name| format!("{name}={DUMMY}"))
            .collect();
        let path = format!("/{}{}?{}", way.name, path_of(&way.fact, &Value::Null), query.join("&"));
        // A client secret goes with what is posted.
        let posts = way.kind == "apple";
        let (method, form) =
            if posts { ("POST", format!("code=c&client_secret={DUMMY}")) } else { ("GET", String::new()) };
        let lines =
            lines.concat() + if posts { "content-type: application/x-www-form-urlencoded\r\n" } else { "" };
        let got = local_request(proxy.address(), method, &path, &lines, &form).await;
        let seen = api.requests().into_iter().find(|seen| seen.header("x-case") == Some(&way.name));
        let Some(seen) = seen.filter(|_| got.status == 200) else {
            let _ = writeln!(wrong, "{}: {got:?}", way.name);
            continue;
        };
        for place in places.iter().chain(&["bearer"]).filter(|_| !posts) {
            if field_of(place, &seen).contains(DUMMY) {
                let _ = writeln!(wrong, "{}: the app's own arrives at `{place}`", way.name);
            }
        }
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        let posted = body.strip_prefix("code=c&client_secret=").filter(|_| posts);
        let brought = seen.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let brought = if posts { posted } else { brought };
        let asked: Vec<Asked> = endpoint
            .requests()
            .iter()
            .filter(|seen| seen.uri.path().split('/').nth(1) == Some(&way.name))
            .map(Asked::of)
            .collect();
        match (way.endpoint(), asked.as_slice()) {
            (Some((_, url)), [asked]) => {
                way.check(asked, &mut wrong);
                let rest = url.strip_prefix("https://").unwrap();
                let there = asked.path.strip_prefix(&format!("/{}/{rest}", way.name)).is_some();
                let fact = way.fact["tokens"][&way.way][0].as_str();
                let there = there && fact.is_none_or(|fact| is_like(fact, &url));
                if !there || brought != Some(&format!("minted-{}", way.name)) {
                    let _ = writeln!(wrong, "{}: {brought:?}, got at {asked:?} and not {fact:?}", way.name);
                }
            }
            // Made here: the facts say which claim says whose it is.
            (None, []) => {
                let claims = claims_of(brought.unwrap_or_default());
                let good = match way.preset.as_str() {
                    "vonage" => claims["application_id"] == "application_id",
                    "apple-sign-in" => {
                        let said =
                            ["iss", "sub", "aud"].map(|claim| claims[claim].as_str().unwrap_or_default());
                        said == ["TEAM123456", "com.acme.web", "https://appleid.apple.com"]
                    }
                    _ => false,
                };
                if !good {
                    let _ = writeln!(wrong, "{}: {claims}: {body}", way.name);
                }
            }
            (_, asked) => {
                let _ = writeln!(wrong, "{}: asked {} times: {asked:?}", way.name, asked.len());
            }
        }
    }
    let status = admin(&proxy, "GET", "/status").await.text();
    check_ends(&ways, &status, &mut wrong);
    assert!(wrong.is_empty(), "{wrong}\n{status}");
    assert!(ways.len() >= 20, "{}", ways.len());
    let log = proxy.log.text(&proxy.app.telemetry);
    assert!(!log.contains(CANARY) && !log.contains("minted-") && !log.contains(REFRESH), "{log}");
}
