//! The JSON line: one flat object, names from OpenTelemetry's semantic conventions where there is one, ours below `outgate.`.
//!
//! Written by hand: the names are constants and no tree is built, so a line costs well under a microsecond of a request.

use super::escape::{MAX_PATH, MAX_STRING, ip, millis, number, string, timestamp};
use crate::telemetry::{Client, RequestEvent, Timings};

/// Appends the object, without a newline.
pub(super) fn write(event: &RequestEvent, line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"timestamp\":\"");
    timestamp(event.time, line);
    line.push(b'"');
    let mut object = Object(line);
    object.identity(event);
    object.request(event);
    object.answer(event);
    object.upstream(event);
    object.durations(&event.timings);
    line.push(b'}');
}

/// An object that has its first member already, so that each further one begins with a comma.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    fn identity(&mut self, event: &RequestEvent) {
        self.text("outgate.request_id", event.request_id.as_str());
        if let Some(trace) = event.trace_id {
            self.text("trace_id", trace.text().as_str());
        }
        self.text("outgate.door", event.door.as_str());
        self.text("outgate.listener", &event.listener);
        match event.client {
            Some(Client::Address(client)) => {
                self.key("client.address");
                self.quoted(|line| ip(client.ip(), line));
                self.number("client.port", client.port().into());
            }
            Some(Client::Unix) => self.text("client.address", "unix"),
            None => {}
        }
        if let Some(original) = event.original {
            self.key("outgate.original.address");
            self.quoted(|line| ip(original.address.ip(), line));
            self.number("outgate.original.port", original.address.port().into());
            if let Some(resolved) = original.resolved {
                self.boolean("outgate.original.resolved", resolved);
            }
        }
    }

    fn request(&mut self, event: &RequestEvent) {
        self.optional("http.request.method", event.method.as_ref().map(http::Method::as_str));
        self.optional("url.scheme", event.scheme);
        self.optional("server.address", event.host.as_deref());
        if let Some(port) = event.port {
            self.number("server.port", port.into());
        }
        if let Some(path) = &event.path {
            self.key("url.path");
            self.quoted(|line| string(path, MAX_PATH, line));
        }
        self.optional("url.query", event.query.as_deref());
        self.optional("network.protocol.version", event.downstream_version.map(|version| version.as_str()));
        self.number("http.request.body.size", event.request_bytes);
    }

    fn answer(&mut self, event: &RequestEvent) {
        if let Some(status) = event.status {
            self.number("http.response.status_code", status.into());
        }
        self.number("http.response.body.size", event.response_bytes);
        self.optional("outgate.flag", event.flag.map(|flag| flag.as_str()));
        self.optional("error.type", event.error);
        self.optional("outgate.error.detail", event.error_detail.as_deref());
        self.optional("outgate.sent", event.sent.map(|sent| sent.as_str()));
        self.optional("outgate.upgrade", event.upgrade);
    }

    fn upstream(&mut self, event: &RequestEvent) {
        self.optional("outgate.provider", event.provider.as_deref());
        self.optional("outgate.route", event.route.as_deref());
        self.number("outgate.generation", event.generation);
        self.optional("outgate.credential", event.credential.as_deref());
        self.number("outgate.attempts", event.attempts.into());
        self.list("outgate.retry.reason", event.retry_reasons.iter().copied());
        self.list("outgate.shadow", event.shadowed.iter().map(|label| &**label));
        if event.scrubbed > 0 {
            self.number("outgate.scrubbed", event.scrubbed);
        }
        if let Some(peer) = event.upstream {
            self.key("network.peer.address");
            self.quoted(|line| ip(peer.ip(), line));
            self.number("network.peer.port", peer.port().into());
        }
        self.optional("outgate.upstream.protocol", event.upstream_version.map(|version| version.as_str()));
        if let Some(reused) = event.connection_reused {
            self.boolean("outgate.upstream.reused", reused);
        }
    }

    /// Milliseconds with three decimals.
    fn durations(&mut self, timings: &Timings) {
        self.key("duration");
        self.0.extend_from_slice(b"{\"total\":");
        millis(timings.total, self.0);
        let phases = [
            ("queue", timings.queue),
            ("dns", timings.dns),
            ("connect", timings.connect),
            ("tls", timings.tls),
            ("first_byte", timings.first_byte),
            ("body", timings.body),
        ];
        for (phase, duration) in phases {
            if let Some(duration) = duration {
                self.key(phase);
                millis(duration, self.0);
            }
        }
        self.0.push(b'}');
    }

    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn boolean(&mut self, key: &'static str, value: bool) {
        self.key(key);
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn quoted(&mut self, content: impl FnOnce(&mut Vec<u8>)) {
        self.0.push(b'"');
        content(self.0);
        self.0.push(b'"');
    }

    fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.quoted(|line| string(value, MAX_STRING, line));
    }

    fn optional(&mut self, key: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// Nothing at all where the list is empty.
    fn list<'v>(&mut self, key: &'static str, values: impl ExactSizeIterator<Item = &'v str>) {
        let last = values.len();
        for (at, value) in values.enumerate() {
            if at == 0 {
                self.key(key);
            }
            self.0.push(if at == 0 { b'[' } else { b',' });
            self.quoted(|line| string(value, MAX_STRING, line));
            if at + 1 == last {
                self.0.push(b']');
            }
        }
    }

    fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        number(value, self.0);
    }
}
