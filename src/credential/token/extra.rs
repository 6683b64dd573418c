//! The public fields of a token request: those with keys of their own in the policy, and `extra`.

use std::collections::BTreeMap;

use crate::secret::form::Form;

/// Public fields of a form. Equal names are a mistake, so what one key says cannot be changed by another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Extra(Vec<(String, String)>);

/// Fields that hold secrets or say what is asked for; they are never given in `extra`.
const OWN: [&str; 12] = [
    "grant_type",
    "client_id",
    "client_secret",
    "client_assertion",
    "client_assertion_type",
    "assertion",
    "refresh_token",
    "subject_token",
    "actor_token",
    "password",
    "scope",
    "audience",
];

impl Extra {
    /// The fields of `extra`.
    ///
    /// # Errors
    /// One of them has a key of its own in the policy, or is a secret.
    pub fn compile(extra: &BTreeMap<String, String>) -> Result<Self, String> {
        if extra.contains_key("password") {
            return Err("`extra` holds `password`: secrets do not stand in a policy".to_owned());
        }
        if let Some(own) = extra.keys().find(|name| OWN.contains(&name.as_str())) {
            return Err(format!("`extra` holds `{own}`, which has a key of its own"));
        }
        Ok(Self(extra.clone().into_iter().collect()))
    }

    /// The same with the field of a key of its own, where that is set.
    ///
    /// # Errors
    /// `extra` has it as well.
    pub fn with(mut self, name: &str, value: Option<String>) -> Result<Self, String> {
        if self.0.iter().any(|(known, _)| known == name) {
            return Err(format!("`extra` holds `{name}`, which has a key of its own"));
        }
        self.0.extend(value.map(|value| (name.to_owned(), value)));
        Ok(self)
    }

    /// Adds them to a form.
    #[must_use]
    pub fn add_to(&self, form: Form) -> Form {
        self.0.iter().fold(form, |form, (name, value)| form.field(name, value.as_bytes()))
    }
}
