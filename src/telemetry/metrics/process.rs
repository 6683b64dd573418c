//! Figures of the process, read from `/proc` when somebody asks, under the names that Prometheus clients share.
//!
//! What cannot be read is left out: a restricted `/proc` costs a figure, and not the others.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use rustix::process::{Resource, getrlimit};

use super::collector::Families;

/// The kernel's unit of time towards programs (`USER_HZ`): 100 on every platform we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// The collector.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        let stat = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse);
        if let Some(stat) = &stat {
            out.counters("process_cpu_seconds", "User and system CPU time in seconds", |family| {
                family.single_counter(stat.cpu_seconds)
            })?;
        }
        let gauges = [
            ("process_threads", "Threads of the process", stat.as_ref().map(|stat| stat.threads)),
            (
                "process_start_time_seconds",
                "Unix time when the process began",
                stat.as_ref().and_then(start_time),
            ),
            ("process_resident_memory_bytes", "Resident memory in bytes", resident_bytes()),
            ("process_open_fds", "Open file descriptors", open_descriptors()),
            ("process_max_fds", "File descriptors that may be open", max_descriptors()),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                out.gauges(name, help, |family| family.single_gauge(value))?;
            }
        }
        Ok(())
    }
}

/// What we want of `/proc/self/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    /// Seconds after the machine's start.
    started: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Numbered as in the manual, where the field after the name is the third.
        let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (number(14)? + number(15)?) / TICKS_PER_SECOND,
            threads: number(20)?,
            started: number(22)? / TICKS_PER_SECOND,
        })
    }
}

fn start_time(stat: &Stat) -> Option<f64> {
    let machine = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = field_of(&machine, "btime")?.parse().ok()?;
    Some(boot + stat.started)
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes: f64 = field_of(&status, "VmRSS:")?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

/// The second word of the line that begins with `name`.
fn field_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next())?
    })
}

fn open_descriptors() -> Option<f64> {
    // One of them is the directory that is being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn max_descriptors() -> Option<f64> {
    getrlimit(Resource::Nofile).current.map(|limit| limit as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_shift_the_fields() {
        let text = "7 (a) 1 (b) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 9 0 12300 1 2 3";
        assert_eq!(Stat::parse(text), Some(Stat { cpu_seconds: 2.0, threads: 9.0, started: 123.0 }));
    }

    #[test]
    fn short_or_foreign_text_gives_nothing() {
        for text in ["", "7 (a) S 1", "no parentheses", "7 (a) S x x x x x x x x x x x x x x x x x x x x"] {
            assert_eq!(Stat::parse(text), None, "{text:?}");
        }
        assert_eq!(field_of("VmRSSx: 1\nVmRSS:", "VmRSS:"), None);
        assert_eq!(field_of("a 1\nVmRSS:\t 12 kB", "VmRSS:"), Some("12"));
    }
}
