//! `hmac` as written, and what it compiles to.

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;

use super::template::{Piece, parse};
use crate::credential::config::OneOrMany;
use crate::credential::kinds::basic::HalfConfig;
use crate::credential::kinds::body::bound;
use crate::credential::kinds::header::header_name;
use crate::credential::kinds::{Half, MemberSettings, PerRequest};
use crate::credential::location::Location;
use crate::credential::per_key::PerKey;
use crate::message::quantity::ByteSize;
use crate::secret::reference::SecretRef;

/// `hmac` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The key; or a list in an overlap, the new one first.
    pub key: OneOrMany<SecretRef>,
    /// How the key is written in its store: `text` (its bytes are the key, default), `base64` (either alphabet) or `hex`.
    #[serde(default)]
    pub key_encoding: KeyEncoding,
    /// `sha1`, `sha256` (default), `sha384` or `sha512`.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// `hmac` (RFC 2104, default), or `hash`: the plain digest of `content`, which then holds `{key}`.
    #[serde(default)]
    pub function: Function,
    /// What is signed. Its pieces: `{method}`, `{host}`, `{path}`, `{query}`, `{target}` (path and query), `{header:<name>}`,
    /// `{timestamp}`, `{nonce}`, `{key_id}`, `{body}`, `{digest}`, and with `function: hash` `{key}`.
    pub content: String,
    /// How the signature is written: `hex` (default), `base64` or `base64url` (without padding).
    #[serde(default)]
    pub encoding: Encoding,
    /// Where the signature goes. Pieces of its format: `{signature}` (default), `{key_id}`, `{timestamp}`, `{nonce}`, and `{basic}` (base64 of `key_id:signature`).
    pub signature: PlaceConfig,
    /// The public id of the key: a secret reference, or `plain:<text>`; or a list with one for each of `key`.
    pub key_id: Option<PerKey<HalfConfig>>,
    /// Where `{key_id}` goes, if it has a place of its own.
    pub key_id_in: Option<PlaceConfig>,
    /// The time, and where it goes. Without it the app's own is left as it is.
    pub timestamp: Option<TimestampConfig>,
    /// Where a nonce goes: 32 hex digits from the system's random source, new for each attempt.
    pub nonce: Option<PlaceConfig>,
    /// A digest of the body, and where it goes.
    pub digest: Option<DigestConfig>,
    /// Largest body, in bytes, where it is signed: it is held whole, and a longer one refused. Default: 64KiB, at most 16MiB.
    pub max: Option<ByteSize>,
}

/// A place of a request: one of `header` and `query`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlaceConfig {
    /// Name of a header field.
    pub header: Option<String>,
    /// Name of a query parameter; it is added at the end.
    pub query: Option<String>,
    /// How it is written there. Default: the value alone.
    pub format: Option<String>,
}

/// The time.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimestampConfig {
    /// Name of a header field.
    pub header: Option<String>,
    /// Name of a query parameter; it is added at the end.
    pub query: Option<String>,
    /// `epoch_s` (default), `epoch_ms`, `iso8601` (to the second, UTC), `http_date` (RFC 9110) or `rfc2822` (`-0000`).
    #[serde(default)]
    pub format: TimeFormat,
}

/// A digest of the body.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DigestConfig {
    /// Name of a header field, if the digest is sent.
    pub header: Option<String>,
    /// `sha1`, `sha256` (default), `sha384` or `sha512`.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// `hex` (default), `base64` or `base64url`.
    #[serde(default)]
    pub encoding: Encoding,
}

/// How a key is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyEncoding {
    /// Its bytes are the key.
    #[default]
    Text,
    /// Base64, either alphabet, padded or not.
    Base64,
    /// Hex.
    Hex,
}

/// The hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// How the key goes into the signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// RFC 2104.
    #[default]
    Hmac,
    /// A digest of a content that holds the key.
    Hash,
}

