//! Logging in at Vault, and keeping the token alive.
//!
//! A token is renewed at two thirds of its life. Where the server grants less than half of the former life (its maximum
//! is near), or refuses, outgate logs in anew. What it logs in with is read at every login: a file that an agent or
//! Kubernetes replaces is seen.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Server;
use crate::secret::SecretBytes;
use crate::secret::config::StoreMistake;
use crate::secret::error::StoreFault;
use crate::secret::http::HttpCall;
use crate::secret::reference::{ENV, FILE, SecretRef};
use crate::secret::stores::document::Document;
use crate::secret::stores::server::{OwnSecrets, Token, TokenSlot, check_own, secret_header};
use crate::secret::value::{SecretValue, ValueRules};

/// The token that Kubernetes gives to a pod.
pub const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Wait after a renewal that failed, and up to a quarter more.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// How outgate logs in at Vault: one of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VaultAuth {
    /// A token, such as the one that a Vault agent writes: `env:` or `file:`.
    Token(SecretRef),
    /// AppRole.
    AppRole(AppRoleAuth),
    /// The pod's own token.
    Kubernetes(KubernetesAuth),
    /// A JWT of any other issuer, from a file.
    Jwt(JwtAuth),
}

/// A login by AppRole.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AppRoleAuth {
    /// The role id: as it is, or as `env:` or `file:`.
    pub role_id: String,
    /// The secret id: `env:` or `file:`. Not needed where the role does not bind one.
    pub secret_id: Option<SecretRef>,
    /// Where AppRole is mounted. Default: `approle`.
    pub mount: Option<String>,
}

/// A login by the pod's token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesAuth {
    /// The role.
    pub role: String,
    /// Where the method is mounted. Default: `kubernetes`.
    pub mount: Option<String>,
    /// The file of the token. Default: `/var/run/secrets/kubernetes.io/serviceaccount/token`.
    pub token_file: Option<String>,
}

/// A login by a JWT.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtAuth {
    /// The role.
    pub role: String,
    /// Where the method is mounted. Default: `jwt`.
    pub mount: Option<String>,
    /// The file of the JWT.
    pub token_file: String,
}

impl VaultAuth {
    pub(super) fn mistakes(&self) -> Vec<StoreMistake> {
        let (mount, own) = match self {
            Self::Token(token) => (None, check_own("auth.token", token)),
            Self::AppRole(auth) => {
                let own = auth.secret_id.as_ref().and_then(|id| check_own("auth.app_role.secret_id", id));
                (auth.mount.as_deref().map(|mount| ("auth.app_role.mount", mount)), own)
            }
            Self::Kubernetes(auth) => {
                (auth.mount.as_deref().map(|mount| ("auth.kubernetes.mount", mount)), None)
            }
            Self::Jwt(auth) => (auth.mount.as_deref().map(|mount| ("auth.jwt.mount", mount)), None),
        };
        let mount = mount
            .filter(|(_, mount)| !super::config::is_path(mount))
            .map(|(key, _)| (key, "expected a path such as `approle`, without slashes around it".to_owned()));
        own.into_iter().chain(mount).collect()
    }
}

/// The login of one store.
pub(super) struct VaultLogin {
    auth: VaultAuth,
    own: OwnSecrets,
    slot: TokenSlot,
    /// Logins so far: what a former token had leased ends with that token.
    logins: AtomicU64,
    /// Not before then is the token renewed in the background; set by a renewal that failed.
    not_before: Mutex<Option<Instant>>,
}

impl VaultLogin {
    pub(super) fn new(auth: &VaultAuth, directory: &Path) -> Self {
        Self {
            auth: auth.clone(),
            own: OwnSecrets::new(directory),
            slot: TokenSlot::default(),
            logins: AtomicU64::new(0),
            not_before: Mutex::default(),
        }
    }

    /// The token to send.
    pub(super) async fn token(&self, server: &Server) -> Result<Arc<Token>, StoreFault> {
        self.slot.get(|old| self.fetch(server, old)).await
    }

    /// The server does not take it any more.
    pub(super) fn forget(&self, token: &Arc<Token>) {
        self.slot.forget(token);
    }

