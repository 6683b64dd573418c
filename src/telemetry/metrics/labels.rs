//! Closed lists of label values, and counters in arrays that are indexed by them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A list of label values.
pub(super) trait Label: Copy + 'static {
    /// All values, in order of their index.
    const ALL: &'static [Self];
    /// The value as a metric shows it.
    fn label(self) -> &'static str;
    /// The place in `ALL`.
    fn index(self) -> usize;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$value_doc])* $value,)+
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn label(self) -> &'static str {
                match self { $(Self::$value => $label,)+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

labels! {
    /// How dialing an upstream ended.
    DialResult {
        /// Connected, TLS included.
        Ok = "ok",
        /// The name resolved to an address that is not allowed.
        AddressDenied = "address_denied",
        /// The name could not be resolved.
        Dns = "dns",
        /// No connection.
        Connect = "connect",
        /// The TLS handshake failed.
        Tls = "tls",
        /// Any of these took too long.
        Timeout = "timeout",
    }
}

labels! {
    /// What came of healing a credential after an `unauthorized`.
    HealResult {
        /// The next attempt was let in.
        Healed = "healed",
        /// The provider refused again, or no new credential could be had.
        Failed = "failed",
    }
}

labels! {
    /// Which of a list of credentials, new and old, was needed.
    OverlapEvent {
        /// A request was accepted with an older one.
        OldNeeded = "old_needed",
        /// For an hour nobody needed an older one.
        SafeToRemove = "safe_to_remove",
    }
}

labels! {
    /// What came of a reload.
    ReloadResult {
        /// The new policy is in force.
        Applied = "applied",
        /// It says the same as the old one.
        Unchanged = "unchanged",
        /// It has mistakes; the old one goes on.
        Refused = "refused",
    }
}

labels! {
    /// The phases of an exchange, as in [`super::super::Timings`].
    Phase {
        /// All of it.
        Total = "total",
        /// Waits for limits and backoff.
        Queue = "queue",
        /// The TCP handshake.
        Connect = "connect",
        /// The TLS handshake.
        Tls = "tls",
        /// To the answer's head.
        FirstByte = "first_byte",
        /// The answer's body.
        Body = "body",
    }
}

labels! {
    /// The first digit of a status.
    CodeClass {
        /// The client got no answer.
        None = "none",
        /// Informational: an upgrade.
        Informational = "1xx",
        /// Successful.
        Successful = "2xx",
        /// Redirection.
        Redirection = "3xx",
        /// The client's mistake.
        ClientError = "4xx",
        /// The server's mistake.
        ServerError = "5xx",
        /// Beyond what HTTP defines.
        Other = "other",
    }
}

impl CodeClass {
    /// The class of a status.
    pub(super) fn of(status: Option<u16>) -> Self {
        match status.map(|status| status / 100) {
            None => Self::None,
            Some(1) => Self::Informational,
            Some(2) => Self::Successful,
            Some(3) => Self::Redirection,
            Some(4) => Self::ClientError,
            Some(5) => Self::ServerError,
            Some(_) => Self::Other,
        }
    }
}

/// A counter for each value of a label.
#[derive(Debug)]
pub(super) struct Counts<L> {
    values: Box<[AtomicU64]>,
    label: std::marker::PhantomData<L>,
}

impl<L: Label> Default for Counts<L> {
    fn default() -> Self {
        Self { values: L::ALL.iter().map(|_| AtomicU64::new(0)).collect(), label: std::marker::PhantomData }
    }
}

impl<L: Label> Counts<L> {
    /// Adds one.
    pub(super) fn add(&self, value: L) {
        self.values[value.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// All values with their counts.
    pub(super) fn read(&self) -> impl Iterator<Item = (&'static str, u64)> {
        L::ALL.iter().zip(&self.values).map(|(value, count)| (value.label(), count.load(Ordering::Relaxed)))
    }
}
