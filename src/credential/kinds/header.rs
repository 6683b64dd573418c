//! `header`: the secret in a header field of the provider's own name; one, or several (Datadog wants two).
//!
//! ```yaml
//! credential: { header: { name: X-Api-Key, value: env:GEO_KEY, format: "Key {secret}" } }
//! ```

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Form, Part};
use crate::credential::config::OneOrMany;
use crate::credential::location::Location;
use crate::secret::reference::SecretRef;

/// One header field as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the field. Fields that frame or route a message are refused. What the client sent there is removed first, and where the
    /// name has a hyphen (`X-Api-Key`) the parameter of that name in the query, too.
    pub name: String,
    /// The secret, or a list in an overlap: the new one first.
    pub value: OneOrMany<SecretRef>,
    /// How the secret is written; `{secret}` stands for it. Default: `{secret}`.
    pub format: Option<String>,
}

/// Fields that frame, route or speak about one connection; a credential there would break the message.
const REFUSED: [&str; 16] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "via",
    "proxy-authorization",
    "proxy-connection",
    "proxy-authenticate",
    "keep-alive",
    "expect",
    "content-type",
    "content-encoding",
    "forwarded",
];

impl Config {
    /// The part of this field in one member of an overlap, or what is wrong with it.
    pub fn part(&self, choice: usize) -> Result<Part, String> {
        let location = Location::Header(header_name(&self.name)?);
        let format = self.format.as_deref().unwrap_or("{secret}");
        let (before, after) = format
            .split_once("{secret}")
            .ok_or("`format` has no `{secret}` in it: that is where the secret stands")?;
        if after.contains("{secret}") {
            return Err("`format` has `{secret}` more than once".to_owned());
        }
        if format.bytes().any(|byte| !(0x20..0x7f).contains(&byte)) {
            return Err("`format` may hold printable ASCII only".to_owned());
        }
        let form = Form::Text {
            before: before.to_owned(),
            secret: self.value.alternative(choice),
            after: after.to_owned(),
        };
        Ok(Part { location, form })
    }
}

/// A header name that a credential, or the policy's own `headers`, may write.
pub fn header_name(name: &str) -> Result<HeaderName, String> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "not a header name".to_owned())?;
    if REFUSED.contains(&parsed.as_str()) || parsed.as_str().starts_with("outgate-") {
        return Err(format!("`{parsed}` frames or routes the message; it cannot be set"));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_and_routing_fields_are_refused() {
        for name in [
            "Host",
            "Content-Length",
            "Transfer-Encoding",
            "Connection",
            "Upgrade",
            "TE",
            "Trailer",
            "Via",
            "Proxy-Authorization",
            "Expect",
            ":authority",
            "X Y",
            "",
            "Outgate-Error",
        ] {
            assert!(header_name(name).is_err(), "{name}");
        }
        assert_eq!(header_name("X-Api-Key").unwrap(), "x-api-key");
    }
}
