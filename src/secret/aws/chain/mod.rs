//! Where AWS keys come from when no secret holds them: what AWS calls the credential provider chain, over the guarded
//! client of the stores. No other program is run, no login of a person is used, and only the metadata addresses that AWS
//! documents are asked.
//!
//! ```yaml
//! credentials: chain                       # the first of these that is set up decides
//! credentials: { web_identity: {} }        # IRSA: a token file of the pod, exchanged at STS
//! credentials: { profile: { name: prod } } # ~/.aws/credentials, ~/.aws/config
//! credentials: { container: {} }           # ECS, EKS Pod Identity
//! credentials: { instance: {} }            # EC2, IMDSv2 alone
//! ```
//!
//! The chain: `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY`; web identity, if `AWS_WEB_IDENTITY_TOKEN_FILE` is set; the
//! profile, if its file is there; the container's, if one of its variables is set; the machine's, unless
//! `AWS_EC2_METADATA_DISABLED` is `true`. What is set up and fails is a failure: the next in line would be another identity.

mod metadata;
mod profile;
mod sts;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::target::{Scheme, Target};
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::{ClientSettings, HttpAnswer, HttpCall, HttpClient, Peers};
use crate::secret::reference::SecretRef;
use crate::secret::stores::file::FileStore;
use crate::secret::stores::server::{OwnSecrets, Plaintext, StoreAddress};
use crate::secret::value::ValueRules;
use crate::secret::{SecretBytes, StoreMistake};
use crate::upstream::UpstreamEnv;
use crate::upstream::guard::AddressRules;

/// Bound of connecting. Metadata services are near; where there is none, packets vanish.
const CONNECT: Duration = Duration::from_secs(1);
/// Bound of one exchange, its repeats included.
pub const TOTAL: Duration = Duration::from_secs(4);

/// Where the keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChainConfig {
    /// The first of the sources below that is set up, the environment's own keys before them.
    Chain,
    /// A token file, exchanged at STS for the keys of a role (IRSA).
    WebIdentity(WebIdentity),
    /// The shared credentials file, or the config file.
    Profile(Profile),
    /// The endpoint of the container: ECS, EKS Pod Identity.
    Container(Container),
    /// The metadata of the machine, IMDSv2.
    Instance(Instance),
}

/// A token file, exchanged at STS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebIdentity {
    /// The role. Default: `AWS_ROLE_ARN`.
    pub role_arn: Option<String>,
    /// The file of the token. Default: `AWS_WEB_IDENTITY_TOKEN_FILE`.
    pub token_file: Option<String>,
    /// The name of the session in AWS's own logs. Default: `AWS_ROLE_SESSION_NAME`, or `outgate`.
    pub session_name: Option<String>,
    /// The region of STS. Default: `AWS_REGION`, or `AWS_DEFAULT_REGION`, or STS's global endpoint.
    pub region: Option<String>,
    /// STS itself, where it is another one: `https`, or `http` on loopback.
    pub endpoint: Option<StoreAddress>,
}

/// The shared files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name. Default: `AWS_PROFILE`, or `default`.
    pub name: Option<String>,
    /// The file. Default: `AWS_SHARED_CREDENTIALS_FILE`, or `~/.aws/credentials`; then `AWS_CONFIG_FILE`, or `~/.aws/config`.
    pub file: Option<String>,
}

/// The endpoint of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its URL. Default: `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` at 169.254.170.2, or
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub endpoint: Option<StoreAddress>,
    /// The file of what authorises at it. Default: `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, or the text of
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN`.
    pub token_file: Option<String>,
}

/// The metadata of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The role of the machine. Default: the one that it has.
    pub role: Option<String>,
    /// The metadata service. Default: `AWS_EC2_METADATA_SERVICE_ENDPOINT`, or `http://169.254.169.254`.
    pub endpoint: Option<StoreAddress>,
}

