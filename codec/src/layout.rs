//! The shape of a KV cache and a stretch of one: what goes into an encoder and comes out of a decoder.
//!
//! No model code here: a layout is numbers, so any model with rotate-half RoPE can fill it in.

use half::bf16;

use crate::error::{Error, Result};

/// Most features per token that the codec handles; a basis grows with their square (1 GiB in f32 here).
pub const MAX_FEATURES: usize = 16_384;

/// Shape of a model's KV cache.
#[derive(Debug, Clone, PartialEq)]
pub struct KvLayout {
    /// Transformer layers.
    pub layers: usize,
    /// KV heads per layer.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// RoPE frequencies in radians per token, `[head_dim / 2]`; dimension i rotates with i + head_dim / 2.
    pub inv_freq: Vec<f32>,
}

impl KvLayout {
    /// Features per token: one key row, or one value row.
    pub fn features(&self) -> usize {
        self.layers * self.kv_heads * self.head_dim
    }

    /// Size of one token's keys and values in bf16.
    pub fn bytes_per_token(&self) -> usize {
        2 * size_of::<bf16>() * self.features()
    }

    /// Checks that the dimensions fit the container and each other.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the dimension.
    pub fn validate(&self) -> Result<()> {
        let dimensions = [self.layers, self.kv_heads, self.head_dim];
        if dimensions.iter().any(|&n| n == 0 || n > usize::from(u16::MAX)) || self.head_dim % 2 == 1 {
            let [layers, kv_heads, head_dim] = dimensions;
            return Err(Error::InvalidArgument(format!(
                "layout of {layers} layers x {kv_heads} kv heads x {head_dim} dimensions; all must be 1 to 65,535, the last even"
            )));
        }
        let features = dimensions.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        if features.is_none_or(|features| features > MAX_FEATURES) {
            return Err(Error::InvalidArgument(format!(
                "layout of {dimensions:?} has over {MAX_FEATURES} features per token, more than one basis can span"
            )));
        }
        if self.inv_freq.len() != self.head_dim / 2 || !self.inv_freq.iter().all(|f| f.is_finite()) {
            return Err(Error::InvalidArgument(format!(
                "{} finite RoPE frequencies needed for head_dim {}, got {}",
                self.head_dim / 2,
                self.head_dim,
                self.inv_freq.len()
            )));
        }
        Ok(())
    }

    /// Refuses `other`, found in a `what`, when it differs from this layout.
    pub(crate) fn check(&self, what: &'static str, other: &Self) -> Result<()> {
        self.check_dimensions(what, other.layers, other.kv_heads, other.head_dim)?;
        match self.inv_freq.iter().zip(&other.inv_freq).position(|(a, b)| a != b) {
            Some(i) => Err(Error::LayoutMismatch {
                what,
                field: "RoPE frequency",
                expected: format!("{} at {i}", self.inv_freq[i]),
                got: format!("{} at {i}", other.inv_freq[i]),
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn check_dimensions(
        &self,
        what: &'static str,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<()> {
        let pairs = [
            ("layers", self.layers, layers),
            ("kv_heads", self.kv_heads, kv_heads),
            ("head_dim", self.head_dim, head_dim),
        ];
        match pairs.into_iter().find(|(_, expected, got)| expected != got) {
            Some((field, expected, got)) => Err(Error::LayoutMismatch {
                what,
                field,
                expected: expected.to_string(),
                got: got.to_string(),
            }),
            None => Ok(()),
        }
    }
}

/// Keys and values of consecutive tokens of one prompt, as a cache holds them.
#[derive(Debug, Clone, PartialEq)]
pub struct KvBlock {
    /// Absolute position of the first token.
    pub first_token: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// `[layers, kv_heads, tokens, head_dim]`, row-major, after RoPE.
    pub keys: Vec<bf16>,
    /// `[layers, kv_heads, tokens, head_dim]`, row-major.
    pub values: Vec<bf16>,
}

impl KvBlock {
    /// Checks that both tensors have the size that `tokens` and the layout imply.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the sizes.
    pub fn validate(&self, layout: &KvLayout) -> Result<()> {
        let expected = layout.features().checked_mul(self.tokens);
        if expected != Some(self.keys.len()) || expected != Some(self.values.len()) {
            return Err(Error::InvalidArgument(format!(
                "a block of {} tokens x {} features came with {} key and {} value elements",
                self.tokens,
                layout.features(),
                self.keys.len(),
                self.values.len()
            )));
        }
        Ok(())
    }
}
