//! `placeholder`: the app holds a dummy, and outgate puts the secret in its place. For SDKs that want a key before they start,
//! that put it where no other kind reaches (a path, a signed-in user's name), or in several places.
//!
//! ```yaml
//! credential:
//!   placeholder: { token: sk_test_placeholder_0001, value: env:STRIPE_KEY, in: [header] }
//! credential:
//!   placeholder:
//!     - { token: telegram-placeholder-1, value: env:TELEGRAM_TOKEN, in: [path] }
//!     - { token: account-placeholder-1, value: "plain:AC0123", in: [path, body], max: 256KiB }
//! ```
//!
//! Replaced is exactly this text, in the named places and in no other:
//!
//! | place | how |
//! | --- | --- |
//! | `header` | in any field's value; in `Authorization: Basic` inside the base64 |
//! | `query`, `path` | also where the app percent-encoded it; the secret is percent-encoded |
//! | `body` | of forms (percent-encoded), JSON (escaped) and `text/plain` (as it is), uncompressed and up to `max`; other bodies are streamed and not looked into |
//!
//! A request that does not hold the dummy goes as it is, without credential. A dummy that is sent anywhere else (to another
//! provider, on another route, at a place that is not named) is refused with 403 and logged: see [`known`].

pub mod known;
mod replace;

use futures_util::future::BoxFuture;
use http_body::Body as HttpBody;
use schemars::JsonSchema;
use serde::Deserialize;

use super::body::bound;
use super::values::{ValueSettings, ValuesConfig, alternatives};
use super::{MemberSettings, PerRequest, Used};
use crate::credential::location::Location;
use crate::credential::rewrite::{Rewrite, Secrets, collect};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::media::{Media, media};
use crate::message::quantity::ByteSize;
use crate::message::request::EgressRequest;
use replace::{Replacement, Unable};

/// One dummy as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The dummy that the app holds: 12 to 128 of A-Z, a-z, 0-9 and `-._~`. It is no secret.
    pub token: String,
    /// What takes its place: a secret reference, a list of them in an overlap (the new one first), or `plain:<text>`.
    pub value: ValuesConfig,
    /// Where it is replaced: `header`, `query`, `path`, `body`. Anywhere else it is refused.
    #[serde(rename = "in")]
    pub places: Vec<PlaceConfig>,
    /// Largest body that is looked into, where `in` has `body`: it is held whole, and a longer one refused. Default: 64KiB, at most 16MiB.
    pub max: Option<ByteSize>,
}

/// A place of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlaceConfig {
    /// Values of header fields.
    Header,
    /// The query.
    Query,
    /// The path.
    Path,
    /// The body.
    Body,
}

/// Where a dummy may stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Places {
    header: bool,
    query: bool,
    path: bool,
    body: bool,
}

/// One alternative of it, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    dummies: Vec<Dummy>,
    max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Dummy {
    token: String,
    value: ValueSettings,
    places: Places,
}

const SHORTEST: usize = 12;
const LONGEST: usize = 128;

/// The members of this credential.
///
/// # Errors
/// What is wrong.
pub fn members(configs: &[Config]) -> Result<Vec<MemberSettings>, String> {
    let mut max = 1;
    for (at, config) in configs.iter().enumerate() {
        check_token(&config.token)?;
        if config.places.is_empty() {
            return Err(
                "`placeholder.in` names no place: one or more of header, query, path, body".to_owned()
            );
        }
        max = max.max(bound(config.max)?);
        if config.max.is_some() && !config.places.contains(&PlaceConfig::Body) {
            return Err("`placeholder.max` is for `in: [body]` alone".to_owned());
        }
        if let Some(other) = configs[..at].iter().find(|other| is_inside(&other.token, &config.token)) {
            return Err(format!(
                "the placeholders `{}` and `{}` stand one in the other",
                other.token, config.token
            ));
        }
    }
    let values: Vec<&ValuesConfig> = configs.iter().map(|config| &config.value).collect();
    let members = alternatives(&values)?.into_iter().map(|values| {
        let dummies = configs.iter().zip(values).map(|(config, value)| Dummy {
            token: config.token.clone(),
            value,
            places: Places::of(&config.places),
        });
        let settings = Settings { dummies: dummies.collect(), max };
        MemberSettings::per_request(PerRequest::Placeholder(settings))
    });
    Ok(members.collect())
}

fn check_token(token: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if (SHORTEST..=LONGEST).contains(&token.len()) && token.bytes().all(plain) {
        return Ok(());
    }
    // Not repeated: it may be a key that was pasted here.
    Err(format!(
        "`placeholder.token` has {SHORTEST} to {LONGEST} of A-Z, a-z, 0-9 and `-._~`, which read the same in a header, a URL and a body"
    ))
}

