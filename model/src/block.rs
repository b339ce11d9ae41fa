//! One transformer block on CPU, but for its attention: everything here works on rows (tokens) that do not know of each
//! other, so rows are spread over threads in tiles, and a tile goes through all of it while it is in the cache.

use crate::config::Config;
use crate::error::Result;
use crate::linear::Linear;
use crate::simd;
use crate::weights::Weights;

/// How a tile's products use the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Other tiles keep the other threads busy.
    OneThread,
    /// This is the only tile.
    AllThreads,
}

impl Spread {
    /// `out = x W^T`, or `out += x W^T`.
    pub(crate) fn product(self, linear: &Linear, x: &[f32], out: &mut [f32], accumulate: bool) {
        match self {
            Self::OneThread => linear.apply(x, out, accumulate),
            Self::AllThreads => linear.apply_wide(x, out, accumulate),
        }
    }
}

/// Weights of one block.
#[derive(Debug)]
pub(crate) struct Block {
    input_norm: Vec<f32>, // [hidden]
    qkv: Linear,          // hidden -> (heads + 2 * kv_heads) * head_dim
    output: Linear,       // heads * head_dim -> hidden
    post_norm: Vec<f32>,  // [hidden]
    gate_up: Linear,      // hidden -> 2 * intermediate
    down: Linear,         // intermediate -> hidden
    eps: f32,
}

impl Block {
    pub(crate) fn load(weights: &Weights, c: &Config, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let linear = |inputs: usize, parts: &[(&str, usize)]| {
            let named: Vec<_> = parts.iter().map(|(part, outputs)| (name(part), *outputs)).collect();
            let named: Vec<_> = named.iter().map(|(part, outputs)| (part.as_str(), *outputs)).collect();
            Linear::load(weights, inputs, &named)
        };
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qkv = [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        let gate_up = [("mlp.gate_proj", c.intermediate_size), ("mlp.up_proj", c.intermediate_size)];
        Ok(Self {
            input_norm: weights.get(&name("input_layernorm"), &[c.hidden_size])?,
            qkv: linear(c.hidden_size, &qkv)?,
            output: linear(queries, &[("self_attn.o_proj", c.hidden_size)])?,
            post_norm: weights.get(&name("post_attention_layernorm"), &[c.hidden_size])?,
            gate_up: linear(c.hidden_size, &gate_up)?,
            down: linear(c.intermediate_size, &[("mlp.down_proj", c.hidden_size)])?,
            eps: c.rms_norm_eps as f32,
        })
    }

    /// Features of a token's queries, keys and values together.
    pub(crate) fn qkv_features(&self) -> usize {
        self.qkv.outputs()
    }

    /// The rows `x` `[rows, hidden]` as the attention's projections see them, in place.
    pub(crate) fn normalise(&self, x: &mut [f32]) {
        simd::rms_norm(x, &self.input_norm, self.eps);
    }

    /// Queries, keys and values of the tile `x` `[rows, hidden]`, before RoPE, to `out` `[rows, qkv_features]`.
    pub(crate) fn project(&self, x: &[f32], out: &mut [f32], spread: Spread) {
        let mut normed = x.to_vec();
        self.normalise(&mut normed);
        spread.product(&self.qkv, &normed, out, false);
    }

    /// What follows attention, in place: `x += W_o attended`, then `x += down(silu(gate(norm(x))) * up(norm(x)))`.
    pub(crate) fn finish(&self, x: &mut [f32], attended: &[f32], spread: Spread) {
        spread.product(&self.output, attended, x, true);
        let mut normed = x.to_vec();
        simd::rms_norm(&mut normed, &self.post_norm, self.eps);
        let width = self.gate_up.outputs() / 2;
        let rows = x.len() / self.post_norm.len();
        let mut gate_up = vec![0f32; rows * 2 * width];
        spread.product(&self.gate_up, &normed, &mut gate_up, false);
        let mut hidden = vec![0f32; rows * width];
        for (out, row) in hidden.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (gate, up) = row.split_at(width);
            simd::swiglu(gate, up, out);
        }
        spread.product(&self.down, &hidden, x, true);
    }
}
