//! Launches of `kernels/attend.cu`: causal grouped-query attention over a paged cache.

use std::sync::Arc;

use gpu::{
    CudaFunction, CudaStream, CudaView, CudaViewMut, Device, Kernels, KvView, LaunchConfig, PushKernelArg,
};
use half::bf16;

use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attend.fatbin"));

/// Where an attention call's queries stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queries {
    /// Query heads.
    pub(crate) heads: usize,
    /// Position of the first query.
    pub(crate) position: usize,
    /// Which layer's keys and values they meet.
    pub(crate) layer: usize,
}

/// The kernels, on one stream.
pub(crate) struct AttentionKernels {
    stream: Arc<CudaStream>,
    attend: CudaFunction,
}

impl AttentionKernels {
    pub(crate) fn load(device: &Device, stream: &Arc<CudaStream>) -> Result<Self> {
        let kernels = Kernels::load(device, "attend", FATBIN)?;
        Ok(Self { stream: Arc::clone(stream), attend: kernels.function("attend")? })
    }

    /// `out` `[tokens, heads, head_dim]` of the queries in `qkv` `[tokens, heads + 2 * kv_heads, head_dim]`, whose keys and values are in
    /// `kv` already; `lse` `[heads, tokens]` takes the base-2 logarithm of each softmax's denominator.
    pub(crate) fn attend(
        &self,
        queries: Queries,
        qkv: &CudaView<'_, bf16>,
        kv: &KvView,
        out: &mut CudaViewMut<'_, bf16>,
        lse: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let width = queries.heads * kv.head_dim as usize;
        let tokens = out.len() / width;
        assert_eq!(qkv.len() / (width + 2 * (kv.kv_heads * kv.head_dim) as usize), tokens, "this is a bug");
        assert!(lse.len() >= queries.heads * tokens, "one sum per query; this is a bug");
        let (heads, rows) = (queries.heads as u32, tokens as u32);
        let (position, layer) = (queries.position as u32, queries.layer as u32);
        let mut launch = self.stream.launch_builder(&self.attend);
        launch.arg(qkv).arg(&heads).arg(&rows).arg(&position).arg(&layer).arg(kv).arg(out).arg(lse);
        let config = LaunchConfig { grid_dim: (rows, heads, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the buffers have these shapes, and the kernel reads no key beyond the pages.
        unsafe { launch.launch(config) }.map_err(gpu::Error::from)?;
        Ok(())
    }
}
