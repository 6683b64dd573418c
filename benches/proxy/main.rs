//! What outgate costs, against a bare pass-through (`floor.rs`) on the same libraries.
//!
//! ```text
//! cargo bench --bench proxy -- [--quick] [--outgate PATH] [cpu] [layers] [credentials] [rewrite] [rate] [handshake] [tunnel] [memory] [startup] [size]
//! ```
//!
//! The proxy that is measured has the first core for itself; this driver, its load and the origin share the second. The
//! rounds of what is compared are interleaved, and ratios are taken within a round, so that the machine's moods cancel.
//! The origin answers only who brings the credential, so every counted request proves the injection. Nothing here is a
//! test: a figure that misses its target is printed as such, and the exit code stays 0.
//!
//! Cargo builds the program together with the features that tests and benchmarks ask of shared dependencies; for the
//! figures of a released program, give its path with `--outgate`.

// The rules of the library (who may dial, who may spawn) are about the program that is measured.
#![allow(clippy::disallowed_methods)]

mod certificates;
mod client;
mod floor;
mod load;
mod origin;
mod outgate;
mod process;
mod report;
mod sections;

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use tempfile::TempDir;

use process::{Cores, Process};

/// What the benchmark does either works or ends a section with a text.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "What outgate costs, against a bare pass-through")]
struct Arguments {
    /// Fewer and shorter rounds: under a minute, and less to be trusted.
    #[arg(long)]
    quick: bool,
    /// The program to measure.
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_outgate"))]
    outgate: PathBuf,
    /// Cargo says it to benchmarks, and leaves it out when tests are run.
    #[arg(long, hide = true)]
    bench: bool,
    /// All of them by default.
    sections: Vec<Section>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Section {
    Cpu,
    Layers,
    Credentials,
    Rewrite,
    Rate,
    Handshake,
    Tunnel,
    Memory,
    Startup,
    Size,
}

/// What all sections share.
struct Bench {
    program: PathBuf,
    quick: bool,
    cores: Cores,
    directory: TempDir,
    origin: SocketAddr,
    _origin: Process,
}

impl Bench {
    fn start(program: PathBuf, quick: bool) -> Outcome<Self> {
        std::fs::metadata(&program).map_err(|error| format!("{}: {error}", program.display()))?;
        let cores = Cores::choose()?;
        process::pin(cores.others)?;
        let directory = tempfile::tempdir()?;
        certificates::mint(directory.path())?;
        let (process, origin) = Process::role(&["origin"], directory.path(), cores.others)?;
        Ok(Self { program, quick, cores, directory, origin, _origin: process })
    }

    /// A floor of its own, where outgate will be.
    fn floor(&self) -> Outcome<(Process, SocketAddr)> {
        Process::role(&["floor", &self.origin.to_string()], self.directory.path(), self.cores.proxy)
    }

    async fn section(&self, section: Section) -> Outcome<()> {
        match section {
            Section::Cpu => sections::cpu::run(self).await,
            Section::Layers => sections::layers::run(self).await,
            Section::Credentials => sections::credentials::run(self).await,
            Section::Rewrite => sections::credentials::rewrite(self).await,
            Section::Rate => sections::rate::run(self).await,
            Section::Handshake => sections::handshake::run(self).await,
            Section::Tunnel => sections::tunnel::run(self).await,
            Section::Memory => sections::memory::run(self).await,
            Section::Startup => sections::startup::run(self).await,
            Section::Size => sections::startup::size(self),
        }
    }
}

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match words.as_slice() {
        ["role", role, rest @ ..] => {
            process::end_with_driver();
            runtime()?.block_on(play(role, rest))
        }
        _ => {
            let arguments = Arguments::parse();
            if arguments.bench {
                runtime()?.block_on(drive(arguments));
            } else {
                println!("figures are made by `cargo bench --bench proxy`");
            }
            Ok(())
        }
    }
}

async fn play(role: &str, arguments: &[&str]) -> Outcome<()> {
    match (role, arguments) {
        ("origin", [directory]) => origin::run(Path::new(directory)).await,
        ("floor", [origin, directory]) => floor::run(origin.parse()?, Path::new(directory)).await,
        _ => Err("no such role".into()),
    }
}

/// Runs the sections that were asked for. A section that fails says why, and the next one goes on.
async fn drive(arguments: Arguments) {
    let bench = match Bench::start(arguments.outgate, arguments.quick) {
        Ok(bench) => bench,
        Err(error) => return eprintln!("nothing can be measured: {error}"),
    };
    println!("{}", bench.program.display());
    report::head();
    if cfg!(debug_assertions) {
        report::note("built without optimisation: these figures say nothing");
    }
    if !bench.cores.apart() {
        report::note("one core only: proxy, load and origin take it from each other");
    }
    let all = Section::value_variants().to_vec();
    let sections = if arguments.sections.is_empty() { all } else { arguments.sections };
    for section in sections {
        if let Err(error) = bench.section(section).await {
            report::section("a section failed");
            report::note(&error.to_string());
        }
    }
}
