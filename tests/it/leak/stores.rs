//! Every store: what it logs in with, what it gets for that, and what it gives, where all goes well and where it does not.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::super::program::outgate;
use super::super::support::origin::RawOrigin;
use super::super::world::answering;
use super::rows::{Out, Row, as_program, code_of, in_process};
use super::{hostile, script};

/// What stores log in with, what they get for it, and what they give.
const LOGIN: &str = "gL3nQ9xZ5vB7mK1pT4rW6yH8";
pub const TOKEN: &str = "sT8kD2fJ6hG0lN4bV7cX1zM5";
const VALUE: &str = "vA5uE9iO1pL3kJ7hG2fD6sQ4";

/// Every server of secrets in one. The first segment of the path says how it behaves; whatever it is, it repeats what it was
/// sent and what it would give wherever there is room.
pub fn hostile_store(request: &str) -> Option<Vec<u8>> {
    let path = request.split(' ').nth(1)?;
    let behaves = path.split('/').nth(1)?.split('?').next()?;
    let refusal = format!(
        "{{\"errors\":[{:?}],\"__type\":\"{VALUE}\",\"message\":\"{TOKEN}\"}}",
        format!("{VALUE} {request}")
    );
    let answer = |status: u16, body: &str| {
        let length = body.len();
        Some(
            format!(
                "HTTP/1.1 {status} {TOKEN}\r\nX-Echo: {VALUE}\r\nLocation: /{TOKEN}\r\nWWW-Authenticate: Bearer {VALUE}\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .into_bytes(),
        )
    };
    if let Some(login) = login(path, request) {
        return if behaves == "login" { answer(403, &refusal) } else { answer(200, &login) };
    }
    match behaves {
        "good" => answer(200, &value(path, request, VALUE)),
        "bad" => answer(200, &value(path, request, &format!("{VALUE}\nX-Injected: 1"))),
        "login" => answer(
            401,
            &refusal.replace(&format!("\"__type\":\"{VALUE}"), "\"__type\":\"ExpiredTokenException"),
        ),
        "odd" => answer(
            200,
            &format!(
                "{{\"data\":[\"{VALUE}\"],\"payload\":\"{VALUE}\",\"value\":[\"{VALUE}\"],\"Parameter\":\"{VALUE}\",\"SecretString\":[\"{VALUE}\"]}}"
            ),
        ),
        "text" => answer(200, VALUE),
        "moved" => answer(307, &refusal),
        "broken" => answer(500, &refusal),
        "garbage" => Some(format!("{VALUE} {request}\r\n\r\n").into_bytes()),
        _ => answer(403, &refusal),
    }
}

/// What a login gives, where the request is one.
pub fn login(path: &str, request: &str) -> Option<String> {
    const END: &str = "2100-01-01T00:00:00Z";
    if path.ends_with("/login") {
        return Some(format!(
            "{{\"auth\":{{\"client_token\":\"{TOKEN}\",\"lease_duration\":3600}},\"echo\":\"{VALUE}\"}}"
        ));
    }
    // The session of IMDSv2, then the name of the role, then its keys.
    if path.ends_with("/latest/api/token") {
        return Some(TOKEN.to_owned());
    }
    if path.ends_with("/security-credentials/") {
        return Some("a-role".to_owned());
    }
    if path.ends_with("/container") || path.ends_with("/security-credentials/a-role") {
        return Some(format!(
            "{{\"AccessKeyId\":\"AKIDEXAMPLE\",\"SecretAccessKey\":\"{TOKEN}\",\"Token\":\"{TOKEN}\",\"Expiration\":\"{END}\"}}"
        ));
    }
    if request.contains("Action=AssumeRoleWithWebIdentity") {
        return Some(format!(
            "<R><AccessKeyId>AKIDEXAMPLE</AccessKeyId><SecretAccessKey>{TOKEN}</SecretAccessKey><SessionToken>{TOKEN}</SessionToken><Expiration>{END}</Expiration></R>"
        ));
    }
    let token = path.contains("/oauth2/") || path.contains("/computeMetadata/");
    token.then(|| format!("{{\"access_token\":\"{TOKEN}\",\"expires_in\":3600,\"echo\":\"{VALUE}\"}}"))
}

/// A value as the API that is asked gives it.
pub fn value(path: &str, request: &str, text: &str) -> String {
    let encoded = STANDARD.encode(text);
    let document = if path.contains(":access") {
        json!({ "payload": { "data": encoded } })
    } else if path.contains("/api/v1/namespaces/") {
        json!({ "data": { "key": encoded } })
    } else if path.contains("/v1/kv/") {
        json!({ "data": { "key": text } })
    } else if request.contains("AmazonSSM.GetParameter") {
        json!({ "Parameter": { "Value": text } })
    } else if request.contains("secretsmanager.GetSecretValue") {
        json!({ "SecretString": text })
    } else {
        json!({ "value": text })
    };
    document.to_string()
}

/// A kind of store, how it is written, its reference, and its ways of failing.
type Server = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

/// The stores behind HTTP: each with how it is written (`{url}` stands for the server), its reference, and its ways of failing
/// with the code of each. Those that differ in their login alone fail in that alone.
pub const SERVERS: [Server; 14] = [
    (
        "vault",
        "{ vault: { address: \"{url}\", kv: 1, auth: { app_role: { role_id: r, secret_id: \"file:{dir}/login\" } } } }",
        "kv/x#key",
        &ALL,
    ),
    (
        "vault",
        "{ vault: { address: \"{url}\", kv: 1, auth: { jwt: { role: r, token_file: \"{dir}/login\" } } } }",
        "kv/x#key",
        &LOGINS,
    ),
    (
        "vault",
        "{ vault: { address: \"{url}\", kv: 1, auth: { kubernetes: { role: r, token_file: \"{dir}/login\" } } } }",
        "kv/x#key",
        &LOGINS,
    ),
    (
        "vault",
        "{ vault: { address: \"{url}\", kv: 1, auth: { token: \"file:{dir}/login\" } } }",
        "kv/x#key",
        &[],
    ),
    ("kubernetes", "{ kubernetes: { address: \"{url}\", token_file: \"{dir}/login\" } }", "n/x#key", &ALL),
    (
        "gcp_secret_manager",
        "{ gcp_secret_manager: { address: \"{url}\", metadata: \"{url}\" } }",
        "p/x",
        &ALL,
    ),
    (
        "azure_key_vault",
        "{ azure_key_vault: { address: \"{url}\", authority: \"{url}\", auth: { client_secret: { tenant: t, client_id: c, client_secret: \"file:{dir}/login\" } } } }",
        "x",
        &ALL,
    ),
    (
        "azure_key_vault",
        "{ azure_key_vault: { address: \"{url}\", authority: \"{url}\", auth: { workload_identity: { tenant: t, client_id: c, token_file: \"{dir}/login\" } } } }",
        "x",
        &LOGINS,
    ),
    (
        "azure_key_vault",
        "{ azure_key_vault: { address: \"{url}\", metadata: \"{url}\", auth: { managed_identity: {} } } }",
        "x",
        &LOGINS,
    ),
    (
        "aws_secrets_manager",
        "{ aws_secrets_manager: { region: x, address: \"{url}\", credentials: { access_key_id: \"file:{dir}/login\", secret_access_key: \"file:{dir}/login\", session_token: \"file:{dir}/login\" } } }",
        "x",
        &ALL,
    ),
    (
        "aws_secrets_manager",
        "{ aws_secrets_manager: { region: x, api: parameter_store, address: \"{url}\", auth: { profile: { file: \"{dir}/profile\" } } } }",
        "x",
        &ALL,
    ),
    (
        "aws_secrets_manager",
        "{ aws_secrets_manager: { region: x, address: \"{url}\", auth: { web_identity: { role_arn: r, token_file: \"{dir}/login\", endpoint: \"{url}\" } } } }",
        "x",
        &LOGINS,
    ),
    (
        "aws_secrets_manager",
        "{ aws_secrets_manager: { region: x, address: \"{url}\", auth: { container: { endpoint: \"{url}/container\", token_file: \"{dir}/login\" } } } }",
        "x",
        &LOGINS,
    ),
    (
        "aws_secrets_manager",
        "{ aws_secrets_manager: { region: x, address: \"{url}\", auth: { instance: { endpoint: \"{url}\" } } } }",
        "x",
        &LOGINS,
    ),
];

const LOGINS: [(&str, &str); 1] = [("login", "store_login")];
const ALL: [(&str, &str); 8] = [
    ("login", "store_login"),
    ("denied", "store_denied"),
    ("moved", "store_status"),
    ("broken", "store_status"),
    ("odd", "store_garbled"),
    ("text", "store_garbled"),
    ("bad", "malformed"),
    ("garbage", "store_unreachable"),
];

/// What the test expects of a store that does not fail as the others do.
const OTHERWISE: [(&str, &str, &str); 1] = [
    // It has no login: what is refused is the value.
    ("kubernetes", "login", "store_denied"),
];

/// Those that are not asked over HTTP: how it is written, and the code; none where it is good.
fn beside(program: bool) -> Vec<(&'static str, String, &'static str, Option<&'static str>)> {
    let exec = |program: &str| format!("{{ exec: {{ command: [{program}] }} }}");
    let sealed = |file: &str, key: &str| {
        format!("{{ sealed: {{ file: \"{{dir}}/{file}\", key: \"file:{{dir}}/{key}\" }} }}")
    };
    let env = program.then_some(("env", String::new(), "env:SECRET", None));
    let rows = [
        ("env", String::new(), "env:OUTGATE_NOWHERE", Some("")),
        ("file", String::new(), "file:{dir}/value", None),
        ("file", String::new(), "file:{dir}/json#a.b", None),
        ("file", String::new(), "file:{dir}/json#a.c", Some("")),
        ("file", String::new(), "file:{dir}/lines", Some("")),
        ("exec", exec("/bin/cat, \"{dir}/value\", \"{path}\""), "{store}:/dev/null", None),
        ("exec", exec("/bin/cat, \"{dir}/value\", \"{path}\""), "{store}:/nowhere", Some("exec_exit")),
        (
            "exec",
            exec("/bin/cat, \"{dir}/value\", \"{dir}/lines\", \"{path}\""),
            "{store}:/dev/null",
            Some("malformed"),
        ),
        ("exec", exec("\"{dir}/value\""), "{store}:x", Some("exec_not_started")),
        ("sealed", sealed("s.yaml", "key"), "{store}:a", None),
        ("sealed", sealed("s.yaml", "other"), "{store}:a", Some("sealed_unopened")),
        ("sealed", sealed("s.yaml", "login"), "{store}:a", Some("sealed_key")),
        ("sealed", sealed("open.yaml", "key"), "{store}:a", Some("sealed_file")),
    ];
    env.into_iter().chain(rows).collect()
}

fn rows(url: &str, origin: &str, program: bool) -> Vec<Row> {
    let upstream = format!("{{ scheme: http, connect_to: \"{origin}\", plaintext_credential: allow }}");
    let row = |of, store, reference: &str, code| Row {
        of,
        credential: format!("{{ bearer: \"{reference}\" }}"),
        store,
        upstream: upstream.clone(),
        lines: "",
        code,
    };
    let mut rows = Vec::new();
    for (of, store, path, fails) in SERVERS {
        let mut add = |behaves: &str, code| {
            let store = store.replace("{url}", &format!("{url}/{behaves}"));
            rows.push(row(of, store, &format!("{{store}}:{path}"), code));
        };
        add("good", None);
        for (behaves, code) in fails {
            let otherwise = OTHERWISE.iter().find(|(other, way, _)| *other == of && way == behaves);
            add(behaves, Some(otherwise.map_or(*code, |(_, _, code)| *code)));
        }
    }
    rows.extend(
        beside(program).into_iter().map(|(of, store, reference, code)| row(of, store, reference, code)),
    );
    rows
}

/// Runs `outgate seal`.
fn seal(dir: &Path, arguments: &[&str], value: &str) -> Vec<u8> {
    let mut command = outgate(&[&["seal"], arguments].concat());
    command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// The files of a run; gives the key of the sealed store.
fn files(dir: &Path) -> String {
    for (name, text) in [
        ("login", LOGIN.to_owned()),
        ("value", VALUE.to_owned()),
        ("lines", format!("{VALUE}\nX: {VALUE}")),
        ("json", format!("{{\"a\":{{\"b\":\"{VALUE}\"}}}}")),
        ("open.yaml", format!("a: {VALUE}\n")),
        ("profile", format!("[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = {LOGIN}\n")),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let key = seal(dir, &["--new-key"], "");
    std::fs::write(dir.join("key"), &key).unwrap();
    std::fs::write(dir.join("other"), seal(dir, &["--new-key"], "")).unwrap();
    seal(dir, &["--store", "s.yaml", "--key", "file:key", "a"], VALUE);
    String::from_utf8(key).unwrap().trim().to_owned()
}

/// The kinds of stores that a policy can name.
fn known() -> Vec<String> {
    let schema = serde_json::to_value(schemars::schema_for!(outgate::secret::StoreConfig)).unwrap();
    let kinds = schema["oneOf"].as_array().expect("one of several").iter();
    let kinds = kinds.map(|kind| kind["required"][0].as_str().unwrap().to_owned());
    kinds.chain(["env".to_owned(), "file".to_owned()]).collect()
}

async fn run(program: bool) -> Vec<Row> {
    let server = RawOrigin::start(None, answering(hostile_store)).await;
    let origin = RawOrigin::start(None, script()).await;
    let dir = tempfile::tempdir().unwrap();
    let key = files(dir.path());
    let rows = rows(&format!("http://{}", server.address), &origin.address.to_string(), program);
    let out: Out = if program {
        as_program(&rows, dir.path(), &[("SECRET", VALUE)]).await
    } else {
        in_process(&rows, dir.path()).await
    };
    let told = rows.iter().enumerate().map(|(number, row)| (row, code_of(&out.status, number)));
    let told = told.filter(|(row, code)| !row.store.is_empty() && *code != row.code);
    let wrong: Vec<String> = told.map(|(row, code)| format!("{} {} {code:?}", row.of, row.store)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The canaries were alive.
    assert!(origin.text().contains(VALUE) && hostile(&origin.text()).is_some());
    assert!(server.text().contains(LOGIN) && server.text().contains(TOKEN));
    out.assert_without(&[LOGIN, TOKEN, VALUE, &key]);
    rows
}

#[tokio::test]
async fn no_store_leaks_what_it_logs_in_with_or_what_it_gives() {
    run(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_any_store_of_the_program() {
    let rows = run(true).await;
    for kind in known() {
        let has = |good: bool| rows.iter().any(|row| row.of == kind && row.code.is_none() == good);
        assert!(has(true) && has(false), "`{kind}` has no row that is good, or none that is not");
    }
}
