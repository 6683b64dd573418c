//! `aws_secrets_manager`: AWS Secrets Manager, or the Parameter Store of Systems Manager.
//!
//! ```yaml
//! secrets:
//!   cloud: { aws_secrets_manager: { region: eu-west-1 } }
//!   params: { aws_secrets_manager: { region: eu-west-1, api: parameter_store } }
//! # then: bearer: cloud:stripe#key       (or cloud:stripe#key@AWSPREVIOUS, params:/payments/stripe)
//! ```
//!
//! Every read is one POST that is signed with AWS's signature version 4. The keys come from `env:` or `file:`, by default
//! from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; they are read at each request, so files that
//! are replaced are seen. `auth` takes keys from where AWS gives them to a pod, a container or a machine
//! ([`ChainConfig`]); they are kept for four fifths of their life.
//!
//! Needed: `secretsmanager:GetSecretValue` on the secrets, or `ssm:GetParameter` on the parameters, and `kms:Decrypt` where
//! a key of the customer is used. The newest value is read every five minutes (`refresh`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::document::{Document, base64};
use super::field;
use super::server::{self, OwnSecrets, Plaintext, REFRESH, StoreAddress, StoreTimeouts, check_own};
use crate::message::end::End;
use crate::message::quantity::TimeSpan;
use crate::secret::aws;
use crate::secret::aws::chain::{Chain, ChainConfig};
use crate::secret::aws::sign::{Rules, Scope, ToSign, sha256_hex, sign};
use crate::secret::config::{StoreEnv, StoreMistake};
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::{HttpCall, HttpClient};
use crate::secret::reference::SecretRef;
use crate::secret::value::{SecretValue, ValueRules};
use crate::secret::{ReadFuture, SecretBytes, SecretStore, Source};

/// AWS Secrets Manager, or the Parameter Store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsConfig {
    /// The region, such as `eu-west-1`.
    pub region: String,
    /// `secrets_manager` or `parameter_store`. Default: `secrets_manager`.
    pub api: Option<AwsApi>,
    /// The keys. Default: the variables that AWS's own tools read.
    pub credentials: Option<AwsKeys>,
    /// In place of `credentials`: where AWS gives keys to a pod, a container or a machine: `chain`, or
    /// `{ web_identity: {} }`, `{ container: {} }`, `{ instance: {} }`, `{ profile: {} }`.
    pub auth: Option<ChainConfig>,
    /// The endpoint, where it is another one. Default: that of the region.
    pub address: Option<StoreAddress>,
    /// PEM file of the authorities that are trusted in place of the system's.
    pub ca: Option<String>,
    /// How often a value is read again. Default: 5m.
    pub refresh: Option<TimeSpan>,
    /// Times of one read.
    pub timeouts: Option<StoreTimeouts>,
}

/// Which of AWS's APIs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AwsApi {
    /// Secrets Manager.
    #[default]
    SecretsManager,
    /// Parameter Store.
    ParameterStore,
}

/// Keys of AWS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsKeys {
    /// `env:` or `file:`.
    pub access_key_id: SecretRef,
    /// `env:` or `file:`.
    pub secret_access_key: SecretRef,
    /// `env:` or `file:`; of keys that live for some hours.
    pub session_token: Option<SecretRef>,
}

