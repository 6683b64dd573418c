//! `outgate exec -- COMMAND`: runs a command with the environment of `outgate env`. The command takes this process's place.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use super::{PolicyArgument, env, fail, load};

/// Arguments of `exec`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    policy: PolicyArgument,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Replaces this process by the command; returns only where that failed.
pub fn run(arguments: &Arguments) -> ExitCode {
    let policy = match load(&arguments.policy) {
        Ok(policy) => policy,
        Err(code) => return code,
    };
    let variables = match env::variables(&policy) {
        Ok(variables) => variables,
        Err(message) => return fail(message),
    };
    env::tell(&env::notes(&policy, false));
    let Some((program, rest)) = arguments.command.split_first() else { return fail("no command was given") };
    let error = std::process::Command::new(program).args(rest).envs(variables).exec();
    fail(format!("{}: {error}", program.to_string_lossy()))
}
