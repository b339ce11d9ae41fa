//! What a plan has become, for people.

use std::time::Duration;

use codec::Plan;
use comfy_table::{Table, presets};

/// Steps in a plan are logarithms in units of so many to the octave.
const GRID_PER_OCTAVE: f64 = 48.0;

/// Prints tiers, components and size.
pub(super) fn print(plan: &Plan, bytes: usize, elapsed: Duration) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["tier", "log2 step", "with shifts", "components of keys", "of values"]);
    for (entry, shifted) in plan.tiers().iter().zip(plan.shifted_tiers().unwrap_or(plan.tiers())) {
        let (keys, values) = plan.kept_components(entry.tier);
        let log2 = |grid: i16| format!("{:.2}", f64::from(grid) / GRID_PER_OCTAVE);
        table.add_row([
            entry.tier.to_string(),
            log2(entry.keys),
            log2(shifted.keys),
            keys.to_string(),
            values.to_string(),
        ]);
    }
    let (keys, values) = plan.components();
    eprintln!("{table}");
    eprintln!(
        "{keys} components of keys and {values} of values, {} on disk, made in {}",
        indicatif::HumanBytes(bytes as u64),
        indicatif::HumanDuration(elapsed)
    );
}
