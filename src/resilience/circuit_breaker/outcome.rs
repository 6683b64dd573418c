//! What the end of a request says about the provider's health.
//!
//! A failure is: no answer, for a reason that lies with the provider or the way to it; an answer of a class that trips
//! (`overload`, `unavailable`); a 5xx that no row of `responses` gives a class. To say that a certain 5xx of a provider is no
//! sign of illness, give it a row (`is: final`). Every other answer is a success, 4xx and 429 included, whatever class a row
//! gives them for the sake of retries: who refuses is there.
//!
//! Nothing at all is said by outgate's own refusals, by the app's mistakes and absence, and by the bounds on the whole
//! exchange (`deadline`, `Outgate-Timeout`, `total`): waits inside outgate and slow uploads use them up too. What tells a
//! slow provider is `timeouts.response`; with an app whose deadline is always shorter, only answers are counted.

use std::time::Duration;

use http::Response;

use crate::message::body::{Body, BodyError};
use crate::message::failure::{Failure, Fault};
use crate::resilience::verdict::{Class, Verdict};

/// What a request's end says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The provider is there and works.
    Success,
    /// It does not.
    Failure {
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Neither.
    Nothing,
}

impl Outcome {
    /// The outcome of a call.
    pub fn of(result: &Result<Response<Body>, Failure>) -> Self {
        match result {
            Ok(response) => Self::of_answer(response),
            Err(failure) if blames_provider(failure.fault) => {
                Self::Failure { retry_after: failure.retry_after }
            }
            Err(_) => Self::Nothing,
        }
    }

    fn of_answer(response: &Response<Body>) -> Self {
        let verdict = Verdict::of(response);
        let unclassed = verdict.class == Class::Success && response.status().is_server_error();
        let refused = response.status().is_client_error();
        if !refused && (verdict.class.trips() || unclassed) {
            Self::Failure { retry_after: verdict.wait }
        } else {
            Self::Success
        }
    }
}

/// Whether a request without an answer counts against the provider.
fn blames_provider(fault: Fault) -> bool {
    match fault {
        Fault::Dns
        | Fault::DnsTimeout
        | Fault::ConnectRefused
        | Fault::ConnectUnroutable
        | Fault::Connect
        | Fault::ConnectTimeout
        | Fault::UpstreamProxy
        | Fault::TlsCertificate
        | Fault::TlsAlert
        | Fault::TlsProtocol
        | Fault::TlsTimeout
        | Fault::Reset
        | Fault::Protocol
        | Fault::HeadTooLarge
        | Fault::Upgrade
        | Fault::Withheld
        | Fault::ResponseTimeout
        | Fault::IdleTimeout => true,
        Fault::AddressDenied
        | Fault::OwnListener
        | Fault::RateLimited
        | Fault::QuotaHeld
        | Fault::QueueFull
        | Fault::ConcurrencyLimit
        | Fault::BreakerOpen
        | Fault::ConnectionLimit
        | Fault::Deadline
        | Fault::Total
        | Fault::Credential
        | Fault::TargetTooLong
        | Fault::Unfit(_)
        | Fault::BodyTooLargeToRewrite
        | Fault::Forbidden(_)
        | Fault::DownstreamGone
        | Fault::DownstreamMalformed
        | Fault::DownstreamStalled
        | Fault::BodyTooLarge
        | Fault::OnlyIfCached
        | Fault::Internal => false,
    }
}

/// Whether an answer's body that broke counts against the provider.
pub fn body_blames_provider(error: &BodyError) -> bool {
    match error {
        BodyError::UpstreamCut(_) | BodyError::UpstreamIdle => true,
        BodyError::DownstreamGone(_)
        | BodyError::DownstreamMalformed(_)
        | BodyError::DownstreamFraming(_)
        | BodyError::DownstreamStalled
        | BodyError::TrailersTooLarge
        | BodyError::Forbidden(_)
        | BodyError::TooLarge
        | BodyError::Superseded
        | BodyError::Total => false,
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn answer(status: u16, verdict: Option<Verdict>) -> Outcome {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(verdict) = verdict {
            verdict.note(&mut response);
        }
        Outcome::of(&Ok(response))
    }

    #[test]
    fn answers() {
        let wait = Some(Duration::from_secs(7));
        let failure = Outcome::Failure { retry_after: None };
        let class = |class| Some(Verdict { class, acted: true, wait });
        for (status, verdict, outcome) in [
            (200, None, Outcome::Success),
            (101, None, Outcome::Success),
            (404, class(Class::Final), Outcome::Success),
            (401, class(Class::Unauthorized), Outcome::Success),
            (429, class(Class::Throttle), Outcome::Success),
            (429, None, Outcome::Success),
            (409, class(Class::Conflict), Outcome::Success),
            (503, class(Class::Throttle), Outcome::Success),
            (503, class(Class::Unavailable), Outcome::Failure { retry_after: wait }),
            (529, class(Class::Overload), Outcome::Failure { retry_after: wait }),
            (200, class(Class::Overload), Outcome::Failure { retry_after: wait }),
            // Rows that have these sent again do not make them signs of illness.
            (408, class(Class::Unavailable), Outcome::Success),
            (422, class(Class::Unavailable), Outcome::Success),
            (429, class(Class::Overload), Outcome::Success),
            (500, None, failure),
            (500, class(Class::Success), Outcome::Failure { retry_after: wait }),
            (500, class(Class::Final), Outcome::Success),
        ] {
            assert_eq!(answer(status, verdict), outcome, "{status} {verdict:?}");
        }
    }

    #[test]
    fn faults() {
        for (fault, counts) in [
            (Fault::ConnectRefused, true),
            (Fault::TlsCertificate, true),
            (Fault::DnsTimeout, true),
            (Fault::Reset, true),
            (Fault::ResponseTimeout, true),
            (Fault::Deadline, false),
            (Fault::Total, false),
            (Fault::DownstreamGone, false),
            (Fault::Credential, false),
            (Fault::AddressDenied, false),
            (Fault::ConnectionLimit, false),
        ] {
            let outcome = Outcome::of(&Err(Failure::not_sent(fault)));
            assert_eq!(outcome != Outcome::Nothing, counts, "{fault:?}");
        }
    }
}
