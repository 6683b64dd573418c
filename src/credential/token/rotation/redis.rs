//! A grant that is kept in Redis: for several pods. Every wait is bounded; a connection lives for one look or write, which
//! there are a few of in an hour.
//!
//! Like the fleet's, these connections are made by the redis crate and not by `upstream/connector.rs`: where Redis is says
//! the platform, and no request has a part in it (docs/decisions/0006). What is written is sealed.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::secret::{SecretVersion, TokenFault};

/// How long it may take to connect, and again how long an answer may take.
const CALL: Duration = Duration::from_secs(1);

/// Writes where nothing has been written since. An empty second argument stands for a key that is not there.
const PUT: &str = "
local now = redis.call('GET', KEYS[1])
if now == false then now = '' end
if now ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
";

/// A key that keeps a grant.
pub struct RedisShelf {
    url: Arc<SecretVersion>,
    key: String,
}

impl RedisShelf {
    pub(super) fn new(url: Arc<SecretVersion>, key: &str) -> Self {
        Self { url, key: key.to_owned() }
    }

    pub(super) async fn look(&self) -> Result<Option<Zeroizing<String>>, TokenFault> {
        let mut connection = self.connect().await?;
        let mut get = redis::cmd("GET");
        let call = get.arg(&self.key).query_async::<Option<String>>(&mut connection);
        Ok(bounded(call).await?.map(Zeroizing::new))
    }

    pub(super) async fn put(&self, before: Option<&String>, text: &str) -> Result<bool, TokenFault> {
        let mut connection = self.connect().await?;
        let script = Script::new(PUT);
        let mut call = script.key(&self.key);
        call.arg(before.map_or("", String::as_str)).arg(text);
        Ok(bounded(call.invoke_async::<i64>(&mut connection)).await? == 1)
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

/// The error's own text can repeat what was sent, so none of it is told.
async fn bounded<T>(call: impl Future<Output = redis::RedisResult<T>>) -> Result<T, TokenFault> {
    match timeout(CALL, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(TokenFault::NotKept("Redis was not reached, or refused")),
        Err(_) => Err(TokenFault::NotKept("Redis did not answer in time")),
    }
}
