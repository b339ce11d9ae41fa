//! Activations of one chunk of tokens.

use std::sync::Arc;

use gpu::{CudaEvent, CudaSlice, CudaStream, Device, Pinned};
use half::bf16;

use super::linear::padded;
use crate::config::Config;
use crate::error::Result;

/// Buffers for up to `tokens` tokens, padded as products are, all row-major and reused by every block.
pub(crate) struct Workspace {
    /// Most tokens at once.
    pub(crate) tokens: usize,
    /// `[tokens]`
    pub(crate) ids: CudaSlice<u32>,
    /// The residual stream, `[tokens, hidden]`.
    pub(crate) x: CudaSlice<f32>,
    /// `[tokens, hidden]`
    pub(crate) normed: CudaSlice<bf16>,
    /// `[tokens, heads + 2 * kv_heads, head_dim]`
    pub(crate) qkv: CudaSlice<bf16>,
    /// `[tokens, heads, head_dim]`
    pub(crate) attended: CudaSlice<bf16>,
    /// `[tokens, gate | up, intermediate]`
    pub(crate) gate_up: CudaSlice<bf16>,
    /// `[tokens, intermediate]`
    pub(crate) gated: CudaSlice<bf16>,
    /// `[heads, tokens]`
    pub(crate) lse: CudaSlice<f32>,
    staged_ids: Pinned<u32>,
    ids_copied: CudaEvent,
}

impl Workspace {
    pub(crate) fn new(device: &Device, stream: &Arc<CudaStream>, c: &Config, tokens: usize) -> Result<Self> {
        let rows = padded(tokens);
        let what = format!("the activations of {tokens} tokens");
        let buffer = |width: usize| device.buffer(stream, &what, rows * width);
        let queries = c.heads * c.head_dim;
        Ok(Self {
            tokens,
            ids: device.buffer(stream, &what, tokens)?,
            x: device.buffer(stream, &what, rows * c.hidden_size)?,
            normed: buffer(c.hidden_size)?,
            qkv: buffer(queries + 2 * c.kv_heads * c.head_dim)?,
            attended: buffer(queries)?,
            gate_up: buffer(2 * c.intermediate_size)?,
            gated: buffer(c.intermediate_size)?,
            lse: device.buffer(stream, &what, tokens * c.heads)?,
            staged_ids: Pinned::zeros(device, tokens)?,
            ids_copied: device.event()?,
        })
    }

    /// Queues a copy of a chunk's ids to the device.
    pub(crate) fn stage_ids(&mut self, stream: &CudaStream, ids: &[u32]) -> Result<()> {
        // The last copy stood at the head of its chunk's work, so this is no wait for that chunk.
        self.ids_copied.synchronize().map_err(gpu::Error::from)?;
        self.staged_ids.as_mut_slice()?[..ids.len()].copy_from_slice(ids);
        self.staged_ids.copy_to(stream, ids.len(), &mut self.ids)?;
        self.ids_copied.record(stream).map_err(gpu::Error::from)?;
        Ok(())
    }
}
