//! The sections that need a restart: admin, interception, runtime, telemetry; the listeners are in [`super::listeners`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Compiler;
use crate::message::quantity::TimeSpan;
use crate::policy::compiled::{
    Admin, Ca, Downstream, Fixed, Interception, ListenAddress, Provider, Runtime, Telemetry,
};
use crate::policy::schema::{
    AdminConfig, DownstreamConfig, InterceptionConfig, LogOutput, PolicyConfig, RuntimeConfig,
    TelemetryConfig,
};
use crate::policy::tree::PolicyPath;

const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

impl Compiler<'_> {
    pub(super) fn fixed(&mut self, config: &PolicyConfig, providers: &[Arc<Provider>]) -> Option<Fixed> {
        let root = PolicyPath::root();
        let mut listeners = self.listeners(config, &root.key("listeners"));
        listeners.extend(self.provider_listeners(config, providers));
        self.check_tenant_tokens(&listeners, providers);
        let admin = self.admin(config.admin.as_ref(), &root.key("admin"))?;
        self.unique_addresses(&listeners, &admin);
        Some(Fixed {
            listeners,
            admin,
            interception: self.interception(config.interception.as_ref(), &root.key("interception"))?,
            runtime: self.runtime(config.runtime.as_ref(), &root.key("runtime")),
            telemetry: self.telemetry(config.telemetry.as_ref()),
        })
    }

    fn admin(&mut self, config: Option<&AdminConfig>, path: &PolicyPath) -> Option<Admin> {
        let config = config.cloned().unwrap_or_default();
        let address = match &config.address {
            None => ListenAddress::Tcp(ADMIN),
            Some(text) => self.own_address(text, &path.key("address"))?,
        };
        if let Some(reference) = &config.token {
            self.uses_secret(&path.key("token"), reference, true);
        }
        if let ListenAddress::Tcp(tcp) = &address
            && !tcp.ip().is_loopback()
            && config.token.is_none()
        {
            self.warnings.push(format!(
                "{path}: {tcp} is not loopback and there is no token: it serves /healthz, /readyz and /metrics only"
            ));
        }
        let health_address = match &config.health_address {
            None => None,
            Some(text) => match text.parse() {
                Ok(address) => Some(address),
                Err(_) => {
                    self.mistake_with(
                        &path.key("health_address"),
                        "not an address",
                        "such as `0.0.0.0:9902`",
                    );
                    None
                }
            },
        };
        Some(Admin { address, token: config.token, health_address, quit: config.quit.unwrap_or(false) })
    }

    fn interception(
        &mut self,
        config: Option<&InterceptionConfig>,
        path: &PolicyPath,
    ) -> Option<Interception> {
        let config = config.cloned().unwrap_or_default();
        let ca = config.ca.unwrap_or_default();
        let ca = match (&ca.directory, &ca.certificate, &ca.key) {
            (None, None, None) => Ca::Directory(self.file(".outgate/ca")),
            (Some(directory), None, None) => Ca::Directory(self.file(directory)),
            (None, Some(certificate), Some(key)) => {
                Ca::Files { certificate: self.file(certificate), key: self.file(key) }
            }
            _ => {
                let hint = "`{ directory: .outgate/ca }`, or `{ certificate: ca.pem, key: ca.key }`";
                self.mistake_with(
                    &path.key("ca"),
                    "a CA is a directory, or a certificate with its key",
                    hint,
                );
                return None;
            }
        };
        let bundle: PathBuf = self.file(config.bundle.as_deref().unwrap_or(".outgate/ca-bundle.pem"));
        let truststore = config.truststore.as_deref().map(|path| self.file(path));
        if truststore.as_ref() == Some(&bundle) {
            self.mistake(&path.key("truststore"), "the bundle has this path too");
        }
        Some(Interception { ca, bundle, truststore })
    }

    fn runtime(&mut self, config: Option<&RuntimeConfig>, path: &PolicyPath) -> Runtime {
        let config = config.cloned().unwrap_or_default();
        let max_connections = config.max_connections.unwrap_or(10_000);
        if !(1..=1_000_000).contains(&max_connections) {
            self.mistake(&path.key("max_connections"), "expected a number from 1 to 1000000");
        }
        let downstream = self.downstream(&config.downstream.unwrap_or_default(), &path.key("downstream"));
        let drain = self.span(config.drain, Duration::from_secs(20), &path.key("drain"));
        let seconds = Duration::from_secs;
        // Zero is the one that is not written: it means none.
        let linger = match config.linger {
            Some(span) if !span.duration().is_zero() => {
                self.span(Some(span), seconds(0), &path.key("linger"))
            }
            Some(_) | None => Duration::ZERO,
        };
        let linger_idle = self.span(config.linger_idle, seconds(5), &path.key("linger_idle"));
        Runtime {
            workers: config.workers.unwrap_or_default(),
            max_connections: max_connections as usize,
            drain,
            linger,
            linger_idle,
            downstream,
        }
    }

    fn downstream(&mut self, config: &DownstreamConfig, path: &PolicyPath) -> Downstream {
        let max_headers = config.max_headers.unwrap_or(256);
        if !(16..=4096).contains(&max_headers) {
            self.mistake(&path.key("max_headers"), "expected a number from 16 to 4096");
        }
        let max_header_bytes = config.max_header_bytes.map_or(64 * 1024, |size| size.bytes());
        if !(8 * 1024..=1024 * 1024).contains(&max_header_bytes) {
            self.mistake(&path.key("max_header_bytes"), "expected a size from 8KiB to 1MiB");
        }
        let seconds = Duration::from_secs;
        Downstream {
            header_timeout: self.span(config.header_timeout, seconds(10), &path.key("header_timeout")),
            tls_handshake_timeout: self.span(
                config.tls_handshake_timeout,
                seconds(10),
                &path.key("tls_handshake_timeout"),
            ),
            idle_timeout: self.span(config.idle_timeout, seconds(300), &path.key("idle_timeout")),
            body_timeout: self.span(config.body_timeout, seconds(30), &path.key("body_timeout")),
            write_timeout: self.span(config.write_timeout, seconds(30), &path.key("write_timeout")),
            max_headers: max_headers as usize,
            max_header_bytes: usize::try_from(max_header_bytes).unwrap_or(64 * 1024),
        }
    }

    fn telemetry(&self, config: Option<&TelemetryConfig>) -> Telemetry {
        let config = config.cloned().unwrap_or_default();
        let log = config.access_log.unwrap_or_default();
        let output = match log.output.unwrap_or_default() {
            LogOutput::Stdout => LogOutput::Stdout,
            LogOutput::File(path) => LogOutput::File(self.file(&path).to_string_lossy().into_owned()),
        };
        Telemetry { format: log.format.unwrap_or_default(), output, query: config.query.unwrap_or_default() }
    }

    /// A duration that must be above zero and below a month.
    pub(super) fn span(&mut self, span: Option<TimeSpan>, default: Duration, path: &PolicyPath) -> Duration {
        let Some(span) = span else { return default };
        let duration = span.duration();
        if duration.is_zero() || duration > Duration::from_secs(31 * 24 * 3600) {
            self.mistake(path, "expected a duration above zero and of at most 31d");
            return default;
        }
        duration
    }
}
