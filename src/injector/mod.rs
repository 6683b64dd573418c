//! Puts the sidecar into pods: as an admission webhook (`outgate injector`), and into manifests (`outgate inject`).
//!
//! ```text
//! template    what is added: the document that Helm renders (`outgate.template`), as data
//! options     what a pod's annotations ask for
//! sidecar     the template with these options: what this one pod gets
//! clash       what in a pod stands against a sidecar, or beside it badly
//! merge       the pod with the sidecar in it
//! review      AdmissionReview in, AdmissionReview out
//! manifest    the same for YAML files
//! tree        JSON as Kubernetes writes it
//! live        certificate, key and template, which change while it runs
//! answer      one request of the webhook: bounds, and what goes back
//! peer        what one address may take of it
//! place       which connection gives way when there are too many
//! server      the webhook as a process
//! metrics     what it tells about itself
//! ```
//!
//! All up to `manifest` is pure. Nothing here asks the Kubernetes API: what is to be known stands in the pod and in the template.
//!
//! Three rules hold. What the user wrote stays as it is: a variable that a container sets is left alone, with a warning. A second
//! call changes nothing. And what cannot be done as asked is refused with the name of the key, and not done halfway.

pub mod answer;
pub mod clash;
pub mod live;
pub mod manifest;
pub mod merge;
pub mod metrics;
pub mod options;
pub mod peer;
pub mod place;
pub mod review;
pub mod server;
pub mod sidecar;
pub mod template;
mod tree;

#[cfg(test)]
mod tests;

use std::fmt;

/// What all labels and annotations of outgate begin with.
pub const PREFIX: &str = "outgate.dev/";
/// The label by which a pod asks for the sidecar.
pub const INJECT_LABEL: &str = "outgate.dev/inject";
/// The label of pods that have it.
pub const INJECTED_LABEL: &str = "outgate.dev/injected";
/// The annotation that says with what it was injected: version, template, and options where there are any.
pub const STATUS: &str = "outgate.dev/status";

/// Why a pod is not injected, in words for whoever wrote it. Names of the pod stand in it shortened ([`Shown`]).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An annotation that outgate does not know; with what it may have been meant to be.
    #[error("annotation `{key}`: outgate knows no such key{hint}")]
    UnknownAnnotation {
        /// The annotation.
        key: Shown,
        /// `; did you mean ...?`, or nothing.
        hint: String,
    },
    /// An annotation whose value cannot be used.
    #[error("annotation `{key}`: `{value}` is not {wanted}")]
    BadAnnotation {
        /// The annotation.
        key: &'static str,
        /// What it says.
        value: Shown,
        /// What it may say.
        wanted: &'static str,
    },
    /// An annotation that names a container which the pod has not.
    #[error("annotation `{key}`: the pod has no container `{name}`{hint}")]
    NoSuchContainer {
        /// The annotation.
        key: &'static str,
        /// The container.
        name: Shown,
        /// `; did you mean ...?`, or nothing.
        hint: String,
    },
    /// The template was rendered for a Kubernetes without native sidecars.
    #[error("annotation `outgate.dev/native-sidecar`: this injector's template has {0} sidecars only")]
    NoVariant(&'static str),
    /// The template was rendered without what a runtime wants.
    #[error("annotation `outgate.dev/runtimes`: this injector's template has nothing for `java`")]
    NoRuntime,
    /// What came is not a pod.
    #[error("this is not a pod that outgate understands: `{0}`")]
    NotAPod(&'static str),
    /// More containers than any pod of people has.
    #[error("the pod has {0} containers, and outgate takes at most 100 of all kinds together")]
    TooManyContainers(usize),
    /// What would be added is too much.
    #[error(
        "variables and mounts for {0} containers would be more than 1 MiB; a shorter `outgate.dev/no-proxy`, or fewer containers"
    )]
    TooMuch(usize),
    /// The network of the node.
    #[error(
        "a pod with `hostNetwork` gets no sidecar: its 127.0.0.1 is the node's, and whoever runs there could use the credentials"
    )]
    HostNetwork,
    /// Another operating system.
    #[error("the sidecar is a Linux program, and `os.name` says `{0}`")]
    OtherSystem(Shown),
    /// Another container can do with the sidecar's process what it wants.
    #[error(
        "container `{0}` shares the process namespace with the sidecar and is or may be root (no `runAsUser`, no `runAsNonRoot`), is privileged, may trace, or is the sidecar's user; it could read or stop it"
    )]
    SharedProcesses(Shown),
    /// Redirection tells the sidecar from the app by its user.
    #[error("container `{0}` runs as the sidecar's user: its connections would not be redirected")]
    RedirectedUser(Shown),
    /// The name of the sidecar is taken.
    #[error("the pod has a container `{0}` of its own, which is a name of the sidecar's")]
    NameTaken(Shown),
    /// A volume of the sidecar's name is there, and is another one.
    #[error("the pod has a volume `{0}` of its own, which is a name of the sidecar's volumes")]
    VolumeTaken(Shown),
    /// The place of the bundle is taken.
    #[error("container `{container}` has a mount at `{path}`, where outgate's certificates have to be")]
    MountTaken {
        /// The container.
        container: Shown,
        /// The place.
        path: Shown,
    },
    /// A volume of the sidecar is mounted elsewhere.
    #[error("container `{container}` mounts `{volume}`, which is the sidecar's alone")]
    PrivateVolume {
        /// The container.
        container: Shown,
        /// The volume.
        volume: Shown,
    },
    /// A label of outgate's own with another value.
    #[error("label `{0}` is set by outgate, and here it says something else")]
    LabelTaken(Shown),
}

/// Text of a pod, as it is shown in messages: at most 128 characters, and no control character among them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown(String);

impl Shown {
    const MAX: usize = 128;

    /// The text as it may be shown.
    pub fn new(text: &str) -> Self {
        let mut shown: String =
            text.chars().take(Self::MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        if text.chars().nth(Self::MAX).is_some() {
            shown.push('…');
        }
        Self(shown)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is told beside the answer: at most 12 sentences, because Kubernetes cuts long lists itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings {
    sentences: Vec<String>,
    dropped: usize,
}

impl Warnings {
    const MAX: usize = 12;

    /// Adds one.
    pub fn push(&mut self, sentence: String) {
        if self.sentences.len() < Self::MAX {
            self.sentences.push(sentence);
        } else {
            self.dropped += 1;
        }
    }

    /// How many there were, those that are not told included.
    pub fn count(&self) -> usize {
        self.sentences.len() + self.dropped
    }

    /// All that is told.
    pub fn told(&self) -> Vec<String> {
        let mut told = self.sentences.clone();
        if self.dropped > 0 {
            told.push(format!("... and {} more", self.dropped));
        }
        told
    }
}
