//! `Cache-Status` (RFC 9211): what the cache did with a request, appended to what caches before it said.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went on to the provider (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The cache does not serve such requests.
    Bypass,
    /// Its method wants it.
    Method,
    /// Nothing is kept for the URL.
    UriMiss,
    /// What is kept for the URL answers other requests.
    VaryMiss,
    /// What is kept is fresh, and the request does not want it.
    Request,
    /// What is kept is stale.
    Stale,
}

impl Why {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// One member of `Cache-Status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Why the request was forwarded; none = it was not.
    pub forwarded: Option<Why>,
    /// What the provider answered, where the app gets another status.
    pub forwarded_status: Option<u16>,
    /// Whether the answer is being kept.
    pub stored: bool,
    /// Whether it is the answer to another, identical request.
    pub collapsed: bool,
    /// Seconds for which the answer is fresh; negative where it is stale.
    pub ttl: Option<i64>,
    /// Words of our own.
    pub detail: Option<&'static str>,
}

impl Note {
    /// From the cache.
    pub const HIT: Self = Self {
        forwarded: None,
        forwarded_status: None,
        stored: false,
        collapsed: false,
        ttl: None,
        detail: None,
    };

    /// From the provider.
    pub const fn forwarded(why: Why) -> Self {
        Self { forwarded: Some(why), ..Self::HIT }
    }

    /// Appends the member to an answer's head.
    pub fn append_to(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.to_string()) {
            headers.append(CACHE_STATUS, value);
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outgate")?;
        match self.forwarded {
            Some(why) => write!(f, "; fwd={}", why.as_str())?,
            None => f.write_str("; hit")?,
        }
        if let Some(status) = self.forwarded_status {
            write!(f, "; fwd-status={status}")?;
        }
        if self.stored {
            f.write_str("; stored")?;
        }
        if self.collapsed {
            f.write_str("; collapsed")?;
        }
        if let Some(ttl) = self.ttl {
            write!(f, "; ttl={ttl}")?;
        }
        match self.detail {
            Some(detail) => write!(f, "; detail={detail}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_written_as_rfc_9211_has_them() {
        for (note, text) in [
            (Note { ttl: Some(376), ..Note::HIT }, "outgate; hit; ttl=376"),
            (Note { ttl: Some(-412), ..Note::HIT }, "outgate; hit; ttl=-412"),
            (Note { stored: true, ..Note::forwarded(Why::UriMiss) }, "outgate; fwd=uri-miss; stored"),
            (Note { collapsed: true, ..Note::forwarded(Why::VaryMiss) }, "outgate; fwd=vary-miss; collapsed"),
            (
                Note { forwarded_status: Some(304), ttl: Some(60), ..Note::forwarded(Why::Stale) },
                "outgate; fwd=stale; fwd-status=304; ttl=60",
            ),
            (Note::forwarded(Why::Bypass), "outgate; fwd=bypass"),
            (Note::forwarded(Why::Method), "outgate; fwd=method"),
            (Note::forwarded(Why::Request), "outgate; fwd=request"),
        ] {
            assert_eq!(note.to_string(), text);
        }
    }

    #[test]
    fn what_caches_before_said_stays_in_front() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_STATUS, HeaderValue::from_static("Origin; hit"));
        Note::HIT.append_to(&mut headers);
        let all: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(all, ["Origin; hit", "outgate; hit"]);
    }
}
