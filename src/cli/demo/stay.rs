//! `--stay`: everything is kept up, with curl lines to try; log records are shown as they come.

use std::io::{SeekFrom, Write};
use std::time::Duration;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::moods::{ORDERS_PATH, PAYMENTS_PATH, QUOTE_PATH, RATES_PATH, STOCK_PATH};
use super::provider::{API_HOST, BLIND_HOST, CARELESS_PATH};
use super::report::Report;
use super::stage::{PRIVATE_HOST, Stage, UNKNOWN_HOST};
use super::{DemoError, interruption, say};

/// How often the log is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes of it that are shown at a time.
const PIECE: usize = 64 * 1024;

/// Prints what can be tried, and the log, until Ctrl-C.
pub async fn stay(stage: &Stage, report: &Report) -> Result<(), DemoError> {
    say("");
    for (title, command) in commands(stage) {
        say(&report.style.faint(&format!("# {title}")));
        say(&command);
    }
    say("");
    say(&report
        .style
        .bold("Everything stays up; log records appear below. Ctrl-C ends it and removes its directory."));
    tokio::select! {
        stopped = interruption() => stopped,
        failed = follow(stage) => failed,
    }?;
    say("\ndraining");
    Ok(())
}

fn commands(stage: &Stage) -> Vec<(&'static str, String)> {
    let (outgate, directory) = (stage.client.outgate, stage.directory.root().display());
    let proxy = format!("curl -i -x http://{outgate}");
    let bundle = format!("--cacert {directory}/bundle.pem");
    let mut commands = vec![
        ("the local endpoint", format!("curl -i http://{outgate}/demo/hello")),
        ("HTTP_PROXY", format!("{proxy} http://{API_HOST}/hello")),
        (
            "HTTPS_PROXY, intercepted (HTTP/2; add --http1.1)",
            format!("{proxy} {bundle} https://{API_HOST}/hello"),
        ),
        ("the key in the answer is masked", format!("{proxy} {bundle} https://{API_HOST}{CARELESS_PATH}")),
        (
            "a blind tunnel: the provider's own certificate",
            format!(
                "{proxy} --cacert {directory}/provider-ca.pem -H 'Authorization: Bearer mine' https://{BLIND_HOST}/hello"
            ),
        ),
        ("denied: no provider names the host", format!("{proxy} http://{UNKNOWN_HOST}/")),
        ("denied: a private address", format!("{proxy} http://{PRIVATE_HOST}/")),
        (
            "no secret; once one is there, it is read",
            format!("curl -i http://{outgate}/missing/hello\ncp {directory}/secret {directory}/not-there"),
        ),
        ("429 first, and waited out (about 1 s)", format!("curl -i http://{outgate}/shop{QUOTE_PATH}")),
        (
            "acts and breaks off: not repeated without a key, repeated with one",
            format!(
                "curl -i -d lamp http://{outgate}/shop{ORDERS_PATH}\ncurl -i -d lamp http://{outgate}/shop{PAYMENTS_PATH}"
            ),
        ),
        (
            "down three times, then the breaker is open; well again 2 s later",
            format!("for i in 1 2 3 4; do curl -i http://{outgate}/shop{STOCK_PATH}; done"),
        ),
        ("kept for a minute: Age, Cache-Status", format!("curl -i http://{outgate}/shop{RATES_PATH}")),
        (
            "the policy; what you change takes effect at once",
            format!("${{EDITOR:-vi}} {directory}/proxy.yaml"),
        ),
    ];
    if let Some(admin) = stage.app.admin {
        commands.push(("metrics; also /status, /healthz, /readyz", format!("curl http://{admin}/metrics")));
    }
    commands
}

/// Prints what the access log gains; returns only where it cannot be read.
async fn follow(stage: &Stage) -> Result<(), DemoError> {
    let failed = || DemoError::io("access log");
    let mut log = File::open(stage.directory.path("access.log")).await.map_err(failed())?;
    log.seek(SeekFrom::End(0)).await.map_err(failed())?;
    let mut piece = vec![0; PIECE];
    loop {
        let length = log.read(&mut piece).await.map_err(failed())?;
        if length == 0 {
            tokio::time::sleep(LOOK).await;
        } else {
            // The lines bring their own ends.
            let _ = std::io::stdout().write_all(&piece[..length]);
        }
    }
}
