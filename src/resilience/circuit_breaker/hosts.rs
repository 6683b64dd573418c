//! The breakers of one provider, by host and port. They outlive reloads; the settings are exchanged under them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::breaker::{Breaker, Running};
use super::settings::{BreakerSettings, Fallback};
use super::status::{BreakersStatus, Counters};
use crate::message::target::{Host, Target};

/// So many hosts of one provider are known at a time. When one more comes, those that lose least are forgotten: closed ones
/// that nobody asked of late first, open ones last.
pub const MAX_HOSTS: usize = 1000;

/// How many hosts are forgotten at once, so that not every further host makes room anew.
const ROOM: usize = MAX_HOSTS / 8;

/// Hosts that are listed in the status.
const SHOWN: usize = 50;

/// What the admin listener may force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// Everything is refused.
    Open,
    /// Everything passes, and nothing is counted.
    Closed,
}

impl Forced {
    /// The word of status and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// When the next probe may go; nobody knows where the breaker was forced open.
    pub after: Option<Duration>,
}

type Hosts = HashMap<(Host, u16), Arc<Breaker>, foldhash::fast::RandomState>;

/// The breakers of one provider.
#[derive(Debug)]
pub struct Breakers {
    provider: Arc<str>,
    settings: ArcSwap<BreakerSettings>,
    /// Replaced whole, so that requests find theirs without waiting for anybody.
    hosts: ArcSwap<Hosts>,
    /// Held while settings or hosts are replaced.
    writing: Mutex<()>,
    forced: AtomicU8,
    counters: Arc<Counters>,
}

impl Breakers {
    /// No host is known yet.
    pub fn new(provider: Arc<str>, settings: BreakerSettings) -> Self {
        Self {
            provider,
            settings: ArcSwap::from_pointee(settings),
            hosts: ArcSwap::default(),
            writing: Mutex::new(()),
            forced: AtomicU8::new(word(None)),
            counters: Arc::default(),
        }
    }

    /// Takes other settings. What is open stays open.
    pub fn update(&self, settings: BreakerSettings) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if **self.settings.load() == settings {
            return;
        }
        let rules = settings.rules;
        self.settings.store(Arc::new(settings));
        for breaker in self.hosts.load().values() {
            breaker.update(rules);
        }
    }

    /// Forces all hosts open or closed, until it is called with `None`: then they start anew, closed.
    pub fn force(&self, forced: Option<Forced>) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.forced.swap(word(forced), Ordering::AcqRel) == word(forced) {
            return;
        }
        if forced.is_none() {
            for breaker in self.hosts.load().values() {
                breaker.release();
            }
        }
        let (provider, forced) = (&*self.provider, forced.map_or("none", Forced::as_str));
        tracing::warn!(target: "outgate::breaker", provider, forced, "circuit breaker forced");
    }

    /// What is forced now.
    pub fn forced(&self) -> Option<Forced> {
        let now = self.forced.load(Ordering::Acquire);
        [Forced::Open, Forced::Closed].into_iter().find(|forced| word(Some(*forced)) == now)
    }

    /// Whether a request to `target` could go on now. Takes nothing.
    pub fn look(&self, target: &Target) -> Result<(), Refusal> {
        match self.forced() {
            Some(Forced::Open) => return Err(Refusal { after: None }),
            Some(Forced::Closed) => return Ok(()),
            None => {}
        }
        let Some(breaker) = self.find(target) else { return Ok(()) };
        breaker.look().map_err(|open| Refusal { after: Some(open.0) })
    }

    /// Leave for a request to `target`; nothing to be told about its end where the breaker is forced closed.
    pub fn take(&self, target: &Target) -> Result<Option<Running>, Refusal> {
        match self.forced() {
            Some(Forced::Open) => return Err(Refusal { after: None }),
            Some(Forced::Closed) => return Ok(None),
            None => {}
        }
        let breaker = self.find(target).unwrap_or_else(|| self.make(target));
        breaker.take().map(Some).map_err(|open| Refusal { after: Some(open.0) })
    }

    /// The settings of now.
    pub fn settings(&self) -> Arc<BreakerSettings> {
        self.settings.load_full()
    }

    pub(super) fn has_static_fallback(&self) -> bool {
        matches!(self.settings.load().fallback, Fallback::Static(_))
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How they stand.
    pub fn status(&self) -> BreakersStatus {
        let known = self.hosts.load_full();
        let (mut listed, closed): (Vec<_>, Vec<_>) = known.values().partition(|breaker| !breaker.is_closed());
        listed.extend(closed);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BreakersStatus {
            forced: self.forced().map(Forced::as_str),
            known_hosts: known.len(),
            hosts: listed.into_iter().take(SHOWN).map(|breaker| breaker.status()).collect(),
            opened: count(&self.counters.opened),
            half_opened: count(&self.counters.half_opened),
            closed: count(&self.counters.closed),
            refused: count(&self.counters.refused),
            shadowed: count(&self.counters.shadowed),
            fallbacks: count(&self.counters.fallbacks),
            probes: count(&self.counters.probes),
        }
    }

    fn find(&self, target: &Target) -> Option<Arc<Breaker>> {
        self.hosts.load().get(&key(target)).cloned()
    }

    fn make(&self, target: &Target) -> Arc<Breaker> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(breaker) = self.find(target) {
            return breaker;
        }
        let mut hosts = Hosts::clone(&self.hosts.load());
        make_room(&mut hosts);
        let rules = self.settings.load().rules;
        let (provider, counters) = (self.provider.clone(), self.counters.clone());
        let breaker = Arc::new(Breaker::new(provider, target.host.clone(), target.port, rules, counters));
        hosts.insert(key(target), breaker.clone());
        self.hosts.store(Arc::new(hosts));
        breaker
    }
}

fn key(target: &Target) -> (Host, u16) {
    (target.host.clone(), target.port)
}

fn word(forced: Option<Forced>) -> u8 {
    match forced {
        None => 0,
        Some(Forced::Open) => 1,
        Some(Forced::Closed) => 2,
    }
}

fn make_room(hosts: &mut Hosts) {
    if hosts.len() < MAX_HOSTS {
        return;
    }
    let mut by_loss: Vec<_> =
        hosts.iter().map(|(key, breaker)| ((!breaker.is_closed(), breaker.untouch()), key.clone())).collect();
    by_loss.sort_by_key(|(loss, _)| *loss);
    for (_, key) in by_loss.into_iter().take(ROOM) {
        hosts.remove(&key);
    }
}
