use super::*;
use crate::telemetry::{Door, new_request_id};
use std::io::Write;
use std::sync::mpsc;
use std::time::SystemTime;

const LONG: Duration = Duration::from_secs(20);

fn event(path: &str) -> RequestEvent {
    let mut event = RequestEvent::new(new_request_id(), Door::Local, "l".into(), SystemTime::UNIX_EPOCH);
    event.path = Some(path.to_owned());
    event
}

fn text(buffer: &Mutex<Vec<u8>>) -> String {
    String::from_utf8(buffer.lock().unwrap().clone()).unwrap()
}

/// An output that stands still until it is let go.
struct Gate {
    open: mpsc::Receiver<()>,
    got: Arc<Mutex<Vec<u8>>>,
    calls: Arc<Mutex<Vec<usize>>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.open.recv();
        self.got.lock().unwrap().extend_from_slice(bytes);
        self.calls.lock().unwrap().push(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Gated {
    log: AccessLog,
    open: mpsc::Sender<()>,
    got: Arc<Mutex<Vec<u8>>>,
    calls: Arc<Mutex<Vec<usize>>>,
    dropped: Counter,
}

fn gated() -> Gated {
    let (open, receiver) = mpsc::channel();
    let (got, calls, dropped) = (Arc::default(), Arc::default(), Counter::default());
    let gate = Gate { open: receiver, got: Arc::clone(&got), calls: Arc::clone(&calls) };
    let sink = Sink::stream(Box::new(gate));
    let log = AccessLog::with_sink(LogFormat::Json, sink, dropped.clone()).unwrap();
    Gated { log, open, got, calls, dropped }
}

#[test]
fn lines_come_out_whole_and_in_order() {
    let buffer = Arc::new(Mutex::new(Vec::new()));
    let output = LogOutput::Capture(Arc::clone(&buffer));
    let log = AccessLog::start(LogFormat::Json, output, Counter::default()).unwrap();
    for n in 0..1000 {
        log.write(&event(&format!("/{n}")));
    }
    assert!(log.flush(LONG));
    let text = text(&buffer);
    assert_eq!(text.lines().count(), 1000);
    for (n, line) in text.lines().enumerate() {
        assert!(line.contains(&format!("\"url.path\":\"/{n}\"")), "{line}");
    }
}

#[test]
fn lines_of_many_threads_do_not_mix() {
    let buffer = Arc::new(Mutex::new(Vec::new()));
    let output = LogOutput::Capture(Arc::clone(&buffer));
    let log = AccessLog::start(LogFormat::Json, output, Counter::default()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..200).for_each(|_| log.write(&event("/x"))));
        }
    });
    assert!(log.flush(LONG));
    let text = text(&buffer);
    assert_eq!(text.lines().count(), 800);
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn an_output_that_stands_still_costs_lines_and_no_time() {
    let gated = gated();
    for _ in 0..MAX_LINES + 100 {
        gated.log.write(&event("/"));
    }
    assert_eq!(gated.dropped.get(), 100);
    assert!(!gated.log.flush(Duration::from_millis(1)));
    drop(gated.open);
    assert!(gated.log.flush(LONG));
    assert_eq!(count_lines(&gated.got.lock().unwrap()), MAX_LINES);
    gated.log.write(&event("/again"));
    assert!(gated.log.flush(LONG));
    assert!(text(&gated.got).lines().last().unwrap().contains("/again"));
    assert_eq!(gated.dropped.get(), 100);
}

#[test]
fn the_queue_is_bounded_in_bytes() {
    let gated = gated();
    let event = event(&"\u{7f}".repeat(2000));
    for _ in 0..1000 {
        gated.log.write(&event);
    }
    let state = gated.log.queue.locked();
    assert!(state.bytes <= MAX_BYTES && state.bytes > MAX_BYTES - 20_000, "{}", state.bytes);
    assert!(gated.dropped.get() > 100);
}

#[test]
fn what_waits_is_written_in_batches() {
    let gated = gated();
    for _ in 0..2000 {
        gated.log.write(&event("/"));
    }
    drop(gated.open);
    assert!(gated.log.flush(LONG));
    let calls = gated.calls.lock().unwrap();
    assert!(calls.iter().all(|&bytes| bytes <= BATCH), "{calls:?}");
    // The first call may have gone before the others came.
    let bytes: usize = calls.iter().sum();
    assert!(calls.len() <= bytes / (BATCH / 2) + 2, "{calls:?}");
}

#[test]
fn dropping_the_log_writes_what_waits() {
    let Gated { log, open, got, calls, .. } = gated();
    log.write(&event("/last"));
    drop(log);
    drop(open);
    // The writer holds the buffers until it ends.
    let deadline = Instant::now() + LONG;
    while Arc::strong_count(&calls) > 1 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(text(&got).contains("/last"));
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error() {
    let output = LogOutput::File("/nonexistent/directory/log".into());
    assert!(AccessLog::start(LogFormat::Json, output, Counter::default()).is_err());
}

#[test]
fn chunks_are_whole_lines() {
    let long = [vec![b'x'; BATCH + 5], b"\n".to_vec()].concat();
    let lines = [b"a\nb\n".as_slice(), &long, b"c\n"].concat();
    let sizes: Vec<usize> = chunks(&lines).map(<[u8]>::len).collect();
    assert_eq!(sizes, [4, BATCH + 6, 2]);
    assert_eq!(chunks(b"").count(), 0);
}
