//! What is refused, in which words.

use serde_json::json;

use super::super::review::{Malformed, Verdict, review};
use super::{answered, asked, pod, small};

/// `metadata` beside the label, `spec` beside the container, and what is said.
const CASES: &[(&str, &str, &str)] = &[
    (
        "annotations: { outgate.dev/polciy: x }",
        "",
        "annotation `outgate.dev/polciy`: outgate knows no such key; did you mean `outgate.dev/policy`?",
    ),
    (
        "annotations: { outgate.dev/image: evil }",
        "",
        "annotation `outgate.dev/image`: outgate knows no such key",
    ),
    (
        "annotations: { outgate.dev/inject: 'true' }",
        "",
        "annotation `outgate.dev/inject`: outgate knows no such key; it is a label",
    ),
    ("annotations: { outgate.dev/: x }", "", "annotation `outgate.dev/`: outgate knows no such key"),
    (
        "annotations: { outgate.dev/policy: Shop_Policy }",
        "",
        "annotation `outgate.dev/policy`: `Shop_Policy` is not the name of a ConfigMap",
    ),
    (
        "annotations: { outgate.dev/credentials-secret: '' }",
        "",
        "annotation `outgate.dev/credentials-secret`: `` is not the name of a Secret",
    ),
    (
        "annotations: { outgate.dev/containers: 'shop,' }",
        "",
        "annotation `outgate.dev/containers`: `shop,` is not a list of containers: `app,worker`",
    ),
    (
        "annotations: { outgate.dev/containers: shpo }",
        "",
        "annotation `outgate.dev/containers`: the pod has no container `shpo`; did you mean `shop`?",
    ),
    (
        "annotations: { outgate.dev/exclude-containers: outgate }",
        "",
        "annotation `outgate.dev/exclude-containers`: the pod has no container `outgate`",
    ),
    (
        "annotations: { outgate.dev/no-proxy: '$(POD_IP)' }",
        "",
        "annotation `outgate.dev/no-proxy`: `$(POD_IP)` is not a list of hosts, suffixes and networks: `.corp.example,10.0.0.0/8`",
    ),
    (
        "annotations: { outgate.dev/runtimes: 'java,go' }",
        "",
        "annotation `outgate.dev/runtimes`: `java,go` is not a list of runtimes: `java`",
    ),
    (
        "annotations: { outgate.dev/native-sidecar: 'yes' }",
        "",
        "annotation `outgate.dev/native-sidecar`: `yes` is not `true` or `false`",
    ),
    (
        "annotations: { outgate.dev/log-level: loud }",
        "",
        "annotation `outgate.dev/log-level`: `loud` is not `error`, `warn`, `info` or `debug`",
    ),
    (
        "annotations: { outgate.dev/cpu-request: '1 core' }",
        "",
        "annotation `outgate.dev/cpu-request`: `1 core` is not a quantity: `100m`",
    ),
    (
        "annotations: { outgate.dev/memory-limit: '-1Gi' }",
        "",
        "annotation `outgate.dev/memory-limit`: `-1Gi` is not a quantity: `128Mi`",
    ),
    (
        "annotations: { outgate.dev/memory-request: 1.Gi }",
        "",
        "annotation `outgate.dev/memory-request`: `1.Gi` is not a quantity: `64Mi`",
    ),
    (
        "",
        "hostNetwork: true",
        "a pod with `hostNetwork` gets no sidecar: its 127.0.0.1 is the node's, and whoever runs there could use the credentials",
    ),
    ("", "os: { name: windows }", "the sidecar is a Linux program, and `os.name` says `windows`"),
    (
        "",
        "shareProcessNamespace: true, securityContext: { runAsUser: 65532 }",
        "container `shop` shares the process namespace with the sidecar and is or may be root (no `runAsUser`, no `runAsNonRoot`), is privileged, may trace, or is the sidecar's user; it could read or stop it",
    ),
    (
        "",
        "hostPID: true, securityContext: { runAsUser: 0 }",
        "container `shop` shares the process namespace with the sidecar and is or may be root (no `runAsUser`, no `runAsNonRoot`), is privileged, may trace, or is the sidecar's user; it could read or stop it",
    ),
    (
        "",
        "initContainers: [{ name: outgate }]",
        "the pod has a container `outgate` of its own, which is a name of the sidecar's",
    ),
    (
        "",
        "volumes: [{ name: outgate-private, hostPath: { path: /tmp } }]",
        "the pod has a volume `outgate-private` of its own, which is a name of the sidecar's volumes",
    ),
    (
        "",
        "initContainers: [{ name: a, volumeMounts: [{ name: mine, mountPath: /var/run/outgate/ }] }]",
        "container `a` has a mount at `/var/run/outgate/`, where outgate's certificates have to be",
    ),
    (
        "",
        "initContainers: [{ name: a, volumeMounts: [{ name: outgate-private, mountPath: /k }] }]",
        "container `a` mounts `outgate-private`, which is the sidecar's alone",
    ),
    (
        "",
        "initContainers: [{ name: a, volumeMounts: [{ name: outgate-public, mountPath: /var/run/outgate }] }]",
        "container `a` mounts `outgate-public`, which is the sidecar's alone",
    ),
    (
        "",
        "shareProcessNamespace: true",
        "container `shop` shares the process namespace with the sidecar and is or may be root (no `runAsUser`, no `runAsNonRoot`), is privileged, may trace, or is the sidecar's user; it could read or stop it",
    ),
    (
        "",
        "hostPID: true, securityContext: { runAsNonRoot: false }",
        "container `shop` shares the process namespace with the sidecar and is or may be root (no `runAsUser`, no `runAsNonRoot`), is privileged, may trace, or is the sidecar's user; it could read or stop it",
    ),
    (
        "",
        "shareProcessNamespace: true, securityContext: { runAsUser: 1000 }, initContainers: [{ name: a, securityContext: { capabilities: { add: [SYS_PTRACE] } } }]",
        "container `a` shares the process namespace with the sidecar and is or may be root (no `runAsUser`, no `runAsNonRoot`), is privileged, may trace, or is the sidecar's user; it could read or stop it",
    ),
    (
        "",
        "shareProcessNamespace: true, securityContext: { runAsUser: 1000 }, initContainers: [{ name: a, securityContext: { capabilities: { add: [CAP_sys_admin] } } }]",
        "container `a` shares the process namespace with the sidecar and is or may be root (no `runAsUser`, no `runAsNonRoot`), is privileged, may trace, or is the sidecar's user; it could read or stop it",
    ),
    (
        "",
        "shareProcessNamespace: true, securityContext: { runAsUser: 1000 }, initContainers: [{ name: a, securityContext: { capabilities: { add: [ALL] } } }]",
        "container `a` shares the process namespace with the sidecar and is or may be root (no `runAsUser`, no `runAsNonRoot`), is privileged, may trace, or is the sidecar's user; it could read or stop it",
    ),
    (
        "",
        "initContainers: [{ name: a, volumeMounts: [{ name: mine, mountPath: /var/run/outgate/ca-bundle.pem }] }]",
        "container `a` has a mount at `/var/run/outgate/ca-bundle.pem`, where outgate's certificates have to be",
    ),
    (
        "",
        "initContainers: [{ name: a, volumeMounts: [{ name: mine, mountPath: /var/run/./outgate }] }]",
        "container `a` has a mount at `/var/run/./outgate`, where outgate's certificates have to be",
    ),
    (
        "",
        "initContainers: [{ name: a, volumeMounts: [{ name: mine, mountPath: //var/run/x/../outgate }] }]",
        "container `a` has a mount at `//var/run/x/../outgate`, where outgate's certificates have to be",
    ),
    (
        "",
        "initContainers: [{ name: a, volumeMounts: [{ name: mine, mountPath: /run/outgate }] }]",
        "container `a` has a mount at `/run/outgate`, where outgate's certificates have to be",
    ),
    // One file of another volume over the bundle: the app would trust what stands in that.
    (
        "",
        "volumes: [{ name: mine, emptyDir: {} }], initContainers: [{ name: a, volumeMounts: [{ name: mine, mountPath: /run/outgate/ca-bundle.pem, subPath: pem }] }]",
        "container `a` has a mount at `/run/outgate/ca-bundle.pem`, where outgate's certificates have to be",
    ),
    (
        "annotations: { outgate.dev/memory-request: 1Gi }",
        "",
        "annotation `outgate.dev/memory-request`: `1Gi` is not at most the sidecar's limit of memory",
    ),
    (
        "annotations: { outgate.dev/memory-limit: 31.9Mi }",
        "",
        "annotation `outgate.dev/memory-limit`: `31.9Mi` is not at least the sidecar's request of memory",
    ),
    (
        "annotations: { outgate.dev/memory-limit: 1G, outgate.dev/memory-request: 1Gi }",
        "",
        "annotation `outgate.dev/memory-request`: `1Gi` is not at most the sidecar's limit of memory",
    ),
    ("annotations: 7", "", "this is not a pod that outgate understands: `metadata.annotations`"),
    (
        "annotations: { outgate.dev/policy: 7 }",
        "",
        "this is not a pod that outgate understands: `metadata.annotations`",
    ),
    ("", "initContainers: yes", "this is not a pod that outgate understands: `initContainers`"),
    ("", "volumes: [a]", "this is not a pod that outgate understands: `volumes`"),
];

