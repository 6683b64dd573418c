//! What this pod leases, of which limits, and what it may spend when nobody answers. No waiting, no sockets: the time is an
//! argument, and what goes to Redis and comes back is a value.
//!
//! At each moment a key's lease is in one of these states:
//!
//! - **leased**: Redis granted it less than a lease's time ago. Obeyed is the grant, or less where the pod's share became less.
//! - **own last lease**: it lapsed, and Redis does not answer. With `local_share` the pod goes on with the smaller of what it
//!   had and its local share: others may still live on their leases, and the sum of those keeps the limit.
//! - **local share**: so long after the first failed call that every other lease has lapsed too. Now the local share holds:
//!   the limit divided by the pods last seen, or by `assume_pods` if that is more.
//! - **nothing**: not leased yet, handed back, or `closed`.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::FleetMode;
use super::config::OnOutage;
use super::demand::Demand;
use super::script::{Answer, LEASE, Leased, Report};
use super::share::Grant;
use super::spend::{Limit, Spend};

/// Keys that one pod reports; more are counted, and get nothing until others are idle.
pub const ACTIVE: usize = 10_000;
/// Keys that one pod knows; more share one lease a limit.
pub const TRACKED: usize = 50_000;
/// After so long without a request a key counts as idle: its slot goes to others, and a key of a tenant is handed back.
const IDLE: Duration = Duration::from_secs(10);
/// A lease ends so much earlier here than in Redis: what a tick of the clock may be late.
const MARGIN: Duration = Duration::from_millis(50);

struct Entry<L> {
    lease: Weak<L>,
    limit: Arc<Limit>,
    /// One of many: handed back when idle. A limit that counts everything together keeps its floor.
    keyed: bool,
    demand: Demand,
    /// What the last report said it wants.
    wants: u64,
    last_asked: Instant,
    /// What was obeyed under the last lease.
    leased: Grant,
    /// When that lease ends.
    lapses: Option<Instant>,
    /// What the others want and where this pod stands among them.
    view: Option<(Vec<u64>, usize)>,
    /// Redis may have a record of it.
    recorded: bool,
    /// The burst became smaller, and what was spent of the larger one may not be paid off yet.
    owes: bool,
}

impl<L: Spend> Entry<L> {
    fn set(&mut self, lease: &L, grant: Grant, at_once: bool) {
        self.owes |= grant.burst < lease.current().burst;
        lease.set(grant, at_once);
    }

    /// Whether a burst that becomes larger is one of the limit's own.
    fn burst_is_spare(&self) -> bool {
        let others = self.view.iter().flat_map(|(wants, _)| wants).filter(|want| **want > 0).count();
        self.limit.spec().has_bursts_for(others as u64 + 1)
    }

    /// The burst that still counts. Asked of the lease only where it can be more than the burst of now: a lease lets a token
    /// through a little early where timers are late, and rounds what it holds up.
    fn held(&mut self, lease: &L) -> u32 {
        let burst = lease.current().burst;
        let held = if self.owes { lease.held_burst() } else { burst };
        self.owes = held > burst;
        held
    }
}

/// What is known of Redis and of the other pods.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contact {
    /// The last call was answered.
    pub connected: bool,
    /// Pods that the last answer told of; 0 = never answered.
    pub pods: u32,
    /// Whether leases may grow.
    pub settled: bool,
    /// Redis' time at the last answer, in milliseconds.
    pub now: u64,
    /// When the call was sent that was answered last.
    pub answered: Option<Instant>,
    /// When the first call failed of those that failed since.
    pub failed: Option<Instant>,
}

/// Everything that this pod leases.
pub struct Book<L> {
    on_outage: OnOutage,
    assume_pods: u32,
    entries: HashMap<Arc<str>, Entry<L>>,
    /// What is known of Redis.
    pub contact: Contact,
    /// Keys that wanted something and found no place in the last report.
    pub left_out: usize,
}

