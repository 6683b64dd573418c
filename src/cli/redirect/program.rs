//! Runs the system's firewall programs: from fixed folders, with an environment of their own, without a shell, and for a bounded time.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Where such programs are. The caller's PATH has no say: they run as root.
const FOLDERS: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"];

/// How long one may take; they wait for one another's locks.
const TIME: Duration = Duration::from_secs(10);

/// How much of its output is read, bytes.
const OUTPUT: u64 = 1024 * 1024;

/// Why a program could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there.
    #[error("`{0}` is not installed")]
    Missing(&'static str),
    /// It could not be run.
    #[error("`{0}`: {1}")]
    Io(&'static str, #[source] std::io::Error),
    /// It took too long, and was killed.
    #[error("`{0}` took longer than 10 s")]
    Slow(&'static str),
    /// It refused.
    #[error("`{program}` failed ({status}): {said}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its first words about it.
        said: String,
    },
}

/// Where a program is.
pub fn find(name: &'static str) -> Result<PathBuf, ProgramError> {
    let mut places = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
    places.find(|path| path.is_file()).ok_or(ProgramError::Missing(name))
}

/// Runs a program to its end and gives what it printed.
pub fn run(name: &'static str, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
    let path = find(name)?;
    let io = |error| ProgramError::Io(name, error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
    let ran = async { tokio::time::timeout(TIME, ran(name, &path, arguments, input)).await };
    runtime.block_on(ran).map_err(|_| ProgramError::Slow(name))?
}

async fn ran(
    name: &'static str,
    path: &Path,
    arguments: &[&str],
    input: &str,
) -> Result<String, ProgramError> {
    let io = |error| ProgramError::Io(name, error);
    let mut command = Command::new(path);
    command.args(arguments).env_clear().env("PATH", FOLDERS.join(":")).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        let Some(mut stdin) = stdin else { return };
        // A program that does not want all of it says why by itself.
        let _ = stdin.write_all(input.as_bytes()).await;
    };
    let ((), said, complained) = tokio::join!(write, read(stdout), read(stderr));
    let status = child.wait().await.map_err(io)?;
    if status.success() {
        return said.map_err(io);
    }
    let said: String = complained.unwrap_or_default().lines().take(3).collect::<Vec<_>>().join("; ");
    Err(ProgramError::Failed { program: name, status, said })
}

async fn read(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut text = Vec::new();
    if let Some(stream) = stream {
        stream.take(OUTPUT).read_to_end(&mut text).await?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_run_with_their_input_and_say_why_they_failed() {
        assert_eq!(run("cat", &[], "one\ntwo\n").unwrap(), "one\ntwo\n");
        assert_eq!(run("env", &[], "").unwrap().lines().count(), 2, "no variable of ours");
        let failed = run("cat", &["/nowhere/at/all"], "").unwrap_err().to_string();
        assert!(failed.contains("`cat` failed") && failed.contains("/nowhere/at/all"), "{failed}");
        let missing = run("outgate-no-such-program", &[], "").unwrap_err();
        assert_eq!(missing.to_string(), "`outgate-no-such-program` is not installed");
    }
}
