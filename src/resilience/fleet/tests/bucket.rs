//! A lease that tests can spend: a leaky bucket on tokio's clock, with requests that wait in line.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::resilience::fleet::Grant;
use crate::resilience::fleet::spend::Spend;
use crate::resilience::rate_limit::leaky::LeakyBucket;

/// See [`Spend`]. Counts as the limiter's own lease does, which only its own folder can spend.
pub struct Bucket {
    epoch: Instant,
    state: Mutex<State>,
}

struct State {
    bucket: LeakyBucket,
    asked: u64,
    waiting: u64,
    taken: Vec<Instant>,
}

impl Bucket {
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.bucket.settle(self.epoch.elapsed().as_nanos() as u64);
        state
    }

    /// So many requests come and wait, at most `most` in all.
    pub fn arrive(&self, requests: u64, most: u64) {
        let mut state = self.state();
        state.asked += requests;
        state.waiting = (state.waiting + requests).min(most);
    }

    /// Those go that can.
    pub fn serve(&self) {
        let mut state = self.state();
        while state.waiting > 0 && state.bucket.take().is_ok() {
            state.waiting -= 1;
            state.taken.push(Instant::now());
        }
    }

    /// When requests went.
    pub fn taken(&self) -> Vec<Instant> {
        self.state().taken.clone()
    }

    /// What it costs of the budget now.
    pub fn cost(&self) -> u64 {
        self.current().cost()
    }
}

impl Spend for Bucket {
    fn nothing(window: Duration) -> Self {
        let state = State { bucket: LeakyBucket::empty(window), asked: 0, waiting: 0, taken: Vec::new() };
        Self { epoch: Instant::now(), state: Mutex::new(state) }
    }

    fn set(&self, grant: Grant, at_once: bool) {
        self.state().bucket.set(grant.refill, grant.burst, at_once);
    }

    fn current(&self) -> Grant {
        let (refill, burst) = self.state().bucket.current();
        Grant { refill, burst }
    }

    fn held_burst(&self) -> u32 {
        self.state().bucket.held_burst()
    }

    fn demand(&self) -> u64 {
        std::mem::take(&mut self.state().asked)
    }

    fn waiting(&self) -> u64 {
        self.state().waiting
    }
}

/// The most that went in any window.
pub fn fullest(taken: &[Vec<Instant>], window: Duration) -> usize {
    let mut all: Vec<Instant> = taken.iter().flatten().copied().collect();
    all.sort_unstable();
    let mut first = 0;
    let mut most = 0;
    for (last, at) in all.iter().enumerate() {
        while *at - all[first] >= window {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}
