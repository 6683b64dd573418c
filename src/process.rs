//! The process itself: core dumps off, memory not readable by others, limits of descriptors and memory.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Switches core dumps off and makes the process not dumpable, so that other processes of the same user can neither read
/// its memory nor its environment. What cannot be done is logged.
pub fn harden() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps could not be switched off");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the process could not be made undumpable");
    }
}

/// Raises the soft limit of open files to the hard one, and returns it; nothing if there is none.
pub fn raise_descriptor_limit() -> Option<usize> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if setrlimit(Resource::Nofile, raised).is_err() {
        return limit.current.and_then(|limit| usize::try_from(limit).ok());
    }
    limit.maximum.and_then(|limit| usize::try_from(limit).ok())
}

/// Bytes that the control group lets this process have; nothing where there is no limit.
pub fn memory_limit() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
        // Version 1 writes a huge number for "none".
        .filter(|limit| *limit < 1 << 50)
}

/// Bytes of memory that are resident now.
pub fn resident_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
