//! Kinds of stores that the policy's contract names and that are not built yet: each is recognised and refused with
//! that reason. A kind that gets built leaves this file.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error};

/// The settings of a store that is not built yet. It has no value, so whoever matches on it has nothing to handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotYet {}

impl JsonSchema for NotYet {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "NotYet".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "not": {}, "description": "not supported yet" })
    }
}

/// One refusing reader for each kind: only so does the message have the kind's name.
macro_rules! refuse {
    ($($kind:ident),+ $(,)?) => {
        $(
            #[doc = concat!("Refuses `", stringify!($kind), "`; for serde's `deserialize_with`.")]
            ///
            /// # Errors
            /// Always, whatever the settings say.
            pub fn $kind<'de, D: Deserializer<'de>>(_: D) -> Result<NotYet, D::Error> {
                Err(D::Error::custom(concat!("the store kind `", stringify!($kind), "` is not supported yet")))
            }
        )+
    };
}
refuse!(vault, aws_secrets_manager, gcp_secret_manager, azure_key_vault, kubernetes, exec, sealed);
