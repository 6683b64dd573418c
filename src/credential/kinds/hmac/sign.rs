//! Signs one request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_encode;
use zeroize::Zeroizing;

use super::config::{Algorithm, Encoding, Function, KeyEncoding, Settings, TimeFormat};
use super::template::Piece;
use crate::credential::error::CredentialError;
use crate::credential::kinds::Half;
use crate::credential::location::Location;
use crate::credential::member::QUERY;
use crate::credential::rewrite::{Secrets, collect};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::secret::key_text;

/// When, and with which nonce.
pub struct Now {
    pub time: SystemTime,
    pub nonce: String,
}

impl Now {
    /// This moment, and 128 bits from the system's random source.
    pub fn take() -> Self {
        let mut random = [0_u8; 16];
        // Where the system has none, the signature's own time still tells requests apart.
        if aws_lc_rs::rand::fill(&mut random).is_err() {
            fastrand::fill(&mut random);
        }
        Self { time: SystemTime::now(), nonce: hex(&random) }
    }
}

/// Everything that pieces stand for, of one request.
struct Values<'a> {
    timestamp: String,
    nonce: String,
    key_id: &'a [u8],
    digest: String,
    signature: Zeroizing<String>,
    key: Zeroizing<Vec<u8>>,
}

/// Signs a request.
pub async fn sign(
    settings: &Settings,
    mut request: EgressRequest,
    secrets: &Secrets,
    now: Now,
) -> Result<EgressRequest, Failure> {
    let mut values = Values {
        timestamp: settings.timestamp.as_ref().map(|(_, format)| time(now.time, *format)).unwrap_or_default(),
        nonce: now.nonce,
        key_id: match &settings.key_id {
            Some(Half::Plain(text)) => text.as_bytes(),
            Some(Half::Secret(_)) => secrets.get(1),
            None => &[],
        },
        digest: String::new(),
        signature: Zeroizing::default(),
        key: key(settings, secrets)?,
    };
    let mut body = Bytes::new();
    if settings.wants_body() {
        body = collect(std::mem::take(&mut request.body), settings.max).await?;
        request.body = Body::full(body.clone());
    }
    if let Some((header, algorithm, encoding)) = &settings.digest {
        values.digest = encoded(digest::digest(algorithm.digest(), &body).as_ref(), *encoding);
        if let Some(name) = header {
            let value =
                HeaderValue::from_str(&values.digest).map_err(|_| Failure::not_sent(Fault::Internal))?;
            request.headers.insert(name.clone(), value);
        }
    }
    if let Some((location, _)) = &settings.timestamp {
        let text = values.timestamp.as_bytes().to_vec();
        write(location, Zeroizing::new(text), &mut request)?;
    }
    for at in [&settings.nonce, &settings.key_id_at].into_iter().flatten() {
        let text = values.fill(&at.format, &request, &body);
        write(&at.location, text, &mut request)?;
    }
    let content = values.fill(&settings.content, &request, &body);
    values.signature = Zeroizing::new(settings.signature_of(&values.key, &content));
    let text = values.fill(&settings.signature.format, &request, &body);
    write(&settings.signature.location, text, &mut request)?;
    Ok(request)
}

impl Settings {
    pub(super) fn wants_body(&self) -> bool {
        self.digest.is_some() || self.content.contains(&Piece::Body)
    }

    fn signature_of(&self, key: &[u8], content: &[u8]) -> String {
        match self.function {
            Function::Hmac => {
                let key = hmac::Key::new(self.algorithm.hmac(), key);
                encoded(hmac::sign(&key, content).as_ref(), self.encoding)
            }
            Function::Hash => {
                encoded(digest::digest(self.algorithm.digest(), content).as_ref(), self.encoding)
            }
        }
    }
}

