//! What is said to a token endpoint and what it answers (RFC 6749 sections 4 and 5), over the guarded client of the stores:
//! one deadline, bounded answers, no redirects, no word of an answer in an error.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_encode;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Deserializer};
use zeroize::Zeroizing;

use super::{Issued, TokenEnv};
use crate::message::date::rfc3339;
use crate::message::target::{Authority, Scheme, Target};
use crate::secret::form::{Form, UNRESERVED};
use crate::secret::http::{ClientSettings, HttpAnswer, HttpCall, HttpClient, Peers, configured_addresses};
use crate::secret::reference::SecretRef;
use crate::secret::stores::document::Document;
use crate::secret::stores::server::{Plaintext, StoreAddress, read_ca};
use crate::secret::{SecretBytes, TokenFault};
use crate::upstream::UpstreamEnv;
use crate::upstream::ranges::{IpClass, classify};

/// Bound of connecting to a token endpoint, and again of the TLS handshake.
const CONNECT: Duration = Duration::from_secs(2);
/// Bound of one exchange with a token endpoint, repeats included.
pub const TOTAL: Duration = Duration::from_secs(5);
/// The same, where an exchange uses up what it is made with: an answer that is not waited for ends the grant.
pub const TOTAL_KEPT: Duration = Duration::from_secs(30);
/// What a token lives at most: ten years. Longer is as good as for ever, and cannot be reckoned with.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A token endpoint's URL as written: `https`, or `http` to this very host. Its path and query are kept as they are; it
/// has no fragment (RFC 6749 section 3.2), and nothing before an `@`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenUrl {
    /// Its origin.
    pub target: Target,
    /// Path and query; begins with `/`.
    pub path: String,
}

impl FromStr for TokenUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "expected a URL such as `https://login.example.com/oauth2/token`";
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let scheme = match scheme {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(FORM),
        };
        let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
        if path.contains('#') {
            return Err("a token endpoint's URL has no fragment");
        }
        if !path.is_ascii() || path.contains(|c: char| c.is_ascii_control() || " \"<>\\^`{|}".contains(c)) {
            return Err("the URL has characters that must be percent-encoded");
        }
        let Authority { host, port } = Authority::parse(authority).map_err(|_| FORM)?;
        if host.ip().is_some_and(|ip| classify(ip) == IpClass::Metadata) {
            return Err("that is the address of a cloud's metadata service, which is no token endpoint");
        }
        let port = port.unwrap_or_else(|| scheme.default_port());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { target: Target { scheme, host, port }, path })
    }
}

impl<'de> Deserialize<'de> for TokenUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for TokenUrl {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TokenUrl".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^https?://", "examples": ["https://login.example.com/oauth2/token"] })
    }
}

impl From<&TokenUrl> for TokenUrl {
    fn from(url: &TokenUrl) -> Self {
        url.clone()
    }
}

impl From<&StoreAddress> for TokenUrl {
    fn from(address: &StoreAddress) -> Self {
        let path = if address.prefix.is_empty() { "/".to_owned() } else { address.prefix.clone() };
        Self { target: address.target.clone(), path }
    }
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenEndpoint {
    /// Its URL.
    pub url: TokenUrl,
    /// PEM of the authorities that it is trusted by in place of the system's.
    pub ca: Option<Arc<[u8]>>,
}

impl TokenEndpoint {
    /// Reads what the policy says of an endpoint: `token_url` and `ca`, a file relative to `directory`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(url: impl Into<TokenUrl>, ca: Option<&str>, directory: &Path) -> Result<Self, String> {
        let url = url.into();
        let address = StoreAddress { target: url.target.clone(), prefix: String::new() };
        if let Some((_, mistake)) = address.check_plaintext(Plaintext::Deny) {
            return Err(mistake.replace(", or say `plaintext: allow`", ""));
        }
        let ca = ca.map(|path| read_ca(&directory.join(path))).transpose();
        Ok(Self { url, ca: ca.map_err(|what| format!("`ca`: {what}"))? })
    }

    /// Host, and path if there is one: what names a token in logs.
    #[must_use]
    pub fn shown(&self) -> String {
        let path = self.url.path.split('?').next().unwrap_or_default().trim_end_matches('/');
        format!("{}{path}", self.url.target.host)
    }

    /// The URL as a text, with a port only where it is not the scheme's own: who an assertion is for.
    #[must_use]
    pub fn url_text(&self) -> String {
        let Target { scheme, host, port } = &self.url.target;
        let port = if *port == scheme.default_port() { String::new() } else { format!(":{port}") };
        format!("{}://{host}{port}{}", scheme.as_str(), self.url.path)
    }
}

