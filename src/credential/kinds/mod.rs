//! The kinds of credential, one file each. A kind makes [`MemberSettings`] of what the policy says: [`Part`]s, which are a
//! place, the secrets or tokens that stand in it, and how they are written; and the [`Token`]s that outgate gets itself.

use std::sync::Arc;

use crate::secret::ValueRules;
use crate::secret::reference::SecretRef;

use super::location::Location;
use super::rewrite::Rewrite;
use super::token::Token;
pub use super::token::rotation::{KeepSettings, whole};

pub mod apple;
pub mod aws_sigv4;
pub mod basic;
pub mod bearer;
pub mod body;
pub mod github_app;
pub mod google_service_account;
pub mod header;
pub mod hmac;
pub mod jwt_bearer;
pub mod mtls;
pub mod oauth2_client_credentials;
pub mod oauth2_refresh_token;
pub mod placeholder;
pub mod query;
pub mod token_exchange;
mod values;

/// One alternative of a credential, compiled. Equal ones share what is live over reloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemberSettings {
    /// What is written where.
    pub parts: Vec<Part>,
    /// The tokens among what the parts name, and how each is got.
    pub tokens: Vec<Token>,
    /// What is done for each request, after the parts were injected.
    pub per_request: Option<PerRequest>,
}

/// Work for each request. One variant for each kind that has some; settings only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PerRequest {
    /// Fields of a body.
    Body(body::Settings),
    /// Dummies that are replaced.
    Placeholder(placeholder::Settings),
    /// A signature over parts of the request.
    Hmac(hmac::Settings),
    /// A signature of AWS.
    AwsSigV4(aws_sigv4::Settings),
}

impl PerRequest {
    /// What does it.
    #[must_use]
    pub fn rewriter(&self) -> &dyn Rewrite {
        match self {
            Self::Body(settings) => settings,
            Self::Placeholder(settings) => settings,
            Self::Hmac(settings) => settings,
            Self::AwsSigV4(settings) => settings,
        }
    }
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
        Self { parts, ..Self::default() }
    }

    /// A member without parts: all of it is work for each request.
    #[must_use]
    pub fn per_request(work: PerRequest) -> Self {
        Self { per_request: Some(work), ..Self::default() }
    }

    /// The places that belong to it.
    #[must_use]
    pub fn locations(&self) -> Vec<Location> {
        let twins = self.per_request.as_ref().map(|work| work.rewriter().twins());
        let in_query = self.parts.iter().filter_map(|part| part.location.query_twin());
        self.written().into_iter().chain(in_query).chain(twins.into_iter().flatten()).collect()
    }

    /// Those of them that it writes.
    #[must_use]
    pub fn written(&self) -> Vec<Location> {
        let own = self.per_request.as_ref().map(|work| work.rewriter().locations());
        self.parts.iter().map(|part| part.location.clone()).chain(own.into_iter().flatten()).collect()
    }

    /// Whether some of its secrets are per tenant.
    #[must_use]
    pub fn is_per_tenant(&self) -> bool {
        self.uses().iter().any(|used| used.reference.is_per_tenant())
    }

    /// Whether reading its secrets again could give another value.
    #[must_use]
    pub fn can_change(&self) -> bool {
        self.uses().iter().any(|used| can_change(&used.reference))
    }

    /// The references of the secrets that stand in a request, for the record.
    #[must_use]
    pub fn reference(&self) -> Arc<str> {
        let mut references: Vec<String> = Vec::new();
        let own = self.per_request.iter().flat_map(|work| work.rewriter().secrets());
        let own = own.map(|used| used.reference.to_string());
        for reference in self.parts.iter().flat_map(Part::secrets).map(ToString::to_string).chain(own) {
            if !references.contains(&reference) {
                references.push(reference);
            }
        }
        references.join(",").into()
    }

    /// Those of its tokens that rotate, with the place where that is kept.
    pub fn kept(&self) -> impl Iterator<Item = (&SecretRef, &KeepSettings)> {
        self.tokens.iter().filter_map(|token| Some((&token.reference, token.settings.grant().keep()?)))
    }

    /// The refresh tokens that each of its tokens begins with, and where what follows from them is kept, if they rotate.
    pub fn grants(&self) -> impl Iterator<Item = (&[SecretRef], Option<&KeepSettings>)> {
        self.tokens.iter().map(|token| {
            let grant = token.settings.grant();
            (grant.seeds(), grant.keep())
        })
    }

    /// Refresh tokens: each with the token that is got with it, and whether it rotates.
    pub fn seeds(&self) -> impl Iterator<Item = (&SecretRef, &SecretRef, bool)> {
        self.tokens.iter().flat_map(|token| {
            let grant = token.settings.grant();
            grant.seeds().iter().map(move |seed| (seed, &token.reference, grant.keep().is_some()))
        })
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
        let own = self.per_request.as_ref().map(|work| work.rewriter().secrets());
        parts.chain(inputs).chain(own.into_iter().flatten()).collect()
    }
}

/// Whether reading a secret again could give another value; the environment cannot change.
pub fn can_change(reference: &SecretRef) -> bool {
    reference.store() != "env"
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
    /// The secret, where it is one.
    #[must_use]
    pub fn secret(&self) -> Option<&SecretRef> {
        match self {
            Self::Secret(reference) => Some(reference),
            Self::Plain(_) => None,
        }
    }
}
