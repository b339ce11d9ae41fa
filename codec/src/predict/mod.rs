//! Predictions for the tokens of one chunk: what the encoder takes off its rows and the decoder puts back.
//!
//! A prediction is a sum of one row per token that it looks at, and tokens come again: each token's rows are computed once and kept.

mod rows;

use std::{collections::HashMap, fmt::Debug, sync::Arc};

use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    plan::predictor::Predictor,
    stages::{
        pca::TILE_ROWS,
        product::{Matrix, Onto, multiply},
    },
    tokens::Side,
};
pub(crate) use rows::KeptRows;

/// What both ends know of a token without its cache, by its id alone: for a Llama the normalised embedding, which is the first
/// block's input, so that the first layer's keys and values are linear in it.
pub trait TokenFeatures: Debug + Send + Sync {
    /// Numbers per token.
    fn features(&self) -> usize;

    /// Ids below this have features.
    fn vocabulary(&self) -> usize;

    /// Writes the features of `token`, which is in the vocabulary, to `out`, `[features]`: finite numbers.
    fn write(&self, token: u32, out: &mut [f32]);
}

/// The tokens that the predictions of a chunk look at.
#[derive(Debug)]
pub(crate) struct Tokens<'a> {
    source: &'a dyn TokenFeatures,
    /// Index into `distinct` of each token of the chunk, after those of the `lead` tokens before it.
    slots: Vec<usize>,
    /// Tokens before the chunk that are known.
    lead: usize,
    /// Every id once.
    distinct: Vec<u32>,
}

impl<'a> Tokens<'a> {
    /// `ids` are those of the chunk's tokens, after the `lead` ones before them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for features of another size than the plan's, [`Error::Corrupt`] for an id outside of the vocabulary.
    pub(crate) fn of(
        predictor: &Predictor,
        source: &'a dyn TokenFeatures,
        ids: &[u32],
        lead: usize,
    ) -> Result<Self> {
        let width = predictor.token_features;
        if source.features() != width {
            let got = source.features();
            return Err(Error::InvalidArgument(format!(
                "{got} features a token, the plan was made for {width}"
            )));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= source.vocabulary()) {
            let vocabulary = source.vocabulary();
            return Err(Error::corrupt(
                "token ids",
                format!("{id} is outside of the vocabulary of {vocabulary}"),
            ));
        }
        let mut known: HashMap<u32, usize> = HashMap::new();
        let mut distinct = Vec::new();
        let slot = |&id: &u32| {
            *known.entry(id).or_insert_with(|| {
                distinct.push(id);
                distinct.len() - 1
            })
        };
        let slots = ids.iter().map(slot).collect();
        Ok(Self { source, slots, lead, distinct })
    }

    /// `[ids, token_features]`.
    fn features(&self, ids: &[u32]) -> Vec<f32> {
        let width = self.source.features();
        let mut features = vec![0.0; ids.len() * width];
        for (&id, features) in ids.iter().zip(features.chunks_exact_mut(width.max(1))) {
            self.source.write(id, features);
        }
        features
    }
}

/// One side's predictions for the tokens of a chunk.
#[derive(Debug)]
pub(crate) struct Prediction<'a> {
    tokens: &'a Tokens<'a>,
    features: usize,
    /// Per distinct token `[context, P]`: what it says as the row's own token, as the one before, ...
    rows: Vec<Arc<[f32]>>,
}

impl<'a> Prediction<'a> {
    /// Computes what `side` of the chunk is predicted to be.
    pub(crate) fn of(predictor: &Predictor, side: Side, tokens: &'a Tokens<'a>) -> Self {
        let weights = predictor.weights(side);
        let features = weights.matrix.len() / predictor.inputs();
        let compute = |ids: &[u32]| rows(predictor, side, &tokens.features(ids), features);
        Self { tokens, features, rows: weights.kept.get(&tokens.distinct, compute) }
    }

    /// Takes the prediction for the chunk's token `token` off `row`.
    pub(crate) fn remove(&self, token: usize, row: &mut [f32]) {
        self.for_each_part(token, |part| row.iter_mut().zip(part).for_each(|(x, p)| *x -= p));
    }

    /// Puts it back; the mirror of [`Self::remove`].
    pub(crate) fn restore(&self, token: usize, row: &mut [f32]) {
        self.for_each_part(token, |part| row.iter_mut().zip(part).for_each(|(x, p)| *x += p));
    }

    /// Before the prompt's start there is nothing to look at.
    fn for_each_part(&self, token: usize, mut visit: impl FnMut(&[f32])) {
        let context = self.rows.first().map_or(0, |row| row.len() / self.features);
        for back in 0..context {
            let Some(at) = (token + self.tokens.lead).checked_sub(back) else { return };
            visit(&self.rows[self.tokens.slots[at]][back * self.features..(back + 1) * self.features]);
        }
    }
}

/// What tokens of these features, `[tokens, token_features]`, say of rows: `[tokens, context, P]`.
fn rows(predictor: &Predictor, side: Side, inputs: &[f32], features: usize) -> Vec<f32> {
    let (width, context) = (predictor.token_features, predictor.context);
    let map = Matrix::row_major(&predictor.weights(side).matrix, features, predictor.inputs());
    let mut out = vec![0.0; inputs.len() / width * context * features];
    for back in 0..context {
        let part = map.columns(back * width..(back + 1) * width).transposed();
        let rows = product(inputs, width, part, features);
        let places = out.chunks_exact_mut(features).skip(back).step_by(context);
        places.zip(rows.chunks_exact(features)).for_each(|(out, row)| out.copy_from_slice(row));
    }
    out
}

/// `inputs`, `[distinct, width]`, times `[width, features]`, in tiles of a fixed height so that no row depends on how many there are.
fn product(inputs: &[f32], width: usize, map: Matrix<'_>, features: usize) -> Vec<f32> {
    let mut out = vec![0.0; inputs.len() / width * features];
    let tiles = out.par_chunks_mut(TILE_ROWS * features).zip(inputs.par_chunks(TILE_ROWS * width));
    tiles.for_each(|(out, inputs)| {
        let mut tile = inputs.to_vec();
        tile.resize(TILE_ROWS * width, 0.0);
        let mut product = vec![0.0; TILE_ROWS * features];
        multiply(Matrix::row_major(&tile, TILE_ROWS, width), map, &mut product, Onto::Nothing);
        out.copy_from_slice(&product[..out.len()]);
    });
    out
}
