//! A mistake in the configuration of one layer, told without knowing where in the policy that configuration stands.

use std::borrow::Cow;

/// One step below a layer's own key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of a map.
    Key(Cow<'static, str>),
    /// An entry of a list.
    Index(usize),
}

/// What is wrong, where below the layer's key, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The way from the layer's key to the value.
    pub at: Vec<Step>,
    /// What is wrong.
    pub message: Cow<'static, str>,
    /// What would be right.
    pub hint: Option<Cow<'static, str>>,
}

/// Collects the mistakes of one layer: all of them, not the first.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// A mistake at `a.b.0`: names are keys, numbers are places in a list; the empty text is the layer's own key.
    pub fn add(&mut self, at: &str, message: impl Into<Cow<'static, str>>) {
        self.0.push(Mistake { at: steps(at), message: message.into(), hint: None });
    }

    /// The same, with what would be right.
    pub fn hint(
        &mut self,
        at: &str,
        message: impl Into<Cow<'static, str>>,
        hint: impl Into<Cow<'static, str>>,
    ) {
        self.0.push(Mistake { at: steps(at), message: message.into(), hint: Some(hint.into()) });
    }

    /// All of them, in order.
    pub fn into_vec(self) -> Vec<Mistake> {
        self.0
    }
}

fn steps(at: &str) -> Vec<Step> {
    at.split('.')
        .filter(|step| !step.is_empty())
        .map(|step| match step.parse() {
            Ok(index) => Step::Index(index),
            Err(_) => Step::Key(step.to_owned().into()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_with_dots() {
        let mut mistakes = Mistakes::default();
        mistakes.add("0.rate", "zero");
        mistakes.hint("", "wrong", "right");
        let found = mistakes.into_vec();
        assert_eq!(found[0].at, [Step::Index(0), Step::Key("rate".into())]);
        assert!(found[1].at.is_empty());
        assert_eq!(found[1].hint.as_deref(), Some("right"));
    }
}
