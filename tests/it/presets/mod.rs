//! Every preset against the facts about its provider (`tests/fixtures/providers.yaml`), and against a provider that behaves as
//! the facts say: it wants the credential at its place, tells its quota in its own fields, and throttles in its own ways.
//!
//! One origin stands for all of them. A request says in `x-case` which case it belongs to, and the origin answers the first
//! request of a case with that case's answer, later ones with a plain 200.

mod answers;
mod at_a_time;
mod bodies;
mod compare;
mod data;
mod masked;
mod quota;
mod refused;
mod rows;
mod tokens;
mod ways;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use outgate::pipeline::reload::read;
use outgate::policy::preset::{Preset, names};
use serde_json::{Map, Value};

use self::ways::{KEY_ID, Way};
use crate::support::CANARY;
use crate::support::client::{Got, local_request};
use crate::support::origin::{Answer, HttpOrigin, Seen, text};
use crate::support::proxy::Proxy;

/// What the app sends where its credential would stand.
const DUMMY: &str = "app-dummy-credential";
/// What the mock answers to a request that lacks its credential.
const NO_CREDENTIAL: &str = "the mock wants its credential";
/// How long the mock asks to wait.
const WAIT: u64 = 60;

/// The facts, by preset; an answer of several statuses is one for each.
fn facts() -> Map<String, Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/providers.yaml");
    let mut facts: Map<String, Value> =
        serde_yaml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    for fact in facts.values_mut() {
        let each = |row: &Value| match &row["status"] {
            Value::Array(all) => all.clone(),
            one => vec![one.clone()],
        };
        let rows = fact["answers"].as_array().unwrap().iter();
        let rows = rows.flat_map(|row| {
            each(row).into_iter().map(|status| {
                let mut one = row.clone();
                one["status"] = status;
                one
            })
        });
        fact["answers"] = rows.collect();
    }
    facts
}

fn list<'a>(fact: &'a Value, key: &str) -> Vec<&'a str> {
    fact[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What a list of the facts has that the preset does not leave out.
fn kept<'a>(fact: &'a Value, key: &str) -> Vec<&'a str> {
    let left = |one: &&str| fact["left_out"][*one].is_string();
    list(fact, key).into_iter().filter(|one| !left(one)).collect()
}

/// A preset's parameters, as a policy writes them.
fn with(fact: &Value) -> String {
    let words: Vec<String> = fact["with"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    if words.is_empty() { String::new() } else { format!("    with: {{ {} }}\n", words.join(", ")) }
}

/// A provider of the policy in front of the mock; `keys` are further lines.
fn provider(name: &str, preset: &str, fact: &Value, credential: &str, keys: &str) -> String {
    format!(
        "  {name}:\n    preset: {preset}\n{}    doors: [local]\n    upstream: {{ scheme: http, connect_to: \"{{origin}}\", plaintext_credential: allow }}\n    credential: {credential}\n{keys}",
        with(fact)
    )
}

/// One case: what the provider answers first to a request with its credential.
#[derive(Clone, Default)]
struct Case {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    /// The credential that it wants.
    way: Option<Way>,
}

/// The mock.
struct Mock {
    origin: HttpOrigin,
}

impl Mock {
    async fn start(cases: HashMap<String, Case>) -> Self {
        let asked = Mutex::new(HashMap::<String, u32>::new());
        let cases = Arc::new(cases);
        let origin = HttpOrigin::with(None, move |seen: Seen| {
            let case = seen.header("x-case").unwrap_or_default().to_owned();
            let known = cases.get(&case);
            if known.is_some_and(|case| case.way.as_ref().is_some_and(|way| !way.is_borne_by(&seen))) {
                return text(401, NO_CREDENTIAL);
            }
            let first = {
                let mut asked = asked.lock().unwrap();
                let count = asked.entry(case.clone()).or_default();
                *count += 1;
                *count == 1
            };
            match known.filter(|_| first) {
                Some(case) => case.answer(),
                None => text(200, "{}"),
            }
        })
        .await;
        Self { origin }
    }

    /// The requests of one case.
    fn seen(&self, case: &str) -> Vec<Seen> {
        self.origin.requests().into_iter().filter(|seen| seen.header("x-case") == Some(case)).collect()
    }

    /// outgate in front of it.
    async fn proxy(&self, providers: &str) -> Proxy {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [("secret", CANARY), ("stale", "the-stale-key-of-before"), ("id", KEY_ID)] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let policy = format!("providers:\n{providers}").replace("{origin}", &self.origin.address.to_string());
        Proxy::start_in(Arc::new(dir), &policy).await
    }
}

impl Case {
    /// A row of the facts.
    fn of(row: &Value) -> Self {
        let headers = row["headers"].as_object().into_iter().flatten();
        let mut headers: Vec<(String, String)> =
            headers.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
        let body = match &row["body"] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            json => json.to_string(),
        };
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            headers.push(("content-type".to_owned(), "application/json".to_owned()));
        }
        let status = u16::try_from(row["status"].as_u64().unwrap()).unwrap();
        Self { status, headers, body, way: None }
    }

    /// The same of a provider that wants this credential.
    fn wants(self, way: &Way) -> Self {
        Self { way: Some(way.clone()), ..self }
    }

    fn answer(&self) -> Answer {
        let mut answer = text(self.status, &self.body.clone());
        for (name, value) in &self.headers {
            let value = value.strip_prefix(IN_A_WHILE).map_or_else(|| value.clone(), in_a_while);
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        answer
    }
}

