//! The one connection to Redis. Every wait on it is bounded, and a call that was not answered in time costs the connection:
//! what would still come on it belongs to nobody.
//!
//! The redis crate dials by itself, past `upstream/connector.rs` and its address rules. Those rules are about what a request
//! can make outgate reach; where Redis is says the platform, and no request has a part in it (docs/decisions/0006).
//! TLS (`rediss://`) uses the provider that the process installs and the system's roots.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::script::{Answer, Head, RawAnswer, Report, answer, invocation, script};

/// Where the URL comes from; asked at each connection, so that a rotated secret is used. `None`: not there (yet).
pub type UrlSource = Arc<dyn Fn() -> Option<Zeroizing<String>> + Send + Sync>;

/// How long a call may take.
pub const CALL: Duration = Duration::from_millis(100);
/// How long it may take to connect: name, TCP, TLS, authentication.
pub const CONNECT: Duration = Duration::from_millis(500);

/// Why there is no answer. Never the URL or what it holds.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The secret with the URL is not there.
    #[error("the secret with the URL is not there")]
    NoUrl,
    /// What the secret holds is no URL of Redis.
    #[error("what the secret holds is not a `redis://` or `rediss://` URL")]
    NotAUrl,
    /// No answer in time.
    #[error("no answer in time")]
    Late,
    /// Redis, or the way to it, failed.
    #[error("{0}")]
    Redis(String),
}

impl From<redis::RedisError> for LinkError {
    /// Its kind alone: details can repeat what was sent.
    fn from(error: redis::RedisError) -> Self {
        Self::Redis(error.code().unwrap_or_else(|| error.category()).to_owned())
    }
}

/// The connection, or the way to one.
pub struct Link {
    url: UrlSource,
    script: Script,
    open: Option<MultiplexedConnection>,
}

impl Link {
    /// Not connected.
    pub fn new(url: UrlSource) -> Self {
        Self { url, script: script(), open: None }
    }

    /// Whether there is no connection.
    pub fn is_closed(&self) -> bool {
        self.open.is_none()
    }

    /// Connects anew. At most [`CONNECT`].
    pub async fn connect(&mut self) -> Result<(), LinkError> {
        let url = (self.url)().ok_or(LinkError::NoUrl)?;
        let client = Client::open(url.trim()).map_err(|_| LinkError::NotAUrl)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(CONNECT));
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        self.open = Some(timeout(CONNECT, opening).await.map_err(|_| LinkError::Late)??);
        Ok(())
    }

    /// One call of the script. At most [`CALL`]; any failure ends the connection.
    pub async fn report(&mut self, head: &Head<'_>, reports: &[Report]) -> Result<Answer, LinkError> {
        let mut connection = self.open.take().ok_or(LinkError::Late)?;
        let call = invocation(&self.script, head, reports);
        let raw: RawAnswer =
            timeout(CALL, call.invoke_async(&mut connection)).await.map_err(|_| LinkError::Late)??;
        let answer = answer(raw, reports.len())?;
        self.open = Some(connection);
        Ok(answer)
    }
}
