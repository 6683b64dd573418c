//! Tokens: credentials that outgate gets itself, from secrets that never leave it.
//!
//! A kind that works with tokens writes [`TokenSettings`]: what the token is got with and from where. Its [`Grant`] is one
//! exchange with a token endpoint, or one signature. Everything that a token's life needs is the same for all kinds:
//!
//! | when | what |
//! | --- | --- |
//! | start, reload | the first token is got, at the same time as all secrets are read |
//! | 80 % of its life, give or take a twentieth of it | the next one is got in the background, by one for all; requests take the old one meanwhile |
//! | its end, less five seconds or a tenth of its life | it is not sent any more; requests wait for the next one |
//! | the provider refuses it | a new one is got, at most once per 30 s |
//! | the endpoint fails | the old one serves until its end, then 503 with `Retry-After`; asked again after 6 s, doubling up to 5 min |
//! | the endpoint refuses what the token is got with | that is read again, and the next of its list is tried |
//! | a refresh token was refused for good | it is not sent again; the secret is read again with each try |
//!
//! To the rest of the program a token is a secret like any other: an entry of the
//! [`SecretCache`](crate::secret::SecretCache), named `token:<kind>/<from>#<mark>`, with version, age and errors in
//! `/status` and the metrics.

pub mod client;
pub mod endpoint;
mod extra;
mod inputs;
pub mod rotation;
mod source;
mod unbroken;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::future::BoxFuture;

pub use extra::Extra;
pub use inputs::{Input, Inputs};
pub use source::TokenSource;
#[cfg(test)]
pub use source::entry;
pub use unbroken::Unbroken;

use super::kinds::{
    apple, aws_sigv4, github_app, google_service_account, jwt_bearer, oauth2_client_credentials,
    oauth2_refresh_token, token_exchange,
};
use crate::secret::http::Peers;
use crate::secret::reference::SecretRef;
use crate::secret::{SecretBytes, TokenFault};
use crate::upstream::UpstreamEnv;

/// A token of a credential, compiled. Equal ones are one token, which lives on over reloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The name it has among the secrets.
    pub reference: SecretRef,
    /// How it is got.
    pub settings: TokenSettings,
}

/// How a token is got. One variant for each kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TokenSettings {
    /// RFC 6749 section 4.4.
    Oauth2ClientCredentials(oauth2_client_credentials::Settings),
    /// A service account of Google.
    GoogleServiceAccount(google_service_account::Settings),
    /// An installation of a GitHub App.
    GithubApp(github_app::Settings),
    /// A JWT for Apple.
    Apple(apple::Settings),
    /// RFC 6749 section 6.
    Oauth2RefreshToken(Box<oauth2_refresh_token::Settings>),
    /// RFC 7523.
    JwtBearer(Box<jwt_bearer::Settings>),
    /// RFC 8693.
    TokenExchange(token_exchange::Settings),
    /// Keys that AWS gives to a pod, a container or a machine.
    Aws(aws_sigv4::ChainKeys),
}

impl TokenSettings {
    /// What does it.
    #[must_use]
    pub fn grant(&self) -> &dyn Grant {
        match self {
            Self::Oauth2ClientCredentials(settings) => settings,
            Self::GoogleServiceAccount(settings) => settings,
            Self::GithubApp(settings) => settings,
            Self::Apple(settings) => settings,
            Self::Oauth2RefreshToken(settings) => &**settings,
            Self::JwtBearer(settings) => &**settings,
            Self::TokenExchange(settings) => settings,
            Self::Aws(settings) => settings,
        }
    }
}

impl Token {
    /// Names a token. `kind` is the kind's name in the policy; `from` says in a few words where it comes from, without
    /// anything secret: a host and path.
    #[must_use]
    pub fn new(kind: &str, from: &str, settings: TokenSettings) -> Self {
        // Settings hold references and public values; their text tells them apart.
        let mark = digest(&SHA256, format!("{settings:?}").as_bytes());
        let mark: String = mark.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Self { reference: SecretRef::made(kind, from, &mark), settings }
    }

    /// Whether each tenant has its own: something that it is got with is per tenant.
    #[must_use]
    pub fn is_per_tenant(&self) -> bool {
        let inputs = self.settings.grant().inputs();
        inputs.iter().flat_map(|input| &input.alternatives).any(SecretRef::is_per_tenant)
    }
}

/// What the tokens need of the process.
#[derive(Clone)]
pub struct TokenEnv {
    /// The way out.
    pub upstream: Arc<UpstreamEnv>,
    /// What must come to its end.
    pub unbroken: Unbroken,
    /// The failures of the places where tokens come from.
    pub peers: Arc<Peers>,
}

impl TokenEnv {
    /// What they need, over this way out.
    #[must_use]
    pub fn new(upstream: Arc<UpstreamEnv>) -> Self {
        Self { upstream, unbroken: Unbroken::default(), peers: Arc::default() }
    }
}

/// Gets one token.
pub trait Grant: Send + Sync {
    /// The secrets it needs. [`Inputs`] gives them in this order.
    fn inputs(&self) -> Vec<Input>;

    /// Its endpoint; none where the token is made without asking anybody.
    fn endpoint(&self) -> Option<&endpoint::TokenEndpoint>;

    /// Where what rotates is kept.
    fn keep(&self) -> Option<&rotation::KeepSettings> {
        None
    }

    /// The refresh tokens that it begins with.
    fn seeds(&self) -> &[SecretRef] {
        &[]
    }

    /// Gets it. Called when the token is wanted, never twice at once. Where something rotates it is not broken off with who
    /// waits for it, nor by the end of the process.
    ///
    /// # Errors
    /// [`TokenFault::Refused`] leads to another try with what `inputs` then offers, where that differs.
    fn issue<'a>(
        &'a self,
        inputs: &'a Inputs<'a>,
        client: &'a endpoint::TokenClient,
    ) -> BoxFuture<'a, Result<Issued, TokenFault>>;
}

/// A token as it was issued.
pub struct Issued {
    /// The token; judged for what may stand in a header by the cache.
    pub token: SecretBytes,
    /// Its life from the moment it was asked for; none where nothing was said of it, and it lives until it is refused.
    pub life: Option<Duration>,
}

#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;
