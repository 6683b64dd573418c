//! What is signed: a text with parts of the request in it. It is read when the policy is compiled; nothing that an app sends
//! is ever read as a template.

use http::HeaderName;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Piece {
    /// Text as it is.
    Text(String),
    /// The method.
    Method,
    /// Host, with the port where it is not the scheme's own.
    Host,
    /// The path as it is sent.
    Path,
    /// The query as it is sent, without `?`; empty where there is none.
    Query,
    /// Path and query as they are sent.
    Target,
    /// A header field as the app sent it; several are joined by `,`; empty where there is none.
    Header(HeaderName),
    /// The time, as `timestamp` writes it.
    Timestamp,
    /// A number that is used once.
    Nonce,
    /// The public id of the key.
    KeyId,
    /// The body.
    Body,
    /// A digest of the body.
    Digest,
    /// The key itself, for schemes that hash it with the content.
    Key,
    /// The signature; in formats only.
    Signature,
    /// Base64 of `key_id:signature`; in formats only.
    Basic,
}

const NAMES: [(&str, Piece); 12] = [
    ("method", Piece::Method),
    ("host", Piece::Host),
    ("path", Piece::Path),
    ("query", Piece::Query),
    ("target", Piece::Target),
    ("timestamp", Piece::Timestamp),
    ("nonce", Piece::Nonce),
    ("key_id", Piece::KeyId),
    ("body", Piece::Body),
    ("digest", Piece::Digest),
    ("key", Piece::Key),
    ("signature", Piece::Signature),
];

/// Reads a template. `allowed` are the pieces that may stand in it.
///
/// # Errors
/// What is wrong, with the name of the piece.
pub fn parse(text: &str, allowed: impl Fn(&Piece) -> bool) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or("`{` without `}`")?;
        if before.contains('}') {
            return Err("`}` without `{`".to_owned());
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let piece = named(name)?;
        if !allowed(&piece) {
            return Err(format!("`{{{}}}` has no meaning here", shown(name)));
        }
        pieces.push(piece);
        rest = after;
    }
    if rest.contains('}') {
        return Err("`}` without `{`".to_owned());
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// Fields that frame or route a message: what the app sends of them is not what is sent on.
const WRITTEN_LATER: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "te", "upgrade", "via", "cookie"];

fn named(name: &str) -> Result<Piece, String> {
    if let Some(field) = name.strip_prefix("header:") {
        let field =
            HeaderName::from_bytes(field.as_bytes()).map_err(|_| "`{header:<name>}` holds no header name")?;
        if WRITTEN_LATER.contains(&field.as_str()) {
            return Err(format!(
                "`{field}` is written by outgate itself, after the signature; the host is `{{host}}`"
            ));
        }
        return Ok(Piece::Header(field));
    }
    if name == "basic" {
        return Ok(Piece::Basic);
    }
    let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, piece)| piece.clone());
    found.ok_or_else(|| {
        let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
        format!("`{{{}}}` is none of {}, header:<name>, basic", shown(name), known.join(", "))
    })
}

/// A name that may be told: what does not look like one may be a secret that was pasted.
fn shown(name: &str) -> &str {
    let plain = name.len() <= 16 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if plain { name } else { "..." }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_read_once_and_strictly() {
        let all = |_: &Piece| true;
        assert_eq!(
            parse("a{method}\n{header:X-Y}{basic}z", all).unwrap(),
            [
                Piece::Text("a".into()),
                Piece::Method,
                Piece::Text("\n".into()),
                Piece::Header(HeaderName::from_static("x-y")),
                Piece::Basic,
                Piece::Text("z".into()),
            ]
        );
        assert!(parse("", all).unwrap().is_empty());
        for bad in ["{", "}", "{method", "{nothing}", "{header:a b}", "{}", "a}b{method}"] {
            assert!(parse(bad, all).is_err(), "{bad}");
        }
        assert!(parse("{signature}", |piece| *piece != Piece::Signature).is_err());
    }
}