#[test]
fn each_with_its_words() {
    for (metadata, spec, wanted) in CASES {
        let comma = |text: &str| if text.is_empty() { String::new() } else { format!(", {text}") };
        let yaml = format!(
            "metadata: {{ labels: {{ outgate.dev/inject: 'true' }}{} }}\nspec: {{ containers: [{{ name: shop }}]{} }}\n",
            comma(metadata),
            comma(spec),
        );
        let pod = pod(&yaml);
        let answer = answered(&asked(&pod), &small());
        let response = &answer.review["response"];
        assert_eq!(answer.verdict, Verdict::Refused, "{yaml}{response:#}");
        assert_eq!(response["allowed"], false);
        assert_eq!(response.get("patch"), None);
        assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
        assert_eq!(response["status"]["message"].as_str().unwrap(), format!("outgate: {wanted}"), "{yaml}");
    }
}

/// Each container is given variables and mounts: a small pod of many would have a large answer.
#[test]
fn pods_of_many_containers_are_refused_before_anything_is_made() {
    let mut pod = pod("metadata: { labels: { outgate.dev/inject: 'true' } }\nspec: { containers: [] }\n");
    let some = |count: usize| (0..count).map(|n| json!({ "name": format!("c{n}") })).collect::<Vec<_>>();
    for (init, main, ephemeral, wanted) in [
        (0, 100, 0, Verdict::Injected),
        (0, 101, 0, Verdict::Refused),
        (50, 50, 0, Verdict::Injected),
        (50, 50, 1, Verdict::Refused),
        (0, 16_000, 0, Verdict::Refused),
    ] {
        pod["spec"]["initContainers"] = some(init).into();
        pod["spec"]["containers"] = some(main).into();
        pod["spec"]["ephemeralContainers"] = some(ephemeral).into();
        let answer = answered(&asked(&pod), &small());
        let text = answer.review.to_string();
        assert_eq!(answer.verdict, wanted, "{init} {main} {ephemeral}");
        assert!(text.len() < 200_000, "{}", text.len());
        assert_eq!(text.contains("outgate takes at most 100 of all kinds"), wanted == Verdict::Refused);
    }
}

