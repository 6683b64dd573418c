//! What is said to a token endpoint and what it answers (RFC 6749 sections 4 and 5), over the guarded client of the stores:
//! one deadline, bounded answers, no redirects, no word of an answer in an error.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use zeroize::Zeroizing;

use super::{Issued, TokenEnv};
use crate::secret::http::{ClientSettings, HttpAnswer, HttpCall, HttpClient, configured_addresses};
use crate::secret::reference::SecretRef;
use crate::secret::stores::document::Document;
use crate::secret::stores::server::{Plaintext, StoreAddress, read_ca};
use crate::secret::{SecretBytes, TokenFault};
use crate::upstream::UpstreamEnv;

/// Bound of connecting to a token endpoint, and again of the TLS handshake.
const CONNECT: Duration = Duration::from_secs(2);
/// Bound of one exchange with a token endpoint, repeats included.
pub const TOTAL: Duration = Duration::from_secs(5);
/// What may stand in a form as it is (RFC 3986 section 2.3).
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenEndpoint {
    /// Its URL: `https`, or `http` to this very host.
    pub url: StoreAddress,
    /// PEM of the authorities that it is trusted by in place of the system's.
    pub ca: Option<Arc<[u8]>>,
}

impl TokenEndpoint {
    /// Reads what the policy says of an endpoint: `token_url` and `ca`, a file relative to `directory`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(url: &StoreAddress, ca: Option<&str>, directory: &Path) -> Result<Self, String> {
        if let Some((_, mistake)) = url.check_plaintext(Plaintext::Deny) {
            return Err(mistake.replace(", or say `plaintext: allow`", ""));
        }
        let ca = ca.map(|path| read_ca(&directory.join(path))).transpose();
        Ok(Self { url: url.clone(), ca: ca.map_err(|what| format!("`ca`: {what}"))? })
    }

    /// Host, and path if there is one: what names a token in logs.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("{}{}", self.url.target.host, self.url.prefix)
    }
}

/// A client of one token endpoint.
pub struct TokenClient {
    endpoint: Option<(TokenEndpoint, HttpClient)>,
    upstream: Arc<UpstreamEnv>,
}

impl TokenClient {
    /// A client; it connects when it is first used. Without an endpoint it refuses to be used.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        endpoint: Option<&TokenEndpoint>,
        reference: &SecretRef,
        env: &TokenEnv,
    ) -> Result<Self, TokenFault> {
        let upstream = Arc::clone(&env.upstream);
        let Some(endpoint) = endpoint else { return Ok(Self { endpoint: None, upstream }) };
        let settings = ClientSettings {
            name: format!("tokens.{}", reference.path()).into(),
            scheme: endpoint.url.target.scheme,
            ca: endpoint.ca.clone(),
            connect: CONNECT,
            total: TOTAL,
            addresses: configured_addresses(),
        };
        let client = HttpClient::new(settings, &env.upstream)
            .map_err(|_| TokenFault::Setup("TLS to its endpoint cannot be set up"))?;
        Ok(Self { endpoint: Some((endpoint.clone(), client)), upstream })
    }

    /// The way out, for grants that ask at more than one place.
    #[must_use]
    pub fn upstream(&self) -> &Arc<UpstreamEnv> {
        &self.upstream
    }

    /// Posts a form to the endpoint and reads the token of its answer. `repeat`: whether it may be sent again where the
    /// answer was lost; not so where each try uses something up.
    ///
    /// # Errors
    /// No usable answer, a refusal, or an answer without token.
    pub async fn post(
        &self,
        form: Form,
        headers: HeaderMap,
        repeat: bool,
    ) -> Result<TokenAnswer, TokenFault> {
        let Some((endpoint, client)) = &self.endpoint else {
            return Err(TokenFault::Setup("it has no endpoint"));
        };
        let mut call = HttpCall::login(&endpoint.url.target, endpoint.path(), form.0);
        call.repeat = repeat;
        call.headers = headers;
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        call.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let answer = client.send(call).await?;
        if !answer.status.is_success() {
            client.count_refusal(answer.status);
            return Err(refusal(&answer));
        }
        TokenAnswer::parse(&answer.body)
    }
}

impl TokenEndpoint {
    fn path(&self) -> String {
        if self.url.prefix.is_empty() { "/".to_owned() } else { self.url.prefix.clone() }
    }
}

/// The error codes of RFC 6749 section 5.2 and RFC 8693 section 2.2.2; what is not in this list is not repeated.
const CODES: [&str; 7] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
];

fn refusal(answer: &HttpAnswer) -> TokenFault {
    let document = Document::parse(&answer.body).ok();
    let said = document.as_ref().and_then(|document| document.text(&["error"]));
    let code = said.and_then(|said| CODES.into_iter().find(|code| *code == said)).unwrap_or("other");
    TokenFault::Refused { status: answer.status.as_u16(), code }
}

/// The body of a token request, in memory that is wiped.
#[derive(Default)]
pub struct Form(SecretBytes);

impl Form {
    /// A form with its grant type.
    #[must_use]
    pub fn grant(grant_type: &str) -> Self {
        Self::default().field("grant_type", grant_type.as_bytes())
    }

    /// The form with one more field. Bytes are percent-encoded.
    #[must_use]
    pub fn field(self, name: &str, value: &[u8]) -> Self {
        let name = percent_encode(name.as_bytes(), FORM);
        let joint = if self.0.is_empty() { "" } else { "&" };
        // Counted first: when a string grows by itself, a copy stays behind.
        let more = joint.len() + name.clone().map(str::len).sum::<usize>() + 1 + value.len() * 3;
        let mut text = Zeroizing::new(Vec::with_capacity(self.0.len() + more));
        text.extend_from_slice(&self.0);
        text.extend_from_slice(joint.as_bytes());
        name.for_each(|piece| text.extend_from_slice(piece.as_bytes()));
        text.push(b'=');
        percent_encode(value, FORM).for_each(|piece| text.extend_from_slice(piece.as_bytes()));
        Self(text)
    }

