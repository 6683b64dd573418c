//! What one quota covers.

use std::borrow::Cow;
use std::fmt;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::template::Template;
use crate::resilience::mistake::Mistakes;
use crate::resilience::pointer::Pointer;
use crate::resilience::responses::config::header_name;

/// What `bucket` may be.
const BUCKETS: &str = "`host`, `route`, `path`, `{ header: X-RateLimit-Resource }`, `{ field: /model }` of the request, or `{ paths: [\"/users/*/{part}\"] }`";
/// Templates of one provider or route: each is compared with every request.
const MOST_TEMPLATES: usize = 64;

/// `bucket:` what one quota covers.
#[derive(Clone, Debug)]
pub enum BucketConfig {
    /// One for each host.
    Host,
    /// One for each route.
    Route,
    /// One for each method and beginning of a path.
    Path,
    /// Named by the answers or by the request itself.
    Named(BucketName),
}

/// What names a bucket; one of the three.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketName {
    /// The field of the answers that names the bucket. Default: none.
    pub header: Option<String>,
    /// The text in the JSON body of the request that names it, as a JSON Pointer through maps (`/model`). It is looked for in the
    /// first 64 KiB, and shown in `/status` and metrics. Without one the request is of the host's bucket. Default: none.
    pub field: Option<String>,
    /// Templates of paths, of which the first that fits names it, with the method: `*` is a segment that does not count (an id),
    /// `{word}` one that does, `{word}:*` one that counts up to its last colon, and `/**` at the end is whatever follows:
    /// `["/users/*/{part}/**"]`. A path that none fits is named by its first three segments. Default: none.
    pub paths: Option<Vec<String>>,
}

impl<'de> Deserialize<'de> for BucketConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BucketVisitor;
        impl<'de> de::Visitor<'de> for BucketVisitor {
            type Value = BucketConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(BUCKETS)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<BucketConfig, E> {
                match text {
                    "host" => Ok(BucketConfig::Host),
                    "route" => Ok(BucketConfig::Route),
                    "path" => Ok(BucketConfig::Path),
                    _ => Err(E::custom(format!("expected {BUCKETS}"))),
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<BucketConfig, A::Error> {
                let name = BucketName::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(BucketConfig::Named(name))
            }
        }
        deserializer.deserialize_any(BucketVisitor)
    }
}

impl JsonSchema for BucketConfig {
    fn schema_name() -> Cow<'static, str> {
        "QuotaBucket".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = generator.subschema_for::<BucketName>();
        json_schema!({ "anyOf": [{ "enum": ["host", "route", "path"] }, name] })
    }
}

/// What one quota covers, as true.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// One for each host.
    Host,
    /// One for each route.
    Route,
    /// One for each method and beginning of a path.
    Path,
    /// Named by a field of the answers.
    Header(HeaderName),
    /// Named by a text in the JSON body of the request.
    Field(Pointer),
    /// One for each method and name that a template makes of a path.
    Templates(Box<[Template]>),
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Route => f.write_str("route"),
            Self::Path => f.write_str("path"),
            Self::Header(name) => write!(f, "header {name}"),
            Self::Field(pointer) => write!(f, "field {} of the request", pointer.as_str()),
            Self::Templates(templates) => match &**templates {
                [only] => write!(f, "path {only}"),
                all => write!(f, "path, by the first of {} templates that fits", all.len()),
            },
        }
    }
}

impl BucketConfig {
    pub(super) fn compile(&self, mistakes: &mut Mistakes) -> Bucket {
        match self {
            Self::Host => Bucket::Host,
            Self::Route => Bucket::Route,
            Self::Path => Bucket::Path,
            Self::Named(name) => name.compile(mistakes).unwrap_or(Bucket::Host),
        }
    }
}

impl BucketName {
    fn compile(&self, mistakes: &mut Mistakes) -> Option<Bucket> {
        match (&self.header, &self.field, &self.paths) {
            (Some(name), None, None) => header_name(name, "bucket.header", mistakes).map(Bucket::Header),
            (None, Some(text), None) => {
                let pointer = Pointer::parse(text).filter(|pointer| pointer.keys().is_some());
                if pointer.is_none() {
                    let message = "not a JSON Pointer (RFC 6901) that leads through maps to one place";
                    mistakes.hint("bucket.field", message, "such as `/model`");
                }
                pointer.map(Bucket::Field)
            }
            (None, None, Some(texts)) => Some(Bucket::Templates(templates(texts, mistakes))),
            (None, None, None) => {
                mistakes.hint("bucket", "nothing says what names the bucket", "`header`, `field` or `paths`");
                None
            }
            _ => {
                let message = "a bucket is named by the answers, by the request's body or by its path, not by two of them";
                mistakes.hint("bucket", message, "`header`, `field` or `paths`");
                None
            }
        }
    }
}

fn templates(texts: &[String], mistakes: &mut Mistakes) -> Box<[Template]> {
    if texts.is_empty() || texts.len() > MOST_TEMPLATES {
        let hint = "`bucket: path` needs none";
        mistakes.hint("bucket.paths", format!("one to {MOST_TEMPLATES} templates"), hint);
    }
    let mut templates = Vec::with_capacity(texts.len().min(MOST_TEMPLATES));
    for (index, text) in texts.iter().enumerate().take(MOST_TEMPLATES) {
        let at = format!("bucket.paths[{index}]");
        match Template::parse(text) {
            Ok(template) if templates.contains(&template) => {
                mistakes.add(&at, "in the list already");
            }
            Ok(template) => templates.push(template),
            Err(fault) => {
                let hint = "such as `/users/*/{part}/**`";
                mistakes.hint(&at, fault.to_string(), hint);
            }
        }
    }
    templates.into()
}
