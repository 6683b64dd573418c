//! What stores behind HTTP share: their address, their authorities, their times, and the token they log in with.

use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Deserializer};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::message::quantity::TimeSpan;
use crate::message::target::{Authority, Scheme, Target};
use crate::secret::config::StoreEnv;
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::{ClientSettings, HttpClient, configured_addresses};
use crate::secret::reference::{self, SecretRef};
use crate::secret::stores::{env::EnvStore, file::FileStore};
use crate::secret::value::{SecretValue, ValueRules};
use crate::secret::{SecretStore, StoreMistake};
use crate::upstream::guard::AddressRules;

/// Bytes that a file of authorities may have.
const MAX_CA: u64 = 4 * 1024 * 1024;
/// The shortest time between two reads that a policy may ask for.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);
/// The longest that one read may be given.
const LONGEST_TOTAL: Duration = Duration::from_secs(60);
/// How often a value is read again where the policy says nothing.
pub const REFRESH: Duration = Duration::from_secs(300);

/// The times of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreTimeouts {
    /// Bound of resolving and connecting, and again of the TLS handshake. Default: 2s.
    pub connect: Option<TimeSpan>,
    /// Bound of one read, login and retries included; at most 60s. Default: 5s.
    pub total: Option<TimeSpan>,
}

impl StoreTimeouts {
    /// Bound of connecting.
    #[must_use]
    pub fn connect(&self) -> Duration {
        self.connect.map_or(Duration::from_secs(2), TimeSpan::duration)
    }

    /// Bound of one read.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total.map_or(Duration::from_secs(5), TimeSpan::duration)
    }
}

/// Mistakes in the times of a store.
pub fn check_times(timeouts: &StoreTimeouts, refresh: Option<TimeSpan>) -> Vec<StoreMistake> {
    let mut mistakes = Vec::new();
    if timeouts.connect().is_zero() {
        mistakes.push(("timeouts.connect", "must be more than no time".to_owned()));
    }
    if timeouts.total().is_zero() || timeouts.total() > LONGEST_TOTAL {
        mistakes.push(("timeouts.total", "must be more than no time, and at most 60s".to_owned()));
    }
    mistakes.extend(check_refresh("refresh", refresh));
    mistakes
}

/// A mistake in how often is read again.
pub fn check_refresh(key: &'static str, refresh: Option<TimeSpan>) -> Option<StoreMistake> {
    refresh
        .filter(|every| every.duration() < SHORTEST_REFRESH)
        .map(|_| (key, "must be at least 1s".to_owned()))
}

/// Whether secrets may go over plain HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Plaintext {
    /// Only to this very host, such as an agent on loopback.
    #[default]
    Deny,
    /// To any: anyone on the way can read them.
    Allow,
}

/// Where a store is: `https://host[:port][/prefix]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreAddress {
    /// Its origin.
    pub target: Target,
    /// What stands before each of its paths; no slash at its end.
    pub prefix: String,
}

impl FromStr for StoreAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "expected an address such as `https://vault.example.com:8200`";
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let scheme = match scheme {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(FORM),
        };
        let (authority, prefix) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let prefix = prefix.trim_end_matches('/');
        if prefix.contains(['?', '#'])
            || !prefix.is_ascii()
            || prefix.contains(|c: char| c.is_ascii_control() || c == ' ')
        {
            return Err("the address has a query, a fragment or characters that must be percent-encoded");
        }
        let Authority { host, port } = Authority::parse(authority).map_err(|_| FORM)?;
        let port = port.unwrap_or_else(|| scheme.default_port());
        Ok(Self { target: Target { scheme, host, port }, prefix: prefix.to_owned() })
    }
}

impl StoreAddress {
    /// A mistake, if secrets would go over plain HTTP to another host.
    #[must_use]
    pub fn check_plaintext(&self, plaintext: Plaintext) -> Option<StoreMistake> {
        let host = &self.target.host;
        let local = host.ip().map_or(host.as_str() == "localhost", |ip| ip.is_loopback());
        let refused = self.target.scheme == Scheme::Http && plaintext == Plaintext::Deny && !local;
        refused.then(|| {
            let text =
                "over http everybody on the way could read the secrets: use https, or say `plaintext: allow`";
            ("address", text.to_owned())
        })
    }
}

impl<'de> Deserialize<'de> for StoreAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for StoreAddress {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StoreAddress".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^https?://", "examples": ["https://vault:8200"] })
    }
}

