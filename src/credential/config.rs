//! `credential:` as written: one kind, and `required`.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};

use super::kinds::{MemberSettings, aws_sigv4, basic, bearer, header, oauth2_client_credentials, query};
use crate::secret::reference::SecretRef;

/// The closed list of kinds that are built. One line per kind; adding one is a variant here and its line in
/// `CredentialVisitor::visit_map`.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Allow without a credential.
    None,
    /// `Authorization: Bearer`.
    Bearer(OneOrMany<SecretRef>),
    /// `Authorization: Basic`.
    Basic(basic::Config),
    /// Header fields of any name.
    Header(OneOrMany<header::Config>),
    /// A query parameter.
    Query(query::Config),
    /// A token for the client itself (RFC 6749 section 4.4).
    Oauth2ClientCredentials(Box<oauth2_client_credentials::Config>),
    /// A signature of AWS for each request.
    AwsSigV4(Box<aws_sigv4::Config>),
}

const BUILT: [&str; 7] =
    ["bearer", "basic", "header", "query", "oauth2_client_credentials", "aws_sigv4", "none"];

/// Kinds of the policy's contract that are not built yet; they are refused by name.
const NOT_YET: [&str; 8] = [
    "body",
    "placeholder",
    "oauth2_refresh_token",
    "jwt_bearer",
    "token_exchange",
    "google_service_account",
    "github_app",
    "hmac",
];

/// `credential:` as written.
#[derive(Clone, Debug)]
pub struct CredentialConfig {
    /// What it is.
    pub kind: Kind,
    /// Whether readiness waits for it.
    pub required: bool,
}

impl CredentialConfig {
    /// The members of this credential in order of preference; or what is wrong. Files that it names are relative to
    /// `directory`.
    pub fn members(&self, directory: &Path) -> Result<Vec<MemberSettings>, String> {
        let of = MemberSettings::of;
        match &self.kind {
            Kind::None => Ok(Vec::new()),
            Kind::Bearer(list) => Ok(list.0.iter().cloned().map(bearer::parts).map(of).collect()),
            Kind::Basic(config) => {
                config.parts().map(|parts| vec![of(parts)]).ok_or_else(|| "names no secret".to_owned())
            }
            // Several headers belong to one credential (Datadog wants two keys); they are no overlap.
            Kind::Header(list) => {
                let parts = list.0.iter().map(header::Config::part).collect::<Result<Vec<_>, _>>()?;
                Ok(vec![of(parts)])
            }
            Kind::Query(config) => Ok(vec![of(vec![config.part()?])]),
            Kind::Oauth2ClientCredentials(config) => Ok(vec![config.member(directory)?]),
            Kind::AwsSigV4(config) => config.members(directory),
        }
    }

    /// Whether this is `none`.
    pub fn is_none(&self) -> bool {
        matches!(self.kind, Kind::None)
    }
}

/// A value, or a list of at least one.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<'de> Deserialize<'de> for OneOrMany<SecretRef> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct References;
        impl<'de> Visitor<'de> for References {
            type Value = OneOrMany<SecretRef>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret reference such as `env:STRIPE_KEY`, or a list of them")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![text.parse().map_err(E::custom)?]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                collect(list)
            }
        }
        deserializer.deserialize_any(References)
    }
}

impl<'de> Deserialize<'de> for OneOrMany<header::Config> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = OneOrMany<header::Config>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`{ name, value, format }`, or a list of them")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let one = header::Config::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(OneOrMany(vec![one]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                collect(list)
            }
        }
        deserializer.deserialize_any(Fields)
    }
}

/// At most this many members: an overlap is two, and nobody rotates more than a few.
const MOST: usize = 8;

fn collect<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut list: A) -> Result<OneOrMany<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(one) = list.next_element()? {
        all.push(one);
    }
    if all.is_empty() || all.len() > MOST {
        return Err(A::Error::custom(format!("expected 1 to {MOST} entries, found {}", all.len())));
    }
    Ok(OneOrMany(all))
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": MOST }] })
    }
}

impl<'de> Deserialize<'de> for CredentialConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CredentialVisitor)
    }
}

struct CredentialVisitor;

impl<'de> Visitor<'de> for CredentialVisitor {
    type Value = CredentialConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`none`, or a map with one kind such as `{ bearer: env:STRIPE_KEY }`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<CredentialConfig, E> {
        match text {
            "none" => Ok(CredentialConfig { kind: Kind::None, required: false }),
            // The text is not repeated: it may be a literal secret.
            _ => {
                Err(E::custom("expected `none`, or a map with one kind such as `{ bearer: env:STRIPE_KEY }`"))
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<CredentialConfig, A::Error> {
        let mut kind = None;
        let mut required = false;
        while let Some(key) = map.next_key::<String>()? {
            let next = match key.as_str() {
                "required" => {
                    required = map.next_value()?;
                    continue;
                }
                "bearer" => Kind::Bearer(map.next_value()?),
                "basic" => Kind::Basic(map.next_value()?),
                "header" => Kind::Header(map.next_value()?),
                "query" => Kind::Query(map.next_value()?),
                "oauth2_client_credentials" => Kind::Oauth2ClientCredentials(map.next_value()?),
                "aws_sigv4" => Kind::AwsSigV4(map.next_value()?),
                "none" => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                    Kind::None
                }
                other if NOT_YET.contains(&other) => {
                    return Err(A::Error::custom(format!("credential kind `{other}` is not supported yet")));
                }
                other => {
                    const KNOWN: &[&str] = &[
                        "bearer",
                        "basic",
                        "header",
                        "query",
                        "oauth2_client_credentials",
                        "aws_sigv4",
                        "none",
                        "required",
                    ];
                    return Err(A::Error::unknown_field(other, KNOWN));
                }
            };
            if kind.replace(next).is_some() {
                return Err(A::Error::custom("a credential is of one kind; there are two here"));
            }
        }
        let kind = kind.ok_or_else(|| {
            A::Error::custom(format!("a credential names its kind: one of {}", BUILT.join(", ")))
        })?;
        Ok(CredentialConfig { kind, required })
    }
}

impl JsonSchema for CredentialConfig {
    fn schema_name() -> Cow<'static, str> {
        "Credential".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let bearer = generator.subschema_for::<OneOrMany<SecretRef>>();
        let basic = generator.subschema_for::<basic::Config>();
        let header = generator.subschema_for::<OneOrMany<header::Config>>();
        let query = generator.subschema_for::<query::Config>();
        let client_credentials = generator.subschema_for::<oauth2_client_credentials::Config>();
        let aws_sigv4 = generator.subschema_for::<aws_sigv4::Config>();
        json_schema!({
            "description": "What outgate puts into each request, and where. One kind; `none` allows without a credential.",
            "anyOf": [
                { "const": "none" },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "minProperties": 1,
                    "maxProperties": 2,
                    "properties": {
                        "bearer": bearer,
                        "basic": basic,
                        "header": header,
                        "query": query,
                        "oauth2_client_credentials": client_credentials,
                        "aws_sigv4": aws_sigv4,
                        "none": { "description": "no credential" },
                        "required": { "type": "boolean", "description": "readiness waits until its secrets were read" },
                    },
                },
            ],
        })
    }
}
