//! What building a plan measured: spectrum, and bytes and errors of every tier, for whoever judges the plan.

use crate::{
    fit::{
        coefficients::exponent_of,
        steps::{Coded, Measured},
    },
    plan::{
        space::Space,
        tiers::{TierSteps, TierTable},
    },
    stages::quantize::step_size,
};

/// Tier whose uniform steps the entropies of a [`Spectrum`] are measured at.
pub const ENTROPY_TIER: u8 = 32;

/// What was measured on the held-out rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Rows, one per token.
    pub rows: usize,
    /// bf16 bytes of the rows of keys and values.
    pub raw_bytes: usize,
    /// Each measured tier with one step for all rows.
    pub uniform: Vec<TierCost>,
    /// Each measured tier with a step per row; none without shifts.
    pub per_token: Option<Vec<TierCost>>,
    /// Components of keys.
    pub keys: Spectrum,
    /// Components of values.
    pub values: Spectrum,
}

/// What one tier costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TierCost {
    /// The tier and its steps.
    pub steps: TierSteps,
    /// Of keys.
    pub keys: SideCost,
    /// Of values.
    pub values: SideCost,
    /// Bytes of token ids and shifts.
    pub beside: usize,
}

/// What one side costs at one tier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SideCost {
    /// Bytes of the rows coded in chunks of 2,048, segment tables and half of the chunks' headers included.
    pub bytes: usize,
    /// Components that are coded, on average over the rows.
    pub components: f64,
    /// Squared error over squared distance from the mean, both as coded: features weighted. Rows are what the predictor left.
    pub error: f64,
    /// The same of features as they are. Errors of components count as uncorrelated, which dropped ones are but for the held-out rows'
    /// own chance.
    pub plain_error: f64,
}

/// The components of one side, most variance first, those that no tier codes included.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// Standard deviation on the held-out rows, as coded; on the grid of 1/48 octave that a plan stores.
    pub sigma: Vec<f32>,
    /// Zero-order entropy of the symbols at the uniform step of [`ENTROPY_TIER`], in bits a token; 0 where they are not coded.
    pub entropy: Vec<f32>,
}

impl Report {
    pub(crate) fn measure(
        keys: &Measured,
        values: &Measured,
        (uniform, tiers): (Coded<'_>, &TierTable),
        shifted: Option<(Coded<'_>, &TierTable)>,
    ) -> Self {
        let scales = (Scale::of(keys), Scale::of(values));
        let costs = |coded: Coded<'_>, tiers: &TierTable| {
            let cost = |&steps: &TierSteps| TierCost {
                steps,
                keys: scales.0.cost(keys, steps.keys, coded),
                values: scales.1.cost(values, steps.values, coded),
                beside: coded.beside,
            };
            tiers.0.iter().map(cost).collect()
        };
        let steps = tiers.steps(ENTROPY_TIER);
        Self {
            rows: keys.coefficients.rows,
            raw_bytes: keys.raw_bytes() + values.raw_bytes(),
            uniform: costs(uniform, tiers),
            per_token: shifted.map(|(coded, tiers)| costs(coded, tiers)),
            keys: spectrum(keys, steps.keys),
            values: spectrum(values, steps.values),
        }
    }
}

impl TierCost {
    /// All bytes.
    pub fn bytes(&self) -> usize {
        self.keys.bytes + self.values.bytes + self.beside
    }
}

/// Squared distances of rows from the mean, summed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Energy {
    weighted: f64,
    plain: f64,
}

impl Energy {
    pub(crate) fn of(space: &Space, rows: &[f32]) -> Self {
        let (mut weighted, mut plain) = (0.0, 0.0);
        for row in rows.chunks_exact(space.mean.len()) {
            for (feature, (x, mean)) in row.iter().zip(&space.mean).enumerate() {
                let squared = f64::from(x - mean).powi(2);
                let weight = space.weights.as_ref().map_or(1.0, |weights| f64::from(weights[feature]));
                plain += squared;
                weighted += squared * weight.powi(2);
            }
        }
        Self { weighted, plain }
    }
}

/// What turns errors of components into relative ones.
struct Scale {
    energy: Energy,
    /// What the basis does not span.
    missing: Energy,
    /// Squared length of each component's feature vector once weights are undone.
    gains: Vec<f64>,
}

impl Scale {
    fn of(side: &Measured) -> Self {
        let features = side.space.mean.len();
        let undone = |feature: usize| side.space.inverse_weights.as_ref().map_or(1.0, |undo| undo[feature]);
        let gain = |vector: &[f32]| -> f64 {
            vector.iter().enumerate().map(|(i, u)| f64::from(u * undone(i)).powi(2)).sum()
        };
        let gains: Vec<f64> = side.space.basis.values.chunks_exact(features).map(gain).collect();
        let mut missing = Energy { weighted: 0.0, plain: 0.0 };
        if gains.len() < features {
            let spanned = side.coefficients.energies();
            missing.weighted = (side.energy.weighted - spanned.iter().sum::<f64>()).max(0.0);
            missing.plain = (side.energy.plain - dot(&spanned, &gains)).max(0.0);
        }
        Self { energy: side.energy, missing, gains }
    }

    fn cost(&self, side: &Measured, step: i16, coded: Coded<'_>) -> SideCost {
        let exponent = i32::from(step);
        let errors = side.coefficients.squared_errors(&side.space, exponent, coded.shifts);
        let kept = |shift: i8| side.space.kept(exponent_of(exponent, shift)) as f64;
        let components = match coded.shifts {
            Some(shifts) => shifts.iter().map(|&shift| kept(shift)).sum::<f64>() / shifts.len() as f64,
            None => kept(0),
        };
        let share = |error: f64, energy: f64| if energy > 0.0 { error / energy } else { 0.0 };
        SideCost {
            bytes: side.bytes(exponent, coded),
            components,
            error: share(errors.iter().sum::<f64>() + self.missing.weighted, self.energy.weighted),
            plain_error: share(dot(&errors, &self.gains) + self.missing.plain, self.energy.plain),
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn spectrum(side: &Measured, step: i16) -> Spectrum {
    // No deviation has no logarithm, and stands at the end of the grid.
    let sigma = |&log: &i16| if log == i16::MIN { 0.0 } else { step_size(log.into()) };
    Spectrum {
        sigma: side.space.log_sigma.iter().map(sigma).collect(),
        entropy: side.coefficients.entropies(&side.space, step.into()),
    }
}
