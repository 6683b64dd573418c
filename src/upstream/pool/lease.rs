//! Connections while a request has them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use tokio::task::AbortHandle;

use crate::upstream::socket::Written;
use crate::upstream::upload::UploadBody;

use super::{Origin, Pool};

/// How long the rest of an upload may take after the answer has ended, before the connection is closed.
const SETTLE: Duration = Duration::from_secs(5);

pub(super) type Sender1 = http1::SendRequest<UploadBody>;
/// The sending half of an HTTP/2 connection.
pub type Sender2 = http2::SendRequest<UploadBody>;

/// What is known of a connection since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// Names it inside the pool.
    pub id: u64,
    /// Whose credential it carries, and no other; 0 = none's.
    pub account: u64,
    /// Version of the client certificate.
    pub version: u64,
    /// The address that was dialled.
    pub peer: SocketAddr,
}

/// An HTTP/1.1 connection.
pub struct Http1 {
    pub(super) origin: Arc<Origin>,
    pub(super) made: Made,
    sender: Sender1,
    written: Written,
    /// Ends it at once; not for one that is to become something else, which lives on after its exchange.
    task: Option<AbortHandle>,
}

impl Http1 {
    /// Puts the parts together.
    pub fn new(
        origin: Arc<Origin>,
        made: Made,
        sender: Sender1,
        written: Written,
        task: Option<AbortHandle>,
    ) -> Self {
        Self { origin, made, sender, written, task }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    fn abort(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A connection that one request has.
pub enum Lease {
    /// Alone.
    Http1(Http1Lease),
    /// Together with others.
    Http2(Http2Lease),
}

impl Lease {
    /// Version of the client certificate that its connection has shown, and whether it was made for this request.
    pub fn shows(&self) -> (u64, bool) {
        match self {
            Self::Http1(lease) => {
                (lease.connection.as_ref().map_or(0, |connection| connection.made.version), lease.fresh)
            }
            Self::Http2(lease) => (lease.made.version, lease.fresh),
        }
    }
}

/// An HTTP/1.1 connection that one request has. Dropped before its use it goes back to the pool; dropped in the middle of
/// an exchange it is closed.
pub struct Http1Lease {
    pool: Arc<Pool>,
    connection: Option<Http1>,
    used: bool,
    /// Whether it was made for this request.
    pub fresh: bool,
}

impl Http1Lease {
    /// A lease on a connection.
    pub fn new(pool: Arc<Pool>, connection: Http1, fresh: bool) -> Self {
        Self { pool, connection: Some(connection), used: false, fresh }
    }

    /// The parts that an exchange needs; from now on the connection is in use.
    pub fn begin(&mut self) -> Option<(&Arc<Origin>, Made, &mut Sender1, &Written)> {
        self.used = true;
        let own = self.connection.as_mut()?;
        Some((&own.origin, own.made, &mut own.sender, &own.written))
    }

    /// The answer has ended, and the connection may carry another request as soon as hyper says so.
    #[expect(
        clippy::disallowed_methods,
        reason = "gives a connection back to its pool; ends with the connection"
    )]
    pub fn finish(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if connection.sender.is_ready() {
            self.pool.put_back(connection);
            return;
        }
        if connection.sender.is_closed() {
            return;
        }
        // Its task has not come round yet, or the upload still runs though the answer has ended.
        let pool = self.pool.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(SETTLE, connection.sender.ready()).await {
                Ok(Ok(())) => pool.put_back(connection),
                Ok(Err(_closed)) => {}
                Err(_elapsed) => connection.abort(),
            }
        });
    }
}

impl Drop for Http1Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if self.used {
            // hyper would first shut the stream down in order, which a provider that reads nothing can hold up for ever;
            // and as long as it tries it keeps the request's body, and with that the app's connection.
            connection.abort();
        } else {
            self.pool.put_back(connection);
        }
    }
}

/// One stream of an HTTP/2 connection.
pub struct Http2Lease {
    pool: Arc<Pool>,
    origin: Arc<Origin>,
    sender: Sender2,
    made: Made,
    /// Whether the connection was made for this request.
    pub fresh: bool,
}

impl Http2Lease {
    pub(super) fn new(
        pool: Arc<Pool>,
        origin: Arc<Origin>,
        sender: Sender2,
        made: Made,
        fresh: bool,
    ) -> Self {
        Self { pool, origin, sender, made, fresh }
    }

    /// The parts that an exchange needs.
    pub fn begin(&mut self) -> (&Arc<Origin>, Made, &mut Sender2) {
        (&self.origin, self.made, &mut self.sender)
    }

    /// The connection takes no more requests: later ones get another.
    pub fn retire(&self) {
        self.pool.retire(&self.origin, self.made.id);
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        self.pool.stream_ended(&self.origin, self.made.id);
    }
}
