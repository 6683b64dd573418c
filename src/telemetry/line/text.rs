//! The line for people: time, status, flag, method, where to, by which provider and route, how long, how much, and why not.
//!
//! ```text
//! 2026-01-02T03:04:05.678Z 200 -   POST    api.stripe.com/v1/charges      stripe/charges  182.401ms  312B>1024B
//! 2026-01-02T03:04:05.678Z 403 NR  POST    evil.example:8080/collect      -               0.087ms    0B>0B error=denied
//! ```

use std::io::Write;

use super::escape::{MAX_PATH, MAX_STRING, millis, number, string, timestamp};
use crate::telemetry::RequestEvent;

/// Appends the line, without a newline.
pub(super) fn write(event: &RequestEvent, line: &mut Vec<u8>) {
    timestamp(event.time, line);
    line.push(b' ');
    match event.status {
        Some(status) => number(status.into(), line),
        None => line.extend_from_slice(b"---"),
    }
    line.push(b' ');
    column(line, 3, |line| line.extend_from_slice(event.flag.map_or("-", |flag| flag.as_str()).as_bytes()));
    column(line, 7, |line| field(event.method.as_ref().map_or("-", http::Method::as_str), line));
    column(line, 48, |line| target(event, line));
    column(line, 24, |line| provider(event, line));
    column(line, 11, |line| {
        millis(event.timings.total, line);
        line.extend_from_slice(b"ms");
    });
    let _ = write!(line, "{}B>{}B", event.request_bytes, event.response_bytes);
    extras(event, line);
}

/// Writes a field, fills it up with spaces to `width` characters, and adds one between columns.
fn column(line: &mut Vec<u8>, width: usize, content: impl FnOnce(&mut Vec<u8>)) {
    let start = line.len();
    content(line);
    // Bytes that do not begin a character do not count. A long field pushes the rest to the right, and nothing is lost.
    let characters = line[start..].iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
    let fill = width.saturating_sub(characters) + 1;
    line.resize(line.len() + fill, b' ');
}

fn target(event: &RequestEvent, line: &mut Vec<u8>) {
    field(event.host.as_deref().unwrap_or("-"), line);
    // The port of the scheme goes without saying.
    let usual = matches!((event.scheme, event.port), (Some("https"), Some(443)) | (Some("http"), Some(80)));
    if let Some(port) = event.port.filter(|_| !usual) {
        let _ = write!(line, ":{port}");
    }
    string(event.path.as_deref().unwrap_or_default(), MAX_PATH, line);
    if let Some(query) = &event.query {
        line.push(b'?');
        field(query, line);
    }
}

fn provider(event: &RequestEvent, line: &mut Vec<u8>) {
    field(event.provider.as_deref().unwrap_or("-"), line);
    if let Some(route) = &event.route {
        line.push(b'/');
        field(route, line);
    }
}

/// What only some lines have.
fn extras(event: &RequestEvent, line: &mut Vec<u8>) {
    if event.attempts > 1 {
        let _ = write!(line, " attempts={}", event.attempts);
    }
    for (at, reason) in event.retry_reasons.iter().enumerate() {
        line.extend_from_slice(if at == 0 { b" retry=" } else { b"," });
        field(reason, line);
    }
    for (at, label) in event.shadowed.iter().enumerate() {
        line.extend_from_slice(if at == 0 { b" shadow=" } else { b"," });
        field(label, line);
    }
    for (name, value) in [("upgrade", event.upgrade), ("error", event.error)] {
        if let Some(value) = value {
            let _ = write!(line, " {name}=");
            field(value, line);
        }
    }
    if event.scrubbed > 0 {
        let _ = write!(line, " scrubbed={}", event.scrubbed);
    }
    if let Some(detail) = &event.error_detail {
        line.extend_from_slice(b" (");
        field(detail, line);
        line.push(b')');
    }
}

fn field(text: &str, line: &mut Vec<u8>) {
    string(text, MAX_STRING, line);
}
