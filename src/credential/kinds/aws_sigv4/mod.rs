//! `aws_sigv4`: requests are signed anew with outgate's keys, whatever the client signed them with (AWS signature
//! version 4; also Cloudflare R2, Google Cloud Storage's interoperability, DigitalOcean Spaces and others that speak S3).
//!
//! ```yaml
//! credential:
//!   aws_sigv4:
//!     access_key_id: plain:AKIDEXAMPLE
//!     secret_access_key: cloud:app/aws#SecretAccessKey
//! credential: { aws_sigv4: { keys: [file:/run/secrets/aws.json, file:/run/secrets/aws-old.json] } }
//! credential: { aws_sigv4: { credentials: chain } }
//! credential: { aws_sigv4: { credentials: { web_identity: {} }, region: eu-west-1, service: execute-api } }
//! ```
//!
//! **What goes**: `Authorization`, `X-Amz-Date`, `X-Amz-Security-Token` and the like of the client. A URL that carries a
//! signature in its query (`presigned`) is refused, signed anew, or passed as it is.
//!
//! **What is signed**: the method, the real host, path and query as they are sent, `Content-Type`, `Content-MD5`, all
//! `x-amz-*` and `x-goog-*` fields, and the body's hash. Region and service are read from the host where the policy does not
//! say them (`scope`).
//!
//! **The body** is not held where that can be helped: the hash that the client declared (`X-Amz-Content-Sha256`) is
//! signed, and the provider checks it against the body; `UNSIGNED-PAYLOAD` and trailing checksums pass, over TLS alone; of
//! a signed `aws-chunked` upload each chunk is signed anew while it streams (`chunked`). Only where nothing was declared and
//! the service is not S3 the body is held, up to `max_buffer`.
//!
//! Limits: SigV4A, event streams and directory buckets (S3 Express) are refused. A chunk may have `max_buffer` bytes, because
//! its signature stands before its data. Whoever may call STS or S3's `CreateSession` gets keys in the answer: a route should
//! deny that.

mod chunked;
mod payload;
mod presigned;
mod rewrite;
mod scope;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::basic::HalfConfig;
use super::{Half, MemberSettings, PerRequest};
use crate::credential::config::OneOrMany;
use crate::credential::token::endpoint::{TokenClient, TokenEndpoint};
use crate::credential::token::{Grant, Input, Inputs, Issued, Token, TokenSettings};
use crate::message::quantity::ByteSize;
use crate::secret::TokenFault;
use crate::secret::aws::chain::{Chain, ChainConfig, is_region_text};
use crate::secret::error::StoreFault;
use crate::secret::reference::SecretRef;

/// `aws_sigv4` as written. The keys come from `access_key_id` with `secret_access_key`, from `keys`, or from `credentials`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id of the key: a secret reference, or `plain:<text>`.
    pub access_key_id: Option<HalfConfig>,
    /// The secret key.
    pub secret_access_key: Option<SecretRef>,
    /// The session token, of keys that end.
    pub session_token: Option<SecretRef>,
    /// One secret with all parts, a JSON object with `AccessKeyId`, `SecretAccessKey` and maybe `SessionToken`; or a list in
    /// an overlap, the new one first.
    pub keys: Option<OneOrMany<SecretRef>>,
    /// Where AWS gives keys to a pod, a container or a machine: `chain`, or `{ web_identity: {} }`, `{ container: {} }`,
    /// `{ instance: {} }`, `{ profile: {} }`.
    pub credentials: Option<ChainConfig>,
    /// The region to sign for, such as `eu-west-1`; `auto` for R2. Default: the one in the host's name.
    pub region: Option<String>,
    /// The name that the service signs with, such as `s3`, `ses`, `execute-api`. Default: the one in the host's name.
    pub service: Option<String>,
    /// What is done with a URL that carries a signature of the client: `refuse` (default), `resign`, or `pass` as it is.
    #[serde(default)]
    pub presigned: Presigned,
    /// Bytes of a body that is held to be hashed, and of one chunk of a signed upload. Default: 1MiB.
    pub max_buffer: Option<ByteSize>,
}

/// What is done with a URL that carries a signature of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Presigned {
    /// 403.
    #[default]
    Refuse,
    /// The signature is taken out and the request is signed with outgate's keys.
    Resign,
    /// Sent as it is, without outgate's keys: URLs that others have signed.
    Pass,
}

/// Where the values of the keys stand among the secrets of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Keys {
    /// In secrets of their own.
    Parts { id: Half, secret: SecretRef, session: Option<SecretRef> },
    /// Together in one: a JSON object.
    Whole(SecretRef),
}

