//! Launches of `kernels/decode_rows.cu`: the embedding of a step's tokens, and what many rows need between cuBLASLt's products.

use std::sync::Arc;

use gpu::{Argument, CUdeviceptr, CudaFunction, CudaStream, Device, Kernels, Launch};

use super::buffers::pointer;
use super::linear::{Attend, Residual};
use crate::cuda::weights::Matrix;
use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decode_rows.fatbin"));
/// Of a block, which works on one row.
const THREADS: usize = 256;

/// The kernels, on one stream.
pub(crate) struct StepRows {
    stream: Arc<CudaStream>,
    embed: CudaFunction,
    rotate: CudaFunction,
    argmax: CudaFunction,
    early: bool,
}

impl StepRows {
    pub(crate) fn load(device: &Device, stream: &Arc<CudaStream>) -> Result<Self> {
        let kernels = Kernels::load(device, "decode_rows", FATBIN)?;
        Ok(Self {
            stream: Arc::clone(stream),
            embed: kernels.function("decode_embed")?,
            rotate: kernels.function("decode_rotate")?,
            argmax: kernels.function("decode_argmax")?,
            early: device.launches_early()?,
        })
    }

    /// Starts the residual stream of `rows` rows with the vectors of the tokens in `step`.
    pub(crate) fn embed(
        &self,
        rows: usize,
        step: CUdeviceptr,
        embedding: &Matrix,
        to: Residual,
    ) -> Result<()> {
        let (table, vocab, hidden) =
            (pointer(&embedding.data), embedding.outputs as u32, embedding.inputs as u32);
        // The first kernel of a step: there is a copy before it, which nothing may overtake.
        let launch = Launch { early: false, ..self.launch(&self.embed, rows) };
        let arguments = [
            Argument::of(&step),
            Argument::of(&table),
            Argument::of(&vocab),
            Argument::of(&hidden),
            Argument::of(&to.norm),
            Argument::of(&to.x),
            Argument::of(&to.scaled),
            Argument::of(&to.squares),
        ];
        // SAFETY: these are the kernel's arguments; the buffers have the shapes that it is written for.
        Ok(unsafe { launch.queue(&self.stream, &arguments) }?)
    }

    /// Turns queries and keys of `qkv` `[rows, heads + 2 * kv_heads, head_dim]`, and appends keys and values.
    pub(crate) fn rotate(&self, rows: usize, qkv: CUdeviceptr, to: Attend) -> Result<()> {
        let arguments = [
            Argument::of(&qkv),
            Argument::of(&to.step),
            Argument::of(&to.cosines),
            Argument::of(&to.sines),
            Argument::of(&to.heads),
            Argument::of(&to.layer),
            Argument::of(&to.kv),
            Argument::of(&to.queries),
        ];
        // SAFETY: these are the kernel's arguments; the buffers have the shapes that it is written for.
        Ok(unsafe { self.launch(&self.rotate, rows).queue(&self.stream, &arguments) }?)
    }

    /// `tokens` `[rows]` = the most likely by `logits` `[rows, vocab]`.
    pub(crate) fn argmax(
        &self,
        rows: usize,
        logits: CUdeviceptr,
        vocab: usize,
        tokens: CUdeviceptr,
    ) -> Result<()> {
        let vocab = vocab as u32;
        let arguments = [Argument::of(&logits), Argument::of(&vocab), Argument::of(&tokens)];
        // SAFETY: these are the kernel's arguments; the buffers have the shapes that it is written for.
        Ok(unsafe { self.launch(&self.argmax, rows).queue(&self.stream, &arguments) }?)
    }

    fn launch<'a>(&self, function: &'a CudaFunction, rows: usize) -> Launch<'a> {
        Launch { function, grid: (rows, 1), threads: THREADS, shared: 0, early: self.early }
    }
}
