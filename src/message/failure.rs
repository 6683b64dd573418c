//! What went wrong below admission, in one type that every layer of the path speaks.
//!
//! The place that fails knows whose fault it is, how far the request had got, and what kind of failure it was; retry
//! decisions and the client's answer are made from these three, and never from a text. The text is for the log.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::request::{EgressRequest, Unsent};

/// How far a request had got on its way to the provider when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// No byte of the request reached the provider, or the provider said that it did not process it.
    NotSent,
    /// Bytes may have reached the provider; it may have acted.
    Sent,
    /// The head of an answer was received.
    HeadReceived,
}

/// What went wrong. Every variant has its own answer to the client (`pipeline::error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The address of the provider is not allowed.
    AddressDenied,
    /// The request would reach outgate itself.
    OwnListener,
    /// The name could not be resolved.
    Dns,
    /// The name could not be resolved within `timeouts.connect`.
    DnsTimeout,
    /// The provider refused the connection.
    ConnectRefused,
    /// There is no route to the provider.
    ConnectUnroutable,
    /// The connection could not be made for another reason.
    Connect,
    /// The connection was not made within `timeouts.connect`.
    ConnectTimeout,
    /// The corporate proxy refused or broke.
    UpstreamProxy,
    /// The provider's certificate is not valid for its host.
    TlsCertificate,
    /// The provider sent a TLS alert.
    TlsAlert,
    /// The provider does not speak TLS as it should.
    TlsProtocol,
    /// The TLS handshake was not done within `timeouts.tls`.
    TlsTimeout,
    /// A rate limit of the policy is used up, and its wait would be too long (`limits`).
    RateLimited,
    /// The quota learned from the provider is used up, or the provider throttled (`quota`).
    QuotaHeld,
    /// Too many requests wait for a limit or a quota already (`max_queue`).
    QueueFull,
    /// No permit became free in time (`concurrency`).
    ConcurrencyLimit,
    /// The circuit breaker is open.
    BreakerOpen,
    /// The app wanted a kept answer only, and none is kept (RFC 9111 section 5.2.1.7).
    OnlyIfCached,
    /// No connection to the provider became free in time (`upstream.pool.max_connections`).
    ConnectionLimit,
    /// The provider closed or reset the connection before its answer.
    Reset,
    /// The provider's answer is not HTTP, or breaks its rules.
    Protocol,
    /// The head of the provider's answer is too large.
    HeadTooLarge,
    /// The provider switched protocols without having been asked, or did not when it had to.
    Upgrade,
    /// An attempt may have acted, and the provider's last answer would have the app repeat it under another key.
    Withheld,
    /// `timeouts.response` passed.
    ResponseTimeout,
    /// `timeouts.idle` passed while the request body was being taken.
    IdleTimeout,
    /// `timeouts.deadline`, or what the app set, passed.
    Deadline,
    /// `timeouts.total` passed before the head of the answer.
    Total,
    /// The credential is not there: store down, never read, not usable.
    Credential,
    /// The target would be too long with the credential in its query.
    TargetTooLong,
    /// The request cannot carry its credential, such as a body that is no form; the text tells the app why.
    Unfit(&'static str),
    /// The body has to be held while the credential is put into it, and is too large for that.
    BodyTooLargeToRewrite,
    /// The request may not be sent with, or because of, what it holds; the text tells the app why.
    Forbidden(&'static str),
    /// The app went away.
    DownstreamGone,
    /// The app's body is malformed.
    DownstreamMalformed,
    /// The app's body stalled.
    DownstreamStalled,
    /// The app's body is larger than `max_body`.
    BodyTooLarge,
    /// A bug.
    Internal,
}

impl Fault {
    /// Whether outgate refused for what else goes on: limits, queues, breakers. Another moment would have let the request through.
    pub const fn is_for_load(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::QuotaHeld
                | Self::QueueFull
                | Self::ConcurrencyLimit
                | Self::BreakerOpen
                | Self::ConnectionLimit
        )
    }
}

/// A request that got no answer.
pub struct Failure {
    /// What went wrong.
    pub fault: Fault,
    /// How far the request had got.
    pub progress: Progress,
    /// When it makes sense to try again, where that is known.
    pub retry_after: Option<Duration>,
    /// The limit that refused, for the `RateLimit` fields of the answer.
    pub limit: Option<Box<LimitState>>,
    /// The provider's own field that tells SDKs not to send the request again; written on outgate's answer.
    pub hint: Option<Box<(HeaderName, HeaderValue)>>,
    /// The request itself, whole, where a layer hands it back to the one outside that gave it leave to go on.
    pub handed_back: Option<Box<Unsent>>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// A limit as the `RateLimit-Policy` and `RateLimit` fields tell it (draft-ietf-httpapi-ratelimit-headers-10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitState {
    /// Its name in the policy.
    pub name: Arc<str>,
    /// How many requests the window holds.
    pub quota: u64,
    /// What it counts, where that is not requests: the parameter `qu`.
    pub unit: Option<&'static str>,
    /// The length of the window.
    pub window: Duration,
    /// How many are left now.
    pub remaining: u64,
    /// When more are there.
    pub reset: Duration,
}

impl Failure {
    /// A failure before anything was sent.
    pub fn not_sent(fault: Fault) -> Self {
        Self::new(fault, Progress::NotSent)
    }

    /// A failure after bytes may have reached the provider.
    pub fn sent(fault: Fault) -> Self {
        Self::new(fault, Progress::Sent)
    }

    fn new(fault: Fault, progress: Progress) -> Self {
        Self { fault, progress, retry_after: None, limit: None, hint: None, handed_back: None, source: None }
    }

    /// Adds the cause, for the log.
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says when trying again makes sense.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Says which limit refused, and how it stands.
    pub fn limit(mut self, limit: LimitState) -> Self {
        self.limit = Some(Box::new(limit));
        self
    }

    /// Hands the request back, as it came.
    pub fn handing_back(mut self, request: EgressRequest) -> Self {
        self.handed_back = Some(Box::new(Unsent::new(request)));
        self
    }

    /// The whole chain of causes on one line, for the log. Causes are made of types that hold no secret.
    pub fn detail(&self) -> Option<String> {
        let first = self.source.as_deref()?;
        let mut text = first.to_string();
        let mut next = first.source();
        while let Some(cause) = next {
            let more = cause.to_string();
            // Several libraries repeat their source in their own text.
            if !text.ends_with(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            next = cause.source();
        }
        Some(text)
    }

    /// The cause, where there is one.
    pub fn cause(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        self.source.as_deref()
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({:?}, {:?}", self.fault, self.progress)?;
        match self.detail() {
            Some(detail) => write!(f, ", {detail})"),
            None => f.write_str(")"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail() {
            Some(detail) => write!(f, "{:?}: {detail}", self.fault),
            None => write!(f, "{:?}", self.fault),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detail_is_the_chain() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let failure = Failure::not_sent(Fault::Connect).because(Outer(std::io::Error::other("inner")));
        assert_eq!(failure.detail().unwrap(), "outer: inner");
        assert_eq!(failure.to_string(), "Connect: outer: inner");
        assert_eq!(Failure::sent(Fault::Reset).progress, Progress::Sent);
    }
}
