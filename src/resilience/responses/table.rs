//! The table as compiled, and how it judges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::response::Parts;
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::Serialize;

use super::format::{self, Clock, Format};
use super::glob::Glob;
use super::look::Seen;
use crate::resilience::pointer::Pointer;
use crate::resilience::verdict::{Class, Verdict};

/// The rows of a route, as true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TableSettings {
    pub(super) rows: Vec<Row>,
}

impl TableSettings {
    /// Whether a row looks into bodies.
    pub fn looks(&self) -> bool {
        self.rows.iter().any(Row::wants_body)
    }

    /// Whether a row pauses all buckets of a host.
    pub fn pauses_hosts(&self) -> bool {
        self.rows.iter().any(|row| row.whole_host)
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Row {
    /// Empty: any.
    pub(super) statuses: Box<[StatusRange]>,
    pub(super) header: Box<[(HeaderName, Glob)]>,
    /// Empty: the body is not looked at.
    pub(super) json: Box<[Field]>,
    pub(super) text: Option<Glob>,
    pub(super) class: Class,
    pub(super) acted: bool,
    pub(super) wait: Option<WaitField>,
    /// All buckets of the host pause.
    pub(super) whole_host: bool,
}

/// Statuses from `from` to `to`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StatusRange {
    pub(super) from: u16,
    pub(super) to: u16,
}

/// A place in a JSON document and what must stand there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Field {
    pub(super) pointer: Pointer,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    /// Anything but null, and a map or list that holds nothing.
    Any,
    Text(Glob),
    Number(serde_json::Number),
    Bool(bool),
}

/// Where an answer says how long to wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WaitField {
    pub(super) source: Option<(WaitSource, Format)>,
    /// Where the answer says nothing.
    pub(super) default: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum WaitSource {
    Header(HeaderName),
    Body(Pointer),
}

impl Row {
    pub(super) fn matches_head(&self, head: &Parts) -> bool {
        let status = head.status.as_u16();
        let in_range = |range: &StatusRange| (range.from..=range.to).contains(&status);
        (self.statuses.is_empty() || self.statuses.iter().any(in_range))
            && self.header.iter().all(|(name, glob)| {
                head.headers.get_all(name).iter().any(|value| glob.matches(value.as_bytes()))
            })
    }

    /// Whether the row says something of the body.
    pub(super) fn needs_body(&self) -> bool {
        !self.json.is_empty() || self.text.is_some()
    }

    /// Whether a look into the body is of use: for the match, or for the wait.
    pub(super) fn wants_body(&self) -> bool {
        let wait = self.wait.as_ref().and_then(|wait| wait.source.as_ref());
        self.needs_body() || wait.is_some_and(|(source, _)| matches!(source, WaitSource::Body(_)))
    }

    /// Whether no body but a JSON map can make a difference.
    pub(super) fn reads_maps_alone(&self) -> bool {
        self.text.is_none() && self.json.iter().any(|field| field.pointer.begins_in_map())
    }

    pub(super) fn matches_body(&self, seen: &Seen) -> bool {
        let fits =
            |field: &Field, document| field.pointer.any(document, &mut |found| field.value.matches(found));
        (self.json.is_empty()
            || seen.json().is_some_and(|document| self.json.iter().all(|field| fits(field, document))))
            && self.text.as_ref().is_none_or(|glob| glob.matches(seen.text()))
    }
}

impl Value {
    fn matches(&self, found: &serde_json::Value) -> bool {
        match (self, found) {
            (Self::Any, serde_json::Value::Object(map)) => !map.is_empty(),
            (Self::Any, serde_json::Value::Array(list)) => !list.is_empty(),
            (Self::Any, found) => !found.is_null(),
            (Self::Text(glob), serde_json::Value::String(text)) => glob.matches(text.as_bytes()),
            (Self::Bool(value), serde_json::Value::Bool(found)) => value == found,
            // 104 and 104.0 are the same number.
            (Self::Number(number), serde_json::Value::Number(found)) => {
                number == found || number.as_f64() == found.as_f64()
            }
            (Self::Text(_) | Self::Bool(_) | Self::Number(_), _) => false,
        }
    }
}

