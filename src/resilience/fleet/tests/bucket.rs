//! A lease that tests can spend: a leaky bucket on tokio's clock, with requests that wait in line.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::resilience::fleet::Grant;
use crate::resilience::fleet::spend::Spend;
use crate::resilience::rate_limit::pace::Pace;

/// See [`Spend`]. Counts as the limiter's own lease does, which only its own folder can spend.
pub struct Bucket {
    window: Duration,
    state: Mutex<State>,
}

struct State {
    grant: Grant,
    pace: Option<Pace>,
    interval: u64,
    debt: u64,
    as_of: Instant,
    asked: u64,
    waiting: u64,
    taken: Vec<Instant>,
}

impl Bucket {
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        let now = Instant::now();
        if state.pace.is_some() {
            state.debt = state.debt.saturating_sub((now - state.as_of).as_nanos() as u64);
        }
        state.as_of = now;
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
        while state.waiting > 0 {
            let Some(Ok(debt)) = state.pace.map(|pace| pace.take(state.debt)) else { return };
            state.debt = debt;
            state.waiting -= 1;
            let now = state.as_of;
            state.taken.push(now);
        }
    }

    /// When requests went.
    pub fn taken(&self) -> Vec<Instant> {
        self.state().taken.clone()
    }

    /// What it costs of the budget now.
    pub fn cost(&self) -> u64 {
        self.state().grant.cost()
    }
}

impl Spend for Bucket {
    fn nothing(window: Duration) -> Self {
        let state = State {
            grant: Grant::NONE,
            pace: None,
            interval: 1,
            debt: 0,
            as_of: Instant::now(),
            asked: 0,
            waiting: 0,
            taken: Vec::new(),
        };
        Self { window, state: Mutex::new(state) }
    }

    fn set(&self, grant: Grant) {
        let mut state = self.state();
        state.grant = grant;
        state.pace = Pace::new(self.window, grant.refill, grant.burst);
        if let Some(pace) = state.pace {
            let debt = (u128::from(state.debt) * u128::from(pace.interval())).div_ceil(state.interval.into());
            (state.debt, state.interval) = (debt as u64, pace.interval());
        }
    }

    fn current(&self) -> Grant {
        self.state().grant
    }

    fn held_burst(&self) -> u32 {
        let state = self.state();
        state.grant.burst.max(state.debt.div_ceil(state.interval) as u32)
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
