//! `--stay`: everything is kept up, with curl lines to try; log records are shown as they come.

use std::time::Duration;

use super::provider::{API_HOST, BLIND_HOST, CARELESS_PATH};
use super::report::Report;
use super::stage::{PRIVATE_HOST, Stage, UNKNOWN_HOST};
use super::{DemoError, interruption, say};

/// How often the log is looked at.
const LOOK: Duration = Duration::from_millis(200);

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
            format!("{proxy} --cacert {directory}/provider-ca.pem https://{BLIND_HOST}/hello"),
        ),
        ("denied: no provider names the host", format!("{proxy} http://{UNKNOWN_HOST}/")),
        ("denied: a private address", format!("{proxy} http://{PRIVATE_HOST}/")),
        ("no secret; write one, and it is read", format!("curl -i http://{outgate}/missing/hello")),
        ("", format!("cp {directory}/secret {directory}/not-there")),
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

/// Prints the lines that the access log gains; returns only where it cannot be read.
async fn follow(stage: &Stage) -> Result<(), DemoError> {
    let mut shown = stage.access_log().await?.len();
    loop {
        tokio::time::sleep(LOOK).await;
        let log = stage.access_log().await?;
        let new = log.get(shown..).unwrap_or_default();
        // A line whose end is not written yet waits for the next look.
        let whole = new.rfind('\n').map_or("", |end| &new[..end]);
        if !whole.is_empty() {
            say(whole);
            shown += whole.len() + 1;
        }
    }
}
