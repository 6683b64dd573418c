//! The captured access log.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outgate::telemetry::{LogOutput, Telemetry};
use serde_json::Value;

/// Lines as they were written.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn output(&self) -> LogOutput {
        LogOutput::Capture(self.0.clone())
    }

    /// All of it as text, after the writer has caught up.
    pub fn text(&self, telemetry: &Telemetry) -> String {
        assert!(telemetry.access_log.flush(Duration::from_secs(5)), "the log is written");
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The records so far.
    pub fn records(&self, telemetry: &Telemetry) -> Vec<Value> {
        self.text(telemetry).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until there are `count` records; a record is written when the answer's body has ended, which the client may
    /// see a moment earlier. Fails after five seconds.
    pub async fn wait_for(&self, telemetry: &Telemetry, count: usize) -> Vec<Value> {
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        loop {
            let records = self.records(telemetry);
            if records.len() >= count {
                return records;
            }
            assert!(std::time::Instant::now() < deadline, "{count} records wanted, got {records:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// When the limiter let a request go, in milliseconds of the day: when its head was read, and what it waited. That is what a
/// limit promises; what an origin sees can be shifted by a busy machine. Exact to about two milliseconds.
pub fn let_go(record: &Value) -> f64 {
    let time = record["timestamp"].as_str().unwrap().split_once('T').unwrap().1.trim_end_matches('Z');
    let minutes = time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap());
    minutes * 1_000.0 + record["duration"]["queue"].as_f64().unwrap_or(0.0)
}

/// The most that any window holds; moments and window in milliseconds.
pub fn fullest_of(mut moments: Vec<f64>, window: f64) -> usize {
    moments.sort_unstable_by(f64::total_cmp);
    let mut first = 0;
    let held = |(last, at): (usize, &f64)| {
        while at - moments[first] >= window {
            first += 1;
        }
        last + 1 - first
    };
    moments.iter().enumerate().map(held).max().unwrap_or(0)
}
