//! The kinds of credential, one file each. A kind is a list of [`Part`]s: a place, the secrets that stand in it, and how
//! they are written.

use crate::secret::reference::SecretRef;

use super::location::Location;

pub mod basic;
pub mod bearer;
pub mod header;
pub mod query;

/// One place of a request and what outgate writes there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Where.
    pub location: Location,
    /// What.
    pub form: Form,
}

/// How secrets are written at a place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Fixed text, the secret, fixed text.
    Text {
        /// Text before the secret.
        before: String,
        /// The secret.
        secret: SecretRef,
        /// Text after it.
        after: String,
    },
    /// `Basic base64(username:password)` (RFC 7617).
    Basic {
        /// The user name; often the secret itself (Stripe).
        username: Half,
        /// The password.
        password: Half,
    },
}

/// One half of a basic credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// Public text, such as an account id; may be empty.
    Plain(String),
    /// A secret.
    Secret(SecretRef),
}

impl Part {
    /// The secrets this part needs.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        let (first, second) = match &self.form {
            Form::Text { secret, .. } => (Some(secret), None),
            Form::Basic { username, password } => (username.secret(), password.secret()),
        };
        first.into_iter().chain(second)
    }
}

impl Half {
    fn secret(&self) -> Option<&SecretRef> {
        match self {
            Self::Secret(reference) => Some(reference),
            Self::Plain(_) => None,
        }
    }
}
