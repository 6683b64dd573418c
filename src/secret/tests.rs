//! The `secrets:` section and the table of stores.

use super::*;

type Section = BTreeMap<String, StoreConfig>;

#[test]
fn kinds_to_come_are_refused_by_name() {
    for kind in
        ["aws_secrets_manager", "gcp_secret_manager", "azure_key_vault", "kubernetes", "exec", "sealed"]
    {
        let yaml = format!("payments:\n  {kind}:\n    address: https://CANARY:8200\n");
        let error = serde_yaml::from_str::<Section>(&yaml).map(|_| panic!("{kind} was taken")).unwrap_err();
        assert!(
            error.to_string().contains(&format!("the store kind `{kind}` is not supported yet")),
            "{error}"
        );
    }
    let error = serde_yaml::from_str::<Section>("payments:\n  valut: {}\n").map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("valut") && !error.to_string().contains("not supported yet"),
        "{error}"
    );
    assert!(serde_yaml::from_str::<Section>("{}").is_ok_and(|section| section.is_empty()));
}

#[test]
fn the_schema_names_every_kind() {
    let schema = serde_json::to_string(&schemars::schema_for!(StoreConfig)).unwrap();
    assert!(schema.contains("aws_secrets_manager") && schema.contains("not supported yet"), "{schema}");
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
