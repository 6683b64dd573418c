//! Who may import whom. Rows import lower rows only, and within a row not at all; `proxy` sees even less. A new edge fails
//! here, and is a decision for `docs/decisions/`.

// A test says what went wrong by failing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rows of the house, lowest first.
const ROWS: [&[&str]; 9] = [
    &["telemetry"],
    &["tls", "message"],
    &["upstream"],
    &["secret", "resilience"],
    &["credential"],
    &["policy"],
    &["pipeline"],
    &["proxy"],
    &["cli", "app", "admin", "injector", "process", "main"],
];

/// What `proxy` may see: what it strips it learns from the decision, and it cannot dial.
const PROXY_SEES: [&str; 4] = ["pipeline", "tls", "message", "telemetry"];

/// `policy` uses only the settings of the rows below it, never their running parts.
const POLICY_SEES: [(&str, &[&str]); 6] = [
    ("credential", &["CredentialConfig", "kinds", "scrub"]),
    (
        "resilience",
        &[
            "cache",
            "circuit_breaker",
            "concurrency",
            "fleet",
            "idempotency",
            "key",
            "mistake",
            "mode",
            "quota",
            "rate_limit",
            "responses",
            "retry",
        ],
    ),
    ("secret", &["reference", "StoreConfig", "ValueRules"]),
    // What the presets' keys look like, for the log.
    ("telemetry", &["KeyShape"]),
    ("tls", &["pem"]),
    ("upstream", &["config", "guard", "settings"]),
];

/// Edges inside the wiring row: these modules start one another.
const WIRING: [(&str, &str); 6] = [
    ("main", "cli"),
    ("cli", "app"),
    ("cli", "injector"),
    ("cli", "process"),
    ("app", "admin"),
    ("app", "process"),
];

fn row(module: &str) -> usize {
    ROWS.iter().position(|row| row.contains(&module)).unwrap_or_else(|| panic!("`{module}` has no row"))
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The top-level module of a file, and the text of it that is not test code.
fn module_of(file: &Path) -> String {
    let relative = file.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\n").next().unwrap()
}

/// Every `crate::a::b` of the code: the module and what is named in it.
fn edges(text: &str) -> BTreeSet<(String, String)> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let module: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let inner = rest[module.len()..].strip_prefix("::").unwrap_or_default();
        if let Some(list) = inner.strip_prefix('{') {
            let list = &list[..list.find('}').unwrap_or(list.len())];
            for name in list.split(',') {
                let name = name.trim().split("::").next().unwrap().split(' ').next().unwrap();
                found.insert((module.clone(), name.to_owned()));
            }
        } else {
            let name: String = inner.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.insert((module.clone(), name));
        }
    }
    found
}