/// What stands for a time [`WAIT`] seconds after the answer, before the name of its format.
const IN_A_WHILE: &str = "in a while: ";

/// A field's value that says so when the answer is sent.
fn told_later(format: &str) -> String {
    format!("{IN_A_WHILE}{format}")
}

/// "In [`WAIT`] seconds", as a provider writes it.
fn in_a_while(format: &str) -> String {
    let at = SystemTime::now() + Duration::from_secs(WAIT);
    match format {
        "epoch_s" => at.duration_since(UNIX_EPOCH).unwrap().as_secs().to_string(),
        "delta_s" => WAIT.to_string(),
        "delta_ms" => (WAIT * 1000).to_string(),
        "iso8601" => humantime::format_rfc3339_seconds(at).to_string(),
        "http_date" => httpdate::fmt_http_date(at),
        "duration" => "1m0s".to_owned(),
        other => panic!("{other}"),
    }
}

async fn ask(
    proxy: &Proxy,
    method: &str,
    provider: &str,
    path: &str,
    case: &str,
    lines: &str,
    body: &str,
) -> Got {
    let lines = format!("x-case: {case}\r\n{lines}");
    local_request(proxy.address(), method, &format!("/{provider}{path}"), &lines, body).await
}

/// What outgate refused because the provider asked to wait.
fn is_held(got: &Got) -> bool {
    let seconds: u64 = got.header("retry-after").and_then(|text| text.parse().ok()).unwrap_or_default();
    got.header("outgate-error") == Some("rate_limited") && (WAIT - 10..=WAIT + 2).contains(&seconds)
}

/// Where a row of the facts is asked: at a path of its own, or at one of the provider's.
fn path_of<'a>(fact: &'a Value, row: &'a Value) -> &'a str {
    row["path"].as_str().or(fact["path"].as_str()).unwrap_or("/x")
}

fn is_low(fact: &Value) -> bool {
    fact["confidence"] == "low"
}

/// The fields of a request with a JSON body.
const JSON: &str = "content-type: application/json\r\n";

/// Whether an answer that means this proves that nothing was done.
fn acted(row: &Value) -> bool {
    let unless = !matches!(row["is"].as_str(), Some("throttle" | "concurrency" | "unauthorized"));
    row["acted"].as_bool().unwrap_or(unless)
}

