//! Whatever the pod: nothing of it is lost or changed, and a second call has nothing to do.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use super::super::review::Verdict;
use super::super::template::Template;
use super::{answered, asked, patched, small};

/// Whether all of `before` is in `after`: keys with their values, members of lists in their order, with others between them.
fn kept(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before
            .iter()
            .all(|(key, value)| value.is_null() || after.get(key).is_some_and(|other| kept(value, other))),
        (Value::Array(before), Value::Array(after)) => {
            let mut rest = after.iter();
            before.iter().all(|one| rest.any(|other| kept(one, other)))
        }
        (before, after) => before == after,
    }
}

fn sometimes(strategy: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Option<Value>> {
    prop_oneof![Just(None), Just(Some(Value::Null)), strategy.prop_map(Some)].boxed()
}

fn object(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> BoxedStrategy<Value> {
    fields
        .into_iter()
        .map(|(key, value)| value.prop_map(move |value| value.map(|value| (key.to_owned(), value))).boxed())
        .collect::<Vec<_>>()
        .prop_map(|fields| Value::Object(fields.into_iter().flatten().collect::<Map<_, _>>()))
        .boxed()
}

fn env() -> BoxedStrategy<Value> {
    let names = vec![
        "HTTPS_PROXY",
        "https_proxy",
        "NO_PROXY",
        "no_proxy",
        "SSL_CERT_FILE",
        "PATH",
        "A_PROXY",
        "JAVA_TOOL_OPTIONS",
    ];
    let one = (select(names), prop_oneof![Just("http://127.0.0.1:3128".to_owned()), "[a-z]{0,6}"])
        .prop_map(|(name, value)| json!({ "name": name, "value": value }));
    prop::collection::vec(one, 0..5).prop_map(Value::Array).boxed()
}

fn container(name: &'static str) -> BoxedStrategy<Value> {
    let mounts = subsequence(
        vec![
            json!({ "name": "cache", "mountPath": "/cache" }),
            json!({ "name": "outgate-public", "mountPath": "/var/run/outgate", "readOnly": true }),
        ],
        0..=2,
    );
    object(vec![
        ("name", Just(Some(json!(name))).boxed()),
        ("image", sometimes("[a-z]{1,5}".prop_map(Value::String))),
        ("env", sometimes(env())),
        ("envFrom", sometimes(Just(json!([{ "configMapRef": { "name": "a" } }])))),
        ("volumeMounts", sometimes(mounts.prop_map(Value::Array))),
        ("restartPolicy", sometimes(Just(json!("Always")))),
        ("ports", sometimes(Just(json!([{ "containerPort": 9902 }])))),
        (
            "securityContext",
            sometimes(select(vec![1000, 65532, 0]).prop_map(|user| json!({ "runAsUser": user }))),
        ),
    ])
}

fn containers(names: Vec<&'static str>, at_least: usize) -> BoxedStrategy<Value> {
    let count = names.len();
    subsequence(names, at_least..=count)
        .prop_flat_map(|names| names.into_iter().map(container).collect::<Vec<_>>())
        .prop_map(Value::Array)
        .boxed()
}

fn annotations() -> BoxedStrategy<Value> {
    let all = vec![
        ("team", "shop"),
        ("kubectl.kubernetes.io/default-container", "worker"),
        ("outgate.dev/policy", "mine"),
        ("outgate.dev/credentials-secret", "keys"),
        ("outgate.dev/native-sidecar", "false"),
        ("outgate.dev/exclude-containers", "shop"),
        ("outgate.dev/no-proxy", "10.0.0.0/8"),
        ("outgate.dev/memory-limit", "1Gi"),
        ("outgate.dev/log-level", "warn"),
        ("outgate.dev/runtimes", "java"),
    ];
    subsequence(all, 0..=10)
        .prop_map(|chosen| chosen.into_iter().collect::<std::collections::BTreeMap<_, _>>())
        .prop_map(|chosen| json!(chosen))
        .boxed()
}

fn pods() -> BoxedStrategy<Value> {
    let volumes = subsequence(
        vec![
            json!({ "name": "cache", "emptyDir": {} }),
            json!({ "name": "outgate-public", "emptyDir": { "sizeLimit": "1Gi" } }),
            json!({ "name": "kube-api-access-x", "projected": { "sources": [] } }),
        ],
        0..=3,
    );
    let spec = object(vec![
        ("initContainers", sometimes(containers(vec!["migrate", "istio-init", "istio-proxy"], 0))),
        ("containers", containers(vec!["shop", "worker", "linkerd-proxy"], 1).prop_map(Some).boxed()),
        ("volumes", sometimes(volumes.prop_map(Value::Array))),
        ("shareProcessNamespace", sometimes(any::<bool>().prop_map(Value::Bool))),
        ("serviceAccountName", sometimes("[a-z]{1,5}".prop_map(Value::String))),
        ("securityContext", sometimes(Just(json!({ "runAsNonRoot": true })))),
    ]);
    (annotations(), spec, any::<bool>())
        .prop_map(|(annotations, spec, annotated)| {
            let mut pod = json!({ "metadata": { "labels": { "app": "shop", "outgate.dev/inject": "true" } }, "spec": spec });
            if annotated {
                pod["metadata"]["annotations"] = annotations;
            }
            pod
        })
        .boxed()
}

fn check(before: &Value, template: &Template) -> Result<bool, TestCaseError> {
    let answer = answered(&asked(before), template);
    if answer.verdict == Verdict::Refused {
        return Ok(false);
    }
    let after = patched(before, &answer);
    prop_assert!(kept(before, &after), "lost or changed:\n{before:#}\n{after:#}");
    let again = answered(&asked(&after), template);
    prop_assert_eq!(again.verdict, Verdict::Unchanged, "{:#}", again.review);
    let names = |key: &str| -> Vec<String> {
        let list = after["spec"][key].as_array().cloned().unwrap_or_default();
        list.iter().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let all = [names("initContainers"), names("containers")].concat();
    prop_assert_eq!(all.iter().filter(|name| *name == "outgate").count(), 1);
    for container in after["spec"]["containers"].as_array().into_iter().flatten() {
        let mut variables: Vec<&str> = container["env"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["name"].as_str())
            .collect();
        let theirs = before["spec"]["containers"].as_array().into_iter().flatten();
        let theirs = theirs
            .filter(|one| one["name"] == container["name"])
            .flat_map(|one| one["env"].as_array().into_iter().flatten());
        for name in theirs.filter_map(|one| one["name"].as_str()) {
            let place = variables.iter().position(|one| *one == name);
            variables.swap_remove(place.unwrap());
        }
        let added = variables.len();
        variables.sort_unstable();
        variables.dedup();
        prop_assert_eq!(added, variables.len(), "each variable is added once");
    }
    Ok(true)
}

#[test]
fn nothing_is_lost_and_a_second_call_changes_nothing() {
    let template = small();
    let mut runner = proptest::test_runner::TestRunner::default();
    let injected = std::cell::Cell::new(0);
    runner
        .run(&pods(), |pod| {
            if check(&pod, &template)? {
                injected.set(injected.get() + 1);
            }
            Ok(())
        })
        .unwrap();
    assert!(injected.get() > 60, "most pods can be injected, and not only {}", injected.get());
}

/// The comparison sees what it should.
#[test]
fn a_loss_would_be_seen() {
    let before = json!({ "a": [1, { "b": 2 }], "c": null });
    for (after, wanted) in [
        (json!({ "a": [0, 1, { "b": 2, "d": 3 }], "c": [] }), true),
        (json!({ "a": [{ "b": 2 }, 1] }), false),
        (json!({ "a": [1, { "b": 3 }] }), false),
        (json!({ "a": [1] }), false),
        (json!({}), false),
    ] {
        assert_eq!(kept(&before, &after), wanted, "{after}");
    }
}
