//! What a pod's annotations ask for.
//!
//! | annotation | value |
//! | --- | --- |
//! | `outgate.dev/policy` | ConfigMap with the policy |
//! | `outgate.dev/credentials-secret` | Secret that the sidecar mounts |
//! | `outgate.dev/containers` | the containers that are pointed at outgate, and no others |
//! | `outgate.dev/exclude-containers` | containers that are not |
//! | `outgate.dev/runtimes` | `java`: runtimes of the app that do not go by the usual variables |
//! | `outgate.dev/no-proxy` | further hosts, suffixes and networks that the app reaches directly |
//! | `outgate.dev/native-sidecar` | `true`, `false` |
//! | `outgate.dev/log-level` | `error`, `warn`, `info`, `debug` |
//! | `outgate.dev/cpu-request`, `outgate.dev/memory-request`, `outgate.dev/memory-limit` | quantities |
//!
//! `outgate.dev/status` is written by the injector and not read as an option. Image, user and flags cannot be set: whoever may
//! make pods would have the sidecar in hand.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::template::Mode;
use super::{INJECT_LABEL, INJECTED_LABEL, PREFIX, Refusal, STATUS, Shown};
use crate::policy::diagnostic::suggest;

const POLICY: &str = "outgate.dev/policy";
const CREDENTIALS: &str = "outgate.dev/credentials-secret";
/// The containers that are pointed at outgate.
pub const CONTAINERS: &str = "outgate.dev/containers";
/// Those that are not.
pub const EXCLUDE: &str = "outgate.dev/exclude-containers";
const RUNTIMES: &str = "outgate.dev/runtimes";
const NO_PROXY: &str = "outgate.dev/no-proxy";
const NATIVE: &str = "outgate.dev/native-sidecar";
const LOG_LEVEL: &str = "outgate.dev/log-level";
/// What the sidecar asks for.
pub(super) const CPU_REQUEST: &str = "outgate.dev/cpu-request";
/// The same, of memory.
pub(super) const MEMORY_REQUEST: &str = "outgate.dev/memory-request";
/// What it may use.
pub(super) const MEMORY_LIMIT: &str = "outgate.dev/memory-limit";

/// Bytes that the value of an annotation may have. `no-proxy` comes back in each container more than once.
const MAX_VALUE: usize = 4096;

/// All that may be set.
const KEYS: [&str; 11] = [
    POLICY,
    CREDENTIALS,
    CONTAINERS,
    EXCLUDE,
    RUNTIMES,
    NO_PROXY,
    NATIVE,
    LOG_LEVEL,
    CPU_REQUEST,
    MEMORY_REQUEST,
    MEMORY_LIMIT,
];

/// What a pod asks for; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// ConfigMap with the policy.
    pub policy: Option<String>,
    /// Secret that the sidecar mounts.
    pub credentials: Option<String>,
    /// The containers that are pointed at outgate; `None`: all.
    pub containers: Option<Vec<String>>,
    /// Containers that are not.
    pub exclude: Vec<String>,
    /// Whether the app runs on Java.
    pub java: bool,
    /// Appended to `NO_PROXY`.
    pub no_proxy: Vec<String>,
    /// How the sidecar stands in the pod.
    pub mode: Option<Mode>,
    /// What the sidecar logs of its own work.
    pub log_level: Option<String>,
    /// Quantity of CPU.
    pub cpu_request: Option<String>,
    /// Quantity of memory.
    pub memory_request: Option<String>,
    /// Quantity of memory.
    pub memory_limit: Option<String>,
    /// The annotations as they were written, without those that ask for nothing.
    pub given: BTreeMap<String, String>,
}

