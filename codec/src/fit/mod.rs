//! Calibration: sample rows and eigenvectors to a [`Plan`](crate::Plan). Mathematics only: the caller runs the model and the eigensolver.
//!
//! 1. [`rows`] turns cache blocks into rows, [`Covariance`] sums them up.
//! 2. The caller diagonalises the covariance (of weighted features, if it has weights) and hands the eigenvectors back as a [`Basis`].
//! 3. With token features, a regression of rows on [`inputs`] gives a [`Predictor`]; covariance and rows are then those of what it leaves.
//! 4. [`PlanBuilder`] measures standard deviations, class tables and steps on held-out rows, and says what they cost in a [`Report`].

mod builder;
mod classes;
mod coefficients;
mod covariance;
mod paper;
mod predictor;
mod report;
mod steps;
mod threshold;

pub(crate) use builder::WIDE_SHARE;
pub use builder::{Balance, Basis, PlanBuilder, Progress};
pub use covariance::Covariance;
pub use paper::add_paper;
pub use predictor::{Predictor, inputs};
pub use report::{ENTROPY_TIER, Report, SideCost, Spectrum, TierCost};

use half::bf16;

use crate::{
    error::{Error, Result},
    layout::{KvBlock, KvLayout},
    stages::{
        rope::RopeTable,
        rows::{Rows, gather, scatter},
    },
};

/// The rows of a block, keys without RoPE and values, each `[tokens, P]`; features in the order layer, head, dimension.
///
/// # Errors
/// [`Error::InvalidArgument`] when the block does not fit the layout.
pub fn rows(block: &KvBlock, layout: &KvLayout) -> Result<(Vec<f32>, Vec<f32>)> {
    layout.validate()?;
    block.validate(layout)?;
    let (features, head_dim) = (layout.features(), layout.head_dim);
    let rope = RopeTable::new(layout, block.first_token, block.tokens);
    let gather_all = |cache, rope: Option<&RopeTable>| {
        let mut rows = vec![0.0; block.tokens * features];
        for (token, row) in rows.chunks_exact_mut(features).enumerate() {
            gather(cache, block.tokens, token, head_dim, rope, row);
        }
        rows
    };
    Ok((gather_all(&block.keys, Some(&rope)), gather_all(&block.values, None)))
}

/// Rows back to a block that starts at `first_token`, bf16 and keys with RoPE: the mirror of [`rows`].
///
/// # Errors
/// [`Error::InvalidArgument`] when keys and values are not as many whole rows, or a number is not finite.
pub fn block(first_token: usize, rows: (Vec<f32>, Vec<f32>), layout: &KvLayout) -> Result<KvBlock> {
    layout.validate()?;
    let (keys, values) = rows;
    let (features, len) = (layout.features(), keys.len());
    if len != values.len() || !len.is_multiple_of(features) {
        let detail = format!("{len} and {} numbers are no rows of {features}", values.len());
        return Err(Error::InvalidArgument(detail));
    }
    if !keys.iter().chain(&values).all(|x| x.is_finite()) {
        return Err(Error::InvalidArgument("a row holds a number that is not finite".to_owned()));
    }
    let tokens = len / features;
    let rope = RopeTable::new(layout, first_token, tokens);
    let planes = |features: Vec<f32>, rope: Option<&RopeTable>| {
        let mut cache = vec![bf16::ZERO; len];
        let rows = [Rows { tokens: (0..tokens).collect(), features }];
        if tokens > 0 {
            scatter(&rows, layout, tokens, rope, &mut cache);
        }
        cache
    };
    Ok(KvBlock { first_token, tokens, keys: planes(keys, Some(&rope)), values: planes(values, None) })
}
