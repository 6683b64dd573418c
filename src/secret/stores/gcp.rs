//! `gcp_secret_manager`: Google Cloud Secret Manager, with the token of the metadata server (GCE, GKE workload identity,
//! Cloud Run).
//!
//! ```yaml
//! secrets:
//!   cloud: { gcp_secret_manager: { project: acme-prod } }
//! # then: bearer: cloud:stripe-key        (or cloud:stripe-key@5, cloud:other-project/stripe-key, cloud:app#stripe.key)
//! ```
//!
//! The service account needs `roles/secretmanager.secretAccessor` on the secrets. The newest version is read every five
//! minutes (`refresh`). Only this store's token client may reach the metadata server; nothing else of outgate can.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use super::bearer::{self, BearerApi};
use super::document::base64;
use super::field;
use super::server::{self, Plaintext, REFRESH, StoreAddress, StoreTimeouts, Token};
use crate::message::quantity::TimeSpan;
use crate::secret::config::{StoreEnv, StoreMistake};
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::{HttpCall, HttpClient};
use crate::secret::reference::SecretRef;
use crate::secret::{ReadFuture, SecretBytes, SecretStore, Source};

const API: &str = "https://secretmanager.googleapis.com";
const METADATA: &str = "http://metadata.google.internal";
const TOKEN_PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

/// Google Cloud Secret Manager.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GcpConfig {
    /// The project of references that name none.
    pub project: Option<String>,
    /// The API, where it is a regional one. Default: `https://secretmanager.googleapis.com`.
    pub address: Option<StoreAddress>,
    /// The metadata server. Default: `http://metadata.google.internal`.
    pub metadata: Option<StoreAddress>,
    /// PEM file of the authorities that are trusted in place of the system's.
    pub ca: Option<String>,
    /// How often a value is read again. Default: 5m.
    pub refresh: Option<TimeSpan>,
    /// Times of one read.
    pub timeouts: Option<StoreTimeouts>,
}

impl GcpConfig {
    pub(crate) fn mistakes(&self) -> Vec<StoreMistake> {
        let mut mistakes = server::check_times(&self.timeouts(), self.refresh);
        mistakes.extend(self.address.as_ref().and_then(|at| at.check_plaintext(Plaintext::Deny)));
        if self.project.as_deref().is_some_and(|project| !is_id(project)) {
            mistakes.push(("project", "not a project".to_owned()));
        }
        mistakes
    }

    fn timeouts(&self) -> StoreTimeouts {
        self.timeouts.clone().unwrap_or_default()
    }
}

/// Ids of projects (also of a domain, `example.com:id`), secrets and versions; they need no escaping in a path.
fn is_id(id: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    !id.is_empty() && id.bytes().all(fits) && id.bytes().any(|b| b != b'.')
}

/// Google Cloud Secret Manager.
pub struct GcpStore {
    api: BearerApi,
    address: StoreAddress,
    metadata: HttpClient,
    metadata_address: StoreAddress,
    project: Option<String>,
    refresh: Duration,
    patience: Duration,
}

impl GcpStore {
    pub(crate) fn new(
        name: &str,
        config: &GcpConfig,
        ca: Option<Arc<[u8]>>,
        env: &StoreEnv,
    ) -> Result<Self, String> {
        let or = |given: &Option<StoreAddress>, default: &str| match given {
            Some(address) => Ok(address.clone()),
            None => default.parse::<StoreAddress>().map_err(str::to_owned),
        };
        let (address, metadata_address) = (or(&config.address, API)?, or(&config.metadata, METADATA)?);
        let timeouts = config.timeouts();
        let client = server::client(name, address.target.scheme, ca, &timeouts, env)?;
        Ok(Self {
            api: BearerApi::new(client, address.target.clone()),
            metadata: server::metadata_client(name, metadata_address.target.scheme, &timeouts, env)?,
            address,
            metadata_address,
            project: config.project.clone(),
            refresh: config.refresh.map_or(REFRESH, TimeSpan::duration),
            patience: timeouts.total(),
        })
    }

    async fn read_now(&self, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        let path = self.path(reference).map_err(fault)?;
        let value = self.api.get(
            &path,
            || self.fetch(),
            |answer| {
                let data = answer.text(&["payload", "data"]);
                base64(data.ok_or(StoreFault::Garbled("it has no `payload.data`"))?.as_bytes())
            },
        );
        field::select(value.await.map_err(fault)?, reference)
    }

    fn path(&self, reference: &SecretRef) -> Result<String, StoreFault> {
        const FORM: StoreFault = StoreFault::Reference(
            "expected `<secret>` (with `project` in the store) or `<project>/<secret>`",
        );
        let parts: Vec<&str> = reference.path().split('/').collect();
        let (project, secret) = match (&*parts, self.project.as_deref()) {
            ([secret], Some(project)) => (project, *secret),
            ([project, secret] | ["projects", project, "secrets", secret], _) => (*project, *secret),
            _ => return Err(FORM),
        };
        if !is_id(project) || !is_id(secret) {
            return Err(FORM);
        }
        let version = reference.version().unwrap_or("latest");
        let prefix = &self.address.prefix;
        Ok(format!("{prefix}/v1/projects/{project}/secrets/{secret}/versions/{version}:access"))
    }