/// How bytes are written as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Lower-case hex.
    #[default]
    Hex,
    /// RFC 4648 section 4, padded.
    Base64,
    /// RFC 4648 section 5, without padding.
    Base64url,
}

/// How a time is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeFormat {
    /// Seconds since 1970.
    #[default]
    EpochS,
    /// Milliseconds since 1970.
    EpochMs,
    /// `2026-11-21T17:02:10Z`.
    Iso8601,
    /// `Sat, 21 Nov 2026 17:02:10 GMT`.
    HttpDate,
    /// `Sat, 21 Nov 2026 17:02:10 -0000`.
    Rfc2822,
}

/// One alternative of it, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub(super) key: SecretRef,
    pub(super) key_encoding: KeyEncoding,
    pub(super) algorithm: Algorithm,
    pub(super) function: Function,
    pub(super) content: Vec<Piece>,
    pub(super) encoding: Encoding,
    pub(super) signature: Written,
    pub(super) key_id: Option<Half>,
    pub(super) key_id_at: Option<Written>,
    pub(super) timestamp: Option<(Location, TimeFormat)>,
    pub(super) nonce: Option<Written>,
    pub(super) digest: Option<(Option<HeaderName>, Algorithm, Encoding)>,
    pub(super) max: u64,
}

/// A place, and how something is written there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Written {
    pub(super) location: Location,
    pub(super) format: Vec<Piece>,
}

impl Config {
    /// The members of this credential: one for each key of an overlap.
    ///
    /// # Errors
    /// What is wrong.
    pub fn members(&self) -> Result<Vec<MemberSettings>, String> {
        let content = parse(&self.content, |piece| !matches!(piece, Piece::Signature | Piece::Basic))
            .map_err(|what| format!("`hmac.content`: {what}"))?;
        self.check(&content)?;
        let format =
            |at: &PlaceConfig, own, key| at.compile(own).map_err(|what| format!("`hmac.{key}`: {what}"));
        let ids = self.key_id.as_ref().map(|ids| ids.map(HalfConfig::half));
        let ids = ids.map_or(Ok(Vec::new()), |ids| ids.each("hmac.key_id", self.key.0.len()))?;
        let settings = Settings {
            key: self.key.0.first().cloned().ok_or("`hmac.key` names no secret")?,
            key_encoding: self.key_encoding,
            algorithm: self.algorithm,
            function: self.function,
            encoding: self.encoding,
            signature: format(&self.signature, Piece::Signature, "signature")?,
            key_id: ids.first().cloned(),
            key_id_at: self.key_id_in.as_ref().map(|at| format(at, Piece::KeyId, "key_id_in")).transpose()?,
            timestamp: self.timestamp.as_ref().map(TimestampConfig::compile).transpose()?,
            nonce: self.nonce.as_ref().map(|at| format(at, Piece::Nonce, "nonce")).transpose()?,
            digest: self.digest.as_ref().map(DigestConfig::compile).transpose()?,
            max: bound(self.max)?,
            content,
        };
        settings.check()?;
        let one = |(at, key): (usize, &SecretRef)| {
            let (key, key_id) = (key.clone(), ids.get(at).cloned());
            MemberSettings::per_request(PerRequest::Hmac(Settings { key, key_id, ..settings.clone() }))
        };
        Ok(self.key.0.iter().enumerate().map(one).collect())
    }

    fn check(&self, content: &[Piece]) -> Result<(), String> {
        let has_key = content.contains(&Piece::Key);
        match self.function {
            Function::Hash if !has_key => {
                return Err("`function: hash` wants `{key}` in `content`".to_owned());
            }
            Function::Hmac if has_key => {
                return Err("`{key}` in `content` is for `function: hash` alone".to_owned());
            }
            Function::Hash | Function::Hmac => {}
        }
        if content.iter().all(|piece| matches!(piece, Piece::Text(_) | Piece::Key | Piece::KeyId)) {
            return Err("`hmac.content` holds nothing of the request".to_owned());
        }
        Ok(())
    }
}

