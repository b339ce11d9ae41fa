//! The bit plan: which components are coded together and with what type, by the paper's dynamic program (its appendix B.17).
//!
//! best\[i\]\[b\] is the least error of the first i components within b bits a token, where each block's error was measured by quantizing
//! calibration rows, not modelled. One pass up to the largest budget serves all budgets. Costs are even, so b counts pairs of
//! bits; a state keeps one byte, the block that ends at i. For n components and a budget of B bits that is n B / 2 bytes, and 1,025 rows of B / 2
//! f64 of which only the last are alive: 64 MiB and 64 MiB at n = 8,192 and tier 8 (B = 16,384), 256 and 128 MiB at 16,384 features.

use rayon::prelude::*;

use crate::paper::{BitGroup, GROUP_SIZES, GroupType, group_bits, quantize::squared_error};

/// States filled by one task.
const STRIP: usize = 2_048;

/// Types and sizes of a coded block, the order of their numbers being the choices 1 and up; choice 0 is to drop one component.
fn options() -> impl ExactSizeIterator<Item = (GroupType, usize)> {
    let kinds = [GroupType::Int2, GroupType::Int4, GroupType::Fp8];
    (0..kinds.len() * GROUP_SIZES.len())
        .map(move |i| (kinds[i / GROUP_SIZES.len()], GROUP_SIZES[i % GROUP_SIZES.len()]))
}

/// Sums of squared errors over the calibration rows.
#[derive(Debug)]
pub(crate) struct BlockErrors {
    /// Of dropping each component.
    dropped: Vec<f64>,
    /// For each option, of coding the block that starts at each component; empty where no block fits components or budget.
    coded: Vec<Vec<f64>>,
}

impl BlockErrors {
    /// Quantizes every block of `rows`, `[n, components]`, that a budget of `budget` bits can hold. Calls back with parts done and
    /// all parts.
    pub(crate) fn measure(
        rows: &[f32],
        components: usize,
        budget: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Self {
        let errors = |kind: GroupType, size: usize| -> Vec<f64> {
            let starts = (components + 1).saturating_sub(size);
            let error = |start: usize| {
                let rows = rows.chunks_exact(components);
                rows.map(|row| f64::from(squared_error(kind, &row[start..start + size]))).sum()
            };
            if group_bits(kind, size) > budget {
                return Vec::new();
            }
            (0..starts).into_par_iter().map(error).collect()
        };
        let dropped = errors(GroupType::Drop, 1);
        let total = options().len();
        let coded = options().enumerate().map(|(i, (kind, size))| {
            let errors = errors(kind, size);
            progress(i + 1, total);
            errors
        });
        Self { dropped, coded: coded.collect() }
    }
}

/// One way to end the first i components with a block.
struct Step<'a> {
    choice: u8,
    /// States before the block.
    before: &'a [f64],
    /// Pairs of bits.
    cost: usize,
    error: f64,
}

/// The plan of least error within each budget of bits a token: groups from component 0 on, the last of them coded. Calls back with
/// components done and all components.
pub(crate) fn allocate(
    errors: &BlockErrors,
    budgets: &[usize],
    progress: &mut dyn FnMut(usize, usize),
) -> Vec<Vec<BitGroup>> {
    let components = errors.dropped.len();
    let width = budgets.iter().max().map_or(0, |largest| largest / 2) + 1;
    let depth = GROUP_SIZES[GROUP_SIZES.len() - 1].min(components) + 1;
    let mut best = vec![Vec::new(); depth];
    best[0] = vec![0f64; width];
    let mut choices = vec![0u8; components * width];
    for (i, choices) in choices.chunks_exact_mut(width).enumerate() {
        let end = i + 1;
        let mut row = std::mem::take(&mut best[end % depth]);
        row.resize(width, 0.0);
        let steps = steps(errors, end, |start| &best[start % depth]);
        row.par_chunks_mut(STRIP)
            .zip(choices.par_chunks_mut(STRIP))
            .enumerate()
            .for_each(|(strip, (row, choices))| fill(&steps, strip * STRIP, row, choices));
        best[end % depth] = row;
        if end % 256 == 0 || end == components {
            progress(end, components);
        }
    }
    budgets.iter().map(|budget| backtrack(&choices, components, width, budget / 2)).collect()
}

