//! PC-01 to PC-14: a policy is taken whole or not at all, at start and at reload, and its mistakes are told.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use outgate::message::target::Host;
use outgate::pipeline::reload::{ReloadOutcome, read};
use outgate::policy::compiled::CompiledPolicy;

use super::after::{Bench, Setup, assert_covered};
use crate::support::client::Raw;

const NOT_YET: &[(&str, &str)] = &[];

/// The text of the mistakes of a policy, or nothing if it is taken.
fn mistakes(text: &[u8]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.yaml");
    std::fs::write(&path, text).unwrap();
    read(&path).err().map(|rejection| rejection.render(false))
}

fn compiled(text: &str) -> CompiledPolicy {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.yaml");
    std::fs::write(&path, text).unwrap();
    read(&path).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)))
}

/// The check refuses it, and says all of `says`.
fn check_refuses(text: &[u8], says: &[&str]) {
    let shown = String::from_utf8_lossy(&text[..text.len().min(300)]).into_owned();
    let told = mistakes(text).unwrap_or_else(|| panic!("taken: {shown}"));
    assert!(told.contains("proxy.yaml"), "the file is named: {told}");
    for part in says {
        assert!(told.contains(part), "`{part}` is not in:\n{told}\nof: {shown}");
    }
}

/// A start with it fails, without a signal (a stack overflow would be one).
fn start_refuses(text: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.yaml");
    std::fs::write(&path, text).unwrap();
    start_refuses_at(&path);
}

fn start_refuses_at(path: &Path) {
    let began = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["run", "--config"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = began + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it started");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(3), "exit code of a bad policy, and no signal");
}

/// A reload with it is refused and counted, the old policy goes on, and no request is lost meanwhile.
async fn reload_refuses(bench: &Bench, text: &[u8]) {
    let before = generation(bench);
    let counted = refusals(bench);
    let kept = std::fs::read(&bench.proxy.policy).unwrap();
    std::fs::write(&bench.proxy.policy, text).unwrap();
    reload_refused(bench, before, counted).await;
    std::fs::write(&bench.proxy.policy, kept).unwrap();
}

async fn reload_refused(bench: &Bench, before: u64, counted: u64) {
    let (outcome, good) = tokio::join!(bench.proxy.app.reload(), bench.good());
    assert!(matches!(outcome, ReloadOutcome::Refused(_)), "{outcome:?}");
    assert_eq!(good.status, 200);
    assert_eq!(generation(bench), before);
    assert!(refusals(bench) > counted, "the refusal is counted");
    bench.after(0, &[]).await;
}

fn generation(bench: &Bench) -> u64 {
    bench.proxy.app.reloader.current().load().number
}

fn refusals(bench: &Bench) -> u64 {
    let metrics = bench.proxy.metrics();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("outgate_policy_reloads_total") && line.contains("refused"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Check, start and reload refuse it.
async fn everything_refuses(text: &[u8], says: &[&str]) {
    check_refuses(text, says);
    start_refuses(text);
    let bench = Bench::start(Setup::default()).await;
    reload_refuses(&bench, text).await;
}

/// A policy with one provider that has these lines more (indented by four).
fn provider(lines: &str) -> String {
    format!("version: 1\nproviders:\n  open:\n    hosts: [open.example.test]\n{lines}\n")
}

#[tokio::test]
async fn pc_01_alias_bomb() {
    let mut bomb = String::from("version: 1\na: &a [x,x,x,x,x,x,x,x,x]\n");
    for (name, last) in ('b'..='i').zip('a'..='h') {
        bomb.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 9].join(",")));
    }
    bomb.push_str("providers: *i\n");
    let began = Instant::now();
    check_refuses(bomb.as_bytes(), &["proxy.yaml:2:"]);
    assert!(began.elapsed() < Duration::from_secs(1), "within a second");
    everything_refuses(bomb.as_bytes(), &[]).await;
    // One anchor, one alias, one merge key: none is taken.
    for text in [
        "version: 1\nproviders:\n  a: &a\n    hosts: [a.example.test]\n",
        "version: 1\nproviders:\n  a:\n    hosts: *b\n",
        "version: 1\nproviders:\n  a:\n    <<: { opaque: true }\n    hosts: [a.example.test]\n",
    ] {
        check_refuses(text.as_bytes(), &[]);
    }
}

