//! Validators: entity tags and dates (RFC 9110 section 13, RFC 9111 section 4.3).

use std::time::SystemTime;

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, SET_COOKIE, TRANSFER_ENCODING,
};

use super::directives::split_list;

/// What a 304 says about a request that was made conditional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validation {
    /// The app's own question, or none at all: its answer is the app's.
    NotOurs,
    /// Whether what is kept is still right.
    Ours,
    /// Both questions in one: the answer's tag tells which of them was answered.
    Both,
}

/// Makes a request for what is kept conditional (RFC 9111 section 4.3.1).
pub(super) fn ask(asked: &mut HeaderMap, kept: &HeaderMap) -> Validation {
    if let Some(tag) = kept.get(ETAG) {
        return ask_by_tag(asked, tag, kept.get(LAST_MODIFIED));
    }
    // A tag that the app sent goes before any date (RFC 9110 section 13.2.2), so the answer would not be about ours.
    match kept.get(LAST_MODIFIED) {
        Some(date) if !asked.contains_key(IF_NONE_MATCH) => {
            asked.insert(IF_MODIFIED_SINCE, date.clone());
            Validation::Ours
        }
        Some(_) | None => Validation::NotOurs,
    }
}

fn ask_by_tag(asked: &mut HeaderMap, tag: &HeaderValue, date: Option<&HeaderValue>) -> Validation {
    let Ok(text) = tag.to_str() else { return Validation::NotOurs };
    let theirs: Vec<String> = tags(asked).into_iter().map(str::to_owned).collect();
    if theirs.iter().any(|theirs| theirs == "*") {
        return Validation::NotOurs;
    }
    asked.remove(IF_MODIFIED_SINCE);
    if theirs.iter().all(|theirs| is_same(theirs, text)) {
        asked.insert(IF_NONE_MATCH, tag.clone());
        if let Some(date) = date {
            asked.insert(IF_MODIFIED_SINCE, date.clone());
        }
        return Validation::Ours;
    }
    let all = theirs.iter().map(String::as_str).filter(|theirs| !is_same(theirs, text)).chain([text]);
    match HeaderValue::try_from(all.collect::<Vec<_>>().join(", ")) {
        Ok(all) => {
            asked.insert(IF_NONE_MATCH, all);
            Validation::Both
        }
        Err(_) => Validation::NotOurs,
    }
}

/// Whether a 304 confirms what is kept (RFC 9111 section 4.3.4).
pub(super) fn confirms(validation: Validation, kept: &HeaderMap, not_modified: &HeaderMap) -> bool {
    let tag = |headers: &HeaderMap| headers.get(ETAG).and_then(|tag| tag.to_str().ok().map(str::to_owned));
    match (validation, tag(kept), tag(not_modified)) {
        (Validation::NotOurs, _, _) | (Validation::Both, _, None) | (Validation::Both, None, _) => false,
        (Validation::Both | Validation::Ours, Some(kept), Some(new)) => is_same(&kept, &new),
        (Validation::Ours, _, None) => match (kept.get(LAST_MODIFIED), not_modified.get(LAST_MODIFIED)) {
            (Some(kept), Some(new)) => kept == new,
            _ => true,
        },
        (Validation::Ours, None, Some(_)) => true,
    }
}

/// Whether a 304 names an entity that the app said it has.
pub(super) fn names_theirs(asked: &HeaderMap, not_modified: &HeaderMap) -> bool {
    let named = not_modified.get(ETAG).and_then(|tag| tag.to_str().ok());
    named.is_some_and(|named| tags(asked).iter().any(|theirs| is_same(theirs, named)))
}

