//! Flags: short stable codes for why outgate answered by itself, or how an exchange ended.
//!
//! They stand in the access log (`outgate.flag`) and in the label `flag` of `outgate_requests_total`, so operators
//! build alerts on them: a code never changes its meaning. Where Envoy has a response flag of the same meaning, its
//! letters are used. A request that simply got the provider's answer has no flag.

use std::fmt;

/// Writes the enum, the list of all of it, and the two texts of each flag from one table.
macro_rules! flags {
    ($($name:ident $code:literal $meaning:literal,)+) => {
        /// Why outgate answered by itself, or how an exchange ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Flag {
            $(#[doc = concat!("`", $code, "`: ", $meaning, ".")] $name,)+
        }

        impl Flag {
            /// Every flag, in the order of the documentation.
            pub const ALL: [Self; [$($code),+].len()] = [$(Self::$name),+];

            /// The stable code, as logs and metrics show it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// One line for the documentation.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }
        }
    };
}

flags! {
    Denied "NR" "denied by the policy: no provider, or a route that denies",
    AddressDenied "AD" "the name resolved to an address that is not allowed",
    DownstreamProtocol "DPE" "the client's request was malformed or ambiguous",
    DownstreamTimeout "DT" "the client was too slow with its request",
    ProxyAuthRequired "PA" "the listener's token was missing or wrong",
    RateLimited "RL" "refused by a rate limit, or by the quota learned from the provider",
    Overloaded "UO" "refused by a concurrency limit, a full queue, or an open circuit breaker",
    OutgateOverloaded "OM" "outgate itself was at a bound of its own, such as its number of connections",
    CredentialUnavailable "CU" "the credential could not be had; nothing was sent",
    DnsFailure "DF" "the upstream's name could not be resolved",
    ConnectFailure "UF" "no connection to the upstream could be made",
    TlsFailure "US" "the TLS handshake with the upstream failed",
    UpstreamTimeout "UT" "the upstream did not answer, or stopped sending, in time",
    UpstreamReset "UC" "the upstream closed or reset the connection",
    UpstreamProtocol "UPE" "the upstream's answer was not valid HTTP",
    DownstreamGone "DC" "the client went away before the end",
    NotCached "NC" "the client wanted a kept answer only (`only-if-cached`), and none was kept",
    Loop "LD" "outgate was reached through itself",
    Internal "IE" "a mistake in outgate",
    Drained "DR" "ended because outgate was shutting down",
    UpstreamFailed "URX" "the upstream failed all attempts that were made, and may have acted on one",
}

impl Flag {
    /// The flag's place in [`Flag::ALL`], for tables of counters.
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_short_distinct_and_explained() {
        let codes: HashSet<_> = Flag::ALL.iter().map(|flag| flag.as_str()).collect();
        assert_eq!(codes.len(), Flag::ALL.len());
        for flag in Flag::ALL {
            assert!((2..=3).contains(&flag.as_str().len()), "{flag}");
            assert!(flag.as_str().bytes().all(|b| b.is_ascii_uppercase()), "{flag}");
            assert!(!flag.meaning().contains('\n') && flag.meaning().len() > 10, "{flag}");
        }
    }

    #[test]
    fn the_index_is_the_place_in_the_list() {
        for (place, flag) in Flag::ALL.into_iter().enumerate() {
            assert_eq!(flag.index(), place);
        }
    }

    /// Dashboards and alerts depend on the codes: this list may grow, and nothing else.
    #[test]
    fn the_codes_are_stable() {
        let codes: Vec<_> = Flag::ALL.iter().map(|flag| flag.as_str()).collect();
        assert_eq!(codes.join(" "), "NR AD DPE DT PA RL UO OM CU DF UF US UT UC UPE DC NC LD IE DR URX");
    }
}
