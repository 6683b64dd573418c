//! Whether an attempt is made again: the one place that knows the four grounds. Pure; time, chance and counts come in as
//! arguments.

use std::time::Duration;

use super::settings::{RetrySettings, Trigger};
use crate::message::failure::{Fault, Progress};
use crate::resilience::verdict::{Class, Verdict};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Without an answer.
    Failed {
        /// What went wrong.
        fault: Fault,
        /// How far the request had got.
        progress: Progress,
    },
    /// With the head of an answer.
    Answered {
        /// What the answer means.
        verdict: Verdict,
        /// What the provider's hint says, where it sent one.
        hint: Option<bool>,
    },
}

/// All that a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// How the attempt ended.
    pub outcome: Outcome,
    /// The method stands in `retry.methods`.
    pub method_listed: bool,
    /// An idempotency key that the provider honours went with it, the same on each attempt.
    pub has_key: bool,
    /// It asks to become a WebSocket.
    pub upgrade: bool,
    /// Attempts made so far, this one included; those that a healed credential cost do not count.
    pub attempts: u32,
    /// The whole body can be sent again.
    pub body_whole: bool,
    /// The budget has one more.
    pub budget: bool,
    /// Time until the deadline; none = no deadline.
    pub left: Option<Duration>,
    /// The wait that backoff asks for.
    pub backoff: Duration,
    /// How much is added to the provider's wait, of what may be: drawn anew for each wait, from 0 to `u16::MAX`; 0 without jitter.
    pub lateness: u16,
}

/// At most so much later than the provider says a request comes back, and at most by a tenth of what it says.
const LATEST: Duration = Duration::from_secs(1);

/// Why a request may be sent again. There is no fifth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ground {
    /// Nothing was sent, or the provider said that it did not process it.
    NotSent,
    /// The answer proves that nothing was done.
    NotActed,
    /// An idempotency key that the provider honours went with it.
    Key,
    /// Its method may act twice.
    Method,
}

impl Ground {
    /// Whether the attempt before is known to have done nothing.
    pub const fn did_nothing(self) -> bool {
        matches!(self, Self::NotSent | Self::NotActed)
    }
}

/// What becomes of a request after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is sent again.
    Again {
        /// After this time, counted from the end of the attempt.
        after: Duration,
        /// On this ground.
        ground: Ground,
        /// Because of this: a word of `retry.on`, or `hint` where only the provider's own word asks for it.
        reason: &'static str,
    },
    /// The app gets what there is.
    Stop(Why),
}

/// Why a request is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It succeeded.
    Done,
    /// The answer is final, or the failure would be the same again.
    Final,
    /// The plan is exhausted.
    Quota,
    /// The credential was refused and could not be healed.
    Unauthorized,
    /// outgate itself refused: limits, addresses, credentials, deadlines.
    Refused,
    /// The app's own body broke.
    Downstream,
    /// `retry.on` does not name it.
    NotListed,
    /// The provider's hint says so.
    Hint,
    /// It may have acted, and none of the four grounds is there.
    MayHaveActed,
    /// All attempts were made.
    Attempts,
    /// The body is no longer whole.
    Body,
    /// The provider wants a longer wait than `max_retry_after`.
    Wait,
    /// The wait would pass the deadline.
    Deadline,
    /// The retry budget is used up.
    Budget,
}

impl Why {
    /// What the log says; nothing of a success.
    pub const fn as_str(self) -> Option<&'static str> {
        Some(match self {
            Self::Done => return None,
            Self::Final => "not_repeated:final",
            Self::Quota => "not_repeated:quota",
            Self::Unauthorized => "not_repeated:unauthorized",
            Self::Refused => "not_repeated:refused_by_outgate",
            Self::Downstream => "not_repeated:client_body",
            Self::NotListed => "not_repeated:not_listed",
            Self::Hint => "not_repeated:hint",
            Self::MayHaveActed => "not_repeated:may_have_acted",
            Self::Attempts => "not_repeated:attempts",
            Self::Body => "not_repeated:body",
            Self::Wait => "not_repeated:retry_after",
            Self::Deadline => "not_repeated:deadline",
            Self::Budget => "not_repeated:budget",
        })
    }
}

/// Decides. The reasons that lie in the request come before those of the moment, so the log says what would have to change.
pub fn decide(settings: &RetrySettings, situation: &Situation) -> Decision {
    match judge(settings, situation) {
        Ok((after, ground, reason)) => Decision::Again { after, ground, reason },
        Err(why) => Decision::Stop(why),
    }
}

fn judge(settings: &RetrySettings, situation: &Situation) -> Result<(Duration, Ground, &'static str), Why> {
    let reason = reason(settings, &situation.outcome)?;
    // The provider's yes is no ground: whether an attempt may act twice is not for it to say.
    let ground = ground(situation).ok_or(Why::MayHaveActed)?;
    // Its no counts whatever the ground: it also says that another attempt would be refused as this one was.
    if situation.outcome.hint() == Some(false) {
        return Err(Why::Hint);
    }
    if situation.attempts >= settings.attempts {
        return Err(Why::Attempts);
    }
    if !situation.body_whole {
        return Err(Why::Body);
    }
    let wait = situation.outcome.wait().unwrap_or_default();
    if wait > settings.max_retry_after {
        return Err(Why::Wait);
    }
    let after = later(wait, settings.max_retry_after, situation).max(situation.backoff);
    // An attempt that began at the deadline itself could not be made.
    if situation.left.is_some_and(|left| after >= left) {
        return Err(Why::Deadline);
    }
    if !situation.budget {
        return Err(Why::Budget);
    }
    Ok((after, ground, reason))
}

