//! What comes out for the pods that come.

use serde_json::{Value, json};

use super::super::review::Verdict;
use super::super::template::Template;
use super::{answered, asked, patched, pod, redirecting, shown, small};

/// A pod, as it is after the answer, and what was told with it.
fn outcome(yaml: &str, template: &Template) -> String {
    let before = pod(yaml);
    let answer = answered(&asked(&before), template);
    let after = patched(&before, &answer);
    assert_eq!(answer.review["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    let again = answered(&asked(&after), template);
    assert_eq!(again.review["response"].get("patch"), None, "a second call changes nothing");
    let told: Vec<String> = answer.review["response"]["warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|warning| format!("# {}\n", warning.as_str().unwrap()))
        .collect();
    let own = format!("{}/", env!("CARGO_PKG_VERSION"));
    format!("{}{}", told.concat(), shown(&after))
        .replace(&own, "VERSION/")
        .replace(&template.hash, "TEMPLATE")
}

macro_rules! outcomes {
    ($($name:ident: $yaml:expr,)+) => {
        $(#[test]
        fn $name() {
            insta::assert_snapshot!(stringify!($name), outcome($yaml, &small()));
        })+
    };
}

outcomes! {
    the_least_that_a_pod_has: "
metadata: { generateName: shop-, labels: { outgate.dev/inject: 'true' } }
spec: { containers: [{ name: shop, image: shop }] }
",
    lists_that_are_null: "
metadata: { labels: { outgate.dev/inject: 'true' }, annotations: null }
spec: { initContainers: null, volumes: null, containers: [{ name: shop, image: shop, env: null, volumeMounts: null }] }
",
    variables_of_ones_own: "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' }, annotations: { team: shop } }
spec:
  initContainers: [{ name: migrate, image: shop, env: [{ name: HTTPS_PROXY, value: 'http://127.0.0.1:3128' }] }]
  containers:
    - name: shop
      image: shop
      env: [{ name: https_proxy, value: 'http://corp:3128' }, { name: SSL_CERT_FILE, valueFrom: { configMapKeyRef: { name: a, key: b } } }]
    - { name: worker, image: shop, envFrom: [{ configMapRef: { name: settings } }] }
  volumes: [{ name: cache, emptyDir: {} }]
",
    a_job_with_a_secret: "
metadata:
  generateName: settle-
  labels: { outgate.dev/inject: 'true', batch.kubernetes.io/job-name: settle }
  annotations: { outgate.dev/credentials-secret: shop-keys, outgate.dev/policy: settle-policy }
spec:
  restartPolicy: Never
  containers: [{ name: settle, image: shop }]
",
    all_annotations: "
metadata:
  name: shop
  labels: { outgate.dev/inject: 'true' }
  annotations:
    outgate.dev/containers: shop,worker
    outgate.dev/exclude-containers: worker
    outgate.dev/no-proxy: '.corp.example, 10.0.0.0/8'
    outgate.dev/log-level: debug
    outgate.dev/cpu-request: 50m
    outgate.dev/memory-request: 64Mi
    outgate.dev/memory-limit: '0.25Gi'
spec: { containers: [{ name: log, image: log }, { name: shop, image: shop }, { name: worker, image: shop }] }
",
    classic: "
metadata:
  name: shop
  labels: { outgate.dev/inject: 'true' }
  annotations: { outgate.dev/native-sidecar: 'false' }
spec:
  initContainers: [{ name: migrate, image: shop }]
  containers: [{ name: shop, image: shop }]
",
    beside_a_mesh: "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' }, annotations: { kubectl.kubernetes.io/default-container: shop } }
spec:
  initContainers: [{ name: istio-init, image: istio }, { name: istio-proxy, image: istio, restartPolicy: Always }]
  containers: [{ name: shop, image: shop }]
",
    what_is_told_and_not_refused: "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' } }
spec:
  shareProcessNamespace: true
  securityContext: { runAsUser: 1000 }
  containers:
    - { name: shop, image: shop, ports: [{ containerPort: 9902 }] }
    - { name: worker, image: shop, securityContext: { runAsUser: 1001 } }
",
    the_sidecars_user: "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' } }
spec:
  securityContext: { runAsUser: 65532 }
  containers: [{ name: shop, image: shop }, { name: worker, image: shop, securityContext: { runAsUser: 1000 } }]
",
}

#[test]
fn the_librarys_own_template_whole() {
    let template = Template::embedded().unwrap();
    let yaml = "
metadata: { generateName: shop-, labels: { outgate.dev/inject: 'true' } }
spec: { containers: [{ name: shop, image: shop }] }
";
    insta::assert_snapshot!(outcome(yaml, &template));
}

/// Kubernetes fills in defaults between two calls, others change the sidecar, and a later webhook adds a container.
#[test]
fn a_later_call_gives_a_new_container_its_part_and_touches_nothing_else() {
    let template = small();
    let yaml = "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' } }
spec: { containers: [{ name: shop, image: shop }] }
";
    let before = pod(yaml);
    let mut after = patched(&before, &answered(&asked(&before), &template));
    after["spec"]["initContainers"][0]["terminationMessagePath"] = json!("/dev/termination-log");
    after["spec"]["initContainers"][0]["image"] = json!("mirror.example/outgate:1");
    after["spec"]["volumes"][0]["configMap"]["defaultMode"] = json!(420);
    after["spec"]["volumes"][1] = json!({ "name": "outgate-private", "emptyDir": { "sizeLimit": "1Mi" } });
    after["spec"]["containers"][0]["volumeMounts"][0]["recursiveReadOnly"] = json!("Disabled");
    assert_eq!(patched(&after, &answered(&asked(&after), &template)), after);
    let mut containers = after["spec"]["containers"].as_array().unwrap().clone();
    containers.insert(0, json!({ "name": "agent", "image": "agent" }));
    after["spec"]["containers"] = json!(containers);
    let last = patched(&after, &answered(&asked(&after), &template));
    assert_eq!(last["spec"]["containers"][0]["env"].as_array().unwrap().len(), 5);
    assert_eq!(last["spec"]["containers"][1], after["spec"]["containers"][1]);
    assert_eq!(last["spec"]["initContainers"], after["spec"]["initContainers"]);
    assert_eq!(last["metadata"], after["metadata"]);
}

/// While it runs nothing listens: with our variables its calls would be refused.
#[test]
fn what_a_later_webhook_puts_before_the_sidecar_is_not_pointed_at_it() {
    let template = small();
    for asked_for in [None, Some("setup,shop")] {
        let mut before = pod("
metadata: { name: shop, labels: { outgate.dev/inject: 'true' }, annotations: {} }
spec: { initContainers: [{ name: setup, image: setup }], containers: [{ name: shop, image: shop }] }
");
        if let Some(names) = asked_for {
            before["metadata"]["annotations"]["outgate.dev/containers"] = json!(names);
        }
        let mut after = patched(&before, &answered(&asked(&before), &template));
        assert!(after["spec"]["initContainers"][1].get("env").is_some(), "{after:#}");
        let all = after["spec"]["initContainers"].as_array_mut().unwrap();
        // One that comes before, and in the other case ours that is put behind.
        match asked_for {
            None => all.insert(0, json!({ "name": "early", "image": "early" })),
            Some(_) => {
                all.swap(0, 1);
                all[0] = json!({ "name": "setup", "image": "setup" });
            }
        }
        all.push(json!({ "name": "late", "image": "late" }));
        let answer = answered(&asked(&after), &template);
        let last = patched(&after, &answer);
        let pointed: Vec<bool> = last["spec"]["initContainers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one.get("env").is_some() || one.get("volumeMounts").is_some())
            .collect();
        let warnings = answer.review["response"]["warnings"].to_string();
        let told = "init container `setup` runs before the sidecar, and is not pointed at it";
        assert_eq!(warnings.contains(told), asked_for.is_some(), "{warnings}");
        match asked_for {
            // The sidecar has mounts of its own.
            None => assert_eq!(pointed, [false, true, true, true], "{last:#}"),
            Some(_) => assert_eq!(pointed, [false, true, false], "{last:#}"),
        }
    }
}

/// Also those that it does not say it has.
#[test]
fn ports_on_which_the_sidecar_listens() {
    let yaml = "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' } }
spec:
  containers:
    - { name: shop, image: shop, ports: [{ containerPort: 80 }, { containerPort: 3128 }, { containerPort: 9901 }, { containerPort: 9902 }] }
";
    let answer = answered(&asked(&pod(yaml)), &Template::embedded().unwrap());
    let warnings = answer.review["response"]["warnings"].to_string();
    let told = |port: u16| warnings.contains(&format!("names port {port}, on which the sidecar listens"));
    assert_eq!([80, 3128, 9901, 9902].map(told), [false, true, true, true], "{warnings}");
}

/// Of another template, of other annotations, of a chart that includes the library: none is mixed with ours.
#[test]
fn another_sidecar_is_left_alone() {
    let template = small();
    let yaml = "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' } }
spec: { containers: [{ name: shop, image: shop }] }
";
    let before = pod(yaml);
    let ours = patched(&before, &answered(&asked(&before), &template));
    let change = |change: fn(&mut Value)| {
        let mut pod = ours.clone();
        change(&mut pod);
        pod
    };
    let others = [
        change(|pod| pod["metadata"]["annotations"]["outgate.dev/status"] = json!("0.0.9/0123456789abcdef")),
        change(|pod| pod["metadata"]["annotations"]["outgate.dev/memory-limit"] = json!("1Gi")),
        change(|pod| pod["metadata"]["annotations"] = json!({})),
    ];
    for other in others {
        let answer = answered(&asked(&other), &template);
        assert_eq!((answer.verdict, answer.warnings), (Verdict::Unchanged, 1), "{:#}", answer.review);
    }
    let older = change(|pod| {
        let status = pod["metadata"]["annotations"]["outgate.dev/status"].as_str().unwrap();
        let older = format!("0.0.9/{}", status.split_once('/').unwrap().1);
        pod["metadata"]["annotations"]["outgate.dev/status"] = json!(older);
    });
    let answer = answered(&asked(&older), &template);
    assert_eq!((answer.verdict, answer.warnings), (Verdict::Unchanged, 0), "the same by an older version");
}

/// A status without a sidecar was copied from another pod.
#[test]
fn a_status_alone_counts_nothing() {
    let yaml = "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' }, annotations: { outgate.dev/status: 0.1.0/0123456789abcdef } }
spec: { containers: [{ name: shop, image: shop }] }
";
    let before = pod(yaml);
    let answer = answered(&asked(&before), &small());
    assert_eq!(answer.verdict, Verdict::Injected);
    let after = patched(&before, &answer);
    let status = after["metadata"]["annotations"]["outgate.dev/status"].as_str().unwrap().to_owned();
    assert_eq!(status, format!("{}/{}", env!("CARGO_PKG_VERSION"), small().hash));
}

#[test]
fn both_spellings_of_a_variable_are_looked_at() {
    let yaml = "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' } }
spec:
  containers:
    - name: shop
      env: [{ name: HTTPS_PROXY, value: 'http://127.0.0.1:3128' }, { name: https_proxy, value: 'http://corp:3128' }]
";
    let before = pod(yaml);
    let after = patched(&before, &answered(&asked(&before), &small()));
    let names: Vec<&str> = after["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE"]);
}

#[test]
fn what_is_not_the_making_of_a_pod_that_asks_is_allowed_as_it_is() {
    let yaml = "
metadata: { name: shop, labels: { outgate.dev/inject: 'true' }, annotations: { outgate.dev/nonsense: 'x' } }
spec: { containers: [{ name: shop }] }
";
    let of = |change: fn(&mut Value)| {
        let mut review = asked(&pod(yaml));
        change(&mut review["request"]);
        review
    };
    let cases = [
        of(|request| request["operation"] = json!("UPDATE")),
        of(|request| {
            request["operation"] = json!("DELETE");
            request["object"] = json!(null);
        }),
        of(|request| request["operation"] = json!("CONNECT")),
        of(|request| request["subResource"] = json!("ephemeralcontainers")),
        of(|request| request["kind"] = json!({ "group": "apps", "version": "v1", "kind": "Deployment" })),
        of(|request| request["kind"] = json!({ "group": "example.com", "version": "v1", "kind": "Pod" })),
        of(|request| request["object"]["metadata"]["labels"]["outgate.dev/inject"] = json!("false")),
        of(|request| request["object"]["metadata"]["labels"] = json!(null)),
        of(|request| request["object"] = json!("nonsense")),
    ];
    for case in cases {
        let answer = answered(&case, &small());
        let uid = case["request"]["uid"].clone();
        assert_eq!(answer.verdict, Verdict::Unchanged, "{case:#}");
        assert_eq!(answer.review["response"], json!({ "uid": uid, "allowed": true }));
        assert_eq!(answer.review["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer.review["kind"], "AdmissionReview");
    }
    let dry = of(|request| {
        request["dryRun"] = json!(true);
        request["object"]["metadata"]["annotations"] = json!({});
    });
    assert_eq!(answered(&dry, &small()).verdict, Verdict::Injected);
}

/// The rules are made before all else, and before the sidecar; who shares its user would not be redirected.
#[test]
fn where_the_template_redirects() {
    let template = redirecting();
    let yaml = |annotations: &str, user: u32| {
        pod(&format!(
            "
metadata: {{ labels: {{ outgate.dev/inject: 'true' }}, annotations: {{ {annotations} }} }}
spec:
  initContainers: [{{ name: migrate }}]
  containers: [{{ name: shop, securityContext: {{ runAsUser: {user} }} }}]
"
        ))
    };
    let names = |pod: &Value, key: &str| -> Vec<String> {
        let list = pod["spec"][key].as_array().unwrap();
        list.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    for (annotations, init, containers) in [
        ("", vec!["outgate-redirect", "outgate", "migrate"], vec!["shop"]),
        ("outgate.dev/native-sidecar: 'false'", vec!["outgate-redirect", "migrate"], vec!["outgate", "shop"]),
    ] {
        let before = yaml(annotations, 1000);
        let after = patched(&before, &answered(&asked(&before), &template));
        assert_eq!(
            (names(&after, "initContainers"), names(&after, "containers")),
            (owned(&init), owned(&containers))
        );
        assert_eq!(
            after["spec"]["initContainers"][0].get("env"),
            None,
            "what makes the rules is not pointed at outgate"
        );
        assert_eq!(answered(&asked(&after), &template).verdict, Verdict::Unchanged);
    }
    let refused = |pod: &Value| {
        let answer = answered(&asked(pod), &template);
        answer.review["response"]["status"]["message"].as_str().unwrap().to_owned()
    };
    let shared =
        "outgate: container `shop` runs as the sidecar's user: its connections would not be redirected";
    assert_eq!(refused(&yaml("", 65532)), shared);
    let mut taken = yaml("", 1000);
    taken["spec"]["initContainers"][0]["name"] = json!("outgate-redirect");
    assert_eq!(
        refused(&taken),
        "outgate: the pod has a container `outgate-redirect` of its own, which is a name of the sidecar's"
    );
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
