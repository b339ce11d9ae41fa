//! Launches of `kernels/decode_linear.cu`: linear layers for a few rows, each with what follows it.

use std::sync::Arc;

use gpu::{Argument, CUdeviceptr, CudaFunction, CudaStream, Device, DeviceRepr, Kernels, KvView, Launch};

use super::buffers::pointer;
use crate::cuda::weights::Matrix;
use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decode_linear.fatbin"));
/// Of a block.
const THREADS: usize = 256;
/// Weight rows of a tile.
const TILE: usize = 8;
/// Bytes of the ring that weights flow through: 8 warps, 8 stages, 1 KiB.
const RING: usize = 8 * 8 * 1024;
/// Most rows of a launch.
const ROWS: usize = 8;
/// Bytes of two sets of sums of 8 warps, and of a factor per row.
const SUMS: usize = 2 * 8 * ROWS * TILE * 4;
const FACTORS: usize = ROWS * 4;
/// Blocks that a multiprocessor should have: with one, the others' loads cannot hide the end of a tile.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;
/// Inputs that a warp takes at a time.
const PIECE: usize = 64;
/// Inputs that the next row of `x` lies further on, beyond those it has.
const PADDING: usize = 32;

/// What is multiplied: `struct Linear`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Linear {
    weights: CUdeviceptr,
    x: CUdeviceptr,
    squares: CUdeviceptr,
    rows: u32,
    inputs: u32,
    tiles: u32,
    half: u32,
    eps: f32,
}

/// Rows that go into a linear layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    /// bf16 `[count, inputs]`.
    pub(crate) x: CUdeviceptr,
    /// Sums of squares to be normalised by, f32 `[count, inputs / 8]`; 0 for none.
    pub(crate) squares: CUdeviceptr,
    /// At least 1.
    pub(crate) count: usize,
    /// Added to the mean square.
    pub(crate) eps: f32,
}

/// Turning queries and keys, appending keys and values: `struct Attend`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Attend {
    pub(crate) kv: KvView,
    pub(crate) step: CUdeviceptr,
    pub(crate) cosines: CUdeviceptr,
    pub(crate) sines: CUdeviceptr,
    pub(crate) queries: CUdeviceptr,
    pub(crate) heads: u32,
    pub(crate) layer: u32,
}

/// The gated activation: `struct Gate`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Gate {
    pub(crate) out: CUdeviceptr,
}

/// Adding to the residual stream: `struct Residual`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Residual {
    pub(crate) x: CUdeviceptr,
    pub(crate) norm: CUdeviceptr,
    pub(crate) scaled: CUdeviceptr,
    pub(crate) squares: CUdeviceptr,
}

/// Logits and the most likely token: `struct Head`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Head {
    pub(crate) logits: CUdeviceptr,
    pub(crate) best: CUdeviceptr,
    pub(crate) best_at: CUdeviceptr,
    pub(crate) tokens: CUdeviceptr,
    pub(crate) done: CUdeviceptr,
}

// SAFETY: plain numbers in C's layout, the same as the kernels' structs.
unsafe impl DeviceRepr for Linear {}
// SAFETY: as above.
unsafe impl DeviceRepr for Attend {}
// SAFETY: as above.
unsafe impl DeviceRepr for Gate {}
// SAFETY: as above.
unsafe impl DeviceRepr for Residual {}
// SAFETY: as above.
unsafe impl DeviceRepr for Head {}

/// What follows a product.
pub(crate) trait After: DeviceRepr + Copy {
    /// The same for the rows from `row` on; a row has `outputs` outputs of the product.
    fn at_row(self, row: usize, outputs: usize) -> Self;
}

impl After for Attend {
    fn at_row(self, row: usize, _: usize) -> Self {
        let queries = (row * self.heads as usize * self.kv.head_dim as usize * 4) as u64;
        Self { step: self.step + (row * 16) as u64, queries: self.queries + queries, ..self }
    }
}

impl After for Gate {
    fn at_row(self, row: usize, outputs: usize) -> Self {
        Self { out: self.out + (row * outputs) as u64 }
    }
}

impl After for Residual {
    fn at_row(self, row: usize, outputs: usize) -> Self {
        let elements = (row * outputs) as u64;
        Self {
            x: self.x + elements * 4,
            scaled: self.scaled + elements * 2,
            squares: self.squares + elements / 2,
            ..self
        }
    }
}

