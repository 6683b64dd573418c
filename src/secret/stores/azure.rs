//! `azure_key_vault`: secrets of Azure Key Vault, with a managed identity, a workload identity (AKS), or a client secret.
//!
//! ```yaml
//! secrets:
//!   cloud: { azure_key_vault: { address: "https://acme.vault.azure.net", auth: { managed_identity: {} } } }
//! # then: bearer: cloud:stripe-key          (or cloud:stripe-key@<version>, cloud:app#stripe.key)
//! ```
//!
//! The identity needs the role *Key Vault Secrets User*. The newest version is read every five minutes (`refresh`). What
//! Azure's 401 challenge would tell, the tenant and the audience, is configuration here: an answer does not decide where
//! a credential goes.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::bearer::{self, BearerApi};
use super::field;
use super::server::{self, OwnSecrets, Plaintext, REFRESH, StoreAddress, StoreTimeouts, Token, check_own};
use crate::message::quantity::TimeSpan;
use crate::secret::config::{StoreEnv, StoreMistake};
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::form::Form;
use crate::secret::http::{HttpCall, HttpClient};
use crate::secret::reference::{FILE, SecretRef};
use crate::secret::value::ValueRules;
use crate::secret::{ReadFuture, SecretBytes, SecretStore, Source};

const METADATA: &str = "http://169.254.169.254";
const AUTHORITY: &str = "https://login.microsoftonline.com";
const RESOURCE: &str = "https://vault.azure.net";
const API_VERSION: &str = "7.4";
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Where AKS puts the token of a workload identity.
const FEDERATED_TOKEN: &str = "/var/run/secrets/azure/tokens/azure-identity-token";

/// Azure Key Vault.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AzureConfig {
    /// The vault: `https://<name>.vault.azure.net`.
    pub address: StoreAddress,
    /// How outgate logs in.
    pub auth: AzureAuth,
    /// The audience of the token, which other clouds have another of. Default: `https://vault.azure.net`.
    pub resource: Option<String>,
    /// The metadata server. Default: `http://169.254.169.254`.
    pub metadata: Option<StoreAddress>,
    /// The login service. Default: `https://login.microsoftonline.com`.
    pub authority: Option<StoreAddress>,
    /// PEM file of the authorities that are trusted in place of the system's.
    pub ca: Option<String>,
    /// How often a value is read again. Default: 5m.
    pub refresh: Option<TimeSpan>,
    /// Times of one read.
    pub timeouts: Option<StoreTimeouts>,
}

/// How outgate logs in at Azure: one of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AzureAuth {
    /// The identity of the machine.
    ManagedIdentity(ManagedIdentity),
    /// The identity of the pod, by its federated token.
    WorkloadIdentity(WorkloadIdentity),
    /// An app registration with a secret.
    ClientSecret(ClientSecret),
}

/// The identity of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ManagedIdentity {
    /// Which one, where the machine has several.
    pub client_id: Option<String>,
}

/// The identity of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadIdentity {
    /// The tenant.
    pub tenant: String,
    /// The client id.
    pub client_id: String,
    /// The file of the federated token. Default: `/var/run/secrets/azure/tokens/azure-identity-token`.
    pub token_file: Option<String>,
}

/// An app registration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientSecret {
    /// The tenant.
    pub tenant: String,
    /// The client id.
    pub client_id: String,
    /// The client secret: `env:` or `file:`.
    pub client_secret: SecretRef,
}

impl AzureConfig {
    pub(crate) fn mistakes(&self) -> Vec<StoreMistake> {
        let mut mistakes = server::check_times(&self.timeouts(), self.refresh);
        mistakes.extend(self.address.check_plaintext(Plaintext::Deny));
        let authority = self.authority.as_ref().and_then(|at| at.check_plaintext(Plaintext::Deny));
        mistakes.extend(authority.map(|(_, text)| ("authority", text)));
        let tenant = match &self.auth {
            AzureAuth::ManagedIdentity(_) => None,
            AzureAuth::WorkloadIdentity(auth) => Some(("auth.workload_identity.tenant", &auth.tenant)),
            AzureAuth::ClientSecret(auth) => {
                mistakes.extend(check_own("auth.client_secret.client_secret", &auth.client_secret));
                Some(("auth.client_secret.tenant", &auth.tenant))
            }
        };
        let tenant = tenant.filter(|(_, tenant)| !is_name(tenant));
        mistakes.extend(tenant.map(|(key, _)| (key, "not a tenant".to_owned())));
        mistakes
    }

