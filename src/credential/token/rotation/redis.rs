//! A grant that is kept in Redis: for several pods. Every wait is bounded; a connection lives for one look or write, which
//! there are a few of in an hour.
//!
//! Like the fleet's, these connections are made by the redis crate and not by `upstream/connector.rs`: where Redis is says
//! the platform, and no request has a part in it (docs/decisions/0006). What is written is sealed.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::secret::{SecretVersion, TokenFault};

/// How long it may take to connect, and again how long an answer may take. A script that the server does not know yet is three
/// answers, and a busy machine is slow at each: what fails here fails a token. An exchange (30 s) and a write (twice this) end
/// before the mark of who is busy loses its meaning (40 s).
const CALL: Duration = Duration::from_secs(3);

/// Writes where nothing has been written since. An empty second argument stands for a key that is not there.
const PUT: &str = "
local time = redis.pcall('TIME')[1] or ''
local now = redis.call('GET', KEYS[1])
if now == false then now = '' end
if now ~= ARGV[1] then return {0, time} end
redis.call('SET', KEYS[1], ARGV[2])
return {1, time}
";

/// What stands there, and what the server's clock says; nothing of that where the user may not ask.
const LOOK: &str = "return {redis.call('GET', KEYS[1]), redis.pcall('TIME')[1] or ''}";

/// A key that keeps a grant.
pub struct RedisShelf {
    url: Arc<SecretVersion>,
    key: String,
}

impl RedisShelf {
    pub(super) fn new(url: Arc<SecretVersion>, key: &str) -> Self {
        Self { url, key: key.to_owned() }
    }

    pub(super) async fn look(&self) -> Result<(Option<Zeroizing<String>>, SystemTime), TokenFault> {
        let mut connection = self.connect().await?;
        let script = Script::new(LOOK);
        let call = script.key(&self.key);
        let (text, time) = bounded(call.invoke_async::<(Option<String>, String)>(&mut connection)).await?;
        Ok((text.map(Zeroizing::new), moment(&time)))
    }

    /// When it was written, by the server's clock; none where something else stands there by now.
    pub(super) async fn put(
        &self,
        before: Option<&String>,
        text: &str,
    ) -> Result<Option<SystemTime>, TokenFault> {
        let mut connection = self.connect().await?;
        let script = Script::new(PUT);
        let mut call = script.key(&self.key);
        call.arg(before.map_or("", String::as_str)).arg(text);
        let (done, time) = bounded(call.invoke_async::<(i64, String)>(&mut connection)).await?;
        Ok((done == 1).then(|| moment(&time)))
    }

    async fn connect(&self) -> Result<MultiplexedConnection, TokenFault> {
        let url = std::str::from_utf8(self.url.value.expose()).ok();
        let client = url.and_then(|url| Client::open(url.trim()).ok());
        let client = client.ok_or(TokenFault::NotKept(
            "the secret with Redis' address is no `redis://` or `rediss://` URL",
        ))?;
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CALL)).set_response_timeout(Some(CALL));
        bounded(client.get_multiplexed_async_connection_with_config(&config)).await
    }
}

/// Seconds since 1970; this machine's clock where there are none.
fn moment(seconds: &str) -> SystemTime {
    let told = seconds.parse().ok().and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    told.unwrap_or_else(SystemTime::now)
}

/// The error's own text can repeat what was sent, so none of it is told.
async fn bounded<T>(call: impl Future<Output = redis::RedisResult<T>>) -> Result<T, TokenFault> {
    match timeout(CALL, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(TokenFault::NotKept("Redis was not reached, or refused")),
        Err(_) => Err(TokenFault::NotKept("Redis did not answer in time")),
    }
}
