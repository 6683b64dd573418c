//! The pod with the sidecar in it.
//!
//! | part | how |
//! | --- | --- |
//! | sidecar | first of `initContainers` (native) or of `containers` (classic); where the template redirects, what makes the rules comes first |
//! | variables | at the end of `env` of each container that is pointed at outgate, unless it sets the name itself |
//! | mounts | of the bundle, read-only, in the same containers |
//! | volumes | at the end |
//! | labels, `outgate.dev/status`, `kubectl.kubernetes.io/default-container` | the last only where the pod has none |
//!
//! Pointed at outgate are all containers, and in native mode all init containers (the sidecar runs before them; one that a later webhook
//! puts before the sidecar is left alone), but not those of service meshes, which carry other containers' traffic; `outgate.dev/containers` and `exclude-containers` say otherwise.
//!
//! A pod that was injected before, with the same template and options, gets what later webhooks' containers lack, and nothing else: what
//! Kubernetes and others have changed in the sidecar since then stays. One that has a sidecar of another template is left alone.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::options::{CONTAINERS, EXCLUDE, Options};
use super::sidecar::{Sidecar, status_of};
use super::template::{Mode, Template};
use super::tree::{at, contains, list_mut, object_mut, objects, text};
use super::{INJECTED_LABEL, Refusal, STATUS, Shown, Warnings, clash};
use crate::policy::diagnostic::suggest;

/// Containers of all kinds that a pod may have. Each is given variables and mounts, so a small pod of many would be answered by a large
/// patch.
const MAX_CONTAINERS: usize = 100;
/// Bytes of variables and mounts, as JSON, for all containers of a pod together. With the library's template a hundred take a third.
const MAX_ADDED: usize = 1024 * 1024;

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Containers of service meshes: variables of a proxy would lead their own control traffic through outgate.
const MESH: [&str; 8] = [
    "istio-proxy",
    "istio-init",
    "istio-validation",
    "linkerd-proxy",
    "linkerd-init",
    "linkerd-network-validator",
    "linkerd-debug",
    "kuma-sidecar",
];

/// Variables of which there are two spellings.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];

/// A pod that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// The pod as it should be; as it was, where there is nothing to do.
    pub pod: Value,
    /// What its author should know.
    pub warnings: Warnings,
}

/// What stands in the pod already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// No sidecar.
    Nothing,
    /// The one that we would make.
    Ours,
    /// Another one.
    Another,
}

/// Puts the sidecar into a pod.
///
/// # Errors
///
/// Every [`Refusal`].
pub fn inject(pod: &Value, template: &Template) -> Result<Injection, Refusal> {
    let pod = pod.as_object().ok_or(Refusal::NotAPod("the object"))?;
    bounded(pod)?;
    let mut pod = pod.clone();
    let mut warnings = Warnings::default();
    let annotations = annotations(&pod)?;
    let options = Options::of(&annotations)?;
    let sidecar = Sidecar::new(template, &options)?;
    let spec = pod.get("spec").and_then(Value::as_object).ok_or(Refusal::NotAPod("spec"))?;
    if objects(spec, "containers")?.is_empty() {
        return Err(Refusal::NotAPod("spec.containers"));
    }
    let found = find(&pod, spec, &annotations, &sidecar)?;
    if found == Before::Another {
        warnings.push(
            "the pod has a sidecar of another template or of other annotations, and is left as it is"
                .to_owned(),
        );
        return Ok(Injection { pod: Value::Object(pod), warnings });
    }
    clash::check(spec, &sidecar, &mut warnings)?;
    let targets = targets(spec, found, &options, &sidecar, &mut warnings)?;
    if added(&sidecar).saturating_mul(targets.len()) > MAX_ADDED {
        return Err(Refusal::TooMuch(targets.len()));
    }
    let spec = object_mut(&mut pod, "spec")?;
    point(spec, &targets, &sidecar, &mut warnings)?;
    if found == Before::Nothing {
        place(spec, &sidecar)?;
    }
    volumes(spec, found, &sidecar)?;
    describe(&mut pod, found, &targets, &sidecar)?;
    Ok(Injection { pod: Value::Object(pod), warnings })
}

/// Judged before anything is copied.
fn bounded(pod: &Map<String, Value>) -> Result<(), Refusal> {
    let length = |kind| at(pod, &["spec", kind]).and_then(Value::as_array).map_or(0, Vec::len);
    let count = ["initContainers", "containers", "ephemeralContainers"].into_iter().map(length).sum();
    if count > MAX_CONTAINERS { Err(Refusal::TooManyContainers(count)) } else { Ok(()) }
}

/// Bytes that one container is given at most.
fn added(sidecar: &Sidecar) -> usize {
    let parts = &sidecar.variant.parts;
    parts.env.iter().chain(&parts.volume_mounts).map(|one| one.to_string().len()).sum()
}

