//! kvtc-paper's tables: plain axes from the same moments, errors on held-out rows.

use codec::Plan;
use codec::fit::add_paper;
use indicatif::MultiProgress;

use super::held_out::HeldOut;
use super::moments::Side;
use super::{Args, bar, cut, show};

/// Held-out rows that errors are measured on.
const ROWS: usize = 2_048;

/// Rows as they are, which kvtc-paper codes.
pub(super) fn rows(held_out: &HeldOut, features: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = held_out.ids.len();
    let every = rows.div_ceil(ROWS).max(1);
    let sample = |side: &[f32]| side.chunks_exact(features).step_by(every).flatten().copied().collect();
    (sample(&held_out.keys), sample(&held_out.values))
}

/// The plan with kvtc-paper's tables.
pub(super) fn add(
    args: &Args,
    plan: &Plan,
    (keys, values): (&Side, &Side),
    rows: (Vec<f32>, Vec<f32>),
    bars: &MultiProgress,
) -> anyhow::Result<Plan> {
    let bar = bar(bars, 1, "kvtc-paper");
    let (of_keys, of_values) = (cut(args, keys.plain_basis()?), cut(args, values.plain_basis()?));
    let plan = add_paper(plan, (of_keys, rows.0), (of_values, rows.1), &mut |progress| show(&bar, progress))?;
    bar.finish_with_message("kvtc-paper");
    Ok(plan)
}