    async fn fetch(&self) -> Result<Token, StoreFault> {
        let path = format!("{}{TOKEN_PATH}", self.metadata_address.prefix);
        let mut call = HttpCall::get(&self.metadata_address.target, path);
        let google = HeaderValue::from_static("Google");
        call.headers.insert(HeaderName::from_static("metadata-flavor"), google);
        bearer::login(&self.metadata, call).await
    }
}

impl SecretStore for GcpStore {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move { self.read_now(reference).await.map(Into::into) })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Polled(self.refresh)
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::fake::{FakeServer, Reply, ok, pass, store_env};

    #[tokio::test]
    async fn versions_are_read_with_the_metadata_servers_token() {
        let server = FakeServer::start(|asked| match &*asked.line {
            "GET /computeMetadata/v1/instance/service-accounts/default/token"
                if asked.header("metadata-flavor") == "Google" =>
            {
                ok(r#"{"access_token":"CANARY-token","expires_in":3599,"token_type":"Bearer"}"#)
            }
            _ if asked.header("authorization") != "Bearer CANARY-token" => {
                Reply::Answer(401, "CANARY".into())
            }
            "GET /v1/projects/acme/secrets/stripe/versions/latest:access" => {
                ok(r#"{"name":"n","payload":{"data":"Q0FOQVJZ","dataCrc32c":"1"}}"#)
            }
            "GET /v1/projects/other/secrets/app/versions/5:access" => {
                // {"key":"CANARY"}
                ok(r#"{"payload":{"data":"eyJrZXkiOiJDQU5BUlkifQ=="}}"#)
            }
            "GET /v1/projects/acme/secrets/denied/versions/latest:access" => {
                Reply::Answer(403, "CANARY".into())
            }
            "GET /v1/projects/acme/secrets/odd/versions/latest:access" => ok(r#"{"payload":"CANARY"}"#),
            _ => Reply::Answer(404, "CANARY".into()),
        })
        .await;
        let settings = format!("project: acme\naddress: {0}\nmetadata: {0}", server.url);
        let config: GcpConfig = serde_yaml::from_str(&settings).unwrap();
        assert!(config.mistakes().is_empty());
        let store = GcpStore::new("g", &config, None, &store_env(std::path::Path::new("/"))).unwrap();
        let read = async |reference: &str| match store.read(&reference.parse().unwrap()).await {
            Ok(reading) => String::from_utf8(reading.bytes.to_vec()).unwrap(),
            Err(error) => {
                assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
                error.code().to_owned()
            }
        };
        let table = [
            ("g:stripe", "CANARY"),
            ("g:acme/stripe", "CANARY"),
            ("g:projects/acme/secrets/stripe", "CANARY"),
            ("g:other/app#key@5", "CANARY"),
            ("g:denied", "store_denied"),
            ("g:odd", "store_garbled"),
            ("g:none", "not_found"),
            ("g:a/b/c", "bad_reference"),
            ("g:../x", "bad_reference"),
            ("g:a?b", "bad_reference"),
        ];
        for (reference, expected) in table {
            assert_eq!(read(reference).await, expected, "{reference}");
        }
        let logins =
            |lines: Vec<String>| lines.iter().filter(|line| line.contains("computeMetadata")).count();
        assert_eq!(logins(server.lines()), 1);
        pass(Duration::from_secs(2500)).await;
        assert_eq!(read("g:stripe").await, "CANARY");
        assert_eq!(logins(server.lines()), 1, "at two thirds of its life");
    }

    /// Twelve, of which each finds out for itself that the token was revoked, long after anything was good.
    #[tokio::test]
    async fn all_who_meet_a_revoked_token_read_with_the_next_one() {
        let gate = Arc::new(tokio::sync::Semaphore::new(1));
        let logins = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (opened, count) = (gate.clone(), logins.clone());
        let server = FakeServer::start(move |asked| {
            if asked.line.contains("computeMetadata") {
                let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let body = format!(r#"{{"access_token":"t{number}","expires_in":3599}}"#);
                return Reply::Later(opened.clone(), 200, body);
            }
            let last = count.load(std::sync::atomic::Ordering::SeqCst) - 1;
            match asked.header("authorization") == format!("Bearer t{last}") {
                true => ok(r#"{"payload":{"data":"Q0FOQVJZ"}}"#),
                false => Reply::Answer(401, "CANARY".into()),
            }
        })
        .await;
        let settings = format!("project: acme\naddress: {0}\nmetadata: {0}", server.url);
        let config: GcpConfig = serde_yaml::from_str(&settings).unwrap();
        let store = GcpStore::new("g", &config, None, &store_env(std::path::Path::new("/"))).unwrap();
        let read = async |number: usize| {
            let reference = format!("g:s{number}").parse().unwrap();
            store.read(&reference).await.map(|reading| reading.bytes.to_vec())
        };
        assert!(read(0).await.is_ok());
        pass(Duration::from_secs(61)).await;
        // From now on the server takes the token of the next login alone.
        logins.store(2, std::sync::atomic::Ordering::SeqCst);
        server.lines();
        let open = async {
            while server.asked().iter().filter(|asked| asked.line.contains("/secrets/")).count() < 10 {
                tokio::task::yield_now().await;
            }
            gate.add_permits(12);
        };
        let (all, ()) = tokio::join!(futures_util::future::join_all((0..12).map(read)), open);
        for read in all {
            assert_eq!(read.unwrap_or_else(|error| panic!("{error}")), b"CANARY");
        }
        let lines = server.lines();
        assert_eq!(lines.iter().filter(|line| line.contains("computeMetadata")).count(), 1);
    }
}
