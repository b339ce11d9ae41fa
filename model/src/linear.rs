//! A linear layer on CPU: `y = x W^T`, weights as Hugging Face stores them.

use rayon::prelude::*;

use crate::error::Result;
use crate::matmul::{Rhs, matmul};
use crate::weights::Weights;

/// Outputs per task when a few rows meet all weights: a few hundred KiB of weights, enough to be worth a task.
const OUTPUTS_PER_TASK: usize = 128;

/// Weights `[outputs, inputs]`, row-major f32.
#[derive(Debug)]
pub(crate) struct Linear {
    weights: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    /// Stacks the named tensors, each `[outputs, inputs]`, on top of each other: one product instead of several.
    pub(crate) fn load(weights: &Weights, inputs: usize, parts: &[(&str, usize)]) -> Result<Self> {
        let mut all = Vec::new();
        for (name, outputs) in parts {
            all.extend(weights.get(name, &[*outputs, inputs])?);
        }
        Ok(Self { outputs: all.len() / inputs, inputs, weights: all })
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// One row of the weights; the embedding of a token when this is the embedding.
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.weights[index * self.inputs..(index + 1) * self.inputs]
    }

    /// `x` `[rows, inputs]` to `out` `[rows, outputs]`, adding to it if asked; on this thread.
    pub(crate) fn apply(&self, x: &[f32], out: &mut [f32], accumulate: bool) {
        let shape = (x.len() / self.inputs, self.inputs, self.outputs);
        matmul(shape, x, &self.weights, Rhs::Transposed, out, self.outputs, accumulate);
    }

    /// As [`Self::apply`], but spread over threads by outputs: for few rows, where reading the weights is the work.
    pub(crate) fn apply_wide(&self, x: &[f32], out: &mut [f32], accumulate: bool) {
        let rows = x.len() / self.inputs;
        let mut turned = vec![0f32; rows * self.outputs];
        let tasks = turned.par_chunks_mut(OUTPUTS_PER_TASK * rows);
        tasks.zip(self.weights.par_chunks(OUTPUTS_PER_TASK * self.inputs)).for_each(|(out, weights)| {
            let shape = (weights.len() / self.inputs, self.inputs, rows);
            matmul(shape, weights, x, Rhs::Transposed, out, rows, false);
        });
        for (row, out) in out.chunks_exact_mut(self.outputs).enumerate() {
            for (y, product) in out.iter_mut().zip(turned.iter().skip(row).step_by(rows)) {
                *y = if accumulate { *y + product } else { *product };
            }
        }
    }
}
