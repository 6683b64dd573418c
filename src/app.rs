//! All wiring: a policy becomes settings, shared state, listeners and tasks; and at the end everything is drained.

mod bound;
mod ca;
pub mod handed;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::bound::Bound;
use self::ca::{Given, Renewal};
use self::handed::Handed;
use crate::admin::Admin;
use crate::credential::known_values::SecretValues;
use crate::pipeline::reload::{FIRST_READ, ReloadOutcome, Reloader};
use crate::pipeline::shared::Shared;
use crate::pipeline::watch;
use crate::policy::compiled::{Ca, CompiledPolicy, Fixed, ListenerTokens, Runtime};
use crate::policy::load::PolicyOrigin;
use crate::policy::schema;
use crate::proxy::context::{DownstreamBounds, Guesses, Owner, Proxy, Pseudonym, TokenCheck, TokenOwner};
use crate::proxy::original::{self, OriginalDestination};
use crate::proxy::overload::Overload;
use crate::proxy::socket::SocketTimeouts;
use crate::secret::reference::SecretRef;
use crate::secret::{SecretCache, SecretError, StoreEnv, Stores};
use crate::telemetry::{LogFormat, LogOutput, Telemetry};
use crate::tls::leaf_cache::{DEFAULT_MAX_ENTRIES, LeafCache};
use crate::tls::{Authority, CaSource, TlsError};
use crate::upstream::connector::UpstreamEnv;
use crate::upstream::guard::OwnListeners;
use crate::upstream::resolver::Resolver;
use crate::upstream::service::UpstreamError;

/// How long after the begin of the drain the end still waits for a refresh token that is on its way: its request takes at most 30 s,
/// and then it is written.
const EXCHANGE: Duration = Duration::from_secs(40);

/// Why outgate did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The CA, the bundle or the roots.
    #[error("interception: {0}")]
    Tls(#[from] TlsError),
    /// A listener could not be bound.
    #[error("{address} cannot be listened on: {source}")]
    Bind {
        /// Which.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A socket of systemd's is open to the network, and the listener has no token.
    #[error(
        "systemd has handed over {address} for `{name}`, which is not loopback, and the listener has neither `auth` nor `expose: true`"
    )]
    Exposed {
        /// Where it is.
        address: SocketAddr,
        /// Its name.
        name: String,
    },
    /// The access log could not be opened.
    #[error("the access log cannot be opened: {0}")]
    Log(io::Error),
    /// A secret store could not be set up.
    #[error("secrets: {0}")]
    Secrets(#[from] SecretError),
    /// A provider's stack could not be built.
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
}

/// What may be different from what the policy says; for tests and the demo.
#[derive(Default)]
pub struct Overrides {
    /// Answers names instead of the system's resolver.
    pub resolver: Option<Resolver>,
    /// Where access-log lines go.
    pub log: Option<LogOutput>,
    /// The environment's SSL_CERT_FILE.
    pub ssl_cert_file: Option<PathBuf>,
    /// The environment's SSL_CERT_DIR.
    pub ssl_cert_dir: Option<PathBuf>,
    /// Says where redirected connections were meant to go, instead of the kernel.
    pub original: Option<OriginalDestination>,
    /// Sockets that systemd handed over.
    pub handed: Handed,
}

/// A running outgate.
pub struct App {
    /// The data plane.
    pub proxy: Arc<Proxy>,
    /// For reloads by signal.
    pub reloader: Arc<Reloader>,
    /// Log and metrics.
    pub telemetry: Arc<Telemetry>,
    /// Addresses of the listeners, in the policy's order.
    pub listeners: Vec<SocketAddr>,
    /// Address of the admin listener, where it is TCP.
    pub admin: Option<SocketAddr>,
    /// Address of the health listener.
    pub health: Option<SocketAddr>,
    ready: Arc<AtomicBool>,
    background: CancellationToken,
    runtime: Runtime,
    quit: CancellationToken,
}

