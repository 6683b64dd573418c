//! Interception: the TLS of the app ends here, under a leaf for the CONNECT host, and what is inside is served like any
//! other connection, once.

use std::sync::Arc;

use super::connect::Opening;
use super::connection::{Protocol, serve_http};
use super::context::{ConnectionContext, Proxy};
use super::exchange::{handshake_deadline, unless_drained};
use super::resets::Resets;
use super::socket::Socket;
use super::stalls::Stalls;
use super::tunnel::flag_of;
use crate::telemetry::Flag;
use crate::tls::accept::accept;

/// Serves an intercepted connection until it ends.
pub async fn serve(proxy: Arc<Proxy>, context: Arc<ConnectionContext>, socket: Socket, opening: Opening) {
    let Opening { mut record, active, host, port, proven_tenant } = opening;
    let config = match proxy.leaves.server_config(host.as_str()).await {
        Ok(config) => config,
        Err(error) => {
            record.flag(Flag::Internal);
            record.event.error_detail = Some(error.to_string());
            record.finish();
            return;
        }
    };
    let activity = socket.activity();
    let handshake = accept(socket, config, host.as_str(), handshake_deadline(&proxy));
    let stream = match unless_drained(&proxy, handshake).await {
        Some(Ok(stream)) => stream,
        None => {
            record.flag(Flag::Drained);
            record.finish();
            return;
        }
        Some(Err(error)) => {
            record.flag(flag_of(&error));
            record.event.error_detail = Some(error.to_string());
            record.finish();
            return;
        }
    };
    // The CONNECT is over; the requests inside have records of their own. Who was redirected has sent none.
    match context.redirected {
        Some(_) => record.withdraw(),
        None => record.finish(),
    }
    drop(record);
    drop(active);
    let protocol = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        Some(_) | None => Protocol::Http1,
    };
    let inside = ConnectionContext {
        listener: context.listener.clone(),
        client: context.client,
        activity,
        redirected: context.redirected,
        intercepted: Some((host, port)),
        proven_tenant,
        late: context.late,
        stalls: (protocol == Protocol::Http2).then(Stalls::default),
        place: context.place.clone(),
        resets: Resets::default(),
    };
    // Boxed: this is the one place where serving a connection leads to serving another.
    Box::pin(serve_http(proxy, Arc::new(inside), stream, protocol)).await;
}
