//! Refresh tokens that rotate: each use gives a new one and ends the old one. So what is learned must not be lost, and two
//! processes must not use one at the same time. It is kept in one [`Shelf`], which all that share the grant look at:
//!
//! 1. A process that wants an access token looks whether another has got a newer one; then it takes that, and asks nobody.
//! 2. Else it writes into the shelf that it is busy. So the shelf can be written before anything is used up; and the
//!    others wait. A mark that nobody takes away counts for 40 seconds, by the watch of who waits: clocks are not compared.
//! 3. It asks, once: such a request is never repeated.
//! 4. It writes what it got, and only then is the access token used. What cannot be written stays in memory, and is
//!    written before anything else is done.
//!
//! Where the endpoint says `invalid_grant`, the shelf is looked at again: another may have been there first. If not, the
//! grant is dead, and is not asked for again until there is another refresh token in the policy's secret or in the shelf.
//!
//! A shelf may lose its page, or go back to an older one (a file that was removed, a Redis or a backup that starts anew). A process
//! that knows a newer one goes on with that, and writes it with its mark of being busy, before anything is asked: a refresh token
//! that was used up is not sent again, and the policy's own is not sent once a newer one was given.
//!
//! How long the access token lives is what the endpoint says, counted from before it was asked, by the clock of the shelf
//! (Redis' and Vault's own; of a file, the machine's). So the clocks of the pods are not compared.
//!
//! What stands in a shelf is sealed with a key that is derived from the refresh token of the policy (`page`): who can read
//! the shelf and not that secret learns nothing; and where a new refresh token is put into the policy's secret, what was
//! kept for the old one does not open any more and is written over.

mod config;
mod file;
mod page;
mod redis;
mod shelf;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub use config::{KeepConfig, KeepSettings, RedisKeepConfig, whole};
use page::{Page, PageKey, Record};
use shelf::Sheet;
pub use shelf::Shelf;

use super::Issued;
use super::endpoint::TokenAnswer;
use crate::secret::TokenFault;

/// How long the mark of a busy process counts. Longer than an exchange with the endpoint and a write.
const LEASE: Duration = Duration::from_secs(40);
/// How long after it began a try may still ask the endpoint; so that its end comes before that of its patience.
const ASK_BEFORE: Duration = Duration::from_secs(42);
/// Wait between two looks at a shelf where another is busy: at first, and at most.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_MOST: Duration = Duration::from_millis(500);
/// As many as a list of the policy can have.
const DEAD: usize = 8;
/// How often a write is tried.
const WRITES: u32 = 5;

type Mark = [u8; 32];

/// Exchanges a refresh token. One request, never repeated.
pub trait Exchange: Sync {
    /// Asks with this refresh token.
    fn ask<'a>(&'a self, refresh_token: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>>;

    /// The life of a token of which the endpoint does not say it.
    fn lifetime(&self) -> Option<Duration>;

    /// Tells what is asked for from all else: where, by whom, with which scopes. An access token of another mark is not taken
    /// from a shelf.
    fn mark(&self) -> &str;
}

/// What a process remembers of one grant.
#[derive(Default)]
pub struct GrantState {
    memory: Mutex<Memory>,
    ending: CancellationToken,
}

#[derive(Default)]
struct Memory {
    /// The secret's refresh token that all this is about.
    seed: Option<Mark>,
    /// The generation whose access token was given out last.
    given: u64,
    /// Refresh tokens that were refused for good, the last [`DEAD`] of them.
    dead: VecDeque<Mark>,
    /// What was got and could not be written yet.
    unwritten: Option<Record>,
    /// The newest that was got or seen.
    newest: Option<Record>,
}

fn mark(token: &[u8]) -> Mark {
    let mut mark = [0; 32];
    mark.copy_from_slice(digest(&SHA256, token).as_ref());
    mark
}

fn is_dead(fault: &TokenFault) -> bool {
    matches!(fault, TokenFault::Refused { code: "invalid_grant", .. })
}

impl GrantState {
    /// That of a process that begins nothing more once it is `ending`.
    #[must_use]
    pub fn until(ending: CancellationToken) -> Self {
        Self { memory: Mutex::default(), ending }
    }

