//! Manifests: the sidecar in the pods of YAML files.
//!
//! Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job and CronJob are known, alone or in a List. Documents in which nothing is
//! to be done come out byte for byte; those that change are written anew, with sorted keys and without comments.
//!
//! A file is given by somebody who wants the sidecar, so the label is not asked for; but `outgate.dev/inject` with another value than
//! `true` leaves a pod out.

use serde_json::{Map, Value};
use serde_yaml::{options, ser_options};

use super::merge::inject;
use super::review::label;
use super::template::Template;
use super::tree::{at, text};
use super::{PREFIX, Shown};

/// A text that was gone through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// The text as it should be.
    pub text: String,
    /// What whoever reads along should know, each with the object it is about.
    pub warnings: Vec<String>,
    /// How many pods there were to inject, those included that had all already.
    pub pods: usize,
}

/// What is wrong with a text: all of it, one sentence each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

/// Puts the sidecar into all pods of a text of YAML documents.
///
/// # Errors
///
/// [`Mistakes`]: what cannot be read, and what is refused. No part of the text is good then.
pub fn inject_text(input: &str, template: &Template) -> Result<Injected, Mistakes> {
    let mut result = Injected::default();
    let mut mistakes = Vec::new();
    for document in documents(input) {
        let mut work = Work { template, result: &mut result, mistakes: &mut mistakes };
        match work.document(&document) {
            Some(changed) => result.text.push_str(&changed),
            None => result.text.push_str(document.raw),
        }
    }
    if mistakes.is_empty() { Ok(result) } else { Err(Mistakes(mistakes)) }
}

/// One document of a text, with the line it begins at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Document<'a> {
    raw: &'a str,
    line: usize,
}

impl Document<'_> {
    /// Whether it has a value, and not only comments, directives and markers.
    fn has_value(&self) -> bool {
        let is_nothing = |line: &str| {
            let line = line.trim_start_matches('\u{feff}').trim();
            line.is_empty() || line.starts_with(['#', '%']) || line == "..." || is_bare_marker(line)
        };
        !self.raw.lines().all(is_nothing)
    }
}

fn is_bare_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.trim().is_empty() || rest.trim().starts_with('#'))
}

/// A line that begins with `---` begins a document, and one that begins with `...` ends it, wherever they stand: YAML 1.2.2 forbids
/// both inside of scalars (9.1.2).
fn documents(input: &str) -> Vec<Document<'_>> {
    let marks = |line: &str, marker: &str| {
        line.strip_prefix(marker)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut found = Vec::new();
    let (mut begin, mut begin_line, mut offset) = (0, 1, 0);
    for (number, line) in (1..).zip(input.split_inclusive('\n')) {
        if marks(line, "---") && offset > begin {
            found.push(Document { raw: &input[begin..offset], line: begin_line });
            (begin, begin_line) = (offset, number);
        }
        offset += line.len();
        if marks(line, "...") {
            found.push(Document { raw: &input[begin..offset], line: begin_line });
            (begin, begin_line) = (offset, number + 1);
        }
    }
    found.push(Document { raw: &input[begin..], line: begin_line });
    found
}

/// As kubectl reads it: 0644 is octal, and `yes` is true.
fn read(text: &str) -> Result<Value, serde_yaml::Error> {
    serde_yaml::from_str_with_options(text, options! { legacy_octal_numbers: true, with_snippet: false })
}

/// Why a document cannot be read, with the place in the whole file: it is read once more, with as many lines before it.
fn complaint(document: &Document<'_>) -> String {
    let padded = format!("{}{}", "\n".repeat(document.line - 1), document.raw);
    let error = read(&padded).map_or_else(|error| error.to_string(), |_| String::new());
    // Advice for those who call the library.
    let error = error.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    format!("the document at line {} is no YAML that can be read: {error}", document.line)
}

struct Work<'a> {
    template: &'a Template,
    result: &'a mut Injected,
    mistakes: &'a mut Vec<String>,
}

