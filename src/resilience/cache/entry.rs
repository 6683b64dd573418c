//! Kept answers, and what the app gets of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, DATE, ETAG, EXPIRES, HeaderMap, HeaderName,
    HeaderValue, LAST_MODIFIED, VARY,
};
use http::{Method, Response, StatusCode, Version};

use super::note::Note;
use super::semantics::{Semantics, Suits, http_date};
use super::validator;
use crate::message::body::Body;

/// Answers to one URL that are kept for one owner: formats, languages, encodings.
pub(super) const MOST_VARIANTS: usize = 8;

/// What an entry takes besides its fields and its body: the maps' own memory, and the cache's.
const OVERHEAD: usize = 1024;
/// What a header field takes besides its text.
const FIELD_OVERHEAD: usize = 64;

/// When the answers to a URL were last made invalid; shared by all that is kept for it, and all that is on its way.
#[derive(Debug)]
pub(super) struct Epoch {
    url: Arc<AtomicU64>,
    number: u64,
}

impl Epoch {
    /// The present epoch of a URL.
    pub fn now(url: Arc<AtomicU64>) -> Self {
        let number = url.load(Ordering::Acquire);
        Self { url, number }
    }

    /// Whether nothing has made the URL's answers invalid since.
    pub fn lasts(&self) -> bool {
        self.url.load(Ordering::Acquire) == self.number
    }
}

/// The head of an answer, ready to be kept. Not printable: answers are the app's own affair.
pub(super) struct KeptHead {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub semantics: Semantics,
    pub epoch: Epoch,
}

impl KeptHead {
    /// Copies what is kept, so that no field holds on to the buffer of the connection that it came from.
    pub fn new(
        (status, version): (StatusCode, Version),
        headers: &HeaderMap,
        semantics: Semantics,
        epoch: Epoch,
    ) -> Self {
        let mut kept = HeaderMap::with_capacity(headers.len());
        for (name, value) in headers {
            if name != AGE
                && let Ok(value) = HeaderValue::from_bytes(value.as_bytes())
            {
                kept.append(name, value);
            }
        }
        Self { status, version, headers: kept, semantics, epoch }
    }
}

/// A kept answer.
pub(super) struct Stored {
    pub head: KeptHead,
    pub body: Bytes,
}

impl Stored {
    /// Whether it is still valid (not the same as fresh).
    pub fn is_valid(&self) -> bool {
        self.head.epoch.lasts()
    }

    /// About how much memory it takes, in bytes.
    fn weight(&self) -> usize {
        let fields = self.head.headers.iter();
        let fields: usize =
            fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD).sum();
        OVERHEAD + fields + self.body.len()
    }

    /// The answer to a request with these fields: the kept one, or 304 where the app has it already.
    pub fn answer(
        &self,
        method: &Method,
        asked: &HeaderMap,
        now: SystemTime,
        mut note: Note,
    ) -> Response<Body> {
        let known =
            self.head.status == StatusCode::OK && validator::is_known_to_app(asked, &self.head.headers);
        let mut response = if known { self.not_modified() } else { self.whole(method) };
        *response.version_mut() = self.head.version;
        let age = self.head.semantics.age(now).as_secs();
        let headers = response.headers_mut();
        headers.insert(AGE, HeaderValue::from(age));
        note.ttl = Some(self.head.semantics.ttl(now));
        note.append_to(headers);
        response
    }

    fn whole(&self, method: &Method) -> Response<Body> {
        let body = if method == Method::HEAD { Body::empty() } else { Body::full(self.body.clone()) };
        let mut response = Response::new(body);
        *response.status_mut() = self.head.status;
        *response.headers_mut() = self.head.headers.clone();
        // An answer that was streamed had no length; a HEAD has no body that would tell it.
        if method == Method::HEAD && self.head.status != StatusCode::NO_CONTENT {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        response
    }

    /// RFC 9110 section 15.4.5.
    fn not_modified(&self) -> Response<Body> {
        const SHOWN: [HeaderName; 6] = [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY];
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        let kept = &self.head.headers;
        for name in SHOWN {
            for value in kept.get_all(&name) {
                response.headers_mut().append(&name, value.clone());
            }
        }
        if !kept.contains_key(ETAG)
            && let Some(date) = kept.get(LAST_MODIFIED)
        {
            response.headers_mut().insert(LAST_MODIFIED, date.clone());
        }
        response
    }
}

/// Adds `Date` where the provider sent none (RFC 9110 section 6.6.1).
pub(super) fn date(headers: &mut HeaderMap, received: SystemTime) {
    if !headers.contains_key(DATE) {
        headers.insert(DATE, http_date(received));
    }
}

/// What is kept at one place. Never changed: a new one takes its place.
#[derive(Default)]
pub(super) struct Slot {
    variants: Vec<Arc<Stored>>,
    /// Waiting for another's answer was of no use here.
    pub useless_to_wait: bool,
}

impl Slot {
    /// The valid answer that a request selects, the newest first, and how it suits; and whether there are others.
    pub fn select(&self, asked: &HeaderMap, now: SystemTime) -> (Option<(Arc<Stored>, Suits)>, bool) {
        let mut others = false;
        for stored in self.variants.iter().rev().filter(|stored| stored.is_valid()) {
            match stored.head.semantics.suits(asked, now) {
                Suits::Other => others = true,
                suits => return (Some((stored.clone(), suits)), others),
            }
        }
        (None, others)
    }

    /// With one more answer, in place of those that the same request selects.
    pub fn with(&self, new: Arc<Stored>, asked: &HeaderMap, now: SystemTime) -> Self {
        let stays = |stored: &&Arc<Stored>| {
            stored.is_valid() && stored.head.semantics.suits(asked, now) == Suits::Other
        };
        let mut variants: Vec<_> = self.variants.iter().filter(stays).cloned().collect();
        let many = (variants.len() + 1).saturating_sub(MOST_VARIANTS);
        variants.drain(..many);
        let useless_to_wait = self.useless_to_wait && !new.head.semantics.is_ever_fresh();
        variants.push(new);
        Self { variants, useless_to_wait }
    }

    /// Without an answer.
    pub fn without(&self, old: &Arc<Stored>) -> Self {
        let variants = self.variants.iter().filter(|stored| !Arc::ptr_eq(stored, old)).cloned().collect();
        Self { variants, useless_to_wait: self.useless_to_wait }
    }

    /// The same, where waiting was of no use.
    pub fn useless(&self) -> Self {
        Self { variants: self.variants.clone(), useless_to_wait: true }
    }

    /// Whether nothing would be lost without it.
    pub fn is_empty(&self) -> bool {
        self.variants.is_empty() && !self.useless_to_wait
    }

    /// All fields by which answers of this slot are selected.
    pub fn selecting(&self) -> Vec<HeaderName> {
        self.variants.iter().flat_map(|stored| stored.head.semantics.selecting()).cloned().collect()
    }

    /// About how much memory it takes, in bytes.
    pub fn weight(&self) -> usize {
        OVERHEAD / 4 + self.variants.iter().map(|stored| stored.weight()).sum::<usize>()
    }
}
