//! The texts of the presets, built in. A preset is one file under `presets/` and its name here; a test compares the two.

/// The presets by name, in the order of the alphabet.
macro_rules! presets {
    ($($name:literal)*) => {
        const PRESETS: &[(&str, &str)] = &[$(
            ($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/presets/", $name, ".yaml"))),
        )*];
    };
}

presets! {
    "stripe"
}

/// The names of the presets, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The text of a preset, as it lies in the repository.
pub fn text(name: &str) -> Option<&'static str> {
    PRESETS.binary_search_by(|(known, _)| known.cmp(&name)).ok().map(|at| PRESETS[at].1)
}
