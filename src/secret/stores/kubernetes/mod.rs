//! `kubernetes`: Secrets of the Kubernetes API, read with the pod's own token.
//!
//! ```yaml
//! secrets:
//!   cluster: { kubernetes: {} }
//! # then: bearer: cluster:payments/stripe#api-key     (namespace/name#key; the pod's own namespace where it is left out)
//! ```
//!
//! The service account needs `get` and `watch` on the secrets that are named. The token and the authorities are read from
//! the pod's files whenever they are wanted, since Kubernetes replaces them. Changes are told by a watch (`watch`); where
//! that is not allowed, and besides, a secret is asked for once a minute (`refresh`), which is about as fast as a mounted
//! secret follows. A mounted secret (`file:`) needs no permission at all.

mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::StatusCode;
use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use serde::Deserialize;

use super::document::{Document, base64};
use super::server::{self, OwnSecrets, Plaintext, StoreAddress, StoreTimeouts, secret_header};
use crate::message::quantity::TimeSpan;
use crate::secret::config::{StoreEnv, StoreMistake};
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::{HttpAnswer, HttpCall, HttpClient};
use crate::secret::reference::{FILE, SecretRef};
use crate::secret::value::ValueRules;
use crate::secret::{ReadFuture, SecretBytes, SecretStore, Source};

/// What Kubernetes puts into every pod.
const POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const REFRESH: Duration = Duration::from_secs(60);

/// Secrets of the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesConfig {
    /// The namespace of references that name none. Default: the pod's own.
    pub namespace: Option<String>,
    /// The API server. Default: `https://kubernetes.default.svc`.
    pub address: Option<StoreAddress>,
    /// PEM file of the authorities. Default: the pod's `ca.crt`.
    pub ca: Option<String>,
    /// `allow` lets secrets go over http to another host. Default: `deny`.
    pub plaintext: Option<Plaintext>,
    /// The file of the token. Default: the pod's `token`.
    pub token_file: Option<String>,
    /// How often a value is read again. Default: 1m.
    pub refresh: Option<TimeSpan>,
    /// Times of one read.
    pub timeouts: Option<StoreTimeouts>,
}

impl KubernetesConfig {
    pub(crate) fn mistakes(&self) -> Vec<StoreMistake> {
        let mut mistakes = server::check_times(&self.timeouts(), self.refresh);
        let address = self.address.as_ref();
        mistakes.extend(address.and_then(|at| at.check_plaintext(self.plaintext.unwrap_or_default())));
        if self.namespace.as_deref().is_some_and(|name| !is_name(name)) {
            mistakes.push(("namespace", "not the name of a namespace".to_owned()));
        }
        mistakes
    }

    fn timeouts(&self) -> StoreTimeouts {
        self.timeouts.clone().unwrap_or_default()
    }
}

/// A name of an object: RFC 1123 subdomain, which needs no escaping in a path.
fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    (1..=253).contains(&name.len())
        && name.bytes().all(fits)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Clients, and the pod's authorities that they were made with.
type Made = Option<(Option<Vec<u8>>, Arc<Clients>)>;

/// One client for what is short, one for what stays open.
struct Clients {
    reads: HttpClient,
    watches: HttpClient,
}

/// The API server of the cluster.
pub struct KubernetesStore {
    name: String,
    config: KubernetesConfig,
    address: StoreAddress,
    ca: Option<Arc<[u8]>>,
    env: StoreEnv,
    own: OwnSecrets,
    /// Made when it is first wanted: outside of a pod there are no authorities to make it with.
    client: Mutex<Made>,
}

