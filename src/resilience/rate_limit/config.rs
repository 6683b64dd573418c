//! `limits:` as written in the policy.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::pace::MAX_DEBT;
use super::settings::{LimitSettings, OnExcess, Scope, Unit};
use crate::message::quantity::{Rate, TimeSpan};
use crate::resilience::key::Per;
use crate::resilience::mistake::Mistakes;
use crate::resilience::mode::Mode;

const MAX_WAIT: TimeSpan = TimeSpan::from_secs(5);
const MAX_QUEUE: u32 = 1_000;
/// Above these a value is a slip of the pen.
const LONGEST_WAIT: TimeSpan = TimeSpan::from_secs(3_600);
const LONGEST_QUEUE: u32 = 100_000;
const LONGEST_NAME: usize = 64;
const SHORTEST_WINDOW: Duration = Duration::from_millis(10);
const LONGEST_WINDOW: Duration = Duration::from_secs(31 * 86_400);
const MOST_PER_SECOND: u128 = 1_000_000;

/// Rate limits; a request must be admitted by all of them.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct LimitsConfig(pub Vec<LimitConfig>);

/// One rate limit.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// What logs, metrics and answers call it; letters, digits, `-`, `_` and `.`. Default: its place, `limit-1` and so on.
    pub name: Option<String>,
    /// No window of the rate's own length ever holds more than this: `100/s`, `100/15m`. Required.
    pub rate: Option<Rate>,
    /// How many may go at once; tokens come back at `rate - burst + 1` per window. Default: a tenth of the rate, at least 1.
    pub burst: Option<u32>,
    /// What it counts: `requests`, or `cost`, of which a request takes what its route says (`cost: 100`; quota units, points).
    /// `cost` wants `scope: pod`. Default: `requests`.
    pub unit: Option<Unit>,
    /// What is counted apart: `provider` (all together), `credential`, `tenant` or `route`. Default: `provider`.
    pub per: Option<Per>,
    /// Whether each pod has the rate for itself (`pod`), or all pods share it (`fleet`, which needs `fleet:`). Default: `pod`.
    pub scope: Option<Scope>,
    /// What happens above the rate: `wait` in a queue, or `reject` with 429. Default: `wait`.
    pub on_excess: Option<OnExcess>,
    /// The longest wait; the request's deadline bounds it too. What would wait longer is refused at once. Default: 5s.
    pub max_wait: Option<TimeSpan>,
    /// How many may wait, of each key. Default: 1000.
    pub max_queue: Option<u32>,
    /// `shadow` counts and logs what would wait or be refused, and lets it pass. Default: `enforce`.
    pub mode: Option<Mode>,
}

/// Where an entry of the merged list was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The list that it comes from: two of one list have one author, who sees both.
    pub list: usize,
    /// Its line there, from 1.
    pub line: u32,
}

impl LimitsConfig {
    /// The settings of each limit that has a rate; every wrong value is told. `origins` are those of the entries, in their
    /// order. Whether `fleet:` exists for `scope: fleet` is the caller's to check.
    pub fn compile(&self, origins: &[Origin], mistakes: &mut Mistakes) -> Vec<LimitSettings> {
        let limits: Vec<_> =
            (0..).zip(&self.0).map(|(place, limit)| limit.compile(place, mistakes)).collect();
        let mut names = HashSet::new();
        for (place, limit) in limits.iter().enumerate() {
            let mut wrong = Told { place, mistakes };
            let name = self.0[place].name(&mut Told { place, mistakes: &mut Mistakes::default() });
            if !names.insert(name) {
                let key = if self.0[place].name.is_some() { "name" } else { "" };
                wrong.at(key, "another limit of this list has the same name", "a name of its own");
            }
            let Some(limit) = limit else { continue };
            if let Some((other, line)) = made_idle_by(&limits, origins, place) {
                let why = if limit.rate == other.rate {
                    "counts the same by the same rate: one limit says it"
                } else {
                    "lets no more of the same through, so this limit is never reached"
                };
                let message = format!("overlaps `{}` of line {line}, which {why}", other.name);
                wrong.at("rate", message, "remove one of the two, or give one of them another rate");
            }
        }
        limits.into_iter().flatten().collect()
    }
}

