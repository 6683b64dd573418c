//! `retry:` as written in the policy.

use std::time::Duration;

use http::{HeaderName, Method};
use schemars::JsonSchema;
use serde::Deserialize;

use super::backoff::{Backoff, Jitter};
use super::budget::BudgetSettings;
use super::settings::{RetrySettings, Trigger, Triggers};
use crate::message::headers::OWN_PREFIX;
use crate::message::quantity::{ByteSize, Ratio, TimeSpan};
use crate::resilience::REPLAY_BUFFER;
use crate::resilience::mistake::Mistakes;

/// More than this many attempts help nobody, and are a load for a provider in trouble.
const MAX_ATTEMPTS: u32 = 10;
/// The largest factor of the backoff.
const MAX_FACTOR: u32 = 10;
/// The longest wait that outgate chooses by itself.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// The longest wait that a provider may ask for and outgate keeps.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// The largest replay buffer.
const MAX_REPLAY: usize = 16 * 1024 * 1024;
/// The largest floor of the budget.
const MAX_FLOOR: u32 = 1000;

/// When a request is sent again: on one of the four grounds, and if its outcome stands in `on`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryConfig {
    /// Attempts in all, the first included; 1 to 10. Default: 3.
    pub attempts: Option<u32>,
    /// Outcomes after which another attempt makes sense. Which status is which class is said in `responses`. Default: all.
    pub on: Option<Vec<TriggerConfig>>,
    /// Methods that may be sent again though the first attempt may have acted. Default: GET, HEAD, OPTIONS, PUT, DELETE.
    pub methods: Option<Vec<String>>,
    /// Waits between attempts.
    pub backoff: Option<BackoffConfig>,
    /// A longer `Retry-After` is handed to the app at once. Default: 60s.
    pub max_retry_after: Option<TimeSpan>,
    /// How much load retries may add, for the provider as a whole and for each of its hosts.
    pub budget: Option<BudgetConfig>,
    /// Bytes of a request body that are kept, so that it can be sent again. A longer one is streamed, and is not sent again
    /// once bytes went out. Default: 64KiB.
    pub replay_buffer: Option<ByteSize>,
    /// The provider's own word on whether to try again.
    pub hint: Option<HintConfig>,
}

/// An outcome after which another attempt makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TriggerConfig {
    /// Nothing was sent: name, connection, TLS; or the provider gave the request back unprocessed.
    Connect,
    /// The connection broke before the head of an answer.
    Reset,
    /// The head did not come in time.
    Timeout,
    /// The provider limits the rate.
    Throttle,
    /// The provider limits how many run at once.
    Concurrency,
    /// The provider was in the middle of something else with the same object.
    Conflict,
    /// The provider is overloaded.
    Overload,
    /// The provider is not available.
    Unavailable,
}

impl From<TriggerConfig> for Trigger {
    fn from(config: TriggerConfig) -> Self {
        match config {
            TriggerConfig::Connect => Self::Connect,
            TriggerConfig::Reset => Self::Reset,
            TriggerConfig::Timeout => Self::Timeout,
            TriggerConfig::Throttle => Self::Throttle,
            TriggerConfig::Concurrency => Self::Concurrency,
            TriggerConfig::Conflict => Self::Conflict,
            TriggerConfig::Overload => Self::Overload,
            TriggerConfig::Unavailable => Self::Unavailable,
        }
    }
}

/// Waits between attempts: `base`, times `factor` for each further one, up to `max`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackoffConfig {
    /// The most before the first repetition. Default: 250ms.
    pub base: Option<TimeSpan>,
    /// By what it grows with each; 1 to 10. Default: 2.
    pub factor: Option<u32>,
    /// Where it stops growing; at most 5m. Default: 8s.
    pub max: Option<TimeSpan>,
    /// `full` draws each wait from nothing to the whole; `none` takes the whole. Default: `full`.
    pub jitter: Option<JitterConfig>,
}

