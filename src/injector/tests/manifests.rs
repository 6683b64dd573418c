//! Files of YAML: what changes, and what comes out as it came in.

use serde_json::Value;

use super::super::manifest::inject_text;
use super::{pod, small};

#[test]
fn every_kind_that_makes_pods() {
    let workload = |api: &str, kind: &str| {
        format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{ name: x }}\nspec: {{ template: {{ spec: {{ containers: [{{ name: a }}] }} }} }}\n"
        )
    };
    for (text, path) in [
        ("apiVersion: v1\nkind: Pod\nspec: { containers: [{ name: a }] }\n".to_owned(), "/spec"),
        (workload("apps/v1", "Deployment"), "/spec/template/spec"),
        (workload("apps/v1", "StatefulSet"), "/spec/template/spec"),
        (workload("apps/v1", "DaemonSet"), "/spec/template/spec"),
        (workload("apps/v1", "ReplicaSet"), "/spec/template/spec"),
        (workload("batch/v1", "Job"), "/spec/template/spec"),
        ("apiVersion: batch/v1\nkind: CronJob\nspec: { jobTemplate: { spec: { template: { spec: { containers: [{ name: a }] } } } } }\n".to_owned(), "/spec/jobTemplate/spec/template/spec"),
        ("apiVersion: v1\nkind: List\nitems:\n- { apiVersion: v1, kind: Service }\n- { apiVersion: v1, kind: Pod, spec: { containers: [{ name: a }] } }\n".to_owned(), "/items/1/spec"),
    ] {
        let injected = inject_text(&text, &small()).unwrap();
        assert_eq!((injected.pods, injected.warnings.len()), (1, 0), "{text}");
        let value = pod(&injected.text);
        let sidecar = value.pointer(&format!("{path}/initContainers/0/name"));
        assert_eq!(sidecar.and_then(Value::as_str), Some("outgate"), "{}", injected.text);
        assert_eq!(inject_text(&injected.text, &small()).unwrap().text, injected.text, "a second time changes nothing");
    }
    for foreign in [
        workload("example.com/v1", "Deployment"),
        workload("v1", "Service"),
        "- a\n- b\n".to_owned(),
        "text\n".to_owned(),
    ] {
        let same = inject_text(&foreign, &small()).unwrap();
        assert_eq!((same.pods, same.text), (0, foreign));
    }
}

/// Comments, order, spelling and line ends of what does not change.
#[test]
fn other_documents_come_out_byte_for_byte() {
    let others = [
        "# first\n",
        "---\napiVersion: v1 # a comment\nkind: ConfigMap\ndata: { z: yes }   # and\nb: |\n   not a --- marker\n",
        "---   \r\nkind:   Service\r\napiVersion: v1\r\n",
        "--- # nothing but this\n",
        "---\n# and this\n",
    ];
    let pods = "---\napiVersion: v1\nkind: Pod\nspec: { containers: [{ name: a }] }\n";
    let text = format!("{}{}{}{}{pods}{}", others[0], others[1], others[2], others[3], others[4]);
    let injected = inject_text(&text, &small()).unwrap().text;
    let (head, rest) = injected.split_at(others[..4].concat().len());
    assert_eq!(head, others[..4].concat());
    assert!(rest.starts_with("---\napiVersion: v1\nkind: Pod\n"), "{rest}");
    assert!(rest.ends_with(others[4]), "{rest}");
    assert_eq!(inject_text("", &small()).unwrap().text, "");
}

