//! What is added to a pod, as data: the document that Helm renders from the define `outgate.template`.
//!
//! ```yaml
//! default: native                       # what a pod gets that does not ask
//! native:  { labels: {}, initContainers: [..], containers: [], env: [..], volumeMounts: [..], volumes: [..] }
//! classic: { labels: {}, initContainers: [], containers: [..], env: [..], volumeMounts: [..], volumes: [..] }
//! java:    { native: {..}, classic: {..} }
//! credentials: { volumes: [..], volumeMounts: [..] }
//! ```
//!
//! `native` and `classic` are `outgate.parts`, the very text that charts include; `native` is left out for a Kubernetes that has none.
//! `java` has the same for pods with `outgate.dev/runtimes: java`. Where the template redirects connections, an init container comes before the
//! sidecar in both modes.
//! `credentials` is what `outgate.dev/credentials-secret` adds where the template itself has no Secret.

use std::collections::BTreeSet;

use aws_lc_rs::digest;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::tree::text;

/// The library's render with its default values, for `outgate inject` without a template. Written and compared by the tests of the
/// charts (`tests/packaging`).
pub const DEFAULT: &str = include_str!("default_template.yaml");

/// Bytes that a template may have.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Why a template cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No YAML, or other keys than a template has.
    #[error("it is not a template: {0}")]
    Syntax(String),
    /// It is larger than [`MAX_BYTES`].
    #[error("it is larger than 1 MiB")]
    TooLarge,
    /// Something that has to be there is not.
    #[error("it is not a template: {0}")]
    Incomplete(&'static str),
}

/// How the sidecar stands in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// An init container that stays.
    Native,
    /// A container beside the app's.
    Classic,
}

impl Mode {
    /// As the template and docs call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Classic => "classic",
        }
    }
}

/// What one mode adds: `outgate.parts`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Parts {
    /// Labels of the pod.
    pub labels: Map<String, Value>,
    init_containers: Vec<Value>,
    containers: Vec<Value>,
    /// Variables of the app's containers; each has a `name`.
    pub env: Vec<Value>,
    /// Mounts of the app's containers; each has `name` and `mountPath`.
    pub volume_mounts: Vec<Value>,
    /// Volumes of the pod; each has a `name`.
    pub volumes: Vec<Value>,
}

/// Volumes, and where the sidecar mounts them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Addition {
    /// Volumes of the pod.
    pub volumes: Vec<Value>,
    /// Mounts of the sidecar.
    pub volume_mounts: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    default: Mode,
    native: Option<Parts>,
    classic: Option<Parts>,
    java: Option<Both>,
    credentials: Addition,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Both {
    native: Option<Parts>,
    classic: Option<Parts>,
}

/// One mode of a template, with its containers taken out.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The sidecar.
    pub sidecar: Map<String, Value>,
    /// Init containers that come before it, and before all others.
    pub before: Vec<Value>,
    /// Everything else; its lists of containers are empty.
    pub parts: Parts,
}

/// Both modes, as far as they are there.
#[derive(Clone, Debug, Default)]
struct Variants {
    native: Option<Variant>,
    classic: Option<Variant>,
}

impl Variants {
    fn split(native: Option<Parts>, classic: Option<Parts>) -> Result<Self, TemplateError> {
        Ok(Self {
            native: native.map(|parts| parts.split(Mode::Native)).transpose()?,
            classic: classic.map(|parts| parts.split(Mode::Classic)).transpose()?,
        })
    }

    fn of(&self, mode: Mode) -> Option<&Variant> {
        match mode {
            Mode::Native => self.native.as_ref(),
            Mode::Classic => self.classic.as_ref(),
        }
    }
}

/// A template that can be used.
#[derive(Clone, Debug)]
pub struct Template {
    /// What a pod gets that does not ask.
    pub default: Mode,
    plain: Variants,
    java: Variants,
    /// What `outgate.dev/credentials-secret` adds.
    pub credentials: Addition,
    /// The first 16 hexadecimal digits of the document's SHA-256, keys sorted.
    pub hash: String,
}