#[test]
fn facts_and_presets_are_about_the_same_providers() {
    let facts = facts();
    assert_eq!(
        names().map(str::to_owned).collect::<BTreeSet<_>>(),
        facts.keys().cloned().collect::<BTreeSet<_>>()
    );
}

/// The form of a credential with words in place of its texts.
fn worded(form: &str) -> String {
    form.replace("subject: text", "subject: box@acme.example")
        .replace("team_id: text", "team_id: TEAM123456")
        .replace("key_id: text", "key_id: KEY1234567")
        .replace(": text", ": bot")
}

/// The secret goes where the provider wants it, and the app's own never arrives.
#[tokio::test]
async fn the_credential_goes_to_its_place() {
    let mock = Mock::start(HashMap::new()).await;
    let (mut policy, mut ways) = (String::new(), Vec::new());
    for (preset, fact) in facts() {
        let forms = Preset::named(&preset).unwrap().credential_forms(true);
        for (number, (form, _)) in forms.into_iter().enumerate() {
            let credential = worded(&form).replace("env:NAME", "\"file:{dir}/secret\"");
            let credential = credential.strip_prefix("credential: ").unwrap().to_owned();
            let name = format!("{preset}-{number}");
            let text = provider(&name, &preset, &fact, &credential, "");
            if is_written_once(&text) {
                policy.push_str(&text);
                ways.push((name, preset.clone(), fact.clone()));
            }
        }
    }
    let proxy = mock.proxy(&policy).await;
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, preset, fact) in &ways {
        let places: BTreeSet<&str> =
            [kept(fact, "auth"), list(fact, "app_keys")].concat().into_iter().collect();
        let mut lines = format!("authorization: Bearer {DUMMY}\r\n");
        let mut query = Vec::new();
        for place in &places {
            if let Some(field) = place.strip_prefix("header ").filter(|field| *field != "authorization") {
                let _ = write!(lines, "{field}: {DUMMY}\r\n");
                query.push(format!("{field}={DUMMY}"));
            }
            if let Some(field) = place.strip_prefix("query ") {
                query.push(format!("{field}={DUMMY}"));
            }
        }
        let path = path_of(fact, &Value::Null);
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        let got = ask(&proxy, "GET", name, &path, name, &lines, "").await;
        assert_eq!(got.status, 200, "{name}: {got:?}");
        assert!(
            !got.text().contains(CANARY)
                && !got.headers.values().any(|value| value.to_str().is_ok_and(|text| text.contains(CANARY)))
        );
        let seen = mock.seen(name).pop().unwrap();
        let at: Vec<&str> = places.iter().copied().filter(|place| stands_at(place, &seen)).collect();
        assert!(!at.is_empty(), "{name}: not at one of {places:?}: {seen:?}");
        // An SDK may send its key where another way of the credential stands.
        for place in &places {
            let arrives = field_of(place, &seen).contains(DUMMY);
            assert!(!arrives, "{name}: the app's own arrives at `{place}`: {seen:?}");
        }
        let passes = places.iter().filter(|place| fact["passes"][**place].is_string());
        for place in passes.filter(|place| !at.contains(place)) {
            let lines = lines.replace(&format!("Bearer {DUMMY}"), "Bearer of-a-user");
            let got = ask(&proxy, "GET", name, &path, name, &lines, "").await;
            let seen = mock.seen(name).pop().unwrap();
            let stays = field_of(place, &seen) == "Bearer of-a-user" && stands_at(at[0], &seen);
            assert!(got.status == 200 && stays, "{name}: {seen:?}");
        }
        for place in at {
            // Nor at the parameter that has the field's name, where nobody means another thing by it.
            let twin = place.strip_prefix("header ").filter(|field| field.contains('-'));
            let arrives = twin.is_some_and(|field| seen.uri.to_string().contains(&format!("{field}=")));
            assert!(!arrives, "{name}: {}", seen.uri);
            found.entry(preset.clone()).or_default().insert(place.to_owned());
        }
        for (field, value) in fact["required_headers"].as_object().into_iter().flatten() {
            assert_eq!(seen.header(field), value.as_str(), "{name}: {field}");
        }
    }
    for (preset, fact) in facts() {
        let built = |place: &&&str| {
            ["bearer", "basic", "header ", "query "].iter().any(|kind| place.starts_with(kind))
        };
        for place in kept(&fact, "auth").iter().filter(built) {
            let known = found.get(&preset).is_some_and(|places| places.contains(*place));
            assert!(known, "{preset}: no way of the preset puts the secret at `{place}`");
        }
    }
    let log = format!("{:?}", proxy.records(ways.len()).await);
    assert!(!log.contains(CANARY) && !log.contains(DUMMY));
}

