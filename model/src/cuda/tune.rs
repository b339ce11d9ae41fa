//! Which of cuBLASLt's kernels multiply quickest here: its own guess is not always the best.

use super::linear::{padded, tune};
use super::llama::CudaLlama;
use crate::error::Result;

impl CudaLlama {
    /// Tries the products of a chunk of `tokens` tokens in several ways and keeps the quickest for chunks of this length, rounded up to 128
    /// tokens; a good warm-up, too. Takes a few dozen times as long as the products themselves, and waits for the device. What is quickest
    /// is found by the clock, so the last bits of logits may then differ from one process to the next, as they do not otherwise.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn tune(&mut self, tokens: usize) -> Result<()> {
        let rows = padded(tokens.clamp(1, self.workspace.tokens));
        let (c, w, gemm, stream) = (&self.config, &mut self.workspace, &mut self.gemm, &self.stream);
        let block = &self.weights.blocks[0];
        let mut x = w.x.slice_mut(..rows * c.hidden_size);
        let normed = w.normed.slice(..rows * c.hidden_size);
        let mut qkv = w.qkv.slice_mut(..rows * block.qkv.outputs);
        tune(gemm, stream, &block.qkv, &normed, &mut qkv, false)?;
        let attended = w.attended.slice(..rows * block.output.inputs);
        tune(gemm, stream, &block.output, &attended, &mut x, true)?;
        let mut gate_up = w.gate_up.slice_mut(..rows * block.gate_up.outputs);
        tune(gemm, stream, &block.gate_up, &normed, &mut gate_up, false)?;
        let gated = w.gated.slice(..rows * block.down.inputs);
        tune(gemm, stream, &block.down, &gated, &mut x, true)
    }
}
