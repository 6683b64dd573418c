//! `Accept-Encoding` of requests whose answers may have to be looked into.

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};

/// Leaves of what the app accepts the codings that can be looked into: gzip and none. Never adds one that the app did not
/// accept: where it accepts neither, nothing is changed, and the answer is not looked into.
pub(super) fn narrow(headers: &mut HeaderMap) {
    // Without the field providers answer without a coding, and one that does not is not looked into.
    if !headers.contains_key(ACCEPT_ENCODING) {
        return;
    }
    let narrowed = {
        let values = headers.get_all(ACCEPT_ENCODING).iter();
        let Some(texts) = values.map(|value| value.to_str().ok()).collect::<Option<Vec<_>>>() else { return };
        narrowed(&texts.join(","))
    };
    if let Some(value) = narrowed.and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(ACCEPT_ENCODING, value);
    }
}

fn narrowed(text: &str) -> Option<String> {
    let codings = || text.split(',').map(str::trim).filter(|coding| !coding.is_empty());
    let name = |coding: &str| coding.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let mut kept: Vec<String> = Vec::new();
    let (mut gzip, mut identity) = (false, None);
    for coding in codings() {
        match name(coding).as_str() {
            "gzip" | "x-gzip" => gzip = true,
            "identity" => identity = Some(!is_refused(coding)),
            _ => continue,
        }
        kept.push(coding.to_owned());
    }
    // `*` speaks for gzip too where gzip is not named itself.
    if let Some(star) = codings().find(|coding| name(coding) == "*") {
        if !gzip {
            kept.push(star.replacen('*', "gzip", 1));
        }
        identity = identity.or(Some(!is_refused(star)));
        if is_refused(star) && !kept.iter().any(|coding| name(coding) == "identity") {
            kept.push("identity;q=0".to_owned());
        }
    }
    if kept.iter().any(|coding| !is_refused(coding)) {
        return Some(kept.join(", "));
    }
    // No coding at all is acceptable unless the app says that it is not (RFC 9110 section 12.5.3).
    identity.unwrap_or(true).then(|| "identity".to_owned())
}

fn is_refused(coding: &str) -> bool {
    let weight = coding.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("q="));
    weight.is_some_and(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight <= 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codings_are_narrowed_and_never_widened() {
        for (accepts, sent) in [
            ("gzip, deflate, br, zstd", "gzip"),
            ("br;q=1.0, gzip;q=0.8, identity;q=0.1", "gzip;q=0.8, identity;q=0.1"),
            ("identity", "identity"),
            ("br", "identity"),
            ("", "identity"),
            ("*", "gzip"),
            ("br, *;q=0.1", "gzip;q=0.1"),
            ("gzip;q=0, *", "identity"),
            ("GZIP", "GZIP"),
            ("br, identity;q=0", "br, identity;q=0"),
            ("br, *;q=0", "br, *;q=0"),
            ("gzip, *;q=0", "gzip, identity;q=0"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, accepts.parse().unwrap());
            narrow(&mut headers);
            assert_eq!(headers[ACCEPT_ENCODING], sent, "{accepts}");
        }
        let mut headers = HeaderMap::new();
        narrow(&mut headers);
        assert!(headers.is_empty());
    }
}