/// A client of one token endpoint, for one token. What fails there is counted together with all that others ask there.
pub struct TokenClient {
    endpoint: Option<(TokenEndpoint, HttpClient)>,
    upstream: Arc<UpstreamEnv>,
    peers: Arc<Peers>,
    /// Whose token it is: the token's name, and the tenant's.
    asker: String,
}

impl TokenClient {
    /// A client; it connects when it is first used. Without an endpoint it refuses to be used. An exchange takes `total` at
    /// most, repeats included. `tenant` is whose token it is, where it is a tenant's.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        endpoint: Option<&TokenEndpoint>,
        (reference, tenant): (&SecretRef, Option<&str>),
        total: Duration,
        env: &TokenEnv,
    ) -> Result<Self, TokenFault> {
        let (upstream, peers) = (Arc::clone(&env.upstream), Arc::clone(&env.peers));
        // No name of a token has a blank in it.
        let asker = format!("{} {}", reference.path(), tenant.unwrap_or_default());
        let Some(endpoint) = endpoint else { return Ok(Self { endpoint: None, upstream, peers, asker }) };
        let settings = ClientSettings {
            name: format!("tokens.{}", reference.path()).into(),
            scheme: endpoint.url.target.scheme,
            ca: endpoint.ca.clone(),
            connect: CONNECT,
            total,
            addresses: configured_addresses(),
        };
        let client = HttpClient::new(settings, &env.upstream)
            .map_err(|_| TokenFault::Setup("TLS to its endpoint cannot be set up"))?
            .counting_in(&peers);
        Ok(Self { endpoint: Some((endpoint.clone(), client)), upstream, peers, asker })
    }

    /// The way out, for grants that ask at more than one place.
    #[must_use]
    pub fn upstream(&self) -> &Arc<UpstreamEnv> {
        &self.upstream
    }

    /// Where those count what fails.
    #[must_use]
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
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
        let (endpoint, _) = self.endpoint()?;
        let mut call = form.call(&endpoint.url.target, endpoint.url.path.clone());
        call.repeat = repeat;
        call.headers.extend(headers);
        self.ask(call).await
    }

    /// Posts a form, which may be repeated, to a URL that stands in a key. Whose URLs may stand there is the caller's to
    /// judge; it is one of the endpoint's scheme.
    ///
    /// # Errors
    /// As [`TokenClient::post`].
    pub async fn post_to(&self, url: &TokenUrl, form: Form) -> Result<TokenAnswer, TokenFault> {
        let (endpoint, _) = self.endpoint()?;
        if url.target.scheme != endpoint.url.target.scheme {
            return Err(TokenFault::Setup("the scheme of its URL is not the one of its endpoint"));
        }
        self.ask(form.call(&url.target, url.path.clone())).await
    }

    /// Posts JSON, which may be repeated, to a path below the endpoint's. `path` starts with a slash and is percent-encoded.
    ///
    /// # Errors
    /// As [`TokenClient::post`].
    pub async fn post_json(
        &self,
        path: &str,
        headers: HeaderMap,
        body: SecretBytes,
    ) -> Result<TokenAnswer, TokenFault> {
        let (endpoint, _) = self.endpoint()?;
        let path = format!("{}{path}", endpoint.url.path.trim_end_matches('/'));
        let mut call = HttpCall { headers, ..HttpCall::login(&endpoint.url.target, path, body) };
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.ask(call).await
    }

    fn endpoint(&self) -> Result<&(TokenEndpoint, HttpClient), TokenFault> {
        self.endpoint.as_ref().ok_or(TokenFault::Setup("it has no endpoint"))
    }

    async fn ask(&self, mut call: HttpCall) -> Result<TokenAnswer, TokenFault> {
        let (_, client) = self.endpoint()?;
        call.headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        call.subject = Some(self.asker.clone());
        let answer = client.send(call).await?;
        if !answer.status.is_success() {
            return Err(refused(answer));
        }
        let token = TokenAnswer::parse(&answer.body)?;
        // Some answer 200 and say in the body that it is none (Slack, GitHub).
        if token.text("access_token").is_none() && token.0.at(&["error"]).is_some() {
            return Err(refused(answer));
        }
        // GitHub's installation tokens stand in `token`.
        if token.text("access_token").or(token.text("token")).is_some_and(|token| !token.is_empty()) {
            answer.verdict.works();
        }
        Ok(token)
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

/// What stands for a code that is not in the list.
const OTHER: &str = "other";

/// What Slack and GitHub say for `invalid_grant` of a refresh token.
const GRANT_IS_OVER: [&str; 3] = ["invalid_refresh_token", "bad_refresh_token", "token_expired"];

/// A refusal. One that names its reason (in a 4xx: any, for providers have codes of their own), or says in its API's own form that
/// who asks is not known (401, 404: GitHub), concerns who asks; any other may be the word of whatever stands before the endpoint, and counts for all.
fn refused(answer: HttpAnswer) -> TokenFault {
    let document = Document::parse(&answer.body).ok();
    let said = document.as_ref().and_then(|document| document.text(&["error"]));
    let (status, code) = (answer.status.as_u16(), code_of(said));
    let names_reason = code != OTHER || said.is_some() && answer.status.is_client_error();
    if names_reason || document.is_some() && matches!(status, 401 | 404) {
        answer.verdict.refuses();
    }
    TokenFault::Refused { status, code }
}

fn code_of(said: Option<&str>) -> &'static str {
    match said {
        Some(said) if GRANT_IS_OVER.contains(&said) => "invalid_grant",
        said => said.and_then(|said| CODES.into_iter().find(|code| *code == said)).unwrap_or(OTHER),
    }
}

