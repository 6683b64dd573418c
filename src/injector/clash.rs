//! What in a pod stands against a sidecar, or goes with it badly.
//!
//! | in the pod | what happens |
//! | --- | --- |
//! | `hostNetwork` | refused: the sidecar's loopback would be the node's |
//! | `os.name` other than `linux` | refused |
//! | `shareProcessNamespace` or `hostPID`, and a container that is or may be root, is privileged, may trace, or is the sidecar's user | refused |
//! | `shareProcessNamespace` or `hostPID` else | warning |
//! | a container of the sidecar's user, where the template redirects | refused: it would not be redirected |
//! | a container of the sidecar's user else | warning: it may signal the sidecar only where they share processes |
//! | a container that mounts a volume of the sidecar's, or something else where outgate's certificates are | refused |
//! | a container that names a port of the sidecar's | warning |
//! | `terminationGracePeriodSeconds` (30 where it says nothing) too short for the sidecar's linger and drain | warning: it would be killed with requests on their way |

use std::time::Duration;

use serde_json::{Map, Value};

use super::sidecar::Sidecar;
use super::tree::{at, contains, is_true, objects, text};
use super::{Refusal, Shown, Warnings};

/// Judges a pod's spec.
///
/// # Errors
///
/// The refusals of the table above; [`Refusal::NotAPod`].
pub fn check(spec: &Map<String, Value>, sidecar: &Sidecar, warnings: &mut Warnings) -> Result<(), Refusal> {
    if is_true(spec, &["hostNetwork"]) {
        return Err(Refusal::HostNetwork);
    }
    if let Some(system) = at(spec, &["os", "name"]).and_then(Value::as_str).filter(|name| *name != "linux") {
        return Err(Refusal::OtherSystem(Shown::new(system)));
    }
    let mut same_user = Vec::new();
    let shared = ["shareProcessNamespace", "hostPID"].into_iter().find(|key| is_true(spec, &[key]));
    for container in others(spec, sidecar)? {
        let name = Shown::new(text(container, "name").unwrap_or_default());
        let Some(container) = container.as_object() else { continue };
        if shared.is_some() && is_powerful(spec, container, sidecar) {
            return Err(Refusal::SharedProcesses(name));
        }
        if sidecar.user().is_some() && user(spec, container) == sidecar.user() {
            if sidecar.redirects() {
                return Err(Refusal::RedirectedUser(name));
            }
            same_user.push(format!("`{name}`"));
        }
        mounts(container, &name, sidecar)?;
        ports(container, &name, sidecar, warnings)?;
    }
    if let Some(key) = shared {
        warnings.push(format!("`{key}` lets the pod's other containers see the sidecar's processes"));
    }
    grace(spec, sidecar, warnings);
    if !same_user.is_empty() {
        let user = sidecar.user().unwrap_or_default();
        warnings.push(format!(
            "{} runs as user {user}, which is the sidecar's: give it another one",
            same_user.join(", ")
        ));
    }
    Ok(())
}

/// What Kubernetes gives a pod that does not say it, in seconds.
const GRACE: u64 = 30;

/// Kubernetes fills the default in before it asks a webhook, so what the pod's author wrote and what nobody wrote look alike there: it is
/// told, and left as it is. In a manifest that is not in a cluster yet it is still absent, and means the same.
fn grace(spec: &Map<String, Value>, sidecar: &Sidecar, warnings: &mut Warnings) {
    let (grace, is) = match at(spec, &["terminationGracePeriodSeconds"]) {
        None => (GRACE, "is not set, which means"),
        // Anything else that is no number of seconds is for Kubernetes to refuse.
        Some(given) => match given.as_u64() {
            Some(seconds) => (seconds, "is"),
            None => return,
        },
    };
    let needed = sidecar.ends_within();
    if Duration::from_secs(grace) <= needed {
        warnings.push(format!(
            "`terminationGracePeriodSeconds` {is} {grace}, and the sidecar may take {} to let requests finish: make it longer",
            humantime::format_duration(needed)
        ));
    }
}

