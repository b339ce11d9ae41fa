//! Medians of runs in turns: on a noisy machine only what ran side by side may be compared.

use std::time::Instant;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// Named figures, and words that belong to them, in the order they were put.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(&'static str, Value)>);

impl Figures {
    /// Adds a figure rounded to four digits after the point.
    pub(crate) fn put(&mut self, name: &'static str, value: f64) {
        self.0.push((name, ((value * 1e4).round() / 1e4).into()));
    }

    /// Adds a word, such as the device that figures come from.
    pub(crate) fn say(&mut self, name: &'static str, word: impl Into<String>) {
        self.0.push((name, Value::String(word.into())));
    }

    /// In the order they were put.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
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
