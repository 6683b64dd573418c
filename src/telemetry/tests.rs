use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use super::*;

fn started() -> (Telemetry, Arc<Mutex<Vec<u8>>>) {
    let buffer = Arc::new(Mutex::new(Vec::new()));
    let telemetry = Telemetry::start(LogFormat::Json, LogOutput::Capture(Arc::clone(&buffer))).unwrap();
    (telemetry, buffer)
}

fn event(telemetry: &Telemetry) -> RequestEvent {
    RequestEvent {
        method: Some(http::Method::GET),
        host: Some("api.example.com".into()),
        path: Some("/v1/items".into()),
        status: Some(200),
        metrics: Some(telemetry.metrics.route("example", "default")),
        ..RequestEvent::new(new_request_id(), Door::Intercept, "127.0.0.1:3128".into(), SystemTime::now())
    }
}

#[test]
fn one_event_is_one_line_and_one_count() {
    let (telemetry, buffer) = started();
    let event = event(&telemetry);
    telemetry.emit(&event);
    assert!(telemetry.access_log.flush(Duration::from_secs(20)));
    let lines = String::from_utf8(buffer.lock().unwrap().clone()).unwrap();
    assert_eq!(lines.lines().count(), 1);
    assert!(lines.contains(event.request_id.as_str()));
    let metrics = telemetry.metrics.encode();
    let sample =
        "outgate_requests_total{provider=\"example\",route=\"default\",code_class=\"2xx\",flag=\"\"} 1\n";
    assert!(metrics.contains(sample), "{metrics}");
}

#[test]
fn lost_lines_are_in_the_metrics() {
    let telemetry = Telemetry::start(LogFormat::Json, LogOutput::File("/dev/full".into())).unwrap();
    telemetry.emit(&event(&telemetry));
    assert!(telemetry.access_log.flush(Duration::from_secs(20)));
    assert!(telemetry.metrics.encode().contains("outgate_access_log_dropped_total 1\n"));
}