impl Template {
    /// Reads a template: YAML, of which JSON is a part.
    ///
    /// # Errors
    ///
    /// [`TemplateError`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_BYTES {
            return Err(TemplateError::TooLarge);
        }
        let value: Value =
            serde_yaml::from_str(text).map_err(|error| TemplateError::Syntax(first_line(&error)))?;
        let hash = hash(&value);
        let document: Document =
            serde_json::from_value(value).map_err(|error| TemplateError::Syntax(error.to_string()))?;
        let java = document.java.map(|both| Variants::split(both.native, both.classic));
        let template = Self {
            default: document.default,
            plain: Variants::split(document.native, document.classic)?,
            java: java.transpose()?.unwrap_or_default(),
            credentials: document.credentials,
            hash,
        };
        if template.variant(template.default, false).is_none() {
            return Err(TemplateError::Incomplete("it has not the mode that its `default` names"));
        }
        Ok(template)
    }

    /// The library's render with its default values.
    ///
    /// # Errors
    ///
    /// None, as long as the file in the source is one; a test says so.
    pub fn embedded() -> Result<Self, TemplateError> {
        Self::parse(DEFAULT)
    }

    /// What the mode adds, where the template has it; with `java` for apps of this runtime.
    pub fn variant(&self, mode: Mode, java: bool) -> Option<&Variant> {
        if java { self.java.of(mode) } else { self.plain.of(mode) }
    }
}

impl Parts {
    /// Takes the sidecar out, and sees to it that all has the names by which it is merged.
    fn split(mut self, mode: Mode) -> Result<Variant, TemplateError> {
        let mut before = std::mem::take(&mut self.init_containers);
        let mut containers = std::mem::take(&mut self.containers);
        let sidecar = if mode == Mode::Native { before.pop() } else { containers.pop() };
        let Some(Value::Object(sidecar)) = sidecar.filter(|_| containers.is_empty()) else {
            return Err(TemplateError::Incomplete("each mode has one sidecar"));
        };
        if names(&before).is_none() {
            return Err(TemplateError::Incomplete("each init container has a name of its own"));
        }
        let volumes =
            names(&self.volumes).ok_or(TemplateError::Incomplete("each volume has a name of its own"))?;
        let mounts =
            sidecar.get("volumeMounts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mounted = mounts.iter().chain(&self.volume_mounts).map(|mount| text(mount, "name"));
        if !mounted.into_iter().all(|name| name.is_some_and(|name| volumes.contains(name))) {
            return Err(TemplateError::Incomplete("each mount is one of its volumes"));
        }
        if sidecar.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err(TemplateError::Incomplete("the sidecar has a name"));
        }
        if names(&self.env).is_none() || !self.env.iter().all(|one| text(one, "value").is_some()) {
            return Err(TemplateError::Incomplete("each variable has a name of its own, and a value"));
        }
        if !self.volume_mounts.iter().all(|mount| text(mount, "mountPath").is_some()) {
            return Err(TemplateError::Incomplete("each mount has a path"));
        }
        Ok(Variant { sidecar, before, parts: self })
    }
}

/// The names of the list's members, where each has one of its own.
fn names(list: &[Value]) -> Option<BTreeSet<&str>> {
    let names: BTreeSet<&str> = list.iter().filter_map(|one| text(one, "name")).collect();
    (names.len() == list.len()).then_some(names)
}

/// The first 16 hexadecimal digits of the SHA-256 of a value; its keys are sorted, so the order in a file makes no difference.
pub(super) fn hash(value: &Value) -> String {
    let digest = digest::digest(&digest::SHA256, value.to_string().as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Errors of YAML come with an excerpt on further lines; the place stands in the first.
fn first_line(error: &serde_yaml::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
