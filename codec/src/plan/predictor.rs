//! The predictor of a kvtc profile: a linear map from the features of a token, and of those before it, to its row of cache.
//!
//! Both ends know the prompt's tokens, so what follows from them alone need not be sent: of the first layer that is everything.

use half::bf16;

use crate::{
    error::{Error, Result},
    format::bytes::{Reader, Write},
    plan::elements::{read_bytes, round_to_bytes, write_bytes},
    predict::KeptRows,
    tokens::Side,
};

const WHAT: &str = "predictor";
/// Tokens that a prediction may look at.
pub(crate) const MAX_CONTEXT: usize = 4;
/// Bytes that an id may take.
const ID_BYTES: std::ops::RangeInclusive<usize> = 2..=3;
/// Most features of a token: the hidden size of the largest Llama.
const MAX_TOKEN_FEATURES: usize = 16_384;

/// The predictor of both sides.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Predictor {
    /// Tokens that a prediction looks at: the row's own, the one before, ...
    pub(crate) context: usize,
    /// Features of a token.
    pub(crate) token_features: usize,
    /// Bytes that a token's id takes in a chunk: 2, or 3 where the vocabulary needs them.
    pub(crate) id_bytes: usize,
    pub(crate) keys: Weights,
    pub(crate) values: Weights,
}

/// One side's map.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weights {
    /// `[P, context x token_features]`; times the features it is the prediction, less the space's mean.
    pub(crate) matrix: Vec<f32>,
    /// `[P]`: a row is stored as bytes times its scale.
    scales: Vec<f32>,
    /// What was computed from the matrix so far. Features are those of the plan's model, so ids are enough to tell rows apart.
    pub(crate) kept: KeptRows,
}

impl Weights {
    /// Rounds `[P, inputs]` to what can be stored.
    pub(crate) fn round(mut matrix: Vec<f32>, inputs: usize) -> Self {
        let scales = matrix.chunks_exact_mut(inputs).map(round_to_bytes).collect();
        Self { matrix, scales, kept: KeptRows::default() }
    }

    fn read_from(reader: &mut Reader<'_>, inputs: usize, features: usize) -> Result<Self> {
        let (scales, matrix) = read_bytes(reader, features, inputs)?;
        Ok(Self { matrix, scales, kept: KeptRows::default() })
    }
}

impl Predictor {
    /// Features that a prediction is made from.
    pub(crate) fn inputs(&self) -> usize {
        self.context * self.token_features
    }

    /// One side's map.
    pub(crate) fn weights(&self, side: Side) -> &Weights {
        match side {
            Side::Keys => &self.keys,
            Side::Values => &self.values,
        }
    }

    pub(crate) fn read_from(reader: &mut Reader<'_>, features: usize) -> Result<Self> {
        let [context, token_features, id_bytes] =
            [reader.u16()?, reader.u16()?, reader.u16()?].map(usize::from);
        reader.zeros(2)?;
        let is_sane = (1..=MAX_CONTEXT).contains(&context)
            && (1..=MAX_TOKEN_FEATURES).contains(&token_features)
            && ID_BYTES.contains(&id_bytes);
        if !is_sane {
            let detail = format!(
                "{context} tokens of context with {token_features} features each, ids of {id_bytes} bytes"
            );
            return Err(Error::corrupt(WHAT, detail));
        }
        let keys = Weights::read_from(reader, context * token_features, features)?;
        let values = Weights::read_from(reader, context * token_features, features)?;
        Ok(Self { context, token_features, id_bytes, keys, values })
    }

    /// The mirror of [`Self::read_from`].
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.put_all(
            &[self.context as u16, self.token_features as u16, self.id_bytes as u16, 0],
            u16::to_le_bytes,
        );
        for side in [&self.keys, &self.values] {
            write_bytes(&side.matrix, &side.scales, self.inputs(), out);
        }
    }

    /// Bytes of [`Self::write_to`].
    pub(crate) fn encoded_len(&self, features: usize) -> usize {
        8 + 2 * features * (4 + self.inputs())
    }
}

/// The cache of the token that nearly every prompt begins with: at position 0 nothing but the token decides it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FirstRow {
    /// Begin-of-text.
    pub(crate) token: u32,
    /// `[P]`: keys in the order layer, head, dimension; at position 0 RoPE turns nothing.
    pub(crate) keys: Vec<bf16>,
    /// `[P]`.
    pub(crate) values: Vec<bf16>,
}

impl FirstRow {
    pub(crate) fn read_from(reader: &mut Reader<'_>, features: usize) -> Result<Self> {
        let token = reader.u32()?;
        let keys = reader.list(features, bf16::from_le_bytes)?;
        let values = reader.list(features, bf16::from_le_bytes)?;
        if !keys.iter().chain(&values).all(|x| x.is_finite()) {
            return Err(Error::corrupt("first row", "an element is not finite"));
        }
        Ok(Self { token, keys, values })
    }

    /// The mirror of [`Self::read_from`].
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.put(self.token.to_le_bytes());
        out.put_all(&self.keys, bf16::to_le_bytes);
        out.put_all(&self.values, bf16::to_le_bytes);
    }
}