/// How chance comes into a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JitterConfig {
    /// Anything from nothing to the whole.
    Full,
    /// The whole.
    None,
}

/// How much load retries may add.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetConfig {
    /// Retries per first attempt of the last ten seconds; at most 100%. Default: 20%.
    pub ratio: Option<Ratio>,
    /// Retries in a second that are granted in any case; at most 1000. Default: 3.
    pub min_per_second: Option<u32>,
}

/// The provider's own word on whether to try again.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HintConfig {
    /// The field in which it says `true` or `false`, such as `x-should-retry`. Required.
    pub header: Option<String>,
}

impl RetryConfig {
    /// The settings, with every value that is wrong told.
    pub fn compile(&self, mistakes: &mut Mistakes) -> RetrySettings {
        RetrySettings {
            attempts: self.attempts(mistakes),
            on: self.on(mistakes),
            methods: methods("methods", self.methods.as_deref(), &DEFAULT_METHODS, mistakes).into(),
            backoff: self.backoff.clone().unwrap_or_default().compile(mistakes),
            max_retry_after: self.max_retry_after(mistakes),
            budget: self.budget.clone().unwrap_or_default().compile(mistakes),
            replay_buffer: self.replay_buffer(mistakes),
            hint: self.hint.as_ref().and_then(|hint| hint.compile(mistakes)),
        }
    }

    fn attempts(&self, mistakes: &mut Mistakes) -> u32 {
        let attempts = self.attempts.unwrap_or(3);
        if attempts == 0 {
            mistakes.hint("attempts", "at least 1: the first is counted", "`retry: off` sends nothing again");
        }
        if attempts > MAX_ATTEMPTS {
            mistakes.add("attempts", "at most 10: more are a load for a provider in trouble");
        }
        attempts.clamp(1, MAX_ATTEMPTS)
    }

    fn on(&self, mistakes: &mut Mistakes) -> Triggers {
        let Some(on) = &self.on else { return Triggers::ALL };
        if on.is_empty() {
            mistakes.hint("on", "nothing would ever be sent again", "`retry: off` says that");
        }
        for (at, trigger) in on.iter().enumerate() {
            if on[..at].contains(trigger) {
                mistakes.add(&format!("on.{at}"), "stands here twice");
            }
        }
        on.iter().copied().map(Trigger::from).collect()
    }

    fn max_retry_after(&self, mistakes: &mut Mistakes) -> Duration {
        let longest = self.max_retry_after.map_or(Duration::from_secs(60), TimeSpan::duration);
        if longest > MAX_WAIT {
            mistakes.add("max_retry_after", "at most 1h: no app waits for an answer that long");
        }
        longest.min(MAX_WAIT)
    }

    fn replay_buffer(&self, mistakes: &mut Mistakes) -> usize {
        let bytes = self.replay_buffer.map_or(REPLAY_BUFFER, ByteSize::as_usize);
        if bytes > MAX_REPLAY {
            mistakes.add("replay_buffer", "at most 16MiB: it is held in memory for each request");
        }
        bytes.min(MAX_REPLAY)
    }
}

const DEFAULT_METHODS: [Method; 5] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE];

/// A list of methods, or the default.
pub(in crate::resilience) fn methods(
    key: &str,
    given: Option<&[String]>,
    default: &[Method],
    mistakes: &mut Mistakes,
) -> Vec<Method> {
    let Some(given) = given else { return default.to_vec() };
    let mut methods = Vec::with_capacity(given.len());
    for (at, name) in given.iter().enumerate() {
        let place = format!("{key}.{at}");
        match Method::from_bytes(name.as_bytes()) {
            Ok(Method::CONNECT | Method::TRACE) => {
                mistakes.add(&place, "requests of this method never come here");
            }
            Ok(method) if methods.contains(&method) => mistakes.add(&place, "stands here twice"),
            Ok(_) if name.bytes().any(|byte| byte.is_ascii_lowercase()) => mistakes.hint(
                &place,
                "methods are case-sensitive and written in capitals",
                format!("`{}`", name.to_ascii_uppercase()),
            ),
            Ok(method) => methods.push(method),
            Err(_) => mistakes.add(&place, "not a method"),
        }
    }
    methods
}

