//! What of an answer may be kept, how long it is fresh, and for which requests: RFC 9111 by `http-cache-semantics`.
//!
//! The crate decides what may be stored, the lifetime, the selecting header fields and the request's directives. It sees
//! neither message as it came: [`Directives`] says why. Lists that came in several fields are joined, dates are in the one
//! form it knows, and what the answer spent on its way here stands in the time at which it was born, so that no `Age` that a
//! peer made up can overflow a sum.

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPIRES, HeaderMap,
    HeaderName, HeaderValue, LAST_MODIFIED, SET_COOKIE, VARY,
};
use http::{Request, Response, StatusCode};
use http_cache_semantics::{BeforeRequest, CacheOptions, CachePolicy};

use super::config::CacheSettings;
use super::directives::{Directives, seconds, split_list};
use super::place::tells_owner;
use crate::resilience::verdict::Class;

/// A guess at a lifetime ends here (RFC 9111 section 4.2.2 wants a warning above it).
const LONGEST_GUESS: Duration = Duration::from_secs(24 * 3600);

const OPTIONS: CacheOptions = CacheOptions {
    shared: false,
    cache_heuristic: 0.1,
    // `immutable` says that a fresh answer need not be validated (RFC 8246), and nothing about how long it is fresh.
    immutable_min_time_to_live: Duration::ZERO,
    ignore_cargo_cult: false,
};

/// When a request went out and its answer's head came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// The request was sent, or began to wait to be.
    pub requested: SystemTime,
    /// The head was there.
    pub received: SystemTime,
}

/// The head of an answer that is judged.
pub(super) struct Head<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    /// What the route's table said of it.
    pub class: Class,
}

/// What is known about a kept answer. Not printable: it holds the values of the fields that select it.
#[derive(Clone)]
pub(super) struct Semantics {
    policy: CachePolicy,
    /// When it left its origin, as far as can be told.
    born: SystemTime,
    /// How long it is fresh, from then on.
    lifetime: Duration,
    selecting: Box<[HeaderName]>,
    /// Its origin forbids to use it stale (`must-revalidate`, `no-cache`).
    strict: bool,
    stale_while_revalidate: Option<Duration>,
    stale_if_error: Option<Duration>,
}

/// How a kept answer suits a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suits {
    /// It is the answer.
    Fresh,
    /// It would be, and must be validated first.
    Stale,
    /// It answers other requests to the same URL (RFC 9111 section 4.1).
    Other,
}

impl Semantics {
    /// Judges an answer to a GET; nothing where it must not, or need not, be kept.
    pub fn judge(
        asked: &HeaderMap,
        answer: &Head<'_>,
        settings: &CacheSettings,
        times: Times,
    ) -> Option<Self> {
        if !is_keepable(answer) {
            return None;
        }
        let selecting = selecting(answer.headers)?;
        let mut directives = Directives::of(answer.headers);
        let explicit = directives.has("max-age") || answer.headers.contains_key(EXPIRES);
        if !explicit && (answer.class == Class::Final || answer.status.as_u16() >= 400) {
            return None;
        }
        let age = initial_age(answer.headers, times);
        let born = times.received.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let request = view_of_request(asked, &selecting);
        let mut response = view_of_answer(answer, &directives, &selecting, born);
        let first = CachePolicy::new_options(&request, &response, born, OPTIONS);
        if !first.is_storable() {
            return None;
        }
        if !explicit {
            let guess = first.time_to_live(born).min(LONGEST_GUESS);
            directives.set_seconds("max-age", lifetime_unsaid(settings, guess, answer.status).as_secs());
            if let Some(value) = directives.value() {
                response.headers_mut().insert(CACHE_CONTROL, value);
            }
        }
        let policy = CachePolicy::new_options(&request, &response, born, OPTIONS);
        let span = |name| directives.seconds(name).map(Duration::from_secs);
        let made = Self {
            lifetime: policy.time_to_live(born),
            policy,
            born,
            selecting,
            strict: directives.has("must-revalidate") || directives.has("no-cache"),
            stale_while_revalidate: span("stale-while-revalidate"),
            stale_if_error: span("stale-if-error"),
        };
        made.is_of_use(answer.headers, settings).then_some(made)
    }

