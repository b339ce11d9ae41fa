//! Buffers of a step, at the same place from the first to the last: graphs are recorded with them.

use std::sync::Arc;

use gpu::{CUdeviceptr, CudaSlice, CudaStream, Device, DevicePtr, Pinned};
use half::bf16;

use super::attention::DecodeAttention;
use super::inputs::Layout;
use super::linear::LinearKernels;
use crate::config::Config;
use crate::error::Result;

/// The buffer's first element.
pub(crate) fn pointer<T>(buffer: &CudaSlice<T>) -> CUdeviceptr {
    buffer.device_ptr(buffer.stream()).0
}

/// Everything that a step of up to `rows` rows works on, row-major.
pub(crate) struct Buffers {
    /// What the host says: see [`Layout`].
    pub(crate) inputs: CudaSlice<u32>,
    pub(crate) staged_inputs: Pinned<u32>,
    /// The residual stream, `[rows, hidden]`.
    pub(crate) x: CudaSlice<f32>,
    /// What goes into a linear layer: `x` times the norm's weights, or normalised, `[rows, hidden]`.
    pub(crate) normed: CudaSlice<bf16>,
    /// Sums of squares of `x`, `[rows, hidden / 8]`.
    pub(crate) squares: CudaSlice<f32>,
    /// `[rows, heads + 2 * kv_heads, head_dim]`; as all of cuBLASLt's own results only where there are many rows.
    pub(crate) qkv: CudaSlice<bf16>,
    /// Turned, `[rows, heads, head_dim]`.
    pub(crate) queries: CudaSlice<f32>,
    /// Results of shares, see the kernel, and how many of a session's have arrived, `[rows, kv_heads]`.
    pub(crate) partial: CudaSlice<f32>,
    pub(crate) arrived: CudaSlice<u32>,
    /// `[rows, heads, head_dim]`
    pub(crate) attended: CudaSlice<bf16>,
    /// `[rows, gate | up, intermediate]`
    pub(crate) gate_up: CudaSlice<bf16>,
    /// `[rows, intermediate]`
    pub(crate) gated: CudaSlice<bf16>,
    /// `[rows, vocab]`
    pub(crate) logits: CudaSlice<f32>,
    /// Largest logit per row and block, where it is, and how many blocks are through.
    pub(crate) best: CudaSlice<f32>,
    pub(crate) best_at: CudaSlice<u32>,
    pub(crate) done: CudaSlice<u32>,
    /// Most likely tokens, `[rows]`.
    pub(crate) tokens: CudaSlice<u32>,
    pub(crate) host_tokens: Pinned<u32>,
}

impl Buffers {
    /// For steps as `layout` has them; `many` rows if cuBLASLt multiplies them.
    pub(crate) fn new(
        device: &Device,
        stream: &Arc<CudaStream>,
        c: &Config,
        layout: Layout,
        many: bool,
    ) -> Result<Self> {
        let rows = layout.rows;
        let what = format!("the buffers of a step of {rows} sessions");
        let floats = |count: usize| device.zeros::<f32>(stream, &what, count);
        let halves = |count: usize| device.zeros::<bf16>(stream, &what, count);
        let words = |count: usize| device.zeros::<u32>(stream, &what, count);
        let for_many = if many { rows } else { 0 };
        let queries = c.heads * c.head_dim;
        Ok(Self {
            inputs: words(layout.words())?,
            staged_inputs: Pinned::zeros(device, layout.words())?,
            x: floats(rows * c.hidden_size)?,
            normed: halves(rows * c.hidden_size)?,
            squares: floats(rows * c.hidden_size / 8)?,
            qkv: halves(for_many * (queries + 2 * c.kv_heads * c.head_dim))?,
            queries: floats(rows * queries)?,
            partial: floats(DecodeAttention::partial_elements(layout.most_shares(), c))?,
            arrived: words(rows * c.kv_heads)?,
            attended: halves(rows * queries)?,
            gate_up: halves(for_many * 2 * c.intermediate_size)?,
            gated: halves(rows * c.intermediate_size)?,
            logits: floats(rows * c.vocab_size)?,
            best: floats(rows * LinearKernels::most_blocks(device)?)?,
            best_at: words(rows * LinearKernels::most_blocks(device)?)?,
            done: words(1)?,
            tokens: words(rows)?,
            host_tokens: Pinned::zeros(device, rows)?,
        })
    }
}
