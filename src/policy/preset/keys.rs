//! The formats of all keys that the presets know: the built-in patterns by which free-text fields of the log are masked.
//! Secrets whose beginning tells nothing are not here; those are masked by their exact value.

use super::header::{Header, KeyFormat};
use super::pattern::Chars;
use super::{Preset, names};
use crate::telemetry::KeyShape;

/// The fewest characters after a prefix, where the preset does not say: shorter ones are words.
const LEAST: usize = 8;

/// The shapes of all built-in presets. Reads them all, so it is for the start and not for a request.
pub fn shapes() -> Vec<KeyShape> {
    names().filter_map(Preset::named).flat_map(|preset| shapes_of(&preset.header)).collect()
}

/// The shapes of one preset's secrets.
pub fn shapes_of(header: &Header) -> Vec<KeyShape> {
    let secrets = header.keys.iter().filter(|key| key.secret);
    secrets.flat_map(|key| key.prefix.iter().filter_map(|prefix| shape(prefix, key))).collect()
}

fn shape(prefix: &str, key: &KeyFormat) -> Option<KeyShape> {
    let chars = Chars::parse(key.chars.as_deref()?).ok()?;
    Some(KeyShape::new(prefix, chars.bits(), key.least.unwrap_or(LEAST)))
}
