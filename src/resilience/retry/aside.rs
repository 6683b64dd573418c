//! What stands of the attempts so far, if no further one says better.

use http::Response;

use super::answer;
use crate::message::body::Body;
use crate::message::failure::{Failure, Progress};

/// What is kept of the attempts that others followed.
#[derive(Default)]
pub(super) struct Aside {
    /// The answer of the last one, where it was short.
    answer: Option<Response<Body>>,
    /// How the latest one ended that got no answer, and that the provider may have acted on.
    failure: Option<Failure>,
}

impl Aside {
    /// Keeps what counts of an attempt. Of one in which nothing was sent that is nothing.
    pub(super) async fn keep(&mut self, outcome: Result<Response<Body>, Failure>) {
        match outcome {
            Ok(answer) => self.answer = answer::set_aside(answer).await,
            // It is news that the answer before it does not tell.
            Err(failure) if failure.progress != Progress::NotSent => {
                *self = Self { answer: None, failure: Some(failure) };
            }
            Err(_) => {}
        }
    }

    pub(super) fn take_answer(&mut self) -> Option<Response<Body>> {
        self.answer.take()
    }

    pub(super) fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }
}
