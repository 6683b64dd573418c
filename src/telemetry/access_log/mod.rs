//! The access log: lines go into a bounded queue, and a thread of its own writes them.
//!
//! A request never waits for the log. Its line is made outside any lock, and appended to a shared buffer; if 8192 lines or
//! 8 MiB wait already (the disk is slow, nobody reads stdout), it is dropped and counted. The writer takes the whole buffer
//! and gives an empty one back, then writes up to 64 KiB of whole lines a call. With nothing to write it sleeps without a timer.
//!
//! An output that breaks (closed pipe, full disk) costs lines, which are counted, and nothing else: see [`sink`].

mod sink;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::{LogFormat, RequestEvent};
use sink::Sink;

/// Lines that may wait, those being written included.
const MAX_LINES: usize = 8192;
/// Bytes that may wait, those being written included.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of one write call; a longer line goes alone.
const BATCH: usize = 64 * 1024;
/// How long the writer, once woken, lets lines gather: it bounds wake-ups to 100 a second, whatever the load. Each one
/// costs more than a line, and a log that is read 10 ms later is as good.
const LINGER: Duration = Duration::from_millis(10);
/// Capacity a buffer keeps after a burst.
const KEPT_CAPACITY: usize = 256 * 1024;

/// Where the lines go.
#[derive(Clone, Debug)]
pub enum LogOutput {
    /// The process's standard output.
    Stdout,
    /// A file that is appended to, and opened anew when it was moved away. Its mode is 0640 if it is made.
    File(PathBuf),
    /// A buffer without bound, for tests.
    Capture(Arc<Mutex<Vec<u8>>>),
}

/// The queue, and the thread behind it. Dropping it lets the thread write what waits and end.
#[derive(Debug)]
pub struct AccessLog {
    format: LogFormat,
    queue: Arc<Queue>,
}

thread_local! {
    /// Each thread's own scratch line.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    /// Opens the output and starts the writer. `dropped` counts the lines that are lost.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or the thread cannot be started. A closed standard output is no error: lines are counted.
    pub fn start(format: LogFormat, output: LogOutput, dropped: Counter) -> io::Result<Self> {
        Self::with_sink(format, Sink::open(output)?, dropped)
    }

    fn with_sink(format: LogFormat, sink: Sink, dropped: Counter) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(dropped));
        let writer = Arc::clone(&queue);
        thread::Builder::new().name("access-log".into()).spawn(move || writer.drain_into(sink))?;
        Ok(Self { format, queue })
    }

    /// Queues the line of `event`. Never blocks on the output.
    pub fn write(&self, event: &RequestEvent) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.format.write(event, line);
            self.queue.push(line);
            line.shrink_to(KEPT_CAPACITY);
        });
    }

    /// Waits until all lines that were queued before are written or lost; `false` if that takes longer than `timeout`. Blocks
    /// the thread: for the end of the process, and tests.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.queue.flush(timeout)
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        // Not joined: an output that blocks must not hold up whoever drops this. `flush` is for those who want to wait.
        self.queue.locked().closed = true;
        self.queue.wake.notify_one();
    }
}

/// What producers and the writer share.
#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// The writer waits here for lines.
    wake: Condvar,
    /// Those who flush wait here.
    written: Condvar,
    dropped: Counter,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines not yet taken by the writer.
    buffer: Vec<u8>,
    /// Lines and bytes not yet written, those the writer has taken included.
    lines: usize,
    bytes: usize,
    /// Lines ever queued, and ever written or lost.
    queued: u64,
    done: u64,
    /// The writer waits without a timer, and wants to be woken by the next line.
    asleep: bool,
    /// Somebody flushes: no lingering.
    hurry: bool,
    closed: bool,
}

impl Queue {
    fn new(dropped: Counter) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), written: Condvar::new(), dropped }
    }

    /// No code that can panic runs under this lock, so a poisoned state is whole.
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.locked();
        if state.lines >= MAX_LINES || state.bytes + line.len() > MAX_BYTES {
            drop(state);
            self.dropped.inc();
            return;
        }
        state.buffer.extend_from_slice(line);
        state.lines += 1;
        state.bytes += line.len();
        state.queued += 1;
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    fn flush(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        let mut state = self.locked();
        let goal = state.queued;
        while state.done < goal {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            state.hurry = true;
            self.wake.notify_one();
            state = self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The writer's thread.
    fn drain_into(&self, mut sink: Sink) {
        let mut taken = Vec::new();
        while self.take(&mut taken) {
            for chunk in chunks(&taken) {
                let lost = sink.write(chunk);
                self.dropped.inc_by(lost);
                self.finish(chunk);
            }
            taken.clear();
            taken.shrink_to(KEPT_CAPACITY);
        }
    }

    /// Waits for lines, and swaps them against the empty buffer `taken`; `false` when closed and empty.
    fn take(&self, taken: &mut Vec<u8>) -> bool {
        let mut state = self.locked();
        while state.buffer.is_empty() && !state.closed {
            state.asleep = true;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        let gathers = |state: &mut State| !state.hurry && !state.closed && state.buffer.len() < BATCH;
        let mut state =
            self.wake.wait_timeout_while(state, LINGER, gathers).unwrap_or_else(PoisonError::into_inner).0;
        state.hurry = false;
        std::mem::swap(&mut state.buffer, taken);
        !taken.is_empty()
    }

    fn finish(&self, chunk: &[u8]) {
        let lines = count_lines(chunk);
        let mut state = self.locked();
        state.lines = state.lines.saturating_sub(lines);
        state.bytes = state.bytes.saturating_sub(chunk.len());
        state.done += lines as u64;
        drop(state);
        self.written.notify_all();
    }
}

/// Whole lines, of at most [`BATCH`] bytes together, or one longer line.
fn chunks(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let within = &rest[..rest.len().min(BATCH)];
        let end = within.iter().rposition(|&byte| byte == b'\n');
        let end = end.or_else(|| rest.iter().position(|&byte| byte == b'\n'))?;
        let (chunk, left) = rest.split_at(end + 1);
        rest = left;
        Some(chunk)
    })
}

fn count_lines(bytes: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', bytes).count()
}
