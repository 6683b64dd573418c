//! `mode: shadow`: a rule that is being tried out. What it would refuse is counted and logged, and passes.

use schemars::JsonSchema;
use serde::Deserialize;

/// Whether refusals are real.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They are.
    #[default]
    Enforce,
    /// They are counted and logged, and the request passes.
    Shadow,
}

impl Mode {
    /// Whether the rule only says what it would do: itself, or because the whole provider is tried out.
    pub fn is_shadow(self) -> bool {
        matches!(self, Self::Shadow)
    }
}
