//! What people read of a policy: its mistakes, its explanation, its schema, its reference; and every YAML of the repository.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use outgate::pipeline::reload::read;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    assert!(!files.is_empty(), "{}", directory.display());
    files
}

/// Runs the program and gives what it printed and its exit code. Relative to the repository, so that paths are stable.
fn outgate(arguments: &[&str]) -> (String, i32) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (text, output.status.code().unwrap())
}

#[test]
fn every_mistake_is_told_with_its_place_and_all_at_once() {
    for file in yaml_files(&root().join("tests/fixtures/policy/err")) {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let relative = format!("tests/fixtures/policy/err/{name}.yaml");
        let (text, code) = outgate(&["check", "-c", &relative]);
        assert_eq!(code, 3, "{name}");
        assert!(
            !text.contains("sk_live_") && !text.contains("hunter2"),
            "a literal secret is never repeated:\n{text}"
        );
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn good_policies_compile() {
    for file in yaml_files(&root().join("tests/fixtures/policy/ok")) {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let (text, code) = outgate(&["check", "-c", &format!("tests/fixtures/policy/ok/{name}.yaml")]);
        assert_eq!(code, 0, "{text}");
        insta::assert_snapshot!(format!("ok-{name}"), text);
    }
}

#[test]
fn every_policy_that_the_repository_shows_compiles() {
    let mut files = vec![root().join("proxy.yaml")];
    for entry in std::fs::read_dir(root().join("examples")).unwrap() {
        let directory = entry.unwrap().path();
        assert!(directory.join("README.md").exists(), "{} has no README", directory.display());
        files.push(directory.join("proxy.yaml"));
    }
    assert!(files.len() > 5);
    for file in files {
        if let Err(rejection) = read(&file) {
            panic!("{}", rejection.render(false));
        }
    }
}

/// Policies inside the documents are policies too.
#[test]
fn every_policy_in_the_documents_compiles() {
    let directory = tempfile::tempdir().unwrap();
    let mut found = 0;
    let documents = [
        "README.md",
        "docs/clients.md",
        "docs/threats.md",
        "docs/operations.md",
        "docs/layers.md",
        "docs/credentials.md",
        "docs/stores.md",
        "docs/presets.md",
    ];
    for document in documents {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            if !block.contains("version: 1") {
                continue;
            }
            found += 1;
            let file = directory.path().join(format!("{found}.yaml"));
            std::fs::write(&file, block).unwrap();
            if let Err(rejection) = read(&file) {
                panic!("{document}: {}", rejection.render(false));
            }
        }
    }
    assert!(found > 0, "the README shows a whole policy");
}

/// `make generate` rewrites the page; a test only says that it is old.
#[test]
fn the_reference_is_current() {
    let page = root().join("docs/configuration.md");
    let now = outgate::policy::reference::markdown();
    if std::env::var_os("OUTGATE_GENERATE").is_some() {
        std::fs::write(&page, &now).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(written == now, "docs/configuration.md is old: run `make generate`");
}

/// The same for the list of providers. What stands behind the mark is written by the client tests, and stays.
#[test]
fn the_list_of_providers_is_current() {
    const MEASURED: &str = "\n<!-- clients: begin -->";
    let page = root().join("docs/providers.md");
    let whole = std::fs::read_to_string(&page).unwrap_or_default();
    let (written, measured) = whole.split_at(whole.find(MEASURED).unwrap_or(whole.len()));
    let now = outgate::policy::preset::catalogue::markdown();
    if std::env::var_os("OUTGATE_GENERATE").is_some() {
        std::fs::write(&page, format!("{now}{measured}")).unwrap();
    } else {
        assert!(written == now, "docs/providers.md is old: run `make generate`");
    }
    assert!(
        !measured.is_empty(),
        "docs/providers.md says how the clients work: `UPDATE=1 tests/clients/run.sh`"
    );
}

/// What a client needs is told once: by the tests that run it, or else by the preset.
#[test]
fn clients_that_are_run_are_told_of_by_what_they_need_there() {
    let text = std::fs::read_to_string(root().join("tests/clients/providers/clients.yaml")).unwrap();
    let clients: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    let of = |client: &serde_json::Value, key: &str| client[key].as_str().unwrap().to_owned();
    let run: BTreeSet<_> = clients
        .as_object()
        .unwrap()
        .values()
        .map(|client| (of(client, "provider"), of(client, "language")))
        .collect();
    let told: BTreeSet<_> = outgate::policy::preset::names()
        .flat_map(|name| {
            let clients = outgate::policy::preset::Preset::named(name).unwrap().header.clients;
            let measured =
                clients.into_iter().filter(|(_, how)| how == outgate::policy::preset::header::MEASURED);
            measured.map(|(language, _)| (name.to_owned(), language)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(run, told);
}

/// Twenty providers in as many lines as a person reads.
#[test]
fn twenty_providers_are_a_short_policy() {
    let file = root().join("examples/twenty-providers/proxy.yaml");
    let policy = read(&file).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)));
    assert!(policy.providers.len() >= 20 && policy.warnings.is_empty(), "{:?}", policy.warnings);
    assert!(std::fs::read_to_string(&file).unwrap().lines().count() < 120);
}

#[test]
fn presets_are_listed_and_shown() {
    let (list, code) = outgate(&["presets"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("presets-list", list);
    let (shown, code) = outgate(&["presets", "show", "stripe"]);
    assert_eq!((code, shown), (0, std::fs::read_to_string(root().join("presets/stripe.yaml")).unwrap()));
    let (text, code) = outgate(&["presets", "show", "strip"]);
    assert!(code == 1 && text.contains("did you mean `stripe`?"), "{text}");
}

/// Every value with its source: the preset, the defaults, or a line of the file.
#[test]
fn explain_says_what_a_preset_gives() {
    let policy = "tests/fixtures/policy/ok/presets.yaml";
    for (name, arguments) in [
        ("stripe", &["POST", "https://api.stripe.com/v1/charges"][..]),
        ("stripe-files", &["GET", "https://files.stripe.com/v1/files/f_1"]),
        ("zendesk", &["GET", "https://acme.zendesk.com/api/v2/tickets"]),
        ("datadog", &["GET", "https://api.datadoghq.com/api/v1/query"]),
        ("datadog-events", &["POST", "https://api.datadoghq.com/api/v1/events"]),
        ("datadog-json", &["--json", "POST", "https://api.datadoghq.com/api/v1/events"]),
    ] {
        let (text, code) = outgate(&[&["explain", "-c", policy][..], arguments].concat());
        assert_eq!(code, 0, "{text}");
        insta::assert_snapshot!(format!("explain-preset-{name}"), text);
    }
}

/// What `off` took away is off, with the line that says so; what stays of a preset beside it keeps its own source.
#[test]
fn explain_says_what_is_off_and_who_says_so() {
    let policy = "tests/fixtures/policy/ok/off.yaml";
    for (name, arguments) in [
        ("github", &["GET", "https://api.github.com/user"][..]),
        ("stripe", &["POST", "https://api.stripe.com/v1/charges"]),
        ("stripe-route", &["POST", "https://api.stripe.com/v1/refunds"]),
        ("openai-route", &["POST", "https://api.openai.com/v1/chat/completions"]),
    ] {
        let (text, code) = outgate(&[&["explain", "-c", policy][..], arguments].concat());
        assert_eq!(code, 0, "{text}");
        insta::assert_snapshot!(format!("explain-off-{name}"), text);
    }
}

#[test]
fn the_schema_says_what_the_types_say() {
    let schema = outgate::policy::reference::schema();
    insta::assert_snapshot!("schema", format!("{schema:#}"));
}

#[test]
fn explain_says_what_happens_and_which_line_decides() {
    let policy = "tests/fixtures/policy/ok/everything.yaml";
    for (name, arguments, code) in [
        (
            "allowed",
            &["GET", "https://api.stripe.com/v1/charges?limit=3", "--header", "Authorization: Bearer app"][..],
            0,
        ),
        ("route", &["PUT", "https://files.stripe.com/v1/files/f_1"], 0),
        ("denied-by-route", &["POST", "https://api.stripe.com/v1/refunds/re_1"], 4),
        ("unmatched-host", &["GET", "https://evil.example.com/"], 0),
        ("no-provider", &["GET", "http://evil.example.com/"], 4),
        ("own-name", &["GET", "http://127.0.0.1:3128/stripe/v1/charges"], 0),
        ("local-name", &["GET", "http://stripe.localhost:3128/v1/charges"], 0),
        ("wrong-port", &["GET", "https://api.stripe.com:8443/"], 4),
        ("ambiguous-path", &["GET", "https://api.stripe.com/v1/../admin"], 4),
        ("trace", &["TRACE", "https://api.stripe.com/"], 4),
        ("local", &["GET", "/stripe/eu/v1/charges"], 0),
        ("local-host", &["GET", "/stripe@files.stripe.com/v1/files"], 0),
        ("connect-intercepted", &["CONNECT", "api.stripe.com:443"], 0),
        ("connect-blind", &["CONNECT", "updates.example.com:443"], 0),
        ("connect-unmatched", &["CONNECT", "elsewhere.example.com:443"], 0),
        ("connect-port", &["CONNECT", "elsewhere.example.com:25"], 4),
        ("json", &["GET", "https://api.rates.example/latest", "--json"], 0),
    ] {
        let arguments = [&["explain", "-c", policy][..], arguments].concat();
        let (text, got) = outgate(&arguments);
        assert_eq!(got, code, "{name}: {text}");
        insta::assert_snapshot!(format!("explain-{name}"), text);
    }
}

/// A provider in shadow mode says it for all of its layers; and what holds of a shared limit while Redis is away.
#[test]
fn explain_says_what_is_in_shadow_and_what_is_shared() {
    let directory = tempfile::tempdir().unwrap();
    let policy = directory.path().join("proxy.yaml");
    std::fs::write(
        &policy,
        "version: 1
fleet: { redis: { url: \"env:REDIS_URL\" }, assume_pods: 4 }
providers:
  api:
    hosts: [api.example.test]
    mode: shadow
    credential: none
    limits:
      - { name: shared, rate: 200/s, scope: fleet }
      - { name: own, rate: 10/s, mode: shadow }
    breaker: { failures: 3 }
    concurrency: { max: 4 }
",
    )
    .unwrap();
    let (text, code) =
        outgate(&["explain", "-c", policy.to_str().unwrap(), "GET", "https://api.example.test/x"]);
    assert_eq!(code, 0, "{text}");
    let text = text.replace(directory.path().to_str().unwrap(), "<dir>");
    insta::assert_snapshot!("explain-shadow-fleet", text);
}

#[test]
fn check_lists_what_widens_access() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (directory.path().join("old.yaml"), directory.path().join("new.yaml"));
    std::fs::write(
        &old,
        "version: 1\nproviders:\n  a:\n    hosts: [a.example.com]\n    credential: { bearer: env:A }\n    routes: [{ match: { path: \"/admin/**\" }, deny: \"no\" }]\n",
    )
    .unwrap();
    std::fs::write(
        &new,
        "version: 1\nunmatched: tunnel\naddresses: { allow_private: [10.0.0.0/8] }\nproviders:\n  a:\n    hosts: [a.example.com, b.example.com]\n    credential: { bearer: env:B }\n  c: { hosts: [c.example.com] }\n",
    )
    .unwrap();
    let (text, code) = outgate(&["check", "-c", new.to_str().unwrap(), "--against", old.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    let wider: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("wider: ")).collect();
    insta::assert_snapshot!("widenings", wider.join("\n"));
    let (text, _) = outgate(&["check", "-c", old.to_str().unwrap(), "--against", old.to_str().unwrap()]);
    assert!(text.contains("no change widens access"), "{text}");
}

#[test]
fn what_collides_or_does_nothing_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.yaml");
    let check = |text: &str| {
        std::fs::write(&path, format!("version: 1\n{text}")).unwrap();
        outgate(&["check", "-c", path.to_str().unwrap()])
    };
    let provider =
        "providers: { a: { hosts: [a.example.com], opaque: true, credential: { bearer: env:A } } }\n";
    let (text, code) = check(provider);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("providers.a.opaque: does nothing"), "{text}");
    for (health, told) in [
        ("127.0.0.1:9901", Some("127.0.0.1:9901 is used twice")),
        ("127.0.0.1:3128", Some("127.0.0.1:3128 is used twice")),
        ("0.0.0.0:3128", Some("cannot both be listened on")),
        ("0.0.0.0:9902", None),
    ] {
        let (text, code) = check(&format!("admin: {{ health_address: \"{health}\" }}\n"));
        assert_eq!(
            (code == 0, told.is_none_or(|told| text.contains(told))),
            (told.is_none(), true),
            "{health}: {text}"
        );
    }
}

/// `explain` asks what the proxy asks: a loopback name is outgate itself only with a listener's port, and an address that is not
/// dialled is not said to be reached.
#[test]
fn explain_knows_outgate_itself_from_a_provider_on_loopback() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.yaml");
    std::fs::write(
        &path,
        r#"version: 1
addresses: { allow_private: [127.0.0.0/8, 10.0.0.0/8] }
providers:
  dev:
    hosts: ["127.0.0.1:18080", "localhost:18080"]
    upstream: { scheme: http }
    routes: [{ match: { path: "/dev/**" }, deny: "not here" }]
  own: { hosts: [own.example.com], upstream: { connect_to: "127.0.0.1:9901" } }
  metadata: { hosts: [169.254.169.254], upstream: { scheme: http } }
  private: { hosts: [192.168.7.7, 10.1.2.3] }
"#,
    )
    .unwrap();
    for (url, code, told) in [
        ("http://127.0.0.1:18080/x", 0, "127.0.0.1:18080/x"),
        ("http://localhost:18080/x", 0, "localhost:18080/x"),
        ("http://127.0.0.1:18080/dev/x", 4, "not here"),
        ("http://127.0.0.1:3128/dev/x", 0, "127.0.0.1:18080/x"),
        ("http://localhost/dev/x", 0, "127.0.0.1:18080/x"),
        ("http://169.254.169.254/", 4, "169.254.169.254 is not a public address (metadata service)"),
        ("https://192.168.7.7/", 4, "192.168.7.7 is not a public address"),
        ("https://10.1.2.3/", 0, "allowed https://10.1.2.3/"),
        ("https://own.example.com/", 4, "127.0.0.1:9901 is one of outgate's own listeners"),
    ] {
        let (text, got) = outgate(&["explain", "-c", path.to_str().unwrap(), "GET", url]);
        assert_eq!(got, code, "{url}: {text}");
        assert!(text.contains(told), "{url}: {text}");
    }
    let (text, code) =
        outgate(&["explain", "-c", path.to_str().unwrap(), "GET", "/dev/x", "--header", "bad"]);
    assert!(code == 1 && text.contains("--header wants `Name: value`"), "{code}: {text}");
}

/// A key that stands twice, an anchor or a file that is no YAML hides nothing else.
#[test]
fn a_mistake_of_the_text_hides_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let check = || outgate(&["check", "-c", directory.path().to_str().unwrap()]);
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write(
        "a.yaml",
        "version: 1\nproviders:\n  a: { hosts: [], credential: { bearer: nonsense } }\n  b:\n    hosts: [\"*\", x.test, x.test]\n    retry: &r { atempts: 3 }\n  a: {}\n",
    );
    let (text, code) = check();
    assert_eq!(code, 3, "{text}");
    let text = text.replace(&format!("{}/", directory.path().display()), "");
    insta::assert_snapshot!("mistakes-of-text", text);

    // What the broken file may say is not missed; what the other one says is looked at.
    write("a.yaml", "version: 1\nproviders: [\n");
    write("b.yaml", "providers:\n  c: { hosts: [c.test], retries: 3, timeouts: { connect: soon } }\n");
    let (text, code) = check();
    assert_eq!(code, 3, "{text}");
    let text = text.replace(&format!("{}/", directory.path().display()), "");
    insta::assert_snapshot!("mistakes-beside-a-broken-file", text);
}

/// What the variables alone do not do is told beside them, where no shell reads it.
#[test]
fn env_says_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.yaml");
    let dir = directory.path().display();
    std::fs::write(
        &path,
        format!(
            "version: 1\nlisteners: [{{ address: \"127.0.0.1:3128\", auth: {{ token: env:T }} }}]\ninterception: {{ ca: {{ directory: \"{dir}/ca\" }}, bundle: \"{dir}/bundle.pem\" }}\n"
        ),
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let env = |format: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
            .args(["env", "-c", path, "--format", format])
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap().replace(&dir.to_string(), "DIR");
        (String::from_utf8(output.stdout).unwrap(), told)
    };
    let (written, told) = env("docker");
    assert!(written.lines().all(|line| line.starts_with("--env ")), "{written}");
    insta::assert_snapshot!("env-notes", told);
    let (text, code) = outgate(&["ca", "init", "-c", path]);
    assert_eq!(code, 0, "{text}");
    let (_, told) = env("shell");
    assert!(!told.contains("does not exist") && told.contains("token"), "{told}");
}

/// `outgate completions bash | head -1`.
#[test]
fn who_stops_reading_ends_a_command_quietly() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!told.contains("panicked") && output.status.code().is_some_and(|code| code < 2), "{told}");
}
