//! placeholder
use std::process::ExitCode;

/// Arguments of `demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Keep everything up, with curl lines to try.
    #[arg(long)]
    stay: bool,
}

/// Runs the demo.
pub fn run(arguments: &Arguments) -> ExitCode {
    let _ = arguments.stay;
    ExitCode::SUCCESS
}
