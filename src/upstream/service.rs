//! The innermost service of every route: one request to the provider, over a connection of the pool.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Response, StatusCode};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressRequest, Exchange};
use crate::message::target::{Host, Scheme, Target};
use crate::telemetry::{DialResult, ProviderMetrics};

use super::client_tls::TlsSetupError;
use super::connector::{Connected, Connector, Dialled, Purpose, UpstreamEnv};
use super::error::is_refusal;
use super::exchange::{Outcome, Outgoing, Timings};
use super::handshake;
use super::identity::{IdentitySource, ProxyAuthSource};
use super::pool::{Lease, Origin, Place, Pool, PoolStats, Step, Ticket, Waiting, Wanted};
use super::settings::UpstreamSettings;

/// How many pooled connections may turn out to be closed before one request; each was closed by the provider in the very
/// moment it was taken.
const MAX_STALE: usize = 8;

/// Why an upstream cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// TLS cannot be configured.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// A pool without connections would serve nobody.
    #[error("`pool.max_connections` must be at least 1")]
    NoConnections,
}

/// The way to one provider. Dropping it closes what is idle; running exchanges end in their own time.
pub struct Upstream {
    connector: Connector,
    pool: Arc<Pool>,
    metrics: Arc<ProviderMetrics>,
    scheme: Scheme,
    /// Bound of the wait for a connection to come back.
    wait: Duration,
    /// Bound of the wait for somebody else's dial.
    wait_behind_dial: Duration,
}

impl Upstream {
    /// Builds the way to a provider.
    ///
    /// # Errors
    ///
    /// The certificate authorities cannot be read, or the pool is empty.
    pub fn new(
        settings: UpstreamSettings,
        env: Arc<UpstreamEnv>,
        identity: Option<Arc<dyn IdentitySource>>,
        proxy_auth: Option<Arc<dyn ProxyAuthSource>>,
    ) -> Result<Arc<Self>, UpstreamError> {
        if settings.pool.max_connections == 0 {
            return Err(UpstreamError::NoConnections);
        }
        let pool = Pool::new(settings.scheme, settings.http, settings.pool.clone());
        let (scheme, wait) = (settings.scheme, settings.connect_timeout);
        let wait_behind_dial = wait + settings.tls_timeout;
        let metrics = env.metrics.provider(&settings.provider);
        let connector = Connector::new(settings, env, identity, proxy_auth)?;
        Ok(Arc::new(Self { connector, pool, metrics, scheme, wait, wait_behind_dial }))
    }

    /// Sends a request and returns when the head of the answer is there. The answer's head is cleaned
    /// ([`crate::message::headers::clean_response`]); 101 comes only where the request asked for it, with hyper's
    /// upgrade in its extensions.
    ///
    /// A request whose credential ended while it waited for a connection is not sent: it is handed back. So it is where a
    /// pooled connection had it before, which was closed in that moment, and it waited for the next.
    ///
    /// # Errors
    ///
    /// `progress` is `NotSent` only where no byte of the request was taken by the socket, or where the provider said
    /// that it did not process it.
    pub async fn send(&self, request: EgressRequest) -> Result<Response<Body>, Failure> {
        request.exchange.upload().restart();
        request.exchange.facts().attempts += 1;
        let purpose = if request.upgrade { Purpose::Upgrade } else { Purpose::Ordinary };
        let mut leased = self.lease(&request.target, purpose, &request.exchange).await?;
        if request.exchange.credential_is_over() {
            return Err(given_back(request));
        }
        let mut outgoing = Outgoing::new(request);
        for _ in 0..MAX_STALE {
            let (lease, timings) = leased;
            let shows = lease.shows();
            match outgoing.over(lease, timings, self.scheme).await {
                Outcome::Answered(response) => {
                    self.judge_certificate(shows, Ok(response.status()));
                    return Ok(response);
                }
                Outcome::Failed(failure) => {
                    self.judge_certificate(shows, Err(failure.fault));
                    return Err(failure);
                }
                Outcome::Stale(unsent) => outgoing = unsent,
            }
            let route = outgoing.route();
            leased = self.lease(&route.target, route.purpose(), &route.exchange).await?;
            if route.exchange.credential_is_over() {
                return Err(given_back(outgoing.into_unsent()));
            }
        }
        Err(Failure::not_sent(Fault::Reset).because("every pooled connection was closed by the provider"))
    }

