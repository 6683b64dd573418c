//! A bug in the work on one request costs that request, and nothing else.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;

use super::context::{ConnectionContext, Proxy};
use super::respond::respond;
use crate::message::body::Body;
use crate::pipeline::error::EgressError;
use crate::telemetry::new_request_id;

/// Runs `serve` and answers 500 where it panics. The record inside was dropped by the unwinding, and emitted by that.
pub async fn caught<F, R>(
    proxy: Arc<Proxy>,
    context: Arc<ConnectionContext>,
    request: Request<Incoming>,
    serve: F,
) -> Response<Body>
where
    F: FnOnce(Arc<Proxy>, Arc<ConnectionContext>, Request<Incoming>) -> R,
    R: Future<Output = Response<Body>>,
{
    let http1 = context.stalls.is_none();
    match AssertUnwindSafe(serve(proxy.clone(), context, request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            // What was thrown may hold anything, so it is not looked at; the panic hook has logged the place.
            proxy.telemetry.metrics.internal_error();
            respond(&EgressError::Internal, &new_request_id(), http1)
        }
    }
}