/// What a provider wants besides is added only where the app sent none.
#[tokio::test]
async fn the_apps_own_fields_stay() {
    let (mut policy, mut asks) = (String::new(), Vec::new());
    for (preset, fact) in facts() {
        policy.push_str(&provider(&preset, &preset, &fact, "none", ""));
        asks.extend(
            fact["required_headers"].as_object().map(|fields| (preset.clone(), fact.clone(), fields.clone())),
        );
    }
    assert!(asks.len() >= 5, "{asks:?}");
    let mock = Mock::start(HashMap::new()).await;
    let proxy = mock.proxy(&policy).await;
    for (name, fact, fields) in &asks {
        let lines: String = fields.keys().map(|field| format!("{field}: text/own\r\n")).collect();
        let got = ask(&proxy, "GET", name, path_of(fact, &Value::Null), name, &lines, "").await;
        let seen = mock.seen(name).pop().unwrap();
        let own = fields.keys().all(|field| seen.header(field) == Some("text/own"));
        assert!(got.status == 200 && own, "{name}: {seen:?}");
    }
}

/// A field of the body is written over the app's, and a signature is made anew, with the preset's region and service.
#[tokio::test]
async fn fields_of_bodies_and_signatures_are_the_credentials_own() {
    let mock = Mock::start(HashMap::new()).await;
    let (mut policy, mut ways) = (String::new(), Vec::new());
    for (preset, fact) in facts() {
        let forms = Preset::named(&preset).unwrap().credential_forms(false);
        for (number, (form, _)) in forms.into_iter().enumerate() {
            let credential = form
                .replace("key_id: env:NAME", "key_id: \"file:{dir}/id\"")
                .replace("access_id: env:NAME", "access_id: \"file:{dir}/id\"")
                .replace("env:NAME", "\"file:{dir}/secret\"")
                .replace("{ file: PATH }", "{ file: \"{dir}/kept\" }");
            let credential = worded(&credential);
            let credential = credential.strip_prefix("credential: ").unwrap().to_owned();
            let name = format!("{preset}-{number}");
            let text = provider(&name, &preset, &fact, &credential, "");
            if members_of(&text) == (false, true) {
                policy.push_str(&text);
                ways.push((name, fact.clone()));
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), CANARY).unwrap();
    std::fs::write(dir.path().join("id"), "AKIDEXAMPLE").unwrap();
    let policy = format!("providers:\n{policy}").replace("{origin}", &mock.origin.address.to_string());
    let proxy = Proxy::start_in(Arc::new(dir), &policy).await;
    let (mut bodies, mut signatures) = (0, 0);
    for (name, fact) in &ways {
        let fields: Vec<&str> =
            kept(fact, "auth").iter().filter_map(|place| place.strip_prefix("body ")).collect();
        let body: Map<String, Value> =
            fields.iter().map(|field| ((*field).to_owned(), DUMMY.into())).collect();
        let lines = format!("authorization: Bearer {DUMMY}\r\ncontent-type: application/json\r\n");
        let body = Value::Object(body).to_string();
        let got = ask(&proxy, "POST", name, path_of(fact, &Value::Null), name, &lines, &body).await;
        assert_eq!(got.status, 200, "{name}: {got:?}");
        let seen = mock.seen(name).pop().unwrap();
        assert!(!String::from_utf8_lossy(&seen.body).contains(DUMMY), "{name}: {seen:?}");
        let authorization = seen.header("authorization").unwrap_or_default();
        match fact["signs"].as_str() {
            Some(scope) => {
                let began = authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/");
                let signed = began.is_some_and(|rest| rest.contains(&format!("/{scope}/aws4_request,")));
                assert!(signed && !authorization.contains(DUMMY), "{name}: {seen:?}");
                signatures += 1;
            }
            None => {
                let body: Value = serde_json::from_slice(&seen.body).unwrap();
                assert!(fields.iter().any(|field| body[*field] == CANARY), "{name}: {seen:?}");
                // The place of another way is not the app's either.
                let other = kept(fact, "auth").iter().any(|place| ["bearer", "basic"].contains(place));
                assert!(!other || authorization.is_empty(), "{name}: {seen:?}");
                bodies += 1;
            }
        }
    }
    assert!(bodies >= 5 && signatures >= 6, "{bodies} {signatures}");
    let told = facts().values().filter(|fact| fact["signs"].is_string()).count();
    assert_eq!(told, signatures, "each that signs has one such way");
}

/// Whether the credential is written once and put into each request.
fn is_written_once(provider: &str) -> bool {
    members_of(provider) == (false, false)
}

/// Whether it gets tokens, and whether it does work for each request.
fn members_of(provider: &str) -> (bool, bool) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    let provider = provider.replace("{dir}", "/nowhere").replace("{origin}", "127.0.0.1:1");
    std::fs::write(&file, format!("version: 1\nproviders:\n{provider}")).unwrap();
    let policy = read(&file).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)));
    let members = &policy.providers[0].routes[0].settings.credential;
    let tokens = members.iter().any(|member| !member.tokens.is_empty());
    (tokens, members.iter().any(|member| member.per_request.is_some()))
}