/// The template is the operator's, and may be large; what comes of it for one pod is bounded all the same.
#[test]
fn what_is_added_is_bounded() {
    let mut document = super::small_document();
    let value = "x".repeat(20_000);
    document["native"]["env"].as_array_mut().unwrap().push(json!({ "name": "BIG", "value": value }));
    let template = super::made(&document);
    let mut pod = pod("metadata: { labels: { outgate.dev/inject: 'true' } }\nspec: { containers: [] }\n");
    for (count, wanted) in [(50, Verdict::Injected), (60, Verdict::Refused)] {
        pod["spec"]["containers"] = (0..count).map(|n| json!({ "name": format!("c{n}") })).collect();
        let answer = answered(&asked(&pod), &template);
        assert_eq!(answer.verdict, wanted, "{count}");
        assert_eq!(answer.review.to_string().contains("more than 1 MiB"), wanted == Verdict::Refused);
    }
    pod["metadata"]["annotations"] = json!({ "outgate.dev/no-proxy": "a,".repeat(2100) + "a" });
    let said = answered(&asked(&pod), &small()).said.join("");
    assert!(said.ends_with("is not at most 4096 bytes long"), "{said}");
}

/// Kubernetes takes the last of two with one name, so it is the last that is judged.
#[test]
fn the_last_of_two_variables_counts() {
    let env = |first: &str, last: &str| {
        let mut pod = pod(
            "metadata: { labels: { outgate.dev/inject: 'true' } }\nspec: { containers: [{ name: shop }] }\n",
        );
        let one = |value: &str| json!({ "name": "HTTPS_PROXY", "value": value });
        pod["spec"]["containers"][0]["env"] = json!([one(first), one(last)]);
        answered(&asked(&pod), &small()).said.join("\n")
    };
    let ours = "http://127.0.0.1:3128";
    assert!(env(ours, "http://other:1").contains("sets HTTPS_PROXY itself"));
    assert_eq!(env("http://other:1", ours), "");
}

