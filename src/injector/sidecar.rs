//! The template with a pod's options: what this one pod gets.
//!
//! Here, and nowhere else, is written down which of the template's members an annotation changes. All have names that the library
//! (`helm/charts/outgate-lib`) gives them, and a test of the charts holds both together.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::options::{CPU_REQUEST, MEMORY_LIMIT, MEMORY_REQUEST, Options, amount};
use super::template::{Mode, Template, Variant, hash};
use super::tree::{list_mut, object_mut, text};
use super::{Refusal, STATUS, Shown};

const POLICY_VOLUME: &str = "outgate-policy";
const CREDENTIALS_VOLUME: &str = "outgate-credentials";
const LOG_FLAG: &str = "--log=";
/// Settings of the sidecar that stand in place of the policy's, one a line.
const SETTINGS: &str = "OUTGATE_SET";
/// What holds for `runtime.drain` where nothing is set.
const DRAIN: Duration = Duration::from_secs(20);

/// What one pod gets.
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// How it stands in the pod.
    pub mode: Mode,
    /// The sidecar, and the parts beside it.
    pub variant: Variant,
    /// What `outgate.dev/status` will say.
    pub status: Status,
}

/// What `outgate.dev/status` says: `0.1.0/<template>` or `0.1.0/<template>/<options>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    hashes: String,
}

impl Status {
    /// Whether the annotation tells of the same template and the same options. The version that injected may be another one:
    /// while the injector itself is rolled out, two of them see the same pod.
    pub fn is_that_of(&self, annotation: &str) -> bool {
        annotation.split_once('/').is_some_and(|(_, hashes)| hashes == self.hashes)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", env!("CARGO_PKG_VERSION"), self.hashes)
    }
}

