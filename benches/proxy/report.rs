//! The table: a line per figure, with its spread over the rounds, its target and a verdict.

/// One figure over all rounds.
#[derive(Clone, Copy)]
pub struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of at least one value; not-a-number without any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        // An even number of rounds has two in the middle.
        Self { median: (at(last / 2) + at(values.len() / 2)) / 2.0, min: at(0), max: at(last) }
    }

    /// The ratio of paired rounds: noise that both halves of a pair share cancels.
    pub fn of_ratios(numerators: &[f64], denominators: &[f64]) -> Self {
        Self::of(numerators.iter().zip(denominators).map(|(above, below)| above / below))
    }

    /// The difference of paired rounds.
    pub fn of_differences(minuends: &[f64], subtrahends: &[f64]) -> Self {
        Self::of(minuends.iter().zip(subtrahends).map(|(whole, part)| whole - part))
    }
}

/// The value at or below which the share `rank` (0 to 1) of `values` lies. Sorts them.
pub fn percentile(values: &mut [f64], rank: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() as f64 * rank).ceil() as usize;
    values.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Prints the head of the table.
pub fn head() {
    println!("{:<68} {:>9} {:>9} {:>9}  {:<7} {:>8}", "", "median", "min", "max", "unit", "at most");
}

/// Begins a section.
pub fn section(title: &str) {
    println!("\n{title}");
}

/// A figure without a target.
pub fn figure(label: &str, unit: &str, spread: Spread) {
    println!("{}", line(label, unit, spread).trim_end());
}

/// A figure with a target: the median decides.
pub fn target(label: &str, unit: &str, spread: Spread, at_most: f64) {
    let verdict = if spread.median <= at_most { "ok" } else { "misses" };
    println!("{} {at_most:>8}  {verdict}", line(label, unit, spread));
}

/// Something that the reader has to know.
pub fn note(text: &str) {
    println!("  ! {text}");
}

fn line(label: &str, unit: &str, Spread { median, min, max }: Spread) -> String {
    let [median, min, max] = [median, min, max].map(digits);
    format!("  {label:<66} {median:>9} {min:>9} {max:>9}  {unit:<7}")
}

/// Three or more digits that mean something.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
