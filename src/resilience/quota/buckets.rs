//! Which bucket a request will fall in, where the provider names buckets in its answers (`X-RateLimit-Resource`), and how many
//! names of buckets there may be.
//!
//! What an answer names is known from the last answer to a request of the same route, method and first two segments of the path
//! that say something: `api`, `rest` and versions at its beginning (`/api/v1`, `/rest/api/3`) are common to all. Before the first
//! answer it falls in the bucket without a name.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::message::request::EgressRequest;
use crate::resilience::key::Key;

/// Places that are remembered, and names of buckets.
const MOST_PLACES: usize = 10_000;
const MOST_NAMES: usize = 64;
/// Longer names are no names.
const MOST_NAME: usize = 64;
/// How long a name that an app gave is kept without use where there is no room for others.
const KEEP: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub(super) struct Buckets {
    known: Mutex<Known>,
    given: Mutex<HashMap<Arc<str>, Instant>>,
}

#[derive(Debug, Default)]
struct Known {
    places: HashMap<Key, Arc<str>>,
    names: HashSet<Arc<str>>,
}

impl Buckets {
    /// The place of a request.
    pub(super) fn place(route: &str, request: &EgressRequest) -> Key {
        let mut segments =
            request.path_and_query.path().split('/').skip(1).skip_while(|segment| is_common(segment));
        let (first, second) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
        Key::of(&[route, request.method.as_str(), request.target.host.as_str(), first, second])
    }

    /// The bucket that a request names; nothing where that is no name, or one too many. Letters, digits and what the names of
    /// models have besides: such a name is shown, and told to other instances.
    pub(super) fn given(&self, name: &str, now: Instant) -> Option<Arc<str>> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte);
        if name.is_empty() || name.len() > MOST_NAME || !name.bytes().all(fits) {
            return None;
        }
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, _)) = given.get_key_value(name) {
            let name = name.clone();
            given.insert(name.clone(), now);
            return Some(name);
        }
        if given.len() >= MOST_NAMES {
            given.retain(|_, used| *used + KEEP > now);
        }
        let name: Arc<str> = name.into();
        (given.len() < MOST_NAMES).then(|| {
            given.insert(name.clone(), now);
            name
        })
    }

    /// The bucket that the last answer at this place named.
    pub(super) fn get(&self, place: Key) -> Option<Arc<str>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).places.get(&place).cloned()
    }

    /// Remembers the bucket that an answer named; nothing where that is no name, or one too many.
    pub(super) fn learn(&self, place: Key, named: &HeaderValue) -> Option<Arc<str>> {
        let name =
            named.to_str().ok().map(str::trim).filter(|name| !name.is_empty() && name.len() <= MOST_NAME)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.places.get(&place).filter(|same| ***same == *name) {
            return Some(same.clone());
        }
        let name = match known.names.get(name) {
            Some(name) => name.clone(),
            None if known.names.len() < MOST_NAMES => {
                let name: Arc<str> = name.into();
                known.names.insert(name.clone());
                name
            }
            None => return None,
        };
        if known.places.len() >= MOST_PLACES {
            // All are learned again from the next answers.
            known.places.clear();
        }
        known.places.insert(place, name.clone());
        Some(name)
    }
}

/// Whether a segment tells nothing of what is asked for: `api`, `rest`, or a version as `v1`, `2` and `v3.1`.
fn is_common(segment: &str) -> bool {
    let number = segment.strip_prefix('v').unwrap_or(segment);
    let is_version = number.bytes().next().is_some_and(|byte| byte.is_ascii_digit())
        && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    is_version || ["api", "rest"].contains(&segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::body::Body;
    use crate::resilience::timeout::tests::request_with;

    fn place(path: &str) -> Key {
        let mut request = request_with(Body::empty(), None);
        request.path_and_query = path.parse().unwrap();
        Buckets::place("route", &request)
    }

    #[test]
    fn the_first_two_segments_tell_the_bucket() {
        let buckets = Buckets::default();
        let search = HeaderValue::from_static("search");
        assert_eq!(buckets.get(place("/search/code?q=1")), None);
        assert_eq!(buckets.learn(place("/search/code?q=1"), &search).as_deref(), Some("search"));
        assert_eq!(buckets.get(place("/search/code/more?q=2")).as_deref(), Some("search"));
        assert_eq!(buckets.get(place("/search/issues")), None);
        let core = HeaderValue::from_static("core");
        buckets.learn(place("/search/code"), &core);
        assert_eq!(buckets.get(place("/search/code")).as_deref(), Some("core"));
    }

    #[test]
    fn what_a_request_names_is_a_short_plain_name() {
        let buckets = Buckets::default();
        let now = Instant::now();
        let long = "x".repeat(MOST_NAME + 1);
        for (name, fits) in [
            ("gpt-4o", true),
            ("ft:gpt-4o-mini:acme:tone:9x", true),
            ("models/a@001", true),
            ("meta_llama.3", true),
            (&long[1..], true),
            (long.as_str(), false),
            ("", false),
            ("a b", false),
            ("a|b", false),
            ("a\nb", false),
            ("modèle", false),
        ] {
            assert_eq!(buckets.given(name, now).as_deref(), fits.then_some(name), "{name:?}");
        }
    }

    #[test]
    fn names_that_requests_give_are_bounded_and_old_ones_make_room() {
        let buckets = Buckets::default();
        let now = Instant::now();
        for number in 0..200 {
            assert_eq!(buckets.given(&format!("b{number}"), now).is_some(), number < MOST_NAMES);
        }
        assert!(buckets.given("b1", now + KEEP / 2).is_some(), "known, and used again");
        assert!(buckets.given("late", now + KEEP).is_some());
        assert_eq!(buckets.given.lock().unwrap().len(), 2);
    }

    #[test]
    fn versions_tell_no_bucket() {
        assert_ne!(place("/api/v1/query"), place("/api/v1/events"));
        assert_ne!(place("/rest/api/3/issue/A-1"), place("/rest/api/3/search"));
        assert_eq!(place("/api/v1/query?q=1"), place("/api/v1/query?q=2"));
        assert_eq!(place("/v2/apps/1/x"), place("/v2/apps/1/y"));
        assert_ne!(place("/v2alpha/x/1"), place("/v2alpha/y/1"));
        assert_eq!(place("/"), place("/api"));
    }

    #[test]
    fn names_and_places_are_bounded() {
        let buckets = Buckets::default();
        for number in 0..200 {
            let name = HeaderValue::from_str(&format!("b{number}")).unwrap();
            assert_eq!(buckets.learn(place("/a"), &name).is_some(), number < MOST_NAMES);
        }
        assert_eq!(buckets.learn(place("/a"), &HeaderValue::from_str(&"x".repeat(65)).unwrap()), None);
        for number in 0..=MOST_PLACES {
            buckets.learn(place(&format!("/{number}")), &HeaderValue::from_static("b1"));
        }
        assert!(buckets.known.lock().unwrap().places.len() <= MOST_PLACES);
    }
}
