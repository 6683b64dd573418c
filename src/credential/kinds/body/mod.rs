//! `body`: the secret as a field of the request's body, a form or JSON. For APIs that take their key there and nowhere else.
//!
//! ```yaml
//! credential: { body: { field: api_key, value: env:POSTHOG_KEY } }
//! credential:
//!   body:
//!     fields:
//!       - { field: client_id, value: "plain:5f1a9b" }
//!       - { field: secret, value: [file:/run/secrets/plaid-new, file:/run/secrets/plaid-old] }
//!     max: 256KiB
//!     methods: [POST]
//! ```
//!
//! The body is held whole, up to `max`; a longer one is refused with 413. What the app sent in the field is removed, however
//! it is spelled, and its twin in the query too; the other bytes stay as they are. A body that is neither, that is compressed, or that parsers could
//! read in two ways is refused with 400: nothing is sent. With `methods` the requests of others go out without the credential: of an API
//! whose token endpoint alone wants it.

mod form;
mod json;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Method;
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::values::{ValueSettings, ValuesConfig, alternatives};
use super::{MemberSettings, PerRequest, Used};
use crate::credential::location::Location;
use crate::credential::rewrite::{Rewrite, Secrets, collect, replace};
use crate::message::failure::{Failure, Fault};
use crate::message::media::{Media, media};
use crate::message::quantity::ByteSize;
use crate::message::request::EgressRequest;
use crate::secret::reference::SecretRef;

/// `body` as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the one field. In JSON a dot leads into an object: `auth.token`.
    pub field: Option<String>,
    /// What is written there: a secret reference, or a list of them in an overlap, the new one first.
    pub value: Option<ValuesConfig>,
    /// The fields, where there are several: each `{ field, value }`, and `value` may be `plain:<text>` for what is no secret.
    pub fields: Option<Vec<FieldConfig>>,
    /// The methods whose requests have the field; those of others go out without the credential. Default: all, and a request whose
    /// body cannot have it is refused.
    pub methods: Option<Vec<String>>,
    /// Largest body, in bytes: it is held whole. Default: 64KiB, at most 16MiB. A body above `retry.replay_buffer` is not sent again.
    pub max: Option<ByteSize>,
}

/// One of several fields.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FieldConfig {
    /// Name of the field.
    pub field: String,
    /// What is written there.
    pub value: ValuesConfig,
}

/// One alternative of it, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    fields: Vec<Field>,
    max: u64,
    /// None: all.
    methods: Option<Vec<Method>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Field {
    name: String,
    value: ValueSettings,
}

/// Held bodies are copied once, so this is half of what a request may take.
const DEFAULT_MAX: u64 = 64 * 1024;
const LARGEST_MAX: u64 = 16 * 1024 * 1024;
/// Nobody has more.
const MOST_FIELDS: usize = 8;

impl Config {
    /// The members of this credential.
    ///
    /// # Errors
    /// What is wrong.
    pub fn members(&self) -> Result<Vec<MemberSettings>, String> {
        let max = bound(self.max)?;
        let methods = self.methods.as_deref().map(methods).transpose()?;
        let fields: Vec<(&str, &ValuesConfig)> = match (&self.field, &self.value, &self.fields) {
            (Some(field), Some(value), None) => vec![(field, value)],
            (None, None, Some(fields)) if (1..=MOST_FIELDS).contains(&fields.len()) => {
                fields.iter().map(|one| (one.field.as_str(), &one.value)).collect()
            }
            (None, None, Some(_)) => return Err(format!("`body.fields` has 1 to {MOST_FIELDS} entries")),
            _ => return Err("`body` wants `field` and `value`, or `fields`".to_owned()),
        };
        for (at, (name, _)) in fields.iter().enumerate() {
            check_name(name)?;
            let clash = |(earlier, _): &(&str, &ValuesConfig)| {
                earlier.eq_ignore_ascii_case(name) || is_below(earlier, name) || is_below(name, earlier)
            };
            if fields[..at].iter().any(clash) {
                return Err(format!("`body` names the field `{name}` twice, or one inside of it"));
            }
        }
        let values: Vec<&ValuesConfig> = fields.iter().map(|(_, value)| *value).collect();
        let members = alternatives(&values)?.into_iter().map(|values| {
            let named = fields.iter().zip(values);
            let fields = named.map(|((name, _), value)| Field { name: (*name).to_owned(), value });
            let settings = Settings { fields: fields.collect(), max, methods: methods.clone() };
            MemberSettings::per_request(PerRequest::Body(settings))
        });
        Ok(members.collect())
    }
}