/// 64 MiB of data, heap and stack are enough to refuse it; as they are to take a good one.
#[tokio::test]
async fn pc_01_alias_bomb_in_little_memory() {
    let mut bomb = String::from("version: 1\na: &a [x,x,x,x,x,x,x,x,x]\n");
    for (name, last) in ('b'..='i').zip('a'..='h') {
        bomb.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 9].join(",")));
    }
    let nested = format!("version: 1\nproviders: {}{}\n", "[".repeat(20_000), "]".repeat(20_000));
    let dir = tempfile::tempdir().unwrap();
    for (text, code) in [(bomb + "providers: *i\n", 3), (nested, 3), (provider(""), 0)] {
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, &text).unwrap();
        let script = format!(
            "ulimit -d 65536 && exec {} check --config {}",
            env!("CARGO_BIN_EXE_outgate"),
            path.display()
        );
        let got = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(got.status.code(), Some(code), "{}", String::from_utf8_lossy(&got.stderr));
    }
}

#[tokio::test]
async fn pc_02_deep_nesting() {
    let flow = format!("version: 1\nproviders: {}{}\n", "[".repeat(20_000), "]".repeat(20_000));
    everything_refuses(flow.as_bytes(), &[]).await;
    let maps = format!("version: 1\nproviders: {}{}\n", "{a: ".repeat(20_000), "}".repeat(20_000));
    check_refuses(maps.as_bytes(), &[]);
    let sequence = format!("version: 1\nproviders:\n  {}x\n", "- ".repeat(20_000));
    check_refuses(sequence.as_bytes(), &[]);
    let mut block = String::from("version: 1\n");
    for depth in 0..500 {
        block.push_str(&format!("{}a:\n", " ".repeat(depth)));
    }
    check_refuses(block.as_bytes(), &[]);
    start_refuses(sequence.as_bytes());
}

#[tokio::test]
async fn pc_03_same_key_twice() {
    let top = "version: 1\nunmatched: deny\nunmatched: tunnel\n";
    everything_refuses(top.as_bytes(), &["proxy.yaml:3:1", "unmatched"]).await;
    check_refuses(provider("    opaque: true\n    opaque: false").as_bytes(), &["proxy.yaml:6:5", "opaque"]);
    let twin = "version: 1\nproviders:\n  a: { hosts: [a.example.test] }\n  a: { hosts: [b.example.test] }\n";
    check_refuses(twin.as_bytes(), &["proxy.yaml:4:3"]);
    // The same key in another spelling of YAML.
    check_refuses(provider("    \"opaque\": true\n    opaque: false").as_bytes(), &["opaque"]);
}

#[tokio::test]
async fn pc_04_unknown_field() {
    let unknown = provider("    alow_methods: [GET]");
    everything_refuses(unknown.as_bytes(), &["alow_methods", "proxy.yaml:5:5"]).await;
    check_refuses(provider("    max_bdy: 1MiB").as_bytes(), &["max_bdy", "max_body"]);
    check_refuses(b"version: 1\nprovders: {}\n", &["provders", "providers"]);
    check_refuses(provider("    timeouts: { conect: 1s }").as_bytes(), &["conect", "connect"]);
}

#[tokio::test]
async fn pc_05_wrong_type_or_unit() {
    for (lines, says) in [
        ("    timeouts: { connect: 10 }", "connect"),
        ("    timeouts: { connect: -1s }", "connect"),
        ("    timeouts: { connect: 1.5e3 }", "connect"),
        ("    timeouts: { connect: 0s }", "connect"),
        ("    timeouts: { connect: 99999999999d }", "connect"),
        ("    limits: [{ name: a, rate: \"ten\" }]", "limits"),
        ("    max_body: 10", "max_body"),
        ("    max_body: -1MiB", "max_body"),
        ("    routes: [{ match: { methods: GET } }]", "methods"),
        ("    routes: [{ match: { methods: [get] } }]", "methods"),
        ("    routes: { match: {} }", "routes"),
        ("    opaque: yes", "opaque"),
        ("    opaque: 1", "opaque"),
        ("    intercept: maybe", "intercept"),
    ] {
        check_refuses(provider(lines).as_bytes(), &[says, "proxy.yaml:5:"]);
    }
    for hosts in ["a.example.test", "[\"a.example.test:70000\"]", "[443]", "[]", "{}", "[null]", "~"] {
        let text = format!("version: 1\nproviders:\n  a:\n    hosts: {hosts}\n");
        check_refuses(text.as_bytes(), &["hosts"]);
    }
    for version in ["2", "\"1\"", "1.0", "-1"] {
        check_refuses(format!("version: {version}\n").as_bytes(), &["version"]);
    }
    everything_refuses(provider("    timeouts: { connect: 10 }").as_bytes(), &["connect"]).await;
}

