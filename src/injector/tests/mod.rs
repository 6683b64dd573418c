//! The injector, whole: reviews in, patches applied, pods compared.

mod manifests;
mod pods;
mod property;
mod refusals;
mod served;
mod templates;

use serde_json::{Value, json};

use super::review::{Answer, review};
use super::template::Template;

/// A template that is small enough to be read in a snapshot, with all that a template has.
fn small_document() -> Value {
    let sidecar = |native: bool| {
        let mut sidecar = json!({
            "name": "outgate",
            "image": "outgate:1",
            "args": ["run", "--log=info"],
            "ports": [{ "name": "outgate-metrics", "containerPort": 9902 }],
            "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } },
            "securityContext": { "runAsUser": 65532 },
            "volumeMounts": [
                { "name": "outgate-policy", "mountPath": "/etc/outgate/policy", "readOnly": true },
                { "name": "outgate-private", "mountPath": "/var/lib/outgate" },
                { "name": "outgate-public", "mountPath": "/var/run/outgate" },
            ],
        });
        if native {
            sidecar["restartPolicy"] = json!("Always");
        }
        sidecar
    };
    let parts = |native: bool| {
        json!({
            "labels": { "outgate.dev/injected": "true" },
            "initContainers": if native { json!([sidecar(true)]) } else { json!([]) },
            "containers": if native { json!([]) } else { json!([sidecar(false)]) },
            "env": [
                { "name": "HTTPS_PROXY", "value": "http://127.0.0.1:3128" },
                { "name": "https_proxy", "value": "http://127.0.0.1:3128" },
                { "name": "NO_PROXY", "value": "localhost" },
                { "name": "no_proxy", "value": "localhost" },
                { "name": "SSL_CERT_FILE", "value": "/var/run/outgate/ca-bundle.pem" },
            ],
            "volumeMounts": [{ "name": "outgate-public", "mountPath": "/var/run/outgate", "readOnly": true }],
            "volumes": [
                { "name": "outgate-policy", "configMap": { "name": "outgate-policy" } },
                { "name": "outgate-private", "emptyDir": { "medium": "Memory" } },
                { "name": "outgate-public", "emptyDir": {} },
            ],
        })
    };
    let java = |native: bool| {
        let mut parts = parts(native);
        let options = "-Dhttps.proxyHost=127.0.0.1 -Dhttp.nonProxyHosts=localhost|*.svc -Dlast=1";
        parts["env"].as_array_mut().unwrap().push(json!({ "name": "JAVA_TOOL_OPTIONS", "value": options }));
        parts
    };
    json!({
        "default": "native",
        "native": parts(true),
        "classic": parts(false),
        "java": { "native": java(true), "classic": java(false) },
        "credentials": {
            "volumes": [{ "name": "outgate-credentials", "secret": { "secretName": "named-by-the-pod" } }],
            "volumeMounts": [{ "name": "outgate-credentials", "mountPath": "/etc/outgate/credentials", "readOnly": true }],
        },
    })
}

/// A template of a document.
fn made(document: &Value) -> Template {
    Template::parse(&document.to_string()).unwrap()
}

/// The small template.
fn small() -> Template {
    made(&small_document())
}

/// The same, redirecting connections: an init container makes the rules before the sidecar starts.
fn redirecting() -> Template {
    let mut document = small_document();
    let rules = json!({ "name": "outgate-redirect", "args": ["redirect", "setup"], "securityContext": { "runAsUser": 0 } });
    for mode in ["native", "classic"] {
        document[mode]["initContainers"].as_array_mut().unwrap().insert(0, rules.clone());
    }
    made(&document)
}

/// A pod of YAML.
fn pod(yaml: &str) -> Value {
    serde_yaml::from_str(yaml).unwrap()
}

/// A review of the making of this pod.
fn asked(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
}

fn answered(review_of: &Value, template: &Template) -> Answer {
    review(review_of.to_string().as_bytes(), template).unwrap()
}

/// The pod after the patch that the answer brings; the pod itself where it brings none.
fn patched(pod: &Value, answer: &Answer) -> Value {
    use base64::Engine as _;
    let response = &answer.review["response"];
    assert_eq!(response["allowed"], true, "{response:#}");
    let mut pod = pod.clone();
    if let Some(patch) = response["patch"].as_str() {
        assert_eq!(response["patchType"], "JSONPatch");
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
    }
    pod
}

/// A pod as people read it.
fn shown(value: &Value) -> String {
    serde_yaml::to_string(value).unwrap()
}
