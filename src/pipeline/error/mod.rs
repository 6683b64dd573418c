//! What the app is told when outgate itself answers: one sum of everything that can go wrong, and one table of answers.
//!
//! The client gets static text (and, where a route is denied, the policy author's own words), so nothing secret can leak
//! through a type that holds no secret. The log gets the whole chain. No arm catches all: a new fault must say what its
//! answer is.

mod answers;

pub use answers::Answer;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::message::failure::{Failure, Fault, LimitState, Progress};
use crate::message::headers::HeadFault;
use crate::message::target::TargetFault;
use crate::telemetry::RouteMetrics;

/// The route that denies a request, for the record.
#[derive(Clone, Debug)]
pub struct DeniedBy {
    /// Provider.
    pub provider: Arc<str>,
    /// Route.
    pub route: Arc<str>,
    /// Counters, resolved.
    pub metrics: Arc<RouteMetrics>,
}

/// Why outgate answers itself.
#[derive(Debug)]
pub enum EgressError {
    /// No provider, a denied route, a method or port that is not allowed. The text names the rule.
    Denied {
        /// Names the rule.
        title: Cow<'static, str>,
        /// The route that denies, where one does.
        by: Option<DeniedBy>,
    },
    /// The request's head is malformed or ambiguous.
    Head(HeadFault),
    /// The request's target is malformed.
    Target(TargetFault),
    /// The request is malformed in another way.
    BadRequest(&'static str),
    /// The path can be read in two ways. The message itself is sound, so the connection goes on.
    Path(&'static str),
    /// `Host`, `:authority`, SNI or the CONNECT target disagree, or the local endpoint was called by a strange name.
    Misdirected(&'static str),
    /// The listener wants a token.
    ProxyAuth,
    /// The request came round in a circle.
    Loop,
    /// The head has more fields than `runtime.downstream.max_headers`.
    TooManyFields,
    /// The announced body is larger than `max_body`.
    PayloadTooLarge,
    /// outgate has no room for new work.
    Overloaded,
    /// What happened on the way to the provider.
    Failure(Failure),
    /// A bug: the request dies, the process does not.
    Internal,
}

impl EgressError {
    /// Denied by the policy as a whole, not by a route.
    pub fn denied(title: impl Into<Cow<'static, str>>) -> Self {
        Self::Denied { title: title.into(), by: None }
    }

    /// The line that the app's developer reads.
    pub fn title(&self) -> Cow<'static, str> {
        match self {
            Self::Denied { title, .. } => title.clone(),
            _ => Cow::Borrowed(self.answer().title),
        }
    }

    /// When it makes sense to try again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failure(failure) => failure.retry_after.or(match failure.fault {
                // Connections come free as answers end; the app's own backoff does the rest.
                Fault::ConnectionLimit if failure.progress == Progress::NotSent => {
                    Some(Duration::from_secs(1))
                }
                _ => None,
            }),
            Self::Overloaded => Some(Duration::from_secs(1)),
            Self::Denied { .. }
            | Self::Head(_)
            | Self::Target(_)
            | Self::BadRequest(_)
            | Self::Path(_)
            | Self::Misdirected(_)
            | Self::ProxyAuth
            | Self::Loop
            | Self::TooManyFields
            | Self::PayloadTooLarge
            | Self::Internal => None,
        }
    }

    /// The limit that refused, where one did.
    pub fn limit(&self) -> Option<&LimitState> {
        match self {
            Self::Failure(failure) => failure.limit.as_deref(),
            Self::Denied { .. }
            | Self::Head(_)
            | Self::Target(_)
            | Self::BadRequest(_)
            | Self::Path(_)
            | Self::Misdirected(_)
            | Self::ProxyAuth
            | Self::Loop
            | Self::TooManyFields
            | Self::PayloadTooLarge
            | Self::Overloaded
            | Self::Internal => None,
        }
    }

    /// How far the request had got.
    pub fn progress(&self) -> Progress {
        match self {
            Self::Failure(failure) => failure.progress,
            Self::Denied { .. }
            | Self::Head(_)
            | Self::Target(_)
            | Self::BadRequest(_)
            | Self::Path(_)
            | Self::Misdirected(_)
            | Self::ProxyAuth
            | Self::Loop
            | Self::TooManyFields
            | Self::PayloadTooLarge
            | Self::Overloaded
            | Self::Internal => Progress::NotSent,
        }
    }

    /// The chain of causes, for the log.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Failure(failure) => failure.detail(),
            Self::Denied { title, .. } => Some(title.clone().into_owned()),
            Self::Head(_)
            | Self::Target(_)
            | Self::BadRequest(_)
            | Self::Path(_)
            | Self::Misdirected(_)
            | Self::ProxyAuth
            | Self::Loop
            | Self::TooManyFields
            | Self::PayloadTooLarge
            | Self::Overloaded
            | Self::Internal => Some(self.answer().title.to_owned()),
        }
    }

    /// Whether the app's connection cannot be trusted after this: framing or the rest of a body is in doubt.
    pub fn closes(&self) -> bool {
        match self {
            // An expectation that is not met says nothing against the framing.
            Self::Head(HeadFault::Expectation) => false,
            Self::Head(_)
            | Self::Target(_)
            | Self::BadRequest(_)
            | Self::TooManyFields
            | Self::PayloadTooLarge
            | Self::Internal
            | Self::Overloaded => true,
            Self::Denied { .. } | Self::Path(_) | Self::Misdirected(_) | Self::ProxyAuth | Self::Loop => {
                false
            }
            Self::Failure(failure) => matches!(
                failure.fault,
                Fault::DownstreamGone
                    | Fault::DownstreamMalformed
                    | Fault::DownstreamStalled
                    | Fault::BodyTooLarge
                    | Fault::BodyTooLargeToRewrite
            ),
        }
    }
}

impl From<Failure> for EgressError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<HeadFault> for EgressError {
    fn from(fault: HeadFault) -> Self {
        Self::Head(fault)
    }
}

impl From<TargetFault> for EgressError {
    fn from(fault: TargetFault) -> Self {
        Self::Target(fault)
    }
}