/// Whether one of two dummies is a part of the other; then nobody could tell which was meant.
#[must_use]
pub fn is_inside(one: &str, other: &str) -> bool {
    one.contains(other) || other.contains(one)
}

impl Places {
    fn of(places: &[PlaceConfig]) -> Self {
        let has = |place| places.contains(&place);
        Self {
            header: has(PlaceConfig::Header),
            query: has(PlaceConfig::Query),
            path: has(PlaceConfig::Path),
            body: has(PlaceConfig::Body),
        }
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [(self.header, "header"), (self.query, "query"), (self.path, "path"), (self.body, "body")];
        all.into_iter().filter_map(|(has, name)| has.then_some(name))
    }
}

impl Settings {
    /// The dummies, and where each may stand.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, Places)> {
        self.dummies.iter().map(|dummy| (dummy.token.as_str(), dummy.places))
    }

    fn replacements<'a>(&'a self, secrets: &'a Secrets) -> Vec<Replacement<'a>> {
        let mut position = 0;
        let one = |dummy: &'a Dummy| Replacement {
            token: dummy.token.as_bytes(),
            value: dummy.value.bytes(secrets, &mut position),
            places: dummy.places,
        };
        self.dummies.iter().map(one).collect()
    }
}

impl Rewrite for Settings {
    fn secrets(&self) -> Vec<Used> {
        self.dummies.iter().filter_map(|dummy| dummy.value.used()).collect()
    }

    fn locations(&self) -> Vec<Location> {
        Vec::new()
    }

    fn places(&self) -> Vec<String> {
        let place = |dummy: &Dummy| {
            let names: Vec<&str> = dummy.places.names().collect();
            format!("`{}` in {}", dummy.token, names.join(", "))
        };
        self.dummies.iter().map(place).collect()
    }

    fn holds(&self, request: &EgressRequest) -> Option<u64> {
        let in_body = self.dummies.iter().any(|dummy| dummy.places.body);
        (in_body && media(&request.headers) != Media::Other && !request.body.is_end_stream())
            .then_some(self.max)
    }

    fn rewrite<'a>(
        &'a self,
        mut request: EgressRequest,
        secrets: &'a Secrets,
    ) -> BoxFuture<'a, Result<EgressRequest, Failure>> {
        Box::pin(async move {
            let replacements = self.replacements(secrets);
            replace::headers(&mut request.headers, &replacements).map_err(failure)?;
            if let Some(target) = replace::target(&request.path_and_query, &replacements).map_err(failure)? {
                request.path_and_query = target;
            }
            let in_body: Vec<&Replacement<'_>> = replacements.iter().filter(|one| one.places.body).collect();
            let media = media(&request.headers);
            if in_body.is_empty() || media == Media::Other || request.body.is_end_stream() {
                return Ok(request);
            }
            let body = collect(std::mem::take(&mut request.body), self.max).await?;
            match replace::body(&body, media, &in_body).map_err(failure)? {
                Some(text) => crate::credential::rewrite::replace(&mut request, text),
                None => request.body = Body::full(body),
            }
            Ok(request)
        })
    }
}

fn failure(unable: Unable) -> Failure {
    Failure::not_sent(match unable {
        Unable::TooOften => Fault::Unfit("the placeholder stands in the request too often"),
        Unable::NotAField => Fault::Unfit("the placeholder stands in a field that cannot hold the secret"),
        Unable::TooLong => Fault::TargetTooLong,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::CredentialConfig;

    fn members(text: &str) -> Result<Vec<MemberSettings>, String> {
        let config: CredentialConfig =
            serde_yaml::from_str(&format!("{{ placeholder: {text} }}")).map_err(|error| error.to_string())?;
        config.members(std::path::Path::new("."))
    }

    #[test]
    fn mistakes_are_told() {
        assert_eq!(members("{ token: dummy-000000, value: [env:A, env:B], in: [header] }").unwrap().len(), 2);
        for (text, part) in [
            ("{ token: short, value: env:K, in: [header] }", "12 to 128"),
            ("{ token: 'with space 000', value: env:K, in: [header] }", "12 to 128"),
            ("{ token: 'with/slash/000', value: env:K, in: [header] }", "12 to 128"),
            ("{ token: dummy-000000, value: env:K, in: [] }", "no place"),
            ("{ token: dummy-000000, value: env:K, in: [trailer] }", "trailer"),
            ("{ token: dummy-000000, value: env:K, in: [path], max: 1MiB }", "alone"),
            ("{ token: dummy-000000, value: 'plain:x', in: [path] }", "no secret"),
            (
                "[{ token: dummy-000000, value: env:K, in: [path] }, { token: dummy-0000001, value: env:K, in: [path] }]",
                "one in the other",
            ),
        ] {
            let error = members(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let pasted = members("{ token: 'sk live CANARY', value: env:K, in: [path] }").unwrap_err();
        assert!(!pasted.contains("CANARY"));
    }
}