/// `Authorization: Basic`, with id and secret encoded as a form first (RFC 6749 section 2.3.1).
///
/// # Errors
/// They cannot stand in a field.
pub fn client_basic(id: &[u8], secret: &[u8]) -> Result<(HeaderName, HeaderValue), TokenFault> {
    let encoded = |bytes| Zeroizing::new(percent_encode(bytes, UNRESERVED).to_string());
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

    #[cfg(test)]
    pub(super) fn of(body: &str) -> Self {
        Self::parse(body.as_bytes()).unwrap()
    }

    /// What stands in a string field.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.text(&[name])
    }

    /// The access token with its life: `expires_in` in seconds (also as a string or with a fraction, as some write it);
    /// or the moment of `expires_at` or `expires_on` (Square: a date; others: seconds or milliseconds since 1970); or none
    /// (Salesforce): then `otherwise`.
    ///
    /// # Errors
    /// There is no access token, or it is of a type that is not sent as a bearer token; or its life is told in a form that
    /// cannot be read, or is over.
    pub fn issued(&self, otherwise: Option<Duration>) -> Result<Issued, TokenFault> {
        self.issued_as("access_token", otherwise)
    }

    /// The same, where the token has another name.
    ///
    /// # Errors
    /// There is no such field.
    pub fn issued_as(&self, name: &str, otherwise: Option<Duration>) -> Result<Issued, TokenFault> {
        let token = self.text(name).filter(|token| !token.is_empty());
        let token = token.ok_or(TokenFault::Garbled("it has no token"))?;
        // RFC 6749 section 7.1. Others than these two name what is a bearer token all the same (`bot`, `N_A`).
        let bound = |kind: &str| ["dpop", "mac"].iter().any(|bound| kind.eq_ignore_ascii_case(bound));
        if self.text("token_type").is_some_and(bound) {
            return Err(TokenFault::Garbled("its token is bound to a key, and no bearer token"));
        }
        let life = match self.seconds("expires_in")? {
            Some(life) => Some(life),
            None => self.life_from_date(SystemTime::now())?,
        };
        if life == Some(Duration::ZERO) {
            return Err(TokenFault::Garbled("its token is over already"));
        }
        let life = life.or(otherwise).map(|life| life.min(LONGEST));
        Ok(Issued { token: token.as_bytes().to_vec().into(), life })
    }

    /// What stands in a field, if it is there and not null. A number below nought is nought: what it tells of is over.
    fn seconds(&self, name: &str) -> Result<Option<Duration>, TokenFault> {
        let Some(value) = self.0.at(&[name]).filter(|value| !value.is_null()) else { return Ok(None) };
        let seconds = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
        // A life that cannot be read is not one without end.
        let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        seconds.map(Some).ok_or(UNREADABLE)
    }

    fn life_from_date(&self, now: SystemTime) -> Result<Option<Duration>, TokenFault> {
        let end = match self.text("expires_at").and_then(rfc3339) {
            Some(end) => end,
            None => {
                let since_1970 = match self.seconds("expires_at")? {
                    Some(seconds) => Some(seconds),
                    None => self.seconds("expires_on")?,
                };
                let Some(since_1970) = since_1970 else { return Ok(None) };
                UNIX_EPOCH.checked_add(plausible(since_1970)?).ok_or(UNREADABLE)?
            }
        };
        // A date that lies in the past by our clock is a token that is over, and not one without end.
        Ok(Some(end.duration_since(now).unwrap_or_default()))
    }
}

/// From here on a moment is told in milliseconds: as seconds that is the year 5138, as milliseconds March 1973.
const MILLISECONDS: Duration = Duration::from_secs(100_000_000_000);

/// A moment since 1970, of which nobody says whether it is in seconds or in milliseconds.
fn plausible(since_1970: Duration) -> Result<Duration, TokenFault> {
    let moment = if since_1970 < MILLISECONDS { since_1970 } else { since_1970 / 1000 };
    // Microseconds, or no moment at all.
    if moment < MILLISECONDS { Ok(moment) } else { Err(UNREADABLE) }
}

