//! What outgate tells about itself: the access log, the metrics, and the identities of requests and traces.
//!
//! One finished exchange is one [`RequestEvent`]; [`Telemetry::emit`] writes its log line and updates the metrics together, so
//! that the two never disagree. Nothing here knows a secret: what could hold one comes in already redacted ([`Redaction`]).

mod flags;
mod redact;
mod traces;

pub use flags::Flag;
pub use redact::{MASK, QueryMode, Redaction, without_userinfo};
pub use traces::{HexText, RequestId, TraceId, TraceParent, new_request_id};
