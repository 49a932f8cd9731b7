//! Samples and tables.

use std::time::{Duration, Instant};

/// Durations of the same thing, measured repeatedly.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Runs `job` so many times and keeps how long each run took.
    pub(crate) fn of<E>(runs: usize, mut job: impl FnMut() -> Result<(), E>) -> Result<Self, E> {
        let mut samples = Self::default();
        for _ in 0..runs {
            let began = Instant::now();
            job()?;
            samples.push(began.elapsed());
        }
        Ok(samples)
    }

    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sample below which `percent` of all lie.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get(last * percent / 100).copied().unwrap_or_default()
    }

    /// Median and 99th percentile.
    pub(crate) fn percentiles(&self) -> [Duration; 2] {
        [self.percentile(50), self.percentile(99)]
    }

    /// The same, as text.
    pub(crate) fn cells(&self) -> [String; 2] {
        self.percentiles().map(text)
    }
}

/// A duration with three digits and a unit.
pub(crate) fn text(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "us"),
    };
    format!(
        "{value:.prec$} {unit}",
        prec = if value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        }
    )
}

/// Prints a heading and the head of a Markdown table.
pub(crate) fn heading(title: &str, columns: &[&str]) {
    println!("\n### {title}\n\n| {} |\n|{}", columns.join(" | "), " --- |".repeat(columns.len()));
}

/// Prints one row.
pub(crate) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}