fn annotations(pod: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    match at(pod, &["metadata", "annotations"]) {
        None => Ok(Map::new()),
        Some(Value::Object(annotations)) => Ok(annotations.clone()),
        Some(_) => Err(Refusal::NotAPod("metadata.annotations")),
    }
}

fn find(
    pod: &Map<String, Value>,
    spec: &Map<String, Value>,
    annotations: &Map<String, Value>,
    sidecar: &Sidecar,
) -> Result<Before, Refusal> {
    let all =
        || Ok::<_, Refusal>(objects(spec, "initContainers")?.iter().chain(objects(spec, "containers")?));
    if !all()?.any(|container| text(container, "name") == Some(sidecar.name())) {
        return match all()?.find(|container| sidecar.is_ours(container)) {
            Some(other) => Err(Refusal::NameTaken(Shown::new(text(other, "name").unwrap_or_default()))),
            None => Ok(Before::Nothing),
        };
    }
    match status_of(annotations) {
        Some(status) if sidecar.status.is_that_of(status) => Ok(Before::Ours),
        Some(_) => Ok(Before::Another),
        // A chart that includes the library writes no status.
        None if at(pod, &["metadata", "labels", INJECTED_LABEL]).is_some() => Ok(Before::Another),
        None => Err(Refusal::NameTaken(Shown::new(sidecar.name()))),
    }
}

/// A container that is pointed at outgate: its list, and its place there.
type Target = (&'static str, usize);

fn targets(
    spec: &Map<String, Value>,
    found: Before,
    options: &Options,
    sidecar: &Sidecar,
    warnings: &mut Warnings,
) -> Result<Vec<Target>, Refusal> {
    let named = options.containers.as_deref().unwrap_or_default();
    let mut all = Vec::new();
    for key in ["initContainers", "containers"] {
        for (place, container) in objects(spec, key)?.iter().enumerate() {
            let name = text(container, "name").ok_or(Refusal::NotAPod("name of a container"))?;
            if !sidecar.is_ours(container) {
                all.push((key, place, name));
            }
        }
    }
    let names: Vec<&str> = all.iter().map(|(_, _, name)| *name).collect();
    require(CONTAINERS, named, &names)?;
    require(EXCLUDE, &options.exclude, &names)?;
    let first = first_beside(spec, found, sidecar)?;
    let mut targets = Vec::new();
    for (key, place, name) in all {
        let asked = named.iter().any(|one| one == name);
        let wanted = if options.containers.is_some() { asked } else { !MESH.contains(&name) };
        if !wanted || options.exclude.iter().any(|one| one == name) {
            continue;
        }
        if key == "initContainers" && place < first {
            if asked {
                let kind = if sidecar.mode == Mode::Classic { "a classic" } else { "the" };
                warnings.push(format!(
                    "init container `{}` runs before {kind} sidecar, and is not pointed at it",
                    Shown::new(name)
                ));
            }
            continue;
        }
        targets.push((key, place));
    }
    Ok(targets)
}

/// The place of the first init container that runs beside the sidecar. On a later call there may be some before a native one, put there
/// by other webhooks: while they run nothing listens, and their calls would be refused.
fn first_beside(spec: &Map<String, Value>, found: Before, sidecar: &Sidecar) -> Result<usize, Refusal> {
    if sidecar.mode == Mode::Classic {
        return Ok(usize::MAX);
    }
    if found == Before::Nothing {
        return Ok(0);
    }
    let all = objects(spec, "initContainers")?;
    Ok(all.iter().position(|container| text(container, "name") == Some(sidecar.name())).unwrap_or(usize::MAX))
}

/// All containers that an annotation names are there.
fn require(key: &'static str, named: &[String], there: &[&str]) -> Result<(), Refusal> {
    let Some(missing) = named.iter().find(|name| !there.contains(&name.as_str())) else { return Ok(()) };
    let near = suggest(missing, there.iter().copied());
    let hint = near.map(|near| format!("; did you mean `{}`?", Shown::new(near))).unwrap_or_default();
    Err(Refusal::NoSuchContainer { key, name: Shown::new(missing), hint })
}

/// Variables and mounts of the app's containers.
fn point(
    spec: &mut Map<String, Value>,
    targets: &[Target],
    sidecar: &Sidecar,
    warnings: &mut Warnings,
) -> Result<(), Refusal> {
    for (key, place) in targets {
        let container = list_mut(spec, key)?.get_mut(*place).and_then(Value::as_object_mut);
        let container = container.ok_or(Refusal::NotAPod(key))?;
        let name = Shown::new(container.get("name").and_then(Value::as_str).unwrap_or_default());
        environment(container, &name, sidecar, warnings)?;
        let ours = &sidecar.variant.parts.volume_mounts;
        let there = objects(container, "volumeMounts")?;
        let missing: Vec<Value> =
            ours.iter().filter(|one| !there.iter().any(|mount| contains(mount, one))).cloned().collect();
        if !missing.is_empty() {
            list_mut(container, "volumeMounts")?.extend(missing);
        }
    }
    Ok(())
}

fn environment(
    container: &mut Map<String, Value>,
    name: &Shown,
    sidecar: &Sidecar,
    warnings: &mut Warnings,
) -> Result<(), Refusal> {
    let there = objects(container, "env")?;
    let mut missing = Vec::new();
    let mut kept = BTreeSet::new();
    for one in &sidecar.variant.parts.env {
        match find_variable(there, one) {
            None => missing.push(one.clone()),
            Some(theirs) if text(theirs, "value") != text(one, "value") => {
                kept.insert(Shown::new(text(theirs, "name").unwrap_or_default()).to_string());
            }
            // The other spelling is there and says the same; this one is not there.
            Some(theirs) if text(theirs, "name") != text(one, "name") => missing.push(one.clone()),
            Some(_) => {}
        }
    }
    if !kept.is_empty() {
        let kept: Vec<String> = kept.into_iter().collect();
        warnings.push(format!(
            "container `{name}` sets {} itself: that stays, and may lead around outgate",
            kept.join(", ")
        ));
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !objects(container, "envFrom")?.is_empty() {
        warnings.push(format!(
            "container `{name}` has `envFrom`: outgate's variables win over what it brings of the same names"
        ));
    }
    list_mut(container, "env")?.extend(missing);
    Ok(())
}

/// The variable of this name, or its other spelling: programs read `HTTPS_PROXY` and `https_proxy` as one, and each prefers one of
/// them, so who sets one has set both. Of two with one name the last counts, as in Kubernetes.
fn find_variable<'a>(there: &'a [Value], ours: &Value) -> Option<&'a Value> {
    let name = text(ours, "name").unwrap_or_default();
    let spelled = |theirs: &&Value| text(theirs, "name") == Some(name);
    let meant = |theirs: &&Value| {
        PROXY_VARIABLES.contains(&name)
            && text(theirs, "name").is_some_and(|other| other.eq_ignore_ascii_case(name))
    };
    there.iter().rev().find(spelled).or_else(|| there.iter().rev().find(meant))
}

