//! Permission to open one tunnel: the host and port it was given for, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::message::failure::Failure;
use crate::message::request::Exchange;
use crate::message::target::Host;
use crate::telemetry::RouteMetrics;
use crate::upstream::Upstream;

/// A tunnel that the policy allows.
pub struct TunnelPermit {
    /// Provider, where one names the host.
    pub provider: Option<Arc<str>>,
    /// Any bytes may pass; else TLS whose SNI is the CONNECT host.
    pub opaque: bool,
    /// Silence that ends it.
    pub upgrade_idle: Duration,
    /// Counters, resolved.
    pub metrics: Arc<RouteMetrics>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) host: Host,
    pub(super) port: u16,
}

impl TunnelPermit {
    /// Resolves the name and judges its addresses, without dialling.
    pub async fn check(&self) -> Result<(), Failure> {
        self.upstream.check(&self.host, self.port).await
    }

    /// Judges where a redirected client was on its way to; says whether the host resolves to it.
    pub async fn judge_original(&self, original: SocketAddr) -> Result<Option<bool>, Failure> {
        self.upstream.judge_original(&self.host, original).await
    }

    /// Dials. What is noted about the connection goes to the exchange.
    pub async fn dial(&self, exchange: &Exchange) -> Result<TcpStream, Failure> {
        self.upstream.dial_tunnel(&self.host, self.port, exchange).await
    }
}
