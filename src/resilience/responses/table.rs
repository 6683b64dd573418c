//! The table as compiled, and how it judges.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::response::Parts;
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::Serialize;

use super::format::{self, Clock, Format};
use super::glob::Glob;
use crate::resilience::verdict::{Class, Verdict};

/// The rows of a route, as true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TableSettings {
    pub(super) rows: Vec<Row>,
}

impl TableSettings {
    /// Whether a row looks into bodies.
    pub fn looks(&self) -> bool {
        self.rows.iter().any(|row| !row.json.is_empty())
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
    pub(super) class: Class,
    pub(super) acted: bool,
    pub(super) wait: Option<WaitField>,
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
    pub(super) pointer: Box<str>,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    /// Anything but null.
    Any,
    Text(Glob),
    Number(serde_json::Number),
    Bool(bool),
}

/// Where an answer says how long to wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WaitField {
    pub(super) header: HeaderName,
    pub(super) format: Format,
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

    pub(super) fn matches_body(&self, document: &serde_json::Value) -> bool {
        self.json
            .iter()
            .all(|field| document.pointer(&field.pointer).is_some_and(|found| field.value.matches(found)))
    }
}

impl Value {
    fn matches(&self, found: &serde_json::Value) -> bool {
        match (self, found) {
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
    absurd: AtomicU64,
    looked: AtomicU64,
    unread: AtomicU64,
}

/// The counters of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableStatus {
    /// Waits that could not be read.
    pub absurd_waits: u64,
    /// Bodies that were looked into.
    pub looked: u64,
    /// Bodies that a row asked for and that could not be read: not JSON, too long, too slow, or in another coding.
    pub unread: u64,
}

impl Table {
    /// A table of these rows.
    pub fn new(settings: TableSettings) -> Self {
        Self { looks: settings.looks(), settings, ..Self::default() }
    }

    /// The counters.
    pub fn status(&self) -> TableStatus {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TableStatus {
            absurd_waits: load(&self.absurd),
            looked: load(&self.looked),
            unread: load(&self.unread),
        }
    }

    /// Whether a row looks into bodies.
    pub(super) fn looks(&self) -> bool {
        self.looks
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.settings.rows
    }

    pub(super) fn count_look(&self, read: bool) {
        let counter = if read { &self.looked } else { &self.unread };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The verdict of a row, or where none matched of the status alone.
    pub(super) fn verdict(&self, row: Option<&Row>, head: &Parts) -> Verdict {
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
        let wait = self.wait(row.and_then(|row| row.wait.as_ref()), &head.headers);
        Verdict { class, acted, wait }
    }

    /// What the row names, or else `Retry-After`.
    fn wait(&self, field: Option<&WaitField>, headers: &HeaderMap) -> Option<Duration> {
        let named = field.and_then(|field| {
            let text = headers.get(&field.header)?;
            let clock = if field.format.is_absolute() { Clock::of(headers) } else { UNUSED };
            self.readable(text.to_str().ok().and_then(|text| format::read(field.format, text, clock)))
        });
        named.map(|span| span.least).or_else(|| {
            let text = headers.get(header::RETRY_AFTER)?;
            let text = text.to_str().ok();
            self.readable(text.and_then(|text| format::retry_after(text, Clock::of(headers))))
        })
    }

    fn readable<T>(&self, read: Option<T>) -> Option<T> {
        if read.is_none() {
            self.absurd.fetch_add(1, Ordering::Relaxed);
        }
        read
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