/// Before all others: what comes after it may call out.
fn place(spec: &mut Map<String, Value>, sidecar: &Sidecar) -> Result<(), Refusal> {
    let key = if sidecar.mode == Mode::Native { "initContainers" } else { "containers" };
    list_mut(spec, key)?.insert(0, Value::Object(sidecar.variant.sidecar.clone()));
    if !sidecar.variant.before.is_empty() {
        list_mut(spec, "initContainers")?.splice(0..0, sidecar.variant.before.iter().cloned());
    }
    Ok(())
}

fn volumes(spec: &mut Map<String, Value>, found: Before, sidecar: &Sidecar) -> Result<(), Refusal> {
    let there = objects(spec, "volumes")?;
    let mut missing = Vec::new();
    for one in &sidecar.variant.parts.volumes {
        let name = text(one, "name").unwrap_or_default();
        match there.iter().find(|volume| text(volume, "name") == Some(name)) {
            None => missing.push(one.clone()),
            Some(volume) if found == Before::Ours || contains(volume, one) => {}
            Some(_) => return Err(Refusal::VolumeTaken(Shown::new(name))),
        }
    }
    if !missing.is_empty() {
        list_mut(spec, "volumes")?.extend(missing);
    }
    Ok(())
}

/// Labels and annotations.
fn describe(
    pod: &mut Map<String, Value>,
    found: Before,
    targets: &[Target],
    sidecar: &Sidecar,
) -> Result<(), Refusal> {
    let first = targets.iter().find(|(key, _)| *key == "containers").map_or(0, |(_, place)| *place);
    let main = match pod.get("spec").and_then(|spec| spec.get("containers")).and_then(Value::as_array) {
        // Places were counted before a classic sidecar was put in front.
        Some(all) if found == Before::Nothing && sidecar.mode == Mode::Classic => all.get(first + 1),
        Some(all) => all.get(first),
        None => None,
    };
    let main = main.and_then(|container| text(container, "name")).map(str::to_owned);
    let metadata = object_mut(pod, "metadata")?;
    let labels = object_mut(metadata, "labels")?;
    for (key, value) in &sidecar.variant.parts.labels {
        if labels.get(key).is_some_and(|there| there != value) {
            return Err(Refusal::LabelTaken(Shown::new(key)));
        }
        labels.insert(key.clone(), value.clone());
    }
    let annotations = object_mut(metadata, "annotations")?;
    if found == Before::Nothing {
        annotations.insert(STATUS.to_owned(), json!(sidecar.status.to_string()));
    }
    if let Some(main) = main {
        annotations.entry(DEFAULT_CONTAINER).or_insert(json!(main));
    }
    Ok(())
}
