//! Mistakes in a policy, told to people: all of them at once, each with its place, its path, what is wrong and what would
//! be right.
//!
//! ```text
//! proxy.yaml:12:5: providers.stripe.retry.atempts: unknown key
//!   did you mean `attempts`?
//! ```
//!
//! A source line is never quoted: the line next to a mistake may hold a secret, and these messages go to logs.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::tree::{Place, PolicyPath, Sources};

/// How many mistakes are kept; what comes after is only counted.
pub const MAX_DIAGNOSTICS: usize = 100;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where it was written; `None` where nothing was written (an empty directory).
    pub place: Option<Place>,
    /// The value it is about; the root prints nothing.
    pub path: PolicyPath,
    /// What is wrong, in one line, without values that may be secret.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// A mistake at a place.
    pub fn new(place: Option<Place>, path: PolicyPath, message: impl Into<String>) -> Self {
        Self { place, path, message: message.into(), hint: None }
    }

    /// With what would be right.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The mistake as one line, and a second one for the hint; with a final newline. `colour` is for terminals.
    pub fn render(&self, sources: &Sources, colour: bool) -> String {
        let (bold, red, cyan, plain) =
            if colour { ("\u{1b}[1m", "\u{1b}[31m", "\u{1b}[36m", "\u{1b}[0m") } else { ("", "", "", "") };
        let mut out = String::new();
        if let Some(place) = self.place {
            let _ = write!(out, "{bold}{}{plain}: ", render_place(place, sources));
        }
        if !self.path.is_root() {
            let _ = write!(out, "{}: ", self.path);
        }
        let _ = writeln!(out, "{red}{}{plain}", printable(&self.message));
        if let Some(hint) = &self.hint {
            let _ = writeln!(out, "  {cyan}{}{plain}", printable(hint));
        }
        out
    }
}

/// `proxy.yaml:12:5`, or `proxy.yaml` for the file as a whole.
pub fn render_place(place: Place, sources: &Sources) -> String {
    let name = printable(sources.name(place.source));
    if place.line == 0 { name } else { format!("{name}:{}:{}", place.line, place.column) }
}

/// Control characters (a file name or a key may hold some) would let a policy steer the terminal that shows its mistakes.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let escaped = character.is_control().then(|| character.escape_default());
            let kept = escaped.is_none().then_some(character);
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}

/// All mistakes of one reading, bounded to [`MAX_DIAGNOSTICS`].
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    kept: Vec<Diagnostic>,
    left_off: usize,
}

impl Diagnostics {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a mistake, or counts it where there are too many.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if self.is_full() {
            self.left_off += 1;
        } else {
            self.kept.push(diagnostic);
        }
    }

    /// Whether this was told of this place already, maybe by another path: what stands in `defaults` or at a provider comes
    /// by again with every provider and route that has it.
    pub fn knows(&self, place: Option<Place>, message: &str) -> bool {
        self.kept.iter().any(|known| known.place == place && known.message == message)
    }

    /// Whether one of the first `count` mistakes is about this value: at its place, by a path with the same end.
    pub fn has_among(&self, count: usize, place: Place, end: &PolicyPath) -> bool {
        let about =
            |known: &Diagnostic| known.place == Some(place) && known.path.steps().ends_with(end.steps());
        self.kept.iter().take(count).any(about)
    }

    /// Keeps a mistake at a place.
    pub fn report(&mut self, place: Place, path: PolicyPath, message: impl Into<String>) {
        self.push(Diagnostic::new(Some(place), path, message));
    }

    /// Whether there is no mistake.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many mistakes are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether further mistakes would only be counted.
    pub fn is_full(&self) -> bool {
        self.kept.len() >= MAX_DIAGNOSTICS
    }

    /// The mistakes in the order of their places, each once. Where some were left off, a last line says how many.
    ///
    /// One wrong line in `defaults` is met once for each provider, under another path each time: it is told once.
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.kept.sort_by(|a, b| (a.place, &a.path, &a.message).cmp(&(b.place, &b.path, &b.message)));
        let mut seen = HashSet::new();
        self.kept.retain(|diagnostic| {
            let path = diagnostic.place.is_none().then(|| diagnostic.path.clone());
            seen.insert((diagnostic.place, path, diagnostic.message.clone()))
        });
        if self.left_off > 0 {
            let message = format!("{} more mistakes are not shown", self.left_off);
            self.kept.push(Diagnostic::new(None, PolicyPath::root(), message));
        }
        self.kept
    }

    /// `Ok` where there is no mistake, else the rejection that tells them.
    pub fn into_result(self, sources: &Sources) -> Result<(), Rejection> {
        if self.is_empty() { Ok(()) } else { Err(Rejection::new(self, sources.clone())) }
    }
}