    /// Whether keeping it can ever save a byte.
    fn is_of_use(&self, headers: &HeaderMap, settings: &CacheSettings) -> bool {
        !self.lifetime.is_zero()
            || headers.contains_key(ETAG)
            || headers.contains_key(LAST_MODIFIED)
            || !self.grace_on_error(settings).is_zero()
    }

    /// How it suits a request with these fields.
    pub fn suits(&self, asked: &HeaderMap, now: SystemTime) -> Suits {
        match self.policy.before_request(&view_of_request(asked, &self.selecting), now) {
            // `max-stale` of a request does not undo the origin's `no-cache`, of which the crate takes no notice.
            BeforeRequest::Fresh(_) if self.strict && self.is_stale(now) => Suits::Stale,
            BeforeRequest::Fresh(_) => Suits::Fresh,
            BeforeRequest::Stale { matches: true, .. } => Suits::Stale,
            BeforeRequest::Stale { matches: false, .. } => Suits::Other,
        }
    }

    /// Its age (RFC 9111 section 4.2.3).
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.born).unwrap_or_default()
    }

    /// Whether its lifetime is over.
    pub fn is_stale(&self, now: SystemTime) -> bool {
        self.lifetime <= self.age(now)
    }

    /// Whether it has a lifetime at all.
    pub fn is_ever_fresh(&self) -> bool {
        !self.lifetime.is_zero()
    }

    /// Seconds that it is fresh from now on; negative where it is stale.
    pub fn ttl(&self, now: SystemTime) -> i64 {
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        seconds(self.lifetime).saturating_sub(seconds(self.age(now)))
    }

    /// The fields that select it among the answers to one URL.
    pub fn selecting(&self) -> &[HeaderName] {
        &self.selecting
    }

    /// Whether it may be used now while it is renewed (RFC 5861 section 3).
    pub fn is_usable_meanwhile(&self, settings: &CacheSettings, now: SystemTime) -> bool {
        let grace = match (settings.stale_while_revalidate, self.stale_while_revalidate) {
            (Some(Duration::ZERO), _) => Duration::ZERO,
            (own, said) => said.or(own).unwrap_or_default(),
        };
        !self.strict && !grace.is_zero() && self.age(now) <= self.lifetime.saturating_add(grace)
    }

    /// Whether it may stand in for a failure (RFC 5861 section 4).
    pub fn is_usable_on_error(&self, settings: &CacheSettings, now: SystemTime) -> bool {
        let grace = self.grace_on_error(settings);
        // Still fresh: the request wanted a validated answer, and there is none.
        !self.strict
            && settings.stale_if_error.is_some()
            && self.age(now) <= self.lifetime.saturating_add(grace)
    }

    fn grace_on_error(&self, settings: &CacheSettings) -> Duration {
        match settings.stale_if_error {
            Some(own) if !self.strict => self.stale_if_error.map_or(own, |said| said.min(own)),
            Some(_) | None => Duration::ZERO,
        }
    }
}

/// What is decided before RFC 9111 is asked.
fn is_keepable(answer: &Head<'_>) -> bool {
    let headers = answer.headers;
    let endless = headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"));
    // A throttle, a refused credential or an outage is no answer to the question, whatever its fields say; and one that sets
    // a cookie was made for one session.
    matches!(answer.class, Class::Success | Class::Final)
        && !headers.contains_key(SET_COOKIE)
        && !headers.contains_key(CONTENT_RANGE)
        && !endless
}

/// How long an answer is fresh that does not say so itself.
fn lifetime_unsaid(settings: &CacheSettings, guess: Duration, status: StatusCode) -> Duration {
    match settings.default_ttl {
        Some(ttl) if status.is_success() || matches!(status.as_u16(), 300 | 301 | 308) => ttl,
        Some(_) | None => guess,
    }
}