/// The PEM of authorities.
///
/// # Errors
/// What is wrong with the file.
pub fn read_ca(path: &Path) -> Result<Arc<[u8]>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() || metadata.len() > MAX_CA {
        return Err("not a regular file of at most 4 MiB".to_owned());
    }
    let pem = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    crate::tls::pem::certificates(&pem, "ca").map_err(|error| error.to_string())?;
    Ok(pem.into())
}

/// The client of a store: any address but those of metadata services.
///
/// # Errors
/// The authorities cannot be used.
pub fn client(
    name: &str,
    scheme: Scheme,
    ca: Option<Arc<[u8]>>,
    timeouts: &StoreTimeouts,
    env: &StoreEnv,
) -> Result<HttpClient, String> {
    client_to(configured_addresses(), name, scheme, ca, timeouts, env)
}

/// The same for answers that stay open, of which there are `most` at once.
///
/// # Errors
/// The authorities cannot be used.
pub fn watch_client(
    name: &str,
    scheme: Scheme,
    ca: Option<Arc<[u8]>>,
    timeouts: &StoreTimeouts,
    most: usize,
    env: &StoreEnv,
) -> Result<HttpClient, String> {
    let settings = settings(configured_addresses(), name, scheme, ca, timeouts);
    HttpClient::for_streams(settings, most, &env.upstream).map_err(|error| error.to_string())
}

/// A client that fetches tokens of the cloud's metadata server, and may reach it therefore.
///
/// # Errors
/// TLS cannot be set up.
pub fn metadata_client(
    name: &str,
    scheme: Scheme,
    timeouts: &StoreTimeouts,
    env: &StoreEnv,
) -> Result<HttpClient, String> {
    let all = configured_addresses();
    let addresses = AddressRules { allow_metadata: all.allow_private.clone(), ..all };
    client_to(addresses, name, scheme, None, timeouts, env)
}

fn client_to(
    addresses: AddressRules,
    name: &str,
    scheme: Scheme,
    ca: Option<Arc<[u8]>>,
    timeouts: &StoreTimeouts,
    env: &StoreEnv,
) -> Result<HttpClient, String> {
    let settings = settings(addresses, name, scheme, ca, timeouts);
    HttpClient::new(settings, &env.upstream).map_err(|error| error.to_string())
}

fn settings(
    addresses: AddressRules,
    name: &str,
    scheme: Scheme,
    ca: Option<Arc<[u8]>>,
    timeouts: &StoreTimeouts,
) -> ClientSettings {
    ClientSettings {
        name: format!("secrets.{name}").into(),
        scheme,
        ca,
        connect: timeouts.connect(),
        total: timeouts.total(),
        addresses,
    }
}

/// Reads what a store itself needs, from `env:` and `file:`; other stores would make circles. Read at every login, so a
/// file that is replaced is seen.
pub struct OwnSecrets {
    files: FileStore,
}

impl OwnSecrets {
    /// Relative paths start at `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { files: FileStore::new(directory) }
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`StoreFault::Own`].
    pub async fn read(&self, reference: &SecretRef, rules: ValueRules) -> Result<SecretValue, StoreFault> {
        let read = match reference.store() {
            reference::ENV => EnvStore.read(reference).await,
            reference::FILE => self.files.read(reference).await,
            _ => Err(SecretError::Reference("a store's own secrets come from `env:` or `file:`")),
        };
        read.and_then(|reading| SecretValue::checked(reading.bytes, rules, reference))
            .map_err(|error| StoreFault::Own(Box::new(error)))
    }
}

/// A mistake, if a store's own secret comes from another store.
#[must_use]
pub fn check_own(key: &'static str, reference: &SecretRef) -> Option<StoreMistake> {
    if reference.is_per_tenant() {
        return Some((key, SecretError::Placeholder.to_string()));
    }
    let known = matches!(reference.store(), reference::ENV | reference::FILE);
    (!known).then(|| (key, "a store's own secrets come from `env:` or `file:`".to_owned()))
}

/// A token, ready to be sent.
#[derive(Clone)]
pub struct Token {
    /// The field's value; sensitive.
    pub header: HeaderValue,
    /// When it was issued.
    pub born: Instant,
    /// When it ends; none = never.
    pub ends: Option<Instant>,
    /// Whether its life can be made longer.
    pub renewable: bool,
}

