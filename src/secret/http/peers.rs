//! Where a client counts the failures of its peers: with itself, or together with all who ask the same ones.
//!
//! A store has one client, so what that saw is all there is. A token endpoint has one for each token, and tokens are many: each
//! tenant's, each that a reload brings. They count together ([`Peers`]), by where they ask: an identity provider that fails is
//! asked ten times a minute by all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::failures::{Failures, lock};
use crate::message::target::Target;

/// With so many peers, those of which nothing is counted are forgotten when a new one comes. The others are as many as policies and
/// their keys name within a minute.
const MAX_PEERS: usize = 64;

/// The failures of peers, for all clients that ask them. One for the process: it outlives tenants, tokens and policies.
#[derive(Default)]
pub struct Peers(Mutex<HashMap<Target, Arc<Mutex<Failures>>>>);

impl Peers {
    /// Locked for moments, never over an await.
    pub(super) fn of(&self, target: &Target) -> Arc<Mutex<Failures>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(target) {
            return Arc::clone(known);
        }
        if all.len() >= MAX_PEERS {
            all.retain(|_, failures| Arc::strong_count(failures) > 1 || lock(failures).counts());
        }
        Arc::clone(all.entry(target.clone()).or_default())
    }
}

/// Where a client counts.
pub(super) enum Counted {
    /// With itself, whomever it asks.
    Alone(Arc<Mutex<Failures>>),
    /// With others, each peer apart.
    Together(Arc<Peers>),
}

impl Counted {
    /// The failures that count for a peer.
    pub(super) fn of(&self, target: &Target) -> Arc<Mutex<Failures>> {
        match self {
            Self::Alone(failures) => Arc::clone(failures),
            Self::Together(peers) => peers.of(target),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Duration;

    use super::*;
    use crate::message::target::{Host, Scheme};
    use crate::secret::http::HttpError;
    use crate::secret::http::failures::Running;

    #[tokio::test(start_paused = true)]
    async fn peers_of_which_nothing_is_counted_give_way() {
        let peers = Peers::default();
        let target =
            |port| Target { scheme: Scheme::Https, host: Host::parse("idp.example.com").unwrap(), port };
        let fail = |port| {
            let running = Running::begin(&peers.of(&target(port)), "a");
            running.ok().flatten().unwrap().failed(HttpError::TimedOut);
        };
        let known = || peers.0.lock().unwrap().len();
        (0..100).for_each(fail);
        assert_eq!(known(), 100, "each of them failed a moment ago");
        tokio::time::advance(Duration::from_secs(61)).await;
        fail(100);
        assert_eq!(known(), 1);
        let _asked = Running::begin(&peers.of(&target(101)), "a");
        (200..300).for_each(|port| drop(peers.of(&target(port))));
        assert!(known() <= MAX_PEERS, "{}", known());
        assert!(peers.0.lock().unwrap().contains_key(&target(101)), "one that runs stays");
    }
}
