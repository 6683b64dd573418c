//! `credential:` as written: one kind, and `required`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};

use super::kinds::{
    MemberSettings, apple, aws_sigv4, basic, bearer, body, github_app, google_service_account, header, hmac,
    jwt_bearer, mtls, oauth2_client_credentials, oauth2_refresh_token, placeholder, query, token_exchange,
};
use crate::secret::reference::SecretRef;

/// The closed list of kinds that are built. Adding one is a variant here, its line in `kinds!`, and what it comes to in
/// [`CredentialConfig::members`].
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
    /// Fields of the body.
    Body(body::Config),
    /// Dummies that are replaced.
    Placeholder(OneOrMany<placeholder::Config>),
    /// A signature over parts of the request.
    Hmac(Box<hmac::Config>),
    /// A TLS client certificate.
    Mtls(mtls::Config),
    /// A token for the client itself (RFC 6749 section 4.4).
    Oauth2ClientCredentials(Box<oauth2_client_credentials::Config>),
    /// A token for a service account of Google.
    GoogleServiceAccount(Box<google_service_account::Config>),
    /// An installation token of a GitHub App.
    GithubApp(Box<github_app::Config>),
    /// A JWT for Apple.
    Apple(Box<apple::Config>),
    /// A token for a refresh token (RFC 6749 section 6).
    Oauth2RefreshToken(Box<oauth2_refresh_token::Config>),
    /// A token for a JWT that outgate signs, or that JWT (RFC 7523).
    JwtBearer(Box<jwt_bearer::Config>),
    /// A token for another token (RFC 8693).
    TokenExchange(Box<token_exchange::Config>),
    /// A signature of AWS for each request.
    AwsSigV4(Box<aws_sigv4::Config>),
}

/// The names of the kinds, each with its variant and what is written behind the name. All that has to know them is made of
/// this list.
macro_rules! kinds {
    ($($name:literal => $variant:ident($config:ty)),* $(,)?) => {
        impl CredentialConfig {
            /// The names of the kinds.
            pub const KINDS: &[&str] = &[$($name,)* NONE];
            /// The keys that there are.
            const KEYS: &[&str] = &[$($name,)* NONE, REQUIRED];
        }

        impl Kind {
            /// Reads what stands behind the name of a kind.
            fn read<'de, A: MapAccess<'de>>(name: &str, map: &mut A) -> Result<Self, A::Error> {
                match name {
                    $($name => Ok(Self::$variant(map.next_value::<$config>()?)),)*
                    NONE => map.next_value::<serde::de::IgnoredAny>().map(|_| Self::None),
                    other => Err(A::Error::unknown_field(other, CredentialConfig::KEYS)),
                }
            }

            /// The schema of each.
            fn schemas(generator: &mut SchemaGenerator) -> serde_json::Map<String, serde_json::Value> {
                let mut all = serde_json::Map::new();
                $(all.insert($name.to_owned(), generator.subschema_for::<$config>().to_value());)*
                all
            }
        }
    };
}

/// Allow without a credential.
const NONE: &str = "none";
/// The key beside the kind.
const REQUIRED: &str = "required";