impl LimitConfig {
    fn compile(&self, place: usize, mistakes: &mut Mistakes) -> Option<LimitSettings> {
        let mut wrong = Told { place, mistakes };
        let name = self.name(&mut wrong);
        let rate = self.rate(&mut wrong);
        let burst = self.burst(rate, &mut wrong);
        let max_wait = self.max_wait(&mut wrong);
        let max_queue = self.max_queue(&mut wrong);
        let (unit, scope) = (self.unit.unwrap_or_default(), self.scope.unwrap_or_default());
        if (unit, scope) == (Unit::Cost, Scope::Fleet) {
            wrong.at(
                "unit",
                "a limit that all pods share counts requests",
                "`scope: pod`, or `unit: requests`",
            );
        }
        Some(LimitSettings {
            unit,
            name,
            rate: rate?,
            burst,
            per: self.per.unwrap_or_default(),
            scope,
            on_excess: self.on_excess.unwrap_or_default(),
            max_wait,
            max_queue,
            mode: self.mode.unwrap_or_default(),
        })
    }

    fn name(&self, wrong: &mut Told<'_>) -> Arc<str> {
        let Some(name) = &self.name else { return format!("limit-{}", wrong.place + 1).into() };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(fits) {
            wrong.at("name", "a name has 1 to 64 letters, digits, `-`, `_` or `.`", "such as `account`");
        }
        name.as_str().into()
    }

    fn rate(&self, wrong: &mut Told<'_>) -> Option<Rate> {
        let Some(rate) = self.rate else {
            wrong.at("rate", "a limit has a `rate`", "such as `rate: 100/s`");
            return None;
        };
        let millis = rate.per().as_millis();
        if rate.count() == 0 {
            wrong.at("rate", "a limit of zero lets nothing through", "a route can `deny` instead");
        } else if !(SHORTEST_WINDOW..=LONGEST_WINDOW).contains(&rate.per()) {
            wrong.at("rate", "the time of a rate is 10ms to 31d", "such as `100/s` or `100/15m`");
        } else if u128::from(rate.count()) * 1_000 > MOST_PER_SECOND * millis {
            wrong.at("rate", "more than 1000000 a second is no limit", "a lower rate, or no limit");
        } else {
            return Some(rate);
        }
        None
    }

    fn burst(&self, rate: Option<Rate>, wrong: &mut Told<'_>) -> u32 {
        let most = rate.map_or(u32::MAX, Rate::count);
        let burst = self.burst.unwrap_or((most / 10).max(1));
        if burst == 0 {
            wrong.at("burst", "a burst of zero lets nothing through", "1, for one at a time");
        } else if burst > most {
            let message = format!("the burst is larger than the rate, {most}");
            wrong.at("burst", message, "at most the rate; a tenth of it is the default");
        } else if rate.is_some_and(|rate| full_after(rate, burst) > u128::from(MAX_DEBT)) {
            wrong.at(
                "burst",
                "once used, this burst would take more than a hundred years to come back",
                "tokens come back at `rate - burst + 1` per window: a smaller burst",
            );
        }
        burst.clamp(1, most)
    }

    fn max_wait(&self, wrong: &mut Told<'_>) -> Duration {
        let max_wait = self.max_wait.unwrap_or(MAX_WAIT);
        if max_wait.is_zero() {
            wrong.at("max_wait", "nothing can wait for no time", "`on_excess: reject`");
        } else if max_wait > LONGEST_WAIT {
            wrong.at("max_wait", "nobody waits that long for an answer", "at most 1h");
        }
        max_wait.duration()
    }