impl After for Head {
    fn at_row(self, row: usize, outputs: usize) -> Self {
        let logits = self.logits + (row * outputs * 4) as u64;
        Self { logits, tokens: self.tokens + (row * 4) as u64, ..self }
    }
}

/// The kernels, on one stream.
pub(crate) struct LinearKernels {
    stream: Arc<CudaStream>,
    qkv: CudaFunction,
    gate: CudaFunction,
    add: CudaFunction,
    head: CudaFunction,
    blocks: usize,
    shared: usize,
    early: bool,
}

impl LinearKernels {
    pub(crate) fn load(device: &Device, stream: &Arc<CudaStream>) -> Result<Self> {
        let kernels = Kernels::load(device, "decode_linear", FATBIN)?;
        let shared = device.shared_memory()?;
        // The head's kernel has some shared memory of its own.
        let shared = shared - 256;
        let kernel = |name: &str| kernels.function_with_shared(&format!("decode_{name}"), shared);
        Ok(Self {
            stream: Arc::clone(stream),
            qkv: kernel("qkv")?,
            gate: kernel("gate")?,
            add: kernel("add")?,
            head: kernel("head")?,
            blocks: Self::most_blocks(device)?,
            shared,
            early: device.launches_early()?,
        })
    }

    /// Most blocks of a launch.
    pub(crate) fn most_blocks(device: &Device) -> Result<usize> {
        Ok(device.multiprocessors()? * BLOCKS_PER_MULTIPROCESSOR)
    }

    /// Whether the kernels can multiply by these weights.
    pub(crate) fn fit(&self, weights: &Matrix) -> bool {
        weights.inputs.is_multiple_of(PIECE)
            && weights.outputs.is_multiple_of(TILE)
            && self.rows_of(weights.inputs) > 0
    }

    /// Blocks of a launch for `outputs` outputs.
    pub(crate) fn blocks(&self, outputs: usize) -> usize {
        (outputs / TILE).min(self.blocks)
    }

    /// Queries, keys and values: queries turned, keys and values appended.
    pub(crate) fn qkv(&self, weights: &Matrix, rows: Rows, to: Attend) -> Result<()> {
        self.multiply(&self.qkv, weights, to.kv.head_dim as usize / 2, rows, to)
    }

    /// The feed-forward layer's first half.
    pub(crate) fn gate(&self, weights: &Matrix, rows: Rows, to: Gate) -> Result<()> {
        self.multiply(&self.gate, weights, weights.outputs / 2, rows, to)
    }

    /// Adds to the residual stream.
    pub(crate) fn add(&self, weights: &Matrix, rows: Rows, to: Residual) -> Result<()> {
        self.multiply(&self.add, weights, TILE / 2, rows, to)
    }

    /// Logits and the most likely tokens.
    pub(crate) fn head(&self, weights: &Matrix, rows: Rows, to: Head) -> Result<()> {
        self.multiply(&self.head, weights, TILE / 2, rows, to)
    }

    /// Rows that one launch can take at once, for their place in shared memory.
    fn rows_of(&self, inputs: usize) -> usize {
        let left = self.shared.saturating_sub(RING + SUMS + FACTORS);
        (left / (2 * (inputs + PADDING))).min(ROWS)
    }

    fn multiply<A: After>(
        &self,
        kernel: &CudaFunction,
        weights: &Matrix,
        half: usize,
        rows: Rows,
        after: A,
    ) -> Result<()> {
        let (inputs, outputs) = (weights.inputs, weights.outputs);
        let at_once = self.rows_of(inputs);
        for row in (0..rows.count).step_by(at_once) {
            let count = at_once.min(rows.count - row);
            let squares = if rows.squares == 0 { 0 } else { rows.squares + (row * inputs / 2) as u64 };
            let linear = Linear {
                weights: pointer(&weights.data),
                x: rows.x + (row * inputs * 2) as u64,
                squares,
                rows: count as u32,
                inputs: inputs as u32,
                tiles: (outputs / TILE) as u32,
                half: half as u32,
                eps: rows.eps,
            };
            let launch = Launch {
                function: kernel,
                grid: (self.blocks(outputs), 1),
                threads: THREADS,
                shared: RING + SUMS + FACTORS + count * (inputs + PADDING) * 2,
                early: self.early,
            };
            let after = after.at_row(row, outputs);
            // SAFETY: the structs are the kernel's, and their buffers have the shapes that these say.
            unsafe { launch.queue(&self.stream, &[Argument::of(&linear), Argument::of(&after)]) }?;
        }
        Ok(())
    }
}
