//! What one address may take of the webhook, so that none takes all.
//!
//! The API server comes from a few addresses, and asks little of each. Whoever else reaches the port gets no more than one of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{ROOM, SMALL_PLACES};

/// Connections of one address at a time.
pub const CONNECTIONS: usize = 64;

/// All addresses that have a connection.
#[derive(Debug, Default)]
pub struct Peers {
    known: Mutex<HashMap<IpAddr, Arc<Peer>>>,
}

/// One address.
#[derive(Debug)]
pub struct Peer {
    connections: Arc<Semaphore>,
    /// Room for its bodies, in steps.
    pub(super) room: Arc<Semaphore>,
    /// Places for its small bodies.
    pub(super) small: Arc<Semaphore>,
}

impl Peers {
    /// The peer of a new connection, and the connection's place; none where it has too many. At most as many peers are kept as there are
    /// connections, and one more.
    pub fn admit(&self, address: IpAddr) -> Option<(Arc<Peer>, OwnedSemaphorePermit)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, peer| peer.connections.available_permits() < CONNECTIONS);
        let peer = known.entry(address).or_insert_with(|| Arc::new(Peer::new())).clone();
        let place = peer.connections.clone().try_acquire_owned().ok()?;
        Some((peer, place))
    }
}

impl Peer {
    fn new() -> Self {
        let of = |count| Arc::new(Semaphore::new(count));
        Self { connections: of(CONNECTIONS), room: of(ROOM), small: of(SMALL_PLACES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_and_is_forgotten() {
        let peers = Peers::default();
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut places: Vec<_> = (0..CONNECTIONS).map(|_| peers.admit(one).unwrap()).collect();
        assert!(peers.admit(one).is_none());
        let (peer, place) = peers.admit(other).unwrap();
        assert!(!Arc::ptr_eq(&peer, &places[0].0));
        places.pop();
        assert!(peers.admit(one).is_some());
        drop((places, place));
        assert!(peers.admit(other).is_some());
        assert_eq!(peers.known.lock().unwrap().len(), 1, "who has no connection is not kept");
    }
}
