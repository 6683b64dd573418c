//! The key of a request whose provider wants it in the body: the beginning of the body is held, as far as it is needed.

use super::config::IdempotencySettings;
use super::field::{Found, fill, filled_length, find};
use super::key::{KEY_LENGTH, Keyed, make};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::media::{Media, media};
use crate::message::request::{EgressParts, EgressRequest};
use crate::resilience::held::Held;
use crate::resilience::pointer::{Pointer, Step};
use crate::upstream::error::body_fault;

impl IdempotencySettings {
    /// Looks for the app's key, and adds one where that is asked for. Called once per request, before the first attempt.
    /// `most` is the number of bytes of a body that are kept to be sent again: none is held, or becomes, longer for a key.
    ///
    /// # Errors
    /// The system gives no random numbers; or the app's body broke while it was held.
    pub async fn provide(&self, request: &mut EgressRequest, most: usize) -> Result<Keyed, Failure> {
        match &self.field {
            None => {
                let parts: &mut EgressParts = request;
                self.ensure(&parts.method, &mut parts.headers)
                    .map_err(|fault| Failure::not_sent(Fault::Internal).because(fault))
            }
            Some(field) if self.add && self.methods.contains(&request.method) && is_fit(request, most) => {
                // Few requests come here, and all would carry its state.
                Box::pin(hold(field, request, most)).await
            }
            Some(_) => Ok(Keyed::No),
        }
    }
}

/// Whether the head says that a key can be written into the body.
fn is_fit(request: &EgressRequest, most: usize) -> bool {
    let length = request.body.exact_length();
    let short = length.is_none_or(|length| (1..=most as u64).contains(&length));
    short && !request.upgrade && media(&request.headers) == Media::Json
}

/// Holds the body and writes the key into it; a body that is too long, or no object, goes on as it came.
async fn hold(field: &Pointer, request: &mut EgressRequest, most: usize) -> Result<Keyed, Failure> {
    let broke = |error| Failure::not_sent(body_fault(&error)).because(error);
    let mut held = Held::new(std::mem::take(&mut request.body));
    held.read(0).await.map_err(broke)?;
    // What cannot be the right document is a stream for all that is known.
    let opening = if matches!(field.steps().first(), Some(Step::Each)) { b'[' } else { b'{' };
    if held.first_byte().is_none_or(|first| first == opening) {
        held.read(most as u64).await.map_err(broke)?;
    }
    let text = held.whole().filter(|text| text.len() <= most).unwrap_or_default();
    let name = match field.steps().last() {
        Some(Step::Named(name)) => &**name,
        _ => return Ok(go_on(request, held, Keyed::No)),
    };
    match find(&text, field) {
        Ok(Found::Own) => Ok(go_on(request, held, Keyed::ByApp)),
        Ok(Found::Gaps(gaps)) if filled_length(&text, &gaps, name, KEY_LENGTH) <= most => {
            let written = fill(&text, &gaps, name, make);
            let written = written.map_err(|fault| Failure::not_sent(Fault::Internal).because(fault))?;
            request.replace_body(written.into());
            Ok(Keyed::ByOutgate)
        }
        Ok(Found::Gaps(_)) | Err(_) => Ok(go_on(request, held, Keyed::No)),
    }
}

fn go_on(request: &mut EgressRequest, held: Held, keyed: Keyed) -> Keyed {
    request.body = Body::boxed(held);
    keyed
}
