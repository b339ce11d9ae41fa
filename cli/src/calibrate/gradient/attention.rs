//! Causal attention of a whole document and its gradient, a block of queries at a time: a block meets only the keys up
//! to its own last token, and what autograd keeps is as large as one block's scores, not as all of them.

use std::ops::Range;

use candle_core::{D, Tensor, Var};

use super::pieces::Pulled;

/// Queries, keys and values of one layer, turned. Rows of `queries` are the heads of a group within a token.
pub(super) struct Attention {
    queries: Tensor, // [kv_heads, tokens * group, head_dim]
    keys: Tensor,    // [kv_heads, tokens, head_dim]
    values: Tensor,  // [kv_heads, tokens, head_dim]
    tokens: usize,
    group: usize,
    block: usize, // tokens
}

/// Gradients, or the inputs, in the layout of a linear layer's output.
pub(super) struct Qkv {
    /// `[tokens, heads * head_dim]`.
    pub(super) queries: Tensor,
    /// `[tokens, kv_heads * head_dim]`.
    pub(super) keys: Tensor,
    /// `[tokens, kv_heads * head_dim]`.
    pub(super) values: Tensor,
}

impl Attention {
    /// `scores` bounds the scores of a block, all heads together.
    pub(super) fn new(turned: &Qkv, kv_heads: usize, scores: usize) -> candle_core::Result<Self> {
        let (tokens, width) = turned.queries.dims2()?;
        let kv_width = turned.keys.dim(1)?;
        let group = width / kv_width;
        Ok(Self {
            queries: split(&turned.queries, kv_heads, group)?,
            keys: split(&turned.keys, kv_heads, 1)?,
            values: split(&turned.values, kv_heads, 1)?,
            tokens,
            group,
            block: (scores / (kv_heads * group * tokens)).max(1),
        })
    }

    /// What every token attends to, `[tokens, heads * head_dim]`.
    pub(super) fn forward(&self) -> candle_core::Result<Tensor> {
        let attended = self.blocks().map(|block| {
            let (queries, keys, values) = self.inputs(&block)?;
            attend(&queries, &keys, &values, &self.mask(&block)?)
        });
        join(&Tensor::cat(&attended.collect::<candle_core::Result<Vec<_>>>()?, 1)?, self.tokens)
    }

    /// Gradients with respect to queries, keys and values, from that with respect to [`Self::forward`]'s output.
    pub(super) fn gradient(&self, attended: &Tensor) -> anyhow::Result<Qkv> {
        let attended = split(attended, self.keys.dim(0)?, self.group)?;
        let mut queries = Vec::new();
        let (mut keys, mut values) = (self.keys.zeros_like()?, self.values.zeros_like()?);
        for block in self.blocks() {
            let (q, k, v) = self.inputs(&block)?;
            let (q, k, v) = (Var::from_tensor(&q)?, Var::from_tensor(&k)?, Var::from_tensor(&v)?);
            let output = attend(&q, &k, &v, &self.mask(&block)?)?;
            let mut pulled = Pulled::back(&output, &self.rows(&attended, &block)?)?;
            queries.push(pulled.wrt(&q)?);
            let later = self.tokens - block.end;
            keys = (keys + pulled.wrt(&k)?.pad_with_zeros(1, 0, later)?)?;
            values = (values + pulled.wrt(&v)?.pad_with_zeros(1, 0, later)?)?;
        }
        Ok(Qkv {
            queries: join(&Tensor::cat(&queries, 1)?, self.tokens)?,
            keys: join(&keys, self.tokens)?,
            values: join(&values, self.tokens)?,
        })
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let (tokens, block) = (self.tokens, self.block);
        (0..tokens).step_by(block).map(move |start| start..(start + block).min(tokens))
    }

    fn inputs(&self, block: &Range<usize>) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let seen = |x: &Tensor| x.narrow(1, 0, block.end);
        Ok((self.rows(&self.queries, block)?, seen(&self.keys)?, seen(&self.values)?))
    }

    fn rows(&self, x: &Tensor, block: &Range<usize>) -> candle_core::Result<Tensor> {
        x.narrow(1, block.start * self.group, block.len() * self.group)
    }

    /// 0 where a query may look, minus infinity where it may not; `[block * group, keys]`.
    fn mask(&self, block: &Range<usize>) -> candle_core::Result<Tensor> {
        let row =
            |query: usize| (0..block.end).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 });
        let rows = block.clone().flat_map(|query| std::iter::repeat_n(query, self.group)).flat_map(row);
        let shape = (block.len() * self.group, block.end);
        Tensor::from_iter(rows, self.keys.device())?.reshape(shape)?.to_dtype(self.keys.dtype())
    }
}

/// Softmax attention; `queries` `[kv_heads, rows, head_dim]`, `keys` and `values` `[kv_heads, keys, head_dim]`.
fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
    let scale = (queries.dim(D::Minus1)? as f64).sqrt().recip();
    let scores = (queries * scale)?.matmul(&keys.t()?)?;
    // What is subtracted from a whole row changes nothing, so there is no gradient through it; and one constant for both
    // spares autograd a pass over the scores.
    let largest = scores.detach().broadcast_add(mask)?.max_keepdim(D::Minus1)?;
    let weights = (scores + mask.broadcast_sub(&largest)?)?.exp()?;
    let sum = weights.sum_keepdim(D::Minus1)?;
    weights.matmul(values)?.broadcast_div(&sum)
}

/// `[tokens, kv_heads * group * head_dim]` to `[kv_heads, tokens * group, head_dim]`.
fn split(x: &Tensor, kv_heads: usize, group: usize) -> candle_core::Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let dim = width / (kv_heads * group);
    let heads = x.reshape((tokens, kv_heads, group, dim))?.permute((1, 0, 2, 3))?;
    heads.reshape((kv_heads, tokens * group, dim))
}

/// Undoes [`split`].
fn join(x: &Tensor, tokens: usize) -> candle_core::Result<Tensor> {
    let (kv_heads, rows, dim) = x.dims3()?;
    let group = rows / tokens;
    let heads = x.reshape((kv_heads, tokens, group, dim))?.permute((1, 0, 2, 3))?;
    heads.reshape((tokens, kv_heads * group * dim))
}
