//! `responses:` as written in the policy.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::format::Format;
use super::glob::Glob;
use super::table::{Field, Row, StatusRange, TableSettings, Value, WaitField, WaitSource};
use crate::message::quantity::TimeSpan;
use crate::resilience::mistake::Mistakes;
use crate::resilience::pointer::Pointer;
use crate::resilience::verdict::Class;

/// Rows of one table.
const MOST_ROWS: usize = 256;

/// The table: the first row that matches wins.
pub type ResponsesConfig = Vec<RowConfig>;

/// What some answers mean.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RowConfig {
    /// Which answers; all that is said must hold. Required.
    pub when: Option<WhenConfig>,
    /// What they mean. Required.
    pub is: Option<ClassConfig>,
    /// Whether the provider may have acted on the request; `false`: the answer proves that nothing was done.
    /// Default: `false` for `throttle`, `unauthorized` and `concurrency`, `true` otherwise.
    pub acted: Option<bool>,
    /// Where such an answer says how long to wait. Default: `Retry-After`, which is also read where this is missing.
    pub wait: Option<WaitConfig>,
    /// How far the pause of a `throttle` or `quota` reaches: `bucket`, which is what `quota.bucket` says, or `host`, all buckets of
    /// the credential there. Default: `bucket`.
    pub pauses: Option<PausesConfig>,
}

/// How far a pause reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PausesConfig {
    /// The bucket of the request that was refused.
    Bucket,
    /// All buckets of the credential at this host.
    Host,
}

/// Which answers a row is about.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhenConfig {
    /// A status (`429`), a class of them (`5xx`), or a list of both. Default: any.
    pub status: Option<StatusConfig>,
    /// Fields of the head with their values: exact, or with `*` for any run of characters. Default: any.
    pub header: Option<BTreeMap<String, ScalarConfig>>,
    /// JSON Pointers (RFC 6901; a step `*` is any element of a list) into the body with their values: a number, `true`,
    /// `false`, or a text, in which `*` is any run of characters; `"*"` alone is any value but null and an empty map or list. The
    /// body is looked at only up to a bound. Default: any.
    pub json: Option<BTreeMap<String, ScalarConfig>>,
    /// The body as text (XML, plain text, JSON), with `*` for any run of characters: `"*<Code>SlowDown</Code>*"`. It is looked
    /// at only up to a bound. Default: any.
    pub text: Option<String>,
}

/// Where an answer says how long to wait.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitConfig {
    /// The field's name. One of `header`, `json` and `default` is required.
    pub header: Option<String>,
    /// A JSON Pointer (a step `*` is any element of a list) to the wait in the body.
    pub json: Option<String>,
    /// How it is written. Required with `header` and `json`.
    pub format: Option<Format>,
    /// How long, where the answer says nothing, in `Retry-After` neither. Default: not known.
    pub default: Option<TimeSpan>,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClassConfig {
    /// The quota of the moment is used up: its key pauses, and the request may be sent again.
    Throttle,
    /// A plan is exhausted: its key pauses, and nothing is sent again.
    Quota,
    /// Too many requests at once: sent again after a backoff.
    Concurrency,
    /// The provider is overloaded: sent again after a backoff.
    Overload,
    /// The same object is in use: sent again after a backoff.
    Conflict,
    /// The provider is not available: sent again after a backoff.
    Unavailable,
    /// The credential was refused: heals it.
    Unauthorized,
    /// No for good: not sent again, unless the hint that `retry.hint` names asks for it.
    Final,
    /// Fine: later rows are not looked at.
    Success,
}

impl From<ClassConfig> for Class {
    fn from(config: ClassConfig) -> Self {
        match config {
            ClassConfig::Throttle => Self::Throttle,
            ClassConfig::Quota => Self::Quota,
            ClassConfig::Concurrency => Self::Concurrency,
            ClassConfig::Overload => Self::Overload,
            ClassConfig::Conflict => Self::Conflict,
            ClassConfig::Unavailable => Self::Unavailable,
            ClassConfig::Unauthorized => Self::Unauthorized,
            ClassConfig::Final => Self::Final,
            ClassConfig::Success => Self::Success,
        }
    }
}

/// A text, a number, `true` or `false`.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalarConfig {
    /// A text.
    Text(String),
    /// A number.
    Number(serde_json::Number),
    /// `true` or `false`.
    Bool(bool),
}

struct ScalarVisitor;

