//! Templates that can be used, and those that cannot.

use serde_json::{Value, json};

use super::super::options::Options;
use super::super::sidecar::Sidecar;
use super::super::template::{DEFAULT, Mode, Template, TemplateError};
use super::small;

#[test]
fn the_librarys_own_has_both_modes() {
    let template = Template::embedded().unwrap();
    assert_eq!(template.default, Mode::Native);
    for mode in [Mode::Native, Mode::Classic] {
        let options = Options { mode: Some(mode), ..Options::default() };
        let sidecar = Sidecar::new(&template, &options).unwrap();
        assert_eq!((sidecar.name(), sidecar.user()), ("outgate", Some(65532)));
        assert_eq!(sidecar.ports().into_iter().collect::<Vec<_>>(), [3128, 9901, 9902]);
        assert_eq!(sidecar.variant.sidecar.contains_key("restartPolicy"), mode == Mode::Native);
        assert_eq!(sidecar.variant.sidecar.contains_key("lifecycle"), mode == Mode::Classic);
    }
}

/// Every option changes something in the library's template: a name that the library gives another way would be overlooked.
#[test]
fn each_option_finds_its_place_in_the_librarys_template() {
    let template = Template::embedded().unwrap();
    for (key, value, wanted) in [
        ("outgate.dev/policy", "mine", r#""configMap":{"name":"mine"}"#),
        ("outgate.dev/credentials-secret", "keys", r#""secret":{"defaultMode":292,"secretName":"keys"}"#),
        ("outgate.dev/no-proxy", ".corp", r#"$(KUBERNETES_SERVICE_HOST),.corp""#),
        ("outgate.dev/log-level", "debug", r#""--log=debug""#),
        ("outgate.dev/cpu-request", "70m", r#""cpu":"70m""#),
        ("outgate.dev/memory-request", "70Mi", r#""requests":{"cpu":"10m","memory":"70Mi"}"#),
        ("outgate.dev/memory-limit", "70Mi", r#""limits":{"memory":"70Mi"}"#),
    ] {
        let annotations = json!({ key: value }).as_object().cloned().unwrap();
        let sidecar = Sidecar::new(&template, &Options::of(&annotations).unwrap()).unwrap();
        let parts = &sidecar.variant.parts;
        let text = json!([sidecar.variant.sidecar, parts.volumes, parts.env]).to_string();
        assert!(text.contains(wanted), "{key}: {text}");
        assert!(!text.contains("--log=info") || key != "outgate.dev/log-level");
    }
}

#[test]
fn the_order_of_keys_is_no_difference() {
    let one = Template::parse(DEFAULT).unwrap();
    let value: Value = serde_yaml::from_str(DEFAULT).unwrap();
    let same = Template::parse(&format!("# the same as JSON\n{value:#}")).unwrap();
    assert_eq!(one.hash, same.hash);
    assert_eq!(one.hash.len(), 16);
    let other = Template::parse(&DEFAULT.replace("--log=info", "--log=warn")).unwrap();
    assert_ne!(one.hash, other.hash);
}

#[test]
fn what_a_cluster_has_not_is_refused() {
    let mut value: Value = serde_yaml::from_str(DEFAULT).unwrap();
    value["default"] = json!("classic");
    value.as_object_mut().unwrap().remove("native");
    let template = Template::parse(&value.to_string()).unwrap();
    let asked = Options { mode: Some(Mode::Native), ..Options::default() };
    let error = Sidecar::new(&template, &asked).err().unwrap().to_string();
    assert_eq!(
        error,
        "annotation `outgate.dev/native-sidecar`: this injector's template has classic sidecars only"
    );
    assert_eq!(Sidecar::new(&template, &Options::default()).unwrap().mode, Mode::Classic);
}

#[test]
fn what_is_none_is_refused() {
    let good: Value = serde_yaml::from_str(DEFAULT).unwrap();
    let changed = |change: fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value);
        Template::parse(&value.to_string()).err()
    };
    assert_eq!(changed(|_| ()), None);
    let missing = |what| Some(TemplateError::Incomplete(what));
    assert_eq!(changed(|t| t["native"]["initContainers"] = json!([])), missing("each mode has one sidecar"));
    assert_eq!(
        changed(|t| t["native"]["containers"] = json!([{ "name": "b" }])),
        missing("each mode has one sidecar")
    );
    assert_eq!(
        changed(|t| t["native"]["initContainers"][0]["name"] = json!("")),
        missing("the sidecar has a name")
    );
    assert_eq!(changed(|t| t["native"]["volumes"] = json!([])), missing("each mount is one of its volumes"));
    assert_eq!(
        changed(|t| t["native"]["volumes"][0]["name"] = json!("outgate-public")),
        missing("each volume has a name of its own")
    );
    assert_eq!(
        changed(|t| t["native"]["env"][0]["name"] = json!(7)),
        missing("each variable has a name of its own, and a value")
    );
    assert_eq!(
        changed(|t| t["native"]["volumeMounts"][0] = json!({ "name": "outgate-public" })),
        missing("each mount has a path")
    );
    let gone = changed(|t| {
        t.as_object_mut().unwrap().remove("native");
    });
    assert_eq!(gone, missing("it has not the mode that its `default` names"));
    assert!(matches!(changed(|t| t["natvie"] = json!({})), Some(TemplateError::Syntax(_))));
    assert!(matches!(Template::parse("a: [").err(), Some(TemplateError::Syntax(_))));
    assert_eq!(Template::parse(&" ".repeat(1024 * 1024 + 1)).err(), Some(TemplateError::TooLarge));
    assert_eq!(small().default, Mode::Native);
}

/// Java gets what it wants where a pod says so; what it reaches directly is written in its own way.
#[test]
fn java_where_a_pod_asks_for_it() {
    let options = |pairs: Value| Options::of(&pairs.as_object().cloned().unwrap()).unwrap();
    let value = |options: &Options| -> Option<String> {
        let sidecar = Sidecar::new(&small(), options).unwrap();
        let found = sidecar.variant.parts.env.iter().find(|one| one["name"] == "JAVA_TOOL_OPTIONS")?;
        Some(found["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(value(&Options::default()), None);
    let asked = json!({ "outgate.dev/runtimes": "java", "outgate.dev/no-proxy": ".corp.example,db.example,10.0.0.0/8" });
    assert_eq!(
        value(&options(asked)).unwrap(),
        "-Dhttps.proxyHost=127.0.0.1 -Dhttp.nonProxyHosts=localhost|*.svc|*.corp.example|db.example -Dlast=1"
    );
    let mut without = super::small_document();
    without.as_object_mut().unwrap().remove("java");
    let error =
        Sidecar::new(&super::made(&without), &options(json!({ "outgate.dev/runtimes": "java" }))).err();
    assert_eq!(error, Some(super::super::Refusal::NoRuntime));
}
