//! `responses:` what an answer means. Judged once per attempt, next to the provider; the layers outside act on the verdict.
//!
//! A throttle is a 429 at one provider, a 403 with a header at another and a 200 with `ok: false` at a third; and some 429s
//! must never be sent again. So a table says which answer is which [`Class`](super::verdict::Class). The first row that
//! matches wins; what no row matches is judged by its status: 429 throttle, 401 unauthorized, 502, 503 and 504
//! unavailable, other 4xx final, anything else success.
//!
//! ```yaml
//! responses:
//!   - when: { status: 429, header: { Stripe-Rate-Limited-Reason: "*" } }
//!     is: throttle
//!   - when: { status: [403, 429], json: { /message: "*secondary rate*" } }
//!     is: throttle
//!   - when: { status: 200, json: { /ok: false, /error: ratelimited } }
//!     is: throttle
//!   - when: { status: 429, json: { /error/code: insufficient_quota } }
//!     is: quota
//!   - when: { status: 429 }
//!     is: throttle
//!     wait: { header: retry-after-ms, format: delta_ms }
//! ```
//!
//! A step `*` of a pointer is any element of a list; `text` takes the body as it is written, for XML. A wait may stand in the
//! body too (`wait: { json: /error/details/*/retryDelay, format: duration }`), and `wait: { default: 60s }` is for answers
//! that say nothing.
//!
//! Limits of the look into a body: it is taken only where a row with `json` or `text` matches the head, the content is JSON (for
//! `text` also XML, plain text and `multipart/mixed`, the form of batches; never an event stream or an upgrade), plain or gzip, and at most [`look::MOST`] bytes long ([`look::MOST_DECODED`] decoded); it
//! ends after [`look::LOOK_FOR`], so that a slow stream is handed on, and where the rows name keys of a map alone with the first byte of anything
//! else. Otherwise the row does not match. The app gets every
//! byte as it came. On routes with such rows the request's `Accept-Encoding` is narrowed to gzip, and never widened.

pub mod config;
mod encoding;
pub mod format;
mod glob;
mod layer;
pub mod look;
mod table;

pub use config::{ResponsesConfig, RowConfig};
pub use layer::Judge;
pub use table::{JudgeCounts, JudgeStatus, Table, TableSettings};