    /// Whether the server still takes the token, which a 403 for one path does not tell. A login that is not needed would
    /// end the leases.
    pub(super) async fn is_accepted(&self, server: &Server, token: &Token) -> bool {
        let call = HttpCall::get(&server.address.target, server.url("auth/token/lookup-self"));
        match server.send(call, Some(&token.header)).await {
            Ok(answer) => {
                let accepted = answer.status != StatusCode::FORBIDDEN;
                if accepted {
                    answer.verdict.aside();
                }
                accepted
            }
            // Who does not answer has not refused it either.
            Err(_) => true,
        }
    }

    /// How often was logged in.
    pub(super) fn logins(&self) -> u64 {
        self.logins.load(Ordering::Acquire)
    }

    /// When the token is to be renewed.
    pub(super) fn renew_at(&self) -> Option<Instant> {
        self.slot.held()?.renew_at()
    }

    pub(super) fn upkeep_at(&self) -> Option<Instant> {
        let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.renew_at()?;
        Some(not_before.map_or(at, |bound| at.max(bound)))
    }

    /// Renews the token in the background.
    pub(super) async fn upkeep(&self, server: &Server) {
        let due = |token: &Arc<Token>| token.renew_at().is_some_and(|at| Instant::now() >= at);
        let failed = match self.token(server).await {
            Ok(token) => due(&token),
            Err(error) => {
                let fault = StoreFault::Login(Box::new(error));
                tracing::warn!(target: "outgate::secret", code = fault.code(), "vault token not renewed: {fault}");
                true
            }
        };
        let wait = RENEW_AGAIN.mul_f64(1.0 + fastrand::f64() / 4.0);
        *self.not_before.lock().unwrap_or_else(PoisonError::into_inner) =
            failed.then(|| Instant::now() + wait);
    }

    /// A token in place of the old one: the same with a longer life, or a new one.
    async fn fetch(&self, server: &Server, old: Option<Arc<Token>>) -> Result<Token, StoreFault> {
        if let Some(old) = old.filter(|old| old.renewable)
            && let Some(renewed) = renew(server, &old).await
        {
            return Ok(renewed);
        }
        let token = self.log_in(server).await.map_err(|fault| match fault {
            // Who cannot be reached has not refused a login.
            StoreFault::Http(_) => fault,
            other => StoreFault::Login(Box::new(other)),
        })?;
        self.logins.fetch_add(1, Ordering::AcqRel);
        Ok(token)
    }

    async fn log_in(&self, server: &Server) -> Result<Token, StoreFault> {
        let (mount, body) = match &self.auth {
            VaultAuth::Token(reference) => {
                let token = self.own.read(reference, ValueRules::HeaderSafe).await?;
                return look_up(server, &token).await;
            }
            VaultAuth::AppRole(auth) => {
                (auth.mount.as_deref().unwrap_or("approle"), self.app_role(auth).await?)
            }
            VaultAuth::Kubernetes(auth) => {
                let file = auth.token_file.as_deref().unwrap_or(POD_TOKEN);
                (auth.mount.as_deref().unwrap_or("kubernetes"), self.jwt(&auth.role, file).await?)
            }
            VaultAuth::Jwt(auth) => {
                (auth.mount.as_deref().unwrap_or("jwt"), self.jwt(&auth.role, &auth.token_file).await?)
            }
        };
        let url = server.url(&format!("auth/{mount}/login"));
        let asked = Instant::now();
        let answer = server.send(HttpCall::login(&server.address.target, url, body), None).await?;
        if answer.status != StatusCode::OK {
            return Err(StoreFault::Status(answer.status.as_u16()));
        }
        let token = granted(&Document::parse(&answer.body)?, None, asked)?;
        answer.verdict.aside();
        Ok(token)
    }

    async fn app_role(&self, auth: &AppRoleAuth) -> Result<SecretBytes, StoreFault> {
        let named = auth.role_id.parse::<SecretRef>().ok().filter(|id| matches!(id.store(), ENV | FILE));
        let role = match named {
            Some(reference) => self.own.read(&reference, ValueRules::HeaderSafe).await?,
            None => SecretValue::new(auth.role_id.clone().into_bytes()),
        };
        let secret = match &auth.secret_id {
            Some(reference) => Some(self.own.read(reference, ValueRules::HeaderSafe).await?),
            None => None,
        };
        let mut fields = vec![("role_id", &role)];
        fields.extend(secret.as_ref().map(|secret| ("secret_id", secret)));
        body(&fields)
    }