impl AwsApi {
    /// Name of the service in host name and signature.
    fn service(self) -> &'static str {
        match self {
            Self::SecretsManager => "secretsmanager",
            Self::ParameterStore => "ssm",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Self::SecretsManager => "secretsmanager.GetSecretValue",
            Self::ParameterStore => "AmazonSSM.GetParameter",
        }
    }

    fn question(self, reference: &SecretRef) -> serde_json::Value {
        let path = reference.path();
        match (self, reference.version()) {
            (Self::SecretsManager, None) => serde_json::json!({ "SecretId": path }),
            // Ids are UUIDs; stages are words such as AWSPREVIOUS.
            (Self::SecretsManager, Some(id)) if id.len() >= 32 => {
                serde_json::json!({ "SecretId": path, "VersionId": id })
            }
            (Self::SecretsManager, Some(stage)) => {
                serde_json::json!({ "SecretId": path, "VersionStage": stage })
            }
            (Self::ParameterStore, None) => serde_json::json!({ "Name": path, "WithDecryption": true }),
            (Self::ParameterStore, Some(version)) => {
                serde_json::json!({ "Name": format!("{path}:{version}"), "WithDecryption": true })
            }
        }
    }

    fn value(self, answer: &Document) -> Result<SecretBytes, StoreFault> {
        let text = match self {
            Self::SecretsManager => answer.text(&["SecretString"]),
            Self::ParameterStore => answer.text(&["Parameter", "Value"]),
        };
        match (text, answer.text(&["SecretBinary"])) {
            (Some(text), _) => Ok(Zeroizing::new(text.as_bytes().to_vec())),
            (None, Some(binary)) => base64(binary.as_bytes()),
            (None, None) => Err(StoreFault::Garbled("it holds no value")),
        }
    }
}

impl AwsConfig {
    pub(crate) fn mistakes(&self) -> Vec<StoreMistake> {
        let mut mistakes = server::check_times(&self.timeouts(), self.refresh);
        mistakes.extend(self.address.as_ref().and_then(|at| at.check_plaintext(Plaintext::Deny)));
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if self.region.is_empty() || !self.region.bytes().all(fits) {
            mistakes.push(("region", "not a region such as `eu-west-1`".to_owned()));
        }
        if self.auth.is_some() && self.credentials.is_some() {
            mistakes.push((
                "auth",
                "`auth` and `credentials` are two ways to say one thing: leave one".to_owned(),
            ));
        }
        let chain = self.auth.iter().flat_map(ChainConfig::mistakes);
        mistakes.extend(chain.map(|(key, what)| ("auth", format!("`{key}`: {what}"))));
        if let Some(keys) = &self.credentials {
            mistakes.extend(check_own("credentials.access_key_id", &keys.access_key_id));
            mistakes.extend(check_own("credentials.secret_access_key", &keys.secret_access_key));
            let token = keys.session_token.as_ref();
            mistakes.extend(token.and_then(|token| check_own("credentials.session_token", token)));
        }
        mistakes
    }

    fn timeouts(&self) -> StoreTimeouts {
        self.timeouts.clone().unwrap_or_default()
    }
}

/// AWS Secrets Manager, or the Parameter Store.
pub struct AwsStore {
    config: AwsConfig,
    address: StoreAddress,
    client: HttpClient,
    own: OwnSecrets,
    fetched: Option<FetchedKeys>,
}

/// Keys of `auth`: got when they are first wanted and again at four fifths of their life, by one caller at a time. Where
/// others cannot be got, the old ones are used to their end.
struct FetchedKeys {
    chain: Chain,
    held: Mutex<Held>,
    turn: Semaphore,
}

#[derive(Default)]
struct Held {
    keys: Option<HeldKeys>,
    /// The last failure, until keys are got again.
    failed: Option<(StoreFault, Instant)>,
}

struct HeldKeys {
    keys: Credentials,
    /// From when on others are wanted.
    due: End,
    ends: End,
}

/// How long keys are kept that do not say when they end: a profile's.
const KEPT: Duration = Duration::from_secs(300);
/// How long their source is left alone after it failed: each time it is asked up to three times, so ten times a minute at most.
const KEYS_PAUSE: Duration = Duration::from_secs(20);

impl FetchedKeys {
    fn new(config: &ChainConfig, env: &StoreEnv) -> Self {
        let chain = Chain::new(config, &env.directory, &env.upstream);
        Self { chain, held: Mutex::default(), turn: Semaphore::new(1) }
    }

