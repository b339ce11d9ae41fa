//! Numbers as people read them.

use std::time::Duration;

/// Steps in a plan are logarithms in units of so many to the octave.
const GRID_PER_OCTAVE: f64 = 48.0;

/// Log2 of a step.
pub(super) fn log2(grid: i16) -> String {
    format!("{:.2}", f64::from(grid) / GRID_PER_OCTAVE)
}

/// A step.
pub(super) fn step(grid: i16) -> f64 {
    (f64::from(grid) / GRID_PER_OCTAVE).exp2()
}

/// A share, to three digits where it is small.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        _ if percent >= 9.995 => format!("{percent:.1} %"),
        _ if percent >= 0.9995 => format!("{percent:.2} %"),
        _ => format!("{percent:.3} %"),
    }
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// With a comma between thousands.
pub(super) fn thousands(number: usize) -> String {
    indicatif::HumanCount(number as u64).to_string()
}

/// Fewest components, strongest first, that have this share of the energy of all.
pub(super) fn components_for(sigma: &[f32], share: f64) -> usize {
    let energy = |sigma: &f32| f64::from(*sigma).powi(2);
    let wanted = share * sigma.iter().map(energy).sum::<f64>();
    let reached = sigma.iter().scan(0.0, |sum, sigma| {
        *sum += energy(sigma);
        Some(*sum)
    });
    reached.take_while(|sum| *sum < wanted).count().saturating_add(1).min(sigma.len())
}