/// The bound on what is held, of any kind that holds bodies.
///
/// # Errors
/// It is out of its range.
pub fn bound(max: Option<ByteSize>) -> Result<u64, String> {
    match max.map_or(DEFAULT_MAX, |max| max.bytes()) {
        max @ 1..=LARGEST_MAX => Ok(max),
        _ => Err("`max` is from 1B to 16MiB: a body that is held takes memory".to_owned()),
    }
}

fn methods(names: &[String]) -> Result<Vec<Method>, String> {
    let wrong = || "`methods` are names in capitals, such as `[POST]`, at least one".to_owned();
    let method = |name: &String| {
        let capitals = !name.bytes().any(|byte| byte.is_ascii_lowercase());
        Method::from_bytes(name.as_bytes()).ok().filter(|_| capitals).ok_or_else(wrong)
    };
    if names.is_empty() { Err(wrong()) } else { names.iter().map(method).collect() }
}

fn check_name(name: &str) -> Result<(), String> {
    let segments_bad = name.split('.').any(str::is_empty) || name.split('.').count() > 8;
    if segments_bad || name.len() > 128 || name.chars().any(char::is_control) {
        return Err("`field` is a name, or up to 8 names with dots between them".to_owned());
    }
    Ok(())
}

fn is_below(inner: &str, outer: &str) -> bool {
    let below = inner.get(..outer.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(outer));
    below && inner.as_bytes().get(outer.len()) == Some(&b'.')
}

/// How a field is called in a query: an object's `auth.token` is `auth[token]` there.
fn in_query(name: &str) -> Vec<String> {
    let Some((first, rest)) = name.split_once('.') else { return vec![name.to_owned()] };
    let nested: String = rest.split('.').map(|step| format!("[{step}]")).collect();
    vec![name.to_owned(), format!("{first}{nested}")]
}

const NEITHER: &str =
    "the credential goes into the body, and the body is neither a form nor JSON in UTF-8, uncompressed";

impl Settings {
    /// One field of what is posted, for a kind whose token belongs there.
    #[must_use]
    pub fn posted(name: &str, secret: SecretRef) -> Self {
        let field = Field { name: name.to_owned(), value: ValueSettings::secret(secret) };
        Self { fields: vec![field], max: DEFAULT_MAX, methods: Some(vec![Method::POST]) }
    }

    /// Whether the request has the field.
    fn concerns(&self, request: &EgressRequest) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(&request.method))
    }

    fn write(
        &self,
        body: &Bytes,
        media: Media,
        secrets: &Secrets,
    ) -> Result<Zeroizing<Vec<u8>>, &'static str> {
        let mut text = Zeroizing::new(Vec::new());
        let mut position = 0;
        for (at, field) in self.fields.iter().enumerate() {
            let before: &[u8] = if at == 0 { body } else { &text };
            let value = field.value.bytes(secrets, &mut position);
            let after = match media {
                Media::Form => form::set(before, &field.name, value)?,
                Media::Json => {
                    let path: Vec<String> = field.name.split('.').map(str::to_owned).collect();
                    json::set(before, &path, value)?
                }
                Media::Text | Media::Other => return Err(NEITHER),
            };
            text = after;
        }
        Ok(text)
    }
}

impl Rewrite for Settings {
    fn secrets(&self) -> Vec<Used> {
        self.fields.iter().filter_map(|field| field.value.used()).collect()
    }

    fn locations(&self) -> Vec<Location> {
        Vec::new()
    }