impl<L: Spend> Book<L> {
    /// Nothing is leased, and nobody was reached yet.
    pub fn new(on_outage: OnOutage, assume_pods: u32) -> Self {
        let contact = Contact::default();
        Self { on_outage, assume_pods: assume_pods.max(1), entries: HashMap::new(), contact, left_out: 0 }
    }

    /// Other rules for an outage.
    pub fn adjust(&mut self, on_outage: OnOutage, assume_pods: u32) {
        (self.on_outage, self.assume_pods) = (on_outage, assume_pods.max(1));
    }

    /// The lease of a key: the live one, or a new one of what can be spent at once. `true` where it is new.
    pub fn lease(&mut self, id: &Arc<str>, limit: &Arc<Limit>, keyed: bool, now: Instant) -> (Arc<L>, bool) {
        if let Some(live) = self.entries.get(id).and_then(|entry| entry.lease.upgrade()) {
            return (live, false);
        }
        let lease = Arc::new(L::nothing(limit.spec().window));
        let recorded = self.entries.get(id).is_some_and(|entry| entry.recorded);
        let entry = Entry {
            lease: Arc::downgrade(&lease),
            limit: limit.clone(),
            keyed,
            demand: Demand::new(now),
            wants: 0,
            last_asked: now,
            leased: Grant::NONE,
            lapses: None,
            view: None,
            recorded,
            owes: false,
        };
        if !self.contact.connected {
            lease.set(self.assumed(&entry, 0, now), self.outage_bursts(&entry));
        }
        self.entries.insert(id.clone(), entry);
        (lease, true)
    }

    /// Keys that are known.
    pub fn tracked(&self) -> usize {
        self.entries.len()
    }

    /// Whether the key is known.
    pub fn knows(&self, id: &str) -> bool {
        self.entries.contains_key(id)
    }

    /// Keys with a lease that has not lapsed.
    pub fn leased(&self, now: Instant) -> usize {
        self.entries.values().filter(|entry| entry.lapses.is_some_and(|end| end > now)).count()
    }

    /// Pods that this one knows of, or takes for granted where it was never told.
    pub fn knew(&self) -> u32 {
        if self.contact.pods == 0 { self.assume_pods } else { self.contact.pods }
    }

    /// What holds now.
    pub fn mode(&self, now: Instant) -> FleetMode {
        match self.contact {
            Contact { connected: true, settled: true, .. } => FleetMode::Leased,
            Contact { connected: true, .. } => FleetMode::Settling,
            Contact { failed: None, .. } => FleetMode::Starting,
            _ => match self.on_outage {
                OnOutage::LocalShare if !self.all_lapsed(now) => FleetMode::Lapsing,
                OnOutage::LocalShare => FleetMode::LocalShare,
                OnOutage::Open => FleetMode::Open,
                OnOutage::Closed => FleetMode::Closed,
            },
        }
    }

    /// Pods by which a local share divides.
    fn pods(&self) -> u32 {
        self.contact.pods.max(self.assume_pods)
    }

    /// Whether every lease of every pod must have lapsed since Redis stopped answering.
    fn all_lapsed(&self, now: Instant) -> bool {
        self.contact.failed.is_some_and(|failed| now >= failed + LEASE)
    }

    /// What may be spent without a lease while Redis does not answer.
    fn assumed(&self, entry: &Entry<L>, held: u32, now: Instant) -> Grant {
        if self.contact.failed.is_none() {
            return Grant::NONE;
        }
        let spec = entry.limit.spec();
        match self.on_outage {
            OnOutage::Closed => Grant::NONE,
            OnOutage::Open => spec.whole(),
            OnOutage::LocalShare if self.all_lapsed(now) => spec.local(self.pods(), held),
            OnOutage::LocalShare => entry.leased.min(spec.local(self.pods(), held)),
        }
    }

    /// Whether bursts may be spent at once while Redis does not answer: where each pod's is one of the limit's own.
    fn outage_bursts(&self, entry: &Entry<L>) -> bool {
        self.on_outage == OnOutage::Open || self.pods() <= entry.limit.spec().burst
    }