impl ChainConfig {
    /// A word for it, without anything secret: names its keys in logs.
    #[must_use]
    pub fn shown(&self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::WebIdentity(_) => "web_identity",
            Self::Profile(_) => "profile",
            Self::Container(_) => "container",
            Self::Instance(_) => "instance",
        }
    }

    /// What is wrong with it: the key, and what.
    #[must_use]
    pub fn mistakes(&self) -> Vec<StoreMistake> {
        let mut mistakes = Vec::new();
        let plain = |at: &StoreAddress| at.check_plaintext(Plaintext::Deny).is_some();
        match self {
            Self::WebIdentity(config) => {
                if config.endpoint.as_ref().is_some_and(plain) {
                    mistakes.push((
                        "web_identity.endpoint",
                        "`http` is for loopback alone: use https".to_owned(),
                    ));
                }
                if config.region.as_deref().is_some_and(|region| !is_region_text(region)) {
                    mistakes.push(("web_identity.region", "not a region such as `eu-west-1`".to_owned()));
                }
            }
            Self::Container(config) => {
                if config.endpoint.as_ref().is_some_and(|at| !metadata::may_ask(at)) {
                    mistakes.push(("container.endpoint", metadata::NOT_ALLOWED.to_owned()));
                }
            }
            Self::Instance(config) => {
                if config.endpoint.as_ref().is_some_and(|at| !metadata::may_ask(at)) {
                    mistakes.push(("instance.endpoint", metadata::NOT_ALLOWED.to_owned()));
                }
            }
            Self::Chain | Self::Profile(_) => {}
        }
        mistakes
    }
}

/// Whether a text has the characters of a region: also what stands in for one (`auto`).
#[must_use]
pub fn is_region_text(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(fits)
}

/// Keys as they were got.
pub struct Fetched {
    /// The keys.
    pub keys: Credentials,
    /// When they end; none where they do not say.
    pub ends: Option<SystemTime>,
}

/// Gets keys.
pub struct Chain {
    config: ChainConfig,
    upstream: Arc<UpstreamEnv>,
    own: OwnSecrets,
    files: FileStore,
    directory: PathBuf,
    clients: Mutex<Vec<KeptClient>>,
    /// Where failures are counted; by itself, each chain counts alone.
    peers: Arc<Peers>,
}

/// One for each way to ask.
struct KeptClient {
    scheme: Scheme,
    addresses: AddressRules,
    client: Arc<HttpClient>,
}

impl Chain {
    /// Relative paths start at `directory`.
    #[must_use]
    pub fn new(config: &ChainConfig, directory: &Path, upstream: &Arc<UpstreamEnv>) -> Self {
        Self {
            config: config.clone(),
            upstream: Arc::clone(upstream),
            own: OwnSecrets::new(directory),
            files: FileStore::new(directory),
            directory: directory.to_owned(),
            clients: Mutex::default(),
            peers: Arc::default(),
        }
    }

    /// The same, which counts failures together with all others of `peers`.
    #[must_use]
    pub fn counting_in(self, peers: &Arc<Peers>) -> Self {
        Self { peers: Arc::clone(peers), ..self }
    }

    /// Gets keys; each call asks anew. Takes at most four times [`TOTAL`]. The future may be dropped.
    ///
    /// # Errors
    /// [`StoreFault::Keys`] where nothing is set up; what went wrong at the source that is.
    pub async fn fetch(&self) -> Result<Fetched, StoreFault> {
        match &self.config {
            ChainConfig::Chain => self.first().await,
            ChainConfig::WebIdentity(config) => self.web_identity(config).await,
            ChainConfig::Profile(config) => {
                self.profile(config).await?.ok_or(StoreFault::Keys("the profile is in neither of its files"))
            }
            ChainConfig::Container(config) => self.container(config).await,
            ChainConfig::Instance(config) => self.instance(config).await,
        }
    }