impl App {
    /// Starts everything; returns when outgate is ready.
    pub async fn start(
        origin: impl Into<PolicyOrigin>,
        policy: CompiledPolicy,
        overrides: Overrides,
    ) -> Result<Self, StartError> {
        let origin = origin.into();
        let fixed = policy.fixed.clone();
        let telemetry = Arc::new(start_telemetry(&fixed, overrides.log).map_err(StartError::Log)?);
        let given = Given::new(&fixed, overrides.ssl_cert_file, overrides.ssl_cert_dir);
        let source = ca_source(&fixed);
        let tls = prepare_tls(source.clone(), given.clone()).await?;
        telemetry.metrics.set_ca_end(tls.leaves.authority().not_after());
        let roots = tls.roots.clone();
        let env = Arc::new(UpstreamEnv {
            resolver: overrides.resolver.unwrap_or_else(Resolver::system),
            roots: tls.roots,
            metrics: telemetry.metrics.clone(),
            own_listeners: ArcSwap::from_pointee(OwnListeners::new(Vec::new())),
        });
        let store_env =
            StoreEnv { directory: policy_directory(&origin.path).to_owned(), upstream: env.clone() };
        let stores = Stores::build(&policy.stores.iter().cloned().collect(), &store_env, None)?;
        let secrets = Arc::new(SecretCache::new(stores));
        telemetry.mask(SecretValues::new(secrets.clone()));
        let shared = Arc::new(Shared::new(secrets.clone(), telemetry.clone(), env.clone(), Arc::new(spawn)));
        let reloader = Arc::new(Reloader::start(origin, policy, shared.clone()).await?);

        let bound = Bound::bind(&fixed, overrides.handed)?;
        env.own_listeners.store(Arc::new(OwnListeners::new(bound.addresses())));
        let background = CancellationToken::new();
        spawn(secrets.clone().run(background.clone()));
        // Listeners are bound, so clients wait in the backlog until the first secrets were tried.
        secrets.read_new(FIRST_READ).await;
        spawn(watch::run(reloader.clone(), background.clone()));
        if let Some(renewal) = Renewal::of(&source, (&tls.leaves, &roots), given, &telemetry) {
            spawn(renewal.watch(background.clone()));
        }

        let original = overrides.original.unwrap_or_else(original::from_kernel);
        let proxy = Arc::new(make_proxy(&fixed, &telemetry, &tls.leaves, &reloader, original));
        let ready = Arc::new(AtomicBool::new(true));
        let admin = Arc::new(Admin {
            shared: shared.clone(),
            reloader: reloader.clone(),
            leaves: tls.leaves.clone(),
            ready: ready.clone(),
            settled: AtomicBool::new(false),
            token: fixed.admin.token.as_ref().map(|reference| token_check(&secrets, reference)),
            free_to_quit: fixed.admin.quit,
            quit: CancellationToken::new(),
        });
        let quit = admin.quit.clone();
        register_scrape(&telemetry, &shared, &tls.leaves);
        let addresses = bound.serve(&fixed, &proxy, &admin, &secrets, &background);
        Ok(Self {
            proxy,
            reloader,
            telemetry,
            listeners: addresses.listeners,
            admin: addresses.admin,
            health: addresses.health,
            ready,
            background,
            runtime: fixed.runtime,
            quit,
        })
    }

    /// Reads the policy again.
    pub async fn reload(&self) -> ReloadOutcome {
        self.reloader.reload().await
    }

    /// Returns when `POST /quit` has asked for the end.
    pub async fn asked_to_quit(&self) {
        self.quit.cancelled().await;
    }

    /// Serves everything as before until nothing has run for `runtime.linger_idle`, for `runtime.linger` at most. `POST /quit`
    /// ends it: who sends that knows that nothing will come.
    pub async fn linger(&self) {
        if self.runtime.linger.is_zero() {
            return;
        }
        tracing::info!("serving on until nothing runs any more");
        tokio::select! {
            () = self.proxy.work.rest(self.runtime.linger_idle) => {}
            () = tokio::time::sleep(self.runtime.linger) => {}
            () = self.asked_to_quit() => {}
        }
    }

