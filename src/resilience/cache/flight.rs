//! Identical requests wait for one answer: the first leads, the others follow.
//!
//! A follower is never worse off for long: it goes on its own as soon as the answer turns out to be of no use to it, and one
//! of them leads anew when the leader failed or went away. How many may follow one leader is bounded, and so is their wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::place::Place;
use crate::resilience::key::Key;

/// Followers of one leader; who comes later goes on its own.
const MOST_FOLLOWERS: usize = 1000;

type FlightKey = (Place, Key);

/// How a flight ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landed {
    /// The answer is kept: look again.
    Kept,
    /// The answer is of no use to others.
    Useless,
    /// There was none, or its body was cut.
    Abandoned,
}

type Signal = watch::Sender<Option<Landed>>;

/// The flights of one provider. As many as there are requests under way, at most.
#[derive(Debug, Default)]
pub(super) struct Flights {
    running: Mutex<HashMap<FlightKey, Arc<Signal>>>,
}

/// Whether a request leads or follows.
pub(super) enum Role {
    /// It asks the provider, and the others wait.
    Leads(Leader),
    /// It waits.
    Follows(Follower),
    /// Too many wait already.
    Alone,
}

impl Flights {
    /// Joins the flight of a key, or begins it.
    pub fn join(self: &Arc<Self>, key: FlightKey) -> Role {
        let mut running = self.lock();
        match running.get(&key) {
            Some(signal) if signal.receiver_count() >= MOST_FOLLOWERS => Role::Alone,
            Some(signal) => Role::Follows(Follower(signal.subscribe())),
            None => {
                let signal = Arc::new(watch::Sender::new(None));
                running.insert(key, signal.clone());
                Role::Leads(Leader { flights: self.clone(), key, signal, landed: Landed::Abandoned })
            }
        }
    }

    /// Begins the flight of a key; nothing if there is one.
    pub fn lead(self: &Arc<Self>, key: FlightKey) -> Option<Leader> {
        match self.join(key) {
            Role::Leads(leader) => Some(leader),
            Role::Follows(_) | Role::Alone => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FlightKey, Arc<Signal>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.lock().len()
    }
}

/// Held by the request that leads, and then by the body of its answer; dropped = abandoned.
pub(super) struct Leader {
    flights: Arc<Flights>,
    key: FlightKey,
    signal: Arc<Signal>,
    landed: Landed,
}

impl Leader {
    /// Ends the flight. Returns whether somebody was waiting.
    pub fn land(mut self, landed: Landed) -> bool {
        self.landed = landed;
        self.signal.receiver_count() > 0
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // Gone from the table first: who comes from now on begins a new flight, and finds what this one kept.
        self.flights.lock().remove(&self.key);
        self.signal.send_replace(Some(self.landed));
    }
}

/// Waits for a leader.
pub(super) struct Follower(watch::Receiver<Option<Landed>>);

impl Follower {
    /// How the flight ended; nothing if it did not end in time.
    pub async fn wait(mut self, until: Instant) -> Option<Landed> {
        let landed = tokio::time::timeout_at(until, self.0.wait_for(Option::is_some)).await.ok()?;
        landed.map_or(Some(Landed::Abandoned), |landed| *landed)
    }
}
