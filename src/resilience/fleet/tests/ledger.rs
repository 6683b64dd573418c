//! What `lease.lua` does, in Rust and without pauses: for simulations, and to be compared with the script itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::resilience::fleet::Grant;
use crate::resilience::fleet::script::{Answer, Head, LEASE, Leased, Part, Report};

#[derive(Clone, Debug)]
struct Record {
    refill: u64,
    burst: u32,
    counted: u64,
    present: u64,
    wants: u64,
    number: u64,
    frozen: bool,
}

/// The state of Redis.
#[derive(Default)]
pub struct Ledger {
    meta: Option<(u64, u64, u32, bool)>,
    pods: BTreeMap<String, u64>,
    limits: BTreeMap<Arc<str>, BTreeMap<String, Record>>,
    /// Redis was started long ago.
    pub old: bool,
}

fn owed(refill: u64, burst: u32, window: u64) -> u64 {
    match (refill, burst) {
        (_, 0) => 0,
        (0, _) => window,
        _ => window.min((u64::from(burst) * 1_000 * window).div_ceil(refill)),
    }
}

impl Ledger {
    /// One call; `None`: stale.
    pub fn call(&mut self, now: u64, head: &Head<'_>, reports: &[Report]) -> Option<Answer> {
        let newer = |report: &Report| {
            let own = self.limits.get(&report.id).and_then(|limit| limit.get(head.pod));
            own.is_some_and(|own| own.number > head.number)
        };
        if reports.iter().any(newer) {
            return None;
        }
        let settled = self.settle(now, head);
        let leases = reports.iter().map(|report| self.lease(now, head, report, settled)).collect();
        let pods = u32::try_from(self.pods.len()).unwrap();
        Some(Answer { now, pods, settled, pauses: Vec::new(), leases })
    }

    fn settle(&mut self, now: u64, head: &Head<'_>) -> bool {
        let lease = LEASE.as_millis() as u64;
        let first = (now, now, 0, self.old && head.heard == 0);
        let (_, since, mut expected, mut settled) = match self.meta.unwrap_or(first) {
            (last, since, ..) if now - last > lease / 2 || now < since => (last, now, 0, false),
            known => known,
        };
        self.pods.retain(|_, end| *end > now);
        match head.part {
            Part::More => {}
            Part::Last => drop(self.pods.insert(head.pod.to_owned(), now + 3 * lease)),
            Part::Leave => drop(self.pods.remove(head.pod)),
        }
        if !settled {
            expected = expected.max(head.knew);
            let age = now - since;
            settled = age >= 2 * lease || (age >= lease && self.pods.len() >= expected as usize);
        }
        let gone = head.part == Part::Leave && self.pods.is_empty();
        self.meta = (!gone).then_some((now, since, expected, settled));
        settled
    }

    fn lease(&mut self, now: u64, head: &Head<'_>, report: &Report, settled: bool) -> Leased {
        let limit = self.limits.entry(report.id.clone()).or_default();
        limit.retain(|pod, record| pod == head.pod || record.counted > now || record.present > now);
        let others = || limit.iter().filter(|(pod, _)| *pod != head.pod);
        let cost: u64 = others()
            .filter(|(_, record)| record.counted > now)
            .map(|(_, record)| record.refill + 1_000 * u64::from(record.burst))
            .sum();
        let present: Vec<_> = others().filter(|(_, record)| record.present > now).collect();
        let place = present.iter().filter(|(pod, _)| pod.as_str() < head.pod).count();
        let wants = present.iter().map(|(_, record)| record.wants).collect();
        let want = if settled { report.want } else { report.young };
        let free = report.budget.saturating_sub(cost);
        let burst = want.burst.min(u32::try_from(free.saturating_sub(1) / 1_000).unwrap());
        let refill = want.refill.min(free.saturating_sub(1_000 * u64::from(burst.max(report.held))));
        let none = refill == 0 || burst == 0;
        let grant = if none { Grant::NONE } else { Grant { refill, burst } };
        let own = limit.get(head.pod).cloned();
        let present = if report.back { now } else { now + LEASE.as_millis() as u64 };
        let frozen = grant == Grant::NONE && report.obeys == 0 && report.held > 0;
        let (refill, burst, counted) = match own {
            Some(own) if frozen && own.frozen => (own.refill, own.burst, own.counted),
            own if frozen => {
                let refill = own.map_or(0, |own| own.refill);
                (refill, report.held, now + owed(refill, report.held, report.window))
            }
            _ => {
                let refill = grant.refill.max(report.obeys);
                let burst = grant.burst.max(report.held);
                let away = if report.back { 0 } else { LEASE.as_millis() as u64 * 6 / 10 };
                (refill, burst, present + away + owed(refill, burst, report.window))
            }
        };
        if counted <= now && present <= now {
            limit.remove(head.pod);
        } else {
            let (wants, number) = (report.wants, head.number);
            let record = Record { refill, burst, counted, present, wants, number, frozen };
            limit.insert(head.pod.to_owned(), record);
        }
        Leased { grant, others: wants, place }
    }
}