    fn max_queue(&self, wrong: &mut Told<'_>) -> u32 {
        let max_queue = self.max_queue.unwrap_or(MAX_QUEUE);
        if max_queue == 0 {
            wrong.at("max_queue", "nothing can wait in a queue of no length", "`on_excess: reject`");
        } else if max_queue > LONGEST_QUEUE {
            wrong.at("max_queue", "a queue this long is a memory leak", "at most 100000");
        }
        max_queue
    }
}

/// The limit of the same list, and its line, beside which the one at `place` is idle.
fn made_idle_by<'a>(
    limits: &'a [Option<LimitSettings>],
    origins: &[Origin],
    place: usize,
) -> Option<(&'a LimitSettings, u32)> {
    let (limit, origin) = (limits.get(place)?.as_ref()?, origins.get(place)?);
    let beside = limits.iter().zip(origins).enumerate();
    let beside = beside.filter(|(other, (_, by))| *other != place && by.list == origin.list);
    let mut others = beside.filter_map(|(other, (settings, by))| Some((other, settings.as_ref()?, by.line)));
    let (_, other, line) = others.find(|(other, by, _)| limit.is_idle_beside(by, place < *other))?;
    Some((other, line))
}

/// Nanoseconds until a burst that was used up is there again.
fn full_after(rate: Rate, burst: u32) -> u128 {
    let refill = u128::from(rate.count().saturating_sub(burst)) + 1;
    rate.per().as_nanos() * u128::from(burst) / refill
}

/// Tells the mistakes of one entry.
struct Told<'a> {
    place: usize,
    mistakes: &'a mut Mistakes,
}