    /// Stops accepting, finishes what runs within the drain time, then ends what is left. Returns whether all of it
    /// finished by itself.
    pub async fn shutdown(&self) -> bool {
        self.ready.store(false, Ordering::Release);
        // Whoever ends this process gives it so long and no longer. So what must not be broken off is begun no more from here on, and
        // the drain's time counts for what is on its way.
        let begun = Instant::now();
        self.reloader.shared().unbroken().begin_no_more();
        self.proxy.drain.cancel();
        self.proxy.tasks.close();
        let finished = tokio::time::timeout(self.runtime.drain, self.proxy.tasks.wait()).await.is_ok();
        if !finished {
            tracing::warn!(
                tasks = self.proxy.tasks.len(),
                "the drain time is over; what still runs is ended"
            );
            self.proxy.abort.cancel();
            let _ = tokio::time::timeout(Duration::from_millis(500), self.proxy.tasks.wait()).await;
        }
        // A refresh token that was used up and whose successor is not written would be lost.
        self.reloader.shared().unbroken().end(EXCHANGE.saturating_sub(begun.elapsed())).await;
        // What is leased of the fleet's limits goes back when nothing is sent any more.
        self.reloader.shared().layers.fleet.leave().await;
        self.background.cancel();
        let telemetry = self.telemetry.clone();
        let _ = tokio::task::spawn_blocking(move || telemetry.access_log.flush(Duration::from_secs(2))).await;
        finished
    }
}

/// The one place where tasks of the process itself are spawned.
#[expect(clippy::disallowed_methods, reason = "this is the place that spawns the tasks of the process")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

