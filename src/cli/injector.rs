//! `outgate injector`: the admission webhook as a process.
//!
//! SIGTERM and SIGINT end it in good order with exit code 0; a second signal ends it at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::fail;
use super::run::start_log;
use crate::injector::live::Files;
use crate::injector::server::{Injector, Settings};

/// Arguments of `injector`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Address of the webhook: HTTPS, `POST /mutate`.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Address of /healthz, /readyz and /metrics: plain HTTP, open to everyone.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9902")]
    health: SocketAddr,
    /// Certificate, with those that lead to its CA, in PEM. A changed one is taken over.
    #[arg(long, value_name = "FILE")]
    tls_cert: PathBuf,
    /// Its key, in PEM. A changed one is taken over.
    #[arg(long, value_name = "FILE")]
    tls_key: PathBuf,
    /// What is added to pods: the document that the chart renders. A changed one is taken over.
    #[arg(long, value_name = "FILE", env = "OUTGATE_TEMPLATE")]
    template: PathBuf,
    /// How long it serves on when it is told to end, until its Service has heard of that.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    linger: Duration,
    /// What is logged, to standard error: error, warn, info, debug, or a filter such as `outgate=debug`.
    #[arg(long, value_name = "FILTER", env = "OUTGATE_LOG", default_value = "info")]
    log: String,
}

/// Runs until a signal ends it.
pub fn run(arguments: Arguments) -> ExitCode {
    if let Err(error) = start_log(&arguments.log) {
        return fail(error);
    }
    crate::process::harden();
    // One thread: reviews are small, and are taken apart one at a time, which bounds the memory they need.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    let code = runtime.block_on(serve(arguments));
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

async fn serve(arguments: Arguments) -> ExitCode {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return fail("signals cannot be listened for");
    };
    let settings = Settings {
        listen: arguments.listen,
        health: arguments.health,
        files: Files {
            certificate: arguments.tls_cert,
            key: arguments.tls_key,
            template: arguments.template,
        },
        linger: arguments.linger,
    };
    let injector = match Injector::start(settings).await {
        Ok(injector) => injector,
        Err(error) => return fail(error),
    };
    tracing::info!(listen = %injector.listen, health = %injector.health, "the injector is ready");
    any(&mut terminate, &mut interrupt).await;
    tracing::info!("ending: not ready any more, running requests finish");
    tokio::select! {
        finished = injector.shutdown() => tracing::info!(finished, "the injector has ended"),
        () = any(&mut terminate, &mut interrupt) => tracing::warn!("ended at once by a second signal"),
    }
    ExitCode::SUCCESS
}

async fn any(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
