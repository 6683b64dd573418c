//! What a caller makes of an answer.
//!
//! A peer can fail with any status: a login that is refused is a 400 here and a 403 there, and a proxy in front of a store
//! answers 200 with a page. So only who knows the API says that an answer was good, and what nobody called good has failed.

use http::StatusCode;

use super::HttpError;
use super::failures::Running;

/// The verdict on one answer. Dropped, the peer has failed.
pub struct Verdict(Option<(Running, HttpError)>);

impl Verdict {
    pub(super) fn on(status: StatusCode, running: Running) -> Self {
        let error = if status.is_success() { HttpError::Garbled } else { HttpError::Status(status.as_u16()) };
        Self(Some((running, error)))
    }

    /// None is wanted; for tests.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Self {
        Self(None)
    }

    /// The peer does its work: it gave what was asked for, or knows that there is none.
    pub fn works(mut self) {
        if let Some((running, _)) = self.0.take() {
            running.works();
        }
    }

    /// The peer does its work, and refuses who asked for a reason that is its own: nobody else is held up by that.
    pub fn refuses(mut self) {
        if let Some((running, error)) = self.0.take() {
            running.refused(error);
        }
    }

    /// It was no failure, and proves nothing for what was asked for: a login, or a question on the way.
    pub fn aside(mut self) {
        if let Some((running, _)) = self.0.take() {
            running.aside();
        }
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if let Some((running, error)) = self.0.take() {
            running.failed(error);
        }
    }
}