#[tokio::test]
async fn pc_06_bytes_that_are_not_a_policy() {
    let utf16: Vec<u8> =
        [0xff, 0xfe].into_iter().chain("version: 1\n".bytes().flat_map(|b| [b, 0])).collect();
    for text in
        [&b"version: 1\n# \xff\xfe\n"[..], &utf16, b"", b"# only\n# comments\n", b"---\n", b"a\0b: 1\n"]
    {
        everything_refuses(text, &[]).await;
    }
    check_refuses(b"version: 1\n---\nversion: 1\n", &[]);
    check_refuses(b"- version: 1\n", &[]);

    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large.yaml");
    std::fs::File::create(&large).unwrap().set_len(200 * 1024 * 1024).unwrap();
    let began = Instant::now();
    assert!(read(&large).err().unwrap().render(false).contains("large.yaml"));
    assert!(read(Path::new("/dev/zero")).is_err());
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(read(&empty).is_err());
    assert!(read(dir.path().join("missing.yaml")).is_err());
    assert!(began.elapsed() < Duration::from_secs(1), "the size is looked at first");
    for path in [&large, Path::new("/dev/zero"), &empty] {
        start_refuses_at(path);
    }
}

#[tokio::test]
async fn pc_07_file_unreadable_at_reload() {
    let bench = Bench::start(Setup::default()).await;
    let path = bench.proxy.policy.clone();
    let good = std::fs::read(&path).unwrap();
    let first = generation(&bench);

    // Without read permission. (The super-user reads it all the same: then it is simply unchanged.)
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::read(&path).is_err() {
        reload_refused(&bench, first, refusals(&bench)).await;
    } else {
        assert!(matches!(bench.proxy.app.reload().await, ReloadOutcome::Unchanged));
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();

    // Deleted.
    std::fs::remove_file(&path).unwrap();
    reload_refused(&bench, first, refusals(&bench)).await;
    // A dangling symbolic link.
    std::os::unix::fs::symlink(path.with_extension("nowhere"), &path).unwrap();
    reload_refused(&bench, first, refusals(&bench)).await;
    std::fs::remove_file(&path).unwrap();
    // A directory in its place.
    std::fs::create_dir(&path).unwrap();
    reload_refused(&bench, first, refusals(&bench)).await;
    std::fs::remove_dir(&path).unwrap();
    // The next good file is taken at the next reload.
    std::fs::write(&path, [&good[..], b"# second\n"].concat()).unwrap();
    let outcome = bench.proxy.app.reload().await;
    // The watcher may have been faster.
    assert!(matches!(outcome, ReloadOutcome::Applied(_) | ReloadOutcome::Unchanged), "{outcome:?}");
    assert!(generation(&bench) > first);
    bench.after(0, &[]).await;
}

#[tokio::test]
async fn pc_07_file_replaced_by_rename_while_it_is_read() {
    let bench = Bench::start(Setup::default()).await;
    let path = bench.proxy.policy.clone();
    let good = std::fs::read_to_string(&path).unwrap();
    let replaced = path.clone();
    let renaming = tokio::task::spawn_blocking(move || {
        for turn in 0..50 {
            let next = replaced.with_extension("next");
            std::fs::write(&next, format!("{good}# {turn}\n")).unwrap();
            std::fs::rename(&next, &replaced).unwrap();
        }
    });
    // Every reload sees one whole file; every request is answered.
    while !renaming.is_finished() {
        let (outcome, answer) = tokio::join!(bench.proxy.app.reload(), bench.good());
        assert!(!matches!(outcome, ReloadOutcome::Refused(_)), "{outcome:?}");
        assert_eq!(answer.status, 200);
    }
    bench.proxy.app.reload().await;
    bench.after(0, &[]).await;
}

#[tokio::test]
async fn pc_08_host_patterns_that_mean_something_else() {
    for pattern in [
        "api.*.com",
        "*api.example.test",
        "**",
        "*",
        "*.*",
        "https://api.example.test",
        "api.example.test/v1",
        "api.example.test:443:80",
        "10.0.0.0/8",
        "*.com",
        "*.10.0.0.5",
        "api.example.test?x",
        "user@api.example.test",
        " api.example.test",
        "api..example.test",
        "",
        "[::1",
        "::1",
    ] {
        let text = format!("version: 1\nproviders:\n  a:\n    hosts: [\"{pattern}\"]\n");
        check_refuses(text.as_bytes(), &["proxy.yaml:4:13", "providers.a.hosts"]);
    }
}

#[tokio::test]
async fn pc_09_network_ranges_with_host_bits_or_bad_length() {
    for range in
        ["10.0.0.1/8", "10.0.0.0/33", "::ffff:10.0.0.0/104", "10.0.0/8", "10/8", "x", "fd00::1/8", ""]
    {
        for key in ["allow_private", "allow_metadata"] {
            let text = format!("version: 1\naddresses: {{ {key}: [\"{range}\"] }}\n");
            check_refuses(text.as_bytes(), &["proxy.yaml:2:", key]);
        }
    }
}

#[tokio::test]
async fn pc_10_two_rules_give_different_credentials_to_one_request() {
    let two = "version: 1
providers:
  one:
    hosts: [api.example.test]
    credential: { bearer: env:S1 }
  two:
    hosts: [API.example.test.]
    credential: { bearer: env:S2 }
";
    everything_refuses(two.as_bytes(), &["api.example.test", "one"]).await;
    // One says `doors: [local]`, and is found by its prefix alone.
    assert_eq!(compiled(&format!("{two}    doors: [local]\n")).providers.len(), 2);
    let routes = provider(
        "    routes:
      - match: { path: /v1/** }
        credential: { bearer: env:S1 }
      - match: { path: /v1/** }
        credential: { bearer: env:S2 }",
    );
    check_refuses(routes.as_bytes(), &["routes", "proxy.yaml:8:"]);
}

#[tokio::test]
async fn pc_11_injection_into_a_framing_or_routing_field() {
    for name in [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "TE",
        "Trailer",
        "Via",
        "Proxy-Authorization",
        "Expect",
        "Keep-Alive",
        "Proxy-Connection",
        "Content-Encoding",
        "Outgate-Request-Id",
        "cOnTeNt-LeNgTh",
        ":authority",
        "X Y",
        "X\\r\\nY",
        "",
    ] {
        let header =
            provider(&format!("    credential: {{ header: {{ name: \"{name}\", value: env:KEY }} }}"));
        check_refuses(header.as_bytes(), &["proxy.yaml:5:"]);
        let set = provider(&format!("    headers: {{ set: {{ \"{name}\": \"x\" }} }}"));
        check_refuses(set.as_bytes(), &["proxy.yaml:5:"]);
    }
    check_refuses(provider("    headers: { set: { X-A: \"1\\r\\nX-B: 2\" } }").as_bytes(), &["X-A"]);
    let format =
        "    credential: { header: { name: X-Key, value: env:KEY, format: \"{secret}\\r\\nX: 1\" } }";
    check_refuses(provider(format).as_bytes(), &["proxy.yaml:5:"]);
    everything_refuses(
        provider("    credential: { header: { name: Host, value: env:KEY } }").as_bytes(),
        &["proxy.yaml:5:"],
    )
    .await;
}

#[tokio::test]
async fn pc_12_reference_to_a_secret_store_that_is_not_defined() {
    let dangling = provider("    credential: { bearer: \"s9:path#field\" }");
    everything_refuses(dangling.as_bytes(), &["s9", "proxy.yaml:5:"]).await;
    for reference in ["s9", "", ":", "env:", "file:", "sk_live_0123456789abcdef"] {
        let text = provider(&format!("    credential: {{ bearer: \"{reference}\" }}"));
        check_refuses(text.as_bytes(), &["proxy.yaml:5:"]);
    }
    // What looks like a literal secret is not repeated.
    let literal = provider("    credential: { bearer: \"sk_live_0123456789abcdef\" }");
    let told = mistakes(literal.as_bytes()).unwrap();
    assert!(!told.contains("0123456789abcdef"), "{told}");
    assert!(told.contains("env:") || told.contains("file:"), "it says what to write: {told}");
}

#[tokio::test]
async fn pc_13_listener_open_to_the_network_without_client_authentication() {
    for address in ["0.0.0.0:3128", "[::]:3128", "192.168.0.5:3128", "[::ffff:0.0.0.0]:3128"] {
        let text = format!("version: 1\nlisteners: [{{ address: \"{address}\" }}]\n");
        check_refuses(text.as_bytes(), &["proxy.yaml:2:", "expose"]);
        start_refuses(text.as_bytes());
        // With the explicit word it is taken, and said at every start.
        let exposed = format!("version: 1\nlisteners: [{{ address: \"{address}\", expose: true }}]\n");
        let warnings = compiled(&exposed).warnings;
        assert!(warnings.iter().any(|warning| warning.contains("without a token")), "{warnings:?}");
        let with_token =
            format!("version: 1\nlisteners: [{{ address: \"{address}\", auth: {{ token: env:T }} }}]\n");
        assert!(!compiled(&with_token).warnings.iter().any(|warning| warning.contains("expose")));
        let own = format!(
            "version: 1\nproviders:\n  a:\n    hosts: [a.example.test]\n    local: {{ address: \"{address}\" }}\n"
        );
        check_refuses(own.as_bytes(), &["proxy.yaml:5:"]);
    }
    // Admin at the same address as a listener.
    let same =
        "version: 1\nlisteners: [{ address: \"127.0.0.1:3128\" }]\nadmin: { address: \"127.0.0.1:3128\" }\n";
    check_refuses(same.as_bytes(), &["127.0.0.1:3128"]);
    // What nobody wrote binds to loopback.
    let fixed = compiled("version: 1\n").fixed;
    assert_eq!(fixed.listeners[0].address.to_string(), "127.0.0.1:3128");
    assert_eq!(fixed.admin.address.to_string(), "127.0.0.1:9901");
}

#[tokio::test]
async fn pc_13_a_unix_socket_is_for_its_owner_alone() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let policy = "listeners:\n  - address: \"127.0.0.1:0\"\n  - address: \"unix:{dir}/proxy.sock\"\n";
    let proxy = crate::support::proxy::Proxy::start_in(dir.clone(), policy).await;
    let mode = std::fs::metadata(dir.path().join("proxy.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(proxy);
}

#[tokio::test]
async fn pc_14_host_names_in_other_alphabets() {
    for written in ["b\u{fc}cher.example.test", "xn--bcher-kva.example.test", "B\u{dc}CHER.example.test"] {
        let text = format!("version: 1\nproviders:\n  books:\n    hosts: [{written}]\n");
        let policy = compiled(&text);
        assert_eq!(policy.providers[0].host_names, ["xn--bcher-kva.example.test"], "{written}");
        let matches = |host: &str| {
            let host = Host::parse(host).unwrap();
            policy.forward(outgate::message::target::Scheme::Https, &host, None).is_ok()
        };
        assert!(matches("xn--bcher-kva.example.test") && matches("XN--BCHER-KVA.example.test."));
        assert!(!matches("bcher.example.test") && !matches("bucher.example.test"));
        assert!(Host::parse(written).is_err() || written.is_ascii(), "requests carry A-labels alone");
        // `check` prints the form that matches.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_outgate"))
            .args(["check", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("xn--bcher-kva.example.test"));
    }
    // All three in one policy are one rule named three times.
    let twice = "version: 1\nproviders:\n  books:\n    hosts: [b\u{fc}cher.example.test, xn--bcher-kva.example.test]\n";
    check_refuses(twice.as_bytes(), &["twice"]);
}

#[tokio::test]
async fn a_refused_reload_keeps_open_connections_too() {
    let bench = Bench::start(Setup::default()).await;
    let mut raw = Raw::connect(bench.proxy.address()).await;
    let get = "GET http://open.example.test/ HTTP/1.1\r\nHost: open.example.test\r\n\r\n";
    raw.send(get).await;
    assert_eq!(raw.answer().await.status, 200);
    bench.after(1, &[]).await;
    reload_refuses(&bench, b"providers: [").await;
    raw.send(get).await;
    assert_eq!(raw.answer().await.status, 200);
    bench.after(1, &[]).await;
}

#[test]
fn every_case_of_this_group_is_tested_or_listed() {
    assert_covered("PC", 14, include_str!("policies.rs"), NOT_YET);
}