fn policy_directory(config: &Path) -> &Path {
    if config.is_dir() {
        return config;
    }
    match config.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn start_telemetry(fixed: &Fixed, log: Option<LogOutput>) -> io::Result<Telemetry> {
    let format = match fixed.telemetry.format {
        schema::LogFormat::Json => LogFormat::Json,
        schema::LogFormat::Text => LogFormat::Text,
    };
    let output = log.unwrap_or_else(|| match &fixed.telemetry.output {
        schema::LogOutput::Stdout => LogOutput::Stdout,
        schema::LogOutput::File(path) => LogOutput::File(path.into()),
    });
    Telemetry::start(format, output)
}

struct Tls {
    leaves: Arc<LeafCache>,
    roots: Arc<rustls::RootCertStore>,
}

fn ca_source(fixed: &Fixed) -> CaSource {
    match &fixed.interception.ca {
        Ca::Directory(directory) => CaSource::Directory(directory.clone()),
        Ca::Files { certificate, key } => {
            CaSource::Files { certificate: certificate.clone(), key: key.clone() }
        }
    }
}

/// Reads roots and CA side by side, and pays for the first use of TLS before a client would.
async fn prepare_tls(source: CaSource, given: Given) -> Result<Tls, TlsError> {
    let of_roots = given.clone();
    let roots = tokio::task::spawn_blocking(move || of_roots.roots());
    let leaves = tokio::task::spawn_blocking(move || {
        let authority = Arc::new(Authority::load_or_create(&source)?);
        let leaves = LeafCache::new(authority, DEFAULT_MAX_ENTRIES)?;
        leaves.warm_up()?;
        Ok::<_, TlsError>(leaves)
    });
    let (roots, leaves) = tokio::join!(roots, leaves);
    let (Ok(mut roots), Ok(leaves)) = (roots, leaves) else { return Err(TlsError::Random) };
    let leaves = Arc::new(leaves?);
    for warning in &roots.warnings {
        tracing::warn!("{warning}");
    }
    given.write(&mut roots, &[&*leaves.authority()])?;
    Ok(Tls { leaves, roots: roots.root_store() })
}

fn make_proxy(
    fixed: &Fixed,
    telemetry: &Arc<Telemetry>,
    leaves: &Arc<LeafCache>,
    reloader: &Reloader,
    original: OriginalDestination,
) -> Proxy {
    let bounds = fixed.runtime.downstream;
    Proxy {
        generation: reloader.current(),
        telemetry: telemetry.clone(),
        leaves: leaves.clone(),
        bounds: DownstreamBounds {
            socket: SocketTimeouts {
                header: bounds.header_timeout,
                idle: bounds.idle_timeout,
                write: bounds.write_timeout,
            },
            handshake: bounds.tls_handshake_timeout,
            body: bounds.body_timeout,
            max_headers: bounds.max_headers,
            max_header_bytes: bounds.max_header_bytes,
        },
        pseudonym: Pseudonym::new(),
        drain: CancellationToken::new(),
        abort: CancellationToken::new(),
        tasks: TaskTracker::new(),
        overload: Arc::new(overload(fixed.runtime.max_connections)),
        original,
        own_tunnels: Arc::default(),
        guesses: Guesses::new(),
        work: Arc::default(),
    }
}

/// Connections are bounded by the policy and by the descriptors: each may need one of its own and one to a provider.
fn overload(max_connections: usize) -> Overload {
    let descriptors = crate::process::raise_descriptor_limit();
    let by_descriptors = descriptors.map_or(usize::MAX, |limit| limit.saturating_sub(64) / 2).max(1);
    if by_descriptors < max_connections {
        tracing::warn!(
            max_connections,
            by_descriptors,
            "`runtime.max_connections` is more than the limit of open files allows; it is lowered"
        );
    }
    let bound = max_connections.min(by_descriptors);
    Overload::new(bound, crate::process::memory_limit(), crate::process::resident_memory)
}

fn token_check(secrets: &Arc<SecretCache>, reference: &SecretRef) -> TokenCheck {
    let entry = secrets.entry(reference);
    Arc::new(move |token: &[u8]| entry.current().is_ok_and(|version| version.value.same_bytes(token)))
}

/// Every token is compared, so that the time does not tell whose it was.
fn token_owner(secrets: &Arc<SecretCache>, tokens: &ListenerTokens) -> TokenOwner {
    let plain = tokens.plain.iter().map(|reference| (Owner::Anyone, token_check(secrets, reference)));
    let of_tenants = tokens.tenants.iter();
    let of_tenants =
        of_tenants.map(|(name, reference)| (Owner::Tenant(name.clone()), token_check(secrets, reference)));
    let all: Vec<_> = plain.chain(of_tenants).collect();
    let told = Once::new();
    Arc::new(move |token: &[u8]| {
        let (mut first, mut owners) = (None, 0);
        for (owner, is_it) in &all {
            if is_it(token) {
                owners += 1;
                first = first.or(Some(owner));
            }
        }
        if owners > 1 {
            // Secrets may be equal though their references are not. It proves nothing then. Told once, as every request may
            // bring such a token.
            told.call_once(|| {
                tracing::warn!(target: "outgate::listener", owners, "a token that more than one of a listener's `auth` names is refused");
            });
            return None;
        }
        first.cloned()
    })
}

/// Values that are read when somebody scrapes, not kept up to date for nobody.
fn register_scrape(telemetry: &Arc<Telemetry>, shared: &Arc<Shared>, leaves: &Arc<LeafCache>) {
    let (shared, leaves) = (Arc::downgrade(shared), Arc::downgrade(leaves));
    let weak = Arc::downgrade(telemetry);
    let layers = shared.clone();
    telemetry
        .metrics
        .levels(Arc::new(move || layers.upgrade().map(|shared| shared.layers.levels()).unwrap_or_default()));
    telemetry.metrics.on_scrape(move || {
        let (Some(telemetry), Some(shared), Some(leaves)) =
            (weak.upgrade(), shared.upgrade(), leaves.upgrade())
        else {
            return;
        };
        let stats = leaves.stats();
        telemetry.metrics.set_leaf_cache(usize::try_from(stats.entries).unwrap_or(usize::MAX), stats.minted);
        shared.export(&telemetry.metrics);
    });
}
