//! `outgate run`: the proxy itself.
//!
//! SIGHUP reads the policy again; SIGTERM, SIGINT and `POST /quit` drain and end with exit code 0; a second signal ends at once.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{PolicyArgument, fail, load};
use crate::app::handed::Handed;
use crate::app::{App, Overrides};
use crate::policy::compiled::{CompiledPolicy, ListenAddress};
use crate::policy::schema::Workers;

/// Arguments of `run`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    policy: PolicyArgument,
    /// What is logged of outgate's own work, to standard error: error, warn, info, debug, or a filter such as `outgate=debug`.
    #[arg(long, value_name = "FILTER", env = "OUTGATE_LOG", default_value = "info")]
    log: String,
    /// The system's roots; what the environment says is taken over unless it names outgate's own bundle.
    #[arg(long, hide = true, env = "SSL_CERT_FILE")]
    ssl_cert_file: Option<PathBuf>,
    #[arg(long, hide = true, env = "SSL_CERT_DIR")]
    ssl_cert_dir: Option<PathBuf>,
    /// Names of the sockets that systemd hands over.
    #[arg(long, hide = true, env = "LISTEN_FDNAMES")]
    listen_fdnames: Option<String>,
}

/// Runs until a signal ends it.
pub fn run(arguments: Arguments) -> ExitCode {
    let handed = Handed::from_environment(arguments.listen_fdnames.as_deref());
    if let Err(error) = start_log(&arguments.log) {
        return fail(error);
    }
    crate::process::harden();
    let policy = match load(&arguments.policy) {
        Ok(policy) => policy,
        Err(code) => return code,
    };
    let runtime = match runtime(policy.fixed.runtime.workers) {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    let code = runtime.block_on(serve(arguments, policy, handed));
    // What is still blocked (a name lookup, a read of a hung mount) must not hold the end up.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    code
}

/// Operational messages go to standard error; the access log is apart.
pub(super) fn start_log(filter: &str) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| format!("--log: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .try_init()
        .map_err(|error| error.to_string())
}

/// One worker needs no second thread: nothing is handed between threads then.
fn runtime(workers: Workers) -> std::io::Result<tokio::runtime::Runtime> {
    let count = match workers {
        Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
        Workers::Count(count) => usize::from(count),
    };
    let mut builder = if count <= 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(count);
        builder
    };
    builder.enable_all().max_blocking_threads(64).build()
}

async fn serve(arguments: Arguments, policy: CompiledPolicy, handed: Handed) -> ExitCode {
    let signals =
        (signal(SignalKind::hangup()), signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(hangup), Ok(terminate), Ok(interrupt)) = signals else {
        return fail("signals cannot be listened for");
    };
    for warning in &policy.warnings {
        tracing::warn!("{warning}");
    }
    let overrides = Overrides {
        ssl_cert_file: arguments.ssl_cert_file,
        ssl_cert_dir: arguments.ssl_cert_dir,
        handed,
        ..Overrides::default()
    };
    let app = match App::start(arguments.policy.origin(), policy, overrides).await {
        Ok(app) => Arc::new(app),
        Err(error) => return fail(error),
    };
    announce(&app);
    until_stopped(&app, hangup, terminate, interrupt).await;
    ExitCode::SUCCESS
}

fn announce(app: &App) {
    let generation = app.reloader.current().load_full();
    let fixed = &generation.policy().fixed;
    // TCP as it was bound (port 0 is some port now), and sockets in the file system.
    let unix = fixed.listeners.iter().map(|listener| &listener.address);
    let unix = unix.filter(|address| matches!(address, ListenAddress::Unix(_))).map(ToString::to_string);
    let listeners: Vec<String> = app.listeners.iter().map(ToString::to_string).chain(unix).collect();
    let admin = app.admin.map_or_else(|| fixed.admin.address.to_string(), |address| address.to_string());
    let providers = generation.policy().providers.len();
    tracing::info!(listeners = listeners.join(" "), admin, providers, "outgate is ready");
}

async fn until_stopped(app: &Arc<App>, mut hangup: Signal, mut terminate: Signal, mut interrupt: Signal) {
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                app.reload().await;
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = app.asked_to_quit() => break,
        }
    }
    tokio::select! {
        finished = end(app) => tracing::info!(finished, "outgate has ended"),
        _ = terminate.recv() => tracing::warn!("ended at once by a second signal"),
        _ = interrupt.recv() => tracing::warn!("ended at once by a second signal"),
    }
}

/// Serves on as long as the policy wants that, then drains.
async fn end(app: &App) -> bool {
    app.linger().await;
    tracing::info!("draining: no new connections, running requests finish");
    app.shutdown().await
}
