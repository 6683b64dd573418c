//! The line of one event in the access log: `json` for machines ([`json`]), `text` for people ([`text`]).
//!
//! Both write into a buffer of the caller, so a warm buffer makes a line without allocation. One event is one line, whatever
//! it holds: fields are escaped and cut ([`escape`]).

mod escape;
mod json;
mod text;

#[cfg(test)]
mod tests;

use super::RequestEvent;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// One JSON object a line, with OpenTelemetry's names where they exist.
    #[default]
    Json,
    /// Aligned columns.
    Text,
}

impl LogFormat {
    /// Appends the line of `event`, with its newline, to `line`.
    pub fn write(self, event: &RequestEvent, line: &mut Vec<u8>) {
        match self {
            Self::Json => json::write(event, line),
            Self::Text => text::write(event, line),
        }
        line.push(b'\n');
    }
}
