//! AWS signature version 4 of a request's head (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html>), and
//! the key that signs the chunks of a body. Canonicalisation is the crate's (`aws-sigv4`); what stands here is what S3 wants
//! differently, and that nothing of a signature comes into a log.

use std::borrow::Cow;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign as sign_request,
};
use aws_sigv4::sign::v4;
use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use zeroize::Zeroizing;

/// The hash of no bytes.
pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// What RFC 3986 section 2.3 calls unreserved stays as it is in a canonical path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What is signed.
pub struct ToSign<'a> {
    /// The method.
    pub method: &'a str,
    /// `Host` as it is sent, with the port where that is odd.
    pub host: &'a str,
    /// Path and query as they are sent.
    pub path_and_query: &'a str,
    /// The fields that are signed; `host` is added.
    pub headers: Vec<(&'a str, &'a str)>,
    /// SHA-256 of the body in hex, or one of the words that S3 takes in its place.
    pub payload: &'a str,
    /// The rules that the service has.
    pub rules: Rules,
}

/// How the path is encoded and whether the hash of the body is sent along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// S3: the path is encoded once and not normalised, and `x-amz-content-sha256` is always there.
    S3,
    /// Others: the path as sent is encoded once more, and `x-amz-content-sha256` is sent as well.
    Hashed,
    /// Others, without that field.
    Plain,
}

/// Where keys are good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Such as `eu-west-1`, or `auto`.
    pub region: Cow<'a, str>,
    /// The name that the service signs with, such as `s3`.
    pub service: Cow<'a, str>,
}

/// A signature.
pub struct Signed {
    /// The fields that carry it: `authorization`, `x-amz-date`, and where it applies `x-amz-security-token` and
    /// `x-amz-content-sha256`. Sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The signature alone, in hex: what the first chunk of a signed body follows.
    pub signature: String,
}

/// The request cannot be signed: a value that is not ASCII in a field that has to be signed, or a broken URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request could not be signed")]
pub struct NotSigned;

/// Signs a request.
///
/// # Errors
/// [`NotSigned`].
pub fn sign(
    request: &ToSign<'_>,
    keys: &Credentials,
    scope: &Scope<'_>,
    now: SystemTime,
) -> Result<Signed, NotSigned> {
    let identity = keys.clone().into();
    let mut settings = SigningSettings::default();
    if request.rules != Rules::Plain {
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    }
    if request.rules == Rules::S3 {
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    }
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(&scope.region)
        .name(&scope.service)
        .time(now)
        .settings(settings)
        .build()
        .map_err(|_| NotSigned)?;
    let url = url(request);
    let headers = std::iter::once(("host", request.host)).chain(request.headers.iter().copied());
    let body = SignableBody::Precomputed(request.payload.to_owned());
    let signable = SignableRequest::new(request.method, url, headers, body).map_err(|_| NotSigned)?;
    // The signer traces what it signs. It masks the session token by itself; this does not depend on that.
    let output = tracing::dispatcher::with_default(&tracing::Dispatch::none(), || {
        sign_request(signable, &params.into())
    });
    let (instructions, signature) = output.map_err(|_| NotSigned)?.into_parts();
    let (fields, _) = instructions.into_parts();
    let mut headers = Vec::with_capacity(fields.len());
    for field in fields {
        let mut value = HeaderValue::from_str(field.value()).map_err(|_| NotSigned)?;
        value.set_sensitive(true);
        headers.push((HeaderName::from_static(field.name()), value));
    }
    Ok(Signed { headers, signature })
}

/// The URL that is signed. S3 decodes the path that it gets and encodes it anew, so a client that left characters
/// unencoded that it would encode needs the same here.
fn url(request: &ToSign<'_>) -> String {
    let (path, query) = match request.path_and_query.find('?') {
        Some(at) => request.path_and_query.split_at(at),
        None => (request.path_and_query, ""),
    };
    let mut url = String::with_capacity(8 + request.host.len() + request.path_and_query.len());
    url.push_str("https://");
    url.push_str(request.host);
    if request.rules == Rules::S3 {
        for (index, segment) in path.split('/').enumerate() {
            if index > 0 {
                url.push('/');
            }
            let decoded: Cow<'_, [u8]> = percent_decode_str(segment).into();
            url.extend(percent_encode(&decoded, SEGMENT));
        }
    } else {
        url.push_str(path);
    }
    url.push_str(query);
    url
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Bytes in hex, lower case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Signs the pieces of one body: the key of one day, region and service, and the scope that it stands for.
pub struct ChunkKey {
    key: Zeroizing<Vec<u8>>,
    /// `x-amz-date` of the head, such as `20130524T000000Z`.
    date: String,
    /// `20130524/us-east-1/s3/aws4_request`.
    scope: String,
}

impl ChunkKey {
    /// The key for a body whose head was signed at `date` (`x-amz-date`).
    #[must_use]
    pub fn new(keys: &Credentials, scope: &Scope<'_>, date: &str) -> Self {
        let day = date.get(..8).unwrap_or(date);
        let first = Zeroizing::new([b"AWS4", keys.secret_access_key().as_bytes()].concat());
        let steps = [day, &*scope.region, &*scope.service, "aws4_request"];
        let key = steps.iter().fold(first, |key, step| Zeroizing::new(mac(&key, step.as_bytes())));
        let scope = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
        Self { key, date: date.to_owned(), scope }
    }

    /// The signature of a chunk whose data has this hash, behind a piece with the signature `previous`.
    #[must_use]
    pub fn chunk(&self, previous: &str, data_sha256: &str) -> String {
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{previous}\n{EMPTY_SHA256}\n{data_sha256}",
            self.date, self.scope
        );
        hex(&mac(&self.key, text.as_bytes()))
    }

    /// The signature of a trailer section, whose lines `name:value\n` have this hash.
    #[must_use]
    pub fn trailer(&self, previous: &str, trailer_sha256: &str) -> String {
        let text =
            format!("AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{previous}\n{trailer_sha256}", self.date, self.scope);
        hex(&mac(&self.key, text.as_bytes()))
    }
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

#[cfg(test)]
mod tests;
