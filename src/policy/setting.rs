//! `--set KEY=VALUE`: what belongs to the place where outgate runs, and not to the policy that people edit.
//!
//! A policy that is the same in every pod cannot know where this pod keeps the CA, or on which address its health is
//! asked for. The deployment says so beside it, on the command line or in `OUTGATE_SET`:
//!
//! ```text
//! outgate run --set admin.health_address=0.0.0.0:9902 --set 'interception.ca={directory: /var/lib/outgate/ca}'
//! ```
//!
//! Only the sections that need a restart can be set, because those are the ones a deployment decides; what an app may
//! reach stands in the policy and nowhere else. What is set takes the place of what the policy says at that key, whole.
//! Values are read as a policy is read, and mistakes in them are told with the others.

use std::str::FromStr;

use super::diagnostic::Diagnostics;
use super::tree::{Entry, Node, Place, PolicyPath, Sources, Value};
use super::yaml;

/// The sections that can be set.
const SECTIONS: [&str; 5] = ["listeners", "admin", "interception", "runtime", "telemetry"];

/// One `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    keys: Vec<String>,
    value: String,
}

/// Why a text is no setting. Holds nothing of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingFault {
    /// It has no `=`, or nothing before it.
    #[error("expected KEY=VALUE, such as admin.health_address=0.0.0.0:9902")]
    Form,
    /// Its key begins with something else than a section that needs a restart.
    #[error(
        "only keys of listeners, admin, interception, runtime and telemetry can be set; the rest belongs into the policy"
    )]
    Section,
}

impl FromStr for Setting {
    type Err = SettingFault;

    fn from_str(text: &str) -> Result<Self, SettingFault> {
        let (key, value) = text.trim().split_once('=').ok_or(SettingFault::Form)?;
        let keys: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if keys.iter().any(String::is_empty) {
            return Err(SettingFault::Form);
        }
        if !SECTIONS.contains(&keys[0].as_str()) {
            return Err(SettingFault::Section);
        }
        Ok(Self { keys, value: value.to_owned() })
    }
}

impl Setting {
    /// Puts the value into a policy's tree. Mistakes of form go to `diagnostics`, under the setting's own name.
    pub(super) fn apply(&self, tree: &mut Node, sources: &mut Sources, diagnostics: &mut Diagnostics) {
        let source = sources.add(format!("--set {}", self.keys.join(".")));
        let Some(value) = yaml::parse(&self.value, source, diagnostics) else { return };
        put(tree, &self.keys, value, Place::whole(source), &PolicyPath::root(), diagnostics);
    }
}

/// Walks down and makes what is missing on the way.
fn put(
    node: &mut Node,
    keys: &[String],
    value: Node,
    place: Place,
    path: &PolicyPath,
    diagnostics: &mut Diagnostics,
) {
    let Some((key, rest)) = keys.split_first() else {
        *node = value;
        return;
    };
    if node.value == Value::Null {
        node.value = Value::Mapping(Vec::new());
    }
    let Value::Mapping(entries) = &mut node.value else {
        diagnostics.report(
            place,
            path.clone(),
            "what the policy says here is no map, so no key of it can be set",
        );
        return;
    };
    let index = entries.iter().position(|entry| entry.key == *key).unwrap_or_else(|| {
        let value = Node { value: Value::Null, place };
        entries.push(Entry { key: key.clone(), key_place: place, value });
        entries.len() - 1
    });
    put(&mut entries[index].value, rest, value, place, &path.key(key.clone()), diagnostics);
}

#[cfg(test)]
mod tests {
    use super::super::load::{PolicyOrigin, load};
    use super::*;
    use crate::policy::compile::compile;
    use crate::policy::compiled::CompiledPolicy;
    use crate::policy::diagnostic::Rejection;

    fn origin(policy: &str, settings: &[&str]) -> (tempfile::TempDir, PolicyOrigin) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.yaml");
        std::fs::write(&path, policy).unwrap();
        let settings = settings.iter().map(|text| text.parse().unwrap()).collect();
        (directory, PolicyOrigin { path, settings })
    }

    fn read(origin: PolicyOrigin) -> Result<CompiledPolicy, Rejection> {
        compile(load(origin)?, std::path::Path::new("/etc/outgate"))
    }

    #[test]
    fn what_is_no_setting() {
        for (text, fault) in [
            ("", SettingFault::Form),
            ("admin.quit", SettingFault::Form),
            ("=1", SettingFault::Form),
            ("admin..quit=1", SettingFault::Form),
            ("providers.a.hosts=[x]", SettingFault::Section),
            ("unmatched=tunnel", SettingFault::Section),
            ("addresses.allow_private=[0.0.0.0/0]", SettingFault::Section),
        ] {
            assert_eq!(text.parse::<Setting>(), Err(fault), "{text}");
        }
    }

    #[test]
    fn it_takes_the_place_of_what_the_policy_says() {
        let policy = "version: 1\nadmin: { address: 127.0.0.1:1, health_address: 127.0.0.1:2 }\n\
                      interception: { ca: { certificate: a, key: b } }\nruntime:\n";
        let (directory, origin) = origin(
            policy,
            &[
                "admin.health_address=0.0.0.0:9902",
                "interception.ca={directory: /ca}",
                "interception.bundle=/pub/bundle.pem",
                " runtime.drain = 7s ",
                "telemetry.access_log.format=text",
            ],
        );
        let fixed = read(origin.clone()).unwrap().fixed;
        assert_eq!(fixed.admin.address.to_string(), "127.0.0.1:1", "the rest stays");
        assert_eq!(fixed.admin.health_address.unwrap().to_string(), "0.0.0.0:9902");
        assert_eq!(fixed.interception.ca, crate::policy::compiled::Ca::Directory("/ca".into()));
        assert_eq!(fixed.interception.bundle, std::path::Path::new("/pub/bundle.pem"));
        assert_eq!(fixed.runtime.drain.as_secs(), 7);
        assert_eq!(fixed.telemetry.format, crate::policy::schema::LogFormat::Text);
        // The text of the policy alone says whether it changed.
        assert_eq!(load(origin.clone()).unwrap().hash, load(origin.path).unwrap().hash);
        drop(directory);
    }

    #[test]
    fn mistakes_are_told_under_its_name() {
        for (policy, setting, wanted) in [
            (
                "version: 1\n",
                "admin.health_address=nine",
                "--set admin.health_address:1:1: admin.health_address: not an address",
            ),
            ("version: 1\n", "admin.heath_address=x", "admin.heath_address"),
            ("version: 1\n", "runtime.drain={", "--set runtime.drain"),
            ("version: 1\nadmin: 7\n", "admin.quit=true", "no map"),
        ] {
            let (_directory, origin) = origin(policy, &[setting]);
            let told = read(origin).err().unwrap().to_string();
            assert!(told.contains(wanted), "{setting}: {told}");
        }
    }
}