    async fn get(&self) -> Result<Credentials, StoreFault> {
        if let Some(known) = self.known() {
            return known;
        }
        let Ok(_turn) = self.turn.acquire().await else {
            return Err(StoreFault::Keys("the store was closed"));
        };
        if let Some(known) = self.known() {
            return known;
        }
        match self.chain.fetch().await {
            Ok(fetched) => {
                let life = fetched.ends.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
                let (now, life) = (Instant::now(), life.unwrap_or(KEPT.mul_f64(1.25)));
                let (due, ends) = (End::at(now + life.mul_f64(0.8)), End::at(now + life));
                let keys = HeldKeys { keys: fetched.keys.clone(), due, ends };
                *self.lock() = Held { keys: Some(keys), failed: None };
                Ok(fetched.keys)
            }
            Err(fault) => {
                self.lock().failed = Some((fault.clone(), Instant::now()));
                self.known().unwrap_or(Err(fault))
            }
        }
    }

    /// What there is to say without asking.
    fn known(&self) -> Option<Result<Credentials, StoreFault>> {
        let held = self.lock();
        let failed = held.failed.as_ref().filter(|(_, at)| at.elapsed() < KEYS_PAUSE);
        let until = |keys: &HeldKeys| if failed.is_some() { keys.ends } else { keys.due };
        match held.keys.as_ref().filter(|keys| !until(keys).has_come()) {
            Some(keys) => Some(Ok(keys.keys.clone())),
            None => failed.map(|(fault, _)| Err(fault.clone())),
        }
    }

    /// They were refused: the next read gets others.
    fn drop_held(&self) {
        self.lock().keys = None;
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AwsStore {
    pub(crate) fn new(
        name: &str,
        config: &AwsConfig,
        ca: Option<Arc<[u8]>>,
        env: &StoreEnv,
    ) -> Result<Self, String> {
        let address = match &config.address {
            Some(address) => address.clone(),
            None => {
                endpoint(&config.region, config.api.unwrap_or_default()).parse().map_err(str::to_owned)?
            }
        };
        let client = server::client(name, address.target.scheme, ca, &config.timeouts(), env)?;
        let fetched = config.auth.as_ref().map(|chain| FetchedKeys::new(chain, env));
        Ok(Self { config: config.clone(), address, client, own: OwnSecrets::new(&env.directory), fetched })
    }

    async fn read_now(&self, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        field::select(self.ask(reference).await.map_err(fault)?, reference)
    }

    async fn ask(&self, reference: &SecretRef) -> Result<SecretBytes, StoreFault> {
        let api = self.config.api.unwrap_or_default();
        let keys = self.keys().await.map_err(|fault| StoreFault::Login(Box::new(fault)))?;
        let body = Zeroizing::new(api.question(reference).to_string().into_bytes());
        // It reads and changes nothing, so it may be repeated.
        let mut call = HttpCall::login(&self.address.target, format!("{}/", self.address.prefix), body);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
        call.headers.insert("x-amz-target", HeaderValue::from_static(api.action()));
        let signature = signature(&call, &keys, &self.config.region, api.service(), SystemTime::now())?;
        call.headers.extend(signature);
        // Every question has the same path.
        call.subject = Some(reference.path().to_owned());
        let answer = self.client.send(call).await?;
        let document = Document::parse(&answer.body);
        if answer.status == StatusCode::OK {
            let value = api.value(&document?)?;
            answer.verdict.works();
            return Ok(value);
        }
        let kind = document.as_ref().ok().and_then(|document| document.text(&["__type"])).unwrap_or_default();
        // Some services write a namespace before the name: `com.amazon...#AccessDeniedException`.
        let kind = kind.rsplit('#').next().unwrap_or_default();
        if OF_THE_SECRET.contains(&kind) {
            answer.verdict.works();
        }
        let fault = refusal(kind, answer.status);
        if let (StoreFault::Login(_), Some(fetched)) = (&fault, &self.fetched) {
            fetched.drop_held();
        }
        Err(fault)
    }

    async fn keys(&self) -> Result<Credentials, StoreFault> {
        if let Some(fetched) = &self.fetched {
            return fetched.get().await;
        }
        let keys = match &self.config.credentials {
            Some(keys) => keys.clone(),
            None => usual_keys().map_err(|error| StoreFault::Own(Box::new(error)))?,
        };
        let id = self.own.read(&keys.access_key_id, ValueRules::HeaderSafe).await?;
        let secret = self.own.read(&keys.secret_access_key, ValueRules::HeaderSafe).await?;
        let token = match &keys.session_token {
            Some(reference) => match self.own.read(reference, ValueRules::HeaderSafe).await {
                Ok(token) => Some(token),
                // Long-lived keys have none; one that was asked for by name must be there.
                Err(_) if self.config.credentials.is_none() => None,
                Err(fault) => return Err(fault),
            },
            None => None,
        };
        let text = |value: &SecretValue| Zeroizing::new(String::from_utf8_lossy(value.expose()).into_owned());
        let token = token.as_ref().map(text);
        Ok(aws::keys(&text(&id), &text(&secret), token.as_ref().map(|token| token.as_str())))
    }
}

fn endpoint(region: &str, api: AwsApi) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://{}.{region}.{domain}", api.service())
}

fn usual_keys() -> Result<AwsKeys, SecretError> {
    Ok(AwsKeys {
        access_key_id: "env:AWS_ACCESS_KEY_ID".parse()?,
        secret_access_key: "env:AWS_SECRET_ACCESS_KEY".parse()?,
        session_token: Some("env:AWS_SESSION_TOKEN".parse()?),
    })
}

/// Errors that say something of one secret, or of how it was asked for. A denied access is none of them: it may be that of
/// all of them.
/// <https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html#API_GetSecretValue_Errors>
const OF_THE_SECRET: [&str; 9] = [
    "ResourceNotFoundException",
    "ParameterNotFound",
    "ParameterVersionNotFound",
    "InvalidParameterException",
    "InvalidRequestException",
    "ValidationException",
    "DecryptionFailure",
    "InvalidKeyId",
    "InvalidParameters",
];

/// What an error of the API means; its message is not looked at.
fn refusal(kind: &str, status: StatusCode) -> StoreFault {
    match kind {
        "ResourceNotFoundException" | "ParameterNotFound" | "ParameterVersionNotFound" => {
            StoreFault::NotFound
        }
        "AccessDeniedException" | "AccessDenied" => StoreFault::Status(403),
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationTokenException" => {
            StoreFault::Login(Box::new(StoreFault::Status(status.as_u16())))
        }
        _ => StoreFault::Status(status.as_u16()),
    }
}

