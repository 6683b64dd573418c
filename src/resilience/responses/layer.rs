//! The layer that judges each attempt's answer.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use tower::Service;

use super::look::Seen;
use super::table::{Row, Table};
use super::{encoding, look};
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::resilience::verdict::{Verdict, WholeHost};
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
        if !table.looks() {
            return Box::pin(async move { Ok(judged_by_head(&table, call.await?)) });
        }
        Box::pin(async move { Ok(judged(&table, call.await?).await) })
    }
}

/// The answer with its verdict, where no row looks into bodies.
fn judged_by_head(table: &Table, answer: Response<Body>) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let row = table.rows().iter().find(|row| row.matches_head(&head));
    let verdict = table.verdict(row, &head, None);
    noted(verdict, row, Response::from_parts(head, body))
}

/// The answer with its verdict.
async fn judged(table: &Table, answer: Response<Body>) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let mut look = Look::default();
    let (row, body) = look.first(table, &head, body).await;
    let verdict = table.verdict(row, &head, look.seen.as_ref());
    noted(verdict, row, Response::from_parts(head, body))
}

fn noted(verdict: Verdict, row: Option<&Row>, mut answer: Response<Body>) -> Response<Body> {
    verdict.note(&mut answer);
    if row.is_some_and(|row| row.whole_host) {
        WholeHost.note(&mut answer);
    }
    answer
}

/// The look into one body: at most one, when the first row that wants it comes.
#[derive(Default)]
struct Look {
    seen: Option<Seen>,
    tried: bool,
    counted: bool,
}

impl Look {
    /// The first row that matches, and the body as it came.
    async fn first<'a>(
        &mut self,
        table: &'a Table,
        head: &http::response::Parts,
        mut body: Body,
    ) -> (Option<&'a Row>, Body) {
        for row in table.rows().iter().filter(|row| row.matches_head(head)) {
            if row.wants_body() && !self.tried {
                if look::can_look(head, &body, row.text.is_some()) {
                    self.tried = true;
                    let mut looking =
                        table.rows().iter().filter(|row| row.wants_body() && row.matches_head(head));
                    let maps_alone = looking.all(Row::reads_maps_alone);
                    (body, self.seen) = look::look(head, body, maps_alone).await;
                }
                if self.tried || !self.counted {
                    self.counted = true;
                    table.count_look(
                        self.seen.as_ref().is_some_and(|seen| row.text.is_some() || seen.json().is_some()),
                    );
                }
            }
            if !row.needs_body() || self.seen.as_ref().is_some_and(|seen| row.matches_body(seen)) {
                return (Some(row), body);
            }
        }
        (None, body)
    }
}

#[cfg(test)]
mod tests;
