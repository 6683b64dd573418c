//! Processes on a core of their own, and what the kernel knows about them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Outcome;

/// Which core carries what. With one core only, both are the same, and the figures mean little.
#[derive(Clone, Copy)]
pub struct Cores {
    /// The proxy that is measured.
    pub proxy: usize,
    /// The origin and the load.
    pub others: usize,
}

impl Cores {
    /// The first two that this process may use.
    pub fn choose() -> Outcome<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let proxy = cores.next().ok_or("no core to run on")?;
        Ok(Self { proxy, others: cores.next().unwrap_or(proxy) })
    }

    /// Whether the proxy has a core for itself.
    pub fn apart(self) -> bool {
        self.proxy != self.others
    }
}

/// Binds the calling thread, and what it will start, to one core.
pub fn pin(core: usize) -> Outcome<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// A child process; killed when it is dropped.
pub struct Process {
    child: Child,
    /// Just before it was started.
    pub started: Instant,
}

impl Process {
    /// Starts `command` on one core.
    pub fn start(mut command: Command, core: usize) -> Outcome<Self> {
        // A child inherits the affinity of the *thread* that starts it; so no program is needed for it, and no unsafe code.
        let starter = std::thread::spawn(move || -> Outcome<Self> {
            pin(core)?;
            let started = Instant::now();
            Ok(Self { child: command.spawn()?, started })
        });
        starter.join().map_err(|_| "the starting thread died")?
    }

    /// Starts this very program in another role, and waits for the address that it announces.
    pub fn role(arguments: &[&str], directory: &Path, core: usize) -> Outcome<(Self, SocketAddr)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("role").args(arguments).arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self::start(command, core)?;
        let output = process.child.stdout.take().ok_or("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().map_err(|_| format!("role {arguments:?} did not start"))?;
        Ok((process, address))
    }

    /// Waits for its end; the time since its start.
    pub fn finish(mut self) -> Outcome<Duration> {
        let status = self.child.wait()?;
        let elapsed = self.started.elapsed();
        if status.success() { Ok(elapsed) } else { Err(format!("ended with {status}").into()) }
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// CPU seconds so far, of all its threads, user and system. In nanoseconds' grain where the kernel has it: a round at a
    /// low rate is only some ten clock ticks long. A thread that ends takes its share along, but those that do (idle ones
    /// for blocking calls) have done next to nothing.
    pub fn cpu_seconds(&self) -> Outcome<f64> {
        self.schedstat(0).or_else(|_| self.tick_seconds())
    }

    /// Seconds for which its threads were ready and had to wait for the core; nothing where the kernel does not say.
    pub fn waited_seconds(&self) -> Option<f64> {
        self.schedstat(1).ok()
    }

    /// A field of the threads' schedstat, added up: 0 is the time on a core, 1 the time spent waiting for one.
    fn schedstat(&self, field: usize) -> Outcome<f64> {
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds +=
                text.split_whitespace().nth(field).ok_or("no time in schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds).as_secs_f64())
    }

    /// The same in steps of a clock tick (10 ms), where the kernel keeps no schedstat.
    fn tick_seconds(&self) -> Outcome<f64> {
        let stat = self.proc("stat")?;
        // The second field is the program's name in brackets, which may hold anything; utime and stime are fields 14 and 15.
        let after_name = stat.rsplit_once(')').ok_or("no name in stat")?.1;
        let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
        let ticks = ticks.sum::<Result<u32, _>>()?;
        Ok(f64::from(ticks) / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Resident memory in MB (10^6 bytes): all of it, and the part that is no file's (without the program's own text).
    pub fn resident(&self) -> Outcome<Resident> {
        // Not smaps_rollup: outgate makes itself undumpable, and then only the superuser may read that.
        let status = self.proc("status")?;
        let field = |name: &str| -> Outcome<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such field")?;
            let kibibytes: f64 = line.trim_end_matches("kB").trim().parse()?;
            Ok(kibibytes * 1024.0 / 1e6)
        };
        Ok(Resident { all: field("VmRSS:")?, anonymous: field("RssAnon:")? })
    }

    fn proc(&self, name: &str) -> Outcome<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id()))?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; both errors say only that.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Resident memory in MB (10^6 bytes).
pub struct Resident {
    /// Everything that is resident.
    pub all: f64,
    /// What no file backs.
    pub anonymous: f64,
}

/// In a role: tells the driver where it listens.
pub fn announce(address: SocketAddr) -> Outcome<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{address}")?;
    Ok(output.flush()?)
}

/// In a role: ends the process when the driver is gone, however that went.
pub fn end_with_driver() {
    std::thread::spawn(|| {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        std::process::exit(0);
    });
}

/// Raises the limit of open files as far as allowed; what it is now.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    now.unwrap_or(u64::MAX)
}
