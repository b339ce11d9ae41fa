//! Medians of runs in turns: on a noisy machine only what ran side by side may be compared.

use std::time::Instant;

/// Named figures in the order they were measured.
pub(crate) type Figures = serde_json::Map<String, serde_json::Value>;

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

/// Adds a figure rounded to four digits after the point.
pub(crate) fn put(figures: &mut Figures, name: &str, value: f64) {
    figures.insert(name.into(), ((value * 1e4).round() / 1e4).into());
}