impl Token {
    /// Two thirds of its life: when it is to be renewed or replaced.
    #[must_use]
    pub fn renew_at(&self) -> Option<Instant> {
        self.ends.map(|end| self.born + end.saturating_duration_since(self.born).mul_f64(2.0 / 3.0))
    }

    fn is_over(&self) -> bool {
        self.ends.is_some_and(|end| Instant::now() >= end)
    }

    fn is_due(&self) -> bool {
        self.renew_at().is_some_and(|at| Instant::now() >= at)
    }
}

/// The one token of a store: fetched when it is first wanted and again at two thirds of its life, by one caller at a time.
/// While it fails to be replaced, the old one serves until its end.
pub struct TokenSlot {
    held: Mutex<Option<Arc<Token>>>,
    turn: Semaphore,
}

impl Default for TokenSlot {
    fn default() -> Self {
        Self { held: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl TokenSlot {
    /// The token. `fetch` gets the old one, if there is one that still lives.
    ///
    /// # Errors
    /// What `fetch` says, where there is no token that lives.
    pub async fn get<F, Fetched>(&self, fetch: F) -> Result<Arc<Token>, StoreFault>
    where
        F: FnOnce(Option<Arc<Token>>) -> Fetched,
        Fetched: Future<Output = Result<Token, StoreFault>>,
    {
        if let Some(token) = self.held().filter(|token| !token.is_due()) {
            return Ok(token);
        }
        let Ok(_turn) = self.turn.acquire().await else {
            return Err(StoreFault::Garbled("the store was closed"));
        };
        let old = self.held();
        if let Some(token) = old.clone().filter(|token| !token.is_due()) {
            return Ok(token);
        }
        match fetch(old.clone()).await {
            Ok(token) => {
                let token = Arc::new(token);
                *self.lock() = Some(Arc::clone(&token));
                Ok(token)
            }
            Err(error) => old.filter(|token| !token.is_over()).ok_or(error),
        }
    }

    /// The token that lives now.
    pub fn held(&self) -> Option<Arc<Token>> {
        self.lock().clone().filter(|token| !token.is_over())
    }

    /// Forgets the token, if it is still this one: the store does not take it any more.
    pub fn forget(&self, token: &Arc<Token>) {
        let mut held = self.lock();
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, token)) {
            *held = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Token>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A field's value that hides itself, from pieces; its memory is wiped when its last copy goes.
///
/// # Errors
/// The value has bytes that cannot stand in a field.
pub fn secret_header(pieces: &[&[u8]]) -> Result<HeaderValue, StoreFault> {
    let mut text = zeroize::Zeroizing::new(Vec::with_capacity(pieces.iter().map(|piece| piece.len()).sum()));
    pieces.iter().for_each(|piece| text.extend_from_slice(piece));
    let value = HeaderValue::from_maybe_shared(bytes::Bytes::from_owner(text));
    let mut value = value.map_err(|_| StoreFault::Garbled("a token that cannot stand in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let good = [
            ("https://vault", "https://vault:443", ""),
            ("https://Vault.Example:8200/", "https://vault.example:8200", ""),
            ("http://127.0.0.1:8100/a/b/", "http://127.0.0.1:8100", "/a/b"),
            ("https://[::1]:8200", "https://[::1]:8200", ""),
        ];
        for (text, origin, prefix) in good {
            let address: StoreAddress = text.parse().unwrap();
            let Target { scheme, host, port } = &address.target;
            assert_eq!(
                (format!("{}://{host}:{port}", scheme.as_str()), &*address.prefix),
                (origin.to_owned(), prefix)
            );
        }
        for text in [
            "vault:8200",
            "ftp://vault",
            "https://",
            "https://u:p@vault",
            "https://v/?q",
            "https://v/#f",
            "https://v/ x",
        ] {
            assert!(text.parse::<StoreAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn plain_http_is_for_this_host_alone() {
        for (address, refused) in [
            ("https://vault", false),
            ("http://vault", true),
            ("http://10.0.0.1", true),
            ("http://127.0.0.1:8100", false),
            ("http://localhost:8100", false),
            ("http://[::1]", false),
        ] {
            let address: StoreAddress = address.parse().unwrap();
            assert_eq!(address.check_plaintext(Plaintext::Deny).is_some(), refused, "{address:?}");
            assert!(address.check_plaintext(Plaintext::Allow).is_none());
        }
    }
}
