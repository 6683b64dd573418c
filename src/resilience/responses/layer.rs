//! The layer that judges each attempt's answer.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use tower::Service;

use super::table::{Row, Table};
use super::{encoding, look};
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::resilience::{Inner, Pending};

/// Notes the verdict of the table on each answer. Stands innermost of the resilience layers, around the attempt timeouts,
/// so that every other layer sees the verdict, and a body that is looked into keeps its idle clock.
#[derive(Clone)]
pub struct Judge<S> {
    inner: S,
    table: Arc<Table>,
}

impl<S> Judge<S> {
    /// Judges what `inner` answers.
    pub fn new(inner: S, table: Arc<Table>) -> Self {
        Self { inner, table }
    }
}

impl<S: Inner> Service<EgressRequest> for Judge<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: EgressRequest) -> Pending {
        if self.table.looks() && !request.upgrade {
            encoding::narrow(&mut request.headers);
        }
        let call = self.inner.call(request);
        let table = self.table.clone();
        Box::pin(async move { Ok(judged(&table, call.await?).await) })
    }
}

/// The answer with its verdict.
async fn judged(table: &Table, answer: Response<Body>) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let (row, body) = if table.looks() {
        with_look(table, &head, body).await
    } else {
        (table.rows().iter().find(|row| row.matches_head(&head)), body)
    };
    let verdict = table.verdict(row, &head);
    let mut answer = Response::from_parts(head, body);
    verdict.note(&mut answer);
    answer
}

/// The first row that matches; the body is looked into at most once, when the first row that needs it comes.
async fn with_look<'a>(
    table: &'a Table,
    head: &http::response::Parts,
    mut body: Body,
) -> (Option<&'a Row>, Body) {
    let mut document = None;
    let mut looked = false;
    for row in table.rows().iter().filter(|row| row.matches_head(head)) {
        if !row.json.is_empty() && !looked {
            looked = true;
            if look::can_look(head, &body) {
                (body, document) = look::look(head, body).await;
            }
            table.count_look(document.is_some());
        }
        if row.json.is_empty() || document.as_ref().is_some_and(|document| row.matches_body(document)) {
            return (Some(row), body);
        }
    }
    (None, body)
}

#[cfg(test)]
mod tests;
