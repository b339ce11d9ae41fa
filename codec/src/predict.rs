//! Predictions for the tokens of one chunk: what the encoder takes off its rows and the decoder puts back.
//!
//! A prediction is a sum of one row per token that it looks at, and tokens come again: each distinct token's rows are computed once.

use std::{collections::BTreeMap, fmt::Debug};

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

/// What both ends know of a token without its cache, by its id alone: for a Llama the normalised embedding, which is the first
/// block's input, so that the first layer's keys and values are linear in it.
pub trait TokenFeatures: Debug + Send + Sync {
    /// Numbers per token.
    fn features(&self) -> usize;

    /// Ids below this have features.
    fn vocabulary(&self) -> usize;

    /// Writes the features of `token`, which is in the vocabulary, to `out`, `[features]`.
    fn write(&self, token: u32, out: &mut [f32]);
}

/// The tokens that the predictions of a chunk look at.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// Index into `features` of each token of the chunk, after those of the `lead` tokens before it.
    slots: Vec<usize>,
    /// Tokens before the chunk that are known.
    lead: usize,
    /// `[distinct, token_features]`.
    features: Vec<f32>,
}

impl Tokens {
    /// `ids` are those of the chunk's tokens, after the `lead` ones before them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for features of another size than the plan's, [`Error::Corrupt`] for an id outside of the vocabulary.
    pub(crate) fn of(
        predictor: &Predictor,
        source: &dyn TokenFeatures,
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
        let mut known: BTreeMap<u32, usize> = BTreeMap::new();
        let slots = ids.iter().map(|&id| {
            let next = known.len();
            *known.entry(id).or_insert(next)
        });
        let slots = slots.collect();
        let mut features = vec![0.0; known.len() * width];
        for (&id, &slot) in &known {
            source.write(id, &mut features[slot * width..(slot + 1) * width]);
        }
        Ok(Self { slots, lead, features })
    }
}

/// One side's predictions for the tokens of a chunk.
#[derive(Debug)]
pub(crate) struct Prediction<'a> {
    tokens: &'a Tokens,
    features: usize,
    /// Per token looked at, `[distinct, P]`.
    rows: Vec<Vec<f32>>,
}

impl<'a> Prediction<'a> {
    /// Computes what `side` of the chunk is predicted to be.
    pub(crate) fn of(predictor: &Predictor, side: Side, tokens: &'a Tokens) -> Self {
        let (matrix, inputs) = (&predictor.weights(side).matrix, predictor.inputs());
        let (features, width) = (matrix.len() / inputs, predictor.token_features);
        let map = Matrix::row_major(matrix, features, inputs);
        let parts =
            (0..predictor.context).map(|back| map.columns(back * width..(back + 1) * width).transposed());
        let rows = parts.map(|part| product(&tokens.features, width, part, features)).collect();
        Self { tokens, features, rows }
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
        for (back, rows) in self.rows.iter().enumerate() {
            let Some(at) = (token + self.tokens.lead).checked_sub(back) else { return };
            let slot = self.tokens.slots[at];
            visit(&rows[slot * self.features..(slot + 1) * self.features]);
        }
    }
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