/// A policy that is not taken, with all the reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The mistakes, sorted, at least one.
    pub diagnostics: Vec<Diagnostic>,
    /// The names of the texts that the places refer to.
    pub sources: Sources,
}

impl Rejection {
    /// The rejection for these mistakes.
    pub fn new(diagnostics: Diagnostics, sources: Sources) -> Self {
        Self { diagnostics: diagnostics.into_sorted(), sources }
    }

    /// All mistakes, one or two lines each. `colour` is for terminals.
    pub fn render(&self, colour: bool) -> String {
        self.diagnostics.iter().map(|diagnostic| diagnostic.render(&self.sources, colour)).collect()
    }
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Rejection {}

/// The candidate that a mistyped word was most likely meant to be, if one is near enough: a third of the word's length
/// in edits (insert, delete, replace, swap neighbours); case and `-` for `_` count nothing.
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = folded(word);
    // Nobody mistypes a name of that length; the bound keeps the table below small.
    if word.len() > 64 {
        return None;
    }
    let allowed = (word.len() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(&word, &folded(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn folded(word: &str) -> Vec<char> {
    word.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Optimal string alignment: Levenshtein's distance in which a swap of neighbours counts one.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> (Sources, Place) {
        let mut sources = Sources::new();
        let source = sources.add("proxy.yaml");
        (sources, Place { source, line: 12, column: 5 })
    }

    #[test]
    fn a_mistake_is_a_line_and_its_hint_another() {
        let (sources, place) = sources();
        let path = PolicyPath::root().key("retry").key("atempts");
        let mistake = Diagnostic::new(Some(place), path, "unknown key").hint("did you mean `attempts`?");
        assert_eq!(
            mistake.render(&sources, false),
            "proxy.yaml:12:5: retry.atempts: unknown key\n  did you mean `attempts`?\n"
        );
        let coloured = mistake.render(&sources, true);
        assert!(coloured.starts_with("\u{1b}[1mproxy.yaml:12:5\u{1b}[0m: retry.atempts: "), "{coloured:?}");
        let whole = Diagnostic::new(Some(Place::whole(place.source)), PolicyPath::root(), "not a file");
        assert_eq!(whole.render(&sources, false), "proxy.yaml: not a file\n");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let mut sources = Sources::new();
        let source = sources.add("a\u{1b}[2J.yaml");
        let mistake = Diagnostic::new(Some(Place::whole(source)), PolicyPath::root(), "bad\nsecond\u{7f} ü");
        assert_eq!(mistake.render(&sources, false), "a\\u{1b}[2J.yaml: bad\\nsecond\\u{7f} ü\n");
    }

    #[test]
    fn mistakes_are_sorted_told_once_and_bounded() {
        let (sources, place) = sources();
        let mut all = Diagnostics::new();
        for line in (1..=MAX_DIAGNOSTICS as u32 + 20).rev() {
            all.report(Place { line, ..place }, PolicyPath::root(), "wrong");
        }
        assert!(all.is_full());
        let sorted = all.into_sorted();
        assert_eq!(sorted.len(), MAX_DIAGNOSTICS + 1);
        assert!(sorted[..MAX_DIAGNOSTICS].is_sorted_by_key(|diagnostic| diagnostic.place));
        assert_eq!(sorted[MAX_DIAGNOSTICS].message, "20 more mistakes are not shown");

        let mut same = Diagnostics::new();
        same.report(place, PolicyPath::root().key("a"), "wrong");
        same.report(place, PolicyPath::root().key("b"), "wrong");
        same.report(place, PolicyPath::root().key("b"), "wrong too");
        let rejection = same.into_result(&sources).unwrap_err();
        assert_eq!(rejection.to_string(), "proxy.yaml:12:5: a: wrong\nproxy.yaml:12:5: b: wrong too");
    }

    #[test]
    fn the_nearest_word_is_suggested() {
        let keys = ["attempts", "timeouts", "hosts", "on", "max_wait", "retry"];
        for (word, nearest) in [
            ("atempts", Some("attempts")),
            ("host", Some("hosts")),
            ("timeout", Some("timeouts")),
            ("rtery", Some("retry")),
            ("max-wait", Some("max_wait")),
            ("Attempts", Some("attempts")),
            ("no", Some("on")),
            ("x", None),
            ("z9", None),
            ("completely_else", None),
            ("", None),
        ] {
            assert_eq!(suggest(word, keys), nearest, "{word}");
        }
        assert_eq!(suggest(&"attempts".repeat(100), keys), None);
    }
}