impl Settings {
    /// What is named must be there.
    fn check(&self) -> Result<(), String> {
        let signature = &self.signature.format;
        if !signature.iter().any(|piece| matches!(piece, Piece::Signature | Piece::Basic)) {
            return Err("`hmac.signature.format` has no `{signature}`".to_owned());
        }
        let named = |wanted: &[Piece]| {
            let places = [Some(&self.signature), self.key_id_at.as_ref(), self.nonce.as_ref()];
            let formats = places.into_iter().flatten().flat_map(|at| &at.format);
            self.content.iter().chain(formats).any(|piece| wanted.contains(piece))
        };
        for (wanted, there, key) in [
            (&[Piece::Timestamp][..], self.timestamp.is_some(), "timestamp"),
            (&[Piece::Nonce], self.nonce.is_some(), "nonce"),
            (&[Piece::KeyId, Piece::Basic], self.key_id.is_some(), "key_id"),
            (&[Piece::Digest], self.digest.is_some(), "digest"),
        ] {
            if named(wanted) && !there {
                return Err(format!("`hmac.{key}` is used and not written"));
            }
        }
        let locations = self.all_locations();
        for (at, location) in locations.iter().enumerate() {
            if locations[..at].contains(location) {
                return Err("`hmac` writes two things at one place".to_owned());
            }
        }
        Ok(())
    }

    /// Every place that is written.
    pub(super) fn all_locations(&self) -> Vec<Location> {
        let places = [Some(&self.signature), self.key_id_at.as_ref(), self.nonce.as_ref()];
        let digest = self.digest.as_ref().and_then(|(header, ..)| header.clone()).map(Location::Header);
        let written = places.into_iter().flatten().map(|at| at.location.clone());
        written.chain(self.timestamp.iter().map(|(location, _)| location.clone())).chain(digest).collect()
    }
}

fn location(header: Option<&String>, query: Option<&String>) -> Result<Location, String> {
    match (header, query) {
        (Some(name), None) => header_name(name).map(Location::Header),
        (None, Some(name)) if !name.is_empty() && !name.contains(char::is_control) => {
            Ok(Location::Query(name.clone()))
        }
        (None, Some(_)) => Err("not a parameter name".to_owned()),
        _ => Err("wants one of `header` and `query`".to_owned()),
    }
}

impl PlaceConfig {
    fn compile(&self, own: Piece) -> Result<Written, String> {
        let location = location(self.header.as_ref(), self.query.as_ref())?;
        let Some(text) = &self.format else { return Ok(Written { location, format: vec![own] }) };
        if text.bytes().any(|byte| !(0x20..0x7f).contains(&byte)) {
            return Err("`format` may hold printable ASCII only".to_owned());
        }
        let signs = own == Piece::Signature;
        let format = parse(text, |piece| match piece {
            Piece::Signature | Piece::Basic => signs,
            Piece::KeyId | Piece::Timestamp | Piece::Nonce | Piece::Digest => true,
            _ => false,
        })?;
        if !signs && !format.contains(&own) {
            return Err("`format` does not hold what it is the format of".to_owned());
        }
        Ok(Written { location, format })
    }
}

impl TimestampConfig {
    fn compile(&self) -> Result<(Location, TimeFormat), String> {
        let location = location(self.header.as_ref(), self.query.as_ref());
        Ok((location.map_err(|what| format!("`hmac.timestamp`: {what}"))?, self.format))
    }
}

impl DigestConfig {
    fn compile(&self) -> Result<(Option<HeaderName>, Algorithm, Encoding), String> {
        let header = self.header.as_deref().map(header_name).transpose();
        Ok((header.map_err(|what| format!("`hmac.digest`: {what}"))?, self.algorithm, self.encoding))
    }
}