/// A field's name that outgate may write: none that frames a message, routes it, or carries a credential. `usual` is one that
/// is often meant.
pub(in crate::resilience) fn field_name(
    key: &str,
    text: &str,
    usual: &str,
    mistakes: &mut Mistakes,
) -> Option<HeaderName> {
    const TAKEN: [&str; 17] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "date",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    ];
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        mistakes.hint(key, "not the name of a header field", format!("such as `{usual}`"));
        return None;
    };
    if TAKEN.contains(&name.as_str()) || name.as_str().starts_with(OWN_PREFIX) {
        let message = format!("`{name}` frames or routes a message, or says something else of its own");
        mistakes.hint(key, message, format!("the field that the provider documents, such as `{usual}`"));
        return None;
    }
    Some(name)
}

impl BackoffConfig {
    fn compile(&self, mistakes: &mut Mistakes) -> Backoff {
        let base = self.base.map_or(Duration::from_millis(250), TimeSpan::duration);
        let factor = self.factor.unwrap_or(2);
        if base.is_zero() {
            mistakes.add(
                "backoff.base",
                "must be more than nothing: who failed together would come back together",
            );
        }
        if !(1..=MAX_FACTOR).contains(&factor) {
            mistakes.add("backoff.factor", "a whole number from 1 to 10");
        }
        // A base that is written may be longer than a bound that is not.
        let max = self.max.map_or(Duration::from_secs(8).max(base), TimeSpan::duration);
        if max < base {
            mistakes.add("backoff.max", "shorter than `base`");
        }
        if max > MAX_BACKOFF {
            let key = if self.max.is_some() { "backoff.max" } else { "backoff.base" };
            mistakes.add(key, "at most 5m");
        }
        let jitter = match self.jitter.unwrap_or(JitterConfig::Full) {
            JitterConfig::Full => Jitter::Full,
            JitterConfig::None => Jitter::None,
        };
        Backoff { base, factor: factor.clamp(1, MAX_FACTOR), max: max.min(MAX_BACKOFF), jitter }
    }
}

impl BudgetConfig {
    fn compile(&self, mistakes: &mut Mistakes) -> BudgetSettings {
        let ratio = self.ratio.unwrap_or(Ratio::from_percent(20));
        let min_per_second = self.min_per_second.unwrap_or(3);
        if ratio > Ratio::from_percent(100) {
            mistakes.add("budget.ratio", "at most 100%: retries would be more than what they repeat");
        }
        if min_per_second > MAX_FLOOR {
            mistakes.add("budget.min_per_second", "at most 1000");
        }
        if ratio == Ratio::default() && min_per_second == 0 {
            mistakes.hint("budget", "nothing would ever be sent again", "`retry: off` says that");
        }
        BudgetSettings {
            ratio: ratio.min(Ratio::from_percent(100)),
            min_per_second: min_per_second.min(MAX_FLOOR),
        }
    }
}