/// The same, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    keys: Keys,
    region: Option<String>,
    service: Option<String>,
    presigned: Presigned,
    max_buffer: u64,
}

const MAX_BUFFER: u64 = 1024 * 1024;
/// The most that `max_buffer` may be: that much is held for each request.
const MOST_BUFFER: u64 = 64 * 1024 * 1024;

impl Config {
    /// The members of this credential: one, or one for each of `keys`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn members(&self, directory: &Path) -> Result<Vec<MemberSettings>, String> {
        let parts =
            self.access_key_id.is_some() || self.secret_access_key.is_some() || self.session_token.is_some();
        match (parts, &self.keys, &self.credentials) {
            (true, None, None) => Ok(vec![self.member(self.parts()?)?]),
            (false, Some(list), None) => {
                list.0.iter().map(|reference| self.member(Keys::Whole(reference.clone()))).collect()
            }
            (false, None, Some(chain)) => Ok(vec![self.fetched(chain, directory)?]),
            (false, None, None) => Err(
                "it names no keys: `access_key_id` with `secret_access_key`, `keys`, or `credentials: chain`".to_owned(),
            ),
            _ => Err("`access_key_id` and its like, `keys` and `credentials` are three ways to say one thing: leave one"
                .to_owned()),
        }
    }

    fn parts(&self) -> Result<Keys, String> {
        match (&self.access_key_id, &self.secret_access_key) {
            (Some(id), Some(secret)) => {
                Ok(Keys::Parts { id: id.half(), secret: secret.clone(), session: self.session_token.clone() })
            }
            (None, _) => Err("`access_key_id` is missing".to_owned()),
            (_, None) => Err("`secret_access_key` is missing".to_owned()),
        }
    }

    fn fetched(&self, chain: &ChainConfig, directory: &Path) -> Result<MemberSettings, String> {
        if let Some((key, what)) = chain.mistakes().into_iter().next() {
            return Err(format!("`credentials.{key}`: {what}"));
        }
        let settings = ChainKeys { config: chain.clone(), directory: directory.to_owned() };
        let token = Token::new("aws", chain.shown(), TokenSettings::Aws(settings));
        let member = self.member(Keys::Whole(token.reference.clone()))?;
        Ok(MemberSettings { tokens: vec![token], ..member })
    }

    fn member(&self, keys: Keys) -> Result<MemberSettings, String> {
        let check = |name: &str, text: &Option<String>| match text {
            Some(text) if !is_region_text(text) => {
                Err(format!("`{name}`: letters, digits and `-`, in lower case"))
            }
            _ => Ok(()),
        };
        check("region", &self.region)?;
        check("service", &self.service)?;
        let max_buffer = self.max_buffer.map_or(MAX_BUFFER, ByteSize::bytes);
        if max_buffer > MOST_BUFFER {
            return Err("`max_buffer` is at most 64MiB: that much is held for each request".to_owned());
        }
        let (region, service) = (self.region.clone(), self.service.clone());
        let settings = Settings { keys, region, service, presigned: self.presigned, max_buffer };
        Ok(MemberSettings::per_request(PerRequest::AwsSigV4(settings)))
    }
}

/// Keys that AWS gives to a pod, a container or a machine, as a token: it lives as they do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChainKeys {
    config: ChainConfig,
    directory: PathBuf,
}

impl Grant for ChainKeys {
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn endpoint(&self) -> Option<&TokenEndpoint> {
        None
    }

    fn issue<'a>(
        &'a self,
        _: &'a Inputs<'a>,
        client: &'a TokenClient,
    ) -> BoxFuture<'a, Result<Issued, TokenFault>> {
        Box::pin(async move {
            let chain =
                Chain::new(&self.config, &self.directory, client.upstream()).counting_in(client.peers());
            let fetched = chain.fetch().await.map_err(token_fault)?;
            // Keys that have ended by our clock are over, and not without end.
            let life = fetched.ends.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
            Ok(Issued { token: crate::secret::aws::write(&fetched.keys), life })
        })
    }
}

fn token_fault(fault: StoreFault) -> TokenFault {
    match fault {
        StoreFault::Http(error) => TokenFault::Http(error),
        StoreFault::Status(status) => TokenFault::Refused { status, code: "other" },
        StoreFault::Login(inner) => token_fault(*inner),
        StoreFault::Garbled(what) => TokenFault::Garbled(what),
        StoreFault::Own(error) => TokenFault::Input(error),
        StoreFault::Keys(what) => TokenFault::Setup(what),
        _ => TokenFault::Setup("it names no source of keys"),
    }
}

#[cfg(test)]
mod tests;