impl Options {
    /// Reads the annotations of a pod; those of others are passed over.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownAnnotation`], [`Refusal::BadAnnotation`].
    pub fn of(annotations: &Map<String, Value>) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(PREFIX) && *key != STATUS) {
            let known = KEYS.iter().find(|known| *known == key).ok_or_else(|| unknown(key))?;
            let value = value.as_str().ok_or(Refusal::NotAPod("metadata.annotations"))?;
            if value.len() > MAX_VALUE {
                let value = Shown::new(value);
                return Err(Refusal::BadAnnotation { key: known, value, wanted: "at most 4096 bytes long" });
            }
            options.set(known, value)?;
            options.given.insert(key.clone(), value.to_owned());
        }
        Ok(options)
    }

    fn set(&mut self, key: &'static str, value: &str) -> Result<(), Refusal> {
        let take = |right: bool, wanted: &'static str| match right {
            true => Ok(Some(value.to_owned())),
            false => Err(Refusal::BadAnnotation { key, value: Shown::new(value), wanted }),
        };
        let wanted_list = |wanted| Refusal::BadAnnotation { key, value: Shown::new(value), wanted };
        match key {
            POLICY => self.policy = take(is_name(value), "the name of a ConfigMap")?,
            CREDENTIALS => self.credentials = take(is_name(value), "the name of a Secret")?,
            CONTAINERS => {
                let names =
                    list(value, is_name).ok_or_else(|| wanted_list("a list of containers: `app,worker`"))?;
                self.containers = Some(names);
            }
            EXCLUDE => {
                self.exclude =
                    list(value, is_name).ok_or_else(|| wanted_list("a list of containers: `app,worker`"))?;
            }
            RUNTIMES => {
                list(value, |runtime| runtime == "java")
                    .ok_or_else(|| wanted_list("a list of runtimes: `java`"))?;
                self.java = true;
            }
            NO_PROXY => {
                self.no_proxy = list(value, is_direct).ok_or_else(|| {
                    wanted_list("a list of hosts, suffixes and networks: `.corp.example,10.0.0.0/8`")
                })?;
            }
            NATIVE => {
                self.mode = match value {
                    "true" => Some(Mode::Native),
                    "false" => Some(Mode::Classic),
                    _ => return Err(wanted_list("`true` or `false`")),
                };
            }
            LOG_LEVEL => {
                let right = matches!(value, "error" | "warn" | "info" | "debug");
                self.log_level = take(right, "`error`, `warn`, `info` or `debug`")?;
            }
            CPU_REQUEST => self.cpu_request = take(is_quantity(value), "a quantity: `100m`")?,
            MEMORY_REQUEST => self.memory_request = take(is_quantity(value), "a quantity: `64Mi`")?,
            _ => self.memory_limit = take(is_quantity(value), "a quantity: `128Mi`")?,
        }
        Ok(())
    }
}

fn unknown(key: &str) -> Refusal {
    let hint = if key == INJECT_LABEL || key == INJECTED_LABEL {
        "; it is a label".to_owned()
    } else {
        let word = key.strip_prefix(PREFIX).unwrap_or(key);
        let words = KEYS.iter().filter_map(|known| known.strip_prefix(PREFIX));
        suggest(word, words).map(|near| format!("; did you mean `{PREFIX}{near}`?")).unwrap_or_default()
    };
    Refusal::UnknownAnnotation { key: Shown::new(key), hint }
}

/// The members of `a, b`; none where one of them is not right, or there is none.
fn list(value: &str, right: fn(&str) -> bool) -> Option<Vec<String>> {
    let members: Vec<&str> = value.split(',').map(str::trim).collect();
    members.iter().all(|one| right(one)).then(|| members.into_iter().map(str::to_owned).collect())
}

/// The name of an object (RFC 1123 subdomain); that of a container is one too.
fn is_name(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.first().is_some_and(|c| inner(*c))
                && bytes.last().is_some_and(|c| inner(*c))
                && bytes.iter().all(|c| inner(*c) || *c == b'-')
        })
}

/// A host, a suffix, an address or a network. No `$`: Kubernetes would put another variable's value there.
fn is_direct(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_:/*[]".contains(&c))
}

/// How much a quantity is; none where it is written in a way that annotations may not be, with an exponent.
pub(super) fn amount(text: &str) -> Option<f64> {
    if !is_quantity(text) {
        return None;
    }
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[number.len()..] {
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024_f64,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        _ => 1.0,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// A quantity as Kubernetes writes it, without sign: digits, perhaps a fraction, perhaps a suffix.
fn is_quantity(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let digits =
        |part: &str| !part.is_empty() && part.len() <= 18 && part.bytes().all(|c| c.is_ascii_digit());
    let right = match number.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(number),
    };
    let suffix = &text[number.len()..];
    right
        && matches!(
            suffix,
            "" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei"
        )
}
