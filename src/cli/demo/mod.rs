//! `outgate demo`: the main job, shown on this machine alone.
//!
//! A TLS provider on loopback with an authority of its own, outgate before it, and an app that sends real requests by each
//! door; then, in a second act, requests to a provider that throttles, fails and recovers. It prints, side by side, what the app sent, what the provider saw and what the app got, and below them
//! the log record. It judges what it shows: exit code 0 only if every scene went as it must.
//!
//! ```text
//! stage     a temporary directory: authority, secret, policy; the provider and outgate, started
//! provider  the API behind outgate; echoes what it got, and knows the real key
//! client    the app; has a placeholder instead of a key
//! scenes    the first act: the doors and what they let through, and what must come of it
//! moods     how the provider throttles, fails and recovers
//! trials    the second act: what outgate makes of these moods
//! report    how it is printed; `columns` lays it out
//! ```

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::{FAILED, Style, fail};
use crate::app::StartError;
use crate::tls::TlsError;
use report::Report;
use stage::Stage;

mod client;
mod columns;
mod moods;
mod provider;
mod report;
mod scenes;
mod stage;
mod stay;
mod trials;

/// Columns of text where nobody says how wide the terminal is.
const WIDTH: usize = 110;
/// Wider lines are hard to read.
const WIDEST: usize = 160;
/// Three columns need this much.
const NARROWEST: usize = 60;
/// How long starting, or one scene, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Keep everything up afterwards, with curl lines to try.
    #[arg(long)]
    stay: bool,
    /// Columns of the output. Default: the terminal's, or 110.
    #[arg(long)]
    width: Option<usize>,
}

/// Why the demo could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file, a socket or a connection.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A TLS configuration could not be made.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// A certificate of a file could not be used.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// A host is no name for TLS.
    #[error("TLS: {0}")]
    Name(#[from] rustls::pki_types::InvalidDnsNameError),
    /// A request could not be built.
    #[error("HTTP: {0}")]
    Http(#[from] http::Error),
    /// A request got no whole answer.
    #[error("HTTP: {0}")]
    Hyper(#[from] hyper::Error),
    /// An answer's body broke off, or is too large.
    #[error("HTTP: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The demo's own policy has a mistake.
    #[error("the demo's policy:\n{0}")]
    Policy(String),
    /// outgate did not start.
    #[error("outgate did not start: {0}")]
    Start(#[from] StartError),
    /// A listener has no address.
    #[error("outgate has no listener")]
    NoListener,
    /// A request is not in the access log.
    #[error("the request has no record in the access log")]
    NoRecord,
    /// It took too long.
    #[error("nothing came of it within {} seconds", PATIENCE.as_secs())]
    Late,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {
    /// For `map_err`: what was tried when the system refused.
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Shows everything; with `--stay`, until Ctrl-C.
pub fn run(arguments: &Arguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    let code = match runtime.block_on(show(arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => fail(error),
    };
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

/// Returns at the first SIGINT or SIGTERM.
async fn interruption() -> Result<(), DemoError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::io("signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::io("signals"))?;
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

/// Whether everything went as it must.
async fn show(arguments: &Arguments) -> Result<bool, DemoError> {
    let mut report = Report::new(Style::of_stdout(), arguments.width.map_or_else(terminal_width, bounded));
    // What was made is dropped, and so removed, on the way out.
    let stage = tokio::select! {
        stage = perform(&mut report) => stage?,
        stopped = interruption() => return Err(stopped.err().unwrap_or(DemoError::Interrupted)),
    };
    if arguments.stay {
        stay::stay(&stage, &report).await?;
    }
    stage.app.shutdown().await;
    Ok(report.good())
}

/// Sets the stage and plays all scenes on it.
async fn perform(report: &mut Report) -> Result<Stage, DemoError> {
    let stage = in_time(Stage::set()).await?;
    report.opening(&stage);
    for scene in &scenes::ALL {
        report.scene(scene.title, scene.note, &in_time(scenes::play(scene, &stage)).await);
    }
    report.second_act(&stage);
    for trial in &trials::ALL {
        report.scene(trial.title, trial.note, &in_time(trials::play(trial, &stage)).await);
    }
    report.summary(&in_time(scenes::leaks(&stage)).await?);
    Ok(stage)
}

async fn in_time<T>(work: impl Future<Output = Result<T, DemoError>>) -> Result<T, DemoError> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(DemoError::Late))
}

fn terminal_width() -> usize {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
    // A terminal that does not know its width says 0.
    bounded(size.map(|size| usize::from(size.ws_col)).filter(|&width| width > 0).unwrap_or(WIDTH))
}

fn bounded(width: usize) -> usize {
    width.clamp(NARROWEST, WIDEST)
}

/// Writes to standard output. A reader who has gone away does not end the demo: its exit code still says how it went.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// The one place where tasks of the demo are spawned: connections of its provider and its app, which end with the process.
#[expect(clippy::disallowed_methods, reason = "the tasks of the demo end with it")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}
