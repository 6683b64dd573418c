//! The loop that keeps a pod in touch with the fleet.

use std::future::Future;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::book::ACTIVE;
use super::link::{Link, LinkError};
use super::pauses::believed;
use super::script::{Answer, Head, Part, Report};
use super::spend::Spend;
use super::{Fleet, PauseHeard};

/// Time between two reports: this and up to [`JITTER`] more, so that pods do not report in step.
const ROUND: Duration = Duration::from_millis(200);
const JITTER: Duration = Duration::from_millis(50);
/// The least time between two reports, however often a first request asks for one.
const BREATH: Duration = Duration::from_millis(20);
/// How often leases are looked at that may have ended; with many keys less often, at least each 200 ms.
const TICK: Duration = Duration::from_millis(20);
/// Between two attempts to connect: from the one to the other, doubled.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_millis(400);
/// Limits in one call of the script, which blocks Redis while it runs.
const CHUNK: usize = 128;
/// How long the last word may take in all.
const FAREWELL: Duration = Duration::from_secs(1);

/// Reports, obeys and tries again until `cancel`; then hands back what is leased, in at most a second. After that nothing may
/// be spent: cancel when the last request has gone.
pub async fn run<L: Spend>(fleet: Arc<Fleet<L>>, cancel: CancellationToken) {
    let mut talk = Talk { link: Link::new(fleet.url.clone()), fleet, number: 0, heard: 0, down: false };
    let (mut retry, mut full) = (FIRST_RETRY, Instant::now());
    loop {
        let begun = Instant::now();
        let all = begun >= full;
        match talk.round(all).await {
            Ok(()) => {
                retry = FIRST_RETRY;
                talk.reached();
                if all {
                    full = Instant::now() + ROUND + JITTER.mul_f64(fastrand::f64());
                }
            }
            Err(error) => {
                talk.lost(&error);
                full = Instant::now() + retry.mul_f64(0.75 + fastrand::f64() / 2.0);
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = talk.fleet.rest(begun, full) => {}
        }
    }
    // Not told is not lost: what is leased ends by itself.
    let _ = tokio::time::timeout(FAREWELL, talk.farewell()).await;
}

impl<L: Spend> Fleet<L> {
    /// Waits for the next full report, or less where one is due before and Redis answers.
    async fn rest(&self, begun: Instant, full: Instant) {
        let connected = self.book().contact.connected;
        let early = async {
            if !connected {
                return std::future::pending().await;
            }
            self.due.notified().await;
            tokio::time::sleep_until(begun + BREATH).await;
        };
        self.ticking(async {
            tokio::select! {
                () = tokio::time::sleep_until(full) => {}
                () = early => {}
            }
        })
        .await;
    }

    /// Waits for something while leases end in time.
    async fn ticking<T>(&self, wait: impl Future<Output = T>) -> T {
        let scale = u32::try_from(self.book().tracked() / 1_000).unwrap_or(u32::MAX).clamp(1, 10);
        let mut ticks = tokio::time::interval(TICK * scale);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                biased;
                done = &mut wait => return done,
                _ = ticks.tick() => {
                    let due = self.book().tick(Instant::now());
                    if due {
                        self.due.notify_one();
                    }
                }
            }
        }
    }
}

/// One pod's talk with Redis.
struct Talk<L: Spend> {
    fleet: Arc<Fleet<L>>,
    link: Link,
    number: u64,
    heard: u64,
    /// Redis did not answer last time; said once in the log.
    down: bool,
}

impl<L: Spend> Talk<L> {
    /// Reports all keys, or those that want something for the first time; and at once what was given up.
    async fn round(&mut self, all: bool) -> Result<(), LinkError> {
        let fleet = self.fleet.clone();
        if self.link.is_closed() {
            fleet.ticking(self.link.connect()).await?;
            fleet.counters.connects.fetch_add(1, Ordering::Relaxed);
        }
        let ids = fleet.book().candidates(all);
        let (mut told, mut begun, mut given_up) = (0, 0, Vec::new());
        loop {
            // Looked at one chunk at a time: the book is never locked for long, and what is told is what holds.
            let chunk = &ids[begun..ids.len().min(begun + CHUNK)];
            begun += chunk.len();
            let reports = fleet.book().plan(chunk, Instant::now());
            told += reports.len();
            let last = begun == ids.len() || told + CHUNK > ACTIVE;
            given_up.extend(self.call(&reports, if last { Part::Last } else { Part::More }).await?);
            if last {
                break;
            }
        }
        if all {
            fleet.book().left_out = ids.len() - begun;
        }
        self.tell(&given_up).await
    }

    /// Tells these reports, in as many calls as it takes.
    async fn tell(&mut self, reports: &[Report]) -> Result<(), LinkError> {
        for chunk in reports.chunks(CHUNK) {
            self.call(chunk, Part::More).await?;
        }
        Ok(())
    }

    async fn call(&mut self, reports: &[Report], part: Part) -> Result<Vec<Report>, LinkError> {
        let fleet = self.fleet.clone();
        let sent = Instant::now();
        let pauses = fleet.pauses.lock().unwrap_or_else(PoisonError::into_inner).telling(sent);
        self.number += 1;
        let head = Head {
            prefix: &fleet.prefix,
            pod: &fleet.pod,
            number: self.number,
            knew: fleet.book().knew(),
            part,
            heard: self.heard,
            pauses: &pauses,
        };
        let answer = fleet.ticking(self.link.report(&head, reports)).await?;
        fleet.counters.calls.fetch_add(1, Ordering::Relaxed);
        if !pauses.is_empty() {
            fleet.pauses.lock().unwrap_or_else(PoisonError::into_inner).told(&pauses, sent);
            fleet.counters.told.fetch_add(pauses.len() as u64, Ordering::Relaxed);
        }
        self.heard = answer.now;
        fleet.hear(&answer);
        Ok(fleet.book().apply(reports, &answer, sent, part == Part::Last))
    }

    fn reached(&mut self) {
        if std::mem::take(&mut self.down) {
            tracing::info!("the fleet's Redis answers again");
        }
    }

    fn lost(&mut self, error: &LinkError) {
        self.fleet.book().failed(Instant::now());
        self.fleet.counters.failed.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut self.down, true) {
            tracing::warn!(%error, "the fleet's Redis does not answer; `on_outage` says what this pod may spend");
        }
    }

    async fn farewell(&mut self) -> Result<(), LinkError> {
        let reports = self.fleet.book().release();
        if !self.link.is_closed() {
            self.tell(&reports).await?;
            self.call(&[], Part::Leave).await?;
        }
        Ok(())
    }
}

impl<L: Spend> Fleet<L> {
    /// Hands on the pauses that others told, with no lock held.
    fn hear(&self, answer: &Answer) {
        if answer.pauses.is_empty() {
            return;
        }
        let listeners: Vec<PauseHeard> = self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, millis) in &answer.pauses {
            self.counters.heard.fetch_add(1, Ordering::Relaxed);
            for heard in &listeners {
                heard(name, believed(*millis));
            }
        }
    }
}