/// The kept head with what a 304 brought (RFC 9111 section 3.2): all its fields but those that describe the body.
pub(super) fn updated(kept: &HeaderMap, not_modified: &HeaderMap) -> HeaderMap {
    const OF_THE_BODY: [HeaderName; 5] =
        [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, TRANSFER_ENCODING, SET_COOKIE];
    let mut headers = kept.clone();
    let new: Vec<_> = not_modified.keys().filter(|name| !OF_THE_BODY.contains(name)).collect();
    for name in &new {
        headers.remove(*name);
    }
    for name in new {
        for value in not_modified.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    headers
}

/// Whether the app has what is kept already: its conditions, judged by us (RFC 9111 section 4.3.2).
pub(super) fn is_known_to_app(asked: &HeaderMap, kept: &HeaderMap) -> bool {
    if asked.contains_key(IF_NONE_MATCH) {
        let own = kept.get(ETAG).and_then(|tag| tag.to_str().ok());
        return tags(asked).into_iter().any(|tag| tag == "*" || own.is_some_and(|own| is_same(own, tag)));
    }
    let since = asked.get(IF_MODIFIED_SINCE).and_then(date);
    let modified = kept.get(LAST_MODIFIED).or_else(|| kept.get(DATE)).and_then(date);
    since.zip(modified).is_some_and(|(since, modified)| modified <= since)
}

/// Whether two heads speak of different states of the same thing.
pub(super) fn differ(one: &HeaderMap, other: &HeaderMap) -> bool {
    [ETAG, LAST_MODIFIED, CONTENT_LENGTH].iter().any(|name| match (one.get(name), other.get(name)) {
        (Some(one), Some(other)) => one != other,
        _ => false,
    })
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

fn tags(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(split_list)
        .collect()
}

/// The weak comparison (RFC 9110 section 8.8.3.2).
fn is_same(one: &str, other: &str) -> bool {
    let opaque = |tag: &str| tag.trim().strip_prefix("W/").unwrap_or(tag.trim()).to_owned();
    opaque(one) == opaque(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEW: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

    #[test]
    fn what_is_kept_is_asked_about_together_with_what_the_app_has() {
        for (asked, kept, validation, sent) in [
            (vec![], vec![("etag", "\"a\"")], Validation::Ours, vec![("if-none-match", "\"a\"")]),
            (
                vec![],
                vec![("etag", "\"a\""), ("last-modified", OLD)],
                Validation::Ours,
                vec![("if-none-match", "\"a\""), ("if-modified-since", OLD)],
            ),
            (vec![], vec![("last-modified", OLD)], Validation::Ours, vec![("if-modified-since", OLD)]),
            (
                vec![("if-modified-since", NEW)],
                vec![("last-modified", OLD)],
                Validation::Ours,
                vec![("if-modified-since", OLD)],
            ),
            (
                vec![("if-none-match", "W/\"a\"")],
                vec![("etag", "\"a\"")],
                Validation::Ours,
                vec![("if-none-match", "\"a\"")],
            ),
            (
                vec![("if-none-match", "\"x,y\", \"b\"")],
                vec![("etag", "\"a\"")],
                Validation::Both,
                vec![("if-none-match", "\"x,y\", \"b\", \"a\"")],
            ),
            (
                vec![("if-none-match", "*")],
                vec![("etag", "\"a\"")],
                Validation::NotOurs,
                vec![("if-none-match", "*")],
            ),
            (
                vec![("if-none-match", "\"b\"")],
                vec![("last-modified", OLD)],
                Validation::NotOurs,
                vec![("if-none-match", "\"b\"")],
            ),
            (vec![], vec![], Validation::NotOurs, vec![]),
        ] {
            let mut headers = map(&asked);
            assert_eq!(ask(&mut headers, &map(&kept)), validation, "{asked:?} {kept:?}");
            assert_eq!(headers, map(&sent), "{asked:?} {kept:?}");
        }
    }

    #[test]
    fn a_304_confirms_only_what_it_is_about() {
        let (a, b, weak) = (("etag", "\"a\""), ("etag", "\"b\""), ("etag", "W/\"a\""));
        for (validation, kept, new, confirmed) in [
            (Validation::Ours, vec![a], vec![a], true),
            (Validation::Ours, vec![a], vec![weak], true),
            (Validation::Ours, vec![a], vec![b], false),
            (Validation::Ours, vec![a], vec![], true),
            (Validation::Ours, vec![("last-modified", OLD)], vec![("last-modified", OLD)], true),
            (Validation::Ours, vec![("last-modified", OLD)], vec![("last-modified", NEW)], false),
            (Validation::Both, vec![a], vec![a], true),
            (Validation::Both, vec![a], vec![b], false),
            (Validation::Both, vec![a], vec![], false),
            (Validation::NotOurs, vec![a], vec![a], false),
        ] {
            assert_eq!(
                confirms(validation, &map(&kept), &map(&new)),
                confirmed,
                "{validation:?} {kept:?} {new:?}"
            );
        }
    }

    #[test]
    fn a_304_brings_its_fields_but_not_those_of_the_body() {
        let kept = map(&[("etag", "\"a\""), ("content-length", "3"), ("link", "<a>"), ("x-old", "1")]);
        let new = map(&[
            ("content-length", "0"),
            ("link", "<b>"),
            ("link", "<c>"),
            ("x-new", "1"),
            ("set-cookie", "a=b"),
        ]);
        let expected = map(&[
            ("etag", "\"a\""),
            ("content-length", "3"),
            ("x-old", "1"),
            ("link", "<b>"),
            ("link", "<c>"),
            ("x-new", "1"),
        ]);
        assert_eq!(updated(&kept, &new), expected);
    }

    #[test]
    fn conditions_of_the_app_are_judged() {
        for (asked, kept, known) in [
            (vec![("if-none-match", "\"a\"")], vec![("etag", "\"a\"")], true),
            (vec![("if-none-match", "W/\"a\"")], vec![("etag", "\"a\"")], true),
            (vec![("if-none-match", "\"x\", \"a\"")], vec![("etag", "W/\"a\"")], true),
            (vec![("if-none-match", "*")], vec![], true),
            (vec![("if-none-match", "\"b\"")], vec![("etag", "\"a\"")], false),
            (
                vec![("if-none-match", "\"b\""), ("if-modified-since", NEW)],
                vec![("last-modified", OLD)],
                false,
            ),
            (vec![("if-modified-since", NEW)], vec![("last-modified", OLD)], true),
            (vec![("if-modified-since", OLD)], vec![("last-modified", OLD)], true),
            (vec![("if-modified-since", OLD)], vec![("last-modified", NEW)], false),
            (vec![("if-modified-since", NEW)], vec![("date", OLD)], true),
            (vec![("if-modified-since", "soon")], vec![("last-modified", OLD)], false),
            (vec![], vec![("etag", "\"a\""), ("last-modified", OLD)], false),
        ] {
            assert_eq!(is_known_to_app(&map(&asked), &map(&kept)), known, "{asked:?} {kept:?}");
        }
    }
}
