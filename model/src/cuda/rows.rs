//! Launches of `kernels/rows.cu`: what happens to tokens' rows between the matrix products.

use std::sync::Arc;

use gpu::{
    CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, Device, Kernels, KvView, LaunchConfig,
    PushKernelArg,
};
use half::bf16;

use super::rope::CudaRope;
use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rows.fatbin"));
/// Threads of a block that works on one row.
const THREADS: u32 = 256;

/// The kernels, on one stream.
#[derive(Debug)]
pub struct RowKernels {
    stream: Arc<CudaStream>,
    embed: CudaFunction,
    rms_norm: CudaFunction,
    rotate_and_store: CudaFunction,
    swiglu: CudaFunction,
}

impl RowKernels {
    /// Those of the build.
    ///
    /// # Errors
    /// When the card cannot run them.
    pub fn load(device: &Device, stream: &Arc<CudaStream>) -> Result<Self> {
        let kernels = Kernels::load(device, "rows", FATBIN)?;
        Ok(Self {
            stream: Arc::clone(stream),
            embed: kernels.function("embed")?,
            rms_norm: kernels.function("rms_norm")?,
            rotate_and_store: kernels.function("rotate_and_store")?,
            swiglu: kernels.function("swiglu")?,
        })
    }

    /// `x` `[tokens, hidden]` = the embeddings of `ids` `[tokens]`, `table` being `[vocab, hidden]`.
    pub fn embed(
        &self,
        ids: &CudaView<'_, u32>,
        table: &CudaSlice<bf16>,
        hidden: usize,
        x: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        assert_eq!(x.len(), ids.len() * hidden, "one row per id; this is a bug");
        let (vocab, width) = ((table.len() / hidden) as u32, hidden as u32);
        let mut launch = self.stream.launch_builder(&self.embed);
        launch.arg(ids).arg(table).arg(&vocab).arg(&width).arg(x);
        // SAFETY: the buffers have these shapes, and the kernel checks the ids.
        unsafe { launch.launch(one_block_each(ids.len())) }.map_err(gpu::Error::from)?;
        Ok(())
    }

    /// `out` `[rows, hidden]` = RMSNorm of `x` `[rows, hidden]` with `weight` `[hidden]`.
    pub fn rms_norm(
        &self,
        x: &CudaView<'_, f32>,
        weight: &CudaSlice<f32>,
        eps: f64,
        out: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        assert_eq!(x.len(), out.len(), "as many rows out as in; this is a bug");
        let (rows, hidden, eps) = (x.len() / weight.len(), weight.len() as u32, eps as f32);
        let mut launch = self.stream.launch_builder(&self.rms_norm);
        launch.arg(x).arg(weight).arg(&hidden).arg(&eps).arg(out);
        // SAFETY: the buffers have these shapes.
        unsafe { launch.launch(one_block_each(rows)) }.map_err(gpu::Error::from)?;
        Ok(())
    }

    /// Turns the queries of `qkv` `[tokens, heads + 2 * kv_heads, head_dim]` in place, and moves turned keys and values to `layer` of the
    /// cache, from token `position` on.
    pub fn rotate_and_store(
        &self,
        qkv: &mut CudaViewMut<'_, bf16>,
        rope: &CudaRope,
        heads: usize,
        position: usize,
        layer: usize,
        kv: &KvView,
    ) -> Result<()> {
        let tokens = qkv.len() / ((heads + 2 * kv.kv_heads as usize) * kv.head_dim as usize);
        assert!(position + tokens <= rope.positions(), "a position without a rotation; this is a bug");
        let (heads, position, layer) = (heads as u32, position as u32, layer as u32);
        let mut launch = self.stream.launch_builder(&self.rotate_and_store);
        launch.arg(qkv).arg(&rope.cos).arg(&rope.sin).arg(&heads).arg(&position).arg(&layer).arg(kv);
        // SAFETY: the buffers have these shapes, and the kernel leaves out tokens beyond the pages.
        unsafe { launch.launch(one_block_each(tokens)) }.map_err(gpu::Error::from)?;
        Ok(())
    }

    /// `out` `[rows, width]` = silu(gate) * up of `gate_up` `[rows, gate | up, width]`.
    pub fn swiglu(
        &self,
        gate_up: &CudaView<'_, bf16>,
        width: usize,
        out: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        assert_eq!(gate_up.len(), 2 * out.len(), "gate and up for every output; this is a bug");
        let items = (out.len() / 8) as u64;
        let blocks = items.div_ceil(u64::from(THREADS)) as usize;
        let width = width as u32;
        let mut launch = self.stream.launch_builder(&self.swiglu);
        launch.arg(gate_up).arg(&width).arg(&items).arg(out);
        // SAFETY: the buffers have these shapes.
        unsafe { launch.launch(one_block_each(blocks)) }.map_err(gpu::Error::from)?;
        Ok(())
    }
}

fn one_block_each(blocks: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}
