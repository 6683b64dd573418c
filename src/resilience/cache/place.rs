//! Where an answer is kept: under its URL, byte for byte, and under whose answer it is.
//!
//! Whose: the credential's reference and tenant, the version of its secret, and whatever the app itself sent that looks like
//! a credential, or that the policy writes (`headers`). So `Vary: Authorization` is satisfied by the place, and nobody reads the answer of another. Names and values
//! are not kept, only keyed hashes of 128 bits.

use http::header::{ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, COOKIE, HeaderMap, HeaderName};

use crate::message::request::EgressRequest;
use crate::message::target::Target;
use crate::resilience::key::{Key, KeySource};

/// A URL and an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub url: Key,
    pub owner: Key,
}

/// Parts of a field's name that say that it carries a credential.
const CREDENTIAL_PARTS: [&str; 10] =
    ["auth", "token", "secret", "key", "passw", "passphrase", "credential", "session", "signature", "jwt"];

/// Parts of a field's name that say for whom something is asked, among those whom one credential serves.
const OWNER_PARTS: [&str; 14] = [
    "account",
    "org-id",
    "orgid",
    "organization",
    "organisation",
    "tenant",
    "user-id",
    "x-user",
    "customer",
    "merchant",
    "project",
    "workspace",
    "on-behalf-of",
    "impersonat",
];

impl Place {
    /// The place of the answer to a request, with the version of the secret that it will carry.
    pub fn of(request: &EgressRequest, source: &KeySource, written: &[HeaderName], version: u64) -> Self {
        let [reference, tenant] = source.credential_names(request);
        let version = version.to_string();
        let mut owner = vec![reference, tenant, &version];
        let own = owners(&request.headers, written);
        owner.extend(own.iter().map(String::as_str));
        Self { url: url(&request.target, request.path_and_query.as_str()), owner: Key::of(&owner) }
    }

    /// The key under which identical requests wait for one another. The fields that servers usually select by, and those by
    /// which this one did; requests that it takes for identical and are not find out when they look up the answer.
    pub fn flight(self, headers: &HeaderMap, selecting: &[HeaderName]) -> (Self, Key) {
        let usual = [ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE];
        let texts: Vec<_> = usual.iter().chain(selecting).flat_map(|name| field(headers, name)).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        (self, Key::of(&texts))
    }
}

/// The key of a URL.
pub(super) fn url(target: &Target, path_and_query: &str) -> Key {
    let port = target.port.to_string();
    Key::of(&[target.scheme.as_str(), target.host.as_str(), &port, path_and_query])
}

/// Whether a field says whose the answer is: requests that differ in it have different places. (Those with `Authorization`
/// or `Cookie` have none: they pass by.)
pub(super) fn tells_owner(name: &HeaderName) -> bool {
    *name == COOKIE || CREDENTIAL_PARTS.iter().chain(&OWNER_PARTS).any(|part| name.as_str().contains(part))
}

fn owners(headers: &HeaderMap, written: &[HeaderName]) -> Vec<String> {
    let mut names: Vec<_> =
        headers.keys().filter(|name| tells_owner(name) || written.contains(name)).collect();
    names.sort_unstable_by_key(|name| name.as_str());
    names.into_iter().flat_map(|name| field(headers, name)).collect()
}

/// Name and values of a field, in a form that no two fields share.
fn field(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().map(|value| format!("={}", value.as_bytes().escape_ascii()));
    std::iter::once(name.as_str().to_owned()).chain(values).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::message::body::Body;
    use crate::resilience::timeout::tests::request_with;

    fn place(change: impl FnOnce(&mut EgressRequest)) -> Place {
        let source = KeySource { route: "r".into(), credential: ["env:A".into(), "env:B".into()].into() };
        let mut request = request_with(Body::empty(), None);
        change(&mut request);
        Place::of(&request, &source, &[HeaderName::from_static("x-region")], 1)
    }

    #[test]
    fn whatever_could_change_the_answer_changes_the_place() {
        type Change = fn(&mut EgressRequest);
        let changes: [(&str, Change); 11] = [
            ("path", |request| request.path_and_query = "/v2".parse().unwrap()),
            ("query", |request| request.path_and_query = "/v1?a=1".parse().unwrap()),
            ("order of the query", |request| request.path_and_query = "/v1?b=1&a=1".parse().unwrap()),
            ("escapes", |request| request.path_and_query = "/%761".parse().unwrap()),
            ("port", |request| request.target.port = 8443),
            ("scheme", |request| request.target.scheme = crate::message::target::Scheme::Http),
            ("tenant", |request| request.tenant = Some("acme".into())),
            ("member", |request| request.credential_choice = 1),
            ("a key of the app's own", |request| {
                request.headers.insert("x-api-key", HeaderValue::from_static("one"));
            }),
            ("what the policy writes", |request| {
                request.headers.insert("x-region", HeaderValue::from_static("eu"));
            }),
            ("another key", |request| {
                request.headers.insert("x-api-key", HeaderValue::from_static("two"));
            }),
        ];
        let mut seen = vec![place(|_| {})];
        for (what, change) in changes {
            let changed = place(change);
            assert!(!seen.contains(&changed), "{what}");
            assert_eq!(place(change), changed, "{what}");
            seen.push(changed);
        }
        let request = request_with(Body::empty(), None);
        let source = KeySource::default();
        assert_ne!(Place::of(&request, &source, &[], 1), Place::of(&request, &source, &[], 2), "version");
        assert_eq!(
            place(|request| drop(request.headers.insert("accept", HeaderValue::from_static("a")))),
            seen[0]
        );
    }
}
