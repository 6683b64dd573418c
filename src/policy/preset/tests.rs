use std::collections::BTreeSet;

use super::fill::Filling;
use super::header::{Confidence, Parameter};
use super::*;
use crate::credential::CredentialConfig;
use crate::policy::compile::compile;
use crate::policy::compiled::CompiledPolicy;
use crate::policy::diagnostic::Rejection;
use crate::policy::load::LoadedPolicy;
use crate::policy::pattern::HostPattern;
use crate::policy::schema::RouteConfig;

mod mistakes;
mod overriding;
mod parameters;
mod removal;
mod routes;

/// Compiles a policy's text.
fn compiled(text: &str) -> Result<CompiledPolicy, String> {
    let mut sources = Sources::new();
    let source = sources.add("p.yaml");
    let mut mistakes = Diagnostics::new();
    let Some(tree) = yaml::parse(text, source, &mut mistakes) else {
        return Err(Rejection::new(mistakes, sources).render(false));
    };
    let loaded =
        LoadedPolicy { tree, sources, hash: String::new(), files: Vec::new(), mistakes: Diagnostics::new() };
    compile(loaded, std::path::Path::new("/")).map_err(|rejection| rejection.render(false))
}

fn all() -> Vec<(&'static str, Preset)> {
    names()
        .map(|name| {
            let mut sources = Sources::new();
            let source = sources.add(title(name));
            let mut mistakes = Diagnostics::new();
            let preset = Preset::read(text(name).unwrap(), source, &mut mistakes);
            let told = Rejection::new(mistakes.clone(), sources).render(false);
            assert!(mistakes.is_empty(), "{told}");
            (name, preset.unwrap())
        })
        .collect()
}

/// Every way to give the parameters: those that must be given, and each word of each choice once.
fn with_each(preset: &Preset) -> Vec<String> {
    let parameters = &preset.header.parameters;
    let sample = |name: &str, parameter: &Parameter| {
        let sample = parameter.sample.as_ref().unwrap_or_else(|| panic!("`{name}` has no sample"));
        format!("{name}: \"{sample}\"")
    };
    let given: Vec<String> = parameters
        .iter()
        .filter(|(_, parameter)| parameter.pattern.is_some())
        .map(|(name, parameter)| sample(name, parameter))
        .collect();
    let needed: Vec<String> = parameters
        .iter()
        .filter(|(name, parameter)| parameter.required || *name == "prefix")
        .map(|(name, parameter)| sample(name, parameter))
        .collect();
    let mut all = vec![needed.join(", "), given.join(", ")];
    for (name, parameter) in parameters {
        for word in parameter.values.keys() {
            all.push([&given[..], &[format!("{name}: {word}")]].concat().join(", "));
        }
    }
    all
}

/// A credential of each way, in the short form.
fn credentials(preset: &Preset) -> Vec<String> {
    let value = |part: &credential::Part| match part.sample() {
        "text" => {
            let fits = |text: &&str| part.pattern.as_ref().is_none_or(|pattern| pattern.matches(text));
            ["text@acme.test", "acme.test", "TEXT123456"].into_iter().find(fits).unwrap()
        }
        sample => sample,
    };
    preset
        .credentials
        .iter()
        .enumerate()
        .map(|(index, way)| {
            let parts: Vec<String> =
                preset.parts(way).iter().map(|part| format!("{}: {}", part.name, value(part))).collect();
            let parts = parts.join(", ");
            if index == 0 { format!("{{ {parts} }}") } else { format!("{{ {}: {{ {parts} }} }}", way.key) }
        })
        .collect()
}

#[test]
fn the_list_is_that_of_the_files() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/presets");
    let files: BTreeSet<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().trim_end_matches(".yaml").to_owned())
        .collect();
    let listed: Vec<&str> = names().collect();
    assert!(listed.is_sorted(), "presets are found by bisection: {listed:?}");
    assert_eq!(files, listed.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(listed.len(), 51);
}