impl Sidecar {
    /// Takes the template's variant and puts the options into it.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoVariant`]; [`Refusal::NotAPod`] where the template's sidecar is none.
    pub fn new(template: &Template, options: &Options) -> Result<Self, Refusal> {
        let mode = options.mode.unwrap_or(template.default);
        let other = if mode == Mode::Native { Mode::Classic } else { Mode::Native };
        let variant = template.variant(mode, false).ok_or(Refusal::NoVariant(other.as_str()))?;
        let variant = match options.java {
            true => template.variant(mode, true).ok_or(Refusal::NoRuntime)?.clone(),
            false => variant.clone(),
        };
        let mut sidecar = Self { mode, variant, status: status(template, options) };
        sidecar.apply(template, options)?;
        Ok(sidecar)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.variant.sidecar.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether a container is one of those that the template brings.
    pub fn is_ours(&self, container: &Value) -> bool {
        let name = text(container, "name");
        name == Some(self.name()) || self.variant.before.iter().any(|one| text(one, "name") == name)
    }

    /// Whether the template redirects the pod's connections: an init container of it runs `outgate redirect`.
    pub fn redirects(&self) -> bool {
        let mut first = self.variant.before.iter().filter_map(|one| one.get("args")?.get(0)?.as_str());
        first.any(|argument| argument == "redirect")
    }

    /// The user it runs as, where the template says so.
    pub fn user(&self) -> Option<i64> {
        self.variant.sidecar.get("securityContext")?.get("runAsUser")?.as_i64()
    }

    /// The ports on which it listens: those that it says it has, those of addresses that are set for it, and the one that apps are
    /// pointed at.
    pub fn ports(&self) -> BTreeSet<i64> {
        let named = self.variant.sidecar.get("ports").and_then(Value::as_array);
        let named = named.into_iter().flatten().filter_map(|port| port.get("containerPort")?.as_i64());
        let port = |address: &str| address.trim().parse::<SocketAddr>().ok().map(|one| i64::from(one.port()));
        let set = self.settings().split(['=', '"', '\n']).filter_map(port);
        let pointed =
            self.variant.parts.env.iter().filter_map(|one| text(one, "value")?.strip_prefix("http://"));
        named.chain(set).chain(pointed.filter_map(port)).collect()
    }

    /// How long it may take to end by what is set for it: it lingers, and then it drains.
    pub fn ends_within(&self) -> Duration {
        let settings = self.settings();
        let of = |key: &str| {
            let value = settings.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
            humantime::parse_duration(value.trim()).ok()
        };
        of("runtime.linger").unwrap_or_default() + of("runtime.drain").unwrap_or(DRAIN)
    }

    /// What is set for it in place of the policy's, one a line.
    fn settings(&self) -> &str {
        let variables = self.variant.sidecar.get("env").and_then(Value::as_array);
        let mut settings = variables.into_iter().flatten().filter(|one| text(one, "name") == Some(SETTINGS));
        settings.next().and_then(|one| text(one, "value")).unwrap_or_default()
    }

    fn apply(&mut self, template: &Template, options: &Options) -> Result<(), Refusal> {
        let Variant { sidecar, parts, .. } = &mut self.variant;
        if let Some(name) = &options.policy {
            name_object(&mut parts.volumes, POLICY_VOLUME, "configMap", "name", name);
        }
        if let Some(name) = &options.credentials {
            if !parts.volumes.iter().any(|volume| text(volume, "name") == Some(CREDENTIALS_VOLUME)) {
                parts.volumes.extend(template.credentials.volumes.iter().cloned());
                list_mut(sidecar, "volumeMounts")?.extend(template.credentials.volume_mounts.iter().cloned());
            }
            name_object(&mut parts.volumes, CREDENTIALS_VOLUME, "secret", "secretName", name);
        }
        if !options.no_proxy.is_empty() {
            parts.env.iter_mut().for_each(|variable| reach_directly(variable, &options.no_proxy));
        }
        if let Some(level) = &options.log_level {
            let arguments = list_mut(sidecar, "args")?;
            arguments.retain(|one| !one.as_str().is_some_and(|one| one.starts_with(LOG_FLAG)));
            arguments.push(json!(format!("{LOG_FLAG}{level}")));
        }
        for (amount, kind, resource) in [
            (&options.cpu_request, "requests", "cpu"),
            (&options.memory_request, "requests", "memory"),
            (&options.memory_limit, "limits", "memory"),
        ] {
            if let Some(amount) = amount {
                object_mut(object_mut(sidecar, "resources")?, kind)?
                    .insert(resource.to_owned(), json!(amount));
            }
        }
        fits(sidecar, options)
    }
}

/// Kubernetes refuses a request above its limit, in words that do not name the annotation.
fn fits(sidecar: &Map<String, Value>, options: &Options) -> Result<(), Refusal> {
    let of = |kind, resource| {
        let quantity = sidecar.get("resources")?.get(kind)?.get(resource)?;
        amount(quantity.as_str()?)
    };
    let exceeds = |resource| match (of("requests", resource), of("limits", resource)) {
        (Some(request), Some(limit)) => request > limit,
        _ => false,
    };
    let wrong = |key, value: &Option<String>, wanted| {
        let value = Shown::new(value.as_deref()?);
        Some(Refusal::BadAnnotation { key, value, wanted })
    };
    let refusal = if exceeds("memory") {
        wrong(MEMORY_REQUEST, &options.memory_request, "at most the sidecar's limit of memory").or_else(
            || wrong(MEMORY_LIMIT, &options.memory_limit, "at least the sidecar's request of memory"),
        )
    } else if exceeds("cpu") {
        wrong(CPU_REQUEST, &options.cpu_request, "at most the sidecar's limit of CPU")
    } else {
        None
    };
    refusal.map_or(Ok(()), Err)
}

/// Appends to what an app reaches directly: `NO_PROXY`, and the property of Java, which knows no networks and writes suffixes with `*`.
fn reach_directly(variable: &mut Value, direct: &[String]) {
    const PROPERTY: &str = "-Dhttp.nonProxyHosts=";
    let name = text(variable, "name").unwrap_or_default();
    let value = text(variable, "value").unwrap_or_default();
    if name.eq_ignore_ascii_case("no_proxy") {
        variable["value"] = json!(format!("{value},{}", direct.join(",")));
    } else if name == "JAVA_TOOL_OPTIONS" {
        let hosts = direct.iter().filter(|one| !one.contains('/'));
        let as_java =
            |one: &String| one.strip_prefix('.').map_or(format!("|{one}"), |one| format!("|*.{one}"));
        let hosts: String = hosts.map(as_java).collect();
        let with = |option: &str| match option.starts_with(PROPERTY) {
            true => format!("{option}{hosts}"),
            false => option.to_owned(),
        };
        let options: Vec<String> = value.split(' ').map(with).collect();
        variable["value"] = json!(options.join(" "));
    }
}

fn status(template: &Template, options: &Options) -> Status {
    let hashes = if options.given.is_empty() {
        template.hash.clone()
    } else {
        format!("{}/{}", template.hash, hash(&json!(options.given)))
    };
    Status { hashes }
}

/// What the pod says of an injection before.
pub fn status_of(annotations: &Map<String, Value>) -> Option<&str> {
    annotations.get(STATUS)?.as_str()
}

/// Names the ConfigMap or Secret of one volume.
fn name_object(volumes: &mut [Value], volume: &str, source: &str, key: &str, name: &str) {
    for one in volumes.iter_mut().filter(|one| text(one, "name") == Some(volume)) {
        if let Some(source) = one.get_mut(source).and_then(Value::as_object_mut) {
            source.insert(key.to_owned(), json!(name));
        }
    }
}