    fn timeouts(&self) -> StoreTimeouts {
        self.timeouts.clone().unwrap_or_default()
    }

    fn resource(&self) -> &str {
        self.resource.as_deref().unwrap_or(RESOURCE)
    }
}

/// Names of secrets, versions and tenants; they need no escaping in a path.
fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    !name.is_empty() && name.bytes().all(fits) && name.bytes().any(|b| b != b'.')
}

/// An Azure Key Vault.
pub struct AzureStore {
    config: AzureConfig,
    vault: BearerApi,
    login: HttpClient,
    login_address: StoreAddress,
    own: OwnSecrets,
}

impl AzureStore {
    pub(crate) fn new(
        name: &str,
        config: &AzureConfig,
        ca: Option<Arc<[u8]>>,
        env: &StoreEnv,
    ) -> Result<Self, String> {
        let timeouts = config.timeouts();
        let (given, default) = match &config.auth {
            AzureAuth::ManagedIdentity(_) => (&config.metadata, METADATA),
            AzureAuth::WorkloadIdentity(_) | AzureAuth::ClientSecret(_) => (&config.authority, AUTHORITY),
        };
        let login_address = match given {
            Some(address) => address.clone(),
            None => default.parse::<StoreAddress>().map_err(str::to_owned)?,
        };
        let scheme = login_address.target.scheme;
        let login = match &config.auth {
            AzureAuth::ManagedIdentity(_) => server::metadata_client(name, scheme, &timeouts, env)?,
            AzureAuth::WorkloadIdentity(_) | AzureAuth::ClientSecret(_) => {
                server::client(name, scheme, ca.clone(), &timeouts, env)?
            }
        };
        let target = config.address.target.clone();
        let vault = server::client(name, target.scheme, ca, &timeouts, env)?;
        Ok(Self {
            vault: BearerApi::new(vault, target),
            login,
            login_address,
            own: OwnSecrets::new(&env.directory),
            config: config.clone(),
        })
    }

    async fn read_now(&self, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        let (name, version) = (reference.path(), reference.version());
        if !is_name(name) || version.is_some_and(|version| !is_name(version)) {
            return Err(fault(StoreFault::Reference(
                "expected the name of a secret: letters, digits and `-`",
            )));
        }
        let version = version.map(|version| format!("/{version}")).unwrap_or_default();
        let prefix = &self.config.address.prefix;
        let path = format!("{prefix}/secrets/{name}{version}?api-version={API_VERSION}");
        let value = self.vault.get(
            &path,
            || self.fetch(),
            |answer| {
                let value = answer.text(&["value"]).ok_or(StoreFault::Garbled("it has no `value`"))?;
                Ok(Zeroizing::new(value.as_bytes().to_vec()))
            },
        );
        field::select(value.await.map_err(fault)?, reference)
    }

    async fn fetch(&self) -> Result<Token, StoreFault> {
        let call = self.login_call().await.map_err(|fault| StoreFault::Login(Box::new(fault)))?;
        bearer::login(&self.login, call).await
    }

    async fn login_call(&self) -> Result<HttpCall, StoreFault> {
        let scope = format!("{}/.default", self.config.resource());
        match &self.config.auth {
            AzureAuth::ManagedIdentity(identity) => Ok(self.metadata_call(identity)),
            AzureAuth::WorkloadIdentity(auth) => {
                let file = auth.token_file.as_deref().unwrap_or(FEDERATED_TOKEN);
                let reference = format!("{FILE}:{file}").parse::<SecretRef>();
                let reference = reference.map_err(|error| StoreFault::Own(Box::new(error)))?;
                let assertion = self.own.read(&reference, ValueRules::HeaderSafe).await?;
                let form = client(&auth.client_id, &scope)
                    .field("client_assertion_type", ASSERTION.as_bytes())
                    .field("client_assertion", assertion.expose());
                Ok(self.token_call(&auth.tenant, form))
            }
            AzureAuth::ClientSecret(auth) => {
                let secret = self.own.read(&auth.client_secret, ValueRules::HeaderSafe).await?;
                let form = client(&auth.client_id, &scope).field("client_secret", secret.expose());
                Ok(self.token_call(&auth.tenant, form))
            }
        }
    }