    /// Ends what lapsed, and sets what holds without a lease. `true` where a key wants something for the first time, so that
    /// a report is due at once.
    pub fn tick(&mut self, now: Instant) -> bool {
        let mut due = false;
        let mut entries = std::mem::take(&mut self.entries);
        for entry in entries.values_mut() {
            let Some(lease) = entry.lease.upgrade() else { continue };
            if entry.lapses.is_some_and(|end| end <= now) {
                entry.lapses = None;
            }
            if entry.lapses.is_none() && !self.contact.connected {
                let held = entry.held(&lease);
                let at_once = self.outage_bursts(entry);
                entry.set(&lease, self.assumed(entry, held, now), at_once);
            } else if entry.lapses.is_none() {
                entry.set(&lease, Grant::NONE, false);
            }
            due |= entry.wants == 0 && lease.waiting() > 0;
        }
        self.entries = entries;
        due && self.contact.connected
    }

    /// A call failed, or there is no connection.
    pub fn failed(&mut self, now: Instant) {
        self.contact.connected = false;
        self.contact.settled = false;
        self.contact.failed.get_or_insert(now);
        // What nobody holds any more cannot be handed back now, and ends in Redis by itself.
        self.entries.retain(|_, entry| entry.lease.strong_count() > 0);
        self.tick(now);
    }

    /// The keys to report: all of them, or only those that want something for the first time. Those that Redis knows of come
    /// first: if not all find a place, what is spent has to be counted.
    pub fn candidates(&self, all: bool) -> Vec<Arc<str>> {
        let wants_first = |entry: &Entry<L>| {
            entry.wants == 0
                && entry.lease.upgrade().is_some_and(|lease| !entry.recorded || lease.waiting() > 0)
        };
        let chosen = self.entries.iter().filter(|(_, entry)| all || wants_first(entry));
        let (mut known, new): (Vec<_>, Vec<_>) = chosen.partition(|(_, entry)| entry.recorded);
        known.extend(new);
        known.into_iter().map(|(id, _)| id.clone()).collect()
    }

    /// What to say of these keys, where there is something to say.
    pub fn plan(&mut self, ids: &[Arc<str>], now: Instant) -> Vec<Report> {
        let mut reports = Vec::new();
        for id in ids {
            let Some(mut entry) = self.entries.remove(id) else { continue };
            match entry.lease.upgrade() {
                Some(lease) => reports.extend(self.observe(id, &mut entry, &*lease, now)),
                // Nobody holds it any more. What it spent last is not known: it may be its whole burst.
                None if entry.recorded => {
                    reports.push(report(id, &entry, Grant::NONE, entry.leased.burst, true))
                }
                None => continue,
            }
            self.entries.insert(id.clone(), entry);
        }
        reports
    }

    fn observe(&self, id: &Arc<str>, entry: &mut Entry<L>, lease: &L, now: Instant) -> Option<Report> {
        let (asked, waiting, current) = (lease.demand(), lease.waiting(), lease.current());
        if asked > 0 || waiting > 0 {
            entry.last_asked = now;
        }
        let wants = entry.demand.observe(asked, waiting, current.refill, entry.limit.spec(), now);
        let idle = now.saturating_duration_since(entry.last_asked) >= IDLE;
        entry.wants = if idle { 0 } else { wants };
        if idle && entry.keyed {
            if !entry.recorded && current == Grant::NONE {
                return None;
            }
            entry.set(lease, Grant::NONE, false);
            let held = entry.held(lease);
            return Some(report(id, entry, Grant::NONE, held, true));
        }
        Some(self.current_report(id, entry, lease))
    }

    fn current_report(&self, id: &Arc<str>, entry: &mut Entry<L>, lease: &L) -> Report {
        let current = lease.current();
        let held = entry.held(lease);
        let mut report = report(id, entry, current, held, false);
        report.want = self.share(entry);
        report.young = match self.on_outage {
            OnOutage::LocalShare => current.min(entry.limit.spec().local(self.pods(), 0)),
            OnOutage::Closed => current,
            OnOutage::Open => report.want,
        };
        if self.on_outage == OnOutage::Open && entry.lapses.is_none() {
            // The whole limit of each pod is what nobody granted: it is not counted against the others.
            report.obeys = 0;
            report.held = 0;
        }
        report
    }