/// The provider's wait and a little more, never less: all who were told the same, here and in other instances, would come back
/// in the same moment. Neither the bound on the wait nor half of what the deadline leaves after it is passed for that.
fn later(wait: Duration, most: Duration, situation: &Situation) -> Duration {
    let spare = situation.left.map_or(LATEST, |left| left.saturating_sub(wait) / 2);
    let room = (wait / 10).min(LATEST).min(most.saturating_sub(wait)).min(spare);
    wait + room * u32::from(situation.lateness) / u32::from(u16::MAX)
}

/// Why another attempt would make sense, by the table and `retry.on`, or by the provider's own word: its yes stands for a class
/// that is not listed, and reopens what the table calls final. An exhausted plan and a refused credential it does not mend.
fn reason(settings: &RetrySettings, outcome: &Outcome) -> Result<&'static str, Why> {
    let asked = outcome.hint() == Some(true);
    match trigger(outcome) {
        Ok(trigger) if asked || settings.on.contains(trigger) => Ok(trigger.as_str()),
        Ok(_) => Err(Why::NotListed),
        Err(Why::Final) if asked => Ok(HINT),
        Err(why) => Err(why),
    }
}

/// The word of the log for a repetition that only the provider asks for.
const HINT: &str = "hint";

/// The ground on which a request may be sent again, the strongest there is.
pub fn ground(situation: &Situation) -> Option<Ground> {
    if situation.outcome.was_not_sent() {
        return Some(Ground::NotSent);
    }
    if situation.upgrade {
        return None;
    }
    if situation.outcome.did_not_act() {
        Some(Ground::NotActed)
    } else if situation.has_key {
        Some(Ground::Key)
    } else if situation.method_listed {
        Some(Ground::Method)
    } else {
        None
    }
}

impl Outcome {
    /// Whether the provider never heard of the attempt, and not for want of trying: outgate refused it, or the app broke off.
    pub(super) fn was_held_back(&self) -> bool {
        self.was_not_sent() && matches!(trigger(self), Err(Why::Refused | Why::Downstream))
    }

    /// Whether no row has judged it, so that nothing was decided either.
    pub(super) fn is_unjudged(&self) -> bool {
        matches!(self, Self::Answered { verdict: Verdict { class: Class::Success, .. }, .. })
    }

    fn hint(&self) -> Option<bool> {
        match self {
            Self::Failed { .. } => None,
            Self::Answered { hint, .. } => *hint,
        }
    }

    fn wait(&self) -> Option<Duration> {
        match self {
            Self::Failed { .. } => None,
            Self::Answered { verdict, .. } => verdict.wait,
        }
    }

    fn was_not_sent(&self) -> bool {
        matches!(self, Self::Failed { progress: Progress::NotSent, .. })
    }

    fn did_not_act(&self) -> bool {
        matches!(self, Self::Answered { verdict: Verdict { acted: false, .. }, .. })
    }
}

/// What of `retry.on` an outcome is, or why it is never repeated.
fn trigger(outcome: &Outcome) -> Result<Trigger, Why> {
    match outcome {
        Outcome::Failed { fault, progress } => trigger_of_failure(*fault, *progress),
        Outcome::Answered { verdict, .. } => match verdict.class {
            Class::Throttle => Ok(Trigger::Throttle),
            Class::Concurrency => Ok(Trigger::Concurrency),
            Class::Conflict => Ok(Trigger::Conflict),
            Class::Overload => Ok(Trigger::Overload),
            Class::Unavailable => Ok(Trigger::Unavailable),
            Class::Quota => Err(Why::Quota),
            Class::Unauthorized => Err(Why::Unauthorized),
            Class::Final => Err(Why::Final),
            Class::Success => Err(Why::Done),
        },
    }
}

/// No arm that catches all: a new fault has to say whether it can be repeated.
fn trigger_of_failure(fault: Fault, progress: Progress) -> Result<Trigger, Why> {
    match fault {
        Fault::Dns
        | Fault::DnsTimeout
        | Fault::ConnectRefused
        | Fault::ConnectUnroutable
        | Fault::Connect
        | Fault::ConnectTimeout
        | Fault::UpstreamProxy
        | Fault::TlsAlert
        | Fault::TlsProtocol
        | Fault::TlsTimeout => Ok(Trigger::Connect),
        Fault::Reset | Fault::Protocol => match progress {
            // A handshake that was cut, a connection that was closing, a stream that was refused.
            Progress::NotSent => Ok(Trigger::Connect),
            Progress::Sent => Ok(Trigger::Reset),
            // There was an answer, and it cannot be understood.
            Progress::HeadReceived => Err(Why::Final),
        },
        Fault::ResponseTimeout | Fault::IdleTimeout => Ok(Trigger::Timeout),
        // A certificate that is not valid now is a matter of trust, and not of trying; the others would come again as well.
        Fault::TlsCertificate | Fault::HeadTooLarge | Fault::Upgrade | Fault::Withheld => Err(Why::Final),
        Fault::AddressDenied
        | Fault::OwnListener
        | Fault::RateLimited
        | Fault::QuotaHeld
        | Fault::QueueFull
        | Fault::ConcurrencyLimit
        | Fault::BreakerOpen
        | Fault::OnlyIfCached
        | Fault::ConnectionLimit
        | Fault::Deadline
        | Fault::Total
        | Fault::Credential
        | Fault::TargetTooLong
        | Fault::Unfit(_)
        | Fault::Forbidden(_)
        | Fault::Internal => Err(Why::Refused),
        Fault::DownstreamGone
        | Fault::DownstreamMalformed
        | Fault::DownstreamStalled
        | Fault::BodyTooLarge
        | Fault::BodyTooLargeToRewrite => Err(Why::Downstream),
    }
}

#[cfg(test)]
mod tests;