/// What stands at a place of a request, as the facts name places.
fn at_place(place: &str, seen: &Seen) -> Option<String> {
    if let Some(field) = place.strip_prefix("header ") {
        return seen.header(field).map(str::to_owned);
    }
    if let Some(field) = place.strip_prefix("query ") {
        let query = seen.uri.query()?;
        return query.split('&').find_map(|pair| pair.strip_prefix(&format!("{field}=")).map(str::to_owned));
    }
    let value = seen.header("authorization")?;
    match place {
        "bearer" => value.strip_prefix("Bearer ").map(str::to_owned),
        "basic" => {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
            String::from_utf8(bytes).ok()
        }
        _ => None,
    }
}

/// All that stands in the field or the parameter that a way of the facts writes into, whatever the form; tokens are bearers.
fn field_of(place: &str, seen: &Seen) -> String {
    match place.split_once(' ') {
        Some(("header", field)) => seen.header(field).unwrap_or_default().to_owned(),
        Some(("query", _)) => at_place(place, seen).unwrap_or_default(),
        Some(_) => String::new(),
        None => seen.header("authorization").unwrap_or_default().to_owned(),
    }
}

fn stands_at(place: &str, seen: &Seen) -> bool {
    at_place(place, seen).is_some_and(|value| value.contains(CANARY))
}

/// Where a field is posted, what others read of the host has neither the secret nor a body.
#[tokio::test]
async fn what_is_read_goes_without_a_posted_field() {
    let mock = Mock::start(HashMap::new()).await;
    let names = ["google-oauth", "apple-sign-in"];
    let policy: String = names
        .iter()
        .map(|name| provider(name, name, &Value::Null, "{ secret: \"file:{dir}/secret\" }", ""))
        .collect();
    let proxy = mock.proxy(&policy).await;
    for name in names {
        let got = ask(&proxy, "GET", name, "/keys?client_secret=app", name, "", "").await;
        let seen = mock.seen(name).pop().unwrap();
        assert_eq!(
            (got.status, seen.body.len(), seen.uri.to_string()),
            (200, 0, "/keys".to_owned()),
            "{name}"
        );
        assert!(!format!("{seen:?}").contains(CANARY), "{seen:?}");
    }
}