    async fn jwt(&self, role: &str, file: &str) -> Result<SecretBytes, StoreFault> {
        let reference: SecretRef =
            format!("{FILE}:{file}").parse().map_err(|error| StoreFault::Own(Box::new(error)))?;
        let jwt = self.own.read(&reference, ValueRules::HeaderSafe).await?;
        body(&[("role", &SecretValue::new(role.as_bytes().to_vec())), ("jwt", &jwt)])
    }
}

/// A JSON object of strings, in memory that is wiped.
fn body(fields: &[(&str, &SecretValue)]) -> Result<SecretBytes, StoreFault> {
    let room = fields.iter().map(|(name, value)| name.len() + value.len() * 6 + 8).sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    for (number, (name, value)) in fields.iter().enumerate() {
        let text =
            std::str::from_utf8(value.expose()).map_err(|_| StoreFault::Garbled("a login is not text"))?;
        bytes.push(if number == 0 { b'{' } else { b',' });
        let written = serde_json::to_writer(&mut *bytes, name).and_then(|()| {
            bytes.push(b':');
            serde_json::to_writer(&mut *bytes, text)
        });
        written.map_err(|_| StoreFault::Garbled("a login is not text"))?;
    }
    bytes.push(b'}');
    Ok(bytes)
}

/// The token of an `auth` answer (login, renewal); a renewal keeps the old one's text.
fn granted(answer: &Document, old: Option<&Token>, asked: Instant) -> Result<Token, StoreFault> {
    let seconds = answer.number(&["auth", "lease_duration"]);
    let seconds = seconds.ok_or(StoreFault::Garbled("a login without `auth.lease_duration`"))?;
    let header = match (answer.text(&["auth", "client_token"]), old) {
        (Some(token), _) if !token.is_empty() => secret_header(&[token.as_bytes()])?,
        (_, Some(old)) => old.header.clone(),
        _ => return Err(StoreFault::Garbled("a login without `auth.client_token`")),
    };
    let renewable = answer.at(&["auth", "renewable"]).and_then(|value| value.as_bool()).unwrap_or(false);
    Ok(lasting(header, seconds, renewable, asked))
}

/// Its life is counted from the moment at which it was asked for: the answer may have been on its way for long.
fn lasting(header: http::HeaderValue, seconds: u64, renewable: bool, born: Instant) -> Token {
    // 0 is a token without end, such as a root token.
    let ends = (seconds > 0).then(|| born + Duration::from_secs(seconds.min(u64::from(u32::MAX))));
    Token { header, born, ends, renewable }
}

/// A given token: how long it lives is asked of the server. It may not say; then a 403 tells the end.
async fn look_up(server: &Server, token: &SecretValue) -> Result<Token, StoreFault> {
    let header = secret_header(&[token.expose()])?;
    let url = server.url("auth/token/lookup-self");
    let asked = Instant::now();
    let answer = server.send(HttpCall::get(&server.address.target, url), Some(&header)).await?;
    match answer.status {
        StatusCode::OK => {
            let about = Document::parse(&answer.body)?;
            let renewable = about.at(&["data", "renewable"]).and_then(|value| value.as_bool());
            answer.verdict.aside();
            Ok(lasting(
                header,
                about.number(&["data", "ttl"]).unwrap_or(0),
                renewable.unwrap_or(false),
                asked,
            ))
        }
        StatusCode::FORBIDDEN => {
            // A token may be one that must not ask; what it is worth the read tells.
            answer.verdict.aside();
            Ok(lasting(header, 0, false, asked))
        }
        status => Err(StoreFault::Status(status.as_u16())),
    }
}

/// The same token with a longer life; none where the server refuses, or has little left to grant.
async fn renew(server: &Server, old: &Token) -> Option<Token> {
    let call = HttpCall::login(
        &server.address.target,
        server.url("auth/token/renew-self"),
        Zeroizing::new(b"{}".to_vec()),
    );
    let asked = Instant::now();
    let answer = server.send(call, Some(&old.header)).await.ok()?;
    let renewed =
        (answer.status == StatusCode::OK).then(|| Document::parse(&answer.body)).and_then(Result::ok);
    let renewed = granted(&renewed?, Some(old), asked).ok()?;
    answer.verdict.aside();
    let life = |token: &Token| token.ends.map(|end| end.saturating_duration_since(token.born));
    let short = life(&renewed).zip(life(old)).is_some_and(|(new, old)| new * 2 < old);
    (!short).then_some(renewed)
}