impl HintConfig {
    fn compile(&self, mistakes: &mut Mistakes) -> Option<HeaderName> {
        match &self.header {
            Some(name) => field_name("hint.header", name, "x-should-retry", mistakes),
            None => {
                mistakes.hint("hint", "missing key `header`", "`hint: { header: x-should-retry }`");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::mistake::{Mistake, Step};

    fn compile(yaml: &str) -> (RetrySettings, Vec<String>) {
        let config: RetryConfig = serde_yaml::from_str(yaml).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = config.compile(&mut mistakes);
        (settings, mistakes.into_vec().iter().map(place).collect())
    }

    fn place(mistake: &Mistake) -> String {
        let steps = mistake.at.iter().map(|step| match step {
            Step::Key(key) => key.to_string(),
            Step::Index(index) => index.to_string(),
        });
        format!("{}: {}", steps.collect::<Vec<_>>().join("."), mistake.message)
    }

    #[test]
    fn what_is_not_written_is_as_the_contract_says() {
        let (settings, mistakes) = compile("{}");
        assert!(mistakes.is_empty());
        let written = "{ attempts: 3, on: [connect, reset, timeout, throttle, concurrency, conflict, overload, \
             unavailable], methods: [GET, HEAD, OPTIONS, PUT, DELETE], backoff: { base: 250ms, factor: 2, max: 8s, \
             jitter: full }, max_retry_after: 60s, budget: { ratio: 20%, min_per_second: 3 }, replay_buffer: 64KiB }";
        assert_eq!(compile(written), (settings.clone(), Vec::new()));
        assert_eq!(settings.attempts, 3);
        assert_eq!(settings.backoff.ceiling(9), Duration::from_secs(8));
        assert!(settings.repeats(&Method::PUT) && !settings.repeats(&Method::POST));
        let (with_hint, mistakes) = compile("{ hint: { header: X-Should-Retry }, backoff: { base: 10s } }");
        assert!(mistakes.is_empty());
        assert_eq!(with_hint.hint.unwrap(), "x-should-retry");
        assert_eq!(with_hint.backoff.ceiling(5), Duration::from_secs(10));
    }

    #[test]
    fn every_wrong_value_is_told_and_none_is_kept() {
        let (settings, mistakes) = compile(
            "{ attempts: 0, on: [], methods: [get, GET, GET, TRACE, \"no good\"], backoff: { base: 0s, factor: 0, max: 1h }, \
             max_retry_after: 1d, budget: { ratio: 0%, min_per_second: 0 }, replay_buffer: 1GiB, hint: {} }",
        );
        assert_eq!(
            mistakes,
            [
                "attempts: at least 1: the first is counted",
                "on: nothing would ever be sent again",
                "methods.0: methods are case-sensitive and written in capitals",
                "methods.2: stands here twice",
                "methods.3: requests of this method never come here",
                "methods.4: not a method",
                "backoff.base: must be more than nothing: who failed together would come back together",
                "backoff.factor: a whole number from 1 to 10",
                "backoff.max: at most 5m",
                "max_retry_after: at most 1h: no app waits for an answer that long",
                "budget: nothing would ever be sent again",
                "replay_buffer: at most 16MiB: it is held in memory for each request",
                "hint: missing key `header`",
            ]
        );
        assert_eq!((settings.attempts, settings.replay_buffer), (1, MAX_REPLAY));
        assert_eq!((settings.max_retry_after, settings.backoff.max), (MAX_WAIT, MAX_BACKOFF));
    }

    #[test]
    fn more_wrong_values() {
        for (yaml, expected) in [
            ("{ attempts: 11 }", "attempts: at most 10: more are a load for a provider in trouble"),
            ("{ on: [reset, connect, reset] }", "on.2: stands here twice"),
            ("{ backoff: { base: 2s, max: 1s } }", "backoff.max: shorter than `base`"),
            ("{ backoff: { base: 6m } }", "backoff.base: at most 5m"),
            (
                "{ budget: { ratio: 101% } }",
                "budget.ratio: at most 100%: retries would be more than what they repeat",
            ),
            ("{ budget: { min_per_second: 1001 } }", "budget.min_per_second: at most 1000"),
            (
                "{ hint: { header: Content-Length } }",
                "hint.header: `content-length` frames or routes a message, or says something else of its own",
            ),
            (
                "{ hint: { header: outgate-sent } }",
                "hint.header: `outgate-sent` frames or routes a message, or says something else of its own",
            ),
            ("{ hint: { header: \"a b\" } }", "hint.header: not the name of a header field"),
        ] {
            assert_eq!(compile(yaml).1, [expected], "{yaml}");
        }
    }
}
