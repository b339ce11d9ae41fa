//! Second moments of token features and cache rows together, streamed over documents: what regression and principal axes are made from.

use codec::TokenFeatures;
use codec::fit::{Basis, Covariance, Predictor, inputs};

use super::collect::Document;
use super::eigen::{axes, regress, residual};

/// Rows summed up at a time.
pub(super) const BATCH_ROWS: usize = 4096;
/// Share of the features' mean variance added to each: hundreds of features over a hundred thousand tokens are barely over-fitted.
const RIDGE: f64 = 1e-4;

/// Sums over the documents seen so far.
#[derive(Debug)]
pub(super) struct Moments {
    context: usize,
    inputs: usize,
    keys: Stream,
    values: Stream,
}

/// One side: rows of `[inputs + features]`.
#[derive(Debug)]
struct Stream {
    sums: Covariance,
    width: usize,
    waiting: Vec<f32>,
}

impl Stream {
    fn new(width: usize) -> Self {
        Self { sums: Covariance::new(width), width, waiting: Vec::new() }
    }

    fn push(&mut self, inputs: &[f32], rows: &[f32], count: usize) -> codec::Result<()> {
        let (of_inputs, of_rows) = (inputs.len() / count, rows.len() / count);
        for (i, row) in rows.chunks_exact(of_rows).enumerate() {
            self.waiting.extend_from_slice(&inputs[i * of_inputs..(i + 1) * of_inputs]);
            self.waiting.extend_from_slice(row);
        }
        if self.waiting.len() >= BATCH_ROWS * self.width { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> codec::Result<()> {
        self.sums.push(&self.waiting)?;
        self.waiting.clear();
        Ok(())
    }
}

/// What is known of one side once all documents were seen.
#[derive(Debug)]
pub(super) struct Side {
    /// Of inputs and features.
    mean: Vec<f32>,
    /// `[inputs + features]` squared.
    joint: Vec<f64>,
    inputs: usize,
}

impl Moments {
    /// For rows of `features` features predicted from `context` tokens.
    pub(super) fn new(source: &dyn TokenFeatures, context: usize, features: usize) -> Self {
        let inputs = context * source.features();
        let stream = || Stream::new(inputs + features);
        Self { context, inputs, keys: stream(), values: stream() }
    }

    /// Adds a document.
    pub(super) fn push(&mut self, source: &dyn TokenFeatures, document: &Document) -> codec::Result<()> {
        let lead = self.context.saturating_sub(1);
        let ids = document.row_ids(lead);
        let count = ids.len() - lead;
        let inputs = inputs(source, self.context, ids, lead);
        self.keys.push(&inputs, &document.keys, count)?;
        self.values.push(&inputs, &document.values, count)
    }

    /// Keys and values.
    pub(super) fn finish(mut self) -> codec::Result<(Side, Side)> {
        self.keys.flush()?;
        self.values.flush()?;
        let [keys, values] = [self.keys.sums.finish()?, self.values.sums.finish()?];
        let side = |(mean, joint)| Side { mean, joint, inputs: self.inputs };
        Ok((side(keys), side(values)))
    }
}

impl Side {
    /// The best map from inputs to features, `[features, inputs]`.
    pub(super) fn regress(&self) -> anyhow::Result<Vec<f32>> {
        regress(&self.joint, self.inputs, RIDGE)
    }

    fn features(&self) -> usize {
        self.mean.len() - self.inputs
    }

    /// Principal axes of the rows as they are: the paper's basis.
    pub(super) fn plain_basis(&self) -> anyhow::Result<Basis> {
        let vectors = axes(&self.covariance(), self.features())?;
        Ok(Basis { mean: self.mean[self.inputs..].to_vec(), weights: None, vectors })
    }

    /// Principal axes of what `map` leaves of the rows, features weighted.
    pub(super) fn weighted_basis(&self, map: &[f32], weights: &[f32]) -> anyhow::Result<Basis> {
        let features = self.features();
        let mut left = residual(&self.joint, self.inputs, map);
        for (row, &a) in left.chunks_exact_mut(features).zip(weights) {
            row.iter_mut().zip(weights).for_each(|(x, &b)| *x *= f64::from(a) * f64::from(b));
        }
        let (of_inputs, of_rows) = self.mean.split_at(self.inputs);
        let predicted = |feature: usize| {
            let row = map[feature * self.inputs..(feature + 1) * self.inputs].iter().zip(of_inputs);
            row.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let mean = of_rows.iter().enumerate().map(|(i, x)| (f64::from(*x) - predicted(i)) as f32).collect();
        Ok(Basis { mean, weights: Some(weights.to_vec()), vectors: axes(&left, features)? })
    }

    /// Variance of each feature.
    pub(super) fn variances(&self) -> impl Iterator<Item = f64> + '_ {
        self.joint.iter().step_by(self.mean.len() + 1).skip(self.inputs).copied()
    }

    /// Share of the rows' variance that `map` does not explain.
    pub(super) fn unexplained(&self, map: &[f32]) -> f64 {
        let trace = |matrix: &[f64]| matrix.iter().step_by(self.features() + 1).sum::<f64>();
        trace(&residual(&self.joint, self.inputs, map)) / trace(&self.covariance())
    }

    /// Of the rows as they are, `[features]` squared.
    fn covariance(&self) -> Vec<f64> {
        let width = self.mean.len();
        self.joint
            .chunks_exact(width)
            .skip(self.inputs)
            .flat_map(|row| &row[self.inputs..])
            .copied()
            .collect()
    }
}

/// The predictor of both sides, rounded as a plan stores it.
pub(super) fn predictor(
    source: &dyn TokenFeatures,
    context: usize,
    sides: (&Side, &Side),
) -> anyhow::Result<Predictor> {
    Ok(Predictor::new(context, source, sides.0.regress()?, sides.1.regress()?)?)
}
