//! What AWS needs and the store and the credential kind share: its keys, its signature, and where keys come from.
//!
//! | file | what |
//! | --- | --- |
//! | `sign` | signature version 4 of the head of a request, and the key chain for signed chunks |
//! | `chain` | keys from the environment, a web identity, a profile, a container's or a machine's metadata |
//!
//! Keys that stand in one secret are a JSON object of AWS's own form (`AccessKeyId`, `SecretAccessKey`, `SessionToken`), as
//! `aws sts assume-role` and `credential_process` print it; so they change together.

pub mod chain;
pub mod sign;

use std::time::SystemTime;

use aws_credential_types::Credentials;
use zeroize::Zeroizing;

use super::SecretBytes;
use super::stores::document::Document;
use crate::message::date::rfc3339;

/// The names that the parts of keys have in the answers and files of AWS.
const ID: [&str; 3] = ["AccessKeyId", "access_key_id", "aws_access_key_id"];
const SECRET: [&str; 3] = ["SecretAccessKey", "secret_access_key", "aws_secret_access_key"];
const SESSION: [&str; 4] = ["SessionToken", "Token", "session_token", "aws_session_token"];

const EXPIRATION: [&str; 2] = ["Expiration", "expiration"];

/// Why bytes are no keys of AWS. Static text.
pub const NO_KEYS: &str =
    "it is not a JSON object with `AccessKeyId`, `SecretAccessKey` and, of keys that end, `SessionToken`";

/// Keys of their parts. They are wiped when the last copy goes; `Debug` shows the id alone.
#[must_use]
pub fn keys(id: &str, secret: &str, session: Option<&str>) -> Credentials {
    Credentials::new(id, secret, session.map(str::to_owned), None, "outgate")
}

/// Reads keys from a JSON object; none where it is not one or lacks a part.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Credentials> {
    parse_document(&Document::parse(bytes).ok()?)
}

/// Reads keys from a document of AWS: at its top, or below `Credentials` as the STS tools print it.
#[must_use]
pub fn parse_document(document: &Document) -> Option<Credentials> {
    let text = |names: &[&str]| {
        let top = names.iter().find_map(|name| document.text(&[*name]));
        top.or_else(|| names.iter().find_map(|name| document.text(&["Credentials", *name])))
            .filter(|text| !text.is_empty())
    };
    let parts = (text(&ID)?, text(&SECRET)?, text(&SESSION));
    // Keys of a session without its token would be sent for nothing.
    let all = [Some(parts.0), Some(parts.1), parts.2];
    all.into_iter().flatten().all(is_plain).then(|| keys(parts.0, parts.1, parts.2))
}

/// When keys end, where their document says so, as the STS tools print it beside them.
#[must_use]
pub fn ends(bytes: &[u8]) -> Option<SystemTime> {
    let document = Document::parse(bytes).ok()?;
    let text = |name: &str| document.text(&[name]).or_else(|| document.text(&["Credentials", name]));
    EXPIRATION.iter().find_map(|name| rfc3339(text(name)?))
}

/// Writes keys as [`parse`] reads them. They hold no character that JSON would escape: [`parse_document`] sees to it.
#[must_use]
pub fn write(keys: &Credentials) -> SecretBytes {
    let session = keys.session_token();
    let pieces = [
        "{\"AccessKeyId\":\"",
        keys.access_key_id(),
        "\",\"SecretAccessKey\":\"",
        keys.secret_access_key(),
        if session.is_some() { "\",\"SessionToken\":\"" } else { "" },
        session.unwrap_or_default(),
        "\"}",
    ];
    Zeroizing::new(pieces.concat().into_bytes())
}

/// Whether a part of keys can stand in a header and in JSON as it is.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_keys_is_read_where_it_is_told() {
        let at = rfc3339("2030-01-01T00:00:00Z");
        let keys = r#""AccessKeyId":"A","SecretAccessKey":"CANARY","SessionToken":"s""#;
        for (text, expected) in [
            (format!(r#"{{{keys},"Expiration":"2030-01-01T00:00:00Z"}}"#), at),
            (format!(r#"{{"Credentials":{{{keys},"Expiration":"2030-01-01T02:00:00+02:00"}}}}"#), at),
            (format!(r#"{{{keys},"Expiration":"tomorrow"}}"#), None),
            (format!("{{{keys}}}"), None),
        ] {
            assert_eq!(ends(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn keys_are_read_in_the_forms_they_are_printed_in_and_survive_writing() {
        for (text, id, session) in [
            (r#"{"AccessKeyId":"AKID","SecretAccessKey":"CANARY"}"#, "AKID", None),
            (r#"{"AccessKeyId":"AKID","SecretAccessKey":"CANARY","Token":"t/+="}"#, "AKID", Some("t/+=")),
            (
                r#"{"Credentials":{"AccessKeyId":"A","SecretAccessKey":"CANARY","SessionToken":"s"}}"#,
                "A",
                Some("s"),
            ),
            (r#"{"aws_access_key_id":"A","aws_secret_access_key":"CANARY"}"#, "A", None),
        ] {
            let read = parse(text.as_bytes()).unwrap();
            assert_eq!((read.access_key_id(), read.session_token()), (id, session), "{text}");
            let again = parse(&write(&read)).unwrap();
            assert_eq!(
                (again.access_key_id(), again.secret_access_key(), again.session_token()),
                (id, "CANARY", session)
            );
            assert!(!format!("{read:?}").contains("CANARY"));
        }
    }

    #[test]
    fn what_is_no_pair_of_keys_is_refused() {
        for text in [
            "CANARY",
            "{}",
            r#"{"AccessKeyId":"AKID"}"#,
            r#"{"AccessKeyId":"AKID","SecretAccessKey":""}"#,
            r#"{"AccessKeyId":"AK\nID","SecretAccessKey":"CANARY"}"#,
            r#"{"AccessKeyId":"AK\"ID","SecretAccessKey":"CANARY"}"#,
            r#"{"AccessKeyId":5,"SecretAccessKey":"CANARY"}"#,
            r#"{"AccessKeyId":"AKID","SecretAccessKey":"CANARY","SessionToken":"s\n"}"#,
        ] {
            assert!(parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