#[test]
fn the_label_that_outgate_sets_is_not_anothers() {
    let mut pod = pod(
        "metadata: { labels: { outgate.dev/inject: 'true', outgate.dev/injected: 'false' } }\nspec: { containers: [{ name: shop }] }\n",
    );
    let answer = answered(&asked(&pod), &small());
    let message = answer.review["response"]["status"]["message"].as_str().unwrap().to_owned();
    assert_eq!(
        message,
        "outgate: label `outgate.dev/injected` is set by outgate, and here it says something else"
    );
    pod["metadata"]["labels"]["outgate.dev/injected"] = json!("true");
    assert_eq!(answered(&asked(&pod), &small()).verdict, Verdict::Injected);
}

#[test]
fn names_of_a_pod_are_shown_short_and_harmless() {
    let long = format!("outgate.dev/{}\u{1b}[31m\n", "x".repeat(5000));
    let mut pod =
        pod("metadata: { labels: { outgate.dev/inject: 'true' } }\nspec: { containers: [{ name: shop }] }\n");
    pod["metadata"]["annotations"] = json!({ long: "y" });
    let answer = answered(&asked(&pod), &small());
    let message = answer.review["response"]["status"]["message"].as_str().unwrap().to_owned();
    assert!(message.len() < 250 && !message.contains(['\n', '\u{1b}']), "{message:?}");
}

#[test]
fn warnings_have_an_end() {
    let mut pod = pod("metadata: { labels: { outgate.dev/inject: 'true' } }\nspec: { containers: [] }\n");
    let one = |number: usize| json!({ "name": format!("c{number}"), "env": [{ "name": "NO_PROXY", "value": "x" }] });
    pod["spec"]["containers"] = (0..40).map(one).collect();
    let answer = answered(&asked(&pod), &small());
    let told = answer.review["response"]["warnings"].as_array().unwrap().clone();
    assert_eq!((answer.warnings, told.len()), (40, 13));
    assert_eq!(told[12], "outgate: ... and 28 more");
}

/// What the template sets for the sidecar's end is compared with what the pod has for its own.
#[test]
fn a_pod_that_is_killed_before_the_sidecar_has_ended() {
    let told = |template: &super::Template, grace: &str| {
        let yaml = format!(
            "metadata: {{ labels: {{ outgate.dev/inject: 'true' }} }}\nspec: {{ containers: [{{ name: shop }}]{grace} }}\n"
        );
        let answer = answered(&asked(&pod(&yaml)), template);
        assert_eq!(answer.verdict, Verdict::Injected);
        answer.said.join("\n")
    };
    let embedded = super::Template::embedded().unwrap();
    // 20 s where nothing is set, and in the library's values.
    for template in [&small(), &embedded] {
        assert_eq!(told(template, ""), "");
        assert_eq!(told(template, ", terminationGracePeriodSeconds: 30"), "");
        let warning = told(template, ", terminationGracePeriodSeconds: 20");
        assert!(
            warning.contains("`terminationGracePeriodSeconds` is 20, and the sidecar may take 20s"),
            "{warning}"
        );
    }
    let mut document = super::small_document();
    document["native"]["initContainers"][0]["env"] =
        json!([{ "name": "OUTGATE_SET", "value": "runtime.linger=15s\nruntime.drain=25s" }]);
    let long = super::made(&document);
    let warning = told(&long, ", terminationGracePeriodSeconds: 30");
    assert!(warning.contains("the sidecar may take 40s"), "{warning}");
    // In a manifest nobody has filled Kubernetes' own 30 s in yet.
    for absent in ["", ", terminationGracePeriodSeconds: null"] {
        let warning = told(&long, absent);
        assert!(warning.contains("is not set, which means 30, and the sidecar may take 40s"), "{warning}");
    }
    assert_eq!(told(&long, ", terminationGracePeriodSeconds: 41"), "");
}

#[test]
fn what_is_no_review_has_no_answer() {
    let good = asked(&pod("spec: {}"));
    let with = |key: &str, value: serde_json::Value| {
        let mut review = good.clone();
        review[key] = value;
        review.to_string()
    };
    for (body, wanted) in [
        (String::new(), Malformed::Shape),
        ("{".to_owned(), Malformed::Shape),
        ("[]".to_owned(), Malformed::Shape),
        ("[".repeat(100_000), Malformed::Shape),
        (with("kind", json!("Pod")), Malformed::Shape),
        (with("request", json!(null)), Malformed::Shape),
        (with("request", json!({ "kind": { "kind": "Pod" }, "operation": "CREATE" })), Malformed::Shape),
        (with("apiVersion", json!("admission.k8s.io/v1beta1")), Malformed::Version),
    ] {
        assert_eq!(review(body.as_bytes(), &small()).err(), Some(wanted), "{}", &body[..body.len().min(200)]);
    }
}