impl de::Visitor<'_> for ScalarVisitor {
    type Value = ScalarConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, `true` or `false`")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<ScalarConfig, E> {
        Ok(ScalarConfig::Text(text.to_owned()))
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<ScalarConfig, E> {
        Ok(ScalarConfig::Bool(value))
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<ScalarConfig, E> {
        Ok(ScalarConfig::Number(number.into()))
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<ScalarConfig, E> {
        Ok(ScalarConfig::Number(number.into()))
    }
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<ScalarConfig, E> {
        let number = serde_json::Number::from_f64(number);
        number.map(ScalarConfig::Number).ok_or_else(|| E::custom("not a number"))
    }
}

impl<'de> Deserialize<'de> for ScalarConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

impl JsonSchema for ScalarConfig {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// `status:` `429`, `5xx`, or a list of both.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusConfig(pub Vec<ScalarConfig>);

impl<'de> Deserialize<'de> for StatusConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StatusVisitor;
        impl<'de> de::Visitor<'de> for StatusVisitor {
            type Value = StatusConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status such as `429`, a class such as `5xx`, or a list of them")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusConfig, E> {
                ScalarVisitor.visit_str(text).map(|one| StatusConfig(vec![one]))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<StatusConfig, E> {
                ScalarVisitor.visit_u64(number).map(|one| StatusConfig(vec![one]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<StatusConfig, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(StatusConfig)
            }
        }
        deserializer.deserialize_any(StatusVisitor)
    }
}

impl JsonSchema for StatusConfig {
    fn schema_name() -> Cow<'static, str> {
        "Statuses".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 100, "maximum": 599 },
            { "type": "string", "pattern": "^([1-5]xx|[1-5][0-9]{2})$" },
        ] });
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

/// Compiles the table; places of mistakes are below `responses`.
pub fn compile(rows: &[RowConfig], mistakes: &mut Mistakes) -> TableSettings {
    if rows.len() > MOST_ROWS {
        mistakes.add("", format!("at most {MOST_ROWS} rows"));
    }
    let compiled = rows.iter().enumerate().filter_map(|(place, row)| row.compile(place, mistakes)).collect();
    TableSettings { rows: compiled }
}

impl RowConfig {
    fn compile(&self, place: usize, mistakes: &mut Mistakes) -> Option<Row> {
        let class = self.is.map(Class::from);
        if class.is_none() {
            mistakes.hint(&format!("{place}.is"), "a row says what the answer is", "such as `is: throttle`");
        }
        let wait = self.wait.as_ref().and_then(|wait| wait.compile(place, mistakes));
        if class == Some(Class::Success) {
            for (key, said) in [("acted", self.acted.is_some()), ("wait", self.wait.is_some())] {
                if said {
                    mistakes.add(&format!("{place}.{key}"), format!("`{key}` means nothing for a success"));
                }
            }
        }
        if self.pauses.is_some()
            && class.is_some_and(|class| !matches!(class, Class::Throttle | Class::Quota))
        {
            let hint = "`is: throttle` or `is: quota`";
            mistakes.hint(&format!("{place}.pauses"), "such an answer pauses nothing", hint);
        }
        let Some(when) = self.when.as_ref().filter(|when| when.says_something()) else {
            let hint = "name a `status`, a `header`, a field of the body (`json`) or its `text`";
            mistakes.hint(&format!("{place}.when"), "this row would match every answer", hint);
            return None;
        };
        let statuses = when.statuses(place, mistakes);
        let header = when.header(place, mistakes);
        let json = when.json(place, mistakes);
        let text = when.text.as_deref().map(Glob::new);
        let class = class?;
        let acted = self.acted.unwrap_or(class.acted());
        let whole_host = self.pauses == Some(PausesConfig::Host);
        Some(Row { statuses, header, json, text, class, acted, wait, whole_host })
    }
}