fn all_edges() -> BTreeMap<String, BTreeSet<(String, String)>> {
    let mut all: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let module = module_of(&file);
        let is_test = file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs");
        if module == "lib" || is_test {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        all.entry(module.clone())
            .or_default()
            .extend(edges(without_tests(&text)).into_iter().filter(|(to, _)| *to != module));
    }
    all
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    for (from, edges) in all_edges() {
        for (to, name) in edges {
            let wiring = WIRING.contains(&(from.as_str(), to.as_str()));
            if row(&to) >= row(&from) && !wiring {
                wrong.push(format!("{from} -> {to}::{name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that go up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn the_proxy_cannot_dial() {
    let edges = all_edges();
    let seen: BTreeSet<&str> = edges["proxy"].iter().map(|(to, _)| to.as_str()).collect();
    let allowed: BTreeSet<&str> = PROXY_SEES.into_iter().collect();
    assert!(seen.is_subset(&allowed), "proxy sees {seen:?}, and may see {allowed:?}");
}

#[test]
fn the_policy_sees_settings_only() {
    let allowed: BTreeMap<&str, &[&str]> = POLICY_SEES.into_iter().collect();
    let wrong: Vec<String> = all_edges()["policy"]
        .iter()
        .filter(|(to, name)| {
            to != "message" && !allowed.get(to.as_str()).is_some_and(|names| names.contains(&name.as_str()))
        })
        .map(|(to, name)| format!("{to}::{name}"))
        .collect();
    assert!(wrong.is_empty(), "policy is pure and takes only settings, not {wrong:?}");
}

#[test]
fn vague_names_are_not_used() {
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        for vague in ["util", "utils", "common", "helpers", "manager", "handler", "misc"] {
            assert_ne!(name, vague, "{}", file.display());
        }
    }
}

/// What is known of a provider stands in its preset. Code names one where a credential's kind or a store of secrets is its own, in
/// the list of the presets, and in examples of messages (between backticks).
#[test]
fn no_code_knows_a_provider() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Words that mean something else in code.
    let words = ["apple", "clerk", "new", "resend", "segment", "slack", "square", "aws", "azure", "google"];
    let names: BTreeSet<String> = std::fs::read_dir(root.join("presets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .flat_map(|name| [name.split('-').next().unwrap().to_owned(), name.replace('-', "")])
        .filter(|name| !words.contains(&name.as_str()))
        .collect();
    assert!(names.len() > 45 && names.contains("stripe"), "{names:?}");
    let mut wrong = Vec::new();
    for file in sources(&root.join("src")) {
        let place = file.strip_prefix(root.join("src")).unwrap().to_string_lossy().into_owned();
        let own = ["credential/", "secret/", "policy/preset/files.rs", "cli/"];
        // Providers that the tests of the quota make up.
        let is_test = place.contains("/tests") || place == "resilience/quota/simulation.rs";
        if is_test || own.iter().any(|own| place.starts_with(own)) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for line in without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
            let code: String = line.split('`').step_by(2).collect();
            let code = code.to_ascii_lowercase();
            wrong.extend(
                names
                    .iter()
                    .filter(|name| code.contains(&**name))
                    .map(|name| format!("{place}: {name}: {line}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The test reads what it should: an import that goes up is found.
#[test]
fn the_check_can_fail() {
    let found = edges("use crate::proxy::{socket::Socket, relay};\nuse crate::tls::pem;\n// crate::policy\n");
    let expected = [("proxy", "socket"), ("proxy", "relay"), ("tls", "pem")];
    assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into_iter().collect());
    assert!(row("proxy") > row("upstream"));
}

/// The floors of `deny.toml`: a crate, and the version below which an advisory applies.
fn floors(deny: &str) -> Vec<(String, [u64; 3])> {
    let crates = deny.lines().filter_map(|line| line.trim().strip_prefix("{ crate = \"")?.split('"').next());
    let mut floors = Vec::new();
    for one in crates {
        let Some((name, range)) = one.split_once([':', '@']) else { continue };
        // Written in any other way, cargo-deny reads it as another range than it looks.
        let floor = one.strip_prefix(&format!("{name}:<"));
        floors
            .push((name.to_owned(), version(floor.unwrap_or_else(|| panic!("{one}: {range} is no floor")))));
    }
    floors
}

fn version(text: &str) -> [u64; 3] {
    let numbers: Vec<u64> =
        text.split(['-', '+']).next().unwrap().split('.').map(|part| part.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

/// The packages of a lock file that are below their floor.
fn below(floors: &[(String, [u64; 3])], lock: &str) -> Vec<String> {
    let value = |line: &str, key: &str| Some(line.strip_prefix(key)?.trim_matches('"').to_owned());
    let lines: Vec<&str> = lock.lines().collect();
    let packages =
        lines.windows(2).filter_map(|pair| Some((value(pair[0], "name = ")?, value(pair[1], "version = ")?)));
    packages
        .filter(|(name, of)| floors.iter().any(|(known, floor)| known == name && version(of) < *floor))
        .map(|(name, of)| format!("{name} {of}"))
        .collect()
}

/// What `cargo deny check bans` says of them as well, for where that is not installed. (Crates that are banned wholly it knows alone: a
/// lock file names those too that no feature brings in.)
#[test]
fn no_dependency_is_below_its_floor() {
    let (floors, lock) = (floors(include_str!("../deny.toml")), include_str!("../Cargo.lock"));
    assert!(floors.len() >= 7, "{floors:?}");
    assert_eq!(below(&floors, lock), Vec::<String>::new());
    // Each of them would be found.
    for (name, [major, minor, patch]) in &floors {
        let bad = match patch {
            0 => format!("{major}.{}.99", minor - 1),
            patch => format!("{major}.{minor}.{}", patch - 1),
        };
        let lock = format!("{lock}\n[[package]]\nname = \"{name}\"\nversion = \"{bad}\"\n");
        assert_eq!(below(&floors, &lock), [format!("{name} {bad}")]);
    }
}
