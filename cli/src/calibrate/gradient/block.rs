//! One transformer block: forward, and the gradient back through it. Linear layers are gone back through by hand,
//! because autograd would compute (and keep) the gradients of all weights, which nobody wants here.

use candle_core::Tensor;

use super::attention::{Attention, Qkv};
use super::pieces::{Turn, rms_norm, rms_norm_gradient, swiglu, swiglu_gradient};

/// Weights of one block, matrices `[outputs, inputs]`.
pub(super) struct Block {
    input_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    post_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    kv_heads: usize,
    eps: f64,
    scores: usize, // of attention, at most so many at a time
}

/// What the backward pass needs of a block's forward pass; the rest is computed again.
pub(super) struct Kept {
    /// The residual stream as the block found it, `[tokens, hidden]`.
    pub(super) input: Tensor,
    /// The residual stream after attention, `[tokens, hidden]`.
    middle: Tensor,
}

impl Block {
    /// `get` finds a tensor by its part's name and checks its shape; `scores` bounds the attention scores in memory.
    pub(super) fn load(
        get: impl Fn(&str, &[usize]) -> anyhow::Result<Tensor>,
        c: &model::Config,
        scores: usize,
    ) -> anyhow::Result<Self> {
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Ok(Self {
            input_norm: get("input_layernorm", &[c.hidden_size])?,
            query: get("self_attn.q_proj", &[queries, c.hidden_size])?,
            key: get("self_attn.k_proj", &[keys, c.hidden_size])?,
            value: get("self_attn.v_proj", &[keys, c.hidden_size])?,
            output: get("self_attn.o_proj", &[c.hidden_size, queries])?,
            post_norm: get("post_attention_layernorm", &[c.hidden_size])?,
            gate: get("mlp.gate_proj", &[c.intermediate_size, c.hidden_size])?,
            up: get("mlp.up_proj", &[c.intermediate_size, c.hidden_size])?,
            down: get("mlp.down_proj", &[c.hidden_size, c.intermediate_size])?,
            kv_heads: c.kv_heads,
            eps: c.rms_norm_eps,
            scores,
        })
    }

    /// Queries, keys and values before RoPE; keys and values are what the cache holds.
    pub(super) fn project(&self, input: &Tensor) -> candle_core::Result<Qkv> {
        let x = rms_norm(input, &self.input_norm, self.eps)?;
        Ok(Qkv {
            queries: linear(&x, &self.query)?,
            keys: linear(&x, &self.key)?,
            values: linear(&x, &self.value)?,
        })
    }

    /// The rest of the block; returns its output as well.
    pub(super) fn finish(&self, input: Tensor, qkv: Qkv, turn: &Turn) -> candle_core::Result<(Kept, Tensor)> {
        let attended = self.attention(qkv, turn)?.forward()?;
        let middle = (&input + linear(&attended, &self.output)?)?;
        let x = rms_norm(&middle, &self.post_norm, self.eps)?;
        let x = swiglu(&linear(&x, &self.gate)?, &linear(&x, &self.up)?)?;
        let output = (&middle + linear(&x, &self.down)?)?;
        Ok((Kept { input, middle }, output))
    }

    /// From the gradient with respect to the block's output, those with respect to its input and to its queries, keys
    /// and values before RoPE.
    pub(super) fn gradient(
        &self,
        kept: &Kept,
        turn: &Turn,
        output: &Tensor,
    ) -> anyhow::Result<(Tensor, Qkv)> {
        let middle = (output + self.feed_forward_gradient(&kept.middle, output)?)?;
        let attention = self.attention(self.project(&kept.input)?, turn)?;
        let turned = attention.gradient(&middle.matmul(&self.output)?)?;
        let qkv = Qkv {
            queries: turn.back(&turned.queries)?,
            keys: turn.back(&turned.keys)?,
            values: turned.values,
        };
        let normed = (qkv.queries.matmul(&self.query)? + qkv.keys.matmul(&self.key)?)?;
        let normed = (normed + qkv.values.matmul(&self.value)?)?;
        let input = (middle + rms_norm_gradient(&kept.input, &self.input_norm, self.eps, &normed)?)?;
        Ok((input, qkv))
    }

    fn attention(&self, qkv: Qkv, turn: &Turn) -> candle_core::Result<Attention> {
        let turned =
            Qkv { queries: turn.forth(&qkv.queries)?, keys: turn.forth(&qkv.keys)?, values: qkv.values };
        Attention::new(&turned, self.kv_heads, self.scores)
    }

    /// Gradient through the feed-forward branch alone.
    fn feed_forward_gradient(&self, middle: &Tensor, output: &Tensor) -> anyhow::Result<Tensor> {
        let x = rms_norm(middle, &self.post_norm, self.eps)?;
        let (gate, up) = (linear(&x, &self.gate)?, linear(&x, &self.up)?);
        let (gate, up) = swiglu_gradient(&gate, &up, &output.matmul(&self.down)?)?;
        let normed = (gate.matmul(&self.gate)? + up.matmul(&self.up)?)?;
        rms_norm_gradient(middle, &self.post_norm, self.eps, &normed)
    }
}

/// `x W^T`.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&weight.t()?)
}