/// All containers but the template's.
fn others<'a>(
    spec: &'a Map<String, Value>,
    sidecar: &'a Sidecar,
) -> Result<impl Iterator<Item = &'a Value>, Refusal> {
    let all = objects(spec, "initContainers")?.iter().chain(objects(spec, "containers")?);
    Ok(all.filter(|container| !sidecar.is_ours(container)))
}

/// The user that a container says it runs as, or the pod for it; the image's own is not known here.
fn user(spec: &Map<String, Value>, container: &Map<String, Value>) -> Option<i64> {
    let path = ["securityContext", "runAsUser"];
    at(container, &path).or_else(|| at(spec, &path)).and_then(Value::as_i64)
}

/// Capabilities with which a process reads, stops or signals those of other users.
const CAPABILITIES: [&str; 4] = ["ALL", "SYS_PTRACE", "SYS_ADMIN", "KILL"];

/// Where no user is said the image's own holds, which mostly is root: it may not be, where `runAsNonRoot` stands.
fn is_powerful(spec: &Map<String, Value>, container: &Map<String, Value>, sidecar: &Sidecar) -> bool {
    let user = user(spec, container);
    let non_root = ["securityContext", "runAsNonRoot"];
    let is_non_root = at(container, &non_root).or_else(|| at(spec, &non_root)) == Some(&Value::Bool(true));
    let added = at(container, &["securityContext", "capabilities", "add"]).and_then(Value::as_array);
    let may_trace = added.into_iter().flatten().filter_map(Value::as_str).any(|one| {
        let one = one.to_ascii_uppercase();
        CAPABILITIES.contains(&one.strip_prefix("CAP_").unwrap_or(&one))
    });
    user == Some(0)
        || (user.is_none() && !is_non_root)
        || (user.is_some() && user == sidecar.user())
        || is_true(container, &["securityContext", "privileged"])
        || may_trace
}

/// A volume that the app gets as well is mounted as the template mounts it there, the others not at all.
fn mounts(container: &Map<String, Value>, name: &Shown, sidecar: &Sidecar) -> Result<(), Refusal> {
    let parts = &sidecar.variant.parts;
    for mount in objects(container, "volumeMounts")? {
        let volume = text(mount, "name").unwrap_or_default();
        let ours = parts.volumes.iter().any(|one| text(one, "name") == Some(volume));
        let allowed = parts.volume_mounts.iter().any(|one| contains(mount, one));
        if ours && !allowed {
            return Err(Refusal::PrivateVolume { container: name.clone(), volume: Shown::new(volume) });
        }
        let path = text(mount, "mountPath").unwrap_or_default();
        let taken = parts.volume_mounts.iter().any(|one| same_place(text(one, "mountPath"), path));
        if !ours && taken {
            return Err(Refusal::MountTaken { container: name.clone(), path: Shown::new(path) });
        }
    }
    Ok(())
}

/// Whether a mount would hide ours, or a part of it. One above is mounted before it, and hides nothing.
fn same_place(ours: Option<&str>, path: &str) -> bool {
    ours.is_some_and(|ours| steps(path).starts_with(&steps(ours)))
}

/// A path as the kernel walks it. `/var/run` is a link to `/run` in most images.
fn steps(path: &str) -> Vec<&str> {
    let mut steps = Vec::new();
    for step in path.split('/').filter(|step| !step.is_empty() && *step != ".") {
        if step == ".." {
            steps.pop();
        } else {
            steps.push(step);
        }
    }
    if steps.starts_with(&["var", "run"]) {
        steps.remove(0);
    }
    steps
}

fn ports(
    container: &Map<String, Value>,
    name: &Shown,
    sidecar: &Sidecar,
    warnings: &mut Warnings,
) -> Result<(), Refusal> {
    let there = objects(container, "ports")?;
    if there.is_empty() {
        return Ok(());
    }
    let ours = sidecar.ports();
    for port in there {
        let number = port.get("containerPort").and_then(Value::as_i64);
        if number.is_some_and(|number| ours.contains(&number)) {
            let number = number.unwrap_or_default();
            warnings.push(format!("container `{name}` names port {number}, on which the sidecar listens"));
        }
    }
    Ok(())
}
