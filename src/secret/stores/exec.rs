//! `exec`: what a program writes to its standard output, for stores that have a command and no place here.
//!
//! ```yaml
//! secrets:
//!   pass: { exec: { command: [/usr/bin/pass, show, "{path}"], environment: [HOME, PATH], timeout: 10s, ttl: 5m } }
//! # then: bearer: pass:stripe/live
//! ```
//!
//! The reference's path takes the place of `{path}`, or is the last argument; `#field` takes a field of JSON output. There
//! is no shell, so nothing in a path is special; one that begins with `-` is refused, since the program may take it for an
//! option. The program sees no environment but the variables that are named, its input is empty, and what it writes to
//! standard error is thrown away, because it may hold the secret. One line end at the end of its output is dropped. It is
//! killed with its process group when it takes too long, writes more than 64 KiB, or is not wanted any more. A failure
//! tells the exit code, never output.

use std::collections::VecDeque;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::server::check_refresh;
use super::{env, field, file};
use crate::message::quantity::TimeSpan;
use crate::secret::config::StoreMistake;
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::reference::{SecretRef, is_variable};
use crate::secret::{ReadFuture, SecretBytes, SecretStore, Source};

/// Bytes that a program may write.
pub const MAX_OUTPUT: usize = 64 * 1024;
/// Programs at once; further ones wait.
const MAX_PROGRAMS: usize = 4;
const LONGEST: Duration = Duration::from_secs(60);
const PLACEHOLDER: &str = "{path}";

/// The output of a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// The program (an absolute path) and its arguments. `{path}` in an argument is the reference's path; without it the
    /// path is the last argument.
    pub command: Vec<String>,
    /// Names of the variables that the program gets. Default: none.
    pub environment: Option<Vec<String>>,
    /// How long it may take; at most 60s. Default: 10s.
    pub timeout: Option<TimeSpan>,
    /// How often it is run again. Default: 5m.
    pub ttl: Option<TimeSpan>,
}

impl ExecConfig {
    pub(crate) fn mistakes(&self) -> Vec<StoreMistake> {
        let mut mistakes: Vec<StoreMistake> = check_refresh("ttl", self.ttl).into_iter().collect();
        if !self.command.first().is_some_and(|program| program.starts_with('/')) {
            let text = "the first is the program, as an absolute path: it is looked for nowhere";
            mistakes.push(("command", text.to_owned()));
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            mistakes.push(("command", "it holds a NUL".to_owned()));
        }
        if !self.environment.iter().flatten().all(|name| !name.is_empty() && is_variable(name)) {
            let text = "names of variables; their values are taken from outgate's own environment";
            mistakes.push(("environment", text.to_owned()));
        }
        if self.timeout().is_zero() || self.timeout() > LONGEST {
            mistakes.push(("timeout", "must be more than no time, and at most 60s".to_owned()));
        }
        mistakes
    }

    fn timeout(&self) -> Duration {
        self.timeout.map_or(Duration::from_secs(10), TimeSpan::duration)
    }
}

/// Runs a program for each secret.
pub struct ExecStore {
    config: ExecConfig,
    programs: Arc<Semaphore>,
    failures: Mutex<Failures>,
}

/// Failed runs within [`WINDOW`], where none succeeds: after as many the program is left alone. What fails for one reference
/// alone is left alone by whoever keeps the values.
const MAX_FAILURES: usize = 10;
/// The time in which they are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// The failures since the last run that was good.
#[derive(Default)]
struct Failures {
    at: VecDeque<Instant>,
    last: Option<StoreFault>,
    running: usize,
}

impl Failures {
    /// The fault to give in place of a run. Those that run may fail too.
    fn holds(&mut self) -> Option<StoreFault> {
        while self.at.front().is_some_and(|at| at.elapsed() >= WINDOW) {
            self.at.pop_front();
        }
        let full = !self.at.is_empty() && self.at.len() + self.running >= MAX_FAILURES;
        self.last.clone().filter(|_| full)
    }

    fn add(&mut self, fault: StoreFault) {
        self.at.push_back(Instant::now());
        self.last = Some(fault);
    }
}

/// A run on its way; one that is dropped was not wanted any more, and says nothing of the program.
struct Running<'a>(&'a Mutex<Failures>);

impl<'a> Running<'a> {
    fn begin(failures: &'a Mutex<Failures>) -> Result<Self, StoreFault> {
        let mut state = lock(failures);
        if let Some(last) = state.holds() {
            return Err(last);
        }
        state.running += 1;
        Ok(Self(failures))
    }

