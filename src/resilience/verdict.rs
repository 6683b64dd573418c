//! What an answer means: its class, and whether it proves that nothing was done.
//!
//! The table of a route (`responses`) judges each attempt's answer once, next to the provider; the layers outside read the
//! verdict from the answer's extensions. An answer without a verdict is a plain success.

use std::fmt;
use std::time::Duration;

use http::Response;

/// What an answer, or a failure without one, means for the layers. Which status is which class is said by `responses` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The quota of the moment is used up: its key pauses, and the request may be sent again after it.
    Throttle,
    /// A plan is exhausted: its key pauses, and nothing is sent again.
    Quota,
    /// Too many at once: sent again after a backoff, pauses nothing.
    Concurrency,
    /// The provider is overloaded.
    Overload,
    /// The provider was in the middle of something else with the same object.
    Conflict,
    /// The provider is not available.
    Unavailable,
    /// The credential was refused: heals it.
    Unauthorized,
    /// Says no for good: not sent again, unless the provider's own hint asks for it.
    Final,
    /// Fine.
    Success,
}

impl Class {
    /// The word of the policy and of logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Throttle => "throttle",
            Self::Quota => "quota",
            Self::Concurrency => "concurrency",
            Self::Overload => "overload",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Unauthorized => "unauthorized",
            Self::Final => "final",
            Self::Success => "success",
        }
    }

    /// Whether an answer of this class proves, unless its row says otherwise, that the provider did not act: a throttle, a
    /// refused credential and a cap on concurrent requests are checked before any work.
    pub const fn acted(self) -> bool {
        !matches!(self, Self::Throttle | Self::Unauthorized | Self::Concurrency)
    }

    /// Whether it counts against the provider in its circuit breaker. A refusal of the client's own making does not.
    pub const fn trips(self) -> bool {
        matches!(self, Self::Overload | Self::Unavailable)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The judgement of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it means.
    pub class: Class,
    /// Whether the provider may have acted on the request.
    pub acted: bool,
    /// How long the provider asks to wait (`Retry-After`, or what the row's `wait` names); counted from now.
    pub wait: Option<Duration>,
}

impl Verdict {
    /// A plain success.
    pub const SUCCESS: Self = Self { class: Class::Success, acted: true, wait: None };

    /// The verdict on an answer that has been judged.
    pub fn of<B>(response: &Response<B>) -> Self {
        response.extensions().get::<Self>().copied().unwrap_or(Self::SUCCESS)
    }

    /// Notes the verdict on an answer. A plain success needs no note, so most answers cost nothing.
    pub fn note<B>(self, response: &mut Response<B>) {
        if self != Self::SUCCESS {
            response.extensions_mut().insert(self);
        }
    }
}

/// Stands beside the verdict on an answer: with its bucket all others of the credential at this host pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeHost;

impl WholeHost {
    /// Whether it stands on an answer.
    pub fn is_on<B>(response: &Response<B>) -> bool {
        response.extensions().get::<Self>().is_some()
    }

    /// Puts it on an answer.
    pub fn note<B>(self, response: &mut Response<B>) {
        response.extensions_mut().insert(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_carries_its_verdict() {
        let mut response = Response::new(());
        assert_eq!(Verdict::of(&response), Verdict::SUCCESS);
        Verdict::SUCCESS.note(&mut response);
        assert!(response.extensions().is_empty());
        let verdict = Verdict { class: Class::Throttle, acted: false, wait: Some(Duration::from_secs(3)) };
        verdict.note(&mut response);
        assert_eq!(Verdict::of(&response), verdict);
    }

    #[test]
    fn only_three_classes_prove_that_nothing_was_done_and_two_trip_the_breaker() {
        use Class::*;
        let all =
            [Throttle, Quota, Concurrency, Overload, Conflict, Unavailable, Unauthorized, Final, Success];
        let proves: Vec<_> = all.into_iter().filter(|class| !class.acted()).collect();
        assert_eq!(proves, [Throttle, Concurrency, Unauthorized]);
        let trips: Vec<_> = all.into_iter().filter(|class| class.trips()).collect();
        assert_eq!(trips, [Overload, Unavailable]);
    }
}