/// The table of a route with its counters.
#[derive(Debug, Default)]
pub struct Table {
    settings: TableSettings,
    looks: bool,
    counts: Arc<JudgeCounts>,
}

/// What the tables of a provider counted; outlives reloads.
#[derive(Debug, Default)]
pub struct JudgeCounts {
    absurd: AtomicU64,
    looked: AtomicU64,
    unread: AtomicU64,
}

/// The same as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JudgeStatus {
    /// Waits that could not be read and were left out, or of more than a year and cut to that.
    pub absurd_waits: u64,
    /// Bodies that were looked into.
    pub looked: u64,
    /// Bodies that a row asked for and that could not be read: not JSON, too long, too slow, or in another coding.
    pub unread: u64,
}

impl Table {
    /// A table of these rows.
    pub fn new(settings: TableSettings, counts: Arc<JudgeCounts>) -> Self {
        Self { looks: settings.looks(), settings, counts }
    }

    /// Where it counts.
    #[cfg(test)]
    pub(super) fn counts(&self) -> &JudgeCounts {
        &self.counts
    }

    /// Whether a row looks into bodies.
    pub(super) fn looks(&self) -> bool {
        self.looks
    }

    /// Whether a row pauses all buckets of a host.
    pub fn pauses_hosts(&self) -> bool {
        self.settings.pauses_hosts()
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.settings.rows
    }

    pub(super) fn count_look(&self, read: bool) {
        let counter = if read { &self.counts.looked } else { &self.counts.unread };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The verdict of a row, or where none matched of the status alone.
    pub(super) fn verdict(&self, row: Option<&Row>, head: &Parts, seen: Option<&Seen>) -> Verdict {
        let (class, acted) = match row {
            Some(row) => (row.class, row.acted),
            None => {
                let class = class_of(head.status);
                (class, class.acted())
            }
        };
        if class == Class::Success {
            return Verdict::SUCCESS;
        }
        let wait = self.wait(row.and_then(|row| row.wait.as_ref()), &head.headers, seen);
        Verdict { class, acted, wait }
    }

    /// What the row names, or else `Retry-After`, or else the row's default.
    fn wait(&self, field: Option<&WaitField>, headers: &HeaderMap, seen: Option<&Seen>) -> Option<Duration> {
        let named = field.and_then(|field| {
            let (source, format) = field.source.as_ref()?;
            let text = match source {
                WaitSource::Header(name) => headers.get(name)?.to_str().ok().map(str::to_owned),
                WaitSource::Body(pointer) => Some(seen.and_then(|seen| seen.scalar(pointer))?),
            };
            let clock = if format.is_absolute() { Clock::of(headers) } else { UNUSED };
            self.meant(text.and_then(|text| format::read(*format, &text, clock)).map(|span| span.least))
        });
        let after = || {
            let text = headers.get(header::RETRY_AFTER)?;
            let text = text.to_str().ok();
            self.meant(text.and_then(|text| format::retry_after(text, Clock::of(headers))))
        };
        named.or_else(after).or(field.and_then(|field| field.default))
    }

    fn meant(&self, read: Option<Duration>) -> Option<Duration> {
        if read.is_none_or(|wait| wait >= format::MAX_SPAN) {
            self.counts.absurd.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl JudgeCounts {
    /// What was counted so far.
    pub fn status(&self) -> JudgeStatus {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        JudgeStatus {
            absurd_waits: load(&self.absurd),
            looked: load(&self.looked),
            unread: load(&self.unread),
        }
    }
}

/// For formats that need no clock.
const UNUSED: Clock = Clock::exact(std::time::SystemTime::UNIX_EPOCH);

/// What a status means where no row says otherwise.
fn class_of(status: StatusCode) -> Class {
    match status.as_u16() {
        429 => Class::Throttle,
        401 => Class::Unauthorized,
        502..=504 => Class::Unavailable,
        400..=499 => Class::Final,
        _ => Class::Success,
    }
}