    fn metadata_call(&self, identity: &ManagedIdentity) -> HttpCall {
        let encoded = |text: &str| percent_encode(text.as_bytes(), NON_ALPHANUMERIC).to_string();
        let resource = encoded(self.config.resource());
        let prefix = &self.login_address.prefix;
        let mut path =
            format!("{prefix}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}");
        if let Some(id) = &identity.client_id {
            path = format!("{path}&client_id={}", encoded(id));
        }
        let mut call = HttpCall::get(&self.login_address.target, path);
        call.headers.insert(HeaderName::from_static("metadata"), HeaderValue::from_static("true"));
        call
    }

    fn token_call(&self, tenant: &str, form: Form) -> HttpCall {
        let path = format!("{}/{tenant}/oauth2/v2.0/token", self.login_address.prefix);
        form.call(&self.login_address.target, path)
    }
}

/// What both kinds of client ask with.
fn client(id: &str, scope: &str) -> Form {
    Form::grant("client_credentials").field("client_id", id.as_bytes()).field("scope", scope.as_bytes())
}

impl SecretStore for AzureStore {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move { self.read_now(reference).await.map(Into::into) })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Polled(self.config.refresh.map_or(REFRESH, TimeSpan::duration))
    }

    fn patience(&self) -> Duration {
        self.config.timeouts().total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::fake::{FakeServer, Reply, ok, store_env};

    const IMDS: &str = "GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault%2Eazure%2Enet";
    const FORM: &str =
        "grant_type=client_credentials&client_id=app&scope=https%3A%2F%2Fvault.azure.net%2F.default";

    async fn server() -> FakeServer {
        FakeServer::start(|asked| {
            let token = ok(r#"{"access_token":"CANARY-token","expires_in":"3599","token_type":"Bearer"}"#);
            match &*asked.line {
                IMDS if asked.header("metadata") == "true" => token,
                "POST /acme/oauth2/v2.0/token"
                    if asked.body == format!("{FORM}&client_secret=CANARY%2Bsecret")
                        || asked.body.starts_with(&format!("{FORM}&client_assertion_type=urn"))
                            && asked.body.ends_with("&client_assertion=CANARY%2Bsecret") =>
                {
                    token
                }
                _ if asked.header("authorization") != "Bearer CANARY-token" => Reply::With(
                    401,
                    "www-authenticate: Bearer authorization=\"https://evil.test/x\", resource=\"https://evil.test\"".to_owned(),
                    "CANARY".into(),
                ),
                "GET /secrets/stripe-key?api-version=7.4" => ok(r#"{"value":"CANARY","id":"x"}"#),
                "GET /secrets/stripe-key/abc?api-version=7.4" => ok(r#"{"value":"CANARY-old"}"#),
                "GET /secrets/odd?api-version=7.4" => ok(r#"{"value":["CANARY"]}"#),
                _ => Reply::Answer(404, "CANARY".into()),
            }
        })
        .await
    }

    #[tokio::test]
    async fn each_identity_logs_in_and_reads() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("secret"), "CANARY+secret\n").unwrap();
        for (auth, expected) in [
            ("{ managed_identity: {} }", "CANARY"),
            ("{ workload_identity: { tenant: acme, client_id: app, token_file: secret } }", "CANARY"),
            ("{ client_secret: { tenant: acme, client_id: app, client_secret: file:secret } }", "CANARY"),
            (
                "{ client_secret: { tenant: acme, client_id: wrong, client_secret: file:secret } }",
                "store_login",
            ),
            ("{ client_secret: { tenant: acme, client_id: app, client_secret: file:none } }", "store_login"),
            ("{ managed_identity: { client_id: other } }", "store_login"),
        ] {
            let server = server().await;
            let settings = format!("address: {0}\nmetadata: {0}\nauthority: {0}\nauth: {auth}", server.url);
            let config: AzureConfig = serde_yaml::from_str(&settings).unwrap();
            assert!(config.mistakes().is_empty(), "{:?}", config.mistakes());
            let store = AzureStore::new("a", &config, None, &store_env(directory.path())).unwrap();
            let read = async |reference: &str| match store.read(&reference.parse().unwrap()).await {
                Ok(reading) => String::from_utf8(reading.bytes.to_vec()).unwrap(),
                Err(error) => {
                    assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
                    error.code().to_owned()
                }
            };
            assert_eq!(read("a:stripe-key").await, expected, "{auth}");
            if expected == "CANARY" {
                assert_eq!(read("a:stripe-key@abc").await, "CANARY-old");
                assert_eq!(read("a:odd").await, "store_garbled");
                assert_eq!(read("a:none").await, "not_found");
                assert_eq!(read("a:x/y").await, "bad_reference");
            }
        }
    }
}
