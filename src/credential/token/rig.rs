//! For tests: one token of a credential as written, and keys to sign with.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{TokenEnv, entry};
use crate::credential::CredentialConfig;
use crate::credential::kinds::MemberSettings;
use crate::secret::cache::SecretCache;
use crate::secret::fake::upstream_env;
use crate::secret::{SecretError, Stores};

/// What a credential as written comes to; `Err` is what `check` says.
pub fn member(text: &str, directory: &Path) -> Result<MemberSettings, String> {
    let config: CredentialConfig = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    config.members(directory).map(|mut members| members.remove(0))
}

/// The first token of a credential, and how long it may be used.
pub async fn issued(text: &str, directory: &Path) -> Result<(String, Option<Duration>), Arc<SecretError>> {
    let member = member(text, directory).unwrap();
    let cache = Arc::new(SecretCache::new(Stores::built_in(directory)));
    let env = TokenEnv::new(upstream_env());
    let token = entry(&member.tokens[0], &cache, &env);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.run(stop));
    let version = token.obtain().await?;
    let text = String::from_utf8(version.value.expose().to_vec()).unwrap();
    Ok((text, version.expires.map(|end| end.steady().saturating_duration_since(tokio::time::Instant::now()))))
}

/// A key pair: the private one in PEM, and what checks its signatures.
pub struct Pair {
    pub pem: String,
    public: Vec<u8>,
    rsa: bool,
}

impl Pair {
    pub fn rsa() -> Self {
        let der = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&der).unwrap().as_ref().to_vec();
        let public = RsaKeyPair::from_pkcs8(&der).unwrap().public_key().as_ref().to_vec();
        Self { pem: pem(&der), public, rsa: true }
    }

    pub fn p256() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let der = pair.to_pkcs8v1().unwrap().as_ref().to_vec();
        Self { pem: pem(&der), public: pair.public_key().as_ref().to_vec(), rsa: false }
    }

    /// Header and claims of a JWT that this key signed.
    pub fn read(&self, jwt: &str) -> (Value, Value) {
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        if self.rsa {
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public)
                .verify(signed.as_bytes(), &signature)
                .unwrap();
        } else {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public)
                .verify(signed.as_bytes(), &signature)
                .unwrap();
        }
        let (header, claims) = signed.split_once('.').unwrap();
        let part = |text| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap();
        (part(header), part(claims))
    }
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}
