//! Tiers to steps: bisection on the size that the coder really makes of held-out rows.

use crate::{
    error::Result,
    fit::{builder::Balance, coefficients::Coefficients, report::Energy},
    format::MAX_GRID,
    plan::{
        space::Space,
        tiers::{TierSteps, TierTable},
    },
    stages::quantize::GRID_PER_OCTAVE,
};

/// Tiers that are measured; those between are interpolated.
pub(crate) const MEASURED_TIERS: [u8; 16] = [4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128];

/// Finest step tried, below the largest deviation: larger ratios of the two would not fit a symbol.
const FINEST: i32 = 13 * GRID_PER_OCTAVE;
/// Coarsest step tried: nothing is left to code.
const COARSEST: i32 = 4 * GRID_PER_OCTAVE;

/// One side, ready to be coded at any step.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) space: Space,
    pub(crate) coefficients: Coefficients,
    /// Of the rows that the coefficients are of.
    pub(crate) energy: Energy,
}

/// What is coded: rows of one step or with a shift each, and what comes beside their symbols.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Coded<'a> {
    /// One per row.
    pub(crate) shifts: Option<&'a [i8]>,
    /// Bytes of token ids and shifts of all rows.
    pub(crate) beside: usize,
}

impl Measured {
    /// Bytes of this side at a step.
    pub(crate) fn bytes(&self, exponent: i32, coded: Coded<'_>) -> usize {
        self.coefficients.coded_bytes(&self.space, exponent, coded.shifts)
    }

    /// bf16 bytes of the rows.
    pub(crate) fn raw_bytes(&self) -> usize {
        2 * self.coefficients.rows * self.space.mean.len()
    }

    fn range(&self) -> (i32, i32) {
        let top = self.space.log_sigma.first().map_or(0, |&top| i32::from(top));
        let inside = |exponent: i32| exponent.clamp(-i32::from(MAX_GRID), i32::from(MAX_GRID));
        (inside(top - FINEST), inside(top + COARSEST))
    }

    /// The step at which this side's bytes and half of what comes beside are a `tier`-th of bf16.
    pub(crate) fn find(&self, tier: u8, coded: Coded<'_>) -> i32 {
        let goal = (self.raw_bytes() / usize::from(tier)).saturating_sub(coded.beside / 2);
        bisect(self.range(), goal, |exponent| self.bytes(exponent, coded))
    }
}

/// Steps of every measured tier; `found` is called after each.
pub(crate) fn table(
    keys: &Measured,
    values: &Measured,
    how: (Balance, Coded<'_>),
    found: &mut dyn FnMut(),
) -> Result<TierTable> {
    let mut tiers: Vec<TierSteps> = Vec::new();
    for tier in MEASURED_TIERS {
        tiers.push(find(keys, values, tier, how, tiers.last().copied()));
        found();
    }
    TierTable::new(tiers)
}

/// Steps for one tier, not finer than `at_least` (those of the tier below), so that a tier table never falls.
fn find(
    keys: &Measured,
    values: &Measured,
    tier: u8,
    (balance, coded): (Balance, Coded<'_>),
    at_least: Option<TierSteps>,
) -> TierSteps {
    let (floor_keys, floor_values) =
        at_least.map_or((i32::MIN, i32::MIN), |steps| (steps.keys.into(), steps.values.into()));
    let (keys, values) = match balance {
        Balance::EqualBytes => (keys.find(tier, coded), values.find(tier, coded)),
        Balance::OneStep => {
            let (a, b) = (keys.range(), values.range());
            let raw = (keys.raw_bytes() + values.raw_bytes()) / usize::from(tier);
            let size = |exponent: i32| keys.bytes(exponent, coded) + values.bytes(exponent, coded);
            let step = bisect((a.0.max(b.0), a.1.max(b.1)), raw.saturating_sub(coded.beside), size);
            (step, step)
        }
    };
    TierSteps { tier, keys: keys.max(floor_keys) as i16, values: values.max(floor_values) as i16 }
}

/// The exponent whose size is nearest to `goal`; sizes fall as exponents rise.
fn bisect((mut low, mut high): (i32, i32), goal: usize, size: impl Fn(i32) -> usize) -> i32 {
    let (mut above, mut below) = (size(low), size(high));
    if above <= goal {
        return low;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let bytes = size(middle);
        if bytes > goal {
            (low, above) = (middle, bytes);
        } else {
            (high, below) = (middle, bytes);
        }
    }
    if above - goal < goal.saturating_sub(below) { low } else { high }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bisection_ends_at_the_nearest_size() {
        let size = |exponent: i32| (1_000 - exponent * exponent) as usize;
        assert_eq!(bisect((0, 30), 900, size), 10);
        assert_eq!(bisect((0, 30), 902, size), 10);
        assert_eq!(bisect((0, 30), 890, size), 10);
        assert_eq!(bisect((0, 30), 889, size), 11);
        assert_eq!(bisect((0, 30), 5_000, size), 0);
        assert_eq!(bisect((0, 30), 0, size), 30);
    }
}