kinds! {
    "bearer" => Bearer(OneOrMany<SecretRef>),
    "basic" => Basic(basic::Config),
    "header" => Header(OneOrMany<header::Config>),
    "query" => Query(query::Config),
    "body" => Body(body::Config),
    "mtls" => Mtls(mtls::Config),
    "hmac" => Hmac(Box<hmac::Config>),
    "placeholder" => Placeholder(OneOrMany<placeholder::Config>),
    "oauth2_client_credentials" => Oauth2ClientCredentials(Box<oauth2_client_credentials::Config>),
    "google_service_account" => GoogleServiceAccount(Box<google_service_account::Config>),
    "github_app" => GithubApp(Box<github_app::Config>),
    "apple" => Apple(Box<apple::Config>),
    "oauth2_refresh_token" => Oauth2RefreshToken(Box<oauth2_refresh_token::Config>),
    "jwt_bearer" => JwtBearer(Box<jwt_bearer::Config>),
    "token_exchange" => TokenExchange(Box<token_exchange::Config>),
    "aws_sigv4" => AwsSigV4(Box<aws_sigv4::Config>),
}

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
            // A client certificate is shown by the connection: no request holds anything of it.
            Kind::Mtls(config) => config.pairs().map(|_| Vec::new()),
            Kind::Bearer(list) => Ok(list.0.iter().cloned().map(bearer::parts).map(of).collect()),
            Kind::Basic(config) => Ok(config.alternatives()?.into_iter().map(of).collect()),
            // Several headers belong to one credential (Datadog wants two keys); they are no overlap. Their values may be one.
            Kind::Header(list) => {
                let most = list.0.iter().map(|one| one.value.0.len()).max().unwrap_or(0);
                let member =
                    |choice| list.0.iter().map(|one| one.part(choice)).collect::<Result<Vec<_>, _>>();
                (0..most).map(|choice| Ok(of(member(choice)?))).collect()
            }
            Kind::Query(config) => {
                (0..config.value.0.len()).map(|choice| Ok(of(vec![config.part(choice)?]))).collect()
            }
            Kind::Body(config) => config.members(),
            Kind::Placeholder(list) => placeholder::members(&list.0),
            Kind::Hmac(config) => config.members(),
            Kind::Oauth2ClientCredentials(config) => Ok(vec![config.member(directory)?]),
            Kind::Oauth2RefreshToken(config) => Ok(vec![config.member(directory)?]),
            Kind::JwtBearer(config) => config.members(directory),
            Kind::TokenExchange(config) => Ok(vec![config.member(directory)?]),
            Kind::GoogleServiceAccount(config) => config.members(directory),
            Kind::GithubApp(config) => Ok(vec![config.member(directory)?]),
            Kind::Apple(config) => config.members(),
            Kind::AwsSigV4(config) => config.members(directory),
        }
    }

    /// The client certificates and their keys, the new one first; none where it is something else.
    pub fn identities(&self) -> Vec<(SecretRef, SecretRef)> {
        match &self.kind {
            // What is wrong with the lists is told where the members are compiled.
            Kind::Mtls(config) => config.pairs().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// Whether it is client certificates.
    pub fn is_certificate(&self) -> bool {
        matches!(self.kind, Kind::Mtls(_))
    }

    /// Whether this is `none`.
    pub fn is_none(&self) -> bool {
        matches!(self.kind, Kind::None)
    }
}

/// A value, or a list of at least one.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

impl OneOrMany<SecretRef> {
    /// The secret of one member of an overlap: where there are fewer, the last.
    #[must_use]
    pub fn alternative(&self, choice: usize) -> SecretRef {
        self.0[choice.min(self.0.len() - 1)].clone()
    }
}

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
                collect(list).map(OneOrMany)
            }
        }
        deserializer.deserialize_any(References)
    }
}

/// A kind of which there may be several in one credential, each a map.
trait Several: for<'de> Deserialize<'de> {
    /// What one looks like.
    const ONE: &'static str;
}

impl Several for header::Config {
    const ONE: &'static str = "`{ name, value, format }`";
}

impl Several for placeholder::Config {
    const ONE: &'static str = "`{ token, value, in }`";
}

impl<'de, T: Several> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Maps<T>(PhantomData<T>);
        impl<'de, T: Several> Visitor<'de> for Maps<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or a list of them", T::ONE)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let one = T::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(OneOrMany(vec![one]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                collect(list).map(OneOrMany)
            }
        }
        deserializer.deserialize_any(Maps(PhantomData))
    }
}

/// At most this many members: an overlap is two, and nobody rotates more than a few.
pub(super) const MOST: usize = 8;

/// A list of at least one.
pub(super) fn collect<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut list: A) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(one) = list.next_element()? {
        all.push(one);
    }
    if all.is_empty() || all.len() > MOST {
        return Err(A::Error::custom(format!("expected 1 to {MOST} entries, found {}", all.len())));
    }
    Ok(all)
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
            if key == REQUIRED {
                required = map.next_value()?;
                continue;
            }
            let next = Kind::read(&key, &mut map)?;
            if kind.replace(next).is_some() {
                return Err(A::Error::custom("a credential is of one kind; there are two here"));
            }
        }
        let kind = kind.ok_or_else(|| {
            A::Error::custom(format!(
                "a credential names its kind: one of {}",
                CredentialConfig::KINDS.join(", ")
            ))
        })?;
        Ok(CredentialConfig { kind, required })
    }
}

impl JsonSchema for CredentialConfig {
    fn schema_name() -> Cow<'static, str> {
        "Credential".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut properties = Kind::schemas(generator);
        properties.insert(NONE.to_owned(), serde_json::json!({ "description": "no credential" }));
        let required = serde_json::json!({ "type": "boolean", "description": "readiness waits until its secrets were read" });
        properties.insert(REQUIRED.to_owned(), required);
        json_schema!({
            "description": "What outgate puts into each request, and where. One kind; `none` allows without a credential.",
            "anyOf": [
                { "const": "none" },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "minProperties": 1,
                    "maxProperties": 2,
                    "properties": properties,
                },
            ],
        })
    }
}