    /// This pod's share as far as it knows what the others want.
    fn share(&self, entry: &Entry<L>) -> Grant {
        let spec = entry.limit.spec();
        let (mut wants, place) = entry.view.clone().unwrap_or_default();
        wants.insert(place.min(wants.len()), entry.wants);
        let turn = u128::from(self.contact.now) / spec.turn().as_millis().max(1);
        spec.share(&wants, place, u64::try_from(turn).unwrap_or_default())
    }

    /// Takes in an answer to these reports, sent at `sent`; `all` where every key is told with them. What is left to say at
    /// once: what this pod gives up, so that others can have it.
    pub fn apply(&mut self, reports: &[Report], answer: &Answer, sent: Instant, all: bool) -> Vec<Report> {
        let contact = &mut self.contact;
        (contact.pods, contact.settled, contact.now) = (answer.pods.max(1), answer.settled, answer.now);
        contact.answered = Some(sent);
        if all {
            // Not before: keys whose turn has not come would lose what they have before they could tell of it.
            (contact.connected, contact.failed) = (true, None);
        }
        let mut entries = std::mem::take(&mut self.entries);
        let pairs = reports.iter().zip(&answer.leases);
        let shrunk =
            pairs.filter_map(|(report, leased)| self.obey(&mut entries, report, leased, sent)).collect();
        self.entries = entries;
        shrunk
    }

    fn obey(
        &self,
        entries: &mut HashMap<Arc<str>, Entry<L>>,
        report: &Report,
        leased: &Leased,
        sent: Instant,
    ) -> Option<Report> {
        let entry = entries.get_mut(&report.id)?;
        entry.recorded = !report.back;
        let Some(lease) = entry.lease.upgrade() else {
            if report.back {
                entries.remove(&report.id);
            }
            return None;
        };
        if report.back {
            (entry.leased, entry.lapses, entry.view) = (Grant::NONE, None, None);
            return None;
        }
        entry.view = Some((leased.others.clone(), leased.place));
        let grant = if self.contact.settled { leased.grant.min(self.share(entry)) } else { leased.grant };
        let (current, budget) = (lease.current(), report.budget);
        // A tiny step up is not worth waking everyone who waits.
        let tiny = current.burst == grant.burst
            && current.refill > 0
            && (current.refill..current.refill + (budget / 2_000).max(1)).contains(&grant.refill);
        if !tiny {
            let at_once = entry.burst_is_spare();
            entry.set(&lease, grant, at_once);
        }
        entry.leased = lease.current();
        entry.lapses = Some(sent + LEASE - MARGIN);
        let counted = (leased.grant.refill.max(report.obeys), leased.grant.burst.max(report.held));
        let freed =
            counted.0.saturating_sub(entry.leased.refill) > budget / 100 || counted.1 > entry.held(&lease);
        freed.then(|| self.current_report(&report.id, entry, &*lease))
    }

    /// Ends every lease; what to say as the last word.
    pub fn release(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        for (id, entry) in &mut self.entries {
            let mut held = entry.leased.burst;
            if let Some(lease) = entry.lease.upgrade() {
                entry.set(&lease, Grant::NONE, false);
                held = entry.held(&lease);
            }
            if entry.recorded {
                reports.push(report(id, entry, Grant::NONE, held, true));
            }
            (entry.leased, entry.lapses, entry.recorded) = (Grant::NONE, None, false);
        }
        reports
    }
}

fn report<L>(id: &Arc<str>, entry: &Entry<L>, current: Grant, held: u32, back: bool) -> Report {
    let spec = entry.limit.spec();
    Report {
        id: id.clone(),
        window: u64::try_from(spec.window.as_millis()).unwrap_or(u64::MAX).max(1),
        budget: spec.budget(),
        want: Grant::NONE,
        young: Grant::NONE,
        obeys: current.refill,
        held,
        wants: if back { 0 } else { entry.wants },
        back,
    }
}