    /// The same names in the query: many servers read both as one set of parameters, and the query first.
    fn twins(&self) -> Vec<Location> {
        self.fields.iter().flat_map(|field| in_query(&field.name)).map(Location::Query).collect()
    }

    fn places(&self) -> Vec<String> {
        self.fields.iter().map(|field| format!("body field {}", field.name)).collect()
    }

    fn holds(&self, request: &EgressRequest) -> Option<u64> {
        let writable = matches!(media(&request.headers), Media::Form | Media::Json);
        (writable && self.concerns(request) && request.body.exact_length() != Some(0)).then_some(self.max)
    }

    fn rewrite<'a>(
        &'a self,
        mut request: EgressRequest,
        secrets: &'a Secrets,
    ) -> BoxFuture<'a, Result<EgressRequest, Failure>> {
        Box::pin(async move {
            let unfit = |why| Failure::not_sent(Fault::Unfit(why));
            if !self.concerns(&request) {
                return Ok(request);
            }
            let media = media(&request.headers);
            if !matches!(media, Media::Form | Media::Json) {
                return Err(unfit(NEITHER));
            }
            let body = collect(std::mem::take(&mut request.body), self.max).await?;
            let text = self.write(&body, media, secrets).map_err(unfit)?;
            replace(&mut request, text);
            Ok(request)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Result<Vec<MemberSettings>, String> {
        serde_yaml::from_str::<Config>(text).map_err(|error| error.to_string())?.members()
    }

    #[test]
    fn every_twin_in_the_query_goes() {
        let stripped = |field: &str, target: &str| {
            let member = members(&format!("{{ field: '{field}', value: env:K }}")).unwrap().remove(0);
            let locations = crate::credential::Locations::new(member.locations());
            locations.strip_query(target.parse().unwrap()).to_string()
        };
        for (field, before, after) in [
            ("api_key", "/a?api_key=app&b=%2f", "/a?b=%2f"),
            ("api_key", "/a?API%5fkey=app&api_key[]=app&api.key=app&api[key=app;b", "/a?b"),
            ("api_key", "/a?x_api_key=1&x[api_key]=2", "/a?x_api_key=1&x[api_key]=2"),
            (
                "auth.token",
                "/a?auth[token]=app&auth%5Btoken%5D[]=app&auth.token=app&auth_token=app&b",
                "/a?b",
            ),
            ("auth.token", "/a?auth[other]=1&auth=2&token=3", "/a?auth[other]=1&auth=2&token=3"),
            ("a.b.c", "/?a[b][c]=app&a[b]=1", "/?a[b]=1"),
        ] {
            assert_eq!(stripped(field, before), after, "{field}");
        }
    }

    #[test]
    fn an_overlap_makes_members_and_mistakes_are_told() {
        assert_eq!(members("{ field: api_key, value: env:KEY }").unwrap().len(), 1);
        let two = members(
            "fields: [{ field: id, value: 'plain:me' }, { field: secret, value: [file:new, file:old] }]",
        )
        .unwrap();
        let named: Vec<String> = two.iter().map(|member| member.uses()[0].reference.to_string()).collect();
        assert_eq!(named, ["file:new", "file:old"]);
        for (text, part) in [
            ("{ field: api_key }", "wants `field` and `value`"),
            ("{ field: api_key, value: env:K, fields: [] }", "wants `field` and `value`"),
            ("fields: []", "1 to 8"),
            ("{ field: a..b, value: env:K }", "up to 8 names"),
            ("{ field: '', value: env:K }", "up to 8 names"),
            ("{ field: a, value: env:K, max: 1GiB }", "16MiB"),
            ("{ field: a, value: 'plain:x' }", "no secret"),
            ("{ field: a, value: env:K, methods: [] }", "at least one"),
            ("{ field: a, value: env:K, methods: [post] }", "in capitals"),
            ("{ field: a, value: env:K, methods: ['P T'] }", "in capitals"),
            ("fields: [{ field: a, value: env:K }, { field: A, value: env:L }]", "twice"),
            ("fields: [{ field: a, value: env:K }, { field: a.b, value: env:L }]", "inside"),
        ] {
            let error = members(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
