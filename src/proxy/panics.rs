//! A bug in the work on one request costs that request, and nothing else.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use http::Response;

use super::context::{ConnectionContext, Proxy};
use super::dispatch::{Arrival, dispatch};
use super::respond::respond;
use crate::message::body::Body;
use crate::pipeline::error::EgressError;

/// Serves one request, and answers 500 where that panics. The record was dropped by the unwinding, and emitted by that.
pub async fn caught(
    proxy: Arc<Proxy>,
    context: Arc<ConnectionContext>,
    arrival: Box<Arrival>,
) -> Response<Body> {
    let http1 = context.stalls.is_none();
    let request_id = arrival.record.event.request_id;
    match AssertUnwindSafe(dispatch(&proxy, &context, arrival)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            // What was thrown may hold anything, so it is not looked at; the panic hook has logged the place.
            proxy.telemetry.metrics.internal_error();
            respond(&EgressError::Internal, &request_id, http1)
        }
    }
}
