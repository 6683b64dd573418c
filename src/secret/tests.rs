//! The `secrets:` section and the table of stores.

use super::*;

type Section = BTreeMap<String, StoreConfig>;

/// The least that each kind takes.
const KINDS: &str = "
a: { vault: { address: \"https://vault:8200\", auth: { token: \"env:T\" } } }
b: { aws_secrets_manager: { region: eu-west-1 } }
c: { gcp_secret_manager: { project: acme } }
d: { azure_key_vault: { address: \"https://acme.vault.azure.net\", auth: { managed_identity: {} } } }
e: { kubernetes: {} }
f: { exec: { command: [/bin/cat] } }
g: { sealed: { file: s.yaml, key: \"env:K\" } }
";

#[tokio::test]
async fn every_kind_is_built_and_lives_on_while_its_settings_do() {
    let section: Section = serde_yaml::from_str(KINDS).unwrap();
    for (name, config) in &section {
        assert_eq!(config.mistakes(Path::new("/")), [], "{name}");
    }
    let kinds: Vec<&str> = section.values().map(StoreConfig::kind).collect();
    let all = [
        "vault",
        "aws_secrets_manager",
        "gcp_secret_manager",
        "azure_key_vault",
        "kubernetes",
        "exec",
        "sealed",
    ];
    assert_eq!(kinds, all);
    let env = fake::store_env(Path::new("/"));
    let first = Stores::build(&section, &env, None).unwrap();
    let mut changed = section.clone();
    let other: Section = serde_yaml::from_str("b: { aws_secrets_manager: { region: eu-west-2 } }").unwrap();
    changed.extend(other);
    changed.remove("c");
    let second = Stores::build(&changed, &env, Some(&first)).unwrap();
    let find = |stores: &Stores, name: &str| stores.find(&format!("{name}:X").parse().unwrap()).ok();
    for (name, lives_on) in
        [("a", true), ("b", false), ("d", true), ("g", true), ("env", true), ("file", true)]
    {
        let (before, after) = (find(&first, name).unwrap(), find(&second, name).unwrap());
        assert_eq!(Arc::ptr_eq(&before, &after), lives_on, "{name}");
    }
    assert!(find(&second, "c").is_none());
    let wrong: Section = serde_yaml::from_str("env: { exec: { command: [/bin/cat] } }").unwrap();
    assert!(matches!(Stores::build(&wrong, &env, None), Err(SecretError::StoreName)));
    let error = serde_yaml::from_str::<Section>("payments:\n  valut: {}\n").map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("valut"), "{error}");
}

#[test]
fn the_schema_names_every_kind() {
    let schema = serde_json::to_string(&schemars::schema_for!(StoreConfig)).unwrap();
    assert!(schema.contains("aws_secrets_manager") && schema.contains("secret_id"), "{schema}");
    let schema = serde_json::to_string(&schemars::schema_for!(SecretRef)).unwrap();
    assert!(schema.contains(r#""type":"string""#), "{schema}");
}

#[test]
fn a_reference_needs_a_store_and_an_unknown_one_is_not_repeated() {
    let stores = Stores::built_in(Path::new("/"));
    for known in ["env:KEY", "file:/key"] {
        assert!(stores.find(&known.parse().unwrap()).is_ok(), "{known}");
    }
    let error = stores.find(&"canary:hunter2".parse().unwrap()).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), "unknown_store");
    let text = format!("{error} {error:?}");
    assert!(
        text.contains("`env`, `file`") && !text.contains("canary") && !text.contains("hunter2"),
        "{text}"
    );
}