    /// The same, where there is a value.
    #[must_use]
    pub fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.field(name, value.as_bytes()),
            None => self,
        }
    }
}

/// `Authorization: Basic`, with id and secret encoded as a form first (RFC 6749 section 2.3.1).
///
/// # Errors
/// They cannot stand in a field.
pub fn client_basic(id: &[u8], secret: &[u8]) -> Result<(HeaderName, HeaderValue), TokenFault> {
    let encoded = |bytes| Zeroizing::new(percent_encode(bytes, FORM).to_string());
    let pair = Zeroizing::new(format!("{}:{}", *encoded(id), *encoded(secret)));
    let text = Zeroizing::new(format!("Basic {}", *Zeroizing::new(STANDARD.encode(pair.as_bytes()))));
    let value =
        HeaderValue::from_maybe_shared(bytes::Bytes::from_owner(Zeroizing::new(text.as_bytes().to_vec())));
    let mut value =
        value.map_err(|_| TokenFault::Key("the client's id or secret cannot stand in a header"))?;
    value.set_sensitive(true);
    Ok((AUTHORIZATION, value))
}

/// A good answer (RFC 6749 section 5.1). No `Debug`: it holds tokens.
pub struct TokenAnswer(Document);

impl TokenAnswer {
    fn parse(body: &[u8]) -> Result<Self, TokenFault> {
        Document::parse(body).map(Self).map_err(|_| TokenFault::Garbled("it is not JSON"))
    }

    /// What stands in a string field.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.text(&[name])
    }

    /// The access token with its life: `expires_in` in seconds (also as a string, as some write it), or the date of
    /// `expires_at` (Square), or none (Salesforce): then `otherwise`.
    ///
    /// # Errors
    /// There is no access token.
    pub fn issued(&self, otherwise: Option<Duration>) -> Result<Issued, TokenFault> {
        let token = self.text("access_token").filter(|token| !token.is_empty());
        let token = token.ok_or(TokenFault::Garbled("it has no `access_token`"))?;
        let life = self.0.number(&["expires_in"]).map(Duration::from_secs);
        let life = life.or_else(|| self.life_from_date(SystemTime::now()));
        Ok(Issued { token: token.as_bytes().to_vec().into(), life: life.or(otherwise) })
    }

    fn life_from_date(&self, now: SystemTime) -> Option<Duration> {
        let end = humantime::parse_rfc3339_weak(self.text("expires_at")?).ok()?;
        // A date that lies in the past by our clock is a token that is over, and not one without end.
        Some(end.duration_since(now).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_encoded_and_grows_field_by_field() {
        let form = Form::grant("client_credentials")
            .field("scope", b"a b/c")
            .maybe("x", None)
            .maybe("y", Some("1+1"));
        assert_eq!(form.0.as_slice(), b"grant_type=client_credentials&scope=a%20b%2Fc&y=1%2B1");
    }

    #[test]
    fn id_and_secret_are_encoded_before_they_are_joined() {
        let (name, value) = client_basic(b"a:b", b"c%d").unwrap();
        assert_eq!((name, value.is_sensitive()), (AUTHORIZATION, true));
        assert_eq!(value.to_str().unwrap(), format!("Basic {}", STANDARD.encode("a%3Ab:c%25d")));
    }

    #[test]
    fn lives_are_read_in_every_form_they_are_told_in() {
        let seconds = |body: &str| {
            let issued =
                TokenAnswer::parse(body.as_bytes()).unwrap().issued(Some(Duration::from_secs(7))).unwrap();
            issued.life.unwrap().as_secs()
        };
        assert_eq!(seconds(r#"{"access_token":"t","expires_in":3600}"#), 3600);
        assert_eq!(seconds(r#"{"access_token":"t","expires_in":"3599"}"#), 3599);
        assert_eq!(seconds(r#"{"access_token":"t","expires_in":null}"#), 7);
        assert_eq!(seconds(r#"{"access_token":"t","expires_in":-5}"#), 7);
        assert_eq!(seconds(r#"{"access_token":"t"}"#), 7);
        assert_eq!(seconds(r#"{"access_token":"t","expires_at":"2001-01-01T00:00:00Z"}"#), 0);
        let square =
            TokenAnswer::parse(br#"{"access_token":"t","expires_at":"2030-01-01T00:01:00Z"}"#).unwrap();
        let now = humantime::parse_rfc3339("2030-01-01T00:00:00Z").unwrap();
        assert_eq!(square.life_from_date(now), Some(Duration::from_secs(60)));
    }

    #[test]
    fn answers_without_a_token_are_refused_and_codes_are_from_a_closed_list() {
        for body in ["{}", r#"{"access_token":""}"#, r#"{"access_token":5}"#, "[]"] {
            assert!(TokenAnswer::parse(body.as_bytes()).unwrap().issued(None).is_err(), "{body}");
        }
        assert!(TokenAnswer::parse(b"<html>").is_err());
        for (body, code) in [
            (r#"{"error":"invalid_grant","error_description":"CANARY"}"#, "invalid_grant"),
            (r#"{"error":"CANARY"}"#, "other"),
            ("CANARY", "other"),
        ] {
            let answer = HttpAnswer {
                status: http::StatusCode::BAD_REQUEST,
                headers: HeaderMap::new(),
                body: body.as_bytes().to_vec().into(),
            };
            assert_eq!(refusal(&answer), TokenFault::Refused { status: 400, code });
        }
    }
}
