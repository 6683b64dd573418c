//! `concurrency:` as written in the policy, and as true.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::quantity::TimeSpan;
use crate::resilience::mistake::Mistakes;
use crate::resilience::mode::Mode;

/// How many requests to a provider run at a time.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConcurrencyConfig {
    /// So many requests at a time, until the body of their answer ends. Required.
    pub max: Option<u32>,
    /// How long a request waits for its turn; also bounded by the deadline. Default: 1s.
    pub max_wait: Option<TimeSpan>,
    /// So many wait at a time; more are refused at once. Default: 1000.
    pub max_queue: Option<u32>,
    /// `shadow`: only counts and logs what would wait or be refused. Default: `enforce`.
    pub mode: Option<Mode>,
}

/// A bound on concurrent requests, as compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConcurrencySettings {
    /// So many requests at a time; at least 1.
    pub max: u32,
    /// How long a request waits for its turn.
    pub max_wait: Duration,
    /// So many wait at a time.
    pub max_queue: u32,
    /// Whether it only counts what would wait or be refused.
    pub shadow: bool,
}

/// The most of either count; more is a slip of the keyboard, and no bound.
const MOST: u32 = 1_000_000;
const LONGEST_WAIT: TimeSpan = TimeSpan::from_secs(3600);

impl ConcurrencyConfig {
    /// What is true of it. Every mistake is told; a wrong value is replaced by one that can be used.
    pub fn compile(&self, mistakes: &mut Mistakes) -> ConcurrencySettings {
        let max_wait = self.max_wait.unwrap_or(TimeSpan::from_secs(1));
        if max_wait > LONGEST_WAIT {
            mistakes
                .add("max_wait", format!("a request waits at most {LONGEST_WAIT}, and this is {max_wait}"));
        }
        let max_queue = self.max_queue.unwrap_or(1000);
        if max_queue > MOST {
            mistakes.add("max_queue", format!("at most {MOST} requests wait, and this is {max_queue}"));
        }
        ConcurrencySettings {
            max: self.compile_max(mistakes),
            max_wait: max_wait.duration(),
            max_queue,
            shadow: self.mode.unwrap_or_default() == Mode::Shadow,
        }
    }

    fn compile_max(&self, mistakes: &mut Mistakes) -> u32 {
        match self.max {
            Some(max @ 1..=MOST) => return max,
            Some(0) => {
                mistakes.hint("max", "no request could ever run", "`deny` on a route refuses for good")
            }
            Some(max) => {
                mistakes.add("max", format!("expected a number from 1 to {MOST}, and this is {max}"));
            }
            None => mistakes.hint("", "`max` is missing", "`concurrency: { max: 100 }`"),
        }
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(json: &str) -> (ConcurrencySettings, Vec<String>) {
        let config: ConcurrencyConfig = serde_json::from_str(json).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = config.compile(&mut mistakes);
        let told = mistakes.into_vec().into_iter().map(|m| format!("{:?}: {}", m.at, m.message)).collect();
        (settings, told)
    }

    #[test]
    fn defaults() {
        let (settings, mistakes) = compile(r#"{"max":100}"#);
        assert!(mistakes.is_empty());
        let max_wait = Duration::from_secs(1);
        assert_eq!(settings, ConcurrencySettings { max: 100, max_wait, max_queue: 1000, shadow: false });
        assert!(compile(r#"{"max":1,"mode":"shadow"}"#).0.shadow);
    }

    #[test]
    fn mistakes() {
        for (json, words) in [
            ("{}", "`max` is missing"),
            (r#"{"max":0}"#, "could ever run"),
            (r#"{"max":1000001}"#, "from 1 to"),
            (r#"{"max":1,"max_wait":"2h"}"#, "waits at most 1h"),
            (r#"{"max":1,"max_queue":1000001}"#, "at most 1000000"),
        ] {
            let (_, mistakes) = compile(json);
            assert_eq!(mistakes.len(), 1, "{json}: {mistakes:?}");
            assert!(mistakes[0].contains(words), "{json}: {mistakes:?}");
        }
        assert!(serde_json::from_str::<ConcurrencyConfig>(r#"{"limit":3}"#).is_err());
    }
}
