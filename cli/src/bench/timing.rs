//! Medians of runs in turns: on a noisy machine only what ran side by side may be compared.

use std::borrow::Cow;
use std::time::Instant;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// Named figures, and words that belong to them, in the order they were put.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(Cow<'static, str>, Value)>);

impl Figures {
    /// Adds a figure rounded to four digits after the point.
    pub(crate) fn put(&mut self, name: impl Into<Cow<'static, str>>, value: f64) {
        self.0.push((name.into(), ((value * 1e4).round() / 1e4).into()));
    }

    /// Adds the middle, the upper ends and the largest of times in seconds, as microseconds.
    pub(crate) fn put_percentiles(&mut self, name: &str, mut seconds: Vec<f64>) {
        seconds.sort_by(f64::total_cmp);
        for (percent, suffix) in [(50, "p50"), (90, "p90"), (99, "p99"), (100, "max")] {
            // Nearest rank: so many percent of all are not above it.
            let rank = (seconds.len() * percent).div_ceil(100);
            let value = seconds.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN);
            self.put(format!("{name}_{suffix}_us"), value * 1e6);
        }
    }

    /// Adds a word, such as the device that figures come from.
    pub(crate) fn say(&mut self, name: &'static str, word: impl Into<String>) {
        self.0.push((name.into(), Value::String(word.into())));
    }

    /// In the order they were put.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// Seconds that `f` takes.
pub(crate) fn seconds<R>(f: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<(f64, R)> {
    let started = Instant::now();
    let result = f()?;
    Ok((started.elapsed().as_secs_f64(), result))
}

/// The middle value, of an even number the lower of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut figures = Figures::default();
        figures.put_percentiles("wait", (1..=200).rev().map(|n| f64::from(n) * 1e-6).collect());
        let figures: Vec<_> = figures.iter().map(|(name, value)| (name, value.as_f64().unwrap())).collect();
        let expected =
            [("wait_p50_us", 100.0), ("wait_p90_us", 180.0), ("wait_p99_us", 198.0), ("wait_max_us", 200.0)];
        assert_eq!(figures, expected);
    }
}
