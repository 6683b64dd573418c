//! WebSocket: once both sides have agreed, bytes are copied until one of them is done.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::context::{ConnectionContext, Proxy};
use super::relay::{Moved, RelayEnd, relay};
use super::socket::ActivityGuard;
use crate::message::body::{Body, Side};
use crate::message::record::Record;
use crate::telemetry::Flag;

/// The only protocol that is switched to.
pub const WEBSOCKET: &str = "websocket";

/// Hands the 101 to the app and copies behind it. The record ends with the copying.
pub fn switch(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    mut response: Response<Body>,
    client: Option<OnUpgrade>,
    idle: Duration,
    mut record: Record,
    active: ActivityGuard,
) -> Response<Body> {
    let upstream = hyper::upgrade::on(&mut response);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    record.event.upgrade = Some(WEBSOCKET);
    let (proxy_of_task, place) = (proxy.clone(), context.place.clone());
    proxy.tasks.spawn(async move {
        let Some(client) = client else { return };
        let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else { return };
        let moved = Arc::new(Moved::default());
        active.relay();
        let end =
            relay(TokioIo::new(client), TokioIo::new(upstream), idle, &moved, &proxy_of_task.abort).await;
        finish(&mut record, &moved, end);
        drop((active, place));
    });
    response
}

/// Writes what a relay did into its record.
pub fn finish(record: &mut Record, moved: &Moved, end: RelayEnd) {
    record.event.request_bytes = moved.up.load(Ordering::Relaxed);
    record.event.response_bytes = moved.down.load(Ordering::Relaxed);
    match end {
        RelayEnd::Closed => {}
        RelayEnd::Idle => record.flag(Flag::UpstreamTimeout),
        RelayEnd::Drained => record.flag(Flag::Drained),
        RelayEnd::Broken(side, error) => {
            record.flag(match (side, error.kind()) {
                (Side::Upstream, _) => Flag::UpstreamReset,
                (Side::Downstream, ErrorKind::TimedOut) => Flag::DownstreamTimeout,
                (Side::Downstream, _) => Flag::DownstreamGone,
            });
            record.event.error_detail = Some(error.to_string());
        }
    }
    record.finish();
}