impl Told<'_> {
    fn at(&mut self, key: &str, message: impl Into<Cow<'static, str>>, hint: impl Into<Cow<'static, str>>) {
        let at = format!("{}.{key}", self.place);
        self.mistakes.hint(at.trim_end_matches('.'), message, hint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::mistake::Step;

    fn compile(json: &str) -> (Vec<LimitSettings>, Vec<String>) {
        let config: LimitsConfig = serde_json::from_str(json).unwrap();
        let mut mistakes = Mistakes::default();
        let origins: Vec<_> = (0..config.0.len()).map(|_| Origin { list: 0, line: 7 }).collect();
        let settings = config.compile(&origins, &mut mistakes);
        let told = mistakes.into_vec().into_iter().map(|mistake| {
            let steps: Vec<_> = mistake
                .at
                .iter()
                .map(|step| match step {
                    Step::Key(key) => key.to_string(),
                    Step::Index(index) => index.to_string(),
                })
                .collect();
            format!("{}: {}", steps.join("."), mistake.message)
        });
        (settings, told.collect())
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let (settings, told) = compile(r#"[{"rate": "100/s"}, {"rate": "5/15m", "per": "tenant"}]"#);
        assert!(told.is_empty(), "{told:?}");
        let first = LimitSettings {
            name: "limit-1".into(),
            rate: "100/s".parse().unwrap(),
            burst: 10,
            unit: Unit::Requests,
            per: Per::Provider,
            scope: Scope::Pod,
            on_excess: OnExcess::Wait,
            max_wait: Duration::from_secs(5),
            max_queue: 1000,
            mode: Mode::Enforce,
        };
        assert_eq!(settings[0], first);
        assert_eq!(
            (settings[1].name.as_ref(), settings[1].burst, settings[1].per),
            ("limit-2", 1, Per::Tenant)
        );
    }

    #[test]
    fn every_key_is_read() {
        let (settings, told) = compile(
            r#"[{"name": "a", "rate": "9/m", "burst": 9, "per": "route", "scope": "fleet", "on_excess": "reject",
                "max_wait": "1s", "max_queue": 7, "mode": "shadow"}]"#,
        );
        assert!(told.is_empty(), "{told:?}");
        let limit = &settings[0];
        assert_eq!((limit.burst, limit.max_queue, limit.max_wait), (9, 7, Duration::from_secs(1)));
        assert_eq!((limit.per, limit.scope), (Per::Route, Scope::Fleet));
        assert_eq!((limit.on_excess, limit.mode), (OnExcess::Reject, Mode::Shadow));
        assert!(serde_json::from_str::<LimitsConfig>(r#"[{"rates": "1/s"}]"#).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (json, expected) in [
            (r#"[{}]"#, "0.rate: a limit has a `rate`"),
            (r#"[{"rate": "0/s"}]"#, "0.rate: a limit of zero"),
            (r#"[{"rate": "5/1ms"}]"#, "0.rate: the time of a rate"),
            (r#"[{"rate": "5/32d"}]"#, "0.rate: the time of a rate"),
            (r#"[{"rate": "1000001/s"}]"#, "0.rate: more than 1000000 a second"),
            (r#"[{"rate": "10/s", "burst": 0}]"#, "0.burst: a burst of zero"),
            (r#"[{"rate": "10/s", "burst": 11}]"#, "0.burst: the burst is larger than the rate, 10"),
            (r#"[{"rate": "100000/31d", "burst": 100000}]"#, "0.burst: once used"),
            (
                r#"[{"rate": "10/s", "unit": "cost", "scope": "fleet"}]"#,
                "0.unit: a limit that all pods share",
            ),
            (r#"[{"rate": "10/s", "max_wait": "0s"}]"#, "0.max_wait: nothing can wait"),
            (r#"[{"rate": "10/s", "max_wait": "2h"}]"#, "0.max_wait: nobody"),
            (r#"[{"rate": "10/s", "max_queue": 0}]"#, "0.max_queue: nothing can wait"),
            (r#"[{"rate": "10/s", "max_queue": 100001}]"#, "0.max_queue: a queue"),
            // A burst of 6 and 60 in a minute are less than 60 in a second, whichever comes first.
            (
                r#"[{"rate": "60/m"}, {"rate": "60/s"}]"#,
                "1.rate: overlaps `limit-1` of line 7, which lets no more",
            ),
            (
                r#"[{"rate": "60/s"}, {"rate": "60/m"}]"#,
                "0.rate: overlaps `limit-2` of line 7, which lets no more",
            ),
            (r#"[{"rate": "10/s", "name": ""}]"#, "0.name: a name has"),
            (r#"[{"rate": "10/s", "name": "a b"}]"#, "0.name: a name has"),
            (
                r#"[{"rate": "1/s", "name": "a", "per": "route"}, {"rate": "2/s", "name": "a"}]"#,
                "1.name: another limit of this list has the same name",
            ),
            (
                r#"[{"rate": "1/s", "name": "limit-2"}, {"rate": "2/s", "per": "route"}]"#,
                "1: another limit of this list has the same name",
            ),
            (
                r#"[{"rate": "60/m", "name": "a"}, {"rate": "60/60s", "burst": 2}]"#,
                "1.rate: overlaps `a` of line 7, which counts the same by the same rate",
            ),
        ] {
            let (_, told) = compile(json);
            assert_eq!(told.len(), 1, "{json}: {told:?}");
            assert!(told[0].starts_with(expected), "{json}: {told:?}");
        }
    }

    #[test]
    fn limits_that_differ_do_not_overlap() {
        for json in [
            r#"[{"rate": "60/m"}, {"rate": "2/s"}]"#,
            r#"[{"rate": "60/m", "per": "tenant"}, {"rate": "60/s"}]"#,
            r#"[{"rate": "60/m"}, {"rate": "60/m", "per": "tenant"}]"#,
            r#"[{"rate": "60/m"}, {"rate": "60/m", "unit": "cost"}]"#,
            r#"[{"rate": "60/m"}, {"rate": "60/m", "mode": "shadow", "burst": 1}]"#,
        ] {
            let (_, told) = compile(json);
            assert!(told.is_empty(), "{json}: {told:?}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let (_, told) = compile(r#"[{"rate": "0/s", "burst": 0, "max_queue": 0}, {}]"#);
        assert_eq!(told.len(), 4, "{told:?}");
    }
}