/// The token of one API goes to no other that shares its host, unless the policy names the path.
#[tokio::test]
async fn a_token_stays_at_its_api() {
    let mock = Mock::start(HashMap::new()).await;
    let fact = Value::Null;
    let key = "{ api_key: \"file:{dir}/secret\" }";
    let all = "    routes: [{ match: {}, retry: off }]\n";
    let named = "    routes: [{ match: { path: \"/drive/**\" }, retry: off }]\n";
    let policy = provider("plain", "google-calendar", &fact, key, "")
        + &provider("all", "google-calendar", &fact, key, all)
        + &provider("named", "google-calendar", &fact, key, named);
    let proxy = mock.proxy(&policy).await;
    for (name, path, status) in [
        ("plain", "/calendar/v3/calendars/primary/events", 200),
        ("plain", "/drive/v3/files", 403),
        ("plain", "/calendar/../drive/v3/files", 400),
        ("all", "/calendar/v3/users/me/calendarList", 200),
        ("all", "/drive/v3/files", 403),
        ("named", "/drive/v3/files", 200),
        ("named", "/storage/v1/b", 403),
    ] {
        let got = ask(&proxy, "GET", name, path, path, "", "").await;
        assert_eq!(got.status, status, "{name} {path}: {got:?}");
    }
}

/// A key makes a repetition of what may have acted safe, in a header or in the body, the app's own or one that outgate adds.
/// Without one nothing is repeated.
#[tokio::test]
async fn keys_make_a_repetition_safe_and_nothing_else_does() {
    let quick = "    retry: { backoff: { base: 1ms, max: 1ms } }\n    quota: off\n    limits: off\n";
    let down = || Case { status: 503, ..Case::default() };
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        policy.push_str(&provider(&preset, &preset, &fact, "none", if is_low(&fact) { "" } else { quick }));
        for case in ["with", "without"] {
            cases.insert(format!("{preset}-{case}"), down());
        }
        for path in list(&fact["key"], "elsewhere") {
            cases.insert(format!("{preset}-{path}"), down());
        }
        asks.push((preset, fact));
    }
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (preset, fact) in &asks {
        let key = &fact["key"];
        let path = key["path"].as_str().unwrap_or(path_of(fact, &Value::Null));
        let header = key["header"].as_str();
        let (lines, body) = match (header, &key["body"]) {
            (Some(header), _) => (format!("{header}: own-key\r\n"), "{}".to_owned()),
            (None, Value::Null) => (String::new(), "{}".to_owned()),
            (None, body) => (String::new(), body.to_string()),
        };
        let lines = format!("content-type: application/json\r\n{lines}");
        let (one, other) = (format!("{preset}-with"), format!("{preset}-without"));
        ask(&proxy, "POST", preset, path, &one, &lines, &body).await;
        let bare = if key["bare"].is_null() { "{}".to_owned() } else { key["bare"].to_string() };
        ask(&proxy, "POST", preset, path, &other, "content-type: application/json\r\n", &bare).await;
        // Where the provider honours none, none is written.
        let nowhere = format!("{preset}-nowhere");
        ask(&proxy, "POST", preset, "/x", &nowhere, "content-type: application/json\r\n", &bare).await;
        let whole = mock.seen(&nowhere).iter().all(|seen| seen.body == bare);
        assert!(header.is_some() || whole, "{preset} elsewhere");
        // Where the provider does not know keys, one changes nothing, and none is added.
        for path in list(key, "elsewhere") {
            let case = format!("{preset}-{path}");
            ask(&proxy, "POST", preset, path, &case, &lines, &body).await;
            assert_eq!(mock.seen(&case).len(), 1, "{preset} {path}");
        }
        let (one, other) = (mock.seen(&one), mock.seen(&other));
        let added = key["added"] == true;
        assert_eq!(one.len(), if key.is_object() { 2 } else { 1 }, "{preset} with a key");
        assert_eq!(other.len(), if added { 2 } else { 1 }, "{preset} without a key");
        if let Some(header) = header {
            assert!(one.iter().all(|seen| seen.header(header) == Some("own-key")), "{preset}");
            let made: BTreeSet<Option<&str>> = other.iter().map(|seen| seen.header(header)).collect();
            assert_eq!(made.len(), 1, "{preset}: the same on each attempt");
            assert_eq!(made.first().unwrap().is_some(), added, "{preset}");
        } else {
            assert!(one.iter().all(|seen| seen.body == body), "{preset}: the app's own stays");
            assert!(
                other.iter().all(|seen| seen.body == other[0].body),
                "{preset}: the same on each attempt"
            );
            assert_eq!(other[0].body != bare, added, "{preset}");
        }
    }
}

