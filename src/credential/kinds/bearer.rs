//! `bearer`: `Authorization: Bearer <secret>` (RFC 6750). One reference, or a list: an overlap of new and old, where the
//! first is used and the next is taken after a 401.
//!
//! ```yaml
//! credential: { bearer: env:STRIPE_KEY }
//! credential: { bearer: [file:/run/secrets/new, file:/run/secrets/old] }
//! ```

use http::header::AUTHORIZATION;

use super::{Form, MemberSettings, Part};
use crate::credential::location::Location;
use crate::credential::token::Token;
use crate::secret::reference::SecretRef;

/// The parts of one member of the list.
pub fn parts(secret: SecretRef) -> Vec<Part> {
    let form = Form::Text { before: "Bearer ".to_owned(), secret, after: String::new() };
    vec![Part { location: Location::Header(AUTHORIZATION), form }]
}

/// A member that sends a token that outgate gets itself.
#[must_use]
pub fn of_token(token: Token) -> MemberSettings {
    let parts = parts(token.reference.clone());
    MemberSettings { tokens: vec![token], ..MemberSettings::of(parts) }
}