impl WaitConfig {
    fn compile(&self, place: usize, mistakes: &mut Mistakes) -> Option<WaitField> {
        let at = |key: &str| format!("{place}.wait.{key}");
        let written = self.header.is_some() || self.json.is_some();
        if self.format.is_none() && (written || self.default.is_none()) {
            let hint = "such as `format: delta_ms`";
            mistakes.hint(&at("format"), "the format of a wait is never guessed", hint);
        }
        if !written && self.default.is_none() {
            mistakes.add(&at("header"), "the name of the field is missing");
        }
        if self.header.is_some() && self.json.is_some() {
            mistakes.add(&at("json"), "a wait stands in a field of the head or in the body");
        }
        let header = self.header.as_ref().and_then(|name| header_name(name, &at("header"), mistakes));
        let json = self.json.as_ref().and_then(|text| pointer(text, &at("json"), mistakes));
        let format = self.format;
        let source = match (header, json) {
            (Some(name), _) => format.map(|format| (WaitSource::Header(name), format)),
            (None, Some(pointer)) => format.map(|format| (WaitSource::Body(pointer), format)),
            (None, None) => None,
        };
        Some(WaitField { source, default: self.default.map(TimeSpan::duration) })
    }
}

/// A pointer, or a mistake at `at`.
fn pointer(text: &str, at: &str, mistakes: &mut Mistakes) -> Option<Pointer> {
    let parsed = Pointer::parse(text);
    if parsed.is_none() {
        mistakes.hint(at, "not a JSON Pointer (RFC 6901)", "such as `/error/code`");
    }
    parsed
}

impl WhenConfig {
    fn says_something(&self) -> bool {
        let maps = [&self.header, &self.json];
        let text = self.text.as_ref().is_some_and(|text| !text.is_empty());
        text || self.status.is_some() || maps.into_iter().flatten().any(|map| !map.is_empty())
    }

    fn statuses(&self, place: usize, mistakes: &mut Mistakes) -> Box<[StatusRange]> {
        let Some(StatusConfig(list)) = &self.status else { return Box::default() };
        if list.is_empty() {
            mistakes.add(&format!("{place}.when.status"), "an empty list matches nothing");
        }
        let range = |scalar: &ScalarConfig| status_range(scalar);
        let ranges: Vec<_> = list.iter().filter_map(range).collect();
        if ranges.len() < list.len() {
            let hint = "a number from 100 to 599, or a class such as `5xx`";
            mistakes.hint(&format!("{place}.when.status"), "not a status", hint);
        }
        ranges.into()
    }

    fn header(&self, place: usize, mistakes: &mut Mistakes) -> Box<[(HeaderName, Glob)]> {
        let fields = self.header.iter().flatten();
        fields
            .filter_map(|(name, value)| {
                let name = header_name(name, &format!("{place}.when.header"), mistakes)?;
                let text = match value {
                    ScalarConfig::Text(text) => text.clone(),
                    ScalarConfig::Number(number) => number.to_string(),
                    ScalarConfig::Bool(value) => value.to_string(),
                };
                Some((name, Glob::new(&text)))
            })
            .collect()
    }

    fn json(&self, place: usize, mistakes: &mut Mistakes) -> Box<[Field]> {
        let fields = self.json.iter().flatten();
        fields
            .filter_map(|(pointer, value)| {
                let pointer = self::pointer(pointer, &format!("{place}.when.json"), mistakes)?;
                let value = match value {
                    ScalarConfig::Text(text) if text == "*" => Value::Any,
                    ScalarConfig::Text(text) => Value::Text(Glob::new(text)),
                    ScalarConfig::Number(number) => Value::Number(number.clone()),
                    ScalarConfig::Bool(value) => Value::Bool(*value),
                };
                Some(Field { pointer, value })
            })
            .collect()
    }
}

fn status_range(scalar: &ScalarConfig) -> Option<StatusRange> {
    let one = |status: u64| {
        let status = u16::try_from(status).ok().filter(|status| (100..600).contains(status))?;
        Some(StatusRange { from: status, to: status })
    };
    match scalar {
        ScalarConfig::Number(number) => one(number.as_u64()?),
        ScalarConfig::Text(text) => match text.as_bytes() {
            [digit @ b'1'..=b'5', b'x' | b'X', b'x' | b'X'] => {
                let from = u16::from(digit - b'0') * 100;
                Some(StatusRange { from, to: from + 99 })
            }
            _ => one(text.parse().ok()?),
        },
        ScalarConfig::Bool(_) => None,
    }
}