    /// With a refresh token that stays the same.
    ///
    /// # Errors
    /// [`TokenFault::Dead`] without asking, where that very token was refused before.
    pub async fn fixed(&self, seed: &[u8], exchange: &dyn Exchange) -> Result<Issued, TokenFault> {
        let mark = mark(seed);
        if self.memory().dead.contains(&mark) {
            return Err(TokenFault::Dead);
        }
        match exchange.ask(seed).await {
            Ok(answer) => {
                if answer.text("refresh_token").is_some_and(|new| new.as_bytes() != seed) {
                    tracing::warn!(
                        target: "outgate::credential",
                        "the token endpoint sent a new refresh token, which is not kept: this grant needs `rotates: true`"
                    );
                }
                answer.issued(exchange.lifetime())
            }
            Err(fault) if is_dead(&fault) => Err(self.bury(mark)),
            Err(fault) => Err(fault),
        }
    }

    /// With a refresh token that rotates, kept in `shelf`; `seed` is the first one.
    ///
    /// # Errors
    /// [`TokenFault::NotKept`]: the shelf cannot be used, or another process does not let go of it; [`TokenFault::Dead`].
    pub async fn rotating(
        &self,
        seed: &[u8],
        shelf: &Shelf,
        exchange: &dyn Exchange,
    ) -> Result<Issued, TokenFault> {
        self.remember(mark(seed));
        let key = PageKey::of(seed).ok_or(TokenFault::NotKept("it cannot be sealed"))?;
        self.write_unwritten(shelf, &key).await?;
        let began = Instant::now();
        let mut others: Option<(String, Instant)> = None;
        let mut wait = LOOK_FIRST;
        loop {
            let sheet = shelf.look().await?;
            let mut page = Page::read(&sheet, &key);
            let stands = page.record.as_ref().map(|record| record.generation);
            page.record = self.newest(page.record);
            let is_lost = stands < page.record.as_ref().map(|record| record.generation);
            if let Some(issued) = self.newer(page.record.as_ref(), exchange.mark(), sheet.now) {
                return Ok(issued);
            }
            if self.ending.is_cancelled() {
                return Err(TokenFault::NotKept("outgate is ending"));
            }
            if began.elapsed() >= ASK_BEFORE {
                return Err(TokenFault::NotKept("another process is busy with it for too long"));
            }
            if let Some(busy) = &page.busy {
                let (seen, since) = others.get_or_insert_with(|| (busy.clone(), Instant::now()));
                if seen != busy {
                    others = Some((busy.clone(), Instant::now()));
                } else if since.elapsed() >= LEASE {
                    others = None;
                }
                if others.is_some() {
                    let pause = sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0));
                    self.ending.run_until_cancelled(pause).await;
                    wait = (wait * 2).min(LOOK_MOST);
                    continue;
                }
            }
            if is_lost {
                tracing::warn!(
                    target: "outgate::credential",
                    "the place of a refresh token has lost the newest one, which is written there again"
                );
            }
            if let Some(issued) = self.turn(seed, shelf, &key, sheet, page, exchange).await? {
                return Ok(issued);
            }
        }
    }

    /// One exchange; none where another process was faster.
    async fn turn(
        &self,
        seed: &[u8],
        shelf: &Shelf,
        key: &PageKey,
        sheet: Sheet,
        page: Page,
        exchange: &dyn Exchange,
    ) -> Result<Option<Issued>, TokenFault> {
        let Page { record, foreign, .. } = page;
        let foreign = foreign.as_deref();
        // What another process has sealed is not written over before an exchange brought something better.
        let kept = record.as_ref().filter(|_| foreign.is_none());
        let generation = record.as_ref().map_or(0, |record| record.generation);
        let token = record.as_ref().map_or(seed, |record| record.refresh.as_bytes());
        if self.memory().dead.contains(&mark(token)) {
            return Err(TokenFault::Dead);
        }
        let busy = page::nonce().ok_or(TokenFault::NotKept("the system gives no random numbers"))?;
        let Some(mine) = shelf.put(&sheet, page::write(Some(&busy), kept, foreign, key)?).await? else {
            return Ok(None);
        };
        let answer = exchange.ask(token).await;
        match answer {
            Ok(answer) => {
                let next = Record::of(&answer, token, generation + 1, exchange, mine.now);
                let issued = answer.issued(exchange.lifetime());
                {
                    let mut memory = self.memory();
                    memory.newest = Some(next.clone());
                    memory.unwritten = Some(next);
                }
                self.write(shelf, key, mine).await?;
                let issued = issued?;
                self.memory().given = generation + 1;
                Ok(Some(issued))
            }
            Err(fault) => {
                // If this fails, the mark loses its meaning by itself.
                let free = page::write(None, kept, foreign, key)?;
                let freed = shelf.put(&mine, free).await;
                if !is_dead(&fault) {
                    return Err(fault);
                }
                // Another may have been there first, if it took this process for gone.
                let now = Page::read(&shelf.look().await?, key);
                if now.record.is_some_and(|now| now.generation > generation) || matches!(freed, Ok(None)) {
                    return Ok(None);
                }
                Err(self.bury(mark(token)))
            }
        }
    }

    /// What stands on the shelf, or what was there once, if that is newer.
    fn newest(&self, seen: Option<Record>) -> Option<Record> {
        let mut memory = self.memory();
        let generation = |record: &Option<Record>| record.as_ref().map_or(0, |record| record.generation);
        if generation(&seen) >= generation(&memory.newest) {
            memory.newest.clone_from(&seen);
            return seen;
        }
        memory.newest.clone()
    }

    /// The access token of a newer generation than the one that was given out last, if it still lives for a while.
    fn newer(&self, record: Option<&Record>, mark: &str, now: SystemTime) -> Option<Issued> {
        let record = record?;
        let mut memory = self.memory();
        if record.generation <= memory.given {
            return None;
        }
        let issued = record.issued(mark, now)?;
        memory.given = record.generation;
        Some(issued)
    }

    async fn write_unwritten(&self, shelf: &Shelf, key: &PageKey) -> Result<(), TokenFault> {
        if self.memory().unwritten.is_none() {
            return Ok(());
        }
        let sheet = shelf.look().await?;
        self.write(shelf, key, sheet).await
    }

    /// Writes what was got, over `sheet` or over what took its place meanwhile, unless that is as new.
    async fn write(&self, shelf: &Shelf, key: &PageKey, mut sheet: Sheet) -> Result<(), TokenFault> {
        let mut fault = TokenFault::NotKept("others write all the time");
        for tried in 1..=WRITES {
            let Some((generation, text)) = self.unwritten_text(key)? else { return Ok(()) };
            match shelf.put(&sheet, text).await {
                Ok(Some(_)) => {
                    self.memory().unwritten = None;
                    return Ok(());
                }
                Ok(None) => {}
                Err(error) => {
                    fault = error;
                    sleep(LOOK_FIRST * tried).await;
                }
            }
            if let Ok(now) = shelf.look().await {
                // Also where the write was done and its answer lost.
                if Page::read(&now, key).record.is_some_and(|record| record.generation >= generation) {
                    self.memory().unwritten = None;
                    return Ok(());
                }
                sheet = now;
            }
        }
        Err(fault)
    }

    fn unwritten_text(&self, key: &PageKey) -> Result<Option<(u64, Zeroizing<String>)>, TokenFault> {
        let memory = self.memory();
        let Some(record) = &memory.unwritten else { return Ok(None) };
        Ok(Some((record.generation, page::write(None, Some(record), None, key)?)))
    }

    fn bury(&self, token: Mark) -> TokenFault {
        let mut memory = self.memory();
        if memory.dead.len() >= DEAD {
            memory.dead.pop_front();
        }
        memory.dead.push_back(token);
        TokenFault::Dead
    }

    fn remember(&self, seed: Mark) {
        let mut memory = self.memory();
        if memory.seed != Some(seed) {
            *memory = Memory { seed: Some(seed), ..Memory::default() };
        }
    }

    /// Locked for moments, never over an await.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
