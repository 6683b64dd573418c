//! The kinds of credential, one file each. A kind makes [`MemberSettings`] of what the policy says: [`Part`]s, which are a
//! place, the secrets or tokens that stand in it, and how they are written; and the [`Token`]s that outgate gets itself.

use crate::secret::ValueRules;
use crate::secret::reference::SecretRef;

use super::location::Location;
use super::token::Token;
pub use super::token::rotation::KeepSettings;

pub mod basic;
pub mod bearer;
pub mod header;
pub mod jwt_bearer;
pub mod oauth2_client_credentials;
pub mod oauth2_refresh_token;
pub mod query;
pub mod token_exchange;

/// One alternative of a credential, compiled. Equal ones share what is live over reloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemberSettings {
    /// What is written where.
    pub parts: Vec<Part>,
    /// The tokens among what the parts name, and how each is got.
    pub tokens: Vec<Token>,
}

/// A secret that a credential uses, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its reference.
    pub reference: SecretRef,
    /// Which bytes it may hold.
    pub rules: ValueRules,
}

impl MemberSettings {
    /// A member without tokens.
    #[must_use]
    pub fn of(parts: Vec<Part>) -> Self {
        Self { parts, tokens: Vec::new() }
    }

    /// The places where its tokens keep what rotates.
    pub fn kept(&self) -> impl Iterator<Item = &KeepSettings> {
        self.tokens.iter().filter_map(|token| token.settings.grant().keep())
    }

    /// Every secret it uses: what stands in a request, tokens, and what tokens are got with.
    #[must_use]
    pub fn uses(&self) -> Vec<Used> {
        let parts = self.parts.iter().flat_map(Part::secrets);
        let parts = parts.map(|secret| Used { reference: secret.clone(), rules: ValueRules::HeaderSafe });
        let inputs = self.tokens.iter().flat_map(|token| token.settings.grant().inputs());
        let inputs = inputs.flat_map(|input| {
            let rules = input.rules;
            input.alternatives.into_iter().map(move |reference| Used { reference, rules })
        });
        parts.chain(inputs).collect()
    }
}

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