impl KubernetesStore {
    pub(crate) fn new(
        name: &str,
        config: &KubernetesConfig,
        ca: Option<Arc<[u8]>>,
        env: &StoreEnv,
    ) -> Result<Self, String> {
        let address = match &config.address {
            Some(address) => address.clone(),
            None => "https://kubernetes.default.svc".parse().map_err(str::to_owned)?,
        };
        let env = StoreEnv { directory: env.directory.clone(), upstream: Arc::clone(&env.upstream) };
        let own = OwnSecrets::new(&env.directory);
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            address,
            ca,
            env,
            own,
            client: Mutex::default(),
        })
    }

    async fn read_now(&self, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        if reference.version().is_some() {
            return Err(fault(StoreFault::Reference("secrets of Kubernetes have no versions")));
        }
        let answer = self.ask(reference).await.map_err(fault)?;
        let read = match answer.status {
            StatusCode::OK => value(&answer.body, reference),
            StatusCode::NOT_FOUND => Err(fault(StoreFault::NotFound)),
            status => Err(fault(StoreFault::Status(status.as_u16()))),
        };
        if read.as_ref().err().is_none_or(|error| !error.blames_store()) {
            answer.verdict.works();
        }
        read
    }

    async fn ask(&self, reference: &SecretRef) -> Result<HttpAnswer, StoreFault> {
        let (namespace, name) = self.place(reference).await?;
        let call = self.call(format!("/api/v1/namespaces/{namespace}/secrets/{name}")).await?;
        Ok(self.clients().await?.reads.send(call).await?)
    }

    /// Namespace and name of a secret.
    async fn place<'a>(&self, reference: &'a SecretRef) -> Result<(String, &'a str), StoreFault> {
        let (namespace, name) = match reference.path().split_once('/') {
            Some((namespace, name)) => (namespace.to_owned(), name),
            None => (self.namespace().await?, reference.path()),
        };
        if !is_name(&namespace) || !is_name(name) {
            return Err(StoreFault::Reference("expected `<namespace>/<name>#<key>` or `<name>#<key>`"));
        }
        Ok((namespace, name))
    }

    /// A request of the API, with the pod's token.
    async fn call(&self, path: String) -> Result<HttpCall, StoreFault> {
        let token =
            self.pod_file(self.config.token_file.as_deref().unwrap_or(&format!("{POD}/token"))).await?;
        let mut call = HttpCall::get(&self.address.target, format!("{}{path}", self.address.prefix));
        call.headers.insert(AUTHORIZATION, secret_header(&[b"Bearer ", &token])?);
        Ok(call)
    }

    async fn namespace(&self) -> Result<String, StoreFault> {
        if let Some(namespace) = &self.config.namespace {
            return Ok(namespace.clone());
        }
        let bytes = self.pod_file(&format!("{POD}/namespace")).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn pod_file(&self, path: &str) -> Result<SecretBytes, StoreFault> {
        let reference = format!("{FILE}:{path}").parse::<SecretRef>();
        let reference = reference.map_err(|error| StoreFault::Own(Box::new(error)))?;
        let value = self.own.read(&reference, ValueRules::HeaderSafe).await?;
        Ok(SecretBytes::new(value.expose().to_vec()))
    }

    /// The clients; made anew when the pod's authorities are others.
    async fn clients(&self) -> Result<Arc<Clients>, StoreFault> {
        let pod_ca = match (&self.ca, self.address.target.scheme) {
            (None, crate::message::target::Scheme::Https) => Some(self.pod_ca().await?),
            _ => None,
        };
        let mut made = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((ca, client)) = &*made
            && *ca == pod_ca
        {
            return Ok(Arc::clone(client));
        }
        let ca = self.ca.clone().or_else(|| pod_ca.as_deref().map(Arc::from));
        let (scheme, timeouts) = (self.address.target.scheme, self.config.timeouts());
        let unusable = |_| StoreFault::Garbled("the authorities of the cluster (`ca.crt`) cannot be used");
        let reads = server::client(&self.name, scheme, ca.clone(), &timeouts, &self.env).map_err(unusable)?;
        let watches = server::watch_client(&self.name, scheme, ca, &timeouts, watch::MOST, &self.env);
        let clients = Arc::new(Clients { reads, watches: watches.map_err(unusable)? });
        *made = Some((pod_ca, Arc::clone(&clients)));
        Ok(clients)
    }

    async fn pod_ca(&self) -> Result<Vec<u8>, StoreFault> {
        let path = PathBuf::from(format!("{POD}/ca.crt"));
        let reference = format!("{FILE}:{}", path.display()).parse::<SecretRef>();
        let reference = reference.map_err(|error| StoreFault::Own(Box::new(error)))?;
        Ok(self.own.read(&reference, ValueRules::Any).await?.expose().to_vec())
    }
}

/// The key that is asked for, of a Secret.
fn value(secret: &[u8], reference: &SecretRef) -> Result<SecretBytes, SecretError> {
    let fault = |fault: StoreFault| SecretError::store(reference, fault);
    let encoded = Document::parse(secret).map_err(fault)?.field(&["data"], reference)?;
    base64(&encoded).map_err(fault)
}

impl SecretStore for KubernetesStore {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move { self.read_now(reference).await.map(Into::into) })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Polled(self.config.refresh.map_or(REFRESH, TimeSpan::duration))
    }

    fn patience(&self) -> Duration {
        self.config.timeouts().total()
    }

    fn watch<'a>(
        &'a self,
        references: &'a [SecretRef],
        changed: &'a (dyn Fn(&SecretRef) + Send + Sync),
    ) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(self.watch_all(references, changed)))
    }
}

#[cfg(test)]
mod tests;