    /// Whether it shows one of several client certificates.
    pub fn overlaps(&self) -> bool {
        self.connector.overlap().is_some()
    }

    /// The provider refused the client certificate of this version. Whether another is shown from now on.
    pub fn certificate_refused(&self, version: u64) -> bool {
        self.connector.overlap().is_some_and(|overlap| overlap.refused(version))
    }

    /// What an exchange says of the client certificate that its connection has shown, in an overlap.
    fn judge_certificate(&self, (version, fresh): (u64, bool), outcome: Result<StatusCode, Fault>) {
        let Some(overlap) = self.connector.overlap() else { return };
        match outcome {
            // Whether it is the certificate that was refused is judged further out, by the policy's table of answers.
            Ok(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {}
            Ok(_) => overlap.accepted(version),
            // With TLS 1.3 a provider that refuses it may close before its alert is read.
            Err(Fault::Reset) if fresh && !overlap.is_proven(version) => _ = overlap.refused(version),
            Err(Fault::TlsAlert) if fresh => _ = overlap.refused(version),
            Err(_) => {}
        }
    }

    /// The innermost service of a stack.
    pub fn service(self: &Arc<Self>) -> UpstreamService {
        UpstreamService(self.clone())
    }

    /// What it was built from.
    pub fn settings(&self) -> &UpstreamSettings {
        self.connector.settings()
    }

    /// A bare TCP connection, for tunnels that are passed through. How it was made is noted in the exchange.
    pub async fn dial_tunnel(
        &self,
        host: &Host,
        port: u16,
        exchange: &Exchange,
    ) -> Result<TcpStream, Failure> {
        let dialled = self.connector.dial_raw(host, port).await;
        self.count(dialled.as_ref().err());
        let Dialled { stream, peer, dns, connect } = dialled?;
        let mut facts = exchange.facts();
        facts.dns = dns;
        facts.connect = Some(connect);
        facts.peer = Some(peer);
        facts.reused = Some(false);
        Ok(stream)
    }

    /// Resolves and checks the address without dialling it.
    pub async fn check(&self, host: &Host, port: u16) -> Result<(), Failure> {
        self.connector.check(host, port).await
    }

    /// Judges where a redirected client was on its way to.
    pub async fn judge_original(
        &self,
        host: &Host,
        original: std::net::SocketAddr,
    ) -> Result<Option<bool>, Failure> {
        self.connector.judge_original(host, original).await
    }

    /// Figures of the pool.
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    async fn lease(
        &self,
        target: &Target,
        purpose: Purpose,
        exchange: &Exchange,
    ) -> Result<(Lease, Option<Timings>), Failure> {
        let wanted = Wanted { purpose, account: exchange.facts().account };
        let step = self.pool.acquire(&target.host, target.port, wanted, self.connector.version());
        let ticket = match step.map_err(|error| Failure::not_sent(Fault::Internal).because(error))? {
            Step::Ticket(ticket) => ticket,
            Step::Wait(waiting) => {
                if waiting.behind_dial {
                    exchange.dialled();
                }
                self.wait(waiting, exchange).await?
            }
            Step::Full => return Err(Failure::not_sent(Fault::ConnectionLimit)),
        };
        match ticket {
            Ticket::Ready(lease) => Ok((lease, None)),
            Ticket::Dial(place) => {
                exchange.dialled();
                let (lease, timings) = self.open(place, purpose).await?;
                Ok((lease, Some(timings)))
            }
            Ticket::Failed(fault) => {
                Err(Failure::not_sent(fault).because("the connection that several requests waited for"))
            }
        }
    }

    async fn wait(&self, mut waiting: Waiting, exchange: &Exchange) -> Result<Ticket, Failure> {
        let began = Instant::now();
        let bound = began + if waiting.behind_dial { self.wait_behind_dial } else { self.wait };
        let (until, fault) = match exchange.deadline {
            Some(deadline) if deadline < bound => (deadline, Fault::Deadline),
            Some(_) | None => (bound, Fault::ConnectionLimit),
        };
        let ticket = timeout_at(until, waiting.ticket()).await;
        let mut facts = exchange.facts();
        facts.queue = Some(facts.queue.unwrap_or_default() + began.elapsed());
        drop(facts);
        match ticket {
            Ok(Some(ticket)) => Ok(ticket),
            Ok(None) => Err(Failure::not_sent(Fault::Internal).because("the pool was closed")),
            Err(_elapsed) => Err(Failure::not_sent(fault).because("no connection became free")),
        }
    }

    fn count(&self, failure: Option<&Failure>) {
        self.metrics.dialed(failure.map_or(DialResult::Ok, |failure| dial_result(failure.fault)));
    }

    /// The connection; or why there is none, and the version of the client certificate that it was to show.
    async fn dial(&self, origin: &Origin, purpose: Purpose) -> Result<Connected, (Failure, u64)> {
        let version = self.connector.version();
        let dialled = self.connector.connect(&origin.host, origin.port, purpose).await;
        self.count(dialled.as_ref().err());
        dialled.map_err(|failure| (failure, version))
    }

    async fn open(&self, place: Place, purpose: Purpose) -> Result<(Lease, Timings), Failure> {
        let origin = place.origin().clone();
        let mut dialled = self.dial(&origin, purpose).await;
        let mut shown = Vec::new();
        // Nothing was sent, so the next client certificate is shown at once, each of them once.
        while let Err((failure, version)) = &dialled
            && is_unfit(failure)
        {
            shown.push(*version);
            if !self.certificate_refused(*version) || shown.contains(&self.connector.version()) {
                break;
            }
            dialled = self.dial(&origin, purpose).await;
            self.pool.shows(self.connector.version());
        }
        let dialled = dialled.map_err(|(failure, _)| failure);
        match dialled {
            Ok(connected) => {
                let timings = Timings { dns: connected.dns, connect: connected.connect, tls: connected.tls };
                Ok((handshake::begin(&self.pool, place, connected, purpose).await?, timings))
            }
            Err(failure) => {
                self.pool.dial_failed(place, failure.fault);
                Err(failure)
            }
        }
    }
}

/// The credential ended while the request waited for a connection. It comes again, with another credential: that is the same
/// attempt.
fn given_back(request: EgressRequest) -> Failure {
    request.exchange.facts().attempts -= 1;
    let failure = Failure::not_sent(Fault::Credential).retry_after(Duration::from_secs(1));
    failure.because("the credential ended while the request waited for a connection").handing_back(request)
}

/// Whether another client certificate may do better: the provider refused this one, or it cannot be used.
fn is_unfit(failure: &Failure) -> bool {
    is_refusal(failure) || failure.fault == Fault::Credential
}

/// The label of a dial that failed.
fn dial_result(fault: Fault) -> DialResult {
    match fault {
        Fault::AddressDenied | Fault::OwnListener => DialResult::AddressDenied,
        Fault::Dns => DialResult::Dns,
        Fault::TlsCertificate | Fault::TlsAlert | Fault::TlsProtocol => DialResult::Tls,
        Fault::DnsTimeout | Fault::ConnectTimeout | Fault::TlsTimeout => DialResult::Timeout,
        Fault::ConnectRefused
        | Fault::ConnectUnroutable
        | Fault::Connect
        | Fault::UpstreamProxy
        | Fault::ConnectionLimit
        | Fault::Reset
        | Fault::Protocol
        | Fault::HeadTooLarge
        | Fault::Upgrade
        | Fault::Withheld
        | Fault::ResponseTimeout
        | Fault::IdleTimeout
        | Fault::Deadline
        | Fault::Total
        | Fault::Credential
        | Fault::TargetTooLong
        | Fault::Unfit(_)
        | Fault::BodyTooLargeToRewrite
        | Fault::Forbidden(_)
        | Fault::DownstreamGone
        | Fault::DownstreamMalformed
        | Fault::DownstreamStalled
        | Fault::BodyTooLarge
        | Fault::RateLimited
        | Fault::QuotaHeld
        | Fault::QueueFull
        | Fault::ConcurrencyLimit
        | Fault::BreakerOpen
        | Fault::OnlyIfCached
        | Fault::Internal => DialResult::Connect,
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.pool.close();
    }
}

/// [`Upstream`] as the innermost `tower` service of a stack. Always ready: admission happens in the layers above.
#[derive(Clone)]
pub struct UpstreamService(Arc<Upstream>);

impl tower::Service<EgressRequest> for UpstreamService {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Self::Future {
        let upstream = self.0.clone();
        Box::pin(async move { upstream.send(request).await })
    }
}