impl Values<'_> {
    fn fill(&self, pieces: &[Piece], request: &EgressRequest, body: &[u8]) -> Zeroizing<Vec<u8>> {
        // The key may be among them: the buffer must not grow.
        let mut filled: Vec<std::borrow::Cow<'_, [u8]>> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            filled.push(match piece {
                Piece::Text(text) => text.as_bytes().into(),
                Piece::Method => request.method.as_str().as_bytes().into(),
                Piece::Host => request.target.host_header().into_bytes().into(),
                Piece::Path => request.path_and_query.path().as_bytes().into(),
                Piece::Query => request.path_and_query.query().unwrap_or_default().as_bytes().into(),
                Piece::Target => request.path_and_query.as_str().as_bytes().into(),
                Piece::Header(name) => joined(&request.headers, name).into(),
                Piece::Timestamp => self.timestamp.as_bytes().into(),
                Piece::Nonce => self.nonce.as_bytes().into(),
                Piece::KeyId => self.key_id.into(),
                Piece::Body => body.into(),
                Piece::Digest => self.digest.as_bytes().into(),
                Piece::Key => self.key.as_slice().into(),
                Piece::Signature => self.signature.as_bytes().into(),
                Piece::Basic => STANDARD
                    .encode([self.key_id, b":", self.signature.as_bytes()].concat())
                    .into_bytes()
                    .into(),
            });
        }
        Zeroizing::new(filled.concat())
    }
}

/// A field as it will be sent; several lines as one list (RFC 9110 section 5.3).
fn joined(headers: &HeaderMap, name: &http::HeaderName) -> Vec<u8> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b","[..])
}

fn key(settings: &Settings, secrets: &Secrets) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let text = secrets.get(0);
    let decoded = match settings.key_encoding {
        KeyEncoding::Text => Some(Zeroizing::new(text.to_vec())),
        KeyEncoding::Base64 => key_text::base64(text),
        KeyEncoding::Hex => key_text::hex(text),
    };
    decoded.ok_or_else(|| {
        let reference = settings.key.to_string();
        Failure::not_sent(Fault::Credential).because(CredentialError::NotUsable {
            reference,
            place: "a signature: it is not written as `key_encoding` says",
        })
    })
}

/// Writes a text at its place.
fn write(location: &Location, text: Zeroizing<Vec<u8>>, request: &mut EgressRequest) -> Result<(), Failure> {
    match location {
        Location::Header(name) => {
            let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text)).map_err(|_| {
                Failure::not_sent(Fault::Unfit("what is signed cannot stand in a header field"))
            })?;
            value.set_sensitive(true);
            request.headers.insert(name.clone(), value);
        }
        Location::Query(name) => {
            let target = request.path_and_query.as_str();
            let joint = if request.path_and_query.query().is_none() {
                "?"
            } else if target.ends_with(['?', '&']) {
                ""
            } else {
                "&"
            };
            let (name, value) = (percent_encode(name.as_bytes(), QUERY), percent_encode(&text, QUERY));
            let longer = format!("{target}{joint}{name}={value}");
            if longer.len() >= usize::from(u16::MAX) {
                return Err(Failure::not_sent(Fault::TargetTooLong));
            }
            request.path_and_query =
                PathAndQuery::try_from(longer).map_err(|_| Failure::not_sent(Fault::TargetTooLong))?;
        }
    }
    Ok(())
}

fn time(now: SystemTime, format: TimeFormat) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let date = || httpdate::fmt_http_date(UNIX_EPOCH + since);
    match format {
        TimeFormat::EpochS => since.as_secs().to_string(),
        TimeFormat::EpochMs => since.as_millis().to_string(),
        TimeFormat::Iso8601 => humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string(),
        TimeFormat::HttpDate => date(),
        TimeFormat::Rfc2822 => date().replace("GMT", "-0000"),
    }
}

fn encoded(bytes: &[u8], encoding: Encoding) -> String {
    match encoding {
        Encoding::Hex => hex(bytes),
        Encoding::Base64 => STANDARD.encode(bytes),
        Encoding::Base64url => URL_SAFE_NO_PAD.encode(bytes),
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

impl Algorithm {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }
}
