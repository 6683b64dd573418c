//! Levels of what lives elsewhere (limiters, quotas, breakers, caches): read when somebody asks, and never stored here.
//!
//! A family is written where it has samples, so a policy without limits has no series about limits.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::collector::Families;

/// What a family of levels is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LevelKind {
    /// Goes up and down.
    Gauge,
    /// Only grows; `_total` is added to the name.
    Counter,
}

/// One family: its name without prefix, its help, its kind.
#[derive(Debug)]
pub struct LevelFamily {
    /// Name without `outgate_`.
    pub name: &'static str,
    /// One line, without full stop.
    pub help: &'static str,
    /// Gauge or counter.
    pub kind: LevelKind,
}

impl LevelFamily {
    /// A gauge.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: LevelKind::Gauge }
    }

    /// A counter.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: LevelKind::Counter }
    }
}

/// One sample. Label values come from the policy or are bounded by the source.
#[derive(Debug)]
pub struct Level {
    /// Its family.
    pub family: &'static LevelFamily,
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, String)>,
    /// Its value.
    pub value: f64,
}

/// Gives all samples there are now.
pub type LevelSource = Arc<dyn Fn() -> Vec<Level> + Send + Sync>;

/// The collector. Has no source until the process is wired.
#[derive(Clone, Default)]
pub(super) struct Levels(Arc<OnceLock<LevelSource>>);

impl Levels {
    /// Sets the source; the first one stays.
    pub(super) fn set(&self, source: LevelSource) {
        let _ = self.0.set(source);
    }
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Levels").finish_non_exhaustive()
    }
}

impl Collector for Levels {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(source) = self.0.get() else { return Ok(()) };
        let mut levels = source();
        // One family after the other, as the format wants it; within a family in the order of the source.
        levels.sort_by_key(|level| level.family.name);
        let mut out = Families(encoder);
        levels.chunk_by(|one, two| one.family.name == two.family.name).try_for_each(|family| {
            let Some(first) = family.first() else { return Ok(()) };
            let LevelFamily { name, help, kind } = first.family;
            match kind {
                LevelKind::Gauge => out.gauges(name, help, |samples| {
                    family.iter().try_for_each(|level| samples.level(&level.labels, level.value))
                }),
                LevelKind::Counter => out.counters(name, help, |samples| {
                    family.iter().try_for_each(|level| samples.count(&level.labels, level.value))
                }),
            }
        })
    }
}