/// The fields that sign a request.
fn signature(
    call: &HttpCall,
    keys: &Credentials,
    region: &str,
    service: &str,
    now: SystemTime,
) -> Result<HeaderMap, StoreFault> {
    let headers = call.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let request = ToSign {
        method: call.method.as_str(),
        host: &call.target.host_header(),
        path_and_query: &call.path,
        headers: headers.collect(),
        payload: &sha256_hex(&call.body),
        rules: Rules::Plain,
    };
    let scope = Scope { region: region.into(), service: service.into() };
    let signed = sign(&request, keys, &scope, now);
    let signed = signed.map_err(|_| StoreFault::Garbled("the request could not be signed"))?;
    Ok(signed.headers.into_iter().collect())
}

impl SecretStore for AwsStore {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move { self.read_now(reference).await.map(Into::into) })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Polled(self.config.refresh.map_or(REFRESH, TimeSpan::duration))
    }

    fn patience(&self) -> Duration {
        let keys = if self.fetched.is_some() { aws::chain::TOTAL } else { Duration::ZERO };
        self.config.timeouts().total() + keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::fake::{Asked, FakeServer, Reply, ok, store_env};

    /// Whether the request is signed as the documents say, worked out from what arrived.
    fn is_signed(asked: &Asked, service: &str) -> bool {
        let hmac = |key: &[u8], text: &str| {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
            aws_lc_rs::hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let sha =
            |text: &str| hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref());
        let authorization = asked.header("authorization");
        let between = |from: &str, to: &str| {
            let (_, rest) = authorization.split_once(from)?;
            Some(rest.split(to).next()?.to_owned())
        };
        let (Some(names), Some(signature)) = (between("SignedHeaders=", ","), between("Signature=", ","))
        else {
            return false;
        };
        let date = asked.header("x-amz-date");
        let Some(day) = date.get(..8) else { return false };
        let scope = format!("{day}/eu-west-1/{service}/aws4_request");
        let fields: String =
            names.split(';').map(|name| format!("{name}:{}\n", asked.header(name))).collect();
        let canonical = format!("POST\n/\n\n{fields}\n{names}\n{}", sha(&asked.body));
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha(&canonical));
        let key = ["eu-west-1", service, "aws4_request"]
            .iter()
            .fold(hmac(b"AWS4CANARY-secret", day), |key, part| hmac(&key, part));
        authorization.contains(&format!("Credential=AKIDEXAMPLE/{scope}"))
            && ["host", "x-amz-date", "x-amz-target", "x-amz-security-token"]
                .iter()
                .all(|name| names.contains(name))
            && hex(&hmac(&key, &text)) == signature
    }

    fn answer(asked: &Asked) -> Reply {
        let error = |status, kind: &str| {
            Reply::Answer(status, format!(r#"{{"__type":"{kind}","Message":"CANARY"}}"#))
        };
        let service =
            if asked.header("x-amz-target").starts_with("AmazonSSM") { "ssm" } else { "secretsmanager" };
        if !is_signed(asked, service) || asked.header("x-amz-security-token") != "CANARY-session" {
            return error(400, "com.amazonaws#InvalidSignatureException");
        }
        match (asked.header("x-amz-target"), &*asked.body) {
            ("secretsmanager.GetSecretValue", r#"{"SecretId":"stripe"}"#) => {
                ok(r#"{"SecretString":"{\"key\":\"CANARY\"}"}"#)
            }
            ("secretsmanager.GetSecretValue", r#"{"SecretId":"stripe","VersionStage":"AWSPREVIOUS"}"#) => {
                ok(r#"{"SecretString":"CANARY-old"}"#)
            }
            (
                "secretsmanager.GetSecretValue",
                r#"{"SecretId":"stripe","VersionId":"01234567-89ab-cdef-0123-456789abcdef"}"#,
            ) => ok(r#"{"SecretString":"CANARY-id"}"#),
            ("secretsmanager.GetSecretValue", r#"{"SecretId":"binary"}"#) => {
                ok(r#"{"SecretBinary":"Q0FOQVJZ"}"#)
            }
            ("secretsmanager.GetSecretValue", r#"{"SecretId":"odd"}"#) => ok(r#"{"CANARY":"CANARY"}"#),
            ("secretsmanager.GetSecretValue", r#"{"SecretId":"denied"}"#) => {
                error(400, "AccessDeniedException")
            }
            ("AmazonSSM.GetParameter", r#"{"Name":"/payments/stripe","WithDecryption":true}"#) => {
                ok(r#"{"Parameter":{"Value":"CANARY"}}"#)
            }
            ("AmazonSSM.GetParameter", r#"{"Name":"/payments/stripe:3","WithDecryption":true}"#) => {
                ok(r#"{"Parameter":{"Value":"CANARY-3"}}"#)
            }
            ("AmazonSSM.GetParameter", _) => error(400, "ParameterNotFound"),
            _ => error(400, "ResourceNotFoundException"),
        }
    }

    #[tokio::test]
    async fn values_are_read_with_a_signature_that_holds() {
        let server = FakeServer::start(answer).await;
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("id", "AKIDEXAMPLE\n"),
            ("secret", "CANARY-secret\n"),
            ("token", "CANARY-session"),
            ("wrong", "CANARY-wrong"),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let store = |api: &str, secret: &str| {
            let settings = format!(
                "region: eu-west-1\napi: {api}\naddress: {}\ncredentials: {{ access_key_id: file:id, secret_access_key: file:{secret}, session_token: file:token }}",
                server.url
            );
            let config: AwsConfig = serde_yaml::from_str(&settings).unwrap();
            assert!(config.mistakes().is_empty(), "{:?}", config.mistakes());
            AwsStore::new("a", &config, None, &store_env(directory.path())).unwrap()
        };
        let table = [
            ("secrets_manager", "secret", "a:stripe#key", "CANARY"),
            ("secrets_manager", "secret", "a:stripe@AWSPREVIOUS", "CANARY-old"),
            ("secrets_manager", "secret", "a:stripe@01234567-89ab-cdef-0123-456789abcdef", "CANARY-id"),
            ("secrets_manager", "secret", "a:binary", "CANARY"),
            ("secrets_manager", "secret", "a:odd", "store_garbled"),
            ("secrets_manager", "secret", "a:denied", "store_denied"),
            ("secrets_manager", "secret", "a:none", "not_found"),
            ("parameter_store", "secret", "a:/payments/stripe", "CANARY"),
            ("parameter_store", "secret", "a:/payments/stripe@3", "CANARY-3"),
            ("parameter_store", "secret", "a:/none", "not_found"),
            ("secrets_manager", "wrong", "a:stripe", "store_login"),
            ("secrets_manager", "none", "a:stripe", "store_login"),
        ];
        for (api, secret, reference, expected) in table {
            let got = match store(api, secret).read(&reference.parse().unwrap()).await {
                Ok(reading) => String::from_utf8(reading.bytes.to_vec()).unwrap(),
                Err(error) => {
                    assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
                    error.code().to_owned()
                }
            };
            assert_eq!(got, expected, "{api} {secret} {reference}");
        }
    }

    #[tokio::test]
    async fn keys_are_used_to_their_end_where_no_others_can_be_got() {
        let down = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let broken = Arc::clone(&down);
        let server = FakeServer::start(move |asked| match &*asked.line {
            "GET /keys" if broken.load(std::sync::atomic::Ordering::SeqCst) => Reply::Answer(500, "CANARY".into()),
            "GET /keys" => {
                let ends = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(1000));
                ok(format!(
                    r#"{{"AccessKeyId":"AKIDEXAMPLE","SecretAccessKey":"CANARY-secret","Token":"CANARY-session","Expiration":"{ends}"}}"#
                ))
            }
            _ => answer(asked),
        })
        .await;
        let settings = format!(
            "region: eu-west-1\naddress: {url}\nauth: {{ container: {{ endpoint: '{url}/keys' }} }}",
            url = server.url
        );
        let config: AwsConfig = serde_yaml::from_str(&settings).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let store = AwsStore::new("a", &config, None, &store_env(directory.path())).unwrap();
        let reference: SecretRef = "a:stripe#key".parse().unwrap();
        let read = async || store.read(&reference).await.is_ok();
        let asked = || server.lines().iter().filter(|line| *line == "GET /keys").count();
        assert!(read().await && read().await);
        assert_eq!(asked(), 1);
        down.store(true, std::sync::atomic::Ordering::SeqCst);
        crate::secret::fake::pass(Duration::from_secs(850)).await;
        for _ in 0..20 {
            assert!(read().await, "they live for another while");
        }
        assert!((1..=3).contains(&asked()), "and their source is left alone");
        crate::secret::fake::pass(Duration::from_secs(200)).await;
        for _ in 0..20 {
            assert!(!read().await, "never after their end");
        }
        assert!((1..=3).contains(&asked()));
        down.store(false, std::sync::atomic::Ordering::SeqCst);
        crate::secret::fake::pass(Duration::from_secs(61)).await;
        assert!(read().await);
    }

    #[test]
    fn endpoints_are_those_of_the_region() {
        assert_eq!(
            endpoint("eu-west-1", AwsApi::SecretsManager),
            "https://secretsmanager.eu-west-1.amazonaws.com"
        );
        assert_eq!(endpoint("cn-north-1", AwsApi::ParameterStore), "https://ssm.cn-north-1.amazonaws.com.cn");
    }
}
