//! The attempt loop as it is: what [`super::config`] compiles to.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};

use super::backoff::Backoff;
use super::budget::BudgetSettings;

/// When a request is sent again. Equal settings behave alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RetrySettings {
    /// Attempts in all, the first included; at least 1.
    pub attempts: u32,
    /// Outcomes after which another attempt makes sense.
    pub on: Triggers,
    /// Methods that may be sent again though the attempt before may have acted.
    pub methods: Arc<[Method]>,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// The longest wait that a provider may ask for; a longer one is handed to the app.
    pub max_retry_after: Duration,
    /// How much load retries may add.
    pub budget: BudgetSettings,
    /// Bytes of a request body that are kept to be sent again.
    pub replay_buffer: usize,
    /// The provider's field that says whether to try again.
    pub hint: Option<HeaderName>,
}

impl RetrySettings {
    /// Whether a request of this method may be sent again though it may have acted.
    pub fn repeats(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }
}

/// An outcome that a policy may name in `retry.on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Nothing was sent: name, connection, TLS; or the provider gave the request back unprocessed.
    Connect,
    /// The connection broke, or what came was not HTTP, before the head of an answer.
    Reset,
    /// The head did not come in time, or the provider stopped taking the request.
    Timeout,
    /// An answer of this class.
    Throttle,
    /// An answer of this class.
    Concurrency,
    /// An answer of this class.
    Conflict,
    /// An answer of this class.
    Overload,
    /// An answer of this class.
    Unavailable,
}

impl Trigger {
    /// All, in the order of the contract.
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::Reset,
        Self::Timeout,
        Self::Throttle,
        Self::Concurrency,
        Self::Conflict,
        Self::Overload,
        Self::Unavailable,
    ];

    /// The word of the policy and of logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Throttle => "throttle",
            Self::Concurrency => "concurrency",
            Self::Conflict => "conflict",
            Self::Overload => "overload",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A set of [`Trigger`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Triggers(u8);

impl Triggers {
    /// Every one.
    pub const ALL: Self = Self(u8::MAX);

    /// Whether the set has it.
    pub const fn contains(self, trigger: Trigger) -> bool {
        self.0 & (1 << trigger as u8) != 0
    }

    /// Whether the set has none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Trigger> for Triggers {
    fn from_iter<I: IntoIterator<Item = Trigger>>(triggers: I) -> Self {
        Self(triggers.into_iter().fold(0, |set, trigger| set | 1 << trigger as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        assert_eq!(Trigger::ALL.into_iter().collect::<Triggers>(), Triggers::ALL);
        for one in Trigger::ALL {
            let set: Triggers = [one].into_iter().collect();
            let found: Vec<_> = Trigger::ALL.into_iter().filter(|other| set.contains(*other)).collect();
            assert_eq!(found, [one]);
        }
        assert!(Triggers::default().is_empty());
    }
}
