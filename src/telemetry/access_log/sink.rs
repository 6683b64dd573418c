//! The end of the log: what is written to, and what happens when it breaks.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{LogOutput, count_lines};

/// How often, at most, it is looked whether the file was moved away.
const ROTATION_CHECK: Duration = Duration::from_secs(1);
/// How often and how long apart a non-blocking output that is full is tried again: two seconds in all.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// An output, and whether its last line is whole.
pub(super) struct Sink {
    to: To,
    /// The last write ended within a line, so the next one begins with a newline: one broken line, not two.
    torn: bool,
}

enum To {
    Stream(Box<dyn Write + Send>),
    File(LogFile),
}

impl Sink {
    /// Opens the output; only a file can fail.
    pub(super) fn open(output: LogOutput) -> io::Result<Self> {
        match output {
            LogOutput::Stdout => Ok(Self::stream(stdout())),
            LogOutput::File(path) => Ok(Self { to: To::File(LogFile::open(path)?), torn: false }),
            LogOutput::Capture(buffer) => Ok(Self::stream(Box::new(Capture(buffer)))),
        }
    }

    pub(super) fn stream(stream: Box<dyn Write + Send>) -> Self {
        Self { to: To::Stream(stream), torn: false }
    }

    /// Writes whole lines, and returns how many of them were lost. An output that failed is tried again with the next lines: a
    /// disk may have room again.
    pub(super) fn write(&mut self, lines: &[u8]) -> u64 {
        let to: &mut dyn Write = match &mut self.to {
            To::Stream(stream) => stream,
            To::File(file) => file.current(),
        };
        if self.torn && write_all(to, b"\n") == 0 {
            return count_lines(lines) as u64;
        }
        let written = write_all(to, lines);
        self.torn = lines[..written].last().is_some_and(|&byte| byte != b'\n');
        count_lines(&lines[written..]) as u64
    }
}

/// Writes as much as goes, and returns how much that was.
fn write_all(to: &mut dyn Write, bytes: &[u8]) -> usize {
    let (mut written, mut busy) = (0, 0);
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => (written, busy) = (written + count, 0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever shares our standard output may have made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock && busy < BUSY_TRIES => {
                busy += 1;
                thread::sleep(BUSY_PAUSE);
            }
            Err(_) => break,
        }
    }
    written
}

/// Standard output without the buffer and the lock of `std::io::stdout`, which also takes a closed one for a working one.
fn stdout() -> Box<dyn Write + Send> {
    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(descriptor) => Box::new(File::from(descriptor)),
        Err(_) => Box::new(Closed),
    }
}

/// An output that was closed before we began: all is lost, and counted.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Capture(Arc<Mutex<Vec<u8>>>);

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that follows its name: log rotation moves it away, and expects a new one.
struct LogFile {
    path: PathBuf,
    file: File,
    checked: Instant,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: append(&path)?, path, checked: Instant::now() })
    }

    /// The file to write to now. If the new one cannot be opened, the old one goes on.
    fn current(&mut self) -> &mut File {
        if self.checked.elapsed() >= ROTATION_CHECK {
            self.checked = Instant::now();
            self.follow();
        }
        &mut self.file
    }

    fn follow(&mut self) {
        if self.was_moved()
            && let Ok(file) = append(&self.path)
        {
            self.file = file;
        }
    }

    fn was_moved(&self) -> bool {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let (named, open) = (std::fs::metadata(&self.path), self.file.metadata());
        named.ok().map(identity) != open.ok().map(identity)
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many bytes as it is told, a step a call; then fails.
    struct Scripted {
        steps: Vec<io::Result<usize>>,
        got: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = if self.steps.is_empty() { bytes.len() } else { self.steps.remove(0)? };
            self.got.lock().unwrap().extend_from_slice(&bytes[..count.min(bytes.len())]);
            Ok(count.min(bytes.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn scripted(steps: Vec<io::Result<usize>>) -> (Sink, Arc<Mutex<Vec<u8>>>) {
        let got = Arc::new(Mutex::new(Vec::new()));
        (Sink::stream(Box::new(Scripted { steps, got: Arc::clone(&got) })), got)
    }

    #[test]
    fn short_writes_and_interruptions_lose_nothing() {
        let (mut sink, got) = scripted(vec![
            Ok(2),
            Err(ErrorKind::Interrupted.into()),
            Ok(1),
            Err(ErrorKind::WouldBlock.into()),
        ]);
        assert_eq!(sink.write(b"one\ntwo\n"), 0);
        assert_eq!(got.lock().unwrap().as_slice(), b"one\ntwo\n");
    }

    #[test]
    fn a_torn_line_is_counted_and_ended_before_the_next() {
        let (mut sink, got) = scripted(vec![Ok(6), Err(ErrorKind::StorageFull.into())]);
        assert_eq!(sink.write(b"one\ntwo\nthree\n"), 2);
        assert_eq!(sink.write(b"four\n"), 0);
        assert_eq!(sink.write(b"five\n"), 0);
        assert_eq!(got.lock().unwrap().as_slice(), b"one\ntw\nfour\nfive\n");
    }

    #[test]
    fn a_broken_output_loses_lines_until_it_works_again() {
        let (mut sink, got) = scripted(vec![Err(ErrorKind::BrokenPipe.into()), Ok(0)]);
        assert_eq!(sink.write(b"one\ntwo\n"), 2);
        assert_eq!(sink.write(b"three\n"), 1);
        assert_eq!(sink.write(b"four\n"), 0);
        assert_eq!(got.lock().unwrap().as_slice(), b"four\n");
    }

    #[test]
    fn a_closed_output_counts_every_line() {
        assert_eq!(Sink::stream(Box::new(Closed)).write(b"one\ntwo\n"), 2);
    }

    #[test]
    fn a_full_disk_is_survived() {
        let mut sink = Sink::open(LogOutput::File("/dev/full".into())).unwrap();
        assert_eq!(sink.write(b"one\n"), 1);
        assert_eq!(sink.write(b"two\n"), 1);
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut file = LogFile::open(path.clone()).unwrap();
        file.file.write_all(b"one\n").unwrap();
        assert!(!file.was_moved());
        std::fs::rename(&path, &moved).unwrap();
        assert!(file.was_moved());
        file.follow();
        file.file.write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read(&moved).unwrap(), b"one\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
        // Where no new file can be made, the old one goes on.
        std::fs::remove_dir_all(directory.path()).unwrap();
        file.follow();
        file.file.write_all(b"three\n").unwrap();
    }
}