/// As kubectl reads the file, it is written: octal numbers, words for booleans, anchors; and strings stay strings.
#[test]
fn values_keep_their_meaning() {
    let text = "
apiVersion: v1
kind: Pod
x-base: &base { cpu: 100m }
spec:
  hostIPC: no
  containers:
    - name: a
      command: ['0644', 'yes', '1e3', 'null', '~', '', ' a ', 'a: b', '# c', '12:30:45', '2026-01-02', '.5', \"tab\\there\", \"two\\nlines\\n\"]
      resources: { requests: { <<: *base, memory: 1Gi } }
  volumes: [{ name: s, secret: { secretName: s, defaultMode: 0644 } }]
";
    let written = inject_text(text, &small()).unwrap().text;
    // Read back without any of YAML 1.1.
    let strict = serde_yaml::options! { strict_booleans: true };
    let value: Value = serde_yaml::from_str_with_options(&written, strict).unwrap();
    let container = &value["spec"]["containers"][0];
    let wanted = [
        "0644",
        "yes",
        "1e3",
        "null",
        "~",
        "",
        " a ",
        "a: b",
        "# c",
        "12:30:45",
        "2026-01-02",
        ".5",
        "tab\there",
        "two\nlines\n",
    ];
    assert_eq!(container["command"], serde_json::json!(wanted), "{written}");
    assert_eq!(container["resources"]["requests"], serde_json::json!({ "cpu": "100m", "memory": "1Gi" }));
    assert_eq!(value["spec"]["volumes"][0]["secret"]["defaultMode"], 0o644);
    assert_eq!(value["spec"]["hostIPC"], false);
    // And by whoever reads YAML 1.1: those words are quoted.
    for word in ["'yes'", "'0644'", "'1e3'", "'null'"] {
        assert!(written.contains(word) || written.contains(&word.replace('\'', "\"")), "{word}: {written}");
    }
}

/// Empty lines at the end of the last text are its own.
#[test]
fn a_text_at_the_end_keeps_its_lines() {
    let text = "apiVersion: v1\nkind: Pod\nspec: { containers: [{ name: a }] }\nz: |+\n  a\n\n\n---\nkind: Service\n";
    let written = inject_text(text, &small()).unwrap().text;
    let first = written.split("---").next().unwrap();
    assert_eq!(pod(first)["z"], "a\n\n\n", "{written}");
    assert_eq!(inject_text(&written, &small()).unwrap().text, written);
}

/// A document may end with `...`, and the next begin without `---`.
#[test]
fn a_marked_end_is_an_end() {
    let service = "apiVersion: v1\nkind: Service\n";
    let text = format!("apiVersion: v1\nkind: Pod\nspec: {{ containers: [{{ name: a }}] }}\n...\n{service}");
    let injected = inject_text(&text, &small()).unwrap();
    assert_eq!(injected.pods, 1);
    assert!(injected.text.ends_with(&format!("\n...\n{service}")), "{}", injected.text);
    assert_eq!(inject_text(&injected.text, &small()).unwrap().text, injected.text);
    let twice = "kind: Service\n...\nkind: Pod\nkind: Pod\n";
    let mistakes = inject_text(twice, &small()).unwrap_err().0;
    let wanted =
        "the document at line 3 is no YAML that can be read: duplicate mapping key: kind at line 4, column 1";
    assert_eq!(mistakes, [wanted]);
}

#[test]
fn json_stays_json() {
    let text = r#"{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"a"}]}}"#;
    let written = inject_text(text, &small()).unwrap().text;
    let value: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(value["spec"]["initContainers"][0]["name"], "outgate");
}

#[test]
fn all_mistakes_at_once_and_each_with_its_object() {
    let text = "
apiVersion: v1
kind: Pod
metadata: { name: one, annotations: { outgate.dev/polcy: x } }
spec: { containers: [{ name: a }] }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: two }
spec: {}
---
a: [
";
    let mistakes = inject_text(text, &small()).unwrap_err().0;
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    assert_eq!(
        mistakes[0],
        "Pod one: annotation `outgate.dev/polcy`: outgate knows no such key; did you mean `outgate.dev/policy`?"
    );
    assert_eq!(mistakes[1], "Deployment two: it has no pod template");
    assert!(
        mistakes[2].starts_with("the document at line 11 is no YAML that can be read: "),
        "{}",
        mistakes[2]
    );
}

#[test]
fn what_is_overlooked_is_told() {
    let text = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: shop, annotations: { outgate.dev/policy: x } }
spec: { template: { metadata: { labels: { outgate.dev/inject: 'false' } }, spec: { containers: [{ name: a }] } } }
";
    let injected = inject_text(text, &small()).unwrap();
    assert_eq!((injected.pods, injected.text.as_str()), (0, text));
    assert_eq!(
        injected.warnings,
        [
            "Deployment shop: annotation `outgate.dev/policy` has no effect here; it belongs to the pod template",
            "Deployment shop: label `outgate.dev/inject` is not `true`; it is left as it is",
        ]
    );
}

/// A file of aliases that name one another grows without end where they are put in.
#[test]
fn a_bomb_is_refused() {
    let mut text = String::from("apiVersion: v1\nkind: Pod\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let before = level - 1;
        text.push_str(&format!("a{level}: &a{level} [*a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}]\n"));
    }
    let begun = std::time::Instant::now();
    assert!(inject_text(&text, &small()).is_err());
    // Put in, it would be a hundred million texts.
    assert!(begun.elapsed().as_secs() < 60);
}
