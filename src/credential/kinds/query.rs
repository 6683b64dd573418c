//! `query`: the secret as a query parameter. It stands in the URL, so it is masked wherever a URL is logged.
//!
//! ```yaml
//! credential: { query: { name: access_key, value: env:RATES_KEY } }
//! ```

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Form, Part};
use crate::credential::config::OneOrMany;
use crate::credential::location::Location;
use crate::secret::reference::SecretRef;

/// One query parameter as written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the parameter, not percent-encoded.
    pub name: String,
    /// The secret, or a list in an overlap: the new one first.
    pub value: OneOrMany<SecretRef>,
}

impl Config {
    /// The part of this parameter in one member of an overlap, or what is wrong with it.
    pub fn part(&self, choice: usize) -> Result<Part, String> {
        if !is_parameter(&self.name) {
            return Err("not a parameter name".to_owned());
        }
        let form = Form::Text {
            before: String::new(),
            secret: self.value.alternative(choice),
            after: String::new(),
        };
        Ok(Part { location: Location::Query(self.name.clone()), form })
    }
}

/// Whether a parameter may be called so.
#[must_use]
pub fn is_parameter(name: &str) -> bool {
    !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_control())
}