const UNREADABLE: TokenFault = TokenFault::Garbled("the life of its token cannot be read");

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(seconds(r#"{"access_token":"t","expires_in":59.5}"#), 59);
        assert_eq!(seconds(r#"{"access_token":"t","expires_in":null}"#), 7);
        assert_eq!(seconds(r#"{"access_token":"t","expires_in":null,"expires_at":null}"#), 7);
        assert_eq!(seconds(r#"{"access_token":"t"}"#), 7);
        assert_eq!(seconds(r#"{"access_token":"t","expires_in":1e18}"#), LONGEST.as_secs());
        for over in [
            r#"{"access_token":"t","expires_at":"2001-01-01T00:00:00Z"}"#,
            r#"{"access_token":"t","expires_at":1000000000}"#,
            r#"{"access_token":"t","expires_on":"1000000000"}"#,
            r#"{"access_token":"t","expires_in":0}"#,
            r#"{"access_token":"t","expires_in":-5}"#,
            r#"{"access_token":"t","expires_in":"-5"}"#,
            // What cannot be read is not a life without end.
            r#"{"access_token":"t","expires_in":1e300}"#,
            r#"{"access_token":"t","expires_in":"1h"}"#,
            r#"{"access_token":"t","expires_in":"NaN"}"#,
            r#"{"access_token":"t","expires_in":""}"#,
            r#"{"access_token":"t","expires_in":[60]}"#,
            r#"{"access_token":"t","expires_at":"soon"}"#,
            r#"{"access_token":"t","expires_on":true}"#,
            r#"{"access_token":"t","expires_at":1e19}"#,
            // Milliseconds of 2001, and microseconds of 2030.
            r#"{"access_token":"t","expires_at":1000000000000}"#,
            r#"{"access_token":"t","expires_on":"1893456060000000"}"#,
        ] {
            assert!(TokenAnswer::parse(over.as_bytes()).unwrap().issued(None).is_err(), "{over}");
        }
        let square =
            TokenAnswer::parse(br#"{"access_token":"t","expires_at":"2030-01-01T00:01:00Z"}"#).unwrap();
        let now = humantime::parse_rfc3339("2030-01-01T00:00:00Z").unwrap();
        assert_eq!(square.life_from_date(now), Ok(Some(Duration::from_secs(60))));
        for moment in
            ["1893456060", "\"1893456060\"", "1893456060000", "\"1893456060000\"", "1893456060000.0"]
        {
            let answer = TokenAnswer::of(&format!(r#"{{"access_token":"t","expires_at":{moment}}}"#));
            assert_eq!(answer.life_from_date(now), Ok(Some(Duration::from_secs(60))), "{moment}");
        }
    }

    #[test]
    fn urls_are_kept_as_they_are_and_checked() {
        for (text, target, path) in [
            ("https://idp.example.com", "https://idp.example.com", "/"),
            ("https://IdP.example.com:8443/a/b/?p=x&y", "https://idp.example.com:8443", "/a/b/?p=x&y"),
            ("https://idp.example.com?p=x", "https://idp.example.com", "/?p=x"),
            ("http://127.0.0.1:80/t", "http://127.0.0.1", "/t"),
        ] {
            let url: TokenUrl = text.parse().unwrap();
            let endpoint = TokenEndpoint { url, ca: None };
            assert_eq!(endpoint.url_text(), format!("{target}{path}"));
        }
        for text in [
            "idp.example.com/t",
            "ftp://idp.example.com",
            "https://",
            "https://user:word@idp.example.com/t",
            "https://idp.example.com/#f",
            "https://idp.example.com/a b",
            "https://169.254.169.254/token",
        ] {
            assert!(text.parse::<TokenUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn answers_without_a_token_are_refused_and_codes_are_from_a_closed_list() {
        for body in [
            "{}",
            r#"{"access_token":"t","token_type":"DPoP"}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":5}"#,
            "[]",
        ] {
            assert!(TokenAnswer::parse(body.as_bytes()).unwrap().issued(None).is_err(), "{body}");
        }
        assert!(TokenAnswer::parse(b"<html>").is_err());
        for (body, code) in [
            (r#"{"error":"invalid_grant","error_description":"CANARY"}"#, "invalid_grant"),
            (r#"{"ok":false,"error":"invalid_refresh_token"}"#, "invalid_grant"),
            (r#"{"error":"CANARY"}"#, "other"),
            ("CANARY", "other"),
        ] {
            let answer = HttpAnswer {
                status: http::StatusCode::BAD_REQUEST,
                headers: HeaderMap::new(),
                body: body.as_bytes().to_vec().into(),
                verdict: crate::secret::http::Verdict::of_nothing(),
            };
            assert_eq!(refused(answer), TokenFault::Refused { status: 400, code });
        }
    }
}