/// The name of a field, or a mistake at `at`.
pub(in crate::resilience) fn header_name(
    name: &str,
    at: &str,
    mistakes: &mut Mistakes,
) -> Option<HeaderName> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
    if parsed.is_none() {
        mistakes.hint(at, "not the name of a header field", "letters, digits and `-`");
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(yaml: &str) -> (TableSettings, Vec<(String, String)>) {
        let rows: ResponsesConfig = serde_yaml::from_str(yaml).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = compile(&rows, &mut mistakes);
        let told = mistakes.into_vec().into_iter();
        (settings, told.map(|mistake| (format!("{:?}", mistake.at), mistake.message.into_owned())).collect())
    }

    #[test]
    fn a_table_of_all_kinds_compiles() {
        let (settings, mistakes) = compiled(
            r#"
- when: { status: 429, header: { Stripe-Rate-Limited-Reason: "*", X-Remaining: 0 } }
  is: throttle
- when: { status: [403, "429", 5xx], json: { /message: "*secondary rate*" } }
  is: overload
  acted: false
- when: { json: { /ok: false, /code: 104, /error: "*" } }
  is: quota
- when: { status: 4xx }
  is: final
  wait: { header: retry-after-ms, format: delta_ms }
"#,
        );
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(settings.rows.len(), 4);
        assert!(!settings.rows[0].acted && !settings.rows[1].acted && settings.rows[2].acted);
        assert_eq!(settings.rows[3].statuses[0], StatusRange { from: 400, to: 499 });
    }

    #[test]
    fn every_mistake_is_told() {
        let (settings, mistakes) = compiled(
            r#"
- when: {}
  is: final
- when: { status: 99 }
- when: { status: [] , header: { "no name": x }, json: { error: x, /a~2: y } }
  is: throttle
- when: { status: 200 }
  is: success
  acted: false
  wait: { header: Retry-After }
- when: { header: {} }
  is: final
  wait: { format: delta_s }
  pauses: host
"#,
        );
        let messages: Vec<_> = mistakes.iter().map(|(_, message)| message.as_str()).collect();
        for part in [
            "would match every answer",
            "not a status",
            "a row says what the answer is",
            "an empty list",
            "not the name of a header field",
            "not a JSON Pointer",
            "`acted` means nothing",
            "`wait` means nothing",
            "pauses nothing",
            "never guessed",
            "name of the field is missing",
        ] {
            assert!(messages.iter().any(|message| message.contains(part)), "{part}: {messages:?}");
        }
        assert_eq!(messages.iter().filter(|message| message.contains("JSON Pointer")).count(), 2);
        assert_eq!(settings.rows.len(), 2);
        assert!(
            mistakes.iter().any(|(at, _)| at == r#"[Index(2), Key("when"), Key("status")]"#),
            "{mistakes:?}"
        );
    }

    #[test]
    fn waits_and_texts() {
        for (row, told) in [
            ("when: { text: \"*<Code>SlowDown</Code>*\" }, is: throttle", None),
            ("when: { status: 429 }, is: throttle, wait: { default: 60s }", None),
            (
                "when: { status: 429 }, is: throttle, wait: { json: \"/details/*/retryDelay\", format: duration, default: 5s }",
                None,
            ),
            (
                "when: { status: 429 }, is: throttle, wait: { json: details, format: duration }",
                Some("not a JSON Pointer"),
            ),
            (
                "when: { status: 429 }, is: throttle, wait: { json: /wait, default: 5s }",
                Some("never guessed"),
            ),
            (
                "when: { status: 429 }, is: throttle, wait: { json: /a, header: b, format: delta_s }",
                Some("or in the body"),
            ),
            ("when: { text: \"\" }, is: throttle", Some("would match every answer")),
        ] {
            let (settings, mistakes) = compiled(&format!("- {{ {row} }}"));
            match told {
                None => assert!(mistakes.is_empty() && settings.rows.len() == 1, "{row}: {mistakes:?}"),
                Some(told) => {
                    assert!(mistakes.iter().any(|(_, message)| message.contains(told)), "{row}: {mistakes:?}")
                }
            }
        }
        let looks = |row: &str| compiled(row).0.looks();
        assert!(
            looks("- { when: { text: a }, is: final }")
                && !looks("- { when: { status: 429 }, is: throttle, wait: { default: 1s } }")
        );
        assert!(looks("- { when: { status: 429 }, is: throttle, wait: { json: /a, format: delta_s } }"));
    }

    #[test]
    fn what_is_no_scalar_is_refused() {
        for yaml in [
            "- when: { json: { /a: [1] } }",
            "- when: { status: { a: 1 } }",
            "- when: { body: x }",
            "- is: oops",
        ] {
            assert!(serde_yaml::from_str::<ResponsesConfig>(yaml).is_err(), "{yaml}");
        }
    }
}
