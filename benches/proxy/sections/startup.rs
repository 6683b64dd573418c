//! From exec to the first answered request, and to the end of `outgate --version`; and the size of the program.

use std::process::{Command, Stdio};

use crate::outgate::Outgate;
use crate::process::Process;
use crate::report::{self, Spread};
use crate::{Bench, Outcome};

const FIRST_ANSWER_AT_MOST_MS: f64 = 35.0;
const VERSION_AT_MOST_MS: f64 = 5.0;
const SIZE_AT_MOST_MB: f64 = 20.0;

/// Start-up, over and over.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let starts = if bench.quick { 8 } else { 20 };
    let answer = (0..starts).map(|_| Ok(Outgate::start(bench)?.first_answer.as_secs_f64() * 1e3));
    let answer = answer.collect::<Outcome<Vec<f64>>>()?;
    let version = (0..starts).map(|_| version(bench)).collect::<Outcome<Vec<f64>>>()?;

    report::section("startup: from just before exec");
    report::target("to the first answered request", "ms", Spread::of(answer), FIRST_ANSWER_AT_MOST_MS);
    report::target("to the end of --version", "ms", Spread::of(version), VERSION_AT_MOST_MS);
    Ok(())
}

fn version(bench: &Bench) -> Outcome<f64> {
    let mut command = Command::new(&bench.program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Process::start(command, bench.cores.proxy)?.finish()?.as_secs_f64() * 1e3)
}

/// The program's size.
pub fn size(bench: &Bench) -> Outcome<()> {
    let size = std::fs::metadata(&bench.program)?.len() as f64 / 1e6;
    report::section("size");
    report::target("program", "MB", Spread::of([size]), SIZE_AT_MOST_MB);
    Ok(())
}