/// All blocks that end before component `end`, the dropped one first.
fn steps<'a>(errors: &BlockErrors, end: usize, best: impl Fn(usize) -> &'a [f64]) -> Vec<Step<'a>> {
    let drop = Step { choice: 0, before: best(end - 1), cost: 0, error: errors.dropped[end - 1] };
    let coded = options().zip(&errors.coded).enumerate().filter_map(|(i, ((kind, size), errors))| {
        let start = end.checked_sub(size)?;
        let error = *errors.get(start)?;
        Some(Step { choice: i as u8 + 1, before: best(start), cost: group_bits(kind, size) / 2, error })
    });
    std::iter::once(drop).chain(coded).collect()
}

/// Fills the states from `start` on with the best step to each.
fn fill(steps: &[Step<'_>], start: usize, row: &mut [f64], choices: &mut [u8]) {
    row.fill(f64::INFINITY);
    for step in steps {
        let skip = step.cost.saturating_sub(start).min(row.len());
        let before = &step.before[(start + skip).saturating_sub(step.cost)..];
        for ((best, choice), before) in row[skip..].iter_mut().zip(&mut choices[skip..]).zip(before) {
            let error = before + step.error;
            *choice = if error < *best { step.choice } else { *choice };
            *best = if error < *best { error } else { *best };
        }
    }
}

fn backtrack(choices: &[u8], components: usize, width: usize, mut bits: usize) -> Vec<BitGroup> {
    let mut groups = Vec::new();
    let (mut end, mut dropped_from) = (components, components);
    while end > 0 {
        let choice = usize::from(choices[(end - 1) * width + bits]);
        let Some((kind, size)) = choice.checked_sub(1).and_then(|i| options().nth(i)) else {
            end -= 1;
            continue;
        };
        // What was dropped behind the last coded block is no part of the plan.
        if !groups.is_empty() {
            push_dropped(&mut groups, end, dropped_from);
        }
        bits -= group_bits(kind, size) / 2;
        end -= size;
        dropped_from = end;
        groups.push(BitGroup { kind, first: end, size });
    }
    if !groups.is_empty() {
        push_dropped(&mut groups, 0, dropped_from);
    }
    groups.reverse();
    groups
}

/// Dropped components `first..end`, in as few groups as there can be, last one first.
fn push_dropped(groups: &mut Vec<BitGroup>, first: usize, mut end: usize) {
    while end > first {
        let fits = GROUP_SIZES.into_iter().rev().find(|&size| size <= end - first);
        let size = fits.expect("a group of one component fits; this is a bug");
        end -= size;
        groups.push(BitGroup { kind: GroupType::Drop, first: end, size });
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn ignore(_: usize, _: usize) {}

    /// Tables of numbers that are no quantizer's: the program must not rely on any order among them.
    fn random_errors(components: usize, seed: u64) -> BlockErrors {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut list = |len: usize, scale: f64| (0..len).map(|_| scale * rng.random::<f64>()).collect();
        let dropped = list(components, 1.0);
        let coded = options().map(|(_, size)| list((components + 1).saturating_sub(size), size as f64 * 0.6));
        BlockErrors { dropped, coded: coded.collect() }
    }

    /// Error of a plan, and that every component is in it once.
    fn error(errors: &BlockErrors, groups: &[BitGroup]) -> f64 {
        let mut next = 0;
        let mut sum = 0.0;
        for group in groups {
            assert_eq!(group.first, next, "{groups:?}");
            next = group.end();
            sum += match options().position(|option| option == (group.kind, group.size)) {
                Some(i) => errors.coded[i][group.first],
                None => errors.dropped[group.first..next].iter().sum(),
            };
        }
        assert!(groups.last().is_none_or(|group| group.kind != GroupType::Drop), "{groups:?}");
        sum + errors.dropped[next..].iter().sum::<f64>()
    }

    fn bits(groups: &[BitGroup]) -> usize {
        groups.iter().map(BitGroup::bits).sum()
    }

    /// Least error of components `start..` by trying everything.
    fn brute_force(errors: &BlockErrors, start: usize, budget: usize) -> f64 {
        if start == errors.dropped.len() {
            return 0.0;
        }
        let mut best = errors.dropped[start] + brute_force(errors, start + 1, budget);
        for ((kind, size), coded) in options().zip(&errors.coded) {
            if let (Some(&error), Some(rest)) = (coded.get(start), budget.checked_sub(group_bits(kind, size)))
            {
                best = best.min(error + brute_force(errors, start + size, rest));
            }
        }
        best
    }

    #[test]
    fn the_program_finds_what_trying_everything_finds() {
        for (seed, components) in [(1, 1), (2, 7), (3, 16), (4, 18), (5, 20)] {
            let errors = random_errors(components, seed);
            let budgets = [0, 32, 34, 64, 80, 96, 130, 164];
            let plans = allocate(&errors, &budgets, &mut ignore);
            for (budget, plan) in budgets.into_iter().zip(plans) {
                assert!(bits(&plan) <= budget);
                let (got, expected) = (error(&errors, &plan), brute_force(&errors, 0, budget));
                assert!(
                    (got - expected).abs() < 1e-12,
                    "{components} in {budget} bits: {got} not {expected}"
                );
            }
        }
    }

    /// Rows of a power-law spectrum, `[n, components]`.
    fn rows(count: usize, components: usize, decay: f32) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let mut gauss = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        let sigma = |j: usize| 8.0 * ((j + 1) as f32).powf(-decay);
        (0..count * components).map(|i| sigma(i % components) * gauss()).collect()
    }

    /// The plan of least error + multiplier x bits, by shortest path.
    fn shortest_path(errors: &BlockErrors, multiplier: f64) -> Vec<BitGroup> {
        let components = errors.dropped.len();
        let mut best = vec![(f64::INFINITY, None); components + 1];
        best[0].0 = 0.0;
        for start in 0..components {
            let from = best[start].0;
            let drop = (GroupType::Drop, 1, errors.dropped[start]);
            let coded = options().zip(&errors.coded);
            let coded = coded.filter_map(|((kind, size), coded)| Some((kind, size, *coded.get(start)?)));
            for (kind, size, error) in coded.chain([drop]) {
                let value = from + error + multiplier * group_bits(kind, size) as f64;
                if value < best[start + size].0 {
                    best[start + size] = (value, Some(BitGroup { kind, first: start, size }));
                }
            }
        }
        let mut groups = Vec::new();
        let mut end = components;
        while let Some(group) = best[end].1 {
            groups.push(group);
            end = group.first;
        }
        groups.reverse();
        while groups.last().is_some_and(|group| group.kind == GroupType::Drop) {
            groups.pop();
        }
        groups
    }

    /// The best shortest path within a budget, by bisection on the multiplier.
    fn lagrangian(errors: &BlockErrors, budget: usize) -> Vec<BitGroup> {
        let (mut low, mut high) = (1e-9f64, 1e9);
        for _ in 0..60 {
            let middle = (low * high).sqrt();
            if bits(&shortest_path(errors, middle)) > budget { low = middle } else { high = middle }
        }
        shortest_path(errors, high)
    }

    #[test]
    fn no_lagrangian_plan_is_better_and_budgets_are_respected_and_used() {
        for (components, decay) in [(40, 2.0), (300, 0.6), (300, 1.2)] {
            let rows = rows(200, components, decay);
            let budgets = [8, 16, 32, 64].map(|tier| 16 * components / tier);
            let errors = BlockErrors::measure(&rows, components, budgets[0], &mut ignore);
            let plans = allocate(&errors, &budgets, &mut ignore);
            let mut last = 0.0;
            for (budget, plan) in budgets.into_iter().zip(plans) {
                let (error, path) = (error(&errors, &plan), lagrangian(&errors, budget));
                let path_error = self::error(&errors, &path);
                assert!(
                    error <= path_error * (1.0 + 1e-9),
                    "{error} at {budget} bits, {path_error} is known"
                );
                assert!(bits(&plan) <= budget && bits(&path) <= budget);
                assert!(error >= last, "less budget, less error");
                last = error;
            }
        }
    }

    #[test]
    fn one_pass_for_all_budgets_finds_what_a_pass_for_each_finds() {
        let errors = BlockErrors::measure(&rows(100, 70, 1.0), 70, 200, &mut ignore);
        let together = allocate(&errors, &[200, 100, 37], &mut ignore);
        for (budget, plan) in [200, 100, 37].into_iter().zip(together) {
            assert_eq!(allocate(&errors, &[budget], &mut ignore), [plan]);
        }
    }
}
