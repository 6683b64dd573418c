//! The commands, one file each.
//!
//! Exit codes: 0 done; 1 it failed (a listener that cannot be bound, a probe that got no answer); 2 the arguments are wrong;
//! 3 the policy has mistakes; `explain` answers 4 where the request would be denied, `redirect check` 5 where rules are missing; `exec` passes
//! on its command's.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::policy::compiled::CompiledPolicy;
use crate::policy::load::PolicyOrigin;
use crate::policy::setting::Setting;

mod ca;
mod check;
mod demo;
mod env;
mod exec;
mod explain;
mod explain_layers;
mod explain_request;
mod inject;
mod injector;
mod presets;
mod probe;
mod redirect;
mod run;
mod schema;
mod seal;

/// The command failed.
pub const FAILED: u8 = 1;
/// The policy has mistakes.
pub const BAD_POLICY: u8 = 3;
/// `explain`: the request would be denied.
pub const DENIED: u8 = 4;
/// `redirect check`: rules are missing, or differ.
pub const NOT_IN_PLACE: u8 = 5;

#[derive(Parser)]
#[command(
    name = "outgate",
    version,
    about = "A sidecar egress proxy for third-party API calls",
    max_term_width = 110
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The policy that a command is about.
#[derive(clap::Args, Clone, Debug)]
pub struct PolicyArgument {
    /// Policy file, or directory of *.yaml.
    #[arg(short, long, value_name = "PATH", env = "OUTGATE_CONFIG", default_value = "proxy.yaml")]
    pub config: PathBuf,
    /// What this deployment says in place of the policy, in the sections that need a restart: `admin.health_address=0.0.0.0:9902`.
    /// May be given several times. `OUTGATE_SET` has the same, each on a line of its own; what is given here is set after that.
    #[arg(long = "set", value_name = "KEY=VALUE", value_delimiter = '\n')]
    pub settings: Vec<Setting>,
    /// Those of the variable: an argument of their own, because a flag takes the place of its variable, and would leave out all of them.
    #[arg(
        long = "outgate-set",
        hide = true,
        value_name = "KEY=VALUE",
        env = "OUTGATE_SET",
        value_delimiter = '\n'
    )]
    pub of_environment: Vec<Setting>,
}

impl PolicyArgument {
    fn origin(&self) -> PolicyOrigin {
        // The later one wins at the same key.
        let settings = self.of_environment.iter().chain(&self.settings).cloned().collect();
        PolicyOrigin { path: self.config.clone(), settings }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy.
    Run(run::Arguments),
    /// Check a policy and report all mistakes at once.
    Check(check::Arguments),
    /// Say what would happen to a request, and which line of the policy decides.
    Explain(explain::Arguments),
    /// List what outgate knows about providers, or show it with its sources.
    Presets(presets::Arguments),
    /// Print the JSON Schema of the policy, or its reference as Markdown.
    Schema(schema::Arguments),
    /// Make or show the CA of TLS interception.
    Ca(ca::Arguments),
    /// Print the environment that points an app at outgate.
    Env(env::Arguments),
    /// Run a command with that environment.
    Exec(exec::Arguments),
    /// Encrypt a value into a file next to the policy, or make a key for that.
    Seal(seal::Arguments),
    /// Show everything at work on this machine, with a provider of its own.
    Demo(demo::Arguments),
    /// Put the sidecar into the pods of Kubernetes manifests.
    Inject(inject::Arguments),
    /// Run the admission webhook that puts the sidecar into pods.
    Injector(injector::Arguments),
    /// Ask a running outgate whether it is healthy; for images without a shell.
    Probe(probe::Arguments),
    /// Bring the connections of apps to a transparent listener, by rules of the kernel.
    Redirect(redirect::Arguments),
    /// Print shell completions.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command of the arguments.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap knows which stream each belongs to.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match arguments.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Presets(arguments) => presets::run(&arguments),
        Command::Schema(arguments) => schema::run(&arguments),
        Command::Ca(arguments) => ca::run(&arguments),
        Command::Env(arguments) => env::run(&arguments),
        Command::Exec(arguments) => exec::run(&arguments),
        Command::Seal(arguments) => seal::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Inject(arguments) => inject::run(&arguments),
        Command::Injector(arguments) => injector::run(arguments),
        Command::Probe(arguments) => probe::run(&arguments),
        Command::Redirect(arguments) => redirect::run(arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "outgate", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Reads the policy, or prints its mistakes.
fn load(argument: &PolicyArgument) -> Result<CompiledPolicy, ExitCode> {
    crate::pipeline::reload::read(argument.origin()).map_err(|rejection| {
        let colour = std::io::stderr().is_terminal();
        let _ = writeln!(std::io::stderr(), "{}", rejection.render(colour).trim_end());
        ExitCode::from(BAD_POLICY)
    })
}

/// Writes to standard output; a closed pipe ends quietly.
fn print(text: &str) -> ExitCode {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads no further knows it.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(FAILED),
        Err(error) => fail(format!("standard output: {error}")),
    }
}

/// Prints why a command failed.
fn fail(message: impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "outgate: {message}");
    ExitCode::from(FAILED)
}

/// Colours where a person reads.
struct Style {
    colour: bool,
}

impl Style {
    fn of_stdout() -> Self {
        Self { colour: std::io::stdout().is_terminal() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn faint(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.paint("31", text)
    }
}
