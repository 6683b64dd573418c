//! Signatures that stand in a URL's query: those of AWS, version 4 and 2, and of Google Cloud Storage.

use std::sync::LazyLock;

use http::uri::PathAndQuery;

use crate::credential::location::{Location, Locations};

fn names(names: &[&str]) -> Locations {
    Locations::new(names.iter().map(|name| Location::Query((*name).to_owned())))
}

/// The parameters that only a signature brings.
static MARKS: LazyLock<Locations> = LazyLock::new(|| {
    names(&[
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-Security-Token",
        "X-Amz-Signature",
        "X-Amz-SignedHeaders",
        "X-Amz-Region-Set",
        "X-Amz-S3session-Token",
        "AWSAccessKeyId",
        "X-Goog-Algorithm",
        "X-Goog-Credential",
        "X-Goog-Date",
        "X-Goog-Expires",
        "X-Goog-Signature",
        "X-Goog-SignedHeaders",
        "GoogleAccessId",
    ])
});

/// What version 2 has beside its mark; by themselves these are anybody's names.
static BESIDE: LazyLock<Locations> = LazyLock::new(|| names(&["Signature", "Expires"]));

/// The target without the signature, where it carries one.
pub(super) fn without(target: &PathAndQuery) -> Option<PathAndQuery> {
    target.query()?;
    let stripped = MARKS.strip_query(target.clone());
    (stripped != *target).then(|| BESIDE.strip_query(stripped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_in_a_query_are_seen_and_taken_out() {
        for (target, left) in [
            ("/a?X-Amz-Algorithm=A&X-Amz-Credential=B&X-Amz-Signature=C&versionId=1", Some("/a?versionId=1")),
            ("/a?x-amz-signature=1", Some("/a")),
            ("/a?X-Amz-%53ignature=1&b", Some("/a?b")),
            ("/a?AWSAccessKeyId=A&Signature=B&Expires=1", Some("/a")),
            ("/a?X-Goog-Signature=1", Some("/a")),
            ("/a?Signature=mine&Expires=1", None),
            ("/a?list-type=2", None),
            ("/a", None),
        ] {
            let got = without(&target.parse().unwrap());
            assert_eq!(got.as_ref().map(PathAndQuery::as_str), left, "{target}");
        }
    }
}
