//! `vault`: HashiCorp Vault and OpenBao, whose APIs are the same here.
//!
//! ```yaml
//! secrets:
//!   payments:
//!     vault:
//!       address: https://vault.example.com:8200
//!       auth: { kubernetes: { role: outgate } }
//! # then: bearer: payments:kv/stripe#secret_key      (or ...@4, or ...@previous, in a KV of version 2)
//! ```
//!
//! The path begins with the mount (or lies below `mount`, if that is set). What is mounted there, and under which version
//! of KV, is asked of `sys/internal/ui/mounts` as Vault's own CLI does; `kv: 1` and `kv: 2` spare the question. A mount of
//! another kind (database, aws ...) is read as it stands, and its answer is a lease: see `lease.rs`. Logging in and
//! keeping the token alive is `login.rs`.
//!
//! One question for each mount, by one read at a time: thirty references of one mount that are read at once ask once.
//!
//! A 403 may mean that the token was revoked: if the server says so, outgate logs in again and asks once more, at most once
//! a minute.

mod config;
mod lease;
mod ledger;
mod login;
mod mounts;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use super::document::Document;
use super::server::{self, REFRESH, StoreAddress};
use crate::message::quantity::TimeSpan;
use crate::secret::config::StoreEnv;
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::{HttpAnswer, HttpCall, HttpClient, Verdict};
use crate::secret::reference::SecretRef;
use crate::secret::{ReadFuture, Reading, SecretStore, Source};

use config::is_path;
pub use config::{KvVersion, VaultConfig};
use lease::Leases;
pub use login::VaultAuth;
use login::VaultLogin;
use mounts::{Kind, Mounts};

/// The least time between two logins that are made because of a 403.
const LOGIN_AGAIN: Duration = Duration::from_secs(60);
/// Characters of a path that are sent as they are.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// KV of version 2: the mount, and the path in it.
    Versioned { mount: String, path: String },
    /// KV of version 1: the whole path.
    Plain { path: String },
    /// Something else, whose answers may be leases.
    Leased { path: String },
}

/// A Vault or OpenBao server.
pub struct VaultStore {
    server: Server,
    kv: KvVersion,
    mount: Option<String>,
    refresh: Duration,
    patience: Duration,
    mounts: Mounts,
    leases: Leases,
}

/// The server with outgate's login.
struct Server {
    client: HttpClient,
    address: StoreAddress,
    namespace: Option<HeaderValue>,
    login: VaultLogin,
    /// When a 403 last led to a login.
    logged_in_again: Mutex<Option<Instant>>,
}

impl VaultStore {
    pub(crate) fn new(
        name: &str,
        config: &VaultConfig,
        ca: Option<Arc<[u8]>>,
        env: &StoreEnv,
    ) -> Result<Self, String> {
        let timeouts = config.timeouts();
        let namespace = config.namespace.as_deref().map(HeaderValue::from_str).transpose();
        let server = Server {
            client: server::client(name, config.address.target.scheme, ca, &timeouts, env)?,
            address: config.address.clone(),
            namespace: namespace.map_err(|_| "the namespace cannot be sent".to_owned())?,
            login: VaultLogin::new(&config.auth, &env.directory),
            logged_in_again: Mutex::default(),
        };
        Ok(Self {
            server,
            kv: config.kv.unwrap_or_default(),
            mount: config.mount.clone(),
            refresh: config.refresh.map_or(REFRESH, TimeSpan::duration),
            patience: timeouts.total(),
            mounts: Mounts::default(),
            leases: Leases::default(),
        })
    }

    async fn read_now(&self, reference: &SecretRef) -> Result<Reading, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        let place = self.place(reference).await.map_err(fault)?;
        let read = match &place {
            Place::Versioned { mount, path } => self.read_versioned(mount, path, reference).await,
            Place::Plain { .. } | Place::Leased { .. } if reference.version().is_some() => {
                Err(fault(StoreFault::Reference("only a KV of version 2 has versions")))
            }
            Place::Plain { path } => self.read_plain(path, reference).await,
            Place::Leased { path } => self.leases.read(&self.server, path, reference).await,
        };
        if matches!(read, Err(SecretError::NotFound { .. })) {
            // The mount may have been moved or upgraded.
            self.mounts.doubt(&self.whole_path(reference).map_err(fault)?);
        }
        read
    }

    async fn read_plain(&self, path: &str, reference: &SecretRef) -> Result<Reading, SecretError> {
        let answer = self.server.read(path).await.map_err(|fault| SecretError::store(reference, fault))?;
        Ok(answer.field(&["data"], reference)?.into())
    }

    async fn read_versioned(
        &self,
        mount: &str,
        path: &str,
        reference: &SecretRef,
    ) -> Result<Reading, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        let current = format!("{mount}/data/{path}");
        let version = match reference.version() {
            None => None,
            Some("previous") => {
                let newest = self.server.read(&current).await.map_err(fault)?;
                let number = newest.number(&["data", "metadata", "version"]);
                let number = number.ok_or(StoreFault::Garbled("it names no version")).map_err(fault)?;
                Some(number.checked_sub(1).filter(|n| *n > 0).ok_or(StoreFault::NotFound).map_err(fault)?)
            }
            Some(text) => Some(
                text.parse::<u64>()
                    .map_err(|_| fault(StoreFault::Reference("a version is a number, or `previous`")))?,
            ),
        };
        let path = version.map_or(current.clone(), |number| format!("{current}?version={number}"));
        let answer = self.server.read(&path).await.map_err(fault)?;
        if answer.at(&["data", "data"]).is_none() {
            // A deleted version leaves its metadata.
            return Err(fault(StoreFault::NotFound));
        }
        Ok(answer.field(&["data", "data"], reference)?.into())
    }

    /// Where a reference leads.
    async fn place(&self, reference: &SecretRef) -> Result<Place, StoreFault> {
        let path = self.whole_path(reference)?;
        match self.kv {
            KvVersion::V1 => return Ok(Place::Plain { path }),
            KvVersion::V2 => return self.versioned(&path, self.mount.as_deref()),
            KvVersion::Auto => {}
        }
        let (mount, kind) = self.mounts.of(&path, &self.server).await?;
        match kind {
            Kind::Versioned => self.versioned(&path, mount.as_deref()),
            Kind::Plain => Ok(Place::Plain { path }),
            Kind::Leased => Ok(Place::Leased { path }),
        }
    }

    /// The parts of a path in a KV of version 2; without a known mount that is the first segment.
    fn versioned(&self, path: &str, mount: Option<&str>) -> Result<Place, StoreFault> {
        let inside = match mount {
            Some(mount) => {
                path.strip_prefix(mount).and_then(|rest| rest.strip_prefix('/')).map(|rest| (mount, rest))
            }
            None => path.split_once('/'),
        };
        let (mount, path) = inside.ok_or(StoreFault::Reference("expected `<mount>/<path>`"))?;
        Ok(Place::Versioned { mount: mount.to_owned(), path: path.to_owned() })
    }

    fn whole_path(&self, reference: &SecretRef) -> Result<String, StoreFault> {
        if !is_path(reference.path()) {
            return Err(StoreFault::Reference("its path has an empty or a dot segment"));
        }
        Ok(match &self.mount {
            Some(mount) => format!("{mount}/{}", reference.path()),
            None => reference.path().to_owned(),
        })
    }
}