impl Work<'_> {
    /// The document as it should be, where it changes.
    fn document(&mut self, document: &Document<'_>) -> Option<String> {
        if !document.has_value() {
            return None;
        }
        let mut value = match read(document.raw) {
            Ok(value) => value,
            Err(_) => {
                self.mistakes.push(complaint(document));
                return None;
            }
        };
        if !self.value(&mut value) {
            return None;
        }
        match written(&value, document.raw) {
            Ok(text) => Some(text),
            Err(error) => {
                self.mistakes
                    .push(format!("the document at line {} cannot be written: {error}", document.line));
                None
            }
        }
    }

    /// Whether the object changed.
    fn value(&mut self, value: &mut Value) -> bool {
        if text(value, "kind") == Some("List") && text(value, "apiVersion") == Some("v1") {
            let items = value.get_mut("items").and_then(Value::as_array_mut);
            let mut changed = false;
            // Each of them, and not only up to the first that changes.
            for item in items.into_iter().flatten() {
                changed |= self.value(item);
            }
            return changed;
        }
        let Some(path) = pod_path(value) else { return false };
        let name = called(value);
        if !path.is_empty() {
            self.misplaced(value, &name);
        }
        let Some(pod) = path.iter().try_fold(value, |value, key| value.get_mut(*key)) else {
            self.mistakes.push(format!("{name}: it has no pod template"));
            return false;
        };
        if label(pod).is_some_and(|label| label != "true") {
            self.result
                .warnings
                .push(format!("{name}: label `outgate.dev/inject` is not `true`; it is left as it is"));
            return false;
        }
        match inject(pod, self.template) {
            Ok(injection) => {
                self.result.pods += 1;
                let told = injection.warnings.told();
                self.result.warnings.extend(told.into_iter().map(|one| format!("{name}: {one}")));
                let changed = injection.pod != *pod;
                *pod = injection.pod;
                changed
            }
            Err(refusal) => {
                self.mistakes.push(format!("{name}: {refusal}"));
                false
            }
        }
    }

    /// Annotations count at the pod; at the Deployment they would be overlooked.
    fn misplaced(&mut self, value: &Value, name: &str) {
        let annotations = value.as_object().and_then(|object| at(object, &["metadata", "annotations"]));
        let keys = annotations.and_then(Value::as_object).into_iter().flat_map(Map::keys);
        for key in keys.filter(|key| key.starts_with(PREFIX)) {
            let key = Shown::new(key);
            self.result.warnings.push(format!(
                "{name}: annotation `{key}` has no effect here; it belongs to the pod template"
            ));
        }
    }
}

/// Where the pod stands in an object; none where it has none that we know.
fn pod_path(value: &Value) -> Option<&'static [&'static str]> {
    let group = text(value, "apiVersion")?.split_once('/').map_or("", |(group, _)| group);
    match (group, text(value, "kind")?) {
        ("", "Pod") => Some(&[]),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") | ("batch", "Job") => {
            Some(&["spec", "template"])
        }
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// `Deployment shop`.
fn called(value: &Value) -> String {
    let metadata = value.get("metadata");
    let name = metadata
        .and_then(|one| text(one, "name").or_else(|| text(one, "generateName")))
        .unwrap_or("without a name");
    format!("{} {}", Shown::new(text(value, "kind").unwrap_or_default()), Shown::new(name))
}

/// JSON stays JSON; all else is YAML, in which strings that some reader could take for something else are quoted.
fn written(value: &Value, raw: &str) -> Result<String, serde_yaml::ser::Error> {
    let marker = if raw.starts_with("---") { "---\n" } else { "" };
    // Where an end was marked, what follows may begin without a marker.
    let end = if raw.lines().next_back().is_some_and(|line| line.starts_with("...")) { "...\n" } else { "" };
    let body = raw.strip_prefix("---").unwrap_or(raw).trim_start_matches('\u{feff}').trim_start();
    if body.starts_with('{') {
        return Ok(format!("{marker}{value:#}\n{end}"));
    }
    let text = serde_yaml::to_string_with_options(value, ser_options! { folded_wrap_chars: usize::MAX })?;
    // Line ends are not trimmed: they may be a text's own.
    let last = if text.ends_with('\n') { "" } else { "\n" };
    Ok(format!("{marker}{text}{last}{end}"))
}