    async fn first(&self) -> Result<Fetched, StoreFault> {
        if let Some(keys) = self.environment().await? {
            return Ok(Fetched { keys, ends: None });
        }
        if self.variable("AWS_WEB_IDENTITY_TOKEN_FILE").await?.is_some() {
            return self.web_identity(&WebIdentity::default()).await;
        }
        if let Some(found) = self.profile(&Profile::default()).await? {
            return Ok(found);
        }
        for name in ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"] {
            if self.variable(name).await?.is_some() {
                return self.container(&Container::default()).await;
            }
        }
        let disabled = self.variable("AWS_EC2_METADATA_DISABLED").await?;
        if disabled.is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return Err(StoreFault::Keys("no source of the chain is set up"));
        }
        self.instance(&Instance::default()).await
    }

    async fn environment(&self) -> Result<Option<Credentials>, StoreFault> {
        let id = self.variable("AWS_ACCESS_KEY_ID").await?;
        let secret = self.variable("AWS_SECRET_ACCESS_KEY").await?;
        let session = self.variable("AWS_SESSION_TOKEN").await?;
        Ok(match (id, secret) {
            (Some(id), Some(secret)) => {
                Some(super::keys(&id, &secret, session.as_ref().map(|text| &***text)))
            }
            _ => None,
        })
    }

    /// A variable of the environment; none where it is unset or empty.
    async fn variable(&self, name: &str) -> Result<Option<zeroize::Zeroizing<String>>, StoreFault> {
        let own = |error| StoreFault::Own(Box::new(error));
        let reference: SecretRef = format!("env:{name}").parse().map_err(own)?;
        match self.own.read(&reference, ValueRules::HeaderSafe).await {
            Ok(value) => {
                Ok(Some(zeroize::Zeroizing::new(String::from_utf8_lossy(value.expose()).into_owned())))
            }
            Err(StoreFault::Own(error))
                if matches!(*error, SecretError::NotFound { .. } | SecretError::Empty { .. }) =>
            {
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    /// A file's content. `what` names it in errors.
    async fn file(&self, path: &str, what: &str) -> Result<SecretBytes, StoreFault> {
        let named = SecretRef::made("aws", what, "file");
        let read = self.files.read_path(self.directory.join(path), &named).await;
        read.map_err(|error| StoreFault::Own(Box::new(error)))
    }

    async fn send(&self, call: HttpCall, addresses: AddressRules) -> Result<HttpAnswer, StoreFault> {
        let client = self.client(call.target.scheme, addresses)?;
        Ok(client.send(call).await?)
    }

    /// There are as many as sources have ways to ask: two schemes, two sets of addresses.
    fn client(&self, scheme: Scheme, addresses: AddressRules) -> Result<Arc<HttpClient>, StoreFault> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let known = clients.iter().find(|kept| kept.scheme == scheme && kept.addresses == addresses);
        if let Some(known) = known {
            return Ok(Arc::clone(&known.client));
        }
        let settings = ClientSettings {
            name: "aws.credentials".into(),
            scheme,
            ca: None,
            connect: CONNECT,
            total: TOTAL,
            addresses: addresses.clone(),
        };
        let client = HttpClient::new(settings, &self.upstream)
            .map_err(|_| StoreFault::Keys("TLS to their endpoint cannot be set up"))?;
        let client = Arc::new(client.counting_in(&self.peers));
        clients.push(KeptClient { scheme, addresses, client: Arc::clone(&client) });
        Ok(client)
    }
}

/// The address of an AWS endpoint that outgate knows itself.
fn known(url: &str) -> Result<StoreAddress, StoreFault> {
    url.parse().map_err(|_| StoreFault::Keys("the URL of their endpoint is not one"))
}

fn is_loopback(target: &Target) -> bool {
    target.host.ip().map_or(target.host.as_str() == "localhost", |ip| ip.is_loopback())
}

fn is_https(address: &StoreAddress) -> bool {
    address.target.scheme == Scheme::Https
}

#[cfg(test)]
mod tests;