impl SecretStore for VaultStore {
    fn ledger(&self) -> Option<&dyn crate::secret::Ledger> {
        Some(self)
    }

    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(self.read_now(reference))
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Polled(self.refresh)
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn rejected(&self, reference: &SecretRef) {
        if let Ok(path) = self.whole_path(reference) {
            self.leases.rejected(&path);
        }
    }

    fn upkeep_at(&self) -> Option<Instant> {
        self.server.login.upkeep_at()
    }

    fn upkeep(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.server.login.upkeep(&self.server))
    }
}

impl Server {
    /// Reads a path (with or without a query), logged in.
    async fn read(&self, path: &str) -> Result<Document, StoreFault> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut url = self.url(path);
        if let Some(query) = query {
            url = format!("{url}?{query}");
        }
        self.fetch(|| HttpCall::get(&self.address.target, url.clone())).await
    }

    /// Reads a path that gives something new each time. A lost answer may have left a lease behind, so it is not asked for again:
    /// the next read takes the next one.
    async fn take(&self, path: &str) -> Result<Document, StoreFault> {
        let url = self.url(path);
        self.fetch(|| HttpCall { repeat: false, ..HttpCall::get(&self.address.target, url.clone()) }).await
    }

    async fn fetch(&self, call: impl Fn() -> HttpCall) -> Result<Document, StoreFault> {
        let (document, verdict) = self.asked(call).await?;
        holds_data(&document)?;
        verdict.works();
        Ok(document)
    }

    /// Reads a path on the way to another one; none where there is nothing.
    async fn about(&self, path: &str) -> Result<Option<Document>, StoreFault> {
        let url = self.url(path);
        match self.asked(|| HttpCall::get(&self.address.target, url.clone())).await {
            Ok((document, verdict)) => {
                holds_data(&document)?;
                verdict.aside();
                Ok(Some(document))
            }
            Err(StoreFault::NotFound) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Sends a request with the token; after a 403 once more with a new one. The verdict on what the answer holds is the
    /// caller's.
    async fn asked(&self, call: impl Fn() -> HttpCall) -> Result<(Document, Verdict), StoreFault> {
        let answer = self.answered(call).await?;
        Ok((Document::parse(&answer.body)?, answer.verdict))
    }

    /// The same with the whole answer, whose status is a good one.
    async fn answered(&self, call: impl Fn() -> HttpCall) -> Result<HttpAnswer, StoreFault> {
        let token = self.login.token(self).await?;
        let mut answer = self.send(call(), Some(&token.header)).await?;
        if answer.status == StatusCode::FORBIDDEN
            && self.may_log_in_again()
            && !self.login.is_accepted(self, &token).await
        {
            self.login.forget(&token);
            let token = self.login.token(self).await?;
            answer = self.send(call(), Some(&token.header)).await?;
        }
        match answer.status {
            StatusCode::OK => Ok(answer),
            StatusCode::NOT_FOUND => {
                answer.verdict.works();
                Err(StoreFault::NotFound)
            }
            status => Err(StoreFault::Status(status.as_u16())),
        }
    }

    async fn send(&self, mut call: HttpCall, token: Option<&HeaderValue>) -> Result<HttpAnswer, StoreFault> {
        call.headers.insert("x-vault-request", HeaderValue::from_static("true"));
        call.headers.extend(
            self.namespace.clone().map(|name| (http::HeaderName::from_static("x-vault-namespace"), name)),
        );
        call.headers
            .extend(token.cloned().map(|token| (http::HeaderName::from_static("x-vault-token"), token)));
        Ok(self.client.send(call).await?)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v1/{}", self.address.prefix, utf8_percent_encode(path, PATH))
    }

    fn may_log_in_again(&self) -> bool {
        let mut last = self.logged_in_again.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|at| at.elapsed() >= LOGIN_AGAIN);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

/// Every answer to a read has an object of this name.
fn holds_data(answer: &Document) -> Result<(), StoreFault> {
    let object = answer.at(&["data"]).is_some_and(serde_json::Value::is_object);
    if object { Ok(()) } else { Err(StoreFault::Garbled("it holds no data")) }
}

#[cfg(test)]
mod tests;