/// With every choice of every parameter: a preset has no mistake that a user could meet.
#[test]
fn every_preset_compiles() {
    for (name, preset) in all() {
        for with in with_each(&preset) {
            let policy = format!(
                "version: 1\nproviders:\n  p: {{ preset: {name}, with: {{ {with} }}, credential: none }}\n"
            );
            let policy = compiled(&policy).unwrap_or_else(|told| panic!("{name} {with}: {told}"));
            let provider = &policy.providers[0];
            assert!(!provider.host_names.is_empty(), "{name} {with}");
            assert!(policy.warnings.is_empty(), "{name} {with}: {:?}", policy.warnings);
            assert!(provider.intercept.intercept, "{name}: what it knows wants to see requests");
        }
    }
}

#[test]
fn every_way_of_a_credential_compiles() {
    let mut wrong = Vec::new();
    for (name, preset) in all() {
        let with = &with_each(&preset)[1];
        for (way, credential) in preset.ways().map(str::to_owned).zip(credentials(&preset)) {
            let policy = format!(
                "version: 1\nproviders:\n  p: {{ preset: {name}, with: {{ {with} }}, credential: {credential} }}\n"
            );
            match compiled(&policy) {
                Ok(policy) => {
                    let credential = &policy.providers[0].routes[0].settings.credential;
                    assert!(!credential.is_empty(), "{name} {way}");
                    assert!(policy.warnings.is_empty(), "{name}: {:?}", policy.warnings);
                }
                Err(told) => wrong.push(format!("{name} {way}: {told}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Words that could be taken for something else.
#[test]
fn ways_and_parts_have_names_of_their_own() {
    for (name, preset) in all() {
        assert!(!preset.credentials.is_empty(), "{name}");
        let ways: BTreeSet<&str> = preset.ways().collect();
        for (index, way) in preset.credentials.iter().enumerate() {
            assert!(
                !credential::KINDS.contains(&way.key.as_str()) && way.key != "required",
                "{name} {}",
                way.key
            );
            let parts = preset.parts(way);
            assert!(!parts.is_empty(), "{name} {}", way.key);
            for part in parts {
                let free = !credential::KINDS.contains(&part.name.as_str()) && part.name != "required";
                // A single key is a way's name before it is a part.
                let alone = index > 0 || !ways.contains(part.name.as_str());
                assert!(free && alone, "{name} {} {}", way.key, part.name);
            }
        }
    }
}

#[test]
fn the_kinds_are_those_of_the_schema() {
    let schema = schemars::schema_for!(CredentialConfig).to_value();
    let kinds = schema.pointer("/anyOf/1/properties").unwrap().as_object().unwrap();
    for kind in kinds.keys().filter(|kind| *kind != "required") {
        assert!(credential::KINDS.contains(&kind.as_str()), "`{kind}` is a kind that presets do not know");
    }
}

/// Where the facts are not sure, nothing is repeated that may act, and no number is kept.
#[test]
fn what_is_not_sure_stays_on_the_safe_side() {
    for (name, preset) in all() {
        assert!(!preset.header.sources.is_empty(), "{name} names no source");
        if preset.header.confidence == Confidence::Low {
            assert_eq!(preset.base.get("retry").and_then(Node::as_str), Some("off"), "{name}");
            assert!(preset.base.get("limits").is_none(), "{name}");
        }
    }
}

#[test]
fn what_a_policy_writes_wins_key_by_key() {
    let policy = compiled(
        "version: 1\ndefaults:\n  retry: { attempts: 7, max_retry_after: 5s }\n  timeouts: { response: 9s }\nproviders:\n  stripe:\n    preset: stripe\n    credential: { secret: env:K }\n    timeouts: { deadline: 33s }\n    responses: [{ when: { status: 418 }, is: overload }]\n    limits: [{ name: account, rate: 7/s }, { name: more, rate: 300/m }]\n    routes:\n      - { match: { path: \"/v1/refunds/**\" }, deny: \"no\" }\n      - { name: own, match: { path: \"/v1/files/x\" }, timeouts: { response: 1s } }\n      - { name: quiet, match: { methods: [GET], path: /v1/quiet }, retry: off }\n",
    )
    .unwrap();
    let decide = |method: http::Method, path: &str| {
        let chosen = policy.route(0, &method, path).unwrap();
        (chosen.settings.name.to_string(), &chosen.settings.settings)
    };
    let (name, own) = decide(http::Method::POST, "/v1/charges");
    assert_eq!(name, "preset:v1");
    let retry = &own.layers.retry.as_ref().unwrap().settings;
    assert_eq!((retry.attempts, retry.max_retry_after.as_secs()), (7, 5), "defaults below the preset");
    assert_eq!(retry.hint.as_ref().unwrap().as_str(), "stripe-should-retry", "the preset above them");
    assert_eq!((own.timeouts.response.as_secs(), own.timeouts.deadline.as_secs()), (9, 33));
    let limits: Vec<(&str, u32)> =
        own.layers.limits.iter().map(|limit| (&*limit.settings.name, limit.settings.rate.count())).collect();
    assert_eq!(limits, [("account", 7), ("more", 300)]);
    assert!(
        own.layers.responses
            != compiled("version: 1\nproviders: { s: { preset: stripe, credential: none } }")
                .unwrap()
                .providers[0]
                .routes
                .last()
                .unwrap()
                .settings
                .layers
                .responses
    );
    // The preset's route is below the provider's own keys, and above the preset's.
    let (name, files) = decide(http::Method::GET, "/v1/files/f");
    assert_eq!(
        (name.as_str(), files.timeouts.response.as_secs(), files.timeouts.deadline.as_secs()),
        ("preset:files", 300, 33)
    );
    let (name, both) = decide(http::Method::GET, "/v1/files/x");
    assert_eq!((name.as_str(), both.timeouts.response.as_secs()), ("own", 1));
    let (name, quiet) = decide(http::Method::GET, "/v1/quiet");
    // `retry: off` repeats nothing; the preset's hint for the app stays.
    let retry = &quiet.layers.retry.as_ref().unwrap().settings;
    assert_eq!((name.as_str(), retry.attempts, retry.hint.is_some()), ("quiet", 1, true));
    assert!(policy.route(0, &http::Method::GET, "/v1/refunds/x").is_err());
}

#[test]
fn the_keys_of_all_providers_have_a_shape() {
    let shapes = crate::telemetry::KeyShapes::new(keys::shapes());
    for (text, masked) in [
        ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", "sk_live_***"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_***"),
        ("xoxb-1234567890-abcdefghijklmnop", "xoxb-***"),
        ("SG.0123456789abcdefghijkl.0123456789012345678901234567890123456789012", "SG.***"),
        ("/v1/customers/cus_NffrFeUfNV2Hib", "/v1/customers/cus_NffrFeUfNV2Hib"),
        ("/api/v2/tickets/reindex_all_the_things", "/api/v2/tickets/reindex_all_the_things"),
        (
            "/2010-04-01/Accounts/AC0123456789abcdef0123456789abcdef",
            "/2010-04-01/Accounts/AC0123456789abcdef0123456789abcdef",
        ),
    ] {
        assert_eq!(shapes.mask(text), masked);
    }
    // Every class of characters can be read, and every secret with a beginning has a shape.
    for (name, preset) in all() {
        for key in preset.header.keys.iter().filter(|key| key.secret && !key.prefix.is_empty()) {
            let count = keys::shapes_of(&preset.header).len();
            assert!(
                count > 0 && pattern::Chars::parse(key.chars.as_deref().unwrap()).is_ok(),
                "{name} {}",
                key.name
            );
        }
    }
}
