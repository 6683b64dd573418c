//! What a preset says about itself: parameters, the ways of its credential, what its keys look like, and where its facts
//! come from.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer};

use super::pattern::Pattern;

/// The header of a preset, under its key `preset`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The provider's name.
    pub title: String,
    /// What it is for: `payments`, `email` ...
    pub category: String,
    /// How sure the facts are.
    pub confidence: Confidence,
    /// What depends on the customer, by name.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
    /// The ways of the credential; their order is that of the text.
    #[serde(default)]
    pub credentials: BTreeMap<String, Way>,
    /// What its keys look like.
    #[serde(default)]
    pub keys: Vec<KeyFormat>,
    /// Secrets in bodies and in other places than the credential's.
    #[serde(default)]
    pub secrets_elsewhere: Vec<String>,
    /// How an incoming call of the provider is proved.
    #[serde(default)]
    pub webhooks: Option<Webhooks>,
    /// How to try things out.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// How the official clients are brought to outgate, by language; [`MEASURED`] where the tests run them.
    #[serde(default)]
    pub clients: BTreeMap<String, String>,
    /// What else one should know.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Facts to verify before relying on them; the preset does not.
    #[serde(default)]
    pub unsure: Vec<String>,
    /// Where the facts come from.
    #[serde(default)]
    pub sources: Vec<String>,
}

/// What a preset says of a client that the tests run through it: what it needs there stands in `docs/providers.md`.
pub const MEASURED: &str = "measured";

/// How sure the facts of a preset are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// General knowledge or second hand: no retry of what may have acted, no default limit.
    #[default]
    Low,
    /// Partly read in the provider's documents.
    Medium,
    /// Read in the provider's documents or its SDKs' source, or stable for years.
    High,
}

impl Confidence {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// A parameter: its values are a pattern's, or one of a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// What it is.
    pub description: String,
    /// What a value looks like.
    #[serde(default)]
    pub pattern: Option<Pattern>,
    /// The possible values, and what each stands for.
    #[serde(default)]
    pub values: BTreeMap<String, Meaning>,
    /// What a value of the pattern stands for, where that is not itself.
    #[serde(default)]
    pub is: Option<Meaning>,
    /// What stands for it where it has no value.
    #[serde(default)]
    pub absent: Option<Meaning>,
    /// The value where the policy gives none.
    #[serde(default)]
    pub default: Option<String>,
    /// The parameter whose value this one has too, where the policy gives none.
    #[serde(default)]
    pub follows: Option<String>,
    /// Whether the policy must give one. What mentions a parameter that has no value is left out of its list.
    #[serde(default)]
    pub required: bool,
    /// A value for tests and documents.
    #[serde(default)]
    pub sample: Option<String>,
}

/// What a word of `values` stands for; it may name other parameters, which then must have a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A text.
    One(String),
    /// Elements of a list.
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for Meaning {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MeaningVisitor;
        impl<'de> de::Visitor<'de> for MeaningVisitor {
            type Value = Meaning;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of them")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Meaning, E> {
                Ok(Meaning::One(text.to_owned()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Meaning, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Meaning::Many)
            }
        }
        deserializer.deserialize_any(MeaningVisitor)
    }
}

/// One way to give a credential.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// What it is.
    pub about: String,
    /// Its parts that need words, or need not be given.
    #[serde(default)]
    pub inputs: BTreeMap<String, Input>,
    /// The credential, as a policy writes it; `${name}` stands for a part.
    pub is: serde::de::IgnoredAny,
}

/// One part of a credential.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// What it is.
    pub about: String,
    /// Whether it need not be given.
    #[serde(default)]
    pub optional: bool,
    /// What it looks like, where it goes into another text, such as a URL. Default: printable characters.
    #[serde(default)]
    pub pattern: Option<Pattern>,
}

/// What a key looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFormat {
    /// Its name at the provider.
    pub name: String,
    /// How it begins; empty where no beginning tells it (then only its exact value is masked).
    #[serde(default)]
    pub prefix: Vec<String>,
    /// The characters after the prefix, as `A-Za-z0-9_`.
    #[serde(default)]
    pub chars: Option<String>,
    /// The fewest characters after the prefix. Default: 8.
    #[serde(default)]
    pub least: Option<usize>,
    /// Whether it is a secret; identifiers are not masked.
    pub secret: bool,
}

/// How an incoming call is proved, as data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhooks {
    /// The field with the signature; none where it stands elsewhere, or nowhere.
    #[serde(default)]
    pub signature_header: Option<String>,
    /// How it is made; `none`: it is not signed.
    pub algorithm: String,
    /// How it is written.
    #[serde(default)]
    pub encoding: Option<String>,
    /// What is signed.
    #[serde(default)]
    pub signed: Option<String>,
    /// How the field is built, and what else to know.
    #[serde(default)]
    pub layout: Option<String>,
    /// How old a call may be, in seconds; none where there is no time in it.
    #[serde(default)]
    pub tolerance_s: Option<u32>,
    /// The unit of the time that is signed, where that is not seconds.
    #[serde(default)]
    pub timestamp_unit: Option<String>,
    /// What tells a call that comes twice.
    #[serde(default)]
    pub event_id: Option<String>,
}
