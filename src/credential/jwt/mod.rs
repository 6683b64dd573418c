//! Signed JWTs (RFC 7519, RFC 7515): what a client, an app or a service account proves itself with.
//!
//! A pure function: [`sign`] takes header, claims and key, and asks nobody for the time. Keys come as the bytes of a secret:
//! PEM (PKCS#8, PKCS#1, SEC1; not encrypted), or for HS256 the bytes themselves. By the same library that TLS uses.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
    RsaEncoding, RsaKeyPair,
};
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::secret::TokenFault;
use crate::tls::pem;

/// How far in the past a JWT says that it was issued: the peer's clock may be behind ours.
pub const ISSUED_BEFORE: Duration = Duration::from_secs(60);

/// How a JWT is signed (RFC 7518 section 3, RFC 8037).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// RSA PKCS #1 v1.5 with SHA-256; keys of 2048 to 8192 bits.
    #[default]
    #[serde(rename = "RS256")]
    Rs256,
    /// RSA PSS with SHA-256.
    #[serde(rename = "PS256")]
    Ps256,
    /// ECDSA over P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// HMAC with SHA-256; the key is what the secret holds, byte for byte.
    #[serde(rename = "HS256")]
    Hs256,
}

impl Algorithm {
    /// The name in a header's `alg`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Hs256 => "HS256",
        }
    }
}

impl FromStr for Algorithm {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Rs256, Self::Ps256, Self::Es256, Self::EdDsa, Self::Hs256];
        all.into_iter().find(|one| one.name() == text).ok_or("expected RS256, PS256, ES256, EdDSA or HS256")
    }
}

/// A header: the algorithm is the key's.
#[derive(Clone, Debug, Default)]
pub struct Header(Map<String, Value>);

impl Header {
    /// A header with `typ: JWT`, and `kid` where the peer has to find the key by its id.
    #[must_use]
    pub fn new(key_id: Option<&str>) -> Self {
        let header = Self::default().field("typ", "JWT");
        match key_id {
            Some(id) => header.field("kid", id),
            None => header,
        }
    }

    /// The same with one more field, such as `x5t#S256`.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }
}

/// What a JWT says. It is sent to peers: no secrets.
#[derive(Clone, Debug, Default)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// `iat`, a minute before `now`, and `exp`, `life` after that `iat`: that span is what peers have bounds for.
    #[must_use]
    pub fn lasting(now: SystemTime, life: Duration) -> Self {
        let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(ISSUED_BEFORE);
        let end = issued.saturating_add(life);
        Self::default().value("iat", issued.as_secs().into()).value("exp", end.as_secs().into())
    }

    /// The same with a text.
    #[must_use]
    pub fn text(self, name: &str, value: &str) -> Self {
        self.value(name, value.into())
    }

    /// The same with any value.
    #[must_use]
    pub fn value(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// The same with a `jti` of 128 random bits, by which a peer takes each JWT once.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn unique(self) -> Result<Self, TokenFault> {
        let mut id = [0; 16];
        rand::fill(&mut id).map_err(|_| TokenFault::Setup("the system gives no random numbers"))?;
        Ok(self.text("jti", &URL_SAFE_NO_PAD.encode(id)))
    }
}

/// A key that signs, with the algorithm that it was given for. It cannot print itself.
pub struct SigningKey {
    algorithm: Algorithm,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
    Hmac(Box<hmac::Key>),
}

impl SigningKey {
    /// Reads a key. PEM whose line ends are written as `\n`, as environment variables often hold it, is read as well.
    ///
    /// # Errors
    /// [`TokenFault::Key`]: not PEM, encrypted, not of the algorithm's kind, or too small.
    pub fn read(algorithm: Algorithm, secret: &[u8]) -> Result<Self, TokenFault> {
        if algorithm == Algorithm::Hs256 {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            return Ok(Self { algorithm, pair: Pair::Hmac(Box::new(key)) });
        }
        let key = pem::private_key(&unescaped(secret), "key").map_err(|_| {
            TokenFault::Key("it is no private key in PEM (PKCS#8, PKCS#1 or SEC1, not encrypted)")
        })?;
        let pair = match (algorithm, &*key) {
            (Algorithm::Rs256 | Algorithm::Ps256, PrivateKeyDer::Pkcs8(der)) => {
                RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok().map(Box::new).map(Pair::Rsa)
            }
            (Algorithm::Rs256 | Algorithm::Ps256, PrivateKeyDer::Pkcs1(der)) => {
                RsaKeyPair::from_der(der.secret_pkcs1_der()).ok().map(Box::new).map(Pair::Rsa)
            }
            (Algorithm::Es256, PrivateKeyDer::Pkcs8(der)) => ecdsa(der.secret_pkcs8_der()),
            (Algorithm::Es256, PrivateKeyDer::Sec1(der)) => ecdsa(der.secret_sec1_der()),
            (Algorithm::EdDsa, PrivateKeyDer::Pkcs8(der)) => {
                Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok().map(Box::new).map(Pair::Ed25519)
            }
            _ => None,
        };
        let pair = pair.ok_or_else(|| TokenFault::Key(misfit(algorithm)))?;
        Ok(Self { algorithm, pair })
    }

    fn signature(&self, input: &[u8]) -> Result<Vec<u8>, TokenFault> {
        let failed = |_| TokenFault::Key("it does not sign");
        match &self.pair {
            Pair::Rsa(pair) => {
                let padding: &'static dyn RsaEncoding = match self.algorithm {
                    Algorithm::Ps256 => &RSA_PSS_SHA256,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &SystemRandom::new(), input, &mut signature).map_err(failed)?;
                Ok(signature)
            }
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&SystemRandom::new(), input).map_err(failed)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Ed25519(pair) => Ok(pair.sign(input).as_ref().to_vec()),
            Pair::Hmac(key) => Ok(hmac::sign(key, input).as_ref().to_vec()),
        }
    }
}

fn ecdsa(der: &[u8]) -> Option<Pair> {
    let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
    pair.ok().map(Box::new).map(Pair::Ecdsa)
}

fn misfit(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Rs256 | Algorithm::Ps256 => "it is no RSA key of 2048 to 8192 bits",
        Algorithm::Es256 => "it is no key on the curve P-256",
        Algorithm::EdDsa => "it is no Ed25519 key in PKCS#8",
        Algorithm::Hs256 => "it is empty",
    }
}

/// PEM with line ends in place of `\n`, where it has none of its own.
fn unescaped(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut plain = Zeroizing::new(Vec::with_capacity(text.len()));
    let escaped = !text.contains(&b'\n');
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        match (escaped, first, after.strip_prefix(b"n")) {
            (true, b'\\', Some(after)) => {
                plain.push(b'\n');
                rest = after;
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

/// Signs: `header.claims.signature` (RFC 7515 section 7.1).
///
/// # Errors
/// [`TokenFault::Key`].
pub fn sign(header: &Header, claims: &Claims, key: &SigningKey) -> Result<Zeroizing<String>, TokenFault> {
    let header = header.clone().field("alg", key.algorithm.name());
    // Maps with text keys cannot fail to be written.
    let text = |map: &Map<String, Value>| serde_json::to_vec(map).unwrap_or_default();
    compact(&text(&header.0), &text(&claims.0), key)
}

fn compact(header: &[u8], claims: &[u8], key: &SigningKey) -> Result<Zeroizing<String>, TokenFault> {
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.signature(input.as_bytes())?);
    Ok(Zeroizing::new([input, signature].join(".")))
}

#[cfg(test)]
mod tests;