    /// What is not JSON, or lacks the field that is asked for, is no better than a failed run.
    fn end(self, error: Option<&SecretError>) {
        let mut state = lock(self.0);
        match error {
            None => (state.at, state.last) = (VecDeque::new(), None),
            Some(SecretError::Store { fault, .. }) => state.add(fault.clone()),
            Some(_) => state.add(StoreFault::Garbled("the program's output is not what was asked for")),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = lock(self.0);
        state.running = state.running.saturating_sub(1);
    }
}

fn lock(failures: &Mutex<Failures>) -> MutexGuard<'_, Failures> {
    failures.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExecStore {
    pub(crate) fn new(config: &ExecConfig) -> Self {
        Self {
            config: config.clone(),
            programs: Arc::new(Semaphore::new(MAX_PROGRAMS)),
            failures: Mutex::default(),
        }
    }

    async fn read_now(&self, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        if reference.version().is_some() {
            return Err(fault(StoreFault::Reference("a program has no versions")));
        }
        let command = self.command(reference.path()).map_err(fault)?;
        let Ok(_permit) = self.programs.acquire().await else {
            return Err(fault(StoreFault::NotStarted(io::ErrorKind::Interrupted)));
        };
        let running = Running::begin(&self.failures).map_err(fault)?;
        let limit = self.config.timeout();
        let output = timeout(limit, run(command)).await.unwrap_or(Err(StoreFault::Overdue(limit)));
        let value = output.map_err(fault).and_then(|output| value(output, reference));
        running.end(value.as_ref().err());
        value
    }

    fn command(&self, path: &str) -> Result<Command, StoreFault> {
        if path.starts_with('-') {
            return Err(StoreFault::Reference("the path begins with `-`, like an option"));
        }
        let Some((program, arguments)) = self.config.command.split_first() else {
            return Err(StoreFault::NotStarted(io::ErrorKind::NotFound));
        };
        let mut command = Command::new(program);
        command.args(arguments.iter().map(|argument| argument.replace(PLACEHOLDER, path)));
        if !arguments.iter().any(|argument| argument.contains(PLACEHOLDER)) {
            command.arg(path);
        }
        command.env_clear();
        for name in self.config.environment.iter().flatten() {
            command.envs(env::variable(name).map(|value| (name, value)));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.process_group(0).kill_on_drop(true);
        Ok(command)
    }
}

/// What the output gives for a reference.
fn value(mut output: SecretBytes, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
    if output.len() > MAX_OUTPUT {
        return Err(SecretError::TooLarge { reference: reference.clone(), limit: MAX_OUTPUT });
    }
    if reference.field().is_some() {
        return field::select(output, reference);
    }
    let kept = file::without_line_end(&output).len();
    output.truncate(kept);
    Ok(output)
}

/// Runs it to its end and gives what it wrote; one byte more than [`MAX_OUTPUT`] if that is too much.
async fn run(mut command: Command) -> Result<SecretBytes, StoreFault> {
    let mut child = command.spawn().map_err(|error| StoreFault::NotStarted(error.kind()))?;
    let group = Group::of(&child);
    let Some(mut stdout) = child.stdout.take() else {
        return Err(StoreFault::Output(io::ErrorKind::BrokenPipe));
    };
    // Of its whole size at once: when a buffer grows, a copy stays unwiped.
    let mut output = Zeroizing::new(vec![0; MAX_OUTPUT + 1]);
    let mut filled = 0;
    while filled < output.len() {
        match stdout.read(&mut output[filled..]).await {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) => return Err(StoreFault::Output(error.kind())),
        }
    }
    if filled > MAX_OUTPUT {
        return Ok(output);
    }
    let status = child.wait().await.map_err(|error| StoreFault::Output(error.kind()))?;
    group.ended();
    output.truncate(filled);
    match (status.success(), status.code()) {
        (true, _) => Ok(output),
        (false, Some(code)) => Err(StoreFault::Exit(code)),
        (false, None) => {
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            Err(StoreFault::Signal(signal.unwrap_or_default()))
        }
    }
}

/// The program's process group. Dropped before the program ended, it kills all of it.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    /// The program has been waited for: its number may soon be somebody else's.
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails where nobody is left, which is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl SecretStore for ExecStore {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move { self.read_now(reference).await.map(Into::into) })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Polled(self.config.ttl.map_or(super::server::REFRESH, TimeSpan::duration))
    }

    fn patience(&self) -> Duration {
        // The own bound comes first, and says more.
        self.config.timeout() + Duration::from_secs(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(settings: &str) -> ExecStore {
        let config: ExecConfig = serde_yaml::from_str(settings).unwrap();
        assert!(config.mistakes().is_empty(), "{:?}", config.mistakes());
        ExecStore::new(&config)
    }

    async fn read(store: &ExecStore, reference: &str) -> String {
        match store.read(&reference.parse().unwrap()).await {
            Ok(reading) => reading.bytes.escape_ascii().to_string(),
            Err(error) => {
                assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
                error.code().to_owned()
            }
        }
    }

    #[tokio::test]
    async fn a_program_that_only_fails_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("runs");
        let script =
            format!("echo x >> {}; test -e {}", log.display(), directory.path().join("good").display());
        let store = store(&format!("command: [/bin/sh, -c, '{script}', x]"));
        let runs = || std::fs::read_to_string(&log).unwrap().lines().count();
        for number in 0..30 {
            assert_eq!(read(&store, &format!("x:{number}")).await, "exec_exit");
        }
        assert_eq!(runs(), MAX_FAILURES);
        std::fs::write(directory.path().join("good"), "").unwrap();
        crate::secret::fake::pass(WINDOW).await;
        for number in 0..30 {
            assert_eq!(read(&store, &format!("x:{number}")).await, "");
        }
        assert_eq!(runs(), MAX_FAILURES + 30);
    }

    #[tokio::test]
    async fn output_is_taken_and_failures_tell_no_output() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        std::fs::write(&file, "{\"key\":\"CANARY\"}\n").unwrap();
        std::fs::write(directory.path().join("large"), vec![b'x'; MAX_OUTPUT + 1]).unwrap();
        std::fs::write(directory.path().join("largest"), vec![b'x'; MAX_OUTPUT]).unwrap();
        let (file, folder) = (file.display().to_string(), directory.path().display().to_string());
        let table = [
            ("[/bin/cat]", file.clone(), "{\\\"key\\\":\\\"CANARY\\\"}".to_owned()),
            ("[/bin/cat]", format!("{file}#key"), "CANARY".to_owned()),
            ("[/bin/cat, \"{path}/key\"]", format!("{folder}#key"), "CANARY".to_owned()),
            // Two arguments: an error on standard error, and half of the output.
            ("[/bin/cat, \"{path}\", /nowhere/CANARY]", file.clone(), "exec_exit".to_owned()),
            ("[/bin/cat]", "/nowhere".to_owned(), "exec_exit".to_owned()),
            ("[/bin/cat]", format!("{folder}/large"), "too_large".to_owned()),
            ("[/bin/cat]", format!("{folder}/largest"), "x".repeat(MAX_OUTPUT)),
            ("[/bin/cat]", format!("{folder}/key@3"), "bad_reference".to_owned()),
            ("[/bin/cat]", "--help".to_owned(), "bad_reference".to_owned()),
            ("[/bin/echo]", "$HOME;`id`|x".to_owned(), "$HOME;`id`|x".to_owned()),
            ("[/nowhere/program]", "x".to_owned(), "exec_not_started".to_owned()),
            ("[/usr/bin/env]", "no-such-program".to_owned(), "exec_exit".to_owned()),
        ];
        for (command, path, expected) in table {
            let got = read(&store(&format!("command: {command}")), &format!("x:{path}")).await;
            assert!(got == expected, "{command} {path}: {}", got.chars().take(80).collect::<String>());
        }
    }

    #[tokio::test]
    async fn the_environment_holds_what_is_named() {
        // `env -- printenv` would look in PATH: so the whole path.
        let printenv = "command: [/usr/bin/printenv]";
        assert_eq!(read(&store(printenv), "x:CARGO_PKG_NAME").await, "exec_exit");
        let named = format!("{printenv}\nenvironment: [CARGO_PKG_NAME, OUTGATE_NO_SUCH_VARIABLE]");
        assert_eq!(read(&store(&named), "x:CARGO_PKG_NAME").await, "outgate");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_its_group() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        // A program that starts another one, which holds the output open.
        let script = format!("/bin/sleep 600 & echo $! > {}; wait", pid.display());
        let store = store(&format!("command: [/bin/sh, -c, {script:?}]\ntimeout: 300ms"));
        assert_eq!(read(&store, "x:y").await, "exec_timeout");
        let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let ended = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            // Gone, or waiting to be reaped by whoever inherits it.
            stat.map_or(true, |stat| {
                stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
            })
        };
        for _ in 0..1000 {
            if ended() {
                return;
            }
            tokio::task::yield_now().await;
            std::thread::yield_now();
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the program's own child lives on");
    }

    #[test]
    fn mistakes_are_found_before_anything_runs() {
        for (settings, expected) in [
            ("command: [cat]", vec!["command"]),
            ("command: []", vec!["command"]),
            (
                "command: [/bin/cat]\nenvironment: [\"A=B\"]\ntimeout: 2m\nttl: 0s",
                vec!["ttl", "environment", "timeout"],
            ),
        ] {
            let config: ExecConfig = serde_yaml::from_str(settings).unwrap();
            let keys: Vec<&str> = config.mistakes().into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, expected, "{settings}");
        }
    }
}