/// The provider's own word on repetitions is obeyed, and is sent to the app where outgate gives up on what may have acted.
#[tokio::test]
async fn hints_work_both_ways() {
    // What a policy would repeat by itself; method, status and the provider's word; how often it is sent.
    let quick = "    retry: { backoff: { base: 1ms, max: 1ms } }\n    quota: off\n    limits: off\n";
    let narrow = quick.replace("retry: { ", "retry: { on: [connect], ");
    let narrow = narrow.as_str();
    let rows = [
        // Its no, also after a refusal that did nothing.
        (quick, "GET", 500, Some("false"), 1),
        (quick, "GET", 429, Some("false"), 1),
        (quick, "POST", 429, Some("false"), 1),
        (quick, "POST", 429, None, 2),
        (quick, "GET", 500, None, 2),
        // What is not on the policy's list, or what the table calls final, is sent again where the provider asks for it.
        (narrow, "GET", 500, Some("true"), 2),
        (narrow, "GET", 500, None, 1),
        (quick, "GET", 422, Some("true"), 2),
        (quick, "GET", 422, None, 1),
        // What may have acted is not.
        (quick, "POST", 500, Some("true"), 1),
        (quick, "POST", 422, Some("true"), 1),
    ];
    let (mut policy, mut cases, mut asks) = (String::new(), HashMap::new(), Vec::new());
    for (preset, fact) in facts() {
        let Some(hint) = fact["hint"].as_str() else { continue };
        for (number, (keys, method, status, word, attempts)) in rows.into_iter().enumerate() {
            let name = format!("{preset}-{number}");
            policy.push_str(&provider(&name, &preset, &fact, "none", keys));
            let headers = word.map(|word| (hint.to_owned(), word.to_owned())).into_iter().collect();
            // A 429 without this is a lock of Stripe's, and a conflict.
            let reason = ("Stripe-Rate-Limited-Reason".to_owned(), "global-rate".to_owned());
            let headers = [headers, vec![reason]].concat();
            cases.insert(name.clone(), Case { status, headers, ..Case::default() });
            asks.push((name, hint.to_owned(), method, status, word, attempts));
        }
    }
    assert_eq!(asks.len(), 4 * rows.len());
    let mock = Mock::start(cases).await;
    let proxy = mock.proxy(&policy).await;
    for (name, hint, method, status, word, attempts) in &asks {
        let got = ask(&proxy, method, name, "/x", name, "", "{}").await;
        let expected = if *attempts == 2 { 200 } else { *status };
        assert_eq!(
            (got.status, mock.seen(name).len()),
            (expected, *attempts),
            "{name} {method} {status} {word:?}"
        );
        // The app's own SDK shall not do what outgate refused to.
        if *method == "POST" && *status != 429 {
            assert_eq!(got.header(hint), Some("false"), "{name}");
        }
    }
}