/// The names in `Vary`; nothing where no request could ever match. Those that carry credentials are part of the place already,
/// and their values are not kept. A coded body without `Vary: Accept-Encoding` is a common
/// mistake of servers, and must not reach an app that cannot decode it.
fn selecting(headers: &HeaderMap) -> Option<Box<[HeaderName]>> {
    let mut names = Vec::new();
    for value in headers.get_all(VARY) {
        for name in split_list(value.to_str().ok()?) {
            let name = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| name != "*")?;
            if !names.contains(&name) && !tells_owner(&name) {
                names.push(name);
            }
        }
    }
    if headers.contains_key(CONTENT_ENCODING) && !names.contains(&http::header::ACCEPT_ENCODING) {
        names.push(http::header::ACCEPT_ENCODING);
    }
    Some(names.into())
}

/// The age at which an answer arrived: what caches before us said, and the time it took to get here.
fn initial_age(headers: &HeaderMap, times: Times) -> Duration {
    // The first member counts (RFC 9111 section 5.1); what is no number is passed over.
    let said = headers.get(AGE).and_then(|value| value.to_str().ok()?.split(',').next().map(str::trim));
    let delay = times.received.duration_since(times.requested).unwrap_or_default();
    let corrected = Duration::from_secs(said.map_or(0, seconds)).saturating_add(delay);
    // What an origin says of its own clock; one that is late makes answers older, never younger.
    let dated = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let apparent = dated.and_then(|dated| times.received.duration_since(dated).ok()).unwrap_or_default();
    // A date has whole seconds.
    corrected.max(apparent.saturating_sub(Duration::from_millis(999)))
}

/// What the crate sees of a request: its directives and the selecting fields.
fn view_of_request(asked: &HeaderMap, selecting: &[HeaderName]) -> Request<()> {
    let mut view = Request::new(());
    let headers = view.headers_mut();
    for name in selecting {
        if let Some(value) = joined(asked, name) {
            headers.insert(name, value);
        }
    }
    if let Some(value) = Directives::of(asked).value() {
        headers.insert(CACHE_CONTROL, value);
    }
    view
}

/// What the crate sees of an answer.
fn view_of_answer(
    answer: &Head<'_>,
    directives: &Directives,
    selecting: &[HeaderName],
    born: SystemTime,
) -> Response<()> {
    let mut view = Response::new(());
    *view.status_mut() = answer.status;
    let headers = view.headers_mut();
    if let Some(value) = directives.value() {
        headers.insert(CACHE_CONTROL, value);
    }
    headers.insert(DATE, date_of(answer.headers, &DATE).unwrap_or_else(|| http_date(born)));
    if answer.headers.contains_key(EXPIRES) {
        let past = || HeaderValue::from_static("0");
        headers.insert(EXPIRES, date_of(answer.headers, &EXPIRES).unwrap_or_else(past));
    }
    if let Some(date) = date_of(answer.headers, &LAST_MODIFIED) {
        headers.insert(LAST_MODIFIED, date);
    }
    let names: Vec<_> = selecting.iter().map(HeaderName::as_str).collect();
    if let Ok(value) = HeaderValue::try_from(names.join(", "))
        && !names.is_empty()
    {
        headers.insert(VARY, value);
    }
    view
}

/// All values of a field as one list (RFC 9110 section 5.3).
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(first.clone()) };
    let mut all = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        all.extend_from_slice(b", ");
        all.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_bytes(&all).ok()
}

/// A date in the one form that the crate knows; HTTP has three (RFC 9110 section 5.6.7).
fn date_of(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let date = httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()?;
    Some(http_date(date))
}

/// A moment as `Date` carries it. What no date can carry (after the year 9999) becomes 1970.
pub(super) fn http_date(at: SystemTime) -> HeaderValue {
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let at = if at > last || at < SystemTime::UNIX_EPOCH { SystemTime::UNIX_EPOCH } else { at };
    HeaderValue::try_from(httpdate::fmt_http_date(at))
        .unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}
