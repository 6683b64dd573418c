//! A place in the pool, and a place in its line. Both go back when they are dropped, so a request can be given up at any
//! point.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Origin, Pool, Ticket};

/// The leave to have one connection. Travels with the socket and is given back when that is closed.
pub struct Place {
    pool: Arc<Pool>,
    origin: Arc<Origin>,
    id: u64,
    account: u64,
}

impl Place {
    pub(super) fn new(pool: Arc<Pool>, origin: Arc<Origin>, id: u64, account: u64) -> Self {
        Self { pool, origin, id, account }
    }

    /// Where the connection goes.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Names the connection inside the pool.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whose credential the connection will carry.
    pub fn account(&self) -> u64 {
        self.account
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.leave(&self.origin, self.id);
    }
}

/// A place in line.
pub struct Waiting {
    pool: Arc<Pool>,
    origin: Arc<Origin>,
    id: u64,
    receiver: oneshot::Receiver<Ticket>,
    /// Whether the line waits for a dial of somebody else, and not for a connection to come back.
    pub behind_dial: bool,
}

impl Waiting {
    pub(super) fn new(
        pool: Arc<Pool>,
        origin: Arc<Origin>,
        id: u64,
        receiver: oneshot::Receiver<Ticket>,
        behind_dial: bool,
    ) -> Self {
        Self { pool, origin, id, receiver, behind_dial }
    }

    /// Waits for the ticket; none when the pool was closed meanwhile.
    pub async fn ticket(&mut self) -> Option<Ticket> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A ticket that arrived and was not taken goes back as the receiver is dropped.
        self.pool.give_up(&self.origin, self.id);
    }
}
