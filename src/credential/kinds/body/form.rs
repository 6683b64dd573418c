//! Writes one field into a form (`application/x-www-form-urlencoded`), and leaves every other byte of it as it is.
//!
//! Removed are all fields that a server might take for the credential's: names in another case or percent-encoded, parted by
//! `;`, as a list or map (`key[]`, `key[x]`), and those that PHP reads as the same (leading spaces; `.` and space as `_`).

use percent_encoding::percent_encode;
use zeroize::Zeroizing;

use crate::credential::location::{is_pair_of, without_pairs};
use crate::credential::member::QUERY;

const MALFORMED: &str = "the credential goes into the body, and the form is not UTF-8";

/// The form with `value` as the field `name`, at its end, and only there.
///
/// # Errors
/// What is wrong with the form, for the app.
pub fn set(form: &[u8], name: &str, value: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let form = std::str::from_utf8(form).map_err(|_| MALFORMED)?;
    let stripped = without_pairs(form, |pair| is_pair_of(pair, name));
    let kept = stripped.as_deref().unwrap_or(form);
    let (name, value) = (percent_encode(name.as_bytes(), QUERY), percent_encode(value, QUERY));
    let added = name.clone().map(str::len).sum::<usize>() + value.clone().map(str::len).sum::<usize>() + 2;
    // Never grown, so that no piece of the credential stays behind in memory that was given back.
    let mut out = Zeroizing::new(Vec::with_capacity(kept.len() + added));
    out.extend_from_slice(kept.as_bytes());
    if !kept.is_empty() && !kept.ends_with('&') {
        out.push(b'&');
    }
    name.for_each(|piece| out.extend_from_slice(piece.as_bytes()));
    out.push(b'=');
    value.for_each(|piece| out.extend_from_slice(piece.as_bytes()));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_ours_and_the_rest_stays_byte_for_byte() {
        for (before, after) in [
            ("", "api_key=K%2F%20%26"),
            ("a=1", "a=1&api_key=K%2F%20%26"),
            ("a=1&", "a=1&api_key=K%2F%20%26"),
            ("a=%2f+x&b", "a=%2f+x&b&api_key=K%2F%20%26"),
            ("api_key=app", "api_key=K%2F%20%26"),
            ("api_key=app&a=1&api_key=app", "a=1&api_key=K%2F%20%26"),
            ("%61pi%5Fkey=app&a=1", "a=1&api_key=K%2F%20%26"),
            ("API_KEY=app&a=1", "a=1&api_key=K%2F%20%26"),
            ("a=1;api_key=app;b=2", "a=1;b=2&api_key=K%2F%20%26"),
            ("api_key[]=app&api_key%5Bx%5D=app&a=1", "a=1&api_key=K%2F%20%26"),
            ("api+key=app&api.key=app&api%20key=app&+api_key=app&a", "a&api_key=K%2F%20%26"),
            ("api_key%00x=app&a", "a&api_key=K%2F%20%26"),
            ("api[key=app&api%5Bkey=app&api-key=app&a", "a&api_key=K%2F%20%26"),
            ("api_keys=1&x_api_key=2", "api_keys=1&x_api_key=2&api_key=K%2F%20%26"),
            ("a=api_key=app", "a=api_key=app&api_key=K%2F%20%26"),
        ] {
            let set = set(before.as_bytes(), "api_key", b"K/ &").unwrap();
            assert_eq!(std::str::from_utf8(&set).unwrap(), after, "{before}");
        }
        assert_eq!(set(b"a=\xff", "k", b"v").err(), Some(MALFORMED));
        let set = set(b"auth[token]=app&auth[x]=1", "auth[token]", b"v").unwrap();
        assert_eq!(std::str::from_utf8(&set).unwrap(), "auth[x]=1&auth%5Btoken%5D=v");
    }
}
